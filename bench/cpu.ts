// The CPU of this machine: its cache, what it can do at best, times over many sets of arrays in turn, so that no call finds its data in a cache.
import { execFileSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { native } from '../lib/native'
import { cpuGoals } from './goals'
import { BadFlag, type Machine } from './machine'
import { bind, Pool, type Memory } from './measure'
import type { Pass } from './passes'
import type { Dtype, Numbers, TensorProduct } from './problems'
import {
  callLine, driftRemarks, floorsThen, giga, hostLine, isMeasured, MiB, number, packageLine, rates, seenIn, summary, timingMeanings, timingTable,
  type Run, type Settings, type Timing,
} from './report'
import { medianSpeed } from './speeds'

/** Size of the last-level cache in bytes, as the system reports it. */
function lastLevelCache(): number {
  const MiB = 2 ** 20
  try {
    if (process.platform === 'darwin') {
      const size = Number(execFileSync('sysctl', ['-n', 'hw.l3cachesize'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
      if (size > 0) return size
    }
    const folder = '/sys/devices/system/cpu/cpu0/cache'
    const sizes = readdirSync(folder)
      .filter((name) => name.startsWith('index'))
      .map((name) => readFileSync(path.join(folder, name, 'size'), 'utf8').trim())
      .map((text) => parseInt(text, 10) * (text.endsWith('M') ? MiB : text.endsWith('K') ? 1024 : 1))
    if (sizes.length) return Math.max(...sizes)
  } catch {
    // Neither source exists here.
  }
  return 64 * MiB
}

interface Footprint {
  lastLevelCache: number
  /** Bytes to run through so that nothing is found in a cache: four times the last-level cache. */
  wanted: number
  /** The same, limited to a third of the free memory. */
  bytes: number
}

export function measureFootprint(): Footprint {
  const cache = lastLevelCache()
  const wanted = 4 * cache
  const bytes = Math.min(wanted, Math.floor(os.freemem() / 3))
  return { lastLevelCache: cache, wanted, bytes }
}

export const hostMemory: Memory<Numbers> = {
  make: (dtype: Dtype, length) => new (dtype === 'float32' ? Float32Array : Float64Array)(length),
  part: (array, begin, end) => array.subarray(begin, end),
  write: (to, from) => to.set(from),
  read: (array) => array,
}

const budget = 0.5e9 // ns a measurement
const shortestSample = 0.2e6 // ns: the clock's resolution and cost are then below 0.1 %
const fewestSamples = 9
const warmUp = 20e6 // ns
const now = () => Number(process.hrtime.bigint())

function time(op: TensorProduct, pass: Pass, sets: readonly Record<string, Numbers>[], batch: number): Timing {
  const calls = sets.map((arrays) => bind(op, pass, arrays))
  return { ...timeCalls(calls, batch), sets: sets.length, rotatedBytes: sets.length * Object.values(sets[0]!).reduce((sum, array) => sum + array.byteLength, 0) }
}

/** Of calls in turn, in nanoseconds an item. */
export function timeCalls(calls: readonly (() => void)[], batch: number): Omit<Timing, 'sets' | 'rotatedBytes'> {
  let next = 0
  const run = (count: number) => {
    const start = now()
    for (let n = 0; n < count; n++) {
      calls[next]!()
      if (++next === calls.length) next = 0
    }
    return now() - start
  }

  // Every call once at least: memory that nobody has touched for some seconds may be slow when it is used again. On a virtual machine whole measurements were of that,
  // 9 us a page: MIMO CGTP at L = 1, the first after the machine's speed was measured, took 219 ns an item.
  const warmUpEnd = now() + warmUp
  let perCall = Infinity
  for (let n = 0; n < calls.length || now() < warmUpEnd; n++) perCall = Math.min(perCall, run(1))
  const callsPerSample = Math.max(1, Math.ceil(shortestSample / perCall))

  const samples: number[] = []
  const end = now() + budget
  while (samples.length < fewestSamples || now() < end) samples.push(run(callsPerSample) / callsPerSample / batch)
  return { ...summary(samples), callsPerSample }
}

export function cpu({ dtype, threads, batch }: Settings): Machine<Numbers> {
  const footprint = measureFootprint()
  return {
    options: { backend: 'cpu', threads },
    batch,
    // More would spend the memory on array objects; only batches of a few items would need them.
    mostSets: 16384,
    memory: hostMemory,

    allocate(toRead, toWrite) {
      // Reads and writes each get the whole footprint, because one of the two may be small; both have to fit the memory.
      const share = Math.min(footprint.bytes, os.freemem() / 6)
      const [readable, writable] = [Math.max(share, toRead), Math.max(share, toWrite)]
      if (readable + writable > 0.8 * os.freemem())
        throw new BadFlag(`--batch ${batch}: needs ${((readable + writable) / 1e9).toFixed(1)} GB of memory; take a smaller batch or L`)
      return new Pool(hostMemory, dtype, readable, writable)
    },
    // The best of some passes, as the addon measures both; the copy with streaming stores.
    measureSpeed: () => ({
      copyBandwidth: native.measureCopyBandwidth({ bytes: footprint.bytes, threads }),
      fmaPeak: native.measureFmaPeak({ dtype, threads }),
    }),
    measure: (op, pass, sets) => ({ status: 'measured', timing: time(op, pass, sets, batch) }),

    details: () => ({ footprint }),
    heading(run) {
      const speed = medianSpeed(run.speeds)
      return [
        packageLine(run, `${run.machine.variant} kernels`),
        hostLine(run),
        `${threads} thread${threads > 1 ? 's' : ''}, ${callLine(run)}`,
        `copy bandwidth ${giga(speed.copyBandwidth)} GB/s: read plus written, streaming stores, over ${MiB(footprint.bytes)}` +
          ` (last-level cache ${MiB(footprint.lastLevelCache)}); ${seenIn(run.speeds, 'copyBandwidth')}`,
        `FMA peak ${giga(speed.fmaPeak)} G multiply-adds/s (two flops each); ${seenIn(run.speeds, 'fmaPeak')}`,
        floorsThen,
      ]
    },
    table: timingTable(number),
    meanings: timingMeanings,
    derived: (outcome, median) => (isMeasured(outcome) ? { rates: rates(outcome), ratesAtMedianSpeed: rates(outcome, median) } : {}),
    goals: cpuGoals,
    remarks: (run: Run) => {
      const { outcomes, load, machine } = run
      const lines = driftRemarks(run)
      if (load > machine.cores - threads + 0.5) lines.push(`Warning: other programs were running (load ${load.toFixed(1)} at the start).`)
      if (footprint.bytes < footprint.wanted) lines.push('Warning: too little free memory to exceed the last-level cache four times.')
      const cached = outcomes.filter(isMeasured).filter(({ timing }) => timing.rotatedBytes < 0.9 * footprint.wanted)
      if (cached.length) lines.push(`Note: ${cached.length} measurements ran over less than four times the last-level cache (rotatedBytes in the JSON).`)
      return lines
    },
  }
}
