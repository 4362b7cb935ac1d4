/**
 * The step runner: captures the model's step once per shape and replays it.
 * @module
 */
import type { Device } from '../device.ts'
import { decoder, logits } from '../models/gemma/forward.ts'
import type { ModelTensors } from '../models/gemma/model.ts'
import { adjustLogits, argmax, countTokens, logProbs, sample } from '../ops/sampling.ts'
import { Program, type TensorSpec } from '../program.ts'
import type { Stream } from '../stream.ts'
import type { Tensor } from '../tensor.ts'
import { AdjustRows } from './adjust-rows.ts'
import type { KvCache } from './kv-cache.ts'
import type { SequencePages } from './kv-pages.ts'
import { hasPenalties } from './sampler.ts'
import type { StepEntry } from './scheduler.ts'
import type { Sequence, TokenLogprobs } from './sequence.ts'
import {
  countSpans,
  hasImages,
  type PlannedPart,
  padded,
  StepPlan,
  type StepShape,
  type StepTensors,
} from './step-plan.ts'

/** What a step gave: one token for each entry that samples, in order. */
export interface StepResult {
  readonly tokens: Int32Array
  /** Log probabilities of row r; undefined where its sequence does not want them. */
  logprobs(row: number): TokenLogprobs | undefined
}

/** What computes steps. The engine knows no more of the model than this. */
export interface StepExecutor {
  /** Computes a step. Everything it needs is taken from the sequences before this returns. */
  execute(entries: readonly StepEntry[]): Promise<StepResult>
  /** The sequence ended, or was put back: what is kept for it is not needed any more. */
  forget(sequence: Sequence): void
  /** Waits for everything queued. After a failure: clears it. */
  settle(): Promise<void>
  /** There is no work for now: memory that comes back by itself may go. */
  rest(): void
}

/** What a captured step does with its rows. Numbers and booleans are part of the program's key. */
interface StepVariant {
  /** All rows take the largest logit. */
  readonly greedy: boolean
  readonly penalties: boolean
  readonly bias: boolean
  /** Some row may not give all tokens. */
  readonly masked: boolean
  /** −1: no log probabilities; else how many alternatives. */
  readonly top: number
}

/** Scores instead of sampling: log probabilities of given tokens, or the logits themselves. */
export type ScoreKind = 'logprobs' | 'logits'

/** What scoring gives, row by row. */
export interface Scores {
  /** Log probabilities [rows], or logits [rows · vocabulary]. */
  readonly values: Float32Array
  /** The number of alternatives of each row: what was asked for, or somewhat more. */
  readonly top: number
  /** The most probable tokens and their log probabilities [rows · top]. */
  readonly topIds: Int32Array
  readonly topValues: Float32Array
}

interface Captured {
  readonly plan: StepPlan
  readonly program: Program<readonly Tensor[]>
}

// A captured step of a 26-layer model holds about 0.6 MB of calls.
const maxPrograms = 32
// Alternatives are a column count of the program: few sizes, few programs.
const topSizes = [0, 5, 20, 64]
// 64 MiB: 64 rows of Gemma 3's vocabulary.
const defaultBlock = 2 ** 24

export class StepRunner implements StepExecutor, Disposable {
  readonly #device: Device
  readonly #stream: Stream
  readonly #model: ModelTensors
  readonly #cache: KvCache
  readonly #adjust: AdjustRows
  readonly #scoreBlock: number
  /** In order of last use. */
  readonly #programs = new Map<string, Captured>()
  /** The one with the largest arena so far: later ones use it too. */
  #arena: Program<readonly Tensor[]> | undefined
  #arenaBytes = 0

  /** @param scoreBlock The most logits that scoring computes at a time. */
  constructor(
    device: Device,
    stream: Stream,
    model: ModelTensors,
    cache: KvCache,
    maxSequences: number,
    scoreBlock: number = defaultBlock,
  ) {
    this.#scoreBlock = scoreBlock
    this.#device = device
    this.#stream = stream
    this.#model = model
    this.#cache = cache
    this.#adjust = new AdjustRows(device, model.config.vocabularySize, maxSequences)
  }

  async execute(entries: readonly StepEntry[]): Promise<StepResult> {
    const sampled = entries.filter((entry) => entry.samples).map((entry) => entry.sequence)
    const variant = variantOf(sampled, this.#model.config.vocabularySize)
    const parts = entries.map(partOf)
    const decodes = sampled.length === entries.length && entries.every((entry) => entry.count === 1)
    const tokens = padded(entries.reduce((sum, entry) => sum + entry.count, 0))
    const shape = decodes
      ? this.#shape(tokens, tokens, tokens, true, parts, variant.masked)
      : this.#shape(tokens, padded(countSpans(parts)), padded(sampled.length), false, parts, variant.masked)
    // Made outside the capture, which would take them for intermediates.
    const { counts, bias } = this.#adjust.tensors(variant.penalties, variant.bias)
    const key = `${variant.greedy} ${variant.penalties} ${variant.bias} ${variant.top}`
    const { plan, program } = this.#captured(shape, key, (tensors, hidden) =>
      this.#sample(tensors, hidden, variant, counts, bias),
    )
    this.#fill(plan, parts, (part, index) => (entries[part] as StepEntry).sequence.token(index))
    this.#fillRows(plan, entries, variant)
    const outputs = await program.execute(...inputsOf(plan))
    return stepResult(sampled, variant, outputs)
  }

  /**
   * Computes tokens [start, start + count) of one sequence, and scores the last `rows` of them.
   * @param targets With `logprobs`: the token after each of these rows.
   * @param wantedTop With `logprobs`: how many of the most probable tokens.
   */
  async score(
    tokens: Int32Array,
    part: PlannedPart,
    kind: ScoreKind,
    rows: number,
    targets?: Int32Array,
    wantedTop = 0,
  ): Promise<Scores> {
    const { vocabularySize } = this.#model.config
    const top = kind === 'logits' ? 0 : topSize(wantedTop, vocabularySize)
    const size = padded(part.count)
    const allRows = rows === part.count
    const shape = this.#shape(size, padded(countSpans([part])), allRows ? size : padded(rows), allRows, [part])
    const block = Math.max(1, Math.floor(this.#scoreBlock / vocabularySize))
    const { plan, program } = this.#captured(shape, `${kind} ${top}`, ({ targets: wanted }, hidden) =>
      blocks(shape.rows, block, (start, end) => {
        const scores = logits(this.#model, hidden.slice(start, end))
        if (kind === 'logits') return [scores]
        const { chosen, ids, values } = logProbs(scores, wanted.slice(start, end), { top })
        return top === 0 ? [chosen] : [chosen, ids, values]
      }),
    )
    this.#fill(plan, [part], (_, index) => tokens[index] as number)
    for (let row = 0; row < shape.rows; row++) {
      plan.set('rows', row, Math.min(part.count - rows + row, part.count - 1))
      plan.set('targets', row, targets?.[row] ?? 0)
    }
    const outputs = await program.execute(...inputsOf(plan))
    const parts = top === 0 ? 1 : 3
    const take = <T extends Int32Array | Float32Array>(into: T, which: number): T => {
      let at = 0
      for (let index = which; index < outputs.length; index += parts) {
        const output = outputs[index] as unknown as T
        into.set(output.subarray(0, into.length - at), at)
        at += Math.min(output.length, into.length - at)
      }
      return into
    }
    return {
      values: take(new Float32Array(rows * (kind === 'logits' ? vocabularySize : 1)), 0),
      top,
      topIds: take(new Int32Array(rows * top), 1),
      topValues: take(new Float32Array(rows * top), 2),
    }
  }

  forget(sequence: Sequence): void {
    this.#adjust.release(sequence)
  }

  async settle(): Promise<void> {
    await this.#stream.synchronize()
  }

  /**
   * The rows of the stored table that look-ups and refinement have read are up to 300 MB of a 1B model, of which the next text needs
   * a few per cent.
   */
  rest(): void {
    this.#model.embedding.releasePages()
    this.#model.refinement?.table.releasePages()
  }

  /** How many programs are captured, and the bytes of the largest arena. */
  info(): { programs: number; arenaBytes: number } {
    return { programs: this.#programs.size, arenaBytes: this.#arenaBytes }
  }

  dispose(): void {
    for (const { program } of this.#programs.values()) program.dispose()
    this.#programs.clear()
    this.#arena?.dispose()
    this.#arena = undefined
    this.#adjust.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #shape(
    tokens: number,
    sequences: number,
    rows: number,
    allRows: boolean,
    parts: readonly PlannedPart[],
    masked = false,
  ): StepShape {
    const { global, local } = this.#cache.pages.widths
    const { vocabularySize, hiddenSize } = this.#model.config
    const maskWords = masked ? Math.ceil(vocabularySize / 32) : 0
    const softColumns = parts.some(hasImages) ? hiddenSize : 0
    return { tokens, sequences, rows, allRows, globalWidth: global, localWidth: local, maskWords, softColumns }
  }

  #fill(plan: StepPlan, parts: readonly PlannedPart[], token: Parameters<StepPlan['fill']>[1]): void {
    plan.fill(parts, token, this.#cache.pages.window)
  }

  /** The program of a shape and variant: the one at hand, or a new one in place of the least recently used. */
  #captured(
    shape: StepShape,
    variant: string,
    finish: (tensors: StepTensors, hidden: Tensor) => readonly Tensor[],
  ): Captured {
    const { maskWords, softColumns } = shape
    const key = `${shape.tokens} ${shape.sequences} ${shape.rows} ${shape.allRows} ${maskWords} ${softColumns} ${variant}`
    let captured = this.#programs.get(key)
    if (captured) {
      this.#programs.delete(key)
    } else {
      captured = this.#capture(shape, finish)
      for (const [oldest, { program }] of this.#programs) {
        if (this.#programs.size < maxPrograms) break
        this.#programs.delete(oldest)
        if (program !== this.#arena) program.dispose()
      }
    }
    this.#programs.set(key, captured)
    return captured
  }

  #capture(shape: StepShape, finish: (tensors: StepTensors, hidden: Tensor) => readonly Tensor[]): Captured {
    const plan = new StepPlan(shape)
    const program = this.#stream.use(() =>
      Program.capture(
        this.#device,
        [
          { shape: [plan.integers.length], dtype: 'i32' },
          { shape: [plan.floats.length], dtype: 'f32' },
          ...(shape.softColumns === 0
            ? []
            : [{ shape: [shape.tokens, shape.softColumns], dtype: 'f32' } as const satisfies TensorSpec]),
        ],
        (integers, floats, soft): readonly Tensor[] => {
          const tensors = plan.tensors(integers as Tensor, floats as Tensor, soft)
          const hidden = decoder(this.#model, tensors.input, this.#cache.layers)
          return shape.rows === 0 ? [] : finish(tensors, hidden)
        },
        { arena: this.#arena },
      ),
    )
    const { arenaBytes } = program.info()
    if (arenaBytes > this.#arenaBytes) {
      // Programs that share the old arena keep it alive; it goes with the last of them.
      if (this.#arena && ![...this.#programs.values()].some((held) => held.program === this.#arena))
        this.#arena.dispose()
      this.#arena = program
      this.#arenaBytes = arenaBytes
    }
    return { plan, program }
  }

  /** From hidden states to tokens: the tail of a captured step. */
  #sample(
    tensors: StepTensors,
    hidden: Tensor,
    variant: StepVariant,
    counts: Tensor | undefined,
    bias: Tensor | undefined,
  ): readonly Tensor[] {
    const scores = logits(this.#model, hidden)
    const { adjustRows: rows, penalties: settings, mask } = tensors
    const adjusted = counts || bias || mask ? adjustLogits(scores, { counts, bias, mask, rows, settings }) : scores
    const tokens = variant.greedy ? argmax(adjusted) : sample(adjusted, tensors.state, { settings: tensors.sampling })
    if (counts) countTokens(tokens, counts, rows)
    if (variant.top < 0) return [tokens]
    const { chosen, ids, values } = logProbs(scores, tokens, { top: variant.top })
    return variant.top === 0 ? [tokens, chosen] : [tokens, chosen, ids, values]
  }

  #fillRows(plan: StepPlan, entries: readonly StepEntry[], variant: StepVariant): void {
    const { rows } = plan.shape
    let row = 0
    let token = 0
    for (const { sequence, count, samples } of entries) {
      token += count
      if (!samples) continue
      const { sampling } = sequence.request
      plan.set('rows', row, token - 1)
      plan.set('state', row * 2, sampling.seed | 0)
      plan.set('state', row * 2 + 1, sequence.generated)
      const adjusts = variant.penalties || variant.bias
      plan.set('adjustRows', row, adjusts ? this.#stream.use(() => this.#adjust.rowOf(sequence)) : -1)
      plan.setMask(row, sequence.request.constraint?.mask)
      plan.setSampling(row++, sampling)
    }
    for (; row < rows; row++) {
      plan.set('rows', row, 0)
      plan.set('adjustRows', row, -1)
      plan.setMask(row, undefined)
      plan.setSampling(row, neutral)
    }
  }
}

/** Settings of rows that belong to no sequence. */
const neutral: Parameters<StepPlan['setSampling']>[1] = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
}

function partOf({ sequence, start, count }: StepEntry): PlannedPart {
  const { promptLength, images } = sequence
  return { pages: sequence.pages as SequencePages, start, count, promptLength, images }
}

/** What a captured step takes. */
function inputsOf({ integers, floats, soft }: StepPlan): ArrayBufferView[] {
  return soft.length > 0 ? [integers, floats, soft] : [integers, floats]
}

function variantOf(sequences: readonly Sequence[], vocabularySize: number): StepVariant {
  let top = -1
  let greedy = true
  let penalties = false
  let bias = false
  let masked = false
  for (const { request } of sequences) {
    const { sampling } = request
    greedy &&= sampling.temperature === 0
    penalties ||= hasPenalties(sampling)
    bias ||= sampling.bias.size > 0
    masked ||= request.constraint !== undefined
    top = Math.max(top, sampling.logprobs ?? -1)
  }
  if (top >= 0) top = topSize(top, vocabularySize)
  return { greedy, penalties, bias, masked, top }
}

/** The size among a few that holds so many alternatives. */
function topSize(top: number, vocabularySize: number): number {
  return Math.min(topSizes.find((size) => size >= top) ?? top, vocabularySize)
}

function blocks(
  rows: number,
  block: number,
  body: (start: number, end: number) => readonly Tensor[],
): readonly Tensor[] {
  const count = Math.ceil(rows / block)
  return Array.from({ length: count }, (_, index) => body(index * block, Math.min(rows, (index + 1) * block))).flat()
}

function stepResult(
  sampled: readonly Sequence[],
  { top }: StepVariant,
  outputs: readonly ArrayLike<number>[],
): StepResult {
  const [tokens, chosen, ids, values] = outputs
  return {
    tokens: (tokens as Int32Array | undefined) ?? new Int32Array(0),
    logprobs: (row) => {
      const wanted = (sampled[row] as Sequence).request.sampling.logprobs
      if (wanted === undefined) return undefined
      return {
        id: tokens?.[row] as number,
        logprob: chosen?.[row] as number,
        top: Array.from({ length: Math.min(wanted, top) }, (_, index) => ({
          id: ids?.[row * top + index] as number,
          logprob: values?.[row * top + index] as number,
        })),
      }
    },
  }
}
