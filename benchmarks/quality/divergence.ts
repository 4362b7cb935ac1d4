/** How far a model's predictions are from a reference's, and how good they are. */

/** Natural log-softmax of every row, in place. */
export function logSoftmax(logits: Float32Array, columns: number): Float32Array {
  for (let begin = 0; begin < logits.length; begin += columns) {
    const row = logits.subarray(begin, begin + columns)
    let max = Number.NEGATIVE_INFINITY
    for (const value of row) max = Math.max(max, value)
    let sum = 0
    for (const value of row) sum += Math.exp(value - max)
    const shift = max + Math.log(sum)
    for (let i = 0; i < columns; i++) row[i] = (row[i] as number) - shift
  }
  return logits
}

function indexOfMax(row: Float32Array): number {
  let best = 0
  for (let i = 1; i < row.length; i++) if ((row[i] as number) > (row[best] as number)) best = i
  return best
}

/** Sums over positions; `result` gives the means. */
export class Divergence {
  #nll = 0
  #predicted = 0
  #kl = 0
  #agreed = 0
  #positions = 0

  /**
   * @param logProbs and reference: rows of one window, log-softmax.
   * @param targets What each row should predict; the last row of a text has none.
   */
  add(logProbs: Float32Array, reference: Float32Array, targets: ArrayLike<number>, columns: number): void {
    for (let p = 0; p < logProbs.length / columns; p++) {
      const row = logProbs.subarray(p * columns, (p + 1) * columns)
      const exact = reference.subarray(p * columns, (p + 1) * columns)
      let kl = 0
      for (let i = 0; i < columns; i++) {
        const log = exact[i] as number
        kl += Math.exp(log) * (log - (row[i] as number))
      }
      this.#kl += kl
      this.#agreed += indexOfMax(row) === indexOfMax(exact) ? 1 : 0
      this.#positions += 1
      if (p >= targets.length) continue
      this.#nll -= row[targets[p] as number] as number
      this.#predicted += 1
    }
  }

  /** `kl` is the mean of KL(reference ‖ model) in nats, `agreement` the share of positions with the same likeliest token. */
  get result(): { perplexity: number; kl: number; agreement: number; tokens: number } {
    return {
      perplexity: Math.exp(this.#nll / this.#predicted),
      kl: this.#kl / this.#positions,
      agreement: this.#agreed / this.#positions,
      tokens: this.#predicted,
    }
  }
}
