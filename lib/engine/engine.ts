/**
 * The engine: takes sequences, computes steps until they end, one step at a time.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import type { KvPages } from './kv-pages.ts'
import { Scheduler, type SchedulerOptions, type StepEntry } from './scheduler.ts'
import { type FinishReason, Sequence, type SequenceRequest, type TokenLogprobs } from './sequence.ts'
import type { StepExecutor, StepResult } from './step-runner.ts'

export interface EngineOptions extends SchedulerOptions {
  readonly contextLength: number
  /**
   * Milliseconds without work after which the executor rests. Default 2000: to fetch again what it let go of would delay the next request of
   * a server with short pauses.
   */
  readonly restAfterMs?: number | undefined
}

/** Work between steps that needs pages of its own, in parts of about one step each: scoring of texts. */
export interface SideJob {
  /** Whether the caller has given up. */
  readonly cancelled: boolean
  /** Takes the pages of the next part; false if they are lacking. */
  reserve(): boolean
  /** Computes the next part; resolves to true when there is no more. */
  compute(): Promise<boolean>
  /** Called once, at the end, however it comes. */
  close(error: unknown): void
}

/** What is being computed. */
interface Step {
  readonly job: SideJob | undefined
  readonly entries: readonly StepEntry[]
  /** Of a job: whether there is no more. */
  readonly done: Promise<StepResult | boolean>
}

/**
 * Runs steps while there is work. Everything happens on the JavaScript thread but the steps themselves: while one is computed,
 * callers may submit and abort; what they did counts from the next step on.
 */
export class Engine implements AsyncDisposable {
  readonly #executor: StepExecutor
  readonly #options: EngineOptions
  readonly #scheduler: Scheduler
  readonly #jobs: SideJob[] = []
  /** The loop in progress. */
  #work: Promise<void> | undefined
  /** Why nothing more is taken. */
  #closed: unknown
  #restTimer: NodeJS.Timeout | undefined
  #steps = 0
  #jobTurn = false

  constructor(pages: KvPages, executor: StepExecutor, options: EngineOptions) {
    this.#executor = executor
    this.#options = options
    this.#scheduler = new Scheduler(pages, options, (sequence) => executor.forget(sequence))
  }

  /** Sequences in each state, and what happened so far. */
  info(): { running: number; waiting: number; steps: number; preemptions: number } {
    const { running, waiting, preemptions } = this.#scheduler
    return { running: running.length, waiting: waiting.length, steps: this.#steps, preemptions }
  }

  /**
   * Queues a sequence. It is computed from the next step on that has room for it.
   * @throws ERR_BUSY if the queue is full, ERR_DISPOSED.
   */
  submit(request: SequenceRequest): Sequence {
    this.#checkOpen()
    const sequence = new Sequence(request)
    this.#scheduler.add(sequence)
    this.#wake()
    return sequence
  }

  /** Ends a sequence now: it takes no part in further steps. Safe at any moment, also twice. */
  abort(sequence: Sequence): void {
    this.#finish(sequence, 'abort')
  }

  /** Runs a job between steps, in turn with the sequences. */
  run(job: SideJob): void {
    this.#checkOpen()
    this.#jobs.push(job)
    this.#wake()
  }

  /** Fails all that is queued or running with ERR_DISPOSED, and waits for the step in progress. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= new LapidaryError('ERR_DISPOSED', 'engine: the model has been disposed')
    this.#failAll(this.#closed)
    await this.#work
    clearTimeout(this.#restTimer)
  }

  #checkOpen(): void {
    if (this.#closed !== undefined) throw this.#closed
  }

  #wake(): void {
    clearTimeout(this.#restTimer)
    // The first step begins once the caller's own code has run: what is submitted together starts together.
    this.#work ??= Promise.resolve().then(() => this.#loop())
  }

  async #loop(): Promise<void> {
    let step = this.#start()
    while (step) {
      let result: StepResult | boolean
      try {
        result = await step.done
      } catch (error) {
        await this.#recover(error, step)
        step = this.#start()
        continue
      }
      // The next step is on its way before consumers see the tokens of this one.
      step = this.#start(() => this.#commit(step as Step, result))
    }
  }

  /** Finishes a step and begins the next. Without work the loop ends here, in one go with the decision: no wake-up is lost. */
  #start(finish: () => void = () => {}): Step | undefined {
    try {
      finish()
      for (;;) {
        const job = this.#jobs[0]
        // A job and the sequences take turns.
        this.#jobTurn = job !== undefined && !this.#jobTurn
        if (job && this.#jobTurn) {
          if (job.cancelled) {
            this.#advanceJob(job, true)
            continue
          }
          this.#scheduler.makeRoom(() => job.reserve())
          return { job, entries: [], done: job.compute() }
        }
        const entries = this.#scheduler.next()
        if (entries.length > 0) return { job: undefined, entries, done: this.#executor.execute(entries) }
        if (this.#jobs.length > 0) continue
        if (this.#scheduler.running.length + this.#scheduler.waiting.length > 0) {
          throw new LapidaryError('ERR_INTERNAL', 'engine: expected a step for the sequences at hand, got none')
        }
        if (this.#closed === undefined) this.#restLater()
        break
      }
    } catch (error) {
      // A defect: what the books say of the pages is not to be trusted any more.
      this.#closed ??= error
      this.#failAll(error)
    }
    this.#work = undefined
    return undefined
  }

  #restLater(): void {
    const rest = (): void => {
      try {
        this.#executor.rest()
      } catch (error) {
        // A defect. Nobody called: what a timer throws would end the process.
        this.#closed ??= error
      }
    }
    this.#restTimer = setTimeout(rest, this.#options.restAfterMs ?? 2000).unref()
  }

  #commit({ job, entries }: Step, outcome: StepResult | boolean): void {
    this.#steps++
    if (job) this.#advanceJob(job, outcome === true)
    else this.#take(entries, outcome as StepResult)
  }

  #take(entries: readonly StepEntry[], result: StepResult): void {
    this.#scheduler.commit(entries)
    let row = 0
    for (const { sequence, samples } of entries) {
      if (!samples) continue
      // The token of a sequence that was aborted meanwhile is dropped.
      if (!sequence.finished) this.#takeToken(sequence, result, row)
      row++
    }
  }

  /** Adds a sampled token to its sequence. */
  #takeToken(sequence: Sequence, result: StepResult, row: number): void {
    const { stopTokens } = sequence.request
    const id = result.tokens[row] as number
    if (sequence.firstTokenAt === 0) sequence.firstTokenAt = performance.now()
    const reason = stopTokens.has(id) ? 'stop' : this.#append(sequence, id, result.logprobs(row))
    if (reason) this.#finish(sequence, reason)
  }

  /** Why the sequence ends with this token, if it does. */
  #append(sequence: Sequence, id: number, logprobs: TokenLogprobs | undefined): FinishReason | undefined {
    const { maxTokens, constraint, onToken } = sequence.request
    sequence.push(id)
    try {
      if (onToken(id, logprobs) || constraint?.accept(id)) return 'stop'
    } catch (error) {
      this.#fail(sequence, error)
    }
    if (sequence.generated >= maxTokens) return 'length'
    return sequence.length >= this.#options.contextLength ? 'context' : undefined
  }

  #advanceJob(job: SideJob, done: boolean): void {
    // Disposing has closed it already.
    if (!done || this.#jobs[0] !== job) return
    this.#jobs.shift()
    job.close(undefined)
  }

  /** A step failed: what took part in it is lost; the rest goes on if the device does. */
  async #recover(error: unknown, { job, entries }: Step): Promise<void> {
    for (const { sequence } of entries) this.#fail(sequence, error)
    if (job && this.#jobs[0] === job) {
      this.#jobs.shift()
      job.close(error)
    }
    try {
      await this.#executor.settle()
    } catch (remaining) {
      // The sticky error that failed the step is cleared by this. A stream that is gone stays gone.
      if (!(remaining instanceof LapidaryError && remaining.code === 'ERR_DISPOSED')) return
      this.#closed ??= remaining
      this.#failAll(remaining)
    }
  }

  #finish(sequence: Sequence, reason: FinishReason): void {
    if (this.#close(sequence)) sequence.request.onFinish(reason)
  }

  #fail(sequence: Sequence, error: unknown): void {
    if (this.#close(sequence)) sequence.request.onError(error)
  }

  #close(sequence: Sequence): boolean {
    if (sequence.finished) return false
    sequence.finished = true
    try {
      this.#scheduler.remove(sequence)
    } catch (error) {
      this.#closed ??= error
    }
    this.#executor.forget(sequence)
    return true
  }

  #failAll(error: unknown): void {
    for (const sequence of [...this.#scheduler.running, ...this.#scheduler.waiting]) this.#fail(sequence, error)
    for (const job of this.#jobs.splice(0)) job.close(error)
  }
}
