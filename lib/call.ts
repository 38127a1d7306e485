// A checked call on its way to the kernels: which memory its arrays are in, this thread or another one, and until when somebody wants its results.
import { fillZero, lengthOf, overlap, plainView, type ArrayOf, type DType } from './arrays'
import { cuda } from './cuda'
import { isDeviceArray, nativeArray, type DeviceArray } from './device_array'
import { argumentError, describe, EquitensorError } from './errors'
import { sweepsOnDevice } from './graph'
import { native, type NativeArray, type NativeArrays, type NativeCudaOperation, type NativeFactors, type NativeOperation } from './native'
import { speciesOnDevice } from './species'

/** Of one kind: arrays of the host, or of the device. */
export type OperandOf<D extends DType> = ArrayOf<D> | DeviceArray<D>

export interface AsyncOptions {
  /** Rejects the call with `aborted`. Then results on the host are not written; on the device, work that has begun goes on. */
  signal?: AbortSignal
}

type Arrays<A> = NativeArrays<A> | NativeFactors<A>

/** Arrays of a call, checked. Results that nothing contributes to are in `zero`, and not in the call. `given`: the results that the caller owns, by their argument. */
export interface CheckedCall<D extends DType, Given extends Arrays<OperandOf<D>> = NativeArrays<OperandOf<D>>> {
  arrays: Given
  zero: OperandOf<D>[]
  given: Record<string, OperandOf<D> | undefined>
}

/** What runs a call: the plan on the device if there is one, else that of the host, which is there then. */
export interface Runner {
  cpu: NativeOperation | undefined
  cuda: NativeCudaOperation | undefined
  device: number
  threads: number
}

// As native calls name them: w is the weight, z the result or its gradient, a... a direction.
export const slots = ['x', 'y', 'w', 'z'] as const
export type Slot = (typeof slots)[number]
export const slotOf = { x: 'x', y: 'y', w: 'w', z: 'z', ax: 'x', ay: 'y', aw: 'w', xOut: 'x', yOut: 'y', wOut: 'w', zOut: 'z' } as const
export const names = Object.keys(slotOf) as (keyof typeof slotOf)[]

const computes = (arrays: Arrays<unknown>) => Object.entries(arrays).some(([name, array]) => name.endsWith('Out') && array !== undefined)
const isOnDevice = (arrays: Arrays<unknown>) => isDeviceArray('factors' in arrays ? arrays.f1 : arrays.x)

/** Results of a call on arrays of the host that the caller owns. */
interface Written {
  arrays: { argument: string; array: ArrayBufferView; length: number }[]
  adds: boolean
}
const pending = new Set<Written>()

/**
 * What a call adds to is read when it begins, and written when its promise resolves: in between nobody else may write there.
 * @throws EquitensorError `overlap`.
 */
function written<D extends DType>({ arrays, zero, given }: CheckedCall<D, Arrays<OperandOf<D>>>): Written {
  const results = new Set<unknown>([...Object.values(arrays), ...zero]), adds = arrays.accumulate === true
  const mine = Object.entries(given).flatMap(([argument, array]) => (results.has(array) && ArrayBuffer.isView(array) ? [{ argument, array, length: lengthOf(array) }] : []))
  for (const theirs of pending) {
    if (!adds && !theirs.adds) continue
    for (const { argument, array } of mine) {
      if (!theirs.arrays.some((other) => overlap(array, other.array))) continue
      const what = theirs.adds ? 'a pending call adds to' : 'a pending call writes, while this one adds'
      throw argumentError('overlap', argument, 'memory of no pending call (await that first)', `an array that ${what}`)
    }
  }
  return { arrays: mine, adds }
}

export function runCall<D extends DType>(runner: Runner, call: CheckedCall<D, Arrays<OperandOf<D>>>): void {
  const { arrays, zero } = call
  if (pending.size > 0) written(call)
  for (const array of zero) clear(array)
  if (!computes(arrays)) return
  const operation = runner.cuda
  if (operation) {
    const call = forDevice(arrays, runner.device)
    if (isOnDevice(arrays)) cuda((addon) => addon.run(operation, onDevice(call)))
    else cuda((addon) => addon.runHost(operation, call as Arrays<ArrayOf<D>>))
    return
  }
  try {
    native.contract(runner.cpu!, { ...(arrays as Arrays<ArrayOf<D>>), threads: runner.threads })
  } catch (cause) {
    throw translated(cause)
  }
}

/** @throws EquitensorError `invalid_option` for a signal that is none, `aborted`, `detached` for a result that has lost its memory in the meantime. */
export async function runCallAsync<D extends DType>(runner: Runner, call: CheckedCall<D, Arrays<OperandOf<D>>>, signal: AbortSignal | undefined): Promise<void> {
  requireSignal(signal)
  const { arrays, zero } = call
  if (computes(arrays)) {
    const mine = written(call)
    pending.add(mine)
    try {
      await start(runner, arrays, signal)
    } finally {
      pending.delete(mine)
    }
    for (const { argument, array, length } of mine.arrays) {
      if (lengthOf(array) === length) continue
      throw argumentError('detached', argument, 'an array that keeps its memory until the promise resolves', 'one whose ArrayBuffer was transferred or resized')
    }
  }
  for (const array of zero) clear(array)
}

async function start<D extends DType>(runner: Runner, arrays: Arrays<OperandOf<D>>, signal: AbortSignal | undefined): Promise<void> {
  const operation = runner.cuda
  const cancel = signal && new Int32Array(new SharedArrayBuffer(4))
  // Native code asks an array for its buffer, to know whether to copy it.
  const plain = Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, ArrayBuffer.isView(array) ? plainView(array) : array])) as Arrays<OperandOf<D>>
  const call = { ...((operation ? forDevice(plain, runner.device) : plain) as Arrays<ArrayOf<D>>), cancel }
  const done = !operation
    ? contractAsync(runner.cpu!, { ...call, threads: runner.threads })
    : isOnDevice(arrays)
      ? cuda((addon) => {
          addon.run(operation, onDevice(call))
          return addon.finished(runner.device)
        })
      : cuda((addon) => addon.runHostAsync(operation, call))
  return signal ? cancellable(done, signal, cancel!) : done
}

// Async, so that what is wrong before there is a promise comes as its rejection too.
async function contractAsync(...call: Parameters<typeof native.contractAsync>): Promise<void> {
  try {
    await native.contractAsync(...call)
  } catch (cause) {
    throw translated(cause)
  }
}

/** @throws EquitensorError `invalid_option` for a signal that is none, `aborted`. */
export function requireSignal(signal: AbortSignal | undefined): void {
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw argumentError('invalid_option', 'options.signal', 'an AbortSignal', describe(signal))
  if (signal?.aborted) throw aborted(signal)
}

/** `done`, or the error `aborted`; then `cancel` is 1. */
export async function cancellable(done: Promise<void>, signal: AbortSignal, cancel: Int32Array): Promise<void> {
  let forget = () => {}
  const abort = new Promise<never>((_, reject) => {
    forget = onAbort(signal, () => {
      Atomics.store(cancel, 0, 1)
      reject(aborted(signal))
    })
  })
  try {
    await Promise.race([done, abort])
  } finally {
    forget()
    done.catch(() => {}) // of interest to nobody after an abort
  }
}

/** One listener for all calls that are pending on a signal: of more than ten Node warns as of a leak. */
const listeners = new WeakMap<AbortSignal, { stops: Set<() => void>; listener: () => void }>()

/** @returns what takes `stop` back, and the listener with the last one. */
function onAbort(signal: AbortSignal, stop: () => void): () => void {
  let entry = listeners.get(signal)
  if (!entry) {
    const stops = new Set<() => void>()
    entry = { stops, listener: () => stops.forEach((stop) => stop()) }
    listeners.set(signal, entry)
    signal.addEventListener('abort', entry.listener, { once: true })
  }
  const { stops, listener } = entry
  stops.add(stop)
  return () => {
    stops.delete(stop)
    if (stops.size > 0) return
    listeners.delete(signal)
    signal.removeEventListener('abort', listener)
  }
}

/** With what of the call has a copy on the device. */
function forDevice<D extends DType>(arrays: Arrays<OperandOf<D>>, device: number): Arrays<OperandOf<D>> {
  if ('factors' in arrays) return arrays
  const { sweeps, bySpecies } = arrays
  return { ...arrays, deviceSweeps: sweeps && sweepsOnDevice(sweeps, device), deviceSpecies: bySpecies && speciesOnDevice(bySpecies, device) }
}

function onDevice<Given extends object>(arrays: Given): Arrays<NativeArray> {
  return Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, isDeviceArray(array) ? nativeArray(array) : array])) as never
}

function clear(array: ArrayBufferView | DeviceArray): void {
  if (isDeviceArray(array)) cuda((addon) => addon.fillZero(nativeArray(array)))
  else fillZero(array)
}

/** Of the CPU's kernels. */
export function translated(cause: unknown): unknown {
  if ((cause as { code?: string }).code !== 'out_of_memory') return cause
  return new EquitensorError('out_of_memory', (cause as Error).message, { cause })
}

function aborted(signal: AbortSignal): EquitensorError {
  return new EquitensorError('aborted', 'the call was cancelled through its signal', { cause: signal.reason })
}
