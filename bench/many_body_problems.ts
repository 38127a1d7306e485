// Many-body products: MACE's symmetric contraction, its counterpart on the sphere, the power of a signal, and e3nn's square of a tensor.
import { GauntPower, GauntProduct, Irreps, SymmetricContraction, TensorSquare, type DeviceArray } from '../lib/index'
import type { PassName } from './passes'
import type { MakeOptions, Numbers } from './problems'

/** A pass on arrays of its own. */
export interface ManyBodyCase {
  readonly cost: Record<PassName, { flops: number; bytes: number }>
  /** Bytes of weights, which all items share. */
  readonly weightBytes: number
  /** Calls of every pass on `batch` items, of so many species, into arrays that are there; `draw` makes the operands. */
  bind(batch: number, draw: (length: number) => Numbers | DeviceArray, species?: number): Record<PassName, () => unknown>
  dispose(): void
}
export interface ManyBodyProblem {
  name: string
  meaning: string
  source: string
  /** Items of a block of threads, if one alone is not a block's work: as many are counted, or multiples. */
  countedAtOnce?: number
  /** `sets`: of weights, one a species. */
  make(options: MakeOptions, sets?: number): ManyBodyCase
}

export const species = 89
const channels = 128
const withChannels = (irreps: string) => new Irreps(irreps).blocks.map(({ ir }) => [channels, ir] as const)
const mace = 'Batatia et al., MACE, NeurIPS 2022; models of Batatia et al. 2023 (arXiv 2401.00096): 128 channels, lmax 3, correlation 3, 89 species'

function contraction(irrepsOut: string, correlation: number): ManyBodyProblem['make'] {
  return (options, sets = species) => {
    const op: SymmetricContraction<any> = new SymmetricContraction<any>(withChannels('0e+1o+2e+3o'), withChannels(irrepsOut), { ...options, correlation, numSpecies: sets })
    return {
      cost: op.cost,
      weightBytes: sets * op.weightNumel * (options.dtype === 'float32' ? 4 : 8),
      bind(batch, draw, present = sets) {
        const [x, ax, dx] = [0, 1, 2].map(() => draw(batch * op.irrepsIn.dim)) as any[], [z, gradOut, dg] = [0, 1, 2].map(() => draw(batch * op.irrepsOut.dim)) as any[]
        const [w, aw, dw] = [0, 1, 2].map(() => draw(sets * op.weightNumel)) as any[]
        const of = Int32Array.from({ length: batch }, (_, n) => (n * 7) % present)
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
/** Of one operand, or of a list of them, and no weights. `between`: what a call has in the place of weights. */
function unweighted(op: any, ...between: undefined[]): ManyBodyCase {
  return {
    cost: op.cost,
    weightBytes: 0,
    bind(batch, draw) {
      const rows = ({ dim }: Irreps) => draw(batch * dim)
      const [x, ax, dx] = [0, 1, 2].map(() => (Array.isArray(op.irrepsIn) ? op.irrepsIn.map(rows) : rows(op.irrepsIn))), [z, gradOut, dg] = [0, 1, 2].map(() => rows(op.irrepsOut))
      return {
        forward: () => op.forward(x, ...between, { out: z }),
        backward: () => op.backward(x, ...between, gradOut, { out: { x: dx } }),
        doubleBackward: () => op.doubleBackward(x, ...between, gradOut, { x: ax }, { out: { x: dx, gradOut: dg } }),
      }
    },
    dispose: () => op.dispose(),
  }
}
const power = (irreps: string, n: number, irrepsOut: string): ManyBodyProblem['make'] => (options) =>
  unweighted(new GauntPower<any>(withChannels(irreps), n, { ...options, irrepsOut: withChannels(irrepsOut) }))
const product = (factors: readonly string[], irrepsOut: string): ManyBodyProblem['make'] => (options) =>
  unweighted(new GauntProduct<any>(factors.map(withChannels), { ...options, irrepsOut: withChannels(irrepsOut) }))
const square = (irreps: string): ManyBodyProblem['make'] => (options) => unweighted(new TensorSquare<any>(irreps, options), undefined)

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
  ...[1, 2].map((channels): ManyBodyProblem => {
    const irreps = ['0e', '1o', '2e', '3o'].map((ir) => `${channels}x${ir}`).join('+')
    return { name: `tensor-square-${channels}`, meaning: `x (x) x of ${irreps}, every two channels once`, source: 'e3nn.o3.TensorSquare, without weights', make: square(irreps), countedAtOnce: 128 }
  }),
]
