'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { root } = require('./sources.js')

const outputs = path.join(root, 'build/Release')
const binary = path.join(outputs, 'equitensor_cpu.node')
const recordFile = path.join(outputs, 'equitensor_cpu.json')

/** The CUDA toolkit that a build would use: `{ nvcc, version }`, or undefined where there is none. */
function detectCudaToolkit() {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH].filter(Boolean)
  const folders = [...homes.map((home) => path.join(home, 'bin')), ...(process.env.PATH ?? '').split(path.delimiter)]
  for (const folder of folders) {
    const nvcc = path.join(folder, 'nvcc')
    if (!fs.existsSync(nvcc)) continue
    try {
      const [, version] = /release ([\d.]+)/.exec(execFileSync(nvcc, ['--version'], { encoding: 'utf8' })) ?? []
      if (version) return { nvcc, version }
    } catch {
      // An nvcc that does not start is no toolkit.
    }
  }
  return undefined
}

/** cmake-js belongs where a CUDA toolkit is, since only CMake knows CUDA; there are no CUDA kernels to compile yet. */
function defaultBuildSystem() {
  const hasCudaKernels = false
  return hasCudaKernels && detectCudaToolkit() ? 'cmake-js' : 'node-gyp'
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

function run(script, args) {
  const result = spawnSync(process.execPath, [require.resolve(script), ...args], {
    cwd: root,
    stdio: 'inherit',
    // The build runs `node` by name, and should find this one.
    env: { ...process.env, PATH: path.dirname(process.execPath) + path.delimiter + (process.env.PATH ?? '') },
  })
  if (result.error) throw result.error
  if (result.status !== 0) throw new Error(`${path.basename(script, '.js')} failed (${result.signal ?? `exit ${result.status}`})`)
}

const buildSystems = {
  'node-gyp'() {
    run('node-gyp/bin/node-gyp.js', ['configure', 'build', '--release', '--jobs=max', ...ownHeaders()])
  },
  // Takes its headers from the package node-api-headers, since package.json has binary.napi_versions.
  'cmake-js'() {
    const place = ['--out', path.join(root, 'build/cmake'), `--CDNODE_EXECUTABLE=${process.execPath}`]
    // Configured every time: the stamp is computed then.
    run('cmake-js/bin/cmake-js', ['configure', ...place])
    run('cmake-js/bin/cmake-js', ['build', ...place, '--parallel', String(os.availableParallelism())])
  },
}

function buildNative(buildSystem = defaultBuildSystem()) {
  // A failed build must not leave the previous binary behind; and one that is in use must not be written over.
  fs.rmSync(binary, { force: true })
  fs.rmSync(recordFile, { force: true })
  buildSystems[buildSystem]()
  fs.writeFileSync(recordFile, JSON.stringify({ buildSystem }) + '\n')
}

/** What the last build here wrote down about itself, if there was one. */
function buildRecord() {
  return fs.existsSync(recordFile) ? JSON.parse(fs.readFileSync(recordFile, 'utf8')) : undefined
}

module.exports = { binary, buildNative, buildRecord, detectCudaToolkit }
