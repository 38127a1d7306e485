import type { ArrayOf, DType } from './arrays'
import type { AsyncOptions, OperandOf } from './call'
import { ClebschGordanTensorProduct, type ClebschGordanOptions, type WeightedOptions } from './clebsch_gordan'
import { argumentError, describe } from './errors'
import { Graph } from './graph'
import type { Irreps, IrrepsLike } from './irreps'
import type { Pass } from './native'
import {
  overGraph, type BackwardArguments, type Choice, type DoubleBackwardArguments, type ForwardArguments, type Gradients, type JvpArguments, type PassCost,
  type Path, type SecondGradients,
} from './operation'
import type { Backend, Layout } from './options'
import type { Instruction } from './weighted'

/** Of the factories. */
export interface EdgeSumOptions<D extends DType> extends WeightedOptions<D> {
  /**
   * With backend 'cuda' only. Threads then share out the edges, eight at a time, instead of the nodes, and what they add to rows of nodes is added atomically: a small
   * graph, or one whose nodes have very different numbers of edges, occupies more of the device, every pass goes in the order of the receivers, and a double
   * backward is one launch instead of two. Sums that are rows of nodes (forward and jvp: the result; backward: the gradient of x; double backward: those of x
   * and gradOut) then differ by roundings from call to call; gradients of y and of the weights do not. Default false.
   */
  atomic?: boolean
}

export interface ConvolutionOptions<D extends DType> extends EdgeSumOptions<D> {
  irrepsOut: IrrepsLike
  instructions: readonly Instruction[]
}

type Over<Call extends unknown[]> = [graph: Graph, ...call: Call]

/**
 * Message passing along the edges of a graph: into each receiver goes the sum over its edges of the product of the sender's features and the edge's attributes,
 *
 *     out[r] = sum over edges e into r of product(x[sender(e)], y[e], weight[e])
 *
 * with the product of {@link ClebschGordanTensorProduct}'s `instructions`. It is fused: products of edges are never written to memory. Sums are not
 * normalised by the number of neighbours. Results do not depend on the number of threads and are the same bits in every call, unless `atomic` is asked for.
 *
 * x is (senders, irrepsIn1.dim), y (edges, irrepsIn2.dim) or one row for all edges, `weight` (edges, weightNumel) or (weightNumel) for all edges, the result
 * (receivers, irrepsOut.dim), with edges in the order of the graph's edge index; row-major in the operation's dtype and layout. The passes and their options are
 * those of {@link ClebschGordanTensorProduct} with the graph in front; with backend 'cuda' device arrays give device arrays.
 */
export class Convolution<D extends DType = 'float32'> {
  readonly irrepsIn1: Irreps
  readonly irrepsIn2: Irreps
  readonly irrepsOut: Irreps
  readonly weightNumel: number
  readonly paths: readonly Path[]
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  readonly expressivity: number
  /** Whether sums over edges are atomic. */
  readonly atomic: boolean
  /** Of an edge, as those of an item of {@link ClebschGordanTensorProduct}. Rows of nodes that are in a cache, and sums that stay there, move fewer bytes. */
  readonly cost: Readonly<Record<Pass, PassCost>>

  readonly #product: ClebschGordanTensorProduct<D>

  /** @throws EquitensorError as {@link ClebschGordanTensorProduct}, with instructions; `invalid_option` for `atomic` without backend 'cuda'. */
  constructor(
    irrepsIn1: IrrepsLike,
    irrepsIn2: IrrepsLike,
    options: ConvolutionOptions<D>,
    /** @internal */ product?: ClebschGordanTensorProduct<D>,
  ) {
    if (!product && !Array.isArray(options?.instructions)) throw argumentError('invalid_option', 'options.instructions', 'an array', describe(options?.instructions))
    const { atomic, rest } = apart(options)
    this.#product = product ?? new ClebschGordanTensorProduct(irrepsIn1, irrepsIn2, rest as ClebschGordanOptions<D>)
    if (atomic && this.#product.backend !== 'cuda') {
      this.#product.dispose()
      throw argumentError('invalid_option', 'options.atomic', "false without backend 'cuda'", 'true')
    }
    this.#product.nameOfClass = 'Convolution'
    this.atomic = atomic
    this.irrepsIn1 = this.#product.irrepsIn1
    this.irrepsIn2 = this.#product.irrepsIn2
    this.irrepsOut = this.#product.irrepsOut
    this.weightNumel = this.#product.weightNumel
    this.paths = this.#product.paths
    this.backend = this.#product.backend
    this.device = this.#product.device
    this.dtype = this.#product.dtype
    this.layout = this.#product.layout
    this.threads = this.#product.threads
    this.choice = this.#product.choice
    this.expressivity = this.#product.expressivity
    this.cost = this.#product.cost
  }

  /** With the product of {@link ClebschGordanTensorProduct.channelwise}: that of MACE and NequIP. @throws EquitensorError as it, and as the constructor. */
  static channelwise<D extends DType = 'float32'>(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, filterIrrepsOut?: IrrepsLike, options: EdgeSumOptions<D> = {}): Convolution<D> {
    return ofProduct(ClebschGordanTensorProduct.channelwise(irrepsIn1, irrepsIn2, filterIrrepsOut, apart(options).rest), options)
  }

  /** With the product of {@link ClebschGordanTensorProduct.fullyConnected}: that of DiffDock. @throws EquitensorError as it, and as the constructor. */
  static fullyConnected<D extends DType = 'float32'>(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, irrepsOut: IrrepsLike, options: EdgeSumOptions<D> = {}): Convolution<D> {
    return ofProduct(ClebschGordanTensorProduct.fullyConnected(irrepsIn1, irrepsIn2, irrepsOut, apart(options).rest), options)
  }

  /** The triples of degrees with a nonzero coefficient, in order. */
  get interactability(): [l1: number, l2: number, l3: number][] {
    return this.#product.interactability
  }

  /**
   * @returns (receivers, irrepsOut.dim): zero for a receiver without edges.
   * @throws EquitensorError as {@link ClebschGordanTensorProduct.forward}, and `invalid_argument` for what is no {@link Graph}; nothing has been written then.
   */
  forward<A extends OperandOf<D>>(...call: Over<ForwardArguments<A>>): A
  forward(...[graph, x, y, weight, options]: Over<ForwardArguments<ArrayOf<D>>>): ArrayOf<D> {
    return this.#product.forward(x, y, weight, over(graph, this.atomic, options))
  }

  /** {@link forward} beside this thread. Inputs must not change before the promise resolves. */
  forwardAsync<A extends OperandOf<D>>(...call: Over<ForwardArguments<A, AsyncOptions>>): Promise<A>
  async forwardAsync(...[graph, x, y, weight, options]: Over<ForwardArguments<ArrayOf<D>, AsyncOptions>>): Promise<ArrayOf<D>> {
    return this.#product.forwardAsync(x, y, weight, over(graph, this.atomic, options))
  }

  /**
   * Gradients of a scalar with respect to x, y and weight, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward<A extends OperandOf<D>>(...call: Over<BackwardArguments<A>>): Gradients<D, A>
  backward(...[graph, x, y, weight, gradOut, options]: Over<BackwardArguments<ArrayOf<D>>>): Gradients<D> {
    return this.#product.backward(x, y, weight, gradOut, over(graph, this.atomic, options))
  }

  /** {@link backward} beside this thread. */
  backwardAsync<A extends OperandOf<D>>(...call: Over<BackwardArguments<A, AsyncOptions>>): Promise<Gradients<D, A>>
  async backwardAsync(...[graph, x, y, weight, gradOut, options]: Over<BackwardArguments<ArrayOf<D>, AsyncOptions>>): Promise<Gradients<D>> {
    return this.#product.backwardAsync(x, y, weight, gradOut, over(graph, this.atomic, options))
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @param cotangents `x`, `y` and `weight`: shapes of x, y and weight; a missing one is zero.
   * @returns gradients with respect to x, y, weight and gradOut.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward<A extends OperandOf<D>>(...call: Over<DoubleBackwardArguments<A>>): SecondGradients<D, A>
  doubleBackward(...[graph, x, y, weight, gradOut, cotangents, options]: Over<DoubleBackwardArguments<ArrayOf<D>>>): SecondGradients<D> {
    return this.#product.doubleBackward(x, y, weight, gradOut, cotangents, over(graph, this.atomic, options))
  }

  /** {@link doubleBackward} beside this thread. */
  doubleBackwardAsync<A extends OperandOf<D>>(...call: Over<DoubleBackwardArguments<A, AsyncOptions>>): Promise<SecondGradients<D, A>>
  async doubleBackwardAsync(
    ...[graph, x, y, weight, gradOut, cotangents, options]: Over<DoubleBackwardArguments<ArrayOf<D>, AsyncOptions>>
  ): Promise<SecondGradients<D>> {
    return this.#product.doubleBackwardAsync(x, y, weight, gradOut, cotangents, over(graph, this.atomic, options))
  }

  /**
   * Derivative of the result in the direction of tangents of x, y and weight.
   * @param tangents `x`, `y` and `weight`: shapes of x, y and weight; a missing one is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp<A extends OperandOf<D>>(...call: Over<JvpArguments<A>>): A
  jvp(...[graph, x, y, weight, tangents, options]: Over<JvpArguments<ArrayOf<D>>>): ArrayOf<D> {
    return this.#product.jvp(x, y, weight, tangents, over(graph, this.atomic, options))
  }

  /** {@link jvp} beside this thread. */
  jvpAsync<A extends OperandOf<D>>(...call: Over<JvpArguments<A, AsyncOptions>>): Promise<A>
  async jvpAsync(...[graph, x, y, weight, tangents, options]: Over<JvpArguments<ArrayOf<D>, AsyncOptions>>): Promise<ArrayOf<D>> {
    return this.#product.jvpAsync(x, y, weight, tangents, over(graph, this.atomic, options))
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    this.#product.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

function ofProduct<D extends DType>(product: ClebschGordanTensorProduct<D>, options: EdgeSumOptions<D>): Convolution<D> {
  return new Convolution(product.irrepsIn1, product.irrepsIn2, options as ConvolutionOptions<D>, product)
}

// In both, options that are no object are left to the product's checks.

/** `atomic`, and the options of the product. @throws EquitensorError `invalid_option`. */
function apart<D extends DType>(options: EdgeSumOptions<D> | undefined): { atomic: boolean; rest: WeightedOptions<D> } {
  if (typeof options !== 'object' || options === null) return { atomic: false, rest: options as never }
  const { atomic = false, ...rest } = options
  if (typeof atomic !== 'boolean') throw argumentError('invalid_option', 'options.atomic', 'a boolean', describe(atomic))
  return { atomic, rest }
}

/** The options of a pass over the edges of a graph. */
function over<O extends object>(graph: Graph, atomic: boolean, options: O | undefined): O {
  if (!(graph instanceof Graph)) throw argumentError('invalid_argument', 'graph', 'a Graph', describe(graph))
  if (options !== undefined && (typeof options !== 'object' || options === null)) return options
  return { ...options, [overGraph]: { graph, atomic } } as O
}
