// Every error that a caller can cause: its code, the argument, what was expected and what came; and nothing has been written.
import { describe, expect, test } from 'vitest'
import { backends, ClebschGordanTensorProduct, EquitensorError, errorCodes, GauntTensorProduct, Irreps, MatrixTensorProduct } from '../lib/index'
import { products } from './reference'
import { caught } from './caught'
import { defaultBackend, guarded, random, randomArray } from './support'

function expectError(error: EquitensorError, code: string, argument: string): void {
  expect([error.code, error.argument], error.message).toEqual([code, argument])
  expect(errorCodes).toHaveProperty(code)
  expect(error.message.startsWith(`${argument}: expected `), error.message).toBe(true)
  expect(error.message).toMatch(/, got /)
  expect(error.message.length).toBeLessThan(400)
  if (error.received !== undefined) expect(error.message).toContain(error.received)
}

function detached(array: Float32Array): Float32Array {
  structuredClone(array, { transfer: [array.buffer as ArrayBuffer] })
  return array
}

// 4 items of 1o x 1o.
const n = 4
type Call = { x: any; y: any; weight: any; v: any; z: any; gx: any; gy: any; forward: any; backward: any }
type Problem = [name: string, code: string, argument: string, change: (call: Call, dims: { z: number }) => void, pass?: 'forward' | 'backward']

const problems: Problem[] = [
  ...(['x', 'y', 'v'] as const).flatMap((name): Problem[] => {
    const argument = name === 'v' ? 'gradOut' : name, pass = name === 'v' ? 'backward' : undefined
    return [
      [`${name} of the other dtype`, 'wrong_dtype', argument, (c) => (c[name] = new Float64Array(c[name].length)), pass],
      [`${name} a number short`, 'wrong_length', argument, (c) => (c[name] = c[name].slice(1)), pass],
      [`${name} detached`, 'detached', argument, (c) => (c[name] = detached(c[name].slice())), pass],
      ...[undefined, null, 7, 'x', {}].map((value): Problem => [`${name} ${JSON.stringify(value)}`, 'invalid_argument', argument, (c) => (c[name] = value), pass]),
      [`${name} a plain array`, 'invalid_argument', argument, (c) => (c[name] = Array.from(c[name])), pass],
      [`${name} an Int32Array`, 'invalid_argument', argument, (c) => (c[name] = new Int32Array(c[name].length)), pass],
      [`${name} a DataView`, 'invalid_argument', argument, (c) => (c[name] = new DataView(new ArrayBuffer(48))), pass],
    ]
  }),
  ['x an item short', 'batch_mismatch', 'y', (c) => (c.x = c.x.slice(3))],
  ['y an item long', 'batch_mismatch', 'y', (c) => (c.y = new Float32Array(3 * (n + 1)))],
  ['no x against four y', 'batch_mismatch', 'y', (c) => (c.x = new Float32Array(0))],
  ['gradOut of another batch', 'wrong_length', 'gradOut', (c, { z }) => (c.v = new Float32Array(z * (n - 1))), 'backward'],
  ['weights', 'weight_unwanted', 'weight', (c) => (c.weight = new Float32Array(3))],
  ['weights as a number', 'weight_unwanted', 'weight', (c) => (c.weight = 1)],

  ['out short', 'wrong_length', 'out', (c) => (c.forward.out = c.z.subarray(1)), 'forward'],
  ['out long', 'wrong_length', 'out', (c) => (c.forward.out = new Float32Array(c.z.length + 1)), 'forward'],
  ['out of the other dtype', 'wrong_dtype', 'out', (c) => (c.forward.out = new Float64Array(c.z.length)), 'forward'],
  ['out a plain array', 'invalid_argument', 'out', (c) => (c.forward.out = Array.from(c.z)), 'forward'],
  ['out null', 'invalid_argument', 'out', (c) => (c.forward.out = null), 'forward'],
  ['out detached', 'detached', 'out', (c) => (c.forward.out = detached(new Float32Array(c.z.length))), 'forward'],
  ['an unknown option of forward', 'invalid_option', 'options.into', (c) => (c.forward.into = c.z), 'forward'],
  ['null for the options of forward', 'invalid_option', 'options', (c) => (c.forward = null), 'forward'],

  ['out.x short', 'wrong_length', 'out.x', (c) => (c.backward.out.x = c.gx.subarray(1)), 'backward'],
  ['out.y of another batch', 'wrong_length', 'out.y', (c) => (c.backward.out.y = new Float32Array(3)), 'backward'],
  ['out.y of the other dtype', 'wrong_dtype', 'out.y', (c) => (c.backward.out.y = new Float64Array(3 * n)), 'backward'],
  ['out.x detached', 'detached', 'out.x', (c) => (c.backward.out.x = detached(new Float32Array(3 * n))), 'backward'],
  ['both gradients in one array', 'overlap', 'out.y', (c) => (c.backward.out.y = c.backward.out.x), 'backward'],
  ['out.x though it is not needed', 'invalid_option', 'out.x', (c) => (c.backward.needs = { x: false }), 'backward'],
  ['needs.x as a number', 'invalid_option', 'needs.x', (c) => (c.backward.needs = { x: 1 }), 'backward'],
  ['needs.y null', 'invalid_option', 'needs.y', (c) => (c.backward.needs = { y: null }), 'backward'],
  ['an unknown option of backward', 'invalid_option', 'options.need', (c) => (c.backward.need = {}), 'backward'],
  ['an unknown need', 'invalid_option', 'needs.z', (c) => (c.backward.needs = { z: true }), 'backward'],
  ['an unknown output', 'invalid_option', 'out.z', (c) => (c.backward.out.z = c.z), 'backward'],
]

describe.each(products)('calls: $name', ({ make }) => {
  test.each(problems)('%s: %s', (_name, code, argument, change, pass) => {
    using op = make('1o', '1o')
    const z = guarded('float32', n * op.irrepsOut.dim), gx = guarded('float32', 3 * n), gy = guarded('float32', 3 * n)
    const call: Call = {
      x: randomArray('float32', 3 * n, random(1)), y: randomArray('float32', 3 * n, random(2)), weight: undefined, v: randomArray('float32', z.array.length, random(3)),
      z: z.array, gx: gx.array, gy: gy.array, forward: { out: z.array }, backward: { out: { x: gx.array, y: gy.array } },
    }
    change(call, { z: op.irrepsOut.dim })
    if (pass !== 'backward') expectError(caught(() => op.forward(call.x, call.y, call.weight, call.forward)), code, argument)
    if (pass !== 'forward') expectError(caught(() => op.backward(call.x, call.y, call.weight, call.v, call.backward)), code, argument)
    for (const array of [z, gx, gy]) expect(array.untouched() && array.intact()).toBe(true)
  })

  test('outputs that share memory with an input, identical or in part', () => {
    using op = make('1o', '0e')
    const whole = randomArray('float32', 20, random(1)), before = whole.slice()
    const x = whole.subarray(3, 9), v = whole.subarray(9, 15), y = randomArray('float32', 2, random(2))
    const views = [whole.subarray(3, 9), whole.subarray(0, 6), whole.subarray(8, 14), whole.subarray(1, 7)]
    for (const out of views.map((view) => new Float32Array(view.buffer, view.byteOffset, 6))) {
      expectError(caught(() => op.forward(x, y, undefined, { out })), 'overlap', 'out')
      expectError(caught(() => op.backward(x, y, undefined, v, { out: { x: out } })), 'overlap', 'out.x')
    }
    expectError(caught(() => op.backward(x, y, undefined, v, { out: { x: v } })), 'overlap', 'out.x')
    expectError(caught(() => op.backward(x, y, undefined, v, { out: { y } })), 'overlap', 'out.y')
    const gradients = new Float32Array(8)
    expectError(caught(() => op.backward(x, y, undefined, v, { out: { x: gradients.subarray(0, 6), y: gradients.subarray(5, 7) } })), 'overlap', 'out.y')
    expect(whole).toEqual(before)
    // Neighbours do not overlap.
    op.forward(x, y, undefined, { out: whole.subarray(9, 15) })
    op.backward(x, y, undefined, v, { out: { x: gradients.subarray(0, 6), y: gradients.subarray(6, 8) } })
    expect(whole.subarray(0, 9)).toEqual(before.subarray(0, 9))
  })

  test('one shared memory under two SharedArrayBuffers, as when it comes back from a worker', () => {
    using op = make('1o', '0e')
    const buffer = new SharedArrayBuffer(4 * 6), x = new Float32Array(buffer), out = new Float32Array(structuredClone(buffer))
    out[5] = 7
    expect(x[5]).toBe(7)
    expectError(caught(() => op.forward(x, new Float32Array(2), undefined, { out })), 'overlap', 'out')
  })

  test('after dispose(), by hand or by `using`, and twice', () => {
    const x = new Float32Array(3)
    const first = make('1o', '1o')
    first.dispose()
    first.dispose()
    const second = make('1o', '1o')
    {
      using scoped = second
      scoped.forward(x, x)
    }
    const third = make('1o', '1o')
    third[Symbol.dispose]()
    for (const op of [first, second, third]) {
      const out = guarded('float32', op.irrepsOut.dim)
      for (const call of [() => op.forward(x, x, undefined, { out: out.array }), () => op.backward(x, x, undefined, new Float32Array(op.irrepsOut.dim)), () => op.countFlops('forward')]) {
        const error = caught(call)
        expect(error.code).toBe('disposed')
        expect(error.message).toContain(op.constructor.name)
      }
      expect(out.untouched()).toBe(true)
      expect(op.cost.forward.flops).toBeGreaterThan(0) // what it says of itself remains
    }
  })

  test('an error leaves the operation usable', () => {
    using op = make('1o', '1o')
    const x = randomArray('float32', 3, random(1)), expected = op.forward(x, x)
    caught(() => op.forward(x, new Float32Array(4)))
    expect(op.forward(x, x)).toEqual(expected)
  })

  test('empty weights, null and undefined stand for none', () => {
    using op = make('1o', '1o')
    const x = new Float32Array(3)
    for (const weight of [undefined, null, new Float32Array(0)]) op.forward(x, x, weight as never)
  })
})

type Make = (in1: any, in2: any, options?: any) => unknown
const constructorProblems: [name: string, code: string, argument: string, in1: any, in2: any, options?: any][] = [
  ['degree 12 in the first input', 'degree_limit', 'irrepsIn1', '12e', '0e'],
  ['degree 12 in the second input', 'degree_limit', 'irrepsIn2', '0e', new Irreps('0e+12e')],
  ['degree 23', 'degree_limit', 'irrepsIn1', '23e', '0e'],
  ['no irreps', 'invalid_irreps', 'irrepsIn1', '', '0e'],
  ['only empty blocks', 'invalid_irreps', 'irrepsIn2', '0e', '0x1o'],
  ['a malformed string', 'invalid_irreps', 'irrepsIn1', '1o+2', '0e'],
  ['a negative multiplicity', 'invalid_irreps', 'irrepsIn2', '0e', [[-1, '1o']]],
  ...[undefined, null, 5, {}].map((v): [string, string, string, any, any] => [`irreps ${JSON.stringify(v)}`, 'invalid_irreps', 'irrepsIn2', '0e', v]),
  ['an unknown dtype', 'invalid_option', 'options.dtype', '1o', '1o', { dtype: 'float16' }],
  ['an unknown layout', 'invalid_option', 'options.layout', '1o', '1o', { layout: 'mul-ir' }],
  ['an unknown backend', 'invalid_option', 'options.backend', '1o', '1o', { backend: 'metal' }],
  ['an unknown algorithm', 'invalid_option', 'options.algorithm', '1o', '1o', { algorithm: 'fastest' }],
  ['a name of the prototype as layout', 'invalid_option', 'options.layout', '1o', '1o', { layout: 'constructor' }],
  ...(backends().cuda.available ? [] : [['no CUDA', 'backend_unavailable', 'options.backend', '1o', '1o', { backend: 'cuda' }] as [string, string, string, any, any, any]]),
  ...[0, -1, 1.5, NaN, Infinity, 1025, '2', true].map((v): [string, string, string, any, any, any] => [`threads ${v}`, 'invalid_option', 'options.threads', '1o', '1o', { threads: v }]),
  ['an unknown option', 'invalid_option', 'options.dType', '1o', '1o', { dType: 'float32' }],
  ['an option of the prototype', 'invalid_option', 'options.toString', '1o', '1o', { toString: 1 }],
  ['options null', 'invalid_option', 'options', '1o', '1o', null],
  ['options a string', 'invalid_option', 'options', '1o', '1o', 'float64'],
]
const makers: [string, Make][] = [
  ['CGTP full', (a, b, o) => ClebschGordanTensorProduct.full(a, b, o)],
  ['CGTP elementwise', (a, b, o) => ClebschGordanTensorProduct.elementwise(a, b, o)],
  ['GTP', (a, b, o) => new GauntTensorProduct(a, b, o)],
  ['MTP', (a, b, o) => new MatrixTensorProduct(a, b, o)],
]

describe.each(makers)('constructors: %s', (name, make) => {
  // MTP has one algorithm and no option for it.
  test.each(constructorProblems.filter(([, , argument]) => name !== 'MTP' || argument !== 'options.algorithm'))('%s: %s', (_name, code, argument, in1, in2, options) => {
    expectError(caught(() => make(in1, in2, options)), code, argument)
  })

  test('undefined stands for the default of every option', () => {
    const options = { dtype: undefined, layout: undefined, backend: undefined, threads: undefined, ...(name.startsWith('CGTP') ? { filterIrrepsOut: undefined } : { irrepsOut: undefined }) }
    expect(make('1o', '1o', options)).toMatchObject({ dtype: 'float32', layout: 'mul_ir', backend: defaultBackend })
    expect(make('1o', '1o', undefined)).toMatchObject({ dtype: 'float32' })
  })
})

describe.each(makers.slice(2))('signals: %s', (_product, make) => {
  test.each([
    ['unequal multiplicities in one input', 'unequal_multiplicities', 'irrepsIn1', '2x0e+3x1o', '2x0e', {}],
    ['unequal multiplicities of the inputs', 'unequal_multiplicities', 'irrepsIn2', '2x0e', '3x0e', {}],
    ['another multiplicity of the output', 'unequal_multiplicities', 'options.irrepsOut', '2x0e', '2x0e', { irrepsOut: '1x0e' }],
    ['a repeated irrep', 'repeated_irrep', 'irrepsIn2', '1o+0e', '1o+0e+1o', {}],
    ['a repeated irrep of the output', 'repeated_irrep', 'options.irrepsOut', '1o', '1o', { irrepsOut: '0e+2e+0e' }],
    ['an empty output', 'invalid_irreps', 'options.irrepsOut', '1o', '1o', { irrepsOut: '' }],
    ['an output above 22', 'degree_limit', 'options.irrepsOut', '1o', '1o', { irrepsOut: '23e' }],
    ['an output beyond the triangle', 'no_path', 'options.irrepsOut', '1o', '1o', { irrepsOut: '3e' }],
    ['an output of the other parity', 'no_path', 'options.irrepsOut', '1o', '1o', { irrepsOut: '0o' }],
    ['one output of several beyond reach', 'unreachable_output', 'options.irrepsOut', '1o', '1o', { irrepsOut: '0e+4e' }],
    ['an unknown form', 'invalid_option', 'options.form', '1o', '1o', { form: 'blocks' }],
  ] as [string, string, string, any, any, any][])('%s: %s', (_name, code, argument, in1, in2, options) => {
    expectError(caught(() => make(in1, in2, options)), code, argument)
  })

  test('the remedy of unequal multiplicities is one that works', () => {
    const remedy = /'(.+?)'/.exec(caught(() => make('2x0e+3x1o', '2x0e')).expected!)![1]!
    make(remedy, '2x0e')
  })
})

test('every code has a meaning, and messages stay short whatever came', () => {
  for (const meaning of Object.values(errorCodes)) expect(meaning).toMatch(/^[A-Z].+\.$/)
  const long = caught(() => ClebschGordanTensorProduct.full('1o', '1o', { dtype: 'x'.repeat(10_000) as never }))
  expect(long.message.length).toBeLessThan(200)
  const hostile = { get length() { throw new Error('looked') } }
  using op = ClebschGordanTensorProduct.full('1o', '1o')
  expect(caught(() => op.forward(hostile as never, hostile as never)).code).toBe('invalid_argument')
})

test('buffers that shrink between two calls are seen', () => {
  using op = ClebschGordanTensorProduct.full('0e', '0e')
  const buffer = new (ArrayBuffer as any)(64, { maxByteLength: 128 })
  if (!buffer.resizable) return // before Node 20
  const tracking = new Float32Array(buffer), fixed = new Float32Array(buffer, 0, 16)
  expect(op.forward(tracking, Float32Array.of(2))).toHaveLength(16)
  buffer.resize(32)
  expect(op.forward(tracking, Float32Array.of(2))).toHaveLength(8)
  // A fixed view out of bounds has no elements any more, but neither is its buffer gone: it must not be read.
  const result = (() => {
    try {
      return op.forward(fixed, Float32Array.of(2)).length
    } catch (error) {
      return (error as EquitensorError).code
    }
  })()
  expect([0, 'detached', 'wrong_length']).toContain(result)
})
