// What `npm run compare -- --suite` runs instead of the head-to-head: real models' layers, and operations by themselves. A new suite is one entry here.
import { convolution } from './convolution'
import { factors, harmonics, manyBody } from './operation_suite'
import { models } from './weighted'
import type { PassName } from './passes'
import type { Dtype, Layout } from './problems'

export interface SuiteSettings {
  problems: string[]
  passes: PassName[]
  layouts: Layout[]
  /** Items a call, at most. */
  batch: number
  dtype: Dtype
  threads: number
  /** Counted on the emulation of CUDA; otherwise timed on the CPU. */
  backend?: 'cuda'
  /** A file in extended XYZ. */
  molecules?: string
}

export interface SuiteRun {
  /** Lines of what is printed. */
  text: string[]
  json: object
  /** What makes the run fail. */
  wrong: string[]
}

export interface Suite {
  name: string
  meaning: string
  /** `L`: of problems by degree. */
  problems: readonly { name: string; L?: number }[]
  /** Those that are measured by default. */
  degrees?: readonly number[]
  run(settings: SuiteSettings, progress: (done: number, all: number, text: string) => void): SuiteRun
}

export const suites: readonly Suite[] = [models, convolution, manyBody, harmonics, factors]
