#!/usr/bin/env node
'use strict'
const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { builtBinary, flavours, prebuiltBinary } = require('./binaries.js')
const { buildNative, buildRecord, detectCudaToolkit } = require('./build.js')
const { glibcNeeded } = require('./elf.js')
const remedies = require('./remedies.js')
const { root, stamp, variants: builtVariants } = require('./sources.js')

const usage = `Usage: equitensor <command>

  build             compile the native addon in the installed package: with CUDA kernels where a CUDA toolkit is, else without
    --cuda          the CPU and the CUDA kernels (needs the CUDA toolkit 12.0 or newer, and CMake)
    --cpu           the CPU kernels only
    --cmake         the same with cmake-js instead of node-gyp
    --emulated      the CPU kernels, and the CUDA sources compiled for the CPU, which tests use (in a checkout)
  doctor            print what was built and what this machine can run
  help              print this

EQUITENSOR_BUILD=auto|cuda|cpu|emulated   what npm install builds
EQUITENSOR_BINARY=cuda|cpu|emulated       what a process loads, instead of the first that is there
EQUITENSOR_CUDA_ARCHITECTURES=90-real     compile for these cards only (separated by semicolons)
EQUITENSOR_BACKEND=auto|cpu|cuda          what the backend 'auto' of a process is
EQUITENSOR_CPU=baseline|avx2|avx512       which CPU kernels a process uses, instead of the fastest that the machine can run`

class UsageError extends Error {}

function build(args) {
  const asked = flavours.filter((flavour) => args.includes(`--${flavour}`))
  const unknown = args.find((arg) => arg !== '--cmake' && !asked.includes(arg.slice(2)))
  if (unknown) throw new UsageError(`unknown option ${unknown}`)
  if (asked.length > 1) throw new UsageError(`${asked.map((flavour) => `--${flavour}`).join(' and ')} exclude each other`)
  const cmake = args.includes('--cmake')
  const toolkit = detectCudaToolkit()
  const flavour = asked[0] ?? (toolkit && !toolkit.tooOld ? 'cuda' : 'cpu')

  let file
  try {
    file = buildNative(flavour, cmake ? { buildSystem: 'cmake-js' } : {})
  } catch (error) {
    const without = flavour === 'cuda' ? '\nThe CPU part alone is complete without CUDA:  npx equitensor build --cpu' : ''
    console.error(`\nequitensor: ${error.message}${without}\n\n${remedies}`)
    return 1
  }
  console.log(`built ${path.relative(root, file)}, stamp ${stamp()}`)
  if (!asked[0] && flavour === 'cpu') {
    const reason = toolkit ? `the CUDA toolkit ${toolkit.version} is too old` : 'no CUDA toolkit (nvcc on PATH or in CUDA_HOME) was found'
    console.log(`CPU kernels only: ${reason}. With the toolkit 12.0 or newer and CMake:  npx equitensor build --cuda`)
  }
  return 0
}

function cudaDriver() {
  const query = spawnSync('nvidia-smi', ['--query-gpu=name,driver_version', '--format=csv,noheader'], { encoding: 'utf8', timeout: 10_000 })
  if (query.status === 0 && query.stdout.trim()) return query.stdout.trim().split('\n').join('; ')
  try {
    return fs.readFileSync('/proc/driver/nvidia/version', 'utf8').split('\n')[0]
  } catch {
    return 'none found'
  }
}

function describeBinary(file, record) {
  const glibc = process.platform === 'linux' ? glibcNeeded(file) : undefined
  const made = record?.seconds !== undefined ? `, by ${record.buildSystem} in ${record.seconds} s` : ''
  return `${path.relative(root, file)} (${(fs.statSync(file).size / 1e6).toFixed(1)} MB${glibc ? `, needs glibc ${glibc}` : ''}${made})`
}

function doctor(args) {
  if (args.length > 0) throw new UsageError(`unknown option ${args[0]}`)
  const say = (what, text) => console.log(`${what.padEnd(15)}${text}`)

  const { version } = require('../package.json')
  const { glibcVersionRuntime } = process.report.getReport().header
  const platform = `${process.platform} ${process.arch}${glibcVersionRuntime ? `, glibc ${glibcVersionRuntime}` : ''}`
  const toolkit = detectCudaToolkit()
  say('equitensor', version)
  say('node', `${process.version}, Node-API ${process.versions.napi}, ${platform}`)
  say('processor', `${os.cpus()[0]?.model.trim() ?? 'unknown'}, ${os.availableParallelism()} threads available`)
  say('cuda toolkit', toolkit ? `${toolkit.version} (${toolkit.nvcc})${toolkit.tooOld ? ', too old' : ''}` : 'none found')
  say('cuda driver', cudaDriver())

  const built = flavours.filter((flavour) => fs.existsSync(builtBinary(flavour)))
  for (const flavour of built) say(`built ${flavour}`, describeBinary(builtBinary(flavour), buildRecord(flavour)))
  if (fs.existsSync(prebuiltBinary())) say('prebuilt', describeBinary(prebuiltBinary()))
  else if (built.length === 0) say('built', 'nothing')
  const failure = buildRecord('cuda')?.failure
  if (failure) say('cuda build', `failed: ${failure}. Try again and see why:  npx equitensor build --cuda`)

  if (!fs.existsSync(path.join(root, 'dist/index.js'))) {
    console.error('\nThe TypeScript sources are not compiled: npm run build')
    return 1
  }
  let loaded
  try {
    loaded = require('../dist/native.js')
  } catch (error) {
    say('loaded', 'nothing')
    console.error(`\n${error.message}`)
    return 1
  }
  const { native, binary } = loaded
  say('loaded', `${path.relative(root, binary.file)}, stamp ${native.stamp}`)
  for (const { file, reason } of binary.refused) say('not loaded', `${path.relative(root, file)}: ${reason}`)
  try {
    const { variant, variants, threads } = native.cpuInfo()
    const built = Object.keys(builtVariants()).map((name) => (name === 'counted' ? 'and one that counts its operations, for tests and compare' : name))
    say('cpu', `${variant} (can run ${variants.join(', ')}; built ${built.join(', ')}), ${threads} threads`)
    const { cuda } = require('../dist/index.js').backends()
    say('cuda', cuda.available ? `available: ${cuda.devices.map(({ name }) => name).join(', ')}` : `unavailable: ${cuda.reason}`)
    return 0
  } catch (error) {
    console.error(`\n${error.message}`)
    return 1
  }
}

function help() {
  console.log(usage)
  return 0
}

const commands = { build, doctor, help, '--help': help, '-h': help }
const [name, ...args] = process.argv.slice(2)
try {
  if (!Object.hasOwn(commands, name ?? '')) throw new UsageError(name === undefined ? 'no command' : `unknown command ${name}`)
  process.exitCode = args.includes('--help') ? help() : commands[name](args)
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  console.error(`equitensor: ${error.message}\n\n${usage}`)
  process.exitCode = 2
}
