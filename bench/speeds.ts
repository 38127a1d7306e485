// What a machine can do at best while a run lasts. The floors rest on it, and it does not stay: the copy bandwidth of a shared machine changes by 40 to 70 %
// within a run, and a measurement means something only beside what was possible then.
import { median, type Speed } from './machine'

export interface SpeedThen extends Speed {
  /** How many measurements were done by then. */
  done: number
}

/** Milliseconds after which the speed is measured again; on a CPU that takes a second. */
const interval = 10_000

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
const combined = (speeds: readonly Speed[], combine: (values: readonly number[]) => number): Speed => ({
  copyBandwidth: combine(speeds.map(({ copyBandwidth }) => copyBandwidth)),
  fmaPeak: combine(speeds.map(({ fmaPeak }) => fmaPeak)),
})
export const medianSpeed = (speeds: readonly Speed[]): Speed => combined(speeds, median)

/** Measures task by task, and the speed between them. `speed` of a result is the mean of the speeds measured just before and just after it. */
export function withSpeeds<T, R extends object>(
  tasks: readonly T[], measureSpeed: (done: number) => Speed, measure: (task: T, n: number) => R,
): { results: (R & { speed: Speed })[]; speeds: SpeedThen[] } {
  const speeds: SpeedThen[] = []
  let last = -Infinity
  const take = (done: number) => {
    speeds.push({ ...measureSpeed(done), done })
    last = Date.now()
  }
  const results = tasks.map((task, n) => {
    if (Date.now() - last >= interval) take(n)
    return measure(task, n)
  })
  take(tasks.length)
  const around = (n: number) => {
    const next = speeds.findIndex(({ done }) => done > n)
    return combined(speeds.slice(next - 1, next + 1), mean)
  }
  return { results: results.map((result, n) => ({ ...result, speed: around(n) })), speeds }
}
