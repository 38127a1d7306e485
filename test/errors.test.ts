// Every error that a caller can cause: its code, the argument, what was expected and what came; and nothing has been written.
import { describe, expect, test } from 'vitest'
import {
  backends, ClebschGordanTensorProduct, Convolution, DeviceArray, EquitensorError, errorCodes, GauntProduct, GauntTensorProduct, Graph, Irreps, Linear, MatrixTensorProduct,
  sphericalHarmonics, SymmetricContraction, TensorSquare,
} from '../lib/index'
import { jaxOperations } from '../lib/jax'
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

/** With a property of its own in front of what the array is. */
function withLength<A extends object>(array: A, length: number): A {
  return Object.defineProperty(array, 'length', { value: length })
}

function shrunk(length: number): Float32Array {
  const buffer = new (ArrayBuffer as any)(4 * length, { maxByteLength: 4 * length })
  const array = new Float32Array(buffer, 0, length)
  buffer.resize(4)
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
      [`${name} a Proxy of an array`, 'invalid_argument', argument, (c) => (c[name] = new Proxy(c[name], {})), pass],
      [`${name} an heir of the prototype`, 'invalid_argument', argument, (c) => (c[name] = Object.create(Float32Array.prototype)), pass],
      [`${name} an heir of DeviceArray's prototype`, 'invalid_argument', argument, (c) => (c[name] = Object.create(DeviceArray.prototype)), pass],
      [`${name} that says to be longer`, 'wrong_length', argument, (c) => (c[name] = withLength(c[name].slice(1), c[name].length)), pass],
      [`${name} of a buffer that was shrunk`, 'detached', argument, (c) => (c[name] = shrunk(c[name].length)), pass],
      [`${name} a DataView`, 'invalid_argument', argument, (c) => (c[name] = new DataView(new ArrayBuffer(48))), pass],
    ]
  }),
  ['x an item short', 'batch_mismatch', 'y', (c) => (c.x = c.x.slice(3))],
  ['y an item long', 'batch_mismatch', 'y', (c) => (c.y = new Float32Array(3 * (n + 1)))],
  ['no x against four y', 'batch_mismatch', 'y', (c) => (c.x = new Float32Array(0))],
  ['gradOut of another batch', 'wrong_length', 'gradOut', (c, { z }) => (c.v = new Float32Array(z * (n - 1))), 'backward'],
  ['weights', 'weight_unwanted', 'weight', (c) => (c.weight = new Float32Array(3))],
  ['weights as a number', 'weight_unwanted', 'weight', (c) => (c.weight = 1)],

  ['out that says to be longer', 'wrong_length', 'out', (c) => (c.forward.out = withLength(c.z.subarray(1), c.z.length)), 'forward'],
  ['out short', 'wrong_length', 'out', (c) => (c.forward.out = c.z.subarray(1)), 'forward'],
  ['out long', 'wrong_length', 'out', (c) => (c.forward.out = new Float32Array(c.z.length + 1)), 'forward'],
  ['out of the other dtype', 'wrong_dtype', 'out', (c) => (c.forward.out = new Float64Array(c.z.length)), 'forward'],
  ['out a plain array', 'invalid_argument', 'out', (c) => (c.forward.out = Array.from(c.z)), 'forward'],
  ['out null', 'invalid_argument', 'out', (c) => (c.forward.out = null), 'forward'],
  ['out detached', 'detached', 'out', (c) => (c.forward.out = detached(new Float32Array(c.z.length))), 'forward'],
  ['an unknown option of forward', 'invalid_option', 'options.into', (c) => (c.forward.into = c.z), 'forward'],
  ['null for the options of forward', 'invalid_option', 'options', (c) => (c.forward = null), 'forward'],

  ['out.x that says to be longer', 'wrong_length', 'out.x', (c) => (c.backward.out.x = withLength(c.gx.subarray(1), c.gx.length)), 'backward'],
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
        expectError(error, 'disposed', 'this')
        expect(error).toMatchObject({ expected: `a live ${op.constructor.name}`, received: 'one after dispose()' })
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

const weighted: [string, Make][] = [
  ['channelwise', (a, b, o) => ClebschGordanTensorProduct.channelwise(a, b, undefined, o)],
  ['fullyConnected', (a, b, o) => ClebschGordanTensorProduct.fullyConnected(a, b, '0e', o)],
]
describe.each(weighted)('constructors: CGTP %s', (_factory, make) => {
  test.each(constructorProblems)('%s: %s', (_name, code, argument, in1, in2, options) => {
    expectError(caught(() => make(in1, in2, options)), code, argument)
  })
  test('options that have no meaning here', () => {
    for (const key of ['irrepsOut', 'filterIrrepsOut', 'instructions']) expectError(caught(() => make('1o', '1o', { [key]: [] })), 'invalid_option', `options.${key}`)
    expect(make('1o', '1o', { dtype: undefined, layout: undefined, backend: undefined, pathNormalization: undefined })).toMatchObject({ dtype: 'float32', backend: defaultBackend })
  })
})

describe('instructions', () => {
  const good = { in1: 0, in2: 0, out: 0, mode: 'uvu', hasWeight: true }
  const make = (change: object, { in1 = '3x1o+2x1o', in2 = '2x1o+1x0o', irrepsOut = '3x0e' as unknown, ...options }: any = {}) =>
    new ClebschGordanTensorProduct(in1, in2, { irrepsOut, instructions: [{ ...good, ...change }], ...options })
  test.each([
    ...(['in1', 'in2', 'out'] as const).flatMap((key) => [-1, 2, 0.5, NaN, '0', undefined].map((v): [string, string, string, object] => [`${key} ${v}`, 'invalid_option', key, { [key]: v }])),
    ...['uvx', 'UVW', 'toString', undefined, 7].map((v): [string, string, string, object] => [`mode ${v}`, 'invalid_option', 'mode', { mode: v }]),
    ...[undefined, 1, 'yes'].map((v): [string, string, string, object] => [`hasWeight ${v}`, 'invalid_option', 'hasWeight', { hasWeight: v }]),
    ...[-1, NaN, Infinity, '1'].map((v): [string, string, string, object] => [`pathWeight ${v}`, 'invalid_option', 'pathWeight', { pathWeight: v }]),
    ['uvw without weights', 'invalid_option', 'hasWeight', { mode: 'uvw', hasWeight: false }],
    ['u<vw without weights', 'invalid_option', 'hasWeight', { mode: 'u<vw', hasWeight: false }],
    ['an unknown key', 'invalid_option', 'path_weight', { path_weight: 1 }],
    ['uvu into another multiplicity', 'unequal_multiplicities', 'out', { in1: 1 }],
    ['uvv into another multiplicity', 'unequal_multiplicities', 'out', { mode: 'uvv' }],
    ['uvuv into another multiplicity', 'unequal_multiplicities', 'out', { mode: 'uvuv' }],
    ['uuu of unequal inputs', 'unequal_multiplicities', 'in2', { mode: 'uuu' }],
    ['uuw of unequal inputs', 'unequal_multiplicities', 'in2', { mode: 'uuw' }],
    ['u<vw of unequal inputs', 'unequal_multiplicities', 'in2', { mode: 'u<vw' }],
    ['uuw without weights into several channels', 'unequal_multiplicities', 'out', { in1: 1, mode: 'uuw', hasWeight: false }],
    ['uvu<v into another multiplicity', 'unequal_multiplicities', 'out', { in1: 1, mode: 'uvu<v' }],
  ] as [string, string, string, object][])('%s: %s', (_name, code, key, change) => {
    expectError(caught(() => make(change)), code, `options.instructions[0].${key}`)
  })
  test.each([
    ['another parity', 'no_path', 'options.instructions[0].out', { irrepsOut: '3x0o' }],
    ['beyond the triangle', 'no_path', 'options.instructions[0].out', { irrepsOut: '3x3e' }],
    ['no irrepsOut', 'invalid_irreps', 'options.irrepsOut', { irrepsOut: null }],
    ['a block that no instruction writes', 'unreachable_output', 'options.irrepsOut', { irrepsOut: '3x0e+1x1o' }],
    ['only an empty block', 'no_path', 'options.irrepsOut', { in1: '3x1o', in2: '0x1o+1x0e', irrepsOut: '3x0e' }],
    ['only a path that adds nothing', 'no_path', 'options.irrepsOut', { instructions: [{ ...good, pathWeight: 0 }] }],
    ['a block that only such a path writes', 'unreachable_output', 'options.irrepsOut', { irrepsOut: '3x0e+3x1e', instructions: [good, { ...good, out: 1, pathWeight: 0 }] }],
    ['a filter', 'invalid_option', 'options.filterIrrepsOut', { filterIrrepsOut: '0e' }],
    ['the dense algorithm', 'invalid_option', 'options.algorithm', { algorithm: 'dense' }],
    ['an unknown normalisation', 'invalid_option', 'options.pathNormalization', { pathNormalization: 'paths' }],
    ['an unknown irrep normalisation', 'invalid_option', 'options.irrepNormalization', { irrepNormalization: 'integral' }],
    ['no list', 'invalid_option', 'options.instructions', { instructions: 'uvw' }],
    ['null for the list', 'invalid_option', 'options.instructions', { instructions: null }],
    ['an empty list', 'no_path', 'options.irrepsOut', { instructions: [] }],
    ['null for an instruction', 'invalid_option', 'options.instructions[0]', { instructions: [null] }],
    ['2^31 weights', 'invalid_option', 'options.instructions', { in1: '70000x0e', in2: '70000x0e', irrepsOut: '1x0e', instructions: [{ ...good, mode: 'uvw' }] }],
  ] as [string, string, string, object][])('%s: %s', (_name, code, argument, change) => {
    expectError(caught(() => make({}, change)), code, argument)
  })
  test('irrepsOut without instructions, and instructions for a product that has its own', () => {
    expectError(caught(() => new ClebschGordanTensorProduct('1o', '1o', { irrepsOut: '0e' })), 'invalid_option', 'options.irrepsOut')
    for (const factory of [ClebschGordanTensorProduct.full, ClebschGordanTensorProduct.elementwise]) {
      expectError(caught(() => factory('1o', '1o', { instructions: [] } as object)), 'invalid_option', 'options.instructions')
    }
  })
  test('outputs of factories that no path reaches', () => {
    const { channelwise, fullyConnected } = ClebschGordanTensorProduct
    expectError(caught(() => fullyConnected('1o', '1o', '2x0e+1x1o')), 'unreachable_output', 'irrepsOut')
    expectError(caught(() => fullyConnected('0x0e+1o', '1o', '1o')), 'no_path', 'irrepsOut')
    expectError(caught(() => fullyConnected('1o', '1o', '3e')), 'no_path', 'irrepsOut')
    expectError(caught(() => fullyConnected('1o', '1o', '')), 'invalid_irreps', 'irrepsOut')
    expectError(caught(() => channelwise('1o', '1o', '0o+3e')), 'no_path', 'filterIrrepsOut')
    expectError(caught(() => channelwise('1o', '1o', 'x')), 'invalid_irreps', 'filterIrrepsOut')
  })
  test('too many weights: what was passed is named, and no option that was not', () => {
    const { channelwise, fullyConnected } = ClebschGordanTensorProduct, many = '2000x0e'
    expectError(caught(() => fullyConnected(many, many, many)), 'invalid_irreps', 'irrepsOut')
    expectError(caught(() => Convolution.fullyConnected(many, many, many)), 'invalid_irreps', 'irrepsOut')
    expectError(caught(() => new Linear('70000x0e', '70000x0e')), 'invalid_irreps', 'irrepsOut')
    expectError(caught(() => channelwise('70000x0e', '70000x0e')), 'invalid_irreps', 'irrepsIn2')
    const most = '1000000000x0e'
    expectError(caught(() => new GauntTensorProduct(most, most, { weights: true })), 'invalid_option', 'options.weights')
    expectError(caught(() => new MatrixTensorProduct(most, most, { weights: true, rank: 2 })), 'invalid_option', 'options.rank')
    expectError(caught(() => new SymmetricContraction(most, most)), 'invalid_irreps', 'irrepsOut')
    expectError(caught(() => new SymmetricContraction('0e', '0e', { numSpecies: 2 ** 30 })), 'invalid_option', 'options.numSpecies')
  })
})

test('an operation without a path says which selection rule fails', () => {
  const { full, elementwise, channelwise, fullyConnected } = ClebschGordanTensorProduct
  const triangle = '|l1 - l2| <= l3 <= l1 + l2 (triangle rule)', parity = 'p3 = p1 p2 (parity)', even = 'l1 + l2 + l3 even'
  const instruction = { in1: 0, in2: 0, out: 0, mode: 'uvw', hasWeight: true } as const
  const cases: [code: string, argument: string, failed: string, received: string, make: () => unknown][] = [
    ['no_path', 'options.irrepsOut', triangle, '4e', () => new GauntTensorProduct('1o', '1o', { irrepsOut: '4e' })],
    ['no_path', 'options.irrepsOut', parity, '2o', () => new GauntTensorProduct('1o', '1o', { irrepsOut: '2o' })],
    ['no_path', 'options.irrepsOut', even, '1e', () => new GauntTensorProduct('1o', '1o', { irrepsOut: '1e' })],
    // 0e x 1o has the parity, 1o x 1o the degree.
    ['unreachable_output', 'options.irrepsOut', parity, '2o', () => new GauntTensorProduct('0e+1o', '1o', { irrepsOut: '0e+2o' })],
    ['no_path', 'options.irrepsOut', triangle, '3e', () => new MatrixTensorProduct('1e', '1e', { irrepsOut: '3e' })],
    ['no_path', 'options.irrepsOut', parity, '1o', () => new MatrixTensorProduct('1e', '1e', { irrepsOut: '1o' })],
    ['no_path', 'options.filterIrrepsOut', triangle, '3e', () => full('1o', '1o', { filterIrrepsOut: '3e' })],
    ['no_path', 'options.filterIrrepsOut', parity, '1o', () => full('1o', '1o', { filterIrrepsOut: '1o' })],
    ['no_path', 'options.filterIrrepsOut', parity, '0o+3e', () => full('1o', '1o', { filterIrrepsOut: '0o+3e' })],
    ['no_path', 'options.filterIrrepsOut', triangle, 'none', () => full('1o', '1o', { filterIrrepsOut: '' })],
    // 0e x 0e and 1o x 1o have it, but the channels of 0e meet those of 1o.
    ['no_path', 'options.filterIrrepsOut', triangle, '0e', () => elementwise('0e+1o', '1o+0e', { filterIrrepsOut: '0e' })],
    ['no_path', 'filterIrrepsOut', parity, '1o', () => channelwise('1o', '1o', '1o')],
    ['unreachable_output', 'irrepsOut', triangle, '3e', () => fullyConnected('1o', '1o', '0e+3e')],
    // The block of 0e is empty.
    ['no_path', 'irrepsOut', parity, '1o', () => fullyConnected('0x0e+1o', '1o', '1o')],
    ['no_path', 'options.instructions[0].out', parity, '1o', () => new ClebschGordanTensorProduct('1o', '1o', { irrepsOut: '1o', instructions: [instruction] })],
    ['no_path', 'options.filterIrrepsOut', parity, '1o', () => new TensorSquare('1o', { filterIrrepsOut: '1o' })],
    ['no_path', 'options.filterIrrepsOut', 'an even l3 of a single channel with itself', '1e', () => new TensorSquare('1o', { filterIrrepsOut: '1e' })],
    ['no_path', 'irrepsOut', 'l2 = l1 (triangle rule)', '1o', () => new Linear('2x0e', '2x1o')],
    ['unreachable_output', 'irrepsOut', 'p2 = p1 (parity)', '0o', () => new Linear('2x0e', '2x0e+1x0o')],
    ['no_path', 'irrepsOut', 'p = p1 p2 ... (parity)', '0o', () => new SymmetricContraction('1e', '0o')],
    ['no_path', 'irrepsOut', '|l1 - l2| <= l <= l1 + l2 factor by factor (triangle rule)', '4o', () => new SymmetricContraction('1o', '4o')],
    ['no_path', 'irrepsOut', 'a part that is symmetric in equal factors', '1e', () => new SymmetricContraction('1o', '1e', { correlation: 2 })],
    ['no_path', 'options.irrepsOut', triangle, '3e', () => new GauntProduct(['1o', '1o'], { irrepsOut: '3e' })],
    ['no_path', 'options.irrepsOut', 'an even sum of all l', '1e', () => new GauntProduct(['1o', '1o', '0e'], { irrepsOut: '1e' })],
  ]
  for (const [code, argument, failed, received, make] of cases) {
    const error = caught(make)
    expectError(error, code, argument)
    expect([error.expected?.slice(0, 13 + failed.length), error.received], error.message).toEqual([`irreps with ${failed},`, received])
  }
})

// 4 items of 2x1o x 1o -> 2x0e + 2x1e + 2x2e: 6 weights.
describe('weights', () => {
  using first = ClebschGordanTensorProduct.channelwise('2x1o', '1o')
  const make = () => ClebschGordanTensorProduct.channelwise('2x1o', '1o')
  const numel = first.weightNumel, x = randomArray('float32', 6 * n, random(1)), y = randomArray('float32', 3 * n, random(2)), v = randomArray('float32', n * first.irrepsOut.dim, random(3))
  test.each<[string, string, () => any]>([
    ['undefined', 'weight_missing', () => undefined],
    ['null', 'weight_missing', () => null],
    ['empty', 'wrong_length', () => new Float32Array(0)],
    ['one too few', 'wrong_length', () => new Float32Array(numel - 1)],
    ['sets for another batch', 'wrong_length', () => new Float32Array(numel * (n - 1))],
    ['of the other dtype', 'wrong_dtype', () => new Float64Array(numel)],
    ['a plain array', 'invalid_argument', () => Array(numel).fill(0)],
    ['a number', 'invalid_argument', () => 1],
    ['detached', 'detached', () => detached(new Float32Array(numel))],
  ])('weights %s: %s', (_name, code, weight) => {
    using op = make()
    const out = guarded('float32', v.length), gx = guarded('float32', x.length)
    expectError(caught(() => op.forward(x, y, weight(), { out: out.array })), code, 'weight')
    expectError(caught(() => op.backward(x, y, weight(), v, { out: { x: gx.array } })), code, 'weight')
    expectError(caught(() => op.doubleBackward(x, y, weight(), v, { x }, { out: { x: gx.array } })), code, 'weight')
    expectError(caught(() => op.jvp(x, y, weight(), { x }, { out: out.array })), code, 'weight')
    for (const array of [out, gx]) expect(array.untouched() && array.intact()).toBe(true)
  })
  test.skipIf(!backends().cuda.available)('weights on the device', () => {
    using op = make()
    using weight = DeviceArray.from(new Float32Array(numel))
    expectError(caught(() => op.forward(x, y, weight as never)), 'wrong_kind', 'weight')
  })
  test('gradients and directions of weights', () => {
    using op = make()
    const weight = randomArray('float32', n * numel, random(4)), before = weight.slice()
    const backward = (options: object) => caught(() => op.backward(x, y, weight, v, options))
    expectError(backward({ out: { weight: new Float32Array(numel) } }), 'wrong_length', 'out.weight')
    expectError(backward({ out: { weight: new Float64Array(weight.length) } }), 'wrong_dtype', 'out.weight')
    expectError(backward({ out: { weight } }), 'overlap', 'out.weight')
    expectError(backward({ out: { x: weight.subarray(0, x.length) } }), 'overlap', 'out.x')
    expectError(backward({ out: { weight: new Float32Array(weight.length) }, needs: { weight: false } }), 'invalid_option', 'out.weight')
    expectError(backward({ needs: { weight: 1 } }), 'invalid_option', 'needs.weight')
    expectError(backward({ accumulate: true, out: { x: new Float32Array(x.length), y: new Float32Array(y.length) } }), 'invalid_option', 'out.weight')
    const whole = new Float32Array(v.length), inside = whole.subarray(1, 1 + numel)
    expectError(caught(() => op.forward(x, y, inside, { out: whole })), 'overlap', 'out')
    expectError(caught(() => op.jvp(x, y, weight.subarray(0, numel), { weight: inside }, { out: whole })), 'overlap', 'out')
    const shared = weight.subarray(0, numel)
    expectError(caught(() => op.doubleBackward(x, y, shared, v, { weight })), 'wrong_length', 'cotangents.weight')
    expectError(caught(() => op.jvp(x, y, weight, { weight: shared })), 'wrong_length', 'tangents.weight')
    expectError(caught(() => op.doubleBackward(x, y, weight, v, { weight: before }, { out: { weight: before } })), 'overlap', 'out.weight')
    expect(weight).toEqual(before)
  })
  test('of an operation without weights', () => {
    using op = ClebschGordanTensorProduct.full('2x1o', '1o')
    const z = new Float32Array(n * op.irrepsOut.dim), weight = new Float32Array(3)
    expectError(caught(() => op.backward(x, y, undefined, z, { needs: { weight: true } })), 'weight_unwanted', 'needs.weight')
    expectError(caught(() => op.backward(x, y, undefined, z, { out: { weight } })), 'invalid_option', 'out.weight')
    expectError(caught(() => op.jvp(x, y, undefined, { weight })), 'weight_unwanted', 'tangents.weight')
    expectError(caught(() => op.doubleBackward(x, y, undefined, z, { x, weight })), 'weight_unwanted', 'cotangents.weight')
    // What callers that know nothing of weights pass along.
    expect(Object.keys(op.doubleBackward(x, y, undefined, z, { x, weight: undefined }, { needs: { weight: false } }))).toEqual(['x', 'y', 'gradOut'])
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

test('results that no array can hold', () => {
  // V8 has no array of 2^33 numbers, whatever the machine.
  const vectors = new Float32Array(3 * 100_000)
  expect(caught(() => sphericalHarmonics([[8000, { l: 5, p: -1 }]], vectors))).toMatchObject({ code: 'out_of_memory' })
  using op = ClebschGordanTensorProduct.full('0e', '200000x0e', { backend: 'cpu' })
  expect(caught(() => op.forward(new Float32Array(50_000), new Float32Array(200_000)))).toMatchObject({ code: 'out_of_memory' })
})

test('jaxOperations of what is no jax-js', () => {
  for (const jax of [undefined, null, {}, { numpy: {} }]) expectError(caught(() => jaxOperations(jax as never)), 'invalid_argument', 'jax')
})

test('buffers that shrink between two calls are seen', () => {
  using op = ClebschGordanTensorProduct.full('0e', '0e')
  const buffer = new (ArrayBuffer as any)(64, { maxByteLength: 128 })
  if (!buffer.resizable) return // before Node 20
  const tracking = new Float32Array(buffer), fixed = new Float32Array(buffer, 0, 16)
  expect(op.forward(tracking, Float32Array.of(2))).toHaveLength(16)
  buffer.resize(32)
  expect(op.forward(tracking, Float32Array.of(2))).toHaveLength(8)
  // A fixed view out of bounds has no elements any more.
  expectError(caught(() => op.forward(fixed, Float32Array.of(2))), 'detached', 'x')
})

test('lengths are those of the memory, whatever an array says', () => {
  class Long extends Float32Array {
    override get length() {
      return 999
    }
  }
  using op = ClebschGordanTensorProduct.full('1o', '1o')
  const x = Float32Array.of(1, 2, 3), y = Float32Array.of(4, 5, 6), long = new Long(x)
  expect(op.forward(long, y)).toEqual(op.forward(x, y))
  expect(op.backward(withLength(x.slice(), 30), y, undefined, op.forward(x, y)).x).toHaveLength(3)
  // Of one prototype, with the memory of another.
  const narrow = Object.setPrototypeOf(new Float32Array(3), Float64Array.prototype)
  expectError(caught(() => ClebschGordanTensorProduct.full('1o', '1o', { dtype: 'float64' }).forward(narrow, new Float64Array(3))), 'wrong_dtype', 'x')
  expectError(caught(() => op.forward(x, y, undefined, { out: withLength(new Float32Array(8), 9) })), 'wrong_length', 'out')
  const buffer = new ArrayBuffer(48), out = Object.defineProperty(new Float32Array(buffer, 0, 9), 'buffer', { value: new ArrayBuffer(36) })
  expectError(caught(() => op.forward(new Float32Array(buffer, 0, 3), y, undefined, { out })), 'overlap', 'out')

  expect(sphericalHarmonics(1, withLength(x.slice(), 30))).toHaveLength(4)
  expectError(caught(() => sphericalHarmonics.backward(1, x, withLength(new Float32Array(1), 4))), 'wrong_length', 'gradOut')

  using contraction = new SymmetricContraction('1x0e+1x1o', '1x0e', { correlation: 2, numSpecies: 2 })
  const nodes = new Float32Array(12), w = new Float32Array(2 * contraction.weightNumel)
  expectError(caught(() => contraction.forward(withLength(nodes, 4), Int32Array.of(0), w)), 'wrong_length', 'species')
  expectError(caught(() => contraction.forward(nodes, withLength(Int32Array.of(0), 3), w)), 'wrong_length', 'species')
  expectError(caught(() => contraction.forward(nodes, new Int32Array(3), withLength(w.slice(1), w.length))), 'wrong_length', 'weight')
  // What is checked is what is used.
  class Retained extends Int32Array {
    override slice(): never {
      throw new Error('called')
    }
  }
  expect(contraction.forward(nodes, Retained.of(0, 1, 0) as Int32Array, w)).toHaveLength(3)

  using product = new GauntProduct(['1o', '1o'])
  expectError(caught(() => product.forward([x, withLength(new Float32Array(2), 3)])), 'wrong_length', 'x[1]')
})

test('what an output overlaps is named as the caller passed it', () => {
  const f = (n: number) => new Float32Array(n), all = f(200)
  const expectOverlap = (action: () => unknown, argument: string, other: string) => {
    const error = caught(action)
    expectError(error, 'overlap', argument)
    expect(error.received).toBe(`an array that overlaps ${other}`)
  }
  const full = ClebschGordanTensorProduct.full('0e+1o', '0e+1o'), z = full.irrepsOut.dim
  for (const name of ['x', 'y'] as const) {
    expectOverlap(() => full.doubleBackward(f(4), f(4), undefined, f(z), { [name]: all.subarray(0, 4) }, { out: { gradOut: all.subarray(3, 3 + z) } }), 'out.gradOut', `cotangents.${name}`)
    expectOverlap(() => full.jvp(f(4), f(4), undefined, { [name]: all.subarray(0, 4) }, { out: all.subarray(3, 3 + z) }), 'out', `tangents.${name}`)
  }
  const linear = new Linear('2x0e', '2x0e')
  expectOverlap(() => linear.doubleBackward(f(2), f(4), f(2), { weight: all.subarray(0, 4) }, { out: { weight: all.subarray(2, 6) } }), 'out.weight', 'cotangents.weight')
  expectOverlap(() => linear.jvp(f(2), f(4), { weight: all.subarray(0, 4) }, { out: all.subarray(3, 5) }), 'out', 'tangents.weight')
  const square = new TensorSquare('0e+1o')
  expectOverlap(() => square.jvp(f(4), undefined, { x: all.subarray(0, 4) }, { out: all.subarray(0, square.irrepsOut.dim) }), 'out', 'tangents.x')
  expectOverlap(() => square.forward(all.subarray(0, 4), undefined, { out: all.subarray(0, square.irrepsOut.dim) }), 'out', 'x')
  const contraction = new SymmetricContraction('0e', '0e', { correlation: 1 }), node = Int32Array.of(0)
  expectOverlap(() => contraction.doubleBackward(f(1), node, f(1), f(1), { weight: all.subarray(0, 1) }, { out: { x: all.subarray(0, 1) } }), 'out.x', 'cotangents.weight')
  const convolution = Convolution.channelwise('0e', '0e'), graph = new Graph(Int32Array.of(0, 0), 1)
  expectOverlap(() => convolution.jvp(graph, f(1), f(1), f(1), { weight: all.subarray(0, 1) }, { out: all.subarray(0, 1) }), 'out', 'tangents.weight')
  const product = new GauntProduct(['0e', '0e'])
  expectOverlap(() => product.doubleBackward([f(1), f(1)], f(1), { x: [all.subarray(0, 1), f(1)] }, { out: { x: [undefined, all.subarray(0, 1)] } }), 'out.x[1]', 'cotangents.x[0]')
})

test('what is used after dispose() is named as what it was made as', () => {
  const graph = new Graph(Int32Array.of(0, 0), 1), op = Convolution.channelwise('0e', '0e'), x = new Float32Array(1)
  const owners: [string, { dispose(): void }, () => unknown][] = (() => {
    const linear = new Linear('0e', '0e'), square = new TensorSquare('0e'), contraction = new SymmetricContraction('0e', '0e'), product = new GauntProduct(['0e', '0e'])
    return [
      ['Linear', linear, () => linear.forward(x, x)],
      ['TensorSquare', square, () => square.forward(x)],
      ['SymmetricContraction', contraction, () => contraction.forward(x, Int32Array.of(0), new Float32Array(3))],
      ['GauntProduct', product, () => product.forward([x, x])],
      ['Convolution', op, () => op.forward(graph, x, x, x)],
    ]
  })()
  for (const [name, owner, use] of owners) {
    owner.dispose()
    const error = caught(use)
    expectError(error, 'disposed', 'this')
    expect(error).toMatchObject({ expected: `a live ${name}`, received: 'one after dispose()' })
  }
  graph.dispose()
  const again = Convolution.channelwise('0e', '0e')
  expectError(caught(() => again.forward(graph, x, x, x)), 'disposed', 'graph')
})

test.skipIf(!backends().cuda.available)('the length of a device array is its own', () => {
  using array = DeviceArray.alloc('float32', 3)
  expect(() => ((array as { length: number }).length = 9)).toThrow(TypeError)
  expect(() => withLength(array, 9)).toThrow(TypeError)
})
