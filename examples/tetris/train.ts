// Which tensor product tells the eight Tetris pieces apart, two of which are mirror images (section 6.2 of "The Price of Freedom", arXiv 2506.13523)?
// A network of three layers that differs in its tensor product only, trained on pieces in random rotations.
//
//   npx tsx examples/tetris/train.ts [--degrees 1,2,3,4] [--seeds 3] [--steps 120] [--products cgtp,gtp,mtp] [--out tetris.svg]
import * as tf from '@tensorflow/tfjs'
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { ClebschGordanTensorProduct, GauntTensorProduct, Irreps, Linear, MatrixTensorProduct, type Instruction, type TensorProduct } from 'equitensor'
import { gather, linear, scatterSum, sphericalHarmonics, tensorProduct } from 'equitensor/tfjs'
import { plot, type Curve } from '../plot'

const { values: flags } = parseArgs({
  options: {
    degrees: { type: 'string', default: '1,2,3,4' },
    seeds: { type: 'string', default: '3' },
    steps: { type: 'string', default: '120' },
    products: { type: 'string', default: 'cgtp,gtp,mtp' },
    out: { type: 'string', default: 'tetris.svg' },
  },
})
const steps = Number(flags.steps), seeds = Number(flags.seeds), channels = 8

// The first two are mirror images.
const pieces = [
  [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]],
  [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, -1, 0]],
  [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]],
  [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]],
  [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]],
  [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]],
  [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 1]],
  [[0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0]],
]
const cubes = pieces.flatMap((piece, p) => piece.map((position) => ({ p, position })))
// Cubes with a common face.
const edges = cubes.flatMap((a, i) =>
  cubes.flatMap((b, j) => (a.p === b.p && Math.hypot(...a.position.map((v, c) => v - b.position[c]!)) === 1 ? [[i, j] as const] : [])),
)
const receivers = Int32Array.from(edges, ([i]) => i), senders = Int32Array.from(edges, ([, j]) => j), pieceOf = Int32Array.from(cubes, ({ p }) => p)
const labels = tf.oneHot(tf.range(0, 8, 1, 'int32'), 8)

/** Vectors of the edges, each piece rotated at random. */
function rotatedEdges(next: () => number): tf.Tensor2D {
  const rotations = pieces.map(() => {
    const [a, b, c] = [next(), 2 * Math.PI * next(), 2 * Math.PI * next()]
    const [w, x, y, z] = [Math.sqrt(1 - a) * Math.sin(b), Math.sqrt(1 - a) * Math.cos(b), Math.sqrt(a) * Math.sin(c), Math.sqrt(a) * Math.cos(c)]
    return [
      [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
      [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
      [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
  })
  return tf.tensor2d(
    edges.map(([i, j]) => {
      const d = cubes[j]!.position.map((v, c) => v - cubes[i]!.position[c]!)
      return rotations[cubes[i]!.p]!.map((row) => row[0]! * d[0]! + row[1]! * d[1]! + row[2]! * d[2]!)
    }),
  )
}

/** Multiplies the channels of in1 and in2 one by one, into every irrep up to a degree that it reaches: 0e + 0o + 1e + 1o + ... if it can. */
type Product = (in1: Irreps, in2: Irreps, degree: number) => TensorProduct<'float32'>

const products: Record<string, Product> = {
  // All Clebsch-Gordan paths.
  cgtp(in1, in2, degree) {
    const single = (irreps: Irreps) => new Irreps(irreps.blocks.map(({ ir }) => [1, ir]))
    const reached = ClebschGordanTensorProduct.full(single(in1), single(in2)).irrepsOut.regroup().filter(({ ir }) => ir.l <= degree)
    const irrepsOut = new Irreps(reached.blocks.map(({ ir }) => [channels, ir])), instructions: Instruction[] = []
    in1.blocks.forEach(({ ir: a }, i) =>
      in2.blocks.forEach(({ ir: b }, j) =>
        irrepsOut.blocks.forEach(({ ir: c }, out) => {
          const isPath = c.l >= Math.abs(a.l - b.l) && c.l <= a.l + b.l && c.p === a.p * b.p
          if (isPath) instructions.push({ in1: i, in2: j, out, mode: 'uuu', hasWeight: false })
        }),
      ),
    )
    return new ClebschGordanTensorProduct(in1, in2, { irrepsOut, instructions, backend: 'cpu' })
  },
  // The product of signals on the sphere commutes, so that it lacks the paths of odd l1 + l2 + l3, as the cross product of two vectors is. From edges alone it
  // never reaches a pseudoscalar.
  gtp: (in1, in2, degree) =>
    new GauntTensorProduct(in1, in2, { irrepsOut: new GauntTensorProduct(in1, in2).irrepsOut.filter(({ ir }) => ir.l <= degree) }),
  mtp: (in1, in2, degree) =>
    new MatrixTensorProduct(in1, in2, { irrepsOut: new MatrixTensorProduct(in1, in2).irrepsOut.filter(({ ir }) => ir.l <= degree) }),
}

/** Logits of the eight pieces from their edges. */
function network(name: string, degree: number, seed: number) {
  const attributes = Irreps.sphericalHarmonics(degree), signals = new Irreps(attributes.blocks.map(({ ir }) => [channels, ir]))
  const spread = new Linear(attributes, signals, { backend: 'cpu' }), embedding = new Linear('1x0e', `${channels}x0e`, { backend: 'cpu' })
  const weights: tf.Variable[] = []
  const weight = (count: number) => {
    weights.push(tf.variable(tf.randomNormal([count], 0, 1, 'float32', (seed * 100 + weights.length) * 7919 + 1)))
    return weights.at(-1)!
  }
  const embedded = weight(embedding.weightNumel)
  let irreps = new Irreps(`${channels}x0e`)
  const layers = [0, 1, 2].map(() => {
    const product = products[name]!(irreps, signals, degree), out = product.irrepsOut
    const mixing = new Linear(out, out, { backend: 'cpu' })
    // A gate for each channel of each irrep, multiplied channel by channel.
    const gates = new Irreps(`${out.numIrreps}x0e`), gating = new Linear(out, gates, { backend: 'cpu' })
    const gate = ClebschGordanTensorProduct.elementwise(out, gates, { backend: 'cpu' })
    irreps = out
    return { product, mixing, gating, gate, weights: [weight(spread.weightNumel), weight(mixing.weightNumel), weight(gating.weightNumel)] as const }
  })
  const readout = new Linear(irreps, '7x0e', { backend: 'cpu' }), toScalars = weight(readout.weightNumel)
  // The mirror images differ in the sign of a pseudoscalar. Where no path reaches one, their logits are the same.
  const hasPseudoscalar = irreps.blocks.some(({ ir }) => ir.l === 0 && ir.p === -1)
  const handedness = hasPseudoscalar ? new Linear(irreps, '1x0o', { backend: 'cpu' }) : undefined
  const toHandedness = handedness && weight(handedness.weightNumel)

  const logits = (vectors: tf.Tensor): tf.Tensor2D => {
    const y = sphericalHarmonics(attributes, vectors)
    let x: tf.Tensor = linear(embedding, tf.ones([cubes.length, 1]), embedded)
    for (const { product, mixing, gating, gate, weights: [spreading, mix, toGates] } of layers) {
      const messages = tensorProduct(product, gather(x, senders), linear(spread, y, spreading))
      const mixed = linear(mixing, normalized(scatterSum(messages, receivers, cubes.length)), mix)
      x = tensorProduct(gate, mixed, tf.sigmoid(linear(gating, mixed, toGates)))
    }
    const invariants = scatterSum(linear(readout, normalized(x), toScalars), pieceOf, 8)
    const sign = handedness ? scatterSum(linear(handedness, normalized(x), toHandedness!), pieceOf, 8) : tf.zeros([8, 1])
    const [chiral, others] = tf.split(invariants, [1, 6], 1) as [tf.Tensor2D, tf.Tensor2D]
    return tf.concat([tf.mul(chiral, sign), tf.neg(tf.mul(chiral, sign)), others], 1)
  }
  return { logits, irreps, weights }
}

/** Of every row, without a weight: products differ in size, by degree too. */
function normalized(x: tf.Tensor): tf.Tensor {
  return tf.div(x, tf.sqrt(tf.add(tf.mean(tf.square(x), 1, true), 1e-6)))
}

/** Pieces told apart, a step. */
function train(name: string, degree: number, seed: number): { accuracy: number[]; irreps: Irreps } {
  const { logits, irreps, weights } = network(name, degree, seed), optimizer = tf.train.adam(0.02)
  const accuracy: number[] = []
  let state = seed + 1
  const next = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) // reproducible
  for (let step = 0; step <= steps; step++) {
    tf.tidy(() => {
      const vectors = rotatedEdges(next)
      accuracy.push(Array.from(tf.argMax(logits(vectors), 1).dataSync()).filter((found, piece) => found === piece).length)
      if (step < steps) optimizer.minimize(() => tf.losses.softmaxCrossEntropy(labels, logits(rotatedEdges(next))), false, weights)
    })
  }
  optimizer.dispose()
  tf.dispose(weights)
  return { accuracy, irreps }
}

tf.setBackend('cpu')
const panels = flags.degrees.split(',').map(Number).map((degree) => {
  const curves = flags.products.split(',').map((name): Curve => {
    const begin = performance.now()
    const runs = Array.from({ length: seeds }, (_, seed) => train(name, degree, seed))
    const seconds = ((performance.now() - begin) / 1000).toFixed(1)
    const shown = [0, 0.125, 0.25, 0.5, 0.75, 1].map((t) => Math.round(t * steps))
    console.log(`\ndegree ${degree}, ${name} (hidden ${runs[0]!.irreps}; ${seconds} s)`)
    console.log(`  step    ${shown.map((step) => String(step).padStart(5)).join('')}`)
    runs.forEach(({ accuracy }, seed) => console.log(`  seed ${seed}  ${shown.map((step) => `${accuracy[step]}/8`.padStart(5)).join('')}   best ${Math.max(...accuracy)}/8`))
    const mean = Array.from({ length: steps + 1 }, (_, step) => runs.reduce((sum, { accuracy }) => sum + accuracy[step]!, 0) / seeds)
    return { name, x: mean.map((_, step) => step), y: mean }
  })
  return { title: `hidden degree ${degree}`, curves }
})
writeFileSync(flags.out, plot(panels, { x: 'step', y: `pieces told apart, mean of ${seeds} seeds` }))
console.log(`\nwrote ${flags.out}`)
