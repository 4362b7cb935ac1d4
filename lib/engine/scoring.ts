/**
 * Scoring: what a model makes of given text, computed between the steps of the engine.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import type { SideJob } from './engine.ts'
import type { KvPages, SequencePages } from './kv-pages.ts'
import type { ScoreKind, Scores, StepRunner } from './step-runner.ts'

/** Tokens seen at once, from position 0. */
export interface ScoreWindow {
  /** What is computed, and for log probabilities one more: the last target. */
  readonly tokens: Int32Array
  /** Tokens that are computed. */
  readonly compute: number
  /** The first of these whose row is wanted. */
  readonly from: number
}

/**
 * The windows of a text: each begins `stride` tokens after the one before, computes up to `length` tokens, and scores the token after each
 * of them, unless an earlier window has. So every token but the first is scored once.
 */
export function scoreWindows(tokens: Int32Array, length: number, stride: number): ScoreWindow[] {
  const windows: ScoreWindow[] = []
  // Tokens up to here are scored, or have nothing before them.
  let scored = 1
  for (let start = 0; scored < tokens.length; start += stride) {
    const window = tokens.subarray(start, start + length + 1)
    // Row p scores token p + 1.
    windows.push({ tokens: window, compute: window.length - 1, from: scored - start - 1 })
    scored = start + window.length
  }
  return windows
}

/**
 * Scores windows one after the other, in parts of at most `chunk` tokens.
 * `take` is given the scores of each part and the number of tokens computed: log probabilities of the next tokens, or rows of logits.
 */
export class ScoreJob implements SideJob {
  readonly done: Promise<void>
  readonly #runner: StepRunner
  readonly #pages: SequencePages
  readonly #kind: ScoreKind
  readonly #windows: readonly ScoreWindow[]
  readonly #chunk: number
  readonly #top: number
  readonly #take: (scores: Scores, computed: number) => void
  readonly #signal: AbortSignal | undefined
  #settle: { resolve: () => void; reject: (error: unknown) => void } = { resolve: () => {}, reject: () => {} }
  #window = 0
  #computed = 0

  constructor(
    runner: StepRunner,
    pages: KvPages,
    kind: ScoreKind,
    windows: readonly ScoreWindow[],
    options: {
      readonly chunk: number
      /** With log probabilities: how many of the most probable tokens of each row. */
      readonly top?: number
      readonly take: (scores: Scores, computed: number) => void
      readonly signal: AbortSignal | undefined
    },
  ) {
    this.#runner = runner
    this.#pages = pages.open()
    this.#kind = kind
    this.#windows = windows
    this.#chunk = options.chunk
    this.#top = options.top ?? 0
    this.#take = options.take
    this.#signal = options.signal
    this.done = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
  }

  get cancelled(): boolean {
    return this.#signal?.aborted === true || this.#windows.length === 0
  }

  get #count(): number {
    const { compute } = this.#windows[this.#window] as ScoreWindow
    return Math.min(this.#chunk, compute - this.#computed)
  }

  reserve(): boolean {
    return this.#pages.reserve(this.#computed, this.#count)
  }

  async compute(): Promise<boolean> {
    const { tokens, compute, from } = this.#windows[this.#window] as ScoreWindow
    const start = this.#computed
    const count = this.#count
    const rows = Math.max(0, Math.min(count, start + count - from))
    const end = start + count
    const scores = await this.#runner.score(
      tokens,
      { pages: this.#pages, start, count, promptLength: compute },
      this.#kind,
      rows,
      this.#kind === 'logprobs' ? tokens.subarray(end - rows + 1, end + 1) : undefined,
      this.#top,
    )
    this.#take(scores, count)
    this.#computed = end
    if (end < compute) return false
    this.#pages.release()
    this.#computed = 0
    this.#window++
    return this.#window === this.#windows.length
  }

  close(error: unknown): void {
    this.#pages.release()
    if (error !== undefined) this.#settle.reject(error)
    else if (this.#signal?.aborted) this.#settle.reject(abortError(this.#signal))
    else this.#settle.resolve()
  }
}

/** What work that an AbortSignal ended rejects with. */
export function abortError(signal: AbortSignal): LapidaryError {
  return new LapidaryError('ERR_ABORTED', 'the work was ended by its AbortSignal', { cause: signal.reason })
}
