// What the kernels are meant to reach: on the CPU in time, on an H100 in counted traffic and in modelled time.
import { modelled, modelledBatch, type Modelled } from './h100'
import type { PassName } from './passes'
import { correct, isCounted, isMeasured, rates, type Counted, type Outcome, type Rates, type Run } from './report'

/** On the problem MIMO. */
interface Goal<R> {
  operation: string
  pass: PassName
  L: readonly number[]
  text: string
  /** Undefined where the run does not tell. */
  reached(r: R): boolean | undefined
  value(r: R): string
}

const times = (value: number) => `${value.toFixed(2)}x`
const atMost = <R>(limit: number, value: (r: R) => number | undefined) => ({
  reached: (r: R) => {
    const actual = value(r)
    return actual === undefined ? undefined : actual <= limit
  },
  value: (r: R) => {
    const actual = value(r)
    return actual === undefined ? '-' : times(actual)
  },
})
const ofFloor = (limit: number) => atMost<Rates>(limit, (r) => r.ratio)

/** The time of a double backward, less that of its bytes, over the floor of a forward pass. */
const secondOrder = (operation: string): Goal<Rates> => ({
  operation,
  pass: 'doubleBackward',
  L: [2, 3, 4, 5, 6],
  text: "at most 4x the forward pass's floor, beside its own bytes",
  ...atMost<Rates>(4, (r) => (r.ratio * r.floor - r.bytesFloor) / r.forwardFloor),
})

const onCpu: readonly Goal<Rates>[] = [
  { operation: 'cgtp', pass: 'forward', L: [2, 3, 4, 5], text: 'at most 2x its floor', ...ofFloor(2) },
  { operation: 'cgtp', pass: 'backward', L: [2, 3, 4, 5], text: 'at most 3.5x its floor', ...ofFloor(3.5) },
  {
    operation: 'cgtp-dense',
    pass: 'forward',
    L: [4],
    text: 'an honest baseline: at least 40% of FMA peak',
    reached: (r) => r.ofFmaPeak >= 0.4,
    value: (r) => `${(100 * r.ofFmaPeak).toFixed(0)}%`,
  },
  {
    operation: 'gtp-grid',
    pass: 'forward',
    L: [2, 3, 4, 5, 6],
    text: 'at most 2x the plain transform at FMA peak',
    ...atMost<Rates>(2, (r) => 1 / r.ofFmaPeak),
  },
  { operation: 'mtp', pass: 'forward', L: [2, 3, 4, 5, 6], text: 'at most 3x its floor', ...ofFloor(3) },
  secondOrder('cgtp'),
  secondOrder('gtp-grid'),
  secondOrder('mtp'),
]

const nearBytes = (operation: string, L: readonly number[]): Goal<Modelled> => ({
  operation,
  pass: 'forward',
  L,
  text: 'modelled, at most 1.25x its byte floor',
  ...atMost<Modelled>(1.25, (m) => m.ns && m.ns / m.bytesFloor),
})
const nearFloor = (operation: string, L: readonly number[]): Goal<Modelled> => ({
  operation,
  pass: 'forward',
  L,
  text: 'modelled, at most 1.5x the larger of its floors',
  ...atMost<Modelled>(1.5, (m) => m.ratio),
})
const onH100: readonly Goal<Modelled>[] = [
  nearBytes('cgtp', [1, 2, 3, 4]),
  nearFloor('cgtp', [5, 6]),
  nearFloor('cgtp-dense', [1, 2, 3, 4, 5, 6]),
  nearBytes('gtp-grid', [1, 2, 3]),
  nearFloor('gtp-grid', [4, 5, 6]),
  nearBytes('mtp', [1, 2, 3, 4]),
  nearFloor('mtp', [5, 6]),
]

export interface GoalResult {
  operation: string
  pass: string
  text: string
  values: { L: number; value: string; reached: boolean | undefined }[]
}
export interface Goals {
  /** For which settings and problems they are. */
  title: string
  /** What a run says about each: nothing where its settings are others. */
  results(run: Run): GoalResult[]
}

function judge<O extends Outcome, R>(goals: readonly Goal<R>[], outcomes: readonly O[], derive: (outcome: O) => R): GoalResult[] {
  return goals.map(({ operation, pass, L, text, value, reached }) => ({
    operation,
    pass,
    text,
    values: outcomes
      .filter((o) => o.problem === 'MIMO' && o.operation === operation && o.pass === pass && L.includes(o.L))
      .map((o) => ({ L: o.L, value: value(derive(o)), reached: correct(o) && reached(derive(o)) })),
  }))
}

export const cpuGoals: Goals = {
  title: 'MIMO, one thread, float32, batch 10,000',
  results({ outcomes, settings: s }) {
    if (s.threads !== 1 || s.dtype !== 'float32' || s.batch !== 10_000) return []
    return judge(onCpu, outcomes.filter(isMeasured), (m) => rates(m)).filter(({ values }) => values.length)
  },
}

const highestDegree = 6
const mostTraffic = 1.05

/** Of every operation and pass of a problem: the worst stands for a degree. */
function traffic(problem: string, counted: readonly Counted[]): GoalResult {
  const here = counted.filter((o) => o.problem === problem && o.L <= highestDegree)
  return {
    operation: problem,
    pass: 'all',
    text: 'every operation: unique bytes within 5% of inputs + outputs, one launch a pass',
    values: [...new Set(here.map(({ L }) => L))].map((L) => {
      const all = here.filter((o) => o.L === L)
      const most = Math.max(...all.map((o) => modelled(o).traffic)), launches = Math.max(...all.map(({ counts }) => counts.launches))
      return {
        L,
        value: times(most) + (launches > 1 ? ` in ${launches} launches` : ''),
        reached: all.every(correct) && most <= mostTraffic && launches === 1,
      }
    }),
  }
}

const smallProblems: readonly string[] = ['SISO', 'SIMO']
const ofSmallProblems: readonly string[] = ['cgtp', 'gtp-grid', 'mtp']
const mostOfFloor = 1.5

/** Forward passes of a problem: the worst operation stands for a degree. */
function forward(problem: string, counted: readonly Counted[]): GoalResult {
  const here = counted.filter((o) => o.problem === problem && o.pass === 'forward' && o.L <= highestDegree && ofSmallProblems.includes(o.operation))
  return {
    operation: problem,
    pass: 'forward',
    text: `${ofSmallProblems.join(', ')}: modelled, at most ${mostOfFloor}x the larger of the floors`,
    values: [...new Set(here.map(({ L }) => L))].map((L) => {
      const all = here.filter((o) => o.L === L).map((o) => ({ o, ratio: modelled(o).ratio }))
      const known = all.flatMap(({ o, ratio }) => (ratio === undefined ? [] : [{ operation: o.operation, ratio }]))
      const worst = known.length === all.length ? known.reduce((a, b) => (b.ratio > a.ratio ? b : a)) : undefined
      return {
        L,
        value: worst ? `${times(worst.ratio)} ${worst.operation}` : '-',
        reached: all.every(({ o }) => correct(o)) && (worst && worst.ratio <= mostOfFloor),
      }
    }),
  }
}

export const modelledGoals: Goals = {
  title: 'MODELLED for an H100, not measured: float32, batch 100,000, MIMO where no problem is named; traffic of every problem, counted',
  results({ outcomes, settings: s }) {
    if (s.dtype !== 'float32' || s.batch !== modelledBatch) return []
    const counted = outcomes.filter(isCounted)
    const problems = [...new Set(counted.map(({ problem }) => problem))]
    const small = smallProblems.map((problem) => forward(problem, counted))
    return [...judge(onH100, counted, modelled), ...small, ...problems.map((problem) => traffic(problem, counted))].filter(({ values }) => values.length)
  },
}

/** A card has been given none yet. */
export const noGoals: Goals = { title: '', results: () => [] }

function verdict(values: GoalResult['values']): string {
  if (values.some(({ reached }) => reached === false)) return 'MISSED '
  return values.some(({ reached }) => reached === undefined) ? 'unknown' : 'reached'
}

export function bars(title: string, results: readonly GoalResult[]): string {
  if (!results.length) return ''
  const lines = results.map(({ operation, pass, text, values }) => {
    const list = values.map(({ L, value, reached }) => `L=${L} ${value}${reached === false ? ' MISSED' : ''}`).join(', ')
    return `  ${verdict(values)}  ${operation.padEnd(10)}  ${pass.padEnd(14)}  ${text}: ${list}`
  })
  return [`Goals (${title})`, ...lines].join('\n')
}
