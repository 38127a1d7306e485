// The suite harmonics: spherical harmonics of normalised vectors.
import { sphericalHarmonics } from '../lib/index'
import { native } from '../lib/native'
import { bytesOf } from './measure'
import type { OperationProblem } from './operation_suite'
import { highestDegree } from './problems'

const make = (L: number): OperationProblem['make'] => ({ dtype, threads, backend, device }) => {
  const dim = (L + 1) ** 2, options = { threads, backend, device } as object
  // A function has no `cost`: its plan says what the kernels execute.
  const plan = native.createSphericalHarmonics({
    isDouble: dtype === 'float64', degrees: Int32Array.from({ length: L + 1 }, (_, l) => l), scale: new Float64Array(L + 1).fill(1), normalize: true,
  })
  const flops = native.flops(plan), bytes = (numbers: number) => bytesOf[dtype] * numbers
  native.dispose(plan)
  return {
    cost: {
      forward: { flops: flops.forward, bytes: bytes(3 + dim) },
      backward: { flops: flops.backward, bytes: bytes(2 * 3 + dim) },
      doubleBackward: { flops: flops.doubleBackward, bytes: bytes(3 * 3 + 2 * dim) },
    },
    weightBytes: 0,
    bind(pass, batch, draw) {
      const vectors = (): any => draw(3 * batch), values = (): any => draw(dim * batch), v = vectors(), z = values()
      if (pass === 'forward') return () => sphericalHarmonics(L, v, { ...options, out: z })
      const out = vectors()
      if (pass === 'backward') return () => sphericalHarmonics.backward(L, v, z, { ...options, out })
      const cotangent = vectors(), all = { vectors: out, gradOut: values() }
      return () => sphericalHarmonics.doubleBackward(L, v, z, cotangent, { ...options, out: all })
    },
    dispose() {},
  }
}

export const harmonicsProblems: readonly OperationProblem[] = Array.from({ length: highestDegree }, (_, n) => n + 1).map((L) => ({
  name: `harmonics-${L}`, meaning: `degrees 0 to ${L} of vectors, which are normalised`, source: 'e3nn.o3.spherical_harmonics', L, hasOneChannel: true, countedAtOnce: 128, make: make(L),
}))
