// The suite "convolution": message passing fused, against gather, product and sum of this package, each written to memory.
import { readFileSync } from 'node:fs'
import os from 'node:os'
import { Convolution, Graph, type Instruction } from '../lib/index'
import { runCounted } from './convolution_counted'
import { timeCalls, measureFootprint } from './cpu'
import { BadFlag } from './machine'
import { bytesOf } from './measure'
import type { PassName } from './passes'
import { convolutionProblems, type Dtype, type Numbers, type WeightedProblem } from './problems'
import { number } from './report'
import type { Suite } from './suites'
import {
  bindWeighted, errorOf, expectedOf, heading, makeProduct, measureAgainstFloors, multiplyAdds, sources, table, termsOf, tolerance, verdict, weightedArrays, weightedDims, type Edges, type WeightedSlot,
} from './weighted'

type Point = readonly [number, number, number]

/** xorshift: the same graph in every run. */
function random(): () => number {
  let state = 0x9e3779b9
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

/** Pairs of points of one group that are nearer than the cutoff; `period`: of each coordinate. */
function edgesWithin(name: string, groups: readonly (readonly Point[])[], cutoff: number, period = Infinity): Edges {
  const senders: number[] = [], receivers: number[] = []
  let first = 0
  for (const points of groups) {
    points.forEach((a, i) => points.forEach((b, j) => {
      const squared = a.reduce((sum, value, c) => {
        const d = Math.abs(value - b[c]!)
        return sum + Math.min(d, period - d) ** 2
      }, 0)
      if (i !== j && squared < cutoff ** 2) senders.push(first + j), receivers.push(first + i)
    }))
    first += points.length
  }
  return { name, nodes: first, senders: Int32Array.from(senders), receivers: Int32Array.from(receivers) }
}

function geometric(nodes: number, neighbours: number): Edges {
  const next = random(), points = Array.from({ length: nodes }, (): Point => [next(), next(), next()])
  return edgesWithin('random', [points], Math.cbrt(neighbours / nodes / ((4 / 3) * Math.PI)), 1)
}

/** The first configurations of a file in extended XYZ, until there are so many atoms; edges to 5 Angstrom, as MACE has them. */
function molecules(file: string, atoms: number): Edges {
  let lines: string[]
  try {
    lines = readFileSync(file, 'utf8').split('\n')
  } catch (error) {
    throw new BadFlag(`--molecules ${file}: ${(error as Error).message}`)
  }
  const groups: Point[][] = []
  for (let at = 0; at < lines.length && lines[at]!.trim() && groups.flat().length < atoms; ) {
    const count = Number(lines[at]), points = lines.slice(at + 2, at + 2 + count).map((line) => line.trim().split(/\s+/).slice(1, 4).map(Number) as unknown as Point)
    if (!(count > 0) || points.length < count || points.flat().some(Number.isNaN)) throw new BadFlag(`--molecules ${file}: line ${at + 1} begins no configuration of an extended XYZ file`)
    groups.push(points)
    at += 2 + count
  }
  return edgesWithin('molecules', groups, 5)
}

/** Copies rows of so many numbers along the edges: from the senders to the receivers, whose rows are sums. */
function copier(dim: number, graph: Graph, options: { dtype: Dtype; threads: number }) {
  const instructions: Instruction[] = [{ in1: 0, in2: 0, out: 0, mode: 'uvu', hasWeight: false }]
  const op = new Convolution(`${dim}x0e`, '0e', { irrepsOut: `${dim}x0e`, instructions, backend: 'cpu', ...options })
  const one = new (options.dtype === 'float32' ? Float32Array : Float64Array)(1).fill(1)
  return { copy: (from: Numbers, to: Numbers) => void (op as any).forward(graph, from, one, undefined, { out: to }), dispose: () => op.dispose() }
}

/** Of a node with the fewest edges: its row of a result that is summed over edges, and the rows of those edges. */
function checkNode(op: ReturnType<typeof makeProduct>, problem: WeightedProblem, pass: PassName, arrays: Record<string, Numbers>, { senders, receivers, nodes }: Edges): number {
  const dims = weightedDims(op), terms = termsOf(op, problem), { reads, writes } = weightedArrays[pass]
  const errors = ([['x', senders], ['z', receivers]] as const).map(([slot, ends]) => {
    if (!Object.values(writes).includes(slot)) return 0
    const count = new Int32Array(nodes)
    for (const node of ends) count[node]!++
    const node = count.reduce((best, n, i) => (n > 0 && (count[best] === 0 || n < count[best]!) ? i : best), 0)
    const edges = [...ends].flatMap((end, e) => (end === node ? [e] : []))
    const rowsAt = { x: edges.map((e) => senders[e]!), z: edges.map((e) => receivers[e]!), y: edges, w: edges }
    const rows = (array: Numbers, of: WeightedSlot) => Float64Array.from(rowsAt[of].flatMap((row) => [...array.subarray(row * dims[of], (row + 1) * dims[of])]))
    const inputs = Object.fromEntries(Object.entries(reads).map(([name, of]) => [name, rows(arrays[name]!, of)]))
    const expected = expectedOf(terms, pass, inputs, edges.length)
    const sum = (array: Numbers, of: WeightedSlot) => Float64Array.from({ length: dims[of] }, (_, c) => edges.reduce((total, _, e) => total + array[e * dims[of] + c]!, 0))
    // Of both nodes' rows the one of this slot is whole.
    const other = slot === 'x' ? 'z' : 'x'
    const actual = Object.fromEntries(Object.entries(writes).map(([name, of]) => {
      if (of === slot) return [name, Float64Array.from(arrays[name]!.subarray(node * dims[of], (node + 1) * dims[of]))]
      return [name, of === other ? expected[other] : rows(arrays[name]!, of)]
    }))
    return errorOf(op, pass, actual, { ...expected, [slot]: sum(expected[slot], slot) })
  })
  return Math.max(...errors)
}

const bar = 3

export const convolution: Suite = {
  name: 'convolution',
  meaning: 'message passing of MACE over a random geometric graph of 2000 nodes with about 30 neighbours, fused, and as gather, product and sum',
  problems: convolutionProblems,
  run(settings, progress) {
    const chosen = convolutionProblems.filter(({ name }) => settings.problems.includes(name))
    if (settings.backend === 'cuda') return runCounted(settings, geometric(64, 30), chosen, progress)
    const { dtype, threads, layouts } = settings, size = bytesOf[dtype], make = (length: number): Numbers => new (dtype === 'float32' ? Float32Array : Float64Array)(length)
    const graphs = [geometric(2000, 30), ...(settings.molecules === undefined ? [] : [molecules(settings.molecules, 2000)])]
    const tasks = graphs.flatMap((edges) => chosen.flatMap((problem) => layouts.flatMap((layout) => settings.passes.map((pass) => ({ edges, problem, layout, pass })))))
    const { bytes: footprint } = measureFootprint(), next = random()
    const drawn = (length: number) => make(length).map(() => 2 * next() - 1)
    const { results, speeds } = measureAgainstFloors(settings, footprint, tasks, ({ edges, problem, layout, pass }, n) => {
      progress(n, tasks.length, `${problem.name} ${edges.name} ${layout} ${pass}`)
      const { nodes, senders, receivers } = edges, count = senders.length, options = { dtype, layout, threads }
      const op = makeProduct(problem, options), dims = weightedDims(op), { reads, writes } = weightedArrays[pass]
      const conv = new Convolution(op.irrepsIn1, op.irrepsIn2, undefined as never, op)
      const graph = new Graph(Int32Array.from([...senders, ...receivers]), nodes)
      const rowsOf = (slot: WeightedSlot) => (slot === 'x' || slot === 'z' ? nodes : count)
      const allocate = (slots: Record<string, WeightedSlot>, by: (length: number) => Numbers) => Object.fromEntries(Object.entries(slots).map(([name, slot]) => [name, by(rowsOf(slot) * dims[slot])]))
      const arrays = { ...allocate(reads, drawn), ...allocate(writes, (length) => make(length).fill(NaN)) }
      const fused = timeCalls([bindWeighted(conv, pass, arrays, graph)], count)
      const error = checkNode(op, problem, pass, arrays, edges)

      // Nodes' rows in rows of edges, and back. What is read and written by nodes has a row an edge; a gather takes the sender's or the receiver's.
      const slots = Object.entries({ ...reads, ...writes }), ofNodes = slots.filter(([, slot]) => slot === 'x' || slot === 'z')
      const wanted = size * ofNodes.reduce((sum, [, slot]) => sum + dims[slot] * count, 0)
      let plain: { gather: number; product: number; sum: number } | undefined
      if (wanted < 0.5 * os.freemem()) {
        const alone = Int32Array.from({ length: count }, (_, e) => e), ends = { x: senders, z: receivers } as Record<string, Int32Array>
        const perEdge: Record<string, Numbers> = { ...arrays, ...Object.fromEntries(ofNodes.map(([name, slot]) => [name, make(count * dims[slot])])) }
        const summed = Object.fromEntries(Object.entries(writes).filter(([, slot]) => slot === 'x' || slot === 'z').map(([name, slot]) => [name, make(nodes * dims[slot])]))
        const time = (names: string[], all: Record<string, WeightedSlot>, gathers: boolean) =>
          names.reduce((sum, name) => {
            const slot = all[name]!, end = ends[slot]!
            const along = gathers ? new Graph(Int32Array.from([...end, ...alone]), { senders: nodes, receivers: count }) : new Graph(Int32Array.from([...alone, ...end]), { senders: count, receivers: nodes })
            const rows = copier(dims[slot], along, { dtype, threads }), [from, to] = gathers ? [arrays[name]!, perEdge[name]!] : [perEdge[name]!, summed[name]!]
            const { median: time } = timeCalls([() => rows.copy(from, to)], count)
            rows.dispose()
            return sum + time
          }, 0)
        const gather = time(Object.keys(reads).filter((name) => reads[name]! in ends), reads, true)
        const product = timeCalls([bindWeighted(op, pass, perEdge)], count).median
        plain = { gather, product, sum: time(Object.keys(summed), writes, false) }
      }
      conv.dispose()
      // Each array once: those of edges an edge, those of nodes a node.
      const leastBytes = (size * slots.reduce((sum, [, slot]) => sum + rowsOf(slot) * dims[slot], 0)) / count
      return { problem: problem.name, graph: edges.name, edges: count, neighbours: count / nodes, layout, pass, timing: fused, plain, leastBytes, multiplyAdds: multiplyAdds(op, problem, pass), error }
    })
    progress(tasks.length, tasks.length, 'done')
    const ratio = ({ plain, timing }: (typeof results)[number]) => plain && (plain.gather + plain.product + plain.sum) / timing.median
    const lines = results.map((r) => {
      const times = ratio(r)
      return [
        r.problem, r.graph, r.layout, r.pass, number(r.timing.median), number(r.bytesFloor), number(r.multiplyAddsFloor), r.ratio.toFixed(2),
        ...(r.plain ? [r.plain.gather, r.plain.product, r.plain.sum].map(number) : ['-', '-', '-']), times === undefined ? 'no memory' : times.toFixed(2),
        times === undefined || r.pass !== 'forward' ? '' : verdict(times, bar, times >= bar), `${r.error <= tolerance[dtype] ? 'ok' : 'WRONG'} ${r.error.toExponential(0)}`,
      ]
    })
    return {
      text: [
        ...heading(settings, speeds, footprint),
        ...sources(chosen),
        ...graphs.map(({ name, nodes, senders }) => `  ${name}: ${nodes} nodes, ${senders.length} edges, ${(senders.length / nodes).toFixed(1)} neighbours`),
        '',
        ...table(['problem', 'graph', 'layout', 'pass', 'ns/edge', 'bytes ns', 'FMA ns', 'x floor', 'gather', '+ product', '+ sum', 'ratio', 'bar', 'correct'], lines, 4),
        '',
        'bytes: every array once, of nodes too, at copy bandwidth; FMA: the products at FMA peak; gather and sum: the same kernels, rows as scalars times 1; ratio: of the three to ns/edge',
      ],
      json: { speeds, results },
      wrong: results.filter((r) => !(r.error <= tolerance[dtype])).map((r) => `${r.problem} ${r.graph} ${r.pass} ${r.layout}: error ${r.error}`),
    }
  },
}
