// What every tensor product operation is to its user: checks, forward, backward.
import { allocate, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { cuda } from './cuda'
import { DeviceArray, nativeArray, requireDeviceArray } from './device_array'
import { argumentError, describe, EquitensorError } from './errors'
import type { Irreps } from './irreps'
import { native, type NativeAddon, type NativeArray, type NativeArrays, type NativeCudaOperation, type NativeOperation, type Pass } from './native'
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

/** Absent where `needs` said so. */
export interface Gradients<D extends DType, A = ArrayOf<D>> {
  /** Shape of x. */
  x: A
  /** Shape of y. */
  y: A
}
export interface SecondGradients<D extends DType, A = ArrayOf<D>> extends Gradients<D, A> {
  /** Shape of the result. */
  gradOut: A
}

/** Of one kind: arrays of the host, or of the device. */
export type OperandOf<D extends DType> = ArrayOf<D> | DeviceArray<D>

/** Cotangents of the gradients, or tangents of the operands, in the shapes of x and y. A missing one is zero. */
export interface Directions<A> {
  x?: A | undefined
  y?: A | undefined
}
export interface ForwardOptions<A> {
  /** Receives the result and is returned; by default a new array. */
  out?: A
}
export interface BackwardOptions<A> {
  /** Which gradients to compute, by default all; the others are absent from the result. */
  needs?: { x?: boolean; y?: boolean }
  /** Arrays that receive the gradients. */
  out?: { x?: A; y?: A }
  /** Add to what the arrays of `out` hold. Default false. */
  accumulate?: boolean
}
export interface DoubleBackwardOptions<A> {
  needs?: { x?: boolean; y?: boolean; gradOut?: boolean }
  out?: { x?: A; y?: A; gradOut?: A }
  accumulate?: boolean
}
export interface AsyncOptions {
  /** Rejects the call with `aborted`. Then results on the host are not written; on the device, work that has begun goes on. */
  signal?: AbortSignal
}

/** A plan in the memory of the host, and one on the device where that is the backend. */
export interface Plan {
  cpu: NativeOperation
  cuda: NativeCudaOperation | undefined
}

/** Makes the plan of `form` by the function of that name, for the backend of `options`. The host's always: it knows the work of an item. */
export function createPlan<K extends 'createClebschGordan' | 'createGaunt' | 'createMatrix' | 'createMatrixBlock'>(
  create: K,
  form: Parameters<NativeAddon[K]>[0],
  options: ResolvedOptions<DType>,
  cpu: NativeOperation = native[create](form as never),
): Plan {
  const plan: Plan = { cpu, cuda: undefined }
  if (options.backend === 'cuda') plan.cuda = cuda((addon) => addon[create](options.device, form as never))
  return plan
}

/** What a subclass hands to the base class. */
export interface OperationForm {
  irrepsIn1: Irreps
  irrepsIn2: Irreps
  irrepsOut: Irreps
  paths: Path[]
  algorithm: string
  plan: Plan
  expressivity: number
  /** The second input is the first one: calls have x only. Default false. */
  square?: boolean
}

/** Arrays of a call, checked. Results that nothing contributes to are in `zero`, and not in the call. */
interface CheckedCall<D extends DType> {
  arrays: NativeArrays<OperandOf<D>>
  zero: OperandOf<D>[]
}
const names = ['x', 'y', 'z', 'ax', 'ay', 'xOut', 'yOut', 'zOut'] as const

/**
 * A bilinear, equivariant operation on irreps. Arrays are row-major: x is (batch, irrepsIn1.dim), y is (batch, irrepsIn2.dim), the
 * result is (batch, irrepsOut.dim), in the operation's dtype and layout. An operand of batch 1 is shared by all items.
 *
 * With backend 'cuda' all arrays of a call are on the host or all on the device, where the result then is too. Calls on the host's arrays wait for
 * the result. Calls on device arrays return at once (see {@link DeviceArray}), and an error of theirs may be reported by a later call.
 */
export abstract class TensorProduct<D extends DType> {
  readonly irrepsIn1: Irreps
  readonly irrepsIn2: Irreps
  readonly irrepsOut: Irreps
  readonly paths: readonly Path[]
  readonly weightNumel: number = 0
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** The algorithm in use. */
  readonly algorithm: string
  /** Dimension of the space of bilinear maps that the operation reaches with linear layers before and after it. */
  readonly expressivity: number
  /** Work and traffic an item, by pass. Operations are those that the CPU kernels execute. */
  readonly cost: Readonly<Record<Pass, PassCost>>

  #plan: Plan | undefined
  readonly #isSquare: boolean

  protected constructor(form: OperationForm, options: ResolvedOptions<D>) {
    this.irrepsIn1 = form.irrepsIn1
    this.irrepsIn2 = form.irrepsIn2
    this.irrepsOut = form.irrepsOut
    this.paths = Object.freeze(form.paths)
    this.backend = options.backend
    this.device = options.device
    this.dtype = options.dtype
    this.layout = options.layout
    this.threads = options.threads
    this.algorithm = form.algorithm
    this.expressivity = form.expressivity
    this.#plan = form.plan
    this.#isSquare = form.square ?? false
    const flops = native.flops(form.plan.cpu)
    const size = options.dtype === 'float32' ? 4 : 8
    const inputs = form.irrepsIn1.dim + form.irrepsIn2.dim
    this.cost = {
      forward: { flops: flops.forward, bytes: size * (inputs + form.irrepsOut.dim) },
      backward: { flops: flops.backward, bytes: size * (2 * inputs + form.irrepsOut.dim) },
      doubleBackward: { flops: flops.doubleBackward, bytes: size * (3 * inputs + 2 * form.irrepsOut.dim) },
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
   * @throws EquitensorError `wrong_kind`, `wrong_dtype`, `wrong_length`, `batch_mismatch`, `detached`, `overlap`, `weight_unwanted`, `disposed`;
   * nothing has been written then. With backend 'cuda' also `out_of_memory`, `cuda`, `device_disabled`.
   */
  forward(x: ArrayOf<D>, y: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D>
  forward(x: DeviceArray<D>, y: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>>): DeviceArray<D>
  forward(x: OperandOf<D>, y: OperandOf<D>, weight?: undefined, options: ForwardOptions<OperandOf<D>> = {}): OperandOf<D> {
    requireKnownOptions(options, ['out'])
    const { call, result } = this.#forwardCall(x, y, weight, options)
    this.#run(call)
    return result
  }

  /**
   * {@link forward} beside this thread. Inputs must not change before the promise resolves. On the CPU what the call reads is copied first,
   * but for arrays on a SharedArrayBuffer.
   * @throws EquitensorError as {@link forward}, and `aborted`, `capturing`.
   */
  forwardAsync(x: ArrayOf<D>, y: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>>
  forwardAsync(x: DeviceArray<D>, y: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>> & AsyncOptions): Promise<DeviceArray<D>>
  async forwardAsync(x: OperandOf<D>, y: OperandOf<D>, weight?: undefined, options: ForwardOptions<OperandOf<D>> & AsyncOptions = {}): Promise<OperandOf<D>> {
    requireKnownOptions(options, ['out', 'signal'])
    const { call, result } = this.#forwardCall(x, y, weight, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /**
   * Gradients of a scalar with respect to x and y, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward(x: ArrayOf<D>, y: ArrayOf<D>, weight: undefined, gradOut: ArrayOf<D>, options?: BackwardOptions<ArrayOf<D>>): Gradients<D>
  backward(x: DeviceArray<D>, y: DeviceArray<D>, weight: undefined, gradOut: DeviceArray<D>, options?: BackwardOptions<DeviceArray<D>>): Gradients<D, DeviceArray<D>>
  backward(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    options: BackwardOptions<OperandOf<D>> = {},
  ): Gradients<D, OperandOf<D>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate'])
    const { call, result } = this.#backwardCall(x, y, weight, gradOut, options)
    this.#run(call)
    return result
  }

  /** {@link backward} beside this thread, as {@link forwardAsync}. */
  backwardAsync(x: ArrayOf<D>, y: ArrayOf<D>, weight: undefined, gradOut: ArrayOf<D>, options?: BackwardOptions<ArrayOf<D>> & AsyncOptions): Promise<Gradients<D>>
  backwardAsync(
    x: DeviceArray<D>,
    y: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    options?: BackwardOptions<DeviceArray<D>> & AsyncOptions,
  ): Promise<Gradients<D, DeviceArray<D>>>
  async backwardAsync(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    options: BackwardOptions<OperandOf<D>> & AsyncOptions = {},
  ): Promise<Gradients<D, OperandOf<D>>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate', 'signal'])
    const { call, result } = this.#backwardCall(x, y, weight, gradOut, options)
    await this.#runAsync(call, options.signal)
    return result
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
    cotangents: Directions<ArrayOf<D>>,
    options?: DoubleBackwardOptions<ArrayOf<D>>,
  ): SecondGradients<D>
  doubleBackward(
    x: DeviceArray<D>,
    y: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    cotangents: Directions<DeviceArray<D>>,
    options?: DoubleBackwardOptions<DeviceArray<D>>,
  ): SecondGradients<D, DeviceArray<D>>
  doubleBackward(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    cotangents: Directions<OperandOf<D>>,
    options: DoubleBackwardOptions<OperandOf<D>> = {},
  ): SecondGradients<D, OperandOf<D>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate'])
    const { call, result } = this.#doubleBackwardCall(x, y, weight, gradOut, cotangents, options)
    this.#run(call)
    return result
  }

  /** {@link doubleBackward} beside this thread, as {@link forwardAsync}. */
  doubleBackwardAsync(
    x: ArrayOf<D>,
    y: ArrayOf<D>,
    weight: undefined,
    gradOut: ArrayOf<D>,
    cotangents: Directions<ArrayOf<D>>,
    options?: DoubleBackwardOptions<ArrayOf<D>> & AsyncOptions,
  ): Promise<SecondGradients<D>>
  doubleBackwardAsync(
    x: DeviceArray<D>,
    y: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    cotangents: Directions<DeviceArray<D>>,
    options?: DoubleBackwardOptions<DeviceArray<D>> & AsyncOptions,
  ): Promise<SecondGradients<D, DeviceArray<D>>>
  async doubleBackwardAsync(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    cotangents: Directions<OperandOf<D>>,
    options: DoubleBackwardOptions<OperandOf<D>> & AsyncOptions = {},
  ): Promise<SecondGradients<D, OperandOf<D>>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate', 'signal'])
    const { call, result } = this.#doubleBackwardCall(x, y, weight, gradOut, cotangents, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /**
   * Derivative of the result in the direction of tangents of x and y.
   * @param tangents `x` and `y`: shapes of x and y; a missing one is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp(x: ArrayOf<D>, y: ArrayOf<D>, weight: undefined, tangents: Directions<ArrayOf<D>>, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D>
  jvp(x: DeviceArray<D>, y: DeviceArray<D>, weight: undefined, tangents: Directions<DeviceArray<D>>, options?: ForwardOptions<DeviceArray<D>>): DeviceArray<D>
  jvp(x: OperandOf<D>, y: OperandOf<D>, weight: undefined, tangents: Directions<OperandOf<D>>, options: ForwardOptions<OperandOf<D>> = {}): OperandOf<D> {
    requireKnownOptions(options, ['out'])
    const { call, result } = this.#jvpCall(x, y, weight, tangents, options)
    this.#run(call)
    return result
  }

  /** {@link jvp} beside this thread, as {@link forwardAsync}. */
  jvpAsync(
    x: ArrayOf<D>,
    y: ArrayOf<D>,
    weight: undefined,
    tangents: Directions<ArrayOf<D>>,
    options?: ForwardOptions<ArrayOf<D>> & AsyncOptions,
  ): Promise<ArrayOf<D>>
  jvpAsync(
    x: DeviceArray<D>,
    y: DeviceArray<D>,
    weight: undefined,
    tangents: Directions<DeviceArray<D>>,
    options?: ForwardOptions<DeviceArray<D>> & AsyncOptions,
  ): Promise<DeviceArray<D>>
  async jvpAsync(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    tangents: Directions<OperandOf<D>>,
    options: ForwardOptions<OperandOf<D>> & AsyncOptions = {},
  ): Promise<OperandOf<D>> {
    requireKnownOptions(options, ['out', 'signal'])
    const { call, result } = this.#jvpCall(x, y, weight, tangents, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    const plan = this.#plan
    this.#plan = undefined
    if (!plan) return
    native.dispose(plan.cpu)
    if (plan.cuda) cuda((addon) => addon.disposeOperation(plan.cuda!))
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal Operations of one item, counted while they are executed. */
  countFlops(pass: Pass): number {
    const { cpu } = this.#live()
    const [x, y, z, ax, ay, xOut, yOut, zOut] = names.map((name) => allocate(this.dtype, this.#dim(slotOf[name])))
    const arrays = { forward: { zOut }, backward: { z, xOut, yOut }, doubleBackward: { z, ax, ay, xOut, yOut, zOut } }[pass]
    native.takeCount()
    native.contract(cpu, { x: x!, y: y!, ...arrays, batch: 1, threads: 1, variant: 'counted' })
    return native.takeCount()
  }

  #dim(slot: Slot): number {
    return { x: this.irrepsIn1, y: this.irrepsIn2, z: this.irrepsOut }[slot].dim
  }

  #forwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, options: ForwardOptions<OperandOf<D>>) {
    this.#live()
    const inputs = this.#inputs(x, y, weight)
    const result = this.#result(inputs, options.out)
    return { call: { arrays: { ...inputs, zOut: result }, zero: [] } as CheckedCall<D>, result }
  }

  #backwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, gradOut: OperandOf<D>, options: BackwardOptions<OperandOf<D>>) {
    this.#live()
    const inputs = { ...this.#inputs(x, y, weight), z: this.#gradOut(x, y, gradOut) }
    const result = this.#gradients(inputs, ['x', 'y'], options)
    return { call: this.#reached(inputs, result, { x: true, y: true, z: true }, options.accumulate), result }
  }

  #doubleBackwardCall(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: unknown,
    gradOut: OperandOf<D>,
    cotangents: Directions<OperandOf<D>>,
    options: DoubleBackwardOptions<OperandOf<D>>,
  ) {
    this.#live()
    const inputs = { ...this.#inputs(x, y, weight), z: this.#gradOut(x, y, gradOut), ...this.#directions(x, y, cotangents, 'cotangents') }
    const result = this.#gradients(inputs, ['x', 'y', 'gradOut'], options) as SecondGradients<D, OperandOf<D>>
    const { ax, ay } = inputs
    return { call: this.#reached(inputs, result, { x: this.#isSquare ? ax : ay, y: ax, z: ax ?? ay }, options.accumulate), result }
  }

  #jvpCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, tangents: Directions<OperandOf<D>>, options: ForwardOptions<OperandOf<D>>) {
    this.#live()
    const inputs = { ...this.#inputs(x, y, weight), ...this.#directions(x, y, tangents, 'tangents') }
    const result = this.#result(inputs, options.out)
    return { call: this.#reached(inputs, { gradOut: result }, { z: inputs.ax ?? inputs.ay }, false), result }
  }

  /** The array of a call's only result, in the shape of z. */
  #result(inputs: NativeArrays<OperandOf<D>>, out: OperandOf<D> | undefined): OperandOf<D> {
    const { x, y, ax, ay, batch } = inputs
    const length = batch * this.irrepsOut.dim
    if (out === undefined) return this.#allocate(x, length)
    this.#require(out, 'out', x)
    requireLength(out, 'out', length, `(batch ${batch}, irrepsOut.dim ${this.irrepsOut.dim})`)
    requireSeparate({ out }, { x, y, ax, ay })
    return out
  }

  #gradOut(x: OperandOf<D>, y: OperandOf<D>, gradOut: OperandOf<D>): OperandOf<D> {
    const { batch } = this.#inputs(x, y, undefined)
    this.#require(gradOut, 'gradOut', x)
    requireLength(gradOut, 'gradOut', batch * this.irrepsOut.dim, `(batch ${batch}, irrepsOut.dim ${this.irrepsOut.dim})`)
    return gradOut
  }

  /** The arrays of the gradients that are needed. */
  #gradients(
    inputs: NativeArrays<OperandOf<D>>,
    slots: readonly (keyof SecondGradients<D>)[],
    options: DoubleBackwardOptions<OperandOf<D>>,
  ): Gradients<D, OperandOf<D>> {
    const { x, y, z: gradOut, ax, ay } = inputs
    const needs = { ...Object.fromEntries(slots.map((slot) => [slot, true])), ...options.needs }
    const out = options.out ?? {}
    requireKnownOptions(needs, slots, 'needs')
    requireKnownOptions(out, slots, 'out')
    const accumulate = options.accumulate ?? false
    if (typeof accumulate !== 'boolean') throw argumentError('invalid_option', 'options.accumulate', 'a boolean', describe(accumulate))
    const like = { x, y: y!, gradOut: gradOut! }
    for (const slot of slots) {
      if (typeof needs[slot] !== 'boolean') throw argumentError('invalid_option', `needs.${slot}`, 'a boolean', describe(needs[slot]))
      const array = out[slot]
      if (array === undefined) {
        if (accumulate && needs[slot]) throw argumentError('invalid_option', `out.${slot}`, 'an array to accumulate in', 'none')
        continue
      }
      if (!needs[slot]) throw argumentError('invalid_option', `out.${slot}`, `no array, since needs.${slot} is false`, 'an array')
      this.#require(array, `out.${slot}`, x)
      requireLength(array, `out.${slot}`, like[slot]!.length, `as many as ${slot}`)
    }
    requireSeparate({ 'out.x': out.x, 'out.y': out.y, 'out.gradOut': out.gradOut }, { x, y, gradOut, ax, ay })
    const wanted = slots.filter((slot) => needs[slot])
    return Object.fromEntries(wanted.map((slot) => [slot, out[slot] ?? this.#allocate(x, like[slot]!.length)])) as unknown as Gradients<D, OperandOf<D>>
  }

  /** The call that computes `results`, of which those whose slot is not in `terms` are zero. */
  #reached(
    inputs: NativeArrays<OperandOf<D>>,
    results: Partial<SecondGradients<D, OperandOf<D>>>,
    terms: Partial<Record<Slot, unknown>>,
    accumulate = false,
  ): CheckedCall<D> {
    const given = { x: results.x, y: results.y, z: results.gradOut }
    const zero = (['x', 'y', 'z'] as const).filter((slot) => !terms[slot] && !accumulate).flatMap((slot) => given[slot] ?? [])
    const of = (slot: Slot) => (terms[slot] ? given[slot] : undefined)
    return { arrays: { ...inputs, xOut: of('x'), yOut: of('y'), zOut: of('z'), accumulate }, zero }
  }

  #directions(x: OperandOf<D>, y: OperandOf<D>, given: Directions<OperandOf<D>>, argument: string) {
    requireKnownOptions(given, ['x', 'y'], argument)
    for (const [slot, like] of [['x', x], ['y', y]] as const) {
      const array = given[slot]
      if (array === undefined) continue
      this.#require(array, `${argument}.${slot}`, x)
      requireLength(array, `${argument}.${slot}`, like.length, `as many as ${slot}`)
    }
    return { ax: given.x, ay: given.y }
  }

  #live(): Plan {
    if (!this.#plan) throw new EquitensorError('disposed', `${this.constructor.name}: expected a live operation, got one after dispose()`)
    return this.#plan
  }

  /** Of the kind that `like` is of; on the device with no particular values. */
  #allocate(like: OperandOf<D>, length: number): OperandOf<D> {
    if (like instanceof DeviceArray) return DeviceArray.alloc(this.dtype, length, { device: this.device })
    try {
      return allocate(this.dtype, length)
    } catch (cause) {
      throw new EquitensorError('out_of_memory', `no memory for a result of ${length} numbers`, { cause })
    }
  }

  /** An array of the kind that `like` is of. */
  #require(value: unknown, argument: string, like: unknown): void {
    if (this.backend === 'cuda' && like instanceof DeviceArray) requireDeviceArray(value, argument, this.dtype, this.device)
    else requireArray(value, argument, this.dtype)
  }

  #inputs(x: OperandOf<D>, y: OperandOf<D>, weight: unknown): NativeArrays<OperandOf<D>> {
    if (weight !== undefined && weight !== null && (weight as ArrayLike<number>).length !== 0) {
      throw argumentError('weight_unwanted', 'weight', 'undefined, since the operation has no weights', describe(weight))
    }
    this.#require(x, 'x', x)
    this.#require(y, 'y', x)
    const xBatch = rowCount(x, 'x', this.irrepsIn1.dim, `(batch, irrepsIn1.dim ${this.irrepsIn1.dim})`)
    const yBatch = rowCount(y, 'y', this.irrepsIn2.dim, `(batch, irrepsIn2.dim ${this.irrepsIn2.dim})`)
    if (xBatch !== yBatch && xBatch !== 1 && yBatch !== 1) {
      throw argumentError('batch_mismatch', 'y', `a batch of ${xBatch} as x has, or of 1`, `a batch of ${yBatch}`)
    }
    const batch = xBatch === 1 ? yBatch : xBatch
    return { x, y: this.#isSquare ? undefined : y, batch, xShared: xBatch !== batch, yShared: yBatch !== batch }
  }

  #run({ arrays, zero }: CheckedCall<D>): void {
    for (const array of zero) fillZero(array)
    if (!arrays.xOut && !arrays.yOut && !arrays.zOut) return
    const { cpu, cuda: operation } = this.#live()
    if (operation) {
      if (arrays.x instanceof DeviceArray) cuda((addon) => addon.run(operation, onDevice(arrays)))
      else cuda((addon) => addon.runHost(operation, arrays as NativeArrays<ArrayOf<D>>))
      return
    }
    try {
      native.contract(cpu, { ...(arrays as NativeArrays<ArrayOf<D>>), threads: this.threads })
    } catch (cause) {
      throw translated(cause)
    }
  }

  async #runAsync({ arrays, zero }: CheckedCall<D>, signal: AbortSignal | undefined): Promise<void> {
    const plan = this.#live()
    if (signal !== undefined && !(signal instanceof AbortSignal)) throw argumentError('invalid_option', 'options.signal', 'an AbortSignal', describe(signal))
    if (signal?.aborted) throw aborted(signal)
    if (arrays.xOut || arrays.yOut || arrays.zOut) await this.#start(plan, arrays, signal)
    for (const array of zero) fillZero(array)
  }

  async #start({ cpu, cuda: operation }: Plan, arrays: NativeArrays<OperandOf<D>>, signal: AbortSignal | undefined): Promise<void> {
    const cancel = signal && new Int32Array(new SharedArrayBuffer(4))
    const call = { ...(arrays as NativeArrays<ArrayOf<D>>), cancel }
    const done = !operation
      ? native.contractAsync(cpu, { ...call, threads: this.threads }).catch((cause) => Promise.reject(translated(cause)))
      : arrays.x instanceof DeviceArray
        ? cuda((addon) => {
            addon.run(operation, onDevice(arrays))
            return addon.finished(this.device)
          })
        : cuda((addon) => addon.runHostAsync(operation, call))
    if (!signal) return done
    let stop = () => {}
    const abort = new Promise<never>((_, reject) => {
      stop = () => {
        Atomics.store(cancel!, 0, 1)
        reject(aborted(signal))
      }
      signal.addEventListener('abort', stop, { once: true })
    })
    try {
      await Promise.race([done, abort])
    } finally {
      signal.removeEventListener('abort', stop)
      done.catch(() => {}) // of interest to nobody after an abort
    }
  }
}

type Slot = 'x' | 'y' | 'z'
const slotOf = { x: 'x', y: 'y', z: 'z', ax: 'x', ay: 'y', xOut: 'x', yOut: 'y', zOut: 'z' } as const

function onDevice<D extends DType>(arrays: NativeArrays<OperandOf<D>>): NativeArrays<NativeArray> {
  const natives = names.map((name) => [name, arrays[name] && nativeArray(arrays[name] as DeviceArray<D>)] as const)
  return { ...arrays, ...Object.fromEntries(natives) } as unknown as NativeArrays<NativeArray>
}

function fillZero(array: ArrayLike<number> | DeviceArray): void {
  if (array instanceof DeviceArray) cuda((addon) => addon.fillZero(nativeArray(array)))
  else (array as Float32Array | Float64Array).fill(0)
}

/** Of the CPU's kernels. */
function translated(cause: unknown): unknown {
  if ((cause as { code?: string }).code !== 'out_of_memory') return cause
  return new EquitensorError('out_of_memory', (cause as Error).message, { cause })
}

function aborted(signal: AbortSignal): EquitensorError {
  return new EquitensorError('aborted', 'the call was cancelled through its signal', { cause: signal.reason })
}
