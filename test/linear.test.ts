// Linear against e3nn's definition: out_w = sum over paths of coefficient sum_u weight[u, w] x_u, component by component.
import { describe, expect, test } from 'vitest'
import { backends, DeviceArray, Irreps, Linear, type Instruction, type Layout } from '../lib/index'
import { caught } from './caught'
import { instructionTerms, weightedPasses } from './reference'
import { arrayError, blockError, defaultBackend, dtypes, layouts, random, randomArray, tolerance } from './support'
import { thirdOrderErrors, type Second } from './third_order'

// e3nn/o3/_linear.py: instructions in the order of (in, out), path weight alpha^(-1/2). As a product with the scalar 1, wigner3j(l, 0, l) being the identity
// over sqrt(2 l + 1).
function linearTerms(in1: Irreps, out: Irreps, layout: Layout, normalization: 'element' | 'path') {
  const paths = in1.blocks.flatMap(({ ir }, i) =>
    out.blocks.flatMap((b, o): Instruction[] => (ir.l === b.ir.l && ir.p === b.ir.p ? [{ in1: i, in2: 0, out: o, mode: 'uvw', hasWeight: true }] : [])),
  )
  const coefficients = paths.map((path) => {
    const others = paths.filter((other) => other.out === path.out)
    const alpha = others.reduce((sum, other) => sum + in1.blocks[normalization === 'element' ? other.in1 : path.in1]!.mul, 0)
    return Math.sqrt((2 * in1.blocks[path.in1]!.ir.l + 1) / alpha)
  })
  return instructionTerms([in1, new Irreps('0e'), out], layout, paths, coefficients)
}

const problems: [in1: string, out: string][] = [
  ['4x0e+16x1o', '8x0e+8x1o'], ['1x0e', '1x0e'], ['3x0e+2x1o+7x0e+1x2e', '2x2e+5x0e+1x0e+3x1o'], ['0x1o+17x1e+3x0o', '9x1e+0x1o'], ['2x11o', '3x11o'],
]

describe.each(problems)('%s -> %s', (a, b) => {
  const in1 = new Irreps(a), out = new Irreps(b)

  test.each(['element', 'path'] as const)("all passes, normalisation '%s'", (pathNormalization) => {
    for (const dtype of dtypes) {
      for (const layout of layouts) {
        for (const [batch, sets] of [[5, 1], [5, 5], [1, 1], [0, 1], [0, 0]] as const) {
          using op = new Linear(a, b, { dtype, layout, pathNormalization })
          const terms = linearTerms(in1, out, layout, pathNormalization)
          expect(op.weightNumel).toBe(terms.weightNumel)
          const next = random(1), draw = (length: number) => randomArray(dtype, length, next) as any
          const [x, w, z] = [draw(batch * in1.dim), draw(sets * op.weightNumel), draw(batch * out.dim)]
          const [ax, aw] = [draw(x.length), draw(w.length)], y = Float64Array.of(1), bar = tolerance[dtype]
          const expected = weightedPasses(terms, { x, y, w, z }, batch, { x: ax, w: aw })
          const first = op.backward(x, w, z), second = op.doubleBackward(x, w, z, { x: ax, weight: aw })
          expect([Object.keys(first), Object.keys(second)]).toEqual([['x', 'weight'], ['x', 'weight', 'gradOut']])
          expect(blockError(op.forward(x, w), expected.first.z, out)).toBeLessThan(bar)
          expect(blockError(first.x, expected.first.x, in1)).toBeLessThan(bar)
          expect(arrayError(first.weight, expected.first.w)).toBeLessThan(bar)
          expect(blockError(second.x, expected.second.x, in1)).toBeLessThan(bar)
          expect(arrayError(second.weight, expected.second.w)).toBeLessThan(bar)
          expect(blockError(second.gradOut, expected.second.z, out)).toBeLessThan(bar)
          expect(blockError(op.jvp(x, w, { x: ax, weight: aw }), expected.second.z, out)).toBeLessThan(bar)
        }
      }
    }
  })
})

// The composition: forward passes of one direction's x and the other's weights, and backward passes of a direction and that of gradOut.
test.each([['a set for each item', 4], ['shared', 1]])('third order, by composition: weights %s', (_name, sets) => {
  using op = new Linear('4x0e+3x1o', '2x0e+5x1o', { dtype: 'float64' })
  const next = random(3), draw = (length: number) => randomArray('float64', length, next)
  const second: Second = ({ x, weight, gradOut }, along) => ({ ...op.doubleBackward(x!, weight!, gradOut!, along) })
  const at = { x: draw(4 * op.irrepsIn.dim), weight: draw(sets * op.weightNumel), gradOut: draw(4 * op.irrepsOut.dim) }
  for (const [slot, error] of thirdOrderErrors(second, at)) expect(error, slot).toBeLessThan(tolerance.float64)
})

test('says what it is: paths in the order of the weights', () => {
  using op = new Linear('3x0e+7x0e+2x1o', '4x1o+5x0e', { layout: 'ir_mul' })
  expect(op).toMatchObject({ weightNumel: 15 + 35 + 8, backend: defaultBackend, dtype: 'float32', layout: 'ir_mul' })
  expect(op.paths.map((p) => [p.in, p.out])).toEqual([[0, 1], [1, 1], [2, 0]])
  op.paths.forEach(({ coefficient }, i) => expect(coefficient).toBeCloseTo([10, 10, 2][i]! ** -0.5, 14))
  expect(op.cost.forward.flops).toBeGreaterThan(0)
})

test('parts of the gradients, into given arrays, added; asynchronous calls', async () => {
  using op = new Linear('2x0e+3x1o', '4x1o+1x0e', { dtype: 'float64' })
  const next = random(2), draw = (length: number) => randomArray('float64', length, next)
  const x = draw(5 * 11), w = draw(op.weightNumel), z = draw(5 * 13), a = { x: draw(x.length), weight: draw(w.length) }
  const first = op.backward(x, w, z), second = op.doubleBackward(x, w, z, a)
  expect(op.backward(x, w, z, { needs: { weight: false } })).toEqual({ x: first.x })
  expect(op.doubleBackward(x, w, z, a, { needs: { x: false, gradOut: false } })).toEqual({ weight: second.weight })
  const out = { x: first.x.slice() }
  expect(op.backward(x, w, z, { needs: { weight: false }, out, accumulate: true }).x).toBe(out.x)
  expect(out.x).toEqual(first.x.map((v) => 2 * v))
  const all = await Promise.all([op.forwardAsync(x, w), op.backwardAsync(x, w, z), op.doubleBackwardAsync(x, w, z, a), op.jvpAsync(x, w, a)])
  expect(all).toEqual([op.forward(x, w), first, second, op.jvp(x, w, a)])
  await expect(op.forwardAsync(x, w, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' })
})

test.runIf(backends().cuda.available)('on the device, where the scalar is as well: the numbers of the host arrays', async () => {
  for (const dtype of dtypes) {
    using op = new Linear('2x0e+3x1o', '4x1o+1x0e', { dtype, backend: 'cuda' })
    const next = random(2), draw = (length: number) => randomArray(dtype, length, next) as any
    const x = draw(5 * 11), w = draw(op.weightNumel), z = draw(5 * 13), a = { x: draw(x.length), weight: draw(w.length) }
    const [dx, dw, dz, dax, daw] = [x, w, z, a.x, a.weight].map((array) => DeviceArray.from(array) as any), da = { x: dax, weight: daw }
    const down = (results: object) => Object.fromEntries(Object.entries(results).map(([name, array]) => [name, array.download()]))
    expect(op.forward(dx, dw).download()).toEqual(op.forward(x, w))
    expect(down(op.backward(dx, dw, dz))).toEqual(op.backward(x, w, z))
    expect(down(op.doubleBackward(dx, dw, dz, da))).toEqual(op.doubleBackward(x, w, z, a))
    expect((await op.jvpAsync(dx, dw, da)).download()).toEqual(op.jvp(x, w, a))
    expect(caught(() => op.forward(dx, w)).code).toBe('wrong_kind')
  }
})

test('errors', () => {
  const code = (action: () => unknown) => {
    const { code, argument } = caught(action)
    return [code, argument]
  }
  expect(code(() => new Linear('2x0e', '2x1o'))).toEqual(['no_path', 'irrepsOut'])
  expect(code(() => new Linear('2x0e', '2x0e+1x0o'))).toEqual(['unreachable_output', 'irrepsOut'])
  expect(code(() => new Linear('0x1o+2x0e', '2x0e+1x1o'))).toEqual(['unreachable_output', 'irrepsOut'])
  // As many channels in two blocks as in one.
  for (const { coefficient } of new Linear('3x0e+1o+5x0e', '2x0e').paths) expect(coefficient).toBeCloseTo(8 ** -0.5, 14)
  expect(code(() => new Linear('', '2x0e'))).toEqual(['invalid_irreps', 'irrepsIn'])
  expect(code(() => new Linear('0e', ''))).toEqual(['invalid_irreps', 'irrepsOut'])
  expect(code(() => new Linear('12e', '12e'))).toEqual(['degree_limit', 'irrepsIn'])
  expect(code(() => new Linear('0e', '0e', { biases: true } as object))).toEqual(['invalid_option', 'options.biases'])
  const op = new Linear('2x0e', '3x0e'), x = new Float32Array(4), w = new Float32Array(6), z = new Float32Array(6)
  expect(code(() => op.forward(x, undefined as never))).toEqual(['weight_missing', 'weight'])
  expect(code(() => op.forward(x, w.subarray(1)))).toEqual(['wrong_length', 'weight'])
  expect(caught(() => op.forward(x.slice(1), w)).expected).toMatch(/irrepsIn\.dim/)
  expect(code(() => op.backward(x, w, z, { needs: { y: true } as object }))).toEqual(['invalid_option', 'needs.y'])
  expect(code(() => op.backward(x, w, z, { out: { y: x } as object }))).toEqual(['invalid_option', 'out.y'])
  // What is told is what this operation has, not what the product inside has.
  for (const wrong of [{ needs: { gradOut: true } }, { out: { gradOut: z } }, { needs: { y: true } }]) {
    expect(() => op.backward(x, w, z, wrong as object)).toThrow(/expected one of x, weight, got/)
  }
  expect(() => op.doubleBackward(x, w, z, { x }, { needs: { y: true } as object })).toThrow(/expected one of x, weight, gradOut, got/)
  expect(() => op.backward(x, w, z, { signal: AbortSignal.abort() } as object)).toThrow(/^options.signal: expected one of needs, out, accumulate, got/)
  expect(code(() => op.jvp(x, w, { y: x } as object))).toEqual(['invalid_option', 'tangents.y'])
  expect(code(() => op.doubleBackward(x, w, z, { y: x } as object))).toEqual(['invalid_option', 'cotangents.y'])
  op.dispose()
  expect(caught(() => op.forward(x, w)).code).toBe('disposed')
})
