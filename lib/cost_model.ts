// What a call is expected to take, for the choices of 'auto'. The constants are rounded from what `npm run compare` measures on ordinary machines; it
// prints the model's estimates beside its measurements. A choice is meant to be right where it matters, by factors and not by percents.

/** Work and traffic an item. */
interface Cost {
  readonly flops: number
  readonly bytes: number
}

/** One thread, on arrays that are in no cache: operations and bytes a second. */
const cpu = { flops: 30e9, bytes: 12e9 }
/** A call on host arrays: allocation, launch and waits, and then the bytes over the bus, which take longer than any kernel here. */
const gpuFromHost = { seconds: 40e-6, bytes: 10e9 }

/**
 * Operations of a forward pass, for the choice between algorithms. On the CPU those of unrolled products count a seventh, since they run at the peak, and what is
 * driven by tables at about a seventh of it: 78 to 100 against 34 to 66 G operations a second over a whole pass of L x L -> 0..2L at L = 3 to 6.
 */
export function weighedOperations({ forward, unrolled }: { forward: number; unrolled: number }, backend: 'cpu' | 'cuda'): number {
  return backend === 'cpu' ? Math.round(forward - (6 / 7) * unrolled) : forward
}

/** Seconds an item on the CPU. */
export function cpuSeconds({ flops, bytes }: Cost, threads: number): number {
  // A second thread brings little more bandwidth, and that is what binds small degrees.
  return Math.max(flops / (cpu.flops * threads), bytes / (cpu.bytes * Math.min(threads, 2)))
}

/** Items up to which a call on host arrays is faster on the CPU than on a GPU, to two digits; Infinity if it always is. */
export function itemsForCpu(cost: Cost, threads: number): number {
  const saved = cpuSeconds(cost, threads) - cost.bytes / gpuFromHost.bytes
  return saved > 0 ? Number((gpuFromHost.seconds / saved).toPrecision(2)) : Infinity
}
