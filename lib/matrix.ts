import type { DType } from './arrays'
import {
  channelProductForm, expressivityOf, factorCount, factorOptions, packChannelProduct, resolveFactors, type ChannelProductForm, type FactorOptions,
} from './channel_product'
import { argumentError, describe } from './errors'
import type { IrrepsLike } from './irreps'
import { native } from './native'
import { createPlan, TensorProduct } from './operation'
import { commonOptions, inputIrreps, oneOf, outputIrreps, requireKnownOptions, type CommonOptions } from './options'

export interface MatrixOptions<D extends DType> extends CommonOptions<D>, FactorOptions {
  /** Irreps of the output, each once, with the inputs' multiplicity; by default every irrep that can be reached, sorted. */
  irrepsOut?: IrrepsLike
  /**
   * `'single'` (default): one matrix of irreps, of degree k with itself. `'block'`: a matrix over the direct sum of the irreps 0 .. k, each of them
   * with each.
   */
  form?: 'single' | 'block'
  /**
   * Matrices are (2k+1, 2k+1) in the single form and ((k+1)^2, (k+1)^2) in the block form. Default ceil(lmax of all three irreps / 2) in the single
   * form, the smallest, and ceil((lmax of irrepsIn1 + lmax of irrepsIn2) / 2) in the block form. Results depend on it.
   */
  k?: number
  /**
   * Of the block form: block (k1, k2) holds wigner3j(k1, k2, l) times sqrt((2 k1 + 1)(2 k2 + 1)) for `'norm'` (default), sqrt(2 l + 1) for
   * `'component'`.
   */
  irrepNormalization?: 'norm' | 'component'
}

// Outputs of degree 22 need k = 11.
const largestK = 12

/**
 * Matrix tensor product (MTP): X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, z_lm = sum over a, b of
 * wigner3j(k, k, l)[a, b, m] Z_ab. Path (l1, l2, l3) is (-1)^l3 {l1 l2 l3; k k k} (Wigner 6j) times wigner3j.
 *
 * Form 'block' (Xie et al. 2025): a and b run over the components of all irreps 0 .. k, and block (k1, k2) of all three matrices has
 * f wigner3j(k1, k2, l) with f from `irrepNormalization`. Path (l1, l2, l3) is the sum over k1, k2, k3 of (-1)^(k1 + k3 + l3) {l1 l2 l3; k3 k1 k2}
 * times the three f. It is computed as that sum of paths, which takes fewer operations than the matrices.
 *
 * Irreps of multiplicity mul are mul independent matrices, multiplied channel by channel. An output receives the products of its own parity only.
 */
export class MatrixTensorProduct<D extends DType = 'float32'> extends TensorProduct<D> {
  declare readonly algorithm: 'single' | 'block'
  readonly form: 'single' | 'block'
  readonly k: number

  /**
   * @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`, `no_path`, `unreachable_output`, `invalid_irreps`, `degree_limit`, `invalid_option`,
   * `backend_unavailable`.
   */
  constructor(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: MatrixOptions<D> = {}) {
    requireKnownOptions(options, [...commonOptions, ...factorOptions, 'form', 'k', 'irrepNormalization'])
    const { rank, resolved } = resolveFactors(options)
    const shape = oneOf(options.form ?? 'single', 'options.form', ['single', 'block'])
    if (shape === 'single' && options.irrepNormalization !== undefined) {
      throw argumentError('invalid_option', 'options.irrepNormalization', "none without form 'block'", describe(options.irrepNormalization))
    }
    const normalization = oneOf(options.irrepNormalization ?? 'norm', 'options.irrepNormalization', ['norm', 'component'])
    const in1 = inputIrreps(irrepsIn1, 'irrepsIn1'), in2 = inputIrreps(irrepsIn2, 'irrepsIn2')
    const lmaxOut = options.irrepsOut === undefined ? in1.lmax + in2.lmax : outputIrreps(options.irrepsOut, 'options.irrepsOut').lmax
    const smallest = Math.ceil(Math.max(in1.lmax, in2.lmax, lmaxOut) / 2)
    const k = options.k ?? (shape === 'single' ? smallest : Math.ceil((in1.lmax + in2.lmax) / 2))
    if (options.k !== undefined && (!Number.isInteger(k) || k < smallest || k > largestK)) {
      throw argumentError('invalid_option', 'options.k', `an integer from ${smallest} (half the largest degree) to ${largestK}`, describe(k))
    }
    const coefficient = shape === 'single' ? singlePath(k) : blockPath(k, normalization)
    const rule = shape === 'single' ? `{l1 l2 l3; ${k} ${k} ${k}} != 0` : `a nonzero sum of 6j symbols for matrices up to k = ${k}`
    const form = channelProductForm(in1, in2, options.irrepsOut, () => coefficient, rule)
    const packed = packChannelProduct(form, (...l) => coefficient(...l) !== 0, resolved, rank)
    super(
      {
        irrepsIn1: form.in1,
        irrepsIn2: form.in2,
        irrepsOut: form.out,
        weightNumel: factorCount(form, rank),
        weightsInParts: true,
        paths: form.paths,
        algorithm: shape,
        why: options.form === undefined ? 'the default' : 'options.form says so',
        plan:
          shape === 'single'
            ? createPlan('createMatrix', { ...packed, k }, resolved)
            : createPlan('createMatrixBlock', { ...packed, ...packPaths(form) }, resolved),
        expressivity: () => expressivityOf(form, rank),
      },
      resolved,
    )
    this.form = shape
    this.k = k
  }
}

type Coefficient = (l1: number, l2: number, l3: number) => number

function singlePath(k: number): Coefficient {
  // Accidental zeros of the 6j symbol come out of Racah's sum as rounding errors.
  return (l1, l2, l3) => {
    const value = native.matrixPath(l1, l2, l3, k)
    return Math.abs(value) < 1e-14 ? 0 : value
  }
}
// Remembered: of degrees 11 a coefficient is the sum of some 1,000 6j symbols, and asked for once for every parity.
function blockPath(k: number, normalization: 'norm' | 'component'): Coefficient {
  const known = new Map<number, number>()
  return (l1, l2, l3) => {
    const key = (l1 * 64 + l2) * 64 + l3
    let value = known.get(key)
    if (value === undefined) known.set(key, (value = native.matrixBlockPath(l1, l2, l3, k, normalization === 'norm')))
    return value
  }
}

/** Paths by their blocks, less empty ones: those are not packed. */
function packPaths({ in1, in2, out, paths }: ChannelProductForm) {
  const packed = [in1, in2, out].map((irreps) => {
    let next = 0
    return irreps.blocks.map(({ mul }) => (mul > 0 ? next++ : -1))
  }) as [number[], number[], number[]]
  return {
    paths: Int32Array.from(paths.flatMap((path) => [packed[0][path.in1]!, packed[1][path.in2]!, packed[2][path.out]!])),
    coefficients: Float64Array.from(paths, ({ coefficient }) => coefficient),
  }
}
