// The suite models on the emulation: counts of what the CUDA kernels do, and modelled times on an H100, never measured ones.
import { countWeighted, requireEmulation, uncountedLines } from './counted'
import { disclaimer } from './emulated'
import { h100, modelledBatch } from './h100'
import { bytesOf } from './measure'
import type { PassName } from './passes'
import type { WeightedProblem } from './problems'
import type { Suite, SuiteRun, SuiteSettings } from './suites'
import { makeProduct, multiplyAdds, sources, table, tolerance, verdict, weightedArrays, weightedDims } from './weighted'

interface Case {
  problem: WeightedProblem
  pass: PassName
  layout: SuiteSettings['layouts'][number]
}
interface Counts {
  launches: number
  bytes: number
  /** Thread-instructions, issued. */
  instructions: number
  /** Against float64 on the CPU. */
  error: number
}

/**
 * Items of the two calls that are counted: their difference grows with the batch, the rest is tables and the partial sums of shared weights' gradients, of which there are
 * at most 4096 (`items_of_a_sum` of cuda/host.hpp), as many as items in the first of these calls.
 */
const callsOf = ({ shared }: WeightedProblem) => (shared ? ([4096, 8192] as const) : ([32, 64] as const))

function count({ problem, pass, layout }: Case, dtype: SuiteSettings['dtype'], batch: number): Counts {
  const op = makeProduct(problem, { dtype, layout, backend: 'cuda' }), exact = makeProduct(problem, { dtype: 'float64', layout })
  const { counts, error } = countWeighted({ op, exact, product: exact }, pass, { x: batch, y: batch, w: problem.shared ? 1 : batch, z: batch }, dtype)
  op.dispose(), exact.dispose()
  const { launches, loaded, stored, table, instructions } = counts
  return { launches, bytes: loaded.unique + stored.unique + table.unique, instructions: 32 * instructions.warp, error }
}

/** An item of a call of `modelledBatch`, on an H100. */
interface CountedItem extends Omit<Case, 'problem'> {
  problem: string
  launches: number
  /** Of operands, tables and results, over `leastBytes`: each array once. */
  traffic: number
  leastBytes: number
  instructions: number
  /** Nanoseconds. */
  modelled: number
  floor: number
  boundBy: 'bytes' | 'FMA'
  error: number
}
function countItem(one: Case, dtype: SuiteSettings['dtype']): CountedItem {
  const { problem, pass, layout } = one, calls = callsOf(problem), [fewer, more] = calls.map((batch) => count(one, dtype, batch)) as [Counts, Counts]
  const item = (of: (c: Counts) => number) => {
    const slope = (of(more) - of(fewer)) / (calls[1] - calls[0])
    return slope + (of(fewer) - calls[0] * slope) / modelledBatch
  }
  const op = makeProduct(problem, { dtype, layout }), dims = weightedDims(op), { reads, writes } = weightedArrays[pass], speed = h100(dtype)
  const leastBytes = bytesOf[dtype] * [...Object.values(reads), ...Object.values(writes)].reduce((sum, slot) => sum + dims[slot] / (problem.shared && slot === 'w' ? modelledBatch : 1), 0)
  const floors = { bytes: (1e9 * leastBytes) / speed.copyBandwidth, FMA: (1e9 * multiplyAdds(op, problem, pass)) / speed.fmaPeak }
  op.dispose()
  const boundBy = floors.bytes >= floors.FMA ? 'bytes' : 'FMA', bytes = item((c) => c.bytes), instructions = item((c) => c.instructions)
  return {
    problem: problem.name, pass, layout, launches: more.launches, traffic: bytes / leastBytes, leastBytes, instructions, floor: floors[boundBy], boundBy,
    modelled: Math.max((1e9 * bytes) / speed.copyBandwidth, (1e9 * instructions) / h100('float32').fmaPeak), error: Math.max(fewer.error, more.error),
  }
}

/** Channelwise, float32, forward and backward: at most so many times the floor. */
const mostOfFloor = 1.25

export function runCounted(settings: SuiteSettings, problems: readonly WeightedProblem[], progress: Parameters<Suite['run']>[1]): SuiteRun {
  const { dtype, layouts, passes } = settings, uncounted = requireEmulation('models')
  const cases = problems.flatMap((problem) => passes.flatMap((pass) => layouts.map((layout): Case => ({ problem, pass, layout }))))
  const results = cases.map((one, n) => {
    progress(n, cases.length, `${one.problem.name} ${one.pass} ${one.layout}`)
    return countItem(one, dtype)
  })
  progress(cases.length, cases.length, 'done')
  const isCorrect = ({ error }: CountedItem) => error <= tolerance[dtype], unlessUncounted = (text: string) => (uncounted ? '-' : text)
  const bar = ({ problem, pass, modelled, floor }: CountedItem) => {
    const isJudged = !uncounted && dtype === 'float32' && pass !== 'doubleBackward' && problems.find(({ name }) => name === problem)!.kind !== 'fullyConnected'
    return verdict(modelled / floor, isJudged ? mostOfFloor : undefined)
  }
  const lines = results.map((r) => [
    r.problem, r.pass, r.layout, String(r.launches), r.leastBytes.toFixed(0), r.traffic.toFixed(3), unlessUncounted(r.instructions.toFixed(0)), unlessUncounted(r.modelled.toPrecision(3)),
    r.floor.toPrecision(3), r.boundBy, unlessUncounted((r.modelled / r.floor).toFixed(2)), bar(r), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
  ])
  return {
    text: [
      disclaimer,
      `an item of a call of ${modelledBatch}, from counts of smaller calls; ${dtype}; modelled H100 time = max(unique bytes / 3.35 TB/s, issued instructions / 29.6 T thread-instructions a second); no latency, no launch`,
      ...uncountedLines(uncounted),
      ...sources(problems),
      '',
      ...table(['problem', 'pass', 'layout', 'launches', 'bytes', 'x bytes', 'instr', 'modelled ns', 'floor ns', 'by', 'x floor', 'bar', 'correct'], lines, 3),
      '',
      'launches: counted, a call; bytes: every array once; x bytes: counted, of global memory, each once a launch, with tables, over those; instr: thread-instructions, issued;',
      'floor: of those bytes, or of the multiply-adds that `--suite models` counts on the CPU, an instruction each; correct: against float64 on the CPU',
    ],
    json: { results },
    wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
  }
}
