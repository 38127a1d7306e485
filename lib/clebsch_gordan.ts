import type { DType } from './arrays'
import { argumentError, describe, type EquitensorError } from './errors'
import {
  channelwiseInstructions, fullyConnectedInstructions, irrepFactor, irrepNormalizationOf, pathNormalizationOf, weightedForm, type Instruction,
  type IrrepNormalization, type NormalizationOptions,
} from './weighted'
import { Irreps, irrepKey, multiplyIrreps, toIrreps, type Irrep, type IrrepsLike, type MulIr } from './irreps'
import { channelRange, channelsOf, packChannels, packDims, packPaths, type Channels, type Connection } from './layout'
import { createPlan, TensorProduct, type OperationForm } from './operation'
import {
  commonOptions, inputIrreps, oneOf, outputIrreps, requireKnownOptions, resolveOptions, type CommonOptions, type Layout, type ResolvedOptions,
} from './options'
import { irrepsOf, pairsOf, unreached, type Factors } from './selection_rules'

/** Of products with weights. */
export interface WeightedOptions<D extends DType> extends CommonOptions<D>, NormalizationOptions {}

/** Of products without weights, which have one path into each output, so that the choices of `pathNormalization` agree. */
export interface UnweightedOptions<D extends DType> extends CommonOptions<D>, NormalizationOptions {
  /** Keep only paths into these irreps (multiplicities are ignored). */
  filterIrrepsOut?: IrrepsLike
  /**
   * `'sparse'` (default) visits the nonzero coefficients only. `'dense'` multiplies every product x_i y_j into every output, as
   * an einsum with the full coefficient tensors does; it is there to be compared with.
   */
  algorithm?: 'sparse' | 'dense'
}

export interface ClebschGordanOptions<D extends DType> extends UnweightedOptions<D> {
  /** Irreps of the output, with `instructions`. */
  irrepsOut?: IrrepsLike
  /** e3nn's `TensorProduct`: what is multiplied with what. Excludes `filterIrrepsOut` and `algorithm: 'dense'`. */
  instructions?: readonly Instruction[]
}

/** A range of channels of an input block with one of the other input, into an output block from channel `begin` on. */
export interface Piece {
  in1: Channels
  in2: Channels
  connection: Connection
  begin: number
  /** Distance between the output channels of u and u + 1, and of v and v + 1. */
  uStep: number
  vStep: number
  /** Every next u has one v less, so that `uStep` is the less by u. Default false. */
  triangular?: boolean
}

export interface PlannedPath {
  in1: number
  in2: number
  out: MulIr
  /** Multiplies wigner3j. */
  coefficient: number
  pieces: Piece[]
}

/** @internal */
export interface Plan {
  /** e3nn's form of the inputs, which the instructions refer to. */
  irrepsIn1: Irreps
  irrepsIn2: Irreps
  instructions: PlannedPath[]
  sorted: boolean
  /** The second input is the first one. Default false. */
  square?: boolean
  /** Which irreps are multiplied. Default: each of irrepsIn1 with each of irrepsIn2. */
  meeting?: Factors[]
  expressivity: number
}

/** A block of the simplified irreps, with the blocks that it was passed as: those fix the layout. */
export interface MergedBlock {
  ir: Irrep
  mul: number
  pieces: { channels: Channels; begin: number }[]
}

export function merge(blocks: readonly Channels[]): MergedBlock[] {
  const merged: MergedBlock[] = []
  for (const channels of blocks) {
    let last = merged.at(-1)
    if (!last || irrepKey(last.ir) !== irrepKey(channels.ir)) merged.push((last = { ir: channels.ir, mul: 0, pieces: [] }))
    last.pieces.push({ channels, begin: last.mul })
    last.mul += channels.mul
  }
  return merged
}

type Keep = (ir: Irrep) => boolean
/** @internal Instructions of a product of these inputs. */
export type Planner = (irrepsIn1: Irreps, irrepsIn2: Irreps, layout: Layout, keep: Keep, normalization: IrrepNormalization) => Plan

/** uvuv of two whole blocks. */
export function everyWithEvery(b1: MergedBlock, b2: MergedBlock): Piece[] {
  return b1.pieces.flatMap((p1) =>
    b2.pieces.map((p2): Piece => {
      const begin = p1.begin * b2.mul + p2.begin
      return { in1: p1.channels, in2: p2.channels, connection: 'uvuv', begin, uStep: b2.mul, vStep: 1 }
    }),
  )
}

// e3nn.o3.FullTensorProduct: every pair of blocks, every irrep of their product.
function planFull(irrepsIn1: Irreps, irrepsIn2: Irreps, layout: Layout, keep: Keep, normalization: IrrepNormalization): Plan {
  const in1 = merge(channelsOf(irrepsIn1, layout)), in2 = merge(channelsOf(irrepsIn2, layout))
  const instructions: PlannedPath[] = []
  for (const [i1, b1] of in1.entries()) {
    for (const [i2, b2] of in2.entries()) {
      for (const ir of multiplyIrreps(b1.ir, b2.ir).filter(keep)) {
        const coefficient = irrepFactor(normalization, b1.ir.l, b2.ir.l, ir.l)
        instructions.push({ in1: i1, in2: i2, out: { mul: b1.mul * b2.mul, ir }, coefficient, pieces: everyWithEvery(b1, b2) })
      }
    }
  }
  return {
    irrepsIn1: new Irreps(in1),
    irrepsIn2: new Irreps(in2),
    instructions,
    sorted: true,
    // Every output channel can be given any weight on its own.
    expressivity: instructions.reduce((sum, { out }) => sum + out.mul, 0),
  }
}

// e3nn.o3.ElementwiseTensorProduct: channel by channel, in segments that end where either of the simplified inputs changes block.
function planElementwise(irrepsIn1: Irreps, irrepsIn2: Irreps, layout: Layout, keep: Keep, normalization: IrrepNormalization): Plan {
  if (irrepsIn1.numIrreps !== irrepsIn2.numIrreps) {
    throw argumentError('unequal_multiplicities', 'irrepsIn2', `${irrepsIn1.numIrreps} irreps as irrepsIn1 has`, `${irrepsIn2.numIrreps}`)
  }
  const pieces1 = merge(channelsOf(irrepsIn1, layout)).flatMap(({ pieces }, block) => pieces.map((p) => ({ ...p.channels, block })))
  const pieces2 = merge(channelsOf(irrepsIn2, layout)).flatMap(({ pieces }, block) => pieces.map((p) => ({ ...p.channels, block })))
  const segments: { key: string; ir1: Irrep; ir2: Irrep; mul: number; pieces: Piece[] }[] = []
  for (let i = 0, j = 0, u = 0, v = 0; i < pieces1.length; ) {
    const p1 = pieces1[i]!, p2 = pieces2[j]!
    const mul = Math.min(p1.mul - u, p2.mul - v)
    const key = `${p1.block},${p2.block}`
    let segment = segments.at(-1)
    if (segment?.key !== key) segments.push((segment = { key, ir1: p1.ir, ir2: p2.ir, mul: 0, pieces: [] }))
    const in1 = channelRange(p1, u, mul), in2 = channelRange(p2, v, mul)
    segment.pieces.push({ in1, in2, connection: 'uuu', begin: segment.mul, uStep: 1, vStep: 0 })
    segment.mul += mul
    u += mul
    v += mul
    if (u === p1.mul) (i++, (u = 0))
    if (v === p2.mul) (j++, (v = 0))
  }
  const instructions = segments.flatMap(({ ir1, ir2, mul, pieces }, s) =>
    multiplyIrreps(ir1, ir2).filter(keep).map((ir): PlannedPath => ({ in1: s, in2: s, out: { mul, ir }, coefficient: irrepFactor(normalization, ir1.l, ir2.l, ir.l), pieces })),
  )
  const of = (irreps: Irreps, ir: Irrep) => irreps.blocks.reduce((sum, b) => sum + (irrepKey(b.ir) === irrepKey(ir) ? b.mul : 0), 0)
  // Of one pair of irreps, linear layers reach sum over channels of c_path a b': each channel has m1 + m2 + paths parameters, two of
  // which only rescale it, and together they reach at most all m1 m2 entries of every path.
  const pairs = new Map<string, { parameters: number; entries: number }>()
  for (const { ir1, ir2, mul } of segments) {
    const paths = multiplyIrreps(ir1, ir2).filter(keep).length
    if (paths === 0) continue
    const m1 = of(irrepsIn1, ir1), m2 = of(irrepsIn2, ir2), key = `${irrepKey(ir1)},${irrepKey(ir2)}`
    const parameters = (pairs.get(key)?.parameters ?? 0) + mul * (m1 + m2 + paths - 2)
    pairs.set(key, { parameters, entries: m1 * m2 * paths })
  }
  const expressivity = [...pairs.values()].reduce((sum, { parameters, entries }) => sum + Math.min(parameters, entries), 0)
  return {
    irrepsIn1: new Irreps(segments.map(({ mul, ir1 }) => ({ mul, ir: ir1 }))),
    irrepsIn2: new Irreps(segments.map(({ mul, ir2 }) => ({ mul, ir: ir2 }))),
    instructions,
    sorted: false,
    meeting: segments.map(({ ir1, ir2 }) => [[ir1], [ir2]]),
    expressivity,
  }
}

const weightedOptions = ['irrepNormalization', 'pathNormalization', ...commonOptions.filter((name) => name !== 'irrepsOut')]
const unweightedOptions = ['filterIrrepsOut', 'algorithm', ...weightedOptions]
const clebschGordanOptions = ['irrepsOut', 'instructions', ...unweightedOptions]

function unweightedForm<D extends DType>(
  irrepsIn1: IrrepsLike,
  irrepsIn2: IrrepsLike,
  options: ClebschGordanOptions<D>,
  planner: Planner,
  resolved: ResolvedOptions<D>,
): OperationForm {
  const algorithm = oneOf(options.algorithm ?? 'sparse', 'options.algorithm', ['sparse', 'dense'])
  const normalization = irrepNormalizationOf(options)
  pathNormalizationOf(options)
  if (options.irrepsOut !== undefined) {
    throw argumentError('invalid_option', 'options.irrepsOut', 'none without instructions (filterIrrepsOut keeps some irreps)', describe(options.irrepsOut))
  }
  const in1 = inputIrreps(irrepsIn1, 'irrepsIn1'), in2 = inputIrreps(irrepsIn2, 'irrepsIn2')
  const keep = keepOf(options.filterIrrepsOut, 'options.filterIrrepsOut')
  const planned = planner(in1, in2, resolved.layout, keep, normalization)
  const { instructions } = planned
  if (instructions.length === 0) throw noPath(in1, in2, options.filterIrrepsOut, 'options.filterIrrepsOut', planned.meeting)
  const unsorted = new Irreps(instructions.map(({ out }) => out))
  const { irreps: irrepsOut, p: position } = planned.sorted ? unsorted.sort() : { irreps: unsorted, p: instructions.map((_, i) => i) }
  const outs = channelsOf(irrepsOut, resolved.layout)

  // A square has one input, in which a block is known by one number: so the kernels see that it is multiplied by itself.
  const first: Channels[] = []
  const inputs = [first, planned.square ? first : []] as const
  const blockIndex = (side: 0 | 1, channels: Channels) => {
    const known = inputs[side].findIndex((c) => c.offset === channels.offset)
    return known >= 0 ? known : inputs[side].push(channels) - 1
  }
  const packed = instructions.flatMap(({ out, coefficient, pieces }, i) =>
    pieces.map(({ in1, in2, connection, begin, uStep, vStep, triangular = false }) => {
      const { offset, channel, component } = outs[position[i]!]!
      return {
        in1: blockIndex(0, in1),
        in2: blockIndex(1, in2),
        connection,
        l3: out.ir.l,
        offset: offset + begin * channel,
        uStep: uStep * channel,
        vStep: vStep * channel,
        triangular,
        component,
        coefficient,
      }
    }),
  )
  return {
    irrepsIn1: planned.irrepsIn1,
    irrepsIn2: planned.irrepsIn2,
    irrepsOut,
    paths: instructions.map(({ in1, in2, out, coefficient }, i) => {
      const l = [planned.irrepsIn1.blocks[in1]!.ir.l, planned.irrepsIn2.blocks[in2]!.ir.l, out.ir.l] as const
      return { in1, in2, out: position[i]!, l, coefficient }
    }),
    algorithm,
    why: planned.square ? undefined : options.algorithm === undefined ? 'the default' : 'options.algorithm says so',
    plan: createPlan(
      'createClebschGordan',
      {
        isDouble: resolved.dtype === 'float64',
        dims: packDims(in1, in2, irrepsOut),
        in1: packChannels(inputs[0]),
        in2: packChannels(inputs[1]),
        ...packPaths(packed),
        dense: algorithm === 'dense',
        square: planned.square ?? false,
      },
      resolved,
    ),
    expressivity: () => planned.expressivity,
    square: planned.square ?? false,
  }
}

function keepOf(filterIrrepsOut: IrrepsLike | undefined, argument: string): Keep {
  if (filterIrrepsOut === undefined) return () => true
  const kept = new Set(irrepsOf(toIrreps(filterIrrepsOut, argument)).map(irrepKey))
  return (ir) => kept.has(irrepKey(ir))
}

function noPath(in1: Irreps, in2: Irreps, filter: IrrepsLike | undefined, argument: string, meeting?: Plan['meeting']): EquitensorError {
  const pairs = pairsOf(in1, in2)
  // Of irreps that the other rules leave, only a square lacks some.
  return unreached('no_path', {
    argument, irreps: irrepsOf(toIrreps(filter ?? '', argument)), products: meeting ?? pairs.products, of: meeting ? `${pairs.of}, channel by channel` : pairs.of,
    further: 'an even l3 of a single channel with itself',
  })
}

/**
 * Clebsch-Gordan tensor product (CGTP): every path (l1, l2, l3) couples two irreps with the Wigner 3j symbol, times
 * sqrt(2 l3 + 1) (e3nn's irrep normalisation 'component').
 *
 * With `instructions` it is e3nn's `TensorProduct`. The weights of an item are those of one instruction after the other, row-major in e3nn's
 * shapes: (mul1, mul2, mul3) for uvw; (mul1, mul2) for uvu, uvv and uvuv; (mul1, mul3) for uuw; (mul1) for uuu; for the pairs u < v of
 * channels, (0, 1), (0, 2), ..., (1, 2), ..., one for each for uvu<v and (pairs, mul3) for u<vw.
 */
export class ClebschGordanTensorProduct<D extends DType = 'float32'> extends TensorProduct<D> {
  declare readonly algorithm: 'sparse' | 'dense'

  /**
   * The product of `instructions` into `irrepsOut`; without them the full product, as {@link full}.
   * @throws EquitensorError `no_path` if the selection rules, the filter or the instructions leave none; `unreachable_output` for an irrep of `irrepsOut`
   * that no instruction writes; `unequal_multiplicities` where a mode does not allow them; `invalid_irreps`, `degree_limit`, `invalid_option`,
   * `backend_unavailable`, and `not_supported` for an item that is too large for the device.
   */
  constructor(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: ClebschGordanOptions<D> = {}, /** @internal */ planner: Planner = planFull) {
    requireKnownOptions(options, clebschGordanOptions)
    const { instructions, irrepsOut, filterIrrepsOut, algorithm = 'sparse' } = options
    const resolved = resolveOptions(options)
    if (instructions !== undefined) {
      if (filterIrrepsOut !== undefined) throw argumentError('invalid_option', 'options.filterIrrepsOut', 'none with instructions', describe(filterIrrepsOut))
      oneOf(algorithm, 'options.algorithm', ['sparse'])
    }
    super(
      instructions === undefined
        ? unweightedForm(irrepsIn1, irrepsIn2, options, planner, resolved)
        : weightedForm(irrepsIn1, irrepsIn2, irrepsOut, instructions, options, resolved),
      resolved,
    )
  }

  /**
   * Every path between every pair of irreps, every channel of x with every channel of y (uvuv); `e3nn.o3.FullTensorProduct`. The output is
   * sorted and has one block for each path, with mul1 mul2 channels.
   * @throws EquitensorError as the constructor.
   */
  static full<D extends DType = 'float32'>(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: UnweightedOptions<D> = {}): ClebschGordanTensorProduct<D> {
    requireKnownOptions(options, unweightedOptions)
    return new ClebschGordanTensorProduct(irrepsIn1, irrepsIn2, options)
  }

  /**
   * Channel u of x with channel u of y (uuu); `e3nn.o3.ElementwiseTensorProduct`. The output has one block for each path, in the order
   * of the channels, not sorted.
   * @throws EquitensorError as the constructor, and `unequal_multiplicities` if the inputs have different numbers of irreps.
   */
  static elementwise<D extends DType = 'float32'>(irrepsIn1: IrrepsLike, irrepsIn2: IrrepsLike, options: UnweightedOptions<D> = {}): ClebschGordanTensorProduct<D> {
    requireKnownOptions(options, unweightedOptions)
    return new ClebschGordanTensorProduct(irrepsIn1, irrepsIn2, options, planElementwise)
  }

  /**
   * Every path with a weight for each pair of channels, of which those of y are summed (uvu); with one channel in y the product of MACE and NequIP, a weight
   * for each path and channel. The output is sorted and has one block for each path, with mul1 channels; instructions and weights are in that order.
   * @param filterIrrepsOut keep only paths into these irreps (multiplicities are ignored); by default all.
   * @throws EquitensorError as the constructor.
   */
  static channelwise<D extends DType = 'float32'>(
    irrepsIn1: IrrepsLike,
    irrepsIn2: IrrepsLike,
    filterIrrepsOut?: IrrepsLike,
    options: WeightedOptions<D> = {},
  ): ClebschGordanTensorProduct<D> {
    requireKnownOptions(options, weightedOptions)
    const first = inputIrreps(irrepsIn1, 'irrepsIn1'), second = inputIrreps(irrepsIn2, 'irrepsIn2')
    const form = channelwiseInstructions(first, second, keepOf(filterIrrepsOut, 'filterIrrepsOut'))
    if (form.irrepsOut.dim === 0) throw noPath(first, second, filterIrrepsOut, 'filterIrrepsOut')
    return new ClebschGordanTensorProduct(first, second, { ...options, ...form })
  }

  /**
   * Every path into every irrep of the output, with a weight for each three channels (uvw); `e3nn.o3.FullyConnectedTensorProduct`.
   * @throws EquitensorError as the constructor.
   */
  static fullyConnected<D extends DType = 'float32'>(
    irrepsIn1: IrrepsLike,
    irrepsIn2: IrrepsLike,
    irrepsOut: IrrepsLike,
    options: WeightedOptions<D> = {},
  ): ClebschGordanTensorProduct<D> {
    requireKnownOptions(options, weightedOptions)
    const first = inputIrreps(irrepsIn1, 'irrepsIn1'), second = inputIrreps(irrepsIn2, 'irrepsIn2'), out = outputIrreps(irrepsOut, 'irrepsOut')
    return new ClebschGordanTensorProduct(first, second, { ...options, irrepsOut: out, instructions: fullyConnectedInstructions(first, second, out) })
  }
}
