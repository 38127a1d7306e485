import { allocate, requireArray, requireLength, requireSeparate, rowCount, type ArrayOf, type DType } from './arrays'
import { argumentError, describe } from './errors'
import { Irreps, requireInputDegrees, toIrreps, type IrrepsLike } from './irreps'
import { native } from './native'
import { oneOf, requireKnownOptions } from './options'

export interface SphericalHarmonicsOptions<D extends DType> {
  /** Normalise the vectors first (default). Otherwise the result is homogeneous of degree l in the vector. */
  normalize?: boolean
  /** `'component'` (default): sum over m of Y^2 is 2l+1 on the unit sphere; `'norm'`: it is 1; `'integral'`: the integral of Y^2 is 1. */
  normalization?: 'integral' | 'component' | 'norm'
  threads?: number
  out?: ArrayOf<D>
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

/**
 * Real spherical harmonics of vectors; `e3nn.o3.spherical_harmonics`. Polar axis y, so that degree 1 is proportional to (x, y, z).
 * @param irreps which degrees, up to 11, in the order of the result; or lmax for 0..lmax. A multiplicity repeats a degree.
 * @param vectors (n, 3).
 * @returns (n, irreps.dim), in the dtype of `vectors`. At the zero vector, with `normalize`, degree 0 has its value and the
 * others are zero, as in e3nn.
 * @throws EquitensorError `invalid_irreps`, `degree_limit`, `wrong_length`, `invalid_argument`, `invalid_option`, `detached`, `overlap`.
 */
export function sphericalHarmonics<A extends Float32Array | Float64Array>(
  irreps: IrrepsLike | number,
  vectors: A,
  options: SphericalHarmonicsOptions<A extends Float32Array ? 'float32' : 'float64'> = {},
): A extends Float32Array ? Float32Array : Float64Array {
  type Result = A extends Float32Array ? Float32Array : Float64Array
  requireKnownOptions(options, ['normalize', 'normalization', 'threads', 'out'])
  const harmonics = requireHarmonics(irreps)
  const dtype: DType = (vectors as unknown) instanceof Float64Array ? 'float64' : 'float32'
  requireArray(vectors, 'vectors', dtype)
  const batch = rowCount(vectors, 'vectors', 3, '(n, 3)')
  const normalize = options.normalize ?? true
  if (typeof normalize !== 'boolean') throw argumentError('invalid_option', 'options.normalize', 'a boolean', describe(normalize))
  const scale = scales[oneOf(options.normalization ?? 'component', 'options.normalization', ['integral', 'component', 'norm'])]
  const threads = options.threads ?? native.cpuInfo().threads
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw argumentError('invalid_option', 'options.threads', 'an integer from 1 to 1024', describe(threads))
  }
  const out = (options.out ?? allocate(dtype, batch * harmonics.dim)) as Float32Array | Float64Array
  if (options.out) {
    requireArray(out, 'out', dtype)
    requireLength(out, 'out', batch * harmonics.dim, `(n ${batch}, irreps.dim ${harmonics.dim})`)
    requireSeparate({ out }, { vectors })
  }
  const degrees = harmonics.blocks.flatMap(({ mul, ir }) => Array<number>(mul).fill(ir.l))
  const operation = native.createSphericalHarmonics({
    isDouble: dtype === 'float64',
    degrees: Int32Array.from(degrees),
    scale: Float64Array.from({ length: harmonics.lmax + 1 }, (_, l) => scale(l)),
    normalize,
  })
  native.forward(operation, { x: vectors, zOut: out, batch, xShared: false, yShared: false, threads })
  native.dispose(operation)
  return out as Result
}

