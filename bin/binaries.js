'use strict'
// Which binaries of the addon there can be, and where. The loader, the build and doctor agree by asking here.

const path = require('node:path')
const { root } = require('./sources.js')

/** cuda: CPU and CUDA kernels; cpu: CPU kernels only; emulated: CPU kernels, and the CUDA sources run on the CPU, for tests. */
const flavours = ['cuda', 'cpu', 'emulated']

function builtBinary(flavour, base = root) {
  return path.join(base, 'build/Release', `equitensor_${flavour}.node`)
}

/** Comes with the package for linux-x64, so that an install works where neither scripts nor compilers are. */
function prebuiltBinary(base = root) {
  return path.join(base, 'prebuilds', `${process.platform}-${process.arch}`, 'equitensor_cpu.node')
}

/**
 * What the loader tries, in this order: what was built here before what came with the package. EQUITENSOR_BINARY names one flavour;
 * the emulated one is far too slow for anything but tests and is loaded only then.
 */
function candidates(base = root, wanted = process.env.EQUITENSOR_BINARY) {
  if (wanted && !flavours.includes(wanted)) throw new Error(`EQUITENSOR_BINARY is ${flavours.join(', ')} or unset, not '${wanted}'`)
  return (wanted ? [wanted] : ['cuda', 'cpu']).flatMap((flavour) => [
    { flavour, file: builtBinary(flavour, base) },
    ...(flavour === 'cpu' ? [{ flavour, file: prebuiltBinary(base) }] : []),
  ])
}

module.exports = { flavours, builtBinary, prebuiltBinary, candidates }
