// Where channels of irreps lie in a row; see core/irreps.hpp.
import { argumentError } from './errors'
import type { Irrep, Irreps } from './irreps'
import type { Layout } from './options'

/** `mul` channels of one irrep: component m of channel u lies at offset + u * channel + m * component. */
export interface Channels {
  ir: Irrep
  mul: number
  offset: number
  channel: number
  component: number
}

/** The blocks of irreps as passed. */
export function allChannelsOf(irreps: Irreps, layout: Layout): Channels[] {
  return irreps.blocks.map(({ mul, ir }, i) => {
    const size = 2 * ir.l + 1
    const strides = layout === 'mul_ir' ? { channel: size, component: 1 } : { channel: 1, component: mul }
    return { ir, mul, offset: irreps.slices[i]![0], ...strides }
  })
}

/** The blocks of irreps as passed, without empty ones. */
export function channelsOf(irreps: Irreps, layout: Layout): Channels[] {
  return allChannelsOf(irreps, layout).filter(({ mul }) => mul > 0)
}

/** Channels [begin, begin + mul) of a block. */
export function channelRange(block: Channels, begin: number, mul: number): Channels {
  return { ...block, mul, offset: block.offset + begin * block.channel }
}

/** As native code takes them: [offset, mul, l, channel, component] of each. */
export function packChannels(channels: readonly Channels[]): Int32Array {
  return Int32Array.from(channels.flatMap(({ ir, mul, offset, channel, component }) => [offset, mul, ir.l, channel, component]))
}

/** Which channels of two blocks meet, as e3nn names it: every u with every v; u with u; u with every later v. In the order of core/irreps.hpp. */
export type Connection = 'uvuv' | 'uuu' | 'uvu<v'
const connections: readonly Connection[] = ['uvuv', 'uuu', 'uvu<v']

/** A path between blocks of inputs as they are packed, into an output; see core/clebsch_gordan.hpp. */
export interface PackedPath {
  in1: number
  in2: number
  connection: Connection
  l3: number
  offset: number
  uStep: number
  vStep: number
  triangular: boolean
  component: number
  coefficient: number
}
export function packPaths(paths: readonly PackedPath[]): { paths: Int32Array; coefficients: Float64Array } {
  return {
    paths: Int32Array.from(
      paths.flatMap((p) => [p.in1, p.in2, connections.indexOf(p.connection), p.l3, p.offset, p.uStep, p.vStep, p.component, Number(p.triangular)]),
    ),
    coefficients: Float64Array.from(paths, ({ coefficient }) => coefficient),
  }
}

/**
 * Components of an item of both inputs and of the output.
 * @throws EquitensorError `invalid_irreps`: native code counts them in 32 bits.
 */
export function packDims(in1: Irreps, in2: Irreps, out: Irreps): Int32Array {
  for (const [argument, irreps] of Object.entries({ irrepsIn1: in1, irrepsIn2: in2, irrepsOut: out })) {
    if (irreps.dim >= 2 ** 31) throw argumentError('invalid_irreps', argument, 'less than 2^31 components an item', `${irreps.dim}`)
  }
  return Int32Array.of(in1.dim, in2.dim, out.dim)
}
