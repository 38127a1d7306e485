// equitensor/jax against differences.
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { expect, test } from 'vitest'
import { root } from './support'

// In a process of its own, since jax-js chooses its device once for a process.
test('first and second gradients, and directions', () => {
  const output = execFileSync(process.execPath, ['--import', 'tsx', path.join(__dirname, 'jax/program.mts')], { cwd: root, encoding: 'utf8' })
  const { errors, refusals } = JSON.parse(output) as { errors: Record<string, [number, number, number]>; refusals: object }
  expect(Object.keys(errors)).toEqual(['product', 'weighted', 'convolution', 'square', 'linear', 'harmonics'])
  // Differences are exact but for roundings, 1e-7 of a sum of some ten terms over steps from 0.05 on; losses of forces lose a digit more.
  for (const [name, [first, second, along]] of Object.entries(errors)) {
    expect(first, name).toBeLessThan(3e-4)
    expect(second, name).toBeLessThan(3e-3)
    expect(along, name).toBeLessThan(3e-4)
  }
  expect(refusals).toEqual({
    tracer: ['wrong_kind', 'x'],
    shape: ['wrong_length', 'x'],
    dtype: ['wrong_dtype', 'x'],
    count: ['wrong_length', 'primals'],
    op: ['invalid_argument', 'op'],
    gradOut: ['wrong_length', 'gradOut'],
  })
})
