// GauntProduct and GauntPower against nested products of two, with every irrep in between; differences; rotations; grids; what a call accepts.
import { describe, expect, test } from 'vitest'
import { backends, DeviceArray, GauntPower, GauntProduct, GauntTensorProduct, Irreps, type DType } from '../lib/index'
import { caught } from './caught'
import { arrayError, blockError, dtypes, guarded, layouts, random, randomArray, randomRotation, rotated, sameBits, tolerance, type Numbers } from './support'
import { composed, sum, thirdOrderErrors, type Second, type Slots, type Third } from './third_order'

interface Problem {
  name: string
  factors: string[]
  out?: string
}
const natural = (L: number, mul = 1) => Irreps.sphericalHarmonics(L).blocks.map(({ ir }) => `${mul}x${ir.l}${ir.p > 0 ? 'e' : 'o'}`).join('+')
const problems: Problem[] = [
  { name: 'two, every irrep', factors: [natural(2), natural(3)] },
  { name: 'three, every irrep', factors: [natural(2), natural(1), natural(2)] },
  { name: 'three into scalars and vectors', factors: [natural(3, 3), natural(3, 3), natural(3, 3)], out: '3x1o+3x0e' },
  { name: 'four into scalars', factors: [natural(2), natural(2), natural(2), natural(2)], out: '0e' },
  { name: 'both parities, which would mix', factors: ['2x0e+2x1e+2x1o', '2x1o+2x2e+2x0o', '2x1e+2x1o'], out: '2x1o+2x0e+2x2o+2x3e' },
  { name: 'odd signals into an even one', factors: ['1o+1e', '2o+2e', '1o+0e', '1e+2e'], out: '2e' },
  { name: 'all degrees that there can be', factors: ['5e', '6o', '11e'], out: '22o+0o' },
]

function nest(problem: Problem, dtype: DType, layout: 'mul_ir' | 'ir_mul') {
  // With every irrep in between.
  const steps: GauntTensorProduct<any>[] = []
  problem.factors.slice(1).forEach((factor, i, all) => {
    const irrepsOut = i + 1 < all.length ? undefined : problem.out
    steps.push(new GauntTensorProduct<any>(i === 0 ? problem.factors[0]! : steps[i - 1]!.irrepsOut, factor, { dtype, layout, ...(irrepsOut && { irrepsOut }), algorithm: 'grid' }))
  })
  return {
    forward: (x: Numbers[]) => steps.reduce((z, op, i) => op.forward(z, x[i + 1]!) as Numbers, x[0]!),
    backward(x: Numbers[], g: Numbers): Numbers[] {
      const partial = [x[0]!]
      steps.forEach((op, i) => partial.push(op.forward(partial[i]!, x[i + 1]!) as Numbers))
      const gradients: Numbers[] = []
      for (let i = steps.length - 1; i >= 0; i--) {
        const { x: left, y } = steps[i]!.backward(partial[i]!, x[i + 1]!, undefined, g)
        gradients.unshift(y)
        g = left
      }
      return [g, ...gradients]
    },
  }
}
function setUp(problem: Problem, dtype: DType = 'float64', layout: 'mul_ir' | 'ir_mul' = 'mul_ir', batch = 5, threads = 2) {
  const op = new GauntProduct<any>(problem.factors, { dtype, layout, threads, ...(problem.out && { irrepsOut: problem.out }) })
  const next = random(5), draw = (length: number) => randomArray(dtype, length, next) as any
  const x = op.irrepsIn.map(({ dim }) => draw(dim * batch)) as any[], gradOut = draw(op.irrepsOut.dim * batch)
  return { op, x, gradOut, directions: x.map(({ length }) => draw(length)) as any[], draw }
}

/** Factors are the slots 0, 1, .... */
const secondOf = (op: GauntProduct<any>): Second => (at, along) => {
  const { x, gradOut } = op.doubleBackward(op.irrepsIn.map((_, i) => at[i]), at.gradOut, { x: op.irrepsIn.map((_, i) => along[i]) })
  return { ...(x as any), gradOut }
}

describe.each(problems)('$name: $factors -> $out', (problem) => {
  test.each(dtypes)('the nested products of two, %s', (dtype) => {
    for (const layout of layouts) {
      const { op, x, gradOut } = setUp(problem, dtype, layout), nested = nest(problem, dtype === 'float32' ? 'float64' : dtype, layout)
      const [exact, g] = [x.map((a) => Float64Array.from(a)), Float64Array.from(gradOut)]
      const expected = nested.backward(exact, g)
      expect(blockError(op.forward(x), nested.forward(exact), op.irrepsOut)).toBeLessThan(tolerance[dtype])
      op.backward(x, gradOut).x.forEach((gradient: Numbers, i: number) => expect(blockError(gradient, expected[i]!, op.irrepsIn[i]!)).toBeLessThan(tolerance[dtype]))
      op.dispose()
    }
  })

  test('first and second gradients are those of differences, every factor', () => {
    const { op, x, gradOut, directions, draw } = setUp(problem)
    const dot = (a: Numbers, b: Numbers) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
    const moved = (a: Numbers[], i: number, by: Numbers, t: number) => a.map((array, k) => (k === i ? array.map((v: number, c: number) => v + t * by[c]!) : array)) as any[]
    // Results are linear in each factor: a difference is exact for any step, but for roundings of sums of numbers as large as the values: 1e-12 of them.
    const check = (gradient: Numbers, direction: Numbers, f: (t: number) => number) => {
      const ahead = f(0.5), behind = f(-0.5), size = Math.sqrt(dot(gradient, gradient) * dot(direction, direction))
      expect(Math.abs(dot(gradient, direction) - (ahead - behind))).toBeLessThanOrEqual(1e-12 * (1 + Math.abs(ahead) + Math.abs(behind) + size))
    }
    const first = op.backward(x, gradOut)
    for (const a of [directions, directions.map((d, i) => (i === 1 ? d : undefined))]) {
      const second = op.doubleBackward(x, gradOut, { x: a })
      const scalar = (at: any[], g: any) => op.backward(at, g).x.reduce((sum: number, gradient: Numbers, i: number) => sum + (a[i] ? dot(a[i], gradient) : 0), 0)
      x.forEach((array, i) => {
        const d = draw(array.length)
        check(first.x[i]!, d, (t) => dot(op.forward(moved(x, i, d, t)) as Numbers, gradOut))
        check(second.x[i]!, d, (t) => scalar(moved(x, i, d, t), gradOut))
      })
      const d = draw(gradOut.length)
      check(second.gradOut, d, (t) => scalar(x, moved([gradOut], 0, d, t)[0]))
      expect(sameBits(op.jvp(x, { x: a }), second.gradOut)).toBe(true)
    }
    op.dispose()
  })

  test('third order, by composition', () => {
    const { op, x, gradOut } = setUp(problem)
    const at = { ...Object.fromEntries(x.map((array, i) => [i, array])), gradOut }
    for (const [slot, error] of thirdOrderErrors(secondOf(op), at)) expect(error, slot).toBeLessThan(tolerance.float64)
    op.dispose()
  })

  test('equivariant under rotations and the inversion', () => {
    for (const inversion of [false, true]) {
      const { op, x } = setUp(problem, 'float64', inversion ? 'ir_mul' : 'mul_ir')
      const rotation = randomRotation(random(4), inversion)
      const turned = x.map((array, i) => rotated(array, op.irrepsIn[i]!, op.layout, rotation))
      expect(blockError(op.forward(turned as any) as Numbers, rotated(op.forward(x) as any, op.irrepsOut, op.layout, rotation), op.irrepsOut)).toBeLessThan(tolerance.float64)
      op.dispose()
    }
  })

  test('the grid is the smallest exact one', () => {
    const { op, x } = setUp(problem), expected = op.forward(x)
    const degrees = [...op.irrepsIn, op.irrepsOut].reduce((sum, { lmax }) => sum + lmax, 0)
    expect(op.grid).toEqual({ beta: Math.floor(degrees / 2) + 1, alpha: degrees + 1 })
    const on = (beta: number, alpha: number) => {
      const other = new GauntProduct<any>(problem.factors, { dtype: 'float64', ...(problem.out && { irrepsOut: problem.out }) }, { grid: { beta, alpha } })
      return blockError(other.forward(x), expected, op.irrepsOut)
    }
    const { beta, alpha } = op.grid
    expect(on(beta + 1, alpha + 2)).toBeLessThan(tolerance.float64)
    // Where some component of the highest order of every factor and of the output meet.
    if (!problem.out || problem.name.startsWith('three into')) for (const error of [on(beta - 1, alpha), on(beta, alpha - 1)]) expect(error).toBeGreaterThan(1e-6)
  })

  test('op.cost counts the operations that the kernels execute', () => {
    const { op } = setUp(problem)
    for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(op.cost[pass].flops, pass).toBe(op.countFlops(pass))
  })
})

describe.each([2, 3, 4])('power %i', (n) => {
  test.each([['2x0e+2x1o+2x2e', undefined], ['1x0o+1x1o+1x1e', '1x1o+1x0e'], ['3x2e', '3x2e+3x0e']])('%s -> %s: the product of equal factors', (irreps, irrepsOut) => {
    for (const dtype of dtypes)
      for (const layout of layouts) {
        const options = { dtype, layout, ...(irrepsOut && { irrepsOut }) }
        const power = new GauntPower<any>(irreps, n, options), product = new GauntProduct<any>(new Array(n).fill(irreps), options)
        expect(`${power.irrepsOut}`).toBe(`${product.irrepsOut}`)
        expect(power.grid).toEqual(product.grid)
        const next = random(n), draw = (length: number) => randomArray(dtype, length, next) as any
        const x = draw(5 * power.irrepsIn.dim), g = draw(5 * power.irrepsOut.dim), a = draw(x.length), all = new Array(n).fill(x), as = new Array(n).fill(a)
        const sum = (arrays: Numbers[]) => arrays[0]!.map((_: number, i: number) => arrays.reduce((s, array) => s + array[i]!, 0))
        const second = power.doubleBackward(x, g, { x: a }), expected = product.doubleBackward(all, g, { x: as }), bar = tolerance[dtype]
        expect(blockError(power.forward(x), product.forward(all), power.irrepsOut)).toBeLessThan(bar)
        expect(blockError(power.backward(x, g).x, sum(product.backward(all, g).x), power.irrepsIn)).toBeLessThan(bar)
        expect(blockError(second.x, sum(expected.x), power.irrepsIn)).toBeLessThan(bar)
        expect(blockError(second.gradOut, expected.gradOut, power.irrepsOut)).toBeLessThan(bar)
        expect(sameBits(power.jvp(x, { x: a }), second.gradOut)).toBe(true)
        for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(power.cost[pass].flops, pass).toBe(power.countFlops(pass))
        expect(power.cost.forward.flops).toBeLessThan(product.cost.forward.flops)
      }
  })

  // Its own calls have all factors equal: the third order is that of the product, with x in every slot that no direction takes.
  test('third order, by composition with the product', () => {
    using power = new GauntPower<'float64'>('2x0e+2x1o+2x2e', n, { dtype: 'float64' }), product = new GauntProduct<any>(new Array(n).fill('2x0e+2x1o+2x2e'), { dtype: 'float64' })
    const next = random(n), draw = (length: number) => randomArray('float64', length, next)
    const factors = ({ x, ...others }: Slots): Slots => ({ ...others, ...Object.fromEntries(new Array(n).fill(x).entries()) })
    const third: Third = (at, along, moved) => {
      const { gradOut, ...x } = composed(secondOf(product))(factors(at), factors(along), factors(moved))
      return { x: Object.values(x).reduce((all, part) => sum(all, part)), gradOut: gradOut! }
    }
    const second: Second = ({ x, gradOut }, along) => ({ ...power.doubleBackward(x!, gradOut!, along) })
    for (const [slot, error] of thirdOrderErrors(second, { x: draw(5 * power.irrepsIn.dim), gradOut: draw(5 * power.irrepsOut.dim) }, third)) expect(error, slot).toBeLessThan(tolerance.float64)
  })
})

describe('calls', () => {
  test.each(dtypes)('bits do not depend on threads, on the way of a call, or on other items, %s', async (dtype) => {
    const problem = problems[4]!, batch = 5003
    const { op, x, gradOut, directions } = setUp(problem, dtype, 'mul_ir', batch, 1), other = setUp(problem, dtype, 'mul_ir', batch, 3).op
    const z = op.forward(x), first = op.backward(x, gradOut), second = op.doubleBackward(x, gradOut, { x: directions })
    const expected = [z, ...first.x, ...second.x, second.gradOut, second.gradOut] as Numbers[]
    const b = await other.backwardAsync(x, gradOut), d = await other.doubleBackwardAsync(x, gradOut, { x: directions })
    const all = [await other.forwardAsync(x), ...b.x, ...d.x, d.gradOut, await other.jvpAsync(x, { x: directions })] as Numbers[]
    all.forEach((array, i) => expect(sameBits(array, expected[i]!)).toBe(true))
    const item = 3001, row = (array: Numbers, dim: number) => array.slice(item * dim, (item + 1) * dim) as any
    expect(sameBits(op.forward(x.map((array, i) => row(array, op.irrepsIn[i]!.dim))), row(z, op.irrepsOut.dim))).toBe(true)
  })

  test.each(dtypes)('a part of the gradients, into given arrays, added to them, %s', (dtype) => {
    const { op, x, gradOut, directions, draw } = setUp(problems[2]!, dtype)
    const first = op.backward(x, gradOut), second = op.doubleBackward(x, gradOut, { x: directions })
    expect(op.backward(x, gradOut, { needs: { x: [true, false, true] } })).toEqual({ x: [first.x[0], undefined, first.x[2]] })
    expect(op.doubleBackward(x, gradOut, { x: directions }, { needs: { x: [false, false, false] } })).toEqual({ x: [undefined, undefined, undefined], gradOut: second.gradOut })
    expect(op.doubleBackward(x, gradOut, { x: directions }, { needs: { x: [false, true, false], gradOut: false } })).toEqual({ x: [undefined, second.x[1], undefined] })
    const out = guarded(dtype, gradOut.length, 3), dx = x.map(({ length }, i) => guarded(dtype, length, i))
    expect(op.forward(x, { out: out.array as any })).toBe(out.array)
    op.backward(x, gradOut, { out: { x: dx.map(({ array }) => array as any) } })
    expect(sameBits(out.array, op.forward(x))).toBe(true)
    dx.forEach(({ array }, i) => expect(sameBits(array, first.x[i]!)).toBe(true))
    for (const array of [out, ...dx]) expect(array.intact()).toBe(true)
    const sum = x.map(({ length }) => draw(length)), before = sum.map((array) => array.slice())
    op.backward(x, gradOut, { out: { x: sum }, accumulate: true })
    // One rounding of the sum.
    const bar = dtype === 'float64' ? 1e-15 : 1e-6
    sum.forEach((array, i) => expect(arrayError(array, before[i].map((v: number, c: number) => v + first.x[i]![c]!))).toBeLessThan(bar))
  })

  test('no items; no directions', async () => {
    const { op, x, gradOut } = setUp(problems[2]!)
    const none = new Float64Array(0)
    expect(op.forward([none, none, none])).toEqual(none)
    expect(op.backward([none, none, none], none)).toEqual({ x: [none, none, none] })
    expect(op.jvp(x, {})).toEqual(new Float64Array(gradOut.length))
    expect(op.doubleBackward(x, gradOut, { x: [undefined, undefined, undefined] }).x[0]).toEqual(new Float64Array(x[0].length))
    await expect(op.forwardAsync(x, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
  })
})

describe.runIf(backends().cuda.available)('on a device', () => {
  type Arrays = { x: any[]; g: any; a: any[] }
  const product = (op: GauntProduct<any>, { x, g, a }: Arrays): any[] => {
    const second = op.doubleBackward(x, g, { x: a }), some = op.doubleBackward(x, g, { x: a.map((array, i) => (i === 1 ? array : undefined)) }, { needs: { x: x.map((_, i) => i === 0), gradOut: false } })
    return [op.forward(x), ...op.backward(x, g).x, ...second.x, second.gradOut, some.x[0], op.jvp(x, { x: a })]
  }
  const power = (op: GauntPower<any>, { x: [x], g, a: [a] }: Arrays): any[] => [op.forward(x), op.backward(x, g).x, ...Object.values(op.doubleBackward(x, g, { x: a }))]

  test.each(dtypes.flatMap((dtype) => layouts.map((layout) => [dtype, layout] as const)))("results are the CPU's, and of the kind that came in, %s, %s", async (dtype, layout) => {
    const makers: [(options: object) => GauntProduct<any> | GauntPower<any>, (op: any, arrays: Arrays) => any[]][] = [
      [(options) => new GauntProduct<any>(['5x0e+5x1o', '5x1o+5x2e', '5x2e'], options), product],
      [(options) => new GauntProduct<any>(['2x1e+2x1o', '2x1o+2x2e', '2x1o+2x0e', '2x1e'], options), product],
      [(options) => new GauntPower<any>('8x0e+8x1o+8x3o', 3, { ...options, irrepsOut: '8x0e+8x1o' }), power],
      [(options) => new GauntPower<any>('1x0o+1x1o+1x1e', 4, options), power],
    ]
    for (const [make, run] of makers) {
      const op = make({ dtype, layout, backend: 'cuda' }), cpu = make({ dtype, layout, backend: 'cpu' }), next = random(9)
      const irreps = [op.irrepsIn].flat() as Irreps[], draw = (of: Irreps) => randomArray(dtype, of.dim * 41, next) as any
      const host: Arrays = { x: irreps.map(draw), g: draw(op.irrepsOut), a: irreps.map(draw) }, up = (array: any) => DeviceArray.from(array)
      const device: Arrays = { x: host.x.map(up), g: up(host.g), a: host.a.map(up) }
      const expected = run(cpu, host), onHost = run(op, host), onDevice = run(op, device)
      expect(onDevice.every((array) => array instanceof DeviceArray)).toBe(true)
      onHost.forEach((array, i) => expect(arrayError(array, expected[i])).toBeLessThan(tolerance[dtype]))
      onDevice.forEach((array, i) => expect(sameBits(array.download(), onHost[i])).toBe(true))
      const later: any = await (op instanceof GauntProduct ? op.forwardAsync(device.x) : op.forwardAsync(device.x[0]))
      expect(sameBits(later.download(), onHost[0])).toBe(true)
      op.dispose()
      cpu.dispose()
    }
  })

  test('arrays of both kinds are refused', () => {
    using op = new GauntProduct(['1o', '1o'], { backend: 'cuda' })
    const host = new Float32Array(3), device = DeviceArray.from(host)
    expect(caught(() => op.forward([device, host] as never)).code).toBe('wrong_kind')
    expect(caught(() => op.forward([host, device] as never)).code).toBe('wrong_kind')
    expect(op.jvp([device, device], {}).download().every((v) => v === 0)).toBe(true)
  })
})

describe('errors', () => {
  const code = (action: () => unknown) => {
    const { code, argument, message } = caught(action)
    expect(message).toMatch(/: expected .*, got /)
    return [code, argument]
  }
  test('constructors', () => {
    const make = (factors: any, options: any = {}) => () => new GauntProduct(factors, options)
    expect(code(make(['0e']))).toEqual(['invalid_argument', 'irrepsIn'])
    expect(code(make('0e'))).toEqual(['invalid_argument', 'irrepsIn'])
    expect(code(make(['0e', '0e', '0e', '0e', '0e']))).toEqual(['invalid_argument', 'irrepsIn'])
    expect(code(make(['0e', 'x']))).toEqual(['invalid_irreps', 'irrepsIn[1]'])
    expect(code(make(['2x0e', '3x0e']))).toEqual(['unequal_multiplicities', 'irrepsIn[1]'])
    expect(code(make(['2x0e', '2x0e+2x0e']))).toEqual(['repeated_irrep', 'irrepsIn[1]'])
    expect(code(make(['11e', '11e', '1e']))).toEqual(['degree_limit', 'irrepsIn[2]'])
    expect(code(make(['1o', '1o'], { irrepsOut: '1e' }))).toEqual(['no_path', 'options.irrepsOut'])
    expect(code(make(['1o', '1o'], { irrepsOut: '0e+0o' }))).toEqual(['unreachable_output', 'options.irrepsOut'])
    expect(code(make(['1o', '1o'], { irrepsOut: '2x0e' }))).toEqual(['unequal_multiplicities', 'options.irrepsOut'])
    expect(code(make(['1o', '1o'], { algorithm: 'grid' }))).toEqual(['invalid_option', 'options.algorithm'])
    expect(code(() => new GauntPower('1o', 5))).toEqual(['invalid_argument', 'n'])
    expect(code(() => new GauntPower('1o', 1))).toEqual(['invalid_argument', 'n'])
    expect(code(() => new GauntPower('6e', 4))).toEqual(['degree_limit', 'irrepsIn'])
    expect(code(() => new GauntPower('12e', 2))).toEqual(['degree_limit', 'irrepsIn'])
    const many = `${2 ** 29}x0e`, more = `${many}+${2 ** 29}x1o`
    expect(code(make([many, more], { irrepsOut: many }))).toEqual(['invalid_irreps', 'irrepsIn[1]'])
    expect(code(make([`${2 ** 28}x0e+${2 ** 28}x1o`, `${2 ** 28}x0e+${2 ** 28}x1o`]))).toEqual(['invalid_irreps', 'irrepsOut'])
  })
  test('calls, before anything is written', () => {
    const op = new GauntProduct(['1o', '1o', '0e']), x = [new Float32Array(6), new Float32Array(6), new Float32Array(2)], z = guarded('float32', 2 * op.irrepsOut.dim)
    const forward = (given: any) => code(() => op.forward(given, { out: z.array }))
    expect(forward([x[0], x[1]])).toEqual(['invalid_argument', 'x'])
    expect(forward(x[0])).toEqual(['invalid_argument', 'x'])
    expect(forward([x[0], new Float64Array(6), x[2]])).toEqual(['wrong_dtype', 'x[1]'])
    expect(forward([x[0], x[1], undefined])).toEqual(['invalid_argument', 'x[2]'])
    expect(forward([x[0], x[1]!.subarray(1), x[2]])).toEqual(['wrong_length', 'x[1]'])
    expect(forward([x[0], x[1], new Float32Array(1)])).toEqual(['batch_mismatch', 'x[2]'])
    expect(code(() => op.forward(x, { out: z.array.subarray(1) }))).toEqual(['wrong_length', 'out'])
    expect(code(() => op.backward(x, z.array, { out: { x: [x[0], undefined, undefined] } }))).toEqual(['overlap', 'out.x[0]'])
    expect(code(() => op.backward(x, z.array.subarray(1)))).toEqual(['wrong_length', 'gradOut'])
    expect(code(() => op.backward(x, undefined as never))).toEqual(['invalid_argument', 'gradOut'])
    expect(code(() => op.backward(x, z.array, { needs: { x: [true, 1, true] as never } }))).toEqual(['invalid_option', 'needs.x[1]'])
    expect(code(() => op.backward(x, z.array, { needs: { x: [false, true, true] }, out: { x: [new Float32Array(6), undefined, undefined] } }))).toEqual(['invalid_option', 'out.x[0]'])
    expect(code(() => op.backward(x, z.array, { accumulate: true }))).toEqual(['invalid_option', 'out.x[0]'])
    expect(code(() => op.jvp(x, { x: [x[0]!.subarray(1), undefined, undefined] }))).toEqual(['wrong_length', 'tangents.x[0]'])
    expect(code(() => op.doubleBackward(x, z.array, { y: x } as object))).toEqual(['invalid_option', 'cotangents.y'])
    expect(z.untouched() && z.intact()).toBe(true)
    op.dispose()
    expect(caught(() => op.forward(x)).code).toBe('disposed')
    const power = new GauntPower('1o', 2), v = new Float32Array(3), w = new Float32Array(power.irrepsOut.dim)
    expect(code(() => power.forward(v.subarray(1)))).toEqual(['wrong_length', 'x'])
    expect(code(() => power.backward(v, w, { needs: {} } as object))).toEqual(['invalid_option', 'options.needs'])
    expect(code(() => power.doubleBackward(v, w, { x: w }))).toEqual(['wrong_length', 'cotangents.x'])
    expect(code(() => power.backward(v, w, { out: { x: v } }))).toEqual(['overlap', 'out.x'])
  })
})
