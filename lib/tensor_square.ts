import type { ArrayOf, DType } from './arrays'
import type { AsyncOptions, OperandOf } from './call'
import { ClebschGordanTensorProduct, everyWithEvery, merge, type PlannedPath, type MergedBlock, type Piece, type Planner } from './clebsch_gordan'
import type { DeviceArray } from './device_array'
import { multiplyIrreps, type Irreps, type IrrepsLike } from './irreps'
import { channelsOf } from './layout'
import type { Pass } from './native'
import type { Choice, ForwardOptions, PassCost, Path } from './operation'
import { commonOptions, inputIrreps, requireKnownOptions, type Backend, type CommonOptions, type Layout } from './options'
import { irrepFactor, type IrrepNormalization } from './weighted'

export interface TensorSquareOptions<D extends DType> extends CommonOptions<D> {
  /** Keep only paths into these irreps (multiplicities are ignored). */
  filterIrrepsOut?: IrrepsLike
  /**
   * e3nn's. `'component'` (default): of normal inputs with components of variance 1, the outputs' components have mean square 1. `'norm'`: of random
   * unit vectors, the outputs' irreps have mean square norm 1. `'none'`: every path has the factor 1.
   */
  irrepNormalization?: IrrepNormalization
}

interface SquareBackwardOptions<A> {
  /** Array that receives the gradient. */
  out?: { x?: A }
  /** Add to what the array of `out` holds. Default false. */
  accumulate?: boolean
}
interface SquareDoubleBackwardOptions<A> {
  /** Which gradients to compute, by default both; the other is absent from the result. */
  needs?: { x?: boolean; gradOut?: boolean }
  out?: { x?: A; gradOut?: A }
  accumulate?: boolean
}

/** u < v within a block, numbered row by row, for channels u of one of its pieces and v of the same or a later one. */
function everyWithLater(b: MergedBlock): Piece[] {
  return b.pieces.flatMap((p1, n) =>
    b.pieces.slice(n).map((p2): Piece => {
      const begin = (p1.begin * (2 * b.mul - p1.begin - 1)) / 2 + p2.begin - p1.begin - 1
      const connection = p1 === p2 ? 'uvu<v' : 'uvuv'
      return { in1: p1.channels, in2: p2.channels, connection, begin, uStep: b.mul - p1.begin - 2, vStep: 1, triangular: true }
    }),
  )
}

// e3nn.o3.TensorSquare: the factor of the product of a channel with itself, whose components are not independent.
const ownFactors = {
  component: (l: number, l3: number) => Math.sqrt(l3 === 0 ? 1 / (2 * l + 3) : (2 * l3 + 1) / 2),
  norm: (l: number, l3: number) => Math.sqrt(l3 === 0 ? 2 * l + 1 : ((2 * l + 1) * (2 * l + 3)) / 2),
  none: () => 1,
}

// e3nn.o3.TensorSquare: every pair of blocks once; of a block with itself every pair of channels once, then every channel with itself,
// whose antisymmetric part, odd l3, is zero.
const planSquare: Planner = (irreps, _same, layout, keep, normalization) => {
  const blocks = merge(channelsOf(irreps, layout))
  const instructions: PlannedPath[] = []
  for (const [i1, b1] of blocks.entries()) {
    for (const [i2, b2] of blocks.entries()) {
      if (i1 > i2) continue
      for (const ir of multiplyIrreps(b1.ir, b2.ir).filter(keep)) {
        const add = (mul: number, coefficient: number, pieces: Piece[]) => instructions.push({ in1: i1, in2: i2, out: { mul, ir }, coefficient, pieces })
        const coefficient = irrepFactor(normalization, b1.ir.l, b2.ir.l, ir.l)
        if (i1 < i2) add(b1.mul * b2.mul, coefficient, everyWithEvery(b1, b2))
        else {
          if (b1.mul > 1) add((b1.mul * (b1.mul - 1)) / 2, coefficient, everyWithLater(b1))
          if (ir.l % 2 === 0) add(b1.mul, ownFactors[normalization](b1.ir.l, ir.l), b1.pieces.map(({ channels, begin }) => ({ in1: channels, in2: channels, connection: 'uuu', begin, uStep: 1, vStep: 0 })))
        }
      }
    }
  }
  const out = instructions.reduce((sum, { out }) => sum + out.mul, 0)
  return { irrepsIn1: irreps.simplify(), irrepsIn2: irreps.simplify(), instructions, sorted: true, square: true, expressivity: out }
}

/**
 * The symmetric square x (x) x, `e3nn.o3.TensorSquare` without weights: every product of two different channels once, and every channel with
 * itself. The output is sorted. x is (batch, irrepsIn.dim) and the result (batch, irrepsOut.dim), row-major, in the operation's dtype and layout,
 * on the host or, with backend 'cuda', on the device.
 */
export class TensorSquare<D extends DType = 'float32'> {
  /** Simplified, as the paths name them. */
  readonly irrepsIn: Irreps
  readonly irrepsOut: Irreps
  readonly paths: readonly Path[]
  readonly weightNumel: number = 0
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  readonly algorithm: string
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  /** Dimension of the space of quadratic maps that linear layers reach with it: the number of its output channels. */
  readonly expressivity: number
  /** Work and traffic an item, by pass. */
  readonly cost: Readonly<Record<Pass, PassCost>>

  readonly #square: ClebschGordanTensorProduct<D>

  /**
   * @throws EquitensorError `no_path` if `filterIrrepsOut` leaves none; `invalid_irreps`, `degree_limit`, `invalid_option`, `backend_unavailable`.
   */
  constructor(irrepsIn: IrrepsLike, options: TensorSquareOptions<D> = {}) {
    requireKnownOptions(options, ['filterIrrepsOut', 'irrepNormalization', ...commonOptions.filter((name) => name !== 'irrepsOut')])
    const irreps = inputIrreps(irrepsIn, 'irrepsIn')
    const op = (this.#square = new ClebschGordanTensorProduct<D>(irreps, irreps, options, planSquare))
    op.nameOfClass = 'TensorSquare'
    this.irrepsIn = op.irrepsIn1
    this.irrepsOut = op.irrepsOut
    this.paths = op.paths
    this.backend = op.backend
    this.device = op.device
    this.dtype = op.dtype
    this.layout = op.layout
    this.threads = op.threads
    this.algorithm = op.algorithm
    this.choice = op.choice
    this.expressivity = op.expressivity
    const size = op.dtype === 'float32' ? 4 : 8, { forward, backward, doubleBackward } = op.cost
    this.cost = {
      forward: { flops: forward.flops, bytes: size * (this.irrepsIn.dim + this.irrepsOut.dim) },
      backward: { flops: backward.flops, bytes: size * (2 * this.irrepsIn.dim + this.irrepsOut.dim) },
      doubleBackward: { flops: doubleBackward.flops, bytes: size * (3 * this.irrepsIn.dim + 2 * this.irrepsOut.dim) },
    }
  }

  /** The triples of degrees with a nonzero coefficient, in order. */
  get interactability(): [l1: number, l2: number, l3: number][] {
    return this.#square.interactability
  }

  /**
   * The square of x.
   * @param weight none: the operation has no weights.
   * @throws EquitensorError as `forward` of any product.
   */
  forward(x: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D>
  forward(x: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>>): DeviceArray<D>
  forward(x: OperandOf<D>, weight?: undefined, options?: ForwardOptions<OperandOf<D>>): OperandOf<D> {
    return this.#square.forward(x as ArrayOf<D>, x as ArrayOf<D>, weight, options as ForwardOptions<ArrayOf<D>>)
  }

  /** {@link forward} beside this thread, as `forwardAsync` of any product. */
  forwardAsync(x: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>>
  forwardAsync(x: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>> & AsyncOptions): Promise<DeviceArray<D>>
  async forwardAsync(x: OperandOf<D>, weight?: undefined, options?: ForwardOptions<OperandOf<D>> & AsyncOptions): Promise<OperandOf<D>> {
    return this.#square.forwardAsync(x as ArrayOf<D>, x as ArrayOf<D>, weight, options as ForwardOptions<ArrayOf<D>>)
  }

  /**
   * Gradient of a scalar with respect to x, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward(x: ArrayOf<D>, weight: undefined, gradOut: ArrayOf<D>, options?: SquareBackwardOptions<ArrayOf<D>>): { x: ArrayOf<D> }
  backward(x: DeviceArray<D>, weight: undefined, gradOut: DeviceArray<D>, options?: SquareBackwardOptions<DeviceArray<D>>): { x: DeviceArray<D> }
  backward(x: OperandOf<D>, weight: undefined, gradOut: OperandOf<D>, options: SquareBackwardOptions<OperandOf<D>> = {}): { x: OperandOf<D> } {
    return this.#square.backward(x as ArrayOf<D>, x as ArrayOf<D>, weight, gradOut as ArrayOf<D>, ofProduct<D>(options, ['out', 'accumulate'], ['x']))
  }

  /** {@link backward} beside this thread, as {@link forwardAsync}. */
  backwardAsync(x: ArrayOf<D>, weight: undefined, gradOut: ArrayOf<D>, options?: SquareBackwardOptions<ArrayOf<D>> & AsyncOptions): Promise<{ x: ArrayOf<D> }>
  backwardAsync(x: DeviceArray<D>, weight: undefined, gradOut: DeviceArray<D>, options?: SquareBackwardOptions<DeviceArray<D>> & AsyncOptions): Promise<{ x: DeviceArray<D> }>
  async backwardAsync(
    x: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    options: SquareBackwardOptions<OperandOf<D>> & AsyncOptions = {},
  ): Promise<{ x: OperandOf<D> }> {
    const given = ofProduct<D>(options, ['out', 'accumulate', 'signal'], ['x'])
    return this.#square.backwardAsync(x as ArrayOf<D>, x as ArrayOf<D>, weight, gradOut as ArrayOf<D>, given)
  }

  /**
   * Gradients of a scalar that depends on the result of {@link backward}, given its gradient with respect to that.
   * @param cotangents `x`: shape of x; missing, it is zero.
   * @returns gradients with respect to x and gradOut.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward(
    x: ArrayOf<D>,
    weight: undefined,
    gradOut: ArrayOf<D>,
    cotangents: { x?: ArrayOf<D> },
    options?: SquareDoubleBackwardOptions<ArrayOf<D>>,
  ): { x: ArrayOf<D>; gradOut: ArrayOf<D> }
  doubleBackward(
    x: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    cotangents: { x?: DeviceArray<D> },
    options?: SquareDoubleBackwardOptions<DeviceArray<D>>,
  ): { x: DeviceArray<D>; gradOut: DeviceArray<D> }
  doubleBackward(
    x: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    cotangents: { x?: OperandOf<D> },
    options: SquareDoubleBackwardOptions<OperandOf<D>> = {},
  ): { x: OperandOf<D>; gradOut: OperandOf<D> } {
    requireKnownOptions(cotangents, ['x'], 'cotangents')
    const given = ofProduct<D>(options, ['needs', 'out', 'accumulate'], ['x', 'gradOut'])
    return this.#square.doubleBackward(x as ArrayOf<D>, x as ArrayOf<D>, weight, gradOut as ArrayOf<D>, cotangents as { x?: ArrayOf<D> }, given)
  }

  /** {@link doubleBackward} beside this thread, as {@link forwardAsync}. */
  doubleBackwardAsync(
    x: ArrayOf<D>,
    weight: undefined,
    gradOut: ArrayOf<D>,
    cotangents: { x?: ArrayOf<D> },
    options?: SquareDoubleBackwardOptions<ArrayOf<D>> & AsyncOptions,
  ): Promise<{ x: ArrayOf<D>; gradOut: ArrayOf<D> }>
  doubleBackwardAsync(
    x: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    cotangents: { x?: DeviceArray<D> },
    options?: SquareDoubleBackwardOptions<DeviceArray<D>> & AsyncOptions,
  ): Promise<{ x: DeviceArray<D>; gradOut: DeviceArray<D> }>
  async doubleBackwardAsync(
    x: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    cotangents: { x?: OperandOf<D> },
    options: SquareDoubleBackwardOptions<OperandOf<D>> & AsyncOptions = {},
  ): Promise<{ x: OperandOf<D>; gradOut: OperandOf<D> }> {
    requireKnownOptions(cotangents, ['x'], 'cotangents')
    const given = ofProduct<D>(options, ['needs', 'out', 'accumulate', 'signal'], ['x', 'gradOut'])
    return this.#square.doubleBackwardAsync(x as ArrayOf<D>, x as ArrayOf<D>, weight, gradOut as ArrayOf<D>, cotangents as { x?: ArrayOf<D> }, given)
  }

  /**
   * Derivative of the result in the direction of a tangent of x.
   * @param tangents `x`: shape of x; missing, it is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp(x: ArrayOf<D>, weight: undefined, tangents: { x?: ArrayOf<D> }, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D>
  jvp(x: DeviceArray<D>, weight: undefined, tangents: { x?: DeviceArray<D> }, options?: ForwardOptions<DeviceArray<D>>): DeviceArray<D>
  jvp(x: OperandOf<D>, weight: undefined, tangents: { x?: OperandOf<D> }, options?: ForwardOptions<OperandOf<D>>): OperandOf<D> {
    requireKnownOptions(tangents, ['x'], 'tangents')
    return this.#square.jvp(x as ArrayOf<D>, x as ArrayOf<D>, weight, tangents as { x?: ArrayOf<D> }, options as ForwardOptions<ArrayOf<D>>)
  }

  /** {@link jvp} beside this thread, as {@link forwardAsync}. */
  jvpAsync(x: ArrayOf<D>, weight: undefined, tangents: { x?: ArrayOf<D> }, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>>
  jvpAsync(x: DeviceArray<D>, weight: undefined, tangents: { x?: DeviceArray<D> }, options?: ForwardOptions<DeviceArray<D>> & AsyncOptions): Promise<DeviceArray<D>>
  async jvpAsync(
    x: OperandOf<D>,
    weight: undefined,
    tangents: { x?: OperandOf<D> },
    options?: ForwardOptions<OperandOf<D>> & AsyncOptions,
  ): Promise<OperandOf<D>> {
    requireKnownOptions(tangents, ['x'], 'tangents')
    return this.#square.jvpAsync(x as ArrayOf<D>, x as ArrayOf<D>, weight, tangents as { x?: ArrayOf<D> }, options as ForwardOptions<ArrayOf<D>>)
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    this.#square.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal Operations of one item, counted while they are executed. */
  countFlops(pass: Pass): number {
    return this.#square.countFlops(pass)
  }
}

/** Options of the product of x with x, whose second input has no gradient of its own. */
function ofProduct<D extends DType>(options: SquareDoubleBackwardOptions<OperandOf<D>> & AsyncOptions, known: readonly string[], slots: readonly string[]) {
  requireKnownOptions(options, known)
  requireKnownOptions(options.needs ?? {}, slots, 'needs')
  requireKnownOptions(options.out ?? {}, slots, 'out')
  return { ...options, needs: { ...options.needs, y: false } } as SquareDoubleBackwardOptions<ArrayOf<D>> & AsyncOptions
}
