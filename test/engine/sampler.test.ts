/** Stop strings, and what a model's files say of sampling. */

import { describe, expect, test } from 'vitest'
import { samplingDefaults } from '../../lib/engine/sampler.ts'
import { StopStrings } from '../../lib/engine/stop-strings.ts'
import { Random } from '../support/random.ts'

describe('stop strings', () => {
  /** What a reader sees when text comes character by character and stops at the first complete match. */
  function reference(text: string, stops: readonly string[]): { text: string; stopped: boolean } {
    for (let end = 1; end <= text.length; end++) {
      const found = stops.filter((stop) => text.slice(0, end).endsWith(stop))
      const longest = Math.max(...found.map((stop) => stop.length))
      if (found.length > 0) return { text: text.slice(0, end - longest), stopped: true }
    }
    return { text, stopped: false }
  }

  test('are found however text is cut, against a search character by character', () => {
    const random = Random.named('stops')
    let hits = 0
    for (let round = 0; round < 3000; round++) {
      const letters = (length: number): string =>
        Array.from({ length }, () => random.pick(['a', 'b', 'é', '🙂'])).join('')
      const text = letters(random.integer(0, 30))
      const stops = Array.from({ length: random.integer(0, 4) }, () => letters(random.integer(1, 5)))
      const matcher = new StopStrings(stops)
      let shown = ''
      let stopped = false
      for (let at = 0; at < text.length && !stopped; ) {
        const size = random.integer(1, 6)
        const step = matcher.push(text.slice(at, at + size))
        at += size
        shown += step.text
        stopped = step.stopped
      }
      if (!stopped) shown += matcher.end()
      const expected = reference(text, stops)
      expect({ text: shown, stopped }).toEqual(expected)
      hits += Number(stopped)
    }
    expect(hits).toBeGreaterThan(500)
  })

  test('hold back no more than a possible beginning', () => {
    const matcher = new StopStrings(['\n\n', 'END'])
    expect(matcher.push('one\n')).toEqual({ text: 'one', stopped: false })
    expect(matcher.push('two EN')).toEqual({ text: '\ntwo ', stopped: false })
    expect(matcher.push('E')).toEqual({ text: 'ENE'.slice(0, 2), stopped: false })
    expect(matcher.push('ND more')).toEqual({ text: '', stopped: true })
  })
})

describe('defaults', () => {
  const hf = (generationConfig?: Record<string, unknown>) => ({
    format: 'safetensors' as const,
    config: { temperature: 9 },
    ...(generationConfig && { generationConfig }),
  })

  test.each([
    ['gemma3', undefined, { temperature: 1, topK: 64, topP: 0.95, minP: 0 }],
    ['gemma2', undefined, { temperature: 1, topK: 50, topP: 1, minP: 0 }],
    ['gemma', undefined, { temperature: 1, topK: 50, topP: 1, minP: 0 }],
    [
      'gemma3',
      { temperature: 0.5, top_k: 3, top_p: 0.4, min_p: 0.1 },
      { temperature: 0.5, topK: 3, topP: 0.4, minP: 0.1 },
    ],
    ['gemma3', { do_sample: false, temperature: 0.5 }, { temperature: 0, topK: 0, topP: 1, minP: 0 }],
    ['gemma3', { top_k: -4, top_p: 'x', temperature: null }, { temperature: 1, topK: 64, topP: 0.95, minP: 0 }],
  ] as const)('%s with %o', (architecture, generationConfig, expected) => {
    expect(samplingDefaults(hf(generationConfig), architecture)).toEqual(expected)
  })

  test('of a GGUF file come from its metadata', () => {
    const config = { 'general.sampling.temp': 0.25, 'general.sampling.top_k': 7 }
    const expected = { temperature: 0.25, topK: 7, topP: 0.95, minP: 0 }
    expect(samplingDefaults({ format: 'gguf', config }, 'gemma3')).toEqual(expected)
  })
})
