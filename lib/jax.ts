// equitensor/jax: the derivatives of the operations of this package, in the form in which jax-js gives those of its functions.
import { Convolution } from './convolution'
import { argumentError, describe } from './errors'
import type { Graph } from './graph'
import { Irreps, toIrreps, type IrrepsLike } from './irreps'
import { Linear } from './linear'
import {
  TensorProduct, type BackwardArguments, type DoubleBackwardArguments, type ForwardArguments, type Gradients, type JvpArguments, type SecondGradients,
} from './operation'
import { sphericalHarmonics, type SphericalHarmonicsOptions } from './spherical_harmonics'
import { TensorSquare } from './tensor_square'

/** What is used of the arrays of jax-js. Reading one consumes it, as every function of jax-js does. */
export interface JaxArray {
  readonly shape: number[]
  readonly dtype: string
  dataSync(): unknown
}
/** What is used of the module '@jax-js/jax'. */
export interface Jax<A extends JaxArray> {
  numpy: { array(values: Float32Array<ArrayBuffer>, options: { shape: number[] }): A }
}

type Arrays = Float32Array[]
type Directions = (Float32Array | undefined)[]

/** A function of arrays and its derivatives, as `functions` below makes it of an operation. `widths`: of a row of each argument. */
export interface JaxFunction {
  readonly names: readonly string[]
  readonly widths: readonly number[]
  readonly widthOut: number
  forward(primals: Arrays): Float32Array
  backward(primals: Arrays, gradOut: Float32Array): Arrays
  /** Gradients of the primals, then of gradOut. */
  doubleBackward(primals: Arrays, gradOut: Float32Array, cotangents: Directions): Arrays
  jvp(primals: Arrays, tangents: Directions): Float32Array
}

/** What {@link jaxOperations} takes for a function: an operation of dtype float32, {@link harmonics} or {@link convolution}. */
export type Differentiable = TensorProduct<'float32'> | TensorSquare<'float32'> | Linear<'float32'> | JaxFunction

/** Spherical harmonics of vectors (n, 3), as a function for {@link jaxOperations}. */
export function harmonics(irreps: IrrepsLike | number, options: Omit<SphericalHarmonicsOptions<'float32'>, 'out'> = {}): JaxFunction {
  const degrees = typeof irreps === 'number' ? Irreps.sphericalHarmonics(irreps) : toIrreps(irreps, 'irreps')
  return {
    names: ['vectors'],
    widths: [3],
    widthOut: degrees.dim,
    forward: ([v]) => sphericalHarmonics(degrees, v!, options),
    backward: ([v], gradOut) => [sphericalHarmonics.backward(degrees, v!, gradOut, options)],
    doubleBackward: ([v], gradOut, [along]) => {
      const second = sphericalHarmonics.doubleBackward(degrees, v!, gradOut, along ?? new Float32Array(v!.length), options)
      return [second.vectors, second.gradOut]
    },
    jvp: ([v], [along]) => sphericalHarmonics.jvp(degrees, v!, along ?? new Float32Array(v!.length), options),
  }
}

/** A convolution over the edges of a graph, as a function of x, y and, where it has weights, weight for {@link jaxOperations}. */
export function convolution(op: Convolution<'float32'>, graph: Graph): JaxFunction {
  if (!(op instanceof Convolution)) throw argumentError('invalid_argument', 'op', 'a Convolution', describe(op))
  return productOf(op, {
    forward: (...call) => op.forward(graph, ...call),
    backward: (...call) => op.backward(graph, ...call),
    doubleBackward: (...call) => op.doubleBackward(graph, ...call),
    jvp: (...call) => op.jvp(graph, ...call),
  })
}

interface Passes {
  forward(...call: ForwardArguments<Float32Array>): Float32Array
  backward(...call: BackwardArguments<Float32Array>): Gradients<'float32'>
  doubleBackward(...call: DoubleBackwardArguments<Float32Array>): SecondGradients<'float32'>
  jvp(...call: JvpArguments<Float32Array>): Float32Array
}

function productOf({ irrepsIn1, irrepsIn2, irrepsOut, weightNumel }: Pick<TensorProduct<'float32'>, 'irrepsIn1' | 'irrepsIn2' | 'irrepsOut' | 'weightNumel'>, passes: Passes): JaxFunction {
  const names = weightNumel ? (['x', 'y', 'weight'] as const) : (['x', 'y'] as const)
  const named = ([x, y, weight]: Directions) => ({ x, y, ...(weightNumel ? { weight } : {}) })
  return {
    names,
    widths: [irrepsIn1.dim, irrepsIn2.dim, weightNumel].slice(0, names.length),
    widthOut: irrepsOut.dim,
    forward: ([x, y, w]) => passes.forward(x!, y!, w),
    backward: ([x, y, w], gradOut) => {
      const gradients = passes.backward(x!, y!, w, gradOut)
      return names.map((name) => gradients[name])
    },
    doubleBackward: ([x, y, w], gradOut, along) => {
      const gradients = passes.doubleBackward(x!, y!, w, gradOut, named(along))
      return [...names, 'gradOut' as const].map((name) => gradients[name])
    },
    jvp: ([x, y, w], along) => passes.jvp(x!, y!, w, named(along)),
  }
}

function functionOf(op: Differentiable): JaxFunction {
  if (op instanceof TensorProduct) return productOf(op, op)
  if (op instanceof TensorSquare) {
    const named = ([x]: Directions) => (x ? { x } : {})
    return {
      names: ['x'],
      widths: [op.irrepsIn.dim],
      widthOut: op.irrepsOut.dim,
      forward: ([x]) => op.forward(x!),
      backward: ([x], gradOut) => [op.backward(x!, undefined, gradOut).x],
      doubleBackward: ([x], gradOut, along) => {
        const gradients = op.doubleBackward(x!, undefined, gradOut, named(along))
        return [gradients.x, gradients.gradOut]
      },
      jvp: ([x], along) => op.jvp(x!, undefined, named(along)),
    }
  }
  if (op instanceof Linear) {
    return {
      names: ['x', 'weight'],
      widths: [op.irrepsIn.dim, op.weightNumel],
      widthOut: op.irrepsOut.dim,
      forward: ([x, w]) => op.forward(x!, w!),
      backward: ([x, w], gradOut) => {
        const gradients = op.backward(x!, w!, gradOut)
        return [gradients.x, gradients.weight]
      },
      doubleBackward: ([x, w], gradOut, [alongX, alongW]) => {
        const gradients = op.doubleBackward(x!, w!, gradOut, { x: alongX, weight: alongW })
        return [gradients.x, gradients.weight, gradients.gradOut]
      },
      jvp: ([x, w], [alongX, alongW]) => op.jvp(x!, w!, { x: alongX, weight: alongW }),
    }
  }
  if (typeof (op as JaxFunction | undefined)?.doubleBackward !== 'function') {
    throw argumentError('invalid_argument', 'op', 'an operation of this package, harmonics(...) or convolution(...)', describe(op))
  }
  return op
}

/** The numbers of an array, which it consumes. @throws EquitensorError `wrong_kind`, `wrong_dtype`, `wrong_length`. */
function read(array: JaxArray | undefined, argument: string, expected: { width: number } | { shape: number[] }): Float32Array {
  if (typeof array?.dataSync !== 'function') throw argumentError('wrong_kind', argument, 'an array of jax-js, and no tracer', describe(array))
  if (array.dtype !== 'float32') throw argumentError('wrong_dtype', argument, 'an array of dtype float32', `one of ${array.dtype}`)
  const fits = 'width' in expected ? array.shape.length <= 2 && array.shape.at(-1) === expected.width : `${array.shape}` === `${expected.shape}`
  const shape = 'width' in expected ? `batch, ${expected.width}` : expected.shape
  if (!fits) throw argumentError('wrong_length', argument, `an array of shape [${shape}]`, `one of [${array.shape}]`)
  return array.dataSync() as Float32Array
}

/**
 * Derivatives of operations on the arrays of jax-js, in the form of its own `vjp` and `jvp`. jax-js has no custom_vjp: an operation cannot be called
 * on the tracers of a function that `jax.grad` or `jax.jit` is applied to. A model is cut at the operations instead: `jax.vjp` of each part between,
 * `vjp` of each operation, and the functions that they return called in reverse. Arguments are consumed, as jax-js does; pass `.ref` to keep one.
 * @param jax the module '@jax-js/jax', whichever of its two builds the caller has. It needs Node 24.
 */
export function jaxOperations<A extends JaxArray>(jax: Jax<A>) {
  const make = (values: Float32Array, shape: number[]) => jax.numpy.array(values as Float32Array<ArrayBuffer>, { shape })
  const readAll = (f: JaxFunction, primals: readonly A[]) => {
    if (primals.length !== f.names.length) throw argumentError('wrong_length', 'primals', f.names.join(', '), `${primals.length} arrays`)
    return primals.map((array, i) => read(array, f.names[i]!, { width: f.widths[i]! }))
  }
  const shapesOf = (primals: readonly A[]) => primals.map((array) => array.shape)
  const readAlong = (f: JaxFunction, arrays: readonly (A | undefined)[], shapes: number[][], argument: string): Directions =>
    f.names.map((name, i) => arrays[i] && read(arrays[i], `${argument}.${name}`, { shape: shapes[i]! }))
  const shapeOut = (f: JaxFunction, values: Float32Array) => [values.length / f.widthOut, f.widthOut]

  return {
    /**
     * The result of an operation, and the function that takes its cotangent to those of the primals.
     * @param primals x, y and, where the operation has weights, weight; x of a square; x and weight of a layer; vectors.
     * @throws EquitensorError as the operation, and `wrong_kind` for a tracer.
     */
    vjp(op: Differentiable, primals: readonly A[]): [out: A, pullback: (gradOut: A) => A[]] {
      const f = functionOf(op), shapes = shapesOf(primals), inputs = readAll(f, primals), out = f.forward(inputs), shape = shapeOut(f, out)
      const pullback = (gradOut: A) => f.backward(inputs, read(gradOut, 'gradOut', { shape })).map((values, i) => make(values, shapes[i]!))
      return [make(out, shape), pullback]
    },

    /**
     * The same one order higher: the gradients that `vjp`'s function gives for `gradOut`, and the function that takes their cotangents, a missing one
     * being zero, to those of the primals and of gradOut. A loss of forces needs it.
     */
    vjpOfVjp(op: Differentiable, primals: readonly A[], gradOut: A): [gradients: A[], pullback: (cotangents: readonly (A | undefined)[]) => A[]] {
      const f = functionOf(op), shape = gradOut.shape, shapes = shapesOf(primals), inputs = readAll(f, primals)
      const z = read(gradOut, 'gradOut', { width: f.widthOut })
      const gradients = f.backward(inputs, z).map((values, i) => make(values, shapes[i]!))
      const pullback = (cotangents: readonly (A | undefined)[]) =>
        f.doubleBackward(inputs, z, readAlong(f, cotangents, shapes, 'cotangents')).map((values, i) => make(values, shapes[i] ?? shape))
      return [gradients, pullback]
    },

    /** The result of an operation and its derivative along tangents of the primals, a missing one being zero. */
    jvp(op: Differentiable, primals: readonly A[], tangents: readonly (A | undefined)[]): [out: A, tangent: A] {
      const f = functionOf(op), shapes = shapesOf(primals), inputs = readAll(f, primals)
      const out = f.forward(inputs), along = f.jvp(inputs, readAlong(f, tangents, shapes, 'tangents'))
      return [make(out, shapeOut(f, out)), make(along, shapeOut(f, out))]
    },
  }
}
