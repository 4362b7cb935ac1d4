/**
 * Pieces given as strings, packed into one block of UTF-8.
 * @module
 */
import { LapidaryError } from '../errors.ts'

/** @internal */
export function packPieces(
  pieces: readonly string[],
  what: string,
): { bytes: Uint8Array; offsets: Int32Array; lengths: Int32Array } {
  const offsets = new Int32Array(pieces.length)
  const lengths = new Int32Array(pieces.length)
  let units = 0
  for (const piece of pieces) units += piece.length
  const bytes = Buffer.allocUnsafeSlow(units * 3)
  let end = 0
  for (let id = 0; id < pieces.length; id++) {
    const piece = pieces[id]!
    if (piece === '') throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${what}: piece ${id} is empty`)
    offsets[id] = end
    end += bytes.write(piece, end)
    lengths[id] = end - offsets[id]!
  }
  return { bytes: bytes.subarray(0, end), offsets, lengths }
}
