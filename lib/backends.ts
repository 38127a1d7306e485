import { native } from './native'
import { cudaUnavailable } from './options'

export interface Backends {
  cpu: {
    available: true
    /** Instruction set of the kernels in use: 'baseline' (SSE2 or NEON), 'avx2', 'avx512'. */
    instructionSet: string
    /** The ones that this machine can run; EQUITENSOR_CPU in the environment chooses. */
    instructionSets: string[]
    threads: number
  }
  cuda: { available: false; reason: string }
}

/** What this process can run. */
export function backends(): Backends {
  const { variant, variants, threads } = native.cpuInfo()
  return {
    cpu: { available: true, instructionSet: variant, instructionSets: variants, threads },
    cuda: { available: false, reason: cudaUnavailable },
  }
}
