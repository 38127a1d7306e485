// What every tensor product operation is to its user: checks, forward, backward.
import { allocate, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { cuda } from './cuda'
import { DeviceArray, nativeArray, requireDeviceArray } from './device_array'
import { argumentError, describe, EquitensorError } from './errors'
import type { Irreps } from './irreps'
import { native, type NativeAddon, type NativeArray, type NativeCudaCall, type NativeCudaOperation, type NativeOperation, type Pass } from './native'
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

export interface Gradients<D extends DType, A = ArrayOf<D>> {
  /** Shape of x. */
  x: A
  /** Shape of y. */
  y: A
}

/** Of one kind: arrays of the host, or of the device. */
export type OperandOf<D extends DType> = ArrayOf<D> | DeviceArray<D>

export interface ForwardOptions<A> {
  /** Receives the result and is returned; by default a new array. */
  out?: A
}
export interface BackwardOptions<A> {
  /** Which gradients to compute, by default both; the others are absent from the result. */
  needs?: { x?: boolean; y?: boolean }
  /** Arrays that receive the gradients. */
  out?: { x?: A; y?: A }
}
export interface AsyncOptions {
  /** Rejects the call with `aborted`; work that has begun goes on, and what it writes is undefined. */
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
}

/** Arrays of a call, checked. */
interface CheckedCall<D extends DType> {
  x: OperandOf<D>
  y: OperandOf<D>
  z?: OperandOf<D> | undefined
  xOut?: OperandOf<D> | undefined
  yOut?: OperandOf<D> | undefined
  zOut?: OperandOf<D> | undefined
  batch: number
  xShared: boolean
  yShared: boolean
}
const slots = ['x', 'y', 'z', 'xOut', 'yOut', 'zOut'] as const

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
  readonly cost: { readonly forward: PassCost; readonly backward: PassCost }

  #plan: Plan | undefined

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
    const flops = native.flops(form.plan.cpu)
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
   * @throws EquitensorError `wrong_kind`, `wrong_dtype`, `wrong_length`, `batch_mismatch`, `detached`, `overlap`, `weight_unwanted`, `disposed`;
   * nothing has been written then. With backend 'cuda' also `out_of_memory`, `cuda`, `device_disabled`.
   */
  forward(x: ArrayOf<D>, y: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>>): ArrayOf<D>
  forward(x: DeviceArray<D>, y: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>>): DeviceArray<D>
  forward(x: OperandOf<D>, y: OperandOf<D>, weight?: undefined, options: ForwardOptions<OperandOf<D>> = {}): OperandOf<D> {
    const plan = this.#live()
    requireKnownOptions(options, ['out'])
    const call = this.#forwardCall(x, y, weight, options)
    this.#run('forward', plan, call)
    return call.zOut
  }

  /**
   * {@link forward} beside this thread: resolves when the device has finished. Inputs must not change before that.
   * @throws EquitensorError as {@link forward}, and `not_supported` (backend 'cpu'), `aborted`, `capturing`.
   */
  forwardAsync(x: ArrayOf<D>, y: ArrayOf<D>, weight?: undefined, options?: ForwardOptions<ArrayOf<D>> & AsyncOptions): Promise<ArrayOf<D>>
  forwardAsync(x: DeviceArray<D>, y: DeviceArray<D>, weight?: undefined, options?: ForwardOptions<DeviceArray<D>> & AsyncOptions): Promise<DeviceArray<D>>
  async forwardAsync(x: OperandOf<D>, y: OperandOf<D>, weight?: undefined, options: ForwardOptions<OperandOf<D>> & AsyncOptions = {}): Promise<OperandOf<D>> {
    const plan = this.#live()
    requireKnownOptions(options, ['out', 'signal'])
    requireSignal(options.signal)
    const call = this.#forwardCall(x, y, weight, options)
    await this.#runAsync('forward', plan, call, options.signal)
    return call.zOut
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
    const plan = this.#live()
    requireKnownOptions(options, ['needs', 'out'])
    const call = this.#backwardCall(x, y, weight, gradOut, options)
    if (call.xOut || call.yOut) this.#run('backward', plan, call)
    return gradientsOf(call)
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
    const plan = this.#live()
    requireKnownOptions(options, ['needs', 'out', 'signal'])
    requireSignal(options.signal)
    const call = this.#backwardCall(x, y, weight, gradOut, options)
    if (call.xOut || call.yOut) await this.#runAsync('backward', plan, call, options.signal)
    return gradientsOf(call)
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
  ): Gradients<D> & { gradOut: ArrayOf<D> }
  doubleBackward(
    x: DeviceArray<D>,
    y: DeviceArray<D>,
    weight: undefined,
    gradOut: DeviceArray<D>,
    cotangents: { x?: DeviceArray<D>; y?: DeviceArray<D> },
  ): Gradients<D, DeviceArray<D>> & { gradOut: DeviceArray<D> }
  doubleBackward(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: undefined,
    gradOut: OperandOf<D>,
    cotangents: { x?: OperandOf<D>; y?: OperandOf<D> },
  ): Gradients<D, OperandOf<D>> & { gradOut: OperandOf<D> } {
    const { ax, ay } = this.#directions(x, y, weight, cotangents, 'cotangents')
    // The scalar is T(ax, y, gradOut) + T(x, ay, gradOut) for the trilinear form T of the operation.
    const gradient = (slot: 'x' | 'y', px: OperandOf<D>, py: OperandOf<D>) =>
      this.backward(px as ArrayOf<D>, py as ArrayOf<D>, undefined, gradOut as ArrayOf<D>, { needs: { [slot === 'x' ? 'y' : 'x']: false } })[slot]
    return {
      x: ay ? gradient('x', x, ay) : this.#zeros(x, x.length),
      y: ax ? gradient('y', ax, y) : this.#zeros(x, y.length),
      gradOut: this.#derivative(x, y, ax, ay),
    }
  }

  /**
   * Derivative of the result in the direction of tangents of x and y.
   * @param tangents `x` and `y`: shapes of x and y; a missing one is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp(x: ArrayOf<D>, y: ArrayOf<D>, weight: undefined, tangents: { x?: ArrayOf<D>; y?: ArrayOf<D> }): ArrayOf<D>
  jvp(x: DeviceArray<D>, y: DeviceArray<D>, weight: undefined, tangents: { x?: DeviceArray<D>; y?: DeviceArray<D> }): DeviceArray<D>
  jvp(x: OperandOf<D>, y: OperandOf<D>, weight: undefined, tangents: { x?: OperandOf<D>; y?: OperandOf<D> }): OperandOf<D> {
    const { ax, ay } = this.#directions(x, y, weight, tangents, 'tangents')
    return this.#derivative(x, y, ax, ay)
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
  countFlops(pass: 'forward' | 'backward'): number {
    const { cpu } = this.#live()
    const zeros = (dim: number) => allocate(this.dtype, dim)
    const [x, y, z] = [zeros(this.irrepsIn1.dim), zeros(this.irrepsIn2.dim), zeros(this.irrepsOut.dim)]
    const outputs = pass === 'forward' ? { zOut: z } : { z, xOut: zeros(x.length), yOut: zeros(y.length) }
    native.takeCount()
    native[pass](cpu, { x, y, ...outputs, batch: 1, xShared: false, yShared: false, threads: 1, variant: 'counted' })
    return native.takeCount()
  }

  #forwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, options: ForwardOptions<OperandOf<D>>): CheckedCall<D> & { zOut: OperandOf<D> } {
    const { batch, xShared, yShared } = this.#inputs(x, y, weight)
    const out = options.out
    if (out !== undefined) {
      this.#require(out, 'out', x)
      requireLength(out, 'out', batch * this.irrepsOut.dim, `(batch ${batch}, irrepsOut.dim ${this.irrepsOut.dim})`)
      requireSeparate({ out }, { x, y })
    }
    return { x, y, zOut: out ?? this.#allocate(x, batch * this.irrepsOut.dim), batch, xShared, yShared }
  }

  #backwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, gradOut: OperandOf<D>, options: BackwardOptions<OperandOf<D>>): CheckedCall<D> {
    const { batch, xShared, yShared } = this.#inputs(x, y, weight)
    this.#require(gradOut, 'gradOut', x)
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
      this.#require(array, `out.${slot}`, x)
      requireLength(array, `out.${slot}`, like.length, `as many as ${slot}`)
    }
    requireSeparate({ 'out.x': out.x, 'out.y': out.y }, { x, y, gradOut })
    const xOut = needs.x ? (out.x ?? this.#allocate(x, x.length)) : undefined
    const yOut = needs.y ? (out.y ?? this.#allocate(x, y.length)) : undefined
    return { x, y, z: gradOut, xOut, yOut, batch, xShared, yShared }
  }

  #directions(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, given: { x?: OperandOf<D>; y?: OperandOf<D> }, argument: string) {
    this.#live()
    this.#inputs(x, y, weight)
    requireKnownOptions(given, ['x', 'y'], argument)
    for (const [slot, like] of [['x', x], ['y', y]] as const) {
      const array = given[slot]
      if (array === undefined) continue
      this.#require(array, `${argument}.${slot}`, x)
      requireLength(array, `${argument}.${slot}`, like.length, `as many as ${slot}`)
    }
    return { ax: given.x, ay: given.y }
  }

  #derivative(x: OperandOf<D>, y: OperandOf<D>, ax: OperandOf<D> | undefined, ay: OperandOf<D> | undefined): OperandOf<D> {
    const product = (px: OperandOf<D>, py: OperandOf<D>): OperandOf<D> => this.forward(px as ArrayOf<D>, py as ArrayOf<D>)
    if (ax && ay) {
      const sum = product(ax, y), other = product(x, ay)
      if (sum instanceof DeviceArray || other instanceof DeviceArray) {
        const [a, b] = [nativeArray(sum as DeviceArray<D>), nativeArray(other as DeviceArray<D>)]
        cuda((addon) => addon.add(this.dtype === 'float64', a, b))
        ;(other as DeviceArray<D>).dispose()
      } else {
        for (let i = 0; i < sum.length; i++) sum[i]! += other[i]!
      }
      return sum
    }
    if (ax) return product(ax, y)
    if (ay) return product(x, ay)
    return this.#zeros(x, this.#inputs(x, y, undefined).batch * this.irrepsOut.dim)
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

  #zeros(like: OperandOf<D>, length: number): OperandOf<D> {
    const array = this.#allocate(like, length)
    if (array instanceof DeviceArray) cuda((addon) => addon.fillZero(nativeArray(array)))
    return array
  }

  /** An array of the kind that `like` is of. */
  #require(value: unknown, argument: string, like: unknown): void {
    if (this.backend === 'cuda' && like instanceof DeviceArray) requireDeviceArray(value, argument, this.dtype, this.device)
    else requireArray(value, argument, this.dtype)
  }

  #inputs(x: OperandOf<D>, y: OperandOf<D>, weight: unknown) {
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
    return { batch, xShared: xBatch !== batch, yShared: yBatch !== batch }
  }

  #run(pass: Pass, plan: Plan, call: CheckedCall<D>): void {
    if (plan.cuda) {
      const operation = plan.cuda
      if (call.x instanceof DeviceArray) cuda((addon) => addon.run(operation, pass, onDevice(call)))
      else cuda((addon) => addon.runHost(operation, pass, call as HostCall))
      return
    }
    try {
      native[pass](plan.cpu, { ...(call as HostCall), threads: this.threads })
    } catch (cause) {
      if ((cause as { code?: string }).code !== 'out_of_memory') throw cause
      throw new EquitensorError('out_of_memory', (cause as Error).message, { cause })
    }
  }

  async #runAsync(pass: Pass, plan: Plan, call: CheckedCall<D>, signal: AbortSignal | undefined): Promise<void> {
    const operation = plan.cuda
    if (!operation) throw new EquitensorError('not_supported', `${pass}Async: expected an operation of backend 'cuda', got one of 'cpu'`)
    if (signal?.aborted) throw aborted(signal)
    const done =
      call.x instanceof DeviceArray
        ? cuda((addon) => {
            addon.run(operation, pass, onDevice(call))
            return addon.finished(this.device)
          })
        : cuda((addon) => addon.runHostAsync(operation, pass, call as HostCall))
    if (!signal) return done
    let stop = () => {}
    const abort = new Promise<never>((_, reject) => {
      stop = () => reject(aborted(signal))
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

type HostCall = Omit<Parameters<typeof native.forward>[1], 'threads'>

function onDevice<D extends DType>(call: CheckedCall<D>) {
  const { batch, xShared, yShared } = call
  const arrays = Object.fromEntries(slots.map((slot) => [slot, call[slot] && nativeArray(call[slot] as DeviceArray<D>)]))
  return { ...arrays, batch, xShared, yShared } as NativeCudaCall<NativeArray>
}

function gradientsOf<D extends DType>(call: CheckedCall<D>): Gradients<D, OperandOf<D>> {
  const gradients: Partial<Gradients<D, OperandOf<D>>> = {}
  if (call.xOut) gradients.x = call.xOut
  if (call.yOut) gradients.y = call.yOut
  return gradients as Gradients<D, OperandOf<D>>
}

function requireSignal(signal: unknown): void {
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw argumentError('invalid_option', 'options.signal', 'an AbortSignal', describe(signal))
}

function aborted(signal: AbortSignal): EquitensorError {
  return new EquitensorError('aborted', 'the call was cancelled through its signal', { cause: signal.reason })
}
