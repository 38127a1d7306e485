import { describe, expect, test } from 'vitest'
import { EquitensorError, Irreps, sphericalHarmonics, wigner3j, wignerD, type SphericalHarmonicsOptions } from '../lib/index'
import { native } from '../lib/native'
import { arrayError, blockError, constructors, dtypes, golden, guarded, random, randomArray, randomRotation, sameBits, tolerance } from './support'

const all = (lmax: number) => Irreps.sphericalHarmonics(lmax)

describe('values', () => {
  const { meta, cases } = golden('spherical_harmonics')
  const points = Float64Array.from(meta.points as number[])

  test.each(cases.map((c) => ({ ...c, name: `${c.normalization}, normalize ${c.normalize}` })))("e3nn's: $name", ({ normalization, normalize, y }) => {
    const options = { normalization, normalize }
    // Item by item: without normalize the vectors' lengths enter to the eighth power, and each item has a scale of its own.
    for (const [dtype, bar] of Object.entries(tolerance)) {
      const vectors = dtype === 'float64' ? points : Float32Array.from(points)
      const actual = sphericalHarmonics(8, vectors, options)
      // Golden values near the pole hold e3nn's cancellations: its polynomials lose about l digits' worth of 1e-16 there.
      for (let n = 0; n < 50; n++) {
        const expected = y.slice(n * 81, n * 81 + 81)
        expect(blockError(actual.subarray(n * 81, n * 81 + 81), expected, all(8)), `${dtype}, point ${n}`).toBeLessThan(bar)
      }
    }
  })

  test('of the zero vector: degree 0 has its value, the others are zero', () => {
    for (const normalize of [true, false]) {
      const y = sphericalHarmonics(4, new Float64Array(3), { normalize })
      expect([...y]).toEqual([1, ...Array(24).fill(0)])
    }
    // In the middle of others too, since lanes are filled from several items.
    const vectors = randomArray('float32', 3 * 40, random(1))
    vectors.fill(0, 3 * 11, 3 * 12)
    const y = sphericalHarmonics(4, vectors)
    expect([...y.subarray(25 * 11, 25 * 12)]).toEqual([1, ...Array(24).fill(0)])
    expect(y.every(Number.isFinite)).toBe(true)
  })

  test('short and long vectors normalise as any other, down to a length of 1e-12', () => {
    const vectors = randomArray('float64', 30, random(2))
    const expected = sphericalHarmonics(11, vectors)
    for (const scale of [2 ** -30, 2 ** 30, 2 ** 300]) {
      expect(blockError(sphericalHarmonics(11, vectors.map((v) => scale * v)), expected, all(11)), `${scale}`).toBeLessThan(tolerance.float64)
    }
    // Below a length of 1e-12 e3nn (torch.nn.functional.normalize) divides by 1e-12 instead.
    const tiny = vectors.map((v) => 1e-13 * v)
    const shrunk = sphericalHarmonics(11, tiny.map((v) => v / 1e-12), { normalize: false })
    expect(blockError(sphericalHarmonics(11, tiny), shrunk, all(11))).toBeLessThan(tolerance.float64)
  })

  test('the three normalisations, to l = 11', () => {
    const vectors = randomArray('float64', 3 * 9, random(3))
    const sums = (normalization: 'norm' | 'component' | 'integral', l: number) => {
      const y = sphericalHarmonics(`${l}${l % 2 ? 'o' : 'e'}`, vectors, { normalization }), size = 2 * l + 1
      return Array.from({ length: 9 }, (_, n) => y.subarray(n * size, n * size + size).reduce((sum, v) => sum + v * v, 0))
    }
    for (let l = 0; l <= 11; l++) {
      for (const sum of sums('norm', l)) expect(sum).toBeCloseTo(1, 12)
      for (const sum of sums('component', l)) expect(sum / (2 * l + 1)).toBeCloseTo(1, 12)
      for (const sum of sums('integral', l)) expect((sum * 4 * Math.PI) / (2 * l + 1)).toBeCloseTo(1, 12)
    }
    const unit = Float64Array.of(0.6, 0, 0.8)
    expect([...sphericalHarmonics('1o', unit, { normalization: 'norm' })]).toEqual([expect.closeTo(0.6, 14), 0, expect.closeTo(0.8, 14)])
  })

  test.each(dtypes)('Y(R v) = D(R) Y(v) under rotations and the inversion, to l = 11, %s', (dtype) => {
    const next = random(4)
    for (const inversion of [false, true]) {
      const vectors = randomArray(dtype, 3 * 19, next), rotation = randomRotation(next, inversion)
      const turned = vectors.slice()
      for (let n = 0; n < vectors.length; n += 3)
        for (let i = 0; i < 3; i++) turned[n + i] = rotation[3 * i]! * vectors[n]! + rotation[3 * i + 1]! * vectors[n + 1]! + rotation[3 * i + 2]! * vectors[n + 2]!
      const y = sphericalHarmonics(11, vectors), expected = new Float64Array(y.length)
      for (let l = 0; l <= 11; l++) {
        const d = wignerD(l, rotation, l % 2 ? -1 : 1), size = 2 * l + 1
        for (let row = l * l; row < y.length; row += 144)
          for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) expected[row + i]! += d[i * size + j]! * y[row + j]!
      }
      expect(blockError(sphericalHarmonics(11, turned), expected, all(11))).toBeLessThan(tolerance[dtype])
    }
  })
})

describe('derivatives', () => {
  const options = (['component', 'norm', 'integral'] as const).flatMap((normalization) => [true, false].map((normalize) => ({ normalization, normalize })))
  const of = (l: number) => `${l}${l % 2 ? 'o' : 'e'}`
  const degrees = Array.from({ length: 12 }, (_, l) => l)
  const n = 5
  const plus = (a: Float64Array, t: number, b: Float64Array) => a.map((v, i) => v + t * b[i]!)
  /** Row by row. */
  const dots = (a: ArrayLike<number>, b: ArrayLike<number>) => {
    const dim = a.length / n
    return Array.from({ length: n }, (_, row) => Array.from({ length: dim }, (_, c) => a[row * dim + c]! * b[row * dim + c]!).reduce((sum, v) => sum + v, 0))
  }
  // Lengths from 0.5 to 1.5, so that R_l of degree 11 neither vanishes nor hides the other vectors.
  const draw = (seed: number) => {
    const next = random(seed), vectors = randomArray('float64', 3 * n, next)
    for (let i = 0; i < 3 * n; i += 3) {
      const length = Math.hypot(...vectors.subarray(i, i + 3)), wanted = 1 + next() / 2
      for (let c = i; c < i + 3; c++) vectors[c]! *= wanted / length
    }
    return { vectors, direction: randomArray('float64', 3 * n, next), gradOut: (dim: number) => randomArray('float64', dim * n, next) }
  }
  // Four points, so that the error is h^4 / 30 times the fifth derivative, at most some 12^5 times the function: 3e-11, beside roundings of
  // 1e-15 / h.
  const difference = (f: (t: number) => Float64Array, h = 2 ** -12) => {
    const [a, b, c, d] = [f(-2 * h), f(-h), f(h), f(2 * h)]
    return a.map((v, i) => (8 * (c[i]! - b[i]!) - (d[i]! - v)) / (12 * h))
  }
  const differenceBar = 1e-9

  test.each(degrees)('are those of finite differences, degree %i', (l) => {
    for (const option of options) {
      const { vectors, direction, gradOut } = draw(l), irreps = new Irreps(of(l)), g = gradOut(irreps.dim)
      const at = (t: number) => plus(vectors, t, direction)
      const tangent = difference((t) => sphericalHarmonics(irreps, at(t), option))
      const gradient = sphericalHarmonics.backward(irreps, vectors, g, option)
      const second = sphericalHarmonics.doubleBackward(irreps, vectors, g, direction, option)
      if (l === 0) {
        expect([gradient, second.vectors, second.gradOut].every((array) => array.every((v) => v === 0))).toBe(true)
        continue
      }
      const name = JSON.stringify(option)
      expect(arrayError(sphericalHarmonics.jvp(irreps, vectors, direction, option), tangent), name).toBeLessThan(differenceBar)
      expect(arrayError(dots(gradient, direction), dots(g, tangent)), name).toBeLessThan(differenceBar)
      expect(arrayError(second.gradOut, tangent), name).toBeLessThan(differenceBar)
      // The gradient of degree 1 does not depend on the vector without normalize.
      if (l === 1 && !option.normalize) expect(second.vectors.every((v) => v === 0)).toBe(true)
      else expect(arrayError(second.vectors, difference((t) => sphericalHarmonics.backward(irreps, at(t), g, option))), name).toBeLessThan(differenceBar)
    }
  })

  test.each(degrees.slice(1))('of a homogeneous harmonic function, degree %i', (l) => {
    const { vectors, direction, gradOut } = draw(20 + l), irreps = of(l), g = gradOut(2 * l + 1)
    const squared = dots(vectors, vectors)
    for (const normalize of [true, false]) {
      const y = sphericalHarmonics(irreps, vectors, { normalize })
      const gradient = sphericalHarmonics.backward(irreps, vectors, g, { normalize })
      const hessian = (cotangent: Float64Array) => sphericalHarmonics.doubleBackward(irreps, vectors, g, cotangent, { normalize }).vectors
      const [power, value] = [normalize ? 0 : l, dots(g, y)]
      const largest = Math.max(...gradient.map(Math.abs), ...value.map(Math.abs))
      const bar = 12 * l * l * largest * tolerance.float64 // second derivatives are up to l^2 / |v|^2 times the value
      const close = (actual: ArrayLike<number>, expected: ArrayLike<number>) =>
        expect(Math.max(...Array.from(actual, (v, i) => Math.abs(v - expected[i]!)))).toBeLessThan(bar)
      // Euler: v . grad f = power f, and so H v = (power - 1) grad f.
      close(dots(gradient, vectors), value.map((v) => power * v))
      close(hessian(vectors), gradient.map((v) => (power - 1) * v))
      // The Hessian is symmetric; its trace is that of the Laplacian, 0 for r^l Y and -l (l + 1) / r^2 Y for Y.
      const columns = [0, 1, 2].map((c) => hessian(Float64Array.from({ length: 3 * n }, (_, i) => Number(i % 3 === c))))
      for (let row = 0; row < 3 * n; row += 3)
        for (let i = 0; i < 3; i++) for (let j = 0; j < i; j++) close([columns[i]![row + j]!], [columns[j]![row + i]!])
      const trace = Array.from({ length: n }, (_, row) => columns.reduce((sum, column, c) => sum + column[3 * row + c]!, 0))
      close(trace, value.map((v, i) => (normalize ? (-l * (l + 1) * v) / squared[i]! : 0)))
      // The sum over m of Y^2 is constant on the sphere.
      if (normalize) {
        close(sphericalHarmonics.backward(irreps, vectors, y), new Float64Array(3 * n))
        close(dots(sphericalHarmonics.jvp(irreps, vectors, direction), y), new Float64Array(n))
      }
    }
  })

  // c . grad(g . R_l) is again a sum of harmonics, of degree l - 1: (2l + 1) sqrt(l) times the Wigner 3j of (l, l - 1, 1). So the third order
  // of one degree is the second order of the degree below.
  test('third order, by composition', () => {
    for (const l of [1, 2, 5, 11]) {
      const { vectors, direction, gradOut } = draw(40 + l), g = gradOut(2 * l + 1), c = draw(60 + l).direction, below = new Float64Array(n * (2 * l - 1))
      const coupling = wigner3j(l, l - 1, 1).map((v) => (2 * l + 1) * Math.sqrt(l) * v)
      for (let row = 0; row < n; row++)
        for (let m = 0; m <= 2 * l; m++)
          for (let k = 0; k < 2 * l - 1; k++)
            for (let i = 0; i < 3; i++) below[row * (2 * l - 1) + k]! += coupling[(m * (2 * l - 1) + k) * 3 + i]! * g[row * (2 * l + 1) + m]! * c[3 * row + i]!
      const normalize = false
      const first = sphericalHarmonics.backward(of(l), vectors, g, { normalize })
      expect(arrayError(dots(below, sphericalHarmonics(of(l - 1), vectors, { normalize })), dots(first, c))).toBeLessThan(tolerance.float64)
      const second = (t: number) => sphericalHarmonics.doubleBackward(of(l), plus(vectors, t, direction), g, c, { normalize }).vectors
      const third = sphericalHarmonics.doubleBackward(of(l - 1), vectors, below, direction, { normalize }).vectors
      if (l > 2) expect(arrayError(third, difference(second))).toBeLessThan(differenceBar)
      else expect(Math.max(...difference(second).map((v, i) => Math.abs(v - third[i]!)))).toBeLessThan(differenceBar)
    }
  })

  test('float32, all degrees at once', () => {
    for (const normalize of [true, false]) {
      const { vectors, direction, gradOut } = draw(80)
      const f32 = [vectors, gradOut(144), direction].map((array) => Float32Array.from(array)) as [Float32Array, Float32Array, Float32Array]
      const f64 = f32.map((array) => Float64Array.from(array)) as [Float64Array, Float64Array, Float64Array]
      const [v, g, d] = f32, [v64, g64, d64] = f64, option = { normalize }
      // Second derivatives of degree 11 are sums of terms that are larger than their sum: a digit beyond the bar of values.
      const bar = 10 * tolerance.float32
      expect(arrayError(sphericalHarmonics.backward(11, v, g, option), sphericalHarmonics.backward(11, v64, g64, option))).toBeLessThan(bar)
      const actual = sphericalHarmonics.doubleBackward(11, v, g, d, option), expected = sphericalHarmonics.doubleBackward(11, v64, g64, d64, option)
      expect(arrayError(actual.vectors, expected.vectors)).toBeLessThan(bar)
      expect(blockError(actual.gradOut, expected.gradOut, all(11))).toBeLessThan(bar)
      expect(blockError(sphericalHarmonics.jvp(11, v, d, option), expected.gradOut, all(11))).toBeLessThan(bar)
    }
  })

  test.each(dtypes)('at the zero vector and at lengths to 1e-12 they are 0, %s', (dtype) => {
    for (const short of [[0, 0, 0], [-0, 0, -0], [1e-20, 0, -1e-20], [3e-13, -3e-13, 3e-13]]) {
      // In the middle of others too, since lanes are filled from several items.
      const next = random(9), vectors = randomArray(dtype, 3 * 40, next), g = randomArray(dtype, 25 * 40, next), d = randomArray(dtype, 3 * 40, next)
      vectors.set(short, 3 * 11)
      const gradient = sphericalHarmonics.backward(4, vectors, g), second = sphericalHarmonics.doubleBackward(4, vectors, g, d)
      for (const [array, dim] of [[gradient, 3], [second.vectors, 3], [second.gradOut, 25], [sphericalHarmonics.jvp(4, vectors, d), 25]] as const) {
        expect(array.subarray(11 * dim, 12 * dim).every((v) => v === 0), `${short}`).toBe(true)
        expect(array.every(Number.isFinite)).toBe(true)
        expect(array.subarray(0, dim).some((v) => v !== 0)).toBe(true)
      }
    }
    // Without normalize degree 1 is linear.
    const g = randomArray(dtype, 25, random(10)), zero = new constructors[dtype](3) as typeof g
    const root = Math.fround(Math.sqrt(3))
    const linear = sphericalHarmonics.backward(4, zero, g as never, { normalize: false }) as typeof g
    expect(arrayError(linear, Array.from(g.subarray(1, 4), (v) => root * v))).toBeLessThan(tolerance.float32)
    // A vector that is no number has no gradient either.
    const nan = zero.slice().fill(NaN)
    expect((sphericalHarmonics.backward(4, nan, g as never) as typeof g).every(Number.isNaN)).toBe(true)
  })

  // Homogeneous of degree -1 in the vector, the second derivative of degree -2.
  test('of short and long vectors', () => {
    const check = (dtype: 'float32' | 'float64', scales: number[]) => {
      const next = random(11)
      const [vectors, g, d] = [3, 144, 3].map((dim) => randomArray(dtype, dim * 9, next)) as [Float64Array, Float64Array, Float64Array]
      const gradient = sphericalHarmonics.backward(11, vectors, g), second = sphericalHarmonics.doubleBackward(11, vectors, g, d)
      for (const scale of scales) {
        const scaled = vectors.map((v) => scale * v)
        // Powers of 2 change no digit but through the order of roundings, of which there are some hundred.
        expect(arrayError(sphericalHarmonics.backward(11, scaled, g).map((v) => v * scale), gradient), `${scale}`).toBeLessThan(tolerance[dtype])
        const far = sphericalHarmonics.doubleBackward(11, scaled, g, d)
        expect(arrayError(far.vectors.map((v) => v * scale * scale), second.vectors), `${scale}`).toBeLessThan(tolerance[dtype])
        expect(arrayError(far.gradOut.map((v) => v * scale), second.gradOut), `${scale}`).toBeLessThan(tolerance[dtype])
      }
    }
    check('float64', [2 ** -36, 2 ** -20, 2 ** 30, 2 ** 300])
    check('float32', [2 ** -36, 2 ** -20, 2 ** 30])
    // The square of the length overflows in float32: a vector that counts as infinitely long in values does so here.
    const huge = Float32Array.of(1e20, -1e20, 3e20), g = randomArray('float32', 144, random(12)), d = randomArray('float32', 3, random(13))
    expect(sphericalHarmonics(11, huge).every(Number.isFinite)).toBe(true)
    const second = sphericalHarmonics.doubleBackward(11, huge, g, d)
    for (const array of [sphericalHarmonics.backward(11, huge, g), second.vectors, second.gradOut, sphericalHarmonics.jvp(11, huge, d)]) expect(array.every((v) => v === 0)).toBe(true)
  })

  test('multiplicities and order of the irreps', () => {
    const next = random(14), vectors = randomArray('float64', 3 * 21, next), d = randomArray('float64', 3 * 21, next)
    for (const irreps of ['2x3o+1o+3x0e+2e+1x1o', '2x3e+1e+3x0e+2e+1x1e', '0x2e+2x1o+0x3o', '2e', '0e', '3x0e']) {
      const parsed = new Irreps(irreps), g = randomArray('float64', 21 * parsed.dim, next), summed = new Float64Array(21 * 16)
      const blocks = parsed.blocks.flatMap(({ mul, ir }) => Array<number>(mul).fill(ir.l))
      const spread = (array: Float64Array) =>
        Array.from({ length: 21 }, (_, row) => blocks.map((l) => [...array.subarray(16 * row + l * l, 16 * row + (l + 1) ** 2)])).flat(2)
      for (let row = 0, at = 0; row < 21; row++) for (const l of blocks) for (let m = 0; m < 2 * l + 1; m++) summed[16 * row + l * l + m]! += g[at++]!
      const gradient = sphericalHarmonics.backward(3, vectors, summed), second = sphericalHarmonics.doubleBackward(3, vectors, summed, d)
      const actual = sphericalHarmonics.doubleBackward(irreps, vectors, g, d)
      // Degrees that are there have the same sums, and 0 is added for the others.
      expect(arrayError(sphericalHarmonics.backward(irreps, vectors, g), gradient), irreps).toBeLessThan(tolerance.float64)
      expect(arrayError(actual.vectors, second.vectors), irreps).toBeLessThan(tolerance.float64)
      expect(arrayError(actual.gradOut, spread(second.gradOut)), irreps).toBeLessThan(tolerance.float64)
    }
  })

  // Streaming starts at 512 KiB of output, which in the backward pass is three numbers an item.
  test.each(dtypes)('any number of vectors, any place of the results, %s', (dtype) => {
    const next = random(15), vectors = randomArray(dtype, 3 * 50_003, next), direction = randomArray(dtype, 3 * 50_003, next), gradOut = randomArray(dtype, 4 * 50_003, next)
    for (const [lmax, n] of [[0, 0], [1, 1], [2, 5], [2, 17], [4, 257], [0, 999], [1, 50_003], [2, 15_001], [4, 6001]] as const) {
      const dim = (lmax + 1) ** 2, [v, d, g] = [vectors.subarray(0, 3 * n), direction.subarray(0, 3 * n), gradOut.subarray(0, dim * n)] as [Float64Array, Float64Array, Float64Array]
      const some = sphericalHarmonics.doubleBackward(lmax, v, g, d, { threads: 1 }), gradient = sphericalHarmonics.backward(lmax, v, g, { threads: 1 })
      // An item's place in the batch does not matter.
      if (n > 1) {
        const [v1, g1, d1] = [v.subarray(3), g.subarray(dim), d.subarray(3)] as const, shifted = sphericalHarmonics.doubleBackward(lmax, v1, g1, d1)
        expect(arrayError(sphericalHarmonics.backward(lmax, v1, g1), gradient.subarray(3)), `${n}`).toBeLessThan(tolerance[dtype])
        expect(arrayError(shifted.vectors, some.vectors.subarray(3)), `${n}`).toBeLessThan(tolerance[dtype])
        expect(blockError(shifted.gradOut, some.gradOut.subarray(dim), all(lmax)), `${n}`).toBeLessThan(tolerance[dtype])
      }
      for (const [offset, threads] of [[0, 1], [1, 2], [3, 7]] as const) {
        const name = `lmax ${lmax}, n ${n}, offset ${offset}`
        const out = { vectors: guarded(dtype, 3 * n, offset), gradOut: guarded(dtype, n * dim, offset), backward: guarded(dtype, 3 * n, offset), jvp: guarded(dtype, n * dim, offset) }
        const arrays = { vectors: out.vectors.array as Float64Array, gradOut: out.gradOut.array as Float64Array }
        const results = sphericalHarmonics.doubleBackward(lmax, v, g, d, { out: arrays, threads })
        expect(results.vectors === arrays.vectors && results.gradOut === arrays.gradOut, name).toBe(true)
        sphericalHarmonics.backward(lmax, v, g, { out: out.backward.array as Float64Array, threads })
        sphericalHarmonics.jvp(lmax, v, d, { out: out.jvp.array as Float64Array, threads })
        expect(Object.values(out).every(({ intact }) => intact()), name).toBe(true)
        // Tails take other instructions of the same arithmetic.
        expect(arrayError(arrays.vectors, some.vectors), name).toBeLessThan(tolerance[dtype])
        expect(blockError(arrays.gradOut, some.gradOut, all(lmax)), name).toBeLessThan(tolerance[dtype])
        expect(blockError(out.jvp.array, some.gradOut, all(lmax)), name).toBeLessThan(tolerance[dtype])
        expect(arrayError(out.backward.array, gradient), name).toBeLessThan(tolerance[dtype])
        const again = sphericalHarmonics.doubleBackward(lmax, v, g, d, { threads })
        expect(sameBits(again.vectors, some.vectors) && sameBits(again.gradOut, some.gradOut), name).toBe(true)
        expect(sameBits(sphericalHarmonics.backward(lmax, v, g, { threads }), gradient), name).toBe(true)
      }
    }
  })

  test('the operations that a plan states are those that the kernels execute', () => {
    for (const degrees of [[0], [1], [0, 1], [2], [3, 1, 1, 0], [5, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11]]) {
      for (const normalize of [true, false]) {
        for (const isDouble of [true, false]) {
          const scale = new Float64Array(Math.max(...degrees) + 1).fill(1), dim = degrees.reduce((sum, l) => sum + 2 * l + 1, 0)
          const operation = native.createSphericalHarmonics({ isDouble, degrees: Int32Array.from(degrees), scale, normalize })
          const array = (length: number) => new (isDouble ? Float64Array : Float32Array)(length).fill(0.5)
          const count = (arrays: object) => {
            native.takeCount()
            native.contract(operation, { x: array(3), ...arrays, batch: 1, threads: 1, variant: 'counted' })
            return native.takeCount()
          }
          const [z, ax, xOut, zOut] = [array(dim), array(3), array(3), array(dim)]
          const counted = { forward: count({ zOut }), backward: count({ z, xOut }), doubleBackward: count({ z, ax, xOut, zOut }) }
          expect(native.flops(operation), `${degrees}`).toMatchObject(counted)
          expect(counted.forward).toBeGreaterThan(0)
          native.dispose(operation)
        }
      }
    }
  })
})

describe('arguments', () => {
  test('multiplicities and order of the irreps; parities of vectors and of pseudovectors', () => {
    const vectors = randomArray('float64', 3 * 21, random(5))
    const y = sphericalHarmonics(3, vectors)
    const block = (l: number) => Array.from({ length: 21 }, (_, n) => [...y.subarray(16 * n + l * l, 16 * n + (l + 1) ** 2)])
    for (const irreps of ['2x3o+1o+3x0e+2e+1x1o', '2x3e+1e+3x0e+2e+1x1e', '0x2e+2x1o+0x3o', '2e']) {
      const parsed = new Irreps(irreps)
      const rows = Array.from({ length: 21 }, (_, n) => parsed.blocks.flatMap(({ mul, ir }) => Array(mul).fill(block(ir.l)[n]).flat()))
      expect([...sphericalHarmonics(irreps, vectors)], irreps).toEqual(rows.flat())
    }
    expect([...sphericalHarmonics(all(3), vectors)]).toEqual([...y])
  })

  test('needs, accumulate, and every pass beside this thread', async () => {
    const next = random(8), vectors = randomArray('float64', 3 * 21, next), cotangent = randomArray('float64', 3 * 21, next), g = randomArray('float64', 9 * 21, next)
    const gradient = sphericalHarmonics.backward(2, vectors, g), both = sphericalHarmonics.doubleBackward(2, vectors, g, cotangent)
    expect(sphericalHarmonics.doubleBackward(2, vectors, g, cotangent, { needs: { vectors: false } })).toEqual({ gradOut: both.gradOut })
    expect(sphericalHarmonics.doubleBackward(2, vectors, g, cotangent, { needs: { gradOut: false } })).toEqual({ vectors: both.vectors })
    expect(sphericalHarmonics.doubleBackward(2, vectors, g, cotangent, { needs: { vectors: false, gradOut: false } })).toEqual({})
    const sum = (a: ArrayLike<number>, b: ArrayLike<number>) => Float64Array.from(a, (value, i) => value + b[i]!)
    const out = sphericalHarmonics.backward(2, vectors, g, { out: cotangent.slice(), accumulate: true })
    // The sum is rounded once more, or once less where the last product is added by the same instruction.
    expect(arrayError(out, sum(cotangent, gradient))).toBeLessThan(tolerance.float64)
    const added = sphericalHarmonics.doubleBackward(2, vectors, g, cotangent, { out: { vectors: vectors.slice(), gradOut: g.slice() }, accumulate: true })
    expect(arrayError(added.vectors, sum(vectors, both.vectors))).toBeLessThan(tolerance.float64)
    expect(arrayError(added.gradOut, sum(g, both.gradOut))).toBeLessThan(tolerance.float64)

    const { forwardAsync, backwardAsync, doubleBackwardAsync, jvpAsync } = sphericalHarmonics
    const pending = [forwardAsync(2, vectors), backwardAsync(2, vectors, g), doubleBackwardAsync(2, vectors, g, cotangent), jvpAsync(2, vectors, cotangent)]
    expect(await Promise.all<unknown>(pending)).toEqual([sphericalHarmonics(2, vectors), gradient, both, sphericalHarmonics.jvp(2, vectors, cotangent)])
    const untouched = new Float64Array(9 * 21)
    await expect(forwardAsync(2, vectors, { out: untouched, signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
    await expect(forwardAsync(2, vectors.subarray(1), { out: untouched })).rejects.toMatchObject({ code: 'wrong_length', argument: 'vectors' })
    expect(untouched).toEqual(new Float64Array(9 * 21))
  })

  // Streaming starts at 512 KiB of output; rows of 1 to 25 numbers meet every position in a cache line.
  test.each(dtypes)('any number of vectors, any place of the output, %s', (dtype) => {
    const vectors = randomArray(dtype, 3 * 70_000, random(6))
    for (const [lmax, n] of [[0, 0], [1, 1], [2, 5], [2, 17], [4, 255], [4, 257], [0, 70_000], [1, 35_003], [2, 15_001], [3, 9001], [4, 6001]] as const) {
      const dim = (lmax + 1) ** 2
      const some = sphericalHarmonics(lmax, vectors.subarray(0, 3 * n), { threads: 1 })
      for (const [offset, threads] of [[0, 1], [1, 2], [3, 7], [8, 3]] as const) {
        const { array, intact } = guarded(dtype, n * dim, offset)
        expect(sphericalHarmonics(lmax, vectors.subarray(0, 3 * n), { out: array, threads })).toBe(array)
        expect(intact()).toBe(true)
        // Tails take other instructions of the same arithmetic: the same bits are asked of the same call only.
        expect(blockError(array, some, all(lmax)), `lmax ${lmax}, n ${n}, offset ${offset}`).toBeLessThan(tolerance[dtype])
        expect(sameBits(sphericalHarmonics(lmax, vectors.subarray(0, 3 * n), { threads }), some)).toBe(true)
      }
    }
  })

  test('shared memory, and vectors at odd offsets', () => {
    const vectors = randomArray('float64', 3 * 33 + 1, random(7)).subarray(1)
    const shared = new Float64Array(new SharedArrayBuffer(8 * 99))
    shared.set(vectors)
    expect([...sphericalHarmonics(4, shared)]).toEqual([...sphericalHarmonics(4, vectors)])
  })

  const vectors = new Float64Array(6)
  const detached = new Float64Array(6)
  structuredClone(detached, { transfer: [detached.buffer] })
  const whole = new Float64Array(20)
  const bad: [name: string, code: string, argument: string, call: (out: Float64Array) => unknown][] = [
    ['a degree above 11', 'degree_limit', 'irreps', (out) => sphericalHarmonics('12e', vectors, { out })],
    ['lmax above 11', 'degree_limit', 'irreps', (out) => sphericalHarmonics(12, vectors, { out })],
    ['a negative lmax', 'invalid_argument', 'irreps', (out) => sphericalHarmonics(-1, vectors, { out })],
    ['mixed parities', 'invalid_irreps', 'irreps', (out) => sphericalHarmonics('1o+3e', vectors, { out })],
    ['no irreps', 'invalid_irreps', 'irreps', (out) => sphericalHarmonics('0x1o', vectors, { out })],
    ['an odd scalar', 'invalid_irreps', 'irreps', (out) => sphericalHarmonics('0o', vectors, { out })],
    ['four numbers', 'wrong_length', 'vectors', (out) => sphericalHarmonics(1, new Float64Array(4), { out })],
    ['a plain array', 'invalid_argument', 'vectors', (out) => sphericalHarmonics(1, [1, 2, 3] as unknown as Float64Array, { out })],
    ['no vectors', 'invalid_argument', 'vectors', (out) => sphericalHarmonics(1, undefined as unknown as Float64Array, { out })],
    ['detached vectors', 'detached', 'vectors', (out) => sphericalHarmonics(1, detached, { out })],
    ['a short output', 'wrong_length', 'out', (out) => sphericalHarmonics(1, vectors, { out: out.subarray(1) })],
    ['the other dtype', 'wrong_dtype', 'out', (out) => sphericalHarmonics(1, new Float32Array(6), { out: out as never })],
    ['an overlap', 'overlap', 'out', () => sphericalHarmonics(1, whole.subarray(0, 6), { out: whole.subarray(5, 13) })],
    ['an unknown option', 'invalid_option', 'options.normalise', (out) => sphericalHarmonics(1, vectors, { out, normalise: true } as SphericalHarmonicsOptions<'float64'>)],
    ['an unknown normalization', 'invalid_option', 'options.normalization', (out) => sphericalHarmonics(1, vectors, { out, normalization: '4pi' as never })],
    ['normalize as a word', 'invalid_option', 'options.normalize', (out) => sphericalHarmonics(1, vectors, { out, normalize: 'yes' as never })],
    ['a short gradOut', 'wrong_length', 'gradOut', (out) => sphericalHarmonics.backward(1, vectors, new Float64Array(7), { out: out.subarray(0, 6) })],
    ['a gradOut of the other dtype', 'wrong_dtype', 'gradOut', (out) => sphericalHarmonics.backward(1, vectors, new Float32Array(8) as never, { out: out.subarray(0, 6) })],
    ['a gradient as long as the harmonics', 'wrong_length', 'out', (out) => sphericalHarmonics.backward(1, vectors, new Float64Array(8), { out })],
    ['no cotangent', 'invalid_argument', 'cotangent', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), undefined as never, { out: { gradOut: out } })],
    ['a long cotangent', 'wrong_length', 'cotangent', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), new Float64Array(8), { out: { gradOut: out } })],
    ['one array for both results', 'overlap', 'out.gradOut', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), vectors, { out: { vectors: out.subarray(0, 6), gradOut: out } })],
    ['an unknown result', 'invalid_option', 'out.cotangent', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), vectors, { out: { gradOut: out, cotangent: out } as never })],
    ['a result over the gradient', 'overlap', 'out', () => sphericalHarmonics.backward(1, vectors, whole.subarray(0, 8), { out: whole.subarray(7, 13) })],
    ['a detached tangent', 'detached', 'tangent', (out) => sphericalHarmonics.jvp(1, vectors, detached, { out })],
    ['a short tangent', 'wrong_length', 'tangent', (out) => sphericalHarmonics.jvp(1, vectors, new Float64Array(3), { out })],
    ['accumulate without an array', 'invalid_option', 'out.vectors', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), vectors, { out: { gradOut: out }, accumulate: true })],
    ['an array for what is not needed', 'invalid_option', 'out.gradOut', (out) => sphericalHarmonics.doubleBackward(1, vectors, new Float64Array(8), vectors, { out: { gradOut: out }, needs: { gradOut: false } })],
    ['accumulate of the forward pass', 'invalid_option', 'options.accumulate', (out) => sphericalHarmonics(1, vectors, { out, accumulate: true } as object)],
    ['a signal of a synchronous call', 'invalid_option', 'options.signal', (out) => sphericalHarmonics(1, vectors, { out, signal: AbortSignal.abort() } as object)],
    ['no threads', 'invalid_option', 'options.threads', (out) => sphericalHarmonics(1, vectors, { out, threads: 0 })],
  ]
  test.each(bad)('%s: %s', (_name, code, argument, call) => {
    const { array, untouched } = guarded('float64', 8)
    const before = whole.slice()
    let error: unknown
    try {
      call(array)
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(EquitensorError)
    expect(error).toMatchObject({ code, argument })
    expect((error as EquitensorError).message).toMatch(/^\S+: expected .+, got .+/)
    expect(untouched()).toBe(true)
    expect(whole).toEqual(before)
  })
})
