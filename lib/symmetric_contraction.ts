import { isTyped, lengthIfArray, requireSeparate, type ArrayOf, type DType } from './arrays'
import type { AsyncOptions, OperandOf } from './call'
import { requireSignals } from './channel_product'
import { argumentError, describe, disposed } from './errors'
import { compareIrreps, irrepKey, multiplyIrreps, type Irrep, type Irreps, type IrrepsLike } from './irreps'
import { channelsOf, packChannels } from './layout'
import { native, type NativeSpecies, type Pass } from './native'
import { createPlan, TensorProduct, type Choice, type ForwardOptions, type PassCost, type Plan } from './operation'
import { commonOptions, inputIrreps, outputIrreps, requireKnownOptions, resolveOptions, type Backend, type CommonOptions, type Layout, type ResolvedOptions } from './options'
import { irrepsOf, requireReached, unreached } from './selection_rules'

export interface SymmetricContractionOptions<D extends DType> extends CommonOptions<D> {
  /** Most factors of a product: 1, 2 or 3. Default 3. */
  correlation?: number
  /** Sets of weights, one a chemical species. Default 1. */
  numSpecies?: number
}

/** One path: blocks `in` of x, coupled from the left, into block `out`. */
export interface SymmetricPath {
  readonly out: number
  readonly in: readonly number[]
  /** Of three factors: what the first two are coupled to. */
  readonly intermediate?: Irrep
}

type Results<A, Name extends string> = {
  /** Which gradients to compute, by default all; the others are absent from the result. */
  needs?: { [name in Name]?: boolean }
  /** Arrays that receive the gradients. */
  out?: { [name in Name]?: A }
  /** Add to what the arrays of `out` hold, one for each gradient that is needed. Default false. */
  accumulate?: boolean
}
/** Absent where `needs` said so; the type has all of them, since it does not know that. */
export interface ContractionGradients<A> {
  /** Shape of x. */
  x: A
  /** Shape of weight: a species' set gets the sum over its nodes. */
  weight: A
}
export interface ContractionSecondGradients<A> extends ContractionGradients<A> {
  /** Shape of the result. */
  gradOut: A
}
/** Cotangents of the gradients, or tangents of the operands. A missing one is zero. */
export interface ContractionDirections<A> {
  x?: A | undefined
  weight?: A | undefined
}

/** The native operation: all sets of weights are one, shared by all items. */
class Contraction<D extends DType> extends TensorProduct<D> {
  /** Of the calls that follow. */
  bySpecies: NativeSpecies = { of: new Int32Array(0), sets: 1, nodesAtOnce: 1 }

  constructor(irrepsIn: Irreps, irrepsOut: Irreps, weightNumel: number, plan: Plan, options: ResolvedOptions<D>) {
    super({ irrepsIn1: irrepsIn, irrepsIn2: irrepsIn, irrepsOut, weightNumel, paths: [], algorithm: 'sparse', plan, expressivity: () => 0, square: true }, options)
  }
  protected override furtherOperands() {
    return { species: this.bySpecies.of, bySpecies: this.bySpecies }
  }
}

/**
 * MACE's symmetric contraction (Batatia et al., "MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and Accurate Force Fields", NeurIPS
 * 2022, eqs. 10 and 11; `SymmetricContraction` of mace/modules/symmetric_contraction.py): for node n and channel u
 *
 *     out_u,LM = sum over paths k of w[species_n, k, u] T^k_LM(x_u),   T^k = x,   C(x, x)   or   C(C(x, x), x)
 *
 * with C_M(a, b) = sqrt(2 L + 1) sum_ij wigner3j(L, l_a, l_b)[M, i, j] a_i b_j, and every block of x in every place: the columns of MACE's `U_matrix_real`,
 * which normalises them so too ('component').
 *
 * x is (nodes, irrepsIn.dim), the result (nodes, irrepsOut.dim), row-major in the operation's dtype and layout; all irreps have one multiplicity, the number of
 * channels. `species` is an Int32Array (nodes) of numbers from 0 to numSpecies - 1. `weight` is (numSpecies, weightNumel), a row in the order of `paths`, each
 * (channels): by output block, in it from the most factors to the fewest, in MACE's order. MACE's parameters of an output block are therefore
 * `torch.cat([c.weights_max, *c.weights], 1).flatten(1)`, and those of all blocks one behind the other along dimension 1; where a block has no path of some number
 * of factors, MACE keeps a parameter of zeros, which is left out.
 *
 * Since every factor is the same x, many paths are the same polynomial, or combinations of each other: what is evaluated is a basis (docs/mathematics.md).
 * Lanes are channels: 'ir_mul' is the fast layout, and on the CPU few channels leave lanes empty.
 *
 * With backend 'cuda' x, weight and all else but `species` are on the host or on the device, as of every product. A call with other species than the one before
 * uploads them, which takes a wait and is refused inside `capture`.
 */
export class SymmetricContraction<D extends DType = 'float32'> {
  readonly irrepsIn: Irreps
  readonly irrepsOut: Irreps
  readonly correlation: number
  readonly numSpecies: number
  readonly paths: readonly SymmetricPath[]
  /** Weights of a species: the number of paths times that of channels. */
  readonly weightNumel: number
  readonly backend: Backend
  /** Index of the CUDA device, with backend 'cuda'. */
  readonly device: number
  readonly dtype: D
  readonly layout: Layout
  readonly threads: number
  readonly algorithm: string
  /** In words: which algorithm and which backend were taken, and why. */
  readonly choice: Choice
  /** Work and traffic a node, by pass. Operations are those of the kernels, without those on the sets of weights, once a call. Bytes are those of x and the result. */
  readonly cost: Readonly<Record<Pass, PassCost>>

  readonly #contraction: Contraction<D>
  /** Whose channels fit a tile of cuda/symmetric_contraction.cu. */
  readonly #nodesAtOnce: number

  /**
   * @throws EquitensorError `unequal_multiplicities`, `repeated_irrep`, `unreachable_output`, `no_path`, `invalid_irreps`, `degree_limit`, `invalid_option`,
   * `backend_unavailable`, and `not_supported` for channels that are too large for the device.
   */
  constructor(irrepsIn: IrrepsLike, irrepsOut: IrrepsLike, options: SymmetricContractionOptions<D> = {}) {
    requireKnownOptions(options, ['correlation', 'numSpecies', ...commonOptions.filter((name) => name !== 'irrepsOut')])
    const resolved = resolveOptions(options)
    const { correlation = 3, numSpecies = 1 } = options
    if (![1, 2, 3].includes(correlation)) throw argumentError('invalid_option', 'options.correlation', '1, 2 or 3', describe(correlation))
    if (!Number.isInteger(numSpecies) || numSpecies < 1) throw argumentError('invalid_option', 'options.numSpecies', 'a positive integer', describe(numSpecies))
    this.irrepsIn = inputIrreps(irrepsIn, 'irrepsIn')
    this.irrepsOut = outputIrreps(irrepsOut, 'irrepsOut')
    const mul = requireSignals(this.irrepsIn, 'irrepsIn')
    if (requireSignals(this.irrepsOut, 'irrepsOut') !== mul) {
      throw argumentError('unequal_multiplicities', 'irrepsOut', `multiplicity ${mul} as irrepsIn has`, `'${this.irrepsOut}'`)
    }
    this.correlation = correlation
    this.numSpecies = numSpecies
    this.paths = Object.freeze(pathsOf(this.irrepsIn, this.irrepsOut, correlation))
    const products = Array.from({ length: correlation }, (_, n) => new Array(n + 1).fill(irrepsOf(this.irrepsIn)) as Irrep[][])
    const requireAll = (written: readonly { out: number }[], further?: string) =>
      requireReached(this.irrepsOut, written, (code, missing) =>
        unreached(code, { argument: 'irrepsOut', irreps: [missing], products, of: `products of up to ${correlation} irreps of '${this.irrepsIn}'`, further }),
      )
    requireAll(this.paths)
    this.weightNumel = this.paths.length * mul
    const weights = this.weightNumel * numSpecies
    if (weights >= 2 ** 31) {
      const [code, argument] = numSpecies > 1 ? (['invalid_option', 'options.numSpecies'] as const) : (['invalid_irreps', 'irrepsOut'] as const)
      throw argumentError(code, argument, 'less than 2^31 weights in all', `${weights}`)
    }
    for (const [argument, irreps] of Object.entries({ irrepsIn: this.irrepsIn, irrepsOut: this.irrepsOut })) {
      if (irreps.dim >= 2 ** 31) throw argumentError('invalid_irreps', argument, 'less than 2^31 components an item', `${irreps.dim}`)
    }
    // Native code numbers blocks without the empty ones.
    const numbers = [this.irrepsIn, this.irrepsOut].map(({ blocks }) => {
      let next = 0
      return blocks.map((block) => (block.mul > 0 ? next++ : -1))
    }) as [number[], number[]]
    const packed = this.paths.map((path) => {
      const factors = path.in.map((block) => numbers[0][block]!)
      return [numbers[1][path.out]!, factors.length, factors[0]!, factors[1] ?? 0, factors[2] ?? 0, path.intermediate?.l ?? 0]
    })
    const form = {
      isDouble: resolved.dtype === 'float64',
      dims: Int32Array.of(this.irrepsIn.dim, this.irrepsOut.dim),
      mul,
      numSpecies,
      in: packChannels(channelsOf(this.irrepsIn, resolved.layout)),
      out: packChannels(channelsOf(this.irrepsOut, resolved.layout)),
      paths: Int32Array.from(packed.flat()),
    }
    const { operation, ranks } = native.createSymmetricContraction(form)
    // A vector's cross product with itself is a path, and zero.
    const reached = numbers[1].flatMap((number, out) => (number >= 0 && ranks[number]! > 0 ? [{ out }] : []))
    requireAll(reached, 'a part that is symmetric in equal factors')
    const op = (this.#contraction = new Contraction(this.irrepsIn, this.irrepsOut, weights, createPlan('createSymmetricContraction', form, resolved, operation), resolved))
    this.backend = op.backend
    this.device = op.device
    this.dtype = op.dtype
    this.layout = op.layout
    this.threads = op.threads
    this.algorithm = op.algorithm
    this.choice = op.choice
    this.#nodesAtOnce = Math.max(1, Math.floor((op.dtype === 'float32' ? 128 : 64) / mul))
    const size = op.dtype === 'float32' ? 4 : 8, { forward, backward, doubleBackward } = op.cost
    this.cost = {
      forward: { flops: forward.flops, bytes: size * (this.irrepsIn.dim + this.irrepsOut.dim) },
      backward: { flops: backward.flops, bytes: size * (2 * this.irrepsIn.dim + this.irrepsOut.dim) },
      doubleBackward: { flops: doubleBackward.flops, bytes: size * (3 * this.irrepsIn.dim + 2 * this.irrepsOut.dim) },
    }
  }

  /**
   * @throws EquitensorError `wrong_length`, `wrong_dtype`, `wrong_kind`, `invalid_argument` (also for a species out of range), `detached`, `overlap`,
   * `weight_missing`, `disposed`; nothing has been written then. With backend 'cuda' also `out_of_memory`, `cuda`, `device_disabled`, `capturing`.
   */
  forward<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, options?: ForwardOptions<A>): A
  forward(x: ArrayOf<D>, species: Int32Array, weight: ArrayOf<D>, options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    return this.#with(species, x, weight, { out: options?.out }).forward(x, x, weight, options)
  }

  /** {@link forward} beside this thread. Inputs must not change before the promise resolves. */
  forwardAsync<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async forwardAsync(x: ArrayOf<D>, species: Int32Array, weight: ArrayOf<D>, options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {}): Promise<ArrayOf<D>> {
    return this.#with(species, x, weight, { out: options?.out }).forwardAsync(x, x, weight, options)
  }

  /**
   * Gradients of a scalar with respect to x and weight, given its gradient with respect to the result.
   * @param gradOut shape of the result.
   * @throws EquitensorError as {@link forward}.
   */
  backward<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, gradOut: A, options?: Results<A, 'x' | 'weight'>): ContractionGradients<A>
  backward(
    x: ArrayOf<D>,
    species: Int32Array,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    options: Results<ArrayOf<D>, 'x' | 'weight'> = {},
  ): ContractionGradients<ArrayOf<D>> {
    const given = ofContraction(options, ['x', 'weight'])
    return this.#with(species, x, weight, options.out).backward(x, x, weight, gradOut, given)
  }

  /** {@link backward} beside this thread. */
  backwardAsync<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, gradOut: A, options?: Results<A, 'x' | 'weight'> & AsyncOptions): Promise<ContractionGradients<A>>
  async backwardAsync(
    x: ArrayOf<D>,
    species: Int32Array,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    options: Results<ArrayOf<D>, 'x' | 'weight'> & AsyncOptions = {},
  ): Promise<ContractionGradients<ArrayOf<D>>> {
    const given = ofContraction(options, ['x', 'weight'], ['signal'])
    return this.#with(species, x, weight, options.out).backwardAsync(x, x, weight, gradOut, given)
  }

  /**
   * Gradients of a scalar that depends on the results of {@link backward}, given its gradients with respect to those.
   * @throws EquitensorError as {@link forward}.
   */
  doubleBackward<A extends OperandOf<D>>(
    x: A, species: Int32Array, weight: A, gradOut: A, cotangents: ContractionDirections<A>, options?: Results<A, 'x' | 'weight' | 'gradOut'>,
  ): ContractionSecondGradients<A>
  doubleBackward(
    x: ArrayOf<D>,
    species: Int32Array,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: ContractionDirections<ArrayOf<D>>,
    options: Results<ArrayOf<D>, 'x' | 'weight' | 'gradOut'> = {},
  ): ContractionSecondGradients<ArrayOf<D>> {
    requireKnownOptions(cotangents, ['x', 'weight'], 'cotangents')
    const given = ofContraction(options, ['x', 'weight', 'gradOut'])
    return this.#with(species, x, weight, options.out).doubleBackward(x, x, weight, gradOut, cotangents, given)
  }

  /** {@link doubleBackward} beside this thread. */
  doubleBackwardAsync<A extends OperandOf<D>>(
    x: A, species: Int32Array, weight: A, gradOut: A, cotangents: ContractionDirections<A>, options?: Results<A, 'x' | 'weight' | 'gradOut'> & AsyncOptions,
  ): Promise<ContractionSecondGradients<A>>
  async doubleBackwardAsync(
    x: ArrayOf<D>,
    species: Int32Array,
    weight: ArrayOf<D>,
    gradOut: ArrayOf<D>,
    cotangents: ContractionDirections<ArrayOf<D>>,
    options: Results<ArrayOf<D>, 'x' | 'weight' | 'gradOut'> & AsyncOptions = {},
  ): Promise<ContractionSecondGradients<ArrayOf<D>>> {
    requireKnownOptions(cotangents, ['x', 'weight'], 'cotangents')
    const given = ofContraction(options, ['x', 'weight', 'gradOut'], ['signal'])
    return this.#with(species, x, weight, options.out).doubleBackwardAsync(x, x, weight, gradOut, cotangents, given)
  }

  /**
   * Derivative of the result in the direction of tangents of x and weight.
   * @throws EquitensorError as {@link forward}.
   */
  jvp<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, tangents: ContractionDirections<A>, options?: ForwardOptions<A>): A
  jvp(x: ArrayOf<D>, species: Int32Array, weight: ArrayOf<D>, tangents: ContractionDirections<ArrayOf<D>>, options: ForwardOptions<ArrayOf<D>> = {}): ArrayOf<D> {
    requireKnownOptions(tangents, ['x', 'weight'], 'tangents')
    return this.#with(species, x, weight, { out: options?.out }).jvp(x, x, weight, tangents, options)
  }

  /** {@link jvp} beside this thread. */
  jvpAsync<A extends OperandOf<D>>(x: A, species: Int32Array, weight: A, tangents: ContractionDirections<A>, options?: ForwardOptions<A> & AsyncOptions): Promise<A>
  async jvpAsync(
    x: ArrayOf<D>,
    species: Int32Array,
    weight: ArrayOf<D>,
    tangents: ContractionDirections<ArrayOf<D>>,
    options: ForwardOptions<ArrayOf<D>> & AsyncOptions = {},
  ): Promise<ArrayOf<D>> {
    requireKnownOptions(tangents, ['x', 'weight'], 'tangents')
    return this.#with(species, x, weight, { out: options?.out }).jvpAsync(x, x, weight, tangents, options)
  }

  /** Frees the native memory; later calls throw `disposed`. */
  dispose(): void {
    this.#contraction.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal Operations of one node, counted while they are executed. */
  countFlops(pass: Pass): number {
    return this.#contraction.countFlops(pass)
  }

  /** The operation, for nodes of these species. What is left to check, it checks. */
  #with(given: Int32Array, x: ArrayOf<D>, weight: ArrayOf<D>, outputs: object | undefined): Contraction<D> {
    const op = this.#contraction, { numSpecies, weightNumel } = this
    if (op.isDisposed) throw disposed('SymmetricContraction')
    if (!isTyped(given, 'Int32Array')) throw argumentError('invalid_argument', 'species', 'an Int32Array (nodes)', describe(given))
    const species = new Int32Array(given) // so that what is checked is what is used, whoever shares its memory
    // Of other x and weights the operation says what is wrong with them.
    const nodes = lengthIfArray(x)! / this.irrepsIn.dim
    if (Number.isInteger(nodes) && species.length !== nodes) throw argumentError('wrong_length', 'species', `${nodes} numbers, one for each node of x`, `${species.length}`)
    const wrong = species.findIndex((s) => s < 0 || s >= numSpecies)
    if (wrong >= 0) throw argumentError('invalid_argument', `species[${wrong}]`, `an integer from 0 to ${numSpecies - 1}`, `${species[wrong]}`)
    const length = lengthIfArray(weight), expected = `${numSpecies * weightNumel} numbers, (numSpecies ${numSpecies}, weightNumel ${weightNumel})`
    if (weight === undefined || weight === null) throw argumentError('weight_missing', 'weight', expected, describe(weight))
    if (length !== undefined && length !== numSpecies * weightNumel) throw argumentError('wrong_length', 'weight', expected, `${length}`)
    for (const [name, array] of Object.entries(outputs ?? {})) {
      if (ArrayBuffer.isView(array) && lengthIfArray(array) !== undefined) requireSeparate({ [name === 'out' ? name : `out.${name}`]: array }, { species: given })
    }
    const { of } = op.bySpecies
    const isSame = of.length === species.length && of.every((s, n) => s === species[n])
    if (!isSame) op.bySpecies = { of: species, sets: numSpecies, nodesAtOnce: this.#nodesAtOnce }
    return op
  }
}

/** MACE's paths: `_wigner_nj` of mace/tools/cg.py couples from the left, and sorts by irrep after every factor. */
function pathsOf(irrepsIn: Irreps, irrepsOut: Irreps, correlation: number): SymmetricPath[] {
  interface Tree {
    ir: Irrep
    in: number[]
    intermediate?: Irrep
  }
  const blocks = irrepsIn.blocks.flatMap(({ mul, ir }, block) => (mul > 0 ? [{ ir, block }] : []))
  const levels: Tree[][] = [blocks.map(({ ir, block }) => ({ ir, in: [block] }))]
  for (let n = 2; n <= correlation; n++) {
    const trees = levels.at(-1)!.flatMap((left) =>
      blocks.flatMap(({ ir, block }) => multiplyIrreps(left.ir, ir).map((to): Tree => ({ ir: to, in: [...left.in, block], ...(n === 3 && { intermediate: left.ir }) }))),
    )
    levels.push(trees.sort((a, b) => compareIrreps(a.ir, b.ir)))
  }
  return irrepsOut.blocks.flatMap(({ mul, ir }, out) =>
    mul === 0 ? [] : [...levels].reverse().flatMap((trees) => trees.filter((tree) => irrepKey(tree.ir) === irrepKey(ir)).map(({ ir: _, ...tree }) => Object.freeze({ out, ...tree }))),
  )
}

/** Options of the product of x with x, whose second input has no gradient of its own. */
function ofContraction<O extends { needs?: object; out?: object }>(options: O, slots: readonly string[], further: readonly string[] = []): O & { needs: { y: false } } {
  requireKnownOptions(options, ['needs', 'out', 'accumulate', ...further])
  requireKnownOptions(options.needs ?? {}, slots, 'needs')
  requireKnownOptions(options.out ?? {}, slots, 'out')
  return { ...options, needs: { ...options.needs, y: false } }
}
