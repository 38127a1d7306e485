'use strict'
// npm run resources [-- [--check] [cuda/name.cu ...]]
// Compiles every kernel for every card as the build does and records in cuda/resources.json what ptxas made of it. With --check it
// writes nothing and fails on a spill, on local memory, or on a difference from the record. Named sources: only those.

const { execFileSync, spawn } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { detectCudaToolkit } = require('../bin/build.js')
const { sections } = require('../bin/elf.js')
const { root, cuda, cudaOptions } = require('../bin/sources.js')

const recordFile = path.join(__dirname, 'resources.json')

/** Of one multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities"); `reserved`: shared memory that each block costs in addition. */
const cards = {
  sm_75: { threads: 1024, blocks: 16, shared: 64 << 10, reserved: 0, sharedUnit: 256 },
  sm_80: { threads: 2048, blocks: 32, shared: 164 << 10, reserved: 1024, sharedUnit: 128 },
  sm_90: { threads: 2048, blocks: 32, shared: 228 << 10, reserved: 1024, sharedUnit: 128 },
  sm_100: { threads: 2048, blocks: 32, shared: 228 << 10, reserved: 1024, sharedUnit: 128 },
}
const registersOfCard = 65536, warpSize = 32, registerUnit = 256, warpUnit = 4

const roundUp = (value, unit) => Math.ceil(value / unit) * unit

/** The share of a card's threads that can be resident at once. */
function occupancy(card, { registers, shared, threads }) {
  const { reserved, sharedUnit, ...most } = cards[card]
  const warps = Math.ceil(threads / warpSize)
  const warpsForRegisters = Math.floor(registersOfCard / roundUp(registers * warpSize, registerUnit) / warpUnit) * warpUnit
  const blocks = Math.min(
    most.blocks,
    Math.floor(most.threads / (warps * warpSize)),
    Math.floor(warpsForRegisters / warps),
    Math.floor(most.shared / Math.max(1, roundUp(shared + reserved, sharedUnit))),
  )
  return Math.round((100 * blocks * warps * warpSize) / most.threads) / 100
}

/** What `ptxas -v` says of each function; those that are no kernels have no registers of their own. */
function parseVerbose(text) {
  const functions = new Map()
  let current
  for (const line of text.split('\n')) {
    const [, name] = /(?:Compiling entry function|Function properties for) '?([\w$.]+)/.exec(line) ?? []
    if (name) {
      current = functions.get(name) ?? { spillStores: 0, spillLoads: 0, stack: 0, shared: 0 }
      functions.set(name, current)
    }
    const [, stack, stores, loads] = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line) ?? []
    if (stack) Object.assign(current, { stack: Number(stack), spillStores: Number(stores), spillLoads: Number(loads) })
    const [, registers] = /Used (\d+) registers/.exec(line) ?? []
    if (registers) {
      current.registers = Number(registers)
      current.shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0)
    }
  }
  return functions
}

/** The threads of a block that __launch_bounds__ promises, undefined without it: attributes MAX_THREADS and REQNTID of .nv.info. */
function launchBound(bytes) {
  for (let at = 0; bytes && at + 4 <= bytes.length; ) {
    const [format, attribute, size] = [bytes[at], bytes[at + 1], bytes.readUInt16LE(at + 2)]
    at += 4
    if (format !== 4) continue // the value is in the size's place
    if (attribute === 0x05 || attribute === 0x10) return bytes.readUInt32LE(at) * bytes.readUInt32LE(at + 4) * bytes.readUInt32LE(at + 8)
    at += size
  }
  return undefined
}

function demangle(names) {
  return names.length === 0 ? [] : execFileSync('c++filt', { input: names.join('\n'), encoding: 'utf8' }).trimEnd().split('\n')
}

/** `copy` or `fma_chain<float>` of "void equitensor::cuda::(anonymous namespace)::fma_chain<float>(long long, float*)". */
function shortName(demangled) {
  const name = demangled.replaceAll('(anonymous namespace)::', '').replaceAll('equitensor::cuda::', '').replaceAll('equitensor::', '').replace(/^void /, '')
  let depth = 0
  for (let i = 0; i < name.length; i++) {
    if (name[i] === '<') depth++
    else if (name[i] === '>') depth--
    else if (name[i] === '(' && depth === 0) return name.slice(0, i)
  }
  return name
}

/** What is known of one kernel source on one card, by the kernels' short names. */
async function inspect(nvcc, source, card, folder) {
  const cubin = path.join(folder, `${path.basename(source)}.${card}.cubin`)
  const options = cudaOptions().filter((option) => !option.startsWith('-Xptxas=-warn'))
  const output = await new Promise((resolve, reject) => {
    const compiler = spawn(nvcc, [...options, '-I.', `-arch=${card}`, '-cubin', '-Xptxas=-v', '-o', cubin, source], { cwd: root })
    let text = ''
    compiler.stderr.setEncoding('utf8').on('data', (part) => (text += part))
    compiler.stdout.resume()
    compiler.on('error', reject)
    compiler.on('close', (code) => (code === 0 ? resolve(text) : reject(new Error(`nvcc failed on ${source} for ${card}:\n${text}`))))
  })
  const parts = new Map(sections(cubin).map((section) => [section.name, section]))
  const functions = [...parseVerbose(output)]
  const names = demangle(functions.map(([name]) => name))
  const result = {}
  functions.forEach(([mangled, { registers, ...found }], i) => {
    const short = shortName(names[i])
    const name = short in result ? names[i] : short
    const code = parts.get(`.text.${mangled}`)?.length ?? 0
    if (registers === undefined) {
      result[name] = { ...found, code }
      return
    }
    const launch = cuda.launches?.[short] ?? cuda.launches?.[short.replace(/<.*/, '')] ?? {}
    const threads = launch.threads ?? launchBound(parts.get(`.nv.info.${mangled}`)?.bytes) ?? 256
    const shared = found.shared + (launch.dynamicShared ?? 0)
    result[name] = { registers, ...found, shared, code, threads, occupancy: occupancy(card, { registers, shared, threads }) }
  })
  return result
}

async function inspectAll(nvcc, sources) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'equitensor-'))
  const jobs = sources.flatMap((source) => Object.keys(cards).map((card) => ({ source, card })))
  const queue = [...jobs]
  const worker = async () => {
    for (let job; (job = queue.shift()); ) job.result = await inspect(nvcc, job.source, job.card, folder)
  }
  try {
    await Promise.all(Array.from({ length: os.availableParallelism() }, worker))
  } finally {
    fs.rmSync(folder, { recursive: true })
  }
  const byKernel = {}
  for (const { source, card, result } of jobs) {
    for (const [name, values] of Object.entries(result)) ((byKernel[source] ??= {})[name] ??= {})[card] = values
  }
  return byKernel
}

const sorted = (object) => Object.keys(object).sort().map((key) => [key, object[key]])

function* lines(kernels) {
  for (const [source, byName] of sorted(kernels)) {
    for (const [name, byCard] of sorted(byName)) {
      for (const card of Object.keys(cards)) yield { what: `${source} ${name} ${card}`, source, name, card, values: byCard[card] }
    }
  }
}

/** One line a kernel and card, so that a change reads well as a difference. */
function format(toolkit, kernels) {
  const object = (entries, indent, value) => `{\n${entries.map(([key, item]) => `${indent}  ${JSON.stringify(key)}: ${value(item)}`).join(',\n')}\n${indent}}`
  const inLine = (values) => JSON.stringify(values).replaceAll('":', '": ').replaceAll(',"', ', "').replace('{', '{ ').replace('}', ' }')
  const comment =
    'What ptxas made of each kernel: npm run resources. Bytes of code, stack, spills and shared memory; occupancy is the share of resident threads, from registers and shared memory, at blocks of so many threads.'
  const body = object(sorted(kernels), '  ', (byName) => object(sorted(byName), '    ', (byCard) => object(Object.entries(byCard), '      ', inLine)))
  return `{\n  "comment": ${JSON.stringify(comment)},\n  "toolkit": ${JSON.stringify(toolkit)},\n  "kernels": ${body}\n}\n`
}

/** Everything that must not be: spills and local memory. */
function faults(kernels) {
  const found = []
  for (const { what, values } of lines(kernels)) {
    if (!values) continue
    if (values.spillStores || values.spillLoads) found.push(`${what} spills: ${values.spillStores} bytes of stores, ${values.spillLoads} of loads`)
    else if (values.stack) found.push(`${what} uses local memory: a stack frame of ${values.stack} bytes`)
  }
  return found
}

/** Every field in which the kernels differ from the record. */
function changes(recorded, kernels) {
  const found = []
  const before = new Map([...lines(recorded)].map(({ what, values }) => [what, values]))
  for (const { what, values } of lines(kernels)) {
    const old = before.get(what)
    before.delete(what)
    if (!old !== !values) found.push(`${what} ${old ? 'is recorded and no longer there' : 'is not recorded'}`)
    if (!old || !values) continue
    for (const field of new Set([...Object.keys(old), ...Object.keys(values)])) {
      if (old[field] !== values[field]) found.push(`${what} ${field}: recorded ${old[field]}, now ${values[field]}`)
    }
  }
  for (const [what, old] of before) if (old) found.push(`${what} is recorded and no longer there`)
  return found
}

/** Whether a source, or a header that it or they include, says what hides latency: where occupancy is low, something has to. */
function explainsLatency(source) {
  const text = fs.readFileSync(path.join(root, source), 'utf8')
  return /hides (the )?latency/.test(text) || [...text.matchAll(/^#include "(cuda\/.*)"$/gm)].some(([, header]) => explainsLatency(header))
}

async function main(args) {
  const check = args.includes('--check')
  const named = args.filter((arg) => arg !== '--check')
  const strange = named.find((name) => !cuda.kernels.includes(name))
  if (strange) throw new Error(`${strange} is not among the kernels of addon/sources.json: ${cuda.kernels.join(', ')}`)
  const toolkit = detectCudaToolkit()
  if (!toolkit) throw new Error('no CUDA toolkit: nvcc is neither on PATH nor in CUDA_HOME')

  const started = Date.now()
  const sources = named.length > 0 ? named : cuda.kernels
  const kernels = await inspectAll(toolkit.nvcc, sources)
  const record = fs.existsSync(recordFile) ? JSON.parse(fs.readFileSync(recordFile, 'utf8')) : { kernels: {} }
  const problems = faults(kernels)

  if (check) {
    if (record.toolkit === toolkit.version) {
      const recorded = Object.fromEntries(Object.entries(record.kernels).filter(([source]) => named.length === 0 || named.includes(source)))
      const differences = changes(recorded, kernels)
      problems.push(...differences)
      if (differences.length > 0) problems.push('If the changes are meant, record them: npm run resources')
    } else {
      console.log(`recorded with toolkit ${record.toolkit}, this is ${toolkit.version}: only spills and local memory are checked`)
    }
  } else {
    for (const { what, values } of lines(kernels)) {
      if (values?.registers) console.log(`${what}: ${values.registers} registers, ${values.shared} bytes shared, ${values.code} bytes of code, occupancy ${values.occupancy}`)
    }
    const rest = named.length > 0 ? record.kernels : {}
    fs.writeFileSync(recordFile, format(toolkit.version, { ...rest, ...kernels }))
  }
  for (const { what, source, values } of lines(kernels)) {
    if (values?.occupancy < 0.25 && !explainsLatency(source)) console.log(`${what} has an occupancy of ${values.occupancy}: its source should say what hides the latency`)
  }
  for (const problem of problems) console.error(problem)
  const count = [...lines(kernels)].length
  console.log(`${count} kernels and cards in ${((Date.now() - started) / 1000).toFixed(1)} s${problems.length > 0 ? '' : ': no spill, no local memory'}`)
  return problems.length > 0 ? 1 : 0
}

module.exports = { changes, explainsLatency, faults, format, occupancy, parseVerbose, shortName }

if (require.main === module) {
  main(process.argv.slice(2)).then(
    (code) => (process.exitCode = code),
    (error) => {
      console.error(error.message)
      process.exitCode = 2
    },
  )
}
