// Third order, one test for every operation: the derivative of doubleBackward's results, composed of its calls with other arguments, against differences of
// it. No vitest in here.
import { random, randomArray } from './support'

export type Slots = Record<string, Float64Array>
/** What doubleBackward gives, gradOut among it, `at` arguments by name and `along` cotangents by name, where a missing one is zero. */
export type Second = (at: Slots, along: Slots) => Slots
export type Third = (at: Slots, along: Slots, moved: Slots) => Slots

export const sum = (a: Float64Array, b: Float64Array, t = 1) => a.map((v, i) => v + t * b[i]!)
const mapped = (slots: Slots, value: (name: string) => Float64Array): Slots => Object.fromEntries(Object.keys(slots).map((name) => [name, value(name)]))
const without = (slots: Slots, name: string): Slots => Object.fromEntries(Object.entries(slots).filter(([other]) => other !== name))

/**
 * Of an operation that is linear in each slot. A slot that moves has the direction in its place; no cotangent can be there as well, nor can it be the open one.
 * `polynomial`: the one slot in which it is not, but of degree 3 at most. Along its own cotangent doubleBackward is of degree 2 there, h say, whose derivative is
 * h(x + d) - h(x) - (h(d) + h(-d)) / 2 + h(0); another slot's cotangent is put in its place, and the direction is the cotangent.
 */
export const composed = (second: Second, polynomial?: string): Third => (at, along, moved) => {
  const results = Object.entries(moved).flatMap(([name, d]): Slots[] => {
    if (name !== polynomial) return [without(second({ ...at, [name]: d }, without(along, name)), name)]
    const x = at[name]!, h = (value: Float64Array, factor: number) => {
      const all = second({ ...at, [name]: value }, { [name]: along[name]! })
      return mapped(all, (slot) => all[slot]!.map((v) => factor * v))
    }
    const others = Object.entries(without(along, name)).map(([other, a]) => without(second({ ...at, [other]: a }, { [name]: d }), other))
    return [h(sum(x, d), 1), h(x, -1), h(d, -0.5), h(d.map((v) => -v), -0.5), h(d.map(() => 0), 1), ...others]
  })
  return mapped(at, (slot) => results.reduce((total, result) => (result[slot] ? sum(total, result[slot]) : total), new Float64Array(at[slot]!.length)))
}

/**
 * The error of every slot, relative to the largest value that a difference is taken of; Infinity for a third derivative that vanishes, which would say nothing.
 * Four points: exact up to degree 4, which is what the products of most slots have (x, y, three kinds of factors and gradOut, less a cotangent and the open slot).
 */
export function thirdOrderErrors(second: Second, at: Slots, third: Third = composed(second)): [slot: string, error: number][] {
  const next = random(31), draw = () => mapped(at, (slot) => randomArray('float64', at[slot]!.length, next))
  const along = without(draw(), 'gradOut'), moved = draw(), actual = third(at, along, moved)
  const [p, m, pp, mm] = [0.5, -0.5, 1, -1].map((t) => second(mapped(at, (slot) => sum(at[slot]!, moved[slot]!, t)), along)) as [Slots, Slots, Slots, Slots]
  const largest = (array: Float64Array) => array.reduce((most, v) => Math.max(most, Math.abs(v)), 0)
  return Object.entries(actual).map(([slot, array]) => {
    const values = [p, m, pp, mm].map((results) => results[slot]!)
    const error = largest(array.map((v, i) => v - (8 * (values[0]![i]! - values[1]![i]!) - (values[2]![i]! - values[3]![i]!)) / 6))
    return [slot, largest(array) > 0 ? error / Math.max(...values.map(largest)) : Infinity]
  })
}
