// Timing of one pass of one operation: over many sets of arrays in turn, so that no call finds its data in a cache.
import { median, quantile } from './machine'
import type { Pass, Slot } from './passes'
import type { Dtype, Numbers, TensorProduct } from './problems'

const bytesOf = { float32: 4, float64: 8 } as const
const cacheLine = 64

/** More sets than this would spend the memory on array objects; only batches of a few items would need them. */
const mostSets = 16384

/** A xorshift generator: the same inputs in every run. */
function fillRandom(array: Numbers): void {
  // One block is drawn and then repeated: its odd length puts other values into every set.
  const block = array.subarray(0, 1_000_003)
  let state = 0x9e3779b9
  for (let n = 0; n < block.length; n++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    block[n] = state / 2 ** 31
  }
  for (let filled = block.length; filled < array.length; filled *= 2) array.copyWithin(filled, 0, Math.min(filled, array.length - filled))
}

/**
 * All memory of a run, allocated and touched once: numbers to read, which stay as they are, and numbers to overwrite,
 * apart from each other so that one operation's results never become another's inputs.
 */
export class Pool {
  private readonly readable: Numbers
  private readonly writable: Numbers

  constructor(readonly dtype: Dtype, bytesToRead: number, bytesToWrite: number) {
    const ArrayType = dtype === 'float32' ? Float32Array : Float64Array
    this.readable = new ArrayType(Math.ceil(bytesToRead / bytesOf[dtype]))
    this.writable = new ArrayType(Math.ceil(bytesToWrite / bytesOf[dtype]))
    fillRandom(this.readable)
    this.writable.fill(1)
  }

  /** As many sets of a pass's arrays as fit. */
  sets(pass: Pass, dims: Record<Slot, number>, batch: number): Record<string, Numbers>[] {
    const lengths = (slots: Record<string, Slot>) => Object.entries(slots).map(([name, slot]) => [name, dims[slot] * batch] as const)
    const [reads, writes] = [lengths(pass.reads), lengths(pass.writes)]
    const fits = Math.min(this.readable.length / this.span(reads), this.writable.length / this.span(writes))
    return Array.from({ length: Math.min(Math.floor(fits), mostSets) }, (_, n) => ({
      ...this.slice(this.readable, reads, n),
      ...this.slice(this.writable, writes, n),
    }))
  }

  /** Bytes of the largest set of a pass that has to fit. */
  static bytes(dtype: Dtype, slots: Record<string, Slot>, dims: Record<Slot, number>, batch: number): number {
    return Object.values(slots).reduce((sum, slot) => sum + dims[slot] * batch * bytesOf[dtype] + cacheLine, 0)
  }

  private stride(length: number): number {
    const line = cacheLine / bytesOf[this.dtype]
    return Math.ceil(length / line) * line
  }

  private span(lengths: (readonly [string, number])[]): number {
    return lengths.reduce((sum, [, length]) => sum + this.stride(length), 0)
  }

  private slice(pool: Numbers, lengths: (readonly [string, number])[], n: number): Record<string, Numbers> {
    let start = n * this.span(lengths)
    const arrays: Record<string, Numbers> = {}
    for (const [name, length] of lengths) {
      arrays[name] = pool.subarray(start, start + length)
      start += this.stride(length)
    }
    return arrays
  }
}

export interface Timing {
  /** Nanoseconds an item. */
  median: number
  quartiles: [number, number]
  fastest: number
  samples: number
  callsPerSample: number
  sets: number
  /** Bytes that pass by before a set is used again. */
  rotatedBytes: number
}

const shortestSample = 0.2e6 // ns: the clock's resolution and cost are then below 0.1 %
const fewestSamples = 9
const warmUp = 20e6 // ns

const now = () => Number(process.hrtime.bigint())

export function time(op: TensorProduct, pass: Pass, sets: readonly Record<string, Numbers>[], batch: number, budget: number): Timing {
  const calls = sets.map((arrays) => pass.bind(op, arrays))
  let next = 0
  const run = (count: number) => {
    const start = now()
    for (let n = 0; n < count; n++) {
      calls[next]!()
      if (++next === calls.length) next = 0
    }
    return now() - start
  }

  const warmUpEnd = now() + warmUp
  let perCall = run(1)
  do perCall = Math.min(perCall, run(1))
  while (now() < warmUpEnd)
  const callsPerSample = Math.max(1, Math.ceil(shortestSample / perCall))

  const samples: number[] = []
  const end = now() + budget
  while (samples.length < fewestSamples || now() < end) samples.push(run(callsPerSample) / callsPerSample / batch)
  return {
    median: median(samples),
    quartiles: [quantile(samples, 0.25), quantile(samples, 0.75)],
    fastest: Math.min(...samples),
    samples: samples.length,
    callsPerSample,
    sets: sets.length,
    rotatedBytes: sets.length * Object.values(sets[0]!).reduce((sum, array) => sum + array.byteLength, 0),
  }
}

/** One call into outputs full of NaN; says whether every number was written. */
export function callChecked(op: TensorProduct, pass: Pass, arrays: Record<string, Numbers>): boolean {
  const outputs = Object.keys(pass.writes).map((name) => arrays[name]!)
  for (const output of outputs) output.fill(NaN)
  pass.bind(op, arrays)()
  return outputs.every((output) => Number.isFinite(sumOf(output)))
}

function sumOf(array: Numbers): number {
  let sum = 0
  for (let n = 0; n < array.length; n++) sum += array[n]!
  return sum
}

/** Items spread over the batch, first and last among them. */
export function someItems(batch: number, count: number): number[] {
  const last = Math.min(count, batch) - 1
  return Array.from({ length: last + 1 }, (_, n) => (last ? Math.floor((n * (batch - 1)) / last) : 0))
}
