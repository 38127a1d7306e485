// From measurements to a table, the bars and JSON.
import type { MachineDescription, Footprint, Speed } from './machine'
import { median } from './machine'
import type { Timing } from './measure'
import type { PassName } from './passes'
import type { Dtype, Layout, Operation, Parity } from './problems'
import { operations, problems } from './problems'

export interface Settings {
  L: number[]
  problems: string[]
  operations: string[]
  passes: string[]
  parity: Parity
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
}

export interface Measured extends Named {
  status: 'measured'
  timing: Timing
  paths: number
  expressivity: number
  /** What the kernel does an item, by its own account. */
  flops: number
  bytes: number
  /** What an item needs, by models.ts. */
  multiplyAdds: number
  leastBytes: number
  /** Largest error relative to the largest value of its block, and what is allowed. */
  error: number
  tolerance: number
  complaints: string[]
}

/** Nothing to time: no path by a selection rule, or a failure. */
export interface NotMeasured extends Named {
  status: 'no path' | 'failed'
  reason: string
}

export type Outcome = Measured | NotMeasured

export interface Run {
  date: string
  machine: MachineDescription
  footprint: Footprint
  speeds: Speed[]
  load: number
  settings: Settings
  outcomes: Outcome[]
  seconds: number
}

export const isMeasured = (outcome: Outcome): outcome is Measured => outcome.status === 'measured'

/** What is wrong with an outcome: nothing where there rightly was no path. */
export function faults(outcome: Outcome): string[] {
  if (outcome.status !== 'measured') return outcome.status === 'failed' ? [outcome.reason] : []
  const { error, tolerance, complaints } = outcome
  return error <= tolerance ? complaints : [...complaints, `error ${error.toExponential(1)} over ${tolerance.toExponential(0)}`]
}

export const correct = (outcome: Outcome): boolean => faults(outcome).length === 0

export interface Rates {
  spread: number
  gigabytesPerSecond: number
  gigaflopsPerSecond: number
  bytesFloor: number
  multiplyAddsFloor: number
  floor: number
  boundBy: 'bytes' | 'ops'
  ratio: number
  ofCopyBandwidth: number
  ofFmaPeak: number
  nsPerDegree: number
}

export const medianSpeed = (speeds: readonly Speed[]): Speed => ({
  copyBandwidth: median(speeds.map((speed) => speed.copyBandwidth)),
  fmaPeak: median(speeds.map((speed) => speed.fmaPeak)),
})

/** Everything that follows from a measurement and the machine; times in nanoseconds an item. */
export function rates(m: Measured, speed: Speed): Rates {
  const ns = m.timing.median
  const bytesFloor = (m.leastBytes / speed.copyBandwidth) * 1e9
  const multiplyAddsFloor = (m.multiplyAdds / speed.fmaPeak) * 1e9
  const floor = Math.max(bytesFloor, multiplyAddsFloor)
  return {
    spread: (m.timing.quartiles[1] - m.timing.quartiles[0]) / 2 / ns,
    gigabytesPerSecond: m.leastBytes / ns,
    gigaflopsPerSecond: m.flops / ns,
    bytesFloor,
    multiplyAddsFloor,
    floor,
    boundBy: bytesFloor >= multiplyAddsFloor ? 'bytes' : 'ops',
    ratio: ns / floor,
    ofCopyBandwidth: bytesFloor / ns,
    ofFmaPeak: multiplyAddsFloor / ns,
    nsPerDegree: ns / m.expressivity,
  }
}

// ---- the table ----

type Column = [title: string, cell: (m: Measured, r: Rates) => string]

const number = (value: number) => (value >= 1000 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2))
const percent = (part: number) => `${(100 * part).toFixed(0)}%`
const operationNamed = (name: string): Operation => operations.find((operation) => operation.name === name)!

const names: [string, (o: Outcome) => string][] = [
  ['problem', (o) => o.problem],
  ['L', (o) => String(o.L)],
  ['operation', (o) => o.operation],
  ['pass', (o) => o.pass],
]

const columns: Column[] = [
  ['paths', (m) => String(m.paths)],
  ['ns/item', (m) => number(m.timing.median)],
  ['+-', (_, r) => percent(r.spread)],
  ['flops', (m) => m.flops.toFixed(0)],
  ['bytes', (m) => String(m.leastBytes)],
  ['GB/s', (_, r) => number(r.gigabytesPerSecond)],
  ['Gflop/s', (_, r) => number(r.gigaflopsPerSecond)],
  ['floor ns', (_, r) => number(r.floor)],
  ['by', (m, r) => r.boundBy + (r.boundBy === 'ops' && operationNamed(m.operation).countIsReference ? '*' : '')],
  ['x floor', (_, r) => number(r.ratio)],
  ['%copy', (_, r) => percent(r.ofCopyBandwidth)],
  ['%FMA', (_, r) => percent(r.ofFmaPeak)],
  ['ns/degree', (_, r) => number(r.nsPerDegree)],
  ['correct', (m) => `${correct(m) ? 'ok' : 'WRONG'} ${m.error.toExponential(0)}`],
]

const leftAligned = new Set(['problem', 'operation', 'pass', 'by', 'correct'])

export function table(outcomes: readonly Outcome[], speed: Speed): string {
  const titles = [...names, ...columns].map(([title]) => title)
  const rows = outcomes.map((o) => [
    ...names.map(([, cell]) => cell(o)),
    ...(o.status === 'measured' ? columns.map(([, cell]) => cell(o, rates(o, speed))) : []),
  ])
  const widths = titles.map((title, n) => Math.max(title.length, ...rows.map((row) => row[n]?.length ?? 0)))
  const line = (cells: string[]) =>
    cells.map((cell, n) => (leftAligned.has(titles[n]!) ? cell.padEnd(widths[n]!) : cell.padStart(widths[n]!))).join('  ')
  const lines: string[] = []
  outcomes.forEach((o, n) => {
    const previous = outcomes[n - 1]
    if (previous?.problem !== o.problem) lines.push(...(n ? ['', ''] : []), line(titles).trimEnd())
    if (previous?.problem !== o.problem || previous.L !== o.L) lines.push('')
    const reason = o.status === 'measured' ? '' : `  ${o.status === 'failed' ? 'FAILED: ' : ''}${o.reason}`
    lines.push((line(rows[n]!) + reason).trimEnd())
  })
  return lines.join('\n')
}

/** What a reader needs to judge the table, above it. */
export function heading({ machine, settings, footprint, speeds, load, date }: Run): string {
  const speed = medianSpeed(speeds)
  const giga = (value: number) => (value / 1e9).toFixed(1)
  const MiB = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`
  const { threads, dtype, layout, batch, parity } = settings
  return [
    `equitensor ${machine.package}${machine.commit ? ` (${machine.commit})` : ''}, ${machine.variant} kernels`,
    `${machine.cpu}, ${machine.cores} CPUs, ${machine.memoryGiB} GiB; Node ${machine.node}, ${machine.platform};` +
      ` load ${load.toFixed(1)} at the start`,
    `${threads} thread${threads > 1 ? 's' : ''}, ${dtype}, ${layout}, batch ${batch}, ${parity === 'even' ? 'all-even' : 'natural'} parity; ${date}`,
    `copy bandwidth ${giga(speed.copyBandwidth)} GB/s: read plus written, streaming stores, over ${MiB(footprint.bytes)}` +
      ` (last-level cache ${MiB(footprint.lastLevelCache)}); median of ${speeds.map((s) => giga(s.copyBandwidth)).join(', ')}`,
    `FMA peak ${giga(speed.fmaPeak)} G multiply-adds/s (two flops each); median of ${speeds.map((s) => giga(s.fmaPeak)).join(', ')}`,
  ].join('\n')
}

const largestDrift = 0.1

/** What makes the numbers doubtful, and what is wrong. */
export function remarks({ speeds, footprint: { bytes, wanted }, outcomes, load, machine, settings }: Run): string {
  const lines: string[] = []
  const warnOfDrift = (name: string, values: number[]) => {
    const drift = Math.max(...values) / Math.min(...values) - 1
    if (drift > largestDrift) lines.push(`Warning: the ${name} drifted by ${percent(drift)} during the run; the ratios are as uncertain.`)
  }
  warnOfDrift('copy bandwidth', speeds.map((speed) => speed.copyBandwidth))
  warnOfDrift('FMA peak', speeds.map((speed) => speed.fmaPeak))
  if (load > machine.cores - settings.threads + 0.5) lines.push(`Warning: other programs were running (load ${load.toFixed(1)} at the start).`)
  if (bytes < wanted) lines.push('Warning: too little free memory to exceed the last-level cache four times.')
  const cached = outcomes.filter(isMeasured).filter(({ timing }) => timing.rotatedBytes < 0.9 * wanted)
  if (cached.length) lines.push(`Note: ${cached.length} measurements ran over less than four times the last-level cache (rotatedBytes in the JSON).`)
  for (const o of outcomes.filter((o) => !correct(o))) lines.push(`WRONG: ${o.problem} L=${o.L} ${o.operation} ${o.pass}: ${faults(o).join('; ')}`)
  return lines.join('\n')
}

export function legend(): string {
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
    ...list({
      paths: 'triples (l1, l2, l3) with a nonzero coefficient',
      'ns/item': 'median time; +- is half the distance between the quartiles',
      flops: "of an item, by the kernel's own count (a multiply-add is two)",
      bytes: 'of an item: each input read once, each output written once',
      'floor ns': 'the larger of those bytes at copy bandwidth and those multiply-adds at FMA peak; by: which of the two',
      '%copy, %FMA': 'of copy bandwidth and of FMA peak that the same bytes and multiply-adds reach',
      'ns/degree': 'ns/item over the expressivity, the dimension of the bilinear maps reachable with linear layers around it',
      correct: 'largest error against float64 from Wigner 3j, relative to the largest value of the output block',
    }),
    '(*) is a reference and no bound, since a folded transform needs fewer. The operations do not compute the same: see ns/degree.',
  ].join('\n')
}
