// What a call would take on an H100, from what the emulation has counted: a model, and no measurement.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import type { Speed } from './machine'
import type { Dtype } from './problems'
import { floors, operationNamed, type Counted, type Floors } from './report'

/** Items a call of the modelled figures. */
export const modelledBatch = 100_000

/** Bytes a second of an H100 SXM's memory. */
const bandwidth = 3.35e12
/** Thread-instructions a second: 132 multiprocessors issue 128 a cycle, at 1.755 GHz. */
const issueRate = 29.6e12

/** The floors' speeds; a multiply-add is one instruction, of which float64 has half as many a second. */
export const h100 = (dtype: Dtype): Speed => ({ copyBandwidth: bandwidth, fmaPeak: dtype === 'float32' ? issueRate : issueRate / 2 })

export interface Modelled extends Floors {
  /** Bytes an item of operands and tables, over those of its inputs and outputs. */
  traffic: number
  /** Thread-instructions an item, issued; undefined where they are not counted. */
  instructions?: number
  /** Nanoseconds an item: max(unique bytes / bandwidth, instructions / issue rate). */
  ns?: number
  limit?: 'bytes' | 'instr'
  /** ns over the larger floor. */
  ratio?: number
  nsPerDegree?: number
}

/**
 * Of a call of `batch` items. Counts grow with the items but for the tables, which are read once: a block of threads owns a tile of up to 128
 * items, and the counted items are whole tiles as the batch is.
 */
export function modelled(o: Counted, batch: number = modelledBatch, dtype: Dtype = 'float32'): Modelled {
  const { items, loadedBytes, storedBytes, tableBytes, instructions } = o.counts
  const bytes = (loadedBytes + storedBytes) / items + tableBytes / batch
  const least = floors(o, h100(dtype))
  const result: Modelled = { ...least, traffic: bytes / o.leastBytes }
  if (instructions === undefined) return result
  const byteTime = (bytes / bandwidth) * 1e9, issueTime = (instructions / items / issueRate) * 1e9
  const ns = Math.max(byteTime, issueTime)
  return {
    ...result,
    instructions: instructions / items,
    ns,
    limit: byteTime >= issueTime ? 'bytes' : 'instr',
    ratio: ns / least.floor,
    nsPerDegree: ns / o.expressivity,
  }
}

interface Resources {
  kernels: Record<string, Record<string, Record<string, { occupancy?: number }>>>
}
let resources: Resources | undefined

/** The share of an H100's threads that registers and static shared memory leave an operation's kernel, from cuda/resources.json; undefined if it is not there. */
export function occupancy({ operation }: Counted, dtype: Dtype): number | undefined {
  resources ??= JSON.parse(readFileSync(path.join(__dirname, '../cuda/resources.json'), 'utf8')) as Resources
  const { word } = operationNamed(operation)
  const kernels = Object.entries(resources.kernels[`cuda/${word}.cu`] ?? {}).filter(([name]) => name.startsWith(`${word}<${dtype === 'float32' ? 'float' : 'double'}`))
  const found = kernels.flatMap(([, byCard]) => byCard.sm_90?.occupancy ?? [])
  return found.length ? Math.min(...found) : undefined
}
