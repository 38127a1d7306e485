// nvcc's own PTX of the kernels, run by the interpreter of the emulation (test/emulation/ptx.hpp): results against the CPU's, widths of accesses,
// offsets beyond 2^31. The interpreter itself: instructions, counts and complaints, on PTX that is written here.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ClebschGordanTensorProduct, DeviceArray, GauntTensorProduct, Irreps, MatrixTensorProduct, sphericalHarmonics, TensorSquare } from '../lib/index'
import { binary, native } from '../lib/native'
import { arrayError, blockError, dtypes, layouts, random, randomArray, root, tolerance, type Numbers } from './support'
import { problems } from './weighted_problems'

const load = createRequire(__filename)
const { ptx } = load('../cuda/ptx.js') as { ptx(): string[] }
const { detectCudaToolkit } = load('../bin/build.js') as { detectCudaToolkit(): { tooOld: boolean } | undefined }
const isEmulated = binary.flavour === 'emulated'
const toolkit = detectCudaToolkit()
const { interpret, counting } = native.cuda ?? {}

/** What `action` returns, and what the device did for it. */
function counted<R>(action: () => R) {
  counting!(true)
  const result = action()
  return { result, counts: counting!(false) }
}

/** In a process of its own, since a kernel that misbehaves disables the device; PTX of all kernels is there as `texts`. */
function run(program: string, env: Record<string, string> = {}) {
  const text = `const e = require(${JSON.stringify(path.join(root, 'dist/index.js'))}), { native } = require(${JSON.stringify(path.join(root, 'dist/native.js'))})
    const print = (value) => console.log(JSON.stringify(value))
    ${program}`
  const { stdout, stderr, status } = spawnSync(process.execPath, ['-e', text], { encoding: 'utf8', env: { ...process.env, EQUITENSOR_BINARY: 'emulated', ...env } })
  expect(status, stderr).toBe(0)
  return { value: stdout ? JSON.parse(stdout) : undefined, stderr }
}

describe.runIf(isEmulated && toolkit && !toolkit.tooOld)("nvcc's PTX of the kernels", () => {
  beforeAll(() => {
    for (const text of ptx()) interpret!(text)
  }, 180_000)
  afterAll(() => interpret!(undefined))

  const in1 = '3x0e+2x1o+2e', in2 = '2x0e+2x1o', signals = '3x0e+3x1o+3x2e'
  const products: [string, (options: any) => any][] = [
    ['CGTP, sparse', (options) => ClebschGordanTensorProduct.full(in1, in2, options)],
    ['CGTP, dense', (options) => ClebschGordanTensorProduct.full(in1, in2, { ...options, algorithm: 'dense' })],
    ['CGTP, elementwise', (options) => ClebschGordanTensorProduct.elementwise(signals, signals, options)],
    ['GTP', (options) => new GauntTensorProduct(signals, signals, { ...options, algorithm: 'grid' })],
    ['GTP, one signal', (options) => new GauntTensorProduct('0e+1o+2e+3o', '0e+1o+2e+3o', { ...options, algorithm: 'grid' })],
    ['MTP', (options) => new MatrixTensorProduct(signals, signals, options)],
    // Beyond the products of rings that are unrolled.
    ['GTP, degree 5', (options) => new GauntTensorProduct('1o+5o', '1o+5o', { ...options, algorithm: 'grid', irrepsOut: '0e+4e+10e' })],
    ['GTP, Fourier', (options) => new GauntTensorProduct(signals, signals, options, { convolution: 'direct' })],
    ['GTP, Fourier by FFT', (options) => new GauntTensorProduct(signals, signals, options, { convolution: 'fft' })],
    ['MTP, one signal', (options) => new MatrixTensorProduct('0e+1e+2e+3e', '0e+1e+2e+3e', options)],
    ['MTP, block', (options) => new MatrixTensorProduct(signals, signals, { ...options, form: 'block' })],
    // float32 is multiplied in double.
    ['MTP, k = 9', (options) => new MatrixTensorProduct('0e+9e', '0e+9e', { ...options, irrepsOut: '0e+9e' })],
  ]
  const variants = products.flatMap(([name, make]) => dtypes.flatMap((dtype) => layouts.map((layout) => [name, dtype, layout, make] as const)))

  // Not a multiple of a tile's items. Once each operand is one row for the whole batch.
  test.each(variants)('%s, %s, %s: as on the CPU', (_name, dtype, layout, make) => {
    using op = make({ dtype, layout, backend: 'cuda' }), cpu = make({ dtype, layout, backend: 'cpu' })
    for (const [batch, xRows, yRows] of [[37, 37, 37], [5, 1, 5], [5, 5, 1]] as const) {
      const array = (irreps: Irreps, rows: number, seed: number) => randomArray(dtype, irreps.dim * rows, random(seed))
      const x = array(op.irrepsIn1, xRows, 1), y = array(op.irrepsIn2, yRows, 2), v = array(op.irrepsOut, batch, 3)
      const check = (actual: Numbers, expected: Numbers, irreps: Irreps) => expect(blockError(actual, expected, irreps)).toBeLessThan(tolerance[dtype])

      const forward = counted(() => op.forward(x, y))
      expect(forward.counts.instructions.warp).toBeGreaterThan(0)
      check(forward.result, cpu.forward(x, y), op.irrepsOut)

      const backward = counted(() => op.backward(x, y, undefined, v)), expected = cpu.backward(x, y, undefined, v)
      expect(backward.counts.instructions.warp).toBeGreaterThan(0)
      check(backward.result.x, expected.x, op.irrepsIn1)
      check(backward.result.y, expected.y, op.irrepsIn2)
    }
  })

  test.each(dtypes)('a square, %s: as on the CPU', (dtype) => {
    using op = new TensorSquare(in1, { dtype, backend: 'cuda' }), cpu = new TensorSquare(in1, { dtype, backend: 'cpu' })
    const array = (irreps: Irreps, seed: number) => randomArray(dtype, irreps.dim * 37, random(seed)) as Float32Array
    const x = array(op.irrepsIn, 1), v = array(op.irrepsOut, 2), ax = array(op.irrepsIn, 3)
    const { result, counts } = counted(() => op.doubleBackward(x as never, undefined, v as never, { x: ax as never }))
    expect(counts.instructions.warp).toBeGreaterThan(0)
    const expected = cpu.doubleBackward(x as never, undefined, v as never, { x: ax as never })
    expect(blockError(result.x, expected.x, op.irrepsIn)).toBeLessThan(tolerance[dtype])
    expect(blockError(result.gradOut, expected.gradOut, op.irrepsOut)).toBeLessThan(tolerance[dtype])
    expect(blockError(op.forward(x as never), cpu.forward(x as never), op.irrepsOut)).toBeLessThan(tolerance[dtype])
  })

  // Packs of channels and single ones, every pass, the kernel of all modes, and what scales rows.
  const weighted: [string, (options: any) => any][] = [
    ['channelwise, packs', (options) => ClebschGordanTensorProduct.channelwise('8x0e+8x1o+8x2e+4x3o', '0e+1o+2e+3o', '0e+1o+2e+3o', options)],
    ['channelwise', (options) => ClebschGordanTensorProduct.channelwise('5x0e+3x1o+2x5o', '2x0e+1x1o', undefined, options)],
    ['fully connected', (options) => ClebschGordanTensorProduct.fullyConnected('5x0e+3x1o', '0e+2x1o', '4x0e+9x1o+1x2e', options)],
    ['every mode', (options) => new ClebschGordanTensorProduct(...problems.at(-2)!.irreps.slice(0, 2) as [string, string], { ...options, irrepsOut: problems.at(-2)!.irreps[2], instructions: problems.at(-2)!.instructions })],
    ['GTP with factors', (options) => new GauntTensorProduct(signals, signals, { ...options, algorithm: 'grid', weights: true, rank: 2 })],
  ]
  test.each(weighted.flatMap(([name, make]) => dtypes.flatMap((dtype) => layouts.map((layout) => [name, dtype, layout, make] as const))))('weights, %s, %s, %s: as on the CPU', (_name, dtype, layout, make) => {
    using op = make({ dtype, layout, backend: 'cuda' }), cpu = make({ dtype, layout, backend: 'cpu' })
    for (const sets of [9, 1]) {
      const array = (length: number, seed: number) => randomArray(dtype, length, random(seed)) as any
      const operands = (seed: number) => ({ x: array(9 * op.irrepsIn1.dim, seed), y: array(9 * op.irrepsIn2.dim, seed + 1), weight: array(sets * op.weightNumel, seed + 2) })
      const { x, y, weight } = operands(1), a = operands(4), v = array(9 * op.irrepsOut.dim, 7)
      const { result, counts } = counted(() => [
        { gradOut: op.forward(x, y, weight) }, op.backward(x, y, weight, v), op.doubleBackward(x, y, weight, v, a), { gradOut: op.jvp(x, y, weight, a) },
      ])
      expect(counts.instructions.warp).toBeGreaterThan(0)
      const expected = [{ gradOut: cpu.forward(x, y, weight) }, cpu.backward(x, y, weight, v), cpu.doubleBackward(x, y, weight, v, a), { gradOut: cpu.jvp(x, y, weight, a) }]
      const error = { x: (p: Numbers, q: Numbers) => blockError(p, q, op.irrepsIn1), y: (p: Numbers, q: Numbers) => blockError(p, q, op.irrepsIn2), gradOut: (p: Numbers, q: Numbers) => blockError(p, q, op.irrepsOut), weight: arrayError }
      expected.forEach((arrays, pass) => {
        for (const [name, values] of Object.entries(arrays)) expect(error[name as 'x']((result[pass] as any)[name], values as Numbers), `${pass} ${name}`).toBeLessThan(tolerance[dtype])
      })
    }
  })

  test.each(dtypes)('spherical harmonics, %s: as on the CPU', (dtype) => {
    const irreps = new Irreps('0e+1o+2e+3o+4e')
    const vectors = randomArray(dtype, 3 * 37, random(1))
    const { result, counts } = counted(() => sphericalHarmonics(irreps, vectors, { backend: 'cuda' }))
    expect(counts.instructions.warp).toBeGreaterThan(0)
    expect(blockError(result, sphericalHarmonics(irreps, vectors, { backend: 'cpu' }), irreps)).toBeLessThan(tolerance[dtype])
  })

  // What the emulation counts in the C++ sources, the loads and stores of the PTX add up to.
  test('counts the same bytes as the C++', () => {
    using op = new MatrixTensorProduct('0e+1e+2e', '0e+1e+2e', { dtype: 'float32', backend: 'cuda' })
    const x = randomArray('float32', op.irrepsIn1.dim * 37, random(1)), y = randomArray('float32', op.irrepsIn2.dim * 37, random(2))
    const { loaded, stored, accesses, instructions, barriers } = counted(() => op.forward(x, y)).counts
    const bytes = 4 * (x.length + y.length), sum = (of: Record<number, number>) => Object.entries(of).reduce((total, [width, n]) => total + Number(width) * n, 0)
    expect([loaded.requested, loaded.unique, sum(accesses.load)]).toEqual([bytes, bytes, bytes])
    expect([stored.requested, stored.unique, sum(accesses.store)]).toEqual([4 * 37 * op.irrepsOut.dim, 4 * 37 * op.irrepsOut.dim, sum(accesses.store)])
    const total = (of: Record<string, number>) => Object.values(of).reduce((a, b) => a + b)
    expect([total(instructions.kinds), total(instructions.lines)]).toEqual([instructions.warp, instructions.warp])
    expect(Object.keys(instructions.lines)).toContainEqual(expect.stringMatching(/^cuda\/matrix\.cu:\d+$/))
    expect(instructions.thread).toBeLessThanOrEqual(32 * instructions.warp)
    expect(barriers).toBeGreaterThan(0)
  })

  describe('accesses are 16 bytes wide', () => {
    const widths = (op: any, dtype: 'float32' | 'float64', batch: number, pass: 'forward' | 'backward') => {
      const array = (irreps: Irreps, seed: number) => DeviceArray.from(randomArray(dtype, irreps.dim * batch, random(seed)) as Float32Array)
      using x = array(op.irrepsIn1, 1), y = array(op.irrepsIn2, 2), v = array(op.irrepsOut, 3)
      const { accesses } = counted(() => {
        const results: any[] = pass === 'forward' ? [op.forward(x, y)] : Object.values(op.backward(x, y, undefined, v))
        for (const result of results) result.download()
      }).counts
      return { load: Object.keys(accesses.load).map(Number), store: Object.keys(accesses.store).map(Number) }
    }
    const channels: [string, (irreps: string, options: any) => any][] = [
      ['GTP', (irreps, options) => new GauntTensorProduct(irreps, irreps, { ...options, algorithm: 'grid' })],
      ['GTP, Fourier', (irreps, options) => new GauntTensorProduct(irreps, irreps, { ...options, algorithm: 'fourier' })],
      ['MTP', (irreps, options) => new MatrixTensorProduct(irreps, irreps, options)],
      ['MTP, block', (irreps, options) => new MatrixTensorProduct(irreps, irreps, { ...options, form: 'block' })],
    ]
    const wide = channels.flatMap(([name, make]) => ([8, 16] as const).flatMap((mul) => dtypes.map((dtype) => [name, mul, dtype, make] as const)))
    // 36 items of 8 or 16 channels: 16 bytes are neighbouring channels in the last, incomplete tile too.
    test.each(wide)('%s of %d channels, ir_mul, %s', (_name, mul, dtype, make) => {
      using op = make(`${mul}x0e+${mul}x1e+${mul}x2e`, { dtype, layout: 'ir_mul', backend: 'cuda' })
      for (const pass of ['forward', 'backward'] as const) expect(widths(op, dtype, 36, pass)).toEqual({ load: [16], store: [16] })
    })

    // Whole rows, one after another. 37 items of 9 components: one number is left over at the end.
    test.each(['forward', 'backward'] as const)('whole rows, %s', (pass) => {
      using op = new MatrixTensorProduct('0e+1e+2e', '0e+1e+2e', { dtype: 'float32', backend: 'cuda' })
      const { load, store } = widths(op, 'float32', 37, pass)
      expect([load, store]).toEqual([[4, 16], [4, 16]])
      expect(widths(op, 'float32', 36, pass)).toEqual({ load: [16], store: [16] })
    })
  })
})

// Arrays of more than 2^31 numbers, of which only the pages that are used exist, and only the last blocks of a launch, as the emulation runs the
// C++ and the PTX: an offset in 32 bits would be far outside of the array, or elsewhere in it.
describe.runIf(isEmulated)('offsets beyond 2^31', () => {
  const operations: [string, string][] = [
    ['CGTP', `e.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', options)`],
    ['CGTP, elementwise', `e.ClebschGordanTensorProduct.elementwise('2x0e+2x1o', '2x0e+2x1o', options)`],
    ['GTP', `new e.GauntTensorProduct('0e+1o', '0e+1o', { ...options, algorithm: 'grid' })`],
    ['GTP, channels', `new e.GauntTensorProduct('4x0e+4x1o', '4x0e+4x1o', { ...options, algorithm: 'grid', layout: 'ir_mul' })`],
    ['GTP, Fourier', `new e.GauntTensorProduct('4x0e+4x1o', '4x0e+4x1o', { ...options, algorithm: 'fourier' })`],
    ['MTP', `new e.MatrixTensorProduct('0e+1e', '0e+1e', options)`],
    ['MTP, channels', `new e.MatrixTensorProduct('3x0e+3x1e', '3x0e+3x1e', options)`],
    ['MTP, block', `new e.MatrixTensorProduct('0e+1e', '0e+1e', { ...options, form: 'block' })`],
  ]
  const ways = toolkit && !toolkit.tooOld ? ['C++', 'PTX'] : ['C++']
  const program = (body: string, way: string) => `
    ${way === 'PTX' ? `for (const text of require(${JSON.stringify(path.join(root, 'cuda/ptx.js'))}).ptx()) native.cuda.interpret(text)` : ''}
    native.cuda.runLastBlocks(2)
    // The last 9 items: two blocks have at least as many.
    const items = 9
    const numbers = (length, seed) => Float32Array.from({ length }, (_, i) => Math.sin(seed + i * i))
    const huge = (batch, dim, values) => {
      const array = e.DeviceArray.alloc('float32', batch * dim)
      if (values) array.slice((batch - items) * dim).copyFrom(values)
      return array
    }
    const tail = (array, dim) => Array.from(array.slice(array.length - items * dim).download())
    ${body}`
  const memory = { EQUITENSOR_EMULATED_MEMORY: String(2 ** 40) }
  // The values are of order 1.
  const close = (actual: number[], expected: number[]) => {
    const largest = Math.max(...expected.map(Math.abs))
    expect(largest).toBeGreaterThan(0.1)
    for (let i = 0; i < expected.length; i++) expect(Math.abs(actual[i]! - expected[i]!)).toBeLessThan(tolerance.float32 * largest)
  }

  test.each(ways.flatMap((way) => operations.map(([name, make]) => [way, name, make] as const)))('%s, %s', (way, _name, make) => {
    const { value } = run(program(`
      const make = (backend) => { const options = { dtype: 'float32', backend }; return ${make} }
      const op = make('cuda'), cpu = make('cpu')
      const dims = [op.irrepsIn1.dim, op.irrepsIn2.dim, op.irrepsOut.dim]
      // Every array has more than 2^31 numbers; no multiple of a tile's items.
      const batch = Math.ceil(2 ** 31 / Math.min(...dims)) + 77
      const [x, y, v] = dims.map((dim, i) => numbers(items * dim, i))
      const [bx, by, bv] = [x, y, v].map((values, i) => huge(batch, dims[i], values))
      const z = tail(op.forward(bx, by), dims[2]), g = op.backward(bx, by, undefined, bv), expected = cpu.backward(x, y, undefined, v)
      print({ actual: [z, tail(g.x, dims[0]), tail(g.y, dims[1])], expected: [cpu.forward(x, y), expected.x, expected.y].map((a) => Array.from(a)), length: bx.length })`, way), memory)
    expect(value.length).toBeGreaterThan(2 ** 31)
    for (let i = 0; i < 3; i++) close(value.actual[i], value.expected[i])
  })

  // 32 items a block at least, and the weights are the longest rows.
  test.each(ways.flatMap((way) => [['channelwise', '4x0e+4x1o', '0e+1o'], ['channelwise', '3x0e', '1o'], ['fullyConnected', '0e+1o', '0e+1o']].map((product) => [way, ...product] as const)))(
    '%s, weights, %s of %s x %s', (way, product, in1, in2) => {
    const { value } = run(program(`
      const make = (backend) => e.ClebschGordanTensorProduct.${product}('${in1}', '${in2}', ${product === 'channelwise' ? 'undefined' : `'0e+1o'`}, { layout: 'ir_mul', backend })
      const op = make('cuda'), cpu = make('cpu')
      const dims = [op.irrepsIn1.dim, op.irrepsIn2.dim, op.weightNumel, op.irrepsOut.dim]
      const batch = Math.ceil(2 ** 31 / Math.min(...dims)) + 77
      const [x, y, w, v] = dims.map((dim, i) => numbers(items * dim, i))
      const [bx, by, bw, bv] = [x, y, w, v].map((values, i) => huge(batch, dims[i], values))
      const z = tail(op.forward(bx, by, bw), dims[3]), g = op.backward(bx, by, bw, bv), expected = cpu.backward(x, y, w, v)
      print({ actual: [z, tail(g.x, dims[0]), tail(g.y, dims[1]), tail(g.weight, dims[2])], expected: [cpu.forward(x, y, w), expected.x, expected.y, expected.weight].map((a) => Array.from(a)), length: bx.length })`, way), memory)
    expect(value.length).toBeGreaterThan(2 ** 31)
    for (let i = 0; i < 4; i++) close(value.actual[i], value.expected[i])
  })

  test.each(ways)('%s, spherical harmonics', (way) => {
    const { value } = run(program(`
      const vectors = numbers(3 * items, 1), device = huge(2 ** 30 + 77, 3, vectors)
      print({ actual: tail(e.sphericalHarmonics(2, device, { backend: 'cuda' }), 9), expected: Array.from(e.sphericalHarmonics(2, vectors, { backend: 'cpu' })) })`, way), memory)
    close(value.actual, value.expected)
  })
})

// The kernel that copies, with another body: launches of `copyByKernel` run it. What it copies from are pairs, all first numbers and then all
// second ones.
const kernel = '_ZN10equitensor4cuda12_GLOBAL__N_14copyEPKfPfxPKhPhi'
const written = (body: string, name = kernel) => `
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 equitensor_dynamic_shared[];
.entry ${name}(
	.param .u64 pairs,
	.param .u64 result,
	.param .u64 packs,
	.param .u64 rest,
	.param .u64 rest_result,
	.param .u32 rest_bytes
)
{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<29>;
	.reg .f32 %f<9>;
	.reg .b64 %rd<29>;
	.reg .f64 %fd<9>;
	.shared .align 4 .b8 table[1024];
	ld.param.u64 %rd1, [pairs];
	ld.param.u64 %rd3, [result];
	ld.param.u64 %rd4, [packs];
	shl.b64 %rd4, %rd4, 1;
	shl.b64 %rd2, %rd4, 2;
	mov.u32 %r1, %tid.x;
	cvt.u64.u32 %rd5, %r1;
	setp.ge.s64 %p1, %rd5, %rd4;
	@%p1 bra $end;
	shl.b64 %rd6, %rd5, 2;
	add.s64 %rd7, %rd1, %rd6;
	add.s64 %rd8, %rd7, %rd2;
	add.s64 %rd9, %rd3, %rd6;
	ld.global.u32 %r2, [%rd7];
	ld.global.u32 %r3, [%rd8];
${body.trim()}
	st.global.u32 [%rd9], %r4;
$end:
	ret;
}
`

const specimens = [0, 1, 2, 31, 32, 33, 0x7fffffff, 0x80000000, 0xffffffff, 0x3f800000, 0xc0200000, 0x7fc00000, 0x4f000000]
/** Six warps of pairs: every specimen with every other one. */
const pairs = Array.from({ length: 192 }, (_, i) => [specimens[i % 13]!, specimens[Math.floor(i / 13) % 13]!] as const)

const view = new DataView(new ArrayBuffer(8))
const float = (bits: number) => (view.setUint32(0, bits), view.getFloat32(0))
const bitsOf = (value: number) => (view.setFloat32(0, value), view.getUint32(0))
const saturated = (value: number) => (Number.isNaN(value) ? 0 : Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(value))))
const product = (a: number, b: number) => BigInt(a) * BigInt(b)
const floats = 'mov.b32 %f1, %r2;\nmov.b32 %f2, %r3;\n'
const toResult = '\nmov.b32 %r4, %f3;'

/** %r4 of an element, of its %r2 and %r3; `next` is the %r2 of the lane above. */
type Meaning = (a: number, b: number, i: number, next: number) => number
const instructions: [string, Meaning][] = [
  ['shl.b32 %r4, %r2, %r3;', (a, b) => (b >= 32 ? 0 : a << b)],
  ['shr.u32 %r4, %r2, %r3;', (a, b) => (b >= 32 ? 0 : a >>> b)],
  ['shr.s32 %r4, %r2, %r3;', (a, b) => (a | 0) >> Math.min(b, 31)],
  ['mul.hi.u32 %r4, %r2, %r3;', (a, b) => Number(product(a, b) >> 32n)],
  ['mul.hi.s32 %r4, %r2, %r3;', (a, b) => Number(product(a | 0, b | 0) >> 32n)],
  ['mad.lo.s32 %r4, %r2, %r3, 7;', (a, b) => Math.imul(a, b) + 7],
  ['mul.wide.u32 %rd10, %r2, %r3;\nshr.u64 %rd10, %rd10, 16;\ncvt.u32.u64 %r4, %rd10;', (a, b) => Number((product(a, b) >> 16n) & 0xffffffffn)],
  ['cvt.s64.s32 %rd10, %r2;\nmul.lo.s64 %rd10, %rd10, -3;\nshr.s64 %rd10, %rd10, 16;\ncvt.u32.u64 %r4, %rd10;', (a) => Number(BigInt.asUintN(32, product(a | 0, -3) >> 16n))],
  ['or.b32 %r5, %r3, 1;\ndiv.s32 %r4, %r2, %r5;', (a, b) => Number(BigInt(a | 0) / BigInt(b | 1))],
  ['or.b32 %r5, %r3, 1;\nrem.s32 %r4, %r2, %r5;', (a, b) => (a | 0) % (b | 1)],
  ['or.b32 %r5, %r3, 1;\ndiv.u32 %r4, %r2, %r5;', (a, b) => Math.floor(a / ((b | 1) >>> 0))],
  ['min.s32 %r5, %r2, %r3;\nmax.u32 %r4, %r5, 5;', (a, b) => Math.max(Math.min(a | 0, b | 0) >>> 0, 5)],
  ['not.b32 %r5, %r2;\nneg.s32 %r6, %r3;\nxor.b32 %r4, %r5, %r6;', (a, b) => ~a ^ -b],
  ['bfi.b32 %r4, %r2, %r3, 5, 9;', (a, b) => (b & ~(511 << 5)) | ((a & 511) << 5)],
  ['bfe.u32 %r4, %r2, 7, 11;', (a) => (a >>> 7) & 2047],
  ['popc.b32 %r5, %r2;\nclz.b32 %r6, %r3;\nmad.lo.s32 %r4, %r5, 64, %r6;', (a, b) => a.toString(2).replaceAll('0', '').length * 64 + Math.clz32(b)],
  ['setp.lt.s32 %p2, %r2, %r3;\nselp.b32 %r4, %r2, %r3, %p2;', (a, b) => ((a | 0) < (b | 0) ? a : b)],
  ['setp.lt.u32 %p2, %r2, %r3;\nselp.b32 %r4, 17, %r3, %p2;', (a, b) => (a < b ? 17 : b)],
  ['setp.lt.s32 %p2, %r2, %r3;\nsetp.eq.s32 %p3, %r2, 1;\nxor.pred %p4, %p2, %p3;\nnot.pred %p5, %p4;\nmov.u32 %r4, %r2;\n@%p5 mov.u32 %r4, %r3;\n@!%p5 add.s32 %r4, %r4, 1;',
    (a, b) => (((a | 0) < (b | 0)) !== (a === 1) ? a + 1 : b)],
  [`${floats}setp.ltu.f32 %p2, %f1, %f2;\nselp.b32 %r4, 1, 0, %p2;`, (a, b) => (float(a) >= float(b) ? 0 : 1)],
  [`${floats}setp.ne.f32 %p2, %f1, %f2;\nselp.b32 %r4, 1, 0, %p2;`, (a, b) => (float(a) < float(b) || float(a) > float(b) ? 1 : 0)],
  [`${floats}setp.neu.f32 %p2, %f1, %f2;\nselp.b32 %r4, 1, 0, %p2;`, (a, b) => (float(a) === float(b) ? 0 : 1)],
  // A double holds the product of two floats, and rounds a sum, a quotient and a root once more without harm.
  [`${floats}mul.f32 %f4, %f1, 0fC0400000;\nadd.f32 %f3, %f4, %f2;${toResult}`, (a, b) => bitsOf(Math.fround(float(a) * -3) + float(b))],
  [`${floats}div.rn.f32 %f3, %f1, %f2;${toResult}`, (a, b) => bitsOf(float(a) / float(b))],
  [`${floats}sqrt.rn.f32 %f3, %f1;${toResult}`, (a) => bitsOf(Math.sqrt(float(a)))],
  [`${floats}max.f32 %f3, %f1, %f2;${toResult}`, (a, b) => (Number.isNaN(float(a)) ? b : Number.isNaN(float(b)) ? a : bitsOf(Math.max(float(a), float(b))))],
  // 1 + 2^-23 squared, less what a product that was rounded would be: 2^-46.
  ['mov.f32 %f1, 0f3F800001;\nfma.rn.f32 %f3, %f1, %f1, 0fBF800002;' + toResult, () => bitsOf(2 ** -46)],
  [`${floats}cvt.f64.f32 %fd1, %f1;\nfma.rn.f64 %fd2, %fd1, 0d3FE0000000000000, 0d3FF0000000000000;\ncvt.rn.f32.f64 %f3, %fd2;${toResult}`, (a) => bitsOf(float(a) / 2 + 1)],
  [`${floats}cvt.rzi.s32.f32 %r4, %f1;`, (a) => saturated(float(a))],
  [`cvt.rn.f32.s32 %f1, %r2;\ncvt.rn.f32.u32 %f2, %r3;\nsub.f32 %f3, %f1, %f2;${toResult}`, (a, b) => bitsOf(Math.fround(a | 0) - Math.fround(b))],
  ['ld.global.s8 %rd10, [%rd7+3];\nshr.s64 %rd10, %rd10, 32;\ncvt.u32.u64 %r4, %rd10;', (a) => a >> 31],
  ['ld.global.nc.u8 %rs1, [%rd7];\ncvt.u32.u16 %r4, %rs1;', (a) => a & 255],
  // Shared memory is NaN at first; the next warp has not come yet.
  ['mov.u32 %r5, table;\nshl.b32 %r6, %r1, 2;\nadd.s32 %r7, %r5, %r6;\nst.shared.u32 [%r7], %r2;\nld.shared.u32 %r4, [%r7+4];', (_a, _b, i, next) => (i % 32 === 31 ? ~0 : next)],
  ['mov.u32 %r5, table;\nshl.b32 %r6, %r1, 2;\nadd.s32 %r7, %r5, %r6;\nst.shared.u32 [%r7], %r2;\nbar.sync 0;\nld.shared.u32 %r4, [%r7+4];', (_a, _b, i, next) => (i === 191 ? ~0 : next)],
  ['shfl.sync.down.b32 %r4|%p2, %r2, 1, 31, -1;', (a, _b, i, next) => (i % 32 === 31 ? a : next)],
  ['shfl.sync.up.b32 %r4|%p2, %r1, 3, 0, -1;', (_a, _b, i) => (i % 32 < 3 ? i : i - 3)],
  ['shfl.sync.bfly.b32 %r4|%p2, %r1, 5, 31, -1;', (_a, _b, i) => i ^ 5],
  ['shfl.sync.idx.b32 %r4|%p2, %r1, 2, 6175, -1;', (_a, _b, i) => (i & ~7) + 2], // segments of 8
  ['and.b32 %r5, %r1, 5;\nsetp.eq.s32 %p2, %r5, 0;\nvote.sync.ballot.b32 %r4, %p2, -1;', () => 0x05050505],
  // A way in and out for each lane, which all meet again.
  ['mov.u32 %r4, 0;\nand.b32 %r5, %r1, 7;\n$loop:\nadd.s32 %r4, %r4, 3;\nsub.s32 %r5, %r5, 1;\nsetp.ge.s32 %p2, %r5, 0;\n@%p2 bra $loop;\nshfl.sync.idx.b32 %r4|%p2, %r4, 7, 31, -1;', () => 24],
]

describe.runIf(isEmulated)('the interpreter', () => {
  afterAll(() => interpret!(undefined))

  /** Runs the body on the pairs. */
  function execute(body: string) {
    interpret!(written(body))
    const from = native.cuda!.from(0, new Float32Array(Uint32Array.from([...pairs.map(([a]) => a), ...pairs.map(([, b]) => b)]).buffer))
    const to = native.cuda!.allocate(0, 8 * pairs.length), result = new Float32Array(2 * pairs.length)
    const { counts } = counted(() => {
      native.cuda!.copyByKernel(to, from)
      native.cuda!.download(to, result)
    })
    return { result: new Uint32Array(result.buffer, 0, pairs.length), counts }
  }

  test.each(instructions)('%s', (body, meaning) => {
    const { result } = execute(body)
    const isNaNBits = (bits: number) => Number.isNaN(float(bits))
    pairs.forEach(([a, b], i) => {
      const expected = meaning(a, b, i, pairs[i + 1]?.[0] ?? 0) >>> 0
      if (!(isNaNBits(expected) && isNaNBits(result[i]!))) expect(result[i], `${i}: ${a.toString(16)}, ${b.toString(16)}`).toBe(expected)
    })
  })

  test('counts a warp once, however many lanes take part', () => {
    const loop = (mask: number) => execute(`and.b32 %r5, %r1, ${mask};\nmov.u32 %r4, 0;\n$loop:\nadd.s32 %r4, %r4, 1;\nsetp.le.u32 %p2, %r4, %r5;\n@%p2 bra $loop;`).counts.instructions
    const once = loop(0), divergent = loop(31)
    // Lane k of 6 warps goes k times more through 3 instructions.
    expect(divergent.warp - once.warp).toBe(6 * 31 * 3)
    expect(divergent.thread - once.thread).toBe(6 * ((31 * 32) / 2) * 3)
    expect(divergent.kinds['add.s32']).toBe(6 * 32)
  })

  test('counts both ways of lanes that part, and once where they have met', () => {
    const { kinds } = execute(`and.b32 %r5, %r1, 1;\nsetp.eq.u32 %p2, %r5, 0;\n@%p2 bra $even;\nadd.s32 %r4, %r2, %r3;\nbra.uni $meet;
      $even:\nsub.s32 %r4, %r2, %r3;\n$meet:\nxor.b32 %r4, %r4, 1;`).counts.instructions
    expect([kinds['add.s32'], kinds['sub.s32'], kinds['xor.b32']]).toEqual([6, 6, 6])
  })

  test('counts machine instructions', () => {
    const { kinds } = execute('or.b32 %r5, %r3, 1;\ndiv.s32 %r6, %r2, %r5;\nmov.u32 %r4, %r6;').counts.instructions
    // A division is 24; 64-bit sums are two, and of those there are three; moves, conversions to wider registers and ld.param are free.
    expect([kinds['div.s32'], kinds['add.s64'], kinds['mov.u32'], kinds['cvt.u64.u32'], kinds['ld.param.u64']]).toEqual([6 * 24, 6 * 3 * 2, undefined, undefined, undefined])
  })

  test.each([
    ['tanh.approx.f32 %f1, %f2;', "does not know 'tanh.approx.f32 %f1, %f2;'"],
    ['add.s32 %r4, %r2;', "does not know 'add.s32 %r4, %r2;'"],
    ['mov.u32 %r4, %clock;', "does not know 'mov.u32 %r4, %clock;'"],
    ['.local .align 8 .b8 depot[16];', "does not know '.local .align 8 .b8 depot[16];'"],
    ['st.local.u32 [%r1], %r2;', "does not know 'st.local.u32 [%r1], %r2;'"],
    ['bar.sync 1, 64;', "does not know 'bar.sync 1, 64;'"],
    ['bra.uni $nowhere;', 'no label $nowhere'],
  ])('refuses %s', (body, message) => {
    expect(() => interpret!(written(body))).toThrow(message)
  })
  test('refuses PTX of a kernel that the binary has not', () => {
    expect(() => interpret!(written('', 'unheard_of'))).toThrow('PTX of unheard_of: the binary has no such kernel')
  })

  test.each([
    ['ld.global.u32 %r4, [%rd7+4000];', /'ld\.global\.u32 %r4, \[%rd7\+4000\];', warp 0 of block \(0,0,0\): reads 4 bytes at 0x\w+, outside the device's memory/],
    ['st.global.u32 [%rd7+-4000], %r2;', /writes 4 bytes at 0x\w+, outside the device's memory/],
    ['ld.global.u32 %r4, [%rd7+2];', /reads 4 bytes at 0x\w+, which is not a multiple of its size/],
    ['ld.shared.u32 %r4, [1024];', /outside the 1024 bytes of shared memory/],
    ['setp.lt.s32 %p2, %r1, 8;\n@%p2 bra $wait;\nbra.uni $on;\n$wait:\nbar.sync 0;\n$on:', /'bar\.sync 0;', warp 0 .*barrier divergence/],
    ['setp.lt.s32 %p2, %r1, 8;\n@%p2 shfl.sync.bfly.b32 %r4|%p3, %r1, 1, 31, -1;', /lanes of its mask are elsewhere/],
    ['setp.lt.s32 %p2, %r1, 8;\n@%p2 shfl.sync.idx.b32 %r4|%p3, %r1, 9, 31, 255;', /lane 0 reads lane 9, which is inactive/],
  ])('fails on %s', (body, message) => {
    const { value, stderr } = run(`
      native.cuda.interpret(${JSON.stringify(written(body))})
      const from = native.cuda.from(0, new Float32Array(384)), to = native.cuda.allocate(0, 4 * 384)
      native.cuda.copyByKernel(to, from)
      try { native.cuda.download(to, new Float32Array(384)); print('no error') } catch (error) { print(error.code) }`)
    expect(value).toBe('cuda')
    expect(stderr).toMatch(message)
  })
})
