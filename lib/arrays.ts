// Checks on the arrays of a call. They run before native code does, and before anything is written.
import { arraysOverlap, isDeviceArray, type DeviceArray } from './device_array'
import { argumentError, describe, EquitensorError } from './errors'
import { native } from './native'

export type DType = 'float32' | 'float64'
export type ArrayOf<D extends DType> = D extends 'float32' ? Float32Array : Float64Array

export const constructors = { float32: Float32Array, float64: Float64Array } as const

/** @throws EquitensorError `out_of_memory`. */
export function allocate<D extends DType>(dtype: D, length: number): ArrayOf<D> {
  return orOutOfMemory(() => new constructors[dtype](length) as ArrayOf<D>, () => `a result of ${length} numbers`)
}

/** What `make` makes. @throws EquitensorError `out_of_memory` that names `what`, where V8 has a RangeError: an array that is too long for it, or for the machine. */
export function orOutOfMemory<T>(make: () => T, what: () => string): T {
  try {
    return make()
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw new EquitensorError('out_of_memory', `no memory for ${what()}`, { cause })
  }
}

// What an array says of itself may be anything: a subclass, a property of its own, a Proxy. Its memory is what these say.
const prototype = Object.getPrototypeOf(Float32Array.prototype) as Float32Array
const getter = (name: keyof Float32Array) => Object.getOwnPropertyDescriptor(prototype, name)!.get!
const [tagOf, typedLength, typedBuffer, typedOffset, typedBytes] = ([Symbol.toStringTag, 'length', 'buffer', 'byteOffset', 'byteLength'] as const).map(getter) as [Getter, Getter, Getter, Getter, Getter]
const { fill, values } = prototype
type Getter = (this: unknown) => any

const typed = { Float32Array, Float64Array, Int32Array, BigInt64Array } as const
type Typed = { [name in keyof typeof typed]: InstanceType<(typeof typed)[name]> }

/** Whether it is a typed array of that kind, and no mere heir of its prototype. */
export function isTyped<K extends keyof Typed>(value: unknown, kind: K): value is Typed[K] {
  return tagOf.call(value) === kind
}

/** Of an array. */
export function lengthOf(array: ArrayBufferView | DeviceArray): number {
  return isDeviceArray(array) ? array.length : typedLength.call(array)
}

/** The same of what may be none. */
export function lengthIfArray(value: unknown): number | undefined {
  return isDeviceArray(value) || tagOf.call(value) !== undefined ? lengthOf(value as ArrayBufferView) : undefined
}

/** Another view of the memory, with no properties but those of its kind. */
export function plainView<A extends ArrayBufferView>(array: A): A {
  const View = typed[tagOf.call(array) as keyof Typed]
  return new View(typedBuffer.call(array), typedOffset.call(array), typedLength.call(array)) as ArrayBufferView as A
}

export function fillZero(array: ArrayBufferView): void {
  fill.call(array as Float32Array, 0)
}

/** Whether it has lost its memory: its buffer was transferred, or shrunk to before its end. */
export function isDetached(array: ArrayBufferView): boolean {
  if (typedLength.call(array) > 0) return false
  try {
    values.call(array as Float32Array)
    return false
  } catch {
    return true
  }
}

/** @throws EquitensorError `detached`. */
export function requireMemory(array: ArrayBufferView, argument: string): void {
  if (isDetached(array)) throw argumentError('detached', argument, 'an array with its memory', 'one whose ArrayBuffer was transferred or shrunk')
}

/** @throws EquitensorError `wrong_kind`, `wrong_dtype` or `detached`. */
export function requireArray<D extends DType>(value: unknown, argument: string, dtype: D): ArrayOf<D> {
  const { name } = constructors[dtype]
  if (isDeviceArray(value)) throw argumentError('wrong_kind', argument, `a ${name} on the host`, describe(value))
  const kind = tagOf.call(value)
  if (kind !== name) {
    const isOther = kind === 'Float32Array' || kind === 'Float64Array'
    throw argumentError(isOther ? 'wrong_dtype' : 'invalid_argument', argument, `a ${name} (dtype ${dtype})`, describe(value))
  }
  requireMemory(value as ArrayOf<D>, argument)
  return value as ArrayOf<D>
}

/** Number of items in an array of rows. @throws EquitensorError `wrong_length`. */
export function rowCount(array: ArrayBufferView | DeviceArray, argument: string, dim: number, shape: string): number {
  const length = lengthOf(array)
  if (length % dim !== 0) throw argumentError('wrong_length', argument, `a multiple of ${dim} numbers, ${shape}`, `${length}`)
  return length / dim
}

/** @throws EquitensorError `wrong_length`. */
export function requireLength(array: ArrayBufferView | DeviceArray, argument: string, length: number, shape: string): void {
  if (lengthOf(array) !== length) throw argumentError('wrong_length', argument, `${length} numbers, ${shape}`, `${lengthOf(array)}`)
}

/** Whether two arrays share memory. */
export function overlap(a: ArrayBufferView | DeviceArray, b: ArrayBufferView | DeviceArray): boolean {
  if (isDeviceArray(a) || isDeviceArray(b)) return isDeviceArray(a) && isDeviceArray(b) && arraysOverlap(a, b)
  const ofA = typedBuffer.call(a), ofB = typedBuffer.call(b)
  if (ofA !== ofB) {
    // A SharedArrayBuffer that has been to another thread is a new object on the same memory.
    return ofA instanceof SharedArrayBuffer && ofB instanceof SharedArrayBuffer && native.overlap(a, b)
  }
  const beginA = typedOffset.call(a), beginB = typedOffset.call(b)
  return beginA < beginB + typedBytes.call(b) && beginB < beginA + typedBytes.call(a)
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
