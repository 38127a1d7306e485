// Second order: jvp and doubleBackward of every product against differences of first-order results.
import { describe, expect, test } from 'vitest'
import { products } from './reference'
import { random, randomArray } from './support'

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
const plus = (a: Float64Array, b: Float64Array, t: number) => a.map((v, i) => v + t * b[i]!)

// The forms are linear in each slot, so a central difference is exact for any step but for rounding: a step of 1, and 1e-12 of the
// sums of products that are compared.
const bar = 1e-12

describe.each(products)('$name', ({ make }) => {
  const irreps = '2x0e+2x1o+2x2e'
  const op = make(irreps, irreps, { dtype: 'float64' })
  const next = random(7)
  const draw = (length: number) => randomArray('float64', length, next)

  test.each([['both', 3, 3], ['x shared', 1, 3], ['y shared', 3, 1], ['no item', 0, 0]] as const)('%s', (_name, xBatch, yBatch) => {
    const batch = xBatch === 1 ? yBatch : xBatch
    const x = draw(xBatch * op.irrepsIn1.dim), y = draw(yBatch * op.irrepsIn2.dim), g = draw(batch * op.irrepsOut.dim)
    const ax = draw(x.length), ay = draw(y.length), ag = draw(g.length)
    const scale = 1 + dot(g, g) * Math.max(1, dot(x, x), dot(y, y))

    const tangent = op.jvp(x, y, undefined, { x: ax, y: ay })
    const forward = (t: number) => op.forward(plus(x, ax, t), plus(y, ay, t))
    const difference = forward(0.5).map((v, i) => v - forward(-0.5)[i]!)
    expect(tangent.every((v, i) => Math.abs(v - difference[i]!) <= bar * scale)).toBe(true)

    // The scalar whose gradients doubleBackward gives, and its derivative in one direction of each argument.
    const scalar = (u: Float64Array, v: Float64Array, w: Float64Array) => {
      const gradients = op.backward(u, v, undefined, w)
      return dot(ax, gradients.x) + dot(ay, gradients.y)
    }
    const second = op.doubleBackward(x, y, undefined, g, { x: ax, y: ay })
    const dx = draw(x.length), dy = draw(y.length)
    const inX = scalar(plus(x, dx, 0.5), y, g) - scalar(plus(x, dx, -0.5), y, g)
    const inY = scalar(x, plus(y, dy, 0.5), g) - scalar(x, plus(y, dy, -0.5), g)
    const inG = scalar(x, y, plus(g, ag, 0.5)) - scalar(x, y, plus(g, ag, -0.5))
    expect(Math.abs(dot(second.x, dx) - inX)).toBeLessThanOrEqual(bar * scale)
    expect(Math.abs(dot(second.y, dy) - inY)).toBeLessThanOrEqual(bar * scale)
    expect(Math.abs(dot(second.gradOut, ag) - inG)).toBeLessThanOrEqual(bar * scale)

    // A missing cotangent is zero.
    const zeros = new Float64Array(y.length)
    expect(op.doubleBackward(x, y, undefined, g, { x: ax })).toEqual(op.doubleBackward(x, y, undefined, g, { x: ax, y: zeros }))
    expect(op.jvp(x, y, undefined, {})).toEqual(new Float64Array(g.length))
  })

  test('a part of the gradients, into given arrays, added to them', () => {
    const x = draw(3 * op.irrepsIn1.dim), y = draw(op.irrepsIn2.dim), g = draw(3 * op.irrepsOut.dim)
    const ax = draw(x.length), ay = draw(y.length)
    const all = op.doubleBackward(x, y, undefined, g, { x: ax, y: ay })
    const first = op.backward(x, y, undefined, g)
    for (const slot of ['x', 'y', 'gradOut'] as const) {
      const needs = { x: false, y: false, gradOut: false, [slot]: true }
      expect(op.doubleBackward(x, y, undefined, g, { x: ax, y: ay }, { needs })).toEqual({ [slot]: all[slot] })
    }
    const out = { x: draw(x.length), y: draw(y.length), gradOut: draw(g.length) }
    const sums = Object.fromEntries((['x', 'y', 'gradOut'] as const).map((slot) => [slot, out[slot].map((v, i) => v + all[slot][i]!)]))
    const result = op.doubleBackward(x, y, undefined, g, { x: ax, y: ay }, { out, accumulate: true })
    for (const slot of ['x', 'y', 'gradOut'] as const) {
      expect(result[slot]).toBe(out[slot])
      // A sum over the items is added before it is rounded.
      expect(Math.max(...out[slot].map((v, i) => Math.abs(v - sums[slot]![i]!)))).toBeLessThan(bar)
    }
    // Nothing contributes to the gradients of x without a direction of y: they stay as they are.
    const kept = { x: draw(x.length), y: draw(y.length) }, before = kept.x.slice()
    op.doubleBackward(x, y, undefined, g, { x: ax }, { needs: { gradOut: false }, out: kept, accumulate: true })
    expect(kept.x).toEqual(before)
    expect(op.doubleBackward(x, y, undefined, g, { x: ax }, { needs: { gradOut: false }, out: kept }).x).toEqual(new Float64Array(x.length))

    const sum = { x: first.x.slice() }
    op.backward(x, y, undefined, g, { needs: { y: false }, out: sum, accumulate: true })
    expect(sum.x).toEqual(first.x.map((v) => 2 * v))
    expect(op.backward(x, y, undefined, g, { needs: { x: false } })).toEqual({ y: first.y })
  })

  test('third order, by composition', () => {
    const x = draw(op.irrepsIn1.dim), y = draw(op.irrepsIn2.dim), g = draw(op.irrepsOut.dim)
    const ax = draw(x.length), ay = draw(y.length), dx = draw(x.length), dy = draw(y.length), dg = draw(g.length)
    // The results of doubleBackward are linear in x, y and gradOut: their differences are first-order calls in the same directions.
    const second = (t: number) => op.doubleBackward(plus(x, dx, t), plus(y, dy, t), undefined, plus(g, dg, t), { x: ax, y: ay })
    const [ahead, behind] = [second(0.5), second(-0.5)]
    const third = { ...op.backward(ax, ay, undefined, dg), gradOut: op.jvp(ax, ay, undefined, { x: dx, y: dy }) }
    const scale = 1 + Math.max(...third.x.map(Math.abs), ...third.y.map(Math.abs), ...third.gradOut.map(Math.abs))
    for (const slot of ['x', 'y', 'gradOut'] as const) {
      expect(Math.max(...third[slot].map((v, i) => Math.abs(v - ahead[slot][i]! + behind[slot][i]!)))).toBeLessThan(10 * bar * scale)
    }
  })

  test('bad cotangents and tangents', () => {
    const x = draw(op.irrepsIn1.dim), y = draw(op.irrepsIn2.dim), g = draw(op.irrepsOut.dim)
    expect(() => op.doubleBackward(x, y, undefined, g, { x: draw(1) })).toThrow(/cotangents.x: expected \d+ numbers, as many as x, got 1/)
    expect(() => op.jvp(x, y, undefined, { z: g } as never)).toThrow(/tangents.z: expected one of x, y/)
    expect(() => op.doubleBackward(x, y, undefined, g, { x }, { accumulate: true })).toThrow('out.x: expected an array to accumulate in, or needs: { x: false }, got none')
    expect(() => op.backward(x, y, undefined, g, { accumulate: 1 as never })).toThrow(/options.accumulate: expected a boolean, got 1/)
    expect(() => op.doubleBackward(x, y, undefined, g, { x: draw(x.length) }, { out: { gradOut: g } })).toThrow(/out.gradOut: expected memory of its own/)
    expect(() => op.jvp(x, y, undefined, { y: new Float32Array(y.length) as never })).toThrow(/tangents.y: expected a Float64Array/)
  })
})
