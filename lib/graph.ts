import { isTyped, lengthOf, orOutOfMemory, requireMemory } from './arrays'
import { cuda } from './cuda'
import { argumentError, describe, disposed } from './errors'
import type { NativeDeviceSweeps, NativeSweep, NativeSweeps } from './native'
import { requireKnownOptions } from './options'

/** Edges by the node at one of their ends, in the order in which they came: a counting sort. */
function sweepOf(nodes: number, ends: Int32Array, others: Int32Array): NativeSweep {
  const begin = new Int32Array(nodes + 1), edge = new Int32Array(ends.length), other = new Int32Array(ends.length)
  if (ends.length === 0) return { begin, edge, other } // zeros that were never written take no memory
  for (const node of ends) begin[node]!++
  // Where a node's edges end; filled from behind, where they begin.
  for (let node = 0; node < nodes; node++) begin[node + 1]! += begin[node]!
  for (let e = ends.length - 1; e >= 0; e--) {
    const place = --begin[ends[e]!]!
    edge[place] = e
    other[place] = others[e]!
  }
  return { begin, edge, other }
}

const onDevices = new WeakMap<NativeSweeps, Map<number, NativeDeviceSweeps>>()

/** @internal A copy in a device's memory, made once. */
export function sweepsOnDevice(sweeps: NativeSweeps, device: number): NativeDeviceSweeps {
  let copies = onDevices.get(sweeps)
  if (!copies) onDevices.set(sweeps, (copies = new Map()))
  let copy = copies.get(device)
  if (!copy) copies.set(device, (copy = cuda((addon) => addon.createSweeps(device, sweeps))))
  return copy
}

/** More would not fit an Int32Array. */
const most = 2 ** 31 - 1

function requireCount(value: unknown, argument: string): number {
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= most) return value as number
  throw argumentError('invalid_argument', argument, `a number of nodes from 0 to ${most}`, describe(value))
}

/** One row of the edge index. */
function endsOf(edgeIndex: Int32Array | BigInt64Array, begin: number, end: number, nodes: number): Int32Array {
  const ends = new Int32Array(end - begin)
  for (let i = begin; i < end; i++) {
    const node = Number(edgeIndex[i])
    if (!(node >= 0 && node < nodes)) throw argumentError('invalid_argument', `edgeIndex[${i}]`, nodes > 0 ? `a node from 0 to ${nodes - 1}` : 'no edge, since there are no nodes', describe(edgeIndex[i]))
    ends[i - begin] = node
  }
  return ends
}

/**
 * The edges of a message-passing network, sorted once by sender and once by receiver for every {@link Convolution} over them. Results of a
 * convolution are in the nodes' and the edges' own order. Nodes without edges and repeated edges are fine, and so is any order of the edges.
 */
export class Graph {
  readonly numSenders: number
  readonly numReceivers: number
  readonly numEdges: number
  #sweeps: NativeSweeps | undefined

  /**
   * @param edgeIndex (2, edges), row-major: the senders of all edges, then their receivers; PyTorch Geometric's `edge_index`. It is copied.
   * @param numNodes how many nodes there are, or, where senders and receivers are different nodes, how many of each.
   * @throws EquitensorError `invalid_argument` for another type, an edge of a node that is not there, or a number that is none; `wrong_length`, `detached`,
   * `out_of_memory`: it takes 4 bytes a sender and a receiver, and 16 an edge.
   */
  constructor(edgeIndex: Int32Array | BigInt64Array, numNodes: number | { senders: number; receivers: number }) {
    if (!isTyped(edgeIndex, 'Int32Array') && !isTyped(edgeIndex, 'BigInt64Array')) {
      throw argumentError('invalid_argument', 'edgeIndex', 'an Int32Array or a BigInt64Array', describe(edgeIndex))
    }
    requireMemory(edgeIndex, 'edgeIndex')
    const length = lengthOf(edgeIndex)
    if (length % 2 !== 0) throw argumentError('wrong_length', 'edgeIndex', 'an even number of nodes, senders and then receivers', `${length}`)
    if (typeof numNodes === 'object' && numNodes !== null) {
      requireKnownOptions(numNodes, ['senders', 'receivers'], 'numNodes')
      this.numSenders = requireCount(numNodes.senders, 'numNodes.senders')
      this.numReceivers = requireCount(numNodes.receivers, 'numNodes.receivers')
    } else {
      this.numSenders = this.numReceivers = requireCount(numNodes, 'numNodes')
    }
    this.numEdges = length / 2
    if (this.numEdges > most) throw argumentError('wrong_length', 'edgeIndex', `at most ${most} edges`, `${this.numEdges}`)
    const sweeps = (): NativeSweeps => {
      const senders = endsOf(edgeIndex, 0, this.numEdges, this.numSenders), receivers = endsOf(edgeIndex, this.numEdges, length, this.numReceivers)
      return { senders: sweepOf(this.numSenders, senders, receivers), receivers: sweepOf(this.numReceivers, receivers, senders) }
    }
    this.#sweeps = orOutOfMemory(sweeps, () => `a graph of ${this.numSenders} senders, ${this.numReceivers} receivers and ${this.numEdges} edges`)
  }

  /** @internal The order of the edges by both of their ends. @throws EquitensorError `disposed`. */
  get sweeps(): NativeSweeps {
    if (!this.#sweeps) throw disposed('Graph', 'graph')
    return this.#sweeps
  }

  /** Frees its memory; calls with it then throw `disposed`. Calls that are pending go on. */
  dispose(): void {
    const sweeps = this.#sweeps
    this.#sweeps = undefined
    if (!sweeps) return
    for (const copy of onDevices.get(sweeps)?.values() ?? []) cuda((addon) => addon.disposeSweeps(copy))
    onDevices.delete(sweeps)
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
