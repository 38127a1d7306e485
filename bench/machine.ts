// Where a comparison runs. What differs between the CPU, a GPU and the emulation of one is a Machine: cpu.ts, gpu.ts, emulated.ts.
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { native } from '../lib/native'
import type { Goals } from './goals'
import type { Memory, Pool } from './measure'
import type { Pass } from './passes'
import type { MakeOptions, Operand, TensorProduct } from './problems'
import type { Counted, Measured, Outcome, Run, Table } from './report'

/** A setting that makes no sense, or not here. */
export class BadFlag extends Error {}

export interface Speed {
  /** Bytes a second, read plus written, of a copy. */
  copyBandwidth: number
  /** Fused multiply-adds a second, counted over all lanes. */
  fmaPeak: number
}

export interface Machine<A extends Operand> {
  /** What operations are made with. */
  readonly options: Pick<MakeOptions, 'backend' | 'device' | 'threads'>
  /** Items a call. */
  readonly batch: number
  /** Of how many sets of arrays a pass is given at most. */
  readonly mostSets: number
  readonly memory: Memory<A>

  /** Memory for passes that read and write at most so many bytes. @throws BadFlag where there is too little. */
  allocate(toRead: number, toWrite: number): Pool<A>
  /** What it can do at best: the floors rest on it. */
  measureSpeed(): Speed
  measure(op: TensorProduct, pass: Pass, sets: readonly Record<string, A>[]): Pick<Measured, 'status' | 'timing'> | Pick<Counted, 'status' | 'counts'>

  /** What the results file says of it. */
  details(): object
  /** What a reader needs to judge the table, above it. */
  heading(run: Run): string[]
  table: Table
  /** What the table's columns mean. */
  readonly meanings: Record<string, string>
  /** What follows from an outcome, for the results file; `median`: the run's speed. */
  derived(outcome: Outcome, median: Speed): object
  goals: Goals
  /** What makes the numbers doubtful. */
  remarks(run: Run): string[]
}

export const median = (values: readonly number[]) => quantile(values, 0.5)

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = q * (sorted.length - 1)
  const low = Math.floor(at)
  return sorted[low]! + (at - low) * ((sorted[low + 1] ?? sorted[low]!) - sorted[low]!)
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
