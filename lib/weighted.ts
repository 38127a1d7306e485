// e3nn's instructions (e3nn/o3/_tensor_product): which blocks are multiplied, how their channels are connected, and which weights they have.
import type { DType } from './arrays'
import { argumentError, describe } from './errors'
import { formatIrrep, Irreps, irrepKey, multiplyIrreps, type Irrep, type IrrepsLike, type MulIr } from './irreps'
import { allChannelsOf, packChannels, packDims } from './layout'
import { createPlan, type OperationForm, type Path } from './operation'
import { inputIrreps, oneOf, outputIrreps, requireKnownOptions, type ResolvedOptions } from './options'
import { pairsOf, requireReached, unreached } from './selection_rules'

/** How channels u of in1, v of in2 and w of out are connected: those of one letter are one channel; what out lacks is summed. */
export type ConnectionMode = 'uvw' | 'uvu' | 'uvv' | 'uuw' | 'uuu' | 'uvuv' | 'uvu<v' | 'u<vw'

/** Puts block `in1` times block `in2` into block `out`, to what other instructions put there. */
export interface Instruction {
  /** Index of a block. */
  readonly in1: number
  readonly in2: number
  readonly out: number
  readonly mode: ConnectionMode
  readonly hasWeight: boolean
  /** Multiplies the square of the path's coefficient, as in e3nn. Default 1; a path of 0 adds nothing, where others write its block. */
  readonly pathWeight?: number
}

export interface NormalizationOptions {
  /** e3nn's: the factor of a path is sqrt(2 l3 + 1) for `'component'` (default), sqrt((2 l1 + 1)(2 l2 + 1)) for `'norm'`, 1 for `'none'`. */
  irrepNormalization?: 'component' | 'norm' | 'none'
  /**
   * e3nn's: a path is divided by the root of how many products of channels its output sums over, on all paths together for `'element'` (default), or
   * on this path times the number of paths for `'path'`; not at all for `'none'`.
   */
  pathNormalization?: 'element' | 'path' | 'none'
}

/** Squares of the factors of a path. */
const irrepFactors = {
  component: (_l1: number, _l2: number, l3: number) => 2 * l3 + 1,
  norm: (l1: number, l2: number) => (2 * l1 + 1) * (2 * l2 + 1),
  none: () => 1,
}

export type IrrepNormalization = keyof typeof irrepFactors

/** The factor of a path of a product without weights. */
export const irrepFactor = (normalization: IrrepNormalization, l1: number, l2: number, l3: number) => Math.sqrt(irrepFactors[normalization](l1, l2, l3))

/** @throws EquitensorError `invalid_option`. */
export function irrepNormalizationOf(options: NormalizationOptions): IrrepNormalization {
  return oneOf(options.irrepNormalization ?? 'component', 'options.irrepNormalization', ['component', 'norm', 'none'])
}

/** @throws EquitensorError `invalid_option`. */
export function pathNormalizationOf(options: NormalizationOptions): 'element' | 'path' | 'none' {
  return oneOf(options.pathNormalization ?? 'element', 'options.pathNormalization', ['element', 'path', 'none'])
}

interface Connection {
  /** Of the weights, row-major. No weights: the path has no channels, and e3nn leaves it out. */
  shape(mul1: number, mul2: number, mul3: number): number[]
  /** Products of channels that a channel of the output sums over. */
  elements(mul1: number, mul2: number): number
  /** Multiplicity of the output; by default any. */
  mulOut?(mul1: number, mul2: number): number
  /** Both inputs have the same channels. */
  equal?: true
  /** There is no form without weights. */
  weighted?: true
}
const pairs = (mul: number) => (mul * (mul - 1)) / 2
// In the order of core/weighted.hpp.
const connections: Record<ConnectionMode, Connection> = {
  uvw: { shape: (m1, m2, m3) => [m1, m2, m3], elements: (m1, m2) => m1 * m2, weighted: true },
  uvu: { shape: (m1, m2) => [m1, m2], elements: (_, m2) => m2, mulOut: (m1) => m1 },
  uvv: { shape: (m1, m2) => [m1, m2], elements: (m1) => m1, mulOut: (_, m2) => m2 },
  uuw: { shape: (m1, _, m3) => [m1, m3], elements: (m1) => m1, equal: true },
  uuu: { shape: (m1) => [m1], elements: () => 1, mulOut: (m1) => m1, equal: true },
  uvuv: { shape: (m1, m2) => [m1, m2], elements: () => 1, mulOut: (m1, m2) => m1 * m2 },
  'uvu<v': { shape: (m1) => [pairs(m1)], elements: () => 1, mulOut: pairs, equal: true },
  'u<vw': { shape: (m1, _, m3) => [pairs(m1), m3], elements: pairs, equal: true, weighted: true },
}
const modes = Object.keys(connections) as ConnectionMode[]

/** An instruction with what it refers to. */
interface ResolvedInstruction extends Required<Instruction> {
  blocks: readonly [MulIr, MulIr, MulIr]
  connection: Connection
  shape: number[]
}

/** @throws EquitensorError `invalid_option`, `unequal_multiplicities` or `no_path` for what e3nn refuses. */
function resolveInstruction(given: Instruction, argument: string, irreps: readonly [Irreps, Irreps, Irreps]): ResolvedInstruction {
  requireKnownOptions(given, ['in1', 'in2', 'out', 'mode', 'hasWeight', 'pathWeight'], argument)
  const fail = (key: keyof Instruction, expected: string) => argumentError('invalid_option', `${argument}.${key}`, expected, describe(given[key]))
  const blocks = (['in1', 'in2', 'out'] as const).map((key, s) => {
    const block = Number.isInteger(given[key]) ? irreps[s]!.blocks[given[key]] : undefined
    if (!block) throw fail(key, `an index from 0 to ${irreps[s]!.blocks.length - 1}, of a block of '${irreps[s]}'`)
    return block
  }) as [MulIr, MulIr, MulIr]
  const mode = oneOf(given.mode, `${argument}.mode`, modes), connection = connections[mode]
  if (typeof given.hasWeight !== 'boolean') throw fail('hasWeight', 'a boolean')
  if (connection.weighted && !given.hasWeight) throw fail('hasWeight', `true, since ${mode} is a sum with weights`)
  const pathWeight = given.pathWeight ?? 1
  if (typeof pathWeight !== 'number' || !(pathWeight >= 0) || pathWeight === Infinity) throw fail('pathWeight', 'a number that is not negative')

  const [b1, b2, b3] = blocks
  if (!multiplyIrreps(b1.ir, b2.ir).some((ir) => irrepKey(ir) === irrepKey(b3.ir))) {
    throw unreached('no_path', { argument: `${argument}.out`, irreps: [b3.ir], products: [[[b1.ir], [b2.ir]]], of: `${formatIrrep(b1.ir)} and ${formatIrrep(b2.ir)}` })
  }
  const unequal = (key: string, mul: number, got: MulIr) =>
    argumentError('unequal_multiplicities', `${argument}.${key}`, `multiplicity ${mul}, for ${mode} of ${formatBlock(b1)} and ${formatBlock(b2)}`, formatBlock(got))
  if (connection.equal && b1.mul !== b2.mul) throw unequal('in2', b1.mul, b2)
  const mulOut = connection.mulOut?.(b1.mul, b2.mul) ?? (given.hasWeight ? b3.mul : 1)
  if (b3.mul !== mulOut) throw unequal('out', mulOut, b3)
  return { ...given, mode, pathWeight, blocks, connection, shape: connection.shape(b1.mul, b2.mul, b3.mul) }
}

const formatBlock = ({ mul, ir }: MulIr) => `${mul}x${formatIrrep(ir)}`
const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

/**
 * The product that instructions describe.
 * @throws EquitensorError `invalid_irreps`, `degree_limit`, `invalid_option`, `unequal_multiplicities`, `no_path`, `unreachable_output`.
 */
export function weightedForm<D extends DType>(
  irrepsIn1: IrrepsLike,
  irrepsIn2: IrrepsLike,
  irrepsOut: IrrepsLike | undefined,
  given: readonly Instruction[],
  normalization: NormalizationOptions,
  options: ResolvedOptions<D>,
): OperationForm {
  const squaredFactor = irrepFactors[irrepNormalizationOf(normalization)], pathNormalization = pathNormalizationOf(normalization)
  const irreps = [inputIrreps(irrepsIn1, 'irrepsIn1'), inputIrreps(irrepsIn2, 'irrepsIn2'), outputIrreps(irrepsOut as IrrepsLike, 'options.irrepsOut')] as const
  if (!Array.isArray(given)) throw argumentError('invalid_option', 'options.instructions', 'an array', describe(given))
  const all = given.map((instruction, i) => resolveInstruction(instruction, `options.instructions[${i}]`, irreps))

  // sqrt(alpha) of e3nn's TensorProduct.
  const elements = ({ connection, blocks: [b1, b2] }: ResolvedInstruction) => connection.elements(b1.mul, b2.mul)
  const coefficient = (instruction: ResolvedInstruction) => {
    const [b1, b2, b3] = instruction.blocks
    const others = all.filter(({ out }) => out === instruction.out)
    const count = {
      element: () => others.reduce((sum, other) => sum + elements(other), 0),
      path: () => elements(instruction) * others.length,
      none: () => 1,
    }[pathNormalization]()
    return Math.sqrt((squaredFactor(b1.ir.l, b2.ir.l, b3.ir.l) / (count || 1)) * instruction.pathWeight)
  }
  const kept = all.filter(({ shape }) => product(shape) > 0)
  const coefficients = kept.map(coefficient)
  // e3nn allows a pathWeight of 0: such a path has its weights, and adds nothing.
  const adding = kept.filter((_, i) => coefficients[i] !== 0)
  const ofInstruction = `irreps that an instruction writes${adding.length < kept.length ? ', with a pathWeight that is not 0' : ''}`
  requireReached(irreps[2], adding, (code, missing) => argumentError(code, 'options.irrepsOut', ofInstruction, formatIrrep(missing)))
  const paths = kept.map(({ in1, in2, out, blocks: [b1, b2, b3] }, i): Path => ({ in1, in2, out, l: [b1.ir.l, b2.ir.l, b3.ir.l], coefficient: coefficients[i]! }))

  let weightNumel = 0
  const packed = kept.flatMap(({ in1, in2, out, mode, hasWeight, shape }) => {
    const first = hasWeight ? weightNumel : -1
    weightNumel += hasWeight ? product(shape) : 0
    return [in1, in2, out, modes.indexOf(mode), first]
  })
  requireCountable(weightNumel, 'options.instructions', 'invalid_option')
  const [in1, in2, out] = irreps.map((irreps) => packChannels(allChannelsOf(irreps, options.layout))) as [Int32Array, Int32Array, Int32Array]
  const form = { isDouble: options.dtype === 'float64', dims: packDims(...irreps), weightNumel, in1, in2, out }
  return {
    irrepsIn1: irreps[0],
    irrepsIn2: irreps[1],
    irrepsOut: irreps[2],
    weightNumel,
    paths,
    algorithm: 'sparse',
    plan: createPlan('createWeighted', { ...form, instructions: Int32Array.from(packed), coefficients: Float64Array.from(coefficients) }, options),
    expressivity: () => expressivity(adding),
  }
}

/**
 * Dimension of the bilinear maps that the weights and linear layers before and after reach, summed over the pairs of input blocks. uvw, uuw and u<vw count for
 * each output channel; of the other output blocks a layer after takes the channels to one. uvw, uvu, uvv and uvuv reach every matrix of coefficients of
 * the pairs of channels. The others reach as many as they have parameters, with those of the layers before, less those that change nothing.
 */
function expressivity(instructions: readonly ResolvedInstruction[]): number {
  const ofPair = (group: ResolvedInstruction[]) => {
    const [{ mul: m1 }, { mul: m2 }] = group[0]!.blocks
    const reached = new Set<number>()
    let dimension = 0
    const add = (kinds: string[], parameters: (matrices: number) => number) => {
      let matrices = 0
      for (const { mode, hasWeight, out, blocks } of group) {
        if (!kinds.includes(hasWeight ? mode : `${mode} fixed`) || reached.has(out)) continue
        reached.add(out)
        matrices += hasWeight && mode.endsWith('w') ? blocks[2].mul : 1
      }
      if (matrices > 0) dimension += Math.min(parameters(matrices), matrices * m1 * m2)
    }
    add(['uvw'], () => Infinity)
    add(['uvu', 'uvv', 'uvuv', 'uvuv fixed'], () => Infinity)
    add(['uuw', 'uuu', 'uuu fixed'], (n) => m1 * (m1 + m2 + n - 2)) // each channel may be rescaled in both layers
    add(['uuw fixed'], (n) => m1 * m2 + n - 1) // one matrix, times a factor for each
    add(['uvu fixed'], (n) => n * m1 + m2 - 1) // the channels of y summed
    add(['uvv fixed'], (n) => m1 + n * m2 - 1)
    // Strictly triangular matrices between the layers: one channel of each input plays no part, and triangular layers change nothing.
    add(['uvu<v', 'uvu<v fixed', 'u<vw'], (n) => Math.min(n * (m1 - 1) ** 2 + 2 * (m1 - 1), m1 * (m1 - 1) * (1 + n / 2)))
    return dimension
  }
  const groups = new Map<string, ResolvedInstruction[]>()
  for (const i of instructions) groups.set(`${i.in1},${i.in2}`, [...(groups.get(`${i.in1},${i.in2}`) ?? []), i])
  return [...groups.values()].reduce((total, group) => total + ofPair(group), 0)
}

/** @throws EquitensorError: native code counts weights in 32 bits. */
function requireCountable(weightNumel: number, argument: string, code: 'invalid_option' | 'invalid_irreps'): void {
  if (weightNumel >= 2 ** 31) throw argumentError(code, argument, 'less than 2^31 weights', `${weightNumel}`)
}

/** All uvw with weights, in the order of in1, in2, out; e3nn's FullyConnectedTensorProduct. @throws EquitensorError `no_path`, `unreachable_output`, `invalid_irreps`. */
export function fullyConnectedInstructions(in1: Irreps, in2: Irreps, out: Irreps): Instruction[] {
  const instructions = in1.blocks.flatMap((b1, i1) =>
    in2.blocks.flatMap((b2, i2) => {
      const reached = new Set(multiplyIrreps(b1.ir, b2.ir).map(irrepKey))
      return out.blocks.flatMap(({ ir }, o): Instruction[] => (reached.has(irrepKey(ir)) ? [{ in1: i1, in2: i2, out: o, mode: 'uvw', hasWeight: true }] : []))
    }),
  )
  const full = instructions.filter(({ in1: i1, in2: i2, out: o }) => in1.blocks[i1]!.mul && in2.blocks[i2]!.mul && out.blocks[o]!.mul)
  requireReached(out, full, (code, missing) => unreached(code, { argument: 'irrepsOut', irreps: [missing], ...pairsOf(in1, in2) }))
  requireCountable(full.reduce((sum, { in1: i1, in2: i2, out: o }) => sum + in1.blocks[i1]!.mul * in2.blocks[i2]!.mul * out.blocks[o]!.mul, 0), 'irrepsOut', 'invalid_irreps')
  return instructions
}

/** uvu with weights into one block for every path, sorted, and the instructions in that order; the product of MACE and NequIP. @throws EquitensorError `invalid_irreps`. */
export function channelwiseInstructions(in1: Irreps, in2: Irreps, keep: (ir: Irrep) => boolean): { irrepsOut: Irreps; instructions: Instruction[] } {
  const unsorted = in1.blocks.flatMap(({ mul, ir }, i1) =>
    in2.blocks.flatMap((b2, i2) => multiplyIrreps(ir, b2.ir).filter(keep).map((ir) => ({ in1: i1, in2: i2, mul, ir }))),
  )
  requireCountable(unsorted.reduce((sum, { in2: i2, mul }) => sum + mul * in2.blocks[i2]!.mul, 0), 'irrepsIn2', 'invalid_irreps')
  const { irreps: irrepsOut, inv } = new Irreps(unsorted).sort()
  const instructions = inv.map((from, out): Instruction => ({ in1: unsorted[from]!.in1, in2: unsorted[from]!.in2, out, mode: 'uvu', hasWeight: true }))
  return { irrepsOut, instructions }
}
