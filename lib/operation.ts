// What every tensor product operation is to its user: checks, forward, backward.
import { allocate, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { argumentError, describe, EquitensorError } from './errors'
import type { Irreps } from './irreps'
import { native, type NativeOperation, type Pass } from './native'
import { requireKnownOptions, type Backend, type Layout, type ResolvedOptions } from './options'

/** One path: blocks in1 and in2 of the inputs into block out of the output. */
export interface Path {
  readonly in1: number
  readonly in2: number
  readonly out: number
  /** Degrees of the three blocks. */
  readonly l: readonly [l1: number, l2: number, l3: number]
  /** Multiplies wigner3j(l1, l2, l3): out_k += coefficient * sum_ij wigner3j[i, j, k] x_i y_j. */
  readonly coefficient: number
}

/** Work an item: floating-point operations (a multiply-add counts two), and bytes that must move. */
export interface PassCost {
  readonly flops: number
  readonly bytes: number
}

export interface Gradients<D extends DType> {
  /** Shape of x. */
  x: ArrayOf<D>
  /** Shape of y. */
  y: ArrayOf<D>
}

/** What a subclass hands to the base class. */
export interface OperationForm {
  irrepsIn1: Irreps
  irrepsIn2: Irreps
  irrepsOut: Irreps
  paths: Path[]
  algorithm: string
  operation: NativeOperation
  expressivity: number
}

/**
 * A bilinear, equivariant operation on irreps. Arrays are row-major: x is (batch, irrepsIn1.dim), y is (batch, irrepsIn2.dim), the
 * result is (batch, irrepsOut.dim), in the operation's dtype and layout. An operand of batch 1 is shared by all items.
 */
export abstract class TensorProduct<D extends DType> {
  readonly irrepsIn1: Irreps
  readonly irrepsIn2: Irreps
  readonly irrepsOut: Irreps
  readonly paths: readonly Path[]
  readonly weightNumel: number = 0
  readonly backend: Backend
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** The algorithm in use. */
  readonly algorithm: string
  /** Dimension of the space of bilinear maps that the operation reaches with linear layers before and after it. */
  readonly expressivity: number
  /** Work and traffic an item, by pass. Operations are those that the CPU kernels execute. */
  readonly cost: { readonly forward: PassCost; readonly backward: PassCost }

  #operation: NativeOperation | undefined

  protected constructor(form: OperationForm, options: ResolvedOptions<D>) {
    this.irrepsIn1 = form.irrepsIn1
    this.irrepsIn2 = form.irrepsIn2
    this.irrepsOut = form.irrepsOut
    this.paths = Object.freeze(form.paths)
    this.backend = options.backend
    this.dtype = options.dtype
    this.layout = options.layout
    this.threads = options.threads
    this.algorithm = form.algorithm
    this.expressivity = form.expressivity
    this.#operation = form.operation
    const flops = native.flops(form.operation)
    const size = options.dtype === 'float32' ? 4 : 8
    const inputs = form.irrepsIn1.dim + form.irrepsIn2.dim
    this.cost = {
      forward: { flops: flops.forward, bytes: size * (inputs + form.irrepsOut.dim) },
      backward: { flops: flops.backward, bytes: size * (2 * inputs + form.irrepsOut.dim) },
    }
  }

  /** The triples of degrees with a nonzero coefficient, in order ("interactability" of Xie et al. 2025). */
  get interactability(): [l1: number, l2: number, l3: number][] {
    const unique = new Map(this.paths.map(({ l }) => [l.join(), [...l] as [number, number, number]]))
    return [...unique.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2])
  }

  /**
   * The product of x and y.
   * @param weight none: the operation has no weights.
   * @param options.out receives the result and is returned; by default a new array.
   * @throws EquitensorError `wrong_dtype`, `wrong_length`, `batch_mismatch`, `detached`, `overlap`, `weight_unwanted`, `disposed`; nothing has
   * been written then.
   */
  forward(x: ArrayOf<D>, y: ArrayOf<D>, weight?: undefined, options: { out?: ArrayOf<D> } = {}): ArrayOf<D> {
    const operation = this.#live()
    requireKnownOptions(options, ['out'])
    const { batch, xShared, yShared } = this.#inputs(x, y, weight)
    let out = options.out
    if (out !== undefined) {
      requireArray(out, 'out', this.dtype)
      requireLength(out, 'out', batch * this.irrepsOut.dim, `(batch ${batch}, irrepsOut.dim ${this.irrepsOut.dim})`)
      requireSeparate({ out }, { x, y })
    }
    out ??= this.#allocate(batch * this.irrepsOut.dim)
    this.#run('forward', operation, { x, y, zOut: out, batch, xShared, yShared })
    return out
  }

  /**
   * Gradients of a scalar with respect to x and y, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @param options.needs which gradients to compute, by default both; the others are absent from the result.
   * @param options.out arrays that receive the gradients.
   * @throws EquitensorError as {@link forward}.
   */
  backward(
    x: ArrayOf<D>,
    y: ArrayOf<D>,
    weight: undefined,
    gradOut: ArrayOf<D>,
    options: { needs?: { x?: boolean; y?: boolean }; out?: { x?: ArrayOf<D>; y?: ArrayOf<D> } } = {},
  ): Gradients<D> {
    const operation = this.#live()
    requireKnownOptions(options, ['needs', 'out'])
    const { batch, xShared, yShared } = this.#inputs(x, y, weight)
    requireArray(gradOut, 'gradOut', this.dtype)
    requireLength(gradOut, 'gradOut', batch * this.irrepsOut.dim, `(batch ${batch}, irrepsOut.dim ${this.irrepsOut.dim})`)
    const needs = { x: true, y: true, ...options.needs }
    const out = options.out ?? {}
    requireKnownOptions(needs, ['x', 'y'], 'needs')
    requireKnownOptions(out, ['x', 'y'], 'out')
    for (const slot of ['x', 'y'] as const) {
      if (typeof needs[slot] !== 'boolean') throw argumentError('invalid_option', `needs.${slot}`, 'a boolean', describe(needs[slot]))
      const array = out[slot]
      if (array === undefined) continue
      const like = slot === 'x' ? x : y
      if (!needs[slot]) throw argumentError('invalid_option', `out.${slot}`, `no array, since needs.${slot} is false`, 'an array')
      requireArray(array, `out.${slot}`, this.dtype)
      requireLength(array, `out.${slot}`, like.length, `as many as ${slot}`)
    }
    requireSeparate({ 'out.x': out.x, 'out.y': out.y }, { x, y, gradOut })
    const xOut = needs.x ? (out.x ?? this.#allocate(x.length)) : undefined
    const yOut = needs.y ? (out.y ?? this.#allocate(y.length)) : undefined
    if (xOut || yOut) this.#run('backward', operation, { x, y, z: gradOut, xOut, yOut, batch, xShared, yShared })
    const gradients: Partial<Gradients<D>> = {}
    if (xOut) gradients.x = xOut
    if (yOut) gradients.y = yOut
    return gradients as Gradients<D>
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @param cotangents `x` and `y`: shapes of x and y; a missing one is zero.
   * @returns gradients with respect to x, y and gradOut.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward(
    x: ArrayOf<D>,
    y: ArrayOf<D>,
    weight: undefined,
    gradOut: ArrayOf<D>,
    cotangents: { x?: ArrayOf<D>; y?: ArrayOf<D> },
  ): Gradients<D> & { gradOut: ArrayOf<D> } {
    const { ax, ay } = this.#directions(x, y, weight, cotangents, 'cotangents')
    // The scalar is T(ax, y, gradOut) + T(x, ay, gradOut) for the trilinear form T of the operation.
    return {
      x: ay ? this.backward(x, ay, undefined, gradOut, { needs: { y: false } }).x : this.#allocate(x.length),
      y: ax ? this.backward(ax, y, undefined, gradOut, { needs: { x: false } }).y : this.#allocate(y.length),
      gradOut: this.#derivative(x, y, ax, ay),
    }
  }

  /**
   * Derivative of the result in the direction of tangents of x and y.
   * @param tangents `x` and `y`: shapes of x and y; a missing one is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp(x: ArrayOf<D>, y: ArrayOf<D>, weight: undefined, tangents: { x?: ArrayOf<D>; y?: ArrayOf<D> }): ArrayOf<D> {
    const { ax, ay } = this.#directions(x, y, weight, tangents, 'tangents')
    return this.#derivative(x, y, ax, ay)
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    if (this.#operation) native.dispose(this.#operation)
    this.#operation = undefined
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal Operations of one item, counted while they are executed. */
  countFlops(pass: 'forward' | 'backward'): number {
    const operation = this.#live()
    const zeros = (dim: number) => allocate(this.dtype, dim)
    const [x, y, z] = [zeros(this.irrepsIn1.dim), zeros(this.irrepsIn2.dim), zeros(this.irrepsOut.dim)]
    const outputs = pass === 'forward' ? { zOut: z } : { z, xOut: zeros(x.length), yOut: zeros(y.length) }
    native.takeCount()
    native[pass](operation, { x, y, ...outputs, batch: 1, xShared: false, yShared: false, threads: 1, variant: 'counted' })
    return native.takeCount()
  }

  #directions(x: ArrayOf<D>, y: ArrayOf<D>, weight: unknown, given: { x?: ArrayOf<D>; y?: ArrayOf<D> }, argument: string) {
    this.#live()
    this.#inputs(x, y, weight)
    requireKnownOptions(given, ['x', 'y'], argument)
    for (const [slot, like] of [['x', x], ['y', y]] as const) {
      const array = given[slot]
      if (array === undefined) continue
      requireArray(array, `${argument}.${slot}`, this.dtype)
      requireLength(array, `${argument}.${slot}`, like.length, `as many as ${slot}`)
    }
    return { ax: given.x, ay: given.y }
  }

  #derivative(x: ArrayOf<D>, y: ArrayOf<D>, ax: ArrayOf<D> | undefined, ay: ArrayOf<D> | undefined): ArrayOf<D> {
    if (ax && ay) {
      const sum = this.forward(ax, y), other = this.forward(x, ay)
      for (let i = 0; i < sum.length; i++) sum[i]! += other[i]!
      return sum
    }
    if (ax) return this.forward(ax, y)
    if (ay) return this.forward(x, ay)
    return this.#allocate(this.#inputs(x, y, undefined).batch * this.irrepsOut.dim)
  }

  #live(): NativeOperation {
    if (!this.#operation) throw new EquitensorError('disposed', `${this.constructor.name}: expected a live operation, got one after dispose()`)
    return this.#operation
  }

  #allocate(length: number): ArrayOf<D> {
    try {
      return allocate(this.dtype, length)
    } catch (cause) {
      throw new EquitensorError('out_of_memory', `no memory for a result of ${length} numbers`, { cause })
    }
  }

  #inputs(x: ArrayOf<D>, y: ArrayOf<D>, weight: unknown) {
    if (weight !== undefined && weight !== null && (weight as ArrayLike<number>).length !== 0) {
      throw argumentError('weight_unwanted', 'weight', 'undefined, since the operation has no weights', describe(weight))
    }
    requireArray(x, 'x', this.dtype)
    requireArray(y, 'y', this.dtype)
    const xBatch = rowCount(x, 'x', this.irrepsIn1.dim, `(batch, irrepsIn1.dim ${this.irrepsIn1.dim})`)
    const yBatch = rowCount(y, 'y', this.irrepsIn2.dim, `(batch, irrepsIn2.dim ${this.irrepsIn2.dim})`)
    if (xBatch !== yBatch && xBatch !== 1 && yBatch !== 1) {
      throw argumentError('batch_mismatch', 'y', `a batch of ${xBatch} as x has, or of 1`, `a batch of ${yBatch}`)
    }
    const batch = xBatch === 1 ? yBatch : xBatch
    return { batch, xShared: xBatch !== batch, yShared: yBatch !== batch }
  }

  #run(pass: Pass, operation: NativeOperation, call: Omit<Parameters<typeof native.forward>[1], 'threads'>): void {
    try {
      native[pass](operation, { ...call, threads: this.threads })
    } catch (cause) {
      if ((cause as { code?: string }).code !== 'out_of_memory') throw cause
      throw new EquitensorError('out_of_memory', (cause as Error).message, { cause })
    }
  }
}
