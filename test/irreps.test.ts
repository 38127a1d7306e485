import { inspect } from 'node:util'
import { describe, expect, test } from 'vitest'
import { caught } from './caught'
import { argumentError, describe as describeValue, EquitensorError, errorCodes } from '../lib/errors'
import {
  compareIrreps, formatIrrep, Irreps, irrepKey, multiplyIrreps, parseIrrep, requireInputDegrees, toIrreps, type Irrep,
} from '../lib/irreps'

// Irreps from a seed: repeated and unsorted blocks, both parities, zero multiplicities, every degree.
function randomIrreps(seed: number): Irreps {
  const next = (n: number) => (seed = (seed * 48271) % 2147483647) % n
  const lmax = 1 + next(22)
  return new Irreps(Array.from({ length: next(12) }, () => [next(5), { l: next(lmax + 1), p: next(2) === 0 ? 1 : -1 }]))
}
const samples = Array.from({ length: 300 }, (_, i) => randomIrreps(i + 1))

describe('construction', () => {
  test('the grammar is that of e3nn', () => {
    // Examples of e3nn's docstrings and tests.
    expect(String(new Irreps('16x1e + 32 x 2o'))).toBe('16x1e+32x2o')
    expect(String(new Irreps(' 100x0e+50x1e  +0x2e '))).toBe('100x0e+50x1e+0x2e')
    expect(String(new Irreps('11e'))).toBe('1x11e')
    expect(String(new Irreps('2y + 3x1y + 1 o'))).toBe('1x2e+3x1o+1x1o')
    expect([...new Irreps('128x0e + 64x1o')]).toEqual([{ mul: 128, ir: { l: 0, p: 1 } }, { mul: 64, ir: { l: 1, p: -1 } }])
  })

  test('arrays and copies', () => {
    const expected = '16x3e+2x1o+256x1e+1x1o+1x2e'
    const irreps = new Irreps([[16, '3e'], { mul: 2, ir: { l: 1, p: -1 } }, [256, { l: 1, p: 1 }], '1o', { l: 2, p: 1 }])
    expect(String(irreps)).toBe(expected)
    expect(String(new Irreps(irreps))).toBe(expected)
    expect(String(new Irreps([...irreps]))).toBe(expected)
    expect(toIrreps(irreps, 'in1')).toBe(irreps)
  })

  test('the empty irreps', () => {
    for (const empty of [new Irreps(''), new Irreps('  '), new Irreps([])]) {
      expect([String(empty), empty.dim, empty.numIrreps, empty.slices, [...empty]]).toEqual(['', 0, 0, [], []])
      expect(caught(() => empty.lmax).code).toBe('invalid_irreps')
    }
  })

  test('spherical harmonics', () => {
    expect(String(Irreps.sphericalHarmonics(3))).toBe('1x0e+1x1o+1x2e+1x3o')
    expect(String(Irreps.sphericalHarmonics(4, 1))).toBe('1x0e+1x1e+1x2e+1x3e+1x4e')
    expect(Irreps.sphericalHarmonics(11).dim).toBe(144)
    expect(caught(() => Irreps.sphericalHarmonics(23))).toMatchObject({ code: 'degree_limit', argument: 'lmax' })
    for (const lmax of [-1, 1.5, NaN, '3']) {
      expect(caught(() => Irreps.sphericalHarmonics(lmax as number))).toMatchObject({ code: 'invalid_argument', argument: 'lmax' })
    }
    for (const p of [0, 2, null]) expect(caught(() => Irreps.sphericalHarmonics(1, p as 1)).argument).toBe('p')
  })

  test('is immutable, and independent of the array it was made from', () => {
    const source: { mul: number; ir: { l: number; p: 1 | -1 } }[] = [{ mul: 2, ir: { l: 1, p: -1 } }]
    const irreps = new Irreps(source)
    source[0]!.ir.l = 5
    source.push(source[0]!)
    expect(String(irreps)).toBe('2x1o')
    for (const part of [irreps, irreps.blocks, irreps.blocks[0], irreps.blocks[0]!.ir, irreps.slices, irreps.slices[0]]) {
      expect(Object.isFrozen(part)).toBe(true)
    }
  })
})

describe('what is refused', () => {
  test('the message quotes the piece and its surroundings', () => {
    const error = caught(() => new Irreps('4x0e + 16x1q'))
    expect(error.message).toBe('irreps: expected "<mul>x<l><e|o>" such as "16x1o", got "16x1q" (in "4x0e + 16x1q")')
    expect(error).toMatchObject({ code: 'invalid_irreps', argument: 'irreps', received: '"16x1q" (in "4x0e + 16x1q")' })
    expect(caught(() => new Irreps('16x1q')).received).toBe('"16x1q"')
    expect(caught(() => toIrreps([[16, '1q']], 'irrepsIn1')).message).toBe(
      'irrepsIn1: expected [mul, irrep] such as [16, "1o"] or [16, { l: 1, p: -1 }], got [ 16, \'1q\' ]')
  })

  test('a long string does not push the piece out of the message', () => {
    const { received } = caught(() => new Irreps('128x0e + '.repeat(50) + '16x1q'))
    expect(received).toBe('"16x1q" (in "128x0e + 128x0e + 128x0e + 12…")')
    expect(caught(() => new Irreps('1'.repeat(1000) + 'q + 1o')).received).toBe(
      `"${'1'.repeat(19)}…" (in "${'1'.repeat(29)}…")`) // 60 characters, so that argumentError leaves it whole
  })

  test.each([
    '1', 'e', '1q', 'x1o', '2x', '2x3x1o', '2x1ox1o', '-1x0e', '1.5x0e', '1e3x0e', '0x10x1o', '1x-1o', '1x1.5o', '1o+',
    '+1o', '1o++1e', '1o 2e', '1x1E', '1 6x1o', '１x1o', '1o,2e', 'NaNx1o',
  ])('string %j', (text) => expect(caught(() => new Irreps(text)).code).toBe('invalid_irreps'))

  test.each([
    undefined, null, 5, 5n, true, Symbol('s'), () => 0, {}, { l: 1, p: 1 }, new Float32Array(2), new Set(['1o']), [5], [undefined],
    new Array(1), [[1]], [[1, '1o', 2]], [['1', '1o']], [[-1, '1o']], [[1.5, '1o']], [[0.5, '1o'], [0.5, '1o']], [[NaN, '1o']],
    [[1n, '1o']], [[1, 'q']], [[1, 1]], [[1, null]], [[1, { l: 1 }]], [[1, { l: '1', p: 1 }]], [[1, { l: -1, p: 1 }]],
    [[1, { l: 0.5, p: 1 }]], [[1, { l: NaN, p: 1 }]], [[1, { l: 1, p: 0 }]], ['2x1o'], [{ ir: '1o' }], [{ mul: 1 }],
  ])('value %#', (value) => expect(caught(() => new Irreps(value as string)).code).toBe('invalid_irreps'))

  test('degrees above 22 anywhere, above 11 in inputs', () => {
    expect(new Irreps('22e').lmax).toBe(22)
    expect(new Irreps('22e').dim).toBe(45)
    expect(caught(() => new Irreps('0e + 2x23o')).message).toBe(
      'irreps: expected a degree up to l = 22, got "2x23o" (in "0e + 2x23o")')
    for (const value of [[[1, { l: 23, p: 1 }]], [[1, { l: Infinity, p: 1 }]], '9'.repeat(400) + 'e']) {
      expect(caught(() => new Irreps(value as string)).code).toBe('degree_limit')
    }
    requireInputDegrees(new Irreps('4x11e'), 'irrepsIn2')
    expect(caught(() => requireInputDegrees(new Irreps('4x11e + 3x12o'), 'irrepsIn2'))).toMatchObject({
      code: 'degree_limit', message: 'irrepsIn2: expected degrees up to l = 11 in an input, got 3x12o',
    })
  })

  test('sizes that doubles cannot count', () => {
    expect(new Irreps('9007199254740991x0e').dim).toBe(Number.MAX_SAFE_INTEGER)
    expect(caught(() => new Irreps('9007199254740992x0e')).expected).toContain('multiplicity')
    expect(caught(() => new Irreps('9'.repeat(400) + 'x0e')).expected).toContain('multiplicity')
    expect(caught(() => new Irreps('9007199254740991x1e')).expected).toContain('dimension')
    expect(caught(() => new Irreps('9007199254740991x0e + 0e')).expected).toContain('dimension')
  })
})

describe('properties', () => {
  test('of one example', () => {
    const irreps = new Irreps('4x1e + 6x2e + 12x2o + 0x5e')
    expect([irreps.dim, irreps.numIrreps, irreps.lmax]).toEqual([102, 22, 2]) // a zero multiplicity has no degree, as in e3nn
    expect(irreps.slices).toEqual([[0, 12], [12, 42], [42, 102], [102, 102]])
    expect(new Irreps('2x0e + 1e').slices).toEqual([[0, 2], [2, 5]])
    expect(caught(() => new Irreps('0x5e').lmax).received).toBe('"0x5e"')
  })

  test('slices tile 0..dim', () => {
    for (const irreps of samples) {
      let end = 0
      irreps.blocks.forEach(({ mul, ir }, i) => {
        expect(irreps.slices[i]).toEqual([end, end + mul * (2 * ir.l + 1)])
        end += mul * (2 * ir.l + 1)
      })
      expect(irreps.dim).toBe(end)
      expect(irreps.slices).toHaveLength(irreps.blocks.length)
    }
  })

  test('text: round trip, JSON, inspection', () => {
    for (const irreps of samples) expect([...new Irreps(irreps.toString())]).toEqual([...irreps])
    const irreps = new Irreps('2x0e + 1o')
    expect(JSON.stringify({ irreps })).toBe('{"irreps":"2x0e+1x1o"}')
    expect(inspect(irreps)).toBe('2x0e+1x1o')
  })

  test('equality is of the blocks in order', () => {
    expect(new Irreps('2x0e + 1o').equals(new Irreps([[2, '0e'], [1, '1o']]))).toBe(true)
    expect(new Irreps('2x0e + 1o').equals(' 2x0e+1x1o')).toBe(true)
    for (const other of ['2x0e+1x1e', '1x1o+2x0e', '1x0e+1x0e+1x1o', '2x0e', '2x0e+1x1o+0x2e']) {
      expect(new Irreps('2x0e + 1o').equals(other)).toBe(false)
    }
    expect(caught(() => new Irreps('1o').equals('1q')).argument).toBe('other')
  })
})

describe('rearrangement', () => {
  test('simplify merges neighbours and does not sort', () => {
    expect(String(new Irreps('1e + 1e + 0e').simplify())).toBe('2x1e+1x0e')
    expect(String(new Irreps('1e + 1e + 0e + 1e').simplify())).toBe('2x1e+1x0e+1x1e')
    expect(String(new Irreps('0x1o + 1e + 0x0e + 2x1e + 0x1e + 1o').simplify())).toBe('3x1e+1x1o')
  })

  test('regroup: every irrep once', () => {
    expect(String(new Irreps('1e + 0e + 1e + 0x2e').regroup())).toBe('1x0e+2x1e')
    for (const irreps of samples) {
      const keys = irreps.regroup().blocks.map(({ ir }) => irrepKey(ir))
      expect(keys).toEqual([...new Set(keys)].sort((a, b) => a - b))
      expect([irreps.regroup().dim, irreps.regroup().numIrreps]).toEqual([irreps.dim, irreps.numIrreps])
    }
  })

  test('filter', () => {
    const irreps = new Irreps('1e + 2e + 0e')
    expect(String(irreps.filter(['0e', '1e']))).toBe('1x1e+1x0e')
    expect(String(irreps.filter('2e + 2x1e'))).toBe('1x1e+1x2e')
    expect(String(irreps.filter(new Irreps('2o')))).toBe('')
    expect(String(new Irreps('3x1e + 1o + 5x2e').filter(({ mul, ir }) => mul > 3 || ir.p === -1))).toBe('1x1o+5x2e')
    expect(caught(() => irreps.filter('1q')).argument).toBe('keep')
  })

  test('sort: the order of e3nn, the meaning of p and inv', () => {
    const { irreps, p, inv } = new Irreps('2o + 1e + 0e + 1e').sort()
    expect([String(irreps), p, inv]).toEqual(['1x0e+1x1e+1x1e+1x2o', [3, 1, 0, 2], [2, 1, 3, 0]])
    // Outputs that e3nn 0.5.1 printed for its tensor products, shuffled by hand.
    expect(String(new Irreps('2x2o+12x1o+8x1e+12x2o+3x1e+12x0o+3x3e+3x2e').sort().irreps)).toBe(
      '12x0o+12x1o+8x1e+3x1e+2x2o+12x2o+3x2e+3x3e')
    const plain = '3x0o+7x0e+5x1o+12x1e+2x2o+4x2e'
    expect(String(new Irreps('4x2e+2x2o+12x1e+5x1o+7x0e+3x0o').sort().irreps)).toBe(plain)
    expect(String(new Irreps(plain).sort({ order: 'e3nn-jax' }).irreps)).toBe('7x0e+3x0o+5x1o+12x1e+4x2e+2x2o')
    expect(caught(() => new Irreps('1o').sort({ order: 'l' as 'e3nn' }))).toMatchObject({ code: 'invalid_option', argument: 'order' })
    for (const options of [null, 'e3nn-jax']) expect(caught(() => new Irreps('1o').sort(options as never))).toMatchObject({ code: 'invalid_option', argument: 'options' })
  })

  test.each(['e3nn', 'e3nn-jax'] as const)('sort(%j): p and inv invert each other, equal irreps keep their order', (order) => {
    for (const source of samples) {
      const { irreps, p, inv } = source.sort({ order })
      const positions = source.blocks.map((_, i) => i)
      expect(inv.map((i) => p[i])).toEqual(positions)
      expect(p.map((j) => inv[j])).toEqual(positions)
      expect(inv.map((i) => source.blocks[i])).toEqual([...irreps])
      for (let j = 1; j < inv.length; j++) {
        const difference = compareIrreps(irreps.blocks[j - 1]!.ir, irreps.blocks[j]!.ir, order)
        expect(difference).toBeLessThanOrEqual(0)
        if (difference === 0) expect(inv[j]!).toBeGreaterThan(inv[j - 1]!)
      }
    }
  })
})

describe('one irrep', () => {
  const all: Irrep[] = Array.from({ length: 46 }, (_, key) => ({ l: key >> 1, p: key % 2 === 0 ? -1 : 1 }))

  test('names and keys', () => {
    expect(all.map(irrepKey)).toEqual(all.map((_, key) => key))
    for (const ir of all) expect(parseIrrep(formatIrrep(ir))).toEqual(ir)
    expect([parseIrrep(' 10o '), parseIrrep('1y'), parseIrrep('4y')]).toEqual([{ l: 10, p: -1 }, { l: 1, p: -1 }, { l: 4, p: 1 }])
    expect(caught(() => parseIrrep('2x1o', 'ir')).message).toBe('ir: expected "<l><e|o>" such as "1o", got "2x1o"')
    expect(caught(() => parseIrrep('23o')).code).toBe('degree_limit')
  })

  test('both orders', () => {
    const names = ['1e', '0e', '2o', '1o', '0o', '2e'].map((name) => parseIrrep(name))
    const sorted = (order?: 'e3nn' | 'e3nn-jax') => [...names].sort((a, b) => compareIrreps(a, b, order)).map(formatIrrep)
    expect(sorted()).toEqual(['0o', '0e', '1o', '1e', '2o', '2e'])
    expect(sorted('e3nn-jax')).toEqual(['0e', '0o', '1o', '1e', '2e', '2o'])
  })

  test('the product follows the triangle rule, and its dimension is the product of the dimensions', () => {
    expect(multiplyIrreps(parseIrrep('1o'), parseIrrep('2e')).map(formatIrrep)).toEqual(['1o', '2o', '3o'])
    for (const a of all) {
      for (const b of all) {
        const product = multiplyIrreps(a, b)
        expect(product.reduce((dim, { l }) => dim + 2 * l + 1, 0)).toBe((2 * a.l + 1) * (2 * b.l + 1))
        expect(product.every(({ p }) => p === a.p * b.p)).toBe(true)
      }
    }
  })
})

describe('errors', () => {
  test('an EquitensorError carries what it says', () => {
    const error = argumentError('wrong_length', 'out', 'length 12', 'length 13')
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({
      name: 'EquitensorError', code: 'wrong_length', argument: 'out', expected: 'length 12', received: 'length 13',
      message: 'out: expected length 12, got length 13',
    })
    expect(error.stack).toMatch(/^EquitensorError: out: expected/)
    const cause = new Error('driver')
    expect(new EquitensorError('cuda', 'failed', { cause }).cause).toBe(cause)
    expect('cause' in new EquitensorError('cuda', 'failed')).toBe(false)
  })

  test('long values are shortened', () => {
    const { received, message } = argumentError('wrong_dtype', 'x', 'a Float64Array', 'a'.repeat(100))
    expect(received).toBe('a'.repeat(59) + '…')
    expect(message.endsWith(received!)).toBe(true)
    for (const value of ['b'.repeat(100), new Float64Array(1e6), Array.from({ length: 99 }, (_, i) => i), { deep: { a: [{}] } }]) {
      expect(describeValue(value).length).toBeLessThanOrEqual(60)
    }
    expect(describeValue(new Float32Array(3))).toBe('Float32Array(3) [ 0, 0, 0 ]')
    expect([describeValue('x'), describeValue(undefined), describeValue(-0), describeValue(3n)]).toEqual(['"x"', 'undefined', '-0', '3n'])
  })

  test('every code has one line of description', () => {
    for (const [code, text] of Object.entries(errorCodes)) {
      expect(code).toMatch(/^[a-z0-9_]+$/)
      expect(text).toMatch(/^[^\n]{10,}\.$/)
    }
  })
})
