// The CUDA kernels as the emulation runs them on the CPU: traffic, launches and instructions are counted, times are modelled and never measured.
import { createRequire } from 'node:module'
import type { DeviceArray } from '../lib/index'
import { cuda } from '../lib/cuda'
import { modelledGoals } from './goals'
import { allocateOnDevice, deviceMemory } from './gpu'
import { h100, modelled, occupancy } from './h100'
import type { Machine } from './machine'
import { bind } from './measure'
import {
  bound, callLine, correctness, hostLine, isCounted, number, packageLine, percent, timingMeanings, type Counted, type Counts, type Settings,
} from './report'

/** Above every table of counts. */
export const disclaimer = 'COUNTED AND MODELLED, NOT MEASURED: no GPU was used, and nothing here is a time that anybody has seen.'

/** Ten whole tiles of 128 items, as many as a block of threads owns in float32. */
const countedItems = 1280

const { ptx } = createRequire(__filename)('../cuda/ptx.js') as { ptx(): string[] }

/** Has launches run nvcc's PTX, whose instructions are counted. Why not, where there is none. */
export function interpret(texts: () => string[] = ptx): string | undefined {
  let found: string[]
  try {
    found = texts()
  } catch (error) {
    return (error as Error).message
  }
  for (const text of found) cuda((native) => native.interpret!(text))
  return undefined
}

const optional = (value: number | undefined, text: (value: number) => string) => (value === undefined ? '-' : text(value))
const precise = (value: number) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

export function emulated({ dtype, batch, device }: Settings, texts = ptx): Machine<DeviceArray> {
  const memory = deviceMemory(device)
  const items = Math.min(batch, countedItems)
  const uncounted = interpret(texts)
  const columns: [title: string, cell: (o: Counted, m: ReturnType<typeof modelled>) => string][] = [
    ['paths', (o) => String(o.paths)],
    ['launches', (o) => String(o.counts.launches)],
    ['flops', (o) => o.flops.toFixed(0)],
    ['bytes', (o) => String(o.leastBytes)],
    ['x bytes', (_, m) => m.traffic.toFixed(3)],
    ['instr', (_, m) => optional(m.instructions, (n) => n.toFixed(0))],
    ['occ <=', (o) => optional(occupancy(o, dtype), percent)],
    ['modelled ns', (_, m) => optional(m.ns, precise)],
    ['limit', (_, m) => m.limit ?? '-'],
    ['floor ns', (_, m) => precise(m.floor)],
    ['by', bound],
    ['x floor', (_, m) => optional(m.ratio, number)],
    ['x bytes floor', (_, m) => optional(m.ns && m.ns / m.bytesFloor, number)],
    ['ns/degree', (_, m) => optional(m.nsPerDegree, precise)],
    ['correct', correctness],
  ]
  return {
    options: { backend: 'cuda', device },
    batch: items,
    mostSets: 1,
    memory,

    allocate: (toRead, toWrite) => allocateOnDevice(memory, { dtype, batch: items }, toRead, toWrite),
    measureSpeed: () => h100(dtype),
    measure(op, pass, [arrays]) {
      const count = () => cuda((native) => native.counting!)
      count()(true)
      bind(op, pass, arrays!)()
      // The emulation is lazy: work is done when somebody waits for it.
      for (const name of Object.keys(pass.writes)) memory.read(memory.part(arrays![name]!, 0, 1))
      const { launches, loaded, stored, table, instructions } = count()(false)
      const counts: Counts = { items, launches, loadedBytes: loaded.unique, storedBytes: stored.unique, tableBytes: table.unique }
      return { status: 'counted', counts: { ...counts, ...(uncounted === undefined && { instructions: 32 * instructions.warp }) } }
    },

    details: () => ({ counted: `${items} items a call, scaled to the batch`, modelled: 'times are of a model of an H100', ...(uncounted && { uncounted }) }),
    heading: (run) => [
      disclaimer,
      packageLine(run, 'CUDA kernels, run by an emulation on the CPU'),
      hostLine(run),
      callLine(run),
      `counted over one call of ${items} items: what grows with the items is scaled to the batch, the tables of a plan are counted once`,
      'modelled H100 time = max(unique bytes / 3.35 TB/s, issued instructions / 29.6 T thread-instructions a second); no latency, no launch',
      uncounted
        ? `instructions: not counted (${uncounted}), and so no time is modelled`
        : "instructions: 32 times those that warps issue, counted while nvcc's PTX for sm_90 ran on the CPU (test/emulation/ptx.hpp); its results are checked",
    ],
    table: {
      titles: columns.map(([title]) => title),
      cells: (o) => (isCounted(o) ? columns.map(([, cell]) => cell(o, modelled(o, batch, dtype))) : []),
    },
    meanings: {
      paths: timingMeanings.paths,
      launches: 'counted: kernels a call',
      flops: "of an item, by the CPU kernel's count (a multiply-add is two)",
      bytes: timingMeanings.bytes,
      'x bytes': 'counted: bytes of global memory that are read or written, each once, operands and tables, over those bytes',
      instr: 'counted: thread-instructions an item, issued',
      'occ <=': "occupancy that registers and static shared memory leave the kernel on sm_90 (cuda/resources.json)",
      'modelled ns': 'MODELLED time of an item; limit: bytes or instructions, whichever takes longer',
      'floor ns': 'the larger of those bytes at 3.35 TB/s and those multiply-adds, an instruction each; by: which of the two',
      'x floor': 'modelled time over the larger floor; x bytes floor: over that of the bytes alone',
      'ns/degree': 'modelled time over the expressivity, the dimension of the bilinear maps reachable with linear layers around it',
      correct: timingMeanings.correct,
    },
    derived: (outcome) => (isCounted(outcome) ? { modelled: modelled(outcome, batch, dtype) } : {}),
    goals: modelledGoals,
    remarks: () => [],
  }
}
