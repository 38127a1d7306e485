// The reference that every timed kernel is checked against: the operation's definition, written out over all nonzero
// coefficients in float64, from Wigner 3j symbols and nothing else of the package.
import { wigner3j, type Irreps } from '../lib/index'
import { matrixBlockDegree, matrixDegree } from './models'
import type { Pass, Slot, Term } from './passes'
import type { Layout, Numbers, ProblemIrreps } from './problems'

type Irrep = { l: number; p: number }
type Path = readonly [l1: number, l2: number, l3: number]

/** z[k] += c x[i] y[j] over all entries, with z one irrep after the other. Multiplicities are 1. */
export interface Form {
  i: Int32Array
  j: Int32Array
  k: Int32Array
  c: Float64Array
  paths: readonly Path[]
  /** Distinct pairs (i, j). */
  outerProducts: number
  in1: readonly Irrep[]
  in2: readonly Irrep[]
  out: readonly Irrep[]
}

const dim = ({ l }: Irrep) => 2 * l + 1
const dimOf = (irreps: readonly Irrep[]) => irreps.reduce((sum, ir) => sum + dim(ir), 0)
const offsets = (irreps: readonly Irrep[]) => irreps.map((_, n) => dimOf(irreps.slice(0, n)))

export const slotDims = (form: Form): Record<Slot, number> => ({ x: dimOf(form.in1), y: dimOf(form.in2), z: dimOf(form.out) })

function listed(irreps: Irreps): Irrep[] {
  return [...irreps].map(({ mul, ir }) => {
    if (mul !== 1) throw new Error(`the reference takes multiplicity 1, not ${mul}x${ir.l}`)
    return { l: ir.l, p: ir.p }
  })
}

const known = new Map<string, Float64Array>()
function coefficients(l1: number, l2: number, l3: number): Float64Array {
  const key = `${l1},${l2},${l3}`
  let table = known.get(key)
  if (!table) known.set(key, (table = wigner3j(l1, l2, l3)))
  return table
}

// For every l to 11, 11, 22 rounding leaves zeros below 1e-16, and the smallest coefficient that is none is 1e-7.
const zero = 1e-12

export function wigner3jNonzeros(l1: number, l2: number, l3: number): number {
  return coefficients(l1, l2, l3).reduce((count, c) => count + (Math.abs(c) > zero ? 1 : 0), 0)
}

/** 3j(l1 l2 l3; 0 0 0): in the real basis too m = 0 stands alone, so that it is the middle coefficient but for its sign. */
function absolute3j000(l1: number, l2: number, l3: number): number {
  return (l1 + l2 + l3) % 2 ? 0 : Math.abs(coefficients(l1, l2, l3)[(l1 * (2 * l2 + 1) + l2) * (2 * l3 + 1) + l3]!)
}

const factorials = [1]
for (let n = 1; n <= 170; n++) factorials.push(factorials[n - 1]! * n)
const factorial = (n: number) => factorials[n]!

function triangle(a: number, b: number, c: number): number {
  return (factorial(a + b - c) * factorial(a - b + c) * factorial(-a + b + c)) / factorial(a + b + c + 1)
}

/** {a b c; d e f} of integers, by Racah's formula. */
export function wigner6j(a: number, b: number, c: number, d: number, e: number, f: number): number {
  const triads = [[a, b, c], [a, e, f], [d, b, f], [d, e, c]] as const
  if (triads.some(([p, q, r]) => r < Math.abs(p - q) || r > p + q)) return 0
  const sums = triads.map(([p, q, r]) => p + q + r)
  const pairs = [a + b + d + e, b + c + e + f, c + a + f + d]
  let total = 0
  for (let t = Math.max(...sums); t <= Math.min(...pairs); t++) {
    let denominator = 1
    for (const s of sums) denominator *= factorial(t - s)
    for (const s of pairs) denominator *= factorial(s - t)
    total += ((t % 2 ? -1 : 1) * factorial(t + 1)) / denominator
  }
  return total * Math.sqrt(triads.reduce((product, [p, q, r]) => product * triangle(p, q, r), 1))
}

interface PlannedPath {
  n1: number
  n2: number
  n3: number
  coefficient: number
}

function build(in1: Irrep[], in2: Irrep[], out: Irrep[], planned: PlannedPath[]): Form {
  const entries = { i: [] as number[], j: [] as number[], k: [] as number[], c: [] as number[] }
  const [starts1, starts2, starts3] = [offsets(in1), offsets(in2), offsets(out)]
  const paths: Path[] = []
  const pairs = new Set<number>()
  for (const { n1, n2, n3, coefficient } of planned) {
    if (Math.abs(coefficient) < zero) continue
    const [a, b, c] = [in1[n1]!, in2[n2]!, out[n3]!]
    paths.push([a.l, b.l, c.l])
    const table = coefficients(a.l, b.l, c.l)
    table.forEach((value, index) => {
      if (Math.abs(value) < zero) return
      const i = starts1[n1]! + Math.floor(index / (dim(b) * dim(c)))
      const j = starts2[n2]! + (Math.floor(index / dim(c)) % dim(b))
      entries.i.push(i)
      entries.j.push(j)
      entries.k.push(starts3[n3]! + (index % dim(c)))
      entries.c.push(coefficient * value)
      pairs.add(i * 65536 + j)
    })
  }
  return {
    i: Int32Array.from(entries.i),
    j: Int32Array.from(entries.j),
    k: Int32Array.from(entries.k),
    c: Float64Array.from(entries.c),
    paths,
    outerProducts: pairs.size,
    in1,
    in2,
    out,
  }
}

const couples = (a: Irrep, b: Irrep, c: Irrep) => c.l >= Math.abs(a.l - b.l) && c.l <= a.l + b.l && c.p === a.p * b.p

/**
 * e3nn's FullTensorProduct: a block a path, sqrt(2 l3 + 1) times 3j; blocks by (l3, p), odd first, then in order of the
 * inputs.
 */
export function clebschGordanForm(irreps: ProblemIrreps): Form {
  const [in1, in2, wanted] = [listed(irreps.in1), listed(irreps.in2), listed(irreps.out)]
  const blocks: { n1: number; n2: number; ir: Irrep }[] = []
  in1.forEach((a, n1) => in2.forEach((b, n2) => wanted.forEach((ir) => couples(a, b, ir) && blocks.push({ n1, n2, ir }))))
  blocks.sort((a, b) => a.ir.l - b.ir.l || a.ir.p - b.ir.p) // stable
  const planned = blocks.map(({ n1, n2, ir }, n3) => ({ n1, n2, n3, coefficient: Math.sqrt(2 * ir.l + 1) }))
  return build(in1, in2, blocks.map(({ ir }) => ir), planned)
}

/** Operations whose paths are summed into one block an output irrep. */
function summedForm(irreps: ProblemIrreps, coefficient: (a: Irrep, b: Irrep, c: Irrep) => number): Form {
  const [in1, in2, out] = [listed(irreps.in1), listed(irreps.in2), listed(irreps.out)]
  const planned: PlannedPath[] = []
  in1.forEach((a, n1) => in2.forEach((b, n2) => out.forEach((c, n3) => {
    if (couples(a, b, c)) planned.push({ n1, n2, n3, coefficient: coefficient(a, b, c) })
  })))
  return build(in1, in2, out, planned)
}

export function gauntForm(irreps: ProblemIrreps): Form {
  return summedForm(irreps, (a, b, c) => Math.sqrt(dim(a) * dim(b) * dim(c)) * absolute3j000(a.l, b.l, c.l))
}

export function matrixForm(irreps: ProblemIrreps): Form {
  const k = matrixDegree(irreps)
  return summedForm(irreps, (a, b, c) => (c.l % 2 ? -1 : 1) * wigner6j(a.l, b.l, c.l, k, k, k))
}

/** Of matrices over the irreps 0 .. k with 'norm' coefficients: three 3j summed over k1, k2, k3, which are a 6j. */
export function matrixBlockPath(l1: number, l2: number, l3: number, k: number): number {
  let sum = 0
  for (let k1 = 0; k1 <= k; k1++)
    for (let k2 = 0; k2 <= k; k2++)
      for (let k3 = 0; k3 <= k; k3++) {
        const sign = (k1 + k3 + l3) % 2 ? -1 : 1
        sum += sign * (2 * k1 + 1) * (2 * k2 + 1) * (2 * k3 + 1) * wigner6j(l1, l2, l3, k3, k1, k2)
      }
  return sum
}

export function matrixBlockForm(irreps: ProblemIrreps): Form {
  const k = matrixBlockDegree(irreps)
  return summedForm(irreps, (a, b, c) => matrixBlockPath(a.l, b.l, c.l, k))
}

/**
 * Where component m of the n-th irrep of the form lies in an array of these irreps: the same order, but neighbours that
 * the operation has put into one block of multiplicity > 1 are interleaved in layout ir_mul.
 */
export function positions(irreps: Irreps, layout: Layout): Int32Array[] {
  const list: Int32Array[] = []
  let start = 0
  for (const { mul, ir } of irreps) {
    const d = 2 * ir.l + 1
    for (let u = 0; u < mul; u++)
      list.push(Int32Array.from({ length: d }, (_, m) => start + (layout === 'mul_ir' ? u * d + m : m * mul + u)))
    start += mul * d
  }
  return list
}

function accumulate(form: Form, term: Term, arrays: Record<string, Float64Array>): void {
  const { i, j, k, c } = form
  const into = arrays[term.into]!
  const [x, y, z] = [term.x, term.y, term.z].map((name) => (name === undefined ? undefined : arrays[name]!))
  for (let n = 0; n < c.length; n++) {
    if (!z) into[k[n]!]! += c[n]! * x![i[n]!]! * y![j[n]!]!
    else if (!y) into[j[n]!]! += c[n]! * x![i[n]!]! * z[k[n]!]!
    else into[i[n]!]! += c[n]! * y[j[n]!]! * z[k[n]!]!
  }
}

export interface CheckInput {
  form: Form
  pass: Pass
  arrays: Record<string, Numbers>
  irreps: Record<Slot, Irreps>
  layout: Layout
  items: readonly number[]
}

/** The largest error among these items, relative to the largest reference value of its block; NaN counts as infinite. */
export function largestError({ form, pass, arrays, irreps, layout, items }: CheckInput): number {
  const places = { x: positions(irreps.x, layout), y: positions(irreps.y, layout), z: positions(irreps.z, layout) }
  const dims = slotDims(form)
  const blocks = Object.entries(pass.writes).flatMap(([name, slot]) => places[slot].map((place, n) => ({ name, slot, place, n })))
  const largest = new Float64Array(blocks.length)
  const error = new Float64Array(blocks.length)
  const starts = { x: offsets(form.in1), y: offsets(form.in2), z: offsets(form.out) }
  for (const item of items) {
    const values: Record<string, Float64Array> = {}
    for (const [name, slot] of Object.entries(pass.reads)) {
      const flat = places[slot].flatMap((place) => [...place])
      values[name] = Float64Array.from(flat, (place) => arrays[name]![item * dims[slot] + place]!)
    }
    for (const [name, slot] of Object.entries(pass.writes)) values[name] = new Float64Array(dims[slot])
    for (const term of pass.terms) accumulate(form, term, values)
    blocks.forEach(({ name, slot, place, n }, block) => {
      place.forEach((position, m) => {
        const expected = values[name]![starts[slot][n]! + m]!
        const difference = Math.abs(arrays[name]![item * dims[slot] + position]! - expected)
        largest[block] = Math.max(largest[block]!, Math.abs(expected))
        error[block] = Math.max(error[block]!, difference)
      })
    })
  }
  let worst = 0
  error.forEach((e, block) => {
    const relative = e === 0 ? 0 : e / largest[block]!
    worst = Math.max(worst, Number.isNaN(relative) ? Infinity : relative)
  })
  return worst
}
