// The package as it is installed: its two entries, its command line, its loader, and what the linker made of the kernels.
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { EquitensorError } from '../lib/errors'
import { binary, loadNative, native } from '../lib/native'

const root = path.join(__dirname, '..')
const packageJson = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

const load = createRequire(__filename)

const equitensorWith = (env: NodeJS.ProcessEnv, ...args: string[]) =>
  spawnSync(process.execPath, [path.join(root, packageJson.bin.equitensor), ...args], { encoding: 'utf8', env: { ...process.env, ...env } })
const equitensor = (...args: string[]) => equitensorWith({}, ...args)

const scratch = mkdtempSync(path.join(tmpdir(), 'equitensor-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const hasTool = (tool: string) => spawnSync(tool, ['--version']).status === 0
const without = (tool: string) => (hasTool(tool) ? '' : ` (skipped: ${tool} is missing)`)

/** A folder with an `nvcc` that knows its version and the architectures it can compile for, and nothing else. */
function fakeToolkit(release: string, ...architectures: number[]) {
  const folder = mkdtempSync(path.join(scratch, 'nvcc-'))
  const list = architectures.map((architecture) => `compute_${architecture}`).join('\\n')
  writeFileSync(
    path.join(folder, 'nvcc'),
    `#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release ${release}, V${release}.1"\n[ "$1" = --list-gpu-arch ] && printf '${list}\\n'\nexit 0\n`,
  )
  chmodSync(path.join(folder, 'nvcc'), 0o755)
  return folder
}

describe('entries', () => {
  test.each([
    ['equitensor', ['ClebschGordanTensorProduct', 'EquitensorError']],
    ['equitensor/tfjs', ['tensorProduct', 'sphericalHarmonics']],
    ['equitensor/jax', ['jaxOperations', 'harmonics']],
  ])('ESM and CommonJS export the same objects under the same names: %s', async (entry, some) => {
    // In a process of its own, where Node and not vitest resolves both.
    const program = `
      const esm = await import('${entry}')
      const cjs = (await import('node:module')).createRequire(process.cwd() + '/')('${entry}')
      const names = Object.keys(cjs)
      console.log(JSON.stringify({ names, esm: Object.keys(esm), same: names.filter((name) => esm[name] === cjs[name]) }))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], { cwd: root })
    const { names, esm, same } = JSON.parse(stdout)
    expect(names).toEqual(expect.arrayContaining(some))
    expect(esm).toEqual([...names].sort())
    expect(same).toEqual(names)
  })

  test.each(['.', './tfjs', './jax'])('each condition of %s has its own types', (entry) => {
    for (const condition of ['import', 'require']) {
      for (const file of Object.values<string>(packageJson.exports[entry][condition])) {
        expect(existsSync(path.join(root, file)), file).toBe(true)
      }
    }
  })
})

test('declarations are read by TypeScript before 5.7, which knows no type arguments of typed arrays', () => {
  const declarations = readdirSync(path.join(root, 'dist')).filter((name) => name.endsWith('.d.ts'))
  const generic = declarations.filter((name) => /\b(Float32|Float64|Int32|BigInt64)Array</.test(readFileSync(path.join(root, 'dist', name), 'utf8')))
  expect(generic).toEqual([])
})

describe('programs that use it', () => {
  const project = path.join(scratch, 'project')
  /** Compiles programs as a project of its own does, strictly and with declarations of what they export. */
  function compile(programs: Record<string, string>, libraries = ['--skipLibCheck', '--lib', 'es2022,esnext.disposable', '--types', 'node']) {
    mkdirSync(path.join(project, 'node_modules'), { recursive: true })
    const modules = Object.fromEntries(['@types', '@tensorflow'].map((name) => [name, path.join(root, 'node_modules', name)]))
    for (const [name, at] of Object.entries({ equitensor: root, ...modules })) {
      const link = path.join(project, 'node_modules', name)
      if (!existsSync(link)) symlinkSync(at, link)
    }
    const files = Object.entries(programs).map(([name, text]) => {
      writeFileSync(path.join(project, `${name}.mts`), text)
      return `${name}.mts`
    })
    const options = ['--strict', '--declaration', '--module', 'nodenext', '--target', 'es2022', ...libraries]
    const { stdout } = spawnSync(process.execPath, [path.join(root, 'node_modules/typescript/bin/tsc'), ...options, ...files], { cwd: project, encoding: 'utf8' })
    return stdout
  }

  test('the types of all results can be named', () => {
    const program = `
      import { backends, ClebschGordanTensorProduct, Convolution, GauntPower, GauntProduct, GauntTensorProduct, Graph, Linear, sphericalHarmonics, SymmetricContraction, TensorSquare } from 'equitensor'
      import type { AsyncOptions, BackwardOptions, Directions, DoubleBackwardOptions, ForwardOptions } from 'equitensor'
      declare const f: Float32Array, s: Int32Array, graph: Graph
      declare const op: ClebschGordanTensorProduct, gaunt: GauntTensorProduct, conv: Convolution, linear: Linear, symmetric: SymmetricContraction
      declare const product: GauntProduct, power: GauntPower, square: TensorSquare
      export const product2 = [op.backward(f, f, f, f), op.doubleBackward(f, f, f, f, {}), gaunt.backwardAsync(f, f, f, f)] as const
      export const convolution = [conv.forwardAsync(graph, f, f, f), conv.backward(graph, f, f, f, f), conv.doubleBackward(graph, f, f, f, f, {})] as const
      export const layer = [linear.backward(f, f, f), linear.doubleBackwardAsync(f, f, f, {})] as const
      export const manyBody = [symmetric.backward(f, s, f, f), symmetric.doubleBackward(f, s, f, f, {})] as const
      export const onSphere = [product.backward([f], f), product.doubleBackward([f], f, {}), power.doubleBackward(f, f, {}), square.backward(f, undefined, f)] as const
      export const harmonics = sphericalHarmonics.doubleBackward(2, f, f, f)
      export const properties = [op.choice, op.cost, op.paths, linear.paths, symmetric.paths, power.grid, op.layout, backends()] as const
      export class Layer {
        forward = (x: Float32Array, options: ForwardOptions<Float32Array> & AsyncOptions) => linear.forwardAsync(x, f, options)
        backward = (options: BackwardOptions<Float32Array>) => op.backward(f, f, f, f, options)
        doubleBackward = (along: Directions<Float32Array>, options: DoubleBackwardOptions<Float32Array>) => op.doubleBackward(f, f, f, f, along, options)
      }`
    expect(compile({ named: program })).toBe('')
  })

  test.each([
    ['equitensor', 'Irreps'],
    ['equitensor/tfjs', 'gather'],
    ['equitensor/jax', 'harmonics'],
  ])('the declarations of %s need no library that the project does not name', (entry, name) => {
    const messages = compile({ alone: `import { ${name} } from '${entry}'\nexport const one = ${name}` }, ['--skipLibCheck', 'false', '--types', ''])
    // Those of TensorFlow.js are at odds with TypeScript's own.
    expect(messages.split('\n').filter((line) => line !== '' && !line.includes('node_modules'))).toEqual([])
  })

  test("README's are right and run", () => {
    const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
    // Of those that are whole the ones that need nothing but this package.
    const programs = Array.from(readme.matchAll(/^```ts\n(.*?)^```/gms), ([, text]) => text!).filter((text) => !/tf|jax/.test(text))
    expect(programs.length).toBeGreaterThan(3)
    expect(compile(Object.fromEntries(programs.map((text, n) => [`readme${n}`, text])))).toBe('')
    programs.forEach((text, n) => {
      if (text.includes("'cuda'") && !native.cuda?.devices().devices.length) return
      const { status, stderr } = spawnSync(process.execPath, [path.join(project, `readme${n}.mjs`)], { encoding: 'utf8' })
      expect([status, stderr], text).toEqual([0, ''])
    })
  })

  test("README's training has forces, and its loss falls", () => {
    const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
    const [, text] = /^```ts\n(import \* as tf .*?)^```/ms.exec(readme)!
    const program = `${text!.replace(/^for /m, 'const before = loss().dataSync()[0]!\nfor ')}
      console.log(JSON.stringify({ before, after: loss().dataSync()[0], force: tf.max(tf.abs(tf.grad(energy)(r))).dataSync()[0] }))`
    expect(compile({ training: program })).toBe('')
    const { before, after, force } = JSON.parse(execFileSync(process.execPath, [path.join(project, 'training.mjs')], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).match(/^\{.*\}$/m)![0])
    // Rounding errors of forces that are zero are 1e-6; those of the springs reach 3. In 30 steps the loss fell by 80 to 300 times.
    expect(force).toBeGreaterThan(0.1)
    expect(after).toBeLessThan(before / 2)
  })
})

describe('command line', () => {
  test('doctor says what was built and what runs', () => {
    const { status, stdout } = equitensor('doctor')
    expect(stdout).toContain(native.stamp)
    expect(stdout).toContain(native.cpuInfo().variant)
    expect(stdout).toContain(path.relative(root, binary.file))
    expect(stdout).toMatch(/^cuda +(available|unavailable: .)/m)
    if (process.platform === 'linux') expect(stdout).toMatch(/needs glibc 2\.\d+/)
    expect(status).toBe(0)
  })

  test('doctor says which toolkit a build would use', () => {
    const old = fakeToolkit('11.8')
    expect(equitensorWith({ CUDA_HOME: '', CUDA_PATH: '', PATH: old }, 'doctor').stdout).toContain(`11.8 (${path.join(old, 'nvcc')}), too old`)
    expect(equitensorWith({ CUDA_HOME: '', CUDA_PATH: '', PATH: '' }, 'doctor').stdout).toMatch(/cuda toolkit +none found/)
  })

  test.each(['help', '--help', '-h'])('%s prints the usage', (flag) => {
    const { status, stdout } = equitensor(flag)
    for (const part of ['Usage: equitensor', '--cuda', '--cpu', '--emulated', '--cmake', 'EQUITENSOR_BUILD', 'EQUITENSOR_BINARY', 'EQUITENSOR_CPU', 'EQUITENSOR_BACKEND']) {
      expect(stdout).toContain(part)
    }
    expect(status).toBe(0)
    expect(equitensor('build', '--help').stdout).toBe(stdout)
  })

  test.each([['--cuda', '--cpu'], ['--gpu'], ['cuda']])('build %s %s is refused before anything is built', (...args) => {
    const { status, stderr } = equitensor('build', ...args)
    expect(stderr).toContain('Usage: equitensor')
    expect(status).toBe(2)
  })

  test('doctor refuses options', () => {
    const { status, stdout, stderr } = equitensor('doctor', '--all')
    expect(stderr).toMatch(/^equitensor: unknown option --all\n/)
    expect([status, stdout]).toEqual([2, ''])
  })

  test('doctor says what is wrong with the environment, and no more', () => {
    const cpu = equitensorWith({ EQUITENSOR_CPU: 'mmx' }, 'doctor')
    expect(cpu.stdout).toContain(native.stamp)
    expect(cpu.stdout).not.toContain('nothing')
    expect(cpu.stderr.trim()).toMatch(/^EQUITENSOR_CPU: expected one of .*, got "mmx"$/)
    const flavour = equitensorWith({ EQUITENSOR_BINARY: 'gpu' }, 'doctor')
    expect(flavour.stderr.trim()).toBe("EQUITENSOR_BINARY is cuda, cpu, emulated or unset, not 'gpu'")
    expect([cpu.status, flavour.status]).toEqual([1, 1])
  })

  test('install with a flavour that is none says so, and nothing of compilers', () => {
    const { status, stderr } = spawnSync(process.execPath, [path.join(root, 'bin/install.js')], { encoding: 'utf8', env: { ...process.env, EQUITENSOR_BUILD: 'gpu' } })
    expect(stderr.trim()).toBe("equitensor: EQUITENSOR_BUILD is auto, cuda, cpu, emulated or unset, not 'gpu'. Nothing was built.")
    expect(status).toBe(1)
  })

  test('an unknown command gets the usage', () => {
    const { status, stderr } = equitensor('constructor')
    expect(stderr).toContain('Usage: equitensor')
    expect(status).toBe(2)
  })
})

describe('loader', () => {
  // As for a user, also where the whole suite runs with one flavour.
  beforeEach(() => void vi.stubEnv('EQUITENSOR_BINARY', ''))
  afterEach(() => void vi.unstubAllEnvs())

  test('the stamp is the one of these sources', () => {
    const { stamp } = load('../bin/sources.js')
    expect(native.stamp).toBe(stamp())
    expect(native.stamp.startsWith(`${packageJson.version}+`)).toBe(true)
  })

  test('without a binary the error lists every remedy', () => {
    const empty = mkdtempSync(path.join(scratch, 'empty-'))
    const error = failureOf(empty)
    expect(error).toHaveProperty('code', 'native_unavailable')
    for (const remedy of [
      'npx equitensor build',
      'npm approve-scripts equitensor',
      'pnpm approve-builds',
      'apt-get install g++ make python3',
      'xcode-select --install',
      'npx equitensor build --cpu',
      'EQUITENSOR_BINARY',
      'another Node',
      'npx equitensor doctor',
    ]) {
      expect(error.message).toContain(remedy)
    }
    for (const name of ['equitensor_cuda.node', 'equitensor_cpu.node', 'prebuilds']) expect(error.message).toContain(name)
  })

  test('one that does not load gives way to the next, down to the one of the package', () => {
    const place = mkdtempSync(path.join(scratch, 'several-'))
    const put = (folder: string, name: string, from?: string) => {
      mkdirSync(path.join(place, folder), { recursive: true })
      const file = path.join(place, folder, name)
      if (from) copyFileSync(from, file)
      else writeFileSync(file, 'no addon')
      return file
    }
    const cuda = put('build/Release', 'equitensor_cuda.node')
    const cpu = put('build/Release', 'equitensor_cpu.node')
    expect(failureOf(place).message).toContain(cuda)
    expect(failureOf(place).message).toContain(cpu)
    const prebuilt = put(`prebuilds/${process.platform}-${process.arch}`, 'equitensor_cpu.node', binary.file)
    expect(loadNative(place)).toMatchObject({ flavour: 'cpu', file: prebuilt, refused: [{ file: cuda }, { file: cpu }] })

    const emulated = put('build/Release', 'equitensor_emulated.node', binary.file)
    vi.stubEnv('EQUITENSOR_BINARY', 'emulated')
    expect(loadNative(place)).toMatchObject({ flavour: 'emulated', file: emulated, refused: [] })
    vi.stubEnv('EQUITENSOR_BINARY', 'cuda')
    expect(failureOf(place).message).toContain(cuda)
    vi.stubEnv('EQUITENSOR_BINARY', 'gpu')
    // No remedy but another value.
    expect(failureOf(place)).toMatchObject({ argument: 'EQUITENSOR_BINARY', message: "EQUITENSOR_BINARY is cuda, cpu, emulated or unset, not 'gpu'" })
  })

  test.skipIf(!hasTool('objdump') || process.platform !== 'linux')('knows the C library that a binary needs', () => {
    const { glibcNeeded, compareVersions } = load('../bin/elf.js')
    const symbols = execFileSync('objdump', ['-T', binary.file], { encoding: 'utf8', maxBuffer: 1 << 26 })
    const versions = Array.from(symbols.matchAll(/\(?GLIBC_([\d.]+)\)?/g), ([, version]) => version)
    expect(glibcNeeded(binary.file)).toBe(versions.sort(compareVersions).at(-1))
    expect(compareVersions('2.4', '2.34')).toBeLessThan(0)
    expect(compareVersions('12.0', '12')).toBe(0)
  })
})

/** The error of a loader that finds nothing usable below `place`. */
function failureOf(place: string): EquitensorError {
  try {
    loadNative(place)
  } catch (error) {
    expect(error).toBeInstanceOf(EquitensorError)
    return error as EquitensorError
  }
  return expect.unreachable()
}

describe('CUDA sources', () => {
  const { cuda, cudaArchitectures } = load('../bin/sources.js')

  test('older toolkits compile for what they know and leave the rest to the driver', () => {
    const architectures = (...known: number[]) => cudaArchitectures(path.join(fakeToolkit('12.0', ...known), 'nvcc'))
    expect(architectures(50, 75, 80, 86, 90, 100, 120)).toEqual(['75-real', '80-real', '90-real', '100-real', '100-virtual'])
    expect(architectures(50, 75, 80, 86, 90)).toEqual(['75-real', '80-real', '90-real', '90-virtual'])
    expect(() => architectures(50)).toThrow('compiles for none of')
    vi.stubEnv('EQUITENSOR_CUDA_ARCHITECTURES', '90-real')
    expect(architectures(80, 90)).toEqual(['90-real'])
    vi.unstubAllEnvs()
  })

  test('every kernel is in the record of resources, for every card, without spills and local memory', () => {
    const { faults } = load('../cuda/resources.js')
    const { kernels } = JSON.parse(readFileSync(path.join(root, 'cuda/resources.json'), 'utf8'))
    expect(Object.keys(kernels).sort()).toEqual([...cuda.kernels].sort())
    for (const byName of Object.values<object>(kernels)) {
      for (const byCard of Object.values(byName)) expect(Object.keys(byCard)).toEqual(['sm_75', 'sm_80', 'sm_90', 'sm_100'])
    }
    expect(faults(kernels)).toEqual([])
  })

  test('spills, local memory and changes are named by kernel, card and field', () => {
    const { parseVerbose, faults, changes, shortName } = load('../cuda/resources.js')
    const found = parseVerbose(`
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90'
ptxas info    : Function properties for _Z1kPf
    48 bytes stack frame, 52 bytes spill stores, 56 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 400 bytes smem
ptxas info    : Function properties for helper
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
`)
    expect(Object.fromEntries(found)).toEqual({
      _Z1kPf: { spillStores: 52, spillLoads: 56, stack: 48, shared: 400, registers: 32 },
      helper: { spillStores: 0, spillLoads: 0, stack: 40, shared: 0 },
    })
    const of = (values: object) => ({ 'a.cu': { k: { sm_90: values } } })
    expect(faults(of(found.get('_Z1kPf')))).toEqual(['a.cu k sm_90 spills: 52 bytes of stores, 56 of loads'])
    expect(faults(of(found.get('helper')))).toEqual(['a.cu k sm_90 uses local memory: a stack frame of 40 bytes'])
    expect(changes(of({ registers: 32, code: 5 }), of({ registers: 33, code: 5 }))).toEqual(['a.cu k sm_90 registers: recorded 32, now 33'])
    expect(changes({}, of({ code: 5 }))).toEqual(['a.cu k sm_90 is not recorded'])
    expect(changes(of({ code: 5 }), {})).toEqual(['a.cu k sm_90 is recorded and no longer there'])
    expect(shortName('void equitensor::cuda::(anonymous namespace)::f<(int)3, A<float> >(float const*)')).toBe('f<(int)3, A<float> >')
  })

  test('a source whose kernels have few threads says what hides latency', () => {
    const { explainsLatency } = load('../cuda/resources.js')
    const { kernels } = JSON.parse(readFileSync(path.join(root, 'cuda/resources.json'), 'utf8')) as { kernels: Record<string, Record<string, Record<string, { occupancy?: number }>>> }
    for (const [source, byName] of Object.entries(kernels)) {
      const low = Object.values(byName).some((byCard) => Object.values(byCard).some(({ occupancy }) => occupancy! < 0.25))
      if (low) expect(explainsLatency(source), source).toBe(true)
    }
    expect(explainsLatency('cuda/machine.cu')).toBe(false) // 75 % and more
  })

  // By the formulas of CUDA's occupancy calculator: registers come in units of 256 a warp, warps in fours, and a block of compute capability
  // 8 and newer costs 1 KiB of shared memory more than it asks for.
  test.each([
    ['sm_75', 64, 0, 256, 1],
    ['sm_80', 32, 0, 256, 1],
    ['sm_80', 33, 0, 256, 0.75],
    ['sm_80', 64, 0, 256, 0.5],
    ['sm_90', 255, 0, 256, 0.13],
    ['sm_90', 32, 100 << 10, 256, 0.25],
    ['sm_90', 32, 0, 32, 0.5],
  ])('occupancy on %s of %d registers and %d bytes at %d threads is %d', (card, registers, shared, threads, expected) => {
    expect(load('../cuda/resources.js').occupancy(card, { registers, shared, threads })).toBe(expected)
  })

  test.skipIf(!hasTool('nvcc'))(`loads and stores of the copy kernel are 16 bytes wide${without('nvcc')}`, () => {
    const { cudaOptions } = load('../bin/sources.js')
    const file = path.join(scratch, 'machine.ptx')
    const options = cudaOptions().filter((option: string) => !option.startsWith('-Xptxas'))
    execFileSync('nvcc', [...options, '-I.', '-arch=compute_90', '-ptx', '-o', file, 'cuda/machine.cu'], { cwd: root })
    const copy = readFileSync(file, 'utf8').split('.entry').find((entry) => /^\s*\w*4copyE/.test(entry))!
    const accesses = Array.from(copy.matchAll(/\b(ld|st)\.global[\w.]*\.(v4|u8|b8)\b/g), ([, kind, width]) => `${kind} ${width}`)
    expect(new Set(accesses)).toEqual(new Set(['ld v4', 'st v4', 'ld u8', 'st u8']))
    expect(copy.match(/\b(ld|st)\.global/g)).toHaveLength(accesses.length)
    // Four loads are in flight before the first store.
    expect(accesses.slice(0, 5)).toEqual(['ld v4', 'ld v4', 'ld v4', 'ld v4', 'st v4'])
  })
})

// An inline function that is compiled for AVX-512 under a name that the baseline shares replaces the baseline's copy, and
// the addon then dies of an illegal instruction on older processors. The machine code shows it.
const unchecked = process.arch !== 'x64' ? 'only x64 has wider variants' : hasTool('objdump') ? '' : 'objdump is missing'

test.skipIf(unchecked)(`only the AVX variants use AVX instructions ${unchecked && `(skipped: ${unchecked})`}`, async () => {
  const objdump = spawn('objdump', ['--disassemble', '--demangle', '--no-show-raw-insn', binary.file])

  const variantOf = /\b(avx2|avx512)::/
  // Everything encoded with VEX or EVEX: v... except three system instructions, and those on mask registers.
  const isAvx = /^(v(?!err\b|erw\b|mcall\b)|k(add|and|andn|mov|not|or|ortest|shiftl|shiftr|test|unpck|xnor|xor)[bwdq])/
  let symbol = ''
  const functions: Record<string, number> = { avx2: 0, avx512: 0, common: 0 }
  const usesZmm = { avx2: false, avx512: false }
  const strayed = new Set<string>()

  for await (const line of createInterface({ input: objdump.stdout })) {
    const heading = /^[0-9a-f]+ <(.*)>:$/.exec(line)
    if (heading) {
      symbol = heading[1]
      functions[variantOf.exec(symbol)?.[1] ?? 'common']++
      continue
    }
    const instruction = line.split('\t')[1]
    if (!instruction) continue
    const variant = variantOf.exec(symbol)?.[1] as 'avx2' | 'avx512' | undefined
    if (variant) usesZmm[variant] ||= instruction.includes('%zmm')
    else if (isAvx.test(instruction) || /%[yz]mm/.test(instruction)) strayed.add(symbol)
  }

  // With a stripped symbol table or a missing variant there would be nothing to find fault with.
  expect(functions.avx2).toBeGreaterThan(0)
  expect(functions.avx512).toBeGreaterThan(0)
  expect(functions.common).toBeGreaterThan(0)
  expect(usesZmm).toEqual({ avx2: false, avx512: true })
  expect([...strayed]).toEqual([])
})
