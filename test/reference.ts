// Every operation as a sum over its nonzero coefficients in float64: z[k] += c x[i] y[j], for any multiplicities, layout and unsimplified blocks,
// from Wigner 3j symbols and nothing else of the package.
import { matrixBlockPath, wigner6j } from '../bench/reference'
import {
  ClebschGordanTensorProduct, GauntTensorProduct, Irreps, MatrixTensorProduct, wigner3j, type DType, type Instruction, type Irrep, type Layout, type TensorProduct,
} from '../lib/index'
import { blockError, places, random, randomArray, type Numbers } from './support'

export type AnyProduct = TensorProduct<any>

/** Positions in rows of the three arrays, and coefficients. */
export interface Terms {
  irrepsIn1: Irreps
  irrepsIn2: Irreps
  irrepsOut: Irreps
  i: number[]
  j: number[]
  k: number[]
  c: number[]
}

const symbols = new Map<string, { m: [number, number, number]; value: number }[]>()
function nonzeros(l1: number, l2: number, l3: number) {
  const key = `${l1},${l2},${l3}`
  let found = symbols.get(key)
  if (!found) {
    symbols.set(key, (found = []))
    const d2 = 2 * l2 + 1, d3 = 2 * l3 + 1
    wigner3j(l1, l2, l3).forEach((value, n) => {
      // Rounding leaves at most 1e-16 of a zero; the smallest coefficient that is none is 1e-7 (bench/reference.ts).
      if (Math.abs(value) > 1e-12) found!.push({ m: [Math.floor(n / (d2 * d3)), Math.floor(n / d3) % d2, n % d3], value })
    })
  }
  return found
}

type Coefficient = (l1: number, l2: number, l3: number) => number
const size = (l: number) => 2 * l + 1
const parity = (p: number) => (p === 1 ? 'e' : 'o')
const triangle = (a: number, b: number, c: number) => c >= Math.abs(a - b) && c <= a + b

export const component: Coefficient = (_l1, _l2, l3) => Math.sqrt(size(l3))
export const norm: Coefficient = (l1, l2) => Math.sqrt(size(l1) * size(l2))
/** sqrt(d1 d2 d3) |3j(l1 l2 l3; 0 0 0)|, whose m = 0 stands in the middle of the real symbol too. */
export const gaunt: Coefficient = (l1, l2, l3) => {
  if ((l1 + l2 + l3) % 2 || !triangle(l1, l2, l3)) return 0
  return Math.sqrt(size(l1) * size(l2) * size(l3)) * Math.abs(wigner3j(l1, l2, l3)[(l1 * size(l2) + l2) * size(l3) + l3]!)
}
export const matrix = (k: number): Coefficient => (l1, l2, l3) => {
  const value = (l3 % 2 ? -1 : 1) * wigner6j(l1, l2, l3, k, k, k)
  return Math.abs(value) < 1e-14 ? 0 : value // accidental zeros of the 6j symbol, less a rounding error
}

/** Of the block form with 'norm' coefficients. A few hundred 6j each, so they are remembered. */
const blockPaths = new Map<string, number>()
export const matrixBlock = (k: number): Coefficient => (l1, l2, l3) => {
  const key = `${k},${l1},${l2},${l3}`
  if (!blockPaths.has(key)) blockPaths.set(key, triangle(l1, l2, l3) ? matrixBlockPath(l1, l2, l3, k) : 0)
  return blockPaths.get(key)!
}

/** A channel of an array: where its components are, and the block of the simplified irreps that it is in. */
interface Channel {
  ir: Irrep
  at: number[]
  block: number
}
function channelsOf(irreps: Irreps, layout: Layout): Channel[] {
  const all = places(irreps, layout).flatMap((channels, b) => channels.map((at) => ({ ir: irreps.blocks[b]!.ir, at })))
  let block = 0
  return all.map(({ ir, at }, n) => {
    const before = all[n - 1]
    if (before && (before.ir.l !== ir.l || before.ir.p !== ir.p)) block++
    return { ir, at, block }
  })
}

function add(terms: Terms, in1: Channel, in2: Channel, out: number[], l3: number, coefficient: number) {
  for (const { m, value } of nonzeros(in1.ir.l, in2.ir.l, l3)) {
    terms.i.push(in1.at[m[0]]!)
    terms.j.push(in2.at[m[1]]!)
    terms.k.push(out[m[2]]!)
    terms.c.push(coefficient * value)
  }
}

/** Output blocks with the channels that fill them, from the definition in e3nn's documentation. */
function blockwise(in1: Irreps, in2: Irreps, layout: Layout, pairs: [Channel, Channel][][], sorted: boolean, coefficient: Coefficient, filter?: Irreps): Terms {
  const kept = (l: number, p: number) => !filter || filter.blocks.some(({ ir }) => ir.l === l && ir.p === p)
  const blocks = pairs.flatMap((channels) => {
    const [a, b] = channels[0]!
    const found: { l: number; p: 1 | -1; channels: [Channel, Channel][] }[] = []
    const p = (a.ir.p * b.ir.p) as 1 | -1
    for (let l = Math.abs(a.ir.l - b.ir.l); l <= a.ir.l + b.ir.l; l++) if (kept(l, p)) found.push({ l, p, channels })
    return found
  })
  if (sorted) blocks.sort((a, b) => a.l - b.l || a.p - b.p)
  const irrepsOut = new Irreps(blocks.map(({ l, p, channels }) => `${channels.length}x${l}${parity(p)}`).join('+'))
  const terms: Terms = { irrepsIn1: in1, irrepsIn2: in2, irrepsOut, i: [], j: [], k: [], c: [] }
  const outs = places(irrepsOut, layout)
  blocks.forEach(({ l, channels }, b) =>
    channels.forEach(([x, y], u) => add(terms, x, y, outs[b]![u]!, l, coefficient(x.ir.l, y.ir.l, l))),
  )
  return terms
}

const grouped = <T>(items: T[], key: (item: T) => string | number): T[][] => {
  const groups = new Map<string | number, T[]>()
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item])
  return [...groups.values()]
}

export function fullTerms(in1: Irreps, in2: Irreps, layout: Layout, filter?: Irreps, coefficient = component): Terms {
  const first = grouped(channelsOf(in1, layout), (c) => c.block), second = grouped(channelsOf(in2, layout), (c) => c.block)
  const pairs = first.flatMap((us) => second.map((vs) => us.flatMap((u) => vs.map((v): [Channel, Channel] => [u, v]))))
  return blockwise(in1, in2, layout, pairs, true, coefficient, filter)
}

export function elementwiseTerms(in1: Irreps, in2: Irreps, layout: Layout, filter?: Irreps, coefficient = component): Terms {
  const second = channelsOf(in2, layout)
  const pairs = channelsOf(in1, layout).map((c, u): [Channel, Channel] => [c, second[u]!])
  return blockwise(in1, in2, layout, grouped(pairs, ([a, b]) => `${a.block},${b.block}`), false, coefficient, filter)
}

/** e3nn's TensorSquare as a product of x with itself: of two blocks everything, of one the channels u < v and then each with itself. */
export function squareTerms(irreps: Irreps, layout: Layout, filter?: Irreps, normalization: 'component' | 'norm' | 'none' = 'component'): Terms {
  const own: Record<string, (l: number, l3: number) => number> = {
    component: (l, l3) => Math.sqrt(l3 === 0 ? 1 / (size(l) + 2) : size(l3) / 2),
    norm: (l, l3) => Math.sqrt(l3 === 0 ? size(l) : (size(l) * (size(l) + 2)) / 2),
    none: () => 1,
  }
  const different = { component, norm, none: () => 1 }[normalization]
  const first = grouped(channelsOf(irreps, layout), (c) => c.block)
  const found: { l: number; p: number; pairs: [Channel, Channel][]; coefficient: number }[] = []
  first.forEach((us, i1) => first.forEach((vs, i2) => {
    const a = us[0]!.ir, b = vs[0]!.ir, p = a.p * b.p
    for (let l = Math.abs(a.l - b.l); l <= a.l + b.l && i1 <= i2; l++) {
      if (filter && !filter.blocks.some(({ ir }) => ir.l === l && ir.p === p)) continue
      const pairs = us.flatMap((u, n) => (i1 < i2 ? vs : vs.slice(n + 1)).map((v): [Channel, Channel] => [u, v]))
      if (pairs.length > 0) found.push({ l, p, pairs, coefficient: different(a.l, b.l, l) })
      if (i1 === i2 && l % 2 === 0) found.push({ l, p, pairs: us.map((u) => [u, u]), coefficient: own[normalization]!(a.l, l) })
    }
  }))
  found.sort((a, b) => a.l - b.l || a.p - b.p)
  const irrepsOut = new Irreps(found.map(({ l, p, pairs }) => `${pairs.length}x${l}${parity(p)}`).join('+'))
  const terms: Terms = { irrepsIn1: irreps, irrepsIn2: irreps, irrepsOut, i: [], j: [], k: [], c: [] }
  const outs = places(irrepsOut, layout)
  found.forEach(({ l, pairs, coefficient }, b) => pairs.forEach(([u, v], n) => add(terms, u, v, outs[b]![n]!, l, coefficient)))
  return terms
}

/** Channel u with channel u, all paths of one parity summed; without `out`, into everything that can be reached. */
export function summedTerms(in1: Irreps, in2: Irreps, layout: Layout, coefficient: Coefficient, out?: Irreps): Terms {
  const mul = in1.blocks[0]!.mul
  const reached: string[] = []
  for (let l = 0; l <= in1.lmax + in2.lmax; l++)
    for (const p of [-1, 1])
      if (in1.blocks.some((a) => in2.blocks.some((b) => a.ir.p * b.ir.p === p && triangle(a.ir.l, b.ir.l, l) && coefficient(a.ir.l, b.ir.l, l) !== 0)))
        reached.push(`${mul}x${l}${parity(p)}`)
  const irrepsOut = out ?? new Irreps(reached.join('+'))
  const terms: Terms = { irrepsIn1: in1, irrepsIn2: in2, irrepsOut, i: [], j: [], k: [], c: [] }
  const [first, second, outs] = [in1, in2, irrepsOut].map((irreps) => places(irreps, layout)) as [number[][][], number[][][], number[][][]]
  in1.blocks.forEach((a, b1) => in2.blocks.forEach((b, b2) => irrepsOut.blocks.forEach((c, b3) => {
    if (a.ir.p * b.ir.p !== c.ir.p || !triangle(a.ir.l, b.ir.l, c.ir.l)) return
    const value = coefficient(a.ir.l, b.ir.l, c.ir.l)
    for (let u = 0; value !== 0 && u < mul; u++)
      add(terms, { ...a, at: first[b1]![u]!, block: 0 }, { ...b, at: second[b2]![u]!, block: 0 }, outs[b3]![u]!, c.ir.l, value)
  })))
  return terms
}

/** Batches as the operation takes them: an operand of one item is shared. */
function batchOf(terms: Terms, x: Numbers, y: Numbers): { batch: number; xStep: number; yStep: number } {
  const n1 = terms.irrepsIn1.dim, n2 = terms.irrepsIn2.dim
  const xBatch = x.length / n1, yBatch = y.length / n2
  const batch = xBatch === 1 ? yBatch : xBatch
  return { batch, xStep: xBatch === batch ? n1 : 0, yStep: yBatch === batch ? n2 : 0 }
}

export function forward(terms: Terms, x: Numbers, y: Numbers): Float64Array {
  const { i, j, k, c } = terms
  const { batch, xStep, yStep } = batchOf(terms, x, y)
  const z = new Float64Array(batch * terms.irrepsOut.dim)
  for (let b = 0, a = 0, e = 0, o = 0; b < batch; b++, a += xStep, e += yStep, o += terms.irrepsOut.dim)
    for (let n = 0; n < c.length; n++) z[o + k[n]!]! += c[n]! * x[a + i[n]!]! * y[e + j[n]!]!
  return z
}

export function backward(terms: Terms, x: Numbers, y: Numbers, z: Numbers): { x: Float64Array; y: Float64Array } {
  const { i, j, k, c } = terms
  const { batch, xStep, yStep } = batchOf(terms, x, y)
  const gradient = { x: new Float64Array(x.length), y: new Float64Array(y.length) }
  for (let b = 0, a = 0, e = 0, o = 0; b < batch; b++, a += xStep, e += yStep, o += terms.irrepsOut.dim) {
    for (let n = 0; n < c.length; n++) {
      const t = c[n]! * z[o + k[n]!]!
      gradient.x[a + i[n]!]! += t * y[e + j[n]!]!
      gradient.y[e + j[n]!]! += t * x[a + i[n]!]!
    }
  }
  return gradient
}

/** Terms with the index of a weight, -1 for none. */
export interface WeightedTerms extends Terms {
  w: number[]
  weightNumel: number
}

const upper = (mul: number) => Array.from({ length: mul }, (_, u) => Array.from({ length: mul - 1 - u }, (_, n): [number, number] => [u, u + 1 + n])).flat()
const range = (n: number) => Array.from({ length: n }, (_, i) => i)
/** [u, v, channel of the output, index of the weight] of an instruction, as the einsum of e3nn's codegen has them. */
export function connected(mode: Instruction['mode'], m1: number, m2: number, m3: number): [u: number, v: number, out: number, weight: number][] {
  const every = range(m1).flatMap((u) => range(m2).map((v) => [u, v] as const))
  switch (mode) {
    case 'uvw': return every.flatMap(([u, v]) => range(m3).map((w) => [u, v, w, (u * m2 + v) * m3 + w]))
    case 'uvu': return every.map(([u, v]) => [u, v, u, u * m2 + v])
    case 'uvv': return every.map(([u, v]) => [u, v, v, u * m2 + v])
    case 'uvuv': return every.map(([u, v]) => [u, v, u * m2 + v, u * m2 + v])
    case 'uuw': return range(m1).flatMap((u) => range(m3).map((w) => [u, u, w, u * m3 + w]))
    case 'uuu': return range(m1).map((u) => [u, u, u, u])
    case 'uvu<v': return upper(m1).map(([u, v], q) => [u, v, q, q])
    case 'u<vw': return upper(m1).flatMap(([u, v], q) => range(m3).map((w) => [u, v, w, q * m3 + w]))
  }
}

/** e3nn's TensorProduct with the final coefficient of each instruction. */
export function instructionTerms(irreps: [Irreps, Irreps, Irreps], layout: Layout, instructions: readonly Instruction[], coefficients: readonly number[]): WeightedTerms {
  const [in1, in2, out] = irreps
  const terms: WeightedTerms = { irrepsIn1: in1, irrepsIn2: in2, irrepsOut: out, i: [], j: [], k: [], c: [], w: [], weightNumel: 0 }
  const [first, second, outs] = irreps.map((r) => places(r, layout)) as [number[][][], number[][][], number[][][]]
  instructions.forEach((instruction, n) => {
    const [b1, b2, b3] = [in1.blocks[instruction.in1]!, in2.blocks[instruction.in2]!, out.blocks[instruction.out]!]
    const all = connected(instruction.mode, b1.mul, b2.mul, b3.mul)
    for (const [u, v, w, weight] of all) {
      const x = { ir: b1.ir, at: first[instruction.in1]![u]!, block: 0 }, y = { ir: b2.ir, at: second[instruction.in2]![v]!, block: 0 }
      add(terms, x, y, outs[instruction.out]![w]!, b3.ir.l, coefficients[n]!)
      while (terms.w.length < terms.c.length) terms.w.push(instruction.hasWeight ? terms.weightNumel + weight : -1)
    }
    if (instruction.hasWeight) terms.weightNumel += new Set(all.map(([, , , weight]) => weight)).size
  })
  return terms
}

export interface WeightedArrays {
  x: Numbers
  y: Numbers
  w: Numbers
  z: Numbers
}
/** The form with one slot left open, in the shape of `like`; what has one row for several items is shared. `unweighted`: of terms without a weight. */
function open(terms: WeightedTerms, slot: keyof WeightedArrays, arrays: WeightedArrays, batch: number, unweighted: 0 | 1): Float64Array {
  const dims = { x: terms.irrepsIn1.dim, y: terms.irrepsIn2.dim, w: terms.weightNumel, z: terms.irrepsOut.dim }
  const step = (name: keyof WeightedArrays) => (arrays[name].length === batch * dims[name] ? dims[name] : 0)
  const [sx, sy, sw, sz] = [step('x'), step('y'), step('w'), step('z')]
  const { x, y, w, z } = arrays, result = new Float64Array(arrays[slot].length)
  for (let b = 0; b < batch; b++) {
    for (let n = 0; n < terms.c.length; n++) {
      const i = b * sx + terms.i[n]!, j = b * sy + terms.j[n]!, k = b * sz + terms.k[n]!, m = b * sw + terms.w[n]!
      const weight = terms.w[n]! < 0 ? unweighted : w[m]!, c = terms.c[n]!
      if (slot === 'x') result[i]! += c * weight * y[j]! * z[k]!
      else if (slot === 'y') result[j]! += c * weight * x[i]! * z[k]!
      else if (slot === 'z') result[k]! += c * weight * x[i]! * y[j]!
      else if (terms.w[n]! >= 0) result[m]! += c * x[i]! * y[j]! * z[k]!
    }
  }
  return result
}

/** Results of every pass, and of the double backward and the jvp in the directions `a`, of which a missing one is zero. */
export function weightedPasses(terms: WeightedTerms, arrays: WeightedArrays, batch: number, a: Partial<WeightedArrays> = {}) {
  const slots = ['x', 'y', 'w', 'z'] as const
  const form = (slot: keyof WeightedArrays, changed: Partial<WeightedArrays> = {}) => open(terms, slot, { ...arrays, ...changed }, batch, changed.w ? 0 : 1)
  const second = (slot: keyof WeightedArrays) => {
    const sum = new Float64Array(arrays[slot].length)
    for (const name of ['x', 'y', 'w'] as const) if (name !== slot && a[name]) form(slot, { [name]: a[name] }).forEach((v, i) => (sum[i]! += v))
    return sum
  }
  const all = (of: (slot: keyof WeightedArrays) => Float64Array) => Object.fromEntries(slots.map((slot) => [slot, of(slot)])) as Record<keyof WeightedArrays, Float64Array>
  return { first: all((slot) => form(slot)), second: all(second) }
}

type Make = (in1: Irreps | string, in2: Irreps | string, options?: any) => AnyProduct
/** Every operation and algorithm by name, with what it must compute. `channelwise` ones want all multiplicities equal and no irrep twice. */
export const products: readonly { name: string; channelwise: boolean; make: Make; terms(in1: Irreps, in2: Irreps, layout: Layout): Terms }[] = [
  ...(['sparse', 'dense'] as const).flatMap((algorithm) => [
    {
      name: `CGTP full, ${algorithm}`,
      channelwise: false,
      make: ((in1, in2, options) => ClebschGordanTensorProduct.full(in1, in2, { algorithm, ...options })) as Make,
      terms: (in1: Irreps, in2: Irreps, layout: Layout) => fullTerms(in1, in2, layout),
    },
    {
      name: `CGTP elementwise, ${algorithm}`,
      channelwise: false,
      make: ((in1, in2, options) => ClebschGordanTensorProduct.elementwise(in1, in2, { algorithm, ...options })) as Make,
      terms: (in1: Irreps, in2: Irreps, layout: Layout) => elementwiseTerms(in1, in2, layout),
    },
  ]),
  ...(['values', 'coefficients'] as const).map((ring) => ({
    name: `GTP grid, rings by ${ring}`,
    channelwise: true,
    make: ((in1, in2, options) => new GauntTensorProduct(in1, in2, options, { ring })) as Make,
    terms: (in1: Irreps, in2: Irreps, layout: Layout) => summedTerms(in1, in2, layout, gaunt),
  })),
  ...(['direct', 'fft'] as const).map((convolution) => ({
    name: `GTP fourier, ${convolution}`,
    channelwise: true,
    make: ((in1, in2, options) => new GauntTensorProduct(in1, in2, options, { convolution })) as Make,
    terms: (in1: Irreps, in2: Irreps, layout: Layout) => summedTerms(in1, in2, layout, gaunt),
  })),
  {
    name: 'MTP single',
    channelwise: true,
    make: (in1, in2, options) => new MatrixTensorProduct(in1, in2, options),
    terms: (in1, in2, layout) => summedTerms(in1, in2, layout, matrix(Math.ceil((in1.lmax + in2.lmax) / 2))),
  },
  {
    name: 'MTP block',
    channelwise: true,
    make: (in1, in2, options) => new MatrixTensorProduct(in1, in2, { form: 'block', ...options }),
    terms: (in1, in2, layout) => summedTerms(in1, in2, layout, matrixBlock(Math.ceil((in1.lmax + in2.lmax) / 2))),
  },
]

/** The largest errors of a product on a random batch against its terms: of the result, and of the gradients of x and y. */
export function productErrors(op: any, terms: Terms, dtype: DType, batch: number): number[] {
  const x = randomArray(dtype, terms.irrepsIn1.dim * batch, random(1)), y = randomArray(dtype, terms.irrepsIn2.dim * batch, random(2))
  const v = randomArray(dtype, terms.irrepsOut.dim * batch, random(3))
  const actual = op.backward(x, y, undefined, v), expected = backward(terms, x, y, v)
  return [
    blockError(op.forward(x, y), forward(terms, x, y), terms.irrepsOut),
    blockError(actual.x, expected.x, terms.irrepsIn1),
    blockError(actual.y, expected.y, terms.irrepsIn2),
  ]
}
