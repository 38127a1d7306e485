// SymmetricContraction against MACE's definition, path by path, from wigner3j alone; differences; rotations; what a call accepts.
import { describe, expect, test } from 'vitest'
import { backends, capture, DeviceArray, Irreps, Linear, SymmetricContraction, wigner3j, type DType, type Irrep } from '../lib/index'
import { caught } from './caught'
import {
  arrayError, blockError, defaultBackend, dtypes, guarded, layouts, places, random, randomArray, randomRotation, relayout, rotated, sameBits, tolerance, type Numbers,
} from './support'
import { composed, thirdOrderErrors, type Second } from './third_order'

/** A column of MACE's U matrix: the factors' blocks, and what they are coupled to one after the other. */
interface Column {
  out: number
  blocks: number[]
  degrees: number[]
}

/** As mace/tools/cg.py makes them: `_wigner_nj` for every number of factors, of which `U_matrix_real` takes those with the irrep of the output. */
function columns(irrepsIn: Irreps, irrepsOut: Irreps, correlation: number): Column[] {
  type Entry = { ir: Irrep; blocks: number[]; degrees: number[] }
  const wignerNj = (n: number): Entry[] => {
    if (n === 1) return irrepsIn.blocks.flatMap(({ mul, ir }, b) => (mul ? [{ ir, blocks: [b], degrees: [ir.l] }] : []))
    const entries: Entry[] = []
    for (const left of wignerNj(n - 1)) {
      irrepsIn.blocks.forEach(({ mul, ir }, b) => {
        for (let l = Math.abs(left.ir.l - ir.l); mul && l <= left.ir.l + ir.l; l++) {
          entries.push({ ir: { l, p: (left.ir.p * ir.p) as 1 | -1 }, blocks: [...left.blocks, b], degrees: [...left.degrees, l] })
        }
      })
    }
    return entries.sort((a, b) => a.ir.l - b.ir.l || a.ir.p - b.ir.p) // of tuples (l, p) in Python
  }
  return irrepsOut.blocks.flatMap(({ mul, ir }, out) => {
    if (!mul) return []
    const found: Column[] = []
    for (let n = correlation; n >= 1; n--) for (const entry of wignerNj(n)) if (entry.ir.l === ir.l && entry.ir.p === ir.p) found.push({ out, ...entry })
    return found
  })
}

/** C_M(a, b) = sqrt(2 L + 1) sum_ij wigner3j(L, l_a, l_b)[M, i, j] a_i b_j */
function couple(a: number[], b: number[], L: number): number[] {
  const key = [L, a.length, b.length].join()
  if (!nonzeros.has(key)) {
    const w = wigner3j(L, (a.length - 1) / 2, (b.length - 1) / 2), entries: [number, number, number, number][] = []
    w.forEach((v, n) => v !== 0 && entries.push([Math.floor(n / a.length / b.length), Math.floor(n / b.length) % a.length, n % b.length, Math.sqrt(2 * L + 1) * v]))
    nonzeros.set(key, entries)
  }
  const result = new Array<number>(2 * L + 1).fill(0)
  for (const [M, i, j, v] of nonzeros.get(key)!) result[M]! += v * a[i]! * b[j]!
  return result
}
const nonzeros = new Map<string, [number, number, number, number][]>()

/** Derivative of a column in some directions, at x: sums over the places in which they stand. */
function derivative({ blocks, degrees }: Column, x: number[][], directions: number[][][]): number[] {
  const size = 2 * degrees.at(-1)! + 1, sum = new Array<number>(size).fill(0)
  const place = (standing: (number[][] | undefined)[], next: number): void => {
    if (next === directions.length) {
      let value = (standing[0] ?? x)[blocks[0]!]!
      for (let f = 1; f < blocks.length; f++) value = couple(value, (standing[f] ?? x)[blocks[f]!]!, degrees[f]!)
      value.forEach((v, m) => (sum[m]! += v))
      return
    }
    blocks.forEach((_, f) => {
      if (!standing[f]) place(Object.assign([...standing], { [f]: directions[next] }), next + 1)
    })
  }
  place([], 0)
  return sum
}

interface Problem {
  name: string
  in: string
  out: string
  correlation: number
  numSpecies: number
  nodes?: number
}
const problems: Problem[] = [
  { name: 'MACE, scalars', in: '2x0e+2x1o+2x2e', out: '2x0e', correlation: 3, numSpecies: 2 },
  { name: 'MACE, scalars and vectors', in: '3x0e+3x1o+3x2e+3x3o', out: '3x0e+3x1o', correlation: 3, numSpecies: 3 },
  { name: 'two factors', in: '17x0e+17x1o+17x2e', out: '17x0e+17x1o+17x2e', correlation: 2, numSpecies: 2 },
  { name: 'one factor, another order', in: '5x2e+5x0o', out: '5x0o+5x2e', correlation: 1, numSpecies: 1 },
  { name: 'both parities, unsorted', in: '1x1e+1x0o+1x1o+1x2o', out: '1x1e+1x0e+1x1o+1x0o', correlation: 3, numSpecies: 1 },
  { name: 'no linear path, an empty block', in: '33x1o+0x4e', out: '33x0e+33x3o+0x1e', correlation: 3, numSpecies: 2 },
  { name: 'high degrees', in: '1x4e+1x5o', out: '1x5o+1x8e', correlation: 3, numSpecies: 1, nodes: 2 },
]

type Operation = SymmetricContraction<any>
function setUp(problem: Problem, dtype: DType = 'float64', layout: 'mul_ir' | 'ir_mul' = 'mul_ir', threads = 2, nodes = problem.nodes ?? 5) {
  const { correlation, numSpecies } = problem
  const op: Operation = new SymmetricContraction<any>(problem.in, problem.out, { correlation, numSpecies, dtype, layout, threads })
  const next = random(3), draw = (length: number) => randomArray(dtype, length, next) as any
  const dims = { x: op.irrepsIn.dim * nodes, weight: op.weightNumel * numSpecies, gradOut: op.irrepsOut.dim * nodes }
  // The last species has no node where there are three.
  const species = Int32Array.from({ length: nodes }, (_, n) => (5 * n) % 3 % Math.min(2, numSpecies))
  const arrays = { x: draw(dims.x), weight: draw(dims.weight), gradOut: draw(dims.gradOut) }
  const directions = { x: draw(dims.x), weight: draw(dims.weight) }
  return { op, species, nodes, ...arrays, directions, draw }
}

/** The results of every pass by the definition: x [node][channel][block][m], and so on. */
function reference(op: Operation, species: Int32Array, x: Numbers, weight: Numbers, gradOut: Numbers, directions: { x: Numbers; weight: Numbers }) {
  const all = columns(op.irrepsIn, op.irrepsOut, op.correlation)
  const mul = op.irrepsIn.blocks[0]!.mul, of = { in: places(op.irrepsIn, op.layout), out: places(op.irrepsOut, op.layout) }
  expect(op.weightNumel).toBe(all.length * mul)
  const results = {
    z: new Float64Array(gradOut.length), jvp: new Float64Array(gradOut.length), dx: new Float64Array(x.length), dw: new Float64Array(weight.length),
    ddx: new Float64Array(x.length), ddw: new Float64Array(weight.length),
  }
  species.forEach((s, n) => {
    for (let u = 0; u < mul; u++) {
      const row = n * op.irrepsIn.dim, outRow = n * op.irrepsOut.dim
      const take = (array: Numbers) => op.irrepsIn.blocks.map(({ mul }, b) => (mul ? of.in[b]![u]!.map((at) => array[row + at]!) : []))
      const point = take(x), ax = take(directions.x)
      const units = op.irrepsIn.blocks.flatMap(({ mul }, b) =>
        mul ? of.in[b]![u]!.map((at, m) => ({ at, vector: point.map((block, c) => block.map((_, i) => (c === b && i === m ? 1 : 0))) })) : [],
      )
      all.forEach((column, k) => {
        const at = s * op.weightNumel + k * mul + u, w = weight[at]!, aw = directions.weight[at]!
        const out = of.out[column.out]![u]!, g = out.map((i) => gradOut[outRow + i]!)
        const dot = (values: number[]) => values.reduce((sum, v, m) => sum + v * g[m]!, 0)
        const value = derivative(column, point, []), along = derivative(column, point, [ax])
        out.forEach((i, m) => {
          results.z[outRow + i]! += w * value[m]!
          results.jvp[outRow + i]! += w * along[m]! + aw * value[m]!
        })
        results.dw[at]! += dot(value)
        results.ddw[at]! += dot(along)
        for (const { at, vector } of units) {
          if (!column.blocks.some((b) => vector[b]!.some((v) => v !== 0))) continue
          const first = dot(derivative(column, point, [vector]))
          results.dx[row + at]! += w * first
          results.ddx[row + at]! += aw * first + w * dot(derivative(column, point, [ax, vector]))
        }
      })
    }
  })
  return results
}

describe.each(problems)('$name: $in -> $out', (problem) => {
  test.each(dtypes)('every pass against the sum over the paths, %s', (dtype) => {
    for (const layout of layouts) {
      const { op, species, x, weight, gradOut, directions } = setUp(problem, dtype, layout)
      const expected = reference(op, species, x, weight, gradOut, directions)
      const first = op.backward(x, species, weight, gradOut), second = op.doubleBackward(x, species, weight, gradOut, directions)
      const bar = tolerance[dtype]
      expect(blockError(op.forward(x, species, weight), expected.z, op.irrepsOut)).toBeLessThan(bar)
      expect(blockError(op.jvp(x, species, weight, directions), expected.jvp, op.irrepsOut)).toBeLessThan(bar)
      expect(blockError(first.x, expected.dx, op.irrepsIn)).toBeLessThan(bar)
      expect(arrayError(first.weight, expected.dw)).toBeLessThan(bar)
      expect(blockError(second.x, expected.ddx, op.irrepsIn)).toBeLessThan(bar)
      expect(arrayError(second.weight, expected.ddw)).toBeLessThan(bar)
      expect(blockError(second.gradOut, expected.jvp, op.irrepsOut)).toBeLessThan(bar)
      op.dispose()
    }
  })

  test('equivariant under rotations and the inversion', () => {
    for (const inversion of [false, true]) {
      const { species, x, weight, gradOut, ...rest } = setUp(problem, 'float64', inversion ? 'ir_mul' : 'mul_ir'), op = rest.op as SymmetricContraction<'float64'>
      const rotation = randomRotation(random(4), inversion), turn = (array: Float64Array, irreps: Irreps) => rotated(array, irreps, op.layout, rotation)
      const turned = turn(x, op.irrepsIn), g = op.backward(x, species, weight, gradOut), tg = op.backward(turned, species, weight, turn(gradOut, op.irrepsOut))
      expect(blockError(op.forward(turned, species, weight), turn(op.forward(x, species, weight), op.irrepsOut), op.irrepsOut)).toBeLessThan(tolerance.float64)
      expect(blockError(tg.x, turn(g.x, op.irrepsIn), op.irrepsIn)).toBeLessThan(tolerance.float64)
      expect(arrayError(tg.weight, g.weight)).toBeLessThan(tolerance.float64)
      op.dispose()
    }
  })

  test('first and second gradients are those of differences, every slot', () => {
    const { species, x, weight, gradOut, directions, draw, ...rest } = setUp(problem), op = rest.op as SymmetricContraction<'float64'>
    const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0)
    const plus = (a: Float64Array, b: Float64Array, t: number) => a.map((v, i) => v + t * b[i]!)
    // Exact for polynomials up to degree 4, whatever the step; the results are of degree 3 in x. What is left are roundings of sums of some
    // numbers as large as the largest value: 1e-12 of it.
    const difference = (f: (t: number) => number) => {
      const values = [f(0.5), f(-0.5), f(1), f(-1)] as const
      return { slope: (8 * (values[0] - values[1]) - (values[2] - values[3])) / 6, bar: 1e-12 * (1 + Math.max(...values.map(Math.abs))) }
    }
    const check = (gradient: Float64Array, direction: Float64Array, f: (t: number) => number) => {
      const { slope, bar } = difference(f)
      expect(Math.abs(dot(gradient, direction) - slope)).toBeLessThanOrEqual(bar)
    }
    const value = (u: Float64Array, w: Float64Array) => dot(op.forward(u, species, w), gradOut)
    const first = op.backward(x, species, weight, gradOut)
    const [dx, dw, dg] = [draw(x.length), draw(weight.length), draw(gradOut.length)]
    check(first.x, dx, (t) => value(plus(x, dx, t), weight))
    check(first.weight, dw, (t) => value(x, plus(weight, dw, t)))
    for (const a of [directions, { x: directions.x }, { weight: directions.weight }]) {
      const scalar = (u: Float64Array, w: Float64Array, g: Float64Array) => {
        const gradients = op.backward(u, species, w, g)
        return (a.x ? dot(a.x, gradients.x) : 0) + ('weight' in a ? dot(a.weight, gradients.weight) : 0)
      }
      const second = op.doubleBackward(x, species, weight, gradOut, a)
      check(second.x, dx, (t) => scalar(plus(x, dx, t), weight, gradOut))
      check(second.weight, dw, (t) => scalar(x, plus(weight, dw, t), gradOut))
      check(second.gradOut, dg, (t) => scalar(x, weight, plus(gradOut, dg, t)))
      const tangent = op.jvp(x, species, weight, a)
      check(tangent, gradOut, (t) => value(plus(x, a.x ?? new Float64Array(x.length), t), plus(weight, 'weight' in a ? a.weight : new Float64Array(weight.length), t)))
    }
    op.dispose()
  })

  // Of degree 3 in x at most, and linear in the weights.
  test('third order, by composition', () => {
    const { op, species, x, weight, gradOut } = setUp(problem)
    const second: Second = (at, along) => ({ ...op.doubleBackward(at.x, species, at.weight, at.gradOut, along) })
    for (const [slot, error] of thirdOrderErrors(second, { x, weight, gradOut }, composed(second, 'x'))) expect(error, slot).toBeLessThan(tolerance.float64)
    op.dispose()
  })

  test('op.cost counts the operations that the kernels execute', () => {
    const { op } = setUp(problem)
    for (const pass of ['forward', 'backward', 'doubleBackward'] as const) expect(op.cost[pass].flops, pass).toBe(op.countFlops(pass))
    op.dispose()
  })
})

test("the paths are MACE's, in its order", () => {
  // Numbers of columns of U_matrix_real for '0e+1o+2e+3o', correlation 1 to 3, as MACE's models have them.
  const count = (irreps: string, out: string, correlation: number) => new SymmetricContraction(irreps, out, { correlation }).paths.length
  const irreps = '0e+1o+2e+3o'
  expect([1, 2, 3].map((n) => count(irreps, '0e', n))).toEqual([1, 1 + 4, 1 + 4 + 23])
  expect([1, 2, 3].map((n) => count(irreps, '1o', n))).toEqual([1, 1 + 6, 1 + 6 + 51])
  const { paths } = new SymmetricContraction('0e+1o', '0e+1o', { correlation: 2 })
  expect(paths).toEqual([
    { out: 0, in: [0, 0] }, { out: 0, in: [1, 1] }, { out: 0, in: [0] },
    { out: 1, in: [0, 1] }, { out: 1, in: [1, 0] }, { out: 1, in: [1] },
  ])
  const { paths: three } = new SymmetricContraction('1o', '1o', { correlation: 3 })
  expect(three.map(({ intermediate }) => intermediate)).toEqual([{ l: 0, p: 1 }, { l: 1, p: 1 }, { l: 2, p: 1 }, undefined])
})

test('fewer operations than a sum over the paths: what two have in common is computed once', () => {
  // Of MACE's 74 + 10 + 2 paths of three, two and one factors 20 + 7 + 2 are independent, and a sum over the coefficients of all of them takes more
  // than 4,000 operations a channel (docs/decisions.md).
  const { cost } = new SymmetricContraction('0e+1o+2e+3o', '0e+1o')
  expect(cost.forward.flops).toBeLessThan(900)
})

test('one factor is a linear layer without mixing of channels', () => {
  using op = new SymmetricContraction('1x0e+1x1o', '1x0e+1x1o', { correlation: 1, dtype: 'float64' })
  using linear = new Linear('1x0e+1x1o', '1x0e+1x1o', { dtype: 'float64' })
  const next = random(1), x = randomArray('float64', 12, next), w = randomArray('float64', 2, next)
  expect(arrayError(op.forward(x, new Int32Array(3), w), linear.forward(x, w))).toBeLessThan(tolerance.float64)
})

describe('calls', () => {
  const problem = problems[1]!

  test.each(dtypes)('bits do not depend on threads, variants of a call, or other nodes, %s', async (dtype) => {
    const { op, species, x, weight, gradOut, directions } = setUp(problem, dtype, 'mul_ir', 1, 1501)
    using other: Operation = new SymmetricContraction<any>(problem.in, problem.out, { numSpecies: 3, dtype, threads: 3 })
    const results = (o: Operation) => [o.forward(x, species, weight), ...Object.values(o.backward(x, species, weight, gradOut)), ...Object.values(o.doubleBackward(x, species, weight, gradOut, directions))] as Numbers[]
    const expected = results(op)
    results(other).forEach((array, i) => expect(sameBits(array, expected[i]!)).toBe(true))
    const all = await Promise.all([
      other.forwardAsync(x, species, weight), other.backwardAsync(x, species, weight, gradOut), other.doubleBackwardAsync(x, species, weight, gradOut, directions),
    ])
    ;([all[0], ...Object.values(all[1]), ...Object.values(all[2])] as Numbers[]).forEach((array, i) => expect(sameBits(array, expected[i]!)).toBe(true))
    expect(sameBits((await other.jvpAsync(x, species, weight, directions)) as Numbers, expected.at(-1)!)).toBe(true)
    const { x: dx, weight: dw } = op.backward(x, species, weight, gradOut)
    expect(op.backward(x, species, weight, gradOut, { needs: { weight: false } })).toEqual({ x: dx })
    expect(op.backward(x, species, weight, gradOut, { needs: { x: false } })).toEqual({ weight: dw })
    // A node's result is its own.
    const node = 700, row = op.irrepsIn.dim
    const single = op.forward(x.slice(node * row, (node + 1) * row), species.slice(node, node + 1), weight) as Numbers
    expect(sameBits(single, expected[0]!.slice(node * op.irrepsOut.dim, (node + 1) * op.irrepsOut.dim) as Numbers)).toBe(true)
  })

  test('both layouts compute the same', () => {
    const a = setUp(problem, 'float64', 'mul_ir'), b = setUp(problem, 'float64', 'ir_mul')
    const z = b.op.forward(relayout(a.x, a.op.irrepsIn, 'mul_ir', 'ir_mul'), a.species, a.weight)
    expect(sameBits(relayout(z, a.op.irrepsOut, 'ir_mul', 'mul_ir'), a.op.forward(a.x, a.species, a.weight))).toBe(true)
  })

  test.each(dtypes)('given arrays, at any offset: written whole and no further, or added to, %s', (dtype) => {
    for (const p of [problems[2]!, problems[5]!])
      for (const layout of layouts) {
        const { op, species, x, weight, gradOut, directions, draw } = setUp(p, dtype, layout)
        const second = op.doubleBackward(x, species, weight, gradOut, directions), first = op.backward(x, species, weight, gradOut)
        const out = guarded(dtype, gradOut.length, 3), dx = guarded(dtype, x.length, 1), dw = guarded(dtype, weight.length, 5), dg = guarded(dtype, gradOut.length, 2)
        expect(op.forward(x, species, weight, { out: out.array })).toBe(out.array)
        expect(sameBits(out.array, op.forward(x, species, weight))).toBe(true)
        op.doubleBackward(x, species, weight, gradOut, directions, { out: { x: dx.array, weight: dw.array, gradOut: dg.array } })
        expect(sameBits(dx.array, second.x) && sameBits(dw.array, second.weight) && sameBits(dg.array, second.gradOut)).toBe(true)
        for (const array of [out, dx, dw, dg]) expect(array.intact()).toBe(true)
        const before = { x: draw(x.length), weight: draw(weight.length) }, sum = { x: before.x.slice(), weight: before.weight.slice() }
        op.backward(x, species, weight, gradOut, { out: sum, accumulate: true })
        // One rounding of the sum.
        const bar = dtype === 'float64' ? 1e-15 : 1e-6
        for (const name of ['x', 'weight'] as const) expect(arrayError(sum[name], before[name].map((v: number, i: number) => v + first[name][i]!))).toBeLessThan(bar)
        op.dispose()
      }
  })

  test('no nodes; cotangents that contribute nothing; a species without nodes', () => {
    const { op, x, weight, gradOut, directions, species } = setUp(problem)
    const none = new Float64Array(0), nobody = new Int32Array(0)
    expect(op.forward(none, nobody, weight)).toEqual(none)
    expect(op.backward(none, nobody, weight, none)).toEqual({ x: none, weight: new Float64Array(weight.length) })
    expect(op.backward(x, species, weight, gradOut).weight.slice(2 * op.weightNumel).every((v: number) => v === 0)).toBe(true)
    expect(op.jvp(x, species, weight, {})).toEqual(new Float64Array(gradOut.length))
    expect(op.doubleBackward(x, species, weight, gradOut, { weight: directions.weight }).weight).toEqual(new Float64Array(weight.length))
  })

  test('an asynchronous call is cancelled', async () => {
    const { op, x, weight, species } = setUp(problem)
    await expect(op.forwardAsync(x, species, weight, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
  })
})

describe.runIf(backends().cuda.available)('on a device', () => {
  const problem = problems[1]!, { numSpecies } = problem
  const setUpDevice = (dtype: DType, layout: 'mul_ir' | 'ir_mul', mul = 4, nodes = 37) => {
    const irreps = (list: string) => list.split('+').map((ir) => `${mul}x${ir.replace(/^\d+x/, '')}`).join('+')
    const make = (backend: 'cpu' | 'cuda'): Operation => new SymmetricContraction<any>(irreps(problem.in), irreps(problem.out), { numSpecies, dtype, layout, backend, threads: 1 })
    const op = make('cuda'), next = random(7), draw = (length: number) => randomArray(dtype, length, next) as any
    const host = { x: draw(op.irrepsIn.dim * nodes), w: draw(op.weightNumel * numSpecies), g: draw(op.irrepsOut.dim * nodes), ax: draw(op.irrepsIn.dim * nodes), aw: draw(op.weightNumel * numSpecies) }
    const device = Object.fromEntries(Object.entries(host).map(([name, array]) => [name, DeviceArray.from(array)])) as typeof host
    const species = Int32Array.from({ length: nodes }, (_, n) => (5 * n) % numSpecies)
    return { op, cpu: make('cpu'), host, device, species }
  }
  type Arrays = ReturnType<typeof setUpDevice>['host']
  const all = (op: Operation, species: Int32Array, { x, w, g, ax, aw }: Arrays): any[] => [
    op.forward(x, species, w), op.jvp(x, species, w, { x: ax }), ...Object.values(op.backward(x, species, w, g)), ...Object.values(op.doubleBackward(x, species, w, g, { x: ax, weight: aw })),
    ...Object.values(op.doubleBackward(x, species, w, g, { weight: aw }, { needs: { weight: false } })),
  ]

  test.each(dtypes.flatMap((dtype) => layouts.map((layout) => [dtype, layout] as const)))("results are the CPU's, and of the kind that came in, %s, %s", async (dtype, layout) => {
    // Channels that fill packs and tiles, and ones that do not.
    for (const mul of [1, 3, 4, 128, 200]) {
      const { op, cpu, host, device, species } = setUpDevice(dtype, layout, mul, mul < 100 ? 37 : 5)
      const expected = all(cpu, species, host), onHost = all(op, species, host), onDevice = all(op, species, device)
      expect(onDevice.every((array) => array instanceof DeviceArray)).toBe(true)
      onHost.forEach((array, i) => expect(arrayError(array, expected[i])).toBeLessThan(tolerance[dtype]))
      onDevice.forEach((array, i) => expect(sameBits(array.download(), onHost[i])).toBe(true))
      const { x, w, g } = device, later = await op.backwardAsync(x, species, w, g)
      expect(sameBits(later.weight.download(), onHost[3])).toBe(true)
      op.dispose()
      cpu.dispose()
    }
  })

  test('a recorded call needs species that the device has', () => {
    const { op, host, device, species } = setUpDevice('float32', 'ir_mul'), { x, w } = device
    expect(caught(() => capture(() => void op.forward(x, species, w))).code).toBe('capturing')
    op.forward(x, species, w)
    let z: any
    const graph = capture(() => (z = op.forward(x, species.slice(), w)))
    ;(x as any).copyFrom(host.ax)
    graph.replay()
    expect(sameBits(z.download(), op.forward(host.ax, species, host.w) as Numbers)).toBe(true)
  })

  test('arrays of both kinds are refused', () => {
    const { op, host, device, species } = setUpDevice('float32', 'ir_mul')
    expect(caught(() => op.forward(device.x, species, host.w)).code).toBe('wrong_kind')
    expect(caught(() => op.forward(host.x, species, device.w)).code).toBe('wrong_kind')
  })
})

describe('errors', () => {
  const code = (action: () => unknown) => {
    const { code, argument, message } = caught(action)
    expect(message).toMatch(/: expected .*, got /)
    return [code, argument]
  }
  const make = (irrepsIn: any, irrepsOut: any, options: any = {}) => () => new SymmetricContraction(irrepsIn, irrepsOut, options)

  test('constructor', () => {
    expect(code(make('2x0e+3x1o', '2x0e'))).toEqual(['unequal_multiplicities', 'irrepsIn'])
    expect(code(make('2x0e+2x1o', '3x0e'))).toEqual(['unequal_multiplicities', 'irrepsOut'])
    expect(code(make('2x0e+2x0e', '2x0e'))).toEqual(['repeated_irrep', 'irrepsIn'])
    expect(code(make('2x1o', '2x1o+2x4e'))).toEqual(['unreachable_output', 'irrepsOut'])
    // The cross product of a vector with itself, and its triple product: paths, all of whose polynomials are zero.
    expect(code(make('2x1o', '2x1o+2x0o'))).toEqual(['unreachable_output', 'irrepsOut'])
    expect(code(make('2x1o', '2x1e', { correlation: 2 }))).toEqual(['no_path', 'irrepsOut'])
    expect(code(make('2x1o', '2x4e', { correlation: 3 }))).toEqual(['no_path', 'irrepsOut'])
    expect(code(make('', '2x0e'))).toEqual(['invalid_irreps', 'irrepsIn'])
    expect(code(make('2x12e', '2x0e'))).toEqual(['degree_limit', 'irrepsIn'])
    expect(code(make('2x0e', '2x0e', { correlation: 4 }))).toEqual(['invalid_option', 'options.correlation'])
    expect(code(make('2x0e', '2x0e', { numSpecies: 0 }))).toEqual(['invalid_option', 'options.numSpecies'])
    expect(code(make('2x0e', '2x0e', { species: 1 }))).toEqual(['invalid_option', 'options.species'])
    expect(code(make('2x0e', '2x0e', { irrepsOut: '0e' }))).toEqual(['invalid_option', 'options.irrepsOut'])
    expect(new SymmetricContraction('2x0e', '2x0e', { backend: 'auto' }).backend).toBe(defaultBackend)
  })

  test('calls, before anything is written', () => {
    const op = new SymmetricContraction('2x0e+2x1o', '2x0e', { numSpecies: 2, correlation: 2 })
    const x = new Float32Array(3 * 8), s = new Int32Array(3), w = new Float32Array(2 * op.weightNumel), z = guarded('float32', 6)
    const forward = (...[a = x, b = s, c = w]: any[]) => code(() => op.forward(a, b, c, { out: z.array }))
    expect(forward(x, Int32Array.of(0, 2, 0))).toEqual(['invalid_argument', 'species[1]'])
    expect(forward(x, Int32Array.of(0, 0, -1))).toEqual(['invalid_argument', 'species[2]'])
    expect(forward(x, new Int32Array(2))).toEqual(['wrong_length', 'species'])
    for (const wrong of [[0, 0, 0], new Float32Array(3), new Proxy(s, {}), Object.create(Int32Array.prototype), null]) expect(forward(x, wrong)).toEqual(['invalid_argument', 'species'])
    expect(forward(x.slice(1))).toEqual(['wrong_length', 'x'])
    expect(forward(new Float64Array(24))).toEqual(['wrong_dtype', 'x'])
    expect(forward('x')).toEqual(['invalid_argument', 'x'])
    // Neither one set nor one a node.
    for (const length of [op.weightNumel, 3 * op.weightNumel, 6 * op.weightNumel]) expect(forward(x, s, new Float32Array(length))).toEqual(['wrong_length', 'weight'])
    for (const none of [null, undefined]) expect(caught(() => op.forward(x, s, none as never))).toMatchObject({ code: 'weight_missing', argument: 'weight', expected: '12 numbers, (numSpecies 2, weightNumel 6)' })
    expect(code(() => op.forward(x, s, w, { out: new Float32Array(s.buffer) as never }))).toEqual(['overlap', 'out'])
    expect(code(() => op.backward(x, s, w, new Float32Array(6), { needs: { y: true } as object }))).toEqual(['invalid_option', 'needs.y'])
    expect(code(() => op.backward(x, s, w, new Float32Array(6), { out: { gradOut: x } as object }))).toEqual(['invalid_option', 'out.gradOut'])
    expect(code(() => op.backward(x, s, w, new Float32Array(5)))).toEqual(['wrong_length', 'gradOut'])
    expect(code(() => op.doubleBackward(x, s, w, new Float32Array(6), { y: x } as object))).toEqual(['invalid_option', 'cotangents.y'])
    expect(code(() => op.jvp(x, s, w, { weight: w.slice(1) }))).toEqual(['wrong_length', 'tangents.weight'])
    expect(z.untouched() && z.intact()).toBe(true)
    op.dispose()
    expect(caught(() => op.forward(x, s, w)).code).toBe('disposed')
  })
})
