/**
 * The factor of embedding rows.
 * @module
 */
import type { StoredTensor } from '../../checkpoint/checkpoint.ts'

/**
 * √hiddenSize as the reference computes it: rounded to the dtype of the embedding. A block type, or the f16 of a GGUF file, stands for the
 * bf16 that it was made from. 50.5 for 2560, where the root is 50.596.
 */
export function scaleFor(hiddenSize: number, embedding: StoredTensor | undefined): number {
  const root = Math.sqrt(hiddenSize)
  if (embedding?.dtype === 'f32') return Math.fround(root)
  if (embedding?.dtype === 'f16' && embedding.file.endsWith('.safetensors')) return roundTo(root, 11)
  return roundTo(root, 8)
}

/** The number of so many significant bits nearest to x, ties to even. */
function roundTo(x: number, bits: number): number {
  const quantum = 2 ** (Math.floor(Math.log2(x)) - bits + 1)
  const units = x / quantum
  const below = Math.floor(units)
  const rest = units - below
  return quantum * (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below)
}
