// npm run compare -- --suite many-body
import { requireEmulation, uncountedLines } from './counted'
import { timeCalls } from './cpu'
import { disclaimer } from './emulated'
import { countPass } from './many_body_counted'
import { modelledBatch } from './h100'
import { manyBodyProblems, species, type ManyBodyProblem } from './many_body_problems'
import { number, percent } from './report'
import { arrayError, random, randomArray } from '../test/support'
import { heading, measureAgainstFloors, table, tolerance } from './weighted'
import type { PassName } from './passes'
import type { MakeOptions, Numbers } from './problems'
import type { Suite, SuiteRun, SuiteSettings } from './suites'

/** Against float64 on the CPU, of the same numbers: all arrays of a pass on three items. What float64 is, tests say. */
function errorOf(problem: ManyBodyProblem, pass: PassName, options: MakeOptions): number {
  const results = ([options, { ...options, dtype: 'float64', backend: 'cpu' }] as const).map((options) => {
    const { dtype } = options, next = random(1), drawn: Numbers[] = [], op = problem.make(options)
    op.bind(3, (length) => drawn[drawn.push(randomArray(dtype, length, next)) - 1]!)[pass]()
    op.dispose()
    return drawn
  })
  return Math.max(...results[0]!.map((array, i) => arrayError(array, results[1]![i]!)))
}

const mostBytes = 256 << 20
export const manyBody: Suite = {
  name: 'many-body',
  meaning: "MACE's symmetric contraction, and powers and products of signals on the sphere, with 128 channels; squares of tensors",
  problems: manyBodyProblems,
  run(settings: SuiteSettings, progress) {
    if (settings.backend === 'cuda') return runCounted(settings, progress)
    const { dtype, threads, layouts } = settings
    const chosen = manyBodyProblems.filter(({ name }) => settings.problems.includes(name))
    const tasks = chosen.flatMap((problem) => settings.passes.flatMap((pass) => layouts.map((layout) => ({ problem, pass, layout }))))
    const { results, speeds } = measureAgainstFloors(settings, mostBytes, tasks, ({ problem, pass, layout }, n) => {
      progress(n, tasks.length, `${problem.name} ${pass}`)
      const options = { dtype, layout, threads, backend: 'cpu' } as const, op = problem.make(options), cost = op.cost[pass]
      // All arrays of a case are made, of which there are three for each operand.
      const batch = Math.max(1, Math.min(settings.batch, Math.floor(mostBytes / op.cost.doubleBackward.bytes)))
      const next = random(2), timing = timeCalls([op.bind(batch, (length) => randomArray(dtype, length, next))[pass] as () => void], batch)
      op.dispose()
      return { problem: problem.name, pass, layout, batch, timing, flops: cost.flops, leastBytes: cost.bytes, multiplyAdds: cost.flops / 2, error: errorOf(problem, pass, options) }
    })
    progress(tasks.length, tasks.length, 'done')
    const isCorrect = ({ error }: (typeof results)[number]) => error <= tolerance[dtype]
    const lines = results.map((r) => [
      r.problem, r.pass, r.layout, String(r.batch), number(r.timing.median), percent((r.timing.quartiles[1] - r.timing.quartiles[0]) / 2 / r.timing.median), number(r.bytesFloor),
      number(r.multiplyAddsFloor), r.ratio.toFixed(2), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
    ])
    return {
      text: [
        ...heading(settings, speeds, mostBytes),
        ...chosen.map(({ name, meaning, source }) => `  ${name}: ${meaning}; ${source}`),
        '',
        ...table(['problem', 'pass', 'layout', 'batch', 'ns/item', '+-', 'bytes ns', 'ops ns', 'x floor', 'correct'], lines, 3),
        '',
        'bytes: x and the results once, at copy bandwidth; ops: those that the kernels execute, at two a multiply-add of FMA peak; x floor: of the larger one; correct: against float64',
      ],
      json: { speeds, results },
      wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
    }
  },
}

/** On the emulation: counts, and a model of an H100. */
function runCounted(settings: SuiteSettings, progress: Parameters<Suite['run']>[1]): SuiteRun {
  const { dtype, layouts } = settings, uncounted = requireEmulation('many-body')
  const chosen = manyBodyProblems.filter(({ name }) => settings.problems.includes(name))
  const tasks = chosen.flatMap((problem) => settings.passes.flatMap((pass) => layouts.map((layout) => ({ problem, pass, layout }))))
  const results = tasks.map(({ problem, pass, layout }, n) => {
    progress(n, tasks.length, `${problem.name} ${pass}`)
    const options = { dtype, layout, backend: 'cuda' } as const
    return { problem: problem.name, pass, layout, ...countPass(problem, pass, options), error: errorOf(problem, pass, options) }
  })
  progress(tasks.length, tasks.length, 'done')
  const isCorrect = ({ error }: (typeof results)[number]) => error <= tolerance[dtype]
  const unlessUncounted = (text: string) => (uncounted ? '-' : text)
  const lines = results.map((r) => [
    r.problem, r.pass, r.layout, String(r.launches), r.traffic.toFixed(3), unlessUncounted(r.instructions.toFixed(0)), unlessUncounted(r.modelled.toPrecision(3)), r.floor.toPrecision(3), r.boundBy,
    unlessUncounted((r.modelled / r.floor).toFixed(2)), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
  ])
  return {
    text: [
      disclaimer,
      `an item of a call of ${modelledBatch} with ${species} species, from counts of smaller calls: modelled H100 time = max(unique bytes / 3.35 TB/s, issued instructions / 29.6 T thread-instructions a second)`,
      ...uncountedLines(uncounted),
      ...chosen.map(({ name, meaning, source }) => `  ${name}: ${meaning}; ${source}`),
      '',
      ...table(['problem', 'pass', 'layout', 'launches', 'x bytes', 'instr', 'modelled ns', 'floor ns', 'by', 'x floor', 'correct'], lines, 3),
      '',
      'launches: counted, a call; x bytes: of global memory, operands, tables and the partial sums of the weights, over inputs and results once; instr: thread-instructions, issued;',
      'floor: of those bytes, or of the multiply-adds of the CPU kernels, an instruction each; correct: against float64 on the CPU',
    ],
    json: { results },
    wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.pass} ${r.layout}: error ${r.error}`),
  }
}
