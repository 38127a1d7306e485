// What every operation computes: against the reference, under rotations, its gradients, and what it says of itself.
import { describe, expect, test, vi } from 'vitest'
import { passes } from '../bench/passes'
import { cases, type ProblemIrreps } from '../bench/problems'
import { largestError, positions } from '../bench/reference'
import { itemsForCpu } from '../lib/cost_model'
import {
  backends, capture, ClebschGordanTensorProduct, Convolution, GauntPower, GauntProduct, GauntTensorProduct, Irreps, Linear, MatrixTensorProduct, SymmetricContraction,
  TensorProduct, TensorSquare,
} from '../lib/index'
import { binary, native } from '../lib/native'
import { products } from './reference'
import { blockError, defaultBackend, dtypes, guarded, layouts, type Numbers, random, randomArray, randomRotation, rotated, tolerance } from './support'

const even = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}e`).join('+')
const both = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}o+${mul}x${l}e`).join('+')

// The benchmark's problems, at every L that the project promises: forward and backward against the sum over all coefficients.
describe.each(['even', 'natural'] as const)('problems of bench/problems.ts, parity %s', (parity) => {
  describe.each(dtypes)('%s', (dtype) => {
    const all = cases({ L: [1, 2, 3, 4, 5, 6, 7, 8], parity })
    test.each(all.map((c) => [c.name, c] as const))('%s', (_name, c) => {
      if (c.noPath) {
        expect(() => c.make({ dtype, layout: 'mul_ir' })).toThrow(expect.objectContaining({ code: 'no_path' }))
        return
      }
      for (const layout of c.L <= 4 ? layouts : [layouts[c.L % 2]!]) {
        const op = c.make({ dtype, layout })
        const irreps = { x: c.irreps.in1, y: c.irreps.in2, z: op.irrepsOut }
        for (const pass of passes) {
          const batch = 5, next = random(c.L), arrays: Record<string, Numbers> = {}
          for (const [name, slot] of Object.entries(pass.reads)) arrays[name] = randomArray(dtype, irreps[slot].dim * batch, next)
          for (const [name, slot] of Object.entries(pass.writes)) arrays[name] = guarded(dtype, irreps[slot].dim * batch).array
          pass.bind(op, arrays)()
          const error = largestError({ form: c.form, pass, arrays, irreps, layout, items: [0, 1, 2, 3, 4] })
          expect(error, `${pass.name} ${layout}`).toBeLessThan(tolerance[dtype])
        }
        op.dispose()
      }
    })
  })
})

test("the benchmark's own check sees a wrong number, also in the smallest block", () => {
  const [c] = cases({ L: [3], problems: ['MIMO'], operations: ['gtp-grid'] })
  const op = c!.make({ dtype: 'float64', layout: 'ir_mul' })
  const irreps = { x: c!.irreps.in1, y: c!.irreps.in2, z: op.irrepsOut }, pass = passes[0]!
  for (const block of positions(irreps.z, 'ir_mul')) {
    const arrays: Record<string, Numbers> = { x: randomArray('float64', 16, random(1)), y: randomArray('float64', 16, random(2)), z: new Float64Array(irreps.z.dim) }
    pass.bind(op, arrays)()
    arrays.z![block[0]!]! += 1e-9
    expect(largestError({ form: c!.form, pass, arrays, irreps, layout: 'ir_mul', items: [0] })).toBeGreaterThan(1e-11)
  }
})

describe.each(products)('$name', ({ name, make, channelwise }) => {
  const elementwise = name.includes('elementwise')

  // Every parity with every other. Elementwise needs as many irreps on both sides and couples them one to one.
  const pairs = (L: number): [string, string][] =>
    elementwise
      ? [[`1x${L}o+1x${L}e+1x0o+1x1e`, `1x${L}e+1x1o+1x${L}o+1x${L}e`], [`2x${L}e+1x${L}o`, `3x${L}o`]]
      : L <= 4
        ? [[both(L), both(L)], [both(L, 2), both(1, 2)]]
        : channelwise
          ? [[both(L), both(L)]]
          : [[`1x${L}o+1x${L}e`, `1x${L}o+1x${L - 1}e+1x0o`]]

  test.each([1, 2, 3, 4, 5, 6, 7, 8])('equivariant under rotations and the inversion, L = %i', (L) => {
    const next = random(L)
    for (const [in1, in2] of pairs(L)) {
      using op = make(in1, in2, { dtype: 'float64', layout: layouts[L % 2] })
      const a = new Irreps(in1), b = new Irreps(in2)
      for (const inversion of [false, true]) {
        const rotation = randomRotation(next, inversion)
        const x = randomArray('float64', 3 * a.dim, next), y = randomArray('float64', 3 * b.dim, next), v = randomArray('float64', 3 * op.irrepsOut.dim, next)
        const turn = (array: Float64Array, irreps: Irreps) => rotated(array, irreps, op.layout, rotation)
        const [tx, ty, tv] = [turn(x, a), turn(y, b), turn(v, op.irrepsOut)]
        // The rotation of degree l itself is accurate to about l 1e-16 (wigner.test.ts), well within the bar.
        expect(blockError(op.forward(tx, ty), turn(op.forward(x, y) as Float64Array, op.irrepsOut), op.irrepsOut)).toBeLessThan(tolerance.float64)
        const g = op.backward(x, y, undefined, v), tg = op.backward(tx, ty, undefined, tv)
        expect(blockError(tg.x, turn(g.x as Float64Array, a), a)).toBeLessThan(tolerance.float64)
        expect(blockError(tg.y, turn(g.y as Float64Array, b), b)).toBeLessThan(tolerance.float64)
      }
    }
  })

  test('gradients are those of finite differences, every component', () => {
    for (const [in1, in2] of [...pairs(2), elementwise ? ['3x2o', '3x1e'] : ['1x3o', '1x2e']] as [string, string][]) {
      using op = make(in1, in2, { dtype: 'float64' })
      const a = new Irreps(in1), b = new Irreps(in2)
      const x = randomArray('float64', a.dim, random(1)), y = randomArray('float64', b.dim, random(2)), v = randomArray('float64', op.irrepsOut.dim, random(3))
      const gradients = op.backward(x, y, undefined, v)
      // The form is linear in each input, so a central difference is exact at any step, and a step of 1 cancels no digits: what remains are
      // the roundings of two sums of dim products of numbers of order 1, some 1e-14.
      const difference = (input: Float64Array, forward: (items: Float64Array) => ArrayLike<number>) => {
        const n = input.length, shifted = (step: number) => Float64Array.from({ length: n * n }, (_, i) => input[i % n]! + (i % (n + 1) === 0 ? step : 0))
        const [up, down] = [forward(shifted(1)), forward(shifted(-1))]
        return Float64Array.from({ length: n }, (_, i) => v.reduce((sum, w, k) => sum + (w * (up[i * v.length + k]! - down[i * v.length + k]!)) / 2, 0))
      }
      expect(blockError(gradients.x, difference(x, (items) => op.forward(items, y)), a)).toBeLessThan(tolerance.float64)
      expect(blockError(gradients.y, difference(y, (items) => op.forward(x, items)), b)).toBeLessThan(tolerance.float64)
    }
  })

  test.each(layouts)('cost is what the kernels execute, and each array once, %s', (layout) => {
    const problems: [string, string][] = elementwise
      ? [['0e', '0e'], ['5x1o', '5x1o'], ['2x1o+3x1o', '1x2e+4x0e'], ['3x8e', '3x8o']]
      : [['0e', '0e'], ['1o', '1o'], ['11e', '11o'], ['0e+2e+4e', '1e+3e'], [both(1), both(2)], [both(2, 3), both(1, 3)], ...[1, 2, 3, 4, 5, 6, 7].map((L): [string, string] => [even(L), even(L)])]
    for (const [in1, in2] of problems) {
      for (const dtype of dtypes) {
        using op = make(in1, in2, { dtype, layout })
        const size = dtype === 'float32' ? 4 : 8, inputs = new Irreps(in1).dim + new Irreps(in2).dim
        expect(op.cost.forward.flops, `${in1} x ${in2}`).toBe(op.countFlops('forward'))
        expect(op.cost.backward.flops, `${in1} x ${in2}`).toBe(op.countFlops('backward'))
        expect(op.cost.doubleBackward.flops, `${in1} x ${in2}`).toBe(op.countFlops('doubleBackward'))
        expect(op.cost.forward.flops).toBeGreaterThan(0)
        const outputs = op.irrepsOut.dim
        expect(Object.values(op.cost).map(({ bytes }) => bytes / size)).toEqual([inputs + outputs, 2 * inputs + outputs, 3 * inputs + 2 * outputs])
      }
    }
  })

  test('says what it is', () => {
    using op = make('2x1o+2x0e', '2x0e+2x1o', { layout: 'ir_mul', threads: 3 })
    expect(op).toBeInstanceOf(TensorProduct)
    expect(op).toMatchObject({ dtype: 'float32', layout: 'ir_mul', backend: defaultBackend, threads: 3, weightNumel: 0 })
    expect([`${op.irrepsIn1}`, `${op.irrepsIn2}`]).toEqual(['2x1o+2x0e', '2x0e+2x1o'])
    for (const { in1, in2, out, l } of op.paths) {
      const irs = [op.irrepsIn1.blocks[in1]!, op.irrepsIn2.blocks[in2]!, op.irrepsOut.blocks[out]!].map(({ ir }) => ir)
      expect(irs.map((ir) => ir.l)).toEqual([...l])
      expect(irs[0]!.p * irs[1]!.p).toBe(irs[2]!.p)
    }
    expect(op.interactability).toEqual([...op.interactability].sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]))
    using other = make(new Irreps('2x1o'), new Irreps([[2, '1o']]))
    expect([other.dtype, other.layout]).toEqual(['float32', 'mul_ir'])
  })
})

test('the problems cover every operation and say where there is no path', () => {
  const irreps = ({ in1, in2, out }: ProblemIrreps) => `${in1} x ${in2} -> ${out}`
  const none = cases({ L: [1, 2, 3] }).filter((c) => c.noPath)
  expect(none.map((c) => [c.name, irreps(c.irreps)])).toEqual([1, 3].flatMap((L) => ['gtp-grid', 'gtp-fourier'].map((name) => [`SISO L=${L} ${name}`, `1x${L}e x 1x${L}e -> 1x${L}e`])))
})

describe('choices', () => {
  test('the model: the CPU for few items, and for any where the bus is slower', () => {
    // 300 ns on a thread, of which the bus takes 100: 40 microseconds are saved by 200 items.
    expect(itemsForCpu({ flops: 9000, bytes: 1000 }, 1)).toBe(200)
    expect(itemsForCpu({ flops: 9000, bytes: 1000 }, 2)).toBe(800)
    expect(itemsForCpu({ flops: 100, bytes: 1000 }, 1)).toBe(Infinity)
  })

  test('are told with their reasons', () => {
    const choice = { algorithm: 'sparse: the only one', backend: 'cpu: options.backend says so' }
    const products = [
      ['sparse: the default', ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cpu' })],
      ['dense: options.algorithm says so', ClebschGordanTensorProduct.elementwise('1o', '1o', { backend: 'cpu', algorithm: 'dense' })],
      ['sparse: the only one', ClebschGordanTensorProduct.channelwise('1o', '1o', '0e', { backend: 'cpu' })],
      ['grid: options.algorithm says so', new GauntTensorProduct('1o', '1o', { backend: 'cpu', algorithm: 'grid' })],
      ['grid: options.grid says so', new GauntTensorProduct('1o', '1o', { backend: 'cpu', grid: { beta: 5 } })],
      ['single: the default', new MatrixTensorProduct('1o', '1o', { backend: 'cpu' })],
      ['block: options.form says so', new MatrixTensorProduct('1o', '1o', { backend: 'cpu', form: 'block' })],
    ] as const
    for (const [algorithm, op] of products) expect(op.choice).toEqual({ ...choice, algorithm })
    for (const Product of [Linear, SymmetricContraction]) expect(new Product('1o', '1o', { backend: 'cpu' }).choice).toEqual(choice)
    expect(new TensorSquare('1o', { backend: 'cpu' }).choice).toEqual(choice)
    expect(Convolution.channelwise('1o', '1o', '0e', { backend: 'cpu' })).toMatchObject({ choice, device: 0 })
    for (const product of [new GauntProduct(['1o', '1o'], { backend: 'cpu' }), new GauntPower('1o', 2, { backend: 'cpu' })]) {
      expect(product.choice).toEqual({ ...choice, algorithm: 'grid: the only one' })
    }
  })

  test.skipIf(backends().cuda.available)('without a device: the reason is the one of backends(), and an error names who asked', () => {
    const { reason } = backends().cuda as { reason: string }
    vi.stubEnv('EQUITENSOR_BACKEND', 'auto')
    expect(ClebschGordanTensorProduct.full('1o', '1o').choice.backend).toBe(`cpu: no CUDA device: ${reason}`)
    vi.stubEnv('EQUITENSOR_BACKEND', '')
    expect(ClebschGordanTensorProduct.full('1o', '1o').choice.backend).toBe(`cpu: no CUDA device: ${reason}`)
    vi.stubEnv('EQUITENSOR_BACKEND', 'cpu')
    expect(ClebschGordanTensorProduct.full('1o', '1o').choice.backend).toBe('cpu: EQUITENSOR_BACKEND says so')
    vi.stubEnv('EQUITENSOR_BACKEND', 'cuda')
    expect(() => ClebschGordanTensorProduct.full('1o', '1o')).toThrow(expect.objectContaining({ code: 'backend_unavailable', argument: 'EQUITENSOR_BACKEND' }))
    expect(() => ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' })).toThrow(expect.objectContaining({ argument: 'options.backend' }))
    vi.unstubAllEnvs()
  })

  test.runIf(binary.flavour === 'emulated')("with 'auto' and a device, small calls on host arrays run on the CPU", () => {
    const before = process.env.EQUITENSOR_BACKEND
    process.env.EQUITENSOR_BACKEND = 'auto'
    try {
      using op = ClebschGordanTensorProduct.full('0e+1e+2e+3e+4e+5e+6e', '0e+1e+2e+3e+4e+5e+6e', { threads: 1 })
      expect(op.backend).toBe('cuda')
      expect(op.choice.backend).toMatch(/^cuda: there is .*; calls on host arrays with up to \d+ items run on the CPU/)
      const most = Number(/up to (\d+) items/.exec(op.choice.backend)![1])
      const run = (items: number) => {
        native.cuda!.counting!(true)
        op.forward(new Float32Array(49 * items), new Float32Array(49 * items))
        return native.cuda!.counting!(false).launches
      }
      expect([run(most), run(most + 1)]).toEqual([0, 1])
      using small = new GauntTensorProduct('0e', '0e'), power = new GauntPower('0e', 2)
      expect(small.choice.backend).toMatch(/run on the CPU, which is faster than the bus$/)
      // Such a call would not be part of a graph, without anybody noticing.
      const x = new Float32Array(1)
      for (const call of [() => small.forward(x, x), () => power.forward(x)]) expect(() => capture(call)).toThrow(expect.objectContaining({ code: 'capturing' }))
      expect([small.forward(x, x), power.forward(x)]).toEqual([x, x])
    } finally {
      if (before === undefined) delete process.env.EQUITENSOR_BACKEND
      else process.env.EQUITENSOR_BACKEND = before
    }
  })
})
