'use strict'
// npm's install script. It exits with an error when the addon cannot be built: a package that then failed at its first
// import would hide the reason.

const { buildNative } = require('./build.js')
const remedies = require('./remedies.js')

try {
  buildNative()
} catch (error) {
  console.error(`
equitensor: the native addon could not be built: ${error.message}
The messages of the compiler are above. npm does not keep a package whose install script failed: remove the cause and
install again, or install with --ignore-scripts and build afterwards.

${remedies}
`)
  process.exit(1)
}
