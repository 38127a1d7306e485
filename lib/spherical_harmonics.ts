import { allocate, isTyped, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { runCall, runCallAsync, type AsyncOptions, type CheckedCall, type Runner } from './call'
import { cuda } from './cuda'
import { DeviceArray, isDeviceArray, requireDeviceArray } from './device_array'
import { argumentError, describe } from './errors'
import { Irreps, maxInputDegree, requireInputDegrees, toIrreps, type IrrepsLike } from './irreps'
import { native, type NativeCudaOperation } from './native'
import { nothingToAddTo } from './operation'
import { cpuInfo, oneOf, requireKnownOptions, resolveBackend, type Backend } from './options'

export interface SphericalHarmonicsOptions<D extends DType, A = ArrayOf<D>> {
  /** Normalise the vectors first (default). Otherwise the result is homogeneous of degree l in the vector. */
  normalize?: boolean
  /** `'component'` (default): sum over m of Y^2 is 2l+1 on the unit sphere; `'norm'`: it is 1; `'integral'`: the integral of Y^2 is 1. */
  normalization?: 'integral' | 'component' | 'norm'
  threads?: number
  /** Where vectors of the host are evaluated, by default `'cpu'`; device arrays are on their device. */
  backend?: 'auto' | Backend
  /** Index of the CUDA device of backend 'cuda', by default 0. */
  device?: number
  out?: A
}

export interface SphericalHarmonicsBackwardOptions<D extends DType, A = ArrayOf<D>> extends SphericalHarmonicsOptions<D, A> {
  /** Add to what `out` holds. Default false. */
  accumulate?: boolean
}

/** Options of {@link sphericalHarmonics.doubleBackward}, which has two results. */
export interface SphericalHarmonicsDoubleBackwardOptions<D extends DType, A = ArrayOf<D>> extends Omit<SphericalHarmonicsBackwardOptions<D, A>, 'out'> {
  /** Which gradients to compute, by default both; the other is absent from the result. */
  needs?: { vectors?: boolean; gradOut?: boolean }
  out?: { vectors?: A; gradOut?: A }
}

/** Gradients of a scalar of {@link sphericalHarmonics.backward}'s result. Absent where `needs` said so; the type has all of them, since it does not know that. */
export interface SphericalHarmonicsGradients<A> {
  /** (n, 3) */
  vectors: A
  /** (n, irreps.dim) */
  gradOut: A
}

type HostArray = Float32Array | Float64Array
type Operand = HostArray | DeviceArray
type DTypeOf<A extends HostArray> = A extends Float32Array ? 'float32' : 'float64'
type Plain<A extends HostArray> = A extends Float32Array ? Float32Array : Float64Array

// On harmonics whose mean square over the sphere is 1 ('component').
const scales = {
  component: () => 1,
  norm: (l: number) => 1 / Math.sqrt(2 * l + 1),
  integral: () => 1 / Math.sqrt(4 * Math.PI),
}

// One irrep for each degree, with the parity p^l of a vector of parity p, as e3nn requires.
function requireHarmonics(value: IrrepsLike | number): Irreps {
  if (typeof value === 'number') {
    if (!Number.isInteger(value) || value < 0) throw argumentError('invalid_argument', 'irreps', 'irreps, or an lmax that is not negative', describe(value))
    if (value > maxInputDegree) throw argumentError('degree_limit', 'irreps', `an lmax of at most ${maxInputDegree}`, describe(value))
    return Irreps.sphericalHarmonics(value)
  }
  const irreps = toIrreps(value, 'irreps')
  requireInputDegrees(irreps, 'irreps')
  if (irreps.dim === 0) throw argumentError('invalid_irreps', 'irreps', 'at least one irrep', `'${irreps}'`)
  for (const p of [-1, 1]) {
    if (irreps.blocks.every(({ ir }) => ir.p === (ir.l % 2 === 0 ? 1 : p))) return irreps
  }
  throw argumentError('invalid_irreps', 'irreps', 'parities p^l of one p (0e+1o+2e or 0e+1e+2e)', `'${irreps}'`)
}

// Plans on devices, most recently used last: making one uploads its coefficients.
const plans = new Map<string, NativeCudaOperation>()
const mostPlans = 64

function planOnDevice(device: number, form: Parameters<typeof native.createSphericalHarmonics>[0]): NativeCudaOperation {
  const key = [device, form.isDouble, form.normalize, form.degrees, form.scale].join(';')
  const plan = plans.get(key) ?? cuda((addon) => addon.createSphericalHarmonics(device, form))
  plans.delete(key)
  plans.set(key, plan)
  for (const [oldest, unused] of plans) {
    if (plans.size <= mostPlans) break
    plans.delete(oldest)
    cuda((addon) => addon.disposeOperation(unused))
  }
  return plan
}

const knownOptions = ['normalize', 'normalization', 'threads', 'backend', 'device', 'out'] as const

type Options = Omit<SphericalHarmonicsBackwardOptions<DType, any>, 'out'> & AsyncOptions

type Slot = 'z' | 'ax' | 'xOut' | 'zOut'
interface Argument {
  /** In the native call. */
  slot: Slot
  name: string
  array: unknown
}

interface Evaluation {
  call: CheckedCall<DType>
  runner: Runner
  /** In their order. */
  results: Operand[]
}

// Checks a call and allocates the results that are missing.
function evaluation(irreps: IrrepsLike | number, vectors: Operand, options: Options, operands: Argument[], results: Argument[]): Evaluation {
  const harmonics = requireHarmonics(irreps)
  const isOnDevice = isDeviceArray(vectors)
  const dtype: DType = isOnDevice ? vectors.dtype : isTyped(vectors, 'Float64Array') ? 'float64' : 'float32'
  const require = (array: unknown, argument: string) =>
    isOnDevice ? requireDeviceArray(array, argument, dtype, vectors.device) : requireArray(array, argument, dtype)
  require(vectors, 'vectors')
  const { backend: found, device, isAutomatic } = resolveBackend(isOnDevice ? { backend: 'cuda', device: vectors.device } : options)
  // Few operations for their bytes: not worth the bus.
  const backend = isAutomatic ? 'cpu' : found
  if (isOnDevice && options.backend === 'cpu') throw argumentError('wrong_kind', 'vectors', "an array on the host, with backend 'cpu'", describe(vectors))
  const batch = rowCount(vectors, 'vectors', 3, '(n, 3)')
  const normalize = options.normalize ?? true, accumulate = options.accumulate ?? false
  if (typeof normalize !== 'boolean') throw argumentError('invalid_option', 'options.normalize', 'a boolean', describe(normalize))
  if (typeof accumulate !== 'boolean') throw argumentError('invalid_option', 'options.accumulate', 'a boolean', describe(accumulate))
  const scale = scales[oneOf(options.normalization ?? 'component', 'options.normalization', ['integral', 'component', 'norm'])]
  const threads = options.threads ?? cpuInfo().threads
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw argumentError('invalid_option', 'options.threads', 'an integer from 1 to 1024', describe(threads))
  }
  const isLikeVectors = { z: false, ax: true, xOut: true, zOut: false }
  const lengthOf = (slot: Slot) => batch * (isLikeVectors[slot] ? 3 : harmonics.dim)
  const requireRows = ({ slot, name, array }: Argument): Operand => {
    const checked = require(array, name)
    requireLength(checked, name, lengthOf(slot), `(n ${batch}, ${isLikeVectors[slot] ? 3 : `irreps.dim ${harmonics.dim}`})`)
    return checked
  }
  const inputs: Record<string, Operand> = { vectors }
  for (const operand of operands) inputs[operand.name] = requireRows(operand)
  const given = results.filter(({ array }) => array !== undefined)
  const missing = accumulate && results.find(({ array }) => array === undefined)
  if (missing) throw nothingToAddTo(missing.name, `needs: { ${missing.name.slice(4)}: false }`, results.length)
  const outputs: Record<string, Operand> = Object.fromEntries(given.map((result) => [result.name, requireRows(result)]))
  requireSeparate(outputs, inputs)

  const all = results.map(({ slot, array }) => {
    if (array !== undefined) return array as Operand
    return isOnDevice ? DeviceArray.alloc(dtype, lengthOf(slot), { device }) : allocate(dtype, lengthOf(slot))
  })
  const arrays: CheckedCall<DType>['arrays'] = { x: vectors, batch, accumulate }
  for (const { slot, array } of operands) arrays[slot] = array as Operand
  results.forEach(({ slot }, i) => (arrays[slot] = all[i]!))
  const degrees = harmonics.blocks.flatMap(({ mul, ir }) => Array<number>(mul).fill(ir.l))
  const form = {
    isDouble: dtype === 'float64',
    degrees: Int32Array.from(degrees),
    scale: Float64Array.from({ length: harmonics.lmax + 1 }, (_, l) => scale(l)),
    normalize,
  }
  const runner = backend === 'cuda' ? { cpu: undefined, cuda: planOnDevice(device, form) } : { cpu: native.createSphericalHarmonics(form), cuda: undefined }
  return { call: { arrays, zero: [], given: outputs }, runner: { ...runner, device, threads }, results: all }
}

function evaluate({ runner, call, results }: Evaluation): Operand[] {
  runCall(runner, call)
  if (runner.cpu) native.dispose(runner.cpu)
  return results
}
async function evaluateAsync({ runner, call, results }: Evaluation, { signal }: AsyncOptions): Promise<Operand[]> {
  try {
    await runCallAsync(runner, call, signal)
  } finally {
    if (runner.cpu) native.dispose(runner.cpu)
  }
  return results
}

const forwardCall = (irreps: IrrepsLike | number, vectors: Operand, options: SphericalHarmonicsOptions<DType, any> & AsyncOptions, more: readonly string[] = []) => {
  requireKnownOptions(options, [...knownOptions, ...more])
  return evaluation(irreps, vectors, options, [], [{ slot: 'zOut', name: 'out', array: options.out }])
}
const backwardCall = (
  irreps: IrrepsLike | number,
  vectors: Operand,
  gradOut: Operand,
  options: SphericalHarmonicsBackwardOptions<DType, any> & AsyncOptions,
  more: readonly string[] = [],
) => {
  requireKnownOptions(options, [...knownOptions, 'accumulate', ...more])
  return evaluation(irreps, vectors, options, [{ slot: 'z', name: 'gradOut', array: gradOut }], [{ slot: 'xOut', name: 'out', array: options.out }])
}
const jvpCall = (
  irreps: IrrepsLike | number,
  vectors: Operand,
  tangent: Operand,
  options: SphericalHarmonicsOptions<DType, any> & AsyncOptions,
  more: readonly string[] = [],
) => {
  requireKnownOptions(options, [...knownOptions, ...more])
  return evaluation(irreps, vectors, options, [{ slot: 'ax', name: 'tangent', array: tangent }], [{ slot: 'zOut', name: 'out', array: options.out }])
}
const doubleBackwardCall = (
  irreps: IrrepsLike | number,
  vectors: Operand,
  gradOut: Operand,
  cotangent: Operand,
  options: SphericalHarmonicsDoubleBackwardOptions<DType, any> & AsyncOptions,
  more: readonly string[] = [],
) => {
  requireKnownOptions(options, [...knownOptions, 'needs', 'accumulate', ...more])
  const out = options.out ?? {}, given = options.needs ?? {}
  requireKnownOptions(out, ['vectors', 'gradOut'], 'out')
  requireKnownOptions(given, ['vectors', 'gradOut'], 'needs')
  const needs = { vectors: given.vectors ?? true, gradOut: given.gradOut ?? true }
  for (const name of ['vectors', 'gradOut'] as const) {
    if (typeof needs[name] !== 'boolean') throw argumentError('invalid_option', `needs.${name}`, 'a boolean', describe(needs[name]))
    if (!needs[name] && out[name] !== undefined) throw argumentError('invalid_option', `out.${name}`, `no array, since needs.${name} is false`, 'an array')
  }
  const operands: Argument[] = [
    { slot: 'z', name: 'gradOut', array: gradOut },
    { slot: 'ax', name: 'cotangent', array: cotangent },
  ]
  const wanted = (['vectors', 'gradOut'] as const).filter((name) => needs[name])
  const results = wanted.map((name): Argument => ({ slot: name === 'vectors' ? 'xOut' : 'zOut', name: `out.${name}`, array: out[name] }))
  const gradients = (arrays: Operand[]) => Object.fromEntries(wanted.map((name, i) => [name, arrays[i]])) as unknown as SphericalHarmonicsGradients<Operand>
  return { evaluation: evaluation(irreps, vectors, options, operands, results), gradients }
}

/**
 * Real spherical harmonics of vectors; `e3nn.o3.spherical_harmonics`. Polar axis y, so that degree 1 is proportional to (x, y, z).
 * @param irreps which degrees, up to 11, in the order of the result; or lmax for 0..lmax. A multiplicity repeats a degree.
 * @param vectors (n, 3).
 * @returns (n, irreps.dim), in the dtype of `vectors`. At the zero vector, with `normalize`, degree 0 has its value and the
 * others are zero, as in e3nn.
 * @throws EquitensorError `invalid_irreps`, `degree_limit`, `wrong_length`, `invalid_argument`, `invalid_option`, `wrong_kind`, `detached`, `overlap`,
 * `backend_unavailable`.
 */
export function sphericalHarmonics<A extends HostArray>(irreps: IrrepsLike | number, vectors: A, options?: SphericalHarmonicsOptions<DTypeOf<A>>): Plain<A>
export function sphericalHarmonics<D extends DType>(
  irreps: IrrepsLike | number,
  vectors: DeviceArray<D>,
  options?: SphericalHarmonicsOptions<D, DeviceArray<D>>,
): DeviceArray<D>
export function sphericalHarmonics(irreps: IrrepsLike | number, vectors: Operand, options: SphericalHarmonicsOptions<DType, any> = {}): Operand {
  return evaluate(forwardCall(irreps, vectors, options))[0]!
}

export namespace sphericalHarmonics {
  /**
   * Gradient of a scalar with respect to the vectors, given its gradient with respect to the harmonics: by the ladder relations of solid
   * harmonics (docs/mathematics.md), and through the vector's length with `normalize`.
   * @param vectors (n, 3).
   * @param gradOut (n, irreps.dim).
   * @param options those of the forward call; `out`: (n, 3).
   * @returns (n, 3). With `normalize` a vector no longer than 1e-12, such as the zero vector, has the gradient 0, where e3nn's is about
   * 1e12: it has no direction to train. Without, the zero vector has that of the polynomials, which degree 1 alone contributes to.
   * @throws EquitensorError as {@link sphericalHarmonics}.
   */
  export function backward<A extends HostArray>(irreps: IrrepsLike | number, vectors: A, gradOut: A, options?: SphericalHarmonicsBackwardOptions<DTypeOf<A>>): Plain<A>
  export function backward<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    gradOut: DeviceArray<D>,
    options?: SphericalHarmonicsBackwardOptions<D, DeviceArray<D>>,
  ): DeviceArray<D>
  export function backward(irreps: IrrepsLike | number, vectors: Operand, gradOut: Operand, options: SphericalHarmonicsBackwardOptions<DType, any> = {}): Operand {
    return evaluate(backwardCall(irreps, vectors, gradOut, options))[0]!
  }

  /**
   * Gradients of a scalar with respect to the vectors and to gradOut, given its gradient with respect to {@link backward}'s result. That of
   * the vectors is the Hessian of sum(gradOut * harmonics) times the cotangent, that of gradOut is {@link jvp} along the cotangent.
   * @param vectors (n, 3).
   * @param gradOut (n, irreps.dim), as given to {@link backward}.
   * @param cotangent (n, 3).
   * @param options those of the forward call; `out`: arrays of the results' shapes.
   * @returns `vectors` (n, 3) and `gradOut` (n, irreps.dim). Both are 0 for vectors whose gradient {@link backward} defines to be 0.
   * @throws EquitensorError as {@link sphericalHarmonics}.
   */
  export function doubleBackward<A extends HostArray>(
    irreps: IrrepsLike | number,
    vectors: A,
    gradOut: A,
    cotangent: A,
    options?: SphericalHarmonicsDoubleBackwardOptions<DTypeOf<A>>,
  ): SphericalHarmonicsGradients<Plain<A>>
  export function doubleBackward<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    gradOut: DeviceArray<D>,
    cotangent: DeviceArray<D>,
    options?: SphericalHarmonicsDoubleBackwardOptions<D, DeviceArray<D>>,
  ): SphericalHarmonicsGradients<DeviceArray<D>>
  export function doubleBackward(
    irreps: IrrepsLike | number,
    vectors: Operand,
    gradOut: Operand,
    cotangent: Operand,
    options: SphericalHarmonicsDoubleBackwardOptions<DType, any> = {},
  ): SphericalHarmonicsGradients<Operand> {
    const { evaluation, gradients } = doubleBackwardCall(irreps, vectors, gradOut, cotangent, options)
    return gradients(evaluate(evaluation))
  }

  /**
   * Derivative of the harmonics along a direction of each vector (Jacobian times vector).
   * @param vectors (n, 3).
   * @param tangent (n, 3).
   * @param options those of the forward call; `out`: (n, irreps.dim).
   * @returns (n, irreps.dim); 0 for vectors whose gradient {@link backward} defines to be 0.
   * @throws EquitensorError as {@link sphericalHarmonics}.
   */
  export function jvp<A extends HostArray>(irreps: IrrepsLike | number, vectors: A, tangent: A, options?: SphericalHarmonicsOptions<DTypeOf<A>>): Plain<A>
  export function jvp<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    tangent: DeviceArray<D>,
    options?: SphericalHarmonicsOptions<D, DeviceArray<D>>,
  ): DeviceArray<D>
  export function jvp(irreps: IrrepsLike | number, vectors: Operand, tangent: Operand, options: SphericalHarmonicsOptions<DType, any> = {}): Operand {
    return evaluate(jvpCall(irreps, vectors, tangent, options))[0]!
  }
  // The same beside this thread. Inputs on the host are copied and must not change before; results are written when the promise resolves. `signal` rejects
  // with `aborted`.

  /** {@link sphericalHarmonics} beside this thread. */
  export function forwardAsync<A extends HostArray>(irreps: IrrepsLike | number, vectors: A, options?: SphericalHarmonicsOptions<DTypeOf<A>> & AsyncOptions): Promise<Plain<A>>
  export function forwardAsync<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    options?: SphericalHarmonicsOptions<D, DeviceArray<D>> & AsyncOptions,
  ): Promise<DeviceArray<D>>
  export async function forwardAsync(
    irreps: IrrepsLike | number,
    vectors: Operand,
    options: SphericalHarmonicsOptions<DType, any> & AsyncOptions = {},
  ): Promise<Operand> {
    return (await evaluateAsync(forwardCall(irreps, vectors, options, ['signal']), options))[0]!
  }

  /** {@link backward} beside this thread. */
  export function backwardAsync<A extends HostArray>(
    irreps: IrrepsLike | number,
    vectors: A,
    gradOut: A,
    options?: SphericalHarmonicsBackwardOptions<DTypeOf<A>> & AsyncOptions,
  ): Promise<Plain<A>>
  export function backwardAsync<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    gradOut: DeviceArray<D>,
    options?: SphericalHarmonicsBackwardOptions<D, DeviceArray<D>> & AsyncOptions,
  ): Promise<DeviceArray<D>>
  export async function backwardAsync(
    irreps: IrrepsLike | number,
    vectors: Operand,
    gradOut: Operand,
    options: SphericalHarmonicsBackwardOptions<DType, any> & AsyncOptions = {},
  ): Promise<Operand> {
    return (await evaluateAsync(backwardCall(irreps, vectors, gradOut, options, ['signal']), options))[0]!
  }

  /** {@link doubleBackward} beside this thread. */
  export function doubleBackwardAsync<A extends HostArray>(
    irreps: IrrepsLike | number,
    vectors: A,
    gradOut: A,
    cotangent: A,
    options?: SphericalHarmonicsDoubleBackwardOptions<DTypeOf<A>> & AsyncOptions,
  ): Promise<SphericalHarmonicsGradients<Plain<A>>>
  export function doubleBackwardAsync<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    gradOut: DeviceArray<D>,
    cotangent: DeviceArray<D>,
    options?: SphericalHarmonicsDoubleBackwardOptions<D, DeviceArray<D>> & AsyncOptions,
  ): Promise<SphericalHarmonicsGradients<DeviceArray<D>>>
  export async function doubleBackwardAsync(
    irreps: IrrepsLike | number,
    vectors: Operand,
    gradOut: Operand,
    cotangent: Operand,
    options: SphericalHarmonicsDoubleBackwardOptions<DType, any> & AsyncOptions = {},
  ): Promise<SphericalHarmonicsGradients<Operand>> {
    const { evaluation, gradients } = doubleBackwardCall(irreps, vectors, gradOut, cotangent, options, ['signal'])
    return gradients(await evaluateAsync(evaluation, options))
  }

  /** {@link jvp} beside this thread. */
  export function jvpAsync<A extends HostArray>(
    irreps: IrrepsLike | number,
    vectors: A,
    tangent: A,
    options?: SphericalHarmonicsOptions<DTypeOf<A>> & AsyncOptions,
  ): Promise<Plain<A>>
  export function jvpAsync<D extends DType>(
    irreps: IrrepsLike | number,
    vectors: DeviceArray<D>,
    tangent: DeviceArray<D>,
    options?: SphericalHarmonicsOptions<D, DeviceArray<D>> & AsyncOptions,
  ): Promise<DeviceArray<D>>
  export async function jvpAsync(
    irreps: IrrepsLike | number,
    vectors: Operand,
    tangent: Operand,
    options: SphericalHarmonicsOptions<DType, any> & AsyncOptions = {},
  ): Promise<Operand> {
    return (await evaluateAsync(jvpCall(irreps, vectors, tangent, options, ['signal']), options))[0]!
  }
}
