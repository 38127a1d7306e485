'use strict'
// Writes the ESM entry after tsc: the names that the CommonJS one exports, so that both give the same objects. It reads
// the compiled text, in which types are gone, and loads nothing: the native addon may not be built yet.

const fs = require('node:fs')
const path = require('node:path')

const dist = path.join(__dirname, '../dist')
const compiled = fs.readFileSync(path.join(dist, 'index.js'), 'utf8')
const names = Array.from(compiled.matchAll(/^Object\.defineProperty\(exports, "(\w+)", \{ enumerable/gm), ([, name]) => name)

if (names.length === 0 || compiled.includes('__exportStar')) {
  throw new Error("lib/index.ts must consist of `export { names } from './file'`")
}

fs.writeFileSync(path.join(dist, 'index.mjs'), `export { ${names.join(', ')} } from './index.js'\n`)
fs.writeFileSync(path.join(dist, 'index.d.mts'), "export * from './index.js'\n")
