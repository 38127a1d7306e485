// An NVIDIA GPU: times between CUDA events, with the L2 cache flushed before every call.
import { DeviceArray } from '../lib/index'
import { cuda, cudaDevices } from '../lib/cuda'
import { nativeArray } from '../lib/device_array'
import { binary } from '../lib/native'
import { noGoals } from './goals'
import { BadFlag, median, type Machine } from './machine'
import { bind, bytesOf, Pool, type Memory } from './measure'
import type { Dtype } from './problems'
import {
  callLine, driftRemarks, floorsThen, giga, hostLine, isMeasured, MiB, packageLine, rates, seenIn, summary, timingMeanings, timingTable, type Run,
  type Settings,
} from './report'
import { medianSpeed } from './speeds'

export const deviceMemory = (device: number): Memory<DeviceArray> => ({
  make: (dtype, length) => DeviceArray.alloc(dtype, length, { device }),
  part: (array, begin, end) => array.slice(begin, end),
  write: (to, from) => void to.copyFrom(from),
  read: (array) => array.download(),
})

/** @throws BadFlag where the device has too little memory. */
export function allocateOnDevice(memory: Memory<DeviceArray>, { dtype, batch }: { dtype: Dtype; batch: number }, toRead: number, toWrite: number): Pool<DeviceArray> {
  try {
    return new Pool(memory, dtype, toRead, toWrite)
  } catch (error) {
    if ((error as { code?: string }).code !== 'out_of_memory') throw error
    throw new BadFlag(`--batch ${batch}: needs ${((toRead + toWrite) / 1e9).toFixed(1)} GB of the device's memory; take a smaller batch or L (${(error as Error).message})`)
  }
}

const warmUpCalls = 3
const budget = 250 // ms of calls a measurement
const [fewestSamples, mostSamples] = [9, 100]
const speedSamples = 9
const fmaMilliseconds = 5 // of a chain: the launch is then below 0.1 %

/** Times have two or three digits whatever the card: down to some hundredths of a nanosecond an item. */
const precise = (ns: number) => (ns >= 100 ? ns.toFixed(0) : ns.toPrecision(3))

/** A test runs all of this on the emulation, whose times are of interest to nobody. */
const label = 'THIS IS NO GPU but its emulation, and none of these times is a result'

export function gpu({ dtype, batch, device }: Settings): Machine<DeviceArray> {
  const memory = deviceMemory(device)
  const card = cudaDevices().devices[device]!
  const l2 = cuda((native) => native.l2Cache(device))
  const isEmulated = binary.flavour === 'emulated'

  // The copy that is the yardstick runs over sixteen times the cache. A part of it, twice the cache read and twice the cache written, is the
  // flush: it leaves the cache in the state that the yardstick's own calls meet, with lines that have yet to be written to memory.
  const elements = (bytes: number) => Math.ceil(bytes / bytesOf.float32)
  const from = memory.make('float32', elements(8 * l2)), to = memory.make('float32', elements(8 * l2))
  memory.write(memory.part(from, 0, 1), Float32Array.of(1)) // the rest need not be numbers
  const copyBetween = (to: DeviceArray, from: DeviceArray) => {
    const [a, b] = [nativeArray(to), nativeArray(from)]
    return () => cuda((native) => native.copyByKernel(a, b))
  }
  const copy = copyBetween(to, from), flush = copyBetween(memory.part(to, 0, elements(2 * l2)), memory.part(from, 0, elements(2 * l2)))
  const sum = nativeArray(memory.make(dtype, 1))

  const milliseconds = (repeats: number, before: () => void, work: () => void) => [...cuda((native) => native.time(device, repeats, before, work))]
  const nothing = () => {}

  const multiplyAddsPerSecond = () => {
    let multiplyAdds = 0, iterations = 1
    const chain = () => {
      multiplyAdds = cuda((native) => native.fmaChain(dtype === 'float64', iterations, sum))
    }
    // The first call also loads the kernel.
    milliseconds(1, nothing, chain)
    iterations = 4
    iterations = Math.ceil((iterations * fmaMilliseconds) / Math.max(...milliseconds(1, nothing, chain)))
    return (multiplyAdds / Math.min(...milliseconds(speedSamples, nothing, chain))) * 1e3
  }
  const emptyCall = median(milliseconds(speedSamples, flush, nothing)) * 1e3 // us

  return {
    options: { backend: 'cuda', device },
    batch,
    mostSets: 1, // the flush takes the place of more
    memory,

    allocate: (toRead, toWrite) => allocateOnDevice(memory, { dtype, batch }, toRead, toWrite),
    // The best of some passes, as on the CPU.
    measureSpeed() {
      milliseconds(warmUpCalls, nothing, copy)
      const copied = 2 * bytesOf.float32 * from.length
      return { copyBandwidth: (copied / Math.min(...milliseconds(speedSamples, nothing, copy))) * 1e3, fmaPeak: multiplyAddsPerSecond() }
    },
    measure(op, pass, [arrays]) {
      const call = bind(op, pass, arrays!)
      const perCall = median(milliseconds(warmUpCalls, flush, call))
      const samples = Math.min(mostSamples, Math.max(fewestSamples, Math.ceil(budget / perCall)))
      const times = milliseconds(samples, flush, call).map((ms) => (ms * 1e6) / batch)
      const rotatedBytes = Object.values(arrays!).reduce((sum, array) => sum + array.length * bytesOf[dtype], 0)
      return { status: 'measured', timing: { ...summary(times), callsPerSample: 1, sets: 1, rotatedBytes } }
    },

    details: () => ({ card: { ...card, l2Cache: l2 }, isEmulated, emptyCallMicroseconds: emptyCall }),
    heading(run) {
      const speed = medianSpeed(run.speeds)
      return [
        ...(isEmulated ? [label] : []),
        packageLine(run, 'CUDA kernels'),
        `${card.name}, compute capability ${card.computeCapability}, ${card.multiprocessors} multiprocessors, ${(card.memory / 2 ** 30).toFixed(0)} GiB, L2 cache ${MiB(l2)}`,
        `host: ${hostLine(run)}`,
        callLine(run),
        `copy bandwidth ${giga(speed.copyBandwidth)} GB/s: read plus written, over ${MiB(16 * l2)}; ${seenIn(run.speeds, 'copyBandwidth')}`,
        `FMA peak ${giga(speed.fmaPeak)} G multiply-adds/s (two flops each); ${seenIn(run.speeds, 'fmaPeak')}`,
        floorsThen,
        `times between CUDA events, a copy of ${MiB(2 * l2)} before each call to flush the L2 cache; with no call between them the events are` +
          ` ${emptyCall.toFixed(1)} us apart, which is not subtracted`,
      ]
    },
    table: timingTable(precise),
    meanings: timingMeanings,
    derived: (outcome, median) => (isMeasured(outcome) ? { rates: rates(outcome), ratesAtMedianSpeed: rates(outcome, median) } : {}),
    goals: noGoals,
    remarks(run: Run) {
      const lines = driftRemarks(run)
      const small = run.outcomes.filter(isMeasured).filter(({ timing }) => timing.rotatedBytes < 2 * l2)
      if (small.length)
        lines.push(
          `Note: ${small.length} calls move less than twice the L2 cache: lines that the flush left to be written weigh on them, and so do the` +
            ` microseconds of a launch; a larger --batch tells more.`,
        )
      if (isEmulated) lines.push(`Warning: ${label}.`)
      return lines
    },
  }
}
