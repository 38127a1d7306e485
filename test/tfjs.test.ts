// equitensor/tfjs: first and second gradients against differences, on both backends of TensorFlow.js, without leaks; errors.
import * as tf from '@tensorflow/tfjs'
import '@tensorflow/tfjs-backend-wasm'
import { spawnSync } from 'node:child_process'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ClebschGordanTensorProduct, Convolution, GauntTensorProduct, Graph, Linear, MatrixTensorProduct, sphericalHarmonics, TensorSquare } from '../lib/index'
import * as et from '../lib/tfjs'
import { caught } from './caught'
import { random, randomArray, root, sameBits } from './support'

const next = random(1)
type Inputs = { [name: string]: { shape: number[]; values: Float32Array } }
const input = (...shape: number[]) => ({ shape, values: randomArray('float32', shape.reduce((a, b) => a * b, 1), next) })
const tensors = (inputs: Inputs) => Object.values(inputs).map(({ shape, values }) => tf.tensor(values.slice(), shape))

/** The derivative of f at each number of each input by five points, exact for polynomials of degree 4. */
function differences(f: (...inputs: tf.Tensor[]) => tf.Tensor, inputs: Inputs, step: number): Record<string, number[]> {
  const at = (name: string, i: number, shift: number) => {
    const moved = { ...inputs, [name]: { ...inputs[name]!, values: inputs[name]!.values.slice() } }
    moved[name]!.values[i]! += shift
    return tf.tidy(() => f(...tensors(moved)).dataSync()[0]!)
  }
  const derivative = (name: string, i: number) =>
    (8 * (at(name, i, step) - at(name, i, -step)) - (at(name, i, 2 * step) - at(name, i, -2 * step))) / (12 * step)
  return Object.fromEntries(Object.entries(inputs).map(([name, { values }]) => [name, Array.from(values, (_, i) => derivative(name, i))]))
}

function expectDerivatives(f: (...inputs: tf.Tensor[]) => tf.Tensor, inputs: Inputs, step: number, tolerance: number): void {
  const expected = Object.entries(differences(f, inputs, step))
  tf.tidy(() => {
    const gradients = tf.grads((...x) => f(...x) as tf.Scalar)(tensors(inputs))
    expected.forEach(([name, values], k) => {
      expect(gradients[k]!.shape).toEqual(inputs[name]!.shape)
      const actual = gradients[k]!.dataSync(), largest = Math.max(...values.map(Math.abs))
      expect(largest, name).toBeGreaterThan(1e-3)
      values.forEach((value, i) => expect(Math.abs(actual[i]! - value) / largest, `${name}[${i}]`).toBeLessThan(tolerance))
    })
  })
}

/** Half the sum of squares: its gradient is the value itself. */
const energy = (z: tf.Tensor) => tf.mul(0.5, tf.sum(tf.square(z)))
/** A loss of forces: it depends on the gradients of every input. */
const ofForces = (f: (...inputs: tf.Tensor[]) => tf.Tensor) => (...inputs: tf.Tensor[]) =>
  tf.grads((...x) => energy(f(...x)) as tf.Scalar)(inputs).map(energy).reduce((a, b) => tf.add(a, b))

const cpu = { backend: 'cpu' } as const
const cgtp = ClebschGordanTensorProduct.full('0e+1o', '0e+1o'), gtp = new GauntTensorProduct('2x0e+2x1o', '2x0e+2x1o', { layout: 'ir_mul' })
const mtp = new MatrixTensorProduct('0e+1e', '0e+1e'), square = new TensorSquare('2x0e+1o')
const weighted = ClebschGordanTensorProduct.channelwise('2x0e+2x1o', '0e+1o', '0e+1o', cpu), layer = new Linear('2x0e+1o', '0e+2x1o', cpu)
const conv = Convolution.channelwise('2x0e+2x1o', '0e+1o', '0e+1o', { ...cpu, layout: 'ir_mul' }), graph = new Graph(Int32Array.of(0, 1, 1, 0, 0, 2), 3)
const rows = Int32Array.of(2, 0, 2, 1)

// Each entry of an input enters the result linearly (a square: quadratically), so energies are polynomials of degree 2 and 4, losses of forces of degree 4 or less in the
// first seven rows: differences are then exact but for roundings, 1e-7 of a sum of some ten terms that is divided by the step. Elsewhere steps are smaller.
const cases: [name: string, f: (...inputs: tf.Tensor[]) => tf.Tensor, inputs: Inputs, step: number, forces: number][] = [
  ['CGTP', (x, y) => et.tensorProduct(cgtp, x!, y!), { x: input(2, 4), y: input(2, 4) }, 0.25, 0.25],
  ['GTP with a shared x', (x, y) => et.tensorProduct(gtp, x!, y!), { x: input(1, 8), y: input(3, 8) }, 0.25, 0.25],
  ['MTP', (x, y) => et.tensorProduct(mtp, x!, y!), { x: input(2, 4), y: input(1, 4) }, 0.25, 0.25],
  ['shared weights', (x, y, w) => et.tensorProduct(weighted, x!, y!, w!), { x: input(2, 8), y: input(2, 4), w: input(weighted.weightNumel) }, 0.25, 0.25],
  ['a set of weights an item', (x, y, w) => et.tensorProduct(weighted, x!, y!, w!), { x: input(3, 8), y: input(3, 4), w: input(3, weighted.weightNumel) }, 0.25, 0.25],
  ['a convolution', (x, y, w) => et.convolution(conv, graph, x!, y!, w!), { x: input(3, 8), y: input(3, 4), w: input(3, conv.weightNumel) }, 0.25, 0.25],
  ['Linear', (x, w) => et.linear(layer, x!, w!), { x: input(3, 5), w: input(layer.weightNumel) }, 0.25, 0.25],
  ['gather', (x) => tf.mul(et.gather(x!, rows), et.gather(x!, rows)), { x: input(3, 2) }, 0.25, 0.05],
  ['scatterSum', (x) => tf.mul(et.scatterSum(x!, rows, 4), et.scatterSum(x!, rows, 4)), { x: input(4, 2) }, 0.25, 0.05],
  ['TensorSquare', (x) => et.tensorSquare(square, x!), { x: input(2, 5) }, 0.25, 0.05],
  ['harmonics', (v) => tf.mul(et.sphericalHarmonics(2, v!), tf.tensor1d([1, 2, -1, 1, 0.5, 1, -2, 1, 1])), { v: input(3, 3) }, 0.02, 0.02],
  ['solid harmonics', (v) => et.sphericalHarmonics('0e+1o', v!, { normalize: false, normalization: 'norm' }), { v: input(3, 3) }, 0.05, 0.05],
]

describe.each(['cpu', 'wasm'])('on the backend %s', (backend) => {
  beforeAll(async () => {
    expect(await tf.setBackend(backend)).toBe(true)
  })

  test('results are those of the operations', () => {
    tf.tidy(() => {
      const x = input(3, 8), y = input(3, 4), w = input(3, weighted.weightNumel), v = input(3, 3), [tx, ty, tw, tv] = tensors({ x, y, w, v })
      const z = et.tensorProduct(weighted, tx!, ty!, tw!)
      expect(z.shape).toEqual([3, weighted.irrepsOut.dim])
      expect(sameBits(z.dataSync<'float32'>(), weighted.forward(x.values, y.values, w.values))).toBe(true)
      expect(sameBits(et.sphericalHarmonics(2, tv!).dataSync<'float32'>(), sphericalHarmonics(2, v.values))).toBe(true)
      expect(Array.from(et.gather(tf.tensor2d([[1, 2], [3, 4]]), Int32Array.of(1, 1, 0)).dataSync())).toEqual([3, 4, 3, 4, 1, 2])
      expect(Array.from(et.scatterSum(tf.tensor2d([[1, 2], [3, 4], [5, 6]]), Int32Array.of(1, 1, 3), 4).dataSync())).toEqual([0, 0, 4, 6, 0, 0, 5, 6])
    })
  })

  // Roundings: see the list. The smaller steps leave 1e-7 / 0.02 of a sum that is a few times larger than its largest derivative.
  test.each(cases)('gradients of %s', (_name, f, inputs, step) => expectDerivatives((...x) => energy(f(...x)), inputs, step, 3e-4))
  test.each(cases)('gradients of a loss of forces, %s', (_name, f, inputs, _step, step) => expectDerivatives(ofForces(f), inputs, step, 3e-3))

  test('a model of atoms with a loss of energy and forces', () => {
    const senders = Int32Array.of(1, 2, 0, 2, 0, 1), receivers = Int32Array.of(0, 0, 1, 1, 2, 2)
    const head = new Linear(weighted.irrepsOut, '3x0e+2x1o', cpu), readout = ClebschGordanTensorProduct.fullyConnected('3x0e+2x1o', '3x0e+2x1o', '0e', cpu)
    // No tf.exp, tf.sigmoid, tf.tanh or tf.elu: TensorFlow.js's own second gradients of these, which save their results, are wrong or missing.
    const model = (r: tf.Tensor, features: tf.Tensor, w: tf.Tensor, h: tf.Tensor, u: tf.Tensor) => {
      const edges = tf.sub(et.gather(r, senders), et.gather(r, receivers)), length = tf.sum(tf.square(edges), 1, true)
      const messages = et.tensorProduct(weighted, et.gather(features, senders), et.sphericalHarmonics(1, edges), tf.mul(tf.softplus(tf.neg(length)), w))
      const nodes = et.linear(head, et.scatterSum(messages, receivers, 3), h)
      return tf.mul(30, tf.sum(et.tensorProduct(readout, nodes, nodes, u)))
    }
    const loss = (r: tf.Tensor, ...parameters: tf.Tensor[]) => {
      const { value, grad } = tf.valueAndGrad((r) => model(r, ...(parameters as [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor])) as tf.Scalar)(r)
      return tf.add(tf.square(value), energy(grad))
    }
    const r = { shape: [3, 3], values: Float32Array.of(0, 0.1, 0, 1, 0, 0.2, -0.2, 0.9, 0.4) }
    const inputs = { r, features: input(3, 8), w: input(1, weighted.weightNumel), h: input(head.weightNumel), u: input(readout.weightNumel) }
    // As above; the steps in r are of a function that is no polynomial.
    expectDerivatives(loss, inputs, 0.03, 3e-3)
  })

  test('1,000 tidied steps leave nothing behind', () => {
    const inputs = { x: input(2, 8), y: input(2, 4), w: input(weighted.weightNumel) }, kept = tensors(inputs)
    const step = () => tf.tidy(() => tf.dispose(tf.grads((...x) => ofForces((x, y, w) => et.tensorProduct(weighted, x!, y!, w!))(...x) as tf.Scalar)(kept)))
    step()
    const before = { ...tf.memory(), data: tf.engine().backend.numDataIds() }
    for (let i = 0; i < 1000; i++) step()
    const after = { ...tf.memory(), data: tf.engine().backend.numDataIds() }
    expect([after.numTensors, after.numBytes, after.data]).toEqual([before.numTensors, before.numBytes, before.data])
    tf.dispose(kept)
  })

  test('an error from within a kernel leaves nothing behind', () => {
    const [x, y] = tensors({ x: input(2, 4), y: input(3, 4) })
    const before = { ...tf.memory(), data: tf.engine().backend.numDataIds() }
    expect(caught(() => et.tensorProduct(cgtp, x!, y!))).toMatchObject({ code: 'batch_mismatch', argument: 'y' })
    expect([tf.memory().numTensors, tf.engine().backend.numDataIds()]).toEqual([before.numTensors, before.data])
    tf.dispose([x!, y!])
  })

  test('results own their memory', () => {
    tf.tidy(() => {
      const [x, y] = tensors({ x: input(2, 4), y: input(2, 4) })
      const first = et.tensorProduct(cgtp, x!, y!), values = first.dataSync().slice()
      et.tensorProduct(cgtp, tf.neg(x!), y!)
      expect(first.dataSync()).toEqual(values)
    })
  })
})

describe('errors', () => {
  beforeAll(() => void tf.engine().startScope())
  afterAll(() => tf.engine().endScope())
  const disposed = () => {
    const tensor = tf.zeros([2, 4])
    tensor.dispose()
    return tensor
  }
  const x = () => tf.zeros([2, 4])
  test.each<[name: string, code: string, argument: string, call: () => unknown]>([
    ['an array', 'wrong_kind', 'x', () => et.tensorProduct(cgtp, new Float32Array(8) as never, x())],
    ['nothing', 'wrong_kind', 'y', () => et.tensorProduct(cgtp, x(), undefined as never)],
    ['integers', 'wrong_dtype', 'y', () => et.tensorProduct(cgtp, x(), tf.zeros([2, 4], 'int32'))],
    ['another irreps', 'wrong_length', 'x', () => et.tensorProduct(cgtp, tf.zeros([2, 5]), x())],
    ['a transposed operand', 'wrong_length', 'y', () => et.tensorProduct(cgtp, x(), tf.zeros([4, 2]))],
    ['a flat operand', 'wrong_length', 'x', () => et.tensorProduct(cgtp, tf.zeros([8]), x())],
    ['a disposed tensor', 'disposed', 'x', () => et.tensorProduct(cgtp, disposed(), x())],
    ['a square', 'invalid_argument', 'op', () => et.tensorProduct(square as never, x(), x())],
    ['a product', 'invalid_argument', 'op', () => et.tensorSquare(cgtp as never, x())],
    ['a product for a convolution', 'invalid_argument', 'op', () => et.convolution(cgtp as never, graph, x(), x())],
    ['edges for a graph', 'invalid_argument', 'graph', () => et.convolution(conv, rows as never, x(), x())],
    ['nodes of another convolution', 'wrong_length', 'x', () => et.convolution(conv, graph, x(), x(), tf.zeros([3, conv.weightNumel]))],
    ['a product for a layer', 'invalid_argument', 'op', () => et.linear(cgtp as never, x(), x())],
    ['float64', 'wrong_dtype', 'op', () => et.tensorProduct(ClebschGordanTensorProduct.full('0e', '0e', { dtype: 'float64' }) as never, x(), x())],
    ['no weights', 'weight_missing', 'weight', () => et.tensorProduct(weighted, tf.zeros([2, 8]), x())],
    ['weights', 'weight_unwanted', 'weight', () => et.tensorProduct(cgtp, x(), x(), tf.zeros([1]))],
    ['too few weights', 'wrong_length', 'weight', () => et.linear(layer, tf.zeros([2, 5]), tf.zeros([2, layer.weightNumel - 1]))],
    ['vectors of two components', 'wrong_length', 'vectors', () => et.sphericalHarmonics(1, tf.zeros([3, 2]))],
    ['a degree too high', 'degree_limit', 'irreps', () => et.sphericalHarmonics(12, tf.zeros([3, 3]))],
    ['an option of another function', 'invalid_option', 'options.out', () => et.sphericalHarmonics(1, tf.zeros([3, 3]), { out: 1 } as never)],
    ['a row that is not there', 'invalid_argument', 'indices', () => et.gather(x(), Int32Array.of(0, 2))],
    ['a list of rows', 'invalid_argument', 'indices', () => et.gather(x(), [0] as never)],
    ['rows for other messages', 'wrong_length', 'indices', () => et.scatterSum(x(), Int32Array.of(0), 1)],
    ['half a row', 'invalid_argument', 'rows', () => et.scatterSum(x(), Int32Array.of(0, 0), 0.5)],
  ])('%s', (_name, code, argument, call) => {
    const error = caught(call)
    expect([error.code, error.argument]).toEqual([code, argument])
    expect(error.message).toMatch(/: expected .+, got /)
  })

  test('a third derivative is refused', () => {
    const v = tf.tensor2d([[1, 0.5, 0.2]]), f = (v: tf.Tensor): tf.Scalar => tf.sum(et.sphericalHarmonics('2e', v))
    expect(() => tf.grad((v) => tf.sum(tf.grad((v) => tf.sum(tf.grad(f)(v)))(v)))(v)).toThrow('EquitensorDoubleBackward')
  })

  test('TensorFlow.js that is not installed is missed by this sub-path only', () => {
    const program = `
      const Module = require('node:module'), resolve = Module._resolveFilename
      Module._resolveFilename = (name, parent, ...rest) =>
        resolve(name, name.startsWith('@tensorflow/') ? { id: '/', filename: '/none.js', paths: [] } : parent, ...rest)
      require('equitensor')
      import('equitensor/tfjs').catch(({ code, message }) => console.log(code, message))`
    const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', program], { cwd: root, encoding: 'utf8' })
    expect(stdout).toBe('peer_missing equitensor/tfjs needs @tensorflow/tfjs-core, which is not installed: npm install @tensorflow/tfjs@4.22\n')
    // And once: who catches it goes on.
    expect([status, stderr]).toEqual([0, ''])
  })
})
