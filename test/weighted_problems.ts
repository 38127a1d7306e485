// Products with weights that tests run on: every mode, with the errors of every pass against the reference. No vitest in here: child processes use it too.
import { ClebschGordanTensorProduct, Irreps, type ArrayOf, type DType, type Instruction, type Layout } from '../lib/index'
import { instructionTerms, weightedPasses, type WeightedArrays } from './reference'
import { arrayError, blockError, guarded, random, randomArray } from './support'

export interface Problem {
  name: string
  irreps: [in1: string, in2: string, out: string]
  instructions: Instruction[]
}
export const one = (mode: Instruction['mode'], hasWeight: boolean, in1: string, in2: string, out: string): Problem => ({
  name: `${mode} ${hasWeight ? 'with' : 'without'} weights: ${in1} x ${in2} -> ${out}`,
  irreps: [in1, in2, out],
  instructions: new Irreps(out).blocks.map((_, o) => ({ in1: 0, in2: 0, out: o, mode, hasWeight })),
})
const i = (in1: number, in2: number, out: number, mode: Instruction['mode'], hasWeight = true, pathWeight = 1): Instruction => ({ in1, in2, out, mode, hasWeight, pathWeight })

// Every path between degrees to 3 with an output of its own, in the order of the weights: kernels whose Wigner 3j symbols the compiler knows.
function everyPath(in1: string, in2: string): Problem {
  const [x, y] = [new Irreps(in1), new Irreps(in2)], instructions: Instruction[] = [], out: string[] = []
  x.blocks.forEach((a, in1) => y.blocks.forEach((b, in2) => {
    for (let l = Math.abs(a.ir.l - b.ir.l); l <= Math.min(3, a.ir.l + b.ir.l); l++) {
      instructions.push(i(in1, in2, out.length, 'uvu'))
      out.push(`${a.mul}x${l}${a.ir.p * b.ir.p > 0 ? 'e' : 'o'}`)
    }
  }))
  return { name: `every path to degree 3: ${in1} x ${in2}`, irreps: [in1, in2, out.join('+')], instructions }
}

// Every mode, with one channel and with several, with multiplicities around the lanes of a vector.
export const problems: Problem[] = [
  one('uvw', true, '3x1o', '2x2e', '4x1o+5x3o'), one('uvw', true, '17x1o', '1x1o', '9x0e+1x1e'), one('uvw', true, '2x1o', '7x1o', '1x2e'),
  one('uvw', true, '1x2e', '1x1o', '1x1o'),
  one('uvu', true, '5x1o', '1x2e', '5x1o+5x2o+5x3o'), one('uvu', true, '19x1o', '3x1o', '19x0e+19x2e'), one('uvu', true, '1x0e', '1x1o', '1x1o'),
  one('uvu', false, '6x1o', '2x1o', '6x1e'), one('uvu', false, '33x2e', '1x1o', '33x1o'),
  // Whole vectors of 9 and more components.
  one('uvu', true, '17x6e', '1x1o', '17x5o+17x6o+17x7o'), one('uvu', true, '18x4e', '1x3o', '18x4o'),
  everyPath('17x0e+1x1o+33x2e+16x3o', '1x0e+1x1o+1x2e+1x3o'), everyPath('32x2e+5x1o', '1x2e+1x1o'),
  one('uvv', true, '2x1o', '5x2e', '5x1o+5x3o'), one('uvv', true, '1x1o', '17x1o', '17x0e'), one('uvv', false, '3x1o', '4x1o', '4x2e'),
  one('uuw', true, '3x1o', '3x1o', '5x0e+2x2e'), one('uuw', true, '18x1o', '18x1o', '3x1e'), one('uuw', false, '7x1o', '7x1o', '1x0e+1x2e'),
  one('uuu', true, '5x1o', '5x1o', '5x0e+5x1e+5x2e'), one('uuu', true, '17x2e', '17x2e', '17x2e'), one('uuu', false, '3x3o', '3x2e', '3x4o'),
  one('uvuv', true, '3x1o', '5x1o', '15x1e+15x2e'), one('uvuv', true, '17x1o', '1x0e', '17x1o'), one('uvuv', false, '2x1o', '3x2e', '6x2o'),
  one('uvu<v', true, '4x1o', '4x1o', '6x0e+6x1e'), one('uvu<v', true, '2x1o', '2x1o', '1x2e'), one('uvu<v', false, '9x1o', '9x1o', '36x2e'),
  one('u<vw', true, '4x1o', '4x1o', '3x0e+5x1e'), one('u<vw', true, '2x1o', '2x2e', '1x1o'), one('u<vw', true, '7x1o', '7x1o', '18x2e'),
  {
    name: 'all modes into the same blocks, empty blocks, one input block for several instructions',
    irreps: ['3x1o+0x0e+2x0e+3x1e', '3x1o+2x1e+0x2o', '3x0e+0x1o+3x1e+6x1e+3x2e+1x0e'],
    instructions: [
      i(0, 0, 0, 'uuu'), i(3, 1, 0, 'uvu', true, 0.5), i(0, 0, 0, 'uvw', true, 2), i(0, 0, 2, 'u<vw'), i(2, 1, 2, 'uvw'), i(1, 1, 2, 'uvw'),
      i(0, 0, 2, 'uvu<v', false), i(3, 1, 2, 'uvu', false), i(0, 0, 2, 'uuw'),
      i(3, 1, 3, 'uvuv'), i(2, 1, 3, 'uvw'), i(0, 0, 4, 'uvv'), i(0, 0, 4, 'uvv'), i(0, 0, 4, 'uuu', false, 3), i(3, 1, 4, 'uvw'),
      i(0, 0, 5, 'uuw', false), i(3, 1, 5, 'uvw'),
    ],
  },
  {
    name: 'a block of y channel by channel, and then as lanes',
    irreps: ['3x1o', '3x1o', '3x1e+3x2e'],
    instructions: [i(0, 0, 0, 'uuu'), i(0, 0, 1, 'uvv')],
  },
  {
    name: 'several blocks of one irrep, unsorted',
    irreps: ['2x1o+5x0e+3x1o+1x2e', '1x0e+1x1o+1x1o', '2x1o+3x1o+5x1o+3x2e+2x0e+4x1e'],
    instructions: [
      i(0, 0, 0, 'uvu'), i(2, 0, 1, 'uvu'), i(1, 1, 2, 'uvu'), i(1, 2, 2, 'uvu'), i(2, 1, 3, 'uvu'), i(2, 2, 3, 'uvu', false),
      i(0, 1, 4, 'uvu'), i(0, 2, 5, 'uvw'), i(2, 1, 5, 'uvw'), i(3, 1, 0, 'uvw'),
    ],
  },
]

export function make<D extends DType>(problem: Problem, dtype: D, layout: Layout, options: object = {}) {
  const [in1, in2, out] = problem.irreps.map((s) => new Irreps(s)) as [Irreps, Irreps, Irreps]
  const op = new ClebschGordanTensorProduct(in1, in2, { irrepsOut: out, instructions: problem.instructions, dtype, layout, ...options })
  // An instruction of an empty block is no path.
  const kept = problem.instructions.filter((i) => in1.blocks[i.in1]!.mul && in2.blocks[i.in2]!.mul && out.blocks[i.out]!.mul)
  const terms = instructionTerms([in1, in2, out], layout, kept, op.paths.map(({ coefficient }) => coefficient))
  return { op, terms, in1, in2, out }
}

/** Batches of x, y and weights; the number of weight sets is 'shared' for a single one. */
export const batches: [name: string, x: number, y: number, weights: number | 'shared'][] = [
  ['shared weights', 5, 5, 'shared'], ['a set for each item', 5, 5, 5], ['one item', 1, 1, 1], ['no item, shared weights', 0, 0, 'shared'], ['no item', 0, 0, 0],
  ['17 items', 17, 17, 17], ['17 items, shared weights', 17, 17, 'shared'], ['x shared', 1, 5, 5], ['y shared', 5, 1, 'shared'], ['x and the weights shared', 1, 17, 'shared'],
]

export function draw<D extends DType>(dtype: D, { op, terms }: Pick<ReturnType<typeof make<D>>, 'op' | 'terms'>, [, xBatch, yBatch, sets]: (typeof batches)[number], seed = 1) {
  const next = random(seed), batch = xBatch === 1 ? yBatch : xBatch
  const array = (length: number) => randomArray(dtype, length, next)
  const numbers = (): Record<'x' | 'y' | 'w' | 'z', ArrayOf<D>> => ({
    x: array(xBatch * op.irrepsIn1.dim),
    y: array(yBatch * op.irrepsIn2.dim),
    w: array((sets === 'shared' ? 1 : sets) * terms.weightNumel),
    z: array(batch * op.irrepsOut.dim),
  })
  return { batch, arrays: numbers(), a: numbers() }
}


/** Errors of every result of every pass, written between guard words into arrays that are off any boundary; damaged guards count as 1. */
export function passErrors<D extends DType>(p: ReturnType<typeof make<D>>, dtype: D, batch: (typeof batches)[number]): [result: string, error: number][] {
  // From another seed than 1, with which the gradient of the only weight of 1x0e x 1x1o cancels to 1e-4 of its terms.
  const { batch: items, arrays, a } = draw(dtype, p, batch, 2)
  const expected = weightedPasses(p.terms, arrays as WeightedArrays, items, a as WeightedArrays)
  const shift = (array: ArrayOf<D>) => {
    const shifted = guarded(dtype, array.length, 3).array
    shifted.set(array as never)
    return shifted
  }
  const [x, y, z] = [shift(arrays.x), shift(arrays.y), shift(arrays.z)], w = p.op.weightNumel > 0 ? shift(arrays.w) : undefined
  const directions = { x: shift(a.x), y: shift(a.y), weight: w && shift(a.w) }
  const place = (array: ArrayOf<D>) => guarded(dtype, array.length, 5)
  const places = (names: readonly ('x' | 'y' | 'weight' | 'gradOut')[]) =>
    Object.fromEntries(names.flatMap((name) => (name === 'weight' && !w ? [] : [[name, place({ x, y, weight: w!, gradOut: z }[name])]])))
  const arraysOf = (out: ReturnType<typeof places>) => Object.fromEntries(Object.entries(out).map(([name, { array }]) => [name, array]))
  const z1 = place(z), z2 = place(z), first = places(['x', 'y', 'weight']), second = places(['x', 'y', 'weight', 'gradOut'])
  p.op.forward(x, y, w, { out: z1.array })
  p.op.backward(x, y, w, z, { out: arraysOf(first) })
  p.op.doubleBackward(x, y, w, z, directions, { out: arraysOf(second) })
  p.op.jvp(x, y, w, directions, { out: z2.array })
  const error = (name: string, { array, intact }: ReturnType<typeof place>, reference: typeof expected.first) => {
    const all = { x: [reference.x, p.in1], y: [reference.y, p.in2], gradOut: [reference.z, p.out] } as const
    const value = name === 'weight' ? arrayError(array, reference.w) : blockError(array, ...(all[name as keyof typeof all] as [Float64Array, Irreps]))
    return intact() ? value : 1
  }
  return [
    ['forward', error('gradOut', z1, expected.first)],
    ...Object.entries(first).map(([name, out]): [string, number] => [`backward ${name}`, error(name, out, expected.first)]),
    ...Object.entries(second).map(([name, out]): [string, number] => [`double backward ${name}`, error(name, out, expected.second)]),
    ['jvp', error('gradOut', z2, expected.second)],
  ]
}
