// The emulation of CUDA is what finds mistakes in kernels where no GPU is, so it is shown kernels that are right and kernels with one
// mistake each. Three builds: without sanitizers, with AddressSanitizer and UBSan, with ThreadSanitizer.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

const root = path.join(__dirname, '..')
const directory = mkdtempSync(path.join(tmpdir(), 'equitensor-emulation-'))

const builds = {
  plain: [],
  address: ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'],
  thread: ['-fsanitize=thread'],
}
type Build = keyof typeof builds
const everyBuild = Object.keys(builds) as Build[]
const seeds = [0, 1, 2]

const good = [
  'matmul',
  'reduce',
  'scatter',
  'warps',
  'early_return',
  'syncwarp',
  'last_block',
  'counted_once',
  'counted_twice',
  'counted_atomics',
  'limits',
  'host_threads',
  'recovery',
]

// What the builds that must find the mistake say about it.
const location = String.raw`broken_kernels\.cu:\d+`
const everywhere = (words: RegExp) => ({ plain: words, address: words, thread: words })
const outside = (what: string) => {
  const words = new RegExp(`stored outside its 256 bytes of ${what} shared memory`)
  return { plain: words, address: /AddressSanitizer: use-after-poison/, thread: words }
}
const race = { thread: new RegExp(`ThreadSanitizer: data race[^]*${location}`) }
const broken: Record<string, Partial<Record<Build, RegExp>>> = {
  global_overrun: { address: /AddressSanitizer: heap-buffer-overflow/ },
  static_overrun: outside('static'),
  dynamic_underrun: outside('dynamic'),
  dynamic_overread: { address: /AddressSanitizer: use-after-poison/ },
  missing_barrier: race,
  missing_second_barrier: race,
  missing_syncwarp: race,
  syncwarp_for_block: race,
  plain_sum: race,
  plain_sum_of_blocks: race,
  barrier_divergence: everywhere(new RegExp(`${location}: .*barrier divergence.*${location}`)),
  deadlock: everywhere(new RegExp(`deadlock in block \\(0,0,0\\):\n.*${location}: +40 threads.*\n.*${location}: +24 threads`)),
  uninitialised_static: everywhere(/NaN in the result\n.*NaN in the result/),
  uninitialised_dynamic: everywhere(/NaN in the result\n.*NaN in the result/),
  shuffle_from_outside: everywhere(new RegExp(`${location}: .*reads lane 9, which is inactive or not in the mask 0x000000ff`)),
  shuffle_from_inactive: everywhere(new RegExp(`${location}: .*reads lane 9, which is inactive or not in the mask 0xffffffff`)),
  shuffle_bad_mask: everywhere(new RegExp(`${location}: .*bad mask: lane \\d+ passes 0x000000ff`)),
  warp_divergence: everywhere(new RegExp(`${location}: .*warp divergence.*${location}`)),
}

const execute = promisify(execFile)
/** Until a check counts as hanging. On a busy machine 1024 threads under ThreadSanitizer took 20 s for a seed, most of them for the memory that it has for each. */
const milliseconds = 360_000

async function compile(name: string, flags: string[]) {
  const sources = ['checks.cpp', 'good_kernels.cu', 'broken_kernels.cu', 'runtime.cpp', 'block.cpp'].map((file) => `test/emulation/${file}`)
  const common = ['-std=c++20', '-O1', '-g1', '-Wall', '-Wextra', '-Werror', '-I.', '-include', 'test/emulation/cuda.hpp']
  const binary = path.join(directory, name)
  try {
    await execute('g++', [...common, ...flags, '-x', 'c++', ...sources, '-o', binary, '-pthread'], { cwd: root })
  } catch (error) {
    throw new Error(`the emulation needs a g++ that can build with "${flags.join(' ')}" (apt-get install g++): ${error}`)
  }
}

async function run(build: string, check?: string, seed = 0) {
  const env = { ...process.env, EQUITENSOR_EMULATION_SEED: `${seed}` }
  try {
    const { stdout, stderr } = await execute(path.join(directory, build), check ? [check] : [], { env, timeout: milliseconds / seeds.length })
    return { passed: true, stdout, stderr }
  } catch (error) {
    const { signal, stdout, stderr } = error as { signal: string | null; stdout: string; stderr: string }
    expect(signal, `${build} ${check}: ${stderr}`).toBe(null) // reports end a process, crashes do not count
    return { passed: false, stdout, stderr }
  }
}

describe.skipIf(process.platform === 'win32')('emulation of CUDA', () => {
  beforeAll(async () => {
    await Promise.all([...everyBuild.map((build) => compile(build, builds[build]))])
  }, 120_000)
  afterAll(() => rmSync(directory, { recursive: true }))

  test('every check is expected to do something', async () => {
    const { stdout } = await run('plain')
    const names = (kind: string) => [...stdout.matchAll(new RegExp(`^${kind} (.*)$`, 'gm'))].map((match) => match[1])
    expect(names('good')).toEqual(good)
    expect(names('broken')).toEqual(Object.keys(broken))
  })

  describe.each(everyBuild)('%s', (build) => {
    test.concurrent.each(good)('%s passes in every order of threads', async (check) => {
      for (const seed of seeds) {
        const { passed, stderr } = await run(build, check, seed)
        expect(passed, `seed ${seed}: ${stderr}`).toBe(true)
      }
    }, milliseconds)

    const caught = Object.entries(broken).filter(([, words]) => words[build])
    test.concurrent.each(caught)('%s is caught', async (check, words) => {
      for (const seed of seeds) {
        const { passed, stderr } = await run(build, check, seed)
        expect(stderr, `seed ${seed}`).toMatch(words[build]!)
        expect(passed, `seed ${seed}`).toBe(false)
      }
    }, milliseconds)
  })
})
