import { describe, expect, test } from 'vitest'
import { EquitensorError, Irreps, sphericalHarmonics, wignerD, type SphericalHarmonicsOptions } from '../lib/index'
import { blockError, dtypes, golden, guarded, random, randomArray, randomRotation, sameBits, tolerance } from './support'

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
    ['a negative lmax', 'invalid_argument', 'lmax', (out) => sphericalHarmonics(-1, vectors, { out })],
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
