// Suites of operations by themselves on the emulation: counts of what the CUDA kernels do, and modelled times on an H100, never measured ones.
import { DeviceArray } from '../lib/index'
import { countCall } from './counted'
import { h100, modelledBatch } from './h100'
import { species as allSpecies } from './many_body_problems'
import type { OperationProblem } from './operation_suite'
import type { PassName } from './passes'
import type { MakeOptions } from './problems'
import { random, randomArray } from '../test/support'

/** What is counted of a call, by its parts: of every item, every task of a symmetric contraction, every species, and what a call has besides. */
interface Parts {
  item: number
  task: number
  species: number
  call: number
}
interface Counted {
  launches: number
  bytes: number
  instructions: number
}

/** Nodes and species of the calls that are counted; a species' nodes are in tasks of four (addon/arguments.hpp). */
const calls = [[16, 16], [64, 16], [64, 4], [16, 4]] as const
const tasksOf = (batch: number, species: number) => species * Math.max(1, Math.ceil(batch / species / Math.max(4, Math.ceil(batch / 1024))))

function count(problem: OperationProblem, pass: PassName, options: MakeOptions, batch: number, species: number): Counted {
  const op = problem.make(options, calls[0][1]), next = random(1), arrays: DeviceArray[] = []
  const call = op.bind(pass, batch, (length) => (arrays[arrays.length] = DeviceArray.from(randomArray(options.dtype, length, next) as Float32Array) as DeviceArray), species)
  const { launches, loaded, stored, table, instructions } = countCall(call, arrays[0]!)
  for (const array of arrays) array.dispose()
  op.dispose()
  return { launches, bytes: loaded.unique + stored.unique + table.unique, instructions: 32 * instructions.warp }
}

/** From four calls, which differ in one thing each. */
function partsOf(problem: OperationProblem, pass: PassName, options: MakeOptions): { launches: number; bytes: Parts; instructions: Parts } {
  const least = calls[0][0], scale = (problem.countedAtOnce ?? least) / least
  const counted = calls.map(([batch, species]) => count(problem, pass, options, batch * scale, species))
  const solve = (of: (c: Counted) => number): Parts => {
    const [first, more, fewer, fewest] = counted.map(of) as [number, number, number, number]
    const item = (more - first) / 48, species = (more - fewer) / 12, task = (fewer - fewest - 48 * item) / 12
    return { item: item / scale, task, species, call: first - 16 * (item + task + species) }
  }
  return { launches: counted[0]!.launches, bytes: solve((c) => c.bytes), instructions: solve((c) => c.instructions) }
}

/** An item of a call of so many, on an H100. */
export interface CountedPass {
  launches: number
  /** Of operands and results, over those that have to be read and written. */
  traffic: number
  /** Thread-instructions, issued; NaN where they are not counted. */
  instructions: number
  modelled: number
  floor: number
  boundBy: 'bytes' | 'ops'
}
export function countPass(problem: OperationProblem, pass: PassName, options: MakeOptions): CountedPass {
  const op = problem.make(options), cost = op.cost[pass], hasSpecies = op.weightBytes > 0
  op.dispose()
  const { launches, bytes, instructions } = partsOf(problem, pass, options)
  const all = (parts: Parts) =>
    parts.item + (hasSpecies ? (parts.task * tasksOf(modelledBatch, allSpecies) + (parts.species + parts.call / calls[0][1]) * allSpecies) / modelledBatch : parts.call / modelledBatch)
  // Sets of weights are read once, in the double backward with their directions, and their gradients written once.
  const sets = { forward: 1, backward: 2, doubleBackward: 3 }[pass] * op.weightBytes
  const least = cost.bytes + sets / modelledBatch, speed = h100(options.dtype)
  const floors = { bytes: (1e9 * least) / speed.copyBandwidth, ops: (1e9 * cost.flops) / 2 / speed.fmaPeak }
  const boundBy = floors.bytes >= floors.ops ? 'bytes' : 'ops'
  const issue = h100('float32').fmaPeak
  return {
    launches, traffic: all(bytes) / least, instructions: all(instructions), floor: floors[boundBy], boundBy,
    modelled: Math.max((1e9 * all(bytes)) / speed.copyBandwidth, (1e9 * all(instructions)) / issue),
  }
}
