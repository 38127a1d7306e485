// Suites of operations by themselves: many-body, harmonics, factors.
import { requireEmulation, uncountedLines } from './counted'
import { measureFootprint, timeCalls } from './cpu'
import { disclaimer } from './emulated'
import { factorProblems } from './factor_problems'
import { modelledBatch } from './h100'
import { harmonicsProblems } from './harmonics_problems'
import { manyBodyProblems, species } from './many_body_problems'
import { countPass } from './operation_counted'
import { number, percent } from './report'
import { arrayError, constructors, random, randomArray } from '../test/support'
import { heading, measureAgainstFloors, table, tolerance } from './weighted'
import type { DeviceArray } from '../lib/index'
import type { PassName } from './passes'
import type { MakeOptions, Numbers } from './problems'
import type { Suite, SuiteRun, SuiteSettings } from './suites'

/** An operation, and calls of it. */
export interface Subject {
  /** Of an item; bytes: of every array once, but weights that all items share. */
  readonly cost: Record<PassName, { flops: number; bytes: number }>
  /** Bytes of weights, which all items of a species share. */
  readonly weightBytes: number
  /** A call of a pass on `batch` items, of so many species, into arrays that are there; `draw` makes all of them. */
  bind(pass: PassName, batch: number, draw: (length: number) => Numbers | DeviceArray, species?: number): () => unknown
  dispose(): void
}
export interface OperationProblem {
  name: string
  meaning: string
  source: string
  /** Of problems by degree, which --L chooses. */
  L?: number
  /** Both layouts are one. */
  hasOneChannel?: boolean
  /** Items of a block of threads, if one alone is not a block's work: as many are counted, or multiples. */
  countedAtOnce?: number
  /** `sets`: of weights, one a species. */
  make(options: MakeOptions, sets?: number): Subject
}

/** Against float64 on the CPU, of the same numbers: all arrays of a pass on three items. What float64 is, tests say. */
function errorOf(problem: OperationProblem, pass: PassName, options: MakeOptions): number {
  const results = ([options, { ...options, dtype: 'float64', backend: 'cpu' }] as const).map((of) => {
    const next = random(1), drawn: Numbers[] = [], op = problem.make(of)
    const draw = (length: number) => drawn[drawn.push(constructors[of.dtype].from(randomArray(options.dtype, length, next))) - 1]!
    op.bind(pass, 3, draw)()
    op.dispose()
    return drawn
  })
  return Math.max(...results[0]!.map((array, i) => arrayError(array, results[1]![i]!)))
}

/** Of arrays. Those of batches of some items are fewer than exceed the caches. */
const mostSets = 256
/** So many calls, each on arrays of its own, that no data are in a cache; of one set and copies of it. */
function callsOf(op: Subject, pass: PassName, batch: number, footprint: number, dtype: MakeOptions['dtype']): (() => void)[] {
  const first: Numbers[] = [], next = random(2), sets = Math.min(mostSets, Math.ceil(footprint / (batch * op.cost[pass].bytes)))
  return Array.from({ length: sets }, (_, set) => {
    let n = 0
    return op.bind(pass, batch, (length) => (set ? first[n++]!.slice() : first[first.push(randomArray(dtype, length, next)) - 1]!)) as () => void
  })
}

const tasksOf = (problems: readonly OperationProblem[], { passes, layouts }: SuiteSettings) =>
  problems.flatMap((problem) => passes.flatMap((pass) => (problem.hasOneChannel ? layouts.slice(0, 1) : layouts).map((layout) => ({ problem, pass, layout }))))
const sources = (problems: readonly OperationProblem[]) => problems.map(({ name, meaning, source }) => `  ${name}: ${meaning}; ${source}`)

/** `ofCalls`: what else is to be said of a call. */
function suiteOf(name: string, meaning: string, problems: readonly OperationProblem[], { degrees, ofCalls = '' }: { degrees?: readonly number[]; ofCalls?: string } = {}): Suite {
  return {
    name,
    meaning,
    problems,
    ...(degrees && { degrees }),
    run(settings, progress) {
      const chosen = problems.filter(({ name }) => settings.problems.includes(name))
      if (settings.backend === 'cuda') return runCounted(name, chosen, ofCalls, settings, progress)
      const { dtype, threads } = settings, tasks = tasksOf(chosen, settings), { bytes: footprint } = measureFootprint()
      const { results, speeds } = measureAgainstFloors(settings, footprint, tasks, ({ problem, pass, layout }, n) => {
        progress(n, tasks.length, `${problem.name} ${pass}`)
        const options = { dtype, layout, threads, backend: 'cpu' } as const, op = problem.make(options), { flops, bytes } = op.cost[pass]
        const batch = Math.max(1, Math.min(settings.batch, Math.floor(footprint / op.cost.doubleBackward.bytes)))
        const calls = callsOf(op, pass, batch, footprint, dtype), timing = timeCalls(calls, batch)
        op.dispose()
        return { problem: problem.name, pass, layout, batch, sets: calls.length, timing, flops, leastBytes: bytes, multiplyAdds: flops / 2, error: errorOf(problem, pass, options) }
      })
      progress(tasks.length, tasks.length, 'done')
      const isCorrect = ({ error }: (typeof results)[number]) => error <= tolerance[dtype]
      const lines = results.map((r) => [
        r.problem, r.pass, r.layout, String(r.batch), number(r.timing.median), percent((r.timing.quartiles[1] - r.timing.quartiles[0]) / 2 / r.timing.median), number(r.bytesFloor),
        number(r.multiplyAddsFloor), r.ratio.toFixed(2), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
      ])
      return {
        text: [
          ...heading(settings, speeds, footprint),
          ...sources(chosen),
          '',
          ...table(['problem', 'pass', 'layout', 'batch', 'ns/item', '+-', 'bytes ns', 'ops ns', 'x floor', 'correct'], lines, 3),
          '',
          'bytes: every array once, but weights that items share, at copy bandwidth; ops: those that the kernels execute, at two a multiply-add of FMA peak;',
          'x floor: of the larger one; correct: against float64',
        ],
        json: { speeds, results },
        wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
      }
    },
  }
}

/** On the emulation: counts, and a model of an H100. */
function runCounted(suite: string, chosen: readonly OperationProblem[], ofCalls: string, settings: SuiteSettings, progress: Parameters<Suite['run']>[1]): SuiteRun {
  const { dtype } = settings, uncounted = requireEmulation(suite), tasks = tasksOf(chosen, settings)
  const results = tasks.map(({ problem, pass, layout }, n) => {
    progress(n, tasks.length, `${problem.name} ${pass}`)
    const options = { dtype, layout, backend: 'cuda' } as const
    return { problem: problem.name, pass, layout, ...countPass(problem, pass, options), error: errorOf(problem, pass, options) }
  })
  progress(tasks.length, tasks.length, 'done')
  const isCorrect = ({ error }: (typeof results)[number]) => error <= tolerance[dtype]
  const unlessUncounted = (text: string) => (uncounted ? '-' : text)
  const lines = results.map((r) => [
    r.problem, r.pass, r.layout, String(r.launches), r.traffic.toFixed(3), unlessUncounted(r.instructions.toFixed(0)), unlessUncounted(r.modelled.toPrecision(3)), r.floor.toPrecision(3), r.boundBy,
    unlessUncounted((r.modelled / r.floor).toFixed(2)), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
  ])
  return {
    text: [
      disclaimer,
      `an item of a call of ${modelledBatch}${ofCalls}, from counts of smaller calls: modelled H100 time = max(unique bytes / 3.35 TB/s, issued instructions / 29.6 T thread-instructions a second)`,
      ...uncountedLines(uncounted),
      ...sources(chosen),
      '',
      ...table(['problem', 'pass', 'layout', 'launches', 'x bytes', 'instr', 'modelled ns', 'floor ns', 'by', 'x floor', 'correct'], lines, 3),
      '',
      'launches: counted, a call; x bytes: of global memory, operands, tables and the partial sums of the weights, over inputs and results once; instr: thread-instructions, issued;',
      'floor: of those bytes, or of the multiply-adds of the CPU kernels, an instruction each; correct: against float64 on the CPU',
    ],
    json: { results },
    wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
  }
}

export const manyBody = suiteOf('many-body', "MACE's symmetric contraction, and powers and products of signals on the sphere, with 128 channels; squares of tensors", manyBodyProblems, {
  ofCalls: ` with ${species} species`,
})
export const harmonics = suiteOf('harmonics', 'spherical harmonics of degrees 0 to L, L = 1 to 8 or as --L says', harmonicsProblems, { degrees: [1, 2, 3, 4, 5, 6, 7, 8] })
export const factors = suiteOf('factors', 'Gaunt and matrix products with factors as weights (rank 1, a set an item), the problem MIMO for L = 1 to 6 or as --L says', factorProblems, {
  degrees: [1, 2, 3, 4, 5, 6],
})
