#!/usr/bin/env node
'use strict'
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { binary, buildNative, buildRecord, detectCudaToolkit } = require('./build.js')
const remedies = require('./remedies.js')
const { root, stamp, variants: builtVariants } = require('./sources.js')

const usage = `Usage: equitensor <command>

  build [--cmake]   compile the native addon in the installed package (with cmake-js instead of node-gyp)
  doctor            print what was built and what this machine can run`

function build() {
  try {
    buildNative(process.argv.includes('--cmake') ? 'cmake-js' : undefined)
  } catch (error) {
    console.error(`\nequitensor: ${error.message}\n\n${remedies}`)
    return 1
  }
  console.log(`built ${path.relative(root, binary)}, stamp ${stamp()}`)
  return 0
}

function cudaDriver() {
  try {
    return fs.readFileSync('/proc/driver/nvidia/version', 'utf8').split('\n')[0]
  } catch {
    return 'none found'
  }
}

function doctor() {
  const say = (what, text) => console.log(`${what.padEnd(14)}${text}`)

  const { version } = require('../package.json')
  const { glibcVersionRuntime } = process.report.getReport().header
  const platform = `${process.platform} ${process.arch}${glibcVersionRuntime ? `, glibc ${glibcVersionRuntime}` : ''}`
  const toolkit = detectCudaToolkit()
  say('equitensor', version)
  say('node', `${process.version}, Node-API ${process.versions.napi}, ${platform}`)
  say('processor', `${os.cpus()[0]?.model.trim() ?? 'unknown'}, ${os.availableParallelism()} threads available`)
  say('cuda', 'not part of this version')
  say('cuda toolkit', toolkit ? `${toolkit.version} (${toolkit.nvcc}), not used` : 'none found')
  say('cuda driver', cudaDriver())

  const record = buildRecord()
  say('addon', fs.existsSync(binary) ? path.relative(root, binary) : 'not built')
  if (record) say('built with', `${record.buildSystem}: ${Object.keys(builtVariants()).join(', ')}`)
  try {
    const { native } = require('../dist/native.js')
    const { variant, variants, threads } = native.cpuInfo()
    say('stamp', native.stamp)
    say('cpu', `${variant} (can run ${variants.join(', ')}), ${threads} threads`)
    return 0
  } catch (error) {
    say('cpu', 'the addon does not load')
    const compiled = fs.existsSync(path.join(root, 'dist/native.js'))
    console.error(`\n${compiled ? error.message : 'The TypeScript sources are not compiled: npm run build'}`)
    return 1
  }
}

const commands = { build, doctor }
const command = Object.hasOwn(commands, process.argv[2]) ? commands[process.argv[2]] : undefined
if (command) {
  process.exitCode = command()
} else {
  console.error(usage)
  process.exitCode = 2
}
