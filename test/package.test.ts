// The package as it is installed: its two entries, its command line, its loader, and what the linker made of the kernels.
import { execFile, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { EquitensorError } from '../lib/errors'
import { loadNative, native } from '../lib/native'

const root = path.join(__dirname, '..')
const packageJson = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

const equitensor = (...args: string[]) =>
  spawnSync(process.execPath, [path.join(root, packageJson.bin.equitensor), ...args], { encoding: 'utf8' })

describe('entries', () => {
  test('ESM and CommonJS export the same objects under the same names', async () => {
    // In a process of its own, where Node and not vitest resolves both.
    const program = `
      const esm = await import('equitensor')
      const cjs = (await import('node:module')).createRequire(process.cwd() + '/')('equitensor')
      const names = Object.keys(cjs)
      console.log(JSON.stringify({ names, esm: Object.keys(esm), same: names.filter((name) => esm[name] === cjs[name]) }))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], { cwd: root })
    const { names, esm, same } = JSON.parse(stdout)
    expect(names).toContain('ClebschGordanTensorProduct')
    expect(names).toContain('EquitensorError')
    expect(esm).toEqual([...names].sort())
    expect(same).toEqual(names)
  })

  test('each condition has its own types', () => {
    for (const condition of ['import', 'require']) {
      for (const file of Object.values<string>(packageJson.exports['.'][condition])) {
        expect(existsSync(path.join(root, file)), file).toBe(true)
      }
    }
  })
})

describe('command line', () => {
  test('doctor says what was built and what runs', () => {
    const { status, stdout } = equitensor('doctor')
    expect(stdout).toContain(native.stamp)
    expect(stdout).toContain(native.cpuInfo().variant)
    expect(stdout).toContain(path.join('build', 'Release', 'equitensor_cpu.node'))
    expect(status).toBe(0)
  })

  test('an unknown command gets the usage', () => {
    const { status, stderr } = equitensor('constructor')
    expect(stderr).toContain('Usage: equitensor')
    expect(status).toBe(2)
  })
})

describe('loader', () => {
  test('the stamp is the one of these sources', () => {
    const { stamp } = createRequire(__filename)('../bin/sources.js')
    expect(native.stamp).toBe(stamp())
    expect(native.stamp.startsWith(`${packageJson.version}+`)).toBe(true)
  })

  test('without a binary the error lists every remedy', () => {
    const empty = mkdtempSync(path.join(tmpdir(), 'equitensor-'))
    try {
      loadNative(empty)
      expect.unreachable()
    } catch (error) {
      expect(error).toBeInstanceOf(EquitensorError)
      expect(error).toHaveProperty('code', 'native_unavailable')
      for (const remedy of [
        'npx equitensor build',
        'npm approve-scripts equitensor',
        'pnpm approve-builds',
        'apt-get install g++ make python3',
        'xcode-select --install',
        'another Node',
        'npx equitensor doctor',
      ]) {
        expect((error as Error).message).toContain(remedy)
      }
    } finally {
      rmSync(empty, { recursive: true })
    }
  })
})

// An inline function that is compiled for AVX-512 under a name that the baseline shares replaces the baseline's copy, and
// the addon then dies of an illegal instruction on older processors. The machine code shows it.
const disassembler = spawnSync('objdump', ['--version']).status === 0
const unchecked = process.arch !== 'x64' ? 'only x64 has wider variants' : disassembler ? '' : 'objdump is missing'

test.skipIf(unchecked)(`only the AVX variants use AVX instructions ${unchecked && `(skipped: ${unchecked})`}`, async () => {
  const binary = path.join(root, 'build/Release/equitensor_cpu.node')
  const objdump = spawn('objdump', ['--disassemble', '--demangle', '--no-show-raw-insn', binary])

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
