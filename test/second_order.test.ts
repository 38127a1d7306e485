// Second order: jvp and doubleBackward of every product against differences of first-order results.
import { describe, expect, test } from 'vitest'
import { products } from './reference'
import { random, randomArray } from './support'

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
const plus = (a: Float64Array, b: Float64Array, t: number) => a.map((v, i) => v + t * b[i]!)

// The forms are linear in each slot, so a central difference is exact for any step but for rounding: a step of 1, and 1e-12 of the
// sums of products that are compared.
const bar = 1e-12

describe.each(products)('$name', ({ make }) => {
  const irreps = '2x0e+2x1o+2x2e'
  const op = make(irreps, irreps, { dtype: 'float64' })
  const next = random(7)
  const draw = (length: number) => randomArray('float64', length, next)

  test.each([['both', 3, 3], ['x shared', 1, 3], ['y shared', 3, 1], ['no item', 0, 0]] as const)('%s', (_name, xBatch, yBatch) => {
    const batch = xBatch === 1 ? yBatch : xBatch
    const x = draw(xBatch * op.irrepsIn1.dim), y = draw(yBatch * op.irrepsIn2.dim), g = draw(batch * op.irrepsOut.dim)
    const ax = draw(x.length), ay = draw(y.length), ag = draw(g.length)
    const scale = 1 + dot(g, g) * Math.max(1, dot(x, x), dot(y, y))

    const tangent = op.jvp(x, y, undefined, { x: ax, y: ay })
    const forward = (t: number) => op.forward(plus(x, ax, t), plus(y, ay, t))
    const difference = forward(0.5).map((v, i) => v - forward(-0.5)[i]!)
    expect(tangent.every((v, i) => Math.abs(v - difference[i]!) <= bar * scale)).toBe(true)

    // The scalar whose gradients doubleBackward gives, and its derivative in one direction of each argument.
    const scalar = (u: Float64Array, v: Float64Array, w: Float64Array) => {
      const gradients = op.backward(u, v, undefined, w)
      return dot(ax, gradients.x) + dot(ay, gradients.y)
    }
    const second = op.doubleBackward(x, y, undefined, g, { x: ax, y: ay })
    const dx = draw(x.length), dy = draw(y.length)
    const inX = scalar(plus(x, dx, 0.5), y, g) - scalar(plus(x, dx, -0.5), y, g)
    const inY = scalar(x, plus(y, dy, 0.5), g) - scalar(x, plus(y, dy, -0.5), g)
    const inG = scalar(x, y, plus(g, ag, 0.5)) - scalar(x, y, plus(g, ag, -0.5))
    expect(Math.abs(dot(second.x, dx) - inX)).toBeLessThanOrEqual(bar * scale)
    expect(Math.abs(dot(second.y, dy) - inY)).toBeLessThanOrEqual(bar * scale)
    expect(Math.abs(dot(second.gradOut, ag) - inG)).toBeLessThanOrEqual(bar * scale)

    // A missing cotangent is zero.
    const zeros = new Float64Array(y.length)
    expect(op.doubleBackward(x, y, undefined, g, { x: ax })).toEqual(op.doubleBackward(x, y, undefined, g, { x: ax, y: zeros }))
    expect(op.jvp(x, y, undefined, {})).toEqual(new Float64Array(g.length))
  })

  test('bad cotangents and tangents', () => {
    const x = draw(op.irrepsIn1.dim), y = draw(op.irrepsIn2.dim), g = draw(op.irrepsOut.dim)
    expect(() => op.doubleBackward(x, y, undefined, g, { x: draw(1) })).toThrow(/cotangents.x: expected \d+ numbers, as many as x, got 1/)
    expect(() => op.jvp(x, y, undefined, { z: g } as never)).toThrow(/tangents.z: expected one of x, y/)
    expect(() => op.jvp(x, y, undefined, { y: new Float32Array(y.length) as never })).toThrow(/tangents.y: expected a Float64Array/)
  })
})
