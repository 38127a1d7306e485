// The block form of the matrix product: the paper's numbers, its matrices, and its paths.
import { describe, expect, test } from 'vitest'
import { Irreps, MatrixTensorProduct, wigner3j, type DType, type MatrixOptions } from '../lib/index'
import { matrixBlock, productErrors, summedTerms } from './reference'
import { arrayError, blockError, dtypes, golden, layouts, multiply, random, randomArray, tolerance } from './support'

const even = (L: number) => Array.from({ length: L + 1 }, (_, l) => `${l}e`).join('+')
const both = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}o+${mul}x${l}e`).join('+')
const natural = (L: number, p: 1 | -1 = -1) => String(Irreps.sphericalHarmonics(L, p))
const make = (in1: string, in2: string, options: MatrixOptions<DType> = {}) => new MatrixTensorProduct<any>(in1, in2, { form: 'block', dtype: 'float64', ...options })

test.each(golden('matrix_tensor_product').cases.map((c) => [`0..${c.lmax1} x 0..${c.lmax2} ${c.irrep_normalization}`, c]))("the paper's numbers: %s", (_name, c) => {
  for (const dtype of dtypes) {
    using op = make(even(c.lmax1), even(c.lmax2), { dtype, irrepNormalization: c.irrep_normalization })
    expect([op.form, op.algorithm, op.k, `${op.irrepsOut}`]).toEqual(['block', 'block', c.tilde_l, `${new Irreps(even(c.lmax_out))}`])
    const of = (values: number[]) => (dtype === 'float64' ? Float64Array : Float32Array).from(values)
    expect(blockError(op.forward(of(c.x), of(c.y)), c.out, op.irrepsOut)).toBeLessThan(tolerance[dtype])
  }
})

/** X of x: block (k1, k2) is f times the sum of wigner3j(k1, k2, l) x_l. The transpose reads components off. */
function entries(irreps: Irreps, k: number, normalization: 'norm' | 'component') {
  const size = (k + 1) ** 2, all: { at: number; component: number; value: number }[] = []
  for (const [b, { ir: { l } }] of irreps.blocks.entries())
    for (let k1 = 0; k1 <= k; k1++)
      for (let k2 = 0; k2 <= k; k2++) {
        if (l < Math.abs(k1 - k2) || l > k1 + k2) continue
        const f = Math.sqrt(normalization === 'norm' ? (2 * k1 + 1) * (2 * k2 + 1) : 2 * l + 1)
        wigner3j(k1, k2, l).forEach((c, i) => {
          const row = k1 * k1 + Math.floor(i / ((2 * k2 + 1) * (2 * l + 1))), column = k2 * k2 + (Math.floor(i / (2 * l + 1)) % (2 * k2 + 1))
          all.push({ at: row * size + column, component: irreps.slices[b]![0] + (i % (2 * l + 1)), value: f * c })
        })
      }
  return { size, all }
}

test.each([
  [even(1), even(1), {}], [even(3), even(2), {}], [even(4), even(4), {}], [even(4), even(4), { irrepNormalization: 'component' }], ['3e', '2e', {}], [even(2), even(2), { k: 4 }],
  [even(3), even(3), { k: 3, irrepsOut: '2e+5e+0e' }], [even(4), even(4), { irrepsOut: '1e', k: 2 }], [even(8), even(8), {}],
] as [string, string, MatrixOptions<DType>][])('%s x %s, %o: multiplies the matrices that the definition says', (in1, in2, options) => {
  using op = make(in1, in2, options)
  expect(op.k).toBe(options.k ?? Math.ceil((op.irrepsIn1.lmax + op.irrepsIn2.lmax) / 2))
  const form = (irreps: Irreps) => entries(irreps, op.k, options.irrepNormalization ?? 'norm')
  const toMatrix = (irreps: Irreps, x: Float64Array) => {
    const { size, all } = form(irreps), matrix = new Float64Array(size * size)
    for (const { at, component, value } of all) matrix[at]! += value * x[component]!
    return matrix
  }
  const x = randomArray('float64', op.irrepsIn1.dim, random(1)), y = randomArray('float64', op.irrepsIn2.dim, random(2))
  const { size, all } = form(op.irrepsOut), z = multiply(toMatrix(op.irrepsIn1, x), toMatrix(op.irrepsIn2, y), size)
  const expected = new Float64Array(op.irrepsOut.dim)
  for (const { at, component, value } of all) expected[component]! += value * z[at]!
  expect(blockError(op.forward(x, y), expected, op.irrepsOut)).toBeLessThan(tolerance.float64)
})

function errors(in1: string, in2: string, options: MatrixOptions<DType> & { irrepsOut?: string } = {}, batch = 5): number[] {
  const [a, b, c] = [new Irreps(in1), new Irreps(in2), options.irrepsOut === undefined ? undefined : new Irreps(options.irrepsOut)]
  const terms = summedTerms(a, b, options.layout ?? 'mul_ir', matrixBlock(Math.ceil((a.lmax + b.lmax) / 2)), c)
  using op = make(in1, in2, options)
  expect(`${op.irrepsOut}`).toBe(`${terms.irrepsOut}`)
  return productErrors(op, terms, options.dtype ?? 'float64', batch)
}

describe.each(dtypes)('forward and backward against the sum of its paths, %s', (dtype) => {
  test.each([0, 1, 2, 3, 4, 5, 6, 7, 8])('0..%i with itself: all even, natural and both parities', (L) => {
    for (const irreps of L <= 6 ? [even(L), natural(L), both(L)] : [natural(L)])
      for (const error of errors(irreps, irreps, { dtype }, 3)) expect(error, irreps).toBeLessThan(tolerance[dtype])
  })

  test('unequal degrees, gaps, truncated and permuted outputs, odd degrees alone, degrees to 11', () => {
    const problems: [in1: string, in2: string, irrepsOut?: string][] = [
      ['0e+1e+2e', '0e+1e+2e+3e+4e+5e', even(4)], ['3e', '2e'], ['3e', '3e', '3e'], ['7o', '1o+3o'], ['4e+2e', '0e+6e', '6e+4e+2e'], ['11o', '0e+11o'],
      [natural(3), natural(3, 1)], [both(3), natural(2)], ['0o+1e+2o+3e', natural(3)], ['0e', '0e'], ['0o', '5e'],
    ]
    for (const [a, b, irrepsOut] of problems)
      for (const error of errors(a, b, { dtype, ...(irrepsOut && { irrepsOut }) })) expect(error, `${a} x ${b}`).toBeLessThan(tolerance[dtype])
  })
})

test('empty blocks are not there', () => {
  using op = make('0x3e+2e+1o+0x0e+2o', '1e+0x3o+1o', { irrepsOut: '1e+0x2e+1o+3o', k: 3 }), without = make('2e+1o+2o', '1e+1o', { irrepsOut: '1e+1o+3o', k: 3 })
  const x = randomArray('float64', 13 * 3, random(1)), y = randomArray('float64', 6 * 3, random(2))
  expect(op.forward(x, y)).toEqual(without.forward(x, y))
  expect(op.backward(x, y, undefined, op.forward(x, y))).toEqual(without.backward(x, y, undefined, op.forward(x, y)))
})

test('channels, in both layouts', () => {
  for (const layout of layouts)
    for (const mul of [2, 3, 17])
      for (const [a, b] of [[natural(3), natural(2)], [both(2), both(2)]] as const) {
        const channels = (irreps: string) => irreps.replaceAll('1x', `${mul}x`)
        for (const error of errors(channels(a), channels(b), { layout }, 3)) expect(error).toBeLessThan(tolerance.float64)
      }
})

test('paths: coefficients by contraction of three 3j, interactability, expressivity', () => {
  using op = make('0e+1e+2e', '0e+1e+2e')
  // sum over a, b, c of X_ab Y_bc Z_ac, with the matrix of one unit component each, is coefficient * wigner3j.
  const matrices = (l: number, m: number) => {
    const x = new Float64Array(2 * l + 1), { size, all } = entries(new Irreps(`${l}e`), 2, 'norm'), matrix = new Float64Array(size * size)
    x[m] = 1
    for (const { at, component, value } of all) matrix[at]! += value * x[component]!
    return matrix
  }
  for (const { l: [l1, l2, l3], coefficient } of op.paths) {
    const found = wigner3j(l1, l2, l3).map((_, i) => {
      const d2 = 2 * l2 + 1, d3 = 2 * l3 + 1, z = matrices(l3, i % d3)
      return multiply(matrices(l1, Math.floor(i / (d2 * d3))), matrices(l2, Math.floor(i / d3) % d2), 9).reduce((sum, v, n) => sum + v * z[n]!, 0)
    })
    expect(arrayError(wigner3j(l1, l2, l3).map((c) => coefficient * c), found), `${[l1, l2, l3]}`).toBeLessThan(tolerance.float64)
  }
  // As many paths as the triangle rule allows, and 4 L + 1 parameters a channel (Xie et al. 2025, section 4).
  expect(op.interactability.length).toBe(19)
  expect(op.expressivity).toBe(9)
})

test('bad options', () => {
  const bad = (options: object, argument: string, expected: string) =>
    expect(() => new MatrixTensorProduct('2e', '2e', options as never), JSON.stringify(options)).toThrow(expect.objectContaining({ code: 'invalid_option', argument, expected: expect.stringContaining(expected) }))
  bad({ irrepNormalization: 'norm' }, 'options.irrepNormalization', "none without form 'block'")
  bad({ form: 'block', irrepNormalization: 'none' }, 'options.irrepNormalization', "'norm' or 'component'")
  bad({ form: 'blocks' }, 'options.form', "'single' or 'block'")
  for (const k of [1, 13, 2.5, NaN, '2']) bad({ form: 'block', k }, 'options.k', 'from 2')
  expect(() => make('1o', '1o', { irrepsOut: '0e+3e' })).toThrow(expect.objectContaining({ code: 'unreachable_output', message: expect.stringContaining('got 3e') }))
  expect(() => make('1o', '1o', { irrepsOut: '2o' })).toThrow(expect.objectContaining({ code: 'no_path' }))
})
