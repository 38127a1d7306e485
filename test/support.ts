// What the tests share. No vitest in here: child processes use it too.
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { wignerD, type ArrayOf, type DType, type Irreps, type Layout } from '../lib/index'

export type Numbers = Float32Array | Float64Array

/** Bars of the project, relative to the largest reference value of a block (see `blockError`): some thousand roundings of each dtype. */
export const tolerance = { float64: 1e-12, float32: 1e-5 } as const
export const dtypes = ['float64', 'float32'] as const
export const layouts = ['mul_ir', 'ir_mul'] as const
export const constructors = { float32: Float32Array, float64: Float64Array } as const

/** What 'auto' is: the suite also runs with EQUITENSOR_BACKEND=cuda. */
export const defaultBackend = process.env.EQUITENSOR_BACKEND ?? 'cpu'

export const root = path.join(__dirname, '..')

/** The JSON that a CommonJS program prints in a process that may have 9 GB of address space. Linux only. */
export function printedWithin9GB(program: string): any {
  return JSON.parse(execFileSync('bash', ['-c', 'ulimit -v 9000000 && exec "$@"', 'bash', process.execPath, '-e', program], { cwd: root, encoding: 'utf8' }))
}

const loaded = new Map<string, { meta: any; cases: any[] }>()
/** A file of test/golden: numbers of e3nn 0.5.1 in float64. */
export function golden(name: string): { meta: any; cases: any[] } {
  let file = loaded.get(name)
  if (!file) loaded.set(name, (file = JSON.parse(readFileSync(path.join(__dirname, 'golden', `${name}.json`), 'utf8'))))
  return file!
}

/** Uniform in [-1, 1), the same sequence for the same seed (mulberry32). */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2147483648 - 1
  }
}

export function randomArray<D extends DType>(dtype: D, length: number, next: () => number): ArrayOf<D> {
  const array = new constructors[dtype](length)
  for (let i = 0; i < length; i++) array[i] = next()
  return array as ArrayOf<D>
}

/**
 * The largest difference of any block, over all items, relative to the largest reference value of that block, or of the array if the
 * block has to be zero; NaN counts as infinite.
 */
export function blockError(actual: ArrayLike<number>, expected: ArrayLike<number>, irreps: Irreps): number {
  if (actual.length !== expected.length) return Infinity
  let worst = 0
  for (const [begin, end] of irreps.slices) {
    let largest = 0, difference = 0
    for (let row = 0; row < actual.length; row += irreps.dim) {
      for (let c = row + begin; c < row + end; c++) {
        const d = Math.abs(actual[c]! - expected[c]!)
        if (Number.isNaN(d)) return Infinity
        if (d > difference) difference = d
        const e = Math.abs(expected[c]!)
        if (e > largest) largest = e
      }
    }
    if (difference > 0) worst = Math.max(worst, difference / (largest || Array.from(expected).reduce((m, e) => Math.max(m, Math.abs(e)), 0)))
  }
  return worst
}

/** The same with the whole array as one block. */
export function arrayError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Infinity
  let largest = 0, difference = 0
  for (let i = 0; i < actual.length; i++) {
    const d = Math.abs(actual[i]! - expected[i]!)
    if (Number.isNaN(d)) return Infinity
    difference = Math.max(difference, d)
    largest = Math.max(largest, Math.abs(expected[i]!))
  }
  return difference === 0 ? 0 : difference / largest
}

/** Whether two arrays hold the same bits (so that NaN equals itself and 0 differs from -0). */
export function sameBits(a: Numbers, b: Numbers): boolean {
  const bytes = (array: Numbers) => Buffer.from(array.buffer, array.byteOffset, array.byteLength)
  return a.length === b.length && bytes(a).equals(bytes(b))
}

const guardWords = 67
/** An array full of NaN, `offset` numbers off a 64-byte boundary plus some, between guard words that `intact` looks at. */
export function guarded<D extends DType>(dtype: D, length: number, offset = 0): { array: ArrayOf<D>; intact(): boolean; untouched(): boolean } {
  const whole = new constructors[dtype](guardWords + offset + length + guardWords)
  const guard = (i: number) => 1000 + i
  for (let i = 0; i < whole.length; i++) whole[i] = guard(i)
  const begin = guardWords - (guardWords % 16) + offset
  const array = whole.subarray(begin, begin + length).fill(NaN) as ArrayOf<D>
  return {
    array,
    intact: () => whole.every((value, i) => (i >= begin && i < begin + length) || value === guard(i)),
    untouched: () => array.every(Number.isNaN),
  }
}

/** Row-major, uniformly distributed; a reflection with `inversion`. */
export function randomRotation(next: () => number, inversion = false): Float64Array {
  let q: number[], norm: number
  do {
    q = [next(), next(), next(), next()]
    norm = Math.hypot(...q)
  } while (norm > 1 || norm < 0.1)
  const [w, x, y, z] = q.map((v) => v / norm) as [number, number, number, number]
  const sign = inversion ? -1 : 1
  return Float64Array.of(
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ).map((v) => sign * v)
}

export function product3x3(a: Float64Array, b: Float64Array): Float64Array {
  return multiply(a, b, 3)
}

/** Square matrices, row-major. */
export function multiply(a: Float64Array, b: Float64Array, n: number): Float64Array {
  const c = new Float64Array(n * n)
  for (let i = 0; i < n; i++) for (let k = 0; k < n; k++) for (let j = 0; j < n; j++) c[i * n + j]! += a[i * n + k]! * b[k * n + j]!
  return c
}

/** Component m of channel u of every block: `places[block][u][m]`, as the arrays of these irreps have them. */
export function places(irreps: Irreps, layout: Layout): number[][][] {
  return irreps.blocks.map(({ mul, ir }, b) => {
    const begin = irreps.slices[b]![0], size = 2 * ir.l + 1
    return Array.from({ length: mul }, (_, u) =>
      Array.from({ length: size }, (_, m) => begin + (layout === 'mul_ir' ? u * size + m : m * mul + u)),
    )
  })
}

/** D(rotation) on every irrep of every item. */
export function rotated(array: Float64Array, irreps: Irreps, layout: Layout, rotation: Float64Array): Float64Array {
  const result = new Float64Array(array.length)
  const channels = places(irreps, layout)
  irreps.blocks.forEach(({ ir }, b) => {
    const size = 2 * ir.l + 1, d = wignerD(ir.l, rotation, ir.p)
    for (let row = 0; row < array.length; row += irreps.dim)
      for (const at of channels[b]!)
        for (let m = 0; m < size; m++) for (let n = 0; n < size; n++) result[row + at[m]!]! += d[m * size + n]! * array[row + at[n]!]!
  })
  return result
}

/** From one layout to the other. */
export function relayout<A extends Numbers>(array: A, irreps: Irreps, from: Layout, to: Layout): A {
  const a = places(irreps, from).flat(2), b = places(irreps, to).flat(2)
  const result = array.slice() as A
  for (let row = 0; row < array.length; row += irreps.dim) a.forEach((place, i) => (result[row + b[i]!] = array[row + place]!))
  return result
}
