/**
 * A model without weights: it keeps tokens where a real one keeps keys, reads them back through the page tables, and complains where
 * they are not what the sequence holds. The next token is a hash of what it read, so a wrong page changes the text too.
 */

import { Engine, type EngineOptions } from '../../lib/engine/engine.ts'
import { type ImageRun, runAt } from '../../lib/engine/image-runs.ts'
import { KvPages, type KvPagesOptions } from '../../lib/engine/kv-pages.ts'
import { resolveSampling } from '../../lib/engine/sampler.ts'
import type { StepEntry } from '../../lib/engine/scheduler.ts'
import type { FinishReason, Sequence } from '../../lib/engine/sequence.ts'
import type { StepExecutor, StepResult } from '../../lib/engine/step-runner.ts'

export const vocabulary = 97
const empty = -1

/** The token after a history: what the engine's text is compared with. */
export function nextToken(history: ArrayLike<number>, window: number): number {
  let hash = 7
  for (let index = 0; index < history.length; index++) {
    const token = history[index]!
    const isVisible = window === 0 || index > history.length - 1 - window
    hash = (Math.imul(hash ^ token, 0x9e3779b1) + (isVisible ? Math.imul(token + 1, 0x85ebca6b) : 1)) | 0
    hash ^= hash >>> 15
  }
  return (hash >>> 0) % vocabulary
}

/** What a request for `count` tokens after `prompt` must give. */
export function continuation(prompt: readonly number[], count: number, window: number): number[] {
  const history = [...prompt]
  for (let i = 0; i < count; i++) history.push(nextToken(history, window))
  return history.slice(prompt.length)
}

export class FakeModel implements StepExecutor {
  readonly #pages: KvPages
  readonly #global: Int32Array
  readonly #local: Int32Array
  /** Steps computed: the entries of each. */
  readonly steps: { tokens: number; sequences: number; sampled: number }[] = []
  inFlight = 0
  readonly forgotten: Sequence[] = []
  /** After how many steps there was no work. */
  readonly rests: number[] = []
  /** Fails the step with this number, once. */
  failAt = -1
  /** Called while a step is in flight. */
  during: () => void = () => {}

  constructor(pages: KvPages) {
    this.#pages = pages
    this.#global = new Int32Array(pages.globalPool.count * pages.pageTokens).fill(empty)
    this.#local = new Int32Array(pages.localPool.count * pages.pageTokens).fill(empty)
  }

  async execute(entries: readonly StepEntry[]): Promise<StepResult> {
    if (this.steps.length === this.failAt) {
      this.failAt = -1
      throw new Error('the fake device failed')
    }
    const tokens = Int32Array.from(this.#sampled(entries))
    this.steps.push({
      tokens: entries.reduce((sum, entry) => sum + entry.count, 0),
      sequences: entries.length,
      sampled: tokens.length,
    })
    this.inFlight++
    await new Promise((resolve) => setImmediate(resolve))
    this.inFlight--
    this.during()
    return { tokens, logprobs: () => undefined }
  }

  forget(sequence: Sequence): void {
    this.forgotten.push(sequence)
  }

  async settle(): Promise<void> {}

  rest(): void {
    this.rests.push(this.steps.length)
  }

  *#sampled(entries: readonly StepEntry[]): Generator<number> {
    const { pageTokens, window } = this.#pages
    const written = new Set<number>()
    for (const { sequence, start, count, samples } of entries) {
      const pages = sequence.pages!
      if (count < 1) throw new Error('an entry without tokens')
      for (let position = start; position < start + count; position++) {
        const slot = pages.globalSlot(position)
        if (written.has(slot)) throw new Error(`slot ${slot} is written twice in one step`)
        written.add(slot)
        this.#global[slot] = sequence.token(position)
        if (window > 0) this.#local[pages.localSlot(position)] = sequence.token(position)
      }
      // Read as the kernels do: tables by logical page, rings modulo their width, each query its own interval.
      for (let query = start; query < start + count; query++) {
        // A query of an image sees all of it: keys that this step, or an earlier one with the whole image, has written.
        const last = (runAt(sequence.images, query)?.end ?? query + 1) - 1
        const lows: [Int32Array, Int32Array, number][] = [[this.#global, pages.global, 0]]
        if (window > 0) lows.push([this.#local, pages.local, Math.max(0, query - window + 1)])
        for (const [memory, table, low] of lows) {
          for (let key = low; key <= last; key++) {
            const page = table[Math.floor(key / pageTokens) % table.length]!
            const found = memory[page * pageTokens + (key % pageTokens)]!
            if (found !== sequence.token(key)) {
              const kind = memory === this.#global ? 'global' : 'local'
              throw new Error(`${kind}: key ${key} of query ${query}: expected ${sequence.token(key)}, found ${found}`)
            }
          }
        }
      }
      if (samples) yield nextToken(sequence.tokens, window)
    }
  }
}

export interface FakeOptions extends Partial<KvPagesOptions>, Partial<EngineOptions> {}

export interface FakeRequest {
  readonly prompt: readonly number[]
  readonly maxTokens?: number
  readonly stopTokens?: readonly number[]
  readonly priority?: number
  /** Runs of soft tokens in the prompt. */
  readonly images?: readonly (readonly [start: number, end: number])[]
  readonly onToken?: (id: number) => boolean
}

export interface FakeAnswer {
  readonly ids: number[]
  readonly reason: FinishReason
  readonly cached: number
}

/** An engine over the fake model. */
export function fakeEngine(options: FakeOptions = {}): {
  engine: Engine
  model: FakeModel
  pages: KvPages
  submit(request: FakeRequest): { sequence: Sequence; answer: Promise<FakeAnswer> }
} {
  const {
    pageTokens = 4,
    window = 10,
    contextLength = 200,
    maxSequences = 4,
    stepTokens = 16,
    chunk = stepTokens,
    maxQueue = 100,
    prefixCache = true,
    agingSteps,
    restAfterMs,
    globalPages = maxSequences * Math.ceil(contextLength / pageTokens),
    localPages = maxSequences * (Math.ceil((window + stepTokens) / pageTokens) + 2) * 2,
  } = options
  const pages = new KvPages({
    pageTokens,
    window,
    contextLength,
    chunk,
    globalPages,
    localPages,
    prefixCache,
  })
  const model = new FakeModel(pages)
  const engine = new Engine(pages, model, {
    contextLength,
    maxSequences,
    stepTokens,
    maxQueue,
    agingSteps,
    restAfterMs,
  })
  return {
    engine,
    model,
    pages,
    submit({ prompt, maxTokens = Number.POSITIVE_INFINITY, stopTokens = [], priority = 0, images = [], onToken }) {
      const ids: number[] = []
      let sequence: Sequence | undefined
      const answer = new Promise<FakeAnswer>((resolve, reject) => {
        sequence = engine.submit({
          prompt: Int32Array.from(prompt),
          images: images.map(([start, end]): ImageRun => ({ start, end, soft: new Float32Array(0) })),
          maxTokens,
          sampling: resolveSampling({ temperature: 0 }, { temperature: 0, topK: 0, topP: 1, minP: 0 }, vocabulary),
          stopTokens: new Set(stopTokens),
          priority,
          onToken: (id) => {
            ids.push(id)
            return onToken?.(id) ?? false
          },
          onFinish: (reason) => resolve({ ids, reason, cached: sequence!.cachedTokens }),
          onError: reject,
        })
      })
      answer.catch(() => {})
      return { sequence: sequence!, answer }
    },
  }
}

/** Nothing is held but by the prefix cache, and clearing that frees all. */
export function heldPages(pages: KvPages): { global: number; local: number } {
  const { globalPool, localPool, prefixes } = pages
  const cached = prefixes?.size ?? { global: 0, local: 0 }
  return {
    global: globalPool.count - globalPool.free - cached.global,
    local: localPool.count - localPool.free - cached.local,
  }
}
