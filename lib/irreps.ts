// Irreducible representations of O(3) and their direct sums, with e3nn's notation, order and semantics (e3nn/o3/_irreps.py).
import { argumentError, describe, shorten, type EquitensorError, type ErrorCode, inspectCustom } from './errors'

/** Highest degree of an input of an operation. */
export const maxInputDegree = 11
/** Highest degree of an output, and so of an `Irreps` at all. */
export const maxOutputDegree = 22

/** One irreducible representation of O(3): degree l (dimension 2l+1) and parity p (1 even, -1 odd). */
export interface Irrep {
  readonly l: number
  readonly p: 1 | -1
}

/** A block: `mul` copies of one irrep. */
export interface MulIr {
  readonly mul: number
  readonly ir: Irrep
}

/** `'e3nn'`: by (l, p), 0o, 0e, 1o, 1e. `'e3nn-jax'`: by l, the parity of the spherical harmonics first, 0e, 0o, 1o, 1e. */
export type IrrepsOrder = 'e3nn' | 'e3nn-jax'

/** An irrep, or its name: `'1o'`. */
export type IrrepLike = Irrep | string

/** What stands for an `Irreps`; in an array an irrep without multiplicity counts once, as in e3nn. */
export type IrrepsLike = Irreps | string | readonly (readonly [mul: number, ir: IrrepLike] | MulIr | IrrepLike)[]

/**
 * A direct sum of irreps of O(3), as a list of blocks; immutable. Follows `e3nn.o3.Irreps`.
 *
 * An array of these irreps has the shape (batch, dim), row-major; block i takes the columns `slices[i]`.
 */
export class Irreps implements Iterable<MulIr> {
  readonly blocks: readonly MulIr[]
  /** Sum of mul (2l+1). */
  readonly dim: number
  /** Sum of the multiplicities (e3nn's `num_irreps`). */
  readonly numIrreps: number
  /** [begin, end) of every block, in order; together they tile 0..dim. */
  readonly slices: readonly (readonly [begin: number, end: number])[]

  /**
   * @param irreps `'128x0e + 64x1o'` in e3nn's grammar (a missing multiplicity is 1, `1y` has the parity of the spherical
   * harmonics, `''` is empty), an array of `[mul, { l, p }]` or `[mul, '1o']`, or another `Irreps`.
   * @throws EquitensorError `invalid_irreps` for anything malformed, quoting the piece; `degree_limit` for l above 22.
   */
  constructor(irreps: IrrepsLike) {
    this.blocks = Object.freeze(readBlocks(irreps, 'irreps'))
    let dim = 0
    this.slices = Object.freeze(this.blocks.map((block) => Object.freeze([dim, (dim += blockDim(block))] as const)))
    this.dim = dim
    this.numIrreps = this.blocks.reduce((sum, { mul }) => sum + mul, 0)
    Object.freeze(this)
  }

  /**
   * One irrep for every l = 0..lmax, with parity p**l; follows `e3nn.o3.Irreps.spherical_harmonics`.
   * @throws EquitensorError `invalid_argument`, or `degree_limit` for lmax above 22.
   */
  static sphericalHarmonics(lmax: number, p: 1 | -1 = -1): Irreps {
    if (!Number.isInteger(lmax) || lmax < 0) {
      throw argumentError('invalid_argument', 'lmax', 'a non-negative integer', describe(lmax))
    }
    if (lmax > maxOutputDegree) throw argumentError('degree_limit', 'lmax', `at most ${maxOutputDegree}`, describe(lmax))
    if (p !== 1 && p !== -1) throw argumentError('invalid_argument', 'p', '1 or -1', describe(p))
    return new Irreps(Array.from({ length: lmax + 1 }, (_, l) => ({ l, p: l % 2 === 0 ? 1 : p })))
  }

  [Symbol.iterator](): Iterator<MulIr> {
    return this.blocks[Symbol.iterator]()
  }

  /**
   * The highest degree with a nonzero multiplicity.
   * @throws EquitensorError `invalid_irreps` if there is none, where e3nn raises a ValueError.
   */
  get lmax(): number {
    const lmax = this.blocks.reduce((max, { mul, ir }) => (mul > 0 ? Math.max(max, ir.l) : max), -1)
    if (lmax >= 0) return lmax
    throw argumentError('invalid_irreps', 'irreps', 'at least one irrep to take lmax of', describe(this.toString()))
  }

  /** e3nn's format, `128x0e+64x1o`, with every multiplicity; parses back to the same irreps. */
  toString(): string {
    return this.blocks.map(({ mul, ir }) => `${mul}x${formatIrrep(ir)}`).join('+')
  }

  toJSON(): string {
    return this.toString()
  }

  [inspectCustom](): string {
    return this.toString()
  }

  /** Whether both have the same blocks in the same order: `1x0e+1x0e` differs from `2x0e`, as in e3nn. */
  equals(other: IrrepsLike): boolean {
    return this.toString() === toIrreps(other, 'other').toString()
  }

  /** Merges adjacent blocks of the same irrep and drops zero multiplicities, without sorting; e3nn's `simplify`. */
  simplify(): Irreps {
    const merged: { mul: number; ir: Irrep }[] = []
    for (const { mul, ir } of this.blocks) {
      if (mul === 0) continue
      const last = merged.at(-1)
      if (last !== undefined && irrepKey(last.ir) === irrepKey(ir)) last.mul += mul
      else merged.push({ mul, ir })
    }
    return new Irreps(merged)
  }

  /** Sorts, then simplifies: every (l, p) occurs once; e3nn's `regroup`. */
  regroup(): Irreps {
    return this.sort().irreps.simplify()
  }

  /**
   * The blocks that a function accepts, or whose irrep occurs in `keep` (its multiplicities do not matter); e3nn's
   * `filter(keep)`.
   */
  filter(keep: ((block: MulIr) => boolean) | IrrepsLike): Irreps {
    if (typeof keep === 'function') return new Irreps(this.blocks.filter((block) => keep(block)))
    const keys = new Set(toIrreps(keep, 'keep').blocks.map(({ ir }) => irrepKey(ir)))
    return new Irreps(this.blocks.filter(({ ir }) => keys.has(irrepKey(ir))))
  }

  /**
   * The blocks in order, stably; e3nn's `sort`. `p[i]` is the new position of block i, `inv[j]` the old position of the
   * block that is now at j.
   */
  sort(options: { order?: IrrepsOrder } = {}): { irreps: Irreps; p: number[]; inv: number[] } {
    if (typeof options !== 'object' || options === null) throw argumentError('invalid_option', 'options', 'an object with order', describe(options))
    const { order = 'e3nn' } = options
    if (order !== 'e3nn' && order !== 'e3nn-jax') {
      throw argumentError('invalid_option', 'order', '"e3nn" or "e3nn-jax"', describe(order))
    }
    const sorted = this.blocks.map(({ mul, ir }, i) => ({ mul, ir, i })).sort((a, b) => compareIrreps(a.ir, b.ir, order))
    const inv = sorted.map(({ i }) => i)
    const p = new Array<number>(inv.length)
    inv.forEach((i, j) => (p[i] = j))
    return { irreps: new Irreps(sorted), p, inv }
  }
}

/** `value` as an `Irreps`; errors name `argument`. For constructors that accept either. */
export function toIrreps(value: IrrepsLike, argument: string): Irreps {
  return value instanceof Irreps ? value : new Irreps(readBlocks(value, argument))
}

/** @throws EquitensorError `degree_limit` if any block is above the degree that operations take as input. */
export function requireInputDegrees(irreps: Irreps, argument: string): void {
  const block = irreps.blocks.find(({ ir }) => ir.l > maxInputDegree)
  if (block === undefined) return
  throw argumentError(
    'degree_limit', argument, `degrees up to l = ${maxInputDegree} in an input`, `${block.mul}x${formatIrrep(block.ir)}`)
}

/** The position of an irrep in e3nn's order, 0o, 0e, 1o, 1e, ...: a key for a Map, and small enough for an array. */
export function irrepKey({ l, p }: Irrep): number {
  return 2 * l + (p === 1 ? 1 : 0)
}

/** Negative, zero or positive, for `Array.prototype.sort`. */
export function compareIrreps(a: Irrep, b: Irrep, order: IrrepsOrder = 'e3nn'): number {
  if (order === 'e3nn' || a.l !== b.l) return irrepKey(a) - irrepKey(b)
  const harmonic = a.l % 2 === 0 ? 1 : -1 // parity of the spherical harmonics of this degree
  return harmonic * (b.p - a.p)
}

/** `'1o'`. */
export function formatIrrep({ l, p }: Irrep): string {
  return `${l}${p === 1 ? 'e' : 'o'}`
}

/**
 * The irrep that `'1o'` (or `'1y'`) names; follows `e3nn.o3.Irrep`.
 * @throws EquitensorError `invalid_irreps` or `degree_limit`.
 */
export function parseIrrep(text: string, argument = 'irrep'): Irrep {
  return readIrrep(text, (code, expected = '"<l><e|o>" such as "1o"') =>
    argumentError(code, argument, expected, describe(text)))
}

/** The irreps in the product of two, l = |l1-l2|..l1+l2 with parity p1 p2; follows `e3nn.o3.Irrep.__mul__`. */
export function multiplyIrreps(ir1: Irrep, ir2: Irrep): Irrep[] {
  const lmin = Math.abs(ir1.l - ir2.l)
  const p = ir1.p === ir2.p ? 1 : -1
  return Array.from({ length: ir1.l + ir2.l - lmin + 1 }, (_, i) => ({ l: lmin + i, p }))
}

function blockDim({ mul, ir }: MulIr): number {
  return mul * (2 * ir.l + 1)
}

// The error for the piece being read; without an expectation, that it does not follow the grammar.
type Fail = (code: ErrorCode, expected?: string) => EquitensorError

// Every caller may be plain JavaScript, so values are `unknown` until they have been looked at.
function readBlocks(value: unknown, argument: string): MulIr[] {
  let blocks: readonly MulIr[]
  if (value instanceof Irreps) blocks = value.blocks
  else if (typeof value === 'string') blocks = value.trim() === '' ? [] : value.split('+').map(readPiece)
  else if (Array.isArray(value)) blocks = Array.from(value, readElement)
  else throw argumentError('invalid_irreps', argument, 'an Irreps, a string or an array of [mul, irrep]', describe(value))

  // Lengths and offsets are computed from dim in doubles, so it has to be exact.
  if (!Number.isSafeInteger(blocks.reduce((dim, block) => dim + blockDim(block), 0))) {
    throw argumentError('invalid_irreps', argument, `a dimension up to ${Number.MAX_SAFE_INTEGER}`, describe(value))
  }
  return [...blocks]

  function readPiece(piece: string): MulIr {
    piece = piece.trim()
    const context = piece === (value as string).trim() ? '' : ` (in ${JSON.stringify(shorten(value as string, 30))})`
    const fail: Fail = (code, expected = '"<mul>x<l><e|o>" such as "16x1o"') =>
      argumentError(code, argument, expected, JSON.stringify(shorten(piece, 20)) + context)
    const [mul, ir, ...rest] = piece.includes('x') ? piece.split('x') : ['1', piece]
    if (!/^\s*\d+\s*$/.test(mul!) || rest.length > 0) throw fail('invalid_irreps')
    return readBlock(Number(mul), ir, fail)
  }

  function readElement(element: unknown): MulIr {
    const fail: Fail = (code, expected = '[mul, irrep] such as [16, "1o"] or [16, { l: 1, p: -1 }]') =>
      argumentError(code, argument, expected, describe(element))
    if (Array.isArray(element)) {
      if (element.length !== 2) throw fail('invalid_irreps')
      return readBlock(element[0], element[1], fail)
    }
    const block = element as Partial<MulIr> | null | undefined
    return block?.ir === undefined ? readBlock(1, element, fail) : readBlock(block.mul, block.ir, fail)
  }
}

function readBlock(mul: unknown, ir: unknown, fail: Fail): MulIr {
  if (typeof mul !== 'number' || !(mul >= 0)) throw fail('invalid_irreps')
  if (mul > Number.MAX_SAFE_INTEGER) throw fail('invalid_irreps', `a multiplicity up to ${Number.MAX_SAFE_INTEGER}`)
  if (!Number.isInteger(mul)) throw fail('invalid_irreps')
  return Object.freeze({ mul, ir: readIrrep(ir, fail) })
}

function readIrrep(value: unknown, fail: Fail): Irrep {
  let { l, p } = (value ?? {}) as { l?: unknown; p?: unknown }
  if (typeof value === 'string') {
    const match = /^\s*(\d+)\s*([eoy])\s*$/.exec(value)
    if (match === null) throw fail('invalid_irreps')
    l = Number(match[1])
    p = match[2] === 'e' || (match[2] === 'y' && (l as number) % 2 === 0) ? 1 : -1
  }
  if (typeof l !== 'number' || !(l >= 0) || (p !== 1 && p !== -1)) throw fail('invalid_irreps')
  if (l > maxOutputDegree) throw fail('degree_limit', `a degree up to l = ${maxOutputDegree}`)
  if (!Number.isInteger(l)) throw fail('invalid_irreps')
  return Object.freeze({ l, p })
}
