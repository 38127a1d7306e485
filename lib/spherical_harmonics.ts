import { allocate, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { cuda } from './cuda'
import { DeviceArray, nativeArray, requireDeviceArray } from './device_array'
import { argumentError, describe } from './errors'
import { Irreps, requireInputDegrees, toIrreps, type IrrepsLike } from './irreps'
import { native, type NativeCudaOperation } from './native'
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

// On harmonics whose mean square over the sphere is 1 ('component').
const scales = {
  component: () => 1,
  norm: (l: number) => 1 / Math.sqrt(2 * l + 1),
  integral: () => 1 / Math.sqrt(4 * Math.PI),
}

// One irrep for each degree, with the parity p^l of a vector of parity p, as e3nn requires.
function requireHarmonics(value: IrrepsLike | number): Irreps {
  if (typeof value === 'number') {
    const irreps = Irreps.sphericalHarmonics(value)
    requireInputDegrees(irreps, 'irreps')
    return irreps
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

/**
 * Real spherical harmonics of vectors; `e3nn.o3.spherical_harmonics`. Polar axis y, so that degree 1 is proportional to (x, y, z).
 * @param irreps which degrees, up to 11, in the order of the result; or lmax for 0..lmax. A multiplicity repeats a degree.
 * @param vectors (n, 3).
 * @returns (n, irreps.dim), in the dtype of `vectors`. At the zero vector, with `normalize`, degree 0 has its value and the
 * others are zero, as in e3nn.
 * @throws EquitensorError `invalid_irreps`, `degree_limit`, `wrong_length`, `invalid_argument`, `invalid_option`, `wrong_kind`, `detached`, `overlap`,
 * `backend_unavailable`.
 */
export function sphericalHarmonics<A extends Float32Array | Float64Array>(
  irreps: IrrepsLike | number,
  vectors: A,
  options?: SphericalHarmonicsOptions<A extends Float32Array ? 'float32' : 'float64'>,
): A extends Float32Array ? Float32Array : Float64Array
export function sphericalHarmonics<D extends DType>(
  irreps: IrrepsLike | number,
  vectors: DeviceArray<D>,
  options?: SphericalHarmonicsOptions<D, DeviceArray<D>>,
): DeviceArray<D>
export function sphericalHarmonics(
  irreps: IrrepsLike | number,
  vectors: Float32Array | Float64Array | DeviceArray,
  options: SphericalHarmonicsOptions<DType, Float32Array | Float64Array | DeviceArray> = {},
): Float32Array | Float64Array | DeviceArray {
  requireKnownOptions(options, ['normalize', 'normalization', 'threads', 'backend', 'device', 'out'])
  const harmonics = requireHarmonics(irreps)
  const isOnDevice = vectors instanceof DeviceArray
  const dtype: DType = isOnDevice ? vectors.dtype : vectors instanceof Float64Array ? 'float64' : 'float32'
  const require = (array: unknown, argument: string) =>
    isOnDevice ? requireDeviceArray(array, argument, dtype, vectors.device) : requireArray(array, argument, dtype)
  require(vectors, 'vectors')
  const { backend, device } = resolveBackend(isOnDevice ? { backend: 'cuda', device: vectors.device } : options)
  if (isOnDevice && options.backend === 'cpu') throw argumentError('wrong_kind', 'vectors', "an array on the host, with backend 'cpu'", describe(vectors))
  const batch = rowCount(vectors, 'vectors', 3, '(n, 3)')
  const normalize = options.normalize ?? true
  if (typeof normalize !== 'boolean') throw argumentError('invalid_option', 'options.normalize', 'a boolean', describe(normalize))
  const scale = scales[oneOf(options.normalization ?? 'component', 'options.normalization', ['integral', 'component', 'norm'])]
  const threads = options.threads ?? cpuInfo().threads
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw argumentError('invalid_option', 'options.threads', 'an integer from 1 to 1024', describe(threads))
  }
  if (options.out) {
    require(options.out, 'out')
    requireLength(options.out, 'out', batch * harmonics.dim, `(n ${batch}, irreps.dim ${harmonics.dim})`)
    requireSeparate({ out: options.out }, { vectors })
  }
  const length = batch * harmonics.dim
  const out = options.out ?? (isOnDevice ? DeviceArray.alloc(dtype, length, { device }) : allocate(dtype, length))
  const degrees = harmonics.blocks.flatMap(({ mul, ir }) => Array<number>(mul).fill(ir.l))
  const form = {
    isDouble: dtype === 'float64',
    degrees: Int32Array.from(degrees),
    scale: Float64Array.from({ length: harmonics.lmax + 1 }, (_, l) => scale(l)),
    normalize,
  }
  if (backend === 'cuda') {
    const plan = planOnDevice(device, form)
    if (isOnDevice) cuda((addon) => addon.run(plan, { x: nativeArray(vectors), zOut: nativeArray(out as DeviceArray), batch }))
    else cuda((addon) => addon.runHost(plan, { x: vectors, zOut: out as Float32Array | Float64Array, batch }))
    return out
  }
  const operation = native.createSphericalHarmonics(form)
  native.contract(operation, { x: vectors as Float32Array | Float64Array, zOut: out as Float32Array | Float64Array, batch, threads })
  native.dispose(operation)
  return out
}
