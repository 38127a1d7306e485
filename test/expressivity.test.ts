// op.expressivity is a closed form. Here is its definition: the rank of a generic Jacobian.
import { expect, test } from 'vitest'
import { ClebschGordanTensorProduct, GauntTensorProduct, Irreps, MatrixTensorProduct, type Instruction } from '../lib/index'
import { connected, type AnyProduct } from './reference'
import { random } from './support'

// The linear layers before mix the channels of each block, and one after takes the channels of each output block to one: path (l1, l2, l3) becomes
// the matrix sum over channels w of c[w] a[u(w)][.] b[v(w)][.]; the layers' weights are the parameters, all paths' matrices together the map. With factors it is
// sum over w of t[w] a[w][.] b[w][.], where t[w] is the sum over the terms of the factors of w's three irreps, which are parameters in the place of c.
function jacobianRank(op: AnyProduct, connect: (mul1: number, mul2: number) => [u: number, v: number][], terms = 0): number {
  const next = random(1)
  const weights = (blocks: typeof op.irrepsIn1.blocks, columns: (mul: number) => number) =>
    blocks.map(({ mul }) => Array.from({ length: mul }, () => Array.from({ length: columns(mul) }, next)))
  const a = weights(op.irrepsIn1.blocks, (mul) => mul), b = weights(op.irrepsIn2.blocks, (mul) => mul), c = weights(op.irrepsOut.blocks, () => 1)
  const numbers = new Map<number[], number>()
  const factors = [op.irrepsIn1, op.irrepsIn2, op.irrepsOut].map(({ blocks }) => weights(blocks, () => terms))
  let count = 0
  for (const row of [a, b, c, factors.flat()].flat(2)) {
    numbers.set(row, count)
    count += row.length
  }
  const rows: Float64Array[] = []
  for (const { in1, in2, out } of op.paths) {
    const [A, B, C] = [a[in1]!, b[in2]!, c[out]!]
    const pairs = connect(A.length, B.length)
    for (let i = 0; i < A.length; i++) {
      for (let j = 0; j < B.length; j++) {
        const row = new Float64Array(count)
        if (terms > 0) {
          pairs.forEach(([w]) => {
            const [F, G, H] = [factors[0]![in1]![w]!, factors[1]![in2]![w]!, factors[2]![out]![w]!]
            const t = F.reduce((sum, f, r) => sum + f * G[r]! * H[r]!, 0)
            row[numbers.get(A[w]!)! + i]! += t * B[w]![j]!
            row[numbers.get(B[w]!)! + j]! += t * A[w]![i]!
            for (let r = 0; r < terms; r++) {
              const both = A[w]![i]! * B[w]![j]!
              row[numbers.get(F)! + r]! += both * G[r]! * H[r]!
              row[numbers.get(G)! + r]! += both * F[r]! * H[r]!
              row[numbers.get(H)! + r]! += both * F[r]! * G[r]!
            }
          })
          rows.push(row)
          continue
        }
        pairs.forEach(([u, v], w) => {
          row[numbers.get(C[w]!)!]! += A[u]![i]! * B[v]![j]!
          row[numbers.get(A[u]!)! + i]! += C[w]![0]! * B[v]![j]!
          row[numbers.get(B[v]!)! + j]! += C[w]![0]! * A[u]![i]!
        })
        rows.push(row)
      }
    }
  }
  return rank(rows)
}

// Gaussian elimination with complete pivoting. Generic entries are of order 1 and the matrices small: what is zero is below 1e-12, what is not above 1e-6.
function rank(rows: Float64Array[]): number {
  for (let r = 0; r < rows.length; r++) {
    let best = 0, at: [number, number] = [r, 0]
    for (let i = r; i < rows.length; i++) rows[i]!.forEach((v, j) => Math.abs(v) > best && ((best = Math.abs(v)), (at = [i, j])))
    if (best < 1e-9) return r
    const pivot = rows[at[0]]!
    rows[at[0]] = rows[r]!
    rows[r] = pivot
    for (let i = r + 1; i < rows.length; i++) {
      const factor = rows[i]![at[1]]! / pivot[at[1]]!
      if (factor !== 0) for (let j = 0; j < pivot.length; j++) rows[i]![j]! -= factor * pivot[j]!
      rows[i]![at[1]] = 0
    }
  }
  return rows.length
}

const sameChannel = (mul: number) => Array.from({ length: mul }, (_, u): [number, number] => [u, u])
const everyPair = (mul1: number, mul2: number) => Array.from({ length: mul1 * mul2 }, (_, w): [number, number] => [Math.floor(w / mul2), w % mul2])
const even = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}e`).join('+')
const both = (L: number, mul = 1) => Array.from({ length: L + 1 }, (_, l) => `${mul}x${l}o+${mul}x${l}e`).join('+')

test.each([[1, 6, 5], [2, 19, 9], [3, 44, 13], [4, 85, 17]])('MIMO, L = %i: CGTP %i, GTP and MTP %i', (L, full, channelwise) => {
  using cgtp = ClebschGordanTensorProduct.full(even(L), even(L)), gtp = new GauntTensorProduct(even(L), even(L)), mtp = new MatrixTensorProduct(even(L), even(L))
  expect([cgtp, gtp, mtp].map((op) => op.expressivity)).toEqual([full, channelwise, channelwise])
  expect(jacobianRank(cgtp, everyPair)).toBe(full)
  expect(jacobianRank(gtp, sameChannel)).toBe(channelwise)
  expect(jacobianRank(mtp, sameChannel)).toBe(channelwise)
})

// The numbers of README.md and docs/mathematics.md.
test.each([1, 2, 3, 4])("with the parities of harmonics, L = %i: MTP reaches both parities of a degree, unless the outputs are harmonics' too", (L) => {
  const harmonics = Irreps.sphericalHarmonics(L), irrepsOut = Irreps.sphericalHarmonics(2 * L)
  using gtp = new GauntTensorProduct(harmonics, harmonics), mtp = new MatrixTensorProduct(harmonics, harmonics), some = new MatrixTensorProduct(harmonics, harmonics, { irrepsOut })
  expect([gtp, mtp, some].map((op) => op.expressivity)).toEqual([4 * L + 1, 6 * L, 4 * L + 1])
  expect(jacobianRank(mtp, sameChannel)).toBe(6 * L)
  const filtered = ClebschGordanTensorProduct.full(harmonics, harmonics, { filterIrrepsOut: irrepsOut })
  expect(filtered.expressivity).toBe([5, 14, 30, 55][L - 1])
})

const channelwise: [in1: string, in2: string, irrepsOut?: string][] = [
  [both(1), both(1)], [both(2), both(2)], [both(1), even(2)], ['1o', '1o'], ['0e+1o+2e', '0e+1o+2e'], ['0e+1e', '0o+1o'],
  ['0e+1e+2e+3e', '0e+2e', '1e+2e+3e'], ['2e', '2e', '2e'], ['0e+2e', '0e+2e', '0e'], ['1o+1e', '1o+1e', '0e'], ['0e+0o', '0e+0o'],
  // Two parts of the paths that share no irrep.
  ['0e+1o', '0e+1e', '0e+1o'],
]
test.each(channelwise)('GTP and MTP, one channel: %s x %s -> %s', (in1, in2, irrepsOut) => {
  for (const X of [GauntTensorProduct, MatrixTensorProduct]) {
    using op = new X(in1, in2, irrepsOut === undefined ? {} : { irrepsOut })
    expect(op.expressivity, X.name).toBe(jacobianRank(op, sameChannel))
  }
})

test.each([
  [even(1, 2), even(1, 2)], [even(2, 2), even(2, 2)], [even(1, 3), even(1, 3)], ['2x1o', '2x1o'], ['2x0e', '2x0e'], ['3x1o', '3x1o'], ['2x0e+2x1o', '2x0e'], [both(1, 2), both(1, 2)],
])('GTP and MTP, several channels: %s x %s', (in1, in2) => {
  for (const X of [GauntTensorProduct, MatrixTensorProduct]) {
    using op = new X(in1, in2)
    expect(op.expressivity, X.name).toBe(jacobianRank(op, sameChannel))
  }
})

test.each([
  [even(2), even(2)], [both(1), both(1)], ['0e+1o+2e', '0e+1o+2e'], ['1o+2e', '0e+2e', '1o+3o'], ['1o', '1o'],
  [even(1, 2), even(1, 2)], [even(2, 2), even(2, 2)], [even(1, 3), even(1, 3)], ['2x1o', '2x1o'], ['2x0e+2x1o', '2x0e'], ['2x0e+2x1o', '2x2e'], ['3x0e+3x1o+3x2e', '3x1o'],
] as [string, string, string?][])('GTP and MTP with factors, of one, two, three and four terms: %s x %s -> %s', (in1, in2, irrepsOut) => {
  for (const X of [GauntTensorProduct, MatrixTensorProduct]) {
    for (const rank of [1, 2, 3, 4]) {
      using op = new X(in1, in2, { weights: true, rank, ...(irrepsOut !== undefined && { irrepsOut }) })
      expect(op.expressivity, `${X.name}, rank ${rank}`).toBe(jacobianRank(op, sameChannel, rank))
    }
  }
})

// 0e+1e+2e with itself into all: the paths are 14 and 19, and terms of 9 each overlap where an irrep has one path only.
test('with more terms a product with factors reaches more, at most every weight of its paths', () => {
  const reached = (X: typeof GauntTensorProduct | typeof MatrixTensorProduct) => [1, 2, 3].map((rank) => new X(even(2), even(2), { weights: true, rank }).expressivity)
  expect([reached(GauntTensorProduct), reached(MatrixTensorProduct)]).toEqual([[9, 14, 14], [9, 17, 19]])
})

test.each([['2x0e+1x1o', '2x1o+1x0e'], ['3x1o', '2x1o'], ['2x0e+2x1o', '0e+1o'], ['2x1e+1x1o', '2x1o']])('CGTP full: %s x %s', (in1, in2) => {
  using op = ClebschGordanTensorProduct.full(in1, in2)
  expect(op.expressivity).toBe(jacobianRank(op, everyPair))
})

test.each([['0e', '0e'], ['1o', '1o'], ['0e+1o', '1o+2e'], ['2x0e', '2x0e'], ['2x0e', '2x1o'], ['2x1o', '2x1o'], ['3x1o', '3x2e'], ['2x0e+2x1o', '2x1o+2x0e']])('CGTP elementwise: %s x %s', (in1, in2) => {
  using op = ClebschGordanTensorProduct.elementwise(in1, in2)
  expect(op.expressivity).toBe(jacobianRank(op, sameChannel))
})

// The weights are parameters too. Output channels of uvw, uuw and u<vw are maps of their own; of the others a layer takes each block to one.
function weightedRank(in1: Irreps, in2: Irreps, out: Irreps, instructions: readonly Instruction[]): number {
  const next = random(1)
  let count = 0
  const parameters = (n: number) => Array.from({ length: n }, () => ({ at: count++, value: next() }))
  const layer = (irreps: Irreps) => irreps.blocks.map(({ mul }) => Array.from({ length: mul }, () => parameters(mul)))
  const [A, B, C] = [layer(in1), layer(in2), out.blocks.map(({ mul }) => parameters(mul))]
  const none = { at: -1, value: 1 }
  const rows = new Map<string, Map<number, number>>()
  for (const i of instructions) {
    const [m1, m2, m3] = [in1.blocks[i.in1]!.mul, in2.blocks[i.in2]!.mul, out.blocks[i.out]!.mul]
    const all = connected(i.mode, m1, m2, m3), weights = i.hasWeight ? parameters(1 + Math.max(...all.map(([, , , m]) => m))) : []
    for (const [u, v, w, m] of all) {
      const each = i.hasWeight && i.mode.endsWith('w'), c = each ? none : C[i.out]![w]!, weight = weights[m] ?? none
      for (let p = 0; p < m1; p++)
        for (let q = 0; q < m2; q++) {
          const key = [i.in1, i.in2, i.out, each ? w : 0, p, q].join(), row = rows.get(key) ?? new Map<number, number>()
          const factors = [c, weight, A[i.in1]![u]![p]!, B[i.in2]![v]![q]!]
          for (const f of factors) if (f.at >= 0) row.set(f.at, (row.get(f.at) ?? 0) + factors.reduce((t, g) => (g === f ? t : t * g.value), 1))
          rows.set(key, row)
        }
    }
  }
  return rank([...rows.values()].map((row) => Float64Array.from({ length: count }, (_, n) => row.get(n) ?? 0)))
}

const modes: [mode: Instruction['mode'], in1: string, in2: string, out: string][] = [
  ['uvw', '3x1o', '2x1o', '2x0e+3x1e'], ['uvu', '3x1o', '2x1o', '3x0e+3x1e'], ['uvv', '3x1o', '2x1o', '2x0e+2x2e'], ['uvuv', '3x1o', '2x1o', '6x0e+6x1e'],
  ['uuw', '2x1o', '2x1o', '2x0e+3x1e+1x2e'], ['uuw', '3x1o', '3x1o', '1x0e'], ['uuu', '2x1o', '2x1o', '2x0e+2x1e+2x2e'], ['uuu', '3x1o', '3x1o', '3x0e'],
  ['uuu', '1x1o', '1x1o', '1x0e+1x2e'], ['uvu<v', '2x1o', '2x1o', '1x0e'], ['uvu<v', '2x1o', '2x1o', '1x0e+1x1e+1x2e'], ['uvu<v', '3x1o', '3x1o', '3x0e'],
  ['uvu<v', '3x1o', '3x1o', '3x0e+3x1e'], ['uvu<v', '4x1o', '4x1o', '6x0e+6x1e+6x2e'],
  ['u<vw', '3x1o', '3x1o', '2x0e+1x2e'], ['u<vw', '4x1o', '4x1o', '1x0e'],
]
const needsWeights = (mode: Instruction['mode'], out: string) => mode === 'uvw' || mode === 'u<vw' || (mode === 'uuw' && out !== '1x0e')
const kinds = modes.flatMap(([mode, ...irreps]) => (needsWeights(mode, irreps[2]) ? [true] : [true, false]).map((hasWeight) => [mode, hasWeight, ...irreps] as const))
test.each(kinds)('instructions %s, weights %s: %s x %s -> %s', (mode, hasWeight, a, b, c) => {
  const [in1, in2, out] = [new Irreps(a), new Irreps(b), new Irreps(c)]
  const instructions = out.blocks.map((_, o): Instruction => ({ in1: 0, in2: 0, out: o, mode, hasWeight }))
  using op = new ClebschGordanTensorProduct(in1, in2, { irrepsOut: out, instructions })
  expect(op.expressivity).toBe(weightedRank(in1, in2, out, instructions))
})

test('channelwise and fully connected products of several blocks', () => {
  for (const [a, b, c] of [['2x0e+3x1o', '0e+1o', '2x0e+1x1o+2x1e'], ['1x0e+1x1o', '2x1o', '3x0e+1x1o']] as const) {
    const ofTriples = (op: AnyProduct, mode: Instruction['mode']) =>
      weightedRank(op.irrepsIn1, op.irrepsIn2, op.irrepsOut, op.paths.map(({ in1, in2, out }) => ({ in1, in2, out, mode, hasWeight: true })))
    using full = ClebschGordanTensorProduct.fullyConnected(a, b, c), channelwise = ClebschGordanTensorProduct.channelwise(a, b, c)
    expect(full.expressivity).toBe(ofTriples(full, 'uvw'))
    expect(full.expressivity).toBe(full.weightNumel)
    expect(channelwise.expressivity).toBe(ofTriples(channelwise, 'uvu'))
    expect(channelwise.expressivity).toBe(channelwise.weightNumel)
  }
})
