import { allocate, isTyped, lengthOf, requireArray, requireLength, type ArrayOf, type DType } from './arrays'
import { cuda, requireDevice } from './cuda'
import { argumentError, describe, disposed, inspectCustom } from './errors'
import type { NativeArray } from './native'
import { oneOf, requireKnownOptions } from './options'

const bytesPerElement = { float32: 4, float64: 8 } as const

let open: (array: DeviceArray) => NativeArray | undefined

/** @internal Whether it is one, and no mere heir of the prototype. */
export let isDeviceArray: (value: unknown) => value is DeviceArray

/**
 * An array of numbers in the memory of a CUDA device. Calls on device arrays return at once, and the device does the work in the order of
 * the calls; `download` waits for it. The memory is freed, for reuse by later arrays, when every array that shares it has been disposed of or
 * collected and the device has no more use for it. The collector needs the event loop to turn: a loop that does not `await` should
 * dispose of its arrays (`using`), or give `out`.
 */
export class DeviceArray<D extends DType = DType> {
  readonly dtype: D
  readonly length: number
  /** Index in `backends().cuda.devices`. */
  readonly device: number
  #native: NativeArray | undefined

  static {
    open = (array) => array.#native
    isDeviceArray = (value): value is DeviceArray => typeof value === 'object' && value !== null && #native in value
  }

  private constructor(dtype: D, length: number, device: number, native: NativeArray) {
    this.dtype = dtype
    this.length = length
    this.device = device
    this.#native = native
    Object.freeze(this) // native code is told of its length
  }

  /**
   * An array of `length` numbers with no particular values.
   * @throws EquitensorError `invalid_argument`, `invalid_option`, `backend_unavailable`, `out_of_memory`, `cuda`, `device_disabled`.
   */
  static alloc<D extends DType>(dtype: D, length: number, options: { device?: number } = {}): DeviceArray<D> {
    requireKnownOptions(options, ['device'])
    const device = requireDevice(options.device)
    oneOf(dtype, 'dtype', ['float32', 'float64'])
    if (!Number.isSafeInteger(length) || length < 0 || length > Number.MAX_SAFE_INTEGER / 8) {
      throw argumentError('invalid_argument', 'length', 'a count of numbers', describe(length))
    }
    return new DeviceArray(dtype, length, device, cuda((native) => native.allocate(device, length * bytesPerElement[dtype])))
  }

  /**
   * A copy of an array of the host.
   * @throws EquitensorError as {@link alloc}, and `detached`, `capturing`.
   */
  static from<A extends Float32Array | Float64Array>(
    array: A,
    options: { device?: number } = {},
  ): DeviceArray<A extends Float32Array ? 'float32' : 'float64'> {
    requireKnownOptions(options, ['device'])
    const device = requireDevice(options.device)
    const dtype = isTyped(array, 'Float64Array') ? 'float64' : 'float32'
    requireArray(array, 'array', dtype)
    const native = cuda((native) => native.from(device, array))
    return new DeviceArray<DType>(dtype, lengthOf(array), device, native) as DeviceArray<A extends Float32Array ? 'float32' : 'float64'>
  }

  /**
   * The numbers, on the host. Waits until the device has computed them.
   * @param out receives them and is returned; by default a new array.
   * @throws EquitensorError `disposed`, `wrong_dtype`, `wrong_length`, `detached`, `capturing`, `cuda`, `device_disabled`.
   */
  download(out?: ArrayOf<D>): ArrayOf<D> {
    const native = live(this, 'this')
    if (out !== undefined) {
      requireArray(out, 'out', this.dtype)
      requireLength(out, 'out', this.length, 'as many as the device array')
    }
    const result = out ?? allocate(this.dtype, this.length)
    cuda((addon) => addon.download(native, result as Float32Array | Float64Array))
    return result
  }

  /**
   * Overwrites the numbers with those of an array of the host or of a device, of the same dtype and length.
   * @returns this array.
   * @throws EquitensorError `disposed`, `wrong_dtype`, `wrong_length`, `detached`, `overlap`, `capturing`, `cuda`, `device_disabled`.
   */
  copyFrom(source: ArrayOf<D> | DeviceArray<D>): this {
    const native = live(this, 'this')
    if (isDeviceArray(source)) {
      const from = nativeArray(requireDeviceArray(source, 'source', this.dtype))
      requireLength(source, 'source', this.length, 'as many as the device array')
      if (cuda((addon) => addon.overlap(native, from))) throw argumentError('overlap', 'source', 'memory of its own', 'an array that overlaps this one')
      cuda((addon) => addon.copyFromDevice(native, from))
    } else {
      requireArray(source, 'source', this.dtype)
      requireLength(source, 'source', this.length, 'as many as the device array')
      cuda((addon) => addon.copyFromHost(native, source as Float32Array | Float64Array))
    }
    return this
  }

  /**
   * Elements begin to end (exclusive), in the same memory: what one array is given, the other has.
   * @throws EquitensorError `disposed`, `invalid_argument`.
   */
  slice(begin = 0, end = this.length): DeviceArray<D> {
    const native = live(this, 'this')
    if (!Number.isInteger(begin) || begin < 0 || begin > this.length) {
      throw argumentError('invalid_argument', 'begin', `an integer from 0 to ${this.length}`, describe(begin))
    }
    if (!Number.isInteger(end) || end < begin || end > this.length) {
      throw argumentError('invalid_argument', 'end', `an integer from ${begin} to ${this.length}`, describe(end))
    }
    const size = bytesPerElement[this.dtype]
    return new DeviceArray(this.dtype, end - begin, this.device, cuda((addon) => addon.slice(native, begin * size, end * size)))
  }

  /** Gives the memory up; later uses of this array throw `disposed`. Work that has been enqueued is not affected, slices live on. */
  dispose(): void {
    const native = this.#native
    this.#native = undefined
    if (native) cuda((addon) => addon.disposeArray(native))
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  [inspectCustom](): string {
    if (!isDeviceArray(this)) return 'an heir of DeviceArray.prototype'
    return `DeviceArray(${this.length}) [${this.dtype}, ${this.#native ? `device ${this.device}` : 'disposed'}]`
  }
}

function live(array: DeviceArray, argument: string): NativeArray {
  const native = open(array)
  if (!native) throw disposed('DeviceArray', argument)
  return native
}

/** @internal Of an array that has been checked. */
export function nativeArray(array: DeviceArray): NativeArray {
  return open(array)!
}

/** @internal */
export function arraysOverlap(a: DeviceArray, b: DeviceArray): boolean {
  return cuda((native) => native.overlap(nativeArray(a), nativeArray(b)))
}

/**
 * @internal
 * @throws EquitensorError `wrong_kind`, `wrong_dtype`, `disposed`, and `invalid_argument` for anything else and for another device.
 */
export function requireDeviceArray<D extends DType>(value: unknown, argument: string, dtype: D, device?: number): DeviceArray<D> {
  if (!isDeviceArray(value)) {
    const isHost = isTyped(value, 'Float32Array') || isTyped(value, 'Float64Array')
    throw argumentError(isHost ? 'wrong_kind' : 'invalid_argument', argument, `a DeviceArray (dtype ${dtype})`, describe(value))
  }
  if (value.dtype !== dtype) throw argumentError('wrong_dtype', argument, `a DeviceArray of dtype ${dtype}`, describe(value))
  live(value, argument)
  if (device !== undefined && value.device !== device) throw argumentError('invalid_argument', argument, `an array on device ${device}`, describe(value))
  return value as DeviceArray<D>
}
