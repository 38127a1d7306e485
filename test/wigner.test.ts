import { describe, expect, test } from 'vitest'
import { gauntCoefficient, wigner3j, wignerD } from '../lib/index'
import { gaunt } from './reference'
import { arrayError, golden, multiply, product3x3, random, randomRotation } from './support'

// Coefficients are below 1 and come from sums of alternating terms that lose a digit or two: 1e-14 is 50 roundings.
const exact = 1e-14

type Degrees = [number, number, number]
const triples: Degrees[] = []
for (let l1 = 0; l1 <= 11; l1++)
  for (let l2 = 0; l2 <= 11; l2++) for (let l3 = Math.abs(l1 - l2); l3 <= l1 + l2; l3++) triples.push([l1, l2, l3])

const largestDifference = (a: ArrayLike<number>, b: ArrayLike<number>) => {
  let largest = a.length === b.length ? 0 : Infinity
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Math.abs(a[i]! - b[i]!))
  return largest
}

describe('wigner3j', () => {
  test.each(['wigner_3j_l0-4', 'wigner_3j_max5', 'wigner_3j_max6'])("e3nn's values and signs: %s", (file) => {
    for (const { l, i, j, k, v } of golden(file).cases) {
      const [l1, l2, l3] = l
      const expected = new Float64Array((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1))
      v.forEach((value: number, n: number) => (expected[(i[n] * (2 * l2 + 1) + j[n]) * (2 * l3 + 1) + k[n]] = value))
      // e3nn's own zeros are cut at 1e-12, but its values are accurate to about 1e-15.
      expect(largestDifference(wigner3j(l1, l2, l3), expected), `${l}`).toBeLessThan(exact)
    }
  })

  test('sum of squares 1, and orthogonal in the orders of any one argument, up to 11, 11, 22', () => {
    for (const [l1, l2, l3] of triples) {
      const c = wigner3j(l1, l2, l3), rows = (2 * l1 + 1) * (2 * l2 + 1), d3 = 2 * l3 + 1
      let worst = 0
      // All pairs of orders where it is cheap, each order with three others where it is not.
      for (let k = 0; k < d3; k++) {
        for (const k2 of d3 <= 17 ? Array(d3).keys() : [k, (k + 1) % d3, (k + 2) % d3, d3 - 1 - k]) {
          let dot = 0
          for (let r = 0; r < rows; r++) dot += c[r * d3 + k]! * c[r * d3 + k2]!
          worst = Math.max(worst, Math.abs(dot - (k === k2 ? 1 / d3 : 0)))
        }
      }
      expect(worst, `${l1} ${l2} ${l3}`).toBeLessThan(exact)
    }
  })

  test('different output degrees are orthogonal, and together complete', () => {
    for (const [l1, l2] of [[2, 3], [4, 4], [7, 11], [11, 11]] as const) {
      const d1 = 2 * l1 + 1, d2 = 2 * l2 + 1
      const next = random(7)
      for (let sample = 0; sample < 200; sample++) {
        const index = () => Math.floor(((next() + 1) / 2) * d1 * d2)
        const a = index(), b = sample % 2 ? index() : a
        let sum = 0
        for (let l3 = Math.abs(l1 - l2); l3 <= l1 + l2; l3++) {
          const d3 = 2 * l3 + 1, c = tables(l1, l2, l3)
          for (let k = 0; k < d3; k++) sum += d3 * c[a * d3 + k]! * c[b * d3 + k]!
        }
        expect(Math.abs(sum - (a === b ? 1 : 0)), `${l1} ${l2}`).toBeLessThan(1e-13) // sums of several hundred products
      }
    }
  })
  const known = new Map<string, Float64Array>()
  const tables = (...l: Degrees) => known.get(`${l}`) ?? known.set(`${l}`, wigner3j(...l)).get(`${l}`)!

  test('invariant under rotations of all three indices', () => {
    const next = random(1)
    for (const [l1, l2, l3] of triples.filter(([l1, l2, l3], n) => l1 + l2 + l3 <= 12 || n % 41 === 0)) {
      const [d1, d2, d3] = [2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1]
      const rotation = randomRotation(next)
      const [a, b, c] = [l1, l2, l3].map((l) => wignerD(l, rotation)) as [Float64Array, Float64Array, Float64Array]
      const symbol = wigner3j(l1, l2, l3)
      // One index after the other, by cyclic shifts: T_jki = sum_i' D_ii' T_i'jk.
      let t = symbol
      for (const [d, n] of [[a, d1], [b, d2], [c, d3]] as const) {
        const rest = t.length / n, turned = new Float64Array(t.length)
        for (let i = 0; i < n; i++)
          for (let i2 = 0; i2 < n; i2++) for (let r = 0; r < rest; r++) turned[r * n + i]! += d[i * n + i2]! * t[i2 * rest + r]!
        t = turned
      }
      // Three contractions with sums of up to 45 terms on numbers below 1.
      expect(largestDifference(t, symbol), `${l1} ${l2} ${l3}`).toBeLessThan(2e-14)
    }
  })

  test("permutations of the degrees permute the indices, odd ones with the sign (-1)^(l1+l2+l3), as e3nn's", () => {
    for (const [l1, l2, l3] of triples) {
      if (l3 > 11 && (l1 + l2 + l3) % 3) continue
      const [d1, d2, d3] = [2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1]
      const c = wigner3j(l1, l2, l3), cyclic = wigner3j(l3, l1, l2), swapped = wigner3j(l2, l1, l3)
      const sign = (l1 + l2 + l3) % 2 ? -1 : 1
      const a = new Float64Array(c.length), b = new Float64Array(c.length)
      for (let i = 0, n = 0; i < d1; i++) {
        for (let j = 0; j < d2; j++) {
          for (let k = 0; k < d3; k++, n++) {
            a[n] = cyclic[(k * d1 + i) * d2 + j]!
            b[n] = sign * swapped[(j * d1 + i) * d3 + k]!
          }
        }
      }
      expect([largestDifference(a, c), largestDifference(b, c)].every((d) => d < exact), `${l1} ${l2} ${l3}`).toBe(true)
    }
  })

  test('all zero where the triangle rule fails', () => {
    for (const l of [[1, 1, 3], [0, 2, 1], [5, 2, 1]] as Degrees[]) expect(wigner3j(...l).every((v) => v === 0)).toBe(true)
    expect(wigner3j(1, 1, 3)).toHaveLength(63)
  })

  test('bad degrees', () => {
    for (const bad of [-1, 1.5, NaN, '2', undefined, null]) {
      expect(() => wigner3j(1, bad as number, 1)).toThrow(expect.objectContaining({ code: 'invalid_argument', argument: 'l2' }))
    }
    for (const l of [[23, 1, 1], [12, 12, 0], [1, 12, 12], [22, 12, 11]] as Degrees[]) {
      expect(() => wigner3j(...l), `${l}`).toThrow(expect.objectContaining({ code: 'degree_limit' }))
    }
    for (const l of [[11, 22, 11], [22, 11, 11], [1, 11, 12]] as Degrees[]) expect(wigner3j(...l).some((v) => v !== 0)).toBe(true)
  })
})

describe('wignerD', () => {
  test("e3nn's matrices", () => {
    for (const { R, D } of golden('wigner_D').cases) {
      // The golden rotations are rounded to doubles, which enters l times, and e3nn's come from matrix exponentials.
      D.forEach((expected: number[], l: number) => expect(largestDifference(wignerD(l, R), expected), `l = ${l}`).toBeLessThan(1e-13))
    }
  })

  test('a homomorphism into orthogonal matrices, to l = 22', () => {
    const next = random(2)
    for (let l = 0; l <= 22; l++) {
      const a = randomRotation(next), b = randomRotation(next)
      const [da, db] = [wignerD(l, a), wignerD(l, b)], n = 2 * l + 1
      // Sums of up to 45 products, and rounding of the angles enters l times.
      expect(largestDifference(multiply(da, db, n), wignerD(l, product3x3(a, b))), `l = ${l}`).toBeLessThan(1e-13)
      const transposed = da.map((_, i) => da[(i % n) * n + Math.floor(i / n)]!)
      const one = Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0))
      expect(largestDifference(multiply(da, transposed, n), one), `l = ${l}`).toBeLessThan(1e-13)
    }
  })

  test('special rotations: the identity, half and quarter turns about the axes, a tiny one', () => {
    const tiny = 1e-9
    const turns = [
      [1, 0, 0, 0, 1, 0, 0, 0, 1], [-1, 0, 0, 0, 1, 0, 0, 0, -1], [1, 0, 0, 0, -1, 0, 0, 0, -1], [-1, 0, 0, 0, -1, 0, 0, 0, 1],
      [0, 0, 1, 0, 1, 0, -1, 0, 0], [1, 0, 0, 0, 0, -1, 0, 1, 0], [0, -1, 0, 1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, -tiny, 0, tiny, 1],
    ].map((r) => Float64Array.from(r))
    for (const a of turns) {
      expect(largestDifference(wignerD(1, a), a)).toBeLessThan(exact)
      for (const b of turns) {
        for (const l of [2, 7, 11]) {
          const product = multiply(wignerD(l, a), wignerD(l, b), 2 * l + 1)
          // The tiny rotation is orthogonal to 1e-18 only, hardly worse than a double.
          expect(largestDifference(product, wignerD(l, product3x3(a, b)))).toBeLessThan(1e-13)
        }
      }
    }
    expect(largestDifference(wignerD(5, turns[0]!), Float64Array.from({ length: 121 }, (_, i) => (i % 12 === 0 ? 1 : 0)))).toBeLessThan(exact)
  })

  test('the inversion multiplies by the parity', () => {
    const next = random(3)
    for (let l = 0; l <= 11; l++) {
      const proper = randomRotation(next), improper = proper.map((v) => -v)
      const d = wignerD(l, proper)
      for (const p of [1, -1] as const) {
        expect([...wignerD(l, proper, p)]).toEqual([...d])
        expect(largestDifference(wignerD(l, improper, p), d.map((v) => p * v))).toBeLessThan(exact)
      }
    }
  })

  test('bad arguments', () => {
    const one = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    for (const l of [-1, 0.5, '1']) expect(() => wignerD(l as number, one)).toThrow(expect.objectContaining({ code: 'invalid_argument', argument: 'l' }))
    expect(() => wignerD(23, one)).toThrow(expect.objectContaining({ code: 'degree_limit' }))
    for (const p of [0, 2, '1']) expect(() => wignerD(1, one, p as 1)).toThrow(expect.objectContaining({ code: 'invalid_argument', argument: 'p' }))
    for (const r of [[1, 0, 0], null, undefined, 'abcdefghi']) {
      expect(() => wignerD(1, r as never)).toThrow(expect.objectContaining({ argument: 'rotation' }))
    }
    for (const r of [one.map((v) => 1.1 * v), one.map(() => 0), one.map(() => NaN), [1, 0, 0, 1, 0, 0, 0, 0, 1]]) {
      expect(() => wignerD(1, r)).toThrow(expect.objectContaining({ code: 'not_orthogonal', argument: 'rotation' }))
    }
    expect(wignerD(2, Float32Array.from(randomRotation(random(4))))).toHaveLength(25)
  })
})

describe('gauntCoefficient', () => {
  test('is the golden path coefficient times the golden symbol', () => {
    for (const { l: [l1, l2, l3], k } of golden('gaunt').meta.path_coefficients) {
      const symbol = wigner3j(l1, l2, l3)
      const values = Float64Array.from(symbol, (_, n) => {
        const m3 = (n % (2 * l3 + 1)) - l3, rest = Math.floor(n / (2 * l3 + 1))
        return gauntCoefficient(l1, Math.floor(rest / (2 * l2 + 1)) - l1, l2, (rest % (2 * l2 + 1)) - l2, l3, m3)
      })
      expect(arrayError(values, symbol.map((v) => k * v)), `${[l1, l2, l3]}`).toBeLessThan(1e-13) // factors of up to 2, some products
      expect(gaunt(l1, l2, l3) / Math.sqrt(4 * Math.PI)).toBeCloseTo(k, 13) // the tests' own coefficients
    }
  })

  test('symmetric in its three pairs of arguments', () => {
    const next = random(5), upTo = (n: number) => Math.floor(((next() + 1) / 2) * (n + 1))
    let nonzero = 0
    for (let sample = 0; sample < 3000; sample++) {
      const l = [upTo(8), upTo(8), upTo(8)], m = l.map((d) => upTo(2 * d) - d)
      const value = (a: number, b: number, c: number) => gauntCoefficient(l[a]!, m[a]!, l[b]!, m[b]!, l[c]!, m[c]!)
      const first = value(0, 1, 2)
      if (Math.abs(first) > 1e-9) nonzero++
      for (const order of [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] as Degrees[]) {
        expect(Math.abs(value(...order) - first), `${l} ${m}`).toBeLessThan(exact)
      }
    }
    expect(nonzero).toBeGreaterThan(50) // else nothing was compared
  })

  test('zero for odd sums of degrees and beyond the triangle; one constant harmonic leaves the orthonormality of the others', () => {
    expect(gauntCoefficient(1, 0, 1, 0, 1, 0)).toBe(0)
    expect(gauntCoefficient(1, 0, 1, 0, 4, 0)).toBe(0)
    for (let l = 0; l <= 11; l++) {
      for (let m = -l; m <= l; m++) expect(gauntCoefficient(0, 0, l, m, l, m)).toBeCloseTo(1 / Math.sqrt(4 * Math.PI), 13)
      if (l > 0) expect(Math.abs(gauntCoefficient(0, 0, l, l, l, -l))).toBeLessThan(exact)
    }
  })

  test('bad orders', () => {
    for (const m of [2, -2, 0.5, NaN]) expect(() => gauntCoefficient(1, m, 1, 0, 0, 0)).toThrow(expect.objectContaining({ code: 'invalid_argument', argument: 'm1' }))
    expect(() => gauntCoefficient(12, 0, 12, 0, 0, 0)).toThrow(expect.objectContaining({ code: 'degree_limit' }))
  })
})
