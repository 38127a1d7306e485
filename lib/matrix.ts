import type { DType } from './arrays'
import { channelProductForm, packChannelProduct } from './channel_product'
import { argumentError, describe } from './errors'
import type { IrrepsLike } from './irreps'
import { native } from './native'
import { createPlan, TensorProduct } from './operation'
import { commonOptions, inputIrreps, oneOf, outputIrreps, requireKnownOptions, resolveOptions, type CommonOptions } from './options'

export interface MatrixOptions<D extends DType> extends CommonOptions<D> {
  /** Irreps of the output, each once, with the inputs' multiplicity; by default every irrep that can be reached, sorted. */
  irrepsOut?: IrrepsLike
  /** `'single'` (default): one matrix of irreps of degree k. */
  form?: 'single'
  /** Half the matrix size less one half: matrices are (2k+1, 2k+1). Default ceil(lmax of all three irreps / 2), the smallest. Results depend on it. */
  k?: number
}

// Matrices up to 25 x 25: outputs of degree 22 need k = 11.
const largestK = 12

/**
 * Matrix tensor product (MTP): X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, z_lm = sum over a, b of
 * wigner3j(k, k, l)[a, b, m] Z_ab. Path (l1, l2, l3) is (-1)^l3 {l1 l2 l3; k k k} (Wigner 6j) times wigner3j.
 *
 * Irreps of multiplicity mul are mul independent matrices, multiplied channel by channel.
 */
export class MatrixTensorProduct<D extends DType = 'float32'> extends TensorProduct<D> {
  declare readonly algorithm: 'single'
  readonly form: 'single'
  readonly k: number

  /**
   * @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`, `no_path`, `unreachable_output`, `invalid_irreps`, `degree_limit`, `invalid_option`,
   * `backend_unavailable`.
   */
  constructor(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: MatrixOptions<D> = {}) {
    requireKnownOptions(options, [...commonOptions, 'form', 'k'])
    const resolved = resolveOptions(options)
    const shape = oneOf(options.form ?? 'single', 'options.form', ['single'])
    const in1 = inputIrreps(irrepsIn1, 'irrepsIn1'), in2 = inputIrreps(irrepsIn2, 'irrepsIn2')
    const lmaxOut = options.irrepsOut === undefined ? in1.lmax + in2.lmax : outputIrreps(options.irrepsOut, 'options.irrepsOut').lmax
    const smallest = Math.ceil(Math.max(in1.lmax, in2.lmax, lmaxOut) / 2)
    const k = options.k ?? smallest
    if (!Number.isInteger(k) || k < smallest || k > largestK) {
      throw argumentError('invalid_option', 'options.k', `an integer from ${smallest} (half the largest degree) to ${largestK}`, describe(k))
    }
    // Accidental zeros of the 6j symbol come out of Racah's sum as rounding errors.
    const coefficient = (l1: number, l2: number, l3: number) => {
      const value = native.matrixPath(l1, l2, l3, k)
      return Math.abs(value) < 1e-14 ? 0 : value
    }
    const form = channelProductForm(in1, in2, options.irrepsOut, () => coefficient, `the triangle rule and {l1 l2 l3; ${k} ${k} ${k}} != 0`)
    super(
      {
        irrepsIn1: form.in1,
        irrepsIn2: form.in2,
        irrepsOut: form.out,
        paths: form.paths,
        algorithm: shape,
        plan: createPlan('createMatrix', { ...packChannelProduct(form, (...l) => coefficient(...l) !== 0, resolved), k }, resolved),
        expressivity: form.expressivity,
      },
      resolved,
    )
    this.form = shape
    this.k = k
  }
}
