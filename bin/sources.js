'use strict'
// What the native addon is made of: addon/sources.json as binding.gyp and CMakeLists.txt want it, so that the two builds
// cannot differ. As a program it prints one answer, one item a line.

const { execFileSync } = require('node:child_process')
const { createHash } = require('node:crypto')
const fs = require('node:fs')
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
  const files = ['addon', 'core', 'cpu', 'cuda'].flatMap(filesUnder).filter((name) => /\.(cpp|hpp|h|cu|cuh|json)$/.test(name))
  const hash = createHash('sha256')
  for (const name of [...files, 'binding.gyp', 'CMakeLists.txt', 'bin/sources.js'].sort()) {
    const text = fs.readFileSync(path.join(root, name))
    hash.update(`${name} ${text.length}\n`).update(text)
  }
  return `${version}+${hash.digest('hex').slice(0, 12)}`
}

module.exports = { root, variants, stamp }

const questions = {
  common: () => list.common,
  kernels: () => list.kernels,
  options,
  stamp: () => [stamp()],
  variants: (arch) => Object.keys(variants(arch)),
  'variant-options': variantOptions,
  'variant-defines': variantDefines,
}

if (require.main === module) {
  const [question, ...details] = process.argv.slice(2)
  console.log(questions[question](...details).join('\n'))
}
