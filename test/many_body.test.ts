// The many-body problems of bench/: each pass runs, into the arrays that it names, and says what it costs.
import { expect, test } from 'vitest'
import { manyBodyProblems } from '../bench/many_body'
import { random, randomArray, type Numbers } from './support'

test.each(manyBodyProblems.map((problem) => [problem.name, problem] as const))('%s', (_name, problem) => {
  const drawn: Numbers[] = [], next = random(1)
  const op = problem.make({ dtype: 'float32', layout: 'ir_mul', threads: 1 })
  const passes = op.bind(3, (length) => drawn[drawn.push(randomArray('float32', length, next)) - 1]!)
  for (const pass of ['forward', 'backward', 'doubleBackward'] as const) {
    const before = drawn.map((array) => array.slice())
    passes[pass]()
    // Results are what has changed: one of forward, and of the others at most one for each operand.
    const changed = drawn.filter((array, i) => array.some((v: number, c: number) => v !== before[i]![c]))
    expect(changed.length, pass).toBeGreaterThan(0)
    for (const array of changed) expect(array.every(Number.isFinite), pass).toBe(true)
    expect(op.cost[pass].flops).toBeGreaterThan(op.cost[pass].bytes / 100)
  }
  op.dispose()
})
