'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { builtBinary, flavours, prebuiltBinary } = require('./binaries.js')
const { compareVersions, glibcNeeded } = require('./elf.js')
const { root, stamp } = require('./sources.js')

/** C++20 came with nvcc 12.0. */
const oldestToolkit = '12.0'

/** Rocky Linux 9's; Ubuntu 22.04 has 2.35 and Debian 12 has 2.36. */
const newestGlibc = '2.34'

/** The CUDA toolkit that a build would use: `{ nvcc, version, tooOld }`, or undefined where there is none. */
function detectCudaToolkit() {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH].filter(Boolean)
  const folders = [...homes.map((home) => path.join(home, 'bin')), ...(process.env.PATH ?? '').split(path.delimiter)]
  for (const folder of folders) {
    const nvcc = path.join(folder, 'nvcc')
    if (!fs.existsSync(nvcc)) continue
    try {
      const [, version] = /release ([\d.]+)/.exec(execFileSync(nvcc, ['--version'], { encoding: 'utf8' })) ?? []
      if (version) return { nvcc, version, tooOld: compareVersions(version, oldestToolkit) < 0 }
    } catch {
      // An nvcc that does not start is no toolkit.
    }
  }
  return undefined
}

// Most Node installations bring their headers along. node-gyp would download them all the same, and fail offline.
function ownHeaders() {
  if (process.env.npm_config_nodedir) return []
  const prefix = path.join(path.dirname(process.execPath), '..')
  try {
    const text = fs.readFileSync(path.join(prefix, 'include/node/node_version.h'), 'utf8')
    const number = (part) => new RegExp(`#define NODE_${part}_VERSION (\\d+)`).exec(text)[1]
    const version = `${number('MAJOR')}.${number('MINOR')}.${number('PATCH')}`
    return version === process.versions.node ? [`--nodedir=${prefix}`] : []
  } catch {
    return []
  }
}

function run(script, args, env = {}) {
  const result = spawnSync(process.execPath, [require.resolve(script), ...args], {
    cwd: root,
    stdio: 'inherit',
    // The build runs `node` by name, and should find this one.
    env: { ...process.env, PATH: path.dirname(process.execPath) + path.delimiter + (process.env.PATH ?? ''), ...env },
  })
  if (result.error) throw result.error
  if (result.status !== 0) throw new Error(`${path.basename(script, '.js')} failed (${result.signal ?? `exit ${result.status}`})`)
}

const buildSystems = {
  'node-gyp'(flavour, portable) {
    if (flavour !== 'cpu') throw new Error('node-gyp builds the CPU part only')
    run('node-gyp/bin/node-gyp.js', ['configure', 'build', '--release', '--jobs=max', ...ownHeaders()], portable ? { EQUITENSOR_PORTABLE: '1' } : {})
  },
  // Takes its headers from the package node-api-headers, since package.json has binary.napi_versions.
  'cmake-js'(flavour) {
    if (spawnSync('cmake', ['--version']).status !== 0) throw new Error('this build needs CMake 3.22 or newer, and there is no cmake')
    const place = ['--out', path.join(root, 'build/cmake'), `--CDNODE_EXECUTABLE=${process.execPath}`]
    const options = [`--CDEQUITENSOR_CUDA=${{ cpu: 'off', cuda: 'on', emulated: 'emulated' }[flavour]}`]
    if (flavour === 'cuda') {
      const toolkit = detectCudaToolkit()
      if (!toolkit) throw new Error('there is no CUDA toolkit: nvcc is neither on PATH nor in CUDA_HOME')
      if (toolkit.tooOld) throw new Error(`the CUDA toolkit ${toolkit.version} is too old: ${oldestToolkit} or newer is needed`)
      options.push(`--CDCMAKE_CUDA_COMPILER=${toolkit.nvcc}`)
    }
    // Configured every time: the stamp is computed then.
    run('cmake-js/bin/cmake-js', ['configure', ...place, ...options])
    run('cmake-js/bin/cmake-js', ['build', ...place, '--parallel', String(os.availableParallelism())])
  },
}

function recordFile(flavour) {
  return builtBinary(flavour).replace(/node$/, 'json')
}

/** What the last build of a flavour wrote down: `{ buildSystem, stamp, seconds }`, `{ failure }`, or undefined. */
function buildRecord(flavour) {
  const file = recordFile(flavour)
  return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : undefined
}

function writeRecord(flavour, record) {
  fs.mkdirSync(path.dirname(recordFile(flavour)), { recursive: true })
  fs.writeFileSync(recordFile(flavour), JSON.stringify(record) + '\n')
}

function removeBuilt(flavour) {
  fs.rmSync(builtBinary(flavour), { force: true })
  fs.rmSync(recordFile(flavour), { force: true })
}

/** Builds one flavour and returns its file. */
function buildNative(flavour, { buildSystem = flavour === 'cpu' ? 'node-gyp' : 'cmake-js', portable = false } = {}) {
  const started = Date.now()
  // A failed build must not leave the previous binary behind; and one that is in use must not be written over.
  removeBuilt(flavour)
  try {
    buildSystems[buildSystem](flavour, portable)
  } catch (error) {
    writeRecord(flavour, { failure: error.message })
    throw error
  }
  writeRecord(flavour, { buildSystem, stamp: stamp(), seconds: Math.round((Date.now() - started) / 1000) })
  // Of several flavours the loader prefers one, and it should not be one of older sources.
  for (const other of flavours) {
    if (fs.existsSync(builtBinary(other)) && buildRecord(other)?.stamp !== stamp()) removeBuilt(other)
  }
  return builtBinary(flavour)
}

/** Whether the package's own binary runs here: the C library may be another, or too old. In a process of its own, as it may crash. */
function prebuiltWorks() {
  const file = prebuiltBinary()
  if (!fs.existsSync(file)) return false
  const program = 'process.stdout.write(require(process.argv[1]).stamp)'
  const { status, stdout } = spawnSync(process.execPath, ['-e', program, file], { encoding: 'utf8' })
  return status === 0 && stdout === stamp()
}

/** Makes the binary that the packed package contains. Returns its file. */
function buildPrebuilt() {
  const target = prebuiltBinary()
  fs.rmSync(path.dirname(target), { recursive: true, force: true })
  const built = buildNative('cpu', { portable: true })
  const glibc = glibcNeeded(built)
  if (compareVersions(glibc, newestGlibc) > 0) throw new Error(`the binary needs glibc ${glibc}, newer than ${newestGlibc}: see objdump -T ${built}`)
  fs.mkdirSync(path.dirname(target), { recursive: true })
  execFileSync('strip', ['--strip-unneeded', '-o', target, built])
  return target
}

module.exports = { buildNative, buildPrebuilt, buildRecord, detectCudaToolkit, oldestToolkit, prebuiltWorks }
