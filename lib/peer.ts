import { createRequire } from 'node:module'
import { EquitensorError } from './errors'

/**
 * The optional peer dependency that a sub-path of this package is written against.
 * @param install what to give to `npm install`.
 * @throws EquitensorError `peer_missing`.
 */
export function requirePeer<T>(name: string, install: string, subPath: string): T {
  try {
    return createRequire(__filename)(name) as T
  } catch (cause) {
    // Any other failure is that package's own.
    if ((cause as { code?: string }).code !== 'MODULE_NOT_FOUND' || !(cause as Error).message.includes(`'${name}'`)) throw cause
    throw new EquitensorError('peer_missing', `${subPath} needs ${name}, which is not installed: npm install ${install}`, { cause })
  }
}
