/**
 * What callers may ask of a model, and how it is checked.
 * @module
 */
import type { Device, DeviceKind, GpuFamily, Isa } from '../device.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import type { GemmaConfig } from '../models/gemma/config.ts'
import type { GemmaLoadOptions } from '../models/gemma/load.ts'
import type { ImageLimits } from '../vision/image-source.ts'
import type { Grammar } from './grammar.ts'
import { type KvDType, kvDtypes } from './kv-cache.ts'
import { numberOption, positiveInteger, type SamplingOptions } from './sampler.ts'

/** Options of `Gemma.load`. */
export interface GemmaOptions extends GemmaLoadOptions {
  /**
   * Where it runs: a device of the caller's, which stays the caller's to dispose, or what `Device.open` takes (`'cuda'`) for one of its own.
   * Default: the processor.
   */
  readonly device?: Device | DeviceKind | undefined
  /** Threads of a device of its own. Default: the physical cores this process may use. */
  readonly threads?: number | undefined
  /** The highest instruction set of a device of its own. Default: the best there is. */
  readonly isa?: Isa | GpuFamily | undefined
  /** Takes a GPU of its own although no acceptance run is recorded for its architecture; see `Device.open`. Default false. */
  readonly unverified?: boolean | undefined
  /** Tokens a sequence may have, prompt and answer together. Default: what the model was trained for, at most 8192. */
  readonly contextLength?: number | undefined
  /** Sequences that run at once; more wait. Memory for keys and values is set aside for so many, and touched as it is used. Default 8. */
  readonly maxSequences?: number | undefined
  /** Requests that may wait; one more is ERR_BUSY. Default 1024. */
  readonly maxQueue?: number | undefined
  /** How keys and values are stored: half the memory of `f32`, or a quarter. Default bf16. */
  readonly kv?: KvDType | undefined
  /**
   * Tokens of one step: prompts are computed in parts of this size, between which other sequences advance. Rounded up to whole
   * pages. Default 512.
   */
  readonly prefillChunk?: number | undefined
  /** Tokens of a page of the KV cache: prompts are computed, and prefixes reused, in whole pages. Default 64. */
  readonly pageTokens?: number | undefined
  /**
   * Tokens whose keys and values the cache holds, of all sequences together. With less than they need, the youngest wait and are computed
   * again. Default contextLength · maxSequences; at least contextLength.
   */
  readonly cacheTokens?: number | undefined
  /** Whether what a request has computed is kept for others that begin alike, while memory lasts. Default true. */
  readonly prefixCache?: boolean | undefined
  /**
   * Of a GGUF model: the file of its vision tower; false: none is looked for. Default: a file beside the model whose name holds `mmproj` and
   * that fits it. Hugging Face folders hold their own. The tower is loaded when the first image comes.
   */
  readonly mmproj?: string | false | undefined
  /** What images may cost before they are refused. */
  readonly images?: ImageLimits | undefined
}

/** Options of one generation. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. Default: until a stop token, or until the context is full. */
  readonly maxTokens?: number | undefined
  /** Text that ends the answer, and is no part of it. */
  readonly stop?: string | readonly string[] | undefined
  /** Tokens that end the answer. Default: the model's end-of-text and end-of-turn tokens. */
  readonly stopTokens?: readonly number[] | undefined
  /** What the answer must look like, from `gemma.compileGrammar`. Tokens that it does not allow are never drawn. */
  readonly grammar?: Grammar | undefined
  /**
   * Whose turn it is where several wait or memory is short: lower numbers go first, equal ones in the order they came. Whoever has waited
   * long enough goes before later ones of any priority. Default 0.
   */
  readonly priority?: number | undefined
  /** Ends the generation with finish reason `abort`, within one step. */
  readonly signal?: AbortSignal | undefined
  /** Whether turn and image markers in given text are more than text. Default false: nobody can pose as somebody else. */
  readonly allowMarkers?: boolean | undefined
}

/** Options of `gemma.logits`. */
export interface LogitsOptions {
  /** How many positions, counted from the end. Default: all. */
  readonly rows?: number | undefined
  readonly signal?: AbortSignal | undefined
  readonly allowMarkers?: boolean | undefined
}

/** Options of `gemma.score`. */
export interface ScoreOptions {
  /** How many of the most probable tokens are given with each, 0 to 64. Default 0. */
  readonly top?: number | undefined
  readonly signal?: AbortSignal | undefined
  readonly allowMarkers?: boolean | undefined
}

/** Options of `gemma.perplexity`. */
export interface PerplexityOptions {
  /** Tokens that are seen at once. Default 512, at most the model's context. */
  readonly contextLength?: number | undefined
  /** How far windows are apart, at most contextLength. Less gives every token more context, and costs more. Default contextLength. */
  readonly stride?: number | undefined
  /** Told the tokens scored so far, and of all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
  readonly signal?: AbortSignal | undefined
  readonly allowMarkers?: boolean | undefined
}

/** Sizes of an engine, all decided. */
export interface EngineSizes {
  readonly contextLength: number
  readonly maxSequences: number
  readonly maxQueue: number
  readonly kv: KvDType
  readonly prefillChunk: number
  readonly pageTokens: number
  readonly cacheTokens: number
  readonly prefixCache: boolean
}

/**
 * Checks the options that size an engine, and fills in defaults.
 * @throws ERR_INVALID_ARGUMENT naming the option.
 */
export function engineSizes(options: GemmaOptions, config: GemmaConfig): EngineSizes {
  type Count = Exclude<keyof EngineSizes, 'kv' | 'prefixCache'>
  const size = (name: Count, initial: number): number => numberOption(name, options[name], positiveInteger, initial)
  const contextLength = size('contextLength', Math.min(config.contextLength, 8192))
  if (contextLength > config.contextLength || contextLength < 2) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `contextLength: expected 2 to ${config.contextLength}, which the model was trained for, got ${contextLength}`,
    )
  }
  const { kv = 'bf16', prefixCache = true } = options
  if (!kvDtypes.includes(kv)) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `kv: expected one of ${kvDtypes.join(', ')}, got ${describeValue(kv)}`,
    )
  }
  const maxSequences = size('maxSequences', 8)
  if (maxSequences > 4096) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `maxSequences: expected at most 4096, got ${maxSequences}`)
  }
  const pageTokens = Math.min(size('pageTokens', 64), contextLength)
  const chunk = Math.min(size('prefillChunk', 512), contextLength)
  return {
    contextLength,
    maxSequences,
    maxQueue: size('maxQueue', 1024),
    kv,
    prefillChunk: Math.ceil(chunk / pageTokens) * pageTokens,
    pageTokens,
    cacheTokens: Math.max(size('cacheTokens', contextLength * maxSequences), contextLength),
    prefixCache: prefixCache === true,
  }
}

/**
 * Ids of a prompt that a caller gives.
 * @throws ERR_INVALID_ARGUMENT if it is empty, too long, or has an id that is none.
 */
export function checkIds(ids: ArrayLike<number>, vocabularySize: number, limit: number): Int32Array {
  if (ids.length === 0 || ids.length > limit) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `prompt: expected 1 to ${limit} tokens, so that the context has room for an answer, got ${ids.length}`,
    )
  }
  const checked = new Int32Array(ids.length)
  for (let index = 0; index < ids.length; index++) {
    const id = ids[index] as number
    if (!(Number.isInteger(id) && id >= 0 && id < vocabularySize)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `prompt: ${index}: expected a token id from 0 to ${vocabularySize - 1}, got ${describeValue(id)}`,
      )
    }
    checked[index] = id
  }
  return checked
}

/** @throws ERR_INVALID_ARGUMENT unless it is a string, or strings, none of them empty. */
export function checkStop(stop: unknown): readonly string[] {
  const stops = stop === undefined ? [] : Array.isArray(stop) ? stop : [stop]
  for (const text of stops) {
    if (typeof text === 'string' && text !== '') continue
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `stop: expected strings that are not empty, got ${describeValue(text) || 'an empty one'}`,
    )
  }
  return stops
}

/** @throws ERR_INVALID_ARGUMENT unless it is a list of token ids. */
export function checkStopTokens(stopTokens: unknown): ReadonlySet<number> {
  const ids = Array.isArray(stopTokens) ? stopTokens : [Number.NaN]
  if (ids.every((id) => Number.isInteger(id) && id >= 0)) return new Set(ids)
  throw new LapidaryError('ERR_INVALID_ARGUMENT', 'stopTokens: expected an array of token ids')
}

/** @throws ERR_INVALID_ARGUMENT unless it is an object: null or a string would be read as if nothing had been asked for, or not at all. */
export function checkOptions(options: unknown): void {
  if (typeof options === 'object' && options !== null) return
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `options: expected an object, got ${describeValue(options)}`)
}

/** @throws ERR_INVALID_ARGUMENT unless it is an AbortSignal, or undefined. */
export function checkSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `signal: expected an AbortSignal, got ${describeValue(signal)}`)
}
