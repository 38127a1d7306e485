// The one error class of the package. Every error a caller can cause names the argument, what was expected and what came.
import { inspect } from 'node:util'

/** Every value of `EquitensorError.code` and what it means; the table in the docs is generated from this list. */
export const errorCodes = {
  invalid_irreps: 'An irreps string or array is malformed, or has no irreps where one is needed.',
  degree_limit: 'A degree l is above the supported limit (inputs 11, outputs 22).',
  invalid_argument: 'An argument has the wrong type or a value outside its range.',
  invalid_option: 'An option is unknown, or its value is not one of those listed.',
  wrong_length: 'An array is not as long as the irreps, the batch or the weights require.',
  wrong_dtype: 'An array is float32 where float64 is expected, or the other way round.',
  wrong_kind: 'A host array came where a DeviceArray is expected, or the other way round, or both were mixed.',
  detached: 'An array has lost its memory, because its ArrayBuffer was transferred or shrunk.',
  disposed: 'An operation or a device array was used after dispose().',
  overlap: 'An output array shares memory with an input or with another output, also of a pending call where one of the two adds.',
  weight_missing: 'The operation has weights and none were passed.',
  weight_unwanted: 'Weights were passed to an operation that has none.',
  batch_mismatch: 'Two arrays hold different numbers of items and neither holds one.',
  no_path: 'The selection rules leave no path between the inputs and the output.',
  unreachable_output: 'No path reaches an irrep of irrepsOut.',
  unequal_multiplicities: 'The operation works channel by channel and needs equal multiplicities.',
  repeated_irrep: 'The operation needs every (l, p) at most once, and one is repeated.',
  grid_too_small: 'The grid on the sphere is too small for an exact product.',
  backend_unavailable: 'The backend that was asked for cannot run in this process.',
  native_unavailable: 'The compiled addon could not be loaded.',
  peer_missing: 'A sub-path of the package was imported whose peer dependency is not installed.',
  not_orthogonal: 'A rotation is not an orthogonal 3x3 matrix.',
  out_of_memory: 'An allocation on the host or on the device failed.',
  cuda: 'The CUDA runtime reported an error.',
  device_disabled: 'An earlier CUDA error has made the device unusable for the rest of the process.',
  capturing: 'A call inside capture() cannot be part of a graph.',
  not_supported: 'The backend does not have this operation, or not this call of it.',
  aborted: 'An asynchronous call was cancelled through its signal.',
} as const satisfies Record<string, string>

export type ErrorCode = keyof typeof errorCodes

/** What this package throws. `code` is stable across versions; the wording of `message` is not. */
export class EquitensorError extends Error {
  static {
    // On the prototype, as for the built-in errors: the stack is headed by it and inspection does not repeat it.
    Object.defineProperty(this.prototype, 'name', { value: 'EquitensorError', writable: true, configurable: true })
  }

  readonly code: ErrorCode
  /** The argument at fault, by its name in the signature, an option by that of its object too: 'x', 'options.dtype', 'out.x', 'edgeIndex[3]'; 'this'; or an environment variable. */
  readonly argument: string | undefined
  readonly expected: string | undefined
  readonly received: string | undefined
  /** Function of the CUDA runtime that failed. */
  readonly call: string | undefined
  /** Bytes that this function was asked for. */
  readonly bytes: number | undefined

  constructor(
    code: ErrorCode,
    message: string,
    details: { argument?: string; expected?: string; received?: string; call?: string; bytes?: number; cause?: unknown } = {},
  ) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.code = code
    this.argument = details.argument
    this.expected = details.expected
    this.received = details.received
    this.call = details.call
    this.bytes = details.bytes
  }
}

/**
 * The error `${argument}: expected ${expected}, got ${received}`. `received` is a phrase (use `describe` for a value) and is
 * cut to 60 characters.
 */
export function argumentError(code: ErrorCode, argument: string, expected: string, received: string): EquitensorError {
  received = shorten(received, 60)
  return new EquitensorError(code, `${argument}: expected ${expected}, got ${received}`, { argument, expected, received })
}

/** The error of a use after dispose(): of `what`, by default what the method was called on. */
export function disposed(what: string, argument = 'this'): EquitensorError {
  return argumentError('disposed', argument, `a live ${what}`, 'one after dispose()')
}

/** The method by which Node shows a value. Unique, so that declaration files can name it without the types of Node. */
export const inspectCustom: unique symbol = Symbol.for('nodejs.util.inspect.custom') as never

/** A value as it appears in a message: strings quoted, arrays and objects by their first few elements. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(shorten(value, 56))
  return shorten(inspect(value, { depth: 2, showProxy: true, breakLength: Infinity, maxArrayLength: 8, maxStringLength: 56 }), 60)
}

/** `text`, or its beginning and an ellipsis, in at most `length` characters. */
export function shorten(text: string, length: number): string {
  return text.length <= length ? text : text.slice(0, length - 1) + '…'
}
