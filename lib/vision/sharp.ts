/**
 * sharp, which decodes images: an optional peer of this package. What needs no image runs without it.
 * @module
 */
import { LapidaryError } from '../errors.ts'

type Sharp = typeof import('sharp')['default']

let loaded: Promise<Sharp> | undefined

/**
 * The module, imported when the first image comes.
 * @throws (rejects) ERR_NATIVE_MISSING if it is not installed, or its binary does not load; the message says what to do.
 */
export function loadSharp(): Promise<Sharp> {
  loaded ??= importSharp(async () => (await import('sharp')).default)
  return loaded
}

/** @internal */
export async function importSharp(importer: () => Promise<Sharp>): Promise<Sharp> {
  try {
    return await importer()
  } catch (cause) {
    const isAbsent = (cause as { code?: unknown }).code === 'ERR_MODULE_NOT_FOUND'
    const problem = isAbsent ? 'it is not installed' : `it does not load: ${(cause as Error).message.split('\n')[0]}`
    throw new LapidaryError(
      'ERR_NATIVE_MISSING',
      `image: expected the package sharp, which decodes images; ${problem}: npm install sharp@0.35.5`,
      { cause },
    )
  }
}
