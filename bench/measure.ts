// The arrays of a run, on the host or on a device, and the check of what a call has left in them.
import type { Pass, Slot } from './passes'
import type { Dtype, Numbers, Operand, TensorProduct } from './problems'

export const bytesOf = { float32: 4, float64: 8 } as const
const cacheLine = 64

/** How a machine's arrays are made, and how the host gets at them. */
export interface Memory<A extends Operand> {
  make(dtype: Dtype, length: number): A
  /** Elements begin to end, in the same memory. */
  part(array: A, begin: number, end: number): A
  write(to: A, from: Numbers): void
  /** The numbers themselves, or a copy of them. */
  read(array: A): Numbers
}

/** Numbers that the host holds at once while it fills or checks an array elsewhere. */
const blockLength = 1_000_003

function* blocks<A extends Operand>(memory: Memory<A>, array: A): Generator<A> {
  for (let begin = 0; begin < array.length; begin += blockLength) yield memory.part(array, begin, Math.min(begin + blockLength, array.length))
}

function fill<A extends Operand>(memory: Memory<A>, array: A, block: Numbers): void {
  for (const part of blocks(memory, array)) memory.write(part, block.subarray(0, part.length))
}

const blockOf = (dtype: Dtype, length: number) => new (dtype === 'float32' ? Float32Array : Float64Array)(Math.min(length, blockLength))

/** Of a xorshift generator: the same inputs in every run. */
function randomBlock(dtype: Dtype, length: number): Numbers {
  // One block is drawn and then repeated: its odd length puts other values into every set.
  const block = blockOf(dtype, length)
  let state = 0x9e3779b9
  for (let n = 0; n < block.length; n++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    block[n] = state / 2 ** 31
  }
  return block
}

/**
 * All memory of a run, allocated and touched once: numbers to read, which stay as they are, and numbers to overwrite,
 * apart from each other so that one operation's results never become another's inputs.
 */
export class Pool<A extends Operand> {
  private readonly readable: A
  private readonly writable: A

  constructor(private readonly memory: Memory<A>, readonly dtype: Dtype, bytesToRead: number, bytesToWrite: number) {
    this.readable = memory.make(dtype, Math.ceil(bytesToRead / bytesOf[dtype]))
    this.writable = memory.make(dtype, Math.ceil(bytesToWrite / bytesOf[dtype]))
    fill(memory, this.readable, randomBlock(dtype, this.readable.length))
    fill(memory, this.writable, blockOf(dtype, this.writable.length).fill(1))
  }

  /** As many sets of a pass's arrays as fit, at most `most`. */
  sets(pass: { reads: Record<string, string>; writes: Record<string, string> }, dims: Record<string, number>, batch: number, most: number): Record<string, A>[] {
    const lengths = (slots: Record<string, string>) => Object.entries(slots).map(([name, slot]) => [name, dims[slot]! * batch] as const)
    const [reads, writes] = [lengths(pass.reads), lengths(pass.writes)]
    const fits = Math.min(this.readable.length / this.span(reads), this.writable.length / this.span(writes))
    return Array.from({ length: Math.min(Math.floor(fits), most) }, (_, n) => ({
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

  private slice(pool: A, lengths: (readonly [string, number])[], n: number): Record<string, A> {
    let start = n * this.span(lengths)
    const arrays: Record<string, A> = {}
    for (const [name, length] of lengths) {
      arrays[name] = this.memory.part(pool, start, start + length)
      start += this.stride(length)
    }
    return arrays
  }
}

/** A call on arrays of whatever memory; the types of TensorProduct name the host's. */
export const bind = (op: TensorProduct, pass: Pass, arrays: Record<string, Operand>) => pass.bind(op, arrays as Record<string, Numbers>)

/** One call into outputs full of NaN; says whether every number was written. */
export function callChecked<A extends Operand>(memory: Memory<A>, op: TensorProduct, pass: Pass, arrays: Record<string, A>, dtype: Dtype): boolean {
  const outputs = Object.keys(pass.writes).map((name) => arrays[name]!)
  for (const output of outputs) fill(memory, output, blockOf(dtype, output.length).fill(NaN))
  bind(op, pass, arrays)()
  return outputs.every((output) => [...blocks(memory, output)].every((part) => Number.isFinite(sumOf(memory.read(part)))))
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

/** The rows of these items, one after the other, on the host. */
export function rowsOf<A extends Operand>(memory: Memory<A>, array: A, dim: number, items: readonly number[], dtype: Dtype): Numbers {
  const rows = new (dtype === 'float32' ? Float32Array : Float64Array)(items.length * dim)
  items.forEach((item, n) => rows.set(memory.read(memory.part(array, item * dim, (item + 1) * dim)), n * dim))
  return rows
}
