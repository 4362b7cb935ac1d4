/**
 * From pixels to the patches that the vision tower reads.
 * @module
 */
import { LapidaryError } from '../../errors.ts'
import type { VisionConfig } from './config.ts'
import { patchOrder } from './forward.ts'

/**
 * Normalises the pixels of an image, (x / 255 − mean) / std, and cuts it into patches.
 *
 * @param pixels RGB, 8 bits, rows from the top: imageSize² · 3 bytes.
 * @returns [patches, 3 · patchSize²] in the order of `patchOrder`, each patch channel by channel as the convolution's kernel is stored.
 * @throws ERR_SHAPE_MISMATCH for an image of another size.
 */
export function imagePatches(pixels: Uint8Array, config: VisionConfig): Float32Array {
  const { imageSize, patchSize, patchesPerSide, mean, std } = config
  if (pixels.length !== imageSize ** 2 * 3) {
    const expected = `${imageSize} × ${imageSize} × 3 bytes`
    throw new LapidaryError('ERR_SHAPE_MISMATCH', `imagePatches: pixels: expected ${expected}, got ${pixels.length}`)
  }
  const tables = mean.map((center, channel) =>
    Float32Array.from({ length: 256 }, (_, x) => (x / 255 - center) / (std[channel] as number)),
  )
  const patches = new Float32Array(pixels.length)
  let at = 0
  for (const patch of patchOrder(config)) {
    const top = Math.floor(patch / patchesPerSide) * patchSize
    const left = (patch % patchesPerSide) * patchSize
    for (let channel = 0; channel < 3; channel++) {
      const table = tables[channel] as Float32Array
      for (let y = top; y < top + patchSize; y++) {
        const row = (y * imageSize + left) * 3 + channel
        for (let x = 0; x < patchSize; x++) patches[at++] = table[pixels[row + x * 3] as number] as number
      }
    }
  }
  return patches
}
