import { describe, expect, test } from 'vitest'
import { GauntTensorProduct, Irreps, sphericalHarmonics, type DType } from '../lib/index'
import { gaunt, productErrors, summedTerms } from './reference'
import { arrayError, blockError, constructors, dtypes, golden, layouts, random, randomArray, tolerance } from './support'

const rings = ['values', 'coefficients'] as const
// Every way in which the product is computed.
const forms = [
  ['grid, rings by values', { ring: 'values' }],
  ['grid, rings by coefficients', { ring: 'coefficients' }],
  ['fourier, direct', { convolution: 'direct' }],
  ['fourier by FFT', { convolution: 'fft' }],
] as const
const even = (L: number) => Array.from({ length: L + 1 }, (_, l) => `${l}e`).join('+')
const both = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}o+${mul}x${l}e`).join('+')
// Rotations of the harmonics' own parity have nothing to split; those of the other one or of both have.
const natural = (L: number, p: 1 | -1 = -1) => String(Irreps.sphericalHarmonics(L, p))

type Options = { dtype?: DType; irrepsOut?: string; layout?: 'mul_ir' | 'ir_mul'; algorithm?: 'auto' | 'grid' | 'fourier'; grid?: { beta?: number; alpha?: number } }
type Internals = ConstructorParameters<typeof GauntTensorProduct>[3]
const make = (in1: string, in2: string, options: Options = {}, internals: Internals = {}) =>
  new GauntTensorProduct<any>(in1, in2, { dtype: 'float64', ...options }, internals)

// The largest errors, forward and backward, of a random batch against the sum of Gaunt-weighted 3j paths.
function errors(in1: string, in2: string, options: Options = {}, internals: Internals = {}, batch = 5): number[] {
  const { dtype = 'float64', layout = 'mul_ir', irrepsOut } = options
  const [a, b] = [new Irreps(in1), new Irreps(in2)]
  const terms = summedTerms(a, b, layout, gaunt, irrepsOut === undefined ? undefined : new Irreps(irrepsOut))
  using op = make(in1, in2, options, internals)
  expect(`${op.irrepsOut}`).toBe(`${terms.irrepsOut}`)
  return productErrors(op, terms, dtype, batch)
}

describe('golden values', () => {
  test.each(golden('gaunt').cases.map((c) => [c.lmax1, c.lmax2, c.lmax_out, c]))('degrees %i x %i -> %i', (L1, L2, L3, c) => {
    // Golden harmonics have unit integral norm, ours are sqrt(4 pi) as large in every slot: one factor remains.
    const factor = Math.sqrt(4 * Math.PI)
    const scaled = (values: number[]) => values.map((v) => factor * v)
    const [in1, in2, out] = [L1, L2, L3].map((L) => new Irreps(even(L as number))) as [Irreps, Irreps, Irreps]
    for (const dtype of dtypes) {
      for (const [, internals] of forms) {
        using op = make(even(L1), even(L2), { dtype, irrepsOut: even(L3) }, internals)
        const [x, y, v] = [c.x, c.y, c.v].map((values) => constructors[dtype].from(values))
        const gradients = op.backward(x, y, undefined, v)
        expect(blockError(op.forward(x, y), scaled(c.out_quadrature), out)).toBeLessThan(tolerance[dtype])
        expect(blockError(gradients.x, scaled(c.grad_x), in1)).toBeLessThan(tolerance[dtype])
        expect(blockError(gradients.y, scaled(c.grad_y), in2)).toBeLessThan(tolerance[dtype])
        // The original implementation has float32 constants, accurate to 1e-6 of the largest numbers.
        if (c.out_official_repo) expect(arrayError(op.forward(x, y), scaled(c.out_official_repo))).toBeLessThan(1e-5)
      }
    }
  })
})

test('the output is the product of the two signals, at any point of the sphere', () => {
  const points = randomArray('float64', 3 * 20, random(1))
  // sqrt(4 pi) Y of unit integral norm is 'component'.
  const at = (coefficients: Float64Array, L: number) => {
    const y = sphericalHarmonics(L, points), dim = (L + 1) ** 2
    return Array.from({ length: 20 }, (_, n) => coefficients.reduce((sum, c, i) => sum + c * y[n * dim + i]!, 0))
  }
  for (const [L1, L2] of [[1, 1], [3, 2], [5, 5], [8, 3], [11, 0]] as const) {
    const x = randomArray('float64', (L1 + 1) ** 2, random(2)), y = randomArray('float64', (L2 + 1) ** 2, random(3))
    const z = make(even(L1), even(L2)).forward(x, y)
    const f = at(x, L1), g = at(y, L2)
    // Signals are of order 10, and their products of order 100: an absolute 1e-11 is 1e-13 of that.
    at(z as Float64Array, L1 + L2).forEach((value, n) => expect(Math.abs(value - f[n]! * g[n]!)).toBeLessThan(1e-11))
  }
})

describe.each(forms)('%s', (_form, internals) => {
  describe.each(dtypes)('%s', (dtype) => {
    test.each([0, 1, 2, 3, 4, 5, 6, 7, 8])('0..%i with itself: all even, natural and both parities', (L) => {
      for (const [a, b] of [[even(L), even(L)], [natural(L), natural(L)], [both(L), both(L)]] as const) {
        for (const error of errors(a, b, { dtype }, internals)) expect(error, a).toBeLessThan(tolerance[dtype])
      }
    })

    test('unequal degrees, gaps, truncated and permuted outputs, signals of other parities', () => {
      const problems: [in1: string, in2: string, irrepsOut?: string][] = [
        ['0e+1e+2e', '0e+1e+2e+3e+4e+5e', even(4)], ['3e', '2e'], ['7o', '1o+3o'], ['4e+2e', '0e+6e', '6e+4e+2e'], ['11o', '0e+11o'],
        [natural(3), natural(3, 1)], [natural(3, 1), natural(2, 1)], [both(3), natural(2)], [natural(4), both(1)],
        ['0o+1e+2o+3e', natural(3)], ['0o+1e+2o+3e', '0o+1e+2o+3e'], [both(2), both(4), '2o+4e+1o'], ['2e+1o+2o', '1e+1o', '1e+1o+3o'],
        [even(6), even(6), even(6)], [even(7), even(7), even(3)], ['1o', '0e', '1o'], ['0e', '0e'], ['0o', '5e'], ['0e+5e+5o', '0e', '0e'],
        // Odd irreps of the first input that no product has: their gradient is zero.
        ['1o+1e', '1e+2e', '2e'], ['1e+2e', '2o+1e+3o', '1e'],
        // All degrees to 2 and 4, as straight code takes them, and not in its order.
        [even(2), even(2), even(4)], ['2e+0e+1e', even(2), even(4)], [even(2), even(2), '4e+3e+2e+1e+0e'],
      ]
      for (const [a, b, irrepsOut] of problems) {
        for (const error of errors(a, b, { dtype, ...(irrepsOut && { irrepsOut }) }, internals)) expect(error, `${a} x ${b}`).toBeLessThan(tolerance[dtype])
      }
    })
  })

  test('signals by channel, in both layouts', () => {
    for (const layout of layouts) {
      for (const mul of [2, 3, 5, 17]) {
        const channels = (irreps: string) => irreps.replaceAll('1x', `${mul}x`)
        for (const [a, b] of [[natural(3), natural(2)], [both(2), both(2)]] as const) {
          for (const error of errors(channels(a), channels(b), { layout }, internals, 3)) expect(error).toBeLessThan(tolerance.float64)
        }
      }
    }
  })
})

describe('grids', () => {
  const sizes = [[1, 1, 2], [2, 2, 4], [2, 2, 2], [3, 2, 2], [3, 3, 3], [2, 1, 2], [4, 4, 8], [6, 6, 12], [5, 3, 7], [7, 7, 14]] as const

  test.each(sizes)('%i x %i -> %i: the smallest exact one is the default, and each of its sides is needed', (L1, L2, L3) => {
    const options: Options = { irrepsOut: even(L3), algorithm: 'grid' }
    const exact = { beta: Math.floor((L1 + L2 + L3) / 2) + 1, alpha: L1 + L2 + L3 + 1 }
    expect(make(even(L1), even(L2), options).grid).toEqual(exact)
    for (const side of ['beta', 'alpha'] as const) {
      const grid = { [side]: exact[side] - 1 }
      // Not a rounding error: the first component that aliases is wrong by a few per cent at least.
      const [error, gradX, gradY] = errors(even(L1), even(L2), { ...options, grid }, { ring: 'values', inexactGrid: true })
      expect(Math.min(error!, gradX!, gradY!), side).toBeGreaterThan(1e-3)
      expect(() => make(even(L1), even(L2), { ...options, grid })).toThrow(
        expect.objectContaining({ code: 'grid_too_small', argument: `options.grid.${side}`, received: `${exact[side] - 1}` }),
      )
    }
    for (const [more, further] of [[1, 0], [0, 1], [1, 1], [2, 3], [5, 8]] as const) {
      const grid = { beta: exact.beta + more, alpha: exact.alpha + further }
      for (const ring of rings) for (const error of errors(even(L1), even(L2), { ...options, grid }, { ring })) expect(error, `${ring} ${more} ${further}`).toBeLessThan(tolerance.float64)
      expect(make(even(L1), even(L2), { ...options, grid }).grid).toEqual(grid)
    }
  })

  test('the degrees that count are those of the irreps in use, also where parities are split', () => {
    expect(make('0e+0x5e+2e', '1o', { irrepsOut: '1o', algorithm: 'grid' }).grid).toEqual({ beta: 3, alpha: 5 })
    expect(make(both(2), both(2), { algorithm: 'grid' }).grid).toEqual({ beta: 5, alpha: 9 })
    for (const error of errors(both(2), both(2), { grid: { beta: 6, alpha: 12 } }, { ring: 'values' })) expect(error).toBeLessThan(tolerance.float64)
  })

  test('bad grids', () => {
    for (const side of ['beta', 'alpha'] as const) {
      for (const value of [0, -3, 4.5, NaN, Infinity, 513, '9']) {
        expect(() => make('1o', '1o', { grid: { [side]: value as number } }), `${value}`).toThrow(expect.objectContaining({ code: 'invalid_option', argument: `options.grid.${side}` }))
      }
    }
    expect(() => make('1o', '1o', { grid: { theta: 9 } as object })).toThrow(expect.objectContaining({ code: 'invalid_option' }))
    for (const grid of [7, 'fine']) expect(() => make('1o', '1o', { grid: grid as never }), `${grid}`).toThrow(expect.objectContaining({ code: 'invalid_option' }))
    expect(make('1o', '1o', { grid: { beta: undefined } as object }).grid).toEqual({ beta: 3, alpha: 5 })
  })
})

describe('algorithms', () => {
  const problems: [in1: string, in2: string, irrepsOut?: string][] = [
    ...[1, 2, 3, 4, 6].map((L): [string, string] => [even(L), even(L)]), [both(2), both(2)], ['2e', '2e'], ['4e', '4e'], [even(6), even(1)], [even(2), even(2), even(2)],
  ]
  // What `npm run compare` measures; where they are within a few percent, either is right.
  const faster: Record<string, 'grid' | 'fourier'> = { [`${even(2)} ${even(2)}`]: 'fourier', '2e 2e': 'fourier', '4e 4e': 'grid', [`${even(3)} ${even(3)}`]: 'grid', [`${even(6)} ${even(6)}`]: 'grid' }
  test.each(problems)('%s x %s -> %s: auto is the faster one, and fourier the better of its two', (in1, in2, irrepsOut) => {
    const options: Options = irrepsOut ? { irrepsOut } : {}
    const flops = forms.map(([, internals]) => make(in1, in2, options, internals).cost.forward.flops)
    const grid = make(in1, in2, { ...options, algorithm: 'grid' }), fourier = make(in1, in2, { ...options, algorithm: 'fourier' }), auto = make(in1, in2, options)
    expect([grid, fourier].map((op) => op.cost.forward.flops)).toEqual([Math.min(flops[0]!, flops[1]!), Math.min(flops[2]!, flops[3]!)])
    expect([grid.algorithm, fourier.algorithm]).toEqual(['grid', 'fourier'])
    const expected = irrepsOut === undefined && auto.backend === 'cpu' ? faster[`${in1} ${in2}`] : undefined
    if (expected) expect(auto.algorithm).toBe(expected)
    const degrees = grid.irrepsIn1.lmax + grid.irrepsIn2.lmax + grid.irrepsOut.lmax
    const [taken, other] = auto.algorithm === 'grid' ? [grid, fourier] : [fourier, grid]
    expect(auto.choice.algorithm).toMatch(new RegExp(`^${taken.algorithm}: \\d+ operations an item forward( \\(unrolled ones count a seventh\\))?, ${other.algorithm} has \\d+$`))
    const [ofTaken, ofOther] = auto.choice.algorithm.match(/\d+(?= operations)|\d+$/g)!.map(Number) as [number, number]
    expect(ofTaken).toBeLessThanOrEqual(ofOther)
    expect([ofTaken <= taken.cost.forward.flops, ofOther <= other.cost.forward.flops]).toEqual([true, true])
    expect(grid.choice.algorithm).toBe('grid: options.algorithm says so')
    for (const op of [grid, fourier, auto]) expect(op.grid).toEqual({ beta: Math.floor(degrees / 2) + 1, alpha: degrees + 1 })
  })

  test('both algorithms and both convolutions win somewhere', () => {
    expect(make(even(2), even(2)).algorithm).toBe('fourier')
    expect(make(even(4), even(4)).algorithm).toBe('grid')
    const flops = (L: number) => (['direct', 'fft'] as const).map((convolution) => make(even(L), even(L), {}, { convolution }).cost.forward.flops)
    expect(flops(3)[0]).toBeLessThan(flops(3)[1]!)
    expect(flops(5)[1]).toBeLessThan(flops(5)[0]!)
  })

  test('a grid means the grid, and fourier takes none', () => {
    expect(make(even(2), even(2), { grid: {} }).algorithm).toBe('grid')
    for (const grid of [{ beta: 5, alpha: 9 }, {}, null, 7]) {
      expect(() => make('1o', '1o', { algorithm: 'fourier', grid: grid as never }), `${grid}`).toThrow(expect.objectContaining({ code: 'invalid_option', argument: 'options.grid' }))
    }
    expect(make('1o', '1o', { algorithm: 'fourier', grid: undefined } as object).algorithm).toBe('fourier')
  })
})

test('parity: an output has only the products of its own, so the others do not change it', () => {
  using op = make('1o+1e', '1o+1e', { irrepsOut: '0o+0e+2e' })
  const z = (x: number[], y: number[]) => [...op.forward(Float64Array.from(x), Float64Array.from(y))]
  expect(z([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])[0]).toBe(0)
  expect(z([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])[1]).toBeCloseTo(1, 13)
  expect(z([1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0])[0]).toBeCloseTo(1, 13)
  expect(z([1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]).slice(1)).toEqual([0, 0, 0, 0, 0, 0])
})

test('an even scalar of 1 multiplies by 1', () => {
  const x = randomArray('float64', 81, random(1))
  expect(blockError(make(even(8), '0e').forward(x, Float64Array.of(1)), x, new Irreps(even(8)))).toBeLessThan(tolerance.float64)
})

test('interactability, and what cannot be reached', () => {
  expect(make('1o', '1o').interactability).toEqual([[1, 1, 0], [1, 1, 2]])
  expect(make('0e+1o+2e', '1o', { irrepsOut: '1o' }).interactability).toEqual([[0, 1, 1], [2, 1, 1]])
  for (const L of [1, 3, 5, 7]) {
    expect(() => make(`${L}e`, `${L}e`, { irrepsOut: `${L}e` })).toThrow(expect.objectContaining({ code: 'no_path', argument: 'options.irrepsOut', message: expect.stringContaining('l1 + l2 + l3 even') }))
  }
  for (const [irrepsOut, code] of [['1e', 'no_path'], ['0o', 'no_path'], ['3e', 'no_path'], ['0e+1e', 'unreachable_output'], ['0e+2e+0o', 'unreachable_output']] as const) {
    expect(() => make('1o', '1o', { irrepsOut }), irrepsOut).toThrow(expect.objectContaining({ code, argument: 'options.irrepsOut' }))
  }
  expect(() => make('1o', '1o', { irrepsOut: '0e+1e' })).toThrow(/got 1e/)
})
