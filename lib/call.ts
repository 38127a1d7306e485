// A checked call on its way to the kernels: which memory its arrays are in, this thread or another one, and until when somebody wants its results.
import type { ArrayOf, DType } from './arrays'
import { cuda } from './cuda'
import { DeviceArray, nativeArray } from './device_array'
import { argumentError, describe, EquitensorError } from './errors'
import { sweepsOnDevice } from './graph'
import { native, type NativeArray, type NativeArrays, type NativeCudaOperation, type NativeOperation } from './native'

/** Of one kind: arrays of the host, or of the device. */
export type OperandOf<D extends DType> = ArrayOf<D> | DeviceArray<D>

export interface AsyncOptions {
  /** Rejects the call with `aborted`. Then results on the host are not written; on the device, work that has begun goes on. */
  signal?: AbortSignal
}

/** Arrays of a call, checked. Results that nothing contributes to are in `zero`, and not in the call. */
export interface CheckedCall<D extends DType> {
  arrays: NativeArrays<OperandOf<D>>
  zero: OperandOf<D>[]
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

const computes = <D extends DType>(arrays: NativeArrays<OperandOf<D>>) => slots.some((slot) => arrays[`${slot}Out`])

export function runCall<D extends DType>(runner: Runner, { arrays, zero }: CheckedCall<D>): void {
  for (const array of zero) fillZero(array)
  if (!computes(arrays)) return
  const operation = runner.cuda
  if (operation) {
    const deviceSweeps = arrays.sweeps && sweepsOnDevice(arrays.sweeps, runner.device)
    if (arrays.x instanceof DeviceArray) cuda((addon) => addon.run(operation, { ...onDevice(arrays), deviceSweeps }))
    else cuda((addon) => addon.runHost(operation, { ...(arrays as NativeArrays<ArrayOf<D>>), deviceSweeps }))
    return
  }
  try {
    native.contract(runner.cpu!, { ...(arrays as NativeArrays<ArrayOf<D>>), threads: runner.threads })
  } catch (cause) {
    throw translated(cause)
  }
}

/** @throws EquitensorError `invalid_option` for a signal that is none, `aborted`. */
export async function runCallAsync<D extends DType>(runner: Runner, { arrays, zero }: CheckedCall<D>, signal: AbortSignal | undefined): Promise<void> {
  requireSignal(signal)
  if (computes(arrays)) await start(runner, arrays, signal)
  for (const array of zero) fillZero(array)
}

async function start<D extends DType>(runner: Runner, arrays: NativeArrays<OperandOf<D>>, signal: AbortSignal | undefined): Promise<void> {
  const operation = runner.cuda
  const cancel = signal && new Int32Array(new SharedArrayBuffer(4))
  const deviceSweeps = operation && arrays.sweeps && sweepsOnDevice(arrays.sweeps, runner.device)
  const call = { ...(arrays as NativeArrays<ArrayOf<D>>), cancel, deviceSweeps }
  const done = !operation
    ? native.contractAsync(runner.cpu!, { ...call, threads: runner.threads }).catch((cause) => Promise.reject(translated(cause)))
    : arrays.x instanceof DeviceArray
      ? cuda((addon) => {
          addon.run(operation, { ...onDevice(arrays), deviceSweeps })
          return addon.finished(runner.device)
        })
      : cuda((addon) => addon.runHostAsync(operation, call))
  return signal ? cancellable(done, signal, cancel!) : done
}

/** @throws EquitensorError `invalid_option` for a signal that is none, `aborted`. */
export function requireSignal(signal: AbortSignal | undefined): void {
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw argumentError('invalid_option', 'options.signal', 'an AbortSignal', describe(signal))
  if (signal?.aborted) throw aborted(signal)
}

/** `done`, or the error `aborted`; then `cancel` is 1. */
export async function cancellable(done: Promise<void>, signal: AbortSignal, cancel: Int32Array): Promise<void> {
  let stop = () => {}
  const abort = new Promise<never>((_, reject) => {
    stop = () => {
      Atomics.store(cancel, 0, 1)
      reject(aborted(signal))
    }
    signal.addEventListener('abort', stop, { once: true })
  })
  try {
    await Promise.race([done, abort])
  } finally {
    signal.removeEventListener('abort', stop)
    done.catch(() => {}) // of interest to nobody after an abort
  }
}

function onDevice<D extends DType>(arrays: NativeArrays<OperandOf<D>>): NativeArrays<NativeArray> {
  const natives = names.map((name) => [name, arrays[name] && nativeArray(arrays[name] as DeviceArray<D>)] as const)
  return { ...arrays, ...Object.fromEntries(natives) } as unknown as NativeArrays<NativeArray>
}

function fillZero(array: ArrayLike<number> | DeviceArray): void {
  if (array instanceof DeviceArray) cuda((addon) => addon.fillZero(nativeArray(array)))
  else (array as Float32Array | Float64Array).fill(0)
}

/** Of the CPU's kernels. */
export function translated(cause: unknown): unknown {
  if ((cause as { code?: string }).code !== 'out_of_memory') return cause
  return new EquitensorError('out_of_memory', (cause as Error).message, { cause })
}

function aborted(signal: AbortSignal): EquitensorError {
  return new EquitensorError('aborted', 'the call was cancelled through its signal', { cause: signal.reason })
}
