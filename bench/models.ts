// What a pass needs at least (or, for the grid, in its plainest form): multiply-adds and bytes an item, as pure functions
// of the irreps and the nonzero coefficients. They know nothing of the kernels, whose own counts are in op.cost.
import type { Irreps } from '../lib/index'
import type { Pass, PassName } from './passes'
import type { ProblemIrreps } from './problems'
import { slotDims, wigner3jNonzeros, type Form } from './reference'

const degreeOf = (irreps: Irreps) => Math.max(...[...irreps].map(({ ir }) => ir.l))

/** Each array once: inputs read, outputs written. */
export function bytesPerItem(form: Form, pass: Pass, bytesPerNumber: number): number {
  const dims = slotDims(form)
  const slots = [...Object.values(pass.reads), ...Object.values(pass.writes)]
  return bytesPerNumber * slots.reduce((sum, slot) => sum + dims[slot], 0)
}

/**
 * One multiply-add a nonzero coefficient, and the outer product around it once: x_i y_j before the coefficients forward;
 * backward, T_ij = sum_k C_ijk gradOut_k goes into both gradients, T_ij y_j and T_ij x_i. Double backward is a forward pass of two
 * products, ax_i y_j + x_i ay_j, and a backward pass.
 */
export function sparseCount(form: Form, _irreps: ProblemIrreps, pass: PassName): number {
  return form.c.length * coefficientsRead(pass) + form.outerProducts * { forward: 1, backward: 2, doubleBackward: 4 }[pass]
}
const coefficientsRead = (pass: PassName) => (pass === 'doubleBackward' ? 2 : 1)

/** d1 d2 d3 a path, zeros included: for backward too, which contracts gradOut with the coefficients once; double backward does both. */
export function denseCount(form: Form, _irreps: ProblemIrreps, pass: PassName): number {
  return coefficientsRead(pass) * form.paths.reduce((sum, [l1, l2, l3]) => sum + (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1), 0)
}

/** How often the transform of an input, that of the output, and the product between them is done: a double backward transforms five arguments and three results. */
const steps = {
  forward: { inputs: 1, output: 1, products: 1 },
  backward: { inputs: 2, output: 1, products: 2 },
  doubleBackward: { inputs: 3, output: 2, products: 4 },
} as const

/**
 * The plain separable transform on the smallest exact grid, R rings of A angles: a ring takes one multiply-add a
 * coefficient (Legendre) and (2 L + 1) A a signal (Fourier), then A products. Backward transforms all three arguments
 * to the grid, multiplies twice, and transforms two gradients back. MIMO, L = 2..6, forward: 1115, 3115, 6687, 12287, 20371.
 */
export function gridCount(_form: Form, { in1, in2, out }: ProblemIrreps, pass: PassName): number {
  const [L1, L2, L3] = [degreeOf(in1), degreeOf(in2), degreeOf(out)]
  const rings = Math.floor((L1 + L2 + L3) / 2) + 1
  const angles = L1 + L2 + L3 + 1
  const transform = (irreps: Irreps, L: number) => irreps.dim + (2 * L + 1) * angles
  const inputs = transform(in1, L1) + transform(in2, L2)
  const output = transform(out, L3)
  const n = steps[pass]
  return rings * (n.inputs * inputs + n.output * output + n.products * angles)
}

/**
 * The plain convolution in the Fourier basis: each component to and from the frequencies u of its degree's parity, as many as there are up to the
 * signal's highest, and 4 multiply-adds for a pair of real coefficients, into the sums and differences of their frequencies on both axes. Backward
 * transforms all three arguments, convolves twice, and transforms two gradients back. MIMO, L = 1..6, forward: 85, 761, 2527, 7191, 15245, 30289.
 */
export function fourierCount(_form: Form, { in1, in2, out }: ProblemIrreps, pass: PassName): number {
  // Coefficients of order m: cosines of u = 0, 1, ... for even m, sines of u = 1, 2, ... for odd m.
  const coefficients = (L: number) => (2 * L + 1) * (L + 1) - 2 * Math.ceil(L / 2)
  const frequencies = (l: number, m: number, highest: number) => Math.floor((highest - (l % 2)) / 2) + 1 - (m % 2 && l % 2 === 0 ? 1 : 0)
  const transform = (irreps: Irreps, highest: number) =>
    [...irreps].reduce((sum, { ir: { l } }) => sum + Array.from({ length: 2 * l + 1 }, (_, i) => frequencies(l, Math.abs(i - l), highest)).reduce((a, b) => a + b), 0)
  const [L1, L2] = [degreeOf(in1), degreeOf(in2)]
  const inputs = transform(in1, L1) + transform(in2, L2), output = transform(out, L1 + L2)
  const n = steps[pass]
  return n.inputs * inputs + n.output * output + n.products * 4 * coefficients(L1) * coefficients(L2)
}

/**
 * Each argument to or from its matrix by the nonzeros of 3j(k k l), and matrix products of N^3, N = 2k + 1: one forward,
 * two backward. Where both inputs have both parities it is twice as many: (even + odd)(even + odd) and
 * (even - odd)(even - odd) tell the products of either parity apart.
 */
export function matrixCount(_form: Form, { in1, in2, out }: ProblemIrreps, pass: PassName): number {
  const k = matrixDegree({ in1, in2, out })
  const parities = (irreps: Irreps) => new Set([...irreps].map(({ ir }) => ir.p)).size
  const products = Math.min(parities(in1), parities(in2)) * (2 * k + 1) ** 3
  const transform = (irreps: Irreps) => [...irreps].reduce((sum, { ir }) => sum + wigner3jNonzeros(k, k, ir.l), 0)
  const inputs = transform(in1) + transform(in2)
  const n = steps[pass]
  return n.inputs * inputs + n.output * transform(out) + n.products * products
}

/** The default k of MatrixTensorProduct: the smallest matrices that hold every degree. */
export function matrixDegree({ in1, in2, out }: ProblemIrreps): number {
  return Math.ceil(Math.max(degreeOf(in1), degreeOf(in2), degreeOf(out)) / 2)
}

/** The default k of the block form: matrices are over the irreps 0 .. k. */
export function matrixBlockDegree({ in1, in2 }: ProblemIrreps): number {
  return Math.ceil((degreeOf(in1) + degreeOf(in2)) / 2)
}
