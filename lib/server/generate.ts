/**
 * What the endpoints that generate text have in common: the fields of sampling, starting generations, their numbers.
 * @module
 */
import { setImmediate } from 'node:timers/promises'
import type { ChatMessage, FinishReason, Gemma, GenerateOptions, Generation, GenerationResult } from '../index.ts'
import { ApiError, invalid } from './api-error.ts'
import type { Call, ServedModel } from './call.ts'
import { type Fields, isTokenIds } from './fields.ts'
import { checkImages, imageErrorOf, imagesOf, loadImages, type Turns } from './images.ts'

const maxStops = 16
/** Choices of one request, all prompts together. */
const maxChoices = 128

type SamplingFields = Omit<GenerateOptions, 'maxTokens' | 'logprobs' | 'signal'>

/** Sampling as OpenAI names it, with vLLM's names for what OpenAI does not have. What is absent has the model's default. */
export function samplingOptions(fields: Fields): SamplingFields {
  const seed = fields.integer('seed', Number.MIN_SAFE_INTEGER)
  return {
    temperature: fields.number('temperature', 0, 100),
    topP: fields.number('top_p', 0, 1),
    topK: fields.integer('top_k', -1, 2 ** 24) === -1 ? 0 : fields.integer('top_k', -1, 2 ** 24),
    minP: fields.number('min_p', 0, 1),
    repetitionPenalty: fields.number('repetition_penalty', 0.01, 100),
    presencePenalty: fields.number('presence_penalty', -2, 2),
    frequencyPenalty: fields.number('frequency_penalty', -2, 2),
    logitBias: logitBias(fields),
    seed: seed === undefined ? undefined : seed >>> 0,
    stop: stopStrings(fields),
    stopTokens: stopTokens(fields),
    priority: priority(fields),
  }
}

/** vLLM's `priority`, lower first; or OpenAI's `service_tier`. */
function priority(fields: Fields): number | undefined {
  const tiers: Readonly<Record<string, number>> = { priority: -1, flex: 1 }
  return fields.integer('priority', -(2 ** 31), 2 ** 31 - 1) ?? tiers[fields.string('service_tier') ?? '']
}

function logitBias(fields: Fields): Record<number, number> | undefined {
  const given = fields.object('logit_bias')
  if (!given) return undefined
  const bias: Record<number, number> = {}
  for (const id of Object.keys(fields.raw('logit_bias') as object)) {
    bias[Number(id)] = given.required(id, given.number(id, -100, 100))
  }
  return bias
}

function stopStrings(fields: Fields): readonly string[] | undefined {
  const value = fields.raw('stop')
  if (value === undefined) return undefined
  const stops = Array.isArray(value) ? value : [value]
  const valid = stops.length <= maxStops && stops.every((stop) => typeof stop === 'string' && stop !== '')
  return valid ? stops : fields.fail('stop', `a string or at most ${maxStops} strings, none of them empty`)
}

function stopTokens(fields: Fields): readonly number[] | undefined {
  if (fields.boolean('ignore_eos')) return []
  const ids = fields.raw('stop_token_ids')
  if (ids === undefined) return undefined
  return isTokenIds(ids) ? ids : fields.fail('stop_token_ids', 'an array of token ids')
}

/** Which of several limits a request gives. */
export function maxTokens(fields: Fields, ...names: string[]): number | undefined {
  for (const name of names) {
    const value = fields.integer(name, 1)
    if (value !== undefined) return value
  }
  return undefined
}

/** `n`, within what one request may ask for. */
export function choiceCount(fields: Fields, prompts = 1, name = 'n'): number {
  const n = fields.integer(name, 1, maxChoices) ?? 1
  if (n * prompts > maxChoices) throw invalid(name, `expected at most ${maxChoices} choices in all, got ${n * prompts}`)
  return n
}

/**
 * @throws ApiError 400 if the prompt leaves no room for an answer.
 * @param room Tokens of an answer, at least.
 */
export function checkLength(gemma: Gemma, prompt: ArrayLike<number>, param: string, room = 1): void {
  const { contextLength } = gemma
  if (prompt.length + room <= contextLength) return
  throw new ApiError(
    400,
    `This model's maximum context length is ${contextLength} tokens. However, your messages resulted in ${prompt.length} tokens.`,
    { param, code: 'context_length_exceeded' },
  )
}

/** Starts one generation per choice; all of them or none. */
export function startGenerations(
  call: Call,
  gemma: Gemma,
  prompts: readonly ArrayLike<number>[],
  n: number,
  options: GenerateOptions,
): Generation[] {
  const generations: Generation[] = []
  try {
    for (const prompt of prompts) {
      for (let choice = 0; choice < n; choice++) {
        generations.push(gemma.stream(prompt, choiceOptions(call, options, choice)))
      }
    }
  } catch (error) {
    for (const generation of generations) generation.cancel()
    throw error
  }
  for (const [index, generation] of generations.entries()) call.observe(generation, index % n === 0)
  return generations
}

/**
 * A conversation, checked as far as it can be without reading its images: ids if it has none.
 * @throws ApiError 400 as {@link checkLength} and {@link checkImages}.
 */
export function chatPrompt(call: Call, model: ServedModel, turns: Turns, param: string): Int32Array | Turns {
  const images = imagesOf(turns)
  if (images.length > 0) {
    checkImages(call, model, images)
    return turns
  }
  const prompt = model.gemma.tokenizeChat(turns as readonly ChatMessage[])
  checkLength(model.gemma, prompt, param)
  return prompt
}

/**
 * Starts the choices of an answer to a conversation; all of them or none. With images it waits until they are encoded: what is wrong with
 * one is an answer of its own, not an event in a stream that has begun.
 * @throws (rejects) ApiError 400 that names the image.
 */
export async function startAnswers(
  call: Call,
  { gemma }: ServedModel,
  prompt: Int32Array | Turns,
  n: number,
  options: GenerateOptions,
): Promise<Generation[]> {
  if (prompt instanceof Int32Array) return startGenerations(call, gemma, [prompt], n, options)
  const messages = await loadImages(call, prompt)
  const generations: Generation[] = []
  try {
    for (let choice = 0; choice < n; choice++) {
      // The first has the images decoded and encoded; those after it find them, by a hash of all bytes: not of many choices in one go.
      if (choice > 0) await setImmediate()
      call.lifetime.check()
      const generation = gemma.chat(messages, choiceOptions(call, options, choice))
      generations.push(generation)
      await generation.ready
    }
    call.lifetime.check()
  } catch (error) {
    for (const generation of generations) generation.cancel()
    throw imageErrorOf(error, imagesOf(prompt), gemma.contextLength)
  }
  for (const [index, generation] of generations.entries()) call.observe(generation, index === 0)
  return generations
}

function choiceOptions({ lifetime }: Call, options: GenerateOptions, choice: number): GenerateOptions {
  const { seed } = options
  // Equal seeds would give equal choices.
  const own = seed === undefined ? {} : { seed: (seed + choice) >>> 0 }
  return { ...options, ...own, signal: lifetime.signal }
}

/** All results. @throws ApiError if the request ended early; what failed the first of them. */
export async function results(call: Call, generations: readonly Generation[]): Promise<GenerationResult[]> {
  const all = await Promise.all(generations.map((generation) => generation.result))
  call.lifetime.check()
  return all
}

/** OpenAI's name for the end of an answer. */
export function finishReason(reason: FinishReason): 'stop' | 'length' {
  return reason === 'stop' ? 'stop' : 'length'
}

export interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly total_tokens: number
  readonly prompt_tokens_details: { readonly cached_tokens: number }
}

/** Each prompt counts once, however many choices it has; every choice counts. */
export function usageOf(all: readonly GenerationResult[], n: number): Usage {
  let prompt = 0
  let cached = 0
  let completion = 0
  all.forEach((result, index) => {
    completion += result.tokens
    if (index % n !== 0) return
    prompt += result.promptTokens
    cached += result.cachedTokens
  })
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached },
  }
}

/** Merges what several sources give, as it comes. Leaving early ends all of them. */
export async function* merge<T>(
  sources: readonly AsyncIterable<T>[],
): AsyncGenerator<readonly [index: number, value: T]> {
  const [only] = sources
  if (only && sources.length === 1) {
    for await (const value of only) yield [0, value]
    return
  }
  const iterators = sources.map((source) => source[Symbol.asyncIterator]())
  type Next = { readonly index: number; readonly result: IteratorResult<T> }
  const advance = async (index: number): Promise<Next> => ({
    index,
    result: await (iterators[index] as AsyncIterator<T>).next(),
  })
  const pending = new Map(iterators.map((_, index) => [index, advance(index)]))
  try {
    while (pending.size > 0) {
      const { index, result } = await Promise.race(pending.values())
      if (result.done) {
        pending.delete(index)
        continue
      }
      pending.set(index, advance(index))
      yield [index, result.value]
    }
  } finally {
    for (const promise of pending.values()) promise.catch(() => {})
    for (const index of pending.keys()) void iterators[index]?.return?.()
  }
}
