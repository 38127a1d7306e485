// What the Gaunt and the matrix product have in common: signals multiplied channel by channel, whose parities must not mix.
import type { DType } from './arrays'
import { argumentError, describe } from './errors'
import { formatIrrep, Irreps, irrepKey, type Irrep, type IrrepsLike } from './irreps'
import { channelsOf, packChannels, packDims } from './layout'
import type { NativeChannelProduct } from './native'
import type { Path } from './operation'
import { inputIrreps, outputIrreps, resolveOptions, type CommonOptions, type ResolvedOptions } from './options'
import { irrepsOf, pairsOf, unreached } from './selection_rules'

export interface FactorOptions {
  /**
   * Factors for each irrep and channel: sum over r < `rank` of c_r T(a_r x, b_r y), T the product. `weight` is (rank, irreps of both inputs and the output,
   * channels): for every r the a of irrepsIn1, the b of irrepsIn2 and the c of irrepsOut, by block and channel, (mul) each. Default false: no factors.
   */
  weights?: boolean
  /** Terms of the sum, with `weights`. Default 1. */
  rank?: number
}
export const factorOptions = ['weights', 'rank'] as const

/** The number of terms, 0 without weights, and the options. @throws EquitensorError `invalid_option`, `backend_unavailable`. */
export function resolveFactors<D extends DType>(options: CommonOptions<D> & FactorOptions): { rank: number; resolved: ResolvedOptions<D> } {
  const { weights = false, rank } = options
  if (typeof weights !== 'boolean') throw argumentError('invalid_option', 'options.weights', 'a boolean', describe(weights))
  if (rank !== undefined && (!weights || !Number.isInteger(rank) || rank < 1)) {
    throw argumentError('invalid_option', 'options.rank', weights ? 'a positive integer' : 'none without weights: true', describe(rank))
  }
  return { rank: weights ? (rank ?? 1) : 0, resolved: resolveOptions(options) }
}

/** All irreps with one multiplicity, each (l, p) once. @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`. */
export function requireSignals(irreps: Irreps, argument: string): number {
  const blocks = irreps.blocks.filter(({ mul }) => mul > 0)
  const mul = blocks[0]!.mul
  const seen = new Set<number>()
  for (const block of blocks) {
    if (block.mul !== mul) {
      throw argumentError(
        'unequal_multiplicities',
        argument,
        `the same multiplicity for every irrep (one Linear layer away: '${new Irreps(blocks.map(({ ir }) => [mul, ir]))}')`,
        `'${irreps}'`,
      )
    }
    if (seen.has(irrepKey(block.ir))) {
      throw argumentError('repeated_irrep', argument, `${formatIrrep(block.ir)} once (regroup() merges the channels of one irrep)`, `'${irreps}'`)
    }
    seen.add(irrepKey(block.ir))
  }
  return mul
}

export interface ChannelProductForm {
  in1: Irreps
  in2: Irreps
  out: Irreps
  mul: number
  paths: Path[]
}

/**
 * The irreps and paths of a product whose path (l1, l2, l3) has a given coefficient, independent of parity.
 * `rule`: when it is not zero, beside the triangle rule.
 */
export function channelProductForm(
  irrepsIn1: IrrepsLike,
  irrepsIn2: IrrepsLike,
  irrepsOut: IrrepsLike | undefined,
  coefficientFor: (out: Irreps) => (l1: number, l2: number, l3: number) => number,
  rule: string,
): ChannelProductForm {
  const in1 = inputIrreps(irrepsIn1, 'irrepsIn1'), in2 = inputIrreps(irrepsIn2, 'irrepsIn2')
  const mul = requireSignals(in1, 'irrepsIn1')
  if (requireSignals(in2, 'irrepsIn2') !== mul) {
    throw argumentError('unequal_multiplicities', 'irrepsIn2', `multiplicity ${mul} as irrepsIn1 has`, `'${in2}'`)
  }

  // Every irrep that the triangle rule allows; then those with a coefficient.
  const candidates: Irrep[] = []
  for (let l = 0; l <= in1.lmax + in2.lmax; l++) candidates.push({ l, p: -1 }, { l, p: 1 })
  const out = irrepsOut === undefined ? undefined : outputIrreps(irrepsOut, 'options.irrepsOut')
  if (out && requireSignals(out, 'options.irrepsOut') !== mul) {
    throw argumentError('unequal_multiplicities', 'options.irrepsOut', `multiplicity ${mul} as the inputs have`, `'${out}'`)
  }
  const coefficient = coefficientFor(out ?? new Irreps(candidates.map((ir) => [mul, ir])))
  const pathsInto = (ir: Irrep): Omit<Path, 'out'>[] =>
    in1.blocks.flatMap((b1, i1) =>
      in2.blocks.flatMap((b2, i2) => {
        const value = b1.mul && b2.mul && b1.ir.p * b2.ir.p === ir.p ? coefficient(b1.ir.l, b2.ir.l, ir.l) : 0
        return value === 0 ? [] : [{ in1: i1, in2: i2, l: [b1.ir.l, b2.ir.l, ir.l] as const, coefficient: value }]
      }),
    )
  const reached = out ?? new Irreps(candidates.filter((ir) => pathsInto(ir).length > 0).map((ir) => [mul, ir]))
  const paths = reached.blocks.flatMap((block, o) => {
    if (block.mul === 0) return []
    const found = pathsInto(block.ir)
    if (found.length === 0) {
      const code = irrepsOf(reached).length === 1 ? 'no_path' : 'unreachable_output'
      throw unreached(code, { argument: 'options.irrepsOut', irreps: [block.ir], ...pairsOf(in1, in2), further: rule })
    }
    return found.map((path) => ({ ...path, out: o }))
  })
  if (paths.length === 0) throw argumentError('no_path', 'irrepsIn2', `irreps that couple to some l3 with '${in1}', with ${rule}`, `'${in2}'`)
  return { in1, in2, out: reached, mul, paths }
}

/**
 * Dimension of the bilinear maps that are reached with linear layers before and after, of `rank` terms (0: no weights, which is one term that the layers scale). In
 * a channel the paths' coefficients are those of {@link dimensionOfTerms}, and each row of the layers before has a direction beside; at most there are all entries of all paths.
 */
export function expressivityOf({ in1, in2, mul, paths }: ChannelProductForm, rank: number): number {
  const rows = irrepsOf(in1).length + irrepsOf(in2).length
  return Math.min(mul * (dimensionOfTerms(paths, Math.max(rank, 1)) + (mul - 1) * rows), paths.length * mul * mul)
}

/**
 * Dimension of the tensors sum over r < terms of a_r[in1] b_r[in2] c_r[out], of which the paths are entries: the rank of the Jacobian at a random point. For one
 * term that is the rank of the incidence matrix of the paths (Xie et al. 2025, section 4): each weight scales a row of it.
 */
function dimensionOfTerms(paths: readonly Path[], terms: number): number {
  let seed = 1
  const random = () => {
    seed = (seed * 16807) % (2 ** 31 - 1)
    const u = (2 * seed) / (2 ** 31 - 1) - 1
    return u + 0.5 * Math.sign(u) // not near 0
  }
  const slots = ['in1', 'in2', 'out'] as const
  const basis: Float64Array[] = []
  for (let r = 0; r < terms && basis.length < paths.length; r++) {
    const factors = slots.map((slot) => new Map(paths.map((path) => [path[slot], random()])))
    for (const [s, slot] of slots.entries()) {
      for (const block of factors[s]!.keys()) {
        const derivative = Float64Array.from(paths, (path) => slots.reduce((product, other, o) => (o === s ? product : product * factors[o]!.get(path[other])!), path[slot] === block ? 1 : 0))
        // Of a column of the span there remain roundings, 1e-15 of it, of another one more than 1e-7 at random points.
        if (removeSpan(derivative, basis) > 1e-7) basis.push(derivative)
      }
    }
  }
  return basis.length
}

/** Subtracts the part of `v` in the span of orthonormal vectors, and normalises what is left. @returns what part of `v` that was. */
function removeSpan(v: Float64Array, basis: readonly Float64Array[]): number {
  const dot = (a: Float64Array, b: Float64Array) => {
    let sum = 0
    for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!
    return sum
  }
  const before = Math.sqrt(dot(v, v))
  for (const q of [...basis, ...basis]) {
    const part = dot(q, v)
    for (let i = 0; i < v.length; i++) v[i]! -= part * q[i]!
  }
  const left = Math.sqrt(dot(v, v))
  for (let i = 0; i < v.length; i++) v[i]! /= left
  return left / before
}

/** @throws EquitensorError `invalid_option`: native code counts them in 32 bits. */
export function factorCount({ in1, in2, out, mul }: ChannelProductForm, rank: number): number {
  const count = rank * [in1, in2, out].flatMap(irrepsOf).length * mul
  if (count >= 2 ** 31) throw argumentError('invalid_option', rank > 1 ? 'options.rank' : 'options.weights', 'less than 2^31 weights', `${count}`)
  return count
}

/**
 * How native code is to multiply without mixing parities. If some product of the inputs would reach an output with a parity other than p1 p2,
 * even and odd irreps are separate parts, and an output part receives only the products of its own parity; otherwise all is one part.
 */
export function packChannelProduct<D extends DType>(
  form: ChannelProductForm,
  couples: (l1: number, l2: number, l3: number) => boolean,
  options: ResolvedOptions<D>,
  rank: number,
): NativeChannelProduct {
  const { in1, in2, out, mul } = form
  const mixes = in1.blocks.some((b1) =>
    in2.blocks.some((b2) => out.blocks.some((b3) => b1.ir.p * b2.ir.p !== b3.ir.p && couples(b1.ir.l, b2.ir.l, b3.ir.l))),
  )
  const parities = (irreps: Irreps) => (mixes ? [...new Set(irrepsOf(irreps).map(({ p }) => p))] : [1 as const])
  const part = (p: readonly number[], ir: Irrep) => (mixes ? p.indexOf(ir.p) : 0)
  const [p1, p2, p3] = [parities(in1), parities(in2), parities(out)]
  const products = p1.flatMap((a, i) => p2.flatMap((b, j) => (mixes && !p3.includes((a * b) as 1 | -1) ? [] : [[i, j, mixes ? p3.indexOf((a * b) as 1 | -1) : 0]])))
  const channels = [in1, in2, out].map((irreps) => channelsOf(irreps, options.layout))
  const parts = ([p1, p2, p3] as const).map((p, s) => Int32Array.from(channels[s]!, ({ ir }) => part(p, ir)))
  return {
    isDouble: options.dtype === 'float64',
    dims: packDims(in1, in2, out),
    mul,
    rank,
    in1: packChannels(channels[0]!),
    in2: packChannels(channels[1]!),
    out: packChannels(channels[2]!),
    parts1: parts[0]!,
    parts2: parts[1]!,
    partsOut: parts[2]!,
    products: Int32Array.from(products.flat()),
  }
}
