/// <reference lib="esnext.disposable" preserve="true" />
// equitensor/jax: the derivatives of the operations of this package, in the form in which jax-js gives those of its functions.
import { Convolution } from './convolution'
import { ofConvolution, ofHarmonics, ofLinear, ofProduct, ofSquare, type Differentiable, type Directions } from './differentiable'
import { argumentError, describe } from './errors'
import type { Graph } from './graph'
import type { IrrepsLike } from './irreps'
import { Linear } from './linear'
import { TensorProduct } from './operation'
import type { SphericalHarmonicsOptions } from './spherical_harmonics'
import { TensorSquare } from './tensor_square'

/** What is used of the arrays of jax-js. Reading one consumes it, as every function of jax-js does. */
export interface JaxArray {
  readonly shape: number[]
  readonly dtype: string
  dataSync(): unknown
}
/** On an ArrayBuffer; TypeScript before 5.7 knows no type argument that would say so. */
type OwnFloat32Array = ReturnType<typeof Float32Array.of>
/** What is used of the module '@jax-js/jax'. */
export interface Jax<A extends JaxArray> {
  numpy: { array(values: OwnFloat32Array, options: { shape: number[] }): A }
}

/** What {@link jaxOperations} takes for a function. */
export type JaxFunction = TensorProduct<'float32'> | TensorSquare<'float32'> | Linear<'float32'> | Differentiable

/** Spherical harmonics as a function of vectors (n, 3). */
export function harmonics(irreps: IrrepsLike | number, options: Omit<SphericalHarmonicsOptions<'float32'>, 'out'> = {}): Differentiable {
  return ofHarmonics(irreps, options)
}

/** A convolution over the edges of a graph as a function of x, y and, where it has weights, weight. */
export function convolution(op: Convolution<'float32'>, graph: Graph): Differentiable {
  if (!(op instanceof Convolution)) throw argumentError('invalid_argument', 'op', 'a Convolution', describe(op))
  return ofConvolution(op, graph)
}

function functionOf(op: JaxFunction): Differentiable {
  if (op instanceof TensorProduct) return ofProduct(op)
  if (op instanceof TensorSquare) return ofSquare(op)
  if (op instanceof Linear) return ofLinear(op)
  if (typeof (op as Differentiable | undefined)?.doubleBackward === 'function') return op
  throw argumentError('invalid_argument', 'op', 'an operation of this package, harmonics(...) or convolution(...)', describe(op))
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
 * @param jax the module '@jax-js/jax', whichever of its two builds the caller has.
 */
export function jaxOperations<A extends JaxArray>(jax: Jax<A>) {
  if (typeof (jax as Partial<Jax<A>> | undefined)?.numpy?.array !== 'function') throw argumentError('invalid_argument', 'jax', "the module '@jax-js/jax'", describe(jax))
  const make = (values: Float32Array, shape: number[]) => jax.numpy.array(values as OwnFloat32Array, { shape })
  const readAll = (f: Differentiable, primals: readonly A[]) => {
    if (primals.length !== f.names.length) throw argumentError('wrong_length', 'primals', f.names.join(', '), `${primals.length} arrays`)
    return primals.map((array, i) => read(array, f.names[i]!, { width: f.widths[i]! }))
  }
  const shapesOf = (primals: readonly A[]) => primals.map((array) => array.shape)
  const readAlong = (f: Differentiable, arrays: readonly (A | undefined)[], shapes: number[][], argument: string): Directions =>
    f.names.map((name, i) => arrays[i] && read(arrays[i], `${argument}.${name}`, { shape: shapes[i]! }))
  const shapeOut = (f: Differentiable, values: Float32Array) => [values.length / f.widthOut, f.widthOut]

  return {
    /**
     * The result of an operation, and the function that takes its cotangent to those of the primals.
     * @param primals x, y and, where the operation has weights, weight; x of a square; x and weight of a layer; vectors.
     * @throws EquitensorError as the operation, and `wrong_kind` for a tracer.
     */
    vjp(op: JaxFunction, primals: readonly A[]): [out: A, pullback: (gradOut: A) => A[]] {
      const f = functionOf(op), shapes = shapesOf(primals), inputs = readAll(f, primals), out = f.forward(inputs), shape = shapeOut(f, out)
      const pullback = (gradOut: A) => f.backward(inputs, read(gradOut, 'gradOut', { shape })).map((values, i) => make(values, shapes[i]!))
      return [make(out, shape), pullback]
    },

    /**
     * The same one order higher: the gradients that `vjp`'s function gives for `gradOut`, and the function that takes their cotangents, a missing one
     * being zero, to those of the primals and of gradOut. A loss of forces needs it.
     */
    vjpOfVjp(op: JaxFunction, primals: readonly A[], gradOut: A): [gradients: A[], pullback: (cotangents: readonly (A | undefined)[]) => A[]] {
      const f = functionOf(op), shape = gradOut.shape, shapes = shapesOf(primals), inputs = readAll(f, primals)
      const z = read(gradOut, 'gradOut', { width: f.widthOut })
      const gradients = f.backward(inputs, z).map((values, i) => make(values, shapes[i]!))
      const pullback = (cotangents: readonly (A | undefined)[]) =>
        f.doubleBackward(inputs, z, readAlong(f, cotangents, shapes, 'cotangents')).map((values, i) => make(values, shapes[i] ?? shape))
      return [gradients, pullback]
    },

    /** The result of an operation and its derivative along tangents of the primals, a missing one being zero. */
    jvp(op: JaxFunction, primals: readonly A[], tangents: readonly (A | undefined)[]): [out: A, tangent: A] {
      const f = functionOf(op), shapes = shapesOf(primals), inputs = readAll(f, primals)
      const out = f.forward(inputs), along = f.jvp(inputs, readAlong(f, tangents, shapes, 'tangents'))
      return [make(out, shapeOut(f, out)), make(along, shapeOut(f, out))]
    },
  }
}
