// Automatic differentiation that can be applied to its own gradients: those are steps of the tape too. Training on forces, which are gradients, needs that.
import { Graph, sphericalHarmonics, type Convolution, type Linear, type TensorProduct } from 'equitensor'

/** An array in a computation. */
export interface Node {
  readonly value: Float32Array
}

type Maybe = Node | undefined

interface Step {
  inputs: Node[]
  outputs: Node[]
  /** Gradients with respect to the inputs, where needed, from those with respect to the outputs; one that is missing is zero. */
  gradient(gradOut: Maybe[], needs: boolean[]): Maybe[]
}

/** An operation of the package and its derivatives, computed where `needs` says so. */
interface Form {
  name: string
  forward(inputs: Float32Array[], out: Float32Array): unknown
  backward(inputs: Float32Array[], gradOut: Float32Array, out: (Float32Array | undefined)[]): unknown
  /** `out`: of the inputs, and then of gradOut. */
  doubleBackward(inputs: Float32Array[], gradOut: Float32Array, cotangents: (Float32Array | undefined)[], out: (Float32Array | undefined)[]): unknown
}

const defined = (array: Float32Array | undefined) => array !== undefined
/** What the passes take, for gradients of x, y and weight. */
const results = ([x, y, weight, gradOut]: (Float32Array | undefined)[], hasWeight: boolean, isDouble: boolean) => ({
  needs: { x: defined(x), y: defined(y), ...(hasWeight && { weight: defined(weight) }), ...(isDouble && { gradOut: defined(gradOut) }) },
  out: { ...(x && { x }), ...(y && { y }), ...(weight && { weight }), ...(gradOut && { gradOut }) },
})

/** Steps of a computation. Its arrays are used again after `clear`: fresh memory costs more than most operations. */
export class Tape {
  /** Milliseconds in the package's operations, by name. */
  readonly kernels = new Map<string, number>()
  #steps: Step[] = []
  #isRecording = true
  #free = new Map<number, ArrayBuffer[]>()
  #taken: ArrayBuffer[] = []

  /** Forgets all steps: values of nodes are no longer theirs. */
  clear(): void {
    this.#steps = []
    for (const buffer of this.#taken) {
      const free = this.#free.get(buffer.byteLength)
      if (free) free.push(buffer)
      else this.#free.set(buffer.byteLength, [buffer])
    }
    this.#taken = []
  }

  /** An array with no particular values. */
  #array(length: number): Float32Array {
    // Sizes in steps of an eighth at most, so that batches of similar size share memory.
    const unit = 2 ** Math.max(6, Math.floor(Math.log2(length * 4 + 1)) - 2), bytes = Math.ceil((length * 4 + 1) / unit) * unit
    const buffer = this.#free.get(bytes)?.pop() ?? new ArrayBuffer(bytes)
    this.#taken.push(buffer)
    return new Float32Array(buffer, 0, length)
  }

  #record(inputs: Node[], outputs: Node[], gradient: Step['gradient']): void {
    if (this.#isRecording) this.#steps.push({ inputs, outputs, gradient })
  }

  #map(inputs: Node[], length: number, fill: (out: Float32Array) => void, gradient: (gradOut: Node, needs: boolean[]) => Maybe[]): Node {
    const node = { value: this.#array(length) }
    fill(node.value)
    this.#record(inputs, [node], ([gradOut], needs) => gradient(gradOut!, needs))
    return node
  }

  /**
   * Gradients with respect to targets of the sum of outputs times their seeds, undefined where nothing depends on a target. With `isRecorded` they are
   * steps themselves.
   */
  gradients(outputs: Node[], seeds: Node[], targets: Node[], isRecorded = false): Maybe[] {
    const steps = this.#steps.slice(), dependent = new Set<Node>(targets), gradients = new Map<Node, Node>()
    for (const { inputs, outputs } of steps) if (inputs.some((node) => dependent.has(node))) for (const node of outputs) dependent.add(node)
    this.#isRecording = isRecorded
    const accumulate = (node: Node, gradient: Maybe) => {
      if (!gradient) return
      const sum = gradients.get(node)
      gradients.set(node, sum ? this.add(sum, gradient) : gradient)
    }
    outputs.forEach((node, i) => accumulate(node, seeds[i]!))
    for (const { inputs, outputs, gradient } of steps.reverse()) {
      if (!outputs.some((node) => gradients.has(node) && dependent.has(node))) continue
      const found = gradient(outputs.map((node) => gradients.get(node)), inputs.map((node) => dependent.has(node)))
      inputs.forEach((node, i) => dependent.has(node) && accumulate(node, found[i]))
    }
    this.#isRecording = true
    return targets.map((node) => gradients.get(node))
  }

  // Operations of the package: two steps each, one for the operation and one for its gradients.

  #timed(name: string, call: () => unknown): void {
    const begin = performance.now()
    call()
    this.kernels.set(name, (this.kernels.get(name) ?? 0) + performance.now() - begin)
  }

  #apply(form: Form, inputs: Node[], length: number): Node {
    const values = inputs.map(({ value }) => value)
    const fill = (out: Float32Array) => this.#timed(form.name, () => form.forward(values, out))
    return this.#map(inputs, length, fill, (gradOut, needs) => this.#applyBackward(form, inputs, gradOut, needs))
  }

  #applyBackward(form: Form, inputs: Node[], gradOut: Node, needs: boolean[]): Maybe[] {
    const values = inputs.map(({ value }) => value)
    const out = inputs.map(({ value }, i): Maybe => (needs[i] ? { value: this.#array(value.length) } : undefined))
    this.#timed(form.name, () => form.backward(values, gradOut.value, out.map((node) => node?.value)))
    this.#record([...inputs, gradOut], out.filter((node) => node !== undefined), (given, needs) => {
      const cotangents = out.map((node) => (node ? given.shift()?.value : undefined)) // of those that there are
      const second = [...inputs, gradOut].map(({ value }, i): Maybe => (needs[i] ? { value: this.#array(value.length) } : undefined))
      this.#timed(form.name, () => form.doubleBackward(values, gradOut.value, cotangents, second.map((node) => node?.value)))
      return second
    })
    return out
  }

  product(op: TensorProduct<'float32'>, x: Node, y: Node, weight?: Node, name = 'product'): Node {
    const hasWeight = weight !== undefined
    const form: Form = {
      name,
      forward: ([x, y, w], out) => op.forward(x!, y!, w, { out }),
      backward: ([x, y, w], gradOut, out) => op.backward(x!, y!, w, gradOut, results(out, hasWeight, false)),
      doubleBackward: ([x, y, w], gradOut, [ax, ay, aw], out) =>
        op.doubleBackward(x!, y!, w, gradOut, { x: ax, y: ay, ...(hasWeight && { weight: aw }) }, results(hasWeight ? out : [out[0], out[1], undefined, out[2]], hasWeight, true)),
    }
    const batch = Math.max(x.value.length / op.irrepsIn1.dim, y.value.length / op.irrepsIn2.dim)
    return this.#apply(form, hasWeight ? [x, y, weight] : [x, y], batch * op.irrepsOut.dim)
  }

  convolution(op: Convolution<'float32'>, graph: Graph, x: Node, y: Node, weight: Node): Node {
    const form: Form = {
      name: 'convolution',
      forward: ([x, y, w], out) => op.forward(graph, x!, y!, w, { out }),
      backward: ([x, y, w], gradOut, out) => op.backward(graph, x!, y!, w, gradOut, results(out, true, false)),
      doubleBackward: ([x, y, w], gradOut, [ax, ay, aw], out) =>
        op.doubleBackward(graph, x!, y!, w, gradOut, { x: ax, y: ay, weight: aw }, results(out, true, true)),
    }
    return this.#apply(form, [x, y, weight], graph.numReceivers * op.irrepsOut.dim)
  }

  linear(op: Linear<'float32'>, x: Node, weight: Node): Node {
    const ofLinear = ([x, weight, gradOut]: (Float32Array | undefined)[], isDouble: boolean) => ({
      needs: { x: defined(x), weight: defined(weight), ...(isDouble && { gradOut: defined(gradOut) }) },
      out: { ...(x && { x }), ...(weight && { weight }), ...(gradOut && { gradOut }) },
    })
    const form: Form = {
      name: 'linear',
      forward: ([x, w], out) => op.forward(x!, w!, { out }),
      backward: ([x, w], gradOut, out) => op.backward(x!, w!, gradOut, ofLinear(out, false)),
      doubleBackward: ([x, w], gradOut, [ax, aw], out) => op.doubleBackward(x!, w!, gradOut, { x: ax, weight: aw }, ofLinear(out, true)),
    }
    return this.#apply(form, [x, weight], (x.value.length / op.irrepsIn.dim) * op.irrepsOut.dim)
  }

  harmonics(lmax: number, vectors: Node): Node {
    const form: Form = {
      name: 'harmonics',
      forward: ([v], out) => sphericalHarmonics(lmax, v!, { out }),
      backward: ([v], gradOut, [out]) => sphericalHarmonics.backward(lmax, v!, gradOut, { ...(out && { out }) }),
      doubleBackward: ([v], gradOut, [along], [vectors, gradGradOut]) =>
        sphericalHarmonics.doubleBackward(lmax, v!, gradOut, along ?? new Float32Array(v!.length), {
          needs: { vectors: defined(vectors), gradOut: defined(gradGradOut) },
          out: { ...(vectors && { vectors }), ...(gradGradOut && { gradOut: gradGradOut }) },
        }),
    }
    return this.#apply(form, [vectors], (vectors.value.length / 3) * (lmax + 1) ** 2)
  }

  // The rest. Each gradient consists of operations of this list, so that all of them have second ones.

  constant(value: Float32Array): Node {
    return { value }
  }

  add(a: Node, b: Node): Node {
    const x = a.value, y = b.value
    return this.#map([a, b], x.length, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = x[i]! + y[i]!
    }, (gradOut) => [gradOut, gradOut])
  }

  scale(a: Node, factor: number): Node {
    const x = a.value
    return this.#map([a], x.length, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = factor * x[i]!
    }, (gradOut) => [this.scale(gradOut, factor)])
  }

  multiply(a: Node, b: Node): Node {
    const x = a.value, y = b.value
    return this.#map([a, b], x.length, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = x[i]! * y[i]!
    }, (gradOut, [needsA, needsB]) => [needsA ? this.multiply(gradOut, b) : undefined, needsB ? this.multiply(gradOut, a) : undefined])
  }

  /** Applies a function to each number. `derivatives`: the function, its derivative, and so on, as far as they are needed. */
  unary(a: Node, derivatives: ((x: number) => number)[]): Node {
    const x = a.value, [f, ...rest] = derivatives as [(x: number) => number, ...((x: number) => number)[]]
    return this.#map([a], x.length, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = f(x[i]!)
    }, (gradOut) => [this.multiply(gradOut, this.unary(a, rest))])
  }

  /** (rows) -> (rows, width): functions of each number, as `unary`; each fills a row. */
  expand(a: Node, width: number, derivatives: ((x: number, row: Float32Array) => void)[]): Node {
    const x = a.value, [f, ...rest] = derivatives as [(x: number, row: Float32Array) => void, ...((x: number, row: Float32Array) => void)[]]
    return this.#map([a], x.length * width, (out) => {
      for (let i = 0; i < x.length; i++) f(x[i]!, out.subarray(i * width, (i + 1) * width))
    }, (gradOut) => [this.dotRows(gradOut, this.expand(a, width, rest), x.length)])
  }

  /** (rows, width), (rows, width) -> (rows) */
  dotRows(a: Node, b: Node, rows: number): Node {
    const x = a.value, y = b.value, width = x.length / rows
    return this.#map([a, b], rows, (out) => {
      for (let r = 0, i = 0; r < rows; r++) {
        let sum = 0
        for (const end = i + width; i < end; i++) sum += x[i]! * y[i]!
        out[r] = sum
      }
    }, (gradOut, [needsA, needsB]) => [needsA ? this.scaleRows(b, gradOut) : undefined, needsB ? this.scaleRows(a, gradOut) : undefined])
  }

  /** (rows, width), (rows) -> (rows, width) */
  scaleRows(a: Node, factors: Node): Node {
    const x = a.value, s = factors.value, rows = s.length, width = x.length / rows
    return this.#map([a, factors], x.length, (out) => {
      for (let r = 0, i = 0; r < rows; r++) for (const end = i + width; i < end; i++) out[i] = s[r]! * x[i]!
    }, (gradOut, [needsA, needsFactors]) => [
      needsA ? this.scaleRows(gradOut, factors) : undefined,
      needsFactors ? this.dotRows(gradOut, a, rows) : undefined,
    ])
  }

  /** (rows, width) -> (indices.length, width): row e is row indices[e] of a. */
  gatherRows(a: Node, indices: Int32Array, rows: number): Node {
    const x = a.value, width = x.length / rows
    return this.#map([a], indices.length * width, (out) => {
      for (let e = 0, i = 0; e < indices.length; e++) for (let c = indices[e]! * width, end = c + width; c < end; c++) out[i++] = x[c]!
    }, (gradOut) => [this.sumRows(gradOut, indices, rows)])
  }

  /** (indices.length, width) -> (rows, width): row e of a is added to row indices[e]. */
  sumRows(a: Node, indices: Int32Array, rows: number): Node {
    const x = a.value, width = x.length / indices.length
    return this.#map([a], rows * width, (out) => {
      out.fill(0)
      for (let e = 0, i = 0; e < indices.length; e++) for (let c = indices[e]! * width, end = c + width; c < end; c++) out[c]! += x[i++]!
    }, (gradOut) => [this.gatherRows(gradOut, indices, rows)])
  }
}
