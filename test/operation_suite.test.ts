// The problems of bench/ that are measured by themselves: each pass runs, into the arrays that it names, and says what it costs.
import { expect, test } from 'vitest'
import { factorProblems } from '../bench/factor_problems'
import { harmonicsProblems } from '../bench/harmonics_problems'
import { manyBodyProblems } from '../bench/many_body_problems'
import { factors, harmonics } from '../bench/operation_suite'
import { random, randomArray, type Numbers } from './support'

const byDefault = [...manyBodyProblems, ...harmonicsProblems.filter(({ L }) => harmonics.degrees!.includes(L!)), ...factorProblems.filter(({ L }) => factors.degrees!.includes(L!))]
test.each(byDefault.map((problem) => [problem.name, problem] as const))('%s', (_name, problem) => {
  const op = problem.make({ dtype: 'float32', layout: 'ir_mul', threads: 1 })
  for (const pass of ['forward', 'backward', 'doubleBackward'] as const) {
    const drawn: Numbers[] = [], next = random(1)
    const call = op.bind(pass, 3, (length) => drawn[drawn.push(randomArray('float32', length, next)) - 1]!), before = drawn.map((array) => array.slice())
    call()
    // Results are what has changed: one of forward, and of the others at most one for each operand.
    const changed = drawn.filter((array, i) => array.some((v: number, c: number) => v !== before[i]![c]))
    expect(changed.length, pass).toBeGreaterThan(0)
    for (const array of changed) expect(array.every(Number.isFinite), pass).toBe(true)
    // Every array once, but the weights of species.
    if (op.weightBytes === 0) expect(op.cost[pass].bytes, pass).toBe((4 * drawn.reduce((sum, { length }) => sum + length, 0)) / 3)
    expect(op.cost[pass].flops).toBeGreaterThan(op.cost[pass].bytes / 100)
  }
  op.dispose()
})
