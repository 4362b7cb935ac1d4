/**
 * POST /v1/completions
 * @module
 */
import type { Gemma, GenerateOptions, Generation, GenerationResult, Piece, TokenLogprobs } from '../index.ts'
import { readFormat } from './answer.ts'
import { apiErrorOf, invalid } from './api-error.ts'
import { type Call, makeId, now, type ServedModel } from './call.ts'
import { type Fields, isTokenIds } from './fields.ts'
import {
  checkLength,
  choiceCount,
  finishReason,
  merge,
  results,
  samplingOptions,
  startGenerations,
  usageOf,
} from './generate.ts'
import { grammarFor } from './grammar.ts'
import { type ApiResponse, eventResponse, jsonResponse, serverSentEvent } from './http.ts'
import { CompletionLogprobs } from './logprobs.ts'

/** OpenAI's default. */
const defaultMaxTokens = 16
const maxPrompts = 1024

/** One prompt. */
interface Prompt {
  readonly ids: Int32Array
  /** Text as given; undefined: token ids were given. */
  readonly text: string | undefined
}

interface Completion {
  readonly model: ServedModel
  readonly prompts: readonly Prompt[]
  readonly n: number
  /** Generated for each prompt, of which the n most probable are given. */
  readonly bestOf: number
  readonly maxTokens: number
  readonly echo: boolean
  readonly logprobs: number | undefined
  readonly includeUsage: boolean
  readonly options: GenerateOptions
}

/** Continues prompts: at once, or as server-sent events. */
export async function completions(call: Call): Promise<ApiResponse> {
  const stream = call.body.boolean('stream') ?? false
  const completion = await read(call, stream)
  const { model, prompts, bestOf, n } = completion
  const scores = await scorePrompts(call, completion)
  call.lifetime.check()
  const generations = startAll(call, completion)
  if (stream) return eventResponse(chunks(call, completion, scores, generations))
  const all = await results(call, generations)
  const chosen = bestOf > n ? prompts.flatMap((_, at) => best(all.slice(at * bestOf, (at + 1) * bestOf), n)) : all
  const choices = prompts.flatMap((prompt, at) =>
    Array.from({ length: n }, (_, choice) =>
      choiceOf(completion, prompt, scores?.[at], chosen[at * n + choice], at * n + choice),
    ),
  )
  const usage = all.length > 0 ? usageOf(all, bestOf) : promptUsage(prompts)
  return jsonResponse({ ...head(model), choices, usage })
}

async function read(call: Call, stream: boolean): Promise<Completion> {
  const { body } = call
  const model = call.model('text')
  const { gemma } = model
  if (body.string('suffix')) throw invalid('suffix', 'Gemma was not trained to fill in: expected none', 'unsupported')
  const prompts = readPrompts(body, gemma)
  const n = choiceCount(body, prompts.length)
  const bestOf = choiceCount(body, prompts.length, 'best_of')
  const echo = body.boolean('echo') ?? false
  const tokens = body.integer('max_tokens', 0) ?? defaultMaxTokens
  if (body.has('best_of') && bestOf < n) throw invalid('best_of', `expected at least n = ${n}, got ${bestOf}`)
  if (stream && bestOf > n) throw invalid('best_of', 'expected no more than n in a stream')
  if (tokens === 0 && !echo) throw invalid('max_tokens', 'expected at least 1 without echo')
  for (const prompt of prompts) checkLength(gemma, prompt.ids, 'prompt', tokens === 0 ? 0 : 1)
  const streamOptions = body.object('stream_options')
  if (streamOptions && !stream) throw invalid('stream_options', 'expected stream to be true with it')
  const logprobs = body.integer('logprobs', 0, 20)
  return {
    model,
    prompts,
    n,
    bestOf: Math.max(n, bestOf),
    maxTokens: tokens,
    echo,
    logprobs,
    includeUsage: streamOptions?.boolean('include_usage') ?? false,
    options: {
      ...samplingOptions(body),
      grammar: await call.lifetime.until(grammarFor(gemma, readFormat(body, 'response_format'), undefined)),
      // The best of several is found by probability.
      logprobs: logprobs ?? (bestOf > n ? 0 : undefined),
    },
  }
}

function readPrompts(body: Fields, gemma: Gemma): Prompt[] {
  const given = body.required('prompt', body.raw('prompt'))
  const list = typeof given === 'string' || isTokenIds(given) ? [given] : given
  if (!Array.isArray(list) || list.length === 0) {
    return body.fail('prompt', 'a string, an array of strings, token ids, or an array of these')
  }
  if (list.length > maxPrompts) throw invalid('prompt', `expected at most ${maxPrompts} prompts, got ${list.length}`)
  return list.map((prompt, index) => {
    if (typeof prompt === 'string') {
      return { ids: gemma.tokenize(prompt, { bos: true, markers: false }), text: prompt }
    }
    const { vocabularySize } = gemma.config
    if (isTokenIds(prompt) && prompt.every((id) => id >= 0 && id < vocabularySize)) {
      return { ids: Int32Array.from(prompt), text: undefined }
    }
    throw invalid(`prompt[${index}]`, `expected a string or token ids from 0 to ${vocabularySize - 1}`)
  })
}

/** With echo and logprobs: those of each prompt's tokens but the first. */
async function scorePrompts(call: Call, completion: Completion): Promise<TokenLogprobs[][] | undefined> {
  const { echo, logprobs, prompts, model } = completion
  if (!echo || logprobs === undefined) return undefined
  const scores: TokenLogprobs[][] = []
  for (const { ids } of prompts) {
    scores.push(await model.gemma.score(ids, { top: logprobs, signal: call.lifetime.signal }))
    call.observePrompt(ids.length)
  }
  return scores
}

function startAll(call: Call, { model, prompts, bestOf, maxTokens, options }: Completion): Generation[] {
  if (maxTokens === 0) return []
  const ids = prompts.map((prompt) => prompt.ids)
  return startGenerations(call, model.gemma, ids, bestOf, { ...options, maxTokens })
}

function head(model: ServedModel): { id: string; object: string; created: number; model: string } {
  return { id: makeId('cmpl-'), object: 'text_completion', created: now(), model: model.id }
}

function promptUsage(prompts: readonly Prompt[]): object {
  const tokens = prompts.reduce((sum, { ids }) => sum + ids.length, 0)
  return { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens }
}

/** The n results with the largest mean log probability, best first. */
function best(all: readonly GenerationResult[], n: number): GenerationResult[] {
  const mean = ({ logprobs = [] }: GenerationResult): number =>
    logprobs.reduce((sum, { logprob }) => sum + logprob, 0) / Math.max(1, logprobs.length)
  return [...all].sort((a, b) => mean(b) - mean(a)).slice(0, n)
}

/** The prompt as text. */
function echoed({ model }: Completion, { ids, text }: Prompt): string {
  return text ?? model.gemma.tokenizer.decode(ids, { special: true })
}

/** The prompt's part of `logprobs`. The bos token that text gets in front is no part of it. */
function promptLogprobs(
  { model, logprobs = 0 }: Completion,
  prompt: Prompt,
  scores: readonly TokenLogprobs[],
): CompletionLogprobs {
  const gathered = new CompletionLogprobs(model.gemma.tokenizer, logprobs)
  if (prompt.text === undefined) gathered.addFirst(prompt.ids[0] as number)
  return gathered.add(scores)
}

function choiceOf(
  completion: Completion,
  prompt: Prompt,
  scores: readonly TokenLogprobs[] | undefined,
  result: GenerationResult | undefined,
  index: number,
): object {
  const { echo, logprobs, model } = completion
  const before = echo ? echoed(completion, prompt) : ''
  let gathered: CompletionLogprobs | undefined
  if (logprobs !== undefined) {
    gathered = scores
      ? promptLogprobs(completion, prompt, scores)
      : new CompletionLogprobs(model.gemma.tokenizer, logprobs, before.length)
    gathered.add(result?.logprobs ?? [])
  }
  return {
    index,
    text: before + (result?.text ?? ''),
    logprobs: gathered?.take() ?? null,
    finish_reason: result ? finishReason(result.finishReason) : 'length',
  }
}

type Event = Piece | { readonly end: GenerationResult }

async function* chunks(
  call: Call,
  completion: Completion,
  scores: readonly TokenLogprobs[][] | undefined,
  generations: readonly Generation[],
): AsyncGenerator<string> {
  const { model, prompts, n, logprobs, echo, includeUsage } = completion
  const { tokenizer } = model.gemma
  const common = JSON.stringify(head(model)).slice(0, -1)
  const usage = includeUsage ? ',"usage":null' : ''
  const chunk = (index: number, text: string, reason: string | null, entries: object | null): string =>
    serverSentEvent(
      `${common},"choices":${JSON.stringify([{ index, text, logprobs: entries, finish_reason: reason }])}${usage}}`,
    )
  const gathered: (CompletionLogprobs | undefined)[] = []
  try {
    for (let index = 0; index < prompts.length * n; index++) {
      const at = Math.floor(index / n)
      const prompt = prompts[at] as Prompt
      const before = echo ? echoed(completion, prompt) : ''
      if (logprobs !== undefined) {
        const own = scores?.[at]
        gathered[index] = own
          ? promptLogprobs(completion, prompt, own)
          : new CompletionLogprobs(tokenizer, logprobs, before.length)
      }
      const reason = generations.length === 0 ? 'length' : null
      if (echo) yield chunk(index, before, reason, gathered[index]?.take() ?? null)
    }
    const all: GenerationResult[] = []
    for await (const [index, event] of merge<Event>(generations.map(withEnd))) {
      if ('end' in event) {
        call.lifetime.check()
        all[index] = event.end
        yield chunk(index, '', finishReason(event.end.finishReason), null)
      } else if (event.text !== '' || event.logprobs) {
        yield chunk(index, event.text, null, gathered[index]?.add(event.logprobs ?? []).take() ?? null)
      }
    }
    if (includeUsage) {
      const sum = all.length > 0 ? usageOf(all, n) : promptUsage(prompts)
      yield serverSentEvent(`${common},"choices":[],"usage":${JSON.stringify(sum)}}`)
    }
    yield serverSentEvent('[DONE]')
  } catch (error) {
    yield serverSentEvent(JSON.stringify(apiErrorOf(error)))
  }
}

async function* withEnd(generation: Generation): AsyncGenerator<Event> {
  yield* generation
  yield { end: await generation.result }
}
