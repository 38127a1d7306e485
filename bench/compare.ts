// The head-to-head comparison: `npm run compare -- [flags]`. Table on stdout, progress on stderr, everything as JSON.
import { accessSync, constants, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cudaDevices } from '../lib/cuda'
import { binary } from '../lib/native'
import { cpu } from './cpu'
import { emulated } from './emulated'
import { help, parseFlags } from './flags'
import { gpu } from './gpu'
import { BadFlag, type Machine } from './machine'
import type { Operand } from './problems'
import { correct, isCounted, isMeasured, type Settings } from './report'
import { compare, record, report } from './run'
import type { Suite, SuiteSettings } from './suites'

/** @throws BadFlag where this process has no such machine. */
function requireDevice(settings: Settings): void {
  const { devices, reason } = cudaDevices()
  if (!devices.length)
    throw new BadFlag(
      `--backend cuda: there is no GPU to use: ${reason}.\n\n` +
        'Without one, an emulation counts what the kernels do and models their time on an H100 (in a checkout):\n' +
        '  npx equitensor build --emulated\n' +
        '  EQUITENSOR_BINARY=emulated npm run compare -- --backend cuda',
    )
  if (settings.device >= devices.length) throw new BadFlag(`--device ${settings.device}: there is ${devices.map(({ name }, n) => `${n} (${name})`).join(', ')}`)
}

/** One line rewritten on a terminal, else a line every few tasks. */
function progress(done: number, all: number, text: string): void {
  const line = `[${done}/${all}] ${text}`
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[2K${done < all ? line.slice(0, (process.stderr.columns || 80) - 1) : ''}`)
  else if (done % 6 === 0) process.stderr.write(`${line}\n`)
}

/** Tells now, and not after the measurement, that the results have no place. */
function makeWritable(file: string): void {
  try {
    mkdirSync(path.dirname(file), { recursive: true })
    accessSync(path.dirname(file), constants.W_OK)
  } catch (error) {
    throw new BadFlag(`--json ${file}: ${(error as Error).message}`)
  }
}

function runOn<A extends Operand>(machine: Machine<A>, settings: Settings, file: string): number {
  const run = compare(settings, machine, progress)
  console.log(report(run, machine))
  writeFileSync(file, `${JSON.stringify(record(run, machine), null, 1)}\n`)
  const [measured, counted] = [run.outcomes.filter(isMeasured).length, run.outcomes.filter(isCounted).length]
  console.log(`\n${counted ? `${counted} calls counted` : `${measured} measurements`} in ${run.seconds.toFixed(0)} s; all of it in ${path.relative('', file)}`)
  return run.outcomes.every(correct) ? 0 : 1
}

function runSuite(suite: Suite, settings: SuiteSettings, file: string): number {
  const start = Date.now()
  const { text, json, wrong } = suite.run(settings, progress)
  console.log([...text, ...wrong.map((line) => `WRONG: ${line}`)].join('\n'))
  writeFileSync(file, `${JSON.stringify({ suite: suite.name, settings, ...json }, null, 1)}\n`)
  console.log(`\n${((Date.now() - start) / 1000).toFixed(0)} s; all of it in ${path.relative('', file)}`)
  return wrong.length ? 1 : 0
}

function main(): number {
  const flags = parseFlags(process.argv.slice(2))
  if (flags.help) {
    console.log(help)
    return 0
  }
  const { settings } = flags
  const file = path.resolve(flags.json ?? path.join(__dirname, 'results', `${new Date().toISOString().slice(0, 19).replace(/:/g, '-')}.json`))
  if (settings.backend === 'cuda') requireDevice(settings)
  makeWritable(file)
  if (flags.suite) return runSuite(flags.suite.suite, flags.suite.settings, file)
  if (settings.backend === 'cpu') return runOn(cpu(settings), settings, file)
  return runOn((binary.flavour === 'emulated' ? emulated : gpu)(settings), settings, file)
}

try {
  process.exitCode = main()
} catch (error) {
  if (!(error instanceof BadFlag)) throw error
  console.error(`${error.message}\n\nnpm run compare -- --help lists the flags.`)
  process.exitCode = 2
}
