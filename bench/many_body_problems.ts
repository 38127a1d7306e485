// Many-body products: MACE's symmetric contraction, its counterpart on the sphere, the power of a signal, and e3nn's square of a tensor.
import { GauntPower, GauntProduct, Irreps, SymmetricContraction, TensorSquare } from '../lib/index'
import type { OperationProblem, Subject } from './operation_suite'

export const species = 89
const channels = 128
const withChannels = (irreps: string) => new Irreps(irreps).blocks.map(({ ir }) => [channels, ir] as const)
const mace = 'Batatia et al., MACE, NeurIPS 2022; models of Batatia et al. 2023 (arXiv 2401.00096): 128 channels, lmax 3, correlation 3, 89 species'

function contraction(irrepsOut: string, correlation: number): OperationProblem['make'] {
  return (options, sets = species) => {
    const op: SymmetricContraction<any> = new SymmetricContraction<any>(withChannels('0e+1o+2e+3o'), withChannels(irrepsOut), { ...options, correlation, numSpecies: sets })
    return {
      cost: op.cost,
      weightBytes: sets * op.weightNumel * (options.dtype === 'float32' ? 4 : 8),
      bind(pass, batch, draw, present = sets) {
        const rows = (): any => draw(batch * op.irrepsIn.dim), results = (): any => draw(batch * op.irrepsOut.dim), weights = (): any => draw(sets * op.weightNumel)
        const x = rows(), of = Int32Array.from({ length: batch }, (_, n) => (n * 7) % present), w = weights(), z = results()
        if (pass === 'forward') return () => op.forward(x, of, w, { out: z })
        const out = { x: rows(), weight: weights() }
        if (pass === 'backward') return () => op.backward(x, of, w, z, { out })
        const along = { x: rows(), weight: weights() }, all = { ...out, gradOut: results() }
        return () => op.doubleBackward(x, of, w, z, along, { out: all })
      },
      dispose: () => op.dispose(),
    }
  }
}
/** Of one operand, or of a list of them, and no weights. `between`: what a call has in the place of weights. */
function unweighted(op: any, ...between: undefined[]): Subject {
  return {
    cost: op.cost,
    weightBytes: 0,
    bind(pass, batch, draw) {
      const of = ({ dim }: Irreps) => draw(batch * dim), rows = () => (Array.isArray(op.irrepsIn) ? op.irrepsIn.map(of) : of(op.irrepsIn)), x = rows(), z = of(op.irrepsOut)
      if (pass === 'forward') return () => op.forward(x, ...between, { out: z })
      const out = { x: rows() }
      if (pass === 'backward') return () => op.backward(x, ...between, z, { out })
      const along = { x: rows() }, all = { ...out, gradOut: of(op.irrepsOut) }
      return () => op.doubleBackward(x, ...between, z, along, { out: all })
    },
    dispose: () => op.dispose(),
  }
}
const power = (irreps: string, n: number, irrepsOut: string): OperationProblem['make'] => (options) =>
  unweighted(new GauntPower<any>(withChannels(irreps), n, { ...options, irrepsOut: withChannels(irrepsOut) }))
const product = (factors: readonly string[], irrepsOut: string): OperationProblem['make'] => (options) =>
  unweighted(new GauntProduct<any>(factors.map(withChannels), { ...options, irrepsOut: withChannels(irrepsOut) }))
const square = (irreps: string): OperationProblem['make'] => (options) => unweighted(new TensorSquare<any>(irreps, options), undefined)

const outputs = { small: '0e', medium: '0e+1o', large: '0e+1o+2e' }
export const manyBodyProblems: readonly OperationProblem[] = [
  ...Object.entries(outputs).flatMap(([size, irrepsOut]): OperationProblem[] =>
    [2, 3].map((n) => ({ name: `mace-${size}-${n}`, meaning: `symmetric contraction of 0e+1o+2e+3o into ${irrepsOut}, up to ${n} factors`, source: mace, make: contraction(irrepsOut, n) })),
  ),
  ...Object.entries(outputs).flatMap(([size, irrepsOut]): OperationProblem[] =>
    [2, 3].map((n) => ({ name: `gaunt-power-${n}-${size}`, meaning: `x^${n} of 0e+1o+2e+3o into ${irrepsOut}, channel by channel`, source: mace, make: power('0e+1o+2e+3o', n, irrepsOut) })),
  ),
  {
    name: 'gaunt-product-3-medium',
    meaning: 'x1 x2 x3 of 0e+1o+2e+3o into 0e+1o, channel by channel',
    source: mace,
    make: product(['0e+1o+2e+3o', '0e+1o+2e+3o', '0e+1o+2e+3o'], '0e+1o'),
  },
  ...[1, 2].map((channels): OperationProblem => {
    const irreps = ['0e', '1o', '2e', '3o'].map((ir) => `${channels}x${ir}`).join('+')
    return { name: `tensor-square-${channels}`, meaning: `x (x) x of ${irreps}, every two channels once`, source: 'e3nn.o3.TensorSquare, without weights', make: square(irreps), countedAtOnce: 512 }
  }),
]
