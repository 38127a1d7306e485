import { allocate, lengthOf, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { runCall, runCallAsync, type AsyncOptions, type CheckedCall, type OperandOf, type Runner } from './call'
import { requireSignals } from './channel_product'
import { itemsForCpu } from './cost_model'
import { capturing, cuda } from './cuda'
import { DeviceArray, isDeviceArray, requireDeviceArray } from './device_array'
import { argumentError, describe, disposed } from './errors'
import type { SphereGrid } from './gaunt'
import { compareIrreps, Irreps, irrepKey, maxOutputDegree, multiplyIrreps, type IrrepsLike } from './irreps'
import { channelsOf, packChannels } from './layout'
import { native, type NativeFactors, type NativeFactorsCall, type Pass } from './native'
import { choiceOf, createPlan, nothingToAddTo, type Choice, type ForwardOptions, type PassCost, type Plan } from './operation'
import { commonOptions, inputIrreps, outputIrreps, requireKnownOptions, resolveOptions, type Backend, type CommonOptions, type Layout } from './options'
import { irrepsOf, irrepsOfProducts, unreached } from './selection_rules'

export interface GauntProductOptions<D extends DType> extends CommonOptions<D> {
  /** Irreps of the output, each once, with the inputs' multiplicity; by default every irrep that can be reached, sorted. */
  irrepsOut?: IrrepsLike
}

/** @internal A grid that need not be exact, for tests. */
export interface GauntProductInternals {
  grid?: SphereGrid
}

const mostFactors = 4

/** What is asked of a product: results, in the arrays of `out` where there are some. */
interface Request {
  x: readonly unknown[]
  gradOut?: unknown
  /** Of the factors; in it a missing one is zero. */
  directions?: readonly unknown[] | undefined
  wanted: { x: readonly boolean[]; z: boolean }
  out: { x: readonly unknown[]; z?: unknown }
  accumulate?: unknown
  /** Names of arguments, for errors. */
  names: { x(i: number): string; direction(i: number): string; xOut(i: number): string; zOut: string }
}

type FactorsCall<D extends DType> = CheckedCall<D, NativeFactors<OperandOf<D>>>
interface FactorsResults<D extends DType> {
  x: (ArrayOf<D> | undefined)[]
  z: ArrayOf<D> | undefined
}

/** Factors in, product out: checks, and calls of native code. */
class FactorsOperation<D extends DType> {
  readonly irrepsOut: Irreps
  readonly grid: Readonly<SphereGrid>
  readonly backend: Backend
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  readonly device: number
  readonly choice: Choice
  readonly cost: Readonly<Record<Pass, PassCost>>
  #plan: Plan | undefined
  /** As of {@link TensorProduct}. */
  readonly #itemsForCpu: number

  /** power: of the one factor; otherwise 0. */
  constructor(
    readonly name: string,
    readonly irrepsIn: readonly Irreps[],
    names: readonly string[],
    readonly power: number,
    options: GauntProductOptions<D>,
    internals: GauntProductInternals,
  ) {
    requireKnownOptions(options, commonOptions)
    const resolved = resolveOptions(options)
    const mul = requireSignals(irrepsIn[0]!, names[0]!)
    irrepsIn.forEach((irreps, i) => {
      if (requireSignals(irreps, names[i]!) !== mul) throw argumentError('unequal_multiplicities', names[i]!, `multiplicity ${mul} as ${names[0]!} has`, `'${irreps}'`)
    })
    const factors = power ? new Array<Irreps>(power).fill(irrepsIn[0]!) : irrepsIn
    const degree = factors.reduce((sum, { lmax }) => sum + lmax, 0)
    if (degree > maxOutputDegree) throw argumentError('degree_limit', names.at(-1)!, `factors whose degrees add up to at most ${maxOutputDegree}`, `${degree}`)
    // Gaunt coefficients are zero for odd l1 + l2 + l3, and only for those.
    const irrepsOfFactors = factors.map(irrepsOf)
    const reached = irrepsOfProducts(irrepsOfFactors, (a, b) => multiplyIrreps(a, b).filter(({ l }) => (a.l + b.l + l) % 2 === 0))
    const out = options.irrepsOut === undefined ? undefined : outputIrreps(options.irrepsOut, 'options.irrepsOut')
    this.irrepsOut = out ?? new Irreps([...reached.values()].sort(compareIrreps).map((ir) => [mul, ir]))
    if (requireSignals(this.irrepsOut, 'options.irrepsOut') !== mul) {
      throw argumentError('unequal_multiplicities', 'options.irrepsOut', `multiplicity ${mul} as the factors have`, `'${this.irrepsOut}'`)
    }
    const irrepsOfOut = irrepsOf(this.irrepsOut)
    for (const ir of irrepsOfOut) {
      if (reached.has(irrepKey(ir))) continue
      const code = irrepsOfOut.length === 1 ? 'no_path' : 'unreachable_output'
      const of = factors.map((irreps) => `'${irreps}'`).join(' times ')
      throw unreached(code, { argument: 'options.irrepsOut', irreps: [ir], products: [irrepsOfFactors], of, further: 'an even sum of all l' })
    }
    const degrees = degree + this.irrepsOut.lmax
    this.grid = Object.freeze(internals.grid ?? { beta: Math.floor(degrees / 2) + 1, alpha: degrees + 1 })
    // Where a product would reach an output with the other parity, even and odd irreps are multiplied apart.
    const mixes = irrepsOfOut.some(({ l, p }) => reached.has(irrepKey({ l, p: -p as 1 | -1 })))
    const form = {
      isDouble: resolved.dtype === 'float64',
      mul,
      slots: [...irrepsIn, this.irrepsOut].map((irreps, i) => {
        const channels = channelsOf(irreps, resolved.layout)
        if (irreps.dim >= 2 ** 31) throw argumentError('invalid_irreps', names[i] ?? 'irrepsOut', 'less than 2^31 components an item', `${irreps.dim}`)
        return { dim: irreps.dim, blocks: packChannels(channels), parts: Int32Array.from(channels, ({ ir }) => (mixes && ir.p < 0 ? 1 : 0)) }
      }),
      power,
      rings: this.grid.beta,
      angles: this.grid.alpha,
    }
    const plan = (this.#plan = createPlan('createGauntProduct', form, resolved))
    this.backend = resolved.backend
    this.dtype = resolved.dtype
    this.layout = resolved.layout
    this.threads = resolved.threads
    this.device = resolved.device
    const flops = native.flops(plan.cpu), size = resolved.dtype === 'float32' ? 4 : 8
    const inputs = irrepsIn.reduce((sum, { dim }) => sum + dim, 0)
    this.cost = {
      forward: { flops: flops.forward, bytes: size * (inputs + this.irrepsOut.dim) },
      backward: { flops: flops.backward, bytes: size * (2 * inputs + this.irrepsOut.dim) },
      doubleBackward: { flops: flops.doubleBackward, bytes: size * (3 * inputs + 2 * this.irrepsOut.dim) },
    }
    this.#itemsForCpu = plan.cuda && resolved.choice.isAutomatic ? itemsForCpu(this.cost.forward, this.threads) : 0
    this.choice = choiceOf({ algorithm: 'grid' }, resolved, this.#itemsForCpu)
  }

  run(request: Request): FactorsResults<D> {
    const { call, results } = this.#prepare(request)
    runCall(this.#runner(call), call)
    return results
  }

  async runAsync(request: Request, signal: AbortSignal | undefined): Promise<FactorsResults<D>> {
    const { call, results } = this.#prepare(request)
    await runCallAsync(this.#runner(call), call, signal)
    return results
  }

  countFlops(pass: Pass): number {
    const second = pass === 'doubleBackward', gradients = pass !== 'forward'
    const call: NativeFactorsCall = { factors: true, batch: 1, threads: 1, variant: 'counted' }
    this.irrepsIn.forEach(({ dim }, i) => {
      const key = factorKeys[i]!
      call[key] = allocate(this.dtype, dim)
      if (second) call[`a${key}`] = allocate(this.dtype, dim)
      if (gradients) call[`${key}Out`] = allocate(this.dtype, dim)
    })
    if (gradients) call.z = allocate(this.dtype, this.irrepsOut.dim)
    if (!gradients || second) call.zOut = allocate(this.dtype, this.irrepsOut.dim)
    const { cpu } = this.#live()
    native.takeCount()
    native.contract(cpu, call)
    return native.takeCount()
  }

  dispose(): void {
    const plan = this.#plan
    this.#plan = undefined
    if (!plan) return
    native.dispose(plan.cpu)
    if (plan.cuda) cuda((addon) => addon.disposeOperation(plan.cuda!))
  }

  #live(): Plan {
    if (!this.#plan) throw disposed(this.name)
    return this.#plan
  }

  #runner({ arrays: { f1, batch } }: FactorsCall<D>): Runner {
    const { cpu, cuda } = this.#live()
    return { cpu, cuda: isDeviceArray(f1) || batch > this.#itemsForCpu || capturing.now ? cuda : undefined, device: this.device, threads: this.threads }
  }

  #prepare({ x, gradOut, directions, wanted, out, accumulate = false, names }: Request): { call: FactorsCall<D>; results: FactorsResults<D> } {
    this.#live()
    const { dtype, irrepsOut } = this
    const isOnDevice = this.backend === 'cuda' && isDeviceArray(x[0])
    const requireOperand = (value: unknown, argument: string): OperandOf<D> =>
      isOnDevice ? requireDeviceArray(value, argument, dtype, this.device) : requireArray(value, argument, dtype)
    const inputs: Record<string, OperandOf<D>> = {}, outputs: Record<string, OperandOf<D>> = {}
    let batch = -1
    const arrays = this.irrepsIn.map(({ dim }, i) => {
      const array = (inputs[names.x(i)] = requireOperand(x[i], names.x(i)))
      const rows = rowCount(array, names.x(i), dim, `(batch, irrepsIn.dim ${dim})`)
      if (batch >= 0 && rows !== batch) throw argumentError('batch_mismatch', names.x(i), `a batch of ${batch} as ${names.x(0)} has`, `a batch of ${rows}`)
      batch = rows
      return array
    })
    const lengthOut = batch * irrepsOut.dim, shapeOut = `(batch ${batch}, irrepsOut.dim ${irrepsOut.dim})`
    const call: NativeFactors<OperandOf<D>> = { factors: true, batch }
    if (gradOut !== undefined || wanted.x.includes(true)) {
      call.z = inputs.gradOut = requireOperand(gradOut, 'gradOut')
      requireLength(inputs.gradOut, 'gradOut', lengthOut, shapeOut)
    }
    arrays.forEach((array, i) => {
      call[factorKeys[i]!] = array
      const direction = directions?.[i]
      if (direction === undefined) return
      inputs[names.direction(i)] = call[`a${factorKeys[i]!}`] = requireOperand(direction, names.direction(i))
      requireLength(inputs[names.direction(i)]!, names.direction(i), lengthOf(array), `as many as ${names.x(i)}`)
    })

    if (typeof accumulate !== 'boolean') throw argumentError('invalid_option', 'options.accumulate', 'a boolean', describe(accumulate))
    const take = (given: unknown, name: string, isWanted: boolean, length: number, shape: string): OperandOf<D> | undefined => {
      if (given === undefined) {
        if (isWanted && accumulate) throw nothingToAddTo(name, `${name.replace('out.', 'needs.')} false`, [...wanted.x, wanted.z].filter(Boolean).length)
        return undefined
      }
      if (!isWanted) throw argumentError('invalid_option', name, 'no array, since it is not needed', 'an array')
      const array = (outputs[name] = requireOperand(given, name))
      requireLength(array, name, length, shape)
      return array
    }
    const givenX = arrays.map((array, i) => take(out.x[i], names.xOut(i), wanted.x[i]!, lengthOf(array), `as many as ${names.x(i)}`))
    const givenZ = take(out.z, names.zOut, wanted.z, lengthOut, shapeOut)
    requireSeparate(outputs, inputs)

    const make = (length: number): OperandOf<D> => (isOnDevice ? DeviceArray.alloc(dtype, length, { device: this.device }) : allocate(dtype, length))
    const results = {
      x: arrays.map((array, i) => (wanted.x[i] ? (givenX[i] ?? make(lengthOf(array))) : undefined)),
      z: wanted.z ? (givenZ ?? make(lengthOut)) : undefined,
    }
    const all = [...results.x, results.z].filter((array) => array !== undefined)
    // Without any direction a derivative along them is zero.
    const isZero = directions !== undefined && directions.every((direction) => direction === undefined)
    // What the caller sees is of the kind that it gave.
    const typed = results as FactorsResults<D>
    if (isZero) return { call: { arrays: call, zero: accumulate ? [] : all, given: outputs }, results: typed }
    results.x.forEach((array, i) => (call[`${factorKeys[i]!}Out`] = array))
    return { call: { arrays: { ...call, zOut: results.z, accumulate }, zero: [], given: outputs }, results: typed }
  }
}
const factorKeys = ['f1', 'f2', 'f3', 'f4'] as const

/** What both classes say of themselves. */
abstract class ManyBodyProduct<D extends DType> {
  readonly irrepsOut: Irreps
  /** The smallest grid that is exact for the whole product: floor(S / 2) + 1 rings (`beta`) and S + 1 angles, S the degrees of all factors and the output. */
  readonly grid: Readonly<SphereGrid>
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  /** Work and traffic an item, by pass. */
  readonly cost: Readonly<Record<Pass, PassCost>>
  /** @internal */
  protected readonly operation: FactorsOperation<D>

  /** @internal */
  constructor(operation: FactorsOperation<D>) {
    this.operation = operation
    this.irrepsOut = operation.irrepsOut
    this.grid = operation.grid
    this.backend = operation.backend
    this.device = operation.device
    this.dtype = operation.dtype
    this.layout = operation.layout
    this.threads = operation.threads
    this.choice = operation.choice
    this.cost = operation.cost
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    this.operation.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal Operations of one item, counted while they are executed. */
  countFlops(pass: Pass): number {
    return this.operation.countFlops(pass)
  }
}

/** Of the factors, in their order. In `needs` a missing one is needed. */
interface ProductBackwardOptions<A> {
  needs?: { x?: readonly (boolean | undefined)[] }
  /** Arrays that receive the gradients. */
  out?: { x?: readonly (A | undefined)[] }
  /** Add to what the arrays of `out` hold, one for each gradient that is needed. Default false. */
  accumulate?: boolean
}
interface ProductDoubleBackwardOptions<A> {
  needs?: { x?: readonly (boolean | undefined)[]; gradOut?: boolean }
  out?: { x?: readonly (A | undefined)[]; gradOut?: A }
  accumulate?: boolean
}
interface ProductDirections<A> {
  x?: readonly (A | undefined)[]
}

/**
 * Product of two to four signals on the sphere, channel by channel: as {@link GauntTensorProduct} (Xie et al. 2025, after Chen et al., Luo et al., ICLR 2024)
 * of the first two, of that and the third, and so on, with every intermediate irrep, and equal to it. The signals stay on one grid that is exact for all of
 * it, floor(S / 2) + 1 Gauss-Legendre rings of S + 1 angles where S is the sum of the factors' degrees (at most 22) and the output's: one transform for each
 * factor, one for the result, and one for each gradient, which is the product of the other factors with gradOut.
 *
 * Factors are (batch, irreps.dim), the result is (batch, irrepsOut.dim), row-major in the operation's dtype and layout; all have one batch and one multiplicity.
 * The parity of an output is the product of those of the factors, and it receives only products of its own parity. With backend 'cuda' arrays are on the host
 * or on the device, as of every product.
 *
 * It saves most where the output has few irreps, or gradients are computed; nested products can take fewer operations into every irrep (`cost` tells; docs/decisions.md).
 */
export class GauntProduct<D extends DType = 'float32'> extends ManyBodyProduct<D> {
  /** Of the factors. */
  readonly irrepsIn: readonly Irreps[]

  /**
   * @param irrepsIn two to four.
   * @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`, `no_path`, `unreachable_output`, `invalid_argument`, `invalid_irreps`, `degree_limit`,
   * `invalid_option`, `backend_unavailable`, and `not_supported` for a signal that is too large for the device.
   */
  constructor(irrepsIn: readonly IrrepsLike[], options: GauntProductOptions<D> = {}, /** @internal */ internals: GauntProductInternals = {}) {
    if (!Array.isArray(irrepsIn) || irrepsIn.length < 2 || irrepsIn.length > mostFactors) {
      throw argumentError('invalid_argument', 'irrepsIn', `an array of the irreps of 2 to ${mostFactors} factors`, describe(irrepsIn))
    }
    const names = irrepsIn.map((_, i) => `irrepsIn[${i}]`)
    const irreps = irrepsIn.map((given: IrrepsLike, i) => inputIrreps(given, names[i]!))
    super(new FactorsOperation('GauntProduct', irreps, names, 0, options, internals))
    this.irrepsIn = Object.freeze(irreps)
  }

  /**
   * @throws EquitensorError `invalid_argument`, `wrong_kind`, `wrong_dtype`, `wrong_length`, `batch_mismatch`, `detached`, `overlap`, `disposed`; nothing has
   * been written then.
   */
  forward<A extends OperandOf<D>>(x: readonly A[], options?: ForwardOptions<A>): A
  forward(x: readonly ArrayOf<D>[], options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    return this.operation.run(this.#forward(x, undefined, options, ['out'])).z!
  }
  /** {@link forward} beside this thread. Inputs must not change before the promise resolves. */
  forwardAsync<A extends OperandOf<D>>(x: readonly A[], options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async forwardAsync(x: readonly ArrayOf<D>[], options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<ArrayOf<D>> {
    return (await this.operation.runAsync(this.#forward(x, undefined, options, ['out', 'signal']), options.signal)).z!
  }

  /**
   * Gradients of a scalar with respect to the factors, given its gradient with respect to the result.
   * @returns `x`: of each factor; undefined where `needs.x` is false, which the type does not know.
   * @throws EquitensorError as {@link forward}.
   */
  backward<A extends OperandOf<D>>(x: readonly A[], gradOut: A, options?: ProductBackwardOptions<A>): { x: A[] }
  backward(x: readonly ArrayOf<D>[], gradOut: ArrayOf<D>, options: ProductBackwardOptions<ArrayOf<D>> = {}): { x: ArrayOf<D>[] } {
    const { x: gradients } = this.operation.run(this.#backward(x, gradOut, options, []))
    return { x: gradients as ArrayOf<D>[] }
  }
  /** {@link backward} beside this thread. */
  backwardAsync<A extends OperandOf<D>>(x: readonly A[], gradOut: A, options?: ProductBackwardOptions<A> & AsyncOptions): Promise<{ x: A[] }>
  async backwardAsync(x: readonly ArrayOf<D>[], gradOut: ArrayOf<D>, options: ProductBackwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<{ x: ArrayOf<D>[] }> {
    const { x: gradients } = await this.operation.runAsync(this.#backward(x, gradOut, options, ['signal']), options.signal)
    return { x: gradients as ArrayOf<D>[] }
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @param cotangents `x`: of each factor; a missing one is zero.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward<A extends OperandOf<D>>(
    x: readonly A[], gradOut: A, cotangents: ProductDirections<A>, options?: ProductDoubleBackwardOptions<A>,
  ): { x: A[]; gradOut: A }
  doubleBackward(
    x: readonly ArrayOf<D>[],
    gradOut: ArrayOf<D>,
    cotangents: ProductDirections<ArrayOf<D>>,
    options: ProductDoubleBackwardOptions<ArrayOf<D>> = {},
  ): { x: ArrayOf<D>[]; gradOut: ArrayOf<D> } {
    return second(this.operation.run(this.#doubleBackward(x, gradOut, cotangents, options, []))) as { x: ArrayOf<D>[]; gradOut: ArrayOf<D> }
  }
  /** {@link doubleBackward} beside this thread. */
  doubleBackwardAsync<A extends OperandOf<D>>(
    x: readonly A[], gradOut: A, cotangents: ProductDirections<A>, options?: ProductDoubleBackwardOptions<A> & AsyncOptions,
  ): Promise<{ x: A[]; gradOut: A }>
  async doubleBackwardAsync(
    x: readonly ArrayOf<D>[],
    gradOut: ArrayOf<D>,
    cotangents: ProductDirections<ArrayOf<D>>,
    options: ProductDoubleBackwardOptions<ArrayOf<D>> & AsyncOptions = {},
  ): Promise<{ x: ArrayOf<D>[]; gradOut: ArrayOf<D> }> {
    const request = this.#doubleBackward(x, gradOut, cotangents, options, ['signal'])
    return second(await this.operation.runAsync(request, options.signal)) as { x: ArrayOf<D>[]; gradOut: ArrayOf<D> }
  }

  /**
   * Derivative of the result in the direction of tangents of the factors.
   * @param tangents `x`: of each factor; a missing one is zero.
   * @throws EquitensorError as {@link forward}.
   */
  jvp<A extends OperandOf<D>>(x: readonly A[], tangents: ProductDirections<A>, options?: ForwardOptions<A>): A
  jvp(x: readonly ArrayOf<D>[], tangents: ProductDirections<ArrayOf<D>>, options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    return this.operation.run(this.#forward(x, this.#directions(tangents, 'tangents'), options, ['out'], 'tangents')).z!
  }
  /** {@link jvp} beside this thread. */
  jvpAsync<A extends OperandOf<D>>(x: readonly A[], tangents: ProductDirections<A>, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async jvpAsync(x: readonly ArrayOf<D>[], tangents: ProductDirections<ArrayOf<D>>, options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<ArrayOf<D>> {
    const request = this.#forward(x, this.#directions(tangents, 'tangents'), options, ['out', 'signal'], 'tangents')
    return (await this.operation.runAsync(request, options.signal)).z!
  }

  #forward(x: unknown, directions: readonly unknown[] | undefined, options: ForwardOptions<ArrayOf<D>>, known: readonly string[], argument = ''): Request {
    requireKnownOptions(options, known)
    const none = this.irrepsIn.map(() => false)
    return { x: this.#list(x, 'x'), directions, wanted: { x: none, z: true }, out: { x: [], z: options.out }, names: productNames(argument, 'out') }
  }
  #backward(x: unknown, gradOut: unknown, options: ProductBackwardOptions<ArrayOf<D>>, further: readonly string[]): Request {
    const { needs, out } = requireResults(options, ['x'], further)
    const wanted = { x: this.#needs(needs.x), z: false }
    return { x: this.#list(x, 'x'), gradOut, wanted, out: { x: this.#list(out.x, 'out.x', true) }, accumulate: options.accumulate, names: productNames('', 'out.gradOut') }
  }
  #doubleBackward(x: unknown, gradOut: unknown, cotangents: ProductDirections<ArrayOf<D>>, options: ProductDoubleBackwardOptions<ArrayOf<D>>, further: readonly string[]): Request {
    const { needs, out } = requireResults(options, ['x', 'gradOut'], further)
    const wanted = { x: this.#needs(needs.x), z: boolean(needs.gradOut, 'needs.gradOut') }
    return {
      x: this.#list(x, 'x'), gradOut, directions: this.#directions(cotangents, 'cotangents'), wanted, out: { x: this.#list(out.x, 'out.x', true), z: out.gradOut },
      accumulate: options.accumulate, names: productNames('cotangents', 'out.gradOut'),
    }
  }
  #directions(given: ProductDirections<ArrayOf<D>>, argument: string): readonly unknown[] {
    requireKnownOptions(given, ['x'], argument)
    return this.#list(given.x, `${argument}.x`, true)
  }
  #needs(given: unknown): boolean[] {
    const list = this.#list(given, 'needs.x', true)
    return this.irrepsIn.map((_, i) => boolean(list[i], `needs.x[${i}]`))
  }
  #list(given: unknown, argument: string, isOptional = false): readonly unknown[] {
    if (given === undefined && isOptional) return this.irrepsIn.map(() => undefined)
    const n = this.irrepsIn.length
    if (!Array.isArray(given) || given.length !== n) throw argumentError('invalid_argument', argument, `an array of ${n}, one for each factor`, describe(given))
    return given
  }
}
const productNames = (directions: string, zOut: string): Request['names'] => ({
  x: (i) => `x[${i}]`, direction: (i) => `${directions}.x[${i}]`, xOut: (i) => `out.x[${i}]`, zOut,
})

interface PowerBackwardOptions<A> {
  /** Array that receives the gradient. */
  out?: { x?: A }
  /** Add to what the array of `out` holds. Default false. */
  accumulate?: boolean
}
interface PowerDoubleBackwardOptions<A> {
  /** Which gradients to compute, by default both; the other is absent from the result. */
  needs?: { x?: boolean; gradOut?: boolean }
  out?: { x?: A; gradOut?: A }
  accumulate?: boolean
}

/**
 * Power of a signal on the sphere, channel by channel: {@link GauntProduct} of n times the same factor, which is transformed once. The gradient is
 * n x^(n-1) gradOut. x is (batch, irrepsIn.dim) and the result (batch, irrepsOut.dim).
 */
export class GauntPower<D extends DType = 'float32'> extends ManyBodyProduct<D> {
  readonly irrepsIn: Irreps
  /** The exponent. */
  readonly n: number

  /**
   * @param n 2, 3 or 4.
   * @throws EquitensorError as {@link GauntProduct}.
   */
  constructor(irrepsIn: IrrepsLike, n: number, options: GauntProductOptions<D> = {}, /** @internal */ internals: GauntProductInternals = {}) {
    if (!Number.isInteger(n) || n < 2 || n > mostFactors) throw argumentError('invalid_argument', 'n', `an integer from 2 to ${mostFactors}`, describe(n))
    const irreps = inputIrreps(irrepsIn, 'irrepsIn')
    super(new FactorsOperation('GauntPower', [irreps], ['irrepsIn'], n, options, internals))
    this.irrepsIn = irreps
    this.n = n
  }

  /** @throws EquitensorError as {@link GauntProduct.forward}. */
  forward<A extends OperandOf<D>>(x: A, options?: ForwardOptions<A>): A
  forward(x: ArrayOf<D>, options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    return this.operation.run(this.#forward(x, undefined, options, ['out'])).z!
  }
  /** {@link forward} beside this thread. Inputs must not change before the promise resolves. */
  forwardAsync<A extends OperandOf<D>>(x: A, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async forwardAsync(x: ArrayOf<D>, options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<ArrayOf<D>> {
    return (await this.operation.runAsync(this.#forward(x, undefined, options, ['out', 'signal']), options.signal)).z!
  }

  /**
   * Gradient of a scalar with respect to x, given its gradient with respect to the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward<A extends OperandOf<D>>(x: A, gradOut: A, options?: PowerBackwardOptions<A>): { x: A }
  backward(x: ArrayOf<D>, gradOut: ArrayOf<D>, options: PowerBackwardOptions<ArrayOf<D>> = {}): { x: ArrayOf<D> } {
    return { x: this.operation.run(this.#backward(x, gradOut, options, [])).x[0]! }
  }
  /** {@link backward} beside this thread. */
  backwardAsync<A extends OperandOf<D>>(x: A, gradOut: A, options?: PowerBackwardOptions<A> & AsyncOptions): Promise<{ x: A }>
  async backwardAsync(x: ArrayOf<D>, gradOut: ArrayOf<D>, options: PowerBackwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<{ x: ArrayOf<D> }> {
    return { x: (await this.operation.runAsync(this.#backward(x, gradOut, options, ['signal']), options.signal)).x[0]! }
  }

  /**
   * Gradients of a scalar that depends on the result of {@link backward}, given its gradient with respect to that.
   * @param cotangents `x`: shape of x; missing, it is zero.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward<A extends OperandOf<D>>(x: A, gradOut: A, cotangents: { x?: A }, options?: PowerDoubleBackwardOptions<A>): { x: A; gradOut: A }
  doubleBackward(
    x: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: { x?: ArrayOf<D> },
    options: PowerDoubleBackwardOptions<ArrayOf<D>> = {},
  ): { x: ArrayOf<D>; gradOut: ArrayOf<D> } {
    return ofPower(this.operation.run(this.#doubleBackward(x, gradOut, cotangents, options, []))) as { x: ArrayOf<D>; gradOut: ArrayOf<D> }
  }
  /** {@link doubleBackward} beside this thread. */
  doubleBackwardAsync<A extends OperandOf<D>>(
    x: A, gradOut: A, cotangents: { x?: A }, options?: PowerDoubleBackwardOptions<A> & AsyncOptions,
  ): Promise<{ x: A; gradOut: A }>
  async doubleBackwardAsync(
    x: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: { x?: ArrayOf<D> },
    options: PowerDoubleBackwardOptions<ArrayOf<D>> & AsyncOptions = {},
  ): Promise<{ x: ArrayOf<D>; gradOut: ArrayOf<D> }> {
    const request = this.#doubleBackward(x, gradOut, cotangents, options, ['signal'])
    return ofPower(await this.operation.runAsync(request, options.signal)) as { x: ArrayOf<D>; gradOut: ArrayOf<D> }
  }

  /**
   * Derivative of the result in the direction of a tangent of x.
   * @param tangents `x`: shape of x; missing, it is zero.
   * @throws EquitensorError as {@link forward}.
   */
  jvp<A extends OperandOf<D>>(x: A, tangents: { x?: A }, options?: ForwardOptions<A>): A
  jvp(x: ArrayOf<D>, tangents: { x?: ArrayOf<D> }, options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    requireKnownOptions(tangents, ['x'], 'tangents')
    return this.operation.run(this.#forward(x, [tangents.x], options, ['out'])).z!
  }
  /** {@link jvp} beside this thread. */
  jvpAsync<A extends OperandOf<D>>(x: A, tangents: { x?: A }, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async jvpAsync(x: ArrayOf<D>, tangents: { x?: ArrayOf<D> }, options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<ArrayOf<D>> {
    requireKnownOptions(tangents, ['x'], 'tangents')
    return (await this.operation.runAsync(this.#forward(x, [tangents.x], options, ['out', 'signal']), options.signal)).z!
  }

  #forward(x: unknown, directions: readonly unknown[] | undefined, options: ForwardOptions<ArrayOf<D>>, known: readonly string[]): Request {
    requireKnownOptions(options, known)
    return { x: [x], directions, wanted: { x: [false], z: true }, out: { x: [], z: options.out }, names: powerNames('tangents', 'out') }
  }
  #backward(x: unknown, gradOut: unknown, options: PowerBackwardOptions<ArrayOf<D>>, further: readonly string[]): Request {
    requireKnownOptions(options, ['out', 'accumulate', ...further])
    requireKnownOptions(options.out ?? {}, ['x'], 'out')
    return { x: [x], gradOut, wanted: { x: [true], z: false }, out: { x: [options.out?.x] }, accumulate: options.accumulate, names: powerNames('', '') }
  }
  #doubleBackward(x: unknown, gradOut: unknown, cotangents: { x?: ArrayOf<D> }, options: PowerDoubleBackwardOptions<ArrayOf<D>>, further: readonly string[]): Request {
    requireKnownOptions(cotangents, ['x'], 'cotangents')
    const { needs, out } = requireResults(options, ['x', 'gradOut'], further)
    const wanted = { x: [boolean(needs.x, 'needs.x')], z: boolean(needs.gradOut, 'needs.gradOut') }
    return {
      x: [x], gradOut, directions: [cotangents.x], wanted, out: { x: [out.x], z: out.gradOut }, accumulate: options.accumulate, names: powerNames('cotangents', 'out.gradOut'),
    }
  }
}
const powerNames = (directions: string, zOut: string): Request['names'] => ({ x: () => 'x', direction: () => `${directions}.x`, xOut: () => 'out.x', zOut })

function requireResults(options: { needs?: object; out?: object }, slots: readonly string[], further: readonly string[]): { needs: Record<string, unknown>; out: Record<string, unknown> } {
  requireKnownOptions(options, ['needs', 'out', 'accumulate', ...further])
  const { needs = {}, out = {} } = options
  requireKnownOptions(needs, slots, 'needs')
  requireKnownOptions(out, slots, 'out')
  return { needs: needs as Record<string, unknown>, out: out as Record<string, unknown> }
}
function boolean(value: unknown, argument: string): boolean {
  if (value !== undefined && typeof value !== 'boolean') throw argumentError('invalid_option', argument, 'a boolean', describe(value))
  return value ?? true
}
function second<A>({ x, z }: { x: (A | undefined)[]; z: A | undefined }) {
  return { x, ...(z !== undefined && { gradOut: z }) }
}
function ofPower<A>({ x: [x], z }: { x: (A | undefined)[]; z: A | undefined }) {
  return { ...(x !== undefined && { x }), ...(z !== undefined && { gradOut: z }) }
}
