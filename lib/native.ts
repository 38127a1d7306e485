import bindings from 'bindings'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { EquitensorError } from './errors'

/** A plan in native memory. */
export interface NativeOperation {
  readonly kind: unique symbol
}

export type Pass = 'forward' | 'backward' | 'doubleBackward'

type Floats = Float32Array | Float64Array

/**
 * Arrays of one call, of one kind. Which results have an array, and whether there are directions, says which pass it is: core/call.hpp. A slot
 * that is `shared` is one row for all items; its result is the sum over them.
 */
export interface NativeArrays<A> {
  x: A
  y?: A | undefined
  z?: A | undefined
  ax?: A | undefined
  ay?: A | undefined
  /** Weights and their direction, of an operation that has them. */
  w?: A | undefined
  aw?: A | undefined
  /** Of a symmetric contraction: of every item, which set of weights it takes. */
  species?: Int32Array | undefined
  /** The same for a device, where `deviceSpecies` takes its place. */
  bySpecies?: NativeSpecies | undefined
  deviceSpecies?: NativeDeviceSpecies | undefined
  xOut?: A | undefined
  yOut?: A | undefined
  zOut?: A | undefined
  wOut?: A | undefined
  batch: number
  xShared?: boolean
  yShared?: boolean
  /** One row of weights for all items; otherwise a row an item. */
  wShared?: boolean
  /** Add to what the results hold. */
  accumulate?: boolean
  /** Of a convolution, whose items are the edges. */
  sweeps?: NativeSweeps | undefined
  deviceSweeps?: NativeDeviceSweeps | undefined
  /** On a device, add to the rows of nodes atomically, edge by edge. */
  atomic?: boolean
}

export interface NativeSpecies {
  readonly of: Int32Array
  /** Of weights, one a species. */
  readonly sets: number
  /** Of a block of threads. */
  readonly nodesAtOnce: number
}

/** Orders of a graph's edges: Sweep of core/call.hpp. The edges of node n are those from begin[n] to begin[n + 1]; `other`: the node at the other end. */
export interface NativeSweep {
  readonly begin: Int32Array
  readonly edge: Int32Array
  readonly other: Int32Array
}
export interface NativeSweeps {
  readonly senders: NativeSweep
  readonly receivers: NativeSweep
}

type Factor = 'f1' | 'f2' | 'f3' | 'f4'
/** Arrays of a call of a product of many factors: factors, their directions and gradients in place of x and y. */
export type NativeFactors<A> = { factors: true; batch: number; accumulate?: boolean; z?: A | undefined; zOut?: A | undefined } & {
  [key in Factor | `a${Factor}` | `${Factor}Out`]?: A | undefined
}
export type NativeFactorsCall = NativeFactors<Floats> & { threads: number; variant?: string }

export interface NativeCall extends NativeArrays<Floats> {
  threads: number
  /** Kernels to use instead of the fastest. */
  variant?: string
}

/** In shared memory, not 0 once nobody wants the results of an asynchronous call. */
export interface Cancellable {
  cancel?: Int32Array | undefined
}

interface NativeProduct {
  isDouble: boolean
  /** Components of an item of both inputs and of the output. */
  dims: Int32Array
  /** Packed by lib/layout.ts. */
  in1: Int32Array
  in2: Int32Array
}

export interface NativeChannelProduct extends NativeProduct {
  out: Int32Array
  mul: number
  /** Of the factors for each irrep and channel; 0: there are none. */
  rank: number
  /** Of each block. */
  parts1: Int32Array
  parts2: Int32Array
  partsOut: Int32Array
  /** [part of in1, part of in2, part of out] of each product. */
  products: Int32Array
}

/** A plan on a device, a device array, a stream and a graph: all in native memory. */
export interface NativeCudaOperation {
  readonly kind: unique symbol
}
export interface NativeDeviceSweeps {
  readonly kind: unique symbol
}
export interface NativeDeviceSpecies {
  readonly kind: unique symbol
}
export interface NativeArray {
  readonly kind: unique symbol
}
export interface NativeStream {
  readonly kind: unique symbol
}
export interface NativeGraph {
  readonly kind: unique symbol
}

export interface CudaDevice {
  readonly name: string
  /** `'9.0'` */
  readonly computeCapability: string
  /** Bytes. */
  readonly memory: number
  readonly multiprocessors: number
  /** Bytes that a block of threads can have at most. */
  readonly sharedMemoryPerBlock: number
}

/** Functions that make the plans of products, on the host and on a device. */
export type CudaProduct = 'createClebschGordan' | 'createWeighted' | 'createGaunt' | 'createGauntProduct' | 'createFourier' | 'createMatrix' | 'createMatrixBlock' | 'createSymmetricContraction'
type CudaCreate<K extends CudaProduct | 'createSphericalHarmonics'> = (
  device: number,
  form: Parameters<NativeAddon[K]>[0],
) => NativeCudaOperation

/** The CUDA half of the addon. Errors have `code`, `call` and `bytes`; call it through `cuda()` of lib/cuda.ts. Everything but
 * what says so only enqueues, on the stream that `chooseStream` chose. */
export interface NativeCuda {
  devices(): { devices: CudaDevice[]; reason?: string }
  /** Bytes of arrays, of arrays and memory kept for reuse, and of everything that V8 has been told of in this thread. */
  memory(device: number): { used: number; reserved: number; reported: number }

  allocate(device: number, bytes: number): NativeArray
  /** Waits, as every copy between host and device does. */
  from(device: number, array: Floats): NativeArray
  /** Bytes begin to end, in the same memory. */
  slice(array: NativeArray, begin: number, end: number): NativeArray
  copyFromHost(array: NativeArray, from: Floats): void
  copyFromDevice(array: NativeArray, from: NativeArray): void
  download(array: NativeArray, to: Floats): void
  overlap(a: NativeArray, b: NativeArray): boolean
  fillZero(array: NativeArray): void
  disposeArray(array: NativeArray): void

  createClebschGordan: CudaCreate<'createClebschGordan'>
  createWeighted: CudaCreate<'createWeighted'>
  createGaunt: CudaCreate<'createGaunt'>
  createGauntProduct: CudaCreate<'createGauntProduct'>
  createFourier: CudaCreate<'createFourier'>
  createMatrix: CudaCreate<'createMatrix'>
  createMatrixBlock: CudaCreate<'createMatrixBlock'>
  createSymmetricContraction: CudaCreate<'createSymmetricContraction'>
  createSphericalHarmonics: CudaCreate<'createSphericalHarmonics'>
  disposeOperation(operation: NativeCudaOperation): void
  /** Waits. */
  createSweeps(device: number, sweeps: NativeSweeps): NativeDeviceSweeps
  disposeSweeps(sweeps: NativeDeviceSweeps): void
  /** Waits. */
  createSpecies(device: number, species: Int32Array, sets: number, nodesAtOnce: number): NativeDeviceSpecies
  /** With `deviceSweeps` in the place of `sweeps` and `deviceSpecies` in that of `species`, here and in the next two. */
  run(operation: NativeCudaOperation, call: NativeArrays<NativeArray> | NativeFactors<NativeArray>): void
  /** Waits. */
  runHost(operation: NativeCudaOperation, call: NativeArrays<Floats> | NativeFactors<Floats>): void
  runHostAsync(operation: NativeCudaOperation, call: (NativeArrays<Floats> | NativeFactors<Floats>) & Cancellable): Promise<void>
  /** When the stream has done what was enqueued so far. */
  finished(device: number): Promise<void>

  createStream(device: number): NativeStream
  /** `undefined`: the thread's default stream. */
  chooseStream(device: number, stream: NativeStream | undefined): void
  /** Waits. */
  synchronize(stream: NativeStream): void
  isDone(stream: NativeStream): boolean
  disposeStream(stream: NativeStream): void
  beginCapture(device: number): void
  endCapture(): NativeGraph
  abandonCapture(): void
  replay(graph: NativeGraph): void
  disposeGraph(graph: NativeGraph): void

  /** For bench/: bytes of the device's L2 cache. */
  l2Cache(device: number): number
  /** For bench/: as copyFromDevice, by a kernel that makes the most of the memory's bandwidth. */
  copyByKernel(to: NativeArray, from: NativeArray): void
  /** For bench/: multiply-adds in every thread of a full grid, whose number it returns; `out` receives one number. */
  fmaChain(isDouble: boolean, iterations: number, out: NativeArray): number
  /** For bench/: enqueues `before`, an event, `work` and an event, `repeats` times, and waits. The milliseconds between the events of each. */
  time(device: number, repeats: number, before: () => void, work: () => void): Float64Array

  /** Emulation only: the call of that name, after `skip` more, fails with an error of CUDA's number. "kernel" is a launch's work. */
  failNext?(call: string, error: number, skip: number): void
  /** Emulation only: calls of that name so far. */
  calls?(call: string): number
  /** Emulation only: switches counting on or off, and gives what launches did since the last time. */
  counting?(on: boolean): DeviceCounts
  /** Emulation only: launches of the text's kernels run this PTX, see cuda/ptx.js; `undefined`: the C++ again. Throws for what it cannot run. */
  interpret?(ptx: string | undefined): void
  /** Emulation only: of every launch only so many blocks run, the last ones; 0: all. */
  runLastBlocks?(count: number): void
}

/** Bytes of global memory: all that was asked for, each byte once a launch, and 128-byte lines (their number). */
export interface DeviceTraffic {
  requested: number
  unique: number
  lines: number
}
export interface DeviceCounts {
  launches: number
  /** __syncthreads of a block. */
  barriers: number
  /** Bytes of memsets, which are no launches. */
  cleared: number
  /** Numbers of global memory that were added to atomically; they are in `stored` too. */
  atomics: number
  loaded: DeviceTraffic
  stored: DeviceTraffic
  /** Of plans: coefficients and indices, the same for all items. */
  table: DeviceTraffic
  /** Of launches that ran PTX: machine instructions issued for a warp, those of its lanes that take part, and `warp` by PTX instruction and by
   * "file:line" of the sources. A GPU issues 32 * warp thread-instructions. */
  instructions: { thread: number; warp: number; kinds: Record<string, number>; lines: Record<string, number> }
  /** Of launches that ran PTX: loads and stores of arrays by threads, by their bytes. */
  accesses: { load: Record<number, number>; store: Record<number, number> }
}

/** What the C++ addon exports. */
export interface NativeAddon {
  /** Names the sources that the binary was made from. */
  readonly stamp: string
  /** The kernel variant in use, those that this machine can run, and the number of threads. */
  cpuInfo(): { variant: string; variants: string[]; threads: number }

  /** `paths`: packed by lib/layout.ts. `square`: the second input is the first one, calls have no y and ay, and x gets the whole gradient. */
  createClebschGordan(form: NativeProduct & { paths: Int32Array; coefficients: Float64Array; dense: boolean; square: boolean }): NativeOperation
  /**
   * `instructions`: [in1, in2, out, mode, first weight or -1] of each, see core/weighted.hpp. Blocks are numbered as the irreps number them, so that
   * empty ones are there too.
   */
  createWeighted(
    form: NativeProduct & { out: Int32Array; weightNumel: number; instructions: Int32Array; coefficients: Float64Array },
  ): NativeOperation
  createGaunt(form: NativeChannelProduct & { rings: number; angles: number; pointwise: boolean }): NativeOperation
  /** `slots`: of the factors, and the result, with `blocks` packed by lib/layout.ts and the part of each. `power`: of the one factor; otherwise 0. */
  createGauntProduct(form: {
    isDouble: boolean
    mul: number
    slots: { dim: number; blocks: Int32Array; parts: Int32Array }[]
    power: number
    rings: number
    angles: number
  }): NativeOperation
  createFourier(form: NativeChannelProduct & { fft: boolean }): NativeOperation
  createMatrix(form: NativeChannelProduct & { k: number }): NativeOperation
  /** `paths`: [block of in1, of in2, of out] of each, with its coefficient. */
  createMatrixBlock(form: NativeChannelProduct & { paths: Int32Array; coefficients: Float64Array }): NativeOperation
  /** `paths`: [block of out, number of factors, their blocks (3), l12] of each, see core/symmetric_contraction.hpp; blocks as packed by lib/layout.ts.
   * `ranks`: of each output block, how many of its paths are independent. */
  createSymmetricContraction(form: {
    isDouble: boolean
    /** Components of an item of the input and of the output. */
    dims: Int32Array
    mul: number
    numSpecies: number
    in: Int32Array
    out: Int32Array
    paths: Int32Array
  }): { operation: NativeOperation; ranks: number[] }
  /** `scale`: factor of each degree on harmonics whose mean square over the sphere is 1. */
  createSphericalHarmonics(form: { isDouble: boolean; degrees: Int32Array; scale: Float64Array; normalize: boolean }): NativeOperation
  dispose(operation: NativeOperation): void
  /** Whether two typed arrays share memory. */
  overlap(a: ArrayBufferView, b: ArrayBufferView): boolean
  /** Operations of one item, by pass; `unrolled`: those of forward that run at the peak on the CPU. */
  flops(operation: NativeOperation): Record<Pass | 'unrolled', number>
  contract(operation: NativeOperation, call: NativeCall | NativeFactorsCall): void
  /** Copies what the call reads, and writes the results when the promise resolves. */
  contractAsync(operation: NativeOperation, call: (NativeCall | NativeFactorsCall) & Cancellable): Promise<void>
  /** Operations that kernels of the variant "counted" have executed since the last call. */
  takeCount(): number

  wigner3j(l1: number, l2: number, l3: number): Float64Array
  gauntCoefficient(l1: number, m1: number, l2: number, m2: number, l3: number, m3: number): number
  /** Path coefficient of the Gaunt product. */
  gauntPath(l1: number, l2: number, l3: number): number
  /** Path coefficient of the product of (2k+1) x (2k+1) matrices. */
  matrixPath(l1: number, l2: number, l3: number, k: number): number
  /** The same of matrices over the direct sum of the irreps 0 .. k, with `norm` or else 'component' coefficients. */
  matrixBlockPath(l1: number, l2: number, l3: number, k: number, norm: boolean): number
  wignerD(l: number, rotation: Float64Array): Float64Array

  /** Bytes read plus written a second by a streaming copy over `bytes` in total. */
  measureCopyBandwidth(options: { bytes: number; threads: number }): number
  /** Multiply-adds a second, all lanes. */
  measureFmaPeak(options: { dtype: 'float32' | 'float64'; threads: number }): number

  /** In binaries that were built with it. */
  readonly cuda?: NativeCuda
}

// This file lies one folder below the root both as lib/native.ts and as dist/native.js. `bindings` has to be told,
// since it would take the nearest package.json of whoever calls it.
const packageRoot = path.join(__dirname, '..')

// What install needs is plain JavaScript in bin/, and the loader says the same things.
const load = createRequire(__filename)
const remedies = load('../bin/remedies.js') as string
const { stamp: stampOfSources } = load('../bin/sources.js') as { stamp(): string }
const { candidates } = load('../bin/binaries.js') as { candidates(root: string): { flavour: Flavour; file: string }[] }

const versionOf = (stamp: string) => stamp.split('+')[0]

// An installed package changes only with its version. In a checkout any edit or pull can leave the binary behind.
function checkStamp(actual: string) {
  const expected = stampOfSources()
  const isCheckout = existsSync(path.join(packageRoot, '.git'))
  if (isCheckout ? actual !== expected : versionOf(actual) !== versionOf(expected)) {
    throw new Error(`it was built from other sources (stamp ${actual}, expected ${expected}): npx equitensor build`)
  }
}

/** Which kernels a binary has: the CPU's; CUDA's too; or those of CUDA run by the CPU, for tests. */
export type Flavour = 'cpu' | 'cuda' | 'emulated'

/** A loaded binary, and those that were there and could not be used. */
export interface LoadedBinary {
  native: NativeAddon
  flavour: Flavour
  file: string
  refused: { file: string; reason: string }[]
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

/** @internal Loads the first usable binary below `root`, which only a test names. */
export function loadNative(root = packageRoot): LoadedBinary {
  const refused: LoadedBinary['refused'] = []
  const all = (() => {
    try {
      return candidates(root)
    } catch (cause) {
      throw new EquitensorError('native_unavailable', messageOf(cause), { argument: 'EQUITENSOR_BINARY', cause })
    }
  })()
  try {
    for (const { flavour, file } of all.filter(({ file }) => existsSync(file))) {
      try {
        const place = path.relative(root, path.dirname(file)).split(path.sep)
        const native = bindings({ bindings: path.basename(file), module_root: root, try: [['module_root', ...place, 'bindings']] }) as NativeAddon
        checkStamp(native.stamp)
        return { native, flavour, file, refused }
      } catch (error) {
        refused.push({ file, reason: messageOf(error) })
      }
    }
    throw new Error(refused.length > 0 ? refused.map(({ file, reason }) => `\n  ${file}: ${reason}`).join('') : `there is none of ${all.map(({ file }) => file).join(', ')}`)
  } catch (error) {
    throw new EquitensorError('native_unavailable', `The native addon of equitensor cannot be loaded: ${messageOf(error)}\n\n${remedies}`, { cause: error })
  }
}

export const binary: LoadedBinary = loadNative()
export const native: NativeAddon = binary.native
