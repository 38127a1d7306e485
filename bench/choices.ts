// Whether 'auto' takes what is fastest here, and how far the cost model behind its choice of a backend is off.
import { cpuSeconds } from '../lib/cost_model'
import { GauntTensorProduct } from '../lib/index'
import { problems } from './problems'
import { isMeasured, number, type Measured, type Run } from './report'

/** Of the Gaunt product, where both of its algorithms were timed. */
function gaunt(measured: readonly Measured[], { settings: { dtype, layout, parity } }: Run): string[] {
  const ofAlgorithm = (algorithm: string, { problem, L }: Measured) =>
    measured.find((m) => m.operation === `gtp-${algorithm}` && m.problem === problem && m.L === L)?.timing.median
  return problems.flatMap(({ name, irreps }) => {
    const texts = measured
      .filter(({ problem, operation }) => problem === name && operation === 'gtp-grid')
      .flatMap((m) => {
        const times = { grid: ofAlgorithm('grid', m), fourier: ofAlgorithm('fourier', m) }
        if (times.grid === undefined || times.fourier === undefined) return []
        const { in1, in2, out } = irreps(m.L, parity)
        const reachable = out.filter(({ ir }) => ir.l % 2 === 0 || in1.numIrreps > 1)
        using op = new GauntTensorProduct(in1, in2, { dtype, layout, irrepsOut: reachable, backend: 'cpu' })
        const ratio = times[op.algorithm]! / Math.min(times.grid, times.fourier)
        return [`L=${m.L} ${op.algorithm}${ratio > 1 ? ` ${number(ratio)}x` : ''}`]
      })
    return texts.length ? [`  ${name.padEnd(4)}  GTP: ${texts.join(', ')}`] : []
  })
}

/** Empty where nothing was timed on the CPU. */
export function choices(run: Run): string {
  const measured = run.outcomes.filter(isMeasured).filter(({ pass }) => pass === 'forward')
  if (!measured.length || run.settings.backend !== 'cpu') return ''
  const ofEstimate = measured.map((m) => m.timing.median / (1e9 * cpuSeconds(m, run.settings.threads)))
  return [
    "Choices of 'auto', forward; a factor is how much slower than the other algorithm the chosen one was",
    ...gaunt(measured, run),
    `  measured times are ${number(Math.min(...ofEstimate))} to ${number(Math.max(...ofEstimate))} times those of the cost model (lib/cost_model.ts)`,
  ].join('\n')
}
