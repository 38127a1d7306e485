// Many-body products: MACE's symmetric contraction, and its counterpart on the sphere, the power of a signal.
import { GauntPower, GauntProduct, Irreps, SymmetricContraction } from '../lib/index'
import { timeCalls } from './cpu'
import { median } from './machine'
import { number, percent } from './report'
import { arrayError, random, randomArray } from '../test/support'
import { heading, speedOf, table, tolerance } from './weighted'
import type { PassName } from './passes'
import type { MakeOptions, Numbers } from './problems'
import type { Suite, SuiteSettings } from './suites'

/** A pass on arrays of its own. */
export interface ManyBodyCase {
  readonly cost: Record<PassName, { flops: number; bytes: number }>
  /** Bytes of weights, which all items share. */
  readonly weightBytes: number
  /** Calls of every pass on `batch` items, into arrays that are there; `draw` makes the operands. */
  bind(batch: number, draw: (length: number) => Numbers): Record<PassName, () => unknown>
  dispose(): void
}
export interface ManyBodyProblem {
  name: string
  meaning: string
  source: string
  make(options: MakeOptions): ManyBodyCase
}

const channels = 128, species = 89
const withChannels = (irreps: string) => new Irreps(irreps).blocks.map(({ ir }) => [channels, ir] as const)
const mace = 'Batatia et al., MACE, NeurIPS 2022; models of Batatia et al. 2023 (arXiv 2401.00096): 128 channels, lmax 3, correlation 3, 89 species'

function contraction(irrepsOut: string, correlation: number): ManyBodyProblem['make'] {
  return (options) => {
    const op: SymmetricContraction<any> = new SymmetricContraction<any>(withChannels('0e+1o+2e+3o'), withChannels(irrepsOut), { ...options, correlation, numSpecies: species })
    return {
      cost: op.cost,
      weightBytes: species * op.weightNumel * (options.dtype === 'float32' ? 4 : 8),
      bind(batch, draw) {
        const [x, ax, dx] = [0, 1, 2].map(() => draw(batch * op.irrepsIn.dim)) as any[], [z, gradOut, dg] = [0, 1, 2].map(() => draw(batch * op.irrepsOut.dim)) as any[]
        const [w, aw, dw] = [0, 1, 2].map(() => draw(species * op.weightNumel)) as any[]
        const of = Int32Array.from({ length: batch }, (_, n) => (n * 7) % species)
        return {
          forward: () => op.forward(x, of, w, { out: z }),
          backward: () => op.backward(x, of, w, gradOut, { out: { x: dx, weight: dw } }),
          doubleBackward: () => op.doubleBackward(x, of, w, gradOut, { x: ax, weight: aw }, { out: { x: dx, weight: dw, gradOut: dg } }),
        }
      },
      dispose: () => op.dispose(),
    }
  }
}
function power(irreps: string, n: number, irrepsOut: string): ManyBodyProblem['make'] {
  return (options) => {
    const op: GauntPower<any> = new GauntPower<any>(withChannels(irreps), n, { ...options, irrepsOut: withChannels(irrepsOut) })
    return {
      cost: op.cost,
      weightBytes: 0,
      bind(batch, draw) {
        const [x, ax, dx] = [0, 1, 2].map(() => draw(batch * op.irrepsIn.dim)) as any[], [z, gradOut, dg] = [0, 1, 2].map(() => draw(batch * op.irrepsOut.dim)) as any[]
        return {
          forward: () => op.forward(x, { out: z }),
          backward: () => op.backward(x, gradOut, { out: { x: dx } }),
          doubleBackward: () => op.doubleBackward(x, gradOut, { x: ax }, { out: { x: dx, gradOut: dg } }),
        }
      },
      dispose: () => op.dispose(),
    }
  }
}
function product(factors: readonly string[], irrepsOut: string): ManyBodyProblem['make'] {
  return (options) => {
    const op: GauntProduct<any> = new GauntProduct<any>(factors.map(withChannels), { ...options, irrepsOut: withChannels(irrepsOut) })
    return {
      cost: op.cost,
      weightBytes: 0,
      bind(batch, draw) {
        const [x, ax, dx] = [0, 1, 2].map(() => op.irrepsIn.map(({ dim }) => draw(batch * dim))) as any[]
        const [z, gradOut, dg] = [0, 1, 2].map(() => draw(batch * op.irrepsOut.dim)) as any[]
        return {
          forward: () => op.forward(x, { out: z }),
          backward: () => op.backward(x, gradOut, { out: { x: dx } }),
          doubleBackward: () => op.doubleBackward(x, gradOut, { x: ax }, { out: { x: dx, gradOut: dg } }),
        }
      },
      dispose: () => op.dispose(),
    }
  }
}

const outputs = { small: '0e', medium: '0e+1o', large: '0e+1o+2e' }
export const manyBodyProblems: readonly ManyBodyProblem[] = [
  ...Object.entries(outputs).flatMap(([size, irrepsOut]): ManyBodyProblem[] =>
    [2, 3].map((n) => ({ name: `mace-${size}-${n}`, meaning: `symmetric contraction of 0e+1o+2e+3o into ${irrepsOut}, up to ${n} factors`, source: mace, make: contraction(irrepsOut, n) })),
  ),
  ...Object.entries(outputs).flatMap(([size, irrepsOut]): ManyBodyProblem[] =>
    [2, 3].map((n) => ({ name: `gaunt-power-${n}-${size}`, meaning: `x^${n} of 0e+1o+2e+3o into ${irrepsOut}, channel by channel`, source: mace, make: power('0e+1o+2e+3o', n, irrepsOut) })),
  ),
  {
    name: 'gaunt-product-3-medium',
    meaning: 'x1 x2 x3 of 0e+1o+2e+3o into 0e+1o, channel by channel',
    source: mace,
    make: product(['0e+1o+2e+3o', '0e+1o+2e+3o', '0e+1o+2e+3o'], '0e+1o'),
  },
]

/** float32 against float64, of the same numbers: all arrays of a pass on three items. What float64 is, tests say. */
function errorOf(problem: ManyBodyProblem, pass: PassName, options: MakeOptions): number {
  const results = ([options.dtype, 'float64'] as const).map((dtype) => {
    const next = random(1), drawn: Numbers[] = [], op = problem.make({ ...options, dtype })
    op.bind(3, (length) => drawn[drawn.push(randomArray(dtype, length, next)) - 1]!)[pass]()
    op.dispose()
    return drawn
  })
  return Math.max(...results[0]!.map((array, i) => arrayError(array, results[1]![i]!)))
}

const mostBytes = 256 << 20
export const manyBody: Suite = {
  name: 'many-body',
  meaning: "MACE's symmetric contraction, and powers and products of signals on the sphere, with 128 channels",
  problems: manyBodyProblems,
  run(settings: SuiteSettings, progress) {
    const { dtype, threads, layouts } = settings
    const chosen = manyBodyProblems.filter(({ name }) => settings.problems.includes(name))
    const tasks = chosen.flatMap((problem) => settings.passes.flatMap((pass) => layouts.map((layout) => ({ problem, pass, layout }))))
    const speeds = [speedOf(settings, mostBytes)]
    const results = tasks.map(({ problem, pass, layout }, n) => {
      progress(n, tasks.length, `${problem.name} ${pass}`)
      const options = { dtype, layout, threads }, op = problem.make(options), cost = op.cost[pass]
      // All arrays of a case are made, of which there are three for each operand.
      const batch = Math.max(1, Math.min(settings.batch, Math.floor(mostBytes / op.cost.doubleBackward.bytes)))
      const next = random(2), timing = timeCalls([op.bind(batch, (length) => randomArray(dtype, length, next))[pass] as () => void], batch)
      op.dispose()
      if (tasks[n + 1]?.problem !== problem) speeds.push(speedOf(settings, mostBytes))
      const bytesFloor = (1e9 * cost.bytes) / median(speeds.map((s) => s.copyBandwidth)), operationsFloor = (1e9 * cost.flops) / 2 / median(speeds.map((s) => s.fmaPeak))
      return { problem: problem.name, pass, layout, batch, timing, ...cost, bytesFloor, operationsFloor, error: errorOf(problem, pass, options) }
    })
    progress(tasks.length, tasks.length, 'done')
    const isCorrect = ({ error }: (typeof results)[number]) => error <= tolerance[dtype]
    const lines = results.map((r) => [
      r.problem, r.pass, r.layout, String(r.batch), number(r.timing.median), percent((r.timing.quartiles[1] - r.timing.quartiles[0]) / 2 / r.timing.median), number(r.bytesFloor),
      number(r.operationsFloor), (r.timing.median / Math.max(r.bytesFloor, r.operationsFloor)).toFixed(2), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
    ])
    return {
      text: [
        ...heading(settings, speeds, mostBytes),
        ...chosen.map(({ name, meaning, source }) => `  ${name}: ${meaning}; ${source}`),
        '',
        ...table(['problem', 'pass', 'layout', 'batch', 'ns/item', '+-', 'bytes ns', 'ops ns', 'x floor', 'correct'], lines, 3),
        '',
        'bytes: x and the results once, at copy bandwidth; ops: those that the kernels execute, at two a multiply-add of FMA peak; x floor: of the larger one; correct: against float64',
      ],
      json: { speeds, results },
      wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
    }
  },
}
