// The options that all operations have in common.
import type { DType } from './arrays'
import { cudaDevices, requireCuda, requireDevice } from './cuda'
import { argumentError, describe, EquitensorError } from './errors'
import { Irreps, maxOutputDegree, requireInputDegrees, toIrreps, type IrrepsLike } from './irreps'
import { binary, native } from './native'

/** `mul_ir`: a block of irreps is (mul, 2l+1), as in e3nn. `ir_mul`: (2l+1, mul). */
export type Layout = 'mul_ir' | 'ir_mul'
export type Backend = 'cpu' | 'cuda'

export interface CommonOptions<D extends DType> {
  /**
   * `'auto'` (default) is what EQUITENSOR_BACKEND in the environment says; otherwise `'cuda'` where there is a device, and then calls on host arrays with
   * few items run on the CPU all the same; otherwise `'cpu'`. `op.backend` and `op.choice` tell. `'cuda'` takes arrays on the host and on the device.
   */
  backend?: 'auto' | Backend
  /** Index of the CUDA device, by default 0. */
  device?: number
  /** Default `'float32'`. */
  dtype?: D
  /** Default `'mul_ir'`, e3nn's. */
  layout?: Layout
  /** CPU threads, by default all that the machine offers. Results do not depend on it. */
  threads?: number
}

export interface ResolvedOptions<D extends DType> {
  backend: Backend
  /** Of the backend 'cuda'. */
  device: number
  choice: BackendChoice
  dtype: D
  layout: Layout
  threads: number
}

/** @throws EquitensorError `invalid_option`. */
export function oneOf<T extends string>(value: unknown, argument: string, choices: readonly T[]): T {
  if (choices.includes(value as T)) return value as T
  throw argumentError('invalid_option', argument, choices.map((c) => `'${c}'`).join(' or '), describe(value))
}

/** @throws EquitensorError `invalid_option` for a key that is not in `known`. */
export function requireKnownOptions(options: unknown, known: readonly string[], argument = 'options'): void {
  if (typeof options !== 'object' || options === null) {
    throw argumentError('invalid_option', argument, `an object with ${known.join(', ')}`, describe(options))
  }
  for (const key of Object.keys(options)) {
    if (!known.includes(key)) throw argumentError('invalid_option', `${argument}.${key}`, `one of ${known.join(', ')}`, `'${key}'`)
  }
}

export const commonOptions = ['irrepsOut', 'backend', 'device', 'dtype', 'layout', 'threads'] as const

export function resolveOptions<D extends DType>(options: CommonOptions<D>): ResolvedOptions<D> {
  const choice = resolveBackend(options)
  const threads = options.threads ?? cpuInfo().threads
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw argumentError('invalid_option', 'options.threads', 'an integer from 1 to 1024', describe(threads))
  }
  return {
    backend: choice.backend,
    device: choice.device,
    choice,
    dtype: oneOf(options.dtype ?? 'float32', 'options.dtype', ['float32', 'float64'] as const) as D,
    layout: oneOf(options.layout ?? 'mul_ir', 'options.layout', ['mul_ir', 'ir_mul']),
    threads,
  }
}

/** The kernels in use. @throws EquitensorError `invalid_option` if EQUITENSOR_CPU names none that this machine can run. */
export function cpuInfo(): ReturnType<typeof native.cpuInfo> {
  try {
    return native.cpuInfo()
  } catch (cause) {
    throw new EquitensorError('invalid_option', (cause as Error).message, { argument: 'EQUITENSOR_CPU', cause })
  }
}

/** A backend, and why it. */
export interface BackendChoice {
  backend: Backend
  device: number
  /** Nobody asked for it. */
  isAutomatic: boolean
  why: string
}

/** @throws EquitensorError `invalid_option`, `backend_unavailable`. */
export function resolveBackend(options: { backend?: 'auto' | Backend; device?: number }): BackendChoice {
  const given = options.backend ?? 'auto'
  const choices = ['auto', 'cpu', 'cuda'] as const
  const preferred = process.env.EQUITENSOR_BACKEND
  const source = given === 'auto' && preferred ? 'EQUITENSOR_BACKEND' : 'options.backend'
  const asked = oneOf(given === 'auto' && preferred ? preferred : given, source, choices)
  const isAutomatic = asked === 'auto'
  // An emulation is slower than anything: it is for tests, which ask for it.
  const isUnasked = binary.flavour === 'emulated' && preferred !== 'auto'
  const { devices, reason } = !isAutomatic || isUnasked ? { devices: [], reason: 'the emulated one has to be asked for' } : cudaDevices()
  if (asked === 'cuda' || devices.length > 0) {
    if (asked === 'cuda') requireCuda(source, "'auto' or 'cpu'", "'cuda'")
    const device = requireDevice(options.device)
    return { backend: 'cuda', device, isAutomatic, why: isAutomatic ? `there is ${devices[device]!.name}` : `${source} says so` }
  }
  if (options.device !== undefined) throw argumentError('invalid_option', 'options.device', "none without backend 'cuda'", describe(options.device))
  return { backend: 'cpu', device: 0, isAutomatic, why: isAutomatic ? `no CUDA device: ${reason}` : `${source} says so` }
}

/** Irreps of an input: not empty, degrees up to 11. */
export function inputIrreps(value: IrrepsLike, argument: string): Irreps {
  const irreps = toIrreps(value, argument)
  if (irreps.dim === 0) throw argumentError('invalid_irreps', argument, 'at least one irrep', `'${irreps}'`)
  requireInputDegrees(irreps, argument)
  return irreps
}

/** Irreps of an output: not empty, degrees up to 22. */
export function outputIrreps(value: IrrepsLike, argument: string): Irreps {
  const irreps = toIrreps(value, argument)
  if (irreps.dim === 0) throw argumentError('invalid_irreps', argument, 'at least one irrep', `'${irreps}'`)
  if (irreps.lmax > maxOutputDegree) throw argumentError('degree_limit', argument, `degrees up to ${maxOutputDegree}`, `'${irreps}'`)
  return irreps
}
