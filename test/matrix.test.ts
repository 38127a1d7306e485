import { describe, expect, test } from 'vitest'
import { Irreps, MatrixTensorProduct, wigner3j, type DType } from '../lib/index'
import { matrix, productErrors, summedTerms } from './reference'
import { blockError, dtypes, layouts, multiply, random, randomArray, tolerance } from './support'

const even = (L: number) => Array.from({ length: L + 1 }, (_, l) => `${l}e`).join('+')
const both = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}o+${mul}x${l}e`).join('+')
const natural = (L: number, p: 1 | -1 = -1) => String(Irreps.sphericalHarmonics(L, p))

type Options = { dtype?: DType; irrepsOut?: string; layout?: 'mul_ir' | 'ir_mul'; k?: number }
const make = (in1: string, in2: string, options: Options = {}) => new MatrixTensorProduct<any>(in1, in2, { dtype: 'float64', ...options })

// The largest errors, forward and backward, of a random batch against the sum of 6j-weighted 3j paths.
function errors(in1: string, in2: string, options: Options = {}, batch = 5): number[] {
  const { dtype = 'float64', layout = 'mul_ir', irrepsOut } = options
  const [a, b, c] = [new Irreps(in1), new Irreps(in2), irrepsOut === undefined ? undefined : new Irreps(irrepsOut)]
  const k = options.k ?? Math.ceil(Math.max(a.lmax, b.lmax, c ? c.lmax : a.lmax + b.lmax) / 2)
  const terms = summedTerms(a, b, layout, matrix(k), c)
  using op = make(in1, in2, options)
  expect(op.k).toBe(k)
  expect(`${op.irrepsOut}`).toBe(`${terms.irrepsOut}`)
  return productErrors(op, terms, dtype, batch)
}

test.each([[1, 1, undefined], [3, 2, undefined], [4, 4, undefined], [2, 2, 4], [8, 8, undefined]] as const)(
  'degrees %i x %i, k %s: multiplies the matrices that the definition says', (L1, L2, k) => {
    using op = make(even(L1), even(L2), k === undefined ? {} : { k })
    const n = 2 * op.k + 1
    const toMatrix = (x: Float64Array, L: number) => {
      const sum = new Float64Array(n * n)
      for (let l = 0; l <= L; l++) wigner3j(op.k, op.k, l).forEach((c, i) => (sum[Math.floor(i / (2 * l + 1))]! += c * x[l * l + (i % (2 * l + 1))]!))
      return sum
    }
    const x = randomArray('float64', (L1 + 1) ** 2, random(1)), y = randomArray('float64', (L2 + 1) ** 2, random(2))
    const z = multiply(toMatrix(x, L1), toMatrix(y, L2), n)
    const expected = Float64Array.from(op.irrepsOut.blocks.flatMap(({ ir: { l } }) => {
      const c = wigner3j(op.k, op.k, l), d = 2 * l + 1
      return Array.from({ length: d }, (_, m) => z.reduce((sum, value, ab) => sum + c[ab * d + m]! * value, 0))
    }))
    expect(blockError(op.forward(x, y), expected, op.irrepsOut)).toBeLessThan(tolerance.float64)
  },
)

describe.each(dtypes)('against the 6j-weighted sum, %s', (dtype) => {
  test.each([0, 1, 2, 3, 4, 5, 6, 7, 8])('0..%i with itself: all even, natural and both parities', (L) => {
    for (const irreps of [even(L), natural(L), both(L)]) {
      for (const error of errors(irreps, irreps, { dtype })) expect(error, irreps).toBeLessThan(tolerance[dtype])
    }
  })

  test('unequal degrees, gaps, truncated and permuted outputs, odd degrees alone', () => {
    const problems: [in1: string, in2: string, irrepsOut?: string][] = [
      ['0e+1e+2e', '0e+1e+2e+3e+4e+5e', even(4)], ['3e', '2e'], ['3e', '3e', '3e'], ['7o', '1o+3o'], ['4e+2e', '0e+6e', '6e+4e+2e'], ['11o', '0e+11o'],
      [natural(3), natural(3, 1)], [both(3), natural(2)], [natural(4), both(1)], ['0o+1e+2o+3e', natural(3)], ['0o+1e+2o', '0o+1e+2o'],
      [both(2), both(4), '2o+4e+1o'], ['2e+1o+2o', '1e+1o', '1e+1o+3o'], [even(6), even(6), even(6)], ['0e', '0e'], ['0o', '5e'], ['1e', '1e', '1e'],
      // Odd irreps of an input that no product has: their gradient is zero.
      ['1o+1e', '1e+2e', '2e'], ['1e+2e', '2o+1e+3o', '1e'],
    ]
    for (const [a, b, irrepsOut] of problems) {
      for (const error of errors(a, b, { dtype, ...(irrepsOut && { irrepsOut }) })) expect(error, `${a} x ${b}`).toBeLessThan(tolerance[dtype])
    }
  })
})

test('channels, in both layouts', () => {
  for (const layout of layouts) {
    for (const mul of [2, 3, 5, 17]) {
      const channels = (irreps: string) => irreps.replaceAll('1x', `${mul}x`)
      for (const [a, b] of [[natural(3), natural(2)], [both(2), both(2)]] as const) {
        for (const error of errors(channels(a), channels(b), { layout }, 3)) expect(error).toBeLessThan(tolerance.float64)
      }
    }
  }
})

describe('k', () => {
  test.each([1, 2, 4, 6])('a larger one gives other numbers, by the same formula: L = %i', (L) => {
    const x = randomArray('float64', (L + 1) ** 2, random(1)), y = randomArray('float64', (L + 1) ** 2, random(2))
    const options = { irrepsOut: even(L) }, smallest = Math.ceil(L / 2)
    const first = make(even(L), even(L), options).forward(x, y)
    for (let k = smallest; k <= 12; k += 3) {
      for (const error of errors(even(L), even(L), { ...options, k })) expect(error, `k ${k}`).toBeLessThan(tolerance.float64)
      // Not by a common factor either: the ratios of the components differ.
      const other = make(even(L), even(L), { ...options, k }).forward(x, y)
      const ratios = other.map((v: number, i: number) => v / first[i]!)
      if (k > smallest) expect(Math.max(...ratios) - Math.min(...ratios)).toBeGreaterThan(1e-3)
    }
  })

  test('odd or even, both are exact where k is not needed to hold the degrees', () => {
    for (const k of [1, 2, 3, 4, 5, 11, 12]) for (const error of errors(both(1), both(1), { k })) expect(error, `k ${k}`).toBeLessThan(tolerance.float64)
  })

  test('bad values', () => {
    for (const k of [0, 1, 1.5, -2, 13, NaN, '2']) {
      expect(() => make('2e', '2e', { k: k as number }), `${k}`).toThrow(expect.objectContaining({ code: 'invalid_option', argument: 'options.k', expected: expect.stringContaining('2') }))
    }
    expect(make('2e', '2e', { irrepsOut: '2e' }).k).toBe(1)
  })
})

test('paths: coefficients, accidental zeros of the 6j symbol, interactability', () => {
  using op = make('1o', '1o')
  expect(op.interactability).toEqual([[1, 1, 0], [1, 1, 1], [1, 1, 2]])
  for (const { l, coefficient } of op.paths) expect(coefficient).toBeCloseTo(matrix(1)(...(l as [number, number, number])), 14)
  // The 6j symbol {5 5 5; 3 3 3} and a few others vanish by accident: where one does, there is no path and no output to reach.
  const zeros: [number, number, number, number][] = []
  for (let k = 1; k <= 6; k++)
    for (let a = 0; a <= 2 * k; a++) for (let b = a; b <= 2 * k; b++) for (let c = b; c <= Math.min(2 * k, a + b); c++) if (matrix(k)(a, b, c) === 0) zeros.push([a, b, c, k])
  expect(zeros.length).toBeGreaterThan(0)
  for (const [a, b, c, k] of zeros.filter(([a, b]) => a <= 11 && b <= 11)) {
    expect(() => make(`${a}e`, `${b}e`, { irrepsOut: `${c}e`, k }), `{${a} ${b} ${c}; ${k} ${k} ${k}}`).toThrow(expect.objectContaining({ code: 'no_path' }))
  }
  expect(() => make('1o', '1o', { irrepsOut: '0e+3e' })).toThrow(expect.objectContaining({ code: 'unreachable_output', message: expect.stringContaining('got 3e') }))
  expect(() => make('1o', '1o', { irrepsOut: '2o' })).toThrow(expect.objectContaining({ code: 'no_path' }))
})
