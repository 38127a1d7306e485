// Every problem and every operation once, by name. Tests and the benchmark share these: one case object serves
// correctness, gradients and timing. A new problem, operation or suite is one entry here; a new pass one in passes.ts.
import { ClebschGordanTensorProduct, GauntTensorProduct, Irreps, MatrixTensorProduct, type Backend, type DeviceArray } from '../lib/index'
import { clebschGordanForm, gauntForm, matrixBlockForm, matrixForm, type Form } from './reference'
import { denseCount, fourierCount, gridCount, matrixCount, sparseCount } from './models'
import type { PassName } from './passes'

export type Dtype = 'float32' | 'float64'
export type Layout = 'mul_ir' | 'ir_mul'
export type Parity = 'even' | 'natural'
export type Numbers = Float32Array | Float64Array
/** An array of a call: on the host or on a device. */
export type Operand = Numbers | DeviceArray

/** What the benchmark uses of an operation (API.md has the whole of it), by its types on the host: see `bind` in measure.ts. */
export interface TensorProduct {
  readonly irrepsOut: Irreps
  readonly interactability: readonly unknown[]
  readonly expressivity: number
  readonly cost: Record<PassName, { flops: number; bytes: number }>
  forward(x: Numbers, y: Numbers, weight: undefined, options: { out: Numbers }): Numbers
  backward(x: Numbers, y: Numbers, weight: undefined, gradOut: Numbers, options: { out: { x: Numbers; y: Numbers } }): unknown
  doubleBackward(
    x: Numbers,
    y: Numbers,
    weight: undefined,
    gradOut: Numbers,
    cotangents: { x: Numbers; y: Numbers },
    options: { out: { x: Numbers; y: Numbers; gradOut: Numbers } },
  ): unknown
  dispose(): void
}

export interface MakeOptions {
  dtype: Dtype
  layout: Layout
  threads?: number
  backend?: Backend
  device?: number
}

export interface ProblemIrreps {
  in1: Irreps
  in2: Irreps
  out: Irreps
}

export interface Problem {
  name: string
  meaning: string
  source: string
  irreps(L: number, parity: Parity): ProblemIrreps
}

const paper = 'Xie, Daigavane, Kotak, Smidt, "The Price of Freedom", ICML 2025, arXiv 2506.13523'

/** One irrep of each degree from first to last; 'natural' is the parity of the spherical harmonics, (-1)^l. */
function degrees(first: number, last: number, parity: Parity): Irreps {
  const names: string[] = []
  for (let l = first; l <= last; l++) names.push(`${l}${parity === 'natural' && l % 2 ? 'o' : 'e'}`)
  return new Irreps(names.join(' + '))
}

const single = (L: number, parity: Parity) => degrees(L, L, parity)
const upTo = (L: number, parity: Parity) => degrees(0, L, parity)

export const problems: readonly Problem[] = [
  {
    name: 'SISO',
    meaning: 'L x L -> L',
    source: paper,
    irreps: (L, parity) => ({ in1: single(L, parity), in2: single(L, parity), out: single(L, parity) }),
  },
  {
    name: 'SIMO',
    meaning: 'L x L -> 0..2L',
    source: paper,
    irreps: (L, parity) => ({ in1: single(L, parity), in2: single(L, parity), out: upTo(2 * L, parity) }),
  },
  {
    name: 'MIMO',
    meaning: '0..L x 0..L -> 0..2L',
    source: paper,
    irreps: (L, parity) => ({ in1: upTo(L, parity), in2: upTo(L, parity), out: upTo(2 * L, parity) }),
  },
]

/** A product with weights, as layers of published models have it. */
export interface WeightedProblem {
  name: string
  source: string
  kind: 'channelwise' | 'fullyConnected' | 'single path'
  in1: string
  in2: string
  /** Of channelwise products which irreps are kept. */
  out: string
  /** One set of weights for all items. */
  shared?: boolean
}

const mace = 'MACE (Batatia et al., NeurIPS 2022)', nequip = 'NequIP (Batzner et al., 2022)'
const weighted = (kind: WeightedProblem['kind'], source: string) => (name: string, in1: string, in2: string, out: string, shared = false): WeightedProblem => ({ name, source, kind, in1, in2, out, shared })
const sameAsFirst = (kind: WeightedProblem['kind'], source: string) => (name: string, in1: string, in2: string) => weighted(kind, source)(name, in1, in2, in1)
const nequipLayer = sameAsFirst('channelwise', nequip), diffdockLayer = sameAsFirst('fullyConnected', 'DiffDock (Corso et al., ICLR 2023)')
const withParity = (l: number) => `${l}${l % 2 ? 'o' : 'e'}`

export const weightedProblems: readonly WeightedProblem[] = [
  weighted('channelwise', mace)('mace-large', '128x0e+128x1o+128x2e', '0e+1o+2e+3o', '0e+1o+2e+3o'),
  weighted('channelwise', mace)('mace-medium', '128x0e+128x1o', '0e+1o+2e+3o', '0e+1o+2e'),
  nequipLayer('nequip-32-l2', '32x0o+32x0e+32x1o+32x1e+32x2o+32x2e', '0e+1o+2e'),
  nequipLayer('nequip-64-l1', '64x0o+64x0e+64x1o+64x1e', '0e+1o'),
  nequipLayer('nequip-64-l3', '64x0o+64x0e+64x1o+64x1e+64x2o+64x2e+64x3o+64x3e', '0e+1o+2e+3o'),
  weighted('channelwise', 'SevenNet (Park et al., 2024)')('sevennet', '128x0e+64x1e+32x2e+32x3e', '0e+1e+2e+3e', '0e+1e+2e+3e'),
  weighted('channelwise', 'nequix (Koker and Smidt, 2025)')('nequix-first', '89x0e', '0e+1o+2e+3o', '0e+1o+2e+3o'),
  weighted('channelwise', 'nequix (Koker and Smidt, 2025)')('nequix', '128x0e+64x1o+32x2e+32x3o', '0e+1o+2e+3o', '0e+1o+2e+3o'),
  diffdockLayer('diffdock-l1', '10x1o+10x1e+48x0e+48x0o', '0e+1o'),
  diffdockLayer('diffdock-l2', '10x1o+10x1e+48x0e+48x0o', '0e+1o+2e'),
  weighted('fullyConnected', "e3nn's examples")('full-l3', '0e+1o+2e+3o', '0e+1o+2e+3o', '64x0e+24x1e+24x1o+16x2e+16x2o', true),
  weighted('fullyConnected', "e3nn's examples")('full-gate', '64x0e+16x1o', '0e+1o', '80x0e+16x1o'),
  ...([[1, 1, 1], [2, 1, 2], [3, 1, 3], [5, 5, 3], [5, 3, 5], [6, 3, 6], [7, 4, 7], [7, 7, 7]] as const).map(([l1, l2, l3]) =>
    weighted('single path', 'one path of 128 channels')(`${l1}-${l2}-${l3}`, `128x${withParity(l1)}`, withParity(l2), `${l3}${(l1 + l2) % 2 ? 'o' : 'e'}`),
  ),
]

/** Products whose convolutions are measured. */
export const convolutionProblems: readonly WeightedProblem[] = weightedProblems.filter(({ name }) => name.startsWith('mace'))

export interface Operation {
  name: string
  meaning: string
  make(irreps: ProblemIrreps, options: MakeOptions): TensorProduct
  /** The operation's coefficients, from Wigner 3j symbols alone. */
  form(irreps: ProblemIrreps): Form
  /** Multiply-adds an item; `countMeaning` says of what. */
  count(form: Form, irreps: ProblemIrreps, pass: PassName): number
  countMeaning: string
  /** The count is what a plain implementation does, not a bound: a better algorithm may need fewer. */
  countIsReference?: boolean
  /** Why an operation can be without a path. */
  selectionRule: string
  /** Exponent of its operations in L, by problem, for large L. */
  order: Readonly<Record<string, number>>
  /** Its CUDA kernels are those of cuda/<word>.cu. */
  word: string
}

// filterIrrepsOut keeps of the full product what the problem asks for, so that all operations fill the same irreps.
const clebschGordan = (algorithm: 'sparse' | 'dense'): Operation['make'] => (irreps, options) =>
  ClebschGordanTensorProduct.full(irreps.in1, irreps.in2, { ...options, algorithm, filterIrrepsOut: irreps.out })

const triangleRule = 'no l1 x l2 -> l3 within the triangle rule has parity p1 p2 = p3'

export const operations: readonly Operation[] = [
  {
    name: 'cgtp',
    meaning: 'Clebsch-Gordan product, one output block a path, sparse',
    make: clebschGordan('sparse'),
    form: clebschGordanForm,
    count: sparseCount,
    countMeaning: 'nonzero coefficients + outer product x_i y_j',
    selectionRule: triangleRule,
    order: { SISO: 2, SIMO: 3, MIMO: 5 },
    word: 'clebsch_gordan',
  },
  {
    name: 'cgtp-dense',
    meaning: 'the same product with its zeros, the naive baseline',
    make: clebschGordan('dense'),
    form: clebschGordanForm,
    count: denseCount,
    countMeaning: 'd1 d2 d3 a path',
    selectionRule: triangleRule,
    order: { SISO: 3, SIMO: 4, MIMO: 6 },
    word: 'clebsch_gordan',
  },
  {
    name: 'gtp-grid',
    meaning: 'Gaunt product, two signals multiplied on the sphere',
    make: ({ in1, in2, out }, options) => new GauntTensorProduct(in1, in2, { ...options, irrepsOut: out, algorithm: 'grid' }),
    form: gauntForm,
    count: gridCount,
    countMeaning: 'the plain separable transform',
    countIsReference: true,
    selectionRule: '3j(l1 l2 l3; 0 0 0) = 0 for odd l1 + l2 + l3',
    order: { SISO: 3, SIMO: 3, MIMO: 3 },
    word: 'gaunt',
  },
  {
    name: 'gtp-fourier',
    meaning: 'the same product by series on the torus',
    make: ({ in1, in2, out }, options) => new GauntTensorProduct(in1, in2, { ...options, irrepsOut: out, algorithm: 'fourier' }),
    form: gauntForm,
    count: fourierCount,
    countMeaning: 'the plain convolution on the torus',
    countIsReference: true,
    selectionRule: '3j(l1 l2 l3; 0 0 0) = 0 for odd l1 + l2 + l3',
    order: { SISO: 3, SIMO: 3, MIMO: 3 }, // by FFT, whose halvings end in dense maps
    word: 'fourier',
  },
  {
    name: 'mtp',
    meaning: 'matrix product of two matrices of irreps, single form',
    make: ({ in1, in2, out }, options) => new MatrixTensorProduct(in1, in2, { ...options, irrepsOut: out, form: 'single' }),
    form: matrixForm,
    count: matrixCount,
    countMeaning: 'nonzeros of the transforms + N^3, N = 2k + 1',
    selectionRule: triangleRule,
    order: { SISO: 3, SIMO: 3, MIMO: 3 },
    word: 'matrix',
  },
  {
    name: 'mtp-block',
    meaning: 'matrix product over a direct sum of irreps, by its paths',
    make: ({ in1, in2, out }, options) => new MatrixTensorProduct(in1, in2, { ...options, irrepsOut: out, form: 'block' }),
    form: matrixBlockForm,
    count: sparseCount,
    countMeaning: 'nonzero coefficients + outer product x_i y_j',
    selectionRule: triangleRule,
    order: { SISO: 2, SIMO: 3, MIMO: 5 },
    word: 'matrix_block',
  },
]

export interface Case {
  name: string
  problem: Problem
  L: number
  operation: Operation
  /** The problem's irreps, less outputs that the operation cannot reach (Gaunt: l1 + l2 + l3 odd); all of them if it reaches none. */
  irreps: ProblemIrreps
  /** Coefficients of the trilinear form, for checks and counts. */
  form: Form
  /** Why there is nothing to compute, or undefined where there is. The constructor must then throw code 'no_path'. */
  noPath: string | undefined
  make(options: MakeOptions): TensorProduct
}

function makeCase(problem: Problem, L: number, operation: Operation, parity: Parity): Case {
  const wanted = problem.irreps(L, parity)
  const { paths } = operation.form(wanted)
  const out = paths.length ? wanted.out.filter(({ ir }) => paths.some(([, , l3]) => l3 === ir.l)) : wanted.out
  const irreps = { ...wanted, out }
  return {
    name: `${problem.name} L=${L} ${operation.name}`,
    problem,
    L,
    operation,
    irreps,
    form: operation.form(irreps),
    noPath: paths.length ? undefined : `no path: ${operation.selectionRule}`,
    make: (options) => operation.make(irreps, options),
  }
}

export interface CaseFilter {
  problems?: readonly string[]
  operations?: readonly string[]
  L?: readonly number[]
  parity?: Parity
}

export const defaultDegrees: readonly number[] = [1, 2, 3, 4, 5, 6]
/** Of an input. */
export const highestDegree = 11

/** All cases of a selection: by problem, in it by L, so that the operations stand side by side. */
export function cases(filter: CaseFilter = {}): Case[] {
  const chosen = <T extends { name: string }>(all: readonly T[], names?: readonly string[]) =>
    names ? all.filter((entry) => names.includes(entry.name)) : all
  return chosen(problems, filter.problems).flatMap((problem) =>
    (filter.L ?? defaultDegrees).flatMap((L) =>
      chosen(operations, filter.operations).map((operation) => makeCase(problem, L, operation, filter.parity ?? 'even')),
    ),
  )
}
