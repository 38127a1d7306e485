import { capturing, cuda, requireDevice } from './cuda'
import { argumentError, describe, disposed } from './errors'
import type { NativeGraph, NativeStream } from './native'
import { requireKnownOptions } from './options'

// Of each device, where calls go now; the default stream where there is none.
const current = new Map<number, NativeStream>()

/**
 * An order of work on a CUDA device. Calls inside `run` are enqueued on the stream, all others on a default stream; streams work side by side.
 * Arrays may be used on several: whoever needs what another stream computes waits for it, on the device.
 */
export class Stream {
  readonly device: number
  #native: NativeStream | undefined

  /** @throws EquitensorError `backend_unavailable`, `invalid_option`, `cuda`, `device_disabled`. */
  constructor(options: { device?: number } = {}) {
    requireKnownOptions(options, ['device'])
    const device = requireDevice(options.device)
    this.device = device
    this.#native = cuda((native) => native.createStream(device))
  }

  /**
   * Calls `work` and returns what it returns; calls on the stream's device that it makes, before the first `await`, are enqueued on the stream.
   * @throws EquitensorError `disposed`, and what `work` throws.
   */
  run<T>(work: () => T): T {
    const native = this.#live(), previous = current.get(this.device)
    const choose = (stream: NativeStream | undefined) => {
      if (stream) current.set(this.device, stream)
      else current.delete(this.device)
      cuda((addon) => addon.chooseStream(this.device, stream))
    }
    choose(native)
    try {
      return work()
    } finally {
      choose(previous)
    }
  }

  /** Waits until the stream has done its work. @throws EquitensorError `disposed`, `capturing`, `cuda`, `device_disabled`. */
  synchronize(): void {
    const native = this.#live()
    cuda((addon) => addon.synchronize(native))
  }

  /** Resolves when the stream has done what it has been given so far; rejects as {@link synchronize} throws. */
  async finished(): Promise<void> {
    await this.run(() => cuda((addon) => addon.finished(this.device)))
  }

  /** Whether the stream has done its work. */
  get done(): boolean {
    const native = this.#live()
    return cuda((addon) => addon.isDone(native))
  }

  /** Later calls throw `disposed`; work that has been enqueued is still done. */
  dispose(): void {
    const native = this.#native
    this.#native = undefined
    if (native) cuda((addon) => addon.disposeStream(native))
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  #live(): NativeStream {
    if (!this.#native) throw disposed('Stream')
    return this.#native
  }
}

/** Work that was recorded by {@link capture}. */
export class CapturedGraph {
  readonly device: number
  #native: NativeGraph | undefined

  /** @internal */
  constructor(device: number, native: NativeGraph) {
    this.device = device
    this.#native = native
  }

  /** Enqueues the work once more, on the values that its arrays have by then. @throws EquitensorError `disposed`, `capturing`, `cuda`, `device_disabled`. */
  replay(): void {
    const native = this.#native
    if (!native) throw disposed('CapturedGraph')
    cuda((addon) => addon.replay(native))
  }

  /** Frees the graph, and the memory of disposed arrays that it uses. Waits for replays under way. */
  dispose(): void {
    const native = this.#native
    this.#native = undefined
    if (native) cuda((addon) => addon.disposeGraph(native))
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * Records the calls on device arrays that `work` makes as a CUDA graph, without executing them: `replay()` of the result does, with one
 * launch. Arrays that `work` makes hold the results of the last replay. The graph keeps all memory that it uses, also of arrays that are
 * disposed of.
 *
 * What waits for the device or reads the host's memory cannot be recorded: calls on host arrays, downloads, uploads, asynchronous
 * calls, constructors of operations.
 * @throws EquitensorError `capturing`, `backend_unavailable`, `invalid_argument`, `invalid_option`, and what `work` throws.
 */
export function capture(work: () => void, options: { device?: number } = {}): CapturedGraph {
  requireKnownOptions(options, ['device'])
  if (typeof work !== 'function') throw argumentError('invalid_argument', 'work', 'a function', describe(work))
  const device = requireDevice(options.device)
  cuda((native) => native.beginCapture(device))
  let isComplete = false
  capturing.now = true
  try {
    const result = work() as unknown
    if (result instanceof Promise) throw argumentError('invalid_argument', 'work', 'a function that is not asynchronous', 'one that returns a promise')
    isComplete = true
  } finally {
    capturing.now = false
    if (!isComplete) cuda((native) => native.abandonCapture())
  }
  return new CapturedGraph(device, cuda((native) => native.endCapture()))
}
