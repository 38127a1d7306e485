// Trains a potential on the energies and forces of molecules, and tests it on others.
//
//   npx tsx examples/potential/train.ts                                          # on the sample beside this file, in a minute
//   npx tsx examples/potential/train.ts --train train.xyz --test 300K.xyz --test 600K.xyz --count 450 --epochs 200
//
// The same command goes on where a killed one stopped, from the checkpoint that is written after every epoch, and gets the same losses.
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { plot } from '../plot'
import { batchOf, generator, neighbours, Potential, productNames, requireSpecies, statisticsOf, type Batch, type ProductName, type Settings, type Statistics } from './model'
import { errorsOf, evaluate, none, type Errors } from './loss'
import { Tape } from './tape'
import { readXyz, type Configuration } from './xyz'

const usage = `Usage: train.ts [options]
  --train FILE        extended XYZ with energy (eV) and forces (eV/Angstrom); default: the sample
  --test FILE         tested at the end; may be repeated. Default: what --count leaves of the training file
  --count N           configurations to train on, the first N after a shuffle with the seed
  --product NAME      the many-body product: ${productNames.join(', ')}
  --compare STEPS     instead of training: so many steps of each product, from the same start on the same batches
  --epochs N          the learning rate falls to 0 over them
  --batch N --rate X --channels N --lmax L --hidden L --correlation 1..3 --cutoff ANGSTROM --seed N
  --energy-weight X   of the squared error of the energy per atom, beside that of a force component
  --checkpoint FILE   default potential.json; read if it exists
  --plot FILE         the learning curve; default potential.svg`

const { values: flags } = parseArgs({
  options: {
    train: { type: 'string' },
    test: { type: 'string', multiple: true, default: [] },
    count: { type: 'string' },
    product: { type: 'string', default: 'cgtp' },
    compare: { type: 'string' },
    epochs: { type: 'string', default: '100' },
    batch: { type: 'string', default: '5' },
    rate: { type: 'string', default: '0.01' },
    channels: { type: 'string', default: '32' },
    lmax: { type: 'string', default: '2' },
    hidden: { type: 'string', default: '1' },
    correlation: { type: 'string', default: '3' },
    cutoff: { type: 'string', default: '5' },
    seed: { type: 'string', default: '1' },
    'energy-weight': { type: 'string', default: '10' },
    checkpoint: { type: 'string', default: 'potential.json' },
    plot: { type: 'string', default: 'potential.svg' },
    help: { type: 'boolean', default: false },
  },
})
if (flags.help) {
  console.log(usage)
  process.exit(0)
}

function fail(message: string): never {
  console.error(`${message}\n\n${usage}`)
  process.exit(2)
}
function read(flag: 'train' | 'test', file: string): Configuration[] {
  try {
    return readXyz(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error
    return fail(`--${flag}: expected a file that can be read, got ${file} (${(error as Error).message})`)
  }
}
function number(name: keyof typeof flags, smallest: number, isInteger = true): number {
  const value = Number(flags[name])
  if (!(value >= smallest) || (isInteger && !Number.isInteger(value))) fail(`--${name}: expected ${isInteger ? 'an integer' : 'a number'} from ${smallest} on, got ${flags[name]}`)
  return value
}
if (!productNames.includes(flags.product as ProductName)) fail(`--product: expected ${productNames.join(', ')}, got ${flags.product}`)
const settings: Settings = {
  product: flags.product as ProductName,
  channels: number('channels', 1),
  lmax: number('lmax', 1),
  hidden: number('hidden', 0),
  correlation: number('correlation', 1),
  cutoff: number('cutoff', 0.1, false),
  seed: number('seed', 0),
}
const epochs = number('epochs', 1), batchSize = number('batch', 1), rate = number('rate', 0, false), energyWeight = number('energy-weight', 0, false)
const trainFile = flags.train ?? path.join(__dirname, 'sample.xyz')

/** Everything that training changes, and what it must not be continued without. */
interface State {
  settings: Settings & { count: number; epochs: number; batchSize: number; rate: number; energyWeight: number; train: string }
  statistics: Statistics
  epoch: number
  step: number
  weights: Float32Array
  /** Adam's averages of the gradient and of its square, and the exponential moving average of the weights, which is what is tested. */
  mean: Float32Array
  square: Float32Array
  average: Float32Array
  /** Of each epoch: root mean squares of the errors, in meV and meV/Angstrom, seen during training and of the averaged weights on the configurations left out. */
  history: { energy: number; forces: number; valid?: { energy: number; forces: number } }[]
}
const arrays = ['weights', 'mean', 'square', 'average'] as const

function save(state: State, file: string): void {
  const text = JSON.stringify(state, (_, value) => (value instanceof Float32Array ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64') : value))
  writeFileSync(`${file}.new`, text)
  renameSync(`${file}.new`, file) // so that a kill leaves the old one or the new one
}

function load(file: string, expected: State['settings']): State {
  const state = JSON.parse(readFileSync(file, 'utf8'))
  for (const [key, value] of Object.entries(expected)) {
    if (state.settings[key] !== value) fail(`${file}: expected a training with ${key} ${value}, got one with ${state.settings[key]}; choose another --checkpoint`)
  }
  for (const name of arrays) state[name] = new Float32Array(Uint8Array.from(Buffer.from(state[name], 'base64')).buffer)
  return state
}

const shuffled = <T>(items: readonly T[], next: () => number): T[] => {
  const result = items.slice()
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1))
    ;[result[i], result[j]] = [result[j]!, result[i]!]
  }
  return result
}

/** Configurations with the edges of each. */
class Data {
  readonly edges: [number[], number[]][]

  constructor(readonly configurations: Configuration[], readonly statistics: Statistics, cutoff: number) {
    this.edges = configurations.map((configuration) => neighbours(configuration, cutoff))
  }
  batch(indices: number[]): Batch {
    return batchOf(indices.map((i) => this.configurations[i]!), indices.map((i) => this.edges[i]!), this.statistics)
  }
  *batches(order: number[]): Generator<Batch> {
    for (let i = 0; i < order.length; i += batchSize) yield this.batch(order.slice(i, i + batchSize))
  }
  get order(): number[] {
    return this.configurations.map((_, i) => i)
  }
  test(model: Potential, tape: Tape, weights: Float32Array): { energy: number; forces: number } {
    const errors = none()
    for (const batch of this.batches(this.order)) {
      evaluate(model, tape, batch, weights, errors)
      tape.clear()
    }
    return errorsOf(errors)
  }
}

/** One step of Adam on one batch. */
function trainStep(model: Potential, tape: Tape, batch: Batch, state: State, steps: number, errors: Errors): void {
  const { ofWeights } = evaluate(model, tape, batch, state.weights, errors, energyWeight)
  const step = ++state.step, { weights, mean, square, average } = state
  const learningRate = rate * Math.min(1, step / 50) * 0.5 * (1 + Math.cos((Math.PI * Math.min(step, steps)) / steps))
  const size = learningRate * Math.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step), decay = Math.min(0.99, step / (step + 10))
  let i = 0
  model.nodes(weights).forEach(({ value }, part) => {
    const gradient = ofWeights[part]?.value
    for (let k = 0; k < value.length; k++, i++) {
      const g = gradient ? gradient[k]! : 0
      mean[i]! += 0.1 * (g - mean[i]!)
      square[i]! += 0.001 * (g * g - square[i]!)
      weights[i]! -= (size * mean[i]!) / (Math.sqrt(square[i]!) + 1e-8)
      average[i]! += (1 - decay) * (weights[i]! - average[i]!)
    }
  })
  tape.clear()
}

function start(statistics: Statistics, product: ProductName, count: number): { model: Potential; state: State } {
  const model = new Potential({ ...settings, product }, statistics), { weights } = model
  const full = { ...settings, product, count, epochs, batchSize, rate, energyWeight, train: path.basename(trainFile) }
  const zeros = () => new Float32Array(weights.length)
  return { model, state: { settings: full, statistics, epoch: 0, step: 0, weights: weights.slice(), mean: zeros(), square: zeros(), average: weights.slice(), history: [] } }
}

const shown = (errors: { energy: number; forces: number }) => `${errors.energy.toFixed(2).padStart(8)} meV/atom ${errors.forces.toFixed(1).padStart(8)} meV/A`
const duration = (seconds: number) => (seconds < 120 ? `${seconds.toFixed(0)} s` : `${(seconds / 60).toFixed(1)} min`)
const share = (tape: Tape, milliseconds: number) => `${((100 * [...tape.kernels.values()].reduce((a, b) => a + b, 0)) / milliseconds).toFixed(0)} %`

/** Forces against differences of the energy along a random direction: what a step of molecular dynamics relies on. In meV/Angstrom. */
function consistency(model: Potential, tape: Tape, data: Data, weights: Float32Array): { error: number; size: number } {
  const next = generator(settings.seed + 17), batch = data.batch([0]), direction = batch.positions.map(() => next() - 0.5)
  const length = Math.hypot(...direction), original = batch.positions.slice()
  const energyAt = (h: number) => {
    batch.positions.set(original.map((x, i) => x + (h * direction[i]!) / length))
    const energy = evaluate(model, tape, batch, weights, none()).energies[0]!
    tape.clear()
    return energy
  }
  const { forces } = evaluate(model, tape, batch, weights, none()), along = forces.reduce((sum, f, i) => sum + (f * direction[i]!) / length, 0)
  tape.clear()
  // Of fourth order; a step of 0.02 A leaves the roundings of float32 energies and about as much of the difference.
  const h = 0.02, difference = -(8 * (energyAt(h) - energyAt(-h)) - (energyAt(2 * h) - energyAt(-2 * h))) / (12 * h)
  return { error: 1000 * Math.abs(difference - along), size: 1000 * Math.abs(along) }
}

const all = shuffled(read('train', trainFile), generator(settings.seed)), count = flags.count === undefined ? Math.floor(0.9 * all.length) : number('count', 1)
if (count > all.length) fail(`--count: expected up to ${all.length}, the configurations of ${trainFile}, got ${count}`)
const chosen = all.slice(0, count), left = all.slice(count), statistics = statisticsOf(chosen, settings.cutoff)
requireSpecies(left, statistics, trainFile)
const tests = flags.test.map((file) => ({ file, configurations: read('test', file) }))
for (const { file, configurations } of tests) requireSpecies(configurations, statistics, file)
const data = new Data(chosen, statistics, settings.cutoff), valid = new Data(left, statistics, settings.cutoff)
const stepsPerEpoch = Math.ceil(count / batchSize), steps = epochs * stepsPerEpoch

function compare(stepsOfEach: number): void {
  console.log(`${stepsOfEach} steps of ${batchSize} molecules with each product, from one seed, on the same batches`)
  for (const product of productNames) {
    const { model, state } = start(statistics, product, count), tape = new Tape()
    let errors = none(), milliseconds = 0
    // The first steps are not timed: they compile.
    const warm = Math.min(5, Math.floor(stepsOfEach / 2))
    for (let epoch = 0; state.step < stepsOfEach; epoch++) {
      errors = none()
      for (const batch of data.batches(shuffled(data.order, generator(settings.seed + 1000 + epoch)))) {
        if (state.step === warm) tape.kernels.clear()
        const begin = performance.now()
        trainStep(model, tape, batch, state, Math.max(steps, stepsOfEach), errors)
        if (state.step > warm) milliseconds += performance.now() - begin
        if (state.step === stepsOfEach) break
      }
    }
    const timed = stepsOfEach - warm, product_ = (tape.kernels.get('many-body product') ?? 0) / timed
    const test = left.length > 0 ? valid.test(model, new Tape(), state.average) : errorsOf(errors)
    console.log(`${product.padEnd(12)} ${(milliseconds / timed).toFixed(1).padStart(7)} ms a step, ${share(tape, milliseconds)} in kernels, ${product_.toFixed(2)} ms in the many-body product; ${left.length > 0 ? 'left out' : 'training'}: ${shown(test)}`)
  }
}

function train(): void {
  let { model, state } = start(statistics, settings.product, count)
  if (existsSync(flags.checkpoint)) {
    state = load(flags.checkpoint, state.settings)
    console.log(`${flags.checkpoint}: going on after epoch ${state.epoch}`)
  }
  console.log(`${count} configurations of ${statistics.species.join(', ')}, ${left.length} left out; ${model.weights.length} weights, ${statistics.neighbours.toFixed(1)} neighbours`)
  const tape = new Tape(), begin = performance.now(), first = state.epoch
  let milliseconds = 0
  while (state.epoch < epochs) {
    const errors = none(), epochBegin = performance.now()
    for (const batch of data.batches(shuffled(data.order, generator(settings.seed + 1000 + state.epoch)))) trainStep(model, tape, batch, state, steps, errors)
    milliseconds += performance.now() - epochBegin
    const ofEpoch: State['history'][number] = errorsOf(errors)
    if (left.length > 0) ofEpoch.valid = valid.test(model, new Tape(), state.average)
    state.history.push(ofEpoch)
    state.epoch++
    save(state, flags.checkpoint)
    const leftOver = ((performance.now() - begin) / (state.epoch - first)) * (epochs - state.epoch)
    const ofValid = ofEpoch.valid ? `   left out ${shown(ofEpoch.valid)}` : ''
    console.log(`epoch ${String(state.epoch).padStart(4)}   training ${shown(ofEpoch)}${ofValid}   ${duration(leftOver / 1000)} left`)
  }
  const done = (state.epoch - first) * stepsPerEpoch
  if (done > 0) {
    console.log(`\n${(milliseconds / done).toFixed(1)} ms a step of ${batchSize} molecules; ${share(tape, milliseconds)} of the time in this package's kernels:`)
    for (const [name, time] of [...tape.kernels].sort(([, a], [, b]) => b - a)) console.log(`  ${name.padEnd(20)} ${(time / done).toFixed(2).padStart(8)} ms`)
  }
  console.log()
  for (const { file, configurations } of tests) {
    console.log(`${path.basename(file).padEnd(28)} ${shown(new Data(configurations, statistics, settings.cutoff).test(model, tape, state.average))}`)
  }
  if (left.length > 0) console.log(`${'left out'.padEnd(28)} ${shown(valid.test(model, tape, state.average))}`)
  const { error, size } = consistency(model, tape, data, state.average)
  console.log(`${'forces of energies'.padEnd(28)} ${error.toFixed(3)} meV/A between a force of ${size.toFixed(1)} and the difference of energies`)
  const epochsSeen = state.history.map((_, epoch) => epoch + 1)
  const panel = (title: 'energy' | 'forces', unit: string) => ({
    title: `${title}, ${unit}`,
    curves: [
      { name: 'training', x: epochsSeen, y: state.history.map((errors) => errors[title]) },
      ...(left.length > 0 ? [{ name: 'left out', x: epochsSeen, y: state.history.map(({ valid }) => valid![title]) }] : []),
    ],
  })
  writeFileSync(flags.plot, plot([panel('energy', 'meV/atom'), panel('forces', 'meV/A')], { x: 'epoch', y: 'root mean square of the errors' }, true))
  console.log(`wrote ${flags.plot}`)
}

if (flags.compare === undefined) train()
else compare(number('compare', 1))
