// From measurements and counts to a table.
import { median, quantile, type MachineDescription, type Speed } from './machine'
import type { PassName } from './passes'
import { operations, problems, type Dtype, type Layout, type Operation, type Parity } from './problems'
import type { SpeedThen } from './speeds'

export interface Settings {
  L: number[]
  problems: string[]
  operations: string[]
  passes: string[]
  order: boolean
  parity: Parity
  backend: 'cpu' | 'cuda'
  device: number
  batch: number
  dtype: Dtype
  layout: Layout
  threads: number
}

interface Named {
  problem: string
  L: number
  operation: string
  pass: PassName
  /** What the machine could do around it (speeds.ts). */
  speed: Speed
}

/** What a call that has been checked is. */
interface Checked extends Named {
  paths: number
  expressivity: number
  /** What the kernel does an item, by its own account. */
  flops: number
  bytes: number
  /** What an item needs, by models.ts. */
  multiplyAdds: number
  leastBytes: number
  /** What a forward pass needs. */
  forward: { multiplyAdds: number; leastBytes: number }
  /** Largest error relative to the largest value of its block, and what is allowed. */
  error: number
  tolerance: number
  complaints: string[]
}

export interface Timing {
  /** Nanoseconds an item. */
  median: number
  quartiles: [number, number]
  fastest: number
  samples: number
  callsPerSample: number
  sets: number
  /** Bytes that pass by before a set is used again. */
  rotatedBytes: number
}

/** The quantiles of so many nanoseconds an item. */
export const summary = (samples: readonly number[]) => ({
  median: median(samples),
  quartiles: [quantile(samples, 0.25), quantile(samples, 0.75)] as [number, number],
  fastest: Math.min(...samples),
  samples: samples.length,
})

export interface Measured extends Checked {
  status: 'measured'
  timing: Timing
}

/** Of one call of so many items. */
export interface Counts {
  items: number
  launches: number
  /** Bytes of operands in global memory, each once a launch. */
  loadedBytes: number
  storedBytes: number
  /** Of coefficients and indices, which all items share. */
  tableBytes: number
  /** Issued thread-instructions, undefined where they are not counted. */
  instructions?: number
}

export interface Counted extends Checked {
  status: 'counted'
  counts: Counts
}

/** Nothing to time: no path by a selection rule, or a failure. */
export interface NotMeasured extends Named {
  status: 'no path' | 'failed'
  reason: string
}

export type Outcome = Measured | Counted | NotMeasured

export interface Run {
  date: string
  machine: MachineDescription
  speeds: SpeedThen[]
  load: number
  settings: Settings
  outcomes: Outcome[]
  seconds: number
}

export const isMeasured = (outcome: Outcome): outcome is Measured => outcome.status === 'measured'
export const isCounted = (outcome: Outcome): outcome is Counted => outcome.status === 'counted'

/** What is wrong with an outcome: nothing where there rightly was no path. */
export function faults(outcome: Outcome): string[] {
  if (!isMeasured(outcome) && !isCounted(outcome)) return outcome.status === 'failed' ? [outcome.reason] : []
  const { error, tolerance, complaints } = outcome
  return error <= tolerance ? complaints : [...complaints, `error ${error.toExponential(1)} over ${tolerance.toExponential(0)}`]
}

export const correct = (outcome: Outcome): boolean => faults(outcome).length === 0

/** The times, in nanoseconds, that an item takes at least. */
export interface Floors {
  bytesFloor: number
  multiplyAddsFloor: number
  floor: number
  boundBy: 'bytes' | 'ops'
}

export interface Rates extends AgainstFloors {
  /** Of a forward pass, in nanoseconds. */
  forwardFloor: number
  spread: number
  gigabytesPerSecond: number
  gigaflopsPerSecond: number
  ofCopyBandwidth: number
  ofFmaPeak: number
  nsPerDegree: number
}

export function floors(o: { leastBytes: number; multiplyAdds: number }, speed: Speed): Floors {
  const bytesFloor = (o.leastBytes / speed.copyBandwidth) * 1e9
  const multiplyAddsFloor = (o.multiplyAdds / speed.fmaPeak) * 1e9
  return {
    bytesFloor,
    multiplyAddsFloor,
    floor: Math.max(bytesFloor, multiplyAddsFloor),
    boundBy: bytesFloor >= multiplyAddsFloor ? 'bytes' : 'ops',
  }
}

/** Floors, and how many times the larger one a measurement took. */
export interface AgainstFloors extends Floors {
  ratio: number
}
export function againstFloors(m: { timing: { median: number }; leastBytes: number; multiplyAdds: number }, speed: Speed): AgainstFloors {
  const least = floors(m, speed)
  return { ...least, ratio: m.timing.median / least.floor }
}

/** Everything that follows from a measurement and the machine, by default as it was then; times in nanoseconds an item. */
export function rates(m: Measured, speed: Speed = m.speed): Rates {
  const ns = m.timing.median
  const least = againstFloors(m, speed)
  return {
    ...least,
    forwardFloor: floors(m.forward, speed).floor,
    spread: (m.timing.quartiles[1] - m.timing.quartiles[0]) / 2 / ns,
    gigabytesPerSecond: m.leastBytes / ns,
    gigaflopsPerSecond: m.flops / ns,
    ofCopyBandwidth: least.bytesFloor / ns,
    ofFmaPeak: least.multiplyAddsFloor / ns,
    nsPerDegree: ns / m.expressivity,
  }
}

// ---- the table ----

export interface Table {
  titles: string[]
  /** None where there is nothing to tell but a reason. */
  cells(outcome: Outcome): string[]
}

export const number = (value: number) => (value >= 1000 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2))
export const percent = (part: number) => `${(100 * part).toFixed(0)}%`
export const giga = (value: number) => (value / 1e9).toFixed(1)
export const MiB = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`

export const operationNamed = (name: string): Operation => operations.find((operation) => operation.name === name)!

const names: [string, (o: Outcome) => string][] = [
  ['problem', (o) => o.problem],
  ['L', (o) => String(o.L)],
  ['operation', (o) => o.operation],
  ['pass', (o) => o.pass],
]

/** Which floor is the larger; with a star where that is no bound. */
export const bound = (o: Checked, { boundBy }: Floors) => boundBy + (boundBy === 'ops' && operationNamed(o.operation).countIsReference ? '*' : '')
export const correctness = (o: Measured | Counted) => `${correct(o) ? 'ok' : 'WRONG'} ${o.error.toExponential(0)}`

/** The columns of times; `time` formats nanoseconds. */
export function timingTable(time: (ns: number) => string): Table {
  const columns: [title: string, cell: (m: Measured, r: Rates) => string][] = [
    ['paths', (m) => String(m.paths)],
    ['ns/item', (m) => time(m.timing.median)],
    ['+-', (_, r) => percent(r.spread)],
    ['flops', (m) => m.flops.toFixed(0)],
    ['bytes', (m) => String(m.leastBytes)],
    ['GB/s', (_, r) => number(r.gigabytesPerSecond)],
    ['Gflop/s', (_, r) => number(r.gigaflopsPerSecond)],
    ['floor ns', (_, r) => time(r.floor)],
    ['by', bound],
    ['x floor', (_, r) => number(r.ratio)],
    ['%copy', (_, r) => percent(r.ofCopyBandwidth)],
    ['%FMA', (_, r) => percent(r.ofFmaPeak)],
    ['ns/degree', (_, r) => time(r.nsPerDegree)],
    ['correct', correctness],
  ]
  return {
    titles: columns.map(([title]) => title),
    cells: (o) => (isMeasured(o) ? columns.map(([, cell]) => cell(o, rates(o))) : []),
  }
}

export const timingMeanings = {
  paths: 'triples (l1, l2, l3) with a nonzero coefficient',
  'ns/item': 'median time; +- is half the distance between the quartiles',
  flops: "of an item, by the kernel's own count (a multiply-add is two)",
  bytes: 'of an item: each input read once, each output written once',
  'floor ns': 'the larger of those bytes at copy bandwidth and those multiply-adds at FMA peak, as they were then; by: which of the two',
  '%copy, %FMA': 'of copy bandwidth and of FMA peak that the same bytes and multiply-adds reach',
  'ns/degree': 'ns/item over the expressivity, the dimension of the bilinear maps reachable with linear layers around it',
  correct: 'largest error against float64 from Wigner 3j, relative to the largest value of the output block',
}

/** Theory's exponent beside that of the measured times (Xie et al., section 5): least squares of log time against log L, from L = 2 on. */
export function orders(outcomes: readonly Outcome[], time: (outcome: Outcome) => number | undefined): string {
  const groups = new Map<string, { outcome: Outcome; points: [number, number][] }>()
  for (const outcome of outcomes) {
    const ns = time(outcome)
    if (ns === undefined || outcome.L < 2) continue
    const key = `${outcome.problem.padEnd(7)}  ${outcome.operation.padEnd(11)}  ${outcome.pass.padEnd(14)}`
    const group = groups.get(key) ?? { outcome, points: [] }
    group.points.push([Math.log(outcome.L), Math.log(ns)])
    groups.set(key, group)
  }
  const lines = [...groups].flatMap(([key, { outcome, points }]) => {
    if (points.length < 3) return []
    const theory = operationNamed(outcome.operation).order[outcome.problem]
    return [`  ${key}  L^${slope(points).toFixed(1)}  ${theory === undefined ? '' : `L^${theory}`}`.trimEnd()]
  })
  if (!lines.length) return 'Order of the time in L: three degrees from 2 on are needed to fit one (--L 2..8)'
  return ['Order of the time in L, fitted from L = 2 on, and that of its operations for large L (the smaller the fitted one, the more of the time is memory)', ...lines].join('\n')
}

function slope(points: readonly [number, number][]): number {
  const mean = (n: 0 | 1) => points.reduce((sum, point) => sum + point[n], 0) / points.length
  const [x, y] = [mean(0), mean(1)]
  return points.reduce((sum, p) => sum + (p[0] - x) * (p[1] - y), 0) / points.reduce((sum, p) => sum + (p[0] - x) ** 2, 0)
}

const leftAligned = new Set(['problem', 'operation', 'pass', 'by', 'correct'])

export function format(outcomes: readonly Outcome[], table: Table): string {
  const titles = [...names.map(([title]) => title), ...table.titles]
  const rows = outcomes.map((o) => [...names.map(([, cell]) => cell(o)), ...table.cells(o)])
  const widths = titles.map((title, n) => Math.max(title.length, ...rows.map((row) => row[n]?.length ?? 0)))
  const line = (cells: string[]) =>
    cells.map((cell, n) => (leftAligned.has(titles[n]!) ? cell.padEnd(widths[n]!) : cell.padStart(widths[n]!))).join('  ')
  const lines: string[] = []
  outcomes.forEach((o, n) => {
    const previous = outcomes[n - 1]
    if (previous?.problem !== o.problem) lines.push(...(n ? ['', ''] : []), line(titles).trimEnd())
    if (previous?.problem !== o.problem || previous.L !== o.L) lines.push('')
    const reason = 'reason' in o ? `  ${o.status === 'failed' ? 'FAILED: ' : ''}${o.reason}` : ''
    lines.push((line(rows[n]!) + reason).trimEnd())
  })
  return lines.join('\n')
}

export const packageLine = ({ machine }: Run, kernels: string) =>
  `equitensor ${machine.package}${machine.commit ? ` (${machine.commit})` : ''}, ${kernels}`
export const hostLine = ({ machine, load }: Run) =>
  `${machine.cpu}, ${machine.cores} CPUs, ${machine.memoryGiB} GiB; Node ${machine.node}, ${machine.platform}; load ${load.toFixed(1)} at the start`
export const callLine = ({ settings: { dtype, layout, batch, parity }, date }: Run) =>
  `${dtype}, ${layout}, batch ${batch}, ${parity === 'even' ? 'all-even' : 'natural'} parity; ${date}`

const largestDrift = 0.1

/** How often the speed was measured, and how far apart that was. */
export function seenIn(speeds: readonly Speed[], of: keyof Speed): string {
  const values = speeds.map((speed) => speed[of])
  return `median of ${values.length}, ${giga(Math.min(...values))} to ${giga(Math.max(...values))}`
}
/** Below them. */
export const floorsThen = 'floors, and ratios to them, are at the mean of the speeds measured just before and just after a measurement; the JSON has them at the medians, too'

/** Of what the floors rest on: a measurement may have met anything between its two neighbours. */
export function driftRemarks({ speeds }: Run): string[] {
  const remark = (name: string, values: number[]) => {
    const drift = Math.max(...values.slice(1).map((value, n) => Math.max(value, values[n]!) / Math.min(value, values[n]!) - 1))
    return drift > largestDrift ? [`Warning: the ${name} changed by up to ${percent(drift)} from one measurement of it to the next; ratios between them are as uncertain.`] : []
  }
  return [
    ...remark('copy bandwidth', speeds.map((speed) => speed.copyBandwidth)),
    ...remark('FMA peak', speeds.map((speed) => speed.fmaPeak)),
  ]
}

export const wrong = (outcomes: readonly Outcome[]): string[] =>
  outcomes.filter((o) => !correct(o)).map((o) => `WRONG: ${o.problem} L=${o.L} ${o.operation} ${o.pass}: ${faults(o).join('; ')}`)

export function legend(meanings: Record<string, string>): string {
  const list = (entries: Record<string, string>) => Object.entries(entries).map(([name, text]) => `  ${name.padEnd(11)}  ${text}`)
  const sources = [...new Set(problems.map(({ source }) => source))]
  return [
    ...sources.flatMap((source) => [
      `Problems of ${source}`,
      ...list(Object.fromEntries(problems.filter((p) => p.source === source).map(({ name, meaning }) => [name, meaning]))),
    ]),
    'Operations, and the multiply-adds that each needs',
    ...list(Object.fromEntries(operations.map((o) => [o.name, `${o.meaning}; ${o.countMeaning}${o.countIsReference ? ' (*)' : ''}`]))),
    'Columns',
    ...list(meanings),
    '(*) is a reference and no bound, since a folded transform needs fewer. The operations do not compute the same: see ns/degree.',
  ].join('\n')
}
