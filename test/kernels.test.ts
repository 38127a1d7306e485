// The project's CUDA kernels under the sanitizers, in several orders of threads (test/emulation/kernels.cpp). Their numbers are checked by the
// suite itself, which runs on the emulated binary (`npm run test:emulated`); so does this, since compiling takes a minute.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { binary } from '../lib/native'
import { root } from './support'

const execute = promisify(execFile)
const builds = {
  address: ['-fsanitize=address,undefined', '-fno-sanitize-recover=all'],
  thread: ['-fsanitize=thread'],
}
const seeds = [0, 1, 2]
// Those that take longest to compile first.
const sources = [
  ...['weighted_channelwise.cu', 'symmetric_contraction.cu', 'gaunt_product.cu', 'weighted.cu', 'gaunt.cu', 'clebsch_gordan.cu', 'fourier.cu', 'matrix.cu', 'matrix_block.cu', 'spherical_harmonics.cu', 'sum_rows.cu', 'runtime.cpp'].map((file) => `cuda/${file}`),
  ...['runtime.cpp', 'block.cpp', 'kernels.cpp'].map((file) => `test/emulation/${file}`),
]
const directory = mkdtempSync(path.join(tmpdir(), 'equitensor-kernels-'))

/** Tasks two at a time: each takes a core. */
async function inPairs<Result>(tasks: (() => Promise<Result>)[]): Promise<Result[]> {
  const results: Result[] = [], waiting = [...tasks.entries()]
  const worker = async () => {
    for (let next; (next = waiting.shift()); ) results[next[0]] = await next[1]()
  }
  await Promise.all([worker(), worker()])
  return results
}

const programs = Object.entries(builds).map(([name, flags]) => ({
  name, flags, file: path.join(directory, name), objects: sources.map((_, i) => path.join(directory, `${name}-${i}.o`)),
}))
async function compile() {
  // Without optimisation: g++ takes half the time of -O1, which is minutes; a run takes 1.4 times as long, which is seconds.
  const options = ['-std=c++20', '-O0', '-g1', '-I.', '-include', 'test/emulation/cuda.hpp']
  await inPairs(sources.flatMap((source, i) =>
    programs.map(({ flags, objects }) => () => execute('g++', [...options, ...flags, '-x', 'c++', '-c', source, '-o', objects[i]!], { cwd: root }))))
  await inPairs(programs.map(({ flags, file, objects }) => () => execute('g++', [...flags, ...objects, '-o', file, '-pthread'])))
}

describe.runIf(binary.flavour === 'emulated')('CUDA kernels', () => {
  beforeAll(compile, 900_000)
  afterAll(() => rmSync(directory, { recursive: true }))

  test('neither a sanitizer nor a result knows the order of the threads', async () => {
    const results = await inPairs(programs.flatMap(({ name, file }) =>
      seeds.map((seed) => async () => {
        // The runtime keeps its memory pools until the process ends.
        const env = { ...process.env, EQUITENSOR_EMULATION_SEED: `${seed}`, ASAN_OPTIONS: 'detect_leaks=0' }
        const { stdout, stderr } = await execute(file, [], { env, timeout: 500_000 })
        expect(stderr, `${name}, seed ${seed}`).toBe('')
        return stdout
      })))
    expect(new Set(results).size, `hashes of all results: ${results.join(' ')}`).toBe(1)
    expect(results[0]).toMatch(/^[0-9a-f]{16}\n$/)
  }, 900_000)
})
