// The training programs of examples/, a few steps of each.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, expect, test } from 'vitest'
import { root } from './support'

const scratch = mkdtempSync(path.join(tmpdir(), 'equitensor-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const inScratch = (name: string) => path.join(scratch, name)
async function run(...args: string[]): Promise<string> {
  const env = { ...process.env, EQUITENSOR_BACKEND: 'cpu' }
  const { stdout } = await promisify(execFile)(process.execPath, [path.join(root, 'node_modules/tsx/dist/cli.mjs'), ...args], { cwd: root, env })
  return stdout
}

test('tetris: CGTP tells all pieces apart, GTP not the mirror images', async () => {
  const out = inScratch('tetris.svg')
  const stdout = await run('examples/tetris/train.ts', '--degrees', '1', '--seeds', '1', '--steps', '40', '--products', 'cgtp,gtp', '--out', out)
  const [, cgtp, gtp] = stdout.split('degree 1, ') as [string, string, string]
  expect(cgtp).toContain('hidden 8x0o+8x0e+8x1o+8x1e;')
  expect(cgtp).toContain('best 8/8')
  expect(gtp).toContain('hidden 8x0e+8x1o;')
  expect(gtp).not.toContain('8/8')
  expect(readFileSync(out, 'utf8').match(/<polyline/g)).toHaveLength(2)
})
