// A run: every task on a machine, checked, and what is printed of it.
import os from 'node:os'
import { choices } from './choices'
import { bars } from './goals'
import { modelled } from './h100'
import { describeMachine, type Machine } from './machine'
import { callChecked, Pool, rowsOf, someItems } from './measure'
import { bytesPerItem } from './models'
import { passes, type Pass } from './passes'
import { cases, type Case, type Operand } from './problems'
import { largestError, slotDims } from './reference'
import { format, isCounted, isMeasured, legend, orders, wrong, type Outcome, type Run, type Settings } from './report'
import { medianSpeed, withSpeeds } from './speeds'

const checkedItems = 16
const tolerances = { float32: 1e-5, float64: 1e-12 } as const

type WithoutSpeed<O> = O extends unknown ? Omit<O, 'speed'> : never

interface Task {
  case: Case
  pass: Pass
}

const nameOf = ({ case: { problem, L, operation }, pass }: Task) => ({
  problem: problem.name,
  L,
  operation: operation.name,
  pass: pass.name,
})

function measure<A extends Operand>(task: Task, { dtype, layout }: Settings, machine: Machine<A>, pool: Pool<A>): WithoutSpeed<Outcome> {
  const { case: problemCase, pass } = task
  const { batch, memory } = machine
  const { form, noPath } = problemCase
  let op
  try {
    op = problemCase.make({ dtype, layout, ...machine.options })
  } catch (error) {
    if (noPath && (error as { code?: string }).code === 'no_path') return { ...nameOf(task), status: 'no path', reason: noPath }
    return { ...nameOf(task), status: 'failed', reason: (error as Error).message }
  }
  try {
    if (noPath) return { ...nameOf(task), status: 'failed', reason: `made an operation although there is ${noPath}` }
    const dims = slotDims(form)
    const sets = pool.sets(pass, dims, batch, machine.mostSets)
    const result = machine.measure(op, pass, sets)
    const complaints: string[] = []
    if (!callChecked(memory, op, pass, sets[0]!, dtype)) complaints.push('left output unwritten or not finite')
    if (op.interactability.length !== new Set(form.paths.map(String)).size)
      complaints.push(`interactability has ${op.interactability.length} triples, the reference ${form.paths.length}`)
    const size = dtype === 'float32' ? 4 : 8
    const leastBytes = bytesPerItem(form, pass, size)
    if (op.cost[pass.name].bytes !== leastBytes) complaints.push(`op.cost says ${op.cost[pass.name].bytes} bytes, the model ${leastBytes}`)
    const items = someItems(batch, checkedItems)
    const slots = Object.entries({ ...pass.reads, ...pass.writes })
    const error = largestError({
      form,
      pass,
      arrays: Object.fromEntries(slots.map(([name, slot]) => [name, rowsOf(memory, sets[0]![name]!, dims[slot], items, dtype)])),
      irreps: { x: problemCase.irreps.in1, y: problemCase.irreps.in2, z: op.irrepsOut },
      layout,
      items: items.map((_, n) => n),
    })
    return {
      ...nameOf(task),
      ...result,
      paths: form.paths.length,
      expressivity: op.expressivity,
      flops: op.cost[pass.name].flops,
      bytes: op.cost[pass.name].bytes,
      multiplyAdds: problemCase.operation.count(form, problemCase.irreps, pass.name),
      leastBytes,
      forward: {
        multiplyAdds: problemCase.operation.count(form, problemCase.irreps, 'forward'),
        leastBytes: bytesPerItem(form, passes.find(({ name }) => name === 'forward')!, size),
      },
      error,
      tolerance: tolerances[dtype],
      complaints,
    }
  } catch (error) {
    return { ...nameOf(task), status: 'failed', reason: (error as Error).message }
  } finally {
    op.dispose()
  }
}

/** Compares what the settings choose; `progress` is told what comes next. */
export function compare<A extends Operand>(settings: Settings, machine: Machine<A>, progress: (done: number, all: number, text: string) => void): Run {
  const start = new Date()
  const seconds = () => (Date.now() - start.getTime()) / 1000
  const load = os.loadavg()[0]!
  const tasks = cases(settings).flatMap((problemCase) =>
    passes.filter((pass) => settings.passes.includes(pass.name)).map((pass) => ({ case: problemCase, pass })),
  )
  progress(0, tasks.length, 'preparing memory')
  // First of all the pool: it decides which pages are left for the copy, and their place in memory matters (15 % seen).
  const need = (side: 'reads' | 'writes') =>
    tasks.reduce((most, task) => Math.max(most, Pool.bytes(settings.dtype, task.pass[side], slotDims(task.case.form), machine.batch)), 0)
  const pool = machine.allocate(need('reads'), need('writes'))
  const measureSpeed = (done: number) => {
    progress(done, tasks.length, `${seconds().toFixed(0)} s: copy bandwidth and FMA peak`)
    return machine.measureSpeed()
  }
  const { results: outcomes, speeds } = withSpeeds(tasks, measureSpeed, (task, n) => {
    progress(n, tasks.length, `${seconds().toFixed(0)} s: ${task.case.name} ${task.pass.name}`)
    return measure(task, settings, machine, pool)
  })
  progress(tasks.length, tasks.length, `${seconds().toFixed(0)} s: done`)
  return { date: start.toISOString(), machine: describeMachine(), speeds, load, settings, outcomes, seconds: seconds() }
}

/** What is printed. */
export function report<A extends Operand>(run: Run, machine: Machine<A>): string {
  return [
    machine.heading(run).join('\n'),
    legend(machine.meanings),
    format(run.outcomes, machine.table),
    run.settings.order ? orders(run.outcomes, (o) => (isMeasured(o) ? o.timing.median : isCounted(o) ? modelled(o, run.settings.batch, run.settings.dtype).ns : undefined)) : '',
    choices(run),
    bars(machine.goals.title, machine.goals.results(run)),
    [...machine.remarks(run), ...wrong(run.outcomes)].join('\n'),
  ]
    .filter((section) => section)
    .join('\n\n')
}

/** All of it, for the results file. */
export function record<A extends Operand>(run: Run, machine: Machine<A>): object {
  const median = medianSpeed(run.speeds)
  const outcomes = run.outcomes.map((o) => ({ ...o, ...machine.derived(o, median) }))
  return { ...run, medianSpeed: median, ...machine.details(), outcomes, goals: machine.goals.results(run) }
}
