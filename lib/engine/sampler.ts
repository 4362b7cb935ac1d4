/**
 * Sampling settings: what callers may ask for, checked, with the model's own defaults.
 * @module
 */
import { randomInt } from 'node:crypto'
import type { Checkpoint } from '../checkpoint/checkpoint.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import type { Architecture } from '../models/gemma/config.ts'

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the most probable token. Default: the model's, `gemma.info()` shows it. */
  readonly temperature?: number | undefined
  /** Only the topK most probable tokens; 0: all. Default: the model's. */
  readonly topK?: number | undefined
  /** Only the most probable tokens whose probabilities sum to topP; 1: all. Default: the model's. */
  readonly topP?: number | undefined
  /** Only tokens of at least minP times the largest probability; 0: all. Default: the model's. */
  readonly minP?: number | undefined
  /** Divides positive and multiplies negative logits of tokens that occur in prompt or answer (arXiv:1909.05858). Default 1. */
  readonly repetitionPenalty?: number | undefined
  /** Subtracted from the logits of tokens that occur in the answer. Default 0. */
  readonly presencePenalty?: number | undefined
  /** Subtracted from the logits of tokens of the answer for each time they occur in it. Default 0. */
  readonly frequencyPenalty?: number | undefined
  /** Added to the logits of tokens, by id; −Infinity forbids one. */
  readonly logitBias?: Readonly<Record<number, number>> | undefined
  /**
   * 0 to 2³² − 1. The same seed, prompt and options give the same text, whoever shares the batch and however many threads compute it.
   * (With AMX and quantised weights rounding depends on the batch.) Default: a random one.
   */
  readonly seed?: number | undefined
  /** The natural log probability of each token, and of so many of the most probable ones (0 to 64), before penalties and temperature. */
  readonly logprobs?: number | undefined
}

/** The part of the options that a model's files may set. */
export type SamplingDefaults = Readonly<Record<'temperature' | 'topK' | 'topP' | 'minP', number>>

/** Every setting decided. */
export interface SamplingSettings extends SamplingDefaults {
  readonly repetitionPenalty: number
  readonly presencePenalty: number
  readonly frequencyPenalty: number
  /** Empty: none. */
  readonly bias: ReadonlyMap<number, number>
  readonly seed: number
  /** undefined: not wanted. */
  readonly logprobs: number | undefined
}

/** The most alternatives that `logprobs` gives. */
export const maxLogprobs = 64

const greedy: SamplingDefaults = { temperature: 0, topK: 0, topP: 1, minP: 0 }

// Gemma 3: the vendor's guidance. Before: what Hugging Face's generate() takes where nothing is said.
const familyDefaults: Readonly<Record<Architecture, SamplingDefaults>> = {
  gemma: { temperature: 1, topK: 50, topP: 1, minP: 0 },
  gemma2: { temperature: 1, topK: 50, topP: 1, minP: 0 },
  gemma3: { temperature: 1, topK: 64, topP: 0.95, minP: 0 },
  'gemma-embedding': greedy,
}

/**
 * How a model samples where the caller does not say: generation_config.json (a checkpoint that says `do_sample: false` is greedy), the
 * `general.sampling.*` keys of a GGUF file; where these are silent temperature 1, top-k 64 and top-p 0.95 for
 * Gemma 3, temperature 1 and top-k 50 for Gemma 1 and 2. Values out of range are ignored.
 */
export function samplingDefaults(
  checkpoint: Pick<Checkpoint, 'format' | 'config' | 'generationConfig'>,
  architecture: Architecture,
): SamplingDefaults {
  const isGguf = checkpoint.format === 'gguf'
  const stored = (isGguf ? checkpoint.config : checkpoint.generationConfig) ?? {}
  if (!isGguf && stored.do_sample === false) return greedy
  const names = isGguf
    ? {
        temperature: 'general.sampling.temp',
        topK: 'general.sampling.top_k',
        topP: 'general.sampling.top_p',
        minP: 'general.sampling.min_p',
      }
    : { temperature: 'temperature', topK: 'top_k', topP: 'top_p', minP: 'min_p' }
  const family = familyDefaults[architecture]
  const value = (name: keyof SamplingDefaults): number => {
    const given = stored[names[name]]
    return typeof given === 'number' && ranges[name].holds(given) ? given : family[name]
  }
  return { temperature: value('temperature'), topK: value('topK'), topP: value('topP'), minP: value('minP') }
}

interface Range {
  readonly text: string
  readonly holds: (value: number) => boolean
}

const isInteger = (low: number, high: number): Range => ({
  text: `an integer from ${low} to ${high}`,
  holds: (value) => Number.isInteger(value) && value >= low && value <= high,
})
const probability: Range = { text: 'a number from 0 to 1', holds: (value) => value >= 0 && value <= 1 }
/** In f32 it stays finite, also times a million tokens. */
const penalty: Range = { text: 'a number from -1e30 to 1e30', holds: (value) => Math.abs(value) <= 1e30 }

const ranges = {
  temperature: { text: 'a finite number of at least 0', holds: (value) => value >= 0 && value <= 3e38 },
  topK: isInteger(0, 2 ** 24), // exact in f32
  topP: probability,
  minP: probability,
  repetitionPenalty: { text: 'a finite number above 0', holds: (value) => value > 1e-30 && value <= 1e30 },
  presencePenalty: penalty,
  frequencyPenalty: penalty,
  seed: isInteger(0, 2 ** 32 - 1),
  logprobs: isInteger(0, maxLogprobs),
} satisfies Record<string, Range>

/** @internal A numeric option in its range, or what stands for it. */
export function numberOption<T>(name: string, value: unknown, range: Range, fallback: T): number | T {
  if (value === undefined) return fallback
  if (typeof value === 'number' && range.holds(value)) return value
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `${name}: expected ${range.text}, got ${describeValue(value)}`)
}

/** @internal */
export const positiveInteger: Range = {
  text: 'an integer of at least 1',
  holds: (value) => Number.isSafeInteger(value) && value >= 1,
}

/**
 * Checks options and fills in defaults.
 * @throws ERR_INVALID_ARGUMENT naming the option.
 */
export function resolveSampling(
  options: SamplingOptions,
  defaults: SamplingDefaults,
  vocabularySize: number,
): SamplingSettings {
  const pick = <Name extends keyof typeof ranges, T>(name: Name, fallback: T): number | T =>
    numberOption(name, options[name], ranges[name], fallback)
  return {
    temperature: pick('temperature', defaults.temperature),
    topK: pick('topK', defaults.topK),
    topP: pick('topP', defaults.topP),
    minP: pick('minP', defaults.minP),
    repetitionPenalty: pick('repetitionPenalty', 1),
    presencePenalty: pick('presencePenalty', 0),
    frequencyPenalty: pick('frequencyPenalty', 0),
    bias: resolveBias(options.logitBias, vocabularySize),
    seed: pick('seed', undefined) ?? randomInt(2 ** 32),
    logprobs: pick('logprobs', undefined),
  }
}

function resolveBias(given: unknown, vocabularySize: number): ReadonlyMap<number, number> {
  const bias = new Map<number, number>()
  if (given === undefined) return bias
  if (typeof given !== 'object' || given === null) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `logitBias: expected an object of numbers by token id, got ${describeValue(given)}`,
    )
  }
  for (const [key, value] of Object.entries(given)) {
    const id = Number(key)
    if (!(Number.isInteger(id) && id >= 0 && id < vocabularySize)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `logitBias: expected token ids from 0 to ${vocabularySize - 1}, got ${key}`,
      )
    }
    if (typeof value !== 'number' || Number.isNaN(value) || value > 3e38) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `logitBias: ${key}: expected a finite number or -Infinity, got ${describeValue(value)}`,
      )
    }
    if (value !== 0) bias.set(id, value)
  }
  return bias
}

/** Whether a sequence's logits depend on what has been generated. */
export function hasPenalties(settings: SamplingSettings): boolean {
  return settings.repetitionPenalty !== 1 || settings.presencePenalty !== 0 || settings.frequencyPenalty !== 0
}
