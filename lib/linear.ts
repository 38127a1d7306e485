import { allocate, type ArrayOf, type DType } from './arrays'
import type { AsyncOptions, OperandOf } from './call'
import { ClebschGordanTensorProduct } from './clebsch_gordan'
import { DeviceArray, isDeviceArray } from './device_array'
import { irrepsOf, requireReached, unreached } from './selection_rules'
import type { NormalizationOptions } from './weighted'
import { irrepKey, type Irreps, type IrrepsLike } from './irreps'
import type { Pass } from './native'
import type { Choice, ForwardOptions, PassCost } from './operation'
import { commonOptions, inputIrreps, outputIrreps, requireKnownOptions, type Backend, type CommonOptions, type Layout } from './options'

export interface LinearOptions<D extends DType> extends CommonOptions<D> {
  /** e3nn's: an output channel is divided by the root of how many channels it sums over, all paths together for `'element'` (default), path by path for `'path'`. */
  pathNormalization?: NormalizationOptions['pathNormalization']
}

/** Block in of the input into block out of the output: out_w += coefficient * sum_u weight[u, w] x_u. */
export interface LinearPath {
  readonly in: number
  readonly out: number
  readonly coefficient: number
}

/** Absent where `needs` said so; the type has all of them, since it does not know that. */
export interface LinearGradients<D extends DType, A = ArrayOf<D>> {
  /** Shape of x. */
  x: A
  /** Shape of weight: shared weights get the sum over the items. */
  weight: A
}
export interface LinearSecondGradients<D extends DType, A = ArrayOf<D>> extends LinearGradients<D, A> {
  /** Shape of the result. */
  gradOut: A
}

/** Cotangents of the gradients, or tangents of the operands. A missing one is zero. */
export interface LinearDirections<D extends DType, A = ArrayOf<D>> {
  x?: A | undefined
  weight?: A | undefined
}
type Results<A, Name extends string> = {
  /** Which gradients to compute, by default all; the others are absent from the result. */
  needs?: { [name in Name]?: boolean }
  /** Arrays that receive the gradients. */
  out?: { [name in Name]?: A }
  /** Add to what the arrays of `out` hold, one for each gradient that is needed. Default false. */
  accumulate?: boolean
}
export type LinearBackwardOptions<D extends DType, A = ArrayOf<D>> = Results<A, 'x' | 'weight'>
export type LinearDoubleBackwardOptions<D extends DType, A = ArrayOf<D>> = Results<A, 'x' | 'weight' | 'gradOut'>

/**
 * Linear layer on irreps: each output channel is a weighted sum of the input channels of its irrep; `e3nn.o3.Linear` without biases. The weights of an item
 * are those of one path after the other, in the order of (in, out), each (mul in, mul out). Path coefficients are e3nn's: 1 / sqrt(n), where n counts, for `'element'`,
 * the channels that all paths into an output block have together. So it does not matter there whether 8 channels are one block, 8x0e, or two, 3x0e + ... + 5x0e.
 *
 * x is (batch, irrepsIn.dim), the result (batch, irrepsOut.dim), row-major in the operation's dtype and layout; `weight` is (weightNumel), shared by all
 * items, or (batch, weightNumel). It is the fully connected product with the scalar 1. With backend 'cuda' arrays are on the host or on the device, as of every product.
 */
export class Linear<D extends DType = 'float32'> {
  readonly irrepsIn: Irreps
  readonly irrepsOut: Irreps
  readonly weightNumel: number
  readonly paths: readonly LinearPath[]
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  /** As of {@link ClebschGordanTensorProduct}: of the product with a scalar. */
  readonly cost: Readonly<Record<Pass, PassCost>>

  readonly #product: ClebschGordanTensorProduct<D>
  readonly #one: ArrayOf<D>
  readonly #oneOnDevice: DeviceArray<D> | undefined

  /**
   * @throws EquitensorError `no_path`, `unreachable_output` for an irrep of the output that the input lacks; `invalid_irreps`, `degree_limit`,
   * `invalid_option`, `backend_unavailable`, and `not_supported` for an item that is too large for the device.
   */
  constructor(irrepsIn: IrrepsLike, irrepsOut: IrrepsLike, options: LinearOptions<D> = {}) {
    requireKnownOptions(options, ['pathNormalization', ...commonOptions.filter((name) => name !== 'irrepsOut')])
    this.irrepsIn = inputIrreps(irrepsIn, 'irrepsIn')
    this.irrepsOut = outputIrreps(irrepsOut, 'irrepsOut')
    const irreps = irrepsOf(this.irrepsIn), present = new Set(irreps.map(irrepKey))
    const reached = this.irrepsOut.blocks.flatMap(({ ir }, out) => (present.has(irrepKey(ir)) ? [{ out }] : []))
    requireReached(this.irrepsOut, reached, (code, missing) =>
      unreached(code, { argument: 'irrepsOut', irreps: [missing], products: [[irreps]], of: `an l1 of '${this.irrepsIn}'` }),
    )
    this.#product = ClebschGordanTensorProduct.fullyConnected(this.irrepsIn, '0e', this.irrepsOut, options)
    this.#product.nameOfIn1 = 'irrepsIn'
    this.#product.nameOfClass = 'Linear'
    this.#one = allocate(this.#product.dtype, 1).fill(1) as ArrayOf<D>
    // wigner3j(l, 0, l) is the identity over sqrt(2 l + 1).
    this.paths = Object.freeze(this.#product.paths.map((path) => ({ in: path.in1, out: path.out, coefficient: path.coefficient / Math.sqrt(2 * path.l[0] + 1) })))
    this.weightNumel = this.#product.weightNumel
    this.backend = this.#product.backend
    this.device = this.#product.device
    if (this.backend === 'cuda') this.#oneOnDevice = DeviceArray.from(this.#one as Float32Array, { device: this.device }) as unknown as DeviceArray<D>
    this.dtype = this.#product.dtype
    this.layout = this.#product.layout
    this.threads = this.#product.threads
    this.choice = this.#product.choice
    this.cost = this.#product.cost
  }

  /** Of the kind that x is of. */
  #oneLike(x: OperandOf<D>): ArrayOf<D> {
    return (isDeviceArray(x) && this.#oneOnDevice ? this.#oneOnDevice : this.#one) as ArrayOf<D>
  }

  /** @throws EquitensorError as {@link ClebschGordanTensorProduct.forward}. */
  forward<A extends OperandOf<D>>(x: A, weight: A, options?: ForwardOptions<A>): A
  forward(x: ArrayOf<D>, weight: ArrayOf<D>, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D> {
    return this.#product.forward(x, this.#oneLike(x), weight, options)
  }

  /** {@link forward} beside this thread. Inputs must not change before the promise resolves. */
  forwardAsync<A extends OperandOf<D>>(x: A, weight: A, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async forwardAsync(x: ArrayOf<D>, weight: ArrayOf<D>, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>> {
    return this.#product.forwardAsync(x, this.#oneLike(x), weight, options)
  }

  /**
   * Gradients of a scalar with respect to x and weight, given its gradient with respect to the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward<A extends OperandOf<D>>(x: A, weight: A, gradOut: A, options?: LinearBackwardOptions<D, A>): LinearGradients<D, A>
  backward(x: ArrayOf<D>, weight: ArrayOf<D>, gradOut: ArrayOf<D>, options: LinearBackwardOptions<D> = {}): LinearGradients<D> {
    return this.#product.backward(x, this.#oneLike(x), weight, gradOut, withoutScalar(options, ['x', 'weight']))
  }

  /** {@link backward} beside this thread. */
  backwardAsync<A extends OperandOf<D>>(x: A, weight: A, gradOut: A, options?: LinearBackwardOptions<D, A> & AsyncOptions): Promise<LinearGradients<D, A>>
  async backwardAsync(x: ArrayOf<D>, weight: ArrayOf<D>, gradOut: ArrayOf<D>, options: LinearBackwardOptions<D> & AsyncOptions = {}): Promise<LinearGradients<D>> {
    return this.#product.backwardAsync(x, this.#oneLike(x), weight, gradOut, withoutScalar(options, ['x', 'weight'], ['signal']))
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward<A extends OperandOf<D>>(
    x: A, weight: A, gradOut: A, cotangents: LinearDirections<D, A>, options?: LinearDoubleBackwardOptions<D, A>,
  ): LinearSecondGradients<D, A>
  doubleBackward(
    x: ArrayOf<D>,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: LinearDirections<D>,
    options: LinearDoubleBackwardOptions<D> = {},
  ): LinearSecondGradients<D> {
    return this.#product.doubleBackward(x, this.#oneLike(x), weight, gradOut, ofLinear(cotangents, 'cotangents'), withoutScalar(options, ['x', 'weight', 'gradOut']))
  }

  /** {@link doubleBackward} beside this thread. */
  doubleBackwardAsync<A extends OperandOf<D>>(
    x: A, weight: A, gradOut: A, cotangents: LinearDirections<D, A>, options?: LinearDoubleBackwardOptions<D, A> & AsyncOptions,
  ): Promise<LinearSecondGradients<D, A>>
  async doubleBackwardAsync(
    x: ArrayOf<D>,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: LinearDirections<D>,
    options: LinearDoubleBackwardOptions<D> & AsyncOptions = {},
  ): Promise<LinearSecondGradients<D>> {
    return this.#product.doubleBackwardAsync(x, this.#oneLike(x), weight, gradOut, ofLinear(cotangents, 'cotangents'), withoutScalar(options, ['x', 'weight', 'gradOut'], ['signal']))
  }

  /**
   * Derivative of the result in the direction of tangents of x and weight.
   * @throws EquitensorError as {@link forward}.
   */
  jvp<A extends OperandOf<D>>(x: A, weight: A, tangents: LinearDirections<D, A>, options?: ForwardOptions<A>): A
  jvp(x: ArrayOf<D>, weight: ArrayOf<D>, tangents: LinearDirections<D>, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D> {
    return this.#product.jvp(x, this.#oneLike(x), weight, ofLinear(tangents, 'tangents'), options)
  }

  /** {@link jvp} beside this thread. */
  jvpAsync<A extends OperandOf<D>>(x: A, weight: A, tangents: LinearDirections<D, A>, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async jvpAsync(x: ArrayOf<D>, weight: ArrayOf<D>, tangents: LinearDirections<D>, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>> {
    return this.#product.jvpAsync(x, this.#oneLike(x), weight, ofLinear(tangents, 'tangents'), options)
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    this.#product.dispose()
    this.#oneOnDevice?.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** The scalar is a constant: it has no gradient and no direction. */
function withoutScalar<O extends { needs?: object; out?: object }>(options: O, slots: readonly string[], further: readonly string[] = []): O & { needs: { y: false } } {
  requireKnownOptions(options, ['needs', 'out', 'accumulate', ...further])
  requireKnownOptions(options.needs ?? {}, slots, 'needs')
  requireKnownOptions(options.out ?? {}, slots, 'out')
  return { ...options, needs: { ...options.needs, y: false } }
}

function ofLinear<D extends DType>(directions: LinearDirections<D>, argument: string): LinearDirections<D> {
  requireKnownOptions(directions, ['x', 'weight'], argument)
  return directions
}
