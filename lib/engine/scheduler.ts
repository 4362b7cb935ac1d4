/**
 * The scheduler: which tokens of which sequences the next step computes.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { lastPause, nextPause } from './image-runs.ts'
import type { KvPages } from './kv-pages.ts'
import type { Sequence } from './sequence.ts'

/** The part of one sequence in a step: tokens [start, start + count). */
export interface StepEntry {
  readonly sequence: Sequence
  readonly start: number
  readonly count: number
  /** Whether they reach the sequence's end, so that the next token is sampled. */
  readonly samples: boolean
}

export interface SchedulerOptions {
  /** Sequences that run at once. */
  readonly maxSequences: number
  /**
   * Tokens of one step: decoding sequences take one each, prompts share the rest in whole pages, at least one page. An image is computed
   * whole: where its prompt is the oldest, also beyond this.
   */
  readonly stepTokens: number
  /** Sequences that may wait. */
  readonly maxQueue: number
  /**
   * Steps that a sequence of one level of priority less has to be older by to go first. Default 256, of a 1B model on a few cores some ten
   * seconds.
   */
  readonly agingSteps?: number | undefined
}

const defaultAgingSteps = 256

/**
 * Continuous batching (Yu et al. 2022, "Orca", OSDI) with chunked prefill (Agrawal et al. 2023, "Sarathi", arXiv:2308.16369) over a
 * paged cache (Kwon et al. 2023, "vLLM", arXiv:2309.06180).
 *
 * Sequences are admitted by rank, when there is room for all tokens they have. Every step takes one token of each decoding sequence; prompts
 * share what is left of the step's budget in equal parts, so that a long one does not hold up a short one. When pages run out the running
 * sequence of the last rank is put back to the queue, to be recomputed: the first one always advances. A sequence that outranks running
 * ones takes nothing from them until it runs; then it may take their pages.
 *
 * Rank is the step a sequence came at, later by `agingSteps` for each level of priority. So whoever waits goes before all that come later, in
 * the end: nobody starves under a steady load of others, and the order of two never changes while they wait. Levels grow with the logarithm
 * of a priority (1, 3, 7, … are one level apart): the lowest of all waits some thirty levels for the default.
 *
 * A sequence waits for one before it whose prompt begins alike, if that saves it more than half of what it waits for: choices of one
 * request, and requests behind one long system prompt, compute what they share once. Its place in the batch is kept meanwhile.
 */
export class Scheduler {
  readonly #pages: KvPages
  readonly #options: SchedulerOptions
  readonly #waiting: Sequence[] = []
  readonly #running: Sequence[] = []
  readonly #onPreempt: (sequence: Sequence) => void
  #preemptions = 0
  #arrivals = 0
  #steps = 0

  /** @param onPreempt Told of sequences that are put back. */
  constructor(pages: KvPages, options: SchedulerOptions, onPreempt: (sequence: Sequence) => void = () => {}) {
    this.#pages = pages
    this.#options = options
    this.#onPreempt = onPreempt
  }

  /** Sequences that hold pages, by rank. */
  get running(): readonly Sequence[] {
    return this.#running
  }

  get waiting(): readonly Sequence[] {
    return this.#waiting
  }

  /** How often a sequence was put back for want of pages. */
  get preemptions(): number {
    return this.#preemptions
  }

  /** @throws ERR_BUSY if the queue is full. */
  add(sequence: Sequence): void {
    const { maxQueue, maxSequences } = this.#options
    // Those that the next step may admit do not wait.
    if (this.#waiting.length >= maxQueue + Math.max(0, maxSequences - this.#running.length)) {
      throw new LapidaryError(
        'ERR_BUSY',
        `engine: expected at most ${maxQueue} waiting requests, got one more: try again later`,
      )
    }
    const { agingSteps = defaultAgingSteps } = this.#options
    sequence.arrival = this.#arrivals++
    sequence.rank = this.#steps + agingSteps * levelOf(sequence.priority)
    insert(this.#waiting, sequence)
  }

  /** Takes a sequence out, wherever it is. What it has computed is offered to later ones. */
  remove(sequence: Sequence): void {
    const waiting = this.#waiting.indexOf(sequence)
    if (waiting >= 0) this.#waiting.splice(waiting, 1)
    const running = this.#running.indexOf(sequence)
    if (running >= 0) this.#running.splice(running, 1)
    this.#letGo(sequence)
  }

  /** The next step, in the order of `running`; empty if there is nothing to do. */
  next(): StepEntry[] {
    this.#steps++
    this.#admit()
    const shares = this.#shares()
    const entries: StepEntry[] = []
    // Preemption shortens the list from its end, never before the entry at hand.
    for (let index = 0; index < this.#running.length; index++) {
      const sequence = this.#running[index] as Sequence
      const count = shares.get(sequence) ?? 0
      if (count === 0 || !this.#reserve(sequence, count)) continue
      entries.push({ sequence, start: sequence.computed, count, samples: count === sequence.pending })
    }
    return entries
  }

  /** Takes note that the tokens of a step are computed. */
  commit(entries: readonly StepEntry[]): void {
    for (const { sequence, start, count, samples } of entries) {
      if (!sequence.pages) continue // removed meanwhile
      sequence.computed = start + count
      sequence.pages.passed(sequence.tokens, sequence.computed)
      if (samples && start < sequence.promptLength) sequence.pages.publish(sequence.tokens, sequence.computed)
    }
  }

  /** Pages for somebody else (scoring), putting back running sequences if need be. */
  makeRoom(reserve: () => boolean): void {
    while (!reserve()) {
      const last = this.#running.at(-1)
      if (!last) throw new LapidaryError('ERR_INTERNAL', 'scheduler: the cache has no room for one sequence')
      this.#preempt(last)
    }
  }

  #admit(): void {
    /** Of the first so many that wait, each has its reason. */
    let passed = 0
    while (this.#running.length + passed < this.#options.maxSequences) {
      const sequence = this.#waiting[passed]
      if (!sequence) return
      if (this.#isComputingPrompt(sequence.waitsFor)) {
        passed++
        continue
      }
      const pages = this.#pages.open()
      const held = pages.adopt(sequence.tokens)
      sequence.waitsFor = this.#worthWaitingFor(sequence, held)
      if (sequence.waitsFor) {
        pages.release()
        passed++
        continue
      }
      if (!this.#pages.hasRoom(sequence.length + 1, held) && this.#running.length > 0) {
        pages.release()
        return
      }
      this.#waiting.splice(passed, 1)
      sequence.pages = pages
      sequence.computed = held
      if (sequence.admittedAt === 0) {
        sequence.admittedAt = performance.now()
        sequence.cachedTokens = held
      }
      insert(this.#running, sequence)
    }
  }

  /** A sequence whose prompt, when it is computed, will leave more than `held` tokens to begin with, and soon enough. */
  #worthWaitingFor(sequence: Sequence, held: number): Sequence | undefined {
    return this.#running.find((other) => {
      if (!this.#isComputingPrompt(other) || comesBefore(sequence, other)) return false
      const saved = this.#pages.reusable(other.tokens, other.promptLength, sequence.tokens) - held
      return saved > 0 && 2 * saved > other.promptLength - other.computed
    })
  }

  #isComputingPrompt(sequence: Sequence | undefined): boolean {
    return sequence?.pages !== undefined && sequence.computed < sequence.promptLength
  }

  /** How many tokens each sequence gets. */
  #shares(): Map<Sequence, number> {
    const shares = new Map<Sequence, number>()
    const prompts: Sequence[] = []
    for (const sequence of this.#running) {
      if (sequence.pending === 1) shares.set(sequence, 1)
      else prompts.push(sequence)
    }
    // However many decode, prompts advance.
    let budget = Math.max(this.#pages.pageTokens, this.#options.stepTokens - shares.size)
    const scarce = budget < prompts.length * this.#pages.pageTokens
    const first = prompts[0]
    // Whoever needs less than an equal part leaves the rest to the others. Where there is not a page for each, the first go first.
    if (!scarce) prompts.sort((a, b) => a.pending - b.pending)
    prompts.forEach((sequence, index) => {
      const share = scarce ? Math.min(budget, this.#pages.pageTokens) : Math.ceil(budget / (prompts.length - index))
      const count = this.#whole(sequence, share, sequence === first)
      budget -= count
      shares.set(sequence, count)
    })
    return shares
  }

  /** At most `share` tokens of a prompt: up to its end, or to the end of a page or image. With `advance` at least one of these. */
  #whole({ computed, pending, images }: Sequence, share: number, advance: boolean): number {
    if (pending <= share) return pending
    const { pageTokens } = this.#pages
    const count = lastPause(images, computed, computed + share, pageTokens) - computed
    if (count > 0 || !advance) return count
    return Math.min(pending, nextPause(images, computed, pageTokens) - computed)
  }

  /** Pages for the next tokens of a sequence, at the expense of those after it. False if it had to be put back itself. */
  #reserve(sequence: Sequence, count: number): boolean {
    while (!sequence.pages?.reserve(sequence.computed, count)) {
      const last = this.#running.at(-1) as Sequence
      this.#preempt(last)
      if (last === sequence) return false
    }
    return true
  }

  #preempt(sequence: Sequence): void {
    this.#preemptions++
    this.#running.splice(this.#running.indexOf(sequence), 1)
    this.#letGo(sequence)
    this.#onPreempt(sequence)
    insert(this.#waiting, sequence)
  }

  #letGo(sequence: Sequence): void {
    sequence.pages?.publish(sequence.tokens, sequence.computed)
    sequence.pages?.release()
    sequence.pages = undefined
    sequence.computed = 0
  }
}

/** Levels of priority: as many as its logarithm. */
function levelOf(priority: number): number {
  return Math.sign(priority) * Math.log2(1 + Math.abs(priority))
}

/** Puts a sequence where its rank is. Mostly at the end. */
function insert(sequences: Sequence[], sequence: Sequence): void {
  let at = sequences.length
  while (at > 0 && comesBefore(sequence, sequences[at - 1] as Sequence)) at--
  sequences.splice(at, 0, sequence)
}

function comesBefore(a: Sequence, b: Sequence): boolean {
  return a.rank < b.rank || (a.rank === b.rank && a.arrival < b.arrival)
}
