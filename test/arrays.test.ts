// How every operation treats its arrays: batches, shared operands, layouts, alignment, threads, instruction sets.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { backends, Irreps, type DType, type Layout } from '../lib/index'
import { backward, forward, products, type AnyProduct, type Terms } from './reference'
import { arrayError, blockError, defaultBackend, dtypes, guarded, places, random, randomArray, relayout, root, sameBits, tolerance } from './support'

interface Arrays {
  x: any
  y: any
  v: any
}
const batchOf = (xBatch: number, yBatch: number) => (xBatch === 1 ? yBatch : xBatch)
function inputs(terms: Terms, dtype: DType, xBatch: number, yBatch: number): Arrays {
  return {
    x: randomArray(dtype, xBatch * terms.irrepsIn1.dim, random(1)),
    y: randomArray(dtype, yBatch * terms.irrepsIn2.dim, random(2)),
    v: randomArray(dtype, batchOf(xBatch, yBatch) * terms.irrepsOut.dim, random(3)),
  }
}

// Forward and backward into poisoned arrays between guard words; the largest of the errors.
function check(op: AnyProduct, terms: Terms, { x, y, v }: Arrays, offset = 0): number {
  const z = guarded(op.dtype as DType, v.length, offset), gx = guarded(op.dtype as DType, x.length, offset), gy = guarded(op.dtype as DType, y.length, offset + 1)
  expect(op.forward(x, y, undefined, { out: z.array })).toBe(z.array)
  const gradients = op.backward(x, y, undefined, v, { out: { x: gx.array, y: gy.array } })
  expect(gradients.x === gx.array && gradients.y === gy.array).toBe(true)
  expect([z, gx, gy].map((a) => a.intact())).toEqual([true, true, true])
  const expected = backward(terms, x, y, v)
  // A single item, such as the summed gradient of a shared operand, has blocks of one number, which may come out near zero from
  // terms of order 1 that cancel: there the largest value of all blocks is the scale.
  const error = (actual: ArrayLike<number>, reference: Float64Array, irreps: Irreps) =>
    reference.length === irreps.dim ? arrayError(actual, reference) : blockError(actual, reference, irreps)
  return Math.max(
    error(z.array, forward(terms, x, y), terms.irrepsOut),
    error(gx.array, expected.x, terms.irrepsIn1),
    error(gy.array, expected.y, terms.irrepsIn2),
  )
}

// Threads, instruction sets and streaming stores are the CPU's. A GPU has arrays of the host in memory of its own: where they begin does not matter there
// (device.test.ts has slices of its own arrays), and a few hundred items are several of its tiles.
const onCpu = defaultBackend !== 'cuda'

const small: [string, string] = ['1x0e+1x1o+1x2e', '1x0e+1x1o+1x2e']

describe.each(products)('$name', ({ name, make, terms }) => {
  const [in1, in2] = name.includes('elementwise') ? ['1x1o+1x0e+1x2e', '1x1o+1x1e+1x0o'] : small
  const of = (layout: Layout = 'mul_ir', a: string = in1!, b: string = in2!) => terms(new Irreps(a), new Irreps(b), layout)

  describe.each(dtypes)('%s', (dtype) => {
    test('any batch, and an operand of one item shared by all', () => {
      const t = of()
      using op = make(in1!, in2!, { dtype })
      for (const n of [0, 1, 2, 5, 15, 16, 17, 255, 256, 257, 300, 1024, 1031]) {
        for (const [xBatch, yBatch] of [[n, n], [1, n], [n, 1]] as const) {
          const error = check(op, t, inputs(t, dtype, xBatch, yBatch), n % 4)
          // A gradient summed over a thousand items of either sign loses a digit at most, which the bars have room for.
          expect(error, `x ${xBatch}, y ${yBatch}`).toBeLessThan(tolerance[dtype])
        }
      }
    })

    // Outputs from 512 KiB on are streamed, whole cache lines at a time: a row of dim numbers starts at every phase of a line that is a
    // multiple of gcd(dim, line), shifted by the array's own offset.
    test.runIf(onCpu)('large outputs, at every place within a cache line', () => {
      const t = of()
      using op = make(in1!, in2!, { dtype, threads: 2 })
      const size = dtype === 'float32' ? 4 : 8
      const [, some] = [0, Math.ceil((600 << 10) / (size * Math.min(t.irrepsOut.dim, t.irrepsIn1.dim + t.irrepsIn2.dim))) + 37]
      const a = inputs(t, dtype, some, some)
      const expectedZ = forward(t, a.x, a.y), expected = backward(t, a.x, a.y, a.v)
      for (const offset of dtype === 'float32' ? [0, 1, 3, 7, 8, 15] : [0, 1, 2, 5, 7]) {
        const z = guarded(dtype, a.v.length, offset), x = guarded(dtype, a.x.length, offset + 2), y = guarded(dtype, a.y.length, offset + 5)
        op.forward(a.x, a.y, undefined, { out: z.array })
        op.backward(a.x, a.y, undefined, a.v, { out: { x: x.array, y: y.array } })
        expect([z, x, y].map((g) => g.intact()), `offset ${offset}`).toEqual([true, true, true])
        expect(blockError(z.array, expectedZ, t.irrepsOut), `offset ${offset}`).toBeLessThan(tolerance[dtype])
        expect(blockError(x.array, expected.x, t.irrepsIn1), `offset ${offset}`).toBeLessThan(tolerance[dtype])
        expect(blockError(y.array, expected.y, t.irrepsIn2), `offset ${offset}`).toBeLessThan(tolerance[dtype])
      }
    })

    test('large batches with a shared operand, whose gradient is summed', () => {
      const t = of()
      const n = dtype === 'float32' ? 20_011 : 10_007
      for (const [xBatch, yBatch] of [[1, n], [n, 1]] as const) {
        const a = inputs(t, dtype, xBatch, yBatch)
        using op = make(in1!, in2!, { dtype })
        // Sums of ten thousand terms of either sign: errors grow by less than the square root of their number, hundredfold, and so do the sums.
        expect(check(op, t, a, 1)).toBeLessThan(tolerance[dtype])
      }
    })
  })

  test.each([1, 2, 3, 5, 17])('multiplicity %i: the layouts hold the same numbers', (mul) => {
    const channels = (irreps: string) => irreps.replaceAll('1x', `${mul}x`)
    const [a, b] = [channels(in1!), channels(in2!)]
    const t = of('mul_ir', a, b)
    const { x, y, v } = inputs(t, 'float64', 7, 7)
    const moved = (array: Float64Array, irreps: Irreps) => relayout(array, irreps, 'mul_ir', 'ir_mul')
    using op = make(a, b, { dtype: 'float64' }), other = make(a, b, { dtype: 'float64', layout: 'ir_mul' })
    expect(check(op, t, { x, y, v })).toBeLessThan(tolerance.float64)
    const [mx, my, mv] = [moved(x, t.irrepsIn1), moved(y, t.irrepsIn2), moved(v, t.irrepsOut)]
    expect(check(other, of('ir_mul', a, b), { x: mx, y: my, v: mv })).toBeLessThan(tolerance.float64)
    expect(blockError(other.forward(mx, my), moved(op.forward(x, y) as Float64Array, t.irrepsOut), t.irrepsOut)).toBeLessThan(tolerance.float64)
  })

  test.runIf(onCpu)('results do not depend on the number of threads, to the bit', () => {
    const t = of()
    for (const dtype of dtypes) {
      for (const [xBatch, yBatch] of [[1031, 1031], [1, 1031], [1031, 1], [12_011, 12_011], [1, 12_011], [12_011, 1]] as const) {
        const { x, y, v } = inputs(t, dtype, xBatch, yBatch)
        const results = [1, 2, 3, 7, 64].map((threads) => {
          using op = make(in1!, in2!, { dtype, threads })
          return [op.forward(x, y), ...Object.values(op.backward(x, y, undefined, v))]
        })
        for (const other of results.slice(1)) expect(other.every((array, i) => sameBits(array, results[0]![i]!)), `${dtype} ${xBatch} ${yBatch}`).toBe(true)
      }
    }
  })

  test('needs: a gradient alone is the same one, and the other is absent', () => {
    const t = of()
    using op = make(in1!, in2!, { dtype: 'float64' })
    for (const [xBatch, yBatch] of [[300, 300], [1, 300], [300, 1], [12_011, 12_011]] as const) {
      const { x, y, v } = inputs(t, 'float64', xBatch, yBatch)
      const gradients = op.backward(x, y, undefined, v)
      for (const [slot, other] of [['x', 'y'], ['y', 'x']] as const) {
        const { array, intact } = guarded('float64', slot === 'x' ? x.length : y.length, 3)
        const alone = op.backward(x, y, undefined, v, { needs: { [other]: false }, out: { [slot]: array } })
        expect(Object.keys(alone)).toEqual([slot])
        expect(op.backward(x, y, undefined, v, { needs: { [other]: false, [slot]: undefined } })).toEqual(alone)
        expect(alone[slot]).toBe(array)
        expect(intact()).toBe(true)
        // One pass for both may order its sums differently.
        expect(blockError(array, gradients[slot], slot === 'x' ? t.irrepsIn1 : t.irrepsIn2)).toBeLessThan(tolerance.float64)
      }
      expect(op.backward(x, y, undefined, v, { needs: { x: false, y: false } })).toEqual({})
    }
  })

  test('inputs at any offset, the same array twice, and shared memory', () => {
    const t = of('mul_ir', in1!, in1!)
    using op = make(in1!, in1!, { dtype: 'float32' })
    const whole = randomArray('float32', 40 * t.irrepsIn1.dim + 8, random(4))
    for (const offset of [0, 1, 3, 7]) {
      const x = whole.subarray(offset, offset + 33 * t.irrepsIn1.dim)
      const v = randomArray('float32', 33 * t.irrepsOut.dim, random(5))
      const y = whole.subarray(8 - offset, 8 - offset + x.length)
      expect(check(op, t, { x, y, v })).toBeLessThan(tolerance.float32)
      // Antisymmetric paths leave only a rounding error of x with itself, so the same bits are asked for and not an accuracy.
      expect(sameBits(op.forward(x, x), op.forward(x, x.slice()))).toBe(true)
      const share = (array: Float32Array) => {
        const copy = new Float32Array(new SharedArrayBuffer(4 * array.length))
        copy.set(array)
        return copy
      }
      const out = share(new Float32Array(v.length).fill(NaN))
      op.forward(share(x), share(x), undefined, { out })
      expect(sameBits(out, op.forward(x, x))).toBe(true)
    }
  })
})

// Rows of 1 to 40 numbers: the shortest fill a line together, the longest more than two.
test.each(dtypes)('rows of every length, streamed, %s', (dtype) => {
  const full = products.find(({ name }) => name === 'CGTP full, sparse')!
  for (let dim = 1; dim <= 40; dim++) {
    const [in1, in2] = [`${dim}x0e`, '1x0e']
    const t = full.terms(new Irreps(in1), new Irreps(in2), 'mul_ir')
    using op = full.make(in1, in2, { dtype, threads: 1 + (dim % 3) })
    const n = onCpu ? Math.ceil((512 << 10) / (dim * (dtype === 'float32' ? 4 : 8))) + (dim % 7) * 11 : 290 + dim
    expect(check(op, t, inputs(t, dtype, n, n), dim % 16), `dim ${dim}`).toBeLessThan(tolerance[dtype])
    // Above, both gradients of a pass were long; here only the second input's rows are.
    using swapped = full.make(in2, in1, { dtype, threads: 2 })
    const s = full.terms(new Irreps(in2), new Irreps(in1), 'mul_ir')
    expect(check(swapped, s, inputs(s, dtype, n, n), (dim * 5) % 16), `dim ${dim}`).toBeLessThan(tolerance[dtype])
  }
})

test.each(products.filter(({ channelwise }) => channelwise))('$name: rows of many lengths, streamed', ({ make, terms }) => {
  for (const [in1, in2] of [['0e', '0e'], ['1o', '0e'], ['1x0e+1x1o', '1o'], ['2e', '1x0e+1x1o'], ['3x1o+3x0e', '3x1o'], ['1x1o+1x1e', '1x1o+1x1e'], ['5x0e+5x1o', '5x0e+5x1o']] as const) {
    for (const dtype of dtypes) {
      const t = terms(new Irreps(in1), new Irreps(in2), 'mul_ir')
      using op = make(in1, in2, { dtype })
      const n = onCpu ? Math.ceil((540 << 10) / (Math.min(t.irrepsOut.dim, t.irrepsIn1.dim + t.irrepsIn2.dim) * (dtype === 'float32' ? 4 : 8))) + 13 : 301
      expect(check(op, t, inputs(t, dtype, n, n), 3), `${in1} x ${in2} ${dtype}`).toBeLessThan(tolerance[dtype])
    }
  }
})

test('places and relayout themselves: a block of three vectors', () => {
  expect(places(new Irreps('1x0e+3x1o'), 'ir_mul')).toEqual([[[0]], [[1, 4, 7], [2, 5, 8], [3, 6, 9]]])
  expect([...relayout(Float64Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8), new Irreps('3x1o'), 'mul_ir', 'ir_mul')]).toEqual([0, 3, 6, 1, 4, 7, 2, 5, 8])
})

describe.runIf(onCpu)('instruction sets', () => {
  const run = (variant: string) =>
    promisify(execFile)(process.execPath, ['--import', 'tsx', 'test/variants.ts'], { cwd: root, env: { ...process.env, EQUITENSOR_CPU: variant } })

  test.each(backends().cpu.instructionSets)('%s computes the same', async (variant) => {
    const { used, errors } = JSON.parse((await run(variant)).stdout)
    expect(used).toBe(variant)
    for (const [name, dtype, error] of errors as [string, DType, number][]) expect(error, `${name} ${dtype}`).toBeLessThan(tolerance[dtype])
    expect(errors.length).toBeGreaterThan(50)
  })

  test('an unknown one is an error that names it and the others', async () => {
    await expect(run('sse9')).rejects.toThrow(/EquitensorError: EQUITENSOR_CPU: expected one of .*baseline.*, got "sse9"[^]*code: 'invalid_option'/)
  })
})
