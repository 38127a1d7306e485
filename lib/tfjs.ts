/// <reference lib="esnext.disposable" preserve="true" />
// equitensor/tfjs: the operations of this package as those of TensorFlow.js, differentiable twice, so that a loss may contain forces.
import type { DataId, KernelBackend, NamedAttrMap, NamedTensorMap, Tensor, Tensor2D, TensorInfo } from '@tensorflow/tfjs-core'
import { isTyped, lengthOf } from './arrays'
import { Convolution } from './convolution'
import { ofConvolution, ofHarmonics, ofLinear, ofProduct, ofSquare, type Arrays, type Differentiable, type Directions } from './differentiable'
import { argumentError, describe, disposed } from './errors'
import { Graph } from './graph'
import type { IrrepsLike } from './irreps'
import { Linear } from './linear'
import { TensorProduct } from './operation'
import { requireKnownOptions } from './options'
import { requirePeer } from './peer'
import type { SphericalHarmonicsOptions } from './spherical_harmonics'
import { TensorSquare } from './tensor_square'

// In Node the gradients of its own operations come with '@tensorflow/tfjs', which has this package inside.
const tf = requirePeer<typeof import('@tensorflow/tfjs-core')>('@tensorflow/tfjs-core', '@tensorflow/tfjs@4.22', 'equitensor/tfjs')

/** What the kernels need of an operation, a {@link Differentiable} or another: passes that fill `out`. A cotangent that is undefined is zero. */
interface Form {
  forward(inputs: Arrays, out: Float32Array): unknown
  backward(inputs: Arrays, gradOut: Float32Array, out: Arrays): unknown
  doubleBackward(inputs: Arrays, gradOut: Float32Array, cotangents: Directions, out: Arrays): unknown
}

// One kernel a pass: TensorFlow.js finds the gradient of a kernel by its name, and the attributes say which operation it is.
const forwardName = 'EquitensorForward', backwardName = 'EquitensorBackward', doubleBackwardName = 'EquitensorDoubleBackward'

interface Attributes {
  form: Form
  /** Of the forward result. */
  shape: number[]
}

/** What the WebAssembly backend has beside the methods of every backend. */
interface HeapBackend extends KernelBackend {
  makeOutput(shape: number[], dtype: 'float32'): TensorInfo
  typedArrayFromHeap(info: TensorInfo): Float32Array
}

/** Runs `call` on the numbers of `inputs`, and gives tensors of what it fills. */
function run(backend: KernelBackend, inputs: TensorInfo[], shapes: number[][], call: (inputs: Arrays, out: Arrays) => unknown): TensorInfo[] {
  if ('typedArrayFromHeap' in backend) {
    // In place. Memory may grow, which detaches all views, until every output exists and every input has come from whichever backend it was on.
    const heap = backend as HeapBackend, view = (info: TensorInfo) => heap.typedArrayFromHeap(info)
    const outputs = shapes.map((shape) => heap.makeOutput(shape, 'float32'))
    try {
      inputs.forEach(view)
      call(inputs.map(view), outputs.map(view))
    } catch (error) {
      for (const { dataId } of outputs) heap.disposeData(dataId)
      throw error
    }
    return outputs
  }
  // The CPU backend keeps the array that it is given, so each result gets one of its own.
  const out = shapes.map((shape) => new Float32Array(tf.util.sizeFromShape(shape)))
  call(inputs.map(({ dataId }) => numbers(backend, dataId)), out)
  return out.map((values, i) => ({ dataId: backend.write(values, shapes[i]!, 'float32'), shape: shapes[i]!, dtype: 'float32' }))
}

function numbers(backend: KernelBackend, dataId: DataId): Float32Array {
  const values = backend.readSync(dataId)
  return values instanceof Float32Array ? values : Float32Array.from(values as ArrayLike<number>)
}

const shapeOf = ({ shape }: TensorInfo) => shape
// TensorFlow.js fills in zeros for results that nothing depends on, such as the gradient of the weights in that of a force.
const unlessZero = (array: Float32Array) => (array.some((value) => value !== 0) ? array : undefined)

const kernels: Record<string, (inputs: TensorInfo[], attributes: Attributes, backend: KernelBackend) => TensorInfo | TensorInfo[]> = {
  [forwardName]: (inputs, { form, shape }, backend) => run(backend, inputs, [shape], (arrays, [out]) => form.forward(arrays, out!))[0]!,
  [backwardName]: (all, { form }, backend) =>
    run(backend, all, all.slice(0, -1).map(shapeOf), (arrays, out) => form.backward(arrays.slice(0, -1), arrays.at(-1)!, out)),
  // Inputs, gradOut, and a cotangent for each input.
  [doubleBackwardName]: (all, { form }, backend) => {
    const count = (all.length - 1) / 2
    return run(backend, all, all.slice(0, count + 1).map(shapeOf), (arrays, out) =>
      form.doubleBackward(arrays.slice(0, count), arrays[count]!, arrays.slice(count + 1).map(unlessZero), out),
    )
  },
}

function runKernel<T extends Tensor | Tensor[]>(name: string, inputs: Tensor[], attributes: Attributes): T {
  tf.backend() // chooses one, if none is yet
  const backendName = tf.getBackend()
  if (!tf.getKernel(name, backendName)) {
    const kernelFunc = kernels[name]!
    tf.registerKernel({
      kernelName: name,
      backendName,
      kernelFunc: ({ inputs, attrs, backend }) => kernelFunc(inputs as unknown as TensorInfo[], attrs as unknown as Attributes, backend as KernelBackend),
    })
  }
  return tf.engine().runKernel(name, inputs as unknown as NamedTensorMap, attributes as unknown as NamedAttrMap) as T
}

// A gradient function runs its native call at once, since each of the functions that it returns is called in a tidy of its own.
const closures = (gradients: Tensor[]) => gradients.map((gradient) => () => gradient) as unknown as Record<string, () => Tensor>

tf.registerGradient({
  kernelName: forwardName,
  saveAllInputs: true,
  gradFunc: (gradOut, inputs, attributes) => closures(runKernel(backwardName, [...inputs, gradOut as Tensor], attributes as unknown as Attributes)),
})
tf.registerGradient({
  kernelName: backwardName,
  saveAllInputs: true,
  gradFunc: (cotangents, inputs, attributes) =>
    closures(runKernel(doubleBackwardName, inputs.concat(cotangents), attributes as unknown as Attributes)),
})

/** @throws EquitensorError `wrong_kind`, `disposed`, `wrong_dtype`, `wrong_length`. */
function requireTensor(value: unknown, argument: string, dim: number, shape: string, rank?: number): asserts value is Tensor2D {
  if (!(value instanceof tf.Tensor)) throw argumentError('wrong_kind', argument, 'a Tensor of TensorFlow.js', describe(value))
  if (value.isDisposed) throw disposed('Tensor', argument)
  if (value.dtype !== 'float32') throw argumentError('wrong_dtype', argument, 'a Tensor of dtype float32', `one of ${value.dtype}`)
  const fits = rank === undefined ? value.rank === 1 || value.rank === 2 : value.rank === rank
  if (!fits || value.shape.at(-1) !== dim) throw argumentError('wrong_length', argument, `a Tensor of shape ${shape}`, `one of [${value.shape}]`)
}

/** @throws EquitensorError `invalid_argument`, `wrong_dtype`. */
function requireOperation(op: unknown, kind: Function, name: string): void {
  if (!(op instanceof kind)) throw argumentError('invalid_argument', 'op', name, describe(op))
  const { dtype } = op as unknown as { dtype: string }
  if (dtype !== 'float32') throw argumentError('wrong_dtype', 'op', 'an operation of dtype float32, which TensorFlow.js has', `one of ${dtype}`)
}

/** `op` of tensors, whose names and widths it says, and the shape of the result. */
function apply(op: Differentiable, inputs: (Tensor | undefined)[], rows: (shapes: number[][]) => number): Tensor2D {
  const tensors = op.names.map((name, i) => {
    const tensor: unknown = inputs[i], width = op.widths[i]!
    if (name === 'weight') {
      if (tensor === undefined || tensor === null) throw argumentError('weight_missing', name, `a Tensor of shape [${width}] or [batch, ${width}]`, describe(tensor))
      requireTensor(tensor, name, width, `[weightNumel ${width}] or [batch, ${width}]`)
    } else requireTensor(tensor, name, width, `[batch, ${width}]`, 2)
    return tensor
  })
  const unwanted = inputs.slice(tensors.length).find((tensor) => tensor !== undefined && tensor !== null)
  if (unwanted) throw argumentError('weight_unwanted', 'weight', 'undefined, since the operation has no weights', describe(unwanted))
  return runKernel(forwardName, tensors, { form: op, shape: [rows(tensors.map(shapeOf)), op.widthOut] })
}

/**
 * A product of tensors, differentiable twice with respect to x, y and weight.
 * @param op any product of this package, of dtype float32. It is not disposed with the tensors.
 * @param x (batch, irrepsIn1.dim) in the operation's layout; batch 1 is shared by all items. So is y, with irrepsIn2.
 * @param weight (weightNumel) or (batch, weightNumel); none for an operation without weights.
 * @returns (batch, irrepsOut.dim).
 * @throws EquitensorError as `op.forward`, and `wrong_kind` for what is no Tensor.
 */
export function tensorProduct(op: TensorProduct<'float32'>, x: Tensor, y: Tensor, weight?: Tensor): Tensor2D {
  requireOperation(op, TensorProduct, 'a tensor product of this package')
  return apply(ofProduct(op), [x, y, weight], ([x, y]) => (x![0] === 1 ? y![0]! : x![0]!))
}

/**
 * Messages along the edges of a graph, summed at their receivers, in one pass; differentiable twice with respect to x, y and weight.
 * @param x (senders, irrepsIn1.dim) in the operation's layout.
 * @param y (edges, irrepsIn2.dim), or one row for all edges.
 * @param weight (weightNumel) or (edges, weightNumel); none for an operation without weights.
 * @returns (receivers, irrepsOut.dim).
 * @throws EquitensorError as {@link tensorProduct}.
 */
export function convolution(op: Convolution<'float32'>, graph: Graph, x: Tensor, y: Tensor, weight?: Tensor): Tensor2D {
  requireOperation(op, Convolution, 'a Convolution')
  if (!(graph instanceof Graph)) throw argumentError('invalid_argument', 'graph', 'a Graph', describe(graph))
  return apply(ofConvolution(op, graph), [x, y, weight], () => graph.numReceivers)
}

const ofFirst = ([x]: number[][]) => x![0]!

/**
 * The symmetric square of tensors, differentiable twice.
 * @param x (batch, irrepsIn.dim) in the operation's layout.
 * @returns (batch, irrepsOut.dim).
 * @throws EquitensorError as {@link tensorProduct}.
 */
export function tensorSquare(op: TensorSquare<'float32'>, x: Tensor): Tensor2D {
  requireOperation(op, TensorSquare, 'a TensorSquare')
  return apply(ofSquare(op), [x], ofFirst)
}

/**
 * A linear layer on irreps, differentiable twice with respect to x and weight.
 * @param x (batch, irrepsIn.dim) in the operation's layout.
 * @param weight (weightNumel) or (batch, weightNumel).
 * @returns (batch, irrepsOut.dim).
 * @throws EquitensorError as {@link tensorProduct}.
 */
export function linear(op: Linear<'float32'>, x: Tensor, weight: Tensor): Tensor2D {
  requireOperation(op, Linear, 'a Linear')
  return apply(ofLinear(op), [x, weight], ofFirst)
}

/**
 * Real spherical harmonics of vectors, differentiable twice.
 * @param irreps which degrees, or lmax for 0..lmax.
 * @param vectors (n, 3).
 * @param options those of the function of this name in 'equitensor', without `out`.
 * @returns (n, irreps.dim).
 * @throws EquitensorError as that function, and `wrong_kind` for what is no Tensor.
 */
export function sphericalHarmonics(irreps: IrrepsLike | number, vectors: Tensor, options: Omit<SphericalHarmonicsOptions<'float32'>, 'out'> = {}): Tensor2D {
  requireKnownOptions(options, ['normalize', 'normalization', 'threads', 'backend', 'device'])
  return apply(ofHarmonics(irreps, options), [vectors], ofFirst)
}

/** Copies rows: row e of `to` is row indices[e] of `from`. */
function gatherRows(from: Float32Array, indices: Int32Array, dim: number, to: Float32Array): void {
  indices.forEach((row, e) => to.set(from.subarray(row * dim, (row + 1) * dim), e * dim))
}

/** Sums rows: row indices[e] of `to` is the sum of the rows e of `from`. */
function sumRows(from: Float32Array, indices: Int32Array, dim: number, to: Float32Array): void {
  to.fill(0)
  indices.forEach((row, e) => {
    for (let c = 0, t = row * dim, f = e * dim; c < dim; c++) to[t + c]! += from[f + c]!
  })
}

function requireIndices(indices: unknown, rows: number): asserts indices is Int32Array {
  if (!isTyped(indices, 'Int32Array')) throw argumentError('invalid_argument', 'indices', 'an Int32Array', describe(indices))
  const outside = indices.find((row) => row < 0 || row >= rows)
  if (outside !== undefined) throw argumentError('invalid_argument', 'indices', `rows from 0 to ${rows - 1}`, `${outside}`)
}

/**
 * Rows of x: what a message is made from. Differentiable twice on every backend, which `tf.gather` is not: its gradient needs a kernel that
 * the WebAssembly backend lacks.
 * @param x (rows, dim).
 * @param indices of rows; it must not change afterwards.
 * @returns (indices.length, dim).
 * @throws EquitensorError `wrong_kind`, `wrong_dtype`, `wrong_length`, `disposed`, `invalid_argument`.
 */
export function gather(x: Tensor, indices: Int32Array): Tensor2D {
  requireTensor(x, 'x', x?.shape?.at(-1)!, '[rows, dim]', 2)
  requireIndices(indices, x.shape[0])
  const dim = x.shape[1]
  const form: Form = {
    forward: ([x], out) => gatherRows(x!, indices, dim, out),
    backward: (_inputs, gradOut, [gradX]) => sumRows(gradOut, indices, dim, gradX!),
    doubleBackward: (_inputs, _gradOut, [along], [gradX, gradGradOut]) => {
      gradX!.fill(0)
      along ? gatherRows(along, indices, dim, gradGradOut!) : gradGradOut!.fill(0)
    },
  }
  return runKernel(forwardName, [x], { form, shape: [lengthOf(indices), dim] })
}

/**
 * Sums of rows of x: messages, gathered at their receivers. Differentiable twice.
 * @param x (indices.length, dim).
 * @param indices the row of the result that each row of x is added to; it must not change afterwards.
 * @param rows of the result; one that no index names is zero.
 * @returns (rows, dim).
 * @throws EquitensorError as {@link gather}.
 */
export function scatterSum(x: Tensor, indices: Int32Array, rows: number): Tensor2D {
  requireTensor(x, 'x', x?.shape?.at(-1)!, '[indices.length, dim]', 2)
  if (!Number.isInteger(rows) || rows < 0) throw argumentError('invalid_argument', 'rows', 'an integer that is not negative', describe(rows))
  requireIndices(indices, rows)
  const dim = x.shape[1]
  if (lengthOf(indices) !== x.shape[0]) throw argumentError('wrong_length', 'indices', `${x.shape[0]} numbers, one for each row of x`, `${lengthOf(indices)}`)
  const form: Form = {
    forward: ([x], out) => sumRows(x!, indices, dim, out),
    backward: (_inputs, gradOut, [gradX]) => gatherRows(gradOut, indices, dim, gradX!),
    doubleBackward: (_inputs, _gradOut, [along], [gradX, gradGradOut]) => {
      gradX!.fill(0)
      along ? sumRows(along, indices, dim, gradGradOut!) : gradGradOut!.fill(0)
    },
  }
  return runKernel(forwardName, [x], { form, shape: [rows, dim] })
}
