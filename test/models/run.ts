/**
 * Runs a model step by step over paged caches, as an engine would, with everything that tests vary: how the tokens are cut into steps, the
 * sizes of pages and rings, the order of pages, the dtype of the caches, how many sequences run together.
 */

import type { Device, DType } from '../../lib/index.ts'
import { Tensor } from '../../lib/index.ts'
import type { GemmaConfig } from '../../lib/models/gemma/config.ts'
import { decoder, type LayerCache, logits } from '../../lib/models/gemma/forward.ts'
import type { GemmaModel } from '../../lib/models/gemma/load.ts'
import type { ModelTensors } from '../../lib/models/gemma/model.ts'
import { Random } from '../support/random.ts'

export interface RunOptions {
  /** New tokens of each step, the same for all sequences until they end. Default: all at once. */
  readonly steps?: readonly number[]
  readonly kv?: 'f32' | 'bf16' | 'i8'
  /** Default 4. */
  readonly pageTokens?: number
  /** Read what every layer sees. Default false: `hidden` is empty. */
  readonly watch?: boolean
}

export interface StepOptions {
  /** Ask for the results of each sequence's last token only. Default false. */
  readonly lastRows?: boolean
  /** Read what every layer sees. Default false. */
  readonly watch?: boolean
}

export interface RunResult {
  /** By layer, and last after the final norm; [tokens, hiddenSize] of the sequence. */
  readonly hidden: readonly Float64Array[]
  readonly logits: Float64Array
}

/** A table of pages that nobody else has: logical pages of a sequence lie anywhere, and a ring comes back to its first. */
function pageTables(random: Random, sequences: number, width: number): Int32Array {
  return Int32Array.from(random.permutation(sequences * width))
}

export class Runner {
  readonly #device: Device
  readonly #model: ModelTensors
  readonly #pageTokens: number
  readonly #caches: LayerCache[]
  readonly #pages: Record<'local' | 'global', { table: Int32Array; width: number }>
  readonly #lengths: number[]

  constructor(
    device: Device,
    model: ModelTensors,
    { sequences, tokens, largestStep }: { sequences: number; tokens: number; largestStep: number },
    { kv = 'f32', pageTokens = 4 }: RunOptions = {},
  ) {
    const { config } = model
    this.#device = device
    this.#model = model
    this.#pageTokens = pageTokens
    this.#lengths = Array.from({ length: sequences }, () => 0)
    const random = Random.named('pages')
    const allPages = Math.ceil(tokens / pageTokens)
    const ring = Math.min(allPages, Math.ceil((config.window + largestStep - 1) / pageTokens))
    this.#pages = {
      local: { table: pageTables(random, sequences, ring), width: ring },
      global: { table: pageTables(random, sequences, allPages), width: allPages },
    }
    this.#caches = config.layerTypes.map((type) => {
      const pages = sequences * this.#pages[type].width
      const shape = [pages, config.kvHeads, pageTokens, config.headDim]
      const make = (dtype: DType, dims: number[]) => Tensor.zeros(device, dims, dtype)
      return {
        kCache: make(kv, shape),
        vCache: make(kv, shape),
        ...(kv === 'i8' && { kScales: make('f32', shape.slice(0, 3)), vScales: make('f32', shape.slice(0, 3)) }),
      }
    })
  }

  get caches(): readonly LayerCache[] {
    return this.#caches
  }

  /** Queues one step: the new tokens of each sequence, of which some may have none. Gives logits, and what the layers saw. */
  step(
    fresh: readonly ArrayLike<number>[],
    { lastRows = false, watch = false }: StepOptions = {},
  ): { logits: Promise<Float32Array>; hidden: Promise<Float32Array>[] } {
    const ids = fresh.flatMap((tokens) => Array.from(tokens))
    const positions = fresh.flatMap((tokens, s) => Array.from(tokens, (_, i) => this.#lengths[s]! + i))
    const sequenceOf = fresh.flatMap((tokens, s) => Array.from(tokens, () => s))
    const starts = [0]
    for (const tokens of fresh) starts.push(starts.at(-1)! + tokens.length)
    for (const [s, tokens] of fresh.entries()) this.#lengths[s]! += tokens.length
    const upload = (data: readonly number[] | Int32Array, shape?: number[]) =>
      Tensor.from(this.#device, Int32Array.from(data), shape)
    const paged = (type: 'local' | 'global') => {
      const { table, width } = this.#pages[type]
      const slots = positions.map((position, t) => {
        const page = table[sequenceOf[t]! * width + (Math.floor(position / this.#pageTokens) % width)]!
        return page * this.#pageTokens + (position % this.#pageTokens)
      })
      return { slots: upload(slots), pages: upload(table, [fresh.length, width]) }
    }
    const rows = starts.slice(1).map((end) => end - 1)
    const hidden: Promise<Float32Array>[] = []
    const result = decoder(
      this.#model,
      {
        ids: upload(ids),
        positions: upload(positions),
        queryStarts: upload(starts),
        keyLengths: upload(this.#lengths),
        local: paged('local'),
        global: paged('global'),
        ...(lastRows && { rows: upload(rows) }),
      },
      this.#caches,
      watch ? (_, values) => hidden.push(values.read() as Promise<Float32Array>) : undefined,
    )
    return { logits: logits(this.#model, result).read() as Promise<Float32Array>, hidden }
  }

  dispose(): void {
    for (const cache of this.#caches) for (const tensor of Object.values(cache)) (tensor as Tensor).dispose()
  }
}

/** Runs sequences together from beginning to end. */
export async function runBatch(
  model: ModelTensors & { readonly device: Device },
  sequences: readonly ArrayLike<number>[],
  options: RunOptions = {},
): Promise<RunResult[]> {
  const { config, device } = model
  const longest = Math.max(...sequences.map((ids) => ids.length))
  const steps = options.steps ?? [longest]
  const sizes = { sequences: sequences.length, tokens: longest, largestStep: Math.max(...steps) }
  const runner = new Runner(device, model, sizes, options)
  const results = sequences.map((ids) => ({
    hidden: Array.from(
      { length: options.watch ? config.layers + 1 : 0 },
      () => new Float64Array(ids.length * config.hiddenSize),
    ),
    logits: new Float64Array(ids.length * config.vocabularySize),
  }))
  let done = 0
  for (const size of steps) {
    const fresh = sequences.map((ids) => Array.from(ids).slice(done, done + size))
    const step = runner.step(fresh, { watch: options.watch ?? false })
    const [scores, ...hidden] = await Promise.all([step.logits, ...step.hidden])
    let row = 0
    for (const [s, tokens] of fresh.entries()) {
      const copy = (from: ArrayLike<number>, to: Float64Array, columns: number) => {
        for (let i = 0; i < tokens.length * columns; i++) to[done * columns + i] = from[row * columns + i]!
      }
      copy(scores, results[s]!.logits, config.vocabularySize)
      for (const [layer, values] of hidden.entries()) copy(values, results[s]!.hidden[layer]!, config.hiddenSize)
      row += tokens.length
    }
    done += size
  }
  runner.dispose()
  return results
}

export async function run(
  model: ModelTensors & { readonly device: Device },
  ids: ArrayLike<number>,
  options: RunOptions = {},
): Promise<RunResult> {
  return (await runBatch(model, [ids], options))[0]!
}

/** Steps of one size until `total` tokens are done. */
export function equalSteps(total: number, size: number): number[] {
  return Array.from({ length: Math.ceil(total / size) }, (_, i) => Math.min(size, total - i * size))
}

/** The prompt and its greedy continuation, one token at a time after the prompt. */
export async function greedy(
  model: ModelTensors & { readonly device: Device },
  prompt: readonly number[],
  total: number,
): Promise<number[]> {
  const ids = [...prompt]
  const sizes = { sequences: 1, tokens: total, largestStep: prompt.length }
  const runner = new Runner(model.device, model, sizes, { pageTokens: 16 })
  let fresh = prompt
  while (ids.length < total) {
    const scores = await runner.step([fresh], { lastRows: true }).logits
    let best = 0
    for (let i = 1; i < scores.length; i++) if (scores[i]! > scores[best]!) best = i
    fresh = [best]
    ids.push(best)
  }
  runner.dispose()
  return ids
}

/** A model with a changed configuration, for what must go wrong then. */
export function changed(model: GemmaModel, change: Partial<GemmaConfig>): ModelTensors & { readonly device: Device } {
  const { device, config, activations, embedding, layers, finalNorm, head, refinement, dense } = model
  return {
    device,
    config: { ...config, ...change },
    activations,
    embedding,
    layers,
    finalNorm,
    head,
    refinement,
    dense,
  }
}
