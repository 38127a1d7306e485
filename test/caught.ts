import { expect } from 'vitest'
import { EquitensorError } from '../lib/index'

/** The EquitensorError that the action throws. */
export function caught(action: () => unknown): EquitensorError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(EquitensorError)
    return error as EquitensorError
  }
  return expect.unreachable('nothing was thrown')
}
