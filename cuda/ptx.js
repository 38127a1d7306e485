'use strict'
// The PTX of every kernel source, for the emulation's interpreter (test/emulation/ptx.hpp). As a program it compiles what is missing: `npm run test:emulated` does so
// before its tests, since two of them need it, on workers of their own.

const { execFileSync, spawn } = require('node:child_process')
const { createHash } = require('node:crypto')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { detectCudaToolkit } = require('../bin/build.js')
const { root, cuda, cudaOptions } = require('../bin/sources.js')

const folder = path.join(root, 'build/ptx')
/** What the figures are modelled for. */
const card = 'sm_90'

function options() {
  return [...cudaOptions().filter((option) => !option.startsWith('-Xptxas')), '-I.', `-arch=${card}`, '-lineinfo', '-ptx']
}

/** One file a kernel source, named after everything that it depends on: the headers, the options and the toolkit. */
function files({ version }) {
  const headers = ['core', 'cuda'].flatMap((folder) => fs.readdirSync(path.join(root, folder)).map((name) => `${folder}/${name}`))
  return cuda.kernels.map((source) => {
    const hash = createHash('sha256').update(`${version} ${options().join(' ')}`)
    for (const name of [source, ...headers.filter((name) => /\.(hpp|cuh)$/.test(name)).sort()]) hash.update(fs.readFileSync(path.join(root, name)))
    const stem = path.basename(source, '.cu')
    return { source, stem, file: path.join(folder, `${stem}.${hash.digest('hex').slice(0, 12)}.ptx`) }
  })
}

function compile(nvcc, { source, stem, file }) {
  const isOlder = (name) => name.startsWith(`${stem}.`) && name.endsWith('.ptx') && name !== path.basename(file)
  for (const name of fs.readdirSync(folder).filter(isOlder)) fs.rmSync(path.join(folder, name), { force: true })
  return new Promise((resolve, reject) => {
    const unfinished = `${file}.${process.pid}`
    const compiler = spawn(nvcc, [...options(), '-o', unfinished, source], { cwd: root, stdio: ['ignore', 'ignore', 'pipe'] })
    let text = ''
    compiler.stderr.setEncoding('utf8').on('data', (part) => (text += part))
    compiler.on('error', reject)
    compiler.on('close', (code) => {
      if (code !== 0) return reject(new Error(`nvcc failed on ${source}:\n${text}`))
      // Whole or not at all: others may be compiling the same.
      fs.renameSync(unfinished, file)
      resolve()
    })
  })
}

function plan() {
  const toolkit = detectCudaToolkit()
  if (!toolkit) throw new Error('there is no CUDA toolkit: nvcc is neither on PATH nor in CUDA_HOME')
  if (toolkit.tooOld) throw new Error(`the CUDA toolkit ${toolkit.version} is too old`)
  const all = files(toolkit)
  return { nvcc: toolkit.nvcc, all, missing: all.filter(({ file }) => !fs.existsSync(file)) }
}

async function compileMissing({ nvcc, missing }) {
  fs.mkdirSync(folder, { recursive: true })
  const worker = async () => {
    for (let one; (one = missing.shift()); ) await compile(nvcc, one)
  }
  await Promise.all(Array.from({ length: os.availableParallelism() }, worker))
}

/**
 * The PTX of all kernels, one text a source; sources that have changed are compiled first (200 s of CPU time for all of them).
 * @throws Error where there is no toolkit, or where nvcc fails.
 */
function ptx() {
  const { all, missing } = plan()
  // In a process of its own, since waiting for several compilers at once takes an event loop.
  if (missing.length > 0) execFileSync(process.execPath, [__filename], { stdio: ['ignore', 'inherit', 'pipe'], encoding: 'utf8' })
  // -lineinfo names files by their whole path.
  const named = (text) => text.replace(/^(\s*\.file\s+\d+ ")(.*)"/gm, (_, begin, file) => `${begin}${path.relative(root, file)}"`)
  return all.map(({ file }) => named(fs.readFileSync(file, 'utf8')))
}

module.exports = { ptx }

if (require.main === module && detectCudaToolkit()) {
  compileMissing(plan()).catch((error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
