// The energy of a small model of atoms: its forces, and the Jacobian of the forces by a double backward, which training on forces needs.
import { expect, test } from 'vitest'
import { ClebschGordanTensorProduct, Irreps } from '../lib/index'
import { arrayError, random, randomArray } from './support'

const atoms = 4, features = '4x0e+2x1o', edges = Array.from({ length: atoms * atoms }, (_, e) => [Math.floor(e / atoms), e % atoms] as const).filter(([i, j]) => i !== j)
const dtype = 'float64', next = random(1)
// Attributes of an edge are 1, d and the degree 2 of d x d; weights are W exp(-|d|^2 / 4). The energy is a quadratic form in the sums of messages.
const square = ClebschGordanTensorProduct.full('1o', '1o', { dtype, filterIrrepsOut: '2e' })
const message = ClebschGordanTensorProduct.channelwise(features, '0e+1o+2e', '0e+1o+1e', { dtype })
const energy = ClebschGordanTensorProduct.fullyConnected(message.irrepsOut, message.irrepsOut, '1x0e', { dtype })
const dim = message.irrepsOut.dim, numel = message.weightNumel
const W = randomArray(dtype, numel, next), V = randomArray(dtype, energy.weightNumel, next)
const nodes = randomArray(dtype, atoms * new Irreps(features).dim, next)
const x = Float64Array.from(edges.flatMap(([, j]) => [...nodes.subarray((j * nodes.length) / atoms, ((j + 1) * nodes.length) / atoms)]))
const ones = new Float64Array(atoms).fill(1)

const gather = (perNode: Float64Array, size: number) => Float64Array.from(edges.flatMap(([i]) => [...perNode.subarray(i * size, (i + 1) * size)]))
const sumInto = (perEdge: Float64Array, size: number) => {
  const sum = new Float64Array(atoms * size)
  edges.forEach(([i], e) => perEdge.subarray(e * size, (e + 1) * size).forEach((v, c) => (sum[i * size + c]! += v)))
  return sum
}
const plus = (a: Float64Array, b: Float64Array) => a.map((v, i) => v + b[i]!)
const vectors = (r: Float64Array) => Float64Array.from(edges.flatMap(([i, j]) => [0, 1, 2].map((c) => r[3 * i + c]! - r[3 * j + c]!)))
const toAtoms = (perEdge: Float64Array) => {
  const sum = new Float64Array(3 * atoms)
  edges.forEach(([i, j], e) => [0, 1, 2].forEach((c) => ((sum[3 * i + c]! += perEdge[3 * e + c]!), (sum[3 * j + c]! -= perEdge[3 * e + c]!))))
  return sum
}
const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0)
const row = (array: Float64Array, e: number, size = array.length / edges.length) => array.subarray(e * size, (e + 1) * size)
const attributes = (first: number, d: Float64Array, second: Float64Array) => Float64Array.from(edges.flatMap((_, e) => [first, ...row(d, e), ...row(second, e)]))
const part = (y: Float64Array, begin: number, end: number) => Float64Array.from(edges.flatMap((_, e) => [...row(y, e).subarray(begin, end)]))

function model(r: Float64Array) {
  const d = vectors(r), y = attributes(1, d, square.forward(d, d)), decay = edges.map((_, e) => Math.exp(-dot(row(d, e), row(d, e)) / 4))
  const w = Float64Array.from(decay.flatMap((f) => [...W].map((v) => v * f)))
  const M = sumInto(message.forward(x, y, w), dim)
  // From gradients of attributes and weights to those of the vectors.
  const toVectors = (gy: Float64Array, gw: Float64Array) => {
    const g2 = square.backward(d, d, undefined, part(gy, 4, 9)), q = edges.map((_, e) => dot(row(gw, e), row(w, e)))
    return part(gy, 1, 4).map((v, c) => v + g2.x[c]! + g2.y[c]! - (d[c]! / 2) * q[Math.floor(c / 3)]!)
  }
  const gM = energy.backward(M, M, V, ones, { needs: { weight: false } })
  const gm = gather(plus(gM.x, gM.y), dim)
  const g = message.backward(x, y, w, gm, { needs: { x: false } })
  return {
    energy: energy.forward(M, M, V).reduce((sum, v) => sum + v, 0),
    gradient: toAtoms(toVectors(g.y, g.weight)),
    /** Gradient of a . gradient. */
    second(a: Float64Array): Float64Array {
      const ad = vectors(a), along = edges.map((_, e) => dot(row(ad, e), row(d, e))), q = edges.map((_, e) => dot(row(g.weight, e), row(w, e)))
      const ay = attributes(0, ad, square.jvp(d, d, undefined, { x: ad, y: ad })), aw = w.map((v, k) => (-along[Math.floor(k / numel)]! / 2) * v)
      const s = message.doubleBackward(x, y, w, gm, { y: ay, weight: aw }, { needs: { x: false } })
      const aM = sumInto(s.gradOut, dim), sM = energy.doubleBackward(M, M, V, ones, { x: aM, y: aM }, { needs: { weight: false, gradOut: false } })
      const rest = message.backward(x, y, w, gather(plus(sM.x, sM.y), dim), { needs: { x: false } })
      const s2 = square.doubleBackward(d, d, undefined, part(g.y, 4, 9), { x: ad, y: ad }, { needs: { gradOut: false } })
      const direct = d.map((v, c) => s2.x[c]! + s2.y[c]! + (q[Math.floor(c / 3)]! / 2) * ((along[Math.floor(c / 3)]! * v) / 2 - ad[c]!))
      return toAtoms(plus(toVectors(plus(s.y, rest.y), plus(s.weight, rest.weight)), direct))
    },
  }
}

test('forces are differences of the energy, and their Jacobian is symmetric', () => {
  const r = randomArray(dtype, 3 * atoms, next), n = r.length, at = model(r)
  const moved = (i: number, step: number) => model(r.map((v, c) => (c === i ? v + step : v)))
  // Errors of central differences: 1e-16 / step from rounding and step^2 from the third derivative, 1e-10 for a step of 1e-5; with digits to spare for
  // energies and forces larger than what is left of their differences.
  const step = 1e-5, coordinates = Array.from({ length: n }, (_, i) => i)
  const differences = coordinates.map((i) => [moved(i, step), moved(i, -step)] as const)
  expect(arrayError(at.gradient, differences.map(([up, down]) => (up.energy - down.energy) / (2 * step)))).toBeLessThan(1e-7)
  const jacobian = coordinates.map((i) => at.second(Float64Array.from({ length: n }, (_, c) => (c === i ? 1 : 0))))
  jacobian.forEach((row, i) => expect(arrayError(row, row.map((_, c) => (differences[i]![0].gradient[c]! - differences[i]![1].gradient[c]!) / (2 * step)))).toBeLessThan(1e-7))
  // Nothing but roundings, far below the 1e-6 that training needs.
  const flat = Float64Array.from(jacobian.flatMap((row) => [...row]))
  expect(arrayError(flat, flat.map((_, k) => jacobian[k % n]![Math.floor(k / n)]!))).toBeLessThan(1e-12)
})
