import { cudaDevices } from './cuda'
import type { CudaDevice } from './native'
import { cpuInfo } from './options'

export interface Backends {
  cpu: {
    available: true
    /** Instruction set of the kernels in use: 'baseline' (SSE2 or NEON), 'avx2', 'avx512'. */
    instructionSet: string
    /** The ones that this machine can run; EQUITENSOR_CPU in the environment chooses. */
    instructionSets: string[]
    threads: number
  }
  /** The index of a device in the list is the `device` of options and arrays. */
  cuda: { available: true; devices: readonly CudaDevice[] } | { available: false; reason: string }
}

/** What this process can run. */
export function backends(): Backends {
  const { variant, variants, threads } = cpuInfo()
  const { devices, reason } = cudaDevices()
  return {
    cpu: { available: true, instructionSet: variant, instructionSets: variants, threads },
    cuda: devices.length > 0 ? { available: true, devices } : { available: false, reason },
  }
}
