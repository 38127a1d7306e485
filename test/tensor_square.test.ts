import { describe, expect, test } from 'vitest'
import { DeviceArray, Irreps, TensorSquare, type DType, type TensorSquareOptions } from '../lib/index'
import { backward, forward, squareTerms } from './reference'
import { arrayError, blockError, constructors, defaultBackend, dtypes, golden, layouts, random, randomArray, randomRotation, relayout, rotated, tolerance } from './support'

const make = (irreps: string, options: TensorSquareOptions<DType> = {}) => new TensorSquare<any>(irreps, { dtype: 'float64', ...options })

test("e3nn's numbers", () => {
  const cases = golden('elementwise_and_square').cases.filter(({ kind }) => kind === 'TensorSquare')
  expect(cases.length).toBeGreaterThan(0)
  for (const c of cases)
    for (const dtype of dtypes)
      for (const layout of layouts) {
        using op = make(c.requested[0], { dtype, layout })
        const of = (values: number[], irreps: Irreps) => relayout(constructors[dtype].from(values), irreps, 'mul_ir', layout)
        const [x, v] = [of(c.x, op.irrepsIn), of(c.v, op.irrepsOut)]
        expect(blockError(op.forward(x), of(c.out, op.irrepsOut), op.irrepsOut)).toBeLessThan(tolerance[dtype])
        expect(blockError(op.backward(x, undefined, v).x, of(c.grad_x, op.irrepsIn), op.irrepsIn)).toBeLessThan(tolerance[dtype])
        expect([`${op.irrepsIn}`, `${op.irrepsOut}`]).toEqual([c.irreps_in1, c.irreps_out])
        expect(op.paths.map(({ in1, in2, out }) => [in1, in2, out])).toEqual(c.instructions.map((i: any) => [i.i1, i.i2, i.iout]))
        c.instructions.forEach((i: any, n: number) => expect(op.paths[n]!.coefficient).toBeCloseTo(i.coef, 13))
      }
})

// Blocks apart, in pieces, empty; one channel and many; both parities. The numbering of u < v runs across the pieces of a block.
const problems = ['1o', '3x1o', '0e+1o+2e', '4x0e+3x1o+2x2e', '2x1o+3x1o', '1x1e+4x1e+2x1e+1x0o', '2x1o+0x1o+1x2e+3x1o', '0x2e+17x0e', '5x3o+2x3e', '2x4e+1x5o', '3x0e+2x3e+4x0e', '8e', '2x11o']

describe.each(dtypes)('forward and backward against the sum over all coefficients, %s', (dtype) => {
  test.each(problems)('%s', (irreps) => {
    for (const layout of layouts)
      for (const irrepNormalization of ['component', 'norm', 'none'] as const) {
        const terms = squareTerms(new Irreps(irreps), layout, undefined, irrepNormalization)
        using op = make(irreps, { dtype, layout, irrepNormalization })
        expect(`${op.irrepsOut}`).toBe(`${terms.irrepsOut}`)
        const x = randomArray(dtype, terms.irrepsIn1.dim * 5, random(1)), v = randomArray(dtype, op.irrepsOut.dim * 5, random(2))
        const expected = backward(terms, x, x, v)
        expect(blockError(op.forward(x), forward(terms, x, x), op.irrepsOut)).toBeLessThan(tolerance[dtype])
        expect(blockError(op.backward(x, undefined, v).x, expected.x.map((g, i) => g + expected.y[i]!), terms.irrepsIn1)).toBeLessThan(tolerance[dtype])
      }
  })
})

test('filterIrrepsOut keeps paths into these irreps', () => {
  const irreps = '3x1o+2x2e'
  using op = make(irreps, { filterIrrepsOut: '1e+7x2o' })
  expect(`${op.irrepsOut}`).toBe('3x1e+1x1e+6x2o')
  const x = randomArray('float64', 19 * 3, random(1)), terms = squareTerms(new Irreps(irreps), 'mul_ir', new Irreps('1e+2o'))
  expect(blockError(op.forward(x), forward(terms, x, x), op.irrepsOut)).toBeLessThan(tolerance.float64)
  // The antisymmetric part of a channel with itself is zero: not an output.
  expect(() => make('1o', { filterIrrepsOut: '1e' })).toThrow(expect.objectContaining({ code: 'no_path', message: expect.stringContaining('even l3 of a single channel') }))
})

test.each([1, 2, 3, 4, 5, 6, 7, 8])('equivariant under rotations and the inversion, L = %i', (L) => {
  const next = random(L)
  using op = make(`2x${L}o+1x${L}e+3x0o`, { layout: layouts[L % 2] })
  const irreps = new Irreps(`2x${L}o+1x${L}e+3x0o`)
  for (const inversion of [false, true]) {
    const rotation = randomRotation(next, inversion), turn = (array: Float64Array, of: Irreps) => rotated(array, of, op.layout, rotation)
    const x = randomArray('float64', 3 * irreps.dim, next), v = randomArray('float64', 3 * op.irrepsOut.dim, next)
    expect(blockError(op.forward(turn(x, irreps)), turn(op.forward(x) as Float64Array, op.irrepsOut), op.irrepsOut)).toBeLessThan(tolerance.float64)
    const gradient = op.backward(turn(x, irreps), undefined, turn(v, op.irrepsOut)).x
    expect(blockError(gradient, turn(op.backward(x, undefined, v).x as Float64Array, irreps), irreps)).toBeLessThan(tolerance.float64)
  }
})

test("'component': outputs of normal inputs have components of mean square 1; 'norm': those of unit vectors have mean square norm 1", () => {
  const next = random(5), batch = 20_000
  const normal = () => Math.sqrt(-2 * Math.log((next() + 1) / 2 || 1)) * Math.cos(Math.PI * next())
  for (const irrepNormalization of ['component', 'norm'] as const) {
    using op = make('3x2e+2x1o', { irrepNormalization })
    const x = Float64Array.from({ length: batch * 21 }, normal)
    for (let row = 0; irrepNormalization === 'norm' && row < x.length; row += 21)
      for (const [begin, end] of [[0, 5], [5, 10], [10, 15], [15, 18], [18, 21]] as const) {
        const norm = Math.hypot(...x.subarray(row + begin, row + end))
        for (let c = begin; c < end; c++) x[row + c]! /= norm
      }
    const z = op.forward(x)
    op.irrepsOut.slices.forEach(([begin, end], b) => {
      const { mul, ir } = op.irrepsOut.blocks[b]!
      let sum = 0
      for (let row = 0; row < z.length; row += op.irrepsOut.dim) for (let c = begin; c < end; c++) sum += z[row + c]! ** 2
      // Such squares have a variance of some 8 at most (a product of two independent components), so that a mean of 20,000 is uncertain by 0.02.
      expect(sum / batch / mul / (irrepNormalization === 'component' ? 2 * ir.l + 1 : 1), `${irrepNormalization} ${b}`).toBeCloseTo(1, 1)
    })
  }
})

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
const plus = (a: Float64Array, b: Float64Array, t: number) => a.map((v, i) => v + t * b[i]!)

// Quadratic in x and linear in gradOut, so that central differences are exact but for rounding. The filters leave out the first pairs of irreps: a block's number
// in the list of the first operands is then another than in that of the second ones.
test.each([
  [1, '2x0e+3x1o+1x2e', undefined],
  [3, '2x0e+3x1o+1x2e', undefined],
  [1, '1x0e+1x2e', '2e+4e'],
  [2, '1x0e+1x1o+1x2e', '0e+2e'],
  [1, '4x0e+4x1o+4x2e', '0e+2e'],
] as const)('gradients, jvp and doubleBackward against differences, batch %i of %s into %s', (batch, irreps, filterIrrepsOut) => {
  using op = make(irreps, { ...(filterIrrepsOut && { filterIrrepsOut }) })
  const next = random(7), draw = (length: number) => randomArray('float64', length, next)
  const x = draw(op.irrepsIn.dim * batch), g = draw(op.irrepsOut.dim * batch), ax = draw(x.length), dx = draw(x.length), ag = draw(g.length)
  const bar = 1e-12 * dot(g, g) * dot(x, x)
  const change = (f: (t: number) => number) => f(0.5) - f(-0.5)
  const tangent = op.jvp(x, undefined, { x: ax })
  expect(Math.abs(dot(op.backward(x, undefined, g).x, ax) - change((t) => dot(g, op.forward(plus(x, ax, t)))))).toBeLessThan(bar)
  expect(Math.abs(dot(tangent, ag) - change((t) => dot(ag, op.forward(plus(x, ax, t)))))).toBeLessThan(bar)
  const second = op.doubleBackward(x, undefined, g, { x: ax })
  expect(Math.abs(dot(second.x, dx) - change((t) => dot(ax, op.backward(plus(x, dx, t), undefined, g).x)))).toBeLessThan(bar)
  expect(Math.abs(dot(second.gradOut, ag) - change((t) => dot(ax, op.backward(x, undefined, plus(g, ag, t)).x)))).toBeLessThan(bar)
  // A missing cotangent or tangent is zero.
  expect(op.doubleBackward(x, undefined, g, {})).toEqual({ x: new Float64Array(x.length), gradOut: new Float64Array(g.length) })
  expect(op.jvp(x, undefined, {})).toEqual(new Float64Array(g.length))
})

test('third order, by composition', () => {
  using op = new TensorSquare('2x0e+1x1o+2x2e', { dtype: 'float64' })
  const next = random(4), draw = (length: number) => randomArray('float64', length, next)
  const n = 3 * op.irrepsIn.dim, x = draw(n), ax = draw(n), dx = draw(n), g = draw(3 * op.irrepsOut.dim), dg = draw(g.length)
  // The results of doubleBackward are linear in x and in gradOut: their differences are first-order calls in the same direction.
  const second = (t: number) => op.doubleBackward(plus(x, dx, t), undefined, plus(g, dg, t), { x: ax })
  const [ahead, behind] = [second(0.5), second(-0.5)]
  const third = { ...op.backward(ax, undefined, dg), gradOut: op.jvp(ax, undefined, { x: dx }) }
  // Some tens of roundings of sums that are larger than their differences.
  for (const slot of ['x', 'gradOut'] as const) expect(arrayError(plus(ahead[slot], behind[slot], -1), third[slot])).toBeLessThan(1e-13)
})

test.each(layouts)('cost is what the kernels execute, and x once, %s', (layout) => {
  for (const irreps of [...problems.slice(0, 9), '6e'])
    for (const dtype of dtypes) {
      using op = make(irreps, { dtype, layout })
      const size = dtype === 'float32' ? 4 : 8, dim = new Irreps(irreps).dim
      for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(op.cost[pass].flops, `${irreps} ${pass}`).toBe(op.countFlops(pass))
      const out = op.irrepsOut.dim
      expect(Object.values(op.cost).map(({ bytes }) => bytes / size)).toEqual([dim + out, 2 * dim + out, 3 * dim + 2 * out])
    }
  // Of a channel with itself x_i x_j is formed for i <= j only: 6 products. The scalar and m = 0, 2 of degree 2 read the three squares, with one
  // zero among their 9 coefficients; the other orders read a product each.
  using op = make('1o', { layout })
  expect(op.cost.forward.flops).toBe(6 + 2 * (9 + 3))
})

test('results and out, batches, threads', () => {
  using op = make('2x1o+1x2e', { dtype: 'float32' }), one = make('2x1o+1x2e', { dtype: 'float32', threads: 1 })
  for (const batch of [0, 1, 5, 17, 1000]) {
    const x = randomArray('float32', 11 * batch, random(1)), out = new Float32Array(op.irrepsOut.dim * batch), gradient = new Float32Array(x.length)
    expect(op.forward(x, undefined, { out })).toBe(out)
    expect(op.backward(x, undefined, out, { out: { x: gradient } }).x).toBe(gradient)
    expect([one.forward(x), one.backward(x, undefined, out)]).toEqual([out, { x: gradient }])
  }
  expect(op).toMatchObject({ dtype: 'float32', layout: 'mul_ir', backend: defaultBackend, weightNumel: 0, expressivity: op.irrepsOut.numIrreps })
  expect(op.interactability).toEqual([[1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [1, 2, 3], [2, 2, 0], [2, 2, 2], [2, 2, 4]])
})

test('a part of the gradients, into given arrays, added to them; the same asynchronously', async () => {
  using op = make('2x1o+1x2e')
  const next = random(3), draw = (length: number) => randomArray('float64', length, next)
  const x = draw(33), ax = draw(33), g = draw(op.irrepsOut.dim * 3)
  const first = op.backward(x, undefined, g), second = op.doubleBackward(x, undefined, g, { x: ax }), tangent = op.jvp(x, undefined, { x: ax })
  expect(Object.keys(first)).toEqual(['x'])
  expect(op.doubleBackward(x, undefined, g, { x: ax }, { needs: { x: false } })).toEqual({ gradOut: second.gradOut })
  expect(op.doubleBackward(x, undefined, g, { x: ax }, { needs: { gradOut: false } })).toEqual({ x: second.x })
  const twice = { x: second.x.slice(), gradOut: second.gradOut.slice() }, sum = { x: first.x.slice() }, out = new Float64Array(tangent.length)
  expect(op.doubleBackward(x, undefined, g, { x: ax }, { out: twice, accumulate: true }).x).toBe(twice.x)
  expect(twice).toEqual({ x: second.x.map((v: number) => 2 * v), gradOut: second.gradOut.map((v: number) => 2 * v) })
  op.backward(x, undefined, g, { out: sum, accumulate: true })
  expect(sum.x).toEqual(first.x.map((v: number) => 2 * v))
  expect(op.jvp(x, undefined, { x: ax }, { out })).toBe(out)
  expect(out).toEqual(tangent)
  expect(await op.forwardAsync(x)).toEqual(op.forward(x))
  expect(await op.backwardAsync(x, undefined, g)).toEqual(first)
  expect(await op.doubleBackwardAsync(x, undefined, g, { x: ax })).toEqual(second)
  expect(await op.jvpAsync(x, undefined, { x: ax })).toEqual(tangent)
  await expect(op.backwardAsync(x, undefined, g, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
})

test('bad arguments', () => {
  using op = make('1o')
  const x = new Float64Array(3), z = new Float64Array(op.irrepsOut.dim), code = (code: string, argument?: string) => expect.objectContaining({ code, ...(argument && { argument }) })
  expect(() => op.forward(new Float64Array(4))).toThrow(code('wrong_length', 'x'))
  expect(() => op.forward(new Float32Array(3) as never)).toThrow(code('wrong_dtype', 'x'))
  expect(() => op.forward(x, new Float64Array(1) as never)).toThrow(code('weight_unwanted', 'weight'))
  expect(() => op.forward(x, undefined, { out: x })).toThrow(code('wrong_length', 'out'))
  expect(() => op.backward(x, undefined, x)).toThrow(code('wrong_length', 'gradOut'))
  expect(() => op.backward(x, undefined, z, { out: { x } })).toThrow(code('overlap', 'out.x'))
  expect(() => op.backward(x, undefined, z, { out: { y: x } as never })).toThrow(code('invalid_option', 'out.y'))
  expect(() => op.backward(x, undefined, z, { needs: { x: false } } as never)).toThrow(code('invalid_option', 'options.needs'))
  // It has no `needs`: nothing but an array helps.
  expect(() => op.backward(x, undefined, z, { accumulate: true })).toThrow(expect.objectContaining({ code: 'invalid_option', argument: 'out.x', expected: 'an array to accumulate in' }))
  expect(() => op.doubleBackward(x, undefined, z, { x }, { needs: { y: false } as never })).toThrow(code('invalid_option', 'needs.y'))
  expect(() => op.doubleBackward(x, undefined, z, { x: new Float64Array(3) }, { out: { gradOut: z } })).toThrow(code('overlap', 'out.gradOut'))
  expect(() => op.jvp(x, undefined, { y: x } as never)).toThrow(code('invalid_option', 'tangents.y'))
  expect(() => op.jvp(x, undefined, { x: z })).toThrow(code('wrong_length', 'tangents.x'))
  expect(() => op.doubleBackward(x, undefined, z, { y: x } as never)).toThrow(code('invalid_option', 'cotangents.y'))
  expect(() => op.doubleBackward(x, undefined, z, { x: z })).toThrow(code('wrong_length', 'cotangents.x'))
  expect(() => make('', {})).toThrow(code('invalid_irreps', 'irrepsIn'))
  expect(() => make('12e')).toThrow(code('degree_limit', 'irrepsIn'))
  expect(() => make('1o', { irrepsOut: '0e' } as never)).toThrow(code('invalid_option', 'options.irrepsOut'))
  expect(() => make('1o', { irrepNormalization: 'element' as never })).toThrow(code('invalid_option', 'options.irrepNormalization'))
  op.dispose()
  for (const call of [() => op.forward(x), () => op.backward(x, undefined, z), () => op.jvp(x, undefined, { x })]) expect(call).toThrow(expect.objectContaining({ code: 'disposed', message: expect.stringContaining('TensorSquare') }))
})

describe.runIf(defaultBackend === 'cuda')('on the device', () => {
  test('device arrays in and out, the same numbers', async () => {
    using op = make('3x1o+1x2e')
    const host = randomArray('float64', 14 * 5, random(1)), g = randomArray('float64', op.irrepsOut.dim * 5, random(2)), a = randomArray('float64', 14 * 5, random(3))
    using x = DeviceArray.from(host), v = DeviceArray.from(g), ax = DeviceArray.from(a)
    using z = op.forward(x)
    expect(z.download()).toEqual(op.forward(host))
    expect((await op.forwardAsync(x)).download()).toEqual(op.forward(host))
    expect(op.backward(x, undefined, v).x.download()).toEqual(op.backward(host, undefined, g).x)
    expect((await op.backwardAsync(host, undefined, g)).x).toEqual(op.backward(host, undefined, g).x)
    expect(op.jvp(x, undefined, { x: ax }).download()).toEqual(op.jvp(host, undefined, { x: a }))
    const second = op.doubleBackward(x, undefined, v, { x: ax }), expected = op.doubleBackward(host, undefined, g, { x: a })
    expect([second.x.download(), second.gradOut.download()]).toEqual([expected.x, expected.gradOut])
    expect(op.doubleBackward(x, undefined, v, {}).x.download()).toEqual(new Float64Array(host.length))
  })
})
