// The command line of `npm run compare`.
import { parseArgs } from 'node:util'
import { BadFlag } from './machine'
import { passes } from './passes'
import { defaultDegrees, highestDegree, operations, problems } from './problems'
import type { Settings } from './report'
import { suites, type Suite, type SuiteSettings } from './suites'

const namesOf = (entries: readonly { name: string }[]) => entries.map(({ name }) => name)

export const help = `Compares tensor product operations head to head on this machine.

  npm run compare -- [flags]

  --suite NAME        instead of the head-to-head: ${namesOf(suites).join(', ')}, on the CPU, or counted on the emulation of CUDA
${suites.map(({ name, meaning }) => `                      ${name}: ${meaning}`).join('\n')}
  --problem NAMES     ${namesOf(problems).join(', ')}, or those of the suite; default all
  --operation NAMES   ${namesOf(operations).join(', ')}; default all
  --pass NAMES        ${namesOf(passes).join(', ')}; default all
  --L DEGREES         4 or 2,4 or 1..10; at most ${highestDegree}; default 1..6; of the suites ${namesOf(suites.filter(({ degrees }) => degrees)).join(' and ')}, whose problems end in it, too
  --backend BACKEND   cpu (default) or cuda: times on an NVIDIA GPU, or, with EQUITENSOR_BINARY=emulated, counts and a model of an H100
  --device N          of the backend cuda; default 0
  --batch N           items a call; default 10000, on cuda 100000; of a suite at most so many, default 50000
  --dtype TYPE        float32 (default) or float64
  --layout LAYOUT     mul_ir (default) or ir_mul; of a suite by default both
  --threads N         of the backend cpu; default 1
  --parity PARITY     even (default: 0e + 1e + ..., no path is dropped) or natural (0e + 1o + 2e + ..., the paper's)
  --molecules FILE    of the suite convolution: extended XYZ, whose first configurations, about 2000 atoms, are a graph besides
  --order             fit the exponent of the time in L, beside that of the operations
  --json FILE         where the results go; default bench/results/<date>.json
  --help

Exit code 0; 1 when an output is wrong or an operation fails; 2 for a bad flag or a backend that is not there.`

export interface Flags {
  help: boolean
  settings: Settings
  /** What to run instead, with its settings. */
  suite?: { suite: Suite; settings: SuiteSettings }
  json?: string
}

export function parseFlags(args: string[]): Flags {
  const text = { type: 'string' } as const
  const list = { type: 'string', multiple: true } as const
  const options = {
    problem: list, operation: list, pass: list, L: list, batch: text, dtype: text, layout: text, threads: text, parity: text,
    backend: text, device: text, json: text, suite: text, molecules: text, order: { type: 'boolean' }, help: { type: 'boolean', short: 'h' },
  } as const
  let values
  try {
    ;({ values } = parseArgs({ args, options, strict: true, allowPositionals: false }))
  } catch (error) {
    throw new BadFlag((error as Error).message)
  }
  const backend = chooseOne('backend', values.backend, ['cpu', 'cuda'])
  if (values.suite !== undefined) {
    const suite = suites.find(({ name }) => name === values.suite)
    if (!suite) throw new BadFlag(`--suite ${values.suite}: there is ${namesOf(suites).join(', ')}`)
    for (const flag of ['operation', 'parity', 'order', 'device'] as const) if (values[flag] !== undefined) throw new BadFlag(`--${flag}: not with --suite`)
    if (values.L && !suite.degrees) throw new BadFlag(`--L: not with --suite ${suite.name}`)
    // Of problems that are named, all degrees.
    const chosen = values.L ? degrees(values.L) : values.problem ? undefined : suite.degrees
    if (backend !== 'cpu' && values.threads !== undefined) throw new BadFlag(`--threads ${values.threads}: the backend ${backend} takes none`)
    if (values.molecules !== undefined && suite.name !== 'convolution') throw new BadFlag('--molecules: only with --suite convolution')
    const settings: SuiteSettings = {
      problems: chooseSome('problem', values.problem, namesOf(suite.problems.filter(({ L }) => !chosen || chosen.includes(L!)))),
      passes: chooseSome('pass', values.pass, namesOf(passes)) as SuiteSettings['passes'],
      layouts: values.layout === undefined ? ['ir_mul', 'mul_ir'] : [chooseOne('layout', values.layout, ['mul_ir', 'ir_mul'])],
      batch: integer('batch', values.batch ?? '50000', 1),
      dtype: chooseOne('dtype', values.dtype, ['float32', 'float64']),
      threads: integer('threads', values.threads ?? '1', 1),
      ...(backend === 'cuda' && { backend }),
      ...(values.molecules !== undefined && { molecules: values.molecules }),
    }
    return { ...parseFlags(backend === 'cuda' ? ['--backend', 'cuda'] : []), help: values.help ?? false, json: values.json, suite: { suite, settings } }
  }
  if (values.molecules !== undefined) throw new BadFlag('--molecules: only with --suite convolution')
  const foreign = backend === 'cpu' ? 'device' : 'threads'
  if (values[foreign] !== undefined) throw new BadFlag(`--${foreign} ${values[foreign]}: the backend ${backend} takes none`)
  return {
    help: values.help ?? false,
    json: values.json,
    settings: {
      problems: chooseSome('problem', values.problem, namesOf(problems)),
      operations: chooseSome('operation', values.operation, namesOf(operations)),
      passes: chooseSome('pass', values.pass, namesOf(passes)),
      order: values.order ?? false,
      L: values.L ? degrees(values.L) : [...defaultDegrees],
      backend,
      device: integer('device', values.device ?? '0', 0),
      batch: integer('batch', values.batch ?? (backend === 'cpu' ? '10000' : '100000'), 1),
      dtype: chooseOne('dtype', values.dtype, ['float32', 'float64']),
      layout: chooseOne('layout', values.layout, ['mul_ir', 'ir_mul']),
      threads: integer('threads', values.threads ?? '1', 1),
      parity: chooseOne('parity', values.parity, ['even', 'natural']),
    },
  }
}

const pieces = (values: readonly string[]) => values.flatMap((value) => value.split(',')).map((piece) => piece.trim())

function chooseSome(flag: string, values: readonly string[] | undefined, allowed: readonly string[]): string[] {
  if (!values) return [...allowed]
  const wanted = pieces(values).map((name) => {
    const known = allowed.find((candidate) => candidate.toLowerCase() === name.toLowerCase())
    if (!known) throw new BadFlag(`--${flag} ${name}: there is ${allowed.join(', ')}`)
    return known
  })
  return allowed.filter((name) => wanted.includes(name))
}

function chooseOne<T extends string>(flag: string, value: string | undefined, allowed: readonly [T, ...T[]]): T {
  const known = allowed.find((candidate) => candidate === (value ?? allowed[0]))
  if (!known) throw new BadFlag(`--${flag} ${value}: there is ${allowed.join(', ')}`)
  return known
}

function integer(flag: string, value: string, least: 0 | 1): number {
  const number = Number(value.replace(/_/g, ''))
  const expected = least ? 'a positive integer' : 'an integer from 0'
  if (!/^[\d_]+$/.test(value) || !Number.isSafeInteger(number) || number < least) throw new BadFlag(`--${flag} ${value}: expected ${expected}`)
  return number
}

function degrees(values: readonly string[]): number[] {
  const chosen = new Set<number>()
  for (const piece of pieces(values)) {
    const match = /^(\d+)(?:\.\.(\d+))?$/.exec(piece)
    const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])]
    if (!match || first < 1 || last > highestDegree || first > last)
      throw new BadFlag(`--L ${piece}: expected a degree or a range such as 1..6, within 1..${highestDegree}`)
    for (let L = first; L <= last; L++) chosen.add(L)
  }
  return [...chosen].sort((a, b) => a - b)
}
