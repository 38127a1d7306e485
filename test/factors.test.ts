// GauntTensorProduct and MatrixTensorProduct with factors for each irrep and channel, as weights: against the products without, and differences.
import { describe, expect, test } from 'vitest'
import { DeviceArray, GauntTensorProduct, Irreps, MatrixTensorProduct, type DType, type TensorProduct } from '../lib/index'
import { native } from '../lib/native'
import { caught } from './caught'
import { arrayError, blockError, defaultBackend, dtypes, guarded, layouts, places, random, randomArray, randomRotation, rotated, sameBits, tolerance, type Numbers } from './support'
import { thirdOrderErrors, type Second, type Slots } from './third_order'

type Make = (in1: string, in2: string, options: object) => TensorProduct<any>
const makers: [string, Make][] = [
  ['GTP, rings by coefficients', (a, b, o) => new (GauntTensorProduct as any)(a, b, o, { ring: 'coefficients' })],
  ['GTP, rings by values', (a, b, o) => new (GauntTensorProduct as any)(a, b, o, { ring: 'values' })],
  ['GTP, fourier', (a, b, o) => new (GauntTensorProduct as any)(a, b, o, { convolution: 'direct' })],
  ['GTP, fourier by FFT', (a, b, o) => new (GauntTensorProduct as any)(a, b, o, { convolution: 'fft' })],
  ['MTP', (a, b, o) => new MatrixTensorProduct<any>(a, b, o)],
  ['MTP, block form', (a, b, o) => new MatrixTensorProduct<any>(a, b, { ...o, form: 'block' })],
]
// Straight code of every kind, parities that would mix and an input whose odd irreps nothing has, float32 in double and tops by themselves.
const problems: [in1: string, in2: string, irrepsOut: string | undefined, rank: number][] = [
  ['0e+1o+2e', '0e+1o+2e', undefined, 1],
  ['3x1o+3x1e+3x2e', '3x2e+3x0o', '3x2e+3x1e+3x2o', 2],
  ['2x1o+2x1e+0x4e', '2x1e+2x2e', '2x2e', 3],
  ['1x6e', '1x6e+1x0e', '1x12e+1x6e', 1],
  ['1x9e', '1x8e+1x1e', '1x9e+1x8e', 2],
]
const plain = (make: Make, [in1, in2, irrepsOut]: (typeof problems)[number], options: object) => make(in1, in2, { dtype: 'float64', ...(irrepsOut && { irrepsOut }), ...options })

function setUp(make: Make, problem: (typeof problems)[number], options: { dtype?: DType; layout?: 'mul_ir' | 'ir_mul'; threads?: number; backend?: 'cpu' | 'cuda' } = {}, batch = 5, shape = { x: batch, y: batch, w: batch }) {
  const op = plain(make, problem, { ...options, weights: true, rank: problem[3] })
  const next = random(9), draw = (length: number) => randomArray(options.dtype ?? 'float64', length, next) as any
  const arrays = { x: draw(shape.x * op.irrepsIn1.dim), y: draw(shape.y * op.irrepsIn2.dim), w: draw(shape.w * op.weightNumel), g: draw(batch * op.irrepsOut.dim) }
  return { op, ...arrays, a: { x: draw(arrays.x.length), y: draw(arrays.y.length), weight: draw(arrays.w.length) }, draw }
}

/** Sum of c_r T(a_r x, b_r y) by the product without weights. */
function reference(make: Make, problem: (typeof problems)[number], op: TensorProduct<any>, x: Numbers, y: Numbers, w: Numbers, batch: number): Float64Array {
  const T = plain(make, problem, { layout: op.layout }), slots = [op.irrepsIn1, op.irrepsIn2, op.irrepsOut]
  const counts = slots.map(({ numIrreps }) => numIrreps), each = counts[0]! + counts[1]! + counts[2]!
  expect(op.weightNumel).toBe(problem[3] * each)
  const scale = (array: Numbers, s: number, r: number) => {
    const irreps = slots[s]!, rows = array.length / irreps.dim, result = new Float64Array(batch * irreps.dim)
    for (let n = 0; n < batch; n++) {
      let f = (w.length > op.weightNumel ? n * op.weightNumel : 0) + r * each + counts.slice(0, s).reduce((sum, c) => sum + c, 0)
      for (const block of places(irreps, op.layout)) for (const at of block) {
        for (const c of at) result[n * irreps.dim + c] = w[f]! * array[(rows === 1 ? 0 : n) * irreps.dim + c]!
        f++
      }
    }
    return result
  }
  const z = new Float64Array(batch * op.irrepsOut.dim)
  for (let r = 0; r < problem[3]; r++) scale(T.forward(scale(x, 0, r) as any, scale(y, 1, r) as any) as Numbers, 2, r).forEach((v, i) => (z[i]! += v))
  return z
}

const dot = (a: Numbers, b: Numbers) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
const plus = (a: Numbers, b: Numbers, t: number) => a.map((v: number, i: number) => v + t * b[i]!) as any

describe.each(makers)('%s', (_name, make) => {
  test.each(dtypes)('forward: the sum of products without weights, %s', (dtype) => {
    for (const problem of problems)
      for (const layout of layouts)
        for (const shape of [{ x: 70, y: 70, w: 1 }, { x: 70, y: 70, w: 70 }, { x: 1, y: 70, w: 1 }]) {
          const { op, x, y, w } = setUp(make, problem, { dtype, layout }, 70, shape)
          expect(blockError(op.forward(x, y, w) as Numbers, reference(make, problem, op, x, y, w, 70), op.irrepsOut)).toBeLessThan(tolerance[dtype])
          op.dispose()
        }
  })

  test.each([['a set for each item', { x: 3, y: 3, w: 3 }], ['one for all', { x: 3, y: 3, w: 1 }], ['x and weights shared', { x: 1, y: 3, w: 1 }], ['y shared', { x: 3, y: 1, w: 3 }]])(
    'first and second gradients are those of differences, every slot: %s',
    (_shape, shape) => {
      for (const problem of problems) {
        const { op, x, y, w, g, a, draw } = setUp(make, problem, {}, 3, shape)
        // Exact for polynomials up to degree 4; the results are of degree 3 in the weights at most. What is left are roundings of sums of numbers as
        // large as the values: 1e-12 of them, and ten times that for a difference of high degrees in the matrix, whose digits cancel (docs/decisions.md).
        const check = (gradient: Numbers, direction: Numbers, f: (t: number) => number) => {
          const [p, m, pp, mm] = [f(0.5), f(-0.5), f(1), f(-1)] as [number, number, number, number]
          const size = Math.max(...[p, m, pp, mm].map(Math.abs)) + Math.sqrt(dot(gradient, gradient) * dot(direction, direction))
          expect(Math.abs(dot(gradient, direction) - (8 * (p - m) - (pp - mm)) / 6)).toBeLessThanOrEqual(1e-11 * (1 + size))
        }
        const value = (u: any, v: any, q: any) => dot(op.forward(u, v, q) as Numbers, g)
        const first = op.backward(x, y, w, g)
        const [dx, dy, dw, dg] = [draw(x.length), draw(y.length), draw(w.length), draw(g.length)]
        check(first.x, dx, (t) => value(plus(x, dx, t), y, w))
        check(first.y, dy, (t) => value(x, plus(y, dy, t), w))
        check(first.weight, dw, (t) => value(x, y, plus(w, dw, t)))
        for (const some of [a, { x: a.x }, { y: a.y }, { weight: a.weight }, { x: a.x, weight: a.weight }] as any[]) {
          const scalar = (u: any, v: any, q: any, h: any) => {
            const b = op.backward(u, v, q, h)
            return (some.x ? dot(some.x, b.x) : 0) + (some.y ? dot(some.y, b.y) : 0) + (some.weight ? dot(some.weight, b.weight) : 0)
          }
          const second = op.doubleBackward(x, y, w, g, some)
          check(second.x, dx, (t) => scalar(plus(x, dx, t), y, w, g))
          check(second.y, dy, (t) => scalar(x, plus(y, dy, t), w, g))
          check(second.weight, dw, (t) => scalar(x, y, plus(w, dw, t), g))
          check(second.gradOut, dg, (t) => scalar(x, y, w, plus(g, dg, t)))
          expect(arrayError(op.jvp(x, y, w, some), second.gradOut)).toBeLessThan(1e-14)
        }
        op.dispose()
      }
    },
  )

  test.each([['a set for each item', { x: 3, y: 3, w: 3 }], ['one for all', { x: 3, y: 3, w: 1 }], ['x shared', { x: 1, y: 3, w: 1 }]])('third order, by composition: %s', (_shape, shape) => {
    for (const problem of problems) {
      const { op, x, y, w, g } = setUp(make, problem, {}, 3, shape)
      // The results are linear in the factors of x, in those of y and in those of z: three slots, each as long as the weights, of which it has its own.
      const counts = [op.irrepsIn1, op.irrepsIn2, op.irrepsOut].map(({ numIrreps }) => numIrreps), each = counts.reduce((a, b) => a + b)
      const kindOf = (i: number) => (i % each < counts[0]! ? 'ofX' : i % each < counts[0]! + counts[1]! ? 'ofY' : 'ofZ')
      const apart = (weight: Float64Array): Slots => Object.fromEntries(['ofX', 'ofY', 'ofZ'].map((kind) => [kind, weight.map((v, i) => (kindOf(i) === kind ? v : 0))]))
      const whole = (slots: Slots) => w.map((_: number, i: number) => slots[kindOf(i)]?.[i] ?? 0)
      const second: Second = (at, along) => {
        const { x, y, weight, gradOut } = op.doubleBackward(at.x as any, at.y as any, whole(at), at.gradOut as any, { x: along.x, y: along.y, weight: whole(along) }) as any
        return { x, y, gradOut, ...apart(weight) }
      }
      for (const [slot, error] of thirdOrderErrors(second, { x, y, ...apart(w), gradOut: g })) expect(error, `${problem} ${slot}`).toBeLessThan(tolerance.float64)
      op.dispose()
    }
  })

  test('op.cost counts the operations that the kernels execute', () => {
    for (const problem of problems)
      for (const dtype of dtypes) {
        const { op } = setUp(make, problem, { dtype })
        for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(op.cost[pass].flops, `${problem} ${pass}`).toBe(op.countFlops(pass))
        op.dispose()
      }
  })

  test('equivariant under rotations and the inversion', () => {
    for (const problem of problems)
      for (const inversion of [false, true]) {
        const { op, x, y, w } = setUp(make, problem, { layout: inversion ? 'ir_mul' : 'mul_ir' })
        const rotation = randomRotation(random(4), inversion), turn = (array: Float64Array, irreps: Irreps) => rotated(array, irreps, op.layout, rotation)
        const z = op.forward(turn(x, op.irrepsIn1) as any, turn(y, op.irrepsIn2) as any, w) as Numbers
        expect(blockError(z, turn(op.forward(x, y, w) as any, op.irrepsOut), op.irrepsOut)).toBeLessThan(1e-11) // see above
        op.dispose()
      }
  })

  test.each(dtypes)('bits do not depend on threads or on the way of a call; given arrays, added to, %s', async (dtype) => {
    // Several tasks of a thread; of a GPU several tiles.
    const problem = problems[1]!, batch = defaultBackend === 'cuda' ? 301 : 3001
    for (const w of [1, batch]) {
      const { op, x, y, w: weight, g, a } = setUp(make, problem, { dtype, threads: 1 }, batch, { x: batch, y: batch, w })
      using other = plain(make, problem, { dtype, threads: 3, weights: true, rank: 2 }) as TensorProduct<any>
      const first = op.backward(x, y, weight, g), second = op.doubleBackward(x, y, weight, g, a)
      const z = op.forward(x, y, weight)
      expect(sameBits((await other.forwardAsync(x, y, weight)) as Numbers, z)).toBe(true)
      const [b, d] = [await other.backwardAsync(x, y, weight, g), await other.doubleBackwardAsync(x, y, weight, g, a)]
      for (const name of ['x', 'y', 'weight'] as const) expect(sameBits(b[name], first[name]) && sameBits(d[name], second[name]), name).toBe(true)
      expect(sameBits(d.gradOut, second.gradOut)).toBe(true)
      expect(op.backward(x, y, weight, g, { needs: { x: false, weight: false } })).toEqual({ y: first.y })
      expect(op.backward(x, y, weight, g, { needs: { x: false, y: false } })).toEqual({ weight: first.weight })
      const out = { x: guarded(dtype, x.length, 1), y: guarded(dtype, y.length, 3), weight: guarded(dtype, weight.length, 5) }
      op.backward(x, y, weight, g, { out: { x: out.x.array as any, y: out.y.array as any, weight: out.weight.array as any } })
      for (const name of ['x', 'y', 'weight'] as const) expect(sameBits(out[name].array, first[name]) && out[name].intact(), name).toBe(true)
      const sum = { x: first.x.slice(), y: first.y.slice(), weight: first.weight.slice() }
      op.backward(x, y, weight, g, { out: sum as any, accumulate: true })
      // Added to what is there term by term, for each of which one rounding.
      for (const name of ['x', 'y', 'weight'] as const) expect(arrayError(sum[name], first[name].map((v: number) => 2 * v))).toBeLessThan(dtype === 'float64' ? 1e-15 : 1e-6)
    }
  })
})

// One launch, and one more for the sum of a gradient; every array read from memory once and written once. Of the FFT a double backward is two launches: a tile has
// too few items for all results at once.
describe.runIf(native.cuda?.counting)('on a device', () => {
  test.each(makers)('%s: the results of host arrays, launches and bytes', (name, make) => {
    for (const rank of [1, 2])
      for (const sets of [1, 70]) {
        const { op, x, y, w, g, a } = setUp(make, ['3x1o+3x1e+3x2e', '3x2e+3x0o', '3x2e+3x1e+3x2o', rank], { dtype: 'float32', backend: 'cuda' }, 70, { x: 70, y: 70, w: sets })
        const device = (arrays: any) => Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, DeviceArray.from(array as Float32Array)])) as any
        const d = device({ x, y, w, g }), da = device(a), sum = sets === 1 ? 1 : 0
        // The gradient of a set for all is written an item, and read again to be summed.
        const each = sum ? 70 * w.length : w.length, summed = sum ? 70 * w.length : 0
        const passes: [() => object, () => object, launches: number, read: number, written: number][] = [
          [() => ({ z: op.forward(x, y, w) }), () => ({ z: op.forward(d.x, d.y, d.w) }), 1, x.length + y.length + w.length, g.length],
          [() => op.backward(x, y, w, g), () => op.backward(d.x, d.y, d.w, d.g), 1 + sum, x.length + y.length + w.length + g.length + summed, x.length + y.length + w.length * sum + each],
          [
            () => op.doubleBackward(x, y, w, g, a), () => op.doubleBackward(d.x, d.y, d.w, d.g, da), 1 + sum, 2 * (x.length + y.length + w.length) + g.length + summed,
            x.length + y.length + g.length + w.length * sum + each,
          ],
          [() => ({ z: op.jvp(x, y, w, a) }), () => ({ z: op.jvp(d.x, d.y, d.w, da) }), 1, 2 * (x.length + y.length + w.length), g.length],
        ]
        passes.forEach(([onHost, onDevice, launches, read, written], pass) => {
          const expected = onHost()
          native.cuda!.counting!(true)
          const actual = Object.entries(onDevice()).map(([result, array]) => [result, (array as DeviceArray).download()] as const)
          const counts = native.cuda!.counting!(false)
          const isParted = pass === 2 && name === 'GTP, fourier by FFT'
          expect(counts.launches, `pass ${pass}`).toBe(isParted ? launches + 1 : launches)
          for (const [result, array] of actual) expect(sameBits(array, (expected as any)[result]), `pass ${pass}, ${result}`).toBe(true)
          // Both launches read all operands and all results but the first's, and write all results.
          const [readTwice, writtenTwice] = [2 * (read - summed) + written - w.length * sum + summed, 2 * written - w.length * sum]
          expect([counts.loaded.unique, counts.stored.unique], `pass ${pass}`).toEqual(isParted ? [4 * readTwice, 4 * writtenTwice] : [4 * read, 4 * written])
        })
        op.dispose()
      }
  })

  // Gradients of an item each, 400,001 rows of 24 numbers, which are summed in two launches more.
  test('sums of many items', () => {
    const problem: (typeof problems)[number] = ['4x0e', '4x0e', undefined, 2], batch = 400_001, shape = { x: batch, y: 1, w: 1 }
    const { op, x, y, w, g } = setUp(makers[0]![1], problem, { dtype: 'float32' }, batch, shape)
    using cpu = plain(makers[0]![1], problem, { dtype: 'float32', weights: true, rank: 2, backend: 'cpu' }) as TensorProduct<any>
    expect(arrayError(op.forward(x, y, w) as Numbers, cpu.forward(x, y, w) as Numbers)).toBeLessThan(tolerance.float32)
    const actual = op.backward(x, y, w, g), expected = cpu.backward(x, y, w, g)
    // Sums of 79 numbers, 8, 79 and 8: their roundings add up to less than a thousand of the root of 400,000 terms.
    for (const name of ['x', 'y', 'weight'] as const) expect(arrayError(actual[name], expected[name]), name).toBeLessThan(tolerance.float32)
    op.dispose()
  })

  // A tile of degree 6 is small where all results are formed at once: they are formed one by one, and in a double backward term by term.
  test.each(makers)('%s: many steps', (_name, make) => {
    const irreps = '0e+1o+2e+3o+4e+5o+6e', problem: (typeof problems)[number] = [irreps, irreps, irreps, 2]
    const { op, x, y, w, g, a } = setUp(make, problem, { backend: 'cuda' }, 3)
    using cpu = plain(make, problem, { weights: true, rank: 2, backend: 'cpu' }) as TensorProduct<any>
    for (const pass of [
      (of: any) => of.backward(x, y, w, g), (of: any) => of.doubleBackward(x, y, w, g, a), (of: any) => of.doubleBackward(x, y, w, g, { x: a.x }), (of: any) => of.doubleBackward(x, y, w, g, { weight: w }),
      (of: any) => ({ z: of.jvp(x, y, w, { weight: a.weight }) }),
    ]) {
      const expected = pass(cpu)
      for (const [name, array] of Object.entries(pass(op))) expect(arrayError(array as Numbers, expected[name]), name).toBeLessThan(tolerance.float64)
    }
    op.dispose()
  })
})

test('without weights nothing changes, and options', () => {
  using op = new GauntTensorProduct('2x0e+2x1o', '2x1o', { weights: false })
  expect(op.weightNumel).toBe(0)
  const code = (action: () => unknown) => {
    const { code, argument } = caught(action)
    return [code, argument]
  }
  for (const make of [GauntTensorProduct, MatrixTensorProduct] as (new (...args: any[]) => TensorProduct<any>)[]) {
    expect(code(() => new make('1o', '1o', { rank: 2 }))).toEqual(['invalid_option', 'options.rank'])
    for (const rank of [0, 1.5, -1, '2']) expect(code(() => new make('1o', '1o', { weights: true, rank }))).toEqual(['invalid_option', 'options.rank'])
    expect(code(() => new make('1o', '1o', { weights: true, rank: 2 ** 31 }))).toEqual(['invalid_option', 'options.rank'])
    expect(code(() => new make('1o', '1o', { weights: 1 }))).toEqual(['invalid_option', 'options.weights'])
    expect(new make('1o', '1o', { weights: true }).backend).toBe(defaultBackend)
    const weighted = new make('2x0e+2x1o', '2x1o', { weights: true, rank: 3, irrepsOut: '2x1o' })
    expect(weighted.weightNumel).toBe(3 * 2 * (2 + 1 + 1))
    expect(code(() => weighted.forward(new Float32Array(8), new Float32Array(6)))).toEqual(['weight_missing', 'weight'])
  }
  expect(new GauntTensorProduct('1o', '1o').backend).toBe(defaultBackend)
})
