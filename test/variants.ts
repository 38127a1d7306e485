// What arrays.test.ts runs in a process of its own, under another EQUITENSOR_CPU.
import { backends, Irreps } from '../lib/index'
import { backward, forward, products } from './reference'
import { blockError, dtypes, guarded, layouts, random, randomArray } from './support'
import { batches, make, passErrors, problems } from './weighted_problems'

const shapes: [in1: string, in2: string, batch: number, yBatch?: number][] = [
  ['1x0e+1x1o+1x2e', '1x0e+1x1o+1x2e', 7], ['3x1o+3x2e', '3x0e+3x1o', 33], ['1x0e+1x1o', '1x0e+1x1o', 20_003], ['1x4e', '1x3o', 300, 1], ['1x6e+1x6o', '1x5e+1x6e', 5],
]

// The errors of every operation, forward and backward, against the reference; NaN and damaged guard words count as 1.
const errors = shapes.flatMap(([in1, in2, batch, yBatch = batch]) =>
  products.flatMap(({ name, make, terms }) => {
    if (name.includes('elementwise') && new Irreps(in1).numIrreps !== new Irreps(in2).numIrreps) return []
    return dtypes.map((dtype) => {
      const t = terms(new Irreps(in1), new Irreps(in2), 'mul_ir')
      const op = make(in1, in2, { dtype })
      const x = randomArray(dtype, t.irrepsIn1.dim * batch, random(1)), y = randomArray(dtype, t.irrepsIn2.dim * yBatch, random(2))
      const v = randomArray(dtype, t.irrepsOut.dim * batch, random(3))
      const z = guarded(dtype, v.length, 5)
      op.forward(x, y, undefined, { out: z.array })
      const actual = op.backward(x, y, undefined, v), expected = backward(t, x, y, v)
      const error = Math.max(
        blockError(z.array, forward(t, x, y), t.irrepsOut),
        blockError(actual.x, expected.x, t.irrepsIn1),
        blockError(actual.y, expected.y, t.irrepsIn2),
      )
      return [`${name}: ${in1} x ${in2}`, dtype, z.intact() && Number.isFinite(error) ? error : 1]
    })
  }),
)
const weighted = problems.flatMap((problem, n) =>
  dtypes.flatMap((dtype) => {
    const layout = layouts[n % 2]!, p = make(problem, dtype, layout)
    const all = batches.slice(0, 2).flatMap((batch) => passErrors(p, dtype, batch))
    return all.map(([result, error]) => [`${problem.name}: ${result}`, dtype, Number.isFinite(error) ? error : 1])
  }),
)
errors.push(...(weighted as typeof errors))
console.log(JSON.stringify({ used: backends().cpu.instructionSet, errors }))
