// The kernels of the weighted product as native code offers them: what streamed results, whose vectors are shared by rows, have in common with
// results that are small enough for ordinary stores. Numbers, modes and errors are weighted.test.ts's.
import { describe, expect, test } from 'vitest'
import { channelsOf, packChannels } from '../lib/layout'
import { Irreps } from '../lib/index'
import { native } from '../lib/native'
import { arrayError, constructors, dtypes, guarded, layouts, random, randomArray, sameBits, type Numbers } from './support'

/** Every uvu path, one after the other. */
function channelwise(in1: string, in2: string, dtype: 'float32' | 'float64', layout: 'mul_ir' | 'ir_mul') {
  const x = new Irreps(in1), y = new Irreps(in2)
  const instructions: number[] = [], out: [number, string][] = []
  let weights = 0
  x.blocks.forEach((a, i) =>
    y.blocks.forEach((b, j) => {
      for (let l = Math.abs(a.ir.l - b.ir.l); l <= a.ir.l + b.ir.l; l++) {
        instructions.push(i, j, out.length, 1, weights)
        out.push([a.mul, `${l}${a.ir.p * b.ir.p > 0 ? 'e' : 'o'}`])
        weights += a.mul * b.mul
      }
    }),
  )
  const z = new Irreps(out)
  const operation = native.createWeighted({
    isDouble: dtype === 'float64',
    dims: Int32Array.of(x.dim, y.dim, z.dim),
    in1: packChannels(channelsOf(x, layout)),
    in2: packChannels(channelsOf(y, layout)),
    out: packChannels(channelsOf(z, layout)),
    weightNumel: weights,
    instructions: Int32Array.from(instructions),
    coefficients: Float64Array.from({ length: out.length }, (_, p) => 1 + p / 8),
  })
  return { operation, dims: { x: x.dim, y: y.dim, z: z.dim, w: weights } }
}

// 16 channels are whole vectors of every instruction set, 89 of none; 7 and 9 components are taken in one piece and in two, and 11 of 32 channels go to memory in two. The last ones
// are between degrees to 3, four items at a time: rows that begin at any place in a line, of whole vectors and of others.
const problems = [['16x0e+16x1o+16x3e', '0e+1o+2e'], ['89x0e', '0e+1o+3o'], ['48x4e+5x1o', '2x1e'], ['7x2e', '3x2e'], ['32x5o', '3e'], ['16x0e+48x1o', '0e+1o+2e'], ['33x0o+17x1e', '2e+0e+1o']] as const
const names = { x: 'x', y: 'y', z: 'z', ax: 'x', ay: 'y', w: 'w', aw: 'w', xOut: 'x', yOut: 'y', zOut: 'z', wOut: 'w' } as const
const passes = {
  forward: ['x', 'y', 'w', 'zOut'],
  backward: ['x', 'y', 'w', 'z', 'xOut', 'yOut', 'wOut'],
  'double backward': ['x', 'y', 'w', 'z', 'ax', 'ay', 'aw', 'xOut', 'yOut', 'zOut', 'wOut'],
} as const

describe.each(Object.keys(passes) as (keyof typeof passes)[])('%s', (pass) => {
  describe.each(dtypes)('%s', (dtype) => {
    test.each(layouts)('streamed rows are those of single items, wherever they begin, %s', (layout) => {
      for (const [in1, in2] of problems) {
        const { operation, dims } = channelwise(in1, in2, dtype, layout)
        const outputs = passes[pass].filter((name) => name.endsWith('Out'))
        // Streaming begins at 512 KiB of results; three tasks at least, whose first and last vectors are shared by two of them.
        const size = constructors[dtype].BYTES_PER_ELEMENT, bytes = outputs.reduce((sum, name) => sum + dims[names[name]] * size, 0)
        const batch = Math.max(50, Math.ceil((1 << 20) / bytes)), next = random(batch)
        for (const offset of [0, 1, 7]) {
          const inputs = Object.fromEntries(passes[pass].filter((name) => !name.endsWith('Out')).map((name) => [name, randomArray(dtype, dims[names[name]] * batch, next)]))
          const results = Object.fromEntries(outputs.map((name) => [name, guarded(dtype, dims[names[name]] * batch, offset)]))
          const arrays = Object.fromEntries(outputs.map((name) => [name, results[name]!.array]))
          const call = { ...inputs, ...arrays } as { x: Numbers }
          native.contract(operation, { ...call, batch, threads: 2 })
          for (const item of [0, 1, 15, 16, 17, batch - 1]) {
            const row = (name: string, array: Numbers) => array.subarray(item * dims[names[name as 'x']], (item + 1) * dims[names[name as 'x']])
            const single = Object.fromEntries(outputs.map((name) => [name, new constructors[dtype](dims[names[name]])]))
            const rows = Object.fromEntries(Object.entries(inputs).map(([name, array]) => [name, row(name, array).slice()]))
            native.contract(operation, { ...({ ...rows, ...single } as unknown as { x: Numbers }), batch: 1, threads: 1 })
            for (const name of outputs) expect(sameBits(row(name, results[name]!.array), single[name]!), `${in1} ${name} of item ${item}, offset ${offset}`).toBe(true)
          }
          for (const name of outputs) expect(results[name]!.intact(), name).toBe(true)
        }
        native.dispose(operation)
      }
    })
  })
})

// With one set of weights a tile of items is computed at once, and its lanes do not know of each other: neither their order nor streaming changes an item's bits.
describe.each(['forward', 'backward', 'double backward'] as const)('shared weights, %s', (pass) => {
  test.each(layouts)('streamed rows are those of 16 items at a time, and the gradient of the weights that of sets, %s', (layout) => {
    for (const dtype of dtypes) {
      const [x, y, z] = ['1x0e+3x1o', '1x0e+2x1o', '33x0e+8x1o+5x1e'].map((irreps) => new Irreps(irreps)) as [Irreps, Irreps, Irreps]
      const paths = [[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 2]] as const
      let weightNumel = 0
      const instructions = paths.flatMap(([i, j, k]) => {
        const first = weightNumel
        weightNumel += x.blocks[i]!.mul * y.blocks[j]!.mul * z.blocks[k]!.mul
        return [i, j, k, 0, first]
      })
      const operation = native.createWeighted({
        isDouble: dtype === 'float64', dims: Int32Array.of(x.dim, y.dim, z.dim), weightNumel, instructions: Int32Array.from(instructions),
        in1: packChannels(channelsOf(x, layout)), in2: packChannels(channelsOf(y, layout)), out: packChannels(channelsOf(z, layout)),
        coefficients: Float64Array.from(paths, (_, p) => 1 + p / 8),
      })
      const dims = { x: x.dim, y: y.dim, z: z.dim, w: weightNumel }, batch = 16 * 640, next = random(5)
      const of = (name: string) => names[name as keyof typeof names], rows = (name: string) => (of(name) === 'w' ? 1 : batch)
      const inputs = Object.fromEntries(passes[pass].filter((name) => !name.endsWith('Out')).map((name) => [name, randomArray(dtype, dims[of(name)] * rows(name), next)]))
      const outputs = passes[pass].filter((name) => name.endsWith('Out'))
      const results = Object.fromEntries(outputs.map((name) => [name, guarded(dtype, dims[of(name)] * rows(name), 1)]))
      const arrays = Object.fromEntries(outputs.map((name) => [name, results[name]!.array]))
      native.contract(operation, { ...({ ...inputs, ...arrays } as unknown as { x: Numbers }), batch, wShared: true, threads: 2 })
      for (const first of [0, 16, batch - 16]) {
        const part = (name: string, array: Numbers) => (of(name) === 'w' ? array : array.slice(first * dims[of(name)], (first + 16) * dims[of(name)]))
        const single = Object.fromEntries(outputs.map((name) => [name, new constructors[dtype](dims[of(name)] * (of(name) === 'w' ? 1 : 16))]))
        const some = Object.fromEntries(Object.entries(inputs).map(([name, array]) => [name, part(name, array)]))
        native.contract(operation, { ...({ ...some, ...single } as unknown as { x: Numbers }), batch: 16, wShared: true, threads: 1 })
        for (const name of outputs) if (of(name) !== 'w') expect(sameBits(part(name, results[name]!.array), single[name]!), `${name} of items from ${first}, ${dtype}`).toBe(true)
      }
      for (const name of outputs) expect(results[name]!.intact(), name).toBe(true)
      if (outputs.includes('wOut' as never)) {
        const sets = (array: Numbers) => {
          const all = new constructors[dtype](batch * weightNumel)
          for (let item = 0; item < batch; ++item) all.set(array, item * weightNumel)
          return all
        }
        const each = new constructors[dtype](batch * weightNumel), some = Object.fromEntries(Object.entries(inputs).map(([name, array]) => [name, of(name) === 'w' ? sets(array) : array]))
        native.contract(operation, { ...({ ...some, wOut: each } as unknown as { x: Numbers }), batch, threads: 1 })
        const sum = new Float64Array(weightNumel)
        for (let i = 0; i < each.length; ++i) sum[i % weightNumel]! += each[i]!
        // A task's 256 items and more are added up one after the other, the tasks in double.
        expect(arrayError(results.wOut!.array, sum)).toBeLessThan(dtype === 'float32' ? 1e-5 : 1e-13)
      }
      native.dispose(operation)
    }
  })
})
