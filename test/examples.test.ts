// The training programs of examples/, a few steps of each.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { afterAll, describe, expect, test } from 'vitest'
import { evaluate, none } from '../examples/potential/loss'
import { batchOf, neighbours, Potential, productNames, statisticsOf } from '../examples/potential/model'
import { Tape } from '../examples/potential/tape'
import { readXyz } from '../examples/potential/xyz'
import { arrayError, defaultBackend, root } from './support'

const scratch = mkdtempSync(path.join(tmpdir(), 'equitensor-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const inScratch = (name: string) => path.join(scratch, name)
const tsx = path.join(root, 'node_modules/tsx/dist/cli.mjs'), env = { ...process.env, EQUITENSOR_BACKEND: 'cpu' }
async function run(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, [tsx, ...args], { cwd: root, env })
  return stdout
}

// These run on the CPU, whatever the suite's backend is.
const onceOnly = defaultBackend === 'cuda'
test.skipIf(onceOnly)('tetris: CGTP tells all pieces apart, GTP not the mirror images', async () => {
  const out = inScratch('tetris.svg')
  const stdout = await run('examples/tetris/train.ts', '--degrees', '1', '--seeds', '1', '--steps', '40', '--products', 'cgtp,gtp', '--out', out)
  const [, cgtp, gtp] = stdout.split('degree 1, ') as [string, string, string]
  expect(cgtp).toContain('hidden 8x0o+8x0e+8x1o+8x1e;')
  expect(cgtp).toContain('best 8/8')
  expect(gtp).toContain('hidden 8x0e+8x1o;')
  expect(gtp).not.toContain('8/8')
  expect(readFileSync(out, 'utf8').match(/<polyline/g)).toHaveLength(2)
})

describe.skipIf(onceOnly)('potential', () => {
  const small = ['--channels', '4', '--count', '20', '--epochs', '4', '--batch', '4']
  const potential = (name: string, ...args: string[]) => ['examples/potential/train.ts', '--checkpoint', inScratch(`${name}.json`), '--plot', inScratch(`${name}.svg`), ...args]
  const losses = (stdout: string) => Array.from(stdout.matchAll(/^epoch +(\d+) +training (.*?meV\/A) +left out (.*?meV\/A)/gm), ([, epoch, ...errors]) => [epoch, ...errors])

  test('learns, tests itself and plots', async () => {
    const stdout = await run(...potential('whole', ...small, '--test', 'examples/potential/sample.xyz'))
    const forces = losses(stdout).map(([, training]) => Number(/([\d.]+) meV\/A/.exec(training!)![1]))
    expect(forces).toHaveLength(4)
    expect(forces[3]!).toBeLessThan(0.7 * forces[0]!)
    expect(stdout).toMatch(/^sample.xyz +[\d.]+ meV\/atom +[\d.]+ meV\/A$/m)
    // Energies of some eV in float32 have errors of 1e-6 eV, over steps of 0.02 A.
    expect(Number(/forces of energies +([\d.]+) meV\/A/.exec(stdout)![1])).toBeLessThan(1)
    expect(stdout).toMatch(/many-body product +[\d.]+ ms/)
    expect(readFileSync(inScratch('whole.svg'), 'utf8').match(/<polyline/g)).toHaveLength(4)
  })

  test('a killed training goes on to the same losses', async () => {
    const whole = losses(await run(...potential('undisturbed', ...small)))
    const killed = spawn(process.execPath, [tsx, ...potential('killed', ...small)], { cwd: root, env })
    for await (const line of createInterface({ input: killed.stdout })) if (line.startsWith('epoch    2')) break
    killed.kill('SIGKILL')
    await once(killed, 'close')
    const resumed = await run(...potential('killed', ...small))
    const first = Number(/going on after epoch (\d)/.exec(resumed)![1])
    expect(first).toBeGreaterThanOrEqual(2)
    expect(losses(resumed)).toEqual(whole.slice(first))
    expect(JSON.parse(readFileSync(inScratch('killed.json'), 'utf8'))).toEqual(JSON.parse(readFileSync(inScratch('undisturbed.json'), 'utf8')))
    await expect(run(...potential('killed', ...small, '--hidden', '2'))).rejects.toThrow('expected a training with hidden 2, got one with 1')
  })

  test('compares the products', async () => {
    const stdout = await run(...potential('none', ...small, '--compare', '4'))
    const rows = stdout.trimEnd().split('\n').slice(1)
    expect(rows.map((row) => row.split(/ +/)[0])).toEqual(['cgtp', 'gtp-grid', 'gtp-fourier', 'mtp'])
    // The two Gaunt products are one operation: after four steps their losses differ by roundings.
    const [grid, fourier] = rows.slice(1, 3).map((row) => Number(/([\d.]+) meV\/A/.exec(row)![1])) as [number, number]
    expect(Math.abs(grid - fourier) / grid).toBeLessThan(2e-3)
  })

  test.each([
    ['--product', 'gaunt'],
    ['--epochs', '0.5'],
    ['--count', '1000'],
    ['--train', 'not/there.xyz'],
    ['--test', '.'],
  ])('refuses %s %s', async (...args) => {
    await expect(run(...potential('none', ...args))).rejects.toThrow(`${args[0]}: expected`)
  })

  test('a file that is no extended XYZ is named with its line', async () => {
    const file = inScratch('wrong.xyz'), text = readFileSync(path.join(root, 'examples/potential/sample.xyz'), 'utf8')
    writeFileSync(file, text.replace('\nH ', '\nH x'))
    await expect(run(...potential('none', '--train', file))).rejects.toThrow('wrong.xyz:4: expected a symbol, a position and a force')
    writeFileSync(file, text.replace('F F F', 'T T T'))
    await expect(run(...potential('none', '--train', file))).rejects.toThrow('wrong.xyz:2: expected molecules')
  })

  test('the sample is what its script makes', async () => {
    await run('examples/potential/make_sample.ts', inScratch('sample.xyz'))
    expect(readFileSync(inScratch('sample.xyz'), 'utf8')).toBe(readFileSync(path.join(root, 'examples/potential/sample.xyz'), 'utf8'))
  })
})

describe.each(productNames)('the potential with %s', (product) => {
  const settings = { product, channels: 3, lmax: 2, hidden: 1, correlation: 3, cutoff: 4, seed: 3 }
  const configurations = readXyz(path.join(root, 'examples/potential/sample.xyz')).slice(0, 3), statistics = statisticsOf(configurations, settings.cutoff)
  const model = new Potential(settings, statistics), tape = new Tape()
  const batch = () => batchOf(configurations, configurations.map((configuration) => neighbours(configuration, settings.cutoff)), statistics)

  test('gradients of the loss of energies and forces are its differences', () => {
    const weights = model.weights, loss = (weights: Float32Array, energyWeight: number) => {
      const errors = none()
      evaluate(model, tape, batch(), weights, errors)
      tape.clear()
      return (energyWeight * errors.energy) / errors.molecules + errors.forces / errors.components
    }
    for (const energyWeight of [0, 10]) {
      const { ofWeights } = evaluate(model, tape, batch(), weights, none(), energyWeight)
      const parts = model.nodes(weights).map(({ value }, i) => ofWeights[i]?.value.slice() ?? new Float32Array(value.length))
      tape.clear()
      // Part by part along its gradient.
      let begin = 0
      for (const part of parts) {
        const size = Math.hypot(...part), from = begin
        begin += part.length
        const at = (h: number) => loss(weights.map((w, i) => (i >= from && i < begin ? w + (h * part[i - from]!) / size : w)), energyWeight)
        const h = 0.01, difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        // Losses are about 1 (the statistics' scale makes them so) and have errors of 1e-6, over steps of 0.01.
        expect(size).toBeGreaterThan(0)
        expect(Math.abs(difference - size) / (size + 0.1)).toBeLessThan(1e-2)
      }
    }
  })

  test('forces are differences of energies', () => {
    const here = batch(), energy = (i: number, h: number) => {
      const moved = batch()
      moved.positions[i]! += h
      const sum = evaluate(model, tape, moved, model.weights, none()).energies.reduce((a, b) => a + b)
      tape.clear()
      return sum
    }
    const forces = evaluate(model, tape, here, model.weights, none()).forces
    tape.clear()
    const h = 0.02, differences = Array.from(forces, (_, i) => -(8 * (energy(i, h) - energy(i, -h)) - (energy(i, 2 * h) - energy(i, -2 * h))) / (12 * h))
    // Roundings of 1e-6 of energies as large as forces, over the step.
    expect(arrayError(forces, differences)).toBeLessThan(1e-3)
  })

  test('energies and forces turn with the molecule', () => {
    const plain = batch(), turned = batch()
    const rotation = (r: Float32Array) => r.map((_, i) => [0.6, 0.8, 0, -0.8, 0.6, 0, 0, 0, -1].slice(3 * (i % 3), 3 * (i % 3) + 3).reduce((sum, v, c) => sum + v * r[i - (i % 3) + c]!, 0)) // and reflects
    turned.positions.set(rotation(plain.positions))
    const first = evaluate(model, tape, plain, model.weights, none()), energies = first.energies.slice(), forces = rotation(first.forces)
    tape.clear()
    const second = evaluate(model, tape, turned, model.weights, none())
    // Some thousand roundings.
    expect(arrayError(second.energies, energies)).toBeLessThan(1e-5)
    expect(arrayError(second.forces, forces)).toBeLessThan(1e-4)
    tape.clear()
  })
})
