import type { DType } from './arrays'
import { channelProductForm, expressivityOf, factorCount, factorOptions, packChannelProduct, resolveFactors, type FactorOptions } from './channel_product'
import { weighedOperations } from './cost_model'
import { argumentError, describe, type EquitensorError } from './errors'
import type { IrrepsLike } from './irreps'
import { native, type NativeOperation } from './native'
import { createPlan, TensorProduct, type Plan } from './operation'
import { commonOptions, oneOf, requireKnownOptions, type CommonOptions } from './options'

/** Rings (`beta`, Gauss-Legendre) and equally spaced angles on each (`alpha`). */
export interface SphereGrid {
  beta: number
  alpha: number
}

export interface GauntOptions<D extends DType> extends CommonOptions<D>, FactorOptions {
  /** Irreps of the output, each once, with the inputs' multiplicity; by default every irrep that can be reached, sorted. */
  irrepsOut?: IrrepsLike
  /** `'auto'` (default) takes the one expected to be faster, by its operations (see `choice`), or `'grid'` where a grid is given. They agree to rounding. */
  algorithm?: 'auto' | 'grid' | 'fourier'
  /**
   * Of `'grid'`. Default: the smallest exact grid, floor((L1 + L2 + L3) / 2) + 1 rings and L1 + L2 + L3 + 1 angles. A larger one gives the same result.
   */
  grid?: Partial<SphereGrid>
}

/** @internal Choices that users have no reason to make, for tests and measurements. */
export interface GauntInternals {
  /** Allow a grid that is too small to be exact. */
  inexactGrid?: boolean
  /** How two signals on a ring are multiplied: their values at the angles, or their trigonometric coefficients. */
  ring?: 'values' | 'coefficients'
  /** How two series on the torus are multiplied: term by term, or as values between fast Fourier transforms. */
  convolution?: 'direct' | 'fft'
}

/**
 * Gaunt tensor product (GTP): the pointwise product of two signals on the sphere, f = sum over l, m of x_lm sqrt(4 pi) Y_lm (Y of unit
 * integral norm), projected back. Path (l1, l2, l3) is sqrt((2l1+1)(2l2+1)(2l3+1)) |3j(l1 l2 l3; 0 0 0)| times wigner3j.
 *
 * Irreps of multiplicity mul are mul independent signals, multiplied channel by channel.
 *
 * `'grid'` is the separable transform to a Gauss-Legendre grid: Legendre functions from components to rings with the hemispheres folded,
 * product ring by ring, and back by quadrature, which is exact. The product on a ring is formed from trigonometric coefficients or from values
 * at the angles, whichever takes fewer operations.
 *
 * `'fourier'` writes a signal as a series of exp(i u theta) exp(i m phi) on the torus (Luo, Chen and Krishnapriyan, "Enabling efficient equivariant
 * operations in the Fourier basis via Gaunt tensor products", ICLR 2024), multiplies the series directly or by FFT, whichever takes fewer operations, and
 * reads the components off the product's coefficients, exactly. It has fewer operations at low degrees (0..L with itself: to L = 2).
 */
export class GauntTensorProduct<D extends DType = 'float32'> extends TensorProduct<D> {
  declare readonly algorithm: 'grid' | 'fourier'
  /** The grid that was asked for, or the smallest exact one; `'fourier'` does not use it. */
  readonly grid: Readonly<SphereGrid>

  /**
   * @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`, `no_path`, `unreachable_output`, `grid_too_small`, `invalid_irreps`, `degree_limit`,
   * `invalid_option`, `backend_unavailable`.
   */
  constructor(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: GauntOptions<D> = {}, /** @internal */ internals: GauntInternals = {}) {
    requireKnownOptions(options, [...commonOptions, ...factorOptions, 'algorithm', 'grid'])
    const { rank, resolved } = resolveFactors(options)
    const algorithm = oneOf(options.algorithm ?? 'auto', 'options.algorithm', ['auto', 'grid', 'fourier'])
    if (algorithm === 'fourier' && options.grid !== undefined) {
      throw argumentError('invalid_option', 'options.grid', "no grid with algorithm 'fourier', which does not use one", describe(options.grid))
    }
    const form = channelProductForm(irrepsIn1, irrepsIn2, options.irrepsOut, () => native.gauntPath, 'l1 + l2 + l3 even')
    const weightNumel = factorCount(form, rank) // before native code makes plans with so many
    const degrees = form.in1.lmax + form.in2.lmax + form.out.lmax
    const exact = { beta: Math.floor(degrees / 2) + 1, alpha: degrees + 1 }
    requireKnownOptions(options.grid ?? {}, ['beta', 'alpha'], 'options.grid')
    const grid = { beta: options.grid?.beta ?? exact.beta, alpha: options.grid?.alpha ?? exact.alpha }
    for (const axis of ['beta', 'alpha'] as const) {
      if (!Number.isInteger(grid[axis]) || grid[axis] < 1 || grid[axis] > 512) {
        throw argumentError('invalid_option', `options.grid.${axis}`, 'an integer from 1 to 512', describe(grid[axis]))
      }
      if (grid[axis] < exact[axis] && !internals.inexactGrid) {
        throw argumentError('grid_too_small', `options.grid.${axis}`, `at least ${exact[axis]}, to be exact for these degrees`, `${grid[axis]}`)
      }
    }
    const packed = packChannelProduct(form, (l1, l2, l3) => native.gauntPath(l1, l2, l3) !== 0, resolved, rank)
    const candidates: Candidate[] = []
    if (algorithm !== 'fourier' && !internals.convolution) {
      for (const ring of internals.ring ? [internals.ring] : (['coefficients', 'values'] as const)) {
        const form = { ...packed, rings: grid.beta, angles: grid.alpha, pointwise: ring === 'values' }
        const cpu = native.createGaunt(form)
        candidates.push({ algorithm: 'grid', cpu, plan: () => createPlan('createGaunt', form, resolved, cpu) })
      }
    }
    if (algorithm === 'fourier' || (algorithm === 'auto' && !options.grid && !internals.ring)) {
      for (const convolution of internals.convolution ? [internals.convolution] : (['direct', 'fft'] as const)) {
        const form = { ...packed, fft: convolution === 'fft' }
        const cpu = native.createFourier(form)
        candidates.push({ algorithm: 'fourier', cpu, plan: () => createPlan('createFourier', form, resolved, cpu) })
      }
    }
    const operations = ({ cpu }: { cpu: NativeOperation }) => weighedOperations(native.flops(cpu), resolved.backend)
    candidates.sort((a, b) => operations(a) - operations(b))
    const { taken, plan } = planOfFirst(candidates)
    const rival = candidates.find(({ algorithm }) => algorithm !== taken.algorithm)
    const weighed = candidates.some(({ cpu }) => resolved.backend === 'cpu' && native.flops(cpu).unrolled) ? ' (unrolled ones count a seventh)' : ''
    const why = rival
      ? `${operations(taken)} operations an item forward${weighed}, ${rival.algorithm} has ${operations(rival)}`
      : `options.${algorithm === 'auto' ? 'grid' : 'algorithm'} says so`
    for (const { cpu } of candidates) if (cpu !== plan.cpu) native.dispose(cpu)
    super(
      {
        irrepsIn1: form.in1,
        irrepsIn2: form.in2,
        irrepsOut: form.out,
        weightNumel,
        weightsInParts: true,
        paths: form.paths,
        algorithm: taken.algorithm,
        why,
        plan,
        expressivity: () => expressivityOf(form, rank),
      },
      resolved,
    )
    this.grid = Object.freeze(grid)
  }
}

interface Candidate {
  algorithm: 'grid' | 'fourier'
  cpu: NativeOperation
  plan(): Plan
}

/** Of the first candidate that the backend has room for: on a GPU an FFT of high degree outgrows a block's shared memory where direct convolution does not. */
function planOfFirst([candidate, ...others]: Candidate[]): { taken: Candidate; plan: Plan } {
  try {
    return { taken: candidate!, plan: candidate!.plan() }
  } catch (error) {
    if (others.length === 0 || (error as EquitensorError).code !== 'not_supported') throw error
    return planOfFirst(others)
  }
}
