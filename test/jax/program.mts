// Run by test/jax.test.ts: prints what the test asserts.
import * as jax from '@jax-js/jax'
import { ClebschGordanTensorProduct, Convolution, EquitensorError, GauntTensorProduct, Graph, Linear, TensorSquare } from 'equitensor'
import { convolution, harmonics, jaxOperations, type JaxFunction } from 'equitensor/jax'

jax.defaultDevice('cpu')
const { numpy: np } = jax
const { vjp, vjpOfVjp, jvp } = jaxOperations(jax)

let seed = 1
const random = () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 31) - 1
type Input = { shape: number[]; values: Float32Array<ArrayBuffer> }
const input = (...shape: number[]): Input => ({ shape, values: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random) })
const arrays = (inputs: Input[]) => inputs.map(({ shape, values }) => np.array(values, { shape }))
const numbers = (all: jax.Array[]) => all.flatMap((array) => Array.from(array.dataSync() as Float32Array))

/** By five points, exact for polynomials of degree 4. */
function differences(f: (inputs: Input[]) => number, inputs: Input[], step: number): number[] {
  const at = (k: number, i: number, shift: number) =>
    f(inputs.map(({ shape, values }, j) => ({ shape, values: values.map((value, c) => (j === k && c === i ? value + shift : value)) })))
  return inputs.flatMap(({ values }, k) =>
    Array.from(values, (_, i) => (8 * (at(k, i, step) - at(k, i, -step)) - (at(k, i, 2 * step) - at(k, i, -2 * step))) / (12 * step)),
  )
}
const error = (actual: number[], expected: number[]) =>
  actual.length === expected.length ? Math.max(...expected.map((e, i) => Math.abs(actual[i]! - e))) / Math.max(...expected.map(Math.abs)) : Infinity

/** Of functions of jax-js around an operation: the sum of z^2 / 2 of the result for inputs of twice their value. */
const twice = (...x: jax.Array[]) => x.map((array) => array.mul(2))
const square = (z: jax.Array) => np.sum(z.ref.mul(z)).mul(0.5)
const energy = (op: JaxFunction, inputs: Input[]) => square(vjp(op, twice(...arrays(inputs)))[0]).item()

function gradients(op: JaxFunction, inputs: Input[]): jax.Array[] {
  const [x, pullFirst] = jax.vjp(twice, arrays(inputs))
  const [z, pull] = vjp(op, x)
  const [value, pullLast] = jax.vjp(square, [z])
  value.dispose()
  const [gradOut] = pullLast(np.array(1))
  const result = pullFirst(pull(gradOut!)) as jax.Array[]
  pullFirst.dispose()
  pullLast.dispose()
  return result
}

/** Half the sum of squares of the gradients of that energy with respect to the operation's inputs. */
const ofForces = (op: JaxFunction, inputs: Input[]) => {
  const [z, pull] = vjp(op, arrays(inputs))
  return pull(z).reduce((sum, g) => sum + square(g).item(), 0)
}
function gradientsOfForces(op: JaxFunction, inputs: Input[]): jax.Array[] {
  const all = arrays(inputs), kept = () => all.map((array) => array.ref)
  const [z, pullEnergy] = vjp(op, kept()) // d energy / dz is z
  const [forces, pull] = vjpOfVjp(op, all, z)
  const second = pull(forces) // d loss / d force is the force
  const through = pullEnergy(second.pop()!)
  return second.map((g, i) => g.add(through[i]!))
}

const weighted = ClebschGordanTensorProduct.channelwise('2x0e+2x1o', '0e+1o', '0e+1o', { backend: 'cpu' })
const conv = Convolution.channelwise('2x0e+2x1o', '0e+1o', '0e+1o', { backend: 'cpu' })
const layer = new Linear('2x0e+1o', '0e+2x1o', { backend: 'cpu' })
const operations: [name: string, op: JaxFunction, inputs: Input[], step: number][] = [
  ['product', new GauntTensorProduct('0e+1o', '0e+1o'), [input(3, 4), input(1, 4)], 0.25],
  ['weighted', weighted, [input(2, 8), input(2, 4), input(weighted.weightNumel)], 0.25],
  ['convolution', convolution(conv, new Graph(Int32Array.of(0, 1, 1, 0, 0, 2), 3)), [input(3, 8), input(3, 4), input(conv.weightNumel)], 0.25],
  ['square', new TensorSquare('0e+1o'), [input(2, 4)], 0.05],
  ['linear', layer, [input(2, 5), input(layer.weightNumel)], 0.25],
  // Solid ones: the sum of the squares of normalised ones is a constant.
  ['harmonics', harmonics(2, { normalize: false }), [input(2, 3)], 0.05],
]

const errors = Object.fromEntries(
  operations.map(([name, op, inputs, step]) => {
    const tangents = inputs.map(({ shape }) => input(...shape))
    const [, along] = jvp(op, arrays(inputs), arrays(tangents))
    const expected = numbers([along.ref])
    const moved = (t: number) => numbers([vjp(op, arrays(inputs.map(({ shape, values }, k) => ({ shape, values: values.map((v, i) => v + t * tangents[k]!.values[i]!) }))))[0]])
    const [up, down, up2, down2] = [moved(step), moved(-step), moved(2 * step), moved(-2 * step)]
    const jvpError = error(numbers([along]), expected.map((_, i) => (8 * (up[i]! - down[i]!) - (up2[i]! - down2[i]!)) / (12 * step)))
    return [
      name,
      [
        error(numbers(gradients(op, inputs)), differences((inputs) => energy(op, inputs), inputs, step)),
        error(numbers(gradientsOfForces(op, inputs)), differences((inputs) => ofForces(op, inputs), inputs, step)),
        jvpError,
      ],
    ]
  }),
)

const codeOf = (action: () => unknown) => {
  try {
    action()
  } catch (error) {
    if (error instanceof EquitensorError) return [error.code, error.argument]
    throw error
  }
}
const product = operations[0]![1]
const refusals = {
  tracer: codeOf(() => jax.grad((x: jax.Array) => np.sum(vjp(product, [x, np.zeros([3, 4])])[0]))(np.zeros([3, 4]))),
  shape: codeOf(() => vjp(product, [np.zeros([3, 5]), np.zeros([3, 4])])),
  dtype: codeOf(() => vjp(product, [np.zeros([3, 4], { dtype: jax.DType.Int32 }), np.zeros([3, 4])])),
  count: codeOf(() => vjp(weighted, [np.zeros([2, 8]), np.zeros([2, 4])])),
  op: codeOf(() => vjp({} as never, [np.zeros([3, 4])])),
  gradOut: codeOf(() => vjp(product, [np.zeros([3, 4]), np.zeros([3, 4])])[1](np.zeros([3, 1]))),
}
console.log(JSON.stringify({ errors, refusals }))
