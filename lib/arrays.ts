// Checks on the arrays of a call. They run before native code does, and before anything is written.
import { arraysOverlap, DeviceArray } from './device_array'
import { argumentError, describe } from './errors'
import { native } from './native'

export type DType = 'float32' | 'float64'
export type ArrayOf<D extends DType> = D extends 'float32' ? Float32Array : Float64Array

export const constructors = { float32: Float32Array, float64: Float64Array } as const

export function allocate<D extends DType>(dtype: D, length: number): ArrayOf<D> {
  return new constructors[dtype](length) as ArrayOf<D>
}

export function isDetached(buffer: ArrayBufferLike): boolean {
  if (buffer.byteLength > 0) return false
  try {
    new Uint8Array(buffer)
    return false
  } catch {
    return true
  }
}

/** @throws EquitensorError `wrong_kind`, `wrong_dtype` or `detached`. */
export function requireArray<D extends DType>(value: unknown, argument: string, dtype: D): ArrayOf<D> {
  if (value instanceof DeviceArray) throw argumentError('wrong_kind', argument, `a ${constructors[dtype].name} on the host`, describe(value))
  if (!(value instanceof constructors[dtype])) {
    const name = constructors[dtype].name
    const isOther = value instanceof Float32Array || value instanceof Float64Array
    throw argumentError(isOther ? 'wrong_dtype' : 'invalid_argument', argument, `a ${name} (dtype ${dtype})`, describe(value))
  }
  if (value.length === 0 && isDetached(value.buffer)) {
    throw argumentError('detached', argument, 'an array with its memory', 'one whose ArrayBuffer was transferred')
  }
  return value as ArrayOf<D>
}

/** Number of items in an array of rows. @throws EquitensorError `wrong_length`. */
export function rowCount(array: { length: number }, argument: string, dim: number, shape: string): number {
  if (array.length % dim !== 0) {
    throw argumentError('wrong_length', argument, `a multiple of ${dim} numbers, ${shape}`, `${array.length}`)
  }
  return array.length / dim
}

/** @throws EquitensorError `wrong_length`. */
export function requireLength(array: { length: number }, argument: string, length: number, shape: string): void {
  if (array.length !== length) throw argumentError('wrong_length', argument, `${length} numbers, ${shape}`, `${array.length}`)
}

/** Whether two arrays share memory. */
export function overlap(a: ArrayBufferView | DeviceArray, b: ArrayBufferView | DeviceArray): boolean {
  if (a instanceof DeviceArray || b instanceof DeviceArray) return a instanceof DeviceArray && b instanceof DeviceArray && arraysOverlap(a, b)
  if (a.buffer !== b.buffer) {
    // A SharedArrayBuffer that has been to another thread is a new object on the same memory.
    return a.buffer instanceof SharedArrayBuffer && b.buffer instanceof SharedArrayBuffer && native.overlap(a, b)
  }
  return a.byteOffset < b.byteOffset + b.byteLength && b.byteOffset < a.byteOffset + a.byteLength
}

/** @throws EquitensorError `overlap` if an output shares memory with another array of the call. */
export function requireSeparate(
  outputs: Record<string, ArrayBufferView | DeviceArray | undefined>,
  inputs: Record<string, ArrayBufferView | DeviceArray | undefined>,
): void {
  const seen = Object.entries(inputs)
  for (const [name, output] of Object.entries(outputs)) {
    if (!output) continue
    for (const [other, array] of seen) {
      if (array && overlap(output, array)) {
        throw argumentError('overlap', name, 'memory of its own', `an array that overlaps ${other}`)
      }
    }
    seen.push([name, output])
  }
}
