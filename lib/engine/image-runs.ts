/**
 * Images in a sequence: runs of soft tokens whose queries see the whole run, before and after them.
 * @module
 */

/** The soft tokens of one image in a prompt. */
export interface ImageRun {
  /** Positions [start, end). */
  readonly start: number
  readonly end: number
  /** f32 [end − start, hiddenSize]: what the layers read in place of embeddings. */
  readonly soft: Float32Array
}

/** The first run that ends after a position, if any. Runs are in order. */
export function runFrom(runs: readonly ImageRun[], position: number): ImageRun | undefined {
  let low = 0
  let high = runs.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((runs[middle] as ImageRun).end > position) high = middle
    else low = middle + 1
  }
  return runs[low]
}

/** The run that a position is part of. */
export function runAt(runs: readonly ImageRun[], position: number): ImageRun | undefined {
  const run = runFrom(runs, position)
  return run && run.start <= position ? run : undefined
}

/**
 * The last place, from `start` to `limit`, at which computing a prompt may pause: the end of a page, or the beginning or end of a run,
 * never inside a run, whose first queries see its last keys.
 */
export function lastPause(runs: readonly ImageRun[], start: number, limit: number, pageTokens: number): number {
  if (limit <= start) return start
  const page = Math.floor(limit / pageTokens) * pageTokens
  const inside = runAt(runs, limit)
  if (inside) return Math.max(start, inside.start)
  let end = page
  for (let ended = runFrom(runs, page); ended && ended.end <= limit; ended = runFrom(runs, ended.end)) end = ended.end
  return Math.max(start, end)
}

/** The first place after `start` at which computing may pause. */
export function nextPause(runs: readonly ImageRun[], start: number, pageTokens: number): number {
  const run = runFrom(runs, start)
  if (run && run.start <= start) return run.end
  const page = (Math.floor(start / pageTokens) + 1) * pageTokens
  return run ? Math.min(page, run.start) : page
}
