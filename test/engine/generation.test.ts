/** Generation with the small model: the reference's text, and properties that hold bit for bit. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Gemma, GenerateOptions } from '../../lib/engine/gemma.ts'
import { openDevice, presentIsas } from '../support/devices.ts'
import { rejectsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { evalText, expected, loadBundled, loadExact, logSoftmax, outcome, plain } from './models.ts'

const prose = (start: number, length: number): string => evalText.slice(start, start + length)

describe('float32, the weights as stored', () => {
  let gemma: Gemma
  beforeAll(async () => {
    gemma = await loadExact()
  })
  afterAll(() => gemma[Symbol.asyncDispose]())

  test.each(Object.keys(expected.greedy))('continues as the reference does: %s', async (prompt) => {
    const { ids, text } = expected.greedy[prompt]!
    const prefix = gemma.tokenize(prompt, { bos: true })
    const result = await gemma.generate(prompt, { temperature: 0, maxTokens: ids.length - prefix.length })
    expect([...prefix, ...result.ids]).toEqual(ids)
    expect(prompt + result.text).toBe(text)
    expect(result).toMatchObject({ finishReason: 'length', promptTokens: prefix.length, tokens: result.ids.length })
  })

  test('predicts held-out text as well as the reference does', async () => {
    const { perplexity, tokens, nll } = await gemma.perplexity(evalText)
    expect(tokens).toBe(expected.perplexity.tokens)
    // Means of f32 log probabilities: each is within 2e-4, as far as logits of an f32 forward pass may be.
    expect(Math.abs(nll - Math.log(expected.perplexity.value))).not.toBeGreaterThan(2e-4)
    expect(perplexity).toBe(Math.exp(nll))
  })

  test('overlapping windows score the same tokens with more context', async () => {
    const text = prose(2000, 3000)
    const apart = await gemma.perplexity(text, { contextLength: 200 })
    const overlapping = await gemma.perplexity(text, { contextLength: 200, stride: 50 })
    const count = gemma.tokenize(text, { bos: true }).length
    expect([apart.tokens, overlapping.tokens]).toEqual([count - 1, count - 1])
    expect(overlapping.nll).toBeLessThan(apart.nll)
  })

  test('scores of windows are those of each alone', async () => {
    const ids = gemma.tokenize(prose(5000, 900), { bos: true })
    const { nll, tokens } = await gemma.perplexity(ids, { contextLength: 64, stride: 24 })
    const sums: number[] = []
    let scored = 1
    for (let start = 0; scored < ids.length; start += 24) {
      const window = ids.subarray(start, Math.min(start + 64, ids.length - 1))
      const { data, rows, vocabulary } = await gemma.logits(window)
      for (let row = 0; row < rows; row++) {
        if (start + row + 1 < scored) continue
        const logProbs = logSoftmax(data.subarray(row * vocabulary, (row + 1) * vocabulary))
        sums.push(logProbs[ids[start + row + 1]!]!)
      }
      scored = start + window.length + 1
    }
    expect(tokens).toBe(sums.length)
    const mean = -sums.reduce((a, b) => a + b, 0) / sums.length
    // The logits are the same bits: what differs is the f32 logarithm, 2⁻²⁴ of about 20.
    expect(Math.abs(nll - mean)).not.toBeGreaterThan(2e-6)
  })

  test('score gives the log probability of every token, and the most probable ones beside it', async () => {
    // Longer than a step.
    const ids = gemma.tokenize(prose(9000, 3500), { bos: true }).slice(0, 700)
    const scores = await gemma.score(ids, { top: 7 })
    expect(scores.map(({ id }) => id)).toEqual([...ids.subarray(1)])
    const { data, vocabulary } = await gemma.logits(ids)
    let worst = 0
    for (const [row, { id, logprob, top }] of scores.entries()) {
      const exact = logSoftmax(data.subarray(row * vocabulary, (row + 1) * vocabulary))
      const best = [...exact.keys()].sort((a, b) => exact[b]! - exact[a]! || a - b).slice(0, 7)
      expect(top.map((other) => other.id)).toEqual(best)
      worst = Math.max(worst, Math.abs(exact[id]! - logprob), ...top.map((t) => Math.abs(exact[t.id]! - t.logprob)))
    }
    // The f32 logarithm and difference of numbers below 32.
    expect(worst).not.toBeGreaterThan(2e-6)
    expect(await gemma.score(ids.subarray(0, 1))).toEqual([])
    expect((await gemma.score(ids.subarray(0, 9)))[3]?.top).toEqual([])
    await rejectsCode(gemma.score(ids, { top: 65 }), 'ERR_INVALID_ARGUMENT', /top/)
  })

  test('every generated token has the largest logit of the prompt so far', async () => {
    const prompt = [...gemma.tokenize(prose(9000, 700), { bos: true })]
    const { ids } = await gemma.generate(prompt, { ...plain, maxTokens: 40 })
    const { data, vocabulary } = await gemma.logits([...prompt, ...ids.slice(0, -1)], { rows: ids.length })
    for (const [row, id] of ids.entries()) {
      const logits = data.subarray(row * vocabulary, (row + 1) * vocabulary)
      // Decoding and prefill add in different orders: in f32, 2e-4.
      expect(logits.reduce((a, b) => Math.max(a, b)) - logits[id]!).not.toBeGreaterThan(2e-4)
    }
  })
})

test.each(presentIsas)('%s: the same continuation, and the same bits for any cut of the prompt', async (isa) => {
  const device = await openDevice(isa, 1)
  const [prompt, { ids }] = Object.entries(expected.greedy)[0]!
  let reference: Float32Array | undefined
  for (const prefillChunk of [512, 32]) {
    await using gemma = await loadExact({ device, kv: 'bf16', prefillChunk, pageTokens: 32 })
    const { data } = await gemma.logits(prose(3000, 400), { rows: 5 })
    reference ??= data
    expect(Buffer.compare(Buffer.from(reference.buffer), Buffer.from(data.buffer))).toBe(0)
    const result = await gemma.generate(prompt, { ...plain, maxTokens: 12 })
    expect(result.ids).toEqual(ids.slice(result.promptTokens, result.promptTokens + 12))
  }
})

describe.each(['bf16', 'f32', 'i8'] as const)('int4 weights, %s cache', (kv) => {
  test('logits are the same bits however the prompt is cut into steps, beyond the window too', async () => {
    const text = prose(20_000, 2000)
    let reference: Float32Array | undefined
    // Twice the page: the same pages, other steps. Negative control: other pages give other bits.
    for (const { prefillChunk, pageTokens = 32 } of [
      { prefillChunk: 512 },
      { prefillChunk: 96 },
      { prefillChunk: 1 },
      { prefillChunk: 512, pageTokens: 24 },
    ]) {
      await using gemma = await loadBundled({ kv, prefillChunk, pageTokens })
      const { data, rows, vocabulary } = await gemma.logits(text)
      expect([rows, vocabulary]).toEqual([gemma.tokenize(text, { bos: true }).length, gemma.config.vocabularySize])
      expect(rows).toBeGreaterThan(3 * gemma.config.window)
      reference ??= data
      const same = Buffer.compare(Buffer.from(reference.buffer), Buffer.from(data.buffer)) === 0
      expect(same).toBe(pageTokens === 32)
    }
  })

  test('the same request gives the same text from the cache as without, also after the ring has wrapped', async () => {
    await using gemma = await loadBundled({ kv })
    for (const length of [100, 1500]) {
      const prompt = prose(40_000, length)
      const first = await gemma.generate(prompt, { ...plain, maxTokens: 150 })
      const second = await gemma.generate(prompt, { ...plain, maxTokens: 150 })
      expect(outcome(second)).toEqual(outcome(first))
      expect(first.cachedTokens).toBe(0)
      expect(second.cachedTokens).toBe(Math.floor((first.promptTokens - 1) / 64) * 64)
    }
  })
})

/** Requests of many kinds. */
function requests(random: Random, count: number): { prompt: string; options: GenerateOptions }[] {
  return Array.from({ length: count }, () => ({
    prompt: prose(random.integer(0, 50_000), random.integer(1, 900)),
    options: {
      maxTokens: random.integer(1, 80),
      seed: random.integer(0, 2 ** 32),
      temperature: random.pick([0, 0.7, 1.3]),
      topK: random.pick([0, 5, 64]),
      topP: random.pick([0.5, 0.95, 1]),
      minP: random.pick([0, 0.1]),
      ...(random.integer(0, 3) === 0 && { repetitionPenalty: 1.3, frequencyPenalty: 0.2 }),
      ...(random.integer(0, 4) === 0 && { logitBias: { 301: -5, 310: 3 } }),
      ...(random.integer(0, 4) === 0 && { logprobs: random.integer(0, 4) }),
    },
  }))
}

test('32 requests at once, come and gone at random, give what each gives alone', async () => {
  const random = Random.named('concurrent')
  const all = requests(random, 32)
  const alone = []
  {
    await using gemma = await loadBundled({ maxSequences: 1, prefixCache: false })
    for (const { prompt, options } of all) alone.push(outcome(await gemma.generate(prompt, options)))
  }
  await using gemma = await loadBundled({ maxSequences: 8 })
  const together = await Promise.all(
    all.map(async ({ prompt, options }, index) => {
      for (let wait = 0; wait < index; wait += 4) await new Promise((resolve) => setImmediate(resolve))
      return outcome(await gemma.generate(prompt, options))
    }),
  )
  expect(together).toEqual(alone)
  expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
})

test('the number of threads changes nothing', async () => {
  const random = Random.named('threads')
  const all = requests(random, 4)
  const results = []
  for (const threads of [1, 2]) {
    await using gemma = await loadBundled({ device: 'cpu', threads })
    results.push(
      await Promise.all(all.map(async ({ prompt, options }) => outcome(await gemma.generate(prompt, options)))),
    )
  }
  expect(results[1]).toEqual(results[0])
})

test('sequences that were put back for want of pages go on as if nothing had happened', async () => {
  const random = Random.named('preemption')
  const all = requests(random, 10).map(({ prompt, options }) => ({ prompt, options: { ...options, maxTokens: 120 } }))
  const run = async (cacheTokens?: number): Promise<{ results: object[]; preemptions: number }> => {
    await using gemma = await loadBundled({ contextLength: 640, maxSequences: 6, pageTokens: 16, cacheTokens })
    const results = await Promise.all(
      all.map(async ({ prompt, options }) => outcome(await gemma.generate(prompt, options))),
    )
    return { results, preemptions: gemma.info().engine.preemptions }
  }
  const wide = await run()
  const narrow = await run(640)
  expect(wide.preemptions).toBe(0)
  expect(narrow.preemptions).toBeGreaterThan(0)
  expect(narrow.results).toEqual(wide.results)
})

describe('conversations', () => {
  const question = (content: string) => ({ role: 'user', content }) as const

  test('the second turn begins with what the first computed, and says the same as without', async () => {
    await using cached = await loadExact()
    await using fresh = await loadExact({ prefixCache: false })
    for (const length of [60, 1200]) {
      const messages: { role: 'user' | 'assistant'; content: string }[] = []
      for (let turn = 0; turn < 3; turn++) {
        messages.push(question(prose(1000 + 5000 * turn, length)))
        const first = await cached.chat(messages, { ...plain, maxTokens: 50 }).result
        const second = await fresh.chat(messages, { ...plain, maxTokens: 50 }).result
        expect(outcome(first)).toEqual(outcome(second))
        expect(second.cachedTokens).toBe(0)
        if (turn > 0) expect(first.cachedTokens).toBeGreaterThan(0)
        messages.push({ role: 'assistant', content: first.text })
      }
    }
  })

  test('an edited message reuses what is before it', async () => {
    await using gemma = await loadExact({ pageTokens: 16 })
    await using fresh = await loadExact({ pageTokens: 16, prefixCache: false })
    const ask = async (last: string): Promise<number> => {
      const messages = [question(prose(1000, 800)), { role: 'assistant', content: prose(6000, 300) } as const]
      const options = { ...plain, maxTokens: 20 }
      const result = await gemma.chat([...messages, question(last)], options).result
      expect(outcome(result)).toEqual(outcome(await fresh.chat([...messages, question(last)], options).result))
      return result.cachedTokens
    }
    expect(await ask(prose(9000, 700))).toBe(0)
    // The window before the edit has left the ring: it is computed again, and kept this time.
    expect(await ask(prose(12_000, 700))).toBe(0)
    expect(await ask(prose(15_000, 700))).toBeGreaterThan(250)
  })
})
