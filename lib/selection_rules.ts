// Which irreps products of irreps have, and the error that says which selection rule leaves one out.
import { argumentError, type EquitensorError } from './errors'
import { formatIrrep, irrepKey, multiplyIrreps, type Irrep, type Irreps } from './irreps'

/** Irreps of each factor. */
export type Factors = readonly (readonly Irrep[])[]

/** Of the blocks that are not empty. */
export function irrepsOf(irreps: Irreps): Irrep[] {
  return irreps.blocks.filter(({ mul }) => mul > 0).map(({ ir }) => ir)
}

/** Every irrep in the products of one irrep of each factor, from the left, by its key. */
export function irrepsOfProducts([first, ...others]: Factors, multiply: (a: Irrep, b: Irrep) => Irrep[] = multiplyIrreps): Map<number, Irrep> {
  const byKey = (irreps: readonly Irrep[]) => new Map(irreps.map((ir) => [irrepKey(ir), ir]))
  return others.reduce((left, right) => byKey([...left.values()].flatMap((a) => right.flatMap((b) => multiply(a, b)))), byKey(first!))
}

/** What was asked for, and what there is. */
export interface Unreached {
  argument: string
  /** None of them is reached. */
  irreps: readonly Irrep[]
  /** Factors whose products there are; `of`: in words. */
  products: readonly Factors[]
  of: string
  /** A rule beside those of degrees and parities. */
  further?: string
}

/** The error that names the first rule which leaves none of the irreps, and the rules that leave some. */
export function unreached(code: 'no_path' | 'unreachable_output', { argument, irreps, products, of, further = '' }: Unreached): EquitensorError {
  const remains = (seen: (ir: Irrep) => Irrep) => {
    const reached = new Set(products.flatMap((factors) => [...irrepsOfProducts(factors.map((factor) => factor.map(seen))).keys()]))
    return irreps.some((ir) => reached.has(irrepKey(seen(ir))))
  }
  const factors = Math.max(...products.map(({ length }) => length))
  const [degrees, parities] = ([['l2 = l1', 'p2 = p1'], ['|l1 - l2| <= l3 <= l1 + l2', 'p3 = p1 p2']] as const)[factors - 1] ?? ['|l1 - l2| <= l <= l1 + l2 factor by factor', 'p = p1 p2 ...']
  const rules = [`${degrees} (triangle rule)`, `${parities} (parity)`, further]
  const failed = !remains(({ l }) => ({ l, p: 1 })) ? 0 : !remains((ir) => ir) ? 1 : 2
  const met = rules.slice(0, failed).join(' and ')
  return argumentError(code, argument, `irreps with ${rules[failed]}${met && `, besides ${met}`}, for ${of}`, irreps.map(formatIrrep).join('+') || 'none')
}

/** Of two inputs, each irrep with each. */
export function pairsOf(in1: Irreps, in2: Irreps): Pick<Unreached, 'products' | 'of'> {
  return { products: [[irrepsOf(in1), irrepsOf(in2)]], of: `an l1 of '${in1}' and an l2 of '${in2}'` }
}

/** @throws what `error` makes, for a block of the output that nothing writes: `no_path` if nothing is written at all. */
export function requireReached(irrepsOut: Irreps, written: readonly { out: number }[], error: (code: 'no_path' | 'unreachable_output', missing: Irrep) => EquitensorError): void {
  const missing = irrepsOut.blocks.find(({ mul }, b) => mul > 0 && !written.some(({ out }) => out === b))
  if (missing) throw error(written.length > 0 ? 'unreachable_output' : 'no_path', missing.ir)
}
