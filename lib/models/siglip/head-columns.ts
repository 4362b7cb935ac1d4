/**
 * Heads whose size attention's kernels do not take: as many columns more as are missing, all zeros. They change no score, and give
 * columns of zeros, which the output matrix multiplies by zero.
 * @module
 */

export interface HeadShape {
  readonly heads: number
  readonly headDim: number
  /** As computed. */
  readonly columns: number
}

/** flash_attention takes head dimensions that are a multiple of 8. SigLIP-So400m's 72 is one. */
export function paddedColumns(headDim: number): number {
  return Math.ceil(headDim / 8) * 8
}

/** Rows of zeros after those of each head: [heads · headDim, width] to [heads · columns, width]. A bias has width 1. */
export function padRows(values: Float32Array, width: number, { heads, headDim, columns }: HeadShape): Float32Array {
  const padded = new Float32Array(heads * columns * width)
  for (let head = 0; head < heads; head++) {
    const rows = values.subarray(head * headDim * width, (head + 1) * headDim * width)
    padded.set(rows, head * columns * width)
  }
  return padded
}

/** Columns of zeros after those of each head: [rows, heads · headDim] to [rows, heads · columns]. */
export function padColumns(values: Float32Array, rows: number, { heads, headDim, columns }: HeadShape): Float32Array {
  const padded = new Float32Array(rows * heads * columns)
  for (let part = 0; part < rows * heads; part++) {
    padded.set(values.subarray(part * headDim, (part + 1) * headDim), part * columns)
  }
  return padded
}
