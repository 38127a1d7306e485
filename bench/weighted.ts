// The suite "models": products with weights as models have them, against their floors.
import os from 'node:os'
import { instructionTerms, weightedPasses, type WeightedArrays } from '../test/reference'
import { arrayError, blockError } from '../test/support'
import { ClebschGordanTensorProduct, wigner3j, type Backend, type Instruction } from '../lib/index'
import { native } from '../lib/native'
import { hostMemory, measureFootprint, timeCalls } from './cpu'
import { describeMachine, type Speed } from './machine'
import { bytesOf, Pool, rowsOf, someItems } from './measure'
import { passes as allPasses, type PassName } from './passes'
import { weightedProblems, type Layout, type Numbers, type WeightedProblem } from './problems'
import { againstFloors, floorsThen, giga, MiB, number, percent, seenIn, type Timing } from './report'
import { medianSpeed, withSpeeds } from './speeds'
import type { Suite, SuiteSettings } from './suites'
import { runCounted } from './weighted_counted'

export const passNames = allPasses.map(({ name }) => name)

/** Arrays of a pass, by the slot whose shape they have. */
export const weightedArrays: Record<PassName, { reads: Record<string, WeightedSlot>; writes: Record<string, WeightedSlot> }> = {
  forward: { reads: { x: 'x', y: 'y', w: 'w' }, writes: { z: 'z' } },
  backward: { reads: { x: 'x', y: 'y', w: 'w', gradOut: 'z' }, writes: { gradX: 'x', gradY: 'y', gradW: 'w' } },
  doubleBackward: {
    reads: { x: 'x', y: 'y', w: 'w', gradOut: 'z', ax: 'x', ay: 'y', aw: 'w' },
    writes: { gradX: 'x', gradY: 'y', gradW: 'w', gradGradOut: 'z' },
  },
}
export type WeightedSlot = 'x' | 'y' | 'w' | 'z'
/** Of a graph. */
export interface Edges {
  name: string
  nodes: number
  senders: Int32Array
  receivers: Int32Array
}
export type WeightedProduct = ClebschGordanTensorProduct<any>

export function makeProduct({ kind, in1, in2, out }: WeightedProblem, options: { dtype: SuiteSettings['dtype']; layout: Layout; threads?: number; backend?: Backend }): WeightedProduct {
  const all = { backend: 'cpu' as const, ...options }
  return kind === 'fullyConnected' ? ClebschGordanTensorProduct.fullyConnected(in1, in2, out, all) : ClebschGordanTensorProduct.channelwise(in1, in2, out, all)
}

/** A call on these arrays; `first`: arguments in front of them. */
export function bindWeighted(op: any, pass: PassName, a: Record<string, Numbers>, ...first: unknown[]): () => void {
  if (pass === 'forward') {
    const options = { out: a.z }
    return () => void op.forward(...first, a.x, a.y, a.w, options)
  }
  const out = { x: a.gradX, y: a.gradY, weight: a.gradW }
  if (pass === 'backward') return () => void op.backward(...first, a.x, a.y, a.w, a.gradOut, { out })
  const directions = { x: a.ax, y: a.ay, weight: a.aw }, options = { out: { ...out, gradOut: a.gradGradOut } }
  return () => void op.doubleBackward(...first, a.x, a.y, a.w, a.gradOut, directions, options)
}

export const weightedDims = (op: WeightedProduct): Record<WeightedSlot, number> => ({ x: op.irrepsIn1.dim, y: op.irrepsIn2.dim, w: op.weightNumel, z: op.irrepsOut.dim })

/**
 * Multiply-adds of an item. With N nonzeros of M_ik = sum_j C_ijk y_j and S = 2 l3 + 1, a channel takes N + S forward (products with M, and with the weight), 3 N + 3 S
 * backward and 7 N + 5 S in the double backward; mixing the channels of uvw takes (2 l3 + 1) mul1 mul2 mul3 each time, once, twice and five times.
 */
export function multiplyAdds(op: WeightedProduct, { kind }: WeightedProblem, pass: PassName): number {
  const [n, s, mixes] = { forward: [1, 1, 1], backward: [3, 3, 2], doubleBackward: [7, 5, 5] }[pass] as [number, number, number]
  return op.paths.reduce((sum, { in1, in2, out, l: [l1, l2, l3] }) => {
    const c = wigner3j(l1, l2, l3), [d1, d2, d3] = [2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1]
    let N = 0
    for (let i = 0; i < d1; i++) for (let k = 0; k < d3; k++) if (Array.from({ length: d2 }, (_, j) => c[(i * d2 + j) * d3 + k]!).some((v) => Math.abs(v) > 1e-12)) N++
    const channels = op.irrepsIn1.blocks[in1]!.mul * op.irrepsIn2.blocks[in2]!.mul
    return sum + channels * (n * N + (kind === 'fullyConnected' ? mixes * d3 * op.irrepsOut.blocks[out]!.mul : s * d3))
  }, 0)
}

/** The product as a sum over Wigner 3j symbols with e3nn's normalisations 'component' and 'element'. */
export function termsOf(op: WeightedProduct, { kind }: WeightedProblem) {
  const mode = kind === 'fullyConnected' ? 'uvw' : 'uvu'
  const elements = ({ in1, in2 }: WeightedProduct['paths'][number]) => op.irrepsIn2.blocks[in2]!.mul * (mode === 'uvw' ? op.irrepsIn1.blocks[in1]!.mul : 1)
  const instructions = op.paths.map(({ in1, in2, out }): Instruction => ({ in1, in2, out, mode, hasWeight: true }))
  const coefficients = op.paths.map(({ out, l }) => Math.sqrt((2 * l[2] + 1) / op.paths.filter((path) => path.out === out).reduce((sum, path) => sum + elements(path), 0)))
  return instructionTerms([op.irrepsIn1, op.irrepsIn2, op.irrepsOut], op.layout, instructions, coefficients)
}

/** The largest error of a pass's results, whose names are those of weightedArrays, relative to the largest value of a block. */
export function errorOf(op: WeightedProduct, pass: PassName, actual: Record<string, Numbers>, expected: Record<WeightedSlot, Numbers>): number {
  const irreps = { x: op.irrepsIn1, y: op.irrepsIn2, z: op.irrepsOut }
  return Math.max(
    ...Object.entries(weightedArrays[pass].writes).map(([name, slot]) => (slot === 'w' ? arrayError(actual[name]!, expected.w) : blockError(actual[name]!, expected[slot], irreps[slot]))),
  )
}
export const expectedOf = (terms: ReturnType<typeof termsOf>, pass: PassName, a: Record<string, Numbers>, items: number) => {
  const z = a.gradOut ?? new Float64Array(items * terms.irrepsOut.dim)
  const arrays = { x: a.x!, y: a.y!, w: a.w!, z } as WeightedArrays
  const { first, second } = weightedPasses(terms, arrays, items, pass === 'doubleBackward' ? ({ x: a.ax!, y: a.ay!, w: a.aw! } as WeightedArrays) : {})
  return pass === 'doubleBackward' ? second : first
}
export const tolerance = { float32: 1e-5, float64: 1e-12 } as const

/** Measures task by task; `bytes`: of the copies. Each result has its floors, and its ratio to the larger one, as the machine was then; and the same at the run's medians. */
export function measureAgainstFloors<T, R extends { timing: Pick<Timing, 'median'>; leastBytes: number; multiplyAdds: number }>(
  { dtype, threads }: SuiteSettings, bytes: number, tasks: readonly T[], measure: (task: T, n: number) => R,
) {
  const speed = () => ({ copyBandwidth: native.measureCopyBandwidth({ bytes, threads }), fmaPeak: native.measureFmaPeak({ dtype, threads }) })
  const { results, speeds } = withSpeeds(tasks, speed, measure), median = medianSpeed(speeds)
  return { results: results.map((r) => ({ ...r, ...againstFloors(r, r.speed), atMedianSpeed: againstFloors(r, median) })), speeds }
}
export function heading(settings: SuiteSettings, speeds: readonly Speed[], bytes: number): string[] {
  const machine = describeMachine(), speed = medianSpeed(speeds)
  return [
    `equitensor ${machine.package}${machine.commit ? ` (${machine.commit})` : ''}, ${machine.variant} kernels`,
    `${machine.cpu}, ${machine.cores} CPUs, ${machine.memoryGiB} GiB; Node ${machine.node}; load ${os.loadavg()[0]!.toFixed(1)} at the end`,
    `${settings.threads} thread${settings.threads > 1 ? 's' : ''}, ${settings.dtype}; copy bandwidth ${giga(speed.copyBandwidth)} GB/s over ${MiB(bytes)} (${seenIn(speeds, 'copyBandwidth')}), FMA peak ${giga(speed.fmaPeak)} G/s (${seenIn(speeds, 'fmaPeak')})`,
    floorsThen,
  ]
}

export function table(titles: readonly string[], rows: readonly (readonly string[])[], left: number): string[] {
  const widths = titles.map((title, n) => Math.max(title.length, ...rows.map((row) => row[n]!.length)))
  return [titles, ...rows].map((row) => row.map((cell, n) => (n < left ? cell.padEnd(widths[n]!) : cell.padStart(widths[n]!))).join('  ').trimEnd())
}

export const verdict = (value: number, bar: number | undefined, reached = value <= bar!) => (bar === undefined ? '' : `${bar}${reached ? '' : ' MISSED'}`)

/** Issue by issue: at most so many times the floor, one thread, float32, ir_mul. */
const limits: Record<PassName, number> = { forward: 1.3, backward: 1.6, doubleBackward: 2 }
const mostOfOtherLayout = 1.3
function limitOf({ kind, name }: WeightedProblem, pass: PassName, layout: Layout, { threads, dtype }: SuiteSettings): number | undefined {
  if (kind === 'fullyConnected' || layout !== 'ir_mul' || threads !== 1 || dtype !== 'float32') return undefined
  return pass === 'forward' && (name === '7-4-7' || name === '7-7-7') ? 1.7 : limits[pass]
}

export const models: Suite = {
  name: 'models',
  meaning: 'products with weights as MACE, NequIP, SevenNet, nequix and DiffDock have them, and single paths to l = 7',
  problems: weightedProblems,
  run(settings, progress) {
    const { dtype, threads, layouts } = settings, size = bytesOf[dtype]
    const chosen = weightedProblems.filter(({ name }) => settings.problems.includes(name))
    if (settings.backend === 'cuda') return runCounted(settings, chosen, progress)
    const tasks = chosen.flatMap((problem) => settings.passes.flatMap((pass) => layouts.map((layout) => ({ problem, pass, layout }))))
    const { bytes: footprint } = measureFootprint()
    progress(0, tasks.length, 'preparing memory')
    const pool = new Pool(hostMemory, dtype, footprint, footprint)
    const { results, speeds } = measureAgainstFloors(settings, footprint, tasks, ({ problem, pass, layout }, n) => {
      progress(n, tasks.length, `${problem.name} ${pass} ${layout}`)
      const op = makeProduct(problem, { dtype, layout, threads }), dims = weightedDims(op)
      // Shared weights and their gradient are a row each, and no traffic.
      const rows = ({ reads, writes }: (typeof weightedArrays)[PassName]) => {
        const own = (slots: Record<string, WeightedSlot>) => Object.fromEntries(Object.entries(slots).filter(([, slot]) => !(problem.shared && slot === 'w')))
        return { reads: own(reads), writes: own(writes) }
      }
      const arrays = rows(weightedArrays[pass]), bytes = (slots: Record<string, WeightedSlot>) => size * Object.values(slots).reduce((sum, slot) => sum + dims[slot], 0)
      const [read, written] = [bytes(arrays.reads), bytes(arrays.writes)]
      const batch = Math.max(1, Math.min(settings.batch, Math.floor((footprint * 0.98) / Math.max(read, written))))
      const weights = () => new (dtype === 'float32' ? Float32Array : Float64Array)(dims.w).map(() => Math.random() - 0.5)
      const common: Record<string, Numbers> = problem.shared ? { w: weights(), aw: weights(), gradW: weights() } : {}
      const sets = pool.sets(arrays, dims, batch, 64).map((set) => ({ ...common, ...set }))
      const timing = timeCalls(sets.map((set) => bindWeighted(op, pass, set)), batch)
      const error = checkSome(op, problem, pass, sets[0]!, batch, dtype)
      op.dispose()
      return { problem: problem.name, kind: problem.kind, pass, layout, batch, timing, leastBytes: read + written, multiplyAdds: multiplyAdds(op, problem, pass), error }
    })
    const other = (r: (typeof results)[number]) => results.find((o) => o.problem === r.problem && o.pass === r.pass && o.layout === 'ir_mul')
    const lines = results.map((r) => {
      const first = r.layout === 'mul_ir' ? other(r) : undefined, against = first && r.timing.median / first.timing.median
      const limit = limitOf(weightedProblems.find(({ name }) => name === r.problem)!, r.pass, r.layout, settings)
      const bar = limit !== undefined ? verdict(r.ratio, limit) : against !== undefined && r.kind !== 'fullyConnected' ? `${verdict(against, mostOfOtherLayout)} of ir_mul` : ''
      return [
        r.problem, r.pass, r.layout, String(r.batch), number(r.timing.median), percent((r.timing.quartiles[1] - r.timing.quartiles[0]) / 2 / r.timing.median), number(r.bytesFloor),
        number(r.multiplyAddsFloor), r.ratio.toFixed(2), against === undefined ? '' : against.toFixed(2), bar, `${r.error <= tolerance[dtype] ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
      ]
    })
    progress(tasks.length, tasks.length, 'done')
    const missed = lines.filter((line) => line[10]!.includes('MISSED')).length, judged = lines.filter((line) => line[10] !== '').length
    return {
      text: [
        ...heading(settings, speeds, footprint),
        ...sources(chosen),
        '',
        ...table(['problem', 'pass', 'layout', 'batch', 'ns/item', '+-', 'bytes ns', 'FMA ns', 'x floor', 'x ir_mul', 'bar', 'correct'], lines, 3),
        '',
        'bytes: every array once, at copy bandwidth; FMA: N + S, 3 N + 3 S and 7 N + 5 S a channel, N nonzeros of M_ik and S = sum of 2 l3 + 1, at FMA peak; x floor: of the larger one',
        `bars: ${judged - missed} of ${judged} reached`,
      ],
      json: { speeds, results },
      wrong: results.filter((r) => !(r.error <= tolerance[dtype])).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
    }
  },
}

export const sources = (chosen: readonly WeightedProblem[]) =>
  chosen.map(({ name, source, kind, in1, in2, out, shared }) => `  ${name.padEnd(13)} ${in1} x ${in2} -> ${out}: ${kind}${shared ? ', shared weights' : ''}; ${source}`)

function checkSome(op: WeightedProduct, problem: WeightedProblem, pass: PassName, arrays: Record<string, Numbers>, batch: number, dtype: SuiteSettings['dtype']): number {
  const dims = weightedDims(op), { reads, writes } = weightedArrays[pass], terms = termsOf(op, problem)
  const outputs = Object.keys(writes).map((name) => arrays[name]!)
  for (const output of outputs) output.fill(NaN)
  const items = someItems(batch, 2)
  if (problem.shared) {
    // Sums over the batch: of a batch of its own, since the reference would take minutes.
    const rows = Object.fromEntries(Object.entries({ ...reads, ...writes }).map(([name, slot]) => [name, slot === 'w' ? arrays[name]! : rowsOf(hostMemory, arrays[name]!, dims[slot], items, dtype)]))
    bindWeighted(op, pass, rows)()
    return errorOf(op, pass, rows, expectedOf(terms, pass, rows, items.length))
  }
  bindWeighted(op, pass, arrays)()
  const rows = Object.fromEntries(Object.entries({ ...reads, ...writes }).map(([name, slot]) => [name, rowsOf(hostMemory, arrays[name]!, dims[slot], items, dtype)]))
  return errorOf(op, pass, rows, expectedOf(terms, pass, rows, items.length))
}
