// Coupling coefficients and representation matrices, in e3nn's real basis.
import { argumentError, describe } from './errors'
import { maxInputDegree, maxOutputDegree } from './irreps'
import { native } from './native'

function requireDegree(value: unknown, argument: string, limit: number): number {
  if (!Number.isInteger(value) || (value as number) < 0) {
    throw argumentError('invalid_argument', argument, 'a non-negative integer', describe(value))
  }
  if ((value as number) > limit) throw argumentError('degree_limit', argument, `at most ${limit}`, describe(value))
  return value as number
}

// Two degrees up to 11 and one up to 22, in any order.
function requireDegrees(l1: number, l2: number, l3: number): void {
  const degrees = { l1, l2, l3 }
  for (const [name, l] of Object.entries(degrees)) requireDegree(l, name, maxOutputDegree)
  const [, middle] = Object.entries(degrees).sort((a, b) => a[1] - b[1])
  if (middle![1] > maxInputDegree) {
    throw argumentError('degree_limit', middle![0], `at most ${maxInputDegree} for two of the three degrees`, describe([l1, l2, l3]))
  }
}

/**
 * Real Wigner 3j symbol; `e3nn.o3.wigner_3j`.
 * @returns row-major (2l1+1, 2l2+1, 2l3+1), orders from -l to l; sum of squares 1, or all zero where the triangle rule fails.
 * @throws EquitensorError `invalid_argument`, `degree_limit` (two degrees up to 11, one up to 22).
 */
export function wigner3j(l1: number, l2: number, l3: number): Float64Array {
  requireDegrees(l1, l2, l3)
  return native.wigner3j(l1, l2, l3)
}

/**
 * Integral over the sphere of three real spherical harmonics of unit integral norm.
 * @throws EquitensorError `invalid_argument` (orders from -l to l), `degree_limit`.
 */
export function gauntCoefficient(l1: number, m1: number, l2: number, m2: number, l3: number, m3: number): number {
  requireDegrees(l1, l2, l3)
  for (const [name, m, l] of [['m1', m1, l1], ['m2', m2, l2], ['m3', m3, l3]] as const) {
    if (!Number.isInteger(m) || Math.abs(m) > l) throw argumentError('invalid_argument', name, `an integer from ${-l} to ${l}`, describe(m))
  }
  return native.gauntCoefficient(l1, m1, l2, m2, l3, m3)
}

/**
 * Representation matrix of a rotation, or of a rotation times the inversion, on an irrep; `e3nn.o3.Irrep.D_from_matrix`.
 * @param rotation 3 x 3, row-major, orthogonal, acting on (x, y, z). With determinant -1 the result is multiplied by p.
 * @param p parity of the irrep, 1 or -1.
 * @returns (2l+1, 2l+1), row-major.
 * @throws EquitensorError `not_orthogonal` (beyond 1e-5, which float32 matrices meet), `invalid_argument`, `degree_limit`.
 */
export function wignerD(l: number, rotation: ArrayLike<number>, p: 1 | -1 = 1): Float64Array {
  requireDegree(l, 'l', maxOutputDegree)
  if (p !== 1 && p !== -1) throw argumentError('invalid_argument', 'p', '1 or -1', describe(p))
  if (typeof rotation !== 'object' || rotation === null || rotation.length !== 9) {
    throw argumentError('wrong_length', 'rotation', '9 numbers, (3, 3) row-major', describe(rotation))
  }
  const r = Float64Array.from(rotation)
  for (let i = 0; i < 3; i++) {
    for (let j = 0; j <= i; j++) {
      const dot = r[3 * i]! * r[3 * j]! + r[3 * i + 1]! * r[3 * j + 1]! + r[3 * i + 2]! * r[3 * j + 2]!
      if (!(Math.abs(dot - (i === j ? 1 : 0)) < 1e-5)) {
        throw argumentError('not_orthogonal', 'rotation', 'an orthogonal matrix', `rows ${j} and ${i} with dot product ${dot}`)
      }
    }
  }
  const determinant =
    r[0]! * (r[4]! * r[8]! - r[5]! * r[7]!) - r[1]! * (r[3]! * r[8]! - r[5]! * r[6]!) + r[2]! * (r[3]! * r[7]! - r[4]! * r[6]!)
  if (determinant > 0) return native.wignerD(l, r)
  const d = native.wignerD(l, r.map((v) => -v))
  return p === 1 ? d : d.map((v) => -v)
}
