// Whether there is CUDA in this process, and how its native half is called.
import { argumentError, describe, EquitensorError, errorCodes, type ErrorCode } from './errors'
import { binary, native, type CudaDevice, type NativeCuda } from './native'

/** The devices, or why there are none and what helps. */
export function cudaDevices(): { devices: readonly CudaDevice[]; reason: string } {
  if (!native.cuda) {
    const failed = binary.refused.find(({ file }) => file.includes('equitensor_cuda'))
    const reason = failed ? `${failed.file} cannot be loaded (${failed.reason}), and the binary in use` : 'the binary in use'
    return { devices: [], reason: `${reason} has CPU kernels only: npx equitensor build --cuda, with the CUDA toolkit 12.0 or newer` }
  }
  const { devices, reason } = native.cuda.devices()
  return { devices, reason: `${reason} (nvidia-smi shows the driver and its cards)` }
}

/** @throws EquitensorError `backend_unavailable` that names the remedy. */
export function requireCuda(argument: string, expected: string, received: string): void {
  const { devices, reason } = cudaDevices()
  if (devices.length > 0) return
  throw new EquitensorError('backend_unavailable', `${argument}: expected ${expected}, got ${received}: ${reason}`, { argument, expected, received })
}

/** @throws EquitensorError `backend_unavailable` or `invalid_option`. */
export function requireDevice(device: unknown = 0, argument = 'options.device'): number {
  requireCuda(argument, 'a CUDA device', 'none')
  const count = cudaDevices().devices.length
  if (Number.isInteger(device) && (device as number) >= 0 && (device as number) < count) return device as number
  const expected = count === 1 ? '0, the only device' : `an integer from 0 to ${count - 1}`
  throw argumentError('invalid_option', argument, expected, describe(device))
}

/** @internal Whether this thread is inside of `capture`. Then a call that 'auto' would leave to the CPU goes to the device, which refuses host arrays. */
export const capturing = { now: false }

function translated(cause: unknown): unknown {
  const { code, message, call, bytes } = cause as { code?: string; message: string; call?: string; bytes?: number }
  if (!(cause instanceof Error) || cause instanceof EquitensorError || !code || !Object.hasOwn(errorCodes, code)) return cause
  return new EquitensorError(code as ErrorCode, message, { ...(call && { call }), ...(bytes && { bytes }), cause })
}

/** Calls native code; its errors become EquitensorErrors. */
export function cuda<T>(call: (native: NativeCuda) => T): T {
  try {
    const result = call(native.cuda!)
    return result instanceof Promise ? (result.catch((cause) => Promise.reject(translated(cause))) as T) : result
  } catch (cause) {
    throw translated(cause)
  }
}
