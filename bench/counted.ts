// What the suites share that are counted on the emulation.
import { DeviceArray } from '../lib/index'
import { cuda } from '../lib/cuda'
import { binary, type DeviceCounts } from '../lib/native'
import { random, randomArray } from '../test/support'
import { interpret } from './emulated'
import { BadFlag } from './machine'
import type { PassName } from './passes'
import type { Dtype, Numbers } from './problems'
import { bindWeighted, errorOf, weightedArrays, weightedDims, type WeightedProduct, type WeightedSlot } from './weighted'

/** Has launches run nvcc's PTX. Why not, where there is none. @throws BadFlag where this process is no emulation. */
export function requireEmulation(suite: string): string | undefined {
  if (binary.flavour !== 'emulated') throw new BadFlag(`--suite ${suite} --backend cuda: on the emulation only, EQUITENSOR_BINARY=emulated`)
  return interpret()
}

/** `uncounted`: from {@link requireEmulation}. */
export const uncountedLines = (uncounted: string | undefined) => (uncounted ? [`instructions are not counted (${uncounted}), and so no time is modelled`] : [])

/** Counts of what runs on the device in `call`; `array`: one of its arrays. */
export function countCall(call: () => void, array: DeviceArray): DeviceCounts {
  const counting = cuda((native) => native.counting!)
  counting(true)
  call()
  // The emulation is lazy: work is done when somebody waits for it.
  array.download()
  return counting(false)
}

/**
 * A pass of `op` on the device, with so many rows of each slot: its counts, and its error against `exact`, the same in float64 on the CPU. `product`: whose arrays they are;
 * `first`: a graph in front of the arguments, which a call before has brought to the device.
 */
export function countWeighted(
  { op, exact, product }: { op: unknown; exact: unknown; product: WeightedProduct }, pass: PassName, rows: Record<WeightedSlot, number>, dtype: Dtype, ...first: unknown[]
): { counts: DeviceCounts; error: number } {
  const { reads, writes } = weightedArrays[pass], dims = weightedDims(product), next = random(1)
  const host = Object.fromEntries(Object.entries({ ...reads, ...writes }).map(([name, slot]) => [name, randomArray(dtype, rows[slot] * dims[slot], next)]))
  const device = Object.fromEntries(Object.entries(host).map(([name, array]) => [name, DeviceArray.from(array as Float32Array)]))
  const call = bindWeighted(op, pass, device as never, ...first)
  if (first.length) call(), device.x!.download() // waited for, since what is still waiting would be counted
  const counts = countCall(call, device.x!)
  const expected: Record<string, Numbers> = Object.fromEntries(Object.entries(host).map(([name, array]) => [name, Float64Array.from(array)]))
  bindWeighted(exact, pass, expected, ...first)()
  const actual = Object.fromEntries(Object.keys(writes).map((name) => [name, device[name]!.download() as Numbers]))
  const error = errorOf(product, pass, actual, Object.fromEntries(Object.entries(writes).map(([name, slot]) => [slot, expected[name]!])) as Record<WeightedSlot, Numbers>)
  for (const array of Object.values(device)) array.dispose()
  return { counts, error }
}
