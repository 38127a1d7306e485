// `npm run compare`: its flags, the model of an H100, what it says of goals, and both ways of running the CUDA kernels, a GPU's with the emulation
// in its place.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import path from 'node:path'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { emulated } from '../bench/emulated'
import { countEdge } from '../bench/convolution_counted'
import { cpu, hostMemory } from '../bench/cpu'
import { parseFlags } from '../bench/flags'
import { cpuGoals, bars, modelledGoals } from '../bench/goals'
import { gpu } from '../bench/gpu'
import { h100, modelled, occupancy } from '../bench/h100'
import { BadFlag, type Machine } from '../bench/machine'
import { Pool } from '../bench/measure'
import { factors, harmonics, type OperationProblem } from '../bench/operation_suite'
import { correct, number, orders, rates, type Counted, type Counts, type Measured, type Run, type Settings } from '../bench/report'
import { passes } from '../bench/passes'
import { operations, weightedProblems, type Numbers } from '../bench/problems'
import { withSpeeds } from '../bench/speeds'
import { suites } from '../bench/suites'
import { compare, record, report } from '../bench/run'
import { bindWeighted, errorOf, expectedOf, makeProduct, multiplyAdds, passNames, termsOf, weightedArrays, weightedDims } from '../bench/weighted'
import { backends, DeviceArray, GauntTensorProduct } from '../lib/index'
import { nativeArray } from '../lib/device_array'
import { binary, native } from '../lib/native'
import { random, randomArray, root, sameBits } from './support'

const { detectCudaToolkit } = createRequire(__filename)('../bin/build.js')
const isEmulated = binary.flavour === 'emulated' && backends().cuda.available

describe('flags', () => {
  const settings = (...args: string[]) => parseFlags(args).settings

  test('each backend has its own', () => {
    expect(settings()).toMatchObject({ backend: 'cpu', batch: 10_000, threads: 1 })
    expect(settings('--backend', 'cuda', '--device', '2')).toMatchObject({ backend: 'cuda', batch: 100_000, device: 2 })
    expect(settings('--backend', 'cuda', '--batch', '1_000').batch).toBe(1000)
  })
  test.each([
    [['--backend', 'gpu'], '--backend gpu: there is cpu, cuda'],
    [['--device', '0'], '--device 0: the backend cpu takes none'],
    [['--backend', 'cuda', '--threads', '2'], '--threads 2: the backend cuda takes none'],
    [['--backend', 'cuda', '--device', '-1'], '--device'],
    [['--batch', '0'], '--batch 0: expected a positive integer'],
  ])('%s', (args, message) => {
    expect(() => settings(...args)).toThrow(BadFlag)
    expect(() => settings(...args)).toThrow(message)
  })

  test.skipIf(backends().cuda.available && !isEmulated)('without a device the remedies are named, with exit code 2', () => {
    const env = { ...process.env, EQUITENSOR_BINARY: binary.flavour, EQUITENSOR_EMULATED_DEVICES: '0' }
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', path.join(root, 'bench/compare.ts'), '--backend', 'cuda'], { env, encoding: 'utf8', cwd: root })
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toMatch(/there is no GPU to use: .*(driver|CPU kernels only)/)
    expect(stderr).toContain('npx equitensor build --emulated\n  EQUITENSOR_BINARY=emulated npm run compare -- --backend cuda')
  })
})

describe('suites', () => {
  test('have flags of their own', () => {
    expect(parseFlags([]).suite).toBeUndefined()
    const { suite } = parseFlags(['--suite', 'models', '--problem', 'mace-large,7-7-7', '--pass', 'forward'])
    expect(suite!.suite.name).toBe('models')
    expect(suite!.settings).toEqual({ problems: ['mace-large', '7-7-7'], passes: ['forward'], layouts: ['ir_mul', 'mul_ir'], batch: 50_000, dtype: 'float32', threads: 1 })
    expect(parseFlags(['--suite', 'convolution', '--layout', 'mul_ir', '--molecules', 'a.xyz']).suite!.settings).toMatchObject({ layouts: ['mul_ir'], molecules: 'a.xyz', problems: ['mace-large', 'mace-medium'] })
  })
  test('of problems by degree --L chooses, and those that are named are measured whatever their degree', () => {
    const problems = (...args: string[]) => parseFlags(['--suite', ...args]).suite!.settings.problems
    expect(problems('harmonics')).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((L) => `harmonics-${L}`))
    expect(problems('harmonics', '--L', '2,10..11')).toEqual(['harmonics-2', 'harmonics-10', 'harmonics-11'])
    expect(problems('factors')).toHaveLength(4 * 6)
    expect(problems('factors', '--L', '7')).toEqual(['gtp-grid-7', 'gtp-fourier-7', 'mtp-7', 'mtp-block-7'])
    expect(problems('factors', '--problem', 'mtp-8')).toEqual(['mtp-8'])
    expect(() => problems('factors', '--problem', 'mtp-8', '--L', '7')).toThrow('--problem mtp-8: there is gtp-grid-7')
  })
  test.each(suites.map(({ name }) => name))('%s is counted on the emulation, too', (name) => {
    expect(parseFlags(['--suite', name]).suite!.settings.backend).toBeUndefined()
    const { settings, suite } = parseFlags(['--suite', name, '--backend', 'cuda'])
    expect([settings.backend, suite!.settings.backend]).toEqual(['cuda', 'cuda'])
    expect(() => parseFlags(['--suite', name, '--backend', 'cuda', '--threads', '2'])).toThrow('--threads 2: the backend cuda takes none')
  })
  test.each([
    [['--suite', 'model'], '--suite model: there is models, convolution'],
    [['--suite', 'models', '--problem', 'MIMO'], '--problem MIMO: there is mace-large'],
    [['--suite', 'models', '--L', '3'], '--L: not with --suite models'],
    [['--suite', 'models', '--molecules', 'a.xyz'], '--molecules: only with --suite convolution'],
    [['--molecules', 'a.xyz'], '--molecules: only with --suite convolution'],
  ])('%s', (args, message) => {
    expect(() => parseFlags(args)).toThrow(BadFlag)
    expect(() => parseFlags(args)).toThrow(message)
  })

  const options = { dtype: 'float64', layout: 'ir_mul', threads: 1 } as const
  const named = (name: string) => weightedProblems.find((problem) => problem.name === name)!
  test("the floors' multiply-adds, by hand", () => {
    using cross = makeProduct(named('1-1-1'), options)
    // The cross product: M has the 6 entries off its diagonal, for 3 outputs.
    expect(passNames.map((pass) => multiplyAdds(cross, named('1-1-1'), pass))).toEqual([128 * 9, 128 * 27, 128 * 57])
    const full = { ...named('full-gate'), in1: '2x0e+3x1o', out: '5x0e' }
    using scalars = makeProduct(full, options)
    // 0e x 0e: 1 entry and 5 outputs to mix into for each of 2 channels; 1o x 1o: 3 entries for each of 3.
    expect(passNames.map((pass) => multiplyAdds(scalars, full, pass))).toEqual([2 * 6 + 3 * 8, 2 * 13 + 3 * 19, 2 * 32 + 3 * 46])
  })

  test('every result is compared with the sums over Wigner 3j symbols', () => {
    for (const problem of [{ ...named('nequip-32-l2'), in1: '3x0o+2x1e', out: '3x0o+2x1e' }, { ...named('diffdock-l2'), in1: '3x0o+2x1e', out: '4x0o+2x1e' }]) {
      using op = makeProduct(problem, options)
      const dims = weightedDims(op), next = random(3), terms = termsOf(op, problem)
      for (const pass of passNames) {
        const { reads, writes } = weightedArrays[pass]
        const arrays = Object.fromEntries(Object.entries({ ...reads, ...writes }).map(([name, slot]) => [name, randomArray('float64', 2 * dims[slot], next)]))
        const error = () => errorOf(op, pass, arrays, expectedOf(terms, pass, arrays, 2))
        expect(error()).toBeGreaterThan(0.1)
        bindWeighted(op, pass, arrays)()
        expect(error()).toBeLessThan(1e-12)
        for (const name of Object.keys(writes)) {
          const { [0]: value } = arrays[name]!
          arrays[name]![0]! += 1e-3
          expect(error(), name).toBeGreaterThan(1e-6)
          arrays[name]![0] = value!
        }
      }
    }
  })
})

describe.runIf(isEmulated)('a convolution on the emulation', () => {
  const problem = { ...weightedProblems[0]!, in1: '4x0e+4x1o', in2: '0e+1o', out: '0e+1o' }
  const edges = { name: '', nodes: 3, senders: Int32Array.of(0, 1, 1, 2), receivers: Int32Array.of(1, 0, 2, 1) }
  test.each([['forward', [1, 1]], ['backward', [1, 1]], ['doubleBackward', [2, 1]]] as const)('%s: one call is counted, and none of the preparations', (pass, launches) => {
    const counted = [false, true].map((atomic) => countEdge({ problem, pass, layout: 'ir_mul', atomic }, edges, 'float32', false))
    expect(counted.map((c) => c.launches)).toEqual(launches)
    for (const { error } of counted) expect(error).toBeLessThan(1e-5) // float32
  })
})

/** A copy bandwidth, in GB/s, for each time that it is measured: between every two measurements, since 11 s pass each time that somebody looks. */
function drift(bandwidths: number[]) {
  let now = 0, n = 0
  vi.spyOn(Date, 'now').mockImplementation(() => (now += 11_000))
  return () => bandwidths[n++]! * 1e9
}
afterEach(() => void vi.restoreAllMocks())

describe('the speed around a measurement', () => {
  const speed = (copyBandwidth: number) => ({ copyBandwidth, fmaPeak: 1 })

  test('is the mean of those before and after it, however many share them', () => {
    let now = 0
    vi.spyOn(Date, 'now').mockImplementation(() => now)
    const bandwidths = [8, 4, 2, 1], order: (string | number)[] = []
    const measureSpeed = (done: number) => {
      order.push(`speed ${done}`)
      return speed(bandwidths.shift()!)
    }
    const { results, speeds } = withSpeeds(['a', 'b', 'c', 'd'], measureSpeed, (name, n) => {
      order.push(n)
      now += 'ad'.includes(name) ? 1_000 : 10_000
      return { name }
    })
    expect(order).toEqual(['speed 0', 0, 1, 'speed 2', 2, 'speed 3', 3, 'speed 4'])
    expect(speeds.map(({ done, copyBandwidth }) => [done, copyBandwidth])).toEqual([[0, 8], [2, 4], [3, 2], [4, 1]])
    expect(results).toEqual([['a', 6], ['b', 6], ['c', 3], ['d', 1.5]].map(([name, mean]) => ({ name, speed: speed(mean as number) })))
  })
  test('is not measured twice where there is nothing between', () => {
    expect(withSpeeds([], () => speed(1), () => ({}))).toEqual({ results: [], speeds: [{ ...speed(1), done: 0 }] })
  })

  const settings = parseFlags(['--problem', 'MIMO', '--L', '1..3', '--operation', 'cgtp', '--pass', 'forward', '--batch', '2']).settings
  test('is what floors, ratios and goals rest on, and not the median of the run', () => {
    const bandwidth = drift([60, 40, 20, 20]), real = cpu(settings)
    // Twice the time of its bytes at what was possible then.
    const possible = [50, 30, 20], times: number[] = []
    const machine: Machine<Numbers> = {
      ...real,
      allocate: () => new Pool(hostMemory, 'float32', 1e4, 1e4),
      measureSpeed: () => ({ copyBandwidth: bandwidth(), fmaPeak: 1e15 }),
      measure(op) {
        const median = (2 * op.cost.forward.bytes) / possible[times.length]!
        times.push(median)
        return { status: 'measured', timing: { median, quartiles: [median, median], fastest: median, samples: 9, callsPerSample: 1, sets: 1, rotatedBytes: 1e9 } }
      },
    }
    const run = compare(settings, machine, () => {})
    expect(run.outcomes.map(({ speed }) => speed.copyBandwidth / 1e9)).toEqual(possible)
    for (const o of run.outcomes) expect(rates(o as Measured).ratio).toBeCloseTo(2, 12)
    const text = report(run, machine)
    expect(text).toContain('copy bandwidth 30.0 GB/s')
    expect(text).toMatch(/; median of 4, 20\.0 to 60\.0\n/)
    expect(text).toContain('floors, and ratios to them, are at the mean of the speeds measured just before and just after a measurement')
    expect(text.match(/MIMO +\d +cgtp .* bytes +2\.00 +50% /g)).toHaveLength(3)
    expect(text).toContain('Warning: the copy bandwidth changed by up to 100% from one measurement of it to the next')
    const { outcomes, medianSpeed } = record(run, machine) as any
    expect(medianSpeed.copyBandwidth).toBe(30e9)
    expect(outcomes.map((o: any) => [o.rates.ratio, o.ratesAtMedianSpeed.ratio].map((ratio) => ratio.toFixed(3)))).toEqual([['2.000', '1.200'], ['2.000', '2.000'], ['2.000', '3.000']])
    // Goals are of one batch.
    expect(bars('', cpuGoals.results({ ...run, settings: { ...settings, batch: 10_000 } }))).toMatch(/reached +cgtp +forward +at most 2x its floor: L=2 2.00x, L=3 2.00x/)
  })
})

describe.each([[harmonics.name, harmonics, ['--L', '1,3']], [factors.name, factors, ['--problem', 'gtp-grid-2,mtp-1']]] as const)('suite %s', (name, suite, args) => {
  const { settings } = parseFlags(['--suite', name, ...args, '--pass', 'forward,doubleBackward', '--batch', '20']).suite!
  const quickly = () => {
    vi.spyOn(native, 'measureCopyBandwidth').mockImplementation(drift([40, 20, 60, 10, 30]))
    vi.spyOn(native, 'measureFmaPeak').mockReturnValue(1e15)
  }

  test('every pass with its floors, at the speed around it, and what makes them', () => {
    quickly()
    const { text, json, wrong } = suite.run(settings, () => {}) as { text: string[]; json: any; wrong: string[] }
    expect(wrong).toEqual([])
    expect(json.results.map((r: any) => [r.problem, r.pass])).toEqual(settings.problems.flatMap((problem) => ['forward', 'doubleBackward'].map((pass) => [problem, pass])))
    const table = text.slice(text.findIndex((line) => line.startsWith('problem')), -2)
    expect(table[0]).toMatch(/^problem +pass +layout +batch +ns\/item +\+- +bytes ns +ops ns +x floor +correct$/)
    json.results.forEach((r: any, n: number) => {
      expect(r.speed.copyBandwidth).toBe([30e9, 40e9, 35e9, 20e9][n])
      expect(r.bytesFloor).toBeCloseTo((1e9 * r.leastBytes) / r.speed.copyBandwidth, 12)
      expect([r.floor, r.boundBy]).toEqual([r.bytesFloor, 'bytes'])
      expect(r.ratio).toBeCloseTo(r.timing.median / r.bytesFloor, 12)
      expect(r.atMedianSpeed.ratio / r.ratio).toBeCloseTo(30e9 / r.speed.copyBandwidth, 12)
      expect(table[n + 1]).toMatch(new RegExp(`^${r.problem} +${r.pass} +ir_mul +20 .* ${number(r.bytesFloor)} .* ${r.ratio.toFixed(2)} +ok \\de-\\d$`))
    })
    expect(text.join('\n')).toMatch(/copy bandwidth 30\.0 GB\/s .*median of 5, 10\.0 to 60\.0.*\nfloors, and ratios to them, are at the mean/)
  })

  test('a wrong number is seen', () => {
    quickly()
    const problem = suite.problems.find(({ name }) => name === settings.problems[1]) as OperationProblem, make = problem.make
    vi.spyOn(problem, 'make').mockImplementation((options) => {
      const op = make(options)
      if (options.dtype === 'float64') return op
      const bind: typeof op.bind = (pass, batch, draw) => {
        let last: any
        const call = op.bind(pass, batch, (length) => (last = draw(length)))
        return () => {
          call()
          for (let i = 0; i < last.length; i++) last[i] *= 1.001
        }
      }
      return { ...op, bind }
    })
    const { wrong } = suite.run({ ...settings, problems: [problem.name] }, () => {})
    expect(wrong).toEqual(['forward', 'doubleBackward'].map((pass) => expect.stringMatching(new RegExp(`^${problem.name} ${pass} ir_mul: error [\\d.e-]+$`))))
  })
})

/** A call that moves 400 bytes an item, and needs 100 multiply-adds. */
function counted(o: Partial<Omit<Counted, 'counts'>> & { counts?: Partial<Counts> } = {}): Counted {
  const counts = { items: 10, launches: 1, loadedBytes: 1000, storedBytes: 3000, tableBytes: 0, instructions: 10_000, ...o.counts }
  const name = { problem: 'MIMO', L: 2, operation: 'cgtp', pass: 'forward' } as const
  return { ...name, speed: h100('float32'), status: 'counted', paths: 1, expressivity: 2, flops: 1, bytes: 400, leastBytes: 400, multiplyAdds: 100, forward: { leastBytes: 400, multiplyAdds: 100 }, error: 0, tolerance: 1, complaints: [], ...o, counts }
}
const defaults: Settings = parseFlags(['--backend', 'cuda']).settings
const runOf = (outcomes: Run['outcomes'], settings: Settings = defaults): Run => ({
  date: '', machine: { cpu: '', variant: '', cores: 1, memoryGiB: 1, platform: '', node: '', package: '' }, speeds: [{ ...h100('float32'), done: 0 }], load: 0, seconds: 0, outcomes, settings,
})

describe('model of an H100', () => {
  // 400 bytes at 3.35 TB/s, and 1000 thread-instructions at 29.6 T/s.
  const byteTime = 0.119403, issueTime = 0.0337838

  test('the longer of bytes and instructions', () => {
    const m = modelled(counted())
    expect(m).toMatchObject({ traffic: 1, instructions: 1000, limit: 'bytes', boundBy: 'bytes', ratio: 1 })
    expect(m.ns).toBeCloseTo(byteTime, 6)
    expect(m.nsPerDegree).toBeCloseTo(byteTime / 2, 6)
    const n = modelled(counted({ multiplyAdds: 5000, counts: { instructions: 100_000 } }))
    expect(n).toMatchObject({ limit: 'instr', boundBy: 'ops', ratio: 2 })
    expect(n.ns).toBeCloseTo(10 * issueTime, 5)
  })
  test('tables once a call, everything else an item', () => {
    expect(modelled(counted({ counts: { tableBytes: 4000 } }), 100).traffic).toBe(1.1)
  })
  test('a multiply-add in float64 takes twice as long', () => {
    expect(modelled(counted(), 100, 'float64').multiplyAddsFloor).toBeCloseTo(2 * modelled(counted()).multiplyAddsFloor, 12)
  })
  test('without instructions there is no time', () => {
    const m = modelled(counted({ counts: { instructions: undefined as never } }))
    expect([m.ns, m.ratio, m.traffic]).toEqual([undefined, undefined, 1])
  })
  test.each(['cgtp', 'cgtp-dense', 'gtp-grid', 'gtp-fourier', 'mtp'])('the kernels of %s are in the record of resources', (operation) => {
    for (const dtype of ['float32', 'float64'] as const) expect(occupancy(counted({ operation }), dtype)).toBeGreaterThan(0)
  })
})

describe('goals', () => {
  const lines = (outcomes: Run['outcomes'], settings?: Settings) => bars('', modelledGoals.results(runOf(outcomes, settings)))

  test('of modelled time, by operation and degree', () => {
    // 1.3 times the byte floor, which is the larger one: too much up to L = 4, enough beyond.
    const instructions = 1.3 * 29.6e12 * (400 / 3.35e12) * 10
    const of = (operation: string, L: number) => lines([counted({ operation, L, counts: { instructions } })]).split('\n')[1]
    expect(of('cgtp', 4)).toMatch(/MISSED +cgtp +forward +modelled, at most 1.25x its byte floor: L=4 1.30x MISSED/)
    expect(of('cgtp', 5)).toMatch(/reached +cgtp +forward +modelled, at most 1.5x the larger of its floors: L=5 1.30x$/)
    expect([of('gtp-grid', 3), of('gtp-grid', 4), of('mtp', 4), of('mtp', 5), of('cgtp-dense', 1)].map((line) => line!.trim().split(' ')[0])).toEqual(
      ['MISSED', 'reached', 'MISSED', 'reached', 'reached'])
  })
  test('of small problems: the worst operation stands for a degree', () => {
    const of = (instructions: number, o: Parameters<typeof counted>[0] = {}) =>
      lines([
        counted({ problem: 'SISO', operation: 'mtp', counts: { instructions } }),
        counted({ problem: 'SISO', operation: 'gtp-grid' }),
        counted({ problem: 'SISO', operation: 'mtp-block', counts: { instructions: 1e6 } }), // not among them
        counted({ problem: 'SISO', operation: 'cgtp', ...o }),
      ]).split('\n')[1]
    // The byte floor, the larger one, is worth 35,343 instructions of the counted 10 items.
    expect(of(1.49 * 35_343)).toMatch(/reached +SISO +forward +cgtp, gtp-grid, mtp: modelled, at most 1.5x the larger of the floors: L=2 1.49x mtp$/)
    expect(of(1.51 * 35_343)).toMatch(/MISSED +SISO .* L=2 1.51x mtp MISSED$/)
    expect(of(10_000, { error: 2 })).toMatch(/MISSED +SISO/)
    expect(of(10_000, { counts: { instructions: undefined as never } })).toMatch(/unknown +SISO .* L=2 -$/)
  })
  test('of traffic, of every operation and pass', () => {
    const of = (o: Parameters<typeof counted>[0]) => lines([counted(), counted({ pass: 'backward', operation: 'mtp', ...o })]).split('\n').at(-1)
    expect(of({})).toMatch(/reached +MIMO +all .* L=2 1.00x$/)
    expect(of({ counts: { loadedBytes: 1201 } })).toMatch(/MISSED +MIMO .* L=2 1.05x MISSED$/)
    expect(of({ counts: { launches: 2 } })).toMatch(/MISSED +MIMO .* L=2 1.00x in 2 launches MISSED$/)
    expect(of({ error: 2 })).toMatch(/MISSED/)
  })
  test('unknown without instructions, none for other settings', () => {
    expect(lines([counted({ counts: { instructions: undefined as never } })])).toMatch(/unknown +cgtp .* L=2 -\n/)
    expect(lines([counted()], { ...defaults, batch: 7 })).toBe('')
    expect(lines([counted()], { ...defaults, dtype: 'float64' })).toBe('')
  })
  test('of the CPU: ratios of measured times', () => {
    const { counts, ...rest } = counted()
    const timing = { median: 3.1 * modelled(counted()).bytesFloor, quartiles: [1, 1] as [number, number], fastest: 1, samples: 9, callsPerSample: 1, sets: 1, rotatedBytes: 1 }
    const run = runOf([{ ...rest, status: 'measured', timing }], parseFlags([]).settings)
    expect(bars('', cpuGoals.results(run))).toMatch(/MISSED +cgtp +forward +at most 2x its floor: L=2 3.10x MISSED/)
  })
})

describe.runIf(backends().cuda.available)('measuring on a device', () => {
  const cuda = native.cuda!

  // Sizes without and with a rest of 16 bytes, one longer than the threads of a block.
  test.each([4, 12, 64, 5000, 100_003])('the copy moves all of %i numbers and nothing else', (length) => {
    const numbers = randomArray('float32', length, random(1))
    using from = DeviceArray.from(numbers), to = DeviceArray.from(new Float32Array(length + 8).fill(7))
    cuda.copyByKernel(nativeArray(to.slice(4, length + 4)), nativeArray(from))
    const copied = to.download()
    expect(sameBits(copied.slice(4, length + 4), numbers)).toBe(true)
    expect([...copied.slice(0, 4), ...copied.slice(length + 4)]).toEqual(Array(8).fill(7))
  })

  test.each(['float32', 'float64'] as const)('%s: multiply-adds are a number for each iteration, and are done', (dtype) => {
    using out = DeviceArray.alloc(dtype, 1)
    const count = (iterations: number) => cuda.fmaChain(dtype === 'float64', iterations, nativeArray(out))
    expect(count(3)).toBe(3 * count(1))
    // Eight sums from 0 to 7 in the first thread, 16 times s := 0.999 s + 0.001: their mean, and the 1e-5 of the tests' float32.
    const expected = 1 + 2.5 * 0.999 ** 16
    expect(Math.abs(out.download()[0]! / expected - 1)).toBeLessThan(1e-5)
  })

  test('time() calls in order, and waits', () => {
    const order: string[] = []
    using a = DeviceArray.from(new Float32Array(1000).fill(1)), b = DeviceArray.alloc('float32', 1000)
    const times = cuda.time(0, 3, () => order.push('before'), () => {
      order.push('work')
      cuda.copyByKernel(nativeArray(b), nativeArray(a))
    })
    expect(order).toEqual(['before', 'work', 'before', 'work', 'before', 'work'])
    expect(times).toHaveLength(3)
    for (const time of times) expect(time).toBeGreaterThanOrEqual(0)
    expect(() => cuda.time(0, 1, () => {}, () => { throw new Error('of the work') })).toThrow('of the work')
  })
})

describe.runIf(isEmulated)('--backend cuda', () => {
  const settings = (...args: string[]) => parseFlags(['--backend', 'cuda', '--problem', 'MIMO', '--L', '1,2', ...args]).settings
  const silent = () => {}
  const noPtx = () => {
    throw new Error('no toolkit here')
  }
  afterEach(() => native.cuda!.interpret!(undefined))

  test('the emulation counts and models, and prints no time', () => {
    const machine = emulated(settings(), noPtx)
    const run = compare(settings(), machine, silent), text = report(run, machine)
    expect(run.outcomes).toHaveLength(2 * operations.length * passes.length)
    for (const o of run.outcomes) {
      expect(correct(o), JSON.stringify(o)).toBe(true)
      expect(o).toMatchObject({ status: 'counted', counts: { items: 1280, launches: 1 } })
      expect(modelled(o as Counted).traffic).toBeCloseTo(1, 2)
    }
    expect(text).toMatch(/^COUNTED AND MODELLED, NOT MEASURED/)
    expect(text).toMatch(/Goals \(MODELLED[^]*reached +MIMO +all/)
    expect(text).not.toMatch(/GB\/s|ns\/item|WRONG/)
    expect(text).toContain('instructions: not counted (no toolkit here), and so no time is modelled')
    expect(record(run, machine)).toMatchObject({ goals: expect.arrayContaining([expect.objectContaining({ operation: 'MIMO' })]) })
  })

  // Compiles the PTX, unless another test has.
  test.runIf(detectCudaToolkit())('32 thread-instructions are counted for each that a warp issues', () => {
    const chosen = settings('--operation', 'gtp-grid', '--pass', 'forward')
    const o = compare(chosen, emulated(chosen), silent).outcomes[1]! // L = 2, which takes longer for instructions than for bytes
    expect(correct(o), JSON.stringify(o)).toBe(true)
    using op = new GauntTensorProduct('0e+1e+2e', '0e+1e+2e', { irrepsOut: '0e+1e+2e+3e+4e', algorithm: 'grid', backend: 'cuda' })
    using x = DeviceArray.from(new Float32Array(1280 * 9)), y = DeviceArray.from(new Float32Array(1280 * 9))
    native.cuda!.counting!(true)
    op.forward(x, y).download()
    const { instructions } = native.cuda!.counting!(false)
    expect(instructions.thread).toBeGreaterThan(0)
    expect((o as Counted).counts.instructions).toBe(32 * instructions.warp)
    expect(modelled(o as Counted).ns).toBeCloseTo((instructions.warp / 40 / 29.6e12) * 1e9, 6)
  }, 300_000)

  test('what a GPU is asked for runs, and says that it was none', () => {
    const machine = gpu(settings('--batch', '70'))
    const run = compare(settings('--batch', '70'), machine, silent), text = report(run, machine)
    for (const o of run.outcomes) {
      expect(correct(o), JSON.stringify(o)).toBe(true)
      expect(o).toMatchObject({ status: 'measured', timing: { sets: 1 } })
    }
    expect(run.speeds.length).toBeGreaterThanOrEqual(2)
    for (const speed of run.speeds) expect(Math.min(speed.copyBandwidth, speed.fmaPeak)).toBeGreaterThan(0)
    expect(text).toMatch(/^THIS IS NO GPU/)
    expect(text).toMatch(/Warning: THIS IS NO GPU.*$/)
    expect(record(run, machine)).toMatchObject({ isEmulated: true, goals: [] })
  })

  test('a wrong number is seen', () => {
    const machine = emulated(settings(), noPtx), { read } = machine.memory
    machine.memory.read = (array) => read(array).map((value) => 1.001 * value) as Float32Array
    const run = compare(settings('--operation', 'mtp', '--pass', 'forward'), machine, silent)
    expect(run.outcomes.map(correct)).toEqual([false, false])
    expect(report(run, machine)).toMatch(/WRONG: MIMO L=1 mtp forward: error [\d.e-]+ over 1e-5/)
  })
})

test('the fitted order is the slope of log time against log L, from L = 2 on, where three degrees tell it', () => {
  const outcomes = [1, 2, 3, 4].map((L) => counted({ L }))
  const line = (time: (L: number) => number, all = outcomes) => orders(all, ({ L }) => time(L)).split('\n').at(-1)
  expect(line((L) => (L === 1 ? 1000 : 7 * L ** 3))).toMatch(/MIMO +cgtp +forward +L\^3\.0 +L\^5$/)
  expect(line((L) => L, outcomes.slice(0, 3))).toMatch(/three degrees/)
})
