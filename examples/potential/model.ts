// A potential in the manner of MACE (Batatia et al., arXiv 2206.07697): two interactions, each a convolution over the edges and then a polynomial of degree 3
// of its sums, atom by atom and channel by channel: A, A*A and (A*A)*A, where * is one of the package's products.
import { ClebschGordanTensorProduct, Convolution, GauntTensorProduct, Graph, Irreps, Linear, MatrixTensorProduct, type Instruction, type TensorProduct } from 'equitensor'
import { Tape, type Node } from './tape'
import type { Configuration } from './xyz'

export const productNames = ['cgtp', 'gtp-grid', 'gtp-fourier', 'mtp'] as const
export type ProductName = (typeof productNames)[number]

export interface Settings {
  product: ProductName
  channels: number
  /** Degrees of the edges' harmonics and of A. */
  lmax: number
  /** Degrees of the features between the interactions. */
  hidden: number
  /** Factors in the largest product, 1 to 3. */
  correlation: number
  /** In Angstrom. */
  cutoff: number
  seed: number
}

/** What the model learns from the training set before training. */
export interface Statistics {
  species: string[]
  /** Energy of an atom of each species, in eV. */
  references: number[]
  /** The root mean square of the forces. */
  scale: number
  neighbours: number
}

/** Molecules side by side. Edges go from sender to receiver, in both directions. */
export interface Batch {
  count: number
  atoms: number
  molecule: Int32Array
  species: Int32Array
  positions: Float32Array
  senders: Int32Array
  receivers: Int32Array
  graph: Graph
  /** Without the atoms' reference energies. */
  energies: Float64Array
  forces: Float64Array
}

const layout = 'ir_mul', backend = 'cpu'
const natural = (channels: number, lmax: number) => new Irreps(Irreps.sphericalHarmonics(lmax).blocks.map(({ ir }) => [channels, ir]))
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))
/** With its derivatives; the factor makes the mean square 1 for normally distributed x. */
const norm = 1.6768
const silu = [
  (x: number) => norm * x * sigmoid(x),
  (x: number) => norm * sigmoid(x) * (1 + x * (1 - sigmoid(x))),
  (x: number) => {
    const s = sigmoid(x)
    return norm * s * (1 - s) * (2 + x * (1 - 2 * s))
  },
]
const squareRoot = [Math.sqrt, (x: number) => 0.5 / Math.sqrt(x)]

/**
 * sqrt(2 / c) sin(n pi r / c) / r for n = 1..count, times a polynomial cutoff of two continuous derivatives at c (Gasteiger et al., arXiv 2003.03123), and
 * the derivative. A loss of forces needs no second one: the weights, not the positions, are what it is differentiated by.
 */
function radialBasis(cutoff: number, count: number): ((r: number, row: Float32Array) => void)[] {
  const p = 5, [a, b, c] = [((p + 1) * (p + 2)) / 2, p * (p + 2), (p * (p + 1)) / 2], amplitude = Math.sqrt(2 / cutoff)
  return [0, 1].map((order) => (r: number, row: Float32Array) => {
    const x = r / cutoff
    const u = 1 - a * x ** p + b * x ** (p + 1) - c * x ** (p + 2)
    const u1 = (-a * p * x ** (p - 1) + b * (p + 1) * x ** p - c * (p + 2) * x ** (p + 1)) / cutoff
    for (let n = 1; n <= count; n++) {
      const k = (n * Math.PI) / cutoff, f = (amplitude * Math.sin(k * r)) / r
      row[n - 1] = order === 0 ? f * u : ((amplitude * k * Math.cos(k * r) - f) / r) * u + f * u1
    }
  })
}

/** A product of C signals with C signals, channel by channel, that reaches degrees 0..lmax. CGTP has a weight for each path and channel. */
function manyBodyProduct(name: ProductName, irreps: Irreps): TensorProduct<'float32'> {
  if (name === 'mtp') return new MatrixTensorProduct(irreps, irreps, { irrepsOut: irreps, layout, backend })
  if (name !== 'cgtp') return new GauntTensorProduct(irreps, irreps, { irrepsOut: irreps, algorithm: name === 'gtp-grid' ? 'grid' : 'fourier', layout, backend })
  const instructions: Instruction[] = []
  irreps.blocks.forEach(({ ir: a }, in1) =>
    irreps.blocks.forEach(({ ir: b }, in2) =>
      irreps.blocks.forEach(({ ir: c }, out) => {
        const isPath = c.l >= Math.abs(a.l - b.l) && c.l <= a.l + b.l && c.p === a.p * b.p
        if (isPath) instructions.push({ in1, in2, out, mode: 'uuu', hasWeight: true })
      }),
    ),
  )
  return new ClebschGordanTensorProduct(irreps, irreps, { irrepsOut: irreps, instructions, layout, backend })
}

/** Reproducible; uniform in [0, 1). */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
const normal = (next: () => number) => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())

/** Its weights are one array, so that an optimizer need not know the model. */
export class Potential {
  readonly weights: Float32Array
  readonly #layers: ((tape: Tape, weights: Node[], batch: Batch, geometry: Geometry, features: Node) => { features: Node; energy: Node })[] = []
  readonly #counts: number[] = []
  readonly #radial: ((r: number, row: Float32Array) => void)[]

  constructor(readonly settings: Settings, readonly statistics: Statistics) {
    const { channels, lmax, hidden, correlation } = settings, kinds = statistics.species.length, next = generator(settings.seed)
    const weight = (count: number) => this.#counts.push(count) - 1
    const linear = (irrepsIn: Irreps | string, irrepsOut: Irreps | string) => {
      const op = new Linear(irrepsIn, irrepsOut, { layout, backend }), w = weight(op.weightNumel)
      return (tape: Tape, weights: Node[], x: Node) => tape.linear(op, x, weights[w]!)
    }
    /** A linear layer with weights for each species. */
    const bySpecies = (irrepsIn: Irreps, irrepsOut: Irreps) => {
      const op = ClebschGordanTensorProduct.fullyConnected(irrepsIn, `${kinds}x0e`, irrepsOut, { layout, backend }), w = weight(op.weightNumel)
      return (tape: Tape, weights: Node[], x: Node, kind: Node) => tape.product(op, x, kind, weights[w]!, 'linear by species')
    }
    this.#radial = radialBasis(settings.cutoff, 8)
    weight(kinds * channels) // the embedding of the species

    const signals = natural(channels, lmax), attributes = Irreps.sphericalHarmonics(lmax)
    let irreps = natural(channels, 0)
    for (const interaction of [0, 1]) {
      const isLast = interaction === 1, irrepsIn = irreps, irrepsOut = natural(channels, isLast ? 0 : hidden)
      const up = linear(irrepsIn, irrepsIn), convolution = Convolution.channelwise(irrepsIn, attributes, attributes, { layout, backend })
      const radial = [linear('8x0e', '32x0e'), linear('32x0e', '32x0e'), linear('32x0e', `${convolution.weightNumel}x0e`)]
      const down = linear(convolution.irrepsOut, signals)
      // Products differ in size. What each makes of normally distributed signals is brought to a root mean square of 1.
      const powers = Array.from({ length: correlation - 1 }, () => {
        const op = manyBodyProduct(settings.product, signals), w = op.weightNumel ? weight(op.weightNumel) : undefined
        const random = (length: number) => Float32Array.from({ length }, () => normal(next))
        const sample = op.forward(random(64 * signals.dim), random(64 * signals.dim), op.weightNumel ? random(op.weightNumel) : undefined)
        return { op, w, factor: 1 / Math.sqrt(sample.reduce((sum, v) => sum + v * v, 0) / sample.length) }
      })
      const contract = Array.from({ length: correlation }, () => bySpecies(signals, irrepsOut))
      const mix = linear(irrepsOut, irrepsOut), skip = isLast ? bySpecies(irrepsIn, irrepsOut) : undefined
      const scalars = natural(channels, 0), readout = isLast ? [linear(scalars, '16x0e'), linear('16x0e', '1x0e')] : [linear(irrepsOut, '1x0e')]

      this.#layers.push((tape, weights, batch, { harmonics, basis, kind }, x) => {
        let w = tape.unary(radial[0]!(tape, weights, basis), silu)
        w = radial[2]!(tape, weights, tape.unary(radial[1]!(tape, weights, w), silu))
        const sums = tape.convolution(convolution, batch.graph, up(tape, weights, x), harmonics, w)
        const a = down(tape, weights, tape.scale(sums, 1 / Math.sqrt(statistics.neighbours)))
        let power = a, sum = contract[0]!(tape, weights, a, kind)
        powers.forEach(({ op, w, factor }, i) => {
          power = tape.scale(tape.product(op, power, a, w === undefined ? undefined : weights[w]!, 'many-body product'), factor)
          sum = tape.add(sum, contract[i + 1]!(tape, weights, power, kind))
        })
        let features = mix(tape, weights, sum)
        if (skip) features = tape.add(features, skip(tape, weights, x, kind))
        const energy = isLast ? readout[1]!(tape, weights, tape.unary(readout[0]!(tape, weights, features), silu)) : readout[0]!(tape, weights, features)
        return { features, energy }
      })
      irreps = irrepsOut
    }
    this.weights = Float32Array.from({ length: this.#counts.reduce((a, b) => a + b) }, () => normal(next))
  }

  /** Nodes of the weights' parts. */
  nodes(weights: Float32Array): Node[] {
    let begin = 0
    return this.#counts.map((count) => ({ value: weights.subarray(begin, (begin += count)) }))
  }

  /** Energies of the molecules in eV, without the atoms' references, as steps of the tape. */
  energies(tape: Tape, batch: Batch, positions: Node, weights: Node[]): Node {
    const { senders, receivers, atoms, species } = batch, edges = senders.length, kinds = this.statistics.species.length
    const vectors = tape.add(tape.gatherRows(positions, senders, atoms), tape.scale(tape.gatherRows(positions, receivers, atoms), -1))
    const lengths = tape.unary(tape.dotRows(vectors, vectors, edges), squareRoot)
    const kind = new Float32Array(atoms * kinds)
    species.forEach((s, a) => (kind[a * kinds + s] = 1))
    const geometry = { harmonics: tape.harmonics(this.settings.lmax, vectors), basis: tape.expand(lengths, 8, this.#radial), kind: tape.constant(kind) }
    let features = tape.gatherRows(weights[0]!, species, kinds), energy: Node | undefined
    for (const layer of this.#layers) {
      const next = layer(tape, weights, batch, geometry, features)
      energy = energy ? tape.add(energy, next.energy) : next.energy
      features = next.features
    }
    return tape.scale(tape.sumRows(energy!, batch.molecule, batch.count), this.statistics.scale)
  }
}

/** What all interactions have in common. */
interface Geometry {
  harmonics: Node
  basis: Node
  /** One-hot. */
  kind: Node
}

/** Pairs of atoms within the cutoff, in both directions. */
export function neighbours({ positions }: Configuration, cutoff: number): [senders: number[], receivers: number[]] {
  const senders: number[] = [], receivers: number[] = []
  for (let i = 0; i < positions.length / 3; i++) {
    for (let j = 0; j < positions.length / 3; j++) {
      const distance = Math.hypot(...[0, 1, 2].map((c) => positions[3 * i + c]! - positions[3 * j + c]!))
      if (i === j || distance >= cutoff) continue
      senders.push(j)
      receivers.push(i)
    }
  }
  return [senders, receivers]
}

/** @throws Error where no two atoms are within the cutoff: there is nothing to learn. */
export function batchOf(configurations: Configuration[], edges: [number[], number[]][], { species, references }: Statistics): Batch {
  const starts = [0]
  for (const configuration of configurations) starts.push(starts.at(-1)! + configuration.species.length)
  const join = (which: 0 | 1) => configurations.flatMap((_, m) => edges[m]![which].map((atom) => atom + starts[m]!))
  const senders = join(0), receivers = join(1), atoms = starts.at(-1)!
  if (senders.length === 0) throw new Error('expected molecules, got atoms of which no two are within the cutoff')
  const kinds = configurations.flatMap((configuration) => configuration.species.map((symbol) => species.indexOf(symbol)))
  return {
    count: configurations.length,
    atoms,
    molecule: Int32Array.from(configurations.flatMap((configuration, m) => configuration.species.map(() => m))),
    species: Int32Array.from(kinds),
    positions: Float32Array.from(configurations.flatMap(({ positions }) => [...positions])),
    senders: Int32Array.from(senders),
    receivers: Int32Array.from(receivers),
    graph: new Graph(Int32Array.from([...senders, ...receivers]), atoms),
    energies: Float64Array.from(configurations, ({ energy }, m) => kinds.slice(starts[m], starts[m + 1]).reduce((rest, kind) => rest - references[kind]!, energy)),
    forces: Float64Array.from(configurations.flatMap(({ forces }) => [...forces])),
  }
}

/** @throws Error for a species that the model does not know. */
export function requireSpecies(configurations: Configuration[], { species }: Statistics, file: string): void {
  const unknown = configurations.flatMap((configuration) => configuration.species).find((symbol) => !species.includes(symbol))
  if (unknown !== undefined) throw new Error(`${file}: expected atoms of ${species.join(', ')}, as in the training set, got ${unknown}`)
}

/** The x of least squares of rows x = values, of about the least norm where the rows do not determine it. */
function leastSquares(rows: number[][], values: number[]): number[] {
  const n = rows[0]!.length
  // Normal equations with a small ridge, by elimination.
  const matrix = Array.from({ length: n }, (_, i) => [
    ...Array.from({ length: n }, (_, j) => rows.reduce((sum, row) => sum + row[i]! * row[j]!, i === j ? 1e-6 * rows.length : 0)),
    rows.reduce((sum, row, m) => sum + row[i]! * values[m]!, 0),
  ])
  for (let i = 0; i < n; i++) {
    const pivot = matrix.slice(i).reduce((best, row, k) => (Math.abs(row[i]!) > Math.abs(matrix[best]![i]!) ? i + k : best), i)
    ;[matrix[i], matrix[pivot]] = [matrix[pivot]!, matrix[i]!]
    matrix.forEach((row, k) => {
      if (k === i) return
      const factor = row[i]! / matrix[i]![i]!
      for (let j = i; j <= n; j++) row[j]! -= factor * matrix[i]![j]!
    })
  }
  return matrix.map((row, i) => row[n]! / row[i]!)
}

/** Reference energies by least squares, and the sizes of forces and neighbourhoods. */
export function statisticsOf(configurations: Configuration[], cutoff: number): Statistics {
  const species = [...new Set(configurations.flatMap((configuration) => configuration.species))].sort()
  const counts = configurations.map((configuration) => species.map((symbol) => configuration.species.filter((s) => s === symbol).length))
  // Again of what is left: total energies have some ten digits, of which the last four matter.
  let references = species.map(() => 0)
  for (let pass = 0; pass < 4; pass++) {
    const rest = configurations.map(({ energy }, m) => counts[m]!.reduce((rest, count, i) => rest - count * references[i]!, energy))
    references = leastSquares(counts, rest).map((x, i) => x + references[i]!)
  }
  const forces = configurations.flatMap((configuration) => [...configuration.forces])
  const edges = configurations.reduce((sum, configuration) => sum + neighbours(configuration, cutoff)[0].length, 0)
  return {
    species,
    references,
    scale: Math.sqrt(forces.reduce((sum, f) => sum + f * f, 0) / forces.length) || 1,
    neighbours: edges / (forces.length / 3) || 1,
  }
}
