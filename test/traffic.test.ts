// What the CUDA kernels do to global memory, counted by the emulation: one launch a pass, every operand read from memory and every result written once.
import { describe, expect, test } from 'vitest'
import { cases } from '../bench/problems'
import {
  ClebschGordanTensorProduct, DeviceArray, GauntPower, GauntProduct, GauntTensorProduct, MatrixTensorProduct, sphericalHarmonics, SymmetricContraction, TensorSquare, type Irreps,
} from '../lib/index'
import { native } from '../lib/native'
import { layouts, random, randomArray } from './support'

const counting = native.cuda?.counting
// Not a multiple of the tiles' 32 items.
const batch = 70

describe.runIf(counting)('counted traffic', () => {
  test.each(cases({ L: [1, 2, 3, 4, 6] }).map((c) => [c.name, c] as const))('%s', (name, { noPath, make, L }) => {
    // At once; or, where a tile for all results of high degree would be small, result by result or term by term, what is read again then from L2.
    const isStepped = L > 3 && !/cgtp/.test(name)
    const options = { dtype: 'float32', layout: 'mul_ir', backend: 'cuda' } as const
    if (noPath) {
      expect(() => make(options)).toThrow(expect.objectContaining({ code: 'no_path' }))
      return
    }
    const op = make(options) as any
    const array = (of: Irreps, seed: number) => DeviceArray.from(randomArray('float32', of.dim * batch, random(seed)))
    using x = array(op.irrepsIn1, 1), y = array(op.irrepsIn2, 2), v = array(op.irrepsOut, 3)
    const count = (action: () => { dispose(): void }[]) => {
      counting!(true)
      const results = action()
      // The emulation is lazy: work is done when somebody waits for it.
      for (const result of results) (result as any).download()
      const counts = counting!(false)
      for (const result of results) result.dispose()
      return counts
    }
    const bytes = (...arrays: { length: number }[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)

    const forward = count(() => [op.forward(x, y)])
    expect(forward.launches).toBe(1)
    expect([forward.loaded.unique, forward.stored.unique]).toEqual([bytes(x, y), bytes(v)])
    expect([forward.loaded.requested, forward.stored.requested]).toEqual([bytes(x, y), bytes(v)])

    const backward = count(() => Object.values(op.backward(x, y, undefined, v)) as any)
    expect(backward.launches).toBe(1)
    expect([backward.loaded.unique, backward.stored.unique]).toEqual([bytes(x, y, v), bytes(x, y)])
    const resultByResult = [bytes(x, y, v, v), bytes(x, y)]
    expect([[bytes(x, y, v), bytes(x, y)], ...(isStepped ? [resultByResult] : [])]).toContainEqual([backward.loaded.requested, backward.stored.requested])

    using ax = array(op.irrepsIn1, 4), ay = array(op.irrepsIn2, 5)
    const second = count(() => Object.values(op.doubleBackward(x, y, undefined, v, { x: ax, y: ay })) as any)
    expect(second.launches).toBe(1)
    expect([second.loaded.unique, second.stored.unique]).toEqual([bytes(x, y, v, ax, ay), bytes(x, y, v)])
    // Of gradOut's gradient there are two terms.
    const byResult = [bytes(x, y, v, v, ax, ax, ay, ay), bytes(x, y, v)], byTerm = [bytes(x, y, v, v, v, ax, ax, ay, ay), bytes(x, y, v, v)]
    expect([[bytes(x, y, v, ax, ay), bytes(x, y, v)], ...(isStepped ? [byResult, byTerm] : [])]).toContainEqual([second.loaded.requested, second.stored.requested])
  })

  test.each(layouts)('a square reads its input once, %s', (layout) => {
    const op = new TensorSquare('4x0e+3x1o+2x2e', { layout, backend: 'cuda' })
    const array = (of: Irreps, seed: number) => DeviceArray.from(randomArray('float32', of.dim * batch, random(seed)))
    using x = array(op.irrepsIn, 1), v = array(op.irrepsOut, 2), ax = array(op.irrepsIn, 3)
    const passes: [() => DeviceArray[], read: number, written: number][] = [
      [() => [op.forward(x)], x.length, v.length],
      [() => [op.backward(x, undefined, v).x], x.length + v.length, x.length],
      [() => Object.values(op.doubleBackward(x, undefined, v, { x: ax })), 2 * x.length + v.length, x.length + v.length],
      [() => [op.jvp(x, undefined, { x: ax })], 2 * x.length, v.length],
    ]
    for (const [action, read, written] of passes) {
      counting!(true)
      for (const result of action()) {
        result.download()
        result.dispose()
      }
      const { launches, loaded, stored } = counting!(false)
      expect([launches, loaded.requested, loaded.unique, stored.requested, stored.unique]).toEqual([1, 4 * read, 4 * read, 4 * written, 4 * written])
    }
  })

  test.each(layouts)('channels of the block form of the matrix product, %s', (layout) => {
    const op = new MatrixTensorProduct('8x0e+8x1o+8x2e', '8x0e+8x1o+8x2e', { form: 'block', layout, backend: 'cuda' })
    using x = DeviceArray.from(randomArray('float32', op.irrepsIn1.dim * batch, random(1))), y = DeviceArray.from(randomArray('float32', op.irrepsIn2.dim * batch, random(2)))
    counting!(true)
    using z = op.forward(x, y)
    z.download()
    const { launches, loaded, stored } = counting!(false)
    expect([launches, loaded.requested, loaded.unique, stored.requested, stored.unique]).toEqual([1, 4 * (x.length + y.length), 4 * (x.length + y.length), 4 * z.length, 4 * z.length])
  })

  test.each((['grid', 'fourier'] as const).flatMap((algorithm) => layouts.map((layout) => [algorithm, layout] as const)))('channels, GTP by %s, %s', (algorithm, layout) => {
    const op = new GauntTensorProduct('8x0e+8x1o+8x2e', '8x0e+8x1o+8x2e', { dtype: 'float32', layout, algorithm, backend: 'cuda' })
    using x = DeviceArray.from(randomArray('float32', op.irrepsIn1.dim * batch, random(1))), y = DeviceArray.from(randomArray('float32', op.irrepsIn2.dim * batch, random(2)))
    counting!(true)
    using z = op.forward(x, y)
    z.download()
    const { loaded, stored } = counting!(false)
    expect([loaded.requested, loaded.unique, stored.requested, stored.unique]).toEqual([4 * (x.length + y.length), 4 * (x.length + y.length), 4 * z.length, 4 * z.length])
  })

  // Multiplicities that fit packs of channels and one that does not; blocks in pieces, which are read piece by piece once more, from a cache.
  const channelwise: [in1: string, in2: string, keep?: string][] = [
    ['128x0e+128x1o', '0e+1o+2e+3o', '0e+1o+2e'], ['32x0o+32x0e+32x1o+32x1e+32x2o+32x2e', '0e+1o+2e', '0o+0e+1o+1e+2o+2e'], ['89x0e', '0e+1o+2e+3o'], ['16x7o', '7o', '7e'],
  ]
  test.each(channelwise.flatMap((irreps) => layouts.map((layout) => [...irreps.slice(0, 2), layout, irreps[2]] as const)))('channelwise, %s x %s, %s', (in1, in2, layout, keep) => {
    using op = ClebschGordanTensorProduct.channelwise(in1!, in2!, keep, { layout: layout as 'mul_ir', backend: 'cuda' })
    const items = 9, array = (length: number, seed: number) => DeviceArray.from(randomArray('float32', length * items, random(seed)))
    const operands = (seed: number) => ({ x: array(op.irrepsIn1.dim, seed), y: array(op.irrepsIn2.dim, seed + 1), weight: array(op.weightNumel, seed + 2) })
    const { x, y, weight } = operands(1), v = array(op.irrepsOut.dim, 4), a = operands(5)
    const bytes = (...arrays: { length: number }[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)
    for (const [action, reads, writes] of [
      [() => [op.forward(x, y, weight)], [x, y, weight], [v]],
      [() => Object.values(op.backward(x, y, weight, v)), [x, y, weight, v], [x, y, weight]],
      [() => Object.values(op.doubleBackward(x, y, weight, v, a)), [x, y, weight, v, a.x, a.y, a.weight], [x, y, weight, v]],
      [() => [op.jvp(x, y, weight, a)], [x, y, weight, a.x, a.y, a.weight], [v]],
    ] as [() => DeviceArray[], DeviceArray[], DeviceArray[]][]) {
      counting!(true)
      for (const result of action()) result.download()
      const { launches, loaded, stored } = counting!(false)
      expect([launches, loaded.unique, stored.unique]).toEqual([1, bytes(...reads), bytes(...writes)])
      // To the gradient of a weight of a block in pieces the next piece adds.
      if (in1 !== '16x7o' || !writes.includes(weight)) expect(stored.requested).toBe(bytes(...writes))
    }
  })

  test.each(layouts)('fully connected, %s', (layout) => {
    using op = ClebschGordanTensorProduct.fullyConnected('10x1o+10x1e+48x0e', '0e+1o', '10x1o+10x1e+48x0e', { layout, backend: 'cuda' })
    const items = 9, array = (length: number, seed: number) => DeviceArray.from(randomArray('float32', length * items, random(seed)))
    const x = array(op.irrepsIn1.dim, 1), y = array(op.irrepsIn2.dim, 2), weight = array(op.weightNumel, 3), v = array(op.irrepsOut.dim, 4)
    const bytes = (...arrays: { length: number }[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)
    for (const [action, reads, writes] of [
      [() => [op.forward(x, y, weight)], [x, y, weight], [v]],
      [() => Object.values(op.backward(x, y, weight, v)), [x, y, weight, v], [x, y, weight]],
    ] as [() => DeviceArray[], DeviceArray[], DeviceArray[]][]) {
      counting!(true)
      for (const result of action()) result.download()
      const { launches, loaded, stored } = counting!(false)
      expect([launches, loaded.unique, stored.unique]).toEqual([1, bytes(...reads), bytes(...writes)])
    }
  })

  // Channels that fill packs and ones that do not; several nodes a tile, and several tiles a node.
  test.each([128, 200, 12, 3].flatMap((mul) => layouts.map((layout) => [mul, layout] as const)))('symmetric contraction, %i channels, %s', (mul, layout) => {
    const irreps = (list: string[]) => list.map((ir) => `${mul}x${ir}`).join('+')
    using op = new SymmetricContraction(irreps(['0e', '1o', '2e']), irreps(['0e', '1o']), { layout, backend: 'cuda', numSpecies: 2 })
    const nodes = 30, array = (length: number, seed: number) => DeviceArray.from(randomArray('float32', length, random(seed)))
    const species = Int32Array.from({ length: nodes }, (_, n) => n % 2)
    const operands = (seed: number) => ({ x: array(op.irrepsIn.dim * nodes, seed), weight: array(2 * op.weightNumel, seed + 1) })
    const { x, weight } = operands(1), v = array(op.irrepsOut.dim * nodes, 3), a = operands(4)
    const bytes = (...arrays: { length: number }[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)
    op.forward(x, species, weight).download() // by then the species are there
    for (const [action, launches, reads, writes] of [
      [() => [op.forward(x, species, weight)], 1, [x, weight], [v]],
      [() => [op.backward(x, species, weight, v, { needs: { weight: false } }).x], 1, [x, weight, v], [x]],
      [() => Object.values(op.doubleBackward(x, species, weight, v, a, { needs: { weight: false } })), 1, [x, weight, v, a.x, a.weight], [x, v]],
      [() => [op.jvp(x, species, weight, a)], 1, [x, weight, a.x, a.weight], [v]],
      [() => Object.values(op.backward(x, species, weight, v)), 2, [x, weight, v], [x, weight]],
      [() => Object.values(op.doubleBackward(x, species, weight, v, a)), 2, [x, weight, v, a.x, a.weight], [x, weight, v]],
    ] as [() => DeviceArray[], number, DeviceArray[], DeviceArray[]][]) {
      counting!(true)
      for (const result of action()) {
        result.download()
        result.dispose()
      }
      const counts = counting!(false)
      expect(counts.launches).toBe(launches)
      // A gradient of the weights is summed by a second kernel, which reads what the first one has written.
      const sums = counts.stored.unique - bytes(...writes)
      // Of two paths all values are zero, those of l = 1 from a vector with itself and from l = 2 with itself: their weights are not read.
      const unread = 2 * mul * 2 * 4 * reads.filter(({ length }) => length === weight.length).length
      expect(counts.loaded.unique).toBe(bytes(...reads) + sums - unread)
      if (launches === 1) expect(sums).toBe(0)
      else expect(sums).toBeGreaterThan(0)
    }
  })

  test.each(layouts)('Gaunt products and powers, %s', (layout) => {
    const irreps = '8x0e+8x1o+8x2e', options = { layout, irrepsOut: '8x0e+8x1o', backend: 'cuda' } as const
    using product = new GauntProduct([irreps, irreps, irreps], options)
    using power = new GauntPower(irreps, 3, options)
    const array = (of: Irreps, seed: number) => DeviceArray.from(randomArray('float32', of.dim * batch, random(seed)))
    const draw = (seed: number) => product.irrepsIn.map((of, i) => array(of, seed + i)), x = draw(1), a = draw(4), v = array(product.irrepsOut, 7)
    const bytes = (...arrays: { length: number }[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)
    const of = ({ x, gradOut }: { x: DeviceArray[]; gradOut: DeviceArray }) => [...x, gradOut]
    for (const [action, reads, writes] of [
      [() => [product.forward(x)], x, [v]],
      [() => product.backward(x, v).x, [...x, v], x],
      [() => of(product.doubleBackward(x, v, { x: a })), [...x, ...a, v], [...x, v]],
      [() => [power.forward(x[0]!)], [x[0]], [v]],
      [() => [power.backward(x[0]!, v).x], [x[0], v], [x[0]]],
      [() => Object.values(power.doubleBackward(x[0]!, v, { x: a[0]! })), [x[0], a[0], v], [x[0], v]],
    ] as [() => DeviceArray[], DeviceArray[], DeviceArray[]][]) {
      counting!(true)
      for (const result of action()) {
        result.download()
        result.dispose()
      }
      const { launches, loaded, stored } = counting!(false)
      expect([launches, loaded.requested, loaded.unique, stored.requested, stored.unique]).toEqual([1, bytes(...reads), bytes(...reads), bytes(...writes), bytes(...writes)])
    }
  })

  test.each([0, 2, 4, 8, 11])('spherical harmonics, lmax %i', (lmax) => {
    const array = (dim: number, seed: number) => DeviceArray.from(randomArray('float32', dim * batch, random(seed)))
    using v = array(3, 1), g = array((lmax + 1) ** 2, 2), t = array(3, 3)
    const { backward, doubleBackward, jvp } = sphericalHarmonics
    const passes: [() => DeviceArray[], reads: DeviceArray[], writes: DeviceArray[]][] = [
      [() => [sphericalHarmonics(lmax, v)], [v], [g]],
      [() => [backward(lmax, v, g)], [v, g], [v]],
      [() => Object.values(doubleBackward(lmax, v, g, t)), [v, g, t], [v, g]],
      [() => [jvp(lmax, v, t)], [v, t], [g]],
    ]
    for (const [run, reads, writes] of passes) {
      counting!(true)
      for (const result of run()) {
        result.download()
        result.dispose()
      }
      const { launches, loaded, stored } = counting!(false)
      const bytes = (arrays: DeviceArray[]) => arrays.reduce((sum, a) => sum + 4 * a.length, 0)
      expect(launches).toBe(1)
      expect([loaded.requested, loaded.unique, stored.requested, stored.unique]).toEqual([bytes(reads), bytes(reads), bytes(writes), bytes(writes)])
    }
  })
})
