/**
 * A sequence: one prompt and the tokens generated after it, as the engine sees them.
 * @module
 */
import type { TokenConstraint } from './grammar.ts'
import type { ImageRun } from './image-runs.ts'
import type { SequencePages } from './kv-pages.ts'
import type { SamplingSettings } from './sampler.ts'

/**
 * Why generation ended: `stop` a stop token or string, `length` maxTokens, `context` the context is full, `abort` the caller's signal,
 * or the consumer left.
 */
export type FinishReason = 'stop' | 'length' | 'context' | 'abort'

/** Natural log probabilities of one generated token, before penalties and temperature. */
export interface TokenLogprobs {
  readonly id: number
  readonly logprob: number
  /** The most probable tokens, best first. */
  readonly top: readonly { readonly id: number; readonly logprob: number }[]
}

/** What a sequence is made of. */
export interface SequenceRequest {
  /**
   * At least one token, fewer than the context holds: each in the vocabulary, or for a soft token of an image a negative number that no
   * other image has.
   */
  readonly prompt: Int32Array
  /** Where the prompt has images, in order. Default: none. */
  readonly images?: readonly ImageRun[] | undefined
  /** Infinity: no limit but the context. */
  readonly maxTokens: number
  readonly sampling: SamplingSettings
  /** Tokens that end the sequence and are no part of it. */
  readonly stopTokens: ReadonlySet<number>
  /** Says which tokens may come next. */
  readonly constraint?: TokenConstraint | undefined
  /** Lower goes first. Default 0. */
  readonly priority?: number
  /** Given each token that is part of the sequence, in order. Returns true to end it; throws to fail it. */
  readonly onToken: (id: number, logprobs: TokenLogprobs | undefined) => boolean
  /** Called once, at the end. Exactly one of them. */
  readonly onFinish: (reason: FinishReason) => void
  readonly onError: (error: unknown) => void
}

const noImages: readonly ImageRun[] = []

/** The state of a request in the engine. */
export class Sequence {
  readonly request: SequenceRequest
  readonly promptLength: number
  readonly priority: number
  arrival = 0
  /** Lower goes first; of equals the one that arrived first. The scheduler makes it of priority and age. */
  rank = 0
  /** Whose prompt it waits for, since it begins alike. */
  waitsFor: Sequence | undefined
  pages: SequencePages | undefined
  /** Tokens whose keys and values are in the cache. */
  computed = 0
  /** Tokens of the prompt that were there already when it was first admitted. */
  cachedTokens = 0
  /** performance.now() when it was submitted, first admitted, and gave its first token; 0: not yet. */
  readonly submittedAt: number = performance.now()
  admittedAt = 0
  firstTokenAt = 0
  /** Nothing may come after the end. */
  finished = false
  #tokens: Int32Array
  #length: number

  constructor(request: SequenceRequest) {
    this.request = request
    this.promptLength = request.prompt.length
    this.priority = request.priority ?? 0
    this.#length = this.promptLength
    this.#tokens = Int32Array.from(request.prompt)
  }

  /** Prompt and generated tokens. */
  get tokens(): Int32Array {
    return this.#tokens.subarray(0, this.#length)
  }

  get length(): number {
    return this.#length
  }

  get generated(): number {
    return this.#length - this.promptLength
  }

  get images(): readonly ImageRun[] {
    return this.request.images ?? noImages
  }

  /** Tokens still to be computed before the next one can be sampled; 1 while it decodes. */
  get pending(): number {
    return this.#length - this.computed
  }

  push(id: number): void {
    if (this.#length === this.#tokens.length) {
      const grown = new Int32Array(this.#length * 2 + 64)
      grown.set(this.#tokens)
      this.#tokens = grown
    }
    this.#tokens[this.#length++] = id
  }

  token(index: number): number {
    return this.#tokens[index] as number
  }
}
