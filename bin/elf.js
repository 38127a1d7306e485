'use strict'
// As much of the ELF format as this package needs, for the host's addon and for the GPU's cubins: both are 64-bit little-endian.

const fs = require('node:fs')

/** The sections of a file: name, bytes, and the section that `link` points to. */
function sections(file) {
  const data = fs.readFileSync(file)
  if (data.readUInt32BE(0) !== 0x7f454c46 || data[4] !== 2 || data[5] !== 1) throw new Error(`${file} is not a 64-bit little-endian ELF file`)
  const table = Number(data.readBigUInt64LE(40))
  const size = data.readUInt16LE(58)
  const headers = Array.from({ length: data.readUInt16LE(60) }, (_, i) => {
    const at = table + i * size
    const [offset, length] = [Number(data.readBigUInt64LE(at + 24)), Number(data.readBigUInt64LE(at + 32))]
    const occupiesFile = data.readUInt32LE(at + 4) !== 8 // NOBITS
    return { nameAt: data.readUInt32LE(at), link: data.readUInt32LE(at + 40), length, bytes: data.subarray(offset, offset + (occupiesFile ? length : 0)) }
  })
  const names = headers[data.readUInt16LE(62)].bytes
  return headers.map(({ nameAt, link, length, bytes }) => ({ name: text(names, nameAt), length, bytes, linked: headers[link].bytes }))
}

function text(bytes, at) {
  return bytes.toString('latin1', at, bytes.indexOf(0, at))
}

/** The newest version of the GNU C library that a binary asks for, as '2.34'; undefined where it asks for none. */
function glibcNeeded(file) {
  const section = sections(file).find(({ name }) => name === '.gnu.version_r')
  if (!section) return undefined
  const versions = []
  for (let need = 0, next = 1; next; need += next) {
    next = section.bytes.readUInt32LE(need + 12)
    for (let at = need + section.bytes.readUInt32LE(need + 8), step = 1; step; at += step) {
      step = section.bytes.readUInt32LE(at + 12)
      const [, version] = /^GLIBC_([\d.]+)$/.exec(text(section.linked, section.bytes.readUInt32LE(at + 8))) ?? []
      if (version) versions.push(version)
    }
  }
  return versions.sort(compareVersions).at(-1)
}

/** Negative, zero or positive as version a is older than, the same as or newer than b. */
function compareVersions(a, b) {
  const [x, y] = [a, b].map((version) => version.split('.').map(Number))
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    const difference = (x[i] ?? 0) - (y[i] ?? 0)
    if (difference) return difference
  }
  return 0
}

module.exports = { sections, glibcNeeded, compareVersions }
