// The suite convolution on the emulation: counts of what the CUDA kernels do, and modelled times on an H100, never measured ones.
import { Convolution, Graph } from '../lib/index'
import { countWeighted, requireEmulation, uncountedLines } from './counted'
import { disclaimer } from './emulated'
import { h100 } from './h100'
import { BadFlag } from './machine'
import { bytesOf } from './measure'
import type { PassName } from './passes'
import type { WeightedProblem } from './problems'
import type { Suite, SuiteRun, SuiteSettings } from './suites'
import { makeProduct, multiplyAdds, sources, table, tolerance, weightedArrays, weightedDims, type Edges } from './weighted'

interface Case {
  problem: WeightedProblem
  pass: PassName
  layout: SuiteSettings['layouts'][number]
  atomic: boolean
}

/** An edge's share of a call over a graph. */
export interface CountedEdge extends Omit<Case, 'problem'> {
  problem: string
  launches: number
  /** Bytes: each once a launch; of arrays, as often as asked for; of zeros that sums begin with; `least`: every array and the edge index once. */
  bytes: { unique: number; requested: number; cleared: number; least: number }
  atomics: number
  /** Thread-instructions, issued; undefined where they are not counted. */
  instructions: number | undefined
  /** Nanoseconds. */
  floor: number
  modelled: number | undefined
  limit: 'bytes' | 'instr' | undefined
  /** Against float64 on the CPU. */
  error: number
}

export function countEdge({ problem, pass, layout, atomic }: Case, { nodes, senders, receivers }: Edges, dtype: SuiteSettings['dtype'], isInterpreted: boolean): CountedEdge {
  const edges = senders.length, { reads, writes } = weightedArrays[pass], speed = h100(dtype)
  const product = makeProduct(problem, { dtype: 'float64', layout, threads: 1 }), dims = weightedDims(product), adds = multiplyAdds(product, problem, pass)
  const expected = new Convolution(product.irrepsIn1, product.irrepsIn2, {} as never, product)
  using conv = Convolution.channelwise(problem.in1, problem.in2, problem.out, { dtype, layout, backend: 'cuda', atomic }), graph = new Graph(Int32Array.from([...senders, ...receivers]), nodes)
  const rows = { x: nodes, y: edges, w: edges, z: nodes }, slots = [...Object.values(reads), ...Object.values(writes)]
  const { counts, error } = countWeighted({ op: conv, exact: expected, product }, pass, rows, dtype, graph)
  expected.dispose()

  const { launches, cleared, atomics, loaded, stored, table, instructions } = counts
  const share = (total: number) => total / edges, nanoseconds = 1e9
  const bytes = {
    unique: share(loaded.unique + stored.unique + table.unique), requested: share(loaded.requested + stored.requested), cleared: share(cleared),
    least: share(bytesOf[dtype] * slots.reduce((sum, slot) => sum + rows[slot] * dims[slot], 0)) + 2 * Int32Array.BYTES_PER_ELEMENT,
  }
  const issued = isInterpreted ? share(32 * instructions.warp) : undefined
  const byteTime = (nanoseconds * (bytes.unique + bytes.cleared)) / speed.copyBandwidth, issueTime = issued && (nanoseconds * issued) / h100('float32').fmaPeak
  return {
    problem: problem.name, pass, layout, atomic, launches, bytes, atomics: share(atomics), instructions: issued, error,
    floor: Math.max((nanoseconds * bytes.least) / speed.copyBandwidth, (nanoseconds * adds) / speed.fmaPeak),
    modelled: issueTime && Math.max(byteTime, issueTime), limit: issueTime ? (byteTime >= issueTime ? 'bytes' : 'instr') : undefined,
  }
}

export function runCounted(settings: SuiteSettings, edges: Edges, problems: readonly WeightedProblem[], progress: Parameters<Suite['run']>[1]): SuiteRun {
  if (settings.molecules !== undefined) throw new BadFlag('--molecules: not with --backend cuda, where one random graph is counted')
  const { dtype, layouts, passes } = settings, uncounted = requireEmulation('convolution')
  const cases = problems.flatMap((problem) => layouts.flatMap((layout) => passes.flatMap((pass) => [false, true].map((atomic): Case => ({ problem, pass, layout, atomic })))))
  const results = cases.map((one, n) => {
    progress(n, cases.length, `${one.problem.name} ${one.layout} ${one.pass}`)
    return countEdge(one, edges, dtype, uncounted === undefined)
  })
  progress(cases.length, cases.length, 'done')
  const optional = (value: number | undefined, text: (value: number) => string) => (value === undefined ? '-' : text(value))
  const isCorrect = ({ error }: CountedEdge) => error <= tolerance[dtype], named = ({ atomic }: CountedEdge) => (atomic ? 'atomic' : 'deterministic')
  const lines = results.map((r) => [
    r.problem, r.layout, r.pass, named(r), String(r.launches), r.bytes.least.toFixed(0), ((r.bytes.unique + r.bytes.cleared) / r.bytes.least).toFixed(3), (r.bytes.requested / r.bytes.least).toFixed(2),
    r.atomics.toFixed(0), optional(r.instructions, (n) => n.toFixed(0)), optional(r.modelled, (ns) => ns.toPrecision(3)), r.limit ?? '-', r.floor.toPrecision(3),
    optional(r.modelled, (ns) => (ns / r.floor).toFixed(2)), `${isCorrect(r) ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
  ])
  const { nodes, senders } = edges
  return {
    text: [
      disclaimer,
      `an edge's share of calls over a random geometric graph of ${nodes} nodes and ${senders.length} edges, ${(senders.length / nodes).toFixed(1)} neighbours; ${dtype}`,
      'modelled H100 time = max(unique bytes / 3.35 TB/s, issued instructions / 29.6 T thread-instructions a second); no latency, no launch, no L2 cache, and no price of atomics but their issue',
      ...uncountedLines(uncounted),
      ...sources(problems),
      '',
      ...table(['problem', 'layout', 'pass', 'sums', 'launches', 'bytes', 'x bytes', 'x asked', 'atomics', 'instr', 'modelled ns', 'limit', 'floor ns', 'x floor', 'correct'], lines, 4),
      '',
      "bytes: of the floor: every array once (rows of nodes are shared out to the edges), and the edge index; x bytes: counted, of global memory, each once a launch, with tables and the zeros that sums begin with, over those;",
      "x asked: counted, those of arrays as often as threads ask for them, over those: rows of x and of gradients that an edge gathers, and the sums of a node, come from the L2 cache where the nodes' arrays fit there, else from memory;",
      'atomics: counted, numbers added to; instr: thread-instructions, issued; floor: of those bytes, or of the multiply-adds, an instruction each; correct: against float64 on the CPU',
    ],
    json: { graph: { nodes, edges: senders.length }, results },
    wrong: results.filter((r) => !isCorrect(r)).map((r) => `${r.problem} ${r.layout} ${r.pass} ${named(r)}: error ${r.error}`),
  }
}
