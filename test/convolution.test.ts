// Convolutions over graphs: what gather, product and sum give, pass by pass; graphs of all kinds; differences; what a call refuses.
import { describe, expect, test } from 'vitest'
import { backends, capture, ClebschGordanTensorProduct, Convolution, DeviceArray, Graph, sphericalHarmonics, type ArrayOf, type DType, type Layout } from '../lib/index'
import { native } from '../lib/native'
import { caught } from './caught'
import { arrayError, blockError, defaultBackend, dtypes, guarded, layouts, printedWithin9GB, random, randomArray, sameBits, tolerance, type Numbers } from './support'
import { composed, thirdOrderErrors, type Second } from './third_order'
import { problems, type Problem } from './weighted_problems'

interface Edges {
  name: string
  senders: number[]
  receivers: number[]
  nodes: { senders: number; receivers: number }
}
function draw(name: string, edges: number, senders: number, receivers: number, seed: number): Edges {
  const next = random(seed), node = (nodes: number) => Math.floor(((next() + 1) / 2) * nodes)
  const of = (nodes: number) => Array.from({ length: edges }, () => node(nodes))
  return { name, senders: of(senders), receivers: of(receivers), nodes: { senders, receivers } }
}
// With 9 edges among 7 nodes some have none and some have several, of one sender too.
const graphs: Edges[] = [
  draw('a random graph with isolated nodes', 9, 7, 7, 3),
  { name: 'repeated edges and loops', senders: [2, 2, 2, 0, 1], receivers: [1, 1, 1, 1, 1], nodes: { senders: 3, receivers: 3 } },
  draw('senders and receivers of their own', 40, 5, 9, 1), draw('one node', 3, 1, 1, 1), draw('one edge', 1, 3, 2, 1), draw('no edges', 0, 4, 3, 1), draw('no nodes', 0, 0, 0, 1),
]
const indexOf = ({ senders, receivers }: Edges) => Int32Array.from([...senders, ...receivers])
const graphOf = (edges: Edges) => new Graph(indexOf(edges), edges.nodes)

const makeConvolution = <D extends DType>({ irreps: [in1, in2, irrepsOut], instructions }: Problem, dtype: D, layout: Layout, options: object = {}) =>
  new Convolution(in1, in2, { irrepsOut, instructions, dtype, layout, ...options })
const make = <D extends DType>(problem: Problem, dtype: D, layout: Layout, options: object = {}, { irreps: [in1, in2, irrepsOut], instructions } = problem) => ({
  conv: makeConvolution(problem, dtype, layout, options),
  product: new ClebschGordanTensorProduct(in1, in2, { irrepsOut, instructions, dtype, layout, ...options }),
})

function rows<A extends Numbers>(array: A, index: number[], dim: number): A {
  const result = new (array.constructor as any)(index.length * dim) as A
  index.forEach((row, e) => result.set(array.subarray(row * dim, (row + 1) * dim) as never, e * dim))
  return result
}
function sumRows<A extends Numbers>(array: A, index: number[], dim: number, nodes: number): A {
  const sums = new Float64Array(nodes * dim)
  index.forEach((row, e) => { for (let c = 0; c < dim; c++) sums[row * dim + c]! += array[e * dim + c]! })
  return (array.constructor as any).from(sums)
}

/** Of x, y, weights and gradients of the result, and directions of them. */
function drawArrays<D extends DType>(conv: Convolution<D>, { senders, nodes }: Edges, [yShared, wShared]: readonly [boolean, boolean], seed = 5) {
  const next = random(seed), edges = senders.length, array = (length: number) => randomArray(conv.dtype, length, next)
  const numbers = () => ({
    x: array(nodes.senders * conv.irrepsIn1.dim),
    y: array((yShared ? 1 : edges) * conv.irrepsIn2.dim),
    w: conv.weightNumel ? array((wShared ? 1 : edges) * conv.weightNumel) : undefined,
    z: array(nodes.receivers * conv.irrepsOut.dim),
  })
  return { ...numbers(), a: numbers() }
}
type Arrays<D extends DType> = ReturnType<typeof drawArrays<D>>

const passes = ['forward', 'backward', 'doubleBackward', 'jvp'] as const
type Results = Record<string, Numbers>

function run<D extends DType>(conv: Convolution<D>, graph: Graph, { x, y, w, z, a }: Arrays<D>, options: object = {}): Record<(typeof passes)[number], Results> {
  const directions = { x: a.x, y: a.y, weight: a.w }
  return {
    forward: { gradOut: conv.forward(graph, x, y, w) },
    backward: { ...conv.backward(graph, x, y, w, z, options) } as unknown as Results,
    doubleBackward: { ...conv.doubleBackward(graph, x, y, w, z, directions, options) } as unknown as Results,
    jvp: { gradOut: conv.jvp(graph, x, y, w, directions) },
  }
}

/**
 * The same by gather, product and sum; and of the gradients of rows that all edges share, `terms`: the largest sum over the edges of what an edge contributes, without
 * signs. A gradient of few numbers can be a 300th of that.
 */
function runPlainly<D extends DType>(product: ClebschGordanTensorProduct<D>, edges: Edges, { x, y, w, z, a }: Arrays<D>) {
  const { senders, receivers, nodes } = edges, dim1 = product.irrepsIn1.dim, dim3 = product.irrepsOut.dim, count = senders.length
  // Rows that all edges share are repeated, and their gradients summed: a batch of one edge has no shared rows.
  const each = (array: ArrayOf<D>, dim: number) => (array.length === count * dim ? array : rows(array, new Array(count).fill(0), dim))
  const one = (array: Numbers, dim: number, like: Numbers) => (like.length === count * dim ? array : sumRows(array, new Array(count).fill(0), dim, 1))
  const dim2 = product.irrepsIn2.dim, numel = product.weightNumel
  const perEdge = ({ x, y, w, z }: { x: ArrayOf<D>; y: ArrayOf<D>; w: ArrayOf<D> | undefined; z: ArrayOf<D> }) => ({
    x: rows(x, senders, dim1), y: each(y, dim2), w: w && each(w, numel), z: rows(z, receivers, dim3),
  })
  const p = perEdge({ x, y, w, z }), d = perEdge(a), directions = { x: d.x, y: d.y, weight: d.w }
  const terms = { backward: {}, doubleBackward: {} } as Record<string, Record<string, number>>
  const termsOf = (array: Numbers, dim: number, like: Numbers) => (like.length === count * dim ? 0 : Math.max(0, ...sumRows(array.map(Math.abs), new Array(count).fill(0), dim, 1)))
  const withTerms = (pass: string, g: { y: Numbers; weight?: Numbers }) => {
    terms[pass] = { y: termsOf(g.y, dim2, y), weight: g.weight ? termsOf(g.weight, numel, w!) : 0 }
    return toNodes(g)
  }
  const toNodes = ({ x: gx, y: gy, weight, gradOut }: Partial<Record<'x' | 'y' | 'weight' | 'gradOut', Numbers>>) => {
    const results = {
      x: gx && sumRows(gx, senders, dim1, nodes.senders), y: gy && one(gy, dim2, y), weight: weight && one(weight, numel, w!),
      gradOut: gradOut && sumRows(gradOut, receivers, dim3, nodes.receivers),
    }
    return Object.fromEntries(Object.entries(results).filter(([, array]) => array)) as Results
  }
  return {
    forward: toNodes({ gradOut: product.forward(p.x, p.y, p.w) }),
    backward: withTerms('backward', product.backward(p.x, p.y, p.w, p.z)),
    doubleBackward: withTerms('doubleBackward', product.doubleBackward(p.x, p.y, p.w, p.z, directions)),
    jvp: toNodes({ gradOut: product.jvp(p.x, p.y, p.w, directions) }),
    terms,
  }
}

const shapes = { x: 'irrepsIn1', y: 'irrepsIn2', gradOut: 'irrepsOut' } as const
const errorOf = (name: string, conv: Convolution<any>, actual: Numbers, expected: Numbers, terms = 0) => {
  if (terms) return Math.max(...Array.from(actual, (v, i) => Math.abs(v - expected[i]!))) / terms
  return name === 'weight' ? arrayError(actual, expected) : blockError(actual, expected, conv[shapes[name as 'x']])
}
const sharing = [[false, false], [true, false], [false, true], [true, true]] as const

// Sums over up to 40 edges keep within the bars.
describe.each(graphs)('gather, product and sum: $name', (edges) => {
  test.each(problems)('$name', (problem) => {
    using graph = graphOf(edges)
    for (const dtype of dtypes) {
      for (const layout of layouts) {
        const { conv, product } = make(problem, dtype, layout)
        for (const shared of edges === graphs[0] ? sharing : sharing.slice(3)) {
          const arrays = drawArrays(conv, edges, shared), actual = run(conv, graph, arrays), expected = runPlainly(product, edges, arrays)
          for (const pass of passes) {
            expect(Object.keys(actual[pass]).sort()).toEqual(Object.keys(expected[pass]).sort())
            for (const [name, array] of Object.entries(expected[pass])) {
              expect(errorOf(name, conv, actual[pass][name]!, array, expected.terms[pass]?.[name]), `${pass} ${name}, ${dtype} ${layout}, shared ${shared}`).toBeLessThan(tolerance[dtype])
            }
          }
        }
        conv.dispose()
        product.dispose()
      }
    }
  })
})

// Typed as those of host arrays are, and the same kernels.
test.runIf(backends().cuda.available)('arrays of a device give the bits that host arrays give, also asynchronously and added to', async () => {
  const edges = graphs[0]!, graph = graphOf(edges)
  for (const dtype of dtypes) {
    using conv = make(problems[0]!, dtype, 'ir_mul', { backend: 'cuda' }).conv as Convolution<DType>
    const arrays = drawArrays(conv, edges, [false, true]), expected = run(conv, graph, arrays)
    const up = (array: ArrayOf<DType> | undefined): DeviceArray<DType> => DeviceArray.from(array as Float32Array) as unknown as DeviceArray<DType>
    const [x, y, w, z] = [up(arrays.x), up(arrays.y), up(arrays.w), up(arrays.z)], a = { x: up(arrays.a.x), y: up(arrays.a.y), weight: up(arrays.a.w) }
    const check = (pass: (typeof passes)[number], results: object) => {
      expect(Object.keys(results).sort()).toEqual(Object.keys(expected[pass]).sort())
      for (const [name, array] of Object.entries(results)) expect(sameBits((array as DeviceArray<DType>).download(), expected[pass][name]!), `${pass} ${name}`).toBe(true)
    }
    const first: DeviceArray<DType> = conv.forward(graph, x, y, w)
    check('forward', { gradOut: first })
    const gradients: { x: DeviceArray<DType>; y: DeviceArray<DType>; weight: DeviceArray<DType> } = conv.backward(graph, x, y, w, z)
    check('backward', gradients)
    check('doubleBackward', conv.doubleBackward(graph, x, y, w, z, a))
    check('jvp', { gradOut: conv.jvp(graph, x, y, w, a) })
    check('forward', { gradOut: await conv.forwardAsync(graph, x, y, w) })
    check('backward', await conv.backwardAsync(graph, x, y, w, z))
    check('doubleBackward', await conv.doubleBackwardAsync(graph, x, y, w, z, a))
    check('jvp', { gradOut: await conv.jvpAsync(graph, x, y, w, a) })
    conv.backward(graph, x, y, w, z, { out: gradients, accumulate: true })
    // Sums of as many terms again, in an order of their own.
    for (const name of ['x', 'y', 'weight'] as const) expect(arrayError(gradients[name].download(), expected.backward[name]!.map((v: number) => 2 * v)), name).toBeLessThan(tolerance[dtype])
  }
})

// On a device, with what sums in the same order every time.
describe.runIf(defaultBackend === 'cuda')('atomic sums', () => {
  const star: Edges = { name: 'many edges of one node', senders: Array.from({ length: 90 }, (_, e) => (e % 3 === 0 ? e % 7 : 0)), receivers: Array.from({ length: 90 }, (_, e) => (e % 4 === 0 ? e % 5 : 1)), nodes: { senders: 7, receivers: 5 } }

  test.each([...graphs.filter(({ name }) => !/one|repeated/.test(name)), star].flatMap((edges) => problems.map((problem, n) => [edges.name, problem.name, edges, problem, layouts[n % 2]!] as const)))('%s, %s', (_graph, _name, edges, problem, layout) => {
    using graph = graphOf(edges)
    for (const dtype of dtypes) {
      using conv = makeConvolution(problem, dtype, layout), atomic = makeConvolution(problem, dtype, layout, { atomic: true })
      for (const shared of sharing.slice(edges === graphs[0] ? 0 : 3)) {
        const arrays = drawArrays(conv, edges, shared), expected = run(conv, graph, arrays), actual = run(atomic, graph, arrays)
        const { terms } = shared[0] || shared[1] ? runPlainly(make(problem, dtype, layout).product, edges, arrays) : { terms: {} as Record<string, Record<string, number>> }
        for (const pass of passes) {
          expect(Object.keys(actual[pass]).sort()).toEqual(Object.keys(expected[pass]).sort())
          for (const [name, array] of Object.entries(expected[pass])) {
            const what = `${pass} ${name}, ${dtype} ${layout}, shared ${shared}`
            expect(errorOf(name, conv, actual[pass][name]!, array, terms[pass]?.[name]), what).toBeLessThan(tolerance[dtype])
            // What an edge has of its own is no sum.
            if ((name === 'y' && !shared[0]) || (name === 'weight' && !shared[1])) expect(sameBits(actual[pass][name]!, array), what).toBe(true)
          }
        }
        // Added to what is there: once as much again.
        const twice = actual.backward
        atomic.backward(graph, arrays.x, arrays.y, arrays.w, arrays.z, { out: twice as never, accumulate: true })
        for (const [name, array] of Object.entries(expected.backward)) {
          expect(errorOf(name, conv, twice[name]!, array.map((v: number) => 2 * v), 2 * (terms.backward?.[name] ?? 0)), `twice ${name}`).toBeLessThan(tolerance[dtype])
        }
      }
    }
  })

  // Channels in packs and single ones, in both kernels.
  test.each(layouts.flatMap((layout) => [4, 5].map((mul) => [layout, mul] as const)))('what is counted: %s, %i channels', (layout, mul) => {
    const edges = star, count = edges.senders.length
    // Edges in eights by receivers, and of those the edges of one receiver: forward what channels in registers sum up.
    const receivers = [...edges.receivers].sort((a, b) => a - b), runs = receivers.filter((node, e) => e % 8 === 0 || node !== receivers[e - 1]).length
    for (const factory of ['channelwise', 'fullyConnected'] as const) {
      const of = (options: object) => Convolution[factory](`${mul}x0e+${mul}x1o`, '0e+1o', `${mul}x0e+${mul}x1o`, { layout, ...options })
      using conv = of({}), atomic = of({ atomic: true }), graph = graphOf(edges)
      expect([conv.atomic, atomic.atomic]).toEqual([false, true])
      const arrays = drawArrays(atomic, edges, [false, false]), up = (array: Float32Array) => DeviceArray.from(array)
      const [x, y, w, z] = [up(arrays.x), up(arrays.y), up(arrays.w!), up(arrays.z)], a = { x: up(arrays.a.x), y: up(arrays.a.y), weight: up(arrays.a.w!) }
      const { irrepsIn1: { dim: dim1 }, irrepsOut: { dim: dim3 } } = conv
      for (const [call, numbers, launches] of [
        [(op) => [op.forward(graph, x, y, w)], dim3 * (factory === 'channelwise' ? runs : count), 1],
        [(op) => Object.values(op.backward(graph, x, y, w, z)), dim1 * count, 1],
        [(op) => Object.values(op.backward(graph, x, y, w, z, { needs: { x: false } })), 0, 1],
        [(op) => Object.values(op.doubleBackward(graph, x, y, w, z, a)), (dim1 + dim3) * count, 2],
        [(op) => [op.jvp(graph, x, y, w, a)], dim3 * count, 1],
      ] as [call: (op: typeof conv) => DeviceArray[], numbers: number, launches: number][]) {
        for (const op of [conv, atomic]) {
          call(op).forEach((result) => result.download()) // by then the device has the graph
          native.cuda?.counting?.(true)
          call(op).forEach((result) => result.download())
          const counts = native.cuda?.counting?.(false)
          if (!counts) continue
          expect([counts.atomics, counts.launches]).toEqual(op === conv ? [0, launches] : [numbers, 1])
          // Zeros for every row of nodes, and node by node a row of sums is written once for eight of its edges.
          if (launches === 1 && numbers === dim3 * runs && factory === 'channelwise') {
            const inEights = Array.from({ length: edges.nodes.receivers }, (_, node) => Math.ceil(edges.receivers.filter((of) => of === node).length / 8)).reduce((sum, n) => sum + n)
            expect([counts.cleared, counts.stored.requested]).toEqual([4 * arrays.z.length, 4 * dim3 * (op === conv ? inEights : runs)])
          }
        }
      }
      // Zeros that sums begin with are a part of what is captured.
      using out = DeviceArray.alloc('float32', arrays.z.length), captured = capture(() => atomic.forward(graph, x, y, w, { out }))
      const expected = conv.forward(graph, arrays.x, arrays.y, arrays.w)
      for (let n = 0; n < 2; n++) {
        captured.replay()
        expect(blockError(out.download(), expected, conv.irrepsOut)).toBeLessThan(tolerance.float32)
      }
    }
  })
})

// MACE's layer on 50 nodes, whose gradients come in the order of the receivers, and one into scalars, whose come in that of the senders: rows of several
// lines, results of more than 512 KiB, which are streamed.
const large = draw('', 700, 60, 50, 8)
const layers = [['24x0e+16x1o', '0e+1o+2e+3o', '0e+1o+2e'], ['40x0e+40x1o+40x2e', '0e+1o+2e+3o', '0e']] as const
const each = layers.flatMap((layer) => layouts.map((layout) => [layer, layout] as const))

describe.each(each)('large rows, %s, %s', ([in1, in2, out], layout) => {
  const layer = (layout: Layout, options: object = {}) => Convolution.channelwise(in1, in2, out, { layout, ...options })
  test('gather, product and sum', () => {
    using conv = layer(layout), product = ClebschGordanTensorProduct.channelwise(in1, in2, out, { layout })
    const arrays = drawArrays(conv, large, [false, false]), actual = run(conv, graphOf(large), arrays), expected = runPlainly(product, large, arrays)
    for (const pass of passes) for (const [name, array] of Object.entries(expected[pass])) expect(errorOf(name, conv, actual[pass][name]!, array, expected.terms[pass]?.[name]), `${pass} ${name}`).toBeLessThan(tolerance.float32)
  })

  test('bitwise the same for any number of threads', () => {
    for (const shared of sharing) {
      const results = [1, 2, 3].map((threads) => {
        using conv = layer(layout, { threads })
        return run(conv, graphOf(large), drawArrays(conv, large, shared))
      })
      for (const pass of passes) for (const [name, array] of Object.entries(results[0]![pass])) expect(results.every((r) => sameBits(r[pass][name]!, array)), `${pass} ${name}`).toBe(true)
    }
  })

  test('asynchronous calls give the same', async () => {
    using conv = layer(layout), graph = graphOf(large)
    const arrays = drawArrays(conv, large, [false, false]), { x, y, w, z, a } = arrays, directions = { x: a.x, y: a.y, weight: a.w }
    const expected = run(conv, graph, arrays)
    const pending = Promise.all([
      conv.forwardAsync(graph, x, y, w), conv.backwardAsync(graph, x, y, w, z), conv.doubleBackwardAsync(graph, x, y, w, z, directions), conv.jvpAsync(graph, x, y, w, directions),
    ])
    graph.dispose()
    const [forward, first, second, tangent] = await pending
    expect([forward, first, second, tangent]).toEqual([expected.forward.gradOut, expected.backward, expected.doubleBackward, expected.jvp.gradOut])
    await expect(conv.forwardAsync(graph, x, y, w)).rejects.toMatchObject({ code: 'disposed', argument: 'graph' })
  })
})

describe.each([problems.at(-2)!, problems.at(-1)!])('calls, $name', (problem) => {
  const edges = graphs[2]!, graph = graphOf(edges), { conv } = make(problem, 'float64', 'mul_ir')

  test.each(sharing)('a part of the gradients, into given arrays, added to them: y shared %s, weights shared %s', (...shared) => {
    const arrays = drawArrays(conv, edges, shared), { x, y, w, z, a } = arrays, whole = run(conv, graph, arrays), directions = { x: a.x, y: a.y, weight: a.w }
    for (const name of ['x', 'y', 'weight', 'gradOut'] as const) {
      const needs = { x: false, y: false, weight: false, gradOut: false, [name]: true }, { gradOut: _, ...firstNeeds } = needs
      const calls = [
        ['doubleBackward', (options: object) => conv.doubleBackward(graph, x, y, w, z, directions, { needs, ...options })],
        ...(name === 'gradOut' ? [] : [['backward', (options: object) => conv.backward(graph, x, y, w, z, { needs: firstNeeds, ...options })]] as const),
      ] as const
      for (const [pass, call] of calls) {
        const all = whole[pass][name]!, before = randomArray('float64', all.length, random(9)), out = guarded('float64', all.length, 3)
        // Alone a result may take the other order of the edges, or sums of others' lengths: rounded in another order.
        const alone = call({}) as unknown as Results
        expect(Object.keys(alone)).toEqual([name])
        expect(arrayError(alone[name]!, all)).toBeLessThan(tolerance.float64)
        out.array.set(before)
        expect((call({ out: { [name]: out.array }, accumulate: true }) as any)[name]).toBe(out.array)
        expect(out.intact()).toBe(true)
        // A sum is rounded in another order.
        expect(arrayError(out.array, before.map((v, i) => v + all[i]!))).toBeLessThan(tolerance.float64)
        call({ out: { [name]: out.array } })
        expect(sameBits(out.array, alone[name]!)).toBe(true)
      }
    }
  })

  test('a missing direction is zero', () => {
    const arrays = drawArrays(conv, edges, [false, false]), { x, y, w, z, a } = arrays, all = { x: a.x, y: a.y, weight: a.w! }
    const zeros = { x: new Float64Array(x.length), y: new Float64Array(y.length), weight: new Float64Array(w!.length) }
    for (const given of [[], ['x'], ['y'], ['weight'], ['x', 'y']] as (keyof typeof all)[][]) {
      const some = Object.fromEntries(given.map((name) => [name, all[name]]))
      const actual = conv.doubleBackward(graph, x, y, w, z, some), expected = conv.doubleBackward(graph, x, y, w, z, { ...zeros, ...some })
      // The terms with zeros change nothing but the sign of a zero.
      for (const name of ['x', 'y', 'weight', 'gradOut'] as const) expect(actual[name].map((v) => v + 0)).toEqual(expected[name].map((v) => v + 0))
      expect(conv.jvp(graph, x, y, w, some).map((v) => v + 0)).toEqual(conv.jvp(graph, x, y, w, { ...zeros, ...some }).map((v) => v + 0))
    }
  })

  // The form is linear in each slot, so central differences are exact at any step; a step of 1 cancels no digits.
  test.each(sharing)('first and second differences of every slot: y shared %s, weights shared %s', (...shared) => {
    const { x, y, w, z, a } = drawArrays(conv, edges, shared), { a: d } = drawArrays(conv, edges, shared, 6)
    const dot = (u: Float64Array, v: Float64Array) => u.reduce((sum, value, i) => sum + value * v[i]!, 0)
    const plus = (u: Float64Array, v: Float64Array, t: number) => u.map((value, i) => value + t * v[i]!)
    const scale = dot(z, z) * (1 + dot(w!, w!) + dot(x, x) + dot(y, y))
    const energy = (x: Float64Array, y: Float64Array, w: Float64Array, z: Float64Array) => dot(conv.forward(graph, x, y, w), z)
    const slope = (x: Float64Array, y: Float64Array, w: Float64Array, z: Float64Array) => {
      const g = conv.backward(graph, x, y, w, z)
      return dot(a.x, g.x) + dot(a.y, g.y) + dot(a.w!, g.weight)
    }
    const first = { ...conv.backward(graph, x, y, w, z), gradOut: conv.forward(graph, x, y, w) }
    const second = conv.doubleBackward(graph, x, y, w, z, { x: a.x, y: a.y, weight: a.w })
    const slots = { x: d.x, y: d.y, weight: d.w!, gradOut: d.z }
    Object.entries(slots).forEach(([name, direction], slot) => {
      const moved = (t: number) => [x, y, w!, z].map((array, s) => (s === slot ? plus(array, direction, t) : array)) as [Float64Array, Float64Array, Float64Array, Float64Array]
      for (const [gradient, of] of [[first, energy], [second, slope]] as const) {
        const difference = of(...moved(0.5)) - of(...moved(-0.5))
        expect(difference).not.toBe(0)
        expect(Math.abs(dot(gradient[name as 'x'], direction) - difference)).toBeLessThan(1e-12 * scale)
      }
    })
  })

  test.each(sharing)('third order, by composition: y shared %s, weights shared %s', (...shared) => {
    const { x, y, w, z } = drawArrays(conv, edges, shared)
    const second: Second = ({ x, y, weight, gradOut }, along) => ({ ...conv.doubleBackward(graph, x!, y!, weight, gradOut!, along) })
    // Of degree 1 in the weights, and not linear where a path has none.
    for (const [slot, error] of thirdOrderErrors(second, { x, y, weight: w!, gradOut: z }, composed(second, 'weight'))) expect(error, slot).toBeLessThan(tolerance.float64)
  })
})

test('the graph: either type of index, how many nodes, edges in any order', () => {
  const edges = graphs[2]!, index = indexOf(edges)
  using conv = Convolution.fullyConnected('2x1o+0e', '0e+1o', '3x1o', { dtype: 'float64' }), one = graphOf(edges)
  using big = new Graph(BigInt64Array.from([...index].map(BigInt)), edges.nodes)
  const { x, y, w, z } = drawArrays(conv, edges, [false, false])
  const expected = conv.backward(one, x, y, w, z), result = conv.forward(one, x, y, w)
  expect([one.numSenders, one.numReceivers, one.numEdges]).toEqual([5, 9, 40])
  expect(conv.forward(big, x, y, w)).toEqual(result)
  const same = new Graph(Int32Array.of(0, 1, 1, 0), 2)
  expect([same.numSenders, same.numReceivers]).toEqual([2, 2])
  // The order of the edges is that of their rows, and of nothing else.
  const order = edges.senders.map((_, e) => (7 * e) % 40), shuffled = { ...edges, senders: order.map((e) => edges.senders[e]!), receivers: order.map((e) => edges.receivers[e]!) }
  const dims = [conv.irrepsIn2.dim, conv.weightNumel] as const
  const [ys, ws] = [rows(y, order, dims[0]), rows(w!, order, dims[1])], again = conv.backward(graphOf(shuffled), x, ys, ws, z)
  expect(arrayError(conv.forward(graphOf(shuffled), x, ys, ws), result)).toBeLessThan(tolerance.float64)
  expect(arrayError(again.x, expected.x)).toBeLessThan(tolerance.float64)
  expect(again.y).toEqual(rows(expected.y, order, dims[0]))
  expect(again.weight).toEqual(rows(expected.weight, order, dims[1]))
  // Later changes of the index are nobody's business.
  index.fill(0)
  expect(conv.forward(one, x, y, w)).toEqual(result)
})

test('factories and properties are those of the product', () => {
  using conv = Convolution.channelwise('4x0e+2x1o', '0e+1o', '1o', { layout: 'ir_mul', threads: 1 }), product = ClebschGordanTensorProduct.channelwise('4x0e+2x1o', '0e+1o', '1o')
  expect(`${conv.irrepsOut}`).toBe(`${product.irrepsOut}`)
  for (const name of ['paths', 'weightNumel', 'cost', 'interactability', 'expressivity', 'dtype'] as const) expect(conv[name]).toEqual(product[name])
  expect([conv.backend, conv.layout, conv.threads]).toEqual([defaultBackend, 'ir_mul', 1])
})

test.skipIf(process.platform !== 'linux')('a graph that is too large, and one without edges, which takes no memory by its nodes', () => {
  // Of a process that may have 9 GB.
  const program = `
    const { Graph } = require('equitensor')
    const before = process.memoryUsage.rss()
    const graph = new Graph(new Int32Array(0), 2e8), grown = process.memoryUsage.rss() - before
    try { new Graph(new Int32Array(0), 2 ** 31 - 1) } catch ({ name, code, message }) { console.log(JSON.stringify({ name, code, message, grown })) }`
  const { name, code, message, grown } = printedWithin9GB(program)
  expect([name, code]).toEqual(['EquitensorError', 'out_of_memory'])
  expect(message).toMatch(/2147483647 senders/)
  expect(grown).toBeLessThan(100e6) // of 1.6e9 bytes
})

describe('what is refused', () => {
  const index = Int32Array.of(0, 1, 1, 2)
  const conv = Convolution.channelwise('2x1o', '0e+1o', '1o'), graph = new Graph(index, { senders: 2, receivers: 3 })
  const x = new Float32Array(12), y = new Float32Array(8), w = new Float32Array(2 * conv.weightNumel), z = new Float32Array(3 * conv.irrepsOut.dim)
  const detached = new Int32Array(4)
  structuredClone(detached, { transfer: [detached.buffer] })

  test.each<[string, () => unknown, string, string]>([
    ['a node that is not there', () => new Graph(index, 2), 'invalid_argument', 'edgeIndex[3]'],
    ['a sender that is not there', () => new Graph(index, { senders: 1, receivers: 3 }), 'invalid_argument', 'edgeIndex[1]'],
    ['a negative node', () => new Graph(Int32Array.of(0, -1), 2), 'invalid_argument', 'edgeIndex[1]'],
    ['a negative node of 64 bits', () => new Graph(BigInt64Array.of(0n, -1n), 2), 'invalid_argument', 'edgeIndex[1]'],
    ['a node of 64 bits that is not there', () => new Graph(BigInt64Array.of(2n ** 33n, 0n), 2), 'invalid_argument', 'edgeIndex[0]'],
    ['an odd length', () => new Graph(Int32Array.of(0, 1, 0), 2), 'wrong_length', 'edgeIndex'],
    ['an array of another type', () => new Graph([0, 1] as never, 2), 'invalid_argument', 'edgeIndex'],
    ['unsigned nodes', () => new Graph(Uint32Array.of(0, 1) as never, 2), 'invalid_argument', 'edgeIndex'],
    ['a Proxy of an index', () => new Graph(new Proxy(index, {}), 3), 'invalid_argument', 'edgeIndex'],
    ['an heir of the prototype', () => new Graph(Object.create(Int32Array.prototype), 3), 'invalid_argument', 'edgeIndex'],
    ['an odd length that says to be even', () => new Graph(Object.defineProperty(Int32Array.of(0, 1, 0), 'length', { value: 2 }), 2), 'wrong_length', 'edgeIndex'],
    ['a detached index', () => new Graph(detached, 2), 'detached', 'edgeIndex'],
    ['no number of nodes', () => new Graph(index, undefined as never), 'invalid_argument', 'numNodes'],
    ['half a node', () => new Graph(index, 2.5), 'invalid_argument', 'numNodes'],
    ['no number of receivers', () => new Graph(index, { senders: 3 } as never), 'invalid_argument', 'numNodes.receivers'],
    ['another key', () => new Graph(index, { senders: 3, receivers: 3, edges: 2 } as never), 'invalid_option', 'numNodes.edges'],
    ['a product without instructions', () => new Convolution('1o', '1o', { irrepsOut: '1o' } as never), 'invalid_option', 'options.instructions'],
    ['no options', () => new Convolution('1o', '1o', undefined as never), 'invalid_option', 'options.instructions'],
    ['no graph', () => conv.forward(index as never, x, y, w), 'invalid_argument', 'graph'],
    ['x of the receivers', () => conv.forward(graph, new Float32Array(18), y, w), 'wrong_length', 'x'],
    ['one row of x', () => conv.forward(graph, new Float32Array(6), y, w), 'wrong_length', 'x'],
    ['y of the receivers', () => conv.forward(graph, x, new Float32Array(12), w), 'wrong_length', 'y'],
    ['weights of the receivers', () => conv.forward(graph, x, y, new Float32Array(3 * conv.weightNumel)), 'wrong_length', 'weight'],
    ['no weights', () => conv.forward(graph, x, y), 'weight_missing', 'weight'],
    ['gradients of the edges', () => conv.backward(graph, x, y, w, new Float32Array(2 * conv.irrepsOut.dim)), 'wrong_length', 'gradOut'],
    ['a result of the edges', () => conv.forward(graph, x, y, w, { out: new Float32Array(2 * conv.irrepsOut.dim) }), 'wrong_length', 'out'],
    ['directions of the edges', () => conv.jvp(graph, x, y, w, { x: z }), 'wrong_length', 'tangents.x'],
    ['a result that is an input', () => conv.backward(graph, x, y, w, z, { out: { x } }), 'overlap', 'out.x'],
    ['another option', () => conv.forward(graph, x, y, w, { accumulate: true } as never), 'invalid_option', 'options.accumulate'],
    ['options that are none', () => conv.forward(graph, x, y, w, 3 as never), 'invalid_option', 'options'],
    ['no options at all', () => conv.backward(graph, x, y, w, z, null as never), 'invalid_option', 'options'],
    ['atomic sums on the CPU', () => new Convolution('1o', '1o', { irrepsOut: '1e', instructions: [{ in1: 0, in2: 0, out: 0, mode: 'uuu', hasWeight: false }], backend: 'cpu', atomic: true }), 'invalid_option', 'options.atomic'],
    ['atomic sums of a factory on the CPU', () => Convolution.channelwise('1o', '1o', '1e', { backend: 'cpu', atomic: true }), 'invalid_option', 'options.atomic'],
    ['atomic sums that are no boolean', () => Convolution.fullyConnected('1o', '1o', '1e', { atomic: 1 as never }), 'invalid_option', 'options.atomic'],
    ['factory options that are none', () => Convolution.channelwise('1o', '1o', '1e', null as never), 'invalid_option', 'options'],
    ['another dtype', () => conv.forward(graph, new Float64Array(12) as never, y, w), 'wrong_dtype', 'x'],
  ])('%s', (_name, call, code, argument) => {
    expect(caught(call)).toMatchObject({ code, argument })
  })

  test('after dispose()', () => {
    const gone = new Graph(index, 3), op = Convolution.channelwise('2x1o', '0e+1o', '1o')
    gone.dispose()
    expect(caught(() => conv.forward(gone, x, y, w))).toMatchObject({ code: 'disposed', argument: 'graph' })
    op.dispose()
    expect(caught(() => op.forward(graph, x, y, w))).toMatchObject({ code: 'disposed' })
  })
})

// Two layers of messages from the harmonics of the edges' directions and weights that decay with their lengths; the energy is half the square of the features.
test('forces of a small model are differences of its energy, and their Jacobian is symmetric', () => {
  const atoms = 5, dtype = 'float64', next = random(2), pairs = Array.from({ length: atoms * atoms }, (_, e) => [Math.floor(e / atoms), e % atoms] as const).filter(([i, j]) => i !== j && (i + 2 * j) % 5 !== 0)
  const edges = pairs.length, sphere = { normalize: false }
  using graph = new Graph(Int32Array.from([...pairs.map(([i]) => i), ...pairs.map(([, j]) => j)]), atoms)
  using one = Convolution.channelwise('3x0e', '0e+1o+2e', '0e+1o+2e', { dtype }), two = Convolution.fullyConnected(one.irrepsOut, '0e+1o+2e', '2x0e+2x1o', { dtype })
  const x = randomArray(dtype, atoms * 3, next), W1 = randomArray(dtype, one.weightNumel, next), W2 = randomArray(dtype, two.weightNumel, next)

  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0), plus = (a: Float64Array, b: Float64Array) => a.map((v, i) => v + b[i]!)
  const row = (array: Float64Array, e: number) => array.subarray((e * array.length) / edges, ((e + 1) * array.length) / edges)
  const vectors = (r: Float64Array) => Float64Array.from(pairs.flatMap(([i, j]) => [0, 1, 2].map((c) => r[3 * i + c]! - r[3 * j + c]!)))
  const toAtoms = (perEdge: Float64Array) => {
    const sum = new Float64Array(3 * atoms)
    pairs.forEach(([i, j], e) => [0, 1, 2].forEach((c) => ((sum[3 * i + c]! += perEdge[3 * e + c]!), (sum[3 * j + c]! -= perEdge[3 * e + c]!))))
    return sum
  }
  function model(r: Float64Array) {
    const d = vectors(r), y = sphericalHarmonics('0e+1o+2e', d, sphere), decay = pairs.map((_, e) => Math.exp(-dot(row(d, e), row(d, e)) / 4))
    const weights = (W: Float64Array) => Float64Array.from(decay.flatMap((f) => [...W].map((v) => v * f)))
    const w1 = weights(W1), w2 = weights(W2), h1 = one.forward(graph, x, y, w1), h2 = two.forward(graph, h1, y, w2)
    const second = two.backward(graph, h1, y, w2, h2), first = one.backward(graph, x, y, w1, second.x, { needs: { x: false } })
    const gy = plus(first.y, second.y), decays = pairs.map((_, e) => dot(row(first.weight, e), row(w1, e)) + dot(row(second.weight, e), row(w2, e)))
    const direct = (scales: number[]) => d.map((v, c) => (-v / 2) * scales[Math.floor(c / 3)]!)
    return {
      energy: dot(h2, h2) / 2,
      gradient: toAtoms(plus(sphericalHarmonics.backward('0e+1o+2e', d, gy, sphere), direct(decays))),
      /** The derivative of the gradient along a: that of every step of it. */
      hessian(a: Float64Array): Float64Array {
        const ad = vectors(a), ay = sphericalHarmonics.jvp('0e+1o+2e', d, ad, sphere), along = pairs.map((_, e) => -dot(row(ad, e), row(d, e)) / 2)
        const moved = (w: Float64Array) => w.map((v, k) => v * along[Math.floor((k * edges) / w.length)]!)
        const aw1 = moved(w1), aw2 = moved(w2), ah1 = one.jvp(graph, x, y, w1, { y: ay, weight: aw1 }), ah2 = two.jvp(graph, h1, y, w2, { x: ah1, y: ay, weight: aw2 })
        const s2 = two.doubleBackward(graph, h1, y, w2, h2, { x: ah1, y: ay, weight: aw2 }), r2 = two.backward(graph, h1, y, w2, ah2)
        const ag1 = plus(s2.x, r2.x), needs = { x: false }
        const s1 = one.doubleBackward(graph, x, y, w1, second.x, { y: ay, weight: aw1 }, { needs }), r1 = one.backward(graph, x, y, w1, ag1, { needs })
        const ofHarmonics = sphericalHarmonics.doubleBackward('0e+1o+2e', d, gy, ad, sphere).vectors
        const agy = [s1.y, r1.y, s2.y, r2.y].reduce(plus), ag1w = plus(s1.weight, r1.weight), ag2w = plus(s2.weight, r2.weight)
        const changes = pairs.map((_, e) => dot(row(ag1w, e), row(w1, e)) + dot(row(first.weight, e), row(aw1, e)) + dot(row(ag2w, e), row(w2, e)) + dot(row(second.weight, e), row(aw2, e)))
        const radial = plus(direct(changes), ad.map((v, c) => (-v / 2) * decays[Math.floor(c / 3)]!))
        return toAtoms([ofHarmonics, sphericalHarmonics.backward('0e+1o+2e', d, agy, sphere), radial].reduce(plus))
      },
    }
  }

  const r = randomArray(dtype, 3 * atoms, next), n = r.length, at = model(r)
  // As in forces.test.ts: central differences are good to 1e-10 for a step of 1e-5, relative to terms larger than what is left of them.
  const step = 1e-5, coordinates = Array.from({ length: n }, (_, i) => i)
  const differences = coordinates.map((i) => [step, -step].map((s) => model(r.map((v, c) => (c === i ? v + s : v)))) as [ReturnType<typeof model>, ReturnType<typeof model>])
  expect(arrayError(at.gradient, differences.map(([up, down]) => (up.energy - down.energy) / (2 * step)))).toBeLessThan(1e-7)
  const jacobian = coordinates.map((i) => at.hessian(Float64Array.from({ length: n }, (_, c) => (c === i ? 1 : 0))))
  jacobian.forEach((row, i) => expect(arrayError(row, row.map((_, c) => (differences[i]![0].gradient[c]! - differences[i]![1].gradient[c]!) / (2 * step)))).toBeLessThan(1e-7))
  // Nothing but roundings, far below the 1e-6 that training needs.
  const flat = Float64Array.from(jacobian.flatMap((row) => [...row]))
  expect(arrayError(flat, flat.map((_, k) => jacobian[k % n]![Math.floor(k / n)]!))).toBeLessThan(1e-12)
})
