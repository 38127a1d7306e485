// What this machine can do, measured in the same run as the operations: the floors rest on it.
import { execFileSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { native } from '../lib/native'
import type { Dtype } from './problems'

const MiB = 2 ** 20

/** Size of the last-level cache in bytes, as the system reports it. */
export function lastLevelCache(): number {
  try {
    if (process.platform === 'darwin') {
      const size = Number(execFileSync('sysctl', ['-n', 'hw.l3cachesize'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
      if (size > 0) return size
    }
    const folder = '/sys/devices/system/cpu/cpu0/cache'
    const sizes = readdirSync(folder)
      .filter((name) => name.startsWith('index'))
      .map((name) => readFileSync(path.join(folder, name, 'size'), 'utf8').trim())
      .map((text) => parseInt(text, 10) * (text.endsWith('M') ? MiB : text.endsWith('K') ? 1024 : 1))
    if (sizes.length) return Math.max(...sizes)
  } catch {
    // Neither source exists here.
  }
  return 64 * MiB
}

export interface Footprint {
  lastLevelCache: number
  /** Bytes to run through so that nothing is found in a cache: four times the last-level cache. */
  wanted: number
  /** The same, limited to a third of the free memory. */
  bytes: number
}

export function footprint(): Footprint {
  const cache = lastLevelCache()
  const wanted = 4 * cache
  const bytes = Math.min(wanted, Math.floor(os.freemem() / 3))
  return { lastLevelCache: cache, wanted, bytes }
}

export const median = (values: readonly number[]) => quantile(values, 0.5)

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = q * (sorted.length - 1)
  const low = Math.floor(at)
  return sorted[low]! + (at - low) * ((sorted[low + 1] ?? sorted[low]!) - sorted[low]!)
}

export interface Speed {
  /** Bytes a second, read plus written, of a copy with streaming stores. */
  copyBandwidth: number
  /** Fused multiply-adds a second, counted over all lanes. */
  fmaPeak: number
}

/** The best of some passes, as the addon measures both. */
export function measureSpeed(dtype: Dtype, threads: number, bytes: number): Speed {
  return {
    copyBandwidth: native.measureCopyBandwidth({ bytes, threads }),
    fmaPeak: native.measureFmaPeak({ dtype, threads }),
  }
}

export interface MachineDescription {
  cpu: string
  variant: string
  cores: number
  memoryGiB: number
  platform: string
  node: string
  package: string
  commit?: string
}

export function describeMachine(): MachineDescription {
  const root = path.join(__dirname, '..')
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
  const git = (...args: string[]) => {
    try {
      return execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
    } catch {
      return undefined // installed from a tarball, or no git
    }
  }
  const commit = git('rev-parse', '--short=12', 'HEAD')
  return {
    cpu: os.cpus()[0]?.model ?? 'unknown',
    variant: native.cpuInfo().variant,
    cores: os.cpus().length,
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    platform: `${process.platform} ${process.arch} ${os.release()}`,
    node: process.version,
    package: version,
    ...(commit && { commit: git('status', '--porcelain') ? `${commit} with changes` : commit }),
  }
}
