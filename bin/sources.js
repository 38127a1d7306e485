'use strict'
// What the native addon is made of: addon/sources.json as binding.gyp and CMakeLists.txt want it, so that the two builds
// cannot differ. As a program it prints one answer, one item a line.

const { execFileSync } = require('node:child_process')
const { createHash } = require('node:crypto')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')
const list = JSON.parse(fs.readFileSync(path.join(root, 'addon/sources.json'), 'utf8'))

/** The kernel variants of an architecture, with the compiler flags of each. */
function variants(arch = process.arch) {
  return list.variants[arch] ?? { baseline: [], counted: [] }
}

function variantOptions(variant, arch) {
  const counting = variant === 'counted' ? ['-DEQUITENSOR_COUNT'] : []
  return [`-DEQUITENSOR_VARIANT=${variant}`, ...counting, ...variants(arch)[variant]]
}

/** Tells the sources that choose a variant at run time which ones there are beside the baseline. */
function variantDefines(arch) {
  return Object.keys(variants(arch))
    .filter((variant) => variant !== 'baseline')
    .map((variant) => `EQUITENSOR_HAS_${variant.toUpperCase()}`)
}

// The kernels' coefficients are evaluated at compile time, which takes more steps than compilers allow by default.
function constexprLimit() {
  const compiler = process.env.CXX || (process.platform === 'darwin' ? 'c++' : 'g++')
  let version = ''
  try {
    version = execFileSync(compiler, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  } catch {
    // Without a compiler the build fails by itself, and says so better than this program could.
  }
  return version.includes('clang') ? '-fconstexpr-steps=2000000000' : '-fconstexpr-ops-limit=2000000000'
}

/** Options of every source. Neither -march=native nor fast-math: a binary's results depend on the variant chosen, only. */
function options() {
  return [
    '-std=c++20',
    '-O3',
    '-DNDEBUG',
    '-fexceptions',
    '-fvisibility=hidden',
    '-fvisibility-inlines-hidden',
    '-ffp-contract=fast',
    '-fno-math-errno',
    '-fno-trapping-math',
    constexprLimit(),
  ]
}

/**
 * Options of node-gyp's link. The binary that the package contains runs with older C++ libraries than the builder's, so it brings its
 * own. libgcc_s stays outside: Node needs it anyway, and g++ 12's static one asks for glibc 2.35 (_dl_find_object). What is not called
 * is left out, since std::random_device, which comes along with std::string, asks for glibc 2.36 (arc4random).
 */
function linkOptions() {
  return process.env.EQUITENSOR_PORTABLE ? ['-static-libstdc++', '-Wl,--exclude-libs,libstdc++.a', '-Wl,--gc-sections'] : []
}

/**
 * The architectures that this toolkit can compile for: the list's, or those named by EQUITENSOR_CUDA_ARCHITECTURES (90-real is the
 * quickest build for an H100). A toolkit that is older than the last of them gets PTX of the newest that it knows, for the driver.
 */
function cudaArchitectures(nvcc = 'nvcc') {
  const wanted = process.env.EQUITENSOR_CUDA_ARCHITECTURES?.split(/[;,\s]+/).filter(Boolean) ?? list.cuda.architectures
  const known = new Set(execFileSync(nvcc, ['--list-gpu-arch'], { encoding: 'utf8' }).match(/(?<=compute_)\d+/g))
  const possible = wanted.filter((architecture) => known.has(parseInt(architecture).toString()))
  if (possible.length === 0) throw new Error(`${nvcc} compiles for none of ${wanted.join(', ')}`)
  const newest = Math.max(...possible.map((architecture) => parseInt(architecture)))
  return possible.length < wanted.length ? [...possible.filter((one) => one !== `${newest}-virtual`), `${newest}-virtual`] : possible
}

/** Options of nvcc, with the standard among them as CMake knows nvcc's only from 3.25 on. As on the CPU no fast-math: its division, square root and denormals are not IEEE's. */
function cudaOptions() {
  return ['-std=c++20', '-O3', '-DNDEBUG', '--expt-relaxed-constexpr', '-Xptxas=-warn-spills', '-Xptxas=-warn-lmem-usage']
}

/**
 * nvcc goes through the architectures one by one, or as many at once as it is told. Two at least: cuda/weighted.cu and cuda/weighted_channelwise.cu take two
 * fifths of all, and are the first ones in the list for that.
 */
function cudaThreads() {
  return `--threads=${Math.max(2, Math.floor(os.availableParallelism() / list.cuda.kernels.length))}`
}

function filesUnder(folder) {
  if (!fs.existsSync(path.join(root, folder))) return []
  return fs.readdirSync(path.join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const name = `${folder}/${entry.name}`
    return entry.isDirectory() ? filesUnder(name) : [name]
  })
}

/** Names the state of the native sources: `<package version>+<hash of every file that the binary is made from>`. */
function stamp() {
  const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))
  const files = ['addon', 'core', 'cpu', 'cuda'].flatMap(filesUnder).filter((name) => /\.(cpp|hpp|h|cu|cuh)$/.test(name))
  const hash = createHash('sha256')
  for (const name of [...files, 'addon/sources.json', 'binding.gyp', 'CMakeLists.txt', 'bin/sources.js'].sort()) {
    const text = fs.readFileSync(path.join(root, name))
    hash.update(`${name} ${text.length}\n`).update(text)
  }
  return `${version}+${hash.digest('hex').slice(0, 12)}`
}

module.exports = { root, variants, stamp, cuda: list.cuda, cudaArchitectures, cudaOptions }

const questions = {
  common: () => list.common,
  kernels: () => list.kernels,
  options,
  'link-options': linkOptions,
  stamp: () => [stamp()],
  variants: (arch) => Object.keys(variants(arch)),
  'variant-options': variantOptions,
  'variant-defines': variantDefines,
  'cuda-hosts': () => list.cuda.hosts,
  'cuda-kernels': () => list.cuda.kernels,
  'cuda-architectures': cudaArchitectures,
  'cuda-options': () => [...cudaOptions(), cudaThreads()],
  'emulation-header': () => [list.cuda.emulation.header],
  'emulation-sources': () => list.cuda.emulation.sources,
}

if (require.main === module) {
  const [question, ...details] = process.argv.slice(2)
  console.log(questions[question](...details).join('\n'))
}
