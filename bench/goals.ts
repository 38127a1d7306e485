// What the kernels are meant to reach: MIMO, one thread, float32, batch 10,000.
import type { Speed } from './machine'
import type { PassName } from './passes'
import { correct, isMeasured, rates, type Outcome, type Rates, type Settings } from './report'

interface Goal {
  operation: string
  pass: PassName
  L: readonly number[]
  text: string
  reached(r: Rates): boolean
  value(r: Rates): string
}

const times = (value: number) => `${value.toFixed(2)}x`
const atMost = (limit: number, value: (r: Rates) => number) => ({
  reached: (r: Rates) => value(r) <= limit,
  value: (r: Rates) => times(value(r)),
})
export const goals: readonly Goal[] = [
  { operation: 'cgtp', pass: 'forward', L: [2, 3, 4, 5], text: 'at most 3x its floor', ...atMost(3, (r) => r.ratio) },
  { operation: 'cgtp', pass: 'backward', L: [2, 3, 4, 5], text: 'at most 3.5x its floor', ...atMost(3.5, (r) => r.ratio) },
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
    text: 'at most 2.5x the plain transform at FMA peak',
    ...atMost(2.5, (r) => 1 / r.ofFmaPeak),
  },
  { operation: 'mtp', pass: 'forward', L: [2, 3, 4, 5, 6], text: 'at most 3x its floor', ...atMost(3, (r) => r.ratio) },
]

const defined = (s: Settings) => s.threads === 1 && s.dtype === 'float32' && s.batch === 10_000

export interface GoalResult {
  operation: string
  pass: PassName
  text: string
  values: { L: number; value: string; reached: boolean }[]
}

/** What this run says about each goal: nothing where its settings are others. */
export function goalResults(outcomes: readonly Outcome[], speed: Speed, settings: Settings): GoalResult[] {
  if (!defined(settings)) return []
  return goals
    .map(({ operation, pass, L, text, value, reached }) => ({
      operation,
      pass,
      text,
      values: outcomes
        .filter(isMeasured)
        .filter((m) => m.problem === 'MIMO' && m.operation === operation && m.pass === pass && L.includes(m.L))
        .map((m) => ({ L: m.L, value: value(rates(m, speed)), reached: correct(m) && reached(rates(m, speed)) })),
    }))
    .filter(({ values }) => values.length)
}

export function bars(results: readonly GoalResult[]): string {
  if (!results.length) return ''
  const lines = results.map(({ operation, pass, text, values }) => {
    const verdict = values.every(({ reached }) => reached) ? 'reached' : 'MISSED '
    const list = values.map(({ L, value, reached }) => `L=${L} ${value}${reached ? '' : ' MISSED'}`).join(', ')
    return `  ${verdict}  ${operation.padEnd(10)}  ${pass.padEnd(8)}  ${text}: ${list}`
  })
  return ['Goals (MIMO, one thread, float32, batch 10,000)', ...lines].join('\n')
}
