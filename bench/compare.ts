// The head-to-head comparison: `npm run compare -- [flags]`. Table on stdout, progress on stderr, everything as JSON.
import { accessSync, constants, mkdirSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { BadFlag, help, parseFlags } from './flags'
import { bars, goalResults } from './goals'
import { describeMachine, footprint, measureSpeed, type Footprint, type Speed } from './machine'
import { callChecked, Pool, someItems, time } from './measure'
import { bytesPerItem } from './models'
import { passes, type Pass } from './passes'
import { cases, type Case } from './problems'
import { largestError, slotDims } from './reference'
import { correct, heading, isMeasured, legend, medianSpeed, rates, remarks, table, type Outcome, type Run, type Settings } from './report'

const secondsPerMeasurement = 0.5
const checkedItems = 16
const tolerances = { float32: 1e-5, float64: 1e-12 } as const

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

/** Large enough for the footprint, and for one set of the largest task. */
function allocate(tasks: readonly Task[], settings: Settings, { bytes }: Footprint): Pool {
  const need = (side: 'reads' | 'writes') =>
    tasks.reduce((most, task) => Math.max(most, Pool.bytes(settings.dtype, task.pass[side], slotDims(task.case.form), settings.batch)), 0)
  // Reads and writes each get the whole footprint, because one of the two may be small; both have to fit the memory.
  const share = Math.min(bytes, os.freemem() / 6)
  const [toRead, toWrite] = [Math.max(share, need('reads')), Math.max(share, need('writes'))]
  if (toRead + toWrite > 0.8 * os.freemem())
    throw new BadFlag(`--batch ${settings.batch}: needs ${((toRead + toWrite) / 1e9).toFixed(1)} GB of memory; take a smaller batch or L`)
  return new Pool(settings.dtype, toRead, toWrite)
}

function measure(task: Task, settings: Settings, pool: Pool): Outcome {
  const { case: problemCase, pass } = task
  const { batch, dtype, layout, threads } = settings
  const { form, noPath } = problemCase
  let op
  try {
    op = problemCase.make({ dtype, layout, threads })
  } catch (error) {
    if (noPath && (error as { code?: string }).code === 'no_path') return { ...nameOf(task), status: 'no path', reason: noPath }
    return { ...nameOf(task), status: 'failed', reason: (error as Error).message }
  }
  try {
    if (noPath) return { ...nameOf(task), status: 'failed', reason: `made an operation although there is ${noPath}` }
    const sets = pool.sets(pass, slotDims(form), batch)
    const timing = time(op, pass, sets, batch, secondsPerMeasurement * 1e9)
    const complaints: string[] = []
    if (!callChecked(op, pass, sets[0]!)) complaints.push('left output unwritten or not finite')
    if (op.interactability.length !== new Set(form.paths.map(String)).size)
      complaints.push(`interactability has ${op.interactability.length} triples, the reference ${form.paths.length}`)
    const leastBytes = bytesPerItem(form, pass, dtype === 'float32' ? 4 : 8)
    if (op.cost[pass.name].bytes !== leastBytes) complaints.push(`op.cost says ${op.cost[pass.name].bytes} bytes, the model ${leastBytes}`)
    const error = largestError({
      form,
      pass,
      arrays: sets[0]!,
      irreps: { x: problemCase.irreps.in1, y: problemCase.irreps.in2, z: op.irrepsOut },
      layout,
      items: someItems(batch, checkedItems),
    })
    return {
      ...nameOf(task),
      status: 'measured',
      timing,
      paths: form.paths.length,
      expressivity: op.expressivity,
      flops: op.cost[pass.name].flops,
      bytes: op.cost[pass.name].bytes,
      multiplyAdds: problemCase.operation.count(form, problemCase.irreps, pass.name),
      leastBytes,
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

/** One line rewritten on a terminal, else a line every few tasks. */
function progress(done: number, all: number, text: string): void {
  const line = `[${done}/${all}] ${text}`
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[2K${done < all ? line.slice(0, (process.stderr.columns || 80) - 1) : ''}`)
  else if (done % 6 === 0) process.stderr.write(`${line}\n`)
}

function compare(settings: Settings, start: Date): Run {
  const seconds = () => (Date.now() - start.getTime()) / 1000
  const load = os.loadavg()[0]!
  const tasks = cases(settings).flatMap((problemCase) =>
    passes.filter((pass) => settings.passes.includes(pass.name)).map((pass) => ({ case: problemCase, pass })),
  )
  const size = footprint()
  const speeds: Speed[] = []
  // At the start and after every problem: other programs and the clock rate change what a machine can do.
  const measureMachine = (done: number) => {
    progress(done, tasks.length, `${seconds().toFixed(0)} s: copy bandwidth and FMA peak`)
    speeds.push(measureSpeed(settings.dtype, settings.threads, size.bytes))
  }
  progress(0, tasks.length, 'preparing memory')
  // First of all the pool: it decides which pages are left for the copy, and their place in memory matters (15 % seen).
  const pool = allocate(tasks, settings, size)
  measureMachine(0)
  const outcomes = tasks.map((task, n) => {
    progress(n, tasks.length, `${seconds().toFixed(0)} s: ${task.case.name} ${task.pass.name}`)
    const outcome = measure(task, settings, pool)
    if (tasks[n + 1]?.case.problem !== task.case.problem) measureMachine(n + 1)
    return outcome
  })
  progress(tasks.length, tasks.length, `${seconds().toFixed(0)} s: done`)
  return { date: start.toISOString(), machine: describeMachine(), footprint: size, speeds, load, settings, outcomes, seconds: seconds() }
}

/** Tells now, and not after the measurement, that the results have no place. */
function makeWritable(file: string): void {
  try {
    mkdirSync(path.dirname(file), { recursive: true })
    accessSync(path.dirname(file), constants.W_OK)
  } catch (error) {
    throw new BadFlag(`--json ${file}: ${(error as Error).message}`)
  }
}

function main(): number {
  const flags = parseFlags(process.argv.slice(2))
  if (flags.help) {
    console.log(help)
    return 0
  }
  const start = new Date()
  const file = path.resolve(flags.json ?? path.join(__dirname, 'results', `${start.toISOString().slice(0, 19).replace(/:/g, '-')}.json`))
  makeWritable(file)
  const run = compare(flags.settings, start)
  const speed = medianSpeed(run.speeds)
  const goals = goalResults(run.outcomes, speed, run.settings)
  const sections = [heading(run), legend(), table(run.outcomes, speed), bars(goals), remarks(run)]
  console.log(sections.filter((section) => section).join('\n\n'))

  const outcomes = run.outcomes.map((o) => (o.status === 'measured' ? { ...o, rates: rates(o, speed) } : o))
  writeFileSync(file, `${JSON.stringify({ ...run, outcomes, goals }, null, 1)}\n`)
  console.log(`\n${run.outcomes.filter(isMeasured).length} measurements in ${run.seconds.toFixed(0)} s; all of it in ${path.relative('', file)}`)
  return run.outcomes.every(correct) ? 0 : 1
}

try {
  process.exitCode = main()
} catch (error) {
  if (!(error instanceof BadFlag)) throw error
  console.error(`${error.message}\n\nnpm run compare -- --help lists the flags.`)
  process.exitCode = 2
}
