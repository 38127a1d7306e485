// Calls beside the thread of JavaScript, on host arrays: the results of the synchronous ones, several at once, cancelled, and without their arrays.
import { getEventListeners } from 'node:events'
import { describe, expect, test } from 'vitest'
import { backends, ClebschGordanTensorProduct, GauntPower, Linear, sphericalHarmonics } from '../lib/index'
import { products } from './reference'
import { printedWithin9GB, random, randomArray } from './support'

const backend = backends().cuda.available ? (['cpu', 'cuda'] as const) : (['cpu'] as const)

describe.each(backend)('backend %s', (backend) => {
  test.each(products)('$name: every pass', async ({ make }) => {
    using op = make('2x0e+2x1o', '2x0e+2x1o', { dtype: 'float64', backend })
    const next = random(3), draw = (length: number) => randomArray('float64', length, next)
    const x = draw(5 * op.irrepsIn1.dim), y = draw(op.irrepsIn2.dim), g = draw(5 * op.irrepsOut.dim)
    const directions = { x: draw(x.length), y: draw(y.length) }
    const needs = { x: false }
    // All of them pending at once.
    const [z, gradients, some, second, tangent, none] = await Promise.all([
      op.forwardAsync(x, y),
      op.backwardAsync(x, y, undefined, g),
      op.backwardAsync(x, y, undefined, g, { needs }),
      op.doubleBackwardAsync(x, y, undefined, g, directions),
      op.jvpAsync(x, y, undefined, directions),
      op.jvpAsync(x, y, undefined, {}),
    ])
    expect(z).toEqual(op.forward(x, y))
    expect(gradients).toEqual(op.backward(x, y, undefined, g))
    expect(some).toEqual(op.backward(x, y, undefined, g, { needs }))
    expect(second).toEqual(op.doubleBackward(x, y, undefined, g, directions))
    expect(tangent).toEqual(op.jvp(x, y, undefined, directions))
    expect(none).toEqual(new Float64Array(g.length))

    const out = { x: draw(x.length), y: draw(y.length) }
    const expected = op.backward(x, y, undefined, g, { out: { x: out.x.slice(), y: out.y.slice() }, accumulate: true })
    const pending = op.backwardAsync(x, y, undefined, g, { out, accumulate: true })
    expect(await pending).toEqual(expected)
    expect((await pending).x).toBe(out.x)
  })

  test('of two calls that add to an array at a time none is lost: the second one is refused', async () => {
    using op = new GauntPower('0e+1o', 2, { backend }), linear = new Linear('0e+1o', '0e+1o', { backend })
    const x = randomArray('float32', 4 * 10, random(1)), g = randomArray('float32', 10 * op.irrepsOut.dim, random(2)), w = randomArray('float32', 2, random(3))
    const sum = new Float32Array(x.length), out = { x: sum }, parts = { x: sum.subarray(1, 5), weight: new Float32Array(2) }
    const pending = op.backwardAsync(x, g, { out, accumulate: true })
    const refused = { code: 'overlap', argument: 'out.x', received: 'an array that a pending call adds to' }
    await expect(op.backwardAsync(x, g, { out, accumulate: true })).rejects.toMatchObject(refused)
    await expect(op.backwardAsync(x, g, { out })).rejects.toMatchObject(refused)
    await expect(linear.backwardAsync(x.subarray(4, 8), w, x.subarray(0, 4), { out: parts, accumulate: true })).rejects.toMatchObject(refused)
    expect(() => op.backward(x, g, { out, accumulate: true })).toThrow(expect.objectContaining(refused))
    await pending
    const writing = op.backwardAsync(x, g, { out })
    await expect(op.backwardAsync(x, g, { out, accumulate: true })).rejects.toMatchObject({ ...refused, received: 'an array that a pending call writes, while this one adds' })
    await writing
    const once = op.backward(x, g).x
    expect(sum).toEqual(once)
    await op.backwardAsync(x, g, { out, accumulate: true })
    expect(sum).toEqual(once.map((v) => 2 * v))
    // One whose results nobody gets any more is in nobody's way, and two that do not add are not either.
    const controller = new AbortController()
    const aborted = op.backwardAsync(x, g, { out, accumulate: true, signal: controller.signal })
    controller.abort()
    await expect(aborted).rejects.toMatchObject({ code: 'aborted' })
    await Promise.all([op.backwardAsync(x, g, { out }), op.backwardAsync(x, g, { out })])
    expect(sum).toEqual(once)
  })

  const op = ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend })
  const x = randomArray('float32', 4 * 100, random(1)), y = randomArray('float32', 4 * 100, random(2))

  test('the arrays may be transferred away, and the operation disposed of', async () => {
    const expected = op.forward(x, y)
    const gone = ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend })
    const [a, b, out] = [x.slice(), y.slice(), new Float32Array(expected.length)]
    const pending = gone.forwardAsync(a, b, undefined, { out })
    gone.dispose()
    structuredClone([a, b], { transfer: [a.buffer, b.buffer] })
    expect(await pending).toEqual(expected)
    expect(() => gone.forward(x, y)).toThrow(/dispose/)
    await expect(gone.forwardAsync(x, y)).rejects.toMatchObject({ code: 'disposed' })
  })

  test('a result whose array has lost its memory in the meantime is an error that names it', async () => {
    const { buffer } = new Float32Array(x.length)
    const lose = (array: Float32Array) => structuredClone(array, { transfer: [array.buffer as ArrayBuffer] })
    const g = op.forward(x, y), out = new Float32Array(g.length)
    const lost = op.forwardAsync(x, y, undefined, { out })
    lose(out)
    await expect(lost).rejects.toMatchObject({ code: 'detached', argument: 'out' })
    // Nothing contributes to it: it would be filled with zeros.
    const zero = new Float32Array(y.length)
    const second = op.doubleBackwardAsync(x, y, undefined, g, { y }, { out: { y: zero } })
    lose(zero)
    await expect(second).rejects.toMatchObject({ code: 'detached', argument: 'out.y' })
    using power = new GauntPower('0e+1o', 2, { backend })
    const factors = power.backwardAsync(x, randomArray('float32', 100 * power.irrepsOut.dim, random(3)), { out: { x: new Float32Array(buffer) } })
    lose(new Float32Array(buffer))
    await expect(factors).rejects.toMatchObject({ code: 'detached', argument: 'out.x' })
    const resizable = new (ArrayBuffer as any)(out.byteLength + 4 * g.length, { maxByteLength: 8 * g.length }), fixed = new Float32Array(resizable, 0, g.length)
    const shrunk = op.forwardAsync(x, y, undefined, { out: fixed })
    resizable.resize(4)
    await expect(shrunk).rejects.toMatchObject({ code: 'detached', argument: 'out' })
    const vectors = randomArray('float32', 300, random(4)), gradient = new Float32Array(300)
    const harmonics = sphericalHarmonics.backwardAsync(2, vectors, sphericalHarmonics(2, vectors), { out: gradient })
    lose(gradient)
    await expect(harmonics).rejects.toMatchObject({ code: 'detached', argument: 'out' })
  })

  test('an input is copied, whatever it says of its buffer', async () => {
    const shadowed = Object.defineProperty(x.slice(), 'buffer', { value: undefined })
    const pending = op.forwardAsync(shadowed, y)
    shadowed.fill(0)
    expect(await pending).toEqual(op.forward(x, y))
  })

  test('inputs in shared memory are read in place', async () => {
    const shared = new Float32Array(new SharedArrayBuffer(x.byteLength))
    shared.set(x)
    expect(await op.forwardAsync(shared, y)).toEqual(op.forward(x, y))
  })

  test('errors reject the promise, and nothing is written', async () => {
    const out = new Float32Array(3)
    await expect(op.forwardAsync(x, y.subarray(1))).rejects.toMatchObject({ code: 'wrong_length', argument: 'y' })
    await expect(op.forwardAsync(x, y, undefined, { out })).rejects.toMatchObject({ code: 'wrong_length', argument: 'out' })
    await expect(op.forwardAsync(x, y, undefined, { signal: true as never })).rejects.toMatchObject({ code: 'invalid_option', argument: 'options.signal' })
    expect(out).toEqual(new Float32Array(3))
  })

  test('a signal that has been given, one that comes, and one that comes too late', async () => {
    const size = op.irrepsOut.dim * 100
    const untouched = new Float32Array(size).fill(7)
    await expect(op.forwardAsync(x, y, undefined, { out: untouched, signal: AbortSignal.abort('no') })).rejects.toMatchObject({ code: 'aborted', cause: 'no' })
    const controller = new AbortController()
    const pending = op.forwardAsync(x, y, undefined, { out: untouched, signal: controller.signal })
    controller.abort()
    await expect(pending).rejects.toMatchObject({ code: 'aborted' })
    // Whatever still runs is waited for by what comes after it in the pool of threads.
    for (let i = 0; i < 8; i++) await op.forwardAsync(x, y)
    expect(untouched).toEqual(new Float32Array(size).fill(7))
    const late = new AbortController()
    expect(await op.forwardAsync(x, y, undefined, { signal: late.signal })).toEqual(op.forward(x, y))
    late.abort()
  })
})

test('calls pending on one signal share a listener, which the last one takes away, and which stops them all', async () => {
  using op = ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cpu' })
  const x = randomArray('float32', 4 * 100, random(1)), controller = new AbortController(), { signal } = controller
  const warnings: Error[] = [], warn = (warning: Error) => warnings.push(warning)
  process.on('warning', warn)
  try {
    for (let round = 0; round < 2; round++) {
      const calls = Array.from({ length: 11 }, () => op.forwardAsync(x, x, undefined, { signal }))
      expect(getEventListeners(signal, 'abort')).toHaveLength(1)
      for (const z of await Promise.all(calls)) expect(z).toEqual(op.forward(x, x))
      expect(getEventListeners(signal, 'abort')).toHaveLength(0)
    }
    const calls = Array.from({ length: 11 }, () => op.forwardAsync(x, x, undefined, { signal }))
    controller.abort('no')
    for (const call of await Promise.allSettled(calls)) expect(call).toMatchObject({ status: 'rejected', reason: { code: 'aborted', cause: 'no' } })
    expect(getEventListeners(signal, 'abort')).toHaveLength(0)
    expect(warnings).toEqual([])
  } finally {
    process.off('warning', warn)
  }
})

test.skipIf(process.platform !== 'linux')('no memory for the copies of a pending call', () => {
  // Of a process that may have 9 GB, of which x takes 4.8: the copy fails before a page of it is touched.
  const program = `
    const { ClebschGordanTensorProduct } = require('equitensor'), items = 4e8
    const op = ClebschGordanTensorProduct.full('1o', '1o', { filterIrrepsOut: '0e', backend: 'cpu' })
    const pending = op.forwardAsync(new Float32Array(3 * items), Float32Array.of(1, 1, 1), undefined, { out: new Float32Array(items) })
    pending.catch(({ name, code, message }) => console.log(JSON.stringify({ name, code, message })))`
  const { name, code, message } = printedWithin9GB(program)
  expect([name, code]).toEqual(['EquitensorError', 'out_of_memory'])
  expect(message).toMatch(/copies of the arrays/)
})
