/**
 * The plan of a step: everything a captured step is told, in one array of integers and one of floats.
 * @module
 */
import type { StepInput } from '../models/gemma/forward.ts'
import type { Tensor } from '../tensor.ts'
import { type ImageRun, runAt, runFrom } from './image-runs.ts'
import type { SequencePages } from './kv-pages.ts'
import type { SamplingSettings } from './sampler.ts'

/** The sizes that a captured step is made for. Real steps are padded up to them. */
export interface StepShape {
  readonly tokens: number
  /** Spans of queries, see {@link countSpans}. */
  readonly sequences: number
  /** Tokens whose result is wanted. */
  readonly rows: number
  /** Row r is token r: nothing is gathered. */
  readonly allRows: boolean
  /** Widths of the page tables; local 0: there are no local layers. */
  readonly globalWidth: number
  readonly localWidth: number
  /** Words of a row's mask of tokens; 0: all tokens are allowed. */
  readonly maskWords: number
  /** Whether some of the tokens are images': visible keys and soft tokens are told. 0: none; else the columns of a soft token. */
  readonly softColumns: number
}

/** Part of a sequence in a step. */
export interface PlannedPart {
  readonly pages: SequencePages
  readonly start: number
  readonly count: number
  /** Tokens from here on were generated, and computed one by one. */
  readonly promptLength: number
  /** Of the whole sequence, in order. Default: none. */
  readonly images?: readonly ImageRun[] | undefined
}

/** Whether a part has soft tokens. */
export function hasImages({ images = [], start, count }: PlannedPart): boolean {
  const run = runFrom(images, start)
  return run !== undefined && run.start < start + count
}

/**
 * The end of the span that begins at `position`. The queries of a span form a sequence of their own for attention: those of one page
 * of a prompt (or of its part before, in or after an image), or a single generated token. Sums of attention are rounded in an order that depends on which queries are
 * computed together. Spans are the same however a prompt is cut into steps, whoever shares them, whether a prefix was found, and when a
 * sequence is computed again; so are the results, bit for bit, where matmul's rows do not depend on their number.
 */
function spanEnd({ pages, start, count, promptLength, images = [] }: PlannedPart, position: number): number {
  if (position >= promptLength) return position + 1
  const page = (Math.floor(position / pages.pageTokens) + 1) * pages.pageTokens
  const run = runFrom(images, position)
  const pause = run === undefined ? page : run.start <= position ? run.end : run.start
  return Math.min(page, pause, promptLength, start + count)
}

/** How many spans there are in parts. */
export function countSpans(parts: readonly PlannedPart[]): number {
  let count = 0
  for (const part of parts) {
    const end = part.start + part.count
    for (let position = part.start; position < end; position = spanEnd(part, position)) count++
  }
  return count
}

/**
 * Steps of similar size share a program: up to an eighth more tokens than there are, which belong to no sequence and are kept nowhere.
 */
export function padded(count: number): number {
  const unit = count < 16 ? 1 : 2 ** (Math.floor(Math.log2(count)) - 3)
  return Math.ceil(count / unit) * unit
}

const sections = [
  'ids',
  'positions',
  'globalSlots',
  'localSlots',
  'queryStarts',
  'keyLengths',
  'globalPages',
  'localPages',
  'rows',
  'state',
  'targets',
  'adjustRows',
  'mask',
  'globalLow',
  'globalHigh',
  'localLow',
  'localHigh',
] as const
type Section = (typeof sections)[number]

/** What the embedding takes for no token. */
const noToken = -1

type RowSettings = Pick<
  SamplingSettings,
  'temperature' | 'topK' | 'topP' | 'minP' | 'repetitionPenalty' | 'presencePenalty' | 'frequencyPenalty'
>

/** Floats per row of the settings: temperature, topK, topP, minP; and the penalties repetition, presence, frequency. */
const samplingColumns = 4
const penaltyColumns = 3

/** Where each section of the plan lies, how it is filled, and what tensors a captured step sees. */
export class StepPlan {
  readonly shape: StepShape
  readonly integers: Int32Array
  readonly floats: Float32Array
  /** [tokens, softColumns] */
  readonly soft: Float32Array
  readonly #start: Readonly<Record<Section, number>>

  constructor(shape: StepShape) {
    this.shape = shape
    const { tokens, sequences, rows, globalWidth, localWidth, maskWords, softColumns } = shape
    const visible = softColumns === 0 ? 0 : tokens
    const sizes: Record<Section, number> = {
      ids: tokens,
      positions: tokens,
      globalSlots: tokens,
      localSlots: localWidth === 0 ? 0 : tokens,
      queryStarts: sequences + 1,
      keyLengths: sequences,
      globalPages: sequences * globalWidth,
      localPages: sequences * localWidth,
      rows,
      state: rows * 2,
      targets: rows,
      adjustRows: rows,
      mask: rows * maskWords,
      globalLow: visible,
      globalHigh: visible,
      localLow: localWidth === 0 ? 0 : visible,
      localHigh: localWidth === 0 ? 0 : visible,
    }
    let end = 0
    const starts: Partial<Record<Section, number>> = {}
    for (const section of sections) {
      starts[section] = end
      end += Math.ceil(sizes[section] / 16) * 16 // whole cache lines
    }
    this.#start = starts as Record<Section, number>
    this.integers = new Int32Array(end)
    this.floats = new Float32Array(rows * (samplingColumns + penaltyColumns))
    this.soft = new Float32Array(tokens * softColumns)
  }

  /**
   * Writes tokens, places and pages of the parts, one after the other; rows are left to the caller.
   * @param token Token `index` of a part's sequence; a negative one is an image's.
   * @param window Of local layers. Needed where there are images.
   */
  fill(parts: readonly PlannedPart[], token: (part: number, index: number) => number, window = 0): void {
    const { tokens, sequences, globalWidth, localWidth, softColumns } = this.shape
    const { integers } = this
    const at = this.#start
    let row = 0
    let span = 0
    for (let index = 0; index < parts.length; index++) {
      const part = parts[index] as PlannedPart
      const { pages } = part
      const last = part.start + part.count
      for (let position = part.start; position < last; span++) {
        const end = spanEnd(part, position)
        const seen = runAt(part.images ?? [], position)
        integers[at.queryStarts + span] = row
        integers[at.keyLengths + span] = seen?.end ?? end
        integers.set(pages.global, at.globalPages + span * globalWidth)
        integers.set(pages.local, at.localPages + span * localWidth)
        for (; position < end; position++, row++) {
          integers[at.ids + row] = Math.max(token(index, position), noToken)
          integers[at.positions + row] = position
          integers[at.globalSlots + row] = pages.globalSlot(position)
          if (localWidth > 0) integers[at.localSlots + row] = pages.localSlot(position)
          if (softColumns > 0) this.#see(row, position, seen, window)
        }
      }
    }
    integers.fill(row, at.queryStarts + span, at.queryStarts + sequences + 1)
    integers.fill(0, at.keyLengths + span, at.keyLengths + sequences)
    integers.fill(0, at.ids + row, at.ids + tokens)
    integers.fill(0, at.positions + row, at.positions + tokens)
    integers.fill(-1, at.globalSlots + row, at.globalSlots + tokens)
    if (localWidth > 0) integers.fill(-1, at.localSlots + row, at.localSlots + tokens)
    if (softColumns === 0) return
    for (const section of ['globalLow', 'globalHigh', 'localLow', 'localHigh'] as const) {
      if (localWidth > 0 || !section.startsWith('local')) integers.fill(0, at[section] + row, at[section] + tokens)
    }
    this.soft.fill(0, row * softColumns)
  }

  /** What a token sees: the keys before it, and of an image all of its own. */
  #see(row: number, position: number, run: ImageRun | undefined, window: number): void {
    const { localWidth, softColumns } = this.shape
    const { integers, soft } = this
    const at = this.#start
    const high = run?.end ?? position + 1
    integers[at.globalLow + row] = 0
    integers[at.globalHigh + row] = high
    if (localWidth > 0) {
      integers[at.localLow + row] = Math.min(Math.max(0, position + 1 - window), run?.start ?? position)
      integers[at.localHigh + row] = high
    }
    if (run) {
      const from = (position - run.start) * softColumns
      soft.set(run.soft.subarray(from, from + softColumns), row * softColumns)
    } else {
      soft.fill(0, row * softColumns, (row + 1) * softColumns)
    }
  }

  /** One number of a section. */
  set(section: 'rows' | 'state' | 'targets' | 'adjustRows', index: number, value: number): void {
    this.integers[this.#start[section] + index] = value
  }

  /** The tokens that row `row` may give; undefined: all. Nothing happens where the shape has no masks. */
  setMask(row: number, mask: Int32Array | undefined): void {
    const { maskWords } = this.shape
    const start = this.#start.mask + row * maskWords
    if (mask && maskWords > 0) this.integers.set(mask, start)
    else this.integers.fill(-1, start, start + maskWords)
  }

  /** How row `row` is sampled. */
  setSampling(row: number, settings: RowSettings): void {
    const { floats } = this
    let at = row * samplingColumns
    floats[at++] = settings.temperature
    floats[at++] = settings.topK
    floats[at++] = settings.topP
    floats[at] = settings.minP
    at = this.shape.rows * samplingColumns + row * penaltyColumns
    floats[at++] = settings.repetitionPenalty
    floats[at++] = settings.presencePenalty
    floats[at] = settings.frequencyPenalty
  }

  /** The tensors that a captured step reads, as views of its inputs. */
  tensors(plan: Tensor, settings: Tensor, soft?: Tensor): StepTensors {
    const { tokens, sequences, rows, allRows, globalWidth, localWidth, maskWords, softColumns } = this.shape
    const take = (section: Section, ...shape: number[]): Tensor => {
      const start = this.#start[section]
      const size = shape.reduce((product, dim) => product * dim, 1)
      return plan.slice(start, start + size).reshape(shape)
    }
    const visible = (low: Section, high: Section) =>
      softColumns === 0 ? {} : { keyLow: take(low, tokens), keyHigh: take(high, tokens) }
    const global = {
      slots: take('globalSlots', tokens),
      pages: take('globalPages', sequences, globalWidth),
      ...visible('globalLow', 'globalHigh'),
    }
    return {
      input: {
        ids: take('ids', tokens),
        positions: take('positions', tokens),
        queryStarts: take('queryStarts', sequences + 1),
        keyLengths: take('keyLengths', sequences),
        global,
        local:
          localWidth === 0
            ? global
            : {
                slots: take('localSlots', tokens),
                pages: take('localPages', sequences, localWidth),
                ...visible('localLow', 'localHigh'),
              },
        soft: softColumns === 0 ? undefined : soft,
        rows: allRows ? undefined : take('rows', rows),
      },
      state: take('state', rows, 2),
      targets: take('targets', rows),
      adjustRows: take('adjustRows', rows),
      mask: maskWords === 0 ? undefined : take('mask', rows, maskWords),
      sampling: settings.slice(0, rows * samplingColumns).reshape([rows, samplingColumns]),
      penalties: settings
        .slice(rows * samplingColumns, rows * (samplingColumns + penaltyColumns))
        .reshape([rows, penaltyColumns]),
    }
  }
}

export interface StepTensors {
  readonly input: StepInput
  /** i32 [rows, 2]: seed and counter. */
  readonly state: Tensor
  /** i32 [rows]: the tokens to score. */
  readonly targets: Tensor
  /** i32 [rows]: the rows of counts and bias. */
  readonly adjustRows: Tensor
  /** i32 [rows, maskWords]: a bit per token that may be sampled. */
  readonly mask: Tensor | undefined
  /** f32 [rows, 4] and [rows, 3]. */
  readonly sampling: Tensor
  readonly penalties: Tensor
}
