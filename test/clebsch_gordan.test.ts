import { describe, expect, test } from 'vitest'
import { ClebschGordanTensorProduct, Irreps } from '../lib/index'
import { backward, elementwiseTerms, forward, fullTerms, norm } from './reference'
import { blockError, constructors, dtypes, golden, layouts, random, randomArray, relayout, sameBits, tolerance } from './support'

const factories = { full: ClebschGordanTensorProduct.full, elementwise: ClebschGordanTensorProduct.elementwise }
const terms = { full: fullTerms, elementwise: elementwiseTerms }

interface GoldenCase {
  kind?: string
  requested: [string, string]
  options: { irrep_normalization?: 'norm'; filter_ir_out?: string[] }
  irreps_in1: string
  irreps_in2: string
  irreps_out: string
  instructions: { i1: number; i2: number; iout: number; coef: number }[]
}

// e3nn's names of the options in ours.
const translated = ({ irrep_normalization, filter_ir_out }: GoldenCase['options']) => ({
  ...(irrep_normalization && { irrepNormalization: irrep_normalization }),
  ...(filter_ir_out && { filterIrrepsOut: filter_ir_out.join('+') }),
})

describe.each([['full', 'full_tensor_product'], ['elementwise', 'elementwise_and_square']] as const)("%s: e3nn's numbers", (factory, file) => {
  const cases = golden(file).cases.filter(({ kind }) => kind !== 'TensorSquare')
  test.each(cases.map((c) => [`${c.requested.join(' x ')} ${JSON.stringify(c.options)}`, c]))('%s', (_name, c) => {
    for (const dtype of dtypes) {
      for (const algorithm of ['sparse', 'dense'] as const) {
        for (const layout of layouts) {
          const options = { dtype, algorithm, layout, ...translated(c.options) }
          using op = factories[factory](c.requested[0], c.requested[1], options as object)
          // The layout of an input is that of the blocks as passed; e3nn's golden arrays are mul_ir.
          const in1 = new Irreps(c.requested[0]), in2 = new Irreps(c.requested[1]), out = new Irreps(c.irreps_out)
          const of = (values: number[], irreps: Irreps) => relayout(constructors[dtype].from(values), irreps, 'mul_ir', layout)
          const [x, y, v] = [of(c.x, in1), of(c.y, in2), of(c.v, out)]
          const gradients = op.backward(x as never, y as never, undefined, v as never)
          const what = `${dtype} ${algorithm} ${layout}`
          expect(blockError(op.forward(x as never, y as never), of(c.out, out), out), what).toBeLessThan(tolerance[dtype])
          expect(blockError(gradients.x, of(c.grad_x, in1), in1), what).toBeLessThan(tolerance[dtype])
          expect(blockError(gradients.y, of(c.grad_y, in2), in2), what).toBeLessThan(tolerance[dtype])

          expect([`${op.irrepsIn1}`, `${op.irrepsIn2}`, `${op.irrepsOut}`]).toEqual([c.irreps_in1, c.irreps_in2, c.irreps_out])
          expect(op.paths.map(({ in1, in2, out }) => [in1, in2, out])).toEqual(c.instructions.map((i: any) => [i.i1, i.i2, i.iout]))
          c.instructions.forEach((i: any, n: number) => expect(op.paths[n]!.coefficient).toBeCloseTo(i.coef, 13))
        }
      }
    }
  })
})

test("pathNormalization 'path' and 'element' agree, since every output block has one path of one element", () => {
  const x = randomArray('float64', 9 * 3, random(1)), y = randomArray('float64', 9 * 3, random(2))
  const [element, path] = (['element', 'path'] as const).map((pathNormalization) =>
    ClebschGordanTensorProduct.full('0e+1o+2e', '0e+1o+2e', { dtype: 'float64', pathNormalization } as object).forward(x as never, y as never),
  )
  expect(path).toEqual(element)
})

test('norm-normalised inputs to norm-normalised outputs, for every path to l = 8', () => {
  for (const l of [1, 4, 8]) {
    const irreps = new Irreps(`2x${l}o`)
    using op = ClebschGordanTensorProduct.full(irreps, irreps, { dtype: 'float64', irrepNormalization: 'norm' } as object)
    const x = randomArray('float64', irreps.dim * 3, random(l)), y = randomArray('float64', irreps.dim * 3, random(50 + l))
    const expected = fullTerms(irreps, irreps, 'mul_ir', undefined, norm)
    expect(blockError(op.forward(x as never, y as never), forward(expected, x, y), op.irrepsOut)).toBeLessThan(tolerance.float64)
  }
})

// Unsimplified and unsorted blocks, empty ones, repeated irreps apart from each other, both parities, odd multiplicities.
const unusual: [in1: string, in2: string][] = [
  ['2x1o+3x1o', '2x0e+1x0e+1x2o'],
  ['1x1o+1x0e+2x1o', '2x1e+0x3o+1x1e+1x2e'],
  ['0x2e+5x1o+0x1o+2x1o+1x3e', '3x2o+0x0e+2x2o+3x1e'],
  ['17x1o', '3x0e'],
  ['3x2e+1x2e', '1x1o+2x1o+1x1o'],
]

describe.each(layouts)('unsimplified inputs, %s', (layout) => {
  test.each(unusual)('full: %s x %s', (a, b) => check('full', a, b))
  test.each([
    ...unusual.filter(([a, b]) => new Irreps(a).numIrreps === new Irreps(b).numIrreps),
    ['4x1o+1x1o+2x2e', '2x1e+3x1e+1x0o+1x0o'],
    ['5x2e', '1x1o+1x1o+3x3e'],
    ['2x0e+1x1o+2x1o+12x1e', '1x1o+16x1e'],
  ])('elementwise: %s x %s', (a, b) => check('elementwise', a, b))

  function check(factory: 'full' | 'elementwise', a: string, b: string) {
    const in1 = new Irreps(a), in2 = new Irreps(b), expected = terms[factory](in1, in2, layout)
    const x = randomArray('float64', in1.dim * 7, random(1)), y = randomArray('float64', in2.dim * 7, random(2))
    const v = randomArray('float64', expected.irrepsOut.dim * 7, random(3))
    const gradients = backward(expected, x, y, v)
    for (const algorithm of ['sparse', 'dense'] as const) {
      using op = factories[factory](in1, in2, { dtype: 'float64', layout, algorithm })
      expect(`${op.irrepsOut}`).toBe(`${expected.irrepsOut}`)
      expect(blockError(op.forward(x, y), forward(expected, x, y), op.irrepsOut)).toBeLessThan(tolerance.float64)
      const actual = op.backward(x, y, undefined, v)
      expect(blockError(actual.x, gradients.x, in1)).toBeLessThan(tolerance.float64)
      expect(blockError(actual.y, gradients.y, in2)).toBeLessThan(tolerance.float64)
    }
  }
})

describe.each(dtypes)('both parities and several channels, to L = 8, %s', (dtype) => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])('L = %i', (L) => {
    const problems: ['full' | 'elementwise', string, string][] = [
      ['full', `1x${L}o+1x${L}e`, `1x0o+2x${L - 1}e+1x${L}o`],
      ['full', `3x${L}e`, `2x${L}o+1x1e`],
      ['elementwise', `3x${L}o+2x${L}e+1x0o`, `1x${L}e+2x${L - 1}o+3x${L}o`],
      ['elementwise', `5x${L}e`, `5x${L}e`],
    ]
    for (const [factory, a, b] of problems) {
      for (const algorithm of ['sparse', 'dense'] as const) {
        const layout = layouts[L % 2]!, in1 = new Irreps(a), in2 = new Irreps(b), expected = terms[factory](in1, in2, layout)
        using op = factories[factory](in1, in2, { dtype, layout, algorithm })
        const x = randomArray(dtype, in1.dim * 5, random(1)), y = randomArray(dtype, in2.dim * 5, random(2)), v = randomArray(dtype, op.irrepsOut.dim * 5, random(3))
        const actual = op.backward(x as never, y as never, undefined, v as never), gradients = backward(expected, x, y, v)
        expect(blockError(op.forward(x as never, y as never), forward(expected, x, y), op.irrepsOut)).toBeLessThan(tolerance[dtype])
        expect(blockError(actual.x, gradients.x, in1)).toBeLessThan(tolerance[dtype])
        expect(blockError(actual.y, gradients.y, in2)).toBeLessThan(tolerance[dtype])
      }
    }
  })
})

test('inputs to l = 11 and outputs to l = 22', () => {
  for (const [a, b] of [['11o', '11e'], ['11e', '10e'], ['0e+11o', '0e+5e+11e']] as const) {
    const in1 = new Irreps(a), in2 = new Irreps(b), expected = fullTerms(in1, in2, 'mul_ir')
    for (const dtype of dtypes) {
      using op = ClebschGordanTensorProduct.full(in1, in2, { dtype })
      const x = randomArray(dtype, in1.dim * 5, random(1)), y = randomArray(dtype, in2.dim * 5, random(2))
      const v = randomArray(dtype, op.irrepsOut.dim * 5, random(3))
      expect(op.irrepsOut.lmax).toBe(in1.lmax + in2.lmax)
      expect(blockError(op.forward(x as never, y as never), forward(expected, x, y), op.irrepsOut)).toBeLessThan(tolerance[dtype])
      const actual = op.backward(x as never, y as never, undefined, v as never), gradients = backward(expected, x, y, v)
      expect(blockError(actual.x, gradients.x, in1)).toBeLessThan(tolerance[dtype])
      expect(blockError(actual.y, gradients.y, in2)).toBeLessThan(tolerance[dtype])
    }
  }
})

// In float32 all paths of a pair of degrees to 5 are one unrolled kernel, where the layout has their components side by side; in float64 they are maps.
describe.each(layouts)('float32 against float64, %s', (layout) => {
  test.each([
    ['every pair of degrees', '0e+1o+2e+3o+4e+5o', '5e+4o+3e+2o+1e+0o', {}],
    ['degrees beside those', '6e+2o+1e', '1e+6o+5e', {}],
    ['several channels', '2x1o+3x5e+1x2e', '3x4e+2x1o', {}],
    ['a row of outputs that other irreps share', '1o+3o+3o', '2e+2e+3e', {}],
    ['some pairs without all of their paths', '0e+1o+2e+3o', '0e+1o+2e+3o', { filterIrrepsOut: '0e+1o+2e+3o+1e' }],
  ] as const)('%s', (_, a, b, options) => {
    const make = (dtype: 'float32' | 'float64') => ClebschGordanTensorProduct.full(a, b, { ...options, dtype, layout, threads: 1 })
    using single = make('float32')
    using double = make('float64')
    const { irrepsIn1, irrepsIn2, irrepsOut } = single
    // Tiles and parts of them, and passes of 256 items: from 512 KiB on results go past the cache, of a backward too.
    for (const batch of [5, 35, 1900]) {
      const [x, y, v, ax, ay] = [irrepsIn1, irrepsIn2, irrepsOut, irrepsIn1, irrepsIn2].map((irreps, i) => randomArray('float32', irreps.dim * batch, random(i + batch))) as Float32Array[]
      const in64 = (values: Float32Array) => Float64Array.from(values)
      const check = (actual: ArrayLike<number>, expected: ArrayLike<number>, irreps: Irreps) => expect(blockError(actual, expected, irreps)).toBeLessThan(tolerance.float32)
      check(single.forward(x!, y!), double.forward(in64(x!), in64(y!)), irrepsOut)
      const gradients = double.backward(in64(x!), in64(y!), undefined, in64(v!))
      const both = single.backward(x!, y!, undefined, v!)
      check(both.x, gradients.x, irrepsIn1)
      check(both.y, gradients.y, irrepsIn2)
      expect(sameBits(single.backward(x!, y!, undefined, v!, { needs: { y: false } }).x!, both.x)).toBe(true)
      expect(sameBits(single.backward(x!, y!, undefined, v!, { needs: { x: false } }).y!, both.y)).toBe(true)
      for (const directions of [{ x: ax }, { y: ay }, { x: ax, y: ay }]) {
        const actual = single.doubleBackward(x!, y!, undefined, v!, directions)
        const expected = double.doubleBackward(in64(x!), in64(y!), undefined, in64(v!), { x: directions.x && in64(directions.x), y: directions.y && in64(directions.y) })
        check(actual.x, expected.x, irrepsIn1)
        check(actual.y, expected.y, irrepsIn2)
        check(actual.gradOut, expected.gradOut, irrepsOut)
      }
    }
  })
})

test('a filter keeps those irreps of the full product, whatever their multiplicity in it', () => {
  const irreps = '2x0e+1x1o+1x2e'
  using all = ClebschGordanTensorProduct.full(irreps, irreps, { dtype: 'float64' })
  const x = randomArray('float64', 10 * 4, random(1)), y = randomArray('float64', 10 * 4, random(2))
  const z = all.forward(x, y)
  for (const filterIrrepsOut of ['1o+2e', '7x2e+0x3o+1x1o', new Irreps('1o+2e')]) {
    using op = ClebschGordanTensorProduct.full(irreps, irreps, { dtype: 'float64', filterIrrepsOut })
    const kept = all.irrepsOut.filter('1o+2e')
    expect(`${op.irrepsOut}`).toBe(`${kept}`)
    const columns = all.irrepsOut.blocks.flatMap(({ ir }, b) => {
      const [begin, end] = all.irrepsOut.slices[b]!
      return [[1, -1], [2, 1]].some(([l, p]) => ir.l === l && ir.p === p) ? Array.from({ length: end - begin }, (_, i) => begin + i) : []
    })
    const expected = Float64Array.from([0, 1, 2, 3].flatMap((n) => columns.map((c) => z[n * all.irrepsOut.dim + c]!)))
    expect(blockError(op.forward(x, y), expected, kept)).toBeLessThan(tolerance.float64)
  }
  expect(() => ClebschGordanTensorProduct.full('1o', '1o', { filterIrrepsOut: '0o+3e' })).toThrow(
    expect.objectContaining({ code: 'no_path', argument: 'options.filterIrrepsOut' }),
  )
})

test('the constructor makes the full product', () => {
  using a = new ClebschGordanTensorProduct('0e+1o', '1o'), b = ClebschGordanTensorProduct.full('0e+1o', '1o')
  const x = randomArray('float32', 4 * 3, random(1)), y = randomArray('float32', 3 * 3, random(2))
  expect([`${a.irrepsOut}`, a.algorithm]).toEqual([`${b.irrepsOut}`, 'sparse'])
  expect(sameBits(a.forward(x, y), b.forward(x, y))).toBe(true)
})

test('expressivity and interactability', () => {
  const even = (L: number) => Array.from({ length: L + 1 }, (_, l) => `${l}e`).join('+')
  const paths = [6, 19, 44, 85, 146, 231]
  paths.forEach((count, n) => expect(ClebschGordanTensorProduct.full(even(n + 1), even(n + 1)).expressivity).toBe(count))
  expect(ClebschGordanTensorProduct.full('1o+2e', '1o').interactability).toEqual([[1, 1, 0], [1, 1, 1], [1, 1, 2], [2, 1, 1], [2, 1, 2], [2, 1, 3]])
  expect(ClebschGordanTensorProduct.full('1o+1e', '1o', { filterIrrepsOut: '0e+0o' }).interactability).toEqual([[1, 1, 0]])
  expect(ClebschGordanTensorProduct.elementwise('2x3o', '2x1o').interactability).toEqual([[3, 1, 2], [3, 1, 3], [3, 1, 4]])
})

test('elementwise needs as many irreps on both sides', () => {
  expect(() => ClebschGordanTensorProduct.elementwise('3x1o', '2x1o')).toThrow(
    expect.objectContaining({ code: 'unequal_multiplicities', argument: 'irrepsIn2', expected: expect.stringContaining('3'), received: '2' }),
  )
})

test('an output of 2^31 components an item is refused before native code counts them in 32 bits', () => {
  expect(() => ClebschGordanTensorProduct.full('20000x5e', '20000x5e')).toThrow(/irrepsOut: expected less than 2\^31 components an item, got \d+/)
})
