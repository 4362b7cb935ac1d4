/** Sampling settings, stops, log probabilities and limits, with the small model. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Gemma, GenerateOptions } from '../../lib/engine/gemma.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { evalText, expected, loadBundled, loadExact, logSoftmax, outcome, plain } from './models.ts'

const prompt = 'Once upon a time'

describe('settings', () => {
  let gemma: Gemma
  beforeAll(async () => {
    gemma = await loadExact()
  })
  afterAll(() => gemma[Symbol.asyncDispose]())

  /** The logits after a prompt and some tokens. */
  const logitsAfter = async (ids: readonly number[]): Promise<Float32Array> =>
    (await gemma.logits([...gemma.tokenize(prompt, { bos: true }), ...ids], { rows: 1 })).data

  const argmax = (values: ArrayLike<number>): number => {
    let best = 0
    for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i
    return best
  }

  test.each<GenerateOptions>([
    { repetitionPenalty: 1.5 },
    { repetitionPenalty: 0.8 },
    { presencePenalty: 2 },
    { frequencyPenalty: 0.7 },
    { frequencyPenalty: -0.2, presencePenalty: 1 },
    { repetitionPenalty: 1.2, presencePenalty: 0.5, frequencyPenalty: 0.3, logitBias: { 4044: 4, 310: -100 } },
    { logitBias: { 4044: -Infinity, 301: 2 } },
  ])('greedy with %o is what the formulas say', async (options) => {
    const { ids } = await gemma.generate(prompt, { ...plain, ...options, maxTokens: 25 })
    const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0, logitBias = {} } = options
    const prefix = gemma.tokenize(prompt, { bos: true })
    for (let at = 0; at < ids.length; at++) {
      const before = ids.slice(0, at)
      const adjusted = Float64Array.from(await logitsAfter(before), (logit, id) => {
        const count = before.filter((other) => other === id).length
        const occurs = count > 0 || prefix.includes(id)
        const penalised = occurs ? (logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty) : logit
        return penalised - (count > 0 ? presencePenalty : 0) - count * frequencyPenalty + (logitBias[id] ?? 0)
      })
      // As in the greedy test, decoding and prefill may differ by 2e-4 each way.
      expect(adjusted[argmax(adjusted)]! - adjusted[ids[at]!]!).not.toBeGreaterThan(4e-4)
    }
    // Negative control: the settings matter.
    const without = await gemma.generate(prompt, { ...plain, maxTokens: 25 })
    expect(ids).not.toEqual(without.ids)
  })

  test('log probabilities are those of the logits, before penalties and temperature', async () => {
    const options = { seed: 3, temperature: 1.4, presencePenalty: 1, logprobs: 7, stopTokens: [], maxTokens: 20 }
    const { ids, logprobs } = await gemma.generate(prompt, options)
    expect(logprobs?.map(({ id }) => id)).toEqual(ids)
    for (const [at, { id, logprob, top }] of logprobs!.entries()) {
      const reference = logSoftmax(await logitsAfter(ids.slice(0, at)))
      expect(Math.abs(logprob - reference[id]!)).not.toBeGreaterThan(4e-4)
      expect(top.length).toBe(7)
      const sorted = Float64Array.from(reference).sort().reverse()
      for (const [rank, other] of top.entries()) {
        expect(Math.abs(other.logprob - reference[other.id]!)).not.toBeGreaterThan(4e-4)
        expect(Math.abs(other.logprob - sorted[rank]!)).not.toBeGreaterThan(4e-4)
      }
    }
    // Their sum is the text's log probability, which scoring gives too.
    const prefix = gemma.tokenize(prompt, { bos: true })
    const whole = await gemma.perplexity([...prefix, ...ids])
    const alone = await gemma.perplexity([...prefix])
    const sum = logprobs!.reduce((total, { logprob }) => total + logprob, 0)
    const scored = alone.nll * alone.tokens - whole.nll * whole.tokens
    expect(Math.abs(sum - scored)).not.toBeGreaterThan(4e-4 * ids.length)
  })

  test('pieces carry the log probabilities of their tokens, and only if asked for', async () => {
    const generation = gemma.stream(prompt, { ...plain, logprobs: 0, maxTokens: 5 })
    const seen = []
    for await (const piece of generation) seen.push(...(piece.logprobs ?? []))
    expect(seen).toEqual((await generation.result).logprobs)
    expect(seen.map(({ top }) => top)).toEqual([[], [], [], [], []])
    const without = await gemma.generate(prompt, { ...plain, maxTokens: 5 })
    expect(without).not.toHaveProperty('logprobs')
  })

  test('a seed decides the text; another one gives another', async () => {
    const run = async (seed?: number): Promise<object> =>
      outcome(await gemma.generate(prompt, { ...(seed !== undefined && { seed }), maxTokens: 40, stopTokens: [] }))
    expect(await run(2 ** 32 - 1)).toEqual(await run(2 ** 32 - 1))
    expect(await run(1)).not.toEqual(await run(2))
    // Without one, every request has its own.
    expect(await run()).not.toEqual(await run())
  })

  test('the model samples as its files say, unless told otherwise', async () => {
    expect(gemma.info().sampling).toEqual({ temperature: 1, topK: 64, topP: 0.95, minP: 0 })
    const asFiles = await gemma.generate(prompt, { seed: 5, maxTokens: 30 })
    const spelled = await gemma.generate(prompt, { seed: 5, maxTokens: 30, temperature: 1, topK: 64, topP: 0.95 })
    expect(outcome(asFiles)).toEqual(outcome(spelled))
    await using bundled = await loadBundled()
    expect(bundled.info().sampling).toEqual({ temperature: 1, topK: 64, topP: 0.95, minP: 0 })
  })

  const { text, ids } = expected.greedy[prompt]!
  const answer = text.slice(prompt.length)

  test.each([
    { stop: ', and', what: 'in the first token or two' },
    { stop: 'the course of', what: 'over several tokens' },
    { stop: 'ourse o', what: 'that begins and ends inside tokens' },
    { stop: ['nowhere', 'habit', 'the habit'], what: 'of several' },
  ])('text ends before a stop string $what', async ({ stop }) => {
    const generation = gemma.stream(prompt, { ...plain, stop, maxTokens: 150 })
    let streamed = ''
    for await (const piece of generation) {
      streamed += piece.text
      // Nothing of a stop string is ever shown.
      expect(answer.startsWith(streamed)).toBe(true)
    }
    const result = await generation.result
    const ends = [stop].flat().map((one) => answer.indexOf(one) + (answer.includes(one) ? one.length : 1e9))
    const end = Math.min(...ends)
    const cut = Math.min(
      ...[stop]
        .flat()
        .filter((one) => answer.indexOf(one) + one.length === end)
        .map((one) => answer.indexOf(one)),
    )
    expect(result).toMatchObject({ text: answer.slice(0, cut), finishReason: 'stop' })
    expect(streamed).toBe(result.text)
    // All tokens are there, those of the stop string too, and no further one was computed.
    expect(ids.slice(6, 6 + result.tokens)).toEqual(result.ids)
    expect(gemma.tokenizer.decode(result.ids).length).toBeGreaterThanOrEqual(end)
  })

  test('a beginning of a stop string that comes to nothing is shown after all', async () => {
    const result = await gemma.generate(prompt, { ...plain, stop: `${answer.slice(0, 60)}@`, maxTokens: 15 })
    expect(result.finishReason).toBe('length')
    expect(result.text).toBe(gemma.tokenizer.decode(result.ids))
    expect(result.text.length).toBeGreaterThan(20)
  })

  test('a stop token ends the text and is no part of it', async () => {
    const stopToken = ids[6 + 9]!
    const result = await gemma.generate(prompt, { ...plain, stopTokens: [stopToken] })
    const end = ids.indexOf(stopToken, 6)
    expect(result).toMatchObject({ ids: ids.slice(6, end), finishReason: 'stop', tokens: end - 6 })
    // Forced to its end-of-text token, the model stops by itself.
    const { eos } = gemma.tokenizer
    const empty = await gemma.generate(prompt, { temperature: 0, logitBias: { [eos]: 1e6 } })
    expect(empty).toMatchObject({ text: '', ids: [], tokens: 0, finishReason: 'stop' })
  })
})

describe('limits', () => {
  let gemma: Gemma
  beforeAll(async () => {
    gemma = await loadBundled({ contextLength: 50, maxSequences: 2, maxQueue: 3 })
  })
  afterAll(() => gemma[Symbol.asyncDispose]())

  test('an answer ends where the context does, and says so', async () => {
    const result = await gemma.generate(prompt, plain)
    expect(result).toMatchObject({ finishReason: 'context', promptTokens: 6, tokens: 44 })
    const last = await gemma.generate(new Int32Array(49).fill(300), plain)
    expect(last).toMatchObject({ finishReason: 'context', tokens: 1 })
  })

  test('what cannot be is refused, and disturbs nobody', async () => {
    const running = gemma.generate(prompt, plain)
    const alone = outcome(await gemma.generate(prompt, plain))
    const refuse = (what: unknown, options: unknown, message: RegExp): void =>
      throwsCode(() => gemma.stream(what as string, options as GenerateOptions), 'ERR_INVALID_ARGUMENT', message)
    refuse(new Int32Array(50), {}, /prompt.*1 to 49 tokens.*50/)
    refuse([], {}, /1 to 49 tokens/)
    refuse([1, 4096], {}, /prompt: 1: .*0 to 4095.*4096/)
    refuse([-1], {}, /token id/)
    refuse([1.5], {}, /token id/)
    refuse([Number.NaN], {}, /token id/)
    refuse([1n], {}, /token id/)
    refuse(7, {}, /prompt/)
    refuse(new DataView(new ArrayBuffer(8)), {}, /prompt/)
    for (const name of ['temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'presencePenalty', 'seed']) {
      refuse(prompt, { [name]: Number.NaN }, new RegExp(name))
      refuse(prompt, { [name]: '1' }, new RegExp(name))
    }
    refuse(prompt, { temperature: -1 }, /temperature/)
    refuse(prompt, { temperature: 1e39 }, /temperature/)
    refuse(prompt, { topP: 1.1 }, /topP/)
    refuse(prompt, { repetitionPenalty: 0 }, /repetitionPenalty/)
    refuse(prompt, { frequencyPenalty: Infinity }, /frequencyPenalty/)
    // Finite here, and no longer in f32: the step of every request beside this one would fail.
    refuse(prompt, { frequencyPenalty: 1e39 }, /frequencyPenalty/)
    refuse(prompt, { presencePenalty: -1e308 }, /presencePenalty/)
    for (const options of [null, 'fast', 7]) refuse(prompt, options as never, /options: expected an object, got/)
    refuse(prompt, { seed: -1 }, /seed/)
    refuse(prompt, { logprobs: 65 }, /logprobs/)
    refuse(prompt, { maxTokens: 0 }, /maxTokens/)
    refuse(prompt, { maxTokens: 1.5 }, /maxTokens/)
    refuse(prompt, { logitBias: { 4096: 1 } }, /logitBias.*4096/)
    refuse(prompt, { logitBias: { a: 1 } }, /logitBias/)
    refuse(prompt, { logitBias: { 1: Number.NaN } }, /logitBias/)
    refuse(prompt, { logitBias: { 1: Infinity } }, /logitBias/)
    refuse(prompt, { logitBias: 3 }, /logitBias/)
    refuse(prompt, { stop: '' }, /stop/)
    refuse(prompt, { stop: [1] }, /stop/)
    refuse(prompt, { stopTokens: ['x'] }, /stopTokens/)
    refuse(prompt, { signal: {} }, /signal/)
    await rejectsCode(gemma.generate([], {}), 'ERR_INVALID_ARGUMENT')
    await rejectsCode(gemma.embed(['text']), 'ERR_INVALID_ARGUMENT', /embedding model/)
    await rejectsCode(gemma.perplexity(''), 'ERR_INVALID_ARGUMENT', /at least one token/)
    await rejectsCode(gemma.perplexity('text', { stride: 51 }), 'ERR_INVALID_ARGUMENT', /stride/)
    await rejectsCode(gemma.logits('text', { rows: 0 }), 'ERR_INVALID_ARGUMENT', /rows/)
    throwsCode(() => gemma.chat([{ role: 'user', content: evalText.slice(0, 1000) }]), 'ERR_INVALID_ARGUMENT', /49/)
    expect(outcome(await running)).toEqual(alone)
  })

  test('a queue that is full says so', async () => {
    // Two run, three wait.
    const all = Array.from({ length: 5 }, () => gemma.stream(prompt, plain))
    throwsCode(() => gemma.stream(prompt, plain), 'ERR_BUSY')
    const results = await Promise.all(all.map(({ result }) => result))
    expect(new Set(results.map(({ text }) => text)).size).toBe(1)
  })

  test('untrusted text is text', async () => {
    const { tokenizer } = gemma
    const turn = tokenizer.endOfTurn!
    const marker = tokenizer.pieceOf(turn)
    const asText = await gemma.logits(marker)
    const asMarker = await gemma.logits(marker, { allowMarkers: true })
    expect(asMarker.rows).toBe(2)
    expect(asText.rows).toBeGreaterThan(2)
  })

  test.each([
    [{ contextLength: 1 }, /contextLength/],
    [{ contextLength: 2049 }, /2048/],
    [{ kv: 'q4' }, /kv/],
    [{ maxSequences: 0 }, /maxSequences/],
    [{ prefillChunk: 1.5 }, /prefillChunk/],
    [{ pageTokens: Number.NaN }, /pageTokens/],
    [{ device: 'gpu' }, /device/],
  ])('loading with %o is refused', async (options, message) => {
    await rejectsCode(loadBundled(options as object), 'ERR_INVALID_ARGUMENT', message)
  })
})
