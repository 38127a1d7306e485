// What every tensor product operation is to its user: checks, forward, backward.
import { allocate, lengthOf, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { names, runCall, runCallAsync, slotOf, slots, type AsyncOptions, type CheckedCall, type OperandOf, type Runner, type Slot } from './call'
import { itemsForCpu } from './cost_model'
import { capturing, cuda } from './cuda'
import { DeviceArray, isDeviceArray, requireDeviceArray } from './device_array'
import { argumentError, describe, disposed, type EquitensorError } from './errors'
import type { Graph } from './graph'
import type { Irreps } from './irreps'
import { native, type CudaProduct, type NativeAddon, type NativeArrays, type NativeCudaOperation, type NativeOperation, type NativeSpecies, type Pass } from './native'
import { requireKnownOptions, type Backend, type Layout, type ResolvedOptions } from './options'

/** One path: blocks in1 and in2 of the inputs into block out of the output. */
export interface Path {
  readonly in1: number
  readonly in2: number
  readonly out: number
  /** Degrees of the three blocks. */
  readonly l: readonly [l1: number, l2: number, l3: number]
  /** Multiplies wigner3j(l1, l2, l3), and the weights where the path has some: out_k += coefficient * sum_ij wigner3j[i, j, k] x_i y_j. */
  readonly coefficient: number
}

/** Work an item: floating-point operations (a multiply-add counts two), and bytes that must move. */
export interface PassCost {
  readonly flops: number
  readonly bytes: number
}

/** Absent where `needs` said so; the type has all of them, since it does not know that. */
export interface Gradients<D extends DType, A = ArrayOf<D>> {
  /** Shape of x. */
  x: A
  /** Shape of y. */
  y: A
  /** Shape of weight: shared weights get the sum over the items. Absent too if the operation has no weights, which the type does not know either. */
  weight: A
}
export interface SecondGradients<D extends DType, A = ArrayOf<D>> extends Gradients<D, A> {
  /** Shape of the result. */
  gradOut: A
}

/** Cotangents of the gradients, or tangents of the operands, in the shapes of x, y and weight. A missing one is zero. */
export interface Directions<A> {
  x?: A | undefined
  y?: A | undefined
  weight?: A | undefined
}
export interface ForwardOptions<A> {
  /** Receives the result and is returned; by default a new array. */
  out?: A
}
export interface BackwardOptions<A> {
  /** Which gradients to compute, by default all; the others are absent from the result. */
  needs?: { x?: boolean; y?: boolean; weight?: boolean }
  /** Arrays that receive the gradients. */
  out?: { x?: A; y?: A; weight?: A }
  /** Add to what the arrays of `out` hold, one for each gradient that is needed. Default false. */
  accumulate?: boolean
}
export interface DoubleBackwardOptions<A> {
  needs?: { x?: boolean; y?: boolean; weight?: boolean; gradOut?: boolean }
  out?: { x?: A; y?: A; weight?: A; gradOut?: A }
  accumulate?: boolean
}
// Arguments of the passes for one kind of array; `O`: options beside those of the pass.
export type ForwardArguments<A, O = {}> = [x: A, y: A, weight?: A | undefined, options?: ForwardOptions<A> & O]
export type BackwardArguments<A, O = {}> = [x: A, y: A, weight: A | undefined, gradOut: A, options?: BackwardOptions<A> & O]
export type DoubleBackwardArguments<A, O = {}> = [
  x: A, y: A, weight: A | undefined, gradOut: A, cotangents: Directions<A>, options?: DoubleBackwardOptions<A> & O,
]
export type JvpArguments<A, O = {}> = [x: A, y: A, weight: A | undefined, tangents: Directions<A>, options?: ForwardOptions<A> & O]

/** @internal Key of a pass's options: the graph whose edges are the items, where {@link Convolution} makes the call. */
export const overGraph: unique symbol = Symbol('graph')
interface OverGraph {
  [overGraph]?: { graph: Graph; atomic: boolean }
}

/** A plan in the memory of the host, and one on the device where that is the backend. */
export interface Plan {
  cpu: NativeOperation
  cuda: NativeCudaOperation | undefined
}

/** Makes the plan of `form` by the function of that name, for the backend of `options`. The host's always: it knows the work of an item. */
export function createPlan<K extends CudaProduct>(
  create: K,
  form: Parameters<NativeAddon[K]>[0],
  options: ResolvedOptions<DType>,
  cpu: NativeOperation = native[create](form as never) as NativeOperation,
): Plan {
  const plan: Plan = { cpu, cuda: undefined }
  if (options.backend === 'cuda') plan.cuda = cuda((addon) => addon[create](options.device, form as never))
  return plan
}

/** In words: which algorithm and which backend an operation has taken, and why. */
export interface Choice {
  readonly algorithm: string
  readonly backend: string
}

/** `itemsForCpu`: up to how many items calls on host arrays run on the CPU, though there is a device. */
export function choiceOf(form: { algorithm: string; why?: string | undefined }, { backend, choice }: ResolvedOptions<DType>, itemsForCpu: number): Choice {
  const few = { 0: '', Infinity: '; calls on host arrays run on the CPU, which is faster than the bus' }[itemsForCpu]
  return Object.freeze({
    algorithm: `${form.algorithm}: ${form.why ?? 'the only one'}`,
    backend: `${backend}: ${choice.why}${few ?? `; calls on host arrays with up to ${itemsForCpu} items run on the CPU (lib/cost_model.ts)`}`,
  })
}

/** `instead`: what else to say, where other results are wanted too. */
export function nothingToAddTo(argument: string, instead: string, wanted: number): EquitensorError {
  return argumentError('invalid_option', argument, `an array to accumulate in${wanted > 1 ? `, or ${instead}` : ''}`, 'none')
}

/** Arrays for gradients, by their argument. */
function givenOf<A>(options: DoubleBackwardOptions<A>): Record<string, A | undefined> {
  const out = options.out ?? {}
  return { 'out.x': out.x, 'out.y': out.y, 'out.weight': out.weight, 'out.gradOut': out.gradOut }
}

/** What a call reads, by argument. `directions`: the argument that has them. */
function readOf<A>({ x, y, w, z, ax, ay, aw }: NativeArrays<A>, directions: 'tangents' | 'cotangents'): Record<string, A | undefined> {
  return { x, y, weight: w, gradOut: z, [`${directions}.x`]: ax, [`${directions}.y`]: ay, [`${directions}.weight`]: aw }
}

/** What a subclass hands to the base class. */
export interface OperationForm {
  irrepsIn1: Irreps
  irrepsIn2: Irreps
  irrepsOut: Irreps
  /** Default 0. */
  weightNumel?: number
  paths: Path[]
  algorithm: string
  /** Why that algorithm, where there was a choice. */
  why?: string | undefined
  plan: Plan
  /** Called when it is asked for. */
  expressivity: () => number
  /** The second input is the first one: calls have x only. Default false. */
  square?: boolean
  /** The result is not linear in the weights, but in each of several parts of them. Default false. */
  weightsInParts?: boolean
}

/**
 * A bilinear, equivariant operation on irreps. Arrays are row-major: x is (batch, irrepsIn1.dim), y is (batch, irrepsIn2.dim), the
 * result is (batch, irrepsOut.dim), in the operation's dtype and layout. An operand of batch 1 is shared by all items.
 * `weight` is (weightNumel), shared by all items, or (batch, weightNumel), a set for each.
 *
 * With backend 'cuda' all arrays of a call are on the host or all on the device, where the result then is too. Calls on the host's arrays wait for
 * the result. Calls on device arrays return at once (see {@link DeviceArray}), and an error of theirs may be reported by a later call.
 */
export abstract class TensorProduct<D extends DType> {
  readonly irrepsIn1: Irreps
  readonly irrepsIn2: Irreps
  readonly irrepsOut: Irreps
  readonly paths: readonly Path[]
  /** Weights of an item; 0: the operation takes none. */
  readonly weightNumel: number
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** The algorithm in use. */
  readonly algorithm: string
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  /**
   * Work and traffic an item, by pass. Operations are those that the CPU's general kernels execute. In float32 two of its kernels for
   * low degrees differ from that: channelwise products to degree 3 leave out products with zeros of M that are counted, and
   * Clebsch-Gordan products without weights to degree 5 form some products twice. Bytes are those of x, y and the result, as with shared
   * weights: a set of weights for each item adds weightNumel numbers forward, twice that backward and three times in the double backward.
   */
  readonly cost: Readonly<Record<Pass, PassCost>>

  #plan: Plan | undefined
  readonly #findExpressivity: () => number
  #expressivity: number | undefined
  /** Calls on host arrays with up to so many items run on the CPU, though the backend is 'cuda'. */
  readonly #itemsForCpu: number
  readonly #isSquare: boolean
  /** @internal What errors call irrepsIn1, which another class may have under another name. */
  nameOfIn1: string
  /** @internal What they call the operation. */
  nameOfClass = this.constructor.name
  readonly #weightsInParts: boolean

  protected constructor(form: OperationForm, options: ResolvedOptions<D>) {
    this.irrepsIn1 = form.irrepsIn1
    this.irrepsIn2 = form.irrepsIn2
    this.irrepsOut = form.irrepsOut
    this.weightNumel = form.weightNumel ?? 0
    this.paths = Object.freeze(form.paths)
    this.backend = options.backend
    this.device = options.device
    this.dtype = options.dtype
    this.layout = options.layout
    this.threads = options.threads
    this.algorithm = form.algorithm
    this.#findExpressivity = form.expressivity
    this.#plan = form.plan
    this.#isSquare = form.square ?? false
    this.nameOfIn1 = this.#isSquare ? 'irrepsIn' : 'irrepsIn1'
    this.#weightsInParts = form.weightsInParts ?? false
    const flops = native.flops(form.plan.cpu)
    const size = options.dtype === 'float32' ? 4 : 8
    const inputs = form.irrepsIn1.dim + form.irrepsIn2.dim
    this.cost = {
      forward: { flops: flops.forward, bytes: size * (inputs + form.irrepsOut.dim) },
      backward: { flops: flops.backward, bytes: size * (2 * inputs + form.irrepsOut.dim) },
      doubleBackward: { flops: flops.doubleBackward, bytes: size * (3 * inputs + 2 * form.irrepsOut.dim) },
    }
    this.#itemsForCpu = form.plan.cuda && options.choice.isAutomatic ? itemsForCpu(this.cost.forward, options.threads) : 0
    this.choice = choiceOf(form, options, this.#itemsForCpu)
  }

  /** What runs a call on these arrays. */
  #runner({ arrays: { x, batch } }: CheckedCall<D>): Runner {
    const { cpu, cuda } = this.#live()
    return { cpu, cuda: isDeviceArray(x) || batch > this.#itemsForCpu || capturing.now ? cuda : undefined, device: this.device, threads: this.threads }
  }

  /** Dimension of the space of bilinear maps that the operation reaches with linear layers before and after it and with its own weights. */
  get expressivity(): number {
    return (this.#expressivity ??= this.#findExpressivity())
  }

  /** The triples of degrees with a nonzero coefficient, in order ("interactability" of Xie et al. 2025). */
  get interactability(): [l1: number, l2: number, l3: number][] {
    const coupled = this.paths.filter(({ coefficient }) => coefficient !== 0)
    const unique = new Map(coupled.map(({ l }) => [l.join(), [...l] as [number, number, number]]))
    return [...unique.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2])
  }

  /**
   * The product of x and y.
   * @param weight (weightNumel) or (batch, weightNumel); none for an operation without weights.
   * @throws EquitensorError `wrong_kind`, `wrong_dtype`, `wrong_length`, `batch_mismatch`, `detached`, `overlap`, `weight_missing`, `weight_unwanted`,
   * `disposed`; nothing has been written then. With backend 'cuda' also `out_of_memory`, `cuda`, `device_disabled`.
   */
  forward(...call: ForwardArguments<ArrayOf<D>>): ArrayOf<D>
  forward(...call: ForwardArguments<DeviceArray<D>>): DeviceArray<D>
  forward(...[x, y, weight, options = {}]: ForwardArguments<OperandOf<D>>): OperandOf<D> {
    requireKnownOptions(options, ['out'])
    const { call, result } = this.#forwardCall(x, y, weight, options)
    this.#run(call)
    return result
  }

  /**
   * {@link forward} beside this thread. Inputs must not change before the promise resolves. On the CPU what the call reads is copied first,
   * but for arrays on a SharedArrayBuffer. An `out` whose ArrayBuffer is transferred or resized in the meantime is `detached`.
   * @throws EquitensorError as {@link forward}, and `aborted`, `capturing`.
   */
  forwardAsync(...call: ForwardArguments<ArrayOf<D>, AsyncOptions>): Promise<ArrayOf<D>>
  forwardAsync(...call: ForwardArguments<DeviceArray<D>, AsyncOptions>): Promise<DeviceArray<D>>
  async forwardAsync(...[x, y, weight, options = {}]: ForwardArguments<OperandOf<D>, AsyncOptions>): Promise<OperandOf<D>> {
    requireKnownOptions(options, ['out', 'signal'])
    const { call, result } = this.#forwardCall(x, y, weight, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /**
   * Gradients of a scalar with respect to x, y and weight, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward(...call: BackwardArguments<ArrayOf<D>>): Gradients<D>
  backward(...call: BackwardArguments<DeviceArray<D>>): Gradients<D, DeviceArray<D>>
  backward(...[x, y, weight, gradOut, options = {}]: BackwardArguments<OperandOf<D>>): Gradients<D, OperandOf<D>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate'])
    const { call, result } = this.#backwardCall(x, y, weight, gradOut, options)
    this.#run(call)
    return result
  }

  /** {@link backward} beside this thread, as {@link forwardAsync}. Arrays of the host take one pending call at a time that adds to them; another is an error. */
  backwardAsync(...call: BackwardArguments<ArrayOf<D>, AsyncOptions>): Promise<Gradients<D>>
  backwardAsync(...call: BackwardArguments<DeviceArray<D>, AsyncOptions>): Promise<Gradients<D, DeviceArray<D>>>
  async backwardAsync(...[x, y, weight, gradOut, options = {}]: BackwardArguments<OperandOf<D>, AsyncOptions>): Promise<Gradients<D, OperandOf<D>>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate', 'signal'])
    const { call, result } = this.#backwardCall(x, y, weight, gradOut, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @param cotangents `x`, `y` and `weight`: shapes of x, y and weight; a missing one is zero.
   * @returns gradients with respect to x, y, weight and gradOut.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward(...call: DoubleBackwardArguments<ArrayOf<D>>): SecondGradients<D>
  doubleBackward(...call: DoubleBackwardArguments<DeviceArray<D>>): SecondGradients<D, DeviceArray<D>>
  doubleBackward(
    ...[x, y, weight, gradOut, cotangents, options = {}]: DoubleBackwardArguments<OperandOf<D>>
  ): SecondGradients<D, OperandOf<D>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate'])
    const { call, result } = this.#doubleBackwardCall(x, y, weight, gradOut, cotangents, options)
    this.#run(call)
    return result
  }

  /** {@link doubleBackward} beside this thread, as {@link forwardAsync}. */
  doubleBackwardAsync(...call: DoubleBackwardArguments<ArrayOf<D>, AsyncOptions>): Promise<SecondGradients<D>>
  doubleBackwardAsync(...call: DoubleBackwardArguments<DeviceArray<D>, AsyncOptions>): Promise<SecondGradients<D, DeviceArray<D>>>
  async doubleBackwardAsync(
    ...[x, y, weight, gradOut, cotangents, options = {}]: DoubleBackwardArguments<OperandOf<D>, AsyncOptions>
  ): Promise<SecondGradients<D, OperandOf<D>>> {
    requireKnownOptions(options, ['needs', 'out', 'accumulate', 'signal'])
    const { call, result } = this.#doubleBackwardCall(x, y, weight, gradOut, cotangents, options)
    await this.#runAsync(call, options.signal)
    return result
  }

  /**
   * Derivative of the result in the direction of tangents of x, y and weight.
   * @param tangents `x`, `y` and `weight`: shapes of x, y and weight; a missing one is zero.
   * @returns shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  jvp(...call: JvpArguments<ArrayOf<D>>): ArrayOf<D>
  jvp(...call: JvpArguments<DeviceArray<D>>): DeviceArray<D>
  jvp(...[x, y, weight, tangents, options = {}]: JvpArguments<OperandOf<D>>): OperandOf<D> {
    requireKnownOptions(options, ['out'])
    const { call, result } = this.#jvpCall(x, y, weight, tangents, options)
    this.#run(call)
    return result
  }

  /** {@link jvp} beside this thread, as {@link forwardAsync}. */
  jvpAsync(...call: JvpArguments<ArrayOf<D>, AsyncOptions>): Promise<ArrayOf<D>>
  jvpAsync(...call: JvpArguments<DeviceArray<D>, AsyncOptions>): Promise<DeviceArray<D>>
  async jvpAsync(...[x, y, weight, tangents, options = {}]: JvpArguments<OperandOf<D>, AsyncOptions>): Promise<OperandOf<D>> {
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
    const of = { forward: ['x', 'y', 'w', 'zOut'], backward: ['x', 'y', 'w', 'z', 'xOut', 'yOut', 'wOut'], doubleBackward: names }[pass]
    const arrays = names.map((name) => [name, of.includes(name) && this.#dim(slotOf[name]) ? allocate(this.dtype, this.#dim(slotOf[name])) : undefined])
    native.takeCount()
    native.contract(cpu, { ...(Object.fromEntries(arrays) as { x: ArrayOf<D> }), batch: 1, threads: 1, variant: 'counted' })
    return native.takeCount()
  }

  /** @internal */
  get isDisposed(): boolean {
    return this.#plan === undefined
  }

  /** Operands of a native call beside those of every product. */
  protected furtherOperands(): { species?: Int32Array; bySpecies?: NativeSpecies } {
    return {}
  }

  #dim(slot: Slot): number {
    return { x: this.irrepsIn1.dim, y: this.irrepsIn2.dim, w: this.weightNumel, z: this.irrepsOut.dim }[slot]
  }

  #forwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, options: ForwardOptions<OperandOf<D>> & OverGraph) {
    this.#live()
    const inputs = this.#inputs(x, y, weight, options)
    const result = this.#result(inputs, options.out)
    return { call: { arrays: { ...inputs, zOut: result }, zero: [], given: { out: options.out } } as CheckedCall<D>, result }
  }

  #backwardCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, gradOut: OperandOf<D>, options: BackwardOptions<OperandOf<D>> & OverGraph) {
    this.#live()
    const inputs = this.#withGradOut(this.#inputs(x, y, weight, options), gradOut)
    const result = this.#gradients(inputs, ['x', 'y', 'weight'], options)
    return { call: this.#reached(inputs, result, { x: true, y: true, w: true }, givenOf(options), options.accumulate), result }
  }

  #doubleBackwardCall(
    x: OperandOf<D>,
    y: OperandOf<D>,
    weight: unknown,
    gradOut: OperandOf<D>,
    cotangents: Directions<OperandOf<D>>,
    options: DoubleBackwardOptions<OperandOf<D>> & OverGraph,
  ) {
    this.#live()
    const inputs = this.#withDirections(this.#withGradOut(this.#inputs(x, y, weight, options), gradOut), cotangents, 'cotangents')
    const result = this.#gradients(inputs, ['x', 'y', 'weight', 'gradOut'], options) as SecondGradients<D, OperandOf<D>>
    const { ax, ay, aw } = inputs
    return { call: this.#reached(inputs, result, { x: (this.#isSquare ? ax : ay) ?? aw, y: ax ?? aw, w: ax ?? ay ?? (this.#weightsInParts ? aw : undefined), z: ax ?? ay ?? aw }, givenOf(options), options.accumulate), result }
  }

  #jvpCall(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, tangents: Directions<OperandOf<D>>, options: ForwardOptions<OperandOf<D>> & OverGraph) {
    this.#live()
    const inputs = this.#withDirections(this.#inputs(x, y, weight, options), tangents, 'tangents')
    const result = this.#result(inputs, options.out)
    return { call: this.#reached(inputs, { gradOut: result }, { z: inputs.ax ?? inputs.ay ?? inputs.aw }, { out: options.out }), result }
  }

  #ofResult({ batch, sweeps }: NativeArrays<OperandOf<D>>) {
    const rows = sweeps ? sweeps.receivers.begin.length - 1 : batch
    return { length: rows * this.irrepsOut.dim, shape: `(${sweeps ? 'receivers' : 'batch'} ${rows}, irrepsOut.dim ${this.irrepsOut.dim})` }
  }

  /** The array of a call's only result, in the shape of z. */
  #result(inputs: NativeArrays<OperandOf<D>>, out: OperandOf<D> | undefined): OperandOf<D> {
    const { x } = inputs
    const { length, shape } = this.#ofResult(inputs)
    if (out === undefined) return this.#allocate(x, length)
    this.#require(out, 'out', x)
    requireLength(out, 'out', length, shape)
    requireSeparate({ out }, readOf(inputs, 'tangents'))
    return out
  }

  #withGradOut<I extends NativeArrays<OperandOf<D>>>(inputs: I, gradOut: OperandOf<D>): I {
    this.#require(gradOut, 'gradOut', inputs.x)
    const { length, shape } = this.#ofResult(inputs)
    requireLength(gradOut, 'gradOut', length, shape)
    return { ...inputs, z: gradOut }
  }

  /** The arrays of the gradients that are needed. */
  #gradients(
    inputs: NativeArrays<OperandOf<D>>,
    results: readonly (keyof SecondGradients<D>)[],
    options: DoubleBackwardOptions<OperandOf<D>>,
  ): Gradients<D, OperandOf<D>> {
    const { x, y, w: weight, z: gradOut } = inputs
    const like = { x, y, weight, gradOut }
    const given = options.needs ?? {}, out = options.out ?? {}
    requireKnownOptions(given, results, 'needs')
    const needs = Object.fromEntries(results.map((name) => [name, given[name] === undefined ? like[name] !== undefined : given[name]]))
    requireKnownOptions(out, results, 'out')
    const accumulate = options.accumulate ?? false
    if (typeof accumulate !== 'boolean') throw argumentError('invalid_option', 'options.accumulate', 'a boolean', describe(accumulate))
    for (const name of results) {
      if (typeof needs[name] !== 'boolean') throw argumentError('invalid_option', `needs.${name}`, 'a boolean', describe(needs[name]))
      if (needs[name] && !like[name]) throw argumentError('weight_unwanted', `needs.${name}`, 'false, since the operation has no weights', 'true')
      const array = out[name]
      if (array === undefined) {
        if (accumulate && needs[name]) throw nothingToAddTo(`out.${name}`, `needs: { ${name}: false }`, results.filter((other) => needs[other]).length)
        continue
      }
      if (!needs[name]) throw argumentError('invalid_option', `out.${name}`, `no array, since needs.${name} is false`, 'an array')
      this.#require(array, `out.${name}`, x)
      requireLength(array, `out.${name}`, lengthOf(like[name]!), `as many as ${name}`)
    }
    requireSeparate(givenOf(options), readOf(inputs, 'cotangents'))
    const wanted = results.filter((name) => needs[name])
    return Object.fromEntries(wanted.map((name) => [name, out[name] ?? this.#allocate(x, lengthOf(like[name]!))])) as unknown as Gradients<D, OperandOf<D>>
  }

  /** The call that computes `results`, of which those whose slot is not in `terms` are zero. */
  #reached(
    inputs: NativeArrays<OperandOf<D>>,
    results: Partial<SecondGradients<D, OperandOf<D>>>,
    terms: Partial<Record<Slot, unknown>>,
    given: CheckedCall<D>['given'],
    accumulate = false,
  ): CheckedCall<D> {
    const all = { x: results.x, y: results.y, w: results.weight, z: results.gradOut }
    const zero = slots.filter((slot) => !terms[slot] && !accumulate).flatMap((slot) => all[slot] ?? [])
    const of = (slot: Slot) => (terms[slot] ? all[slot] : undefined)
    return { arrays: { ...inputs, xOut: of('x'), yOut: of('y'), wOut: of('w'), zOut: of('z'), accumulate }, zero, given }
  }

  #withDirections<I extends NativeArrays<OperandOf<D>>>(inputs: I, given: Directions<OperandOf<D>>, argument: string): I {
    requireKnownOptions(given, ['x', 'y', 'weight'], argument)
    const { x, y, w: weight } = inputs
    for (const [name, like] of Object.entries({ x, y, weight })) {
      const array = given[name as keyof typeof given]
      if (array === undefined) continue
      if (!like) throw argumentError('weight_unwanted', `${argument}.${name}`, 'undefined, since the operation has no weights', describe(array))
      this.#require(array, `${argument}.${name}`, x)
      requireLength(array, `${argument}.${name}`, lengthOf(like), `as many as ${name}`)
    }
    return { ...inputs, ax: given.x, ay: given.y, aw: given.weight }
  }

  #live(): Plan {
    if (!this.#plan) throw disposed(this.nameOfClass)
    return this.#plan
  }

  /** Of the kind that `like` is of; on the device with no particular values. */
  #allocate(like: OperandOf<D>, length: number): OperandOf<D> {
    return isDeviceArray(like) ? DeviceArray.alloc(this.dtype, length, { device: this.device }) : allocate(this.dtype, length)
  }

  /** An array of the kind that `like` is of. */
  #require(value: unknown, argument: string, like: unknown): void {
    if (this.backend === 'cuda' && isDeviceArray(like)) requireDeviceArray(value, argument, this.dtype, this.device)
    else requireArray(value, argument, this.dtype)
  }

  #inputs(x: OperandOf<D>, y: OperandOf<D>, weight: unknown, { [overGraph]: over }: OverGraph): NativeArrays<OperandOf<D>> {
    const numel = this.weightNumel, items = over ? 'edges' : 'items'
    if (numel && (weight === undefined || weight === null)) {
      throw argumentError('weight_missing', 'weight', `${numel} numbers shared by all ${items}, or as many for each`, describe(weight))
    }
    if (!numel && weight !== undefined && weight !== null && (weight as ArrayLike<number>).length !== 0) {
      throw argumentError('weight_unwanted', 'weight', 'undefined, since the operation has no weights', describe(weight))
    }
    this.#require(x, 'x', x)
    this.#require(y, 'y', x)
    const { dim: dim1 } = this.irrepsIn1, { dim: dim2 } = this.irrepsIn2
    let inputs: NativeArrays<OperandOf<D>>
    if (over) {
      const { sweeps, numSenders, numEdges: batch } = over.graph
      requireLength(x, 'x', numSenders * dim1, `(senders ${numSenders}, irrepsIn1.dim ${dim1})`)
      if (lengthOf(y) !== dim2) requireLength(y, 'y', batch * dim2, `(edges ${batch}, irrepsIn2.dim ${dim2}), or ${dim2} shared by all edges`)
      inputs = { x, y, batch, yShared: lengthOf(y) !== batch * dim2, sweeps, atomic: over.atomic }
    } else {
      const xBatch = rowCount(x, 'x', dim1, `(batch, ${this.nameOfIn1}.dim ${dim1})`), yBatch = rowCount(y, 'y', dim2, `(batch, irrepsIn2.dim ${dim2})`)
      if (xBatch !== yBatch && xBatch !== 1 && yBatch !== 1) {
        throw argumentError('batch_mismatch', 'y', `a batch of ${xBatch} as x has, or of 1`, `a batch of ${yBatch}`)
      }
      const batch = xBatch === 1 ? yBatch : xBatch
      inputs = { ...this.furtherOperands(), x, y: this.#isSquare ? undefined : y, batch, xShared: xBatch !== batch, yShared: yBatch !== batch }
    }
    if (!numel) return inputs
    const w = weight as OperandOf<D>
    this.#require(w, 'weight', x)
    const sets = inputs.batch * numel
    if (lengthOf(w) !== numel) requireLength(w, 'weight', sets, `(${over ? 'edges' : 'batch'} ${inputs.batch}, weightNumel ${numel}), or ${numel} shared by all ${items}`)
    return { ...inputs, w, wShared: lengthOf(w) !== sets }
  }

  #run(call: CheckedCall<D>): void {
    runCall(this.#runner(call), call)
  }

  async #runAsync(call: CheckedCall<D>, signal: AbortSignal | undefined): Promise<void> {
    return runCallAsync(this.#runner(call), call, signal)
  }
}
