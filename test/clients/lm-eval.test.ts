/**
 * The protocol of lm-evaluation-harness's `local-completions` (lm_eval/models/openai_completions.py and api_models.py), played: its
 * requests, and what it makes of the answers, beside log probabilities in double precision of `gemma.logits`.
 */

import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Gemma } from '../../lib/index.ts'
import { evalText, loadExact, logSoftmax } from '../engine/models.ts'
import { unitRoundoff } from '../support/numbers.ts'
import { type LiveServer, serve } from './live.ts'

let gemma: Gemma
let server: LiveServer
beforeAll(async () => {
  gemma = await loadExact({ contextLength: 512 })
  server = await serve(gemma)
  references = await Promise.all(items().map((item) => reference(item, maxLength)))
})
afterAll(async () => {
  await server[Symbol.asyncDispose]()
  await gemma[Symbol.asyncDispose]()
})

interface Choice {
  readonly index: number
  readonly text: string
  readonly logprobs: {
    readonly token_logprobs: readonly number[]
    readonly top_logprobs: readonly Readonly<Record<string, number>>[]
  }
}

async function post(path: string, body: object): Promise<{ choices: Choice[] } & Record<string, unknown>> {
  const response = await fetch(server.url + path, {
    method: 'POST',
    // With no key set the harness sends an empty one.
    headers: { 'content-type': 'application/json', authorization: 'Bearer ' },
    body: JSON.stringify(body),
  })
  expect(response.status, await response.clone().text()).toBe(200)
  return (await response.json()) as { choices: Choice[] } & Record<string, unknown>
}

interface Item {
  readonly context: readonly number[]
  readonly continuation: readonly number[]
}

interface Score {
  readonly logprob: number
  readonly isGreedy: boolean
}

/** Context and continuation, cut from the left to `maxLength`, and where the continuation begins. */
function input({ context, continuation }: Item, maxLength: number): { ids: number[]; contextLength: number } {
  const whole = [...context, ...continuation]
  return { ids: whole.slice(-maxLength), contextLength: context.length - Math.max(0, whole.length - maxLength) }
}

/** `_create_payload` of a loglikelihood. */
const scorePayload = (prompt: unknown, maxTokens = 1) => ({
  model: 'tiny',
  prompt,
  temperature: 0,
  max_tokens: maxTokens,
  logprobs: 1,
  seed: 1234,
  echo: true,
})

/** `parse_logprobs`: without the last entry, which is that of the generated token. */
function parse(choices: readonly Choice[], contextLengths: readonly number[], generated = 1): Score[] {
  const sorted = [...choices].sort((a, b) => a.index - b.index)
  return sorted.map(({ logprobs }, at) => {
    const [from, to] = [contextLengths[at] as number, logprobs.token_logprobs.length - generated]
    const own = logprobs.token_logprobs.slice(from, to)
    const top = logprobs.top_logprobs.slice(from, to)
    return {
      logprob: own.reduce((a, b) => a + b, 0),
      isGreedy: own.every((value, index) => value === Math.max(...Object.values(top[index]!))),
    }
  })
}

/** The same of the logits, in double precision, and how far a sum of float32 log probabilities may be from it. */
async function reference(item: Item, maxLength: number): Promise<Score & { bound: number }> {
  const { ids, contextLength } = input(item, maxLength)
  const { data, vocabulary } = await gemma.logits(ids.slice(0, -1))
  let [logprob, bound, isGreedy] = [0, 0, true]
  for (let position = contextLength; position < ids.length; position++) {
    const row = data.subarray((position - 1) * vocabulary, position * vocabulary)
    const exact = logSoftmax(row)
    const id = ids[position] as number
    logprob += exact[id] as number
    isGreedy &&= row.every((logit) => logit <= row[id]!)
    // The largest term of the sum of exponentials is 1: its relative error is at most that of its terms, (x − max) rounded and one ulp
    // of the exponential, and that of summing in lanes. Then three roundings of values no larger than the range of the logits.
    const range = row.reduce((a, b) => Math.max(a, b)) - row.reduce((a, b) => Math.min(a, b))
    bound += unitRoundoff('f32') * (4 * range + 256 + 4 * Math.abs(exact[id] as number))
  }
  return { logprob, isGreedy, bound }
}

const maxLength = 511
/** Of each item, once. */
let references: Awaited<ReturnType<typeof reference>>[]

function check(score: Score, expected: (typeof references)[number]): void {
  expect(Math.abs(score.logprob - expected.logprob)).not.toBeGreaterThan(expected.bound)
  expect(score.isGreedy).toBe(expected.isGreedy)
}

/** Contexts of one token, of less and more than a page, of more than a chunk, and one that is cut from the left. */
function items(): Item[] {
  const ids = [...gemma.tokenize(evalText.slice(3000, 9000), { bos: true })]
  const cuts = [
    [1, 5],
    [9, 1],
    [60, 8],
    [64, 3],
    [200, 20],
    [505, 6],
    [600, 12],
  ] as const
  return cuts.map(([context, continuation], index) => {
    const start = index * 7
    return {
      context: index === 0 ? ids.slice(0, 1) : ids.slice(start, start + context),
      continuation: ids.slice(start + context, start + context + continuation),
    }
  })
}

test('the bounds tell tokens apart', () => {
  for (const [index, { bound }] of references.entries()) {
    expect(bound).toBeLessThan(0.001 * items()[index]!.continuation.length)
  }
})

test.each([1, 3, 7])('loglikelihoods and greedy flags, in batches of %i', async (batch) => {
  const all = items()
  for (let first = 0; first < all.length; first += batch) {
    const chunk = all.slice(first, first + batch)
    const inputs = chunk.map((item) => input(item, maxLength))
    const { choices } = await post('/v1/completions', scorePayload(inputs.map(({ ids }) => ids)))
    expect(choices).toHaveLength(chunk.length)
    const scores = parse(
      choices,
      inputs.map(({ contextLength }) => contextLength),
    )
    for (const [index, score] of scores.entries()) check(score, references[first + index]!)
  }
})

test('a greedy continuation is known to be one, and one that differs in its last token is not', async () => {
  const context = [...gemma.tokenize('The house was', { bos: true })]
  const { ids } = await gemma.generate(context, { temperature: 0, maxTokens: 6, stopTokens: [] })
  const other = [...ids.slice(0, -1), (ids.at(-1)! + 1) % gemma.config.vocabularySize]
  const prompts = [ids, other].map((continuation) => [...context, ...continuation])
  for (const [maxTokens, generated] of [
    [1, 1],
    [0, 0],
  ] as const) {
    const { choices } = await post('/v1/completions', scorePayload(prompts, maxTokens))
    const scores = parse(choices, [context.length, context.length], generated)
    expect(scores.map(({ isGreedy }) => isGreedy)).toEqual([true, false])
    expect(choices.map(({ logprobs }) => logprobs.token_logprobs.length)).toEqual(
      prompts.map((prompt) => prompt.length + generated),
    )
    for (const [index, continuation] of [ids, other].entries()) {
      const expected = await reference({ context, continuation }, maxLength)
      expect(Math.abs(scores[index]!.logprob - expected.logprob)).not.toBeGreaterThan(expected.bound)
    }
  }
})

test('several requests at once, as num_concurrent sends them', async () => {
  const all = items()
  const answers = await Promise.all(
    all.map(async (item) => {
      const { ids, contextLength } = input(item, maxLength)
      const { choices } = await post('/v1/completions', scorePayload([ids]))
      return parse(choices, [contextLength])[0]!
    }),
  )
  for (const [index, score] of answers.entries()) check(score, references[index]!)
})

test('text prompts (tokenized_requests=False) score the same text', async () => {
  const text = evalText.slice(4000, 4200)
  const { choices } = await post('/v1/completions', scorePayload(text))
  const { token_logprobs, top_logprobs } = choices[0]!.logprobs
  // bos is put in front of text, and is no part of it.
  const count = gemma.tokenize(text, { bos: true }).length - 1
  expect([token_logprobs.length, top_logprobs.length]).toEqual([count + 1, count + 1])
  const ids = [...gemma.tokenize(text, { bos: true })]
  const expected = await reference({ context: ids.slice(0, 1), continuation: ids.slice(1) }, maxLength)
  const sum = token_logprobs.slice(0, -1).reduce((a, b) => a + b, 0)
  expect(Math.abs(sum - expected.logprob)).not.toBeGreaterThan(expected.bound)
  expect(choices[0]!.text.startsWith(text)).toBe(true)
})

test('generate_until: tokenised contexts, until, and arguments that pass through', async () => {
  const contexts = ['He said that', 'The door of'].map((text) => [...gemma.tokenize(text, { bos: true })])
  // `_create_payload` of a generation: until and the end-of-text string as stops, gen_kwargs as they are.
  const { choices } = await post('/v1/completions', {
    prompt: contexts,
    model: 'tiny',
    max_tokens: 24,
    temperature: 0,
    stop: ['\n\n', '.', 'Question:', '<eos>'],
    seed: 1234,
    top_p: 1,
  })
  const texts = [...choices].sort((a, b) => a.index - b.index).map(({ text }) => text)
  const expected = await Promise.all(
    contexts.map((ids) =>
      gemma.generate(ids, { maxTokens: 24, temperature: 0, stop: ['\n\n', '.', 'Question:', '<eos>'] }),
    ),
  )
  expect(texts).toEqual(expected.map(({ text }) => text))
})
