'use strict'
// Writes the ESM entries after tsc: the names that the CommonJS ones export, so that both give the same objects. It reads
// the compiled text, in which types are gone, and loads nothing: the native addon may not be built yet.

const fs = require('node:fs')
const path = require('node:path')

const dist = path.join(__dirname, '../dist')

for (const entry of ['index', 'tfjs', 'jax']) {
  const compiled = fs.readFileSync(path.join(dist, `${entry}.js`), 'utf8')
  // Those of another file, and its own.
  const exported = /^(?:Object\.defineProperty\(exports, "(\w+)", \{ enumerable|exports\.(\w+) = \2;)/gm
  const names = Array.from(compiled.matchAll(exported), ([, from, own]) => from ?? own)

  if (names.length === 0 || compiled.includes('__exportStar')) {
    throw new Error(`lib/${entry}.ts must export functions, or \`{ names } from './file'\``)
  }

  // Not `export ... from`: where the CommonJS module throws, as without a peer, Node 20 reports it a second time as uncaught, though the import was caught.
  const esm = `import { createRequire } from 'node:module'\nexport const { ${names.join(', ')} } = createRequire(import.meta.url)('./${entry}.js')\n`
  fs.writeFileSync(path.join(dist, `${entry}.mjs`), esm)
  fs.writeFileSync(path.join(dist, `${entry}.d.mts`), `export * from './${entry}.js'\n`)
}
