/**
 * One line about long work, rewritten in place; silent where standard error is no terminal.
 * @module
 */
import { performance } from 'node:perf_hooks'
import { formatBytes, formatNumber, formatSeconds } from './format.ts'

const barWidth = 24
/** Fast enough to look alive, slow enough to cost nothing. */
const intervalMs = 100

/**
 * @example
 * using progress = new Progress('loading model.gguf', 'bytes')
 * await load((done, total) => progress.update(done, total))
 */
export class Progress implements Disposable {
  readonly #label: string
  readonly #unit: string
  readonly #start: number = performance.now()
  #last = Number.NEGATIVE_INFINITY
  #shown = false

  /** @param unit What is counted: 'bytes', shown with binary units, or a noun such as 'tokens'. */
  constructor(label: string, unit: string) {
    this.#label = label
    this.#unit = unit
  }

  update(done: number, total: number): void {
    const now = performance.now()
    if (process.stderr.isTTY !== true || now - this.#last < intervalMs) return
    this.#last = now
    this.#shown = true
    const line = progressLine(this.#label, this.#unit, done, total, (now - this.#start) / 1000)
    // A line that wraps could not be taken back.
    process.stderr.write(`\r${line.slice(0, (process.stderr.columns || 80) - 1)}\x1b[K`)
  }

  /** Removes the line. */
  [Symbol.dispose](): void {
    if (this.#shown) process.stderr.write('\r\x1b[K')
    this.#shown = false
  }
}

/** The line's text. `done` beyond `total`, or a `total` of 0, is drawn as complete. */
export function progressLine(label: string, unit: string, done: number, total: number, seconds: number): string {
  const fraction = total > 0 ? Math.min(done / total, 1) : 1
  const filled = Math.round(fraction * barWidth)
  const perSecond = done / Math.max(seconds, 1e-3)
  const speed = unit === 'bytes' ? `${formatBytes(perSecond)}/s` : `${formatNumber(perSecond)} ${unit}/s`
  const left = perSecond > 0 ? formatSeconds(Math.max(total - done, 0) / perSecond) : '…'
  const bar = `${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)}`
  return `${label}  ${bar}  ${Math.floor(fraction * 100)} %  ${speed}  ${left} left`
}
