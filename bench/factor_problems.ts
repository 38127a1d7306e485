// The suite factors: GTP and MTP with a factor for each irrep of both inputs and the output as weights.
import { bytesOf } from './measure'
import { passes } from './passes'
import { highestDegree, operations, problems, type MakeOptions, type Operation } from './problems'
import { bindWeighted, weightedArrays, weightedDims } from './weighted'
import type { OperationProblem, Subject } from './operation_suite'

const { irreps, source } = problems.find(({ name }) => name === 'MIMO')!

const make = (operation: Operation, L: number): OperationProblem['make'] => (options) => {
  const op: any = operation.make(irreps(L, 'even'), { ...options, weights: true } as MakeOptions), dims = weightedDims(op)
  const cost = passes.map(({ name }) => {
    const { reads, writes } = weightedArrays[name]
    return [name, { flops: op.cost[name].flops, bytes: bytesOf[options.dtype] * [...Object.values(reads), ...Object.values(writes)].reduce((sum, slot) => sum + dims[slot], 0) }]
  })
  return {
    cost: Object.fromEntries(cost) as Subject['cost'],
    weightBytes: 0, // a set an item
    bind(pass, batch, draw) {
      const { reads, writes } = weightedArrays[pass]
      return bindWeighted(op, pass, Object.fromEntries(Object.entries({ ...reads, ...writes }).map(([name, slot]) => [name, draw(batch * dims[slot])])) as never)
    },
    dispose: () => op.dispose(),
  }
}

export const factorProblems: readonly OperationProblem[] = operations.filter(({ name }) => !name.startsWith('cgtp')).flatMap((operation) =>
  Array.from({ length: highestDegree }, (_, n) => n + 1).map((L) => ({
    name: `${operation.name}-${L}`, meaning: `${operation.meaning}, 0..${L} x 0..${L} -> 0..${2 * L}, with factors`, source, L, hasOneChannel: true, countedAtOnce: 512, make: make(operation, L),
  })),
)
