// The operations as functions of arrays with their derivatives, in one form: what the adapters to other packages are written against.
import type { Convolution } from './convolution'
import type { Graph } from './graph'
import { Irreps, toIrreps, type IrrepsLike } from './irreps'
import type { Linear } from './linear'
import type { TensorProduct } from './operation'
import { sphericalHarmonics, type SphericalHarmonicsOptions } from './spherical_harmonics'
import type { TensorSquare } from './tensor_square'

export type Arrays = Float32Array[]
/** A missing one is zero. */
export type Directions = readonly (Float32Array | undefined)[]

/** Results go into the arrays of `out`, by default new ones. Each pass is one native call. */
export interface Differentiable {
  /** Of the inputs, as errors name them. */
  readonly names: readonly string[]
  /** Numbers in a row of each input, and of the result. */
  readonly widths: readonly number[]
  readonly widthOut: number
  forward(inputs: Arrays, out?: Float32Array): Float32Array
  /** A gradient for each input. */
  backward(inputs: Arrays, gradOut: Float32Array, out?: Arrays): Arrays
  /** Of {@link backward}, given cotangents of its results: a gradient for each input, and then that of gradOut. */
  doubleBackward(inputs: Arrays, gradOut: Float32Array, cotangents: Directions, out?: Arrays): Arrays
  jvp(inputs: Arrays, tangents: Directions): Float32Array
}

type Named = Record<string, Float32Array>
type Options<O> = { out?: O }

/** The passes of an operation, with arrays by their names. */
interface Passes {
  forward(inputs: Arrays, options: Options<Float32Array>): Float32Array
  backward(inputs: Arrays, gradOut: Float32Array, options: Options<Named>): object
  doubleBackward(inputs: Arrays, gradOut: Float32Array, cotangents: Named, options: Options<Named>): object
  jvp(inputs: Arrays, tangents: Named): Float32Array
}

function differentiable(names: string[], widths: number[], widthOut: number, passes: Passes): Differentiable {
  const second = [...names, 'gradOut']
  const named = (names: string[], arrays: Directions) => Object.fromEntries(names.flatMap((name, i) => (arrays[i] ? [[name, arrays[i]]] : []))) as Named
  const into = (names: string[], out: Arrays | undefined) => (out ? { out: named(names, out) } : {})
  const listed = (names: string[], results: object) => names.map((name) => (results as Named)[name]!)
  return {
    names,
    widths,
    widthOut,
    forward: (inputs, out) => passes.forward(inputs, out ? { out } : {}),
    backward: (inputs, gradOut, out) => listed(names, passes.backward(inputs, gradOut, into(names, out))),
    doubleBackward: (inputs, gradOut, along, out) => listed(second, passes.doubleBackward(inputs, gradOut, named(names, along), into(second, out))),
    jvp: (inputs, along) => passes.jvp(inputs, named(names, along)),
  }
}

/** Of x, y and, where the operation has weights, weight. */
export function ofProduct(op: TensorProduct<'float32'>): Differentiable {
  return differentiable(...shapeOf(op), {
    forward: ([x, y, w], options) => op.forward(x!, y!, w, options),
    backward: ([x, y, w], gradOut, options) => op.backward(x!, y!, w, gradOut, options),
    doubleBackward: ([x, y, w], gradOut, along, options) => op.doubleBackward(x!, y!, w, gradOut, along, options),
    jvp: ([x, y, w], along) => op.jvp(x!, y!, w, along),
  })
}

/** Of x, y and, where the operation has weights, weight. */
export function ofConvolution(op: Convolution<'float32'>, graph: Graph): Differentiable {
  return differentiable(...shapeOf(op), {
    forward: ([x, y, w], options) => op.forward(graph, x!, y!, w, options),
    backward: ([x, y, w], gradOut, options) => op.backward(graph, x!, y!, w, gradOut, options),
    doubleBackward: ([x, y, w], gradOut, along, options) => op.doubleBackward(graph, x!, y!, w, gradOut, along, options),
    jvp: ([x, y, w], along) => op.jvp(graph, x!, y!, w, along),
  })
}

function shapeOf(op: TensorProduct<'float32'> | Convolution<'float32'>): [names: string[], widths: number[], widthOut: number] {
  const names = ['x', 'y', 'weight'], widths = [op.irrepsIn1.dim, op.irrepsIn2.dim, op.weightNumel], count = op.weightNumel ? 3 : 2
  return [names.slice(0, count), widths.slice(0, count), op.irrepsOut.dim]
}

/** Of x. */
export function ofSquare(op: TensorSquare<'float32'>): Differentiable {
  return differentiable(['x'], [op.irrepsIn.dim], op.irrepsOut.dim, {
    forward: ([x], options) => op.forward(x!, undefined, options),
    backward: ([x], gradOut, options) => op.backward(x!, undefined, gradOut, options),
    doubleBackward: ([x], gradOut, along, options) => op.doubleBackward(x!, undefined, gradOut, along, options),
    jvp: ([x], along) => op.jvp(x!, undefined, along),
  })
}

/** Of x and weight. */
export function ofLinear(op: Linear<'float32'>): Differentiable {
  return differentiable(['x', 'weight'], [op.irrepsIn.dim, op.weightNumel], op.irrepsOut.dim, {
    forward: ([x, w], options) => op.forward(x!, w!, options),
    backward: ([x, w], gradOut, options) => op.backward(x!, w!, gradOut, options),
    doubleBackward: ([x, w], gradOut, along, options) => op.doubleBackward(x!, w!, gradOut, along, options),
    jvp: ([x, w], along) => op.jvp(x!, w!, along),
  })
}

/** Of vectors. */
export function ofHarmonics(irreps: IrrepsLike | number, options: Omit<SphericalHarmonicsOptions<'float32'>, 'out'>): Differentiable {
  const degrees = typeof irreps === 'number' ? Irreps.sphericalHarmonics(irreps) : toIrreps(irreps, 'irreps')
  const zeroLike = (array: Float32Array) => new Float32Array(array.length)
  return differentiable(['vectors'], [3], degrees.dim, {
    forward: ([v], { out }) => sphericalHarmonics(degrees, v!, { ...options, ...(out && { out }) }),
    backward: ([v], gradOut, { out }) => ({ vectors: sphericalHarmonics.backward(degrees, v!, gradOut, { ...options, ...(out && { out: out.vectors! }) }) }),
    doubleBackward: ([v], gradOut, { vectors }, { out }) =>
      sphericalHarmonics.doubleBackward(degrees, v!, gradOut, vectors ?? zeroLike(v!), { ...options, ...(out && { out }) }),
    jvp: ([v], { vectors }) => sphericalHarmonics.jvp(degrees, v!, vectors ?? zeroLike(v!), options),
  })
}
