// equitensor/tfjs: the operations of this package as those of TensorFlow.js, differentiable twice, so that a loss may contain forces.
import type { DataId, KernelBackend, NamedAttrMap, NamedTensorMap, Tensor, Tensor2D, TensorInfo } from '@tensorflow/tfjs-core'
import { Convolution } from './convolution'
import { argumentError, describe } from './errors'
import { Graph } from './graph'
import { Irreps, toIrreps, type IrrepsLike } from './irreps'
import { Linear } from './linear'
import { TensorProduct } from './operation'
import { requireKnownOptions } from './options'
import { requirePeer } from './peer'
import { sphericalHarmonics as harmonics, type SphericalHarmonicsOptions } from './spherical_harmonics'
import { TensorSquare } from './tensor_square'

// In Node the gradients of its own operations come with '@tensorflow/tfjs', which has this package inside.
const tf = requirePeer<typeof import('@tensorflow/tfjs-core')>('@tensorflow/tfjs-core', '@tensorflow/tfjs@4.22', 'equitensor/tfjs')

type Arrays = Float32Array[]

/** A function of arrays and its derivatives, each one native call that fills `out`. */
interface Form {
  forward(inputs: Arrays, out: Float32Array): unknown
  /** `out`: a gradient for each input. */
  backward(inputs: Arrays, gradOut: Float32Array, out: Arrays): unknown
  /** Of {@link backward}: `cotangents` of its results, undefined where zero; `out`: a gradient for each input, and then that of gradOut. */
  doubleBackward(inputs: Arrays, gradOut: Float32Array, cotangents: (Float32Array | undefined)[], out: Arrays): unknown
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
  if (value.isDisposed) throw argumentError('disposed', argument, 'a live Tensor', 'one after dispose()')
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
  const batch = x?.shape?.[0] === 1 ? y?.shape?.[0] : x?.shape?.[0]
  return product(op, [batch!, op.irrepsOut.dim], x, y, weight, {
    forward: ([x, y, weight], out) => op.forward(x!, y!, weight, { out }),
    backward: ([x, y, weight], gradOut, out) => op.backward(x!, y!, weight, gradOut, { out: gradientsIn(out, weight) }),
    doubleBackward: ([x, y, weight], gradOut, along, out) =>
      op.doubleBackward(x!, y!, weight, gradOut, directions(along), { out: { ...gradientsIn(out, weight), gradOut: out.at(-1)! } }),
  })
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
  return product(op, [graph.numReceivers, op.irrepsOut.dim], x, y, weight, {
    forward: ([x, y, weight], out) => op.forward(graph, x!, y!, weight, { out }),
    backward: ([x, y, weight], gradOut, out) => op.backward(graph, x!, y!, weight, gradOut, { out: gradientsIn(out, weight) }),
    doubleBackward: ([x, y, weight], gradOut, along, out) =>
      op.doubleBackward(graph, x!, y!, weight, gradOut, directions(along), { out: { ...gradientsIn(out, weight), gradOut: out.at(-1)! } }),
  })
}

const gradientsIn = ([x, y, third]: Arrays, weight: Float32Array | undefined) => ({ x: x!, y: y!, ...(weight && { weight: third! }) })
const directions = ([x, y, weight]: (Float32Array | undefined)[]) => ({ x, y, weight })

/** The call of a product, on tensors that are checked. */
function product(op: TensorProduct<'float32'> | Convolution<'float32'>, shape: number[], x: Tensor, y: Tensor, weight: Tensor | undefined, form: Form): Tensor2D {
  requireTensor(x, 'x', op.irrepsIn1.dim, `[batch, irrepsIn1.dim ${op.irrepsIn1.dim}]`, 2)
  requireTensor(y, 'y', op.irrepsIn2.dim, `[batch, irrepsIn2.dim ${op.irrepsIn2.dim}]`, 2)
  const numel = op.weightNumel, hasWeight = weight !== undefined && weight !== null
  if (numel && !hasWeight) throw argumentError('weight_missing', 'weight', `a Tensor of shape [${numel}] or [batch, ${numel}]`, describe(weight))
  if (!numel && hasWeight) throw argumentError('weight_unwanted', 'weight', 'undefined, since the operation has no weights', describe(weight))
  if (hasWeight) requireTensor(weight, 'weight', numel, `[weightNumel ${numel}] or [batch, ${numel}]`)
  return runKernel(forwardName, hasWeight ? [x, y, weight] : [x, y], { form, shape })
}

/**
 * The symmetric square of tensors, differentiable twice.
 * @param x (batch, irrepsIn.dim) in the operation's layout.
 * @returns (batch, irrepsOut.dim).
 * @throws EquitensorError as {@link tensorProduct}.
 */
export function tensorSquare(op: TensorSquare<'float32'>, x: Tensor): Tensor2D {
  requireOperation(op, TensorSquare, 'a TensorSquare')
  requireTensor(x, 'x', op.irrepsIn.dim, `[batch, irrepsIn.dim ${op.irrepsIn.dim}]`, 2)
  const form: Form = {
    forward: ([x], out) => op.forward(x!, undefined, { out }),
    backward: ([x], gradOut, [gradX]) => op.backward(x!, undefined, gradOut, { out: { x: gradX! } }),
    doubleBackward: ([x], gradOut, [alongX], [gradX, gradGradOut]) =>
      op.doubleBackward(x!, undefined, gradOut, alongX ? { x: alongX } : {}, { out: { x: gradX!, gradOut: gradGradOut! } }),
  }
  return runKernel(forwardName, [x], { form, shape: [x.shape[0], op.irrepsOut.dim] })
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
  requireTensor(x, 'x', op.irrepsIn.dim, `[batch, irrepsIn.dim ${op.irrepsIn.dim}]`, 2)
  requireTensor(weight, 'weight', op.weightNumel, `[weightNumel ${op.weightNumel}] or [batch, ${op.weightNumel}]`)
  const form: Form = {
    forward: ([x, weight], out) => op.forward(x!, weight!, { out }),
    backward: ([x, weight], gradOut, [gradX, gradWeight]) => op.backward(x!, weight!, gradOut, { out: { x: gradX!, weight: gradWeight! } }),
    doubleBackward: ([x, weight], gradOut, [alongX, alongWeight], [gradX, gradWeight, gradGradOut]) =>
      op.doubleBackward(x!, weight!, gradOut, { x: alongX, weight: alongWeight }, { out: { x: gradX!, weight: gradWeight!, gradOut: gradGradOut! } }),
  }
  return runKernel(forwardName, [x, weight], { form, shape: [x.shape[0], op.irrepsOut.dim] })
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
  requireTensor(vectors, 'vectors', 3, '[n, 3]', 2)
  const degrees = typeof irreps === 'number' ? Irreps.sphericalHarmonics(irreps) : toIrreps(irreps, 'irreps')
  const form: Form = {
    forward: ([vectors], out) => harmonics(degrees, vectors!, { ...options, out }),
    backward: ([vectors], gradOut, [out]) => harmonics.backward(degrees, vectors!, gradOut, { ...options, out: out! }),
    doubleBackward: ([vectors], gradOut, [along], out) =>
      along
        ? harmonics.doubleBackward(degrees, vectors!, gradOut, along, { ...options, out: { vectors: out[0]!, gradOut: out[1]! } })
        : out.forEach((array) => array.fill(0)),
  }
  return runKernel(forwardName, [vectors], { form, shape: [vectors.shape[0], degrees.dim] })
}

/** Copies rows, `to` from `from`: row e of `to` is row indices[e] of `from`. */
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
  if (!(indices instanceof Int32Array)) throw argumentError('invalid_argument', 'indices', 'an Int32Array', describe(indices))
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
  return runKernel(forwardName, [x], { form, shape: [indices.length, dim] })
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
  if (indices.length !== x.shape[0]) throw argumentError('wrong_length', 'indices', `${x.shape[0]} numbers, one for each row of x`, `${indices.length}`)
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
