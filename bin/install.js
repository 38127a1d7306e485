'use strict'
// npm's install script. EQUITENSOR_BUILD says what to build:
//   auto      (or unset) CPU and CUDA where a CUDA toolkit is, else the CPU part. Nobody who only wants the CPU should fail because
//             of a toolkit that happens to be there, so if CUDA cannot be built this says so and goes on with the CPU part.
//   cpu, cuda, emulated: this, from source, and an error if that does not work.
// It exits with an error when nothing can be built: a package that then failed at its first import would hide the reason.

const fs = require('node:fs')
const path = require('node:path')
const { flavours } = require('./binaries.js')
const { buildNative, detectCudaToolkit, oldestToolkit, prebuiltWorks } = require('./build.js')
const remedies = require('./remedies.js')
const { root } = require('./sources.js')

function box(text) {
  const line = '='.repeat(100)
  console.error(`\n${line}\n${text}\n${line}\n`)
}

function tryCuda() {
  const toolkit = detectCudaToolkit()
  const later = `Afterwards:  npx equitensor build --cuda`
  if (!toolkit) {
    console.log(`equitensor: no CUDA toolkit found (nvcc on PATH or in CUDA_HOME), so only the CPU part is installed.
To get the CUDA part, install the toolkit ${oldestToolkit} or newer and CMake. ${later}`)
    return false
  }
  try {
    buildNative('cuda')
    return true
  } catch (error) {
    box(`equitensor: THE CUDA PART WAS NOT BUILT: ${error.message}
The toolkit is ${toolkit.version} (${toolkit.nvcc}). The messages of the compiler, if any, are above.
The installation goes on with the CPU part, which is complete without CUDA. Remove the cause. ${later}
EQUITENSOR_BUILD=cpu skips the attempt; EQUITENSOR_BUILD=cuda makes the installation fail instead.`)
    return false
  }
}

function installCpu() {
  // In a checkout the sources may be newer than any binary, and are what is to be tested.
  if (!fs.existsSync(path.join(root, '.git')) && prebuiltWorks()) {
    console.log('equitensor: the CPU part that came with the package runs here; nothing to compile (EQUITENSOR_BUILD=cpu compiles it).')
  } else {
    buildNative('cpu')
  }
}

const wanted = process.env.EQUITENSOR_BUILD || 'auto'
if (wanted !== 'auto' && !flavours.includes(wanted)) {
  console.error(`\nequitensor: EQUITENSOR_BUILD is auto, ${flavours.join(', ')} or unset, not '${wanted}'. Nothing was built.\n`)
  process.exit(1)
}
try {
  if (wanted !== 'auto') buildNative(wanted)
  else if (!tryCuda()) installCpu()
} catch (error) {
  console.error(`
equitensor: the native addon could not be built: ${error.message}
The messages of the compiler, if any, are above. npm does not keep a package whose install script failed: remove the cause and
install again, or install with --ignore-scripts and build afterwards.

${remedies}
`)
  process.exit(1)
}
