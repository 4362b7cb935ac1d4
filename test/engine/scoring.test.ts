/** Scoring in blocks of rows, as vocabularies of 262,144 pieces need it. */

import { expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { KvCache } from '../../lib/engine/kv-cache.ts'
import { scoreWindows } from '../../lib/engine/scoring.ts'
import { StepRunner } from '../../lib/engine/step-runner.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { openDevice } from '../support/devices.ts'
import { Random } from '../support/random.ts'
import { exactIsa, logSoftmax, tinyFolder } from './models.ts'

test('blocks of rows give what all rows at once give', async () => {
  const device = await openDevice(exactIsa, 1)
  using model = await GemmaModel.load(device, await openCheckpoint(tinyFolder), { weights: 'f32', activations: 'f32' })
  const { vocabularySize } = model.config
  const random = Random.named('scoring')
  const tokens = Int32Array.from({ length: 75 }, () => random.integer(0, vocabularySize))
  const options = { contextLength: 128, chunk: 128, maxSequences: 1, pageTokens: 32, cacheTokens: 128 }
  const results: Float32Array[][] = []
  for (const blockRows of [1000, 7, 1]) {
    using cache = new KvCache(device, model.config, { dtype: 'f32', prefixCache: false, ...options })
    using runner = new StepRunner(device, device.stream, model, cache, 1, blockRows * vocabularySize)
    const pages = cache.pages.open()
    expect(pages.reserve(0, 74)).toBe(true)
    const part = { pages, start: 0, count: 74, promptLength: 74 }
    results.push([
      (await runner.score(tokens, part, 'logits', 74)).values,
      (await runner.score(tokens, part, 'logits', 31)).values,
      (await runner.score(tokens, part, 'logprobs', 74, tokens.subarray(1))).values,
      (await runner.score(tokens, part, 'logprobs', 9, tokens.subarray(66))).values,
      (await runner.score(tokens, part, 'logprobs', 0, tokens.subarray(75))).values,
    ])
  }
  const [all, tail, logProbs, lastLogProbs, none] = results[0]!
  const bits = (data: Float32Array): string =>
    Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('hex')
  expect(results[1]!.map(bits)).toEqual(results[0]!.map(bits))
  expect(results[2]!.map(bits)).toEqual(results[0]!.map(bits))
  expect(bits(tail!)).toBe(bits(all!.subarray(43 * vocabularySize)))
  expect(lastLogProbs).toEqual(logProbs!.subarray(65))
  expect(none!.length).toBe(0)
  for (const [row, value] of logProbs!.entries()) {
    const reference = logSoftmax(all!.subarray(row * vocabularySize, (row + 1) * vocabularySize))
    // The f32 logarithm and difference of numbers below 32.
    expect(Math.abs(value - reference[tokens[row + 1]!]!)).not.toBeGreaterThan(32 * 2 ** -23)
  }
})

test('windows score every token but the first, once', () => {
  for (const count of [1, 2, 3, 9, 10, 11, 25]) {
    const tokens = Int32Array.from({ length: count }, (_, i) => i)
    for (const length of [1, 2, 5, 10]) {
      for (let stride = 1; stride <= length; stride++) {
        const scored = scoreWindows(tokens, length, stride).flatMap((window) => {
          expect(window.compute).toBeLessThanOrEqual(length)
          expect(window.from).toBeLessThan(window.compute)
          return [...window.tokens.subarray(window.from + 1, window.compute + 1)]
        })
        expect(scored).toEqual([...tokens.subarray(1)])
      }
    }
  }
})
