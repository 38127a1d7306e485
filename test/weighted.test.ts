// ClebschGordanTensorProduct with e3nn's instructions and weights: e3nn's numbers, every mode against its einsum, differences, and what a call accepts.
import { describe, expect, test } from 'vitest'
import { ClebschGordanTensorProduct, Convolution, Graph, Irreps, type Instruction } from '../lib/index'
import {
  arrayError, blockError, constructors, dtypes, golden, guarded, layouts, random, randomArray, randomRotation, relayout, rotated, sameBits, tolerance,
} from './support'
import { composed, thirdOrderErrors, type Second } from './third_order'
import { batches, draw, make, one, passErrors, problems } from './weighted_problems'

type Product = ClebschGordanTensorProduct<any>
const { channelwise, fullyConnected } = ClebschGordanTensorProduct

interface GoldenCase {
  name: string
  irreps_in1: string
  irreps_in2: string
  irreps_out: string
  instructions: { i1: number; i2: number; iout: number; mode: Instruction['mode']; has_weight: boolean; coef: number; shape: number[] }[]
  shared_weights: boolean
  weight_numel: number
}

// Where e3nn's normalisation has options that there are not here (variances), the squares of the coefficients are path weights of their own.
function ofInstructions(c: GoldenCase, options: object): Product {
  const fixed = c.name.includes('vars')
  const instructions = c.instructions.map(({ i1, i2, iout, mode, has_weight, coef }): Instruction => ({
    in1: i1, in2: i2, out: iout, mode, hasWeight: has_weight, ...(fixed && { pathWeight: coef ** 2 }),
  }))
  const normalization = fixed ? { irrepNormalization: 'none', pathNormalization: 'none' } : c.name.includes('path_norm') ? { pathNormalization: 'path' } : {}
  return new ClebschGordanTensorProduct(c.irreps_in1, c.irreps_in2, { irrepsOut: c.irreps_out, instructions, ...normalization, ...options } as object)
}
function ofFactory(c: GoldenCase, options: object): Product | undefined {
  const { irreps_in1: in1, irreps_in2: in2, irreps_out: out } = c
  if (c.name.startsWith('uvu')) return channelwise(in1, in2, out, options)
  if (c.name.startsWith('uvw')) return fullyConnected(in1, in2, out, { ...options, pathNormalization: c.name.includes('path_norm') ? 'path' : 'element' })
  return undefined
}

describe("e3nn's numbers", () => {
  const cases: any[] = golden('weighted_tensor_product').cases
  test.each(cases.map((c) => [c.name, c]))('%s', (_name, c) => {
    for (const dtype of dtypes) {
      for (const layout of layouts) {
        for (const op of [ofInstructions(c, { dtype, layout }), ofFactory(c, { dtype, layout })]) {
          if (!op) continue
          const [in1, in2, out] = [c.irreps_in1, c.irreps_in2, c.irreps_out].map((s) => new Irreps(s)) as [Irreps, Irreps, Irreps]
          expect(op.weightNumel).toBe(c.weight_numel)
          expect(`${op.irrepsOut}`).toBe(c.irreps_out)
          expect(op.paths.map(({ in1, in2, out }) => [in1, in2, out])).toEqual(c.instructions.map((i: any) => [i.i1, i.i2, i.iout]))
          c.instructions.forEach((i: any, n: number) => expect(op.paths[n]!.coefficient).toBeCloseTo(i.coef, 13))

          const of = (values: number[], irreps: Irreps) => relayout(constructors[dtype].from(values), irreps, 'mul_ir', layout)
          const weights = (values: number[]) => constructors[dtype].from(values)
          const [x, y, w, v] = [of(c.x, in1), of(c.y, in2), weights(c.w), of(c.v, out)]
          const cotangents = { x: of(c.a_x, in1), y: of(c.a_y, in2), weight: weights(c.a_w) }
          const first = op.backward(x, y, w, v), second = op.doubleBackward(x, y, w, v, cotangents)
          const bar = tolerance[dtype]
          expect(blockError(op.forward(x, y, w), of(c.out, out), out)).toBeLessThan(bar)
          expect(blockError(first.x, of(c.grad_x, in1), in1)).toBeLessThan(bar)
          expect(blockError(first.y, of(c.grad_y, in2), in2)).toBeLessThan(bar)
          expect(arrayError(first.weight, c.grad_w)).toBeLessThan(bar)
          expect(blockError(second.x, of(c.dd_x, in1), in1)).toBeLessThan(bar)
          expect(blockError(second.y, of(c.dd_y, in2), in2)).toBeLessThan(bar)
          expect(arrayError(second.weight, c.dd_w)).toBeLessThan(bar)
          expect(blockError(second.gradOut, of(c.dd_v, out), out)).toBeLessThan(bar)
          op.dispose()
        }
      }
    }
  })
})

// Squares of coefficients, by hand from e3nn's constructor. Block 0: uvu sums 2 channels, uvw 3 x 2 and uuw 3, 11 together; block 1 has one path.
test('normalisations: the elements of all paths or of one, the dimensions, the weight of a path', () => {
  const instructions: Instruction[] = [
    { in1: 0, in2: 0, out: 0, mode: 'uvu', hasWeight: true },
    { in1: 0, in2: 0, out: 0, mode: 'uvw', hasWeight: true, pathWeight: 4 },
    { in1: 0, in2: 1, out: 0, mode: 'uuw', hasWeight: true },
    { in1: 0, in2: 1, out: 1, mode: 'u<vw', hasWeight: true },
  ]
  const squares = (options: object) => {
    using op = new ClebschGordanTensorProduct('3x1o', '2x1e+3x1e', { irrepsOut: '3x2o+4x1o', instructions, ...options } as object)
    return op.paths.map(({ coefficient }) => coefficient ** 2)
  }
  const close = (actual: number[], expected: number[]) => actual.forEach((v, i) => expect(v).toBeCloseTo(expected[i]!, 14))
  close(squares({}), [5 / 11, 20 / 11, 5 / 11, 3 / 3])
  close(squares({ pathNormalization: 'path' }), [5 / (3 * 2), 20 / (3 * 6), 5 / (3 * 3), 3 / 3])
  close(squares({ pathNormalization: 'none' }), [5, 20, 5, 3])
  close(squares({ irrepNormalization: 'norm' }), [9 / 11, 36 / 11, 9 / 11, 9 / 3])
  close(squares({ irrepNormalization: 'none', pathNormalization: 'path' }), [1 / 6, 4 / 18, 1 / 9, 1 / 3])

  const elements = (mode: Instruction['mode'], in1: string, in2: string, out: string) => {
    using op = new ClebschGordanTensorProduct(in1, in2, { irrepsOut: out, instructions: [{ in1: 0, in2: 0, out: 0, mode, hasWeight: true }] })
    return [Math.round(1 / op.paths[0]!.coefficient ** 2), op.weightNumel]
  }
  expect(elements('uvw', '3x0e', '5x0e', '7x0e')).toEqual([15, 105])
  expect(elements('uvu', '3x0e', '5x0e', '3x0e')).toEqual([5, 15])
  expect(elements('uvv', '3x0e', '5x0e', '5x0e')).toEqual([3, 15])
  expect(elements('uuw', '3x0e', '3x0e', '7x0e')).toEqual([3, 21])
  expect(elements('uuu', '3x0e', '3x0e', '3x0e')).toEqual([1, 3])
  expect(elements('uvuv', '3x0e', '5x0e', '15x0e')).toEqual([1, 15])
  expect(elements('uvu<v', '5x0e', '5x0e', '10x0e')).toEqual([1, 10])
  expect(elements('u<vw', '5x0e', '5x0e', '7x0e')).toEqual([10, 70])
})

test('a path of weight 0 counts in the normalisation and has weights, as in e3nn, and is none of those that couple', () => {
  const path = { in1: 0, in2: 0, out: 0, mode: 'uvw', hasWeight: true } as const, nothing = { ...path, in2: 1, pathWeight: 0 }
  const make = (instructions: Instruction[]) => new ClebschGordanTensorProduct('2x1o', '2x1o+2x3o', { irrepsOut: '1x2e', instructions, dtype: 'float64' })
  using both = make([path, nothing]), one = make([path])
  expect([both.weightNumel, both.paths.map(({ coefficient }) => coefficient)]).toEqual([8, [one.paths[0]!.coefficient * Math.SQRT1_2, 0]])
  expect([both.expressivity, both.interactability]).toEqual([one.expressivity, one.interactability])
  const next = random(1), x = randomArray('float64', 6, next), y = randomArray('float64', 20, next), weight = randomArray('float64', 8, next)
  const z = one.forward(x, y.map((v, i) => (i < 6 ? v : 0)), weight.subarray(0, 4))
  // A rounding of float64 in each of some ten terms of order 1.
  both.forward(x, y, weight).forEach((v, i) => expect(v).toBeCloseTo(z[i]! * Math.SQRT1_2, 13))
})

test("a channelwise product keeps e3nn's order: sorted blocks, odd before even, and among equals the order of the pairs", () => {
  using op = channelwise('2x1o+3x0e', '0e+1o', '0e+1o+1e+2e')
  expect(`${op.irrepsOut}`).toBe('2x0e+3x0e+2x1o+3x1o+2x1e+2x2e')
  expect(op.paths.map(({ in1, in2, out }) => [in1, in2, out])).toEqual([[0, 1, 0], [1, 0, 1], [0, 0, 2], [1, 1, 3], [0, 1, 4], [0, 1, 5]])
  expect(op.weightNumel).toBe(14)
  using all = channelwise('2x1o+3x0e', '0e+1o')
  expect(`${all.irrepsOut}`).toBe(`${op.irrepsOut}`)
  expect(all.interactability).toEqual([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 2]])
})

// Sums over up to 17 items and 119 pairs of channels keep well within the bars.
describe.each(problems)('$name', (problem) => {
  test.each(batches)('%s', (...batch) => {
    for (const dtype of dtypes) {
      for (const layout of layouts) {
        const p = make(problem, dtype, layout)
        expect(p.op.weightNumel).toBe(p.terms.weightNumel)
        const errors = passErrors(p, dtype, batch)
        expect(errors).toHaveLength(p.op.weightNumel > 0 ? 9 : 7)
        for (const [result, error] of errors) expect(error, `${result}, ${dtype} ${layout}`).toBeLessThan(tolerance[dtype])
        p.op.dispose()
      }
    }
  })
})

describe.each([problems.at(-2)!, problems.at(-1)!])('differences, $name', (problem) => {
  // The form is linear in each slot, so central differences are exact at any step; a step of 1 cancels no digits.
  const p = make(problem, 'float64', 'mul_ir'), { op } = p

  test("every instruction's weights, one by one", () => {
    const numel = op.weightNumel
    const { arrays: { x, y, w, z } } = draw('float64', p, ['', 1, 1, 1])
    const copies = (array: Float64Array) => Float64Array.from({ length: numel * array.length }, (_, i) => array[i % array.length]!)
    const shifted = (step: number) => op.forward(copies(x), y, copies(w).map((v, i) => v + (i % (numel + 1) === 0 ? step : 0)))
    const [up, down] = [shifted(1), shifted(-1)]
    const difference = Float64Array.from({ length: numel }, (_, i) => z.reduce((sum, v, k) => sum + (v * (up[i * z.length + k]! - down[i * z.length + k]!)) / 2, 0))
    const gradient = op.backward(x, y, w, z).weight
    let first = 0
    for (const { in1, in2, out, mode, hasWeight } of problem.instructions) {
      const muls = [p.in1.blocks[in1]!.mul, p.in2.blocks[in2]!.mul, p.out.blocks[out]!.mul]
      if (!hasWeight || muls.includes(0)) continue
      const shapes = { uvw: [0, 1, 2], uvu: [0, 1], uvv: [0, 1], uuw: [0, 2], uuu: [0], uvuv: [0, 1], 'uvu<v': [2], 'u<vw': [2] }
      const count = shapes[mode].reduce((n, s) => n * muls[s]!, 1) * (mode === 'u<vw' ? (muls[0]! * (muls[0]! - 1)) / 2 : 1)
      const [actual, expected] = [gradient, difference].map((array) => array.slice(first, first + count)) as [Float64Array, Float64Array]
      expect(expected.every((v) => v !== 0), mode).toBe(true)
      expect(arrayError(actual, expected), mode).toBeLessThan(tolerance.float64)
      first += count
    }
    expect(first).toBe(numel)
  })

  test.each(batches)('the double backward and the jvp, %s', (...batch) => {
    const { arrays: { x, y, w, z }, a } = draw('float64', p, batch), { arrays: d } = draw('float64', p, batch, 2)
    const dot = (u: Float64Array, v: Float64Array) => u.reduce((sum, value, i) => sum + value * v[i]!, 0)
    const plus = (u: Float64Array, v: Float64Array, t: number) => u.map((value, i) => value + t * v[i]!)
    const scalar = (x: Float64Array, y: Float64Array, w: Float64Array, z: Float64Array) => {
      const g = op.backward(x, y, w, z)
      return dot(a.x, g.x) + dot(a.y, g.y) + dot(a.w, g.weight)
    }
    const second = op.doubleBackward(x, y, w, z, { x: a.x, y: a.y, weight: a.w })
    const scale = 1 + Math.abs(scalar(x, y, w, z)) + dot(z, z) + dot(w, w)
    for (const [actual, up, down] of [
      [dot(second.x, d.x), [plus(x, d.x, 0.5), y, w, z], [plus(x, d.x, -0.5), y, w, z]],
      [dot(second.y, d.y), [x, plus(y, d.y, 0.5), w, z], [x, plus(y, d.y, -0.5), w, z]],
      [dot(second.weight, d.w), [x, y, plus(w, d.w, 0.5), z], [x, y, plus(w, d.w, -0.5), z]],
      [dot(second.gradOut, d.z), [x, y, w, plus(z, d.z, 0.5)], [x, y, w, plus(z, d.z, -0.5)]],
    ] as const) {
      expect(Math.abs(actual - scalar(...(up as [any, any, any, any])) + scalar(...(down as [any, any, any, any])))).toBeLessThan(1e-12 * scale)
    }
    // Cubic in t: the fourth-order difference is exact.
    const at = (t: number) => op.forward(plus(x, a.x, t), plus(y, a.y, t), plus(w, a.w, t))
    const [p1, m1, p2, m2] = [at(0.5), at(-0.5), at(1), at(-1)]
    const tangent = op.jvp(x, y, w, { x: a.x, y: a.y, weight: a.w })
    const difference = tangent.map((_, i) => (8 * (p1[i]! - m1[i]!) - (p2[i]! - m2[i]!)) / 6)
    expect(tangent.every((v, i) => Math.abs(v - difference[i]!) < 1e-12 * scale)).toBe(true)
  })
})

// Channelwise and fully connected as models have them, and every mode at once, where paths without weights are: of degree 1 in the weights, and not linear.
test.each<[name: string, op: ClebschGordanTensorProduct<'float64'>, polynomial?: string]>([
  ['channelwise', channelwise('3x0e+3x1o+2x2e', '0e+1o+2e', '0e+1o+2e', { dtype: 'float64' })], ['fully connected', fullyConnected('3x0e+2x1o', '0e+1o+2e', '2x0e+3x1o+2x1e', { dtype: 'float64' })],
  ['every mode', make(problems.at(-3)!, 'float64', 'ir_mul').op, 'weight'],
])('third order, by composition: %s', (_name, op, polynomial) => {
  const second: Second = ({ x, y, weight, gradOut }, along) => ({ ...op.doubleBackward(x, y, weight, gradOut, along) })
  for (const [xs, ys, sets] of [[3, 3, 3], [3, 3, 1], [1, 3, 3], [3, 1, 1]] as const) {
    const next = random(1), rows = (count: number, dim: number) => randomArray('float64', count * dim, next)
    const at = { x: rows(xs, op.irrepsIn1.dim), y: rows(ys, op.irrepsIn2.dim), weight: rows(sets, op.weightNumel), gradOut: rows(3, op.irrepsOut.dim) }
    for (const [slot, error] of thirdOrderErrors(second, at, composed(second, polynomial))) expect(error, `${slot} of ${xs}, ${ys}, ${sets}`).toBeLessThan(tolerance.float64)
  }
})

// In float32 such products have kernels of their own. Against float64, on numbers that are the same in both; few channels, so that vectors and rows of
// several items overlap, and a block that no path reads.
describe.each(['5x0e+3x1o+2x7e+5x2e', '2x0e+2x1o', '48x1o'])('channelwise in float32, %s: a part of the directions, and of the results, added to what is there', (in1) => {
  test.each(layouts)('%s', (layout) => {
    const make = <D extends 'float32' | 'float64'>(dtype: D) => channelwise(in1, '0e+1o+3o', '0e+1o+2e+3o', { dtype, layout, threads: 1 })
    const edge = Int32Array.of(0, 1, 2, 0, 1, 2, 2, 0, 0, 0, 1, 2, 2, 2), graph = new Graph(edge, 3)
    const makeConvolution = <D extends 'float32' | 'float64'>(dtype: D) => Convolution.channelwise(in1, '0e+1o+3o', '0e+1o+2e+3o', { dtype, layout, threads: 1 })
    using large = channelwise('64x0e+64x2e', '0e+1o+2e+3o', '0e+1o+2e+3o', { layout, threads: 1 })
    const random0 = random(1), filler = [large.irrepsIn1.dim, large.irrepsIn2.dim, large.weightNumel, large.irrepsOut.dim].map((dim) => randomArray('float32', dim, random0)) as [Float32Array, Float32Array, Float32Array, Float32Array]
    const other = () => large.doubleBackward(...filler, { x: filler[0], y: filler[1], weight: filler[2] })
    using narrow = make('float32'), wide = make('float64'), narrowConvolution = makeConvolution('float32'), wideConvolution = makeConvolution('float64')
    const wideGraph = new Graph(edge, 3), next = random(3), rows = (count: number, dim: number) => randomArray('float32', count * dim, next), wider = (a?: Float32Array) => a && Float64Array.from(a)
    for (const nodes of [7, 3]) {
      const drawn = () => ({ x: rows(nodes, wide.irrepsIn1.dim), y: rows(7, wide.irrepsIn2.dim), weight: rows(7, wide.weightNumel), gradOut: rows(nodes, wide.irrepsOut.dim) })
      const at = drawn(), { gradOut: _, ...along } = drawn()
      for (const given of [[], ['x'], ['y'], ['weight'], ['x', 'y'], ['x', 'weight'], ['y', 'weight'], ['x', 'y', 'weight']] as (keyof typeof along)[][]) {
        for (const name of ['x', 'y', 'weight', 'gradOut'] as const) {
          if (name === 'gradOut' && given.length === 0) continue
          other() // leaves numbers where kernels keep theirs
          const needs = { x: false, y: false, weight: false, ...(given.length > 0 && { gradOut: false }), [name]: true }
          const before = rows(at[name].length, 1), out = guarded('float32', before.length, 3), directions = Object.fromEntries(given.map((of) => [of, along[of]]))
          out.array.set(before)
          const options = { needs, out: { [name]: out.array }, accumulate: true } as object, wideDirections = Object.fromEntries(given.map((of) => [of, wider(along[of])!]))
          const [x, y, w, z] = Object.values(at) as [Float32Array, Float32Array, Float32Array, Float32Array], all = [x, y, w, z].map(wider) as [Float64Array, Float64Array, Float64Array, Float64Array]
          let expected: any
          if (nodes === 7) {
            given.length > 0 ? narrow.doubleBackward(x, y, w, z, directions, options) : narrow.backward(x, y, w, z, options)
            expected = given.length > 0 ? wide.doubleBackward(...all, wideDirections) : wide.backward(...all)
          } else {
            given.length > 0 ? narrowConvolution.doubleBackward(graph, x, y, w, z, directions, options) : narrowConvolution.backward(graph, x, y, w, z, options)
            expected = given.length > 0 ? wideConvolution.doubleBackward(wideGraph, ...all, wideDirections) : wideConvolution.backward(wideGraph, ...all)
          }
          expect(out.intact()).toBe(true)
          expect(arrayError(out.array, before.map((v, i) => v + expected[name][i]!)), `${given} -> ${name}`).toBeLessThan(tolerance.float32)
        }
      }
    }
  })
})

describe('calls', () => {
  const problem = problems.at(-1)!, p = make(problem, 'float64', 'mul_ir'), { op } = p
  const perItem = draw('float64', p, ['', 5, 5, 5]), shared = draw('float64', p, ['', 5, 5, 'shared'])

  test('the gradient of shared weights is the sum over the items', () => {
    const { x, y, w, z } = shared.arrays, sets = Float64Array.from({ length: 5 * w.length }, (_, i) => w[i % w.length]!)
    expect(op.forward(x, y, sets)).toEqual(op.forward(x, y, w))
    const each = op.backward(x, y, sets, z).weight
    const sum = w.map((_, i) => [0, 1, 2, 3, 4].reduce((s, b) => s + each[b * w.length + i]!, 0))
    expect(arrayError(op.backward(x, y, w, z).weight, sum)).toBeLessThan(tolerance.float64)
  })

  test('a missing cotangent is zero, and what no term reaches is zero', () => {
    const { arrays: { x, y, w, z }, a } = perItem
    const zeros = { x: new Float64Array(x.length), y: new Float64Array(y.length), weight: new Float64Array(w.length) }
    const all = { x: a.x, y: a.y, weight: a.w }
    for (const given of [[], ['x'], ['y'], ['weight'], ['x', 'y'], ['x', 'weight'], ['y', 'weight']] as (keyof typeof all)[][]) {
      const some = Object.fromEntries(given.map((name) => [name, all[name]]))
      const actual = op.doubleBackward(x, y, w, z, some), expected = op.doubleBackward(x, y, w, z, { ...zeros, ...some })
      // The terms with zeros are added to the others and change nothing but the sign of a zero.
      for (const name of ['x', 'y', 'weight', 'gradOut'] as const) expect(actual[name].map((v) => v + 0), `${given} ${name}`).toEqual(expected[name].map((v) => v + 0))
      expect(op.jvp(x, y, w, some).map((v) => v + 0)).toEqual(op.jvp(x, y, w, { ...zeros, ...some }).map((v) => v + 0))
    }
  })

  test.each([['a set for each item', perItem], ['shared', shared]] as const)('a part of the gradients, into given arrays, added to them: %s', (_name, { arrays: { x, y, w, z }, a }) => {
    const directions = { x: a.x, y: a.y, weight: a.w }
    const first = op.backward(x, y, w, z), second = op.doubleBackward(x, y, w, z, directions)
    for (const name of ['x', 'y', 'weight', 'gradOut'] as const) {
      const needs = { x: false, y: false, weight: false, gradOut: false, [name]: true }
      expect(op.doubleBackward(x, y, w, z, directions, { needs })).toEqual({ [name]: second[name] })
      const before = randomArray('float64', second[name].length, random(9)), out = guarded('float64', before.length, 3)
      out.array.set(before)
      const result = op.doubleBackward(x, y, w, z, directions, { needs, out: { [name]: out.array }, accumulate: true })
      expect(result[name]).toBe(out.array)
      expect(out.intact()).toBe(true)
      // A sum is rounded in another order.
      expect(arrayError(out.array, before.map((v, i) => v + second[name][i]!))).toBeLessThan(tolerance.float64)
      if (name === 'gradOut') continue
      const { gradOut: _, ...needsFirst } = needs
      expect(op.backward(x, y, w, z, { needs: needsFirst })).toEqual({ [name]: first[name] })
      out.array.set(before)
      op.backward(x, y, w, z, { needs: needsFirst, out: { [name]: out.array }, accumulate: true })
      expect(arrayError(out.array, before.map((v, i) => v + first[name][i]!))).toBeLessThan(tolerance.float64)
    }
    // Nothing contributes to the gradient of the weights without a direction of x or y.
    const kept = w.map((v) => v + 1), before = kept.slice(), needs = { x: false, y: false, gradOut: false }
    op.doubleBackward(x, y, w, z, { weight: a.w }, { needs, out: { weight: kept }, accumulate: true })
    expect(kept).toEqual(before)
    expect(op.doubleBackward(x, y, w, z, { weight: a.w }, { needs, out: { weight: kept } }).weight).toEqual(new Float64Array(w.length))
  })

  test('weights of another dtype are an error of types too', () => {
    using single = channelwise('1o', '1o'), double = channelwise('1o', '1o', undefined, { dtype: 'float64' })
    const a = new Float32Array(3), b = new Float64Array(3)
    // @ts-expect-error
    expect(() => single.forward(a, a, b)).toThrow(/weight/)
    // @ts-expect-error
    expect(() => double.backward(b, b, a, new Float64Array(9))).toThrow(/weight/)
    const weight: Float64Array = double.backward(b, b, b, new Float64Array(9)).weight
    expect(weight).toHaveLength(3)
  })

  test('asynchronous calls give the same, and copy the weights', async () => {
    for (const { arrays: { x, y, w, z }, a } of [perItem, shared]) {
      const directions = { x: a.x, y: a.y, weight: a.w }, changed = w.slice()
      const pending = Promise.all([
        op.forwardAsync(x, y, w),
        op.backwardAsync(x, y, w, z),
        op.doubleBackwardAsync(x, y, w, z, directions),
        op.jvpAsync(x, y, w, directions),
        op.forwardAsync(x, y, changed),
      ])
      structuredClone(changed, { transfer: [changed.buffer as ArrayBuffer] })
      const [forward, first, second, tangent, again] = await pending
      expect(forward).toEqual(op.forward(x, y, w))
      expect(again).toEqual(forward)
      expect(first).toEqual(op.backward(x, y, w, z))
      expect(second).toEqual(op.doubleBackward(x, y, w, z, directions))
      expect(tangent).toEqual(op.jvp(x, y, w, directions))
    }
    await expect(op.forwardAsync(perItem.arrays.x, perItem.arrays.y)).rejects.toMatchObject({ code: 'weight_missing', argument: 'weight' })
  })

  test.each(layouts)('bitwise the same for any number of threads, %s', (layout) => {
    for (const problem of [problems[0]!, problems[4]!, problems.at(-2)!]) {
      const results = [1, 2, 5].map((threads) => {
        const p = make(problem, 'float32', layout, { threads }), { op } = p
        return (['shared', 1000] as const).flatMap((sets) => {
          const { arrays: { x, y, w, z }, a } = draw('float32', p, ['', 1000, 1000, sets])
          const first = op.backward(x, y, w, z), second = op.doubleBackward(x, y, w, z, { x: a.x, y: a.y, weight: a.w })
          return [op.forward(x, y, w), first.x, first.y, first.weight, second.x, second.y, second.weight, second.gradOut]
        })
      })
      results[0]!.forEach((array, n) => expect(results.every((result) => sameBits(result[n]!, array))).toBe(true))
    }
  })

  test('equivariant under rotations and the inversion, with gradients', () => {
    const next = random(4)
    for (const problem of [problems.at(-1)!, problems.at(-2)!, one('uvu', true, '5x3o', '1x4e', '5x1o+5x7o'), one('uvw', true, '2x5e', '2x6o', '3x2o+1x11o')]) {
      const p = make(problem, 'float64', 'ir_mul'), { op, in1, in2, out } = p
      const { arrays: { x, y, w, z } } = draw('float64', p, ['', 3, 3, 3])
      for (const inversion of [false, true]) {
        const rotation = randomRotation(next, inversion), turn = (array: Float64Array, irreps: Irreps) => rotated(array, irreps, 'ir_mul', rotation)
        const g = op.backward(x, y, w, z), t = op.backward(turn(x, in1), turn(y, in2), w, turn(z, out))
        expect(blockError(op.forward(turn(x, in1), turn(y, in2), w), turn(op.forward(x, y, w), out), out)).toBeLessThan(tolerance.float64)
        expect(blockError(t.x, turn(g.x, in1), in1)).toBeLessThan(tolerance.float64)
        expect(blockError(t.y, turn(g.y, in2), in2)).toBeLessThan(tolerance.float64)
        expect(arrayError(t.weight, g.weight)).toBeLessThan(tolerance.float64)
      }
    }
  })

  test.each(problems)('cost is what the kernels execute, $name', (problem) => {
    for (const dtype of dtypes) {
      for (const layout of layouts) {
        const { op } = make(problem, dtype, layout), size = dtype === 'float32' ? 4 : 8
        for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(op.cost[pass].flops, `${pass} ${dtype} ${layout}`).toBe(op.countFlops(pass))
        const inputs = op.irrepsIn1.dim + op.irrepsIn2.dim, outputs = op.irrepsOut.dim
        expect(Object.values(op.cost).map(({ bytes }) => bytes / size)).toEqual([inputs + outputs, 2 * inputs + outputs, 3 * inputs + 2 * outputs])
      }
    }
  })
})
