'use strict'
// Before npm packs: the binary for linux-x64. Other systems pack without one.
const fs = require('node:fs')
const path = require('node:path')
const { buildPrebuilt } = require('./build.js')
const { glibcNeeded } = require('./elf.js')
const { root } = require('./sources.js')

if (process.platform === 'linux' && process.arch === 'x64') {
  try {
    const file = buildPrebuilt()
    console.error(`${path.relative(root, file)}: ${fs.statSync(file).size} bytes, needs glibc ${glibcNeeded(file)}`)
  } catch (error) {
    console.error(`equitensor: no binary for the package: ${error.message}`)
    // npm also packs what it installs from a git address, and there a missing binary is no loss.
    if (['pack', 'publish'].includes(process.env.npm_command)) process.exit(1)
  }
} else {
  console.error(`equitensor: packed on ${process.platform}-${process.arch}, so without the binary for linux-x64`)
}
