// A pass contracts the trilinear form T(x, y, z) with one slot open, once for each array that it writes. Described as
// data, a pass is called, counted (bytes) and checked by the same code; one more entry adds one more pass.
import type { Numbers, TensorProduct } from './problems'

export type PassName = 'forward' | 'backward' | 'doubleBackward'
export type Slot = 'x' | 'y' | 'z'

/** into += T with the slot that has no array left open. */
export interface Term {
  into: string
  x?: string
  y?: string
  z?: string
}

export interface Pass {
  name: PassName
  /** The slot whose irreps each array has. */
  reads: Record<string, Slot>
  writes: Record<string, Slot>
  terms: readonly Term[]
  /** A call with its arguments prepared, so that timing sees the operation and nothing of ours. */
  bind(op: TensorProduct, arrays: Record<string, Numbers>): () => void
}

export const passes: readonly Pass[] = [
  {
    name: 'forward',
    reads: { x: 'x', y: 'y' },
    writes: { z: 'z' },
    terms: [{ into: 'z', x: 'x', y: 'y' }],
    bind(op, { x, y, z }) {
      const options = { out: z! }
      return () => void op.forward(x!, y!, undefined, options)
    },
  },
  {
    name: 'backward',
    reads: { x: 'x', y: 'y', gradOut: 'z' },
    writes: { gradX: 'x', gradY: 'y' },
    terms: [
      { into: 'gradX', y: 'y', z: 'gradOut' },
      { into: 'gradY', x: 'x', z: 'gradOut' },
    ],
    bind(op, { x, y, gradOut, gradX, gradY }) {
      const options = { out: { x: gradX!, y: gradY! } }
      return () => void op.backward(x!, y!, undefined, gradOut!, options)
    },
  },
  {
    name: 'doubleBackward',
    reads: { x: 'x', y: 'y', gradOut: 'z', ax: 'x', ay: 'y' },
    writes: { gradX: 'x', gradY: 'y', gradGradOut: 'z' },
    terms: [
      { into: 'gradX', y: 'ay', z: 'gradOut' },
      { into: 'gradY', x: 'ax', z: 'gradOut' },
      { into: 'gradGradOut', x: 'ax', y: 'y' },
      { into: 'gradGradOut', x: 'x', y: 'ay' },
    ],
    bind(op, { x, y, gradOut, ax, ay, gradX, gradY, gradGradOut }) {
      const cotangents = { x: ax!, y: ay! }
      const options = { out: { x: gradX!, y: gradY!, gradOut: gradGradOut! } }
      return () => void op.doubleBackward(x!, y!, undefined, gradOut!, cotangents, options)
    },
  },
]
