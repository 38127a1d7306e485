// Arrays on CUDA devices, and calls on them. Where the loaded binary or the machine has no CUDA, what is said about that instead. Computation is
// compared with the CPU's.
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { inspect } from 'node:util'
import { describe, expect, test } from 'vitest'
import { backends, capture, ClebschGordanTensorProduct, DeviceArray, GauntTensorProduct, MatrixTensorProduct, sphericalHarmonics, Stream } from '../lib/index'
import { binary, native } from '../lib/native'
import { caught } from './caught'
import { arrayError, dtypes, guarded, layouts, random, randomArray, root, sameBits, tolerance, type Numbers } from './support'

const { cuda } = backends()
const makers: [string, (options?: any) => any][] = [
  ['CGTP full', (options) => ClebschGordanTensorProduct.full('0e+1o+2e', '0e+1o', options)],
  ['CGTP elementwise', (options) => ClebschGordanTensorProduct.elementwise('1o+2e', '1o+1e', options)],
  ['GTP', (options) => new GauntTensorProduct('2x0e+2x1o', '2x0e+2x1o', options)],
  ['MTP', (options) => new MatrixTensorProduct('0e+1e', '0e+1e', options)],
]

/** Runs a program on the built package in a process of its own; what it prints, as JSON. */
function run(program: string, env: Record<string, string> = {}, ...flags: string[]): any {
  const entry = path.join(root, 'dist', 'index.js')
  const text = `const e = require(${JSON.stringify(entry)}); const { native } = require(${JSON.stringify(path.join(root, 'dist', 'native.js'))})
    const print = (value) => console.log(JSON.stringify(value))
    const codeOf = (action) => { try { action() } catch (error) { return { code: error.code, message: error.message, call: error.call, bytes: error.bytes } } }
    ;(async () => {${program}})()`
  return JSON.parse(execFileSync(process.execPath, [...flags, '-e', text], { encoding: 'utf8', env: { ...process.env, EQUITENSOR_BINARY: binary.flavour, EQUITENSOR_EMULATED_DEVICES: '1', ...env } }))
}

describe.skipIf(cuda.available)('without a device', () => {
  const reason = cuda.available ? '' : cuda.reason

  test('backends() gives the reason, and with it the remedy', () => {
    expect(reason).toMatch(binary.flavour === 'cpu' ? /CPU kernels only.*npx equitensor build --cuda/ : /driver|device/)
  })

  test.each([
    ['operations', () => ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' })],
    ['alloc', () => DeviceArray.alloc('float32', 3)],
    ['from', () => DeviceArray.from(new Float32Array(3))],
    ['Stream', () => new Stream()],
    ['capture', () => capture(() => {})],
    ['sphericalHarmonics', () => sphericalHarmonics(1, new Float32Array(3), { backend: 'cuda' })],
  ])('%s: backend_unavailable with that reason', (_name, action) => {
    const error = caught(action)
    expect(error.code).toBe('backend_unavailable')
    expect(error.message).toContain(reason)
  })
})

describe.runIf(cuda.available)('device arrays', () => {
  test.each(dtypes)('%s: up, down, between, in parts', (dtype) => {
    const numbers = randomArray(dtype, 1000, random(1))
    using a = DeviceArray.from(numbers as Float32Array), b = DeviceArray.alloc(dtype, 1000)
    expect(a).toMatchObject({ dtype, length: 1000, device: 0 })
    expect(sameBits(a.download(), numbers)).toBe(true)
    const out = guarded(dtype, 1000)
    expect(a.download(out.array as any)).toBe(out.array)
    expect(sameBits(out.array, numbers) && out.intact()).toBe(true)
    expect(b.copyFrom(a as never)).toBe(b)
    expect(sameBits(b.download(), numbers)).toBe(true)

    const part = a.slice(100, 103)
    expect(sameBits(part.download(), numbers.slice(100, 103))).toBe(true)
    part.copyFrom(numbers.slice(0, 3) as never)
    expect(sameBits(a.download().slice(99, 104), numbers.constructor === Float32Array ? Float32Array.of(numbers[99]!, ...numbers.slice(0, 3), numbers[103]!) : Float64Array.of(numbers[99]!, ...numbers.slice(0, 3), numbers[103]!))).toBe(true)
    a.dispose()
    expect(part.slice(1).download()).toHaveLength(2) // shares the memory, and keeps it
    expect(inspect(part)).toBe(`DeviceArray(3) [${dtype}, device 0]`)
    using empty = DeviceArray.alloc(dtype, 0)
    expect(empty.download()).toHaveLength(0)
    expect(empty.slice().copyFrom(empty.download() as never)).toHaveLength(0)
  })

  const host = new Float32Array(4)
  const array = () => DeviceArray.from(host)
  const disposed = () => {
    const gone = array()
    gone.dispose()
    gone.dispose()
    return gone
  }
  test.each<[string, string, string, () => unknown]>([
    ['an unknown dtype', 'invalid_option', 'dtype', () => DeviceArray.alloc('int8' as never, 1)],
    ['a negative length', 'invalid_argument', 'length', () => DeviceArray.alloc('float32', -1)],
    ['a broken length', 'invalid_argument', 'length', () => DeviceArray.alloc('float32', 1.5)],
    ['a device that is not there', 'invalid_option', 'options.device', () => DeviceArray.alloc('float32', 1, { device: 99 })],
    ['an unknown option', 'invalid_option', 'options.gpu', () => DeviceArray.alloc('float32', 1, { gpu: 0 } as never)],
    ['from a list', 'invalid_argument', 'array', () => DeviceArray.from([1, 2] as never)],
    ['from a device array', 'wrong_kind', 'array', () => DeviceArray.from(array() as never)],
    ['download into the other dtype', 'wrong_dtype', 'out', () => array().download(new Float64Array(4) as never)],
    ['download into too little', 'wrong_length', 'out', () => array().download(new Float32Array(3))],
    ['download after dispose', 'disposed', 'this', () => disposed().download()],
    ['slice after dispose', 'disposed', 'this', () => disposed().slice()],
    ['copy after dispose', 'disposed', 'this', () => disposed().copyFrom(host)],
    ['copy from a disposed one', 'disposed', 'source', () => array().copyFrom(disposed())],
    ['copy of another length', 'wrong_length', 'source', () => array().copyFrom(new Float32Array(5))],
    ['copy of the other dtype', 'wrong_dtype', 'source', () => array().copyFrom(DeviceArray.alloc('float64', 4) as never)],
    ['copy onto itself', 'overlap', 'source', () => { const a = array(); a.copyFrom(a.slice()) }],
    ['copy between overlapping parts', 'overlap', 'source', () => { const a = array(); a.slice(0, 2).copyFrom(a.slice(1, 3)) }],
    ['a slice past the end', 'invalid_argument', 'end', () => array().slice(0, 5)],
    ['a slice backwards', 'invalid_argument', 'end', () => array().slice(3, 2)],
    ['a slice from nowhere', 'invalid_argument', 'begin', () => array().slice(NaN)],
  ])('%s: %s', (_name, code, argument, action) => {
    const error = caught(action)
    expect([error.code, error.argument]).toEqual([code, argument])
    expect(error.message).toMatch(/: expected .*, got /)
  })
})

describe.runIf(cuda.available).each(makers)('calls on the device: %s', (_name, make) => {
  describe.each(dtypes)('%s', (dtype) => {
    const operands = (op: any, xBatch: number, yBatch: number) => {
      const next = random(xBatch + 1), batch = xBatch === 1 ? yBatch : xBatch
      return { x: randomArray(dtype, xBatch * op.irrepsIn1.dim, next), y: randomArray(dtype, yBatch * op.irrepsIn2.dim, next), v: randomArray(dtype, batch * op.irrepsOut.dim, next) } as { x: any; y: any; v: any }
    }
    const close = (actual: Numbers, expected: Numbers) => expect(arrayError(actual, expected)).toBeLessThan(tolerance[dtype])

    test('every batch, shared operands, both kinds of arrays: the results of the CPU', () => {
      using op = make({ dtype, backend: 'cuda' }), cpu = make({ dtype })
      expect(op).toMatchObject({ backend: 'cuda', device: 0 })
      expect(op.cost).toEqual(cpu.cost)
      for (const [xBatch, yBatch] of [[0, 0], [1, 1], [5, 5], [1, 7], [7, 1], [1, 0], [0, 1], [257, 257]] as const) {
        const { x, y, v } = operands(op, xBatch, yBatch)
        const z = cpu.forward(x, y), g = cpu.backward(x, y, undefined, v), d = cpu.doubleBackward(x, y, undefined, v, { x, y }), t = cpu.jvp(x, y, undefined, { x, y })
        const dx = DeviceArray.from(x), dy = DeviceArray.from(y), dv = DeviceArray.from(v as Float32Array)
        for (const [a, b, c, host] of [[x, y, v, (n: any) => n], [dx, dy, dv, (n: any) => { expect(n).toBeInstanceOf(DeviceArray); return n.download() }]] as const) {
          close(host(op.forward(a, b)), z)
          const both = op.backward(a, b, undefined, c)
          close(host(both.x), g.x)
          close(host(both.y), g.y)
          const onlyX = op.backward(a, b, undefined, c, { needs: { y: false } })
          expect(Object.keys(onlyX)).toEqual(['x'])
          close(host(onlyX.x), g.x)
          close(host(op.backward(a, b, undefined, c, { needs: { x: false } }).y), g.y)
          const second = op.doubleBackward(a, b, undefined, c, { x: a, y: b })
          for (const slot of ['x', 'y', 'gradOut'] as const) close(host(second[slot]), d[slot])
          close(host(op.jvp(a, b, undefined, { x: a, y: b })), t)
          expect(host(op.jvp(a, b, undefined, {})).every((value: number) => value === 0)).toBe(true)
        }
      }
    })

    test('into given arrays, whole or parts', () => {
      using op = make({ dtype, backend: 'cuda' })
      const { x, y, v } = operands(op, 3, 3)
      const z = guarded(dtype, v.length), gx = guarded(dtype, x.length)
      expect(op.forward(x, y, undefined, { out: z.array })).toBe(z.array)
      expect(op.backward(x, y, undefined, v, { out: { x: gx.array } }).x).toBe(gx.array)
      expect(z.intact() && gx.intact()).toBe(true)
      const whole = DeviceArray.from(new (v.constructor as any)(v.length + 2).fill(7) as Float32Array)
      const out = whole.slice(1, v.length + 1)
      expect(op.forward(DeviceArray.from(x), DeviceArray.from(y), undefined, { out })).toBe(out)
      const numbers = whole.download()
      expect([numbers[0], numbers.at(-1)]).toEqual([7, 7])
      close(numbers.subarray(1, -1), z.array)
    })

    test('asynchronous, several at once', async () => {
      using op = make({ dtype, backend: 'cuda' })
      const calls = Array.from({ length: 12 }, (_, i) => operands(op, i + 1, i + 1))
      const results = await Promise.all(
        calls.map(async ({ x, y, v }, i) =>
          i % 2 ? [await op.forwardAsync(x, y), (await op.backwardAsync(x, y, undefined, v)).x] : await (async () => {
            const [a, b, c] = [DeviceArray.from(x), DeviceArray.from(y), DeviceArray.from(v as Float32Array)]
            const z = op.forwardAsync(a, b), g = op.backwardAsync(a, b, undefined, c)
            for (const array of [a, b, c]) array.dispose() // while the device may not have begun
            return [(await z).download(), (await g).x.download()]
          })(),
        ),
      )
      calls.forEach(({ x, y, v }, i) => {
        close(results[i]![0], op.forward(x, y))
        close(results[i]![1], op.backward(x, y, undefined, v).x)
      })
    })
  })
})

describe.runIf(cuda.available)('weights on the device', () => {
  const products: [string, (options?: any) => any][] = [
    ['channelwise', (options) => ClebschGordanTensorProduct.channelwise('8x0e+8x1o+8x2e', '0e+1o+2e', undefined, options)],
    ['channelwise, odd multiplicities', (options) => ClebschGordanTensorProduct.channelwise('5x0e+3x1o', '2x1o+1x4e', undefined, options)],
    ['fullyConnected', (options) => ClebschGordanTensorProduct.fullyConnected('5x0e+3x1o', '0e+1o', '4x0e+2x1o', options)],
  ]
  const cases = products.flatMap(([name, make]) => dtypes.flatMap((dtype) => layouts.map((layout) => [name, dtype, layout, make] as const)))
  // With shared weights 5000 items are more than there are rows of partial sums.
  test.each(cases)('%s, %s, %s: the results of the CPU', (_name, dtype, layout, make) => {
    using op = make({ dtype, layout, backend: 'cuda' }), cpu = make({ dtype, layout, backend: 'cpu' })
    const next = random(3), draw = (length: number) => randomArray(dtype, length, next) as any
    const close = (actual: Numbers, expected: Numbers) => expect(arrayError(actual, expected)).toBeLessThan(tolerance[dtype])
    for (const [batch, xRows, yRows, sets] of [[5, 5, 5, 5], [5000, 5000, 5000, 1], [7, 1, 7, 7], [3, 3, 1, 1], [0, 0, 0, 1]] as const) {
      const operands = () => ({ x: draw(xRows * op.irrepsIn1.dim), y: draw(yRows * op.irrepsIn2.dim), weight: draw(sets * op.weightNumel) })
      const { x, y, weight } = operands(), a = operands(), v = draw(batch * op.irrepsOut.dim)
      const up = (array: any) => DeviceArray.from(array) as any
      const on = { x: up(x), y: up(y), weight: up(weight), v: up(v), a: { x: up(a.x), y: up(a.y), weight: up(a.weight) } }
      const z = op.forward(on.x, on.y, on.weight).download()
      close(z, cpu.forward(x, y, weight))
      const first = op.backward(on.x, on.y, on.weight, on.v), expected = cpu.backward(x, y, weight, v)
      const second = op.doubleBackward(on.x, on.y, on.weight, on.v, on.a), expectedSecond = cpu.doubleBackward(x, y, weight, v, a)
      for (const name of ['x', 'y', 'weight', 'gradOut'] as const) {
        close(second[name].download(), expectedSecond[name])
        if (name !== 'gradOut') close(first[name].download(), expected[name])
      }
      // The same bits again, and from host arrays.
      expect(sameBits(op.backward(x, y, weight, v).weight, first.weight.download())).toBe(true)
      close(op.jvp(on.x, on.y, on.weight, on.a).download(), cpu.jvp(x, y, weight, a))
    }
  })

  test('arrays that begin at no multiple of 16 bytes', () => {
    using op = products[0]![1]({ backend: 'cuda' }), cpu = products[0]![1]({ backend: 'cpu' })
    const next = random(4), draw = (length: number) => randomArray('float32', length, next) as any
    const x = draw(5 * op.irrepsIn1.dim), y = draw(5 * op.irrepsIn2.dim), weight = draw(5 * op.weightNumel)
    const off = (array: Float32Array) => DeviceArray.from(Float32Array.of(0, ...array)).slice(1)
    for (const shifted of [0, 1, 2]) {
      const [a, b, w] = [x, y, weight].map((array, n) => (n === shifted ? off(array) : DeviceArray.from(array)))
      expect(arrayError(op.forward(a, b, w).download(), cpu.forward(x, y, weight))).toBeLessThan(tolerance.float32)
    }
  })

  test('an item that has no room', () => {
    const code = (make: () => unknown) => caught(make).code
    expect(code(() => ClebschGordanTensorProduct.fullyConnected('40000x1o', '0e', '4x1o', { backend: 'cuda' }))).toBe('not_supported')
  })
})

describe.runIf(cuda.available)('what calls on the device refuse', () => {
  const op = cuda.available ? ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' }) : (undefined as never)
  const host = new Float32Array(3), long = new Float64Array(3)
  const device = cuda.available ? DeviceArray.from(host) : (undefined as never)
  const bad = (value: unknown) => value as never
  test.each<[string, string, string, () => unknown]>([
    ['y on the host', 'wrong_kind', 'y', () => op.forward(device, bad(host))],
    ['y on the device', 'wrong_kind', 'y', () => op.forward(host, bad(device))],
    ['out on the host', 'wrong_kind', 'out', () => op.forward(device, device, undefined, { out: bad(new Float32Array(9)) })],
    ['out on the device', 'wrong_kind', 'out', () => op.forward(host, host, undefined, { out: bad(DeviceArray.alloc('float32', 9)) })],
    ['gradOut on the host', 'wrong_kind', 'gradOut', () => op.backward(device, device, undefined, bad(new Float32Array(9)))],
    ['the other dtype', 'wrong_dtype', 'x', () => op.forward(bad(DeviceArray.from(long)), device)],
    ['too few', 'wrong_length', 'x', () => op.forward(device.slice(1), device)],
    ['a disposed one', 'disposed', 'y', () => { const gone = device.slice(); gone.dispose(); op.forward(device, gone) }],
    ['out that is an input', 'overlap', 'out.x', () => op.backward(device, device, undefined, DeviceArray.alloc('float32', 9), { out: { x: device.slice() } })],
    ['both gradients in one', 'overlap', 'out.y', () => { const g = DeviceArray.alloc('float32', 3); op.backward(device, device, undefined, DeviceArray.alloc('float32', 9), { out: { x: g, y: g } }) }],
    ['an operation of the CPU', 'wrong_kind', 'x', () => ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cpu' }).forward(device, device)],
    ['a device without cuda', 'invalid_option', 'options.device', () => ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cpu', device: 0 })],
    ['harmonics of the CPU', 'wrong_kind', 'vectors', () => sphericalHarmonics(1, device, { backend: 'cpu' })],
    ['a gradient of harmonics on the host', 'wrong_kind', 'gradOut', () => sphericalHarmonics.backward(1, device, bad(new Float32Array(4)))],
    ['a cotangent on the host', 'wrong_kind', 'cotangent', () => sphericalHarmonics.doubleBackward(1, device, DeviceArray.alloc('float32', 4), bad(new Float32Array(3)))],
    ['harmonics into the host', 'wrong_kind', 'out', () => sphericalHarmonics(1, device, { out: bad(new Float32Array(4)) })],
  ])('%s: %s', (_name, code, argument, action) => {
    const error = caught(action)
    expect([error.code, error.argument], error.message).toEqual([code, argument])
  })

  test('after dispose, and through a signal', async () => {
    const gone = ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' })
    gone.dispose()
    expect(caught(() => gone.forward(device, device)).code).toBe('disposed')
    await expect(gone.forwardAsync(host, host)).rejects.toMatchObject({ code: 'disposed' })
    await expect(op.forwardAsync(host, host, undefined, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
    await expect(op.forwardAsync(host, host, undefined, { signal: 1 as never })).rejects.toMatchObject({ code: 'invalid_option' })
    const controller = new AbortController()
    const call = op.forwardAsync(host, host, undefined, { signal: controller.signal })
    controller.abort()
    await expect(call).rejects.toMatchObject({ code: 'aborted' })
  })
})

test.runIf(cuda.available)('spherical harmonics of both kinds of arrays', () => {
  for (const dtype of dtypes) {
    const vectors = randomArray(dtype, 3 * 50, random(3)) as Float32Array
    for (const normalization of ['component', 'norm', 'integral'] as const) {
      const expected = sphericalHarmonics(4, vectors, { normalization, backend: 'cpu' })
      expect(arrayError(sphericalHarmonics(4, vectors, { normalization, backend: 'cuda' }), expected)).toBeLessThan(tolerance[dtype])
      expect(arrayError(sphericalHarmonics(4, DeviceArray.from(vectors), { normalization }).download(), expected)).toBeLessThan(tolerance[dtype])
    }
    const { backward, doubleBackward, jvp } = sphericalHarmonics
    const gradOut = randomArray(dtype, 25 * 50, random(4)) as Float32Array, cotangent = randomArray(dtype, 3 * 50, random(5)) as Float32Array
    const [v, g, c] = [vectors, gradOut, cotangent].map((array) => DeviceArray.from(array)) as [DeviceArray<'float32'>, DeviceArray<'float32'>, DeviceArray<'float32'>]
    const all = <A>(gradient: A, second: { vectors: A; gradOut: A }, tangent: A) => [gradient, second.vectors, second.gradOut, tangent]
    const on = (backend: 'cpu' | 'cuda') =>
      all(backward(4, vectors, gradOut, { backend }), doubleBackward(4, vectors, gradOut, cotangent, { backend }), jvp(4, vectors, cotangent, { backend }))
    const expected = on('cpu'), onDevice = all(backward(4, v, g), doubleBackward(4, v, g, c), jvp(4, v, c)).map((array) => array.download())
    for (const actual of [on('cuda'), onDevice]) actual.forEach((array, i) => expect(arrayError(array, expected[i]!)).toBeLessThan(tolerance[dtype]))
  }
})

describe.runIf(cuda.available)('streams and graphs', () => {
  const op = cuda.available ? ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda' }) : (undefined as never)
  const x = randomArray('float32', 4 * 40, random(1)), y = randomArray('float32', 4 * 40, random(2))
  const expected = () => ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cpu' }).forward(x, y)

  test('arrays go from stream to stream', async () => {
    const streams = [new Stream(), new Stream(), new Stream()]
    const a = DeviceArray.from(x), b = DeviceArray.from(y), out = DeviceArray.alloc('float32', 16 * 40), copies = []
    for (let i = 0; i < 30; i++) {
      // Read on one, written on the next: without the waits in between old values would come through.
      streams[i % 3]!.run(() => a.copyFrom(i % 2 ? DeviceArray.from(x) : DeviceArray.from(y)))
      streams[(i + 1) % 3]!.run(() => op.forward(a, b, undefined, { out }))
      copies.push(streams[(i + 2) % 3]!.run(() => DeviceArray.alloc('float32', 16 * 40).copyFrom(out)))
    }
    copies.forEach((copy, i) => expect(arrayError(copy.download(), i % 2 ? expected() : ClebschGordanTensorProduct.full('0e+1o', '0e+1o').forward(y, y))).toBeLessThan(1e-5))
    await Promise.all(streams.map((stream) => stream.finished()))
    for (const stream of streams) {
      stream.synchronize() // since the collector may have freed arrays on it in the meantime
      expect(stream.done).toBe(true)
    }
    streams[0]!.dispose()
    expect(caught(() => streams[0]!.run(() => {})).code).toBe('disposed')
    expect(a.download()).toHaveLength(x.length) // last written on the disposed one
  })

  test('who writes or frees an array waits for those that read it', () => {
    for (const change of ['write', 'free'] as const) {
      const reading = new Stream(), other = new Stream()
      const a = DeviceArray.from(x), b = DeviceArray.from(y)
      const z = reading.run(() => op.forward(a, b))
      if (change === 'write') other.run(() => a.copyFrom(y))
      else {
        a.dispose()
        DeviceArray.alloc('float32', 1).download() // the stream on which it was made goes on
      }
      expect(arrayError(z.download(), expected())).toBeLessThan(1e-5)
    }
  })

  test('of two that write an array, the later one has the last word', () => {
    const first = new Stream(), second = new Stream()
    const out = DeviceArray.alloc('float32', 16 * 40), a = DeviceArray.from(x), b = DeviceArray.from(y), numbers = randomArray('float32', out.length, random(3))
    first.run(() => op.forward(a, b, undefined, { out }))
    second.run(() => out.copyFrom(numbers))
    first.synchronize()
    expect(sameBits(out.download(), numbers)).toBe(true)
  })

  test('plans stay until the work that uses them is done', () => {
    const make = () => ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda' })
    const a = DeviceArray.from(x), b = DeviceArray.from(y), called = make(), captured = make()
    const z = called.forward(a, b)
    called.dispose()
    expect(arrayError(z.download(), expected())).toBeLessThan(1e-5)
    const out = DeviceArray.alloc('float32', 16 * 40)
    const graph = capture(() => captured.forward(a, b, undefined, { out }))
    captured.dispose()
    graph.replay()
    graph.dispose()
    expect(arrayError(out.download(), expected())).toBeLessThan(1e-5)
  })

  test('a replay waits for those that write what it reads', () => {
    const a = DeviceArray.from(y), b = DeviceArray.from(y), source = DeviceArray.from(x), out = DeviceArray.alloc('float32', 16 * 40)
    const graph = capture(() => op.forward(a, b, undefined, { out }))
    new Stream().run(() => a.copyFrom(source))
    graph.replay()
    expect(arrayError(out.download(), expected())).toBeLessThan(1e-5)
  })

  test('run restores what was before, also after an error, and nests', () => {
    const outer = new Stream(), inner = new Stream()
    expect(() => outer.run(() => { inner.run(() => { throw new Error('mine') }) })).toThrow('mine')
    const z = outer.run(() => inner.run(() => op.forward(DeviceArray.from(x), DeviceArray.from(y))))
    expect(arrayError(z.download(), expected())).toBeLessThan(1e-5)
  })

  test('a forward and a backward as a graph', () => {
    const a = DeviceArray.from(y), b = DeviceArray.from(y)
    let z!: DeviceArray<'float32'>, g!: { x: DeviceArray<'float32'>; y: DeviceArray<'float32'> }
    const graph = capture(() => {
      z = op.forward(a, b)
      g = op.backward(a, b, undefined, z)
    })
    a.copyFrom(x)
    graph.replay()
    const cpu = ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cpu' }), v = cpu.forward(x, y)
    expect(arrayError(z.download(), v)).toBeLessThan(1e-5)
    expect(arrayError(g.x.download(), cpu.backward(x, y, undefined, v).x)).toBeLessThan(1e-5)
    // On other values and another stream; the arrays' memory belongs to the graph as well.
    a.copyFrom(y)
    b.dispose()
    new Stream().run(() => graph.replay())
    expect(arrayError(z.download(), cpu.forward(y, y))).toBeLessThan(1e-5)
    graph.dispose()
    graph.dispose()
    expect(caught(() => graph.replay()).code).toBe('disposed')
    expect(arrayError(g.y.download(), cpu.backward(y, y, undefined, cpu.forward(y, y)).y)).toBeLessThan(1e-5)
  })

  test('the summed gradient of a shared operand in a graph', () => {
    const row = x.subarray(0, 4), a = DeviceArray.from(row), b = DeviceArray.from(y), v = randomArray('float32', 16 * 40, random(4)), c = DeviceArray.from(v)
    let g!: { x: DeviceArray<'float32'> }
    const graph = capture(() => { g = op.backward(a, b, undefined, c) })
    graph.replay()
    graph.replay()
    const cpu = ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cpu' })
    expect(arrayError(g.x.download(), cpu.backward(row, y, undefined, v).x)).toBeLessThan(1e-5)
  })

  test('what a graph cannot record is refused, and the next capture works', async () => {
    const a = DeviceArray.from(x), b = DeviceArray.from(y)
    for (const action of [
      () => op.forward(x, y),
      () => a.download(),
      () => a.copyFrom(x),
      () => DeviceArray.from(x),
      () => ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' }),
      () => capture(() => {}),
      () => new Stream().synchronize(),
    ]) {
      expect(caught(() => capture(() => void action())).code).toBe('capturing')
    }
    expect(caught(() => capture((async () => {}) as never)).code).toBe('invalid_argument')
    expect(caught(() => capture(undefined as never)).code).toBe('invalid_argument')
    expect(() => capture(() => { throw new Error('mine') })).toThrow('mine')
    const out = DeviceArray.alloc('float32', 16 * 40)
    capture(() => op.forward(a, b, undefined, { out })).replay()
    expect(arrayError(out.download(), expected())).toBeLessThan(1e-5)
  })
})

describe.runIf(cuda.available)('memory', () => {
  test('arrays are reported to V8, as long as anybody shares their memory', () => {
    const reported = () => native.cuda!.memory(0).reported
    const before = reported(), size = 8 << 20
    const array = DeviceArray.alloc('float64', 1 << 20)
    expect(reported() - before).toBe(size)
    const slice = array.slice(5)
    array.dispose()
    expect(reported() - before).toBe(size)
    slice.dispose()
    expect(reported() - before).toBe(0)
  })

  test('forgotten arrays are collected in time, and their memory is used again', () => {
    // 2.4 GB in all, and no word to the collector; the emulated device has 512 MiB.
    expect(run(`
      for (let i = 0; i < 300; i++) { e.DeviceArray.alloc('float32', 1 << 21); await new Promise((r) => setImmediate(r)) }
      print(native.cuda.memory(0).used > 0)`, { EQUITENSOR_EMULATED_MEMORY: String(512 << 20) })).toBe(true)
  })

  test('workers share a device and may be terminated in the middle of calls', () => {
    expect(run(`
      const { Worker } = require('node:worker_threads')
      const work = \`const e = require(\${JSON.stringify(require.resolve(${JSON.stringify(path.join(root, 'dist', 'index.js'))}))})
        const op = e.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda' })
        const a = e.DeviceArray.from(new Float32Array(4000).map((_, i) => Math.sin(i)))
        const job = () => op.forward(a, a).download().reduce((s, v) => s + v, 0)\`
      const start = (rest) => new Promise((resolve, reject) => { const w = new Worker(work + rest, { eval: true }); w.once('message', (value) => resolve([w, value])).once('error', reject) })
      const [[, first], [, second]] = await Promise.all([0, 1].map(() => start('; require("node:worker_threads").parentPort.postMessage(job())')))
      for (let i = 0; i < 8; i++) {
        const [worker] = await start(\`; require("node:worker_threads").parentPort.postMessage(1)
          const host = new Float32Array(4000), many = () => { op.forwardAsync(a, a).then(many); op.forwardAsync(host, host); job() }; many()\`)
        await new Promise((r) => setTimeout(r, i))
        await worker.terminate()
      }
      const [, last] = await start('; require("node:worker_threads").parentPort.postMessage(job())')
      print(first === second && first === last && Number.isFinite(first))`)).toBe(true)
  })

  test('a process that ends with work under way ends normally', () => {
    expect(run(`
      const op = e.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda' })
      const a = e.DeviceArray.from(new Float32Array(4000))
      for (let i = 0; i < 10; i++) { op.forward(a, a); op.forwardAsync(a, a) }
      const graph = e.capture(() => op.forward(a, a)); graph.replay()
      print(1)
      process.exit(0)`)).toBe(1)
  })
})

// What a real card does only when something is wrong with it.
describe.runIf(binary.flavour === 'emulated')('faults of the emulated runtime', () => {
  const setUp = `
    const op = e.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda' }), a = e.DeviceArray.from(new Float32Array(400).fill(1))
    const fail = (call, error, skip = 0) => native.cuda.failNext(call, error, skip);`

  test('no driver', () => {
    const { available, error } = run(`print({ available: e.backends().cuda, error: codeOf(() => e.DeviceArray.alloc('float32', 1)) })`, { EQUITENSOR_EMULATED_DEVICES: '0' })
    expect(available).toMatchObject({ available: false, reason: expect.stringContaining('no NVIDIA driver') })
    expect(error).toMatchObject({ code: 'backend_unavailable', message: expect.stringContaining('no NVIDIA driver') })
  })

  test.each(['1', '0'])('a full device is an error with the bytes asked for, and no more; stream-ordered allocation: %s', (pools) => {
    const { code, call, bytes, message, after } = run(`${setUp}
      const error = codeOf(() => e.DeviceArray.alloc('float32', 1 << 24))
      let sum = 0
      for (let i = 0; i < 40; i++) { const z = e.DeviceArray.alloc('float32', 1 << 18); z.dispose() }
      print({ ...error, after: op.forward(a, a).download().length })`, { EQUITENSOR_EMULATED_MEMORY: String(3 << 20), EQUITENSOR_EMULATED_POOLS: pools })
    expect([code, call, bytes, after]).toEqual(['out_of_memory', pools === '1' ? 'cudaMallocFromPoolAsync' : 'cudaMalloc', 4 << 24, 1600])
    expect(message).toMatch(/of 67108864 bytes: cudaErrorMemoryAllocation \(out of memory\)/)
  })

  test('a full device fails every kind of call the same way', () => {
    const codes = run(`${setUp}
      const big = new Float32Array(4 << 17), results = []
      results.push(codeOf(() => op.forward(big, big)).code)
      results.push(await op.forwardAsync(big, big).catch((error) => error.code))
      results.push(codeOf(() => e.DeviceArray.from(new Float32Array(1 << 20))).code)
      results.push(op.forward(a, a).download().length)
      print(results)`, { EQUITENSOR_EMULATED_MEMORY: String(3 << 20) })
    expect(codes).toEqual(['out_of_memory', 'out_of_memory', 'out_of_memory', 1600])
  })

  test('a call that is refused leaves the device usable', () => {
    const results = run(`${setUp}
      const results = []
      for (const [call, action] of [
        ['cudaLaunchKernel', () => op.forward(a, a)], ['cudaLaunchKernel', () => op.forward(new Float32Array(4), new Float32Array(4))],
        ['cudaMemcpyAsync', () => a.download()], ['cudaStreamSynchronize', () => a.download()], ['cudaStreamCreateWithFlags', () => new e.Stream()],
        ['cudaStreamBeginCapture', () => e.capture(() => {})], ['cudaStreamEndCapture', () => e.capture(() => {})], ['cudaGraphInstantiate', () => e.capture(() => {})],
        ['cudaMalloc', () => e.ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda' })], ['cudaSetDevice', () => a.slice().download()],
      ]) { fail(call, 1); const error = codeOf(action); results.push([error?.code === 'cuda' && error.call === call || [call, error], op.forward(a, a).download()[0]]) }
      print(results)`)
    for (const result of results) expect(result).toEqual([true, results[0][1]])
    expect(results).toHaveLength(10)
  })

  test('an illegal address disables the device, and every later call names it', async () => {
    const { first, later, other, late, promise } = run(`${setUp}
      fail('kernel', 700)
      const z = op.forward(a, a)
      const first = codeOf(() => z.download())
      const later = [() => op.forward(a, a), () => z.download(), () => e.DeviceArray.alloc('float32', 1), () => new e.Stream(), () => e.capture(() => {})].map(codeOf)
      const promise = await op.forwardAsync(new Float32Array(4), new Float32Array(4)).catch((error) => error.code)
      const on1 = e.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cuda', device: 1 }), b = e.DeviceArray.from(new Float32Array(400).fill(1), { device: 1 })
      const other = on1.forward(b, b).download()[0]
      const late = codeOf(() => { z.dispose(); op.dispose() }) ?? null
      print({ first, later, other, late, promise })`, { EQUITENSOR_EMULATED_DEVICES: '2' })
    expect(first).toMatchObject({ code: 'cuda', call: 'cudaStreamSynchronize', message: expect.stringContaining('cudaErrorIllegalAddress') })
    expect(first.message).toContain('device 0 is unusable for the rest of this process')
    for (const error of later) expect(error).toMatchObject({ code: 'device_disabled', message: expect.stringContaining('cudaStreamSynchronize: cudaErrorIllegalAddress') })
    expect([other, late, promise]).toEqual([1, null, 'device_disabled'])
  })

  test('an error while the device works rejects the promise', () => {
    expect(run(`${setUp}
      fail('kernel', 719)
      print(await op.forwardAsync(a, a).catch((error) => [error.code, error.call, error instanceof e.EquitensorError]))`)).toEqual(['cuda', 'cudaEventSynchronize', true])
  })

  test('several devices: each array belongs to one', () => {
    const { kinds, moved, errors } = run(`
      const ops = [0, 1].map((device) => e.ClebschGordanTensorProduct.full('1o', '1o', { backend: 'cuda', device }))
      const a = [0, 1].map((device) => e.DeviceArray.from(Float32Array.of(1, 2, 3), { device }))
      const z = ops.map((op, d) => op.forward(a[d], a[d]))
      const moved = e.DeviceArray.alloc('float32', z[0].length, { device: 1 }).copyFrom(z[0]).download()
      const errors = [() => ops[0].forward(a[1], a[1]), () => ops[1].forward(a[1], a[0]), () => e.capture(() => ops[1].forward(a[1], a[1]))].map((action) => codeOf(action).code)
      print({ kinds: z.map(({ device }) => device), moved: Array.from(moved).join() === Array.from(z[1].download()).join(), errors })`, { EQUITENSOR_EMULATED_DEVICES: '2' })
    expect([kinds, moved, errors]).toEqual([[0, 1], true, ['invalid_argument', 'invalid_argument', 'capturing']])
  })

  test('no upload and no allocation a launch', () => {
    expect(run(`${setUp}
      const out = e.DeviceArray.alloc('float32', 1600)
      op.forward(a, a, undefined, { out })
      const calls = () => ['cudaMalloc', 'cudaMallocFromPoolAsync', 'cudaMemcpyAsync', 'cudaStreamSynchronize', 'cudaEventRecord', 'cudaLaunchKernel'].map((name) => native.cuda.calls(name))
      const before = calls()
      for (let i = 0; i < 10; i++) op.forward(a, a, undefined, { out })
      print(calls().map((count, i) => count - before[i]))`)).toEqual([0, 0, 0, 0, 0, 10])
  })

  test('work waits for its stream', () => {
    expect(run(`${setUp}
      const stream = new e.Stream()
      const z = stream.run(() => op.forward(a, a))
      const done = [stream.done]
      stream.synchronize()
      print([...done, stream.done, z.download()[0]])`)).toEqual([false, true, 1])
  })
})
