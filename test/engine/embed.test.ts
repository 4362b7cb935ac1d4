/** Embedding texts: the small model's weights, read as an embedding model's. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { Gemma } from '../../lib/engine/gemma.ts'
import { encoder, encoderInput } from '../../lib/models/gemma/encoder.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { openDevice } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { evalText, exactIsa, tinyFolder } from './models.ts'

const folder = mkdtempSync(join(tmpdir(), 'lapidary-embed-'))
const options = { weights: 'f32', activations: 'f32' } as const
let gemma: Gemma

beforeAll(async () => {
  cpSync(tinyFolder, folder, { recursive: true })
  const file = join(folder, 'config.json')
  const config = JSON.parse(readFileSync(file, 'utf8')) as object
  writeFileSync(file, JSON.stringify({ ...config, use_bidirectional_attention: true }))
  gemma = await Gemma.load(folder, { ...options, device: await openDevice(exactIsa, 1) })
})

afterAll(async () => {
  await gemma[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

// The last one is longer than the window, and together they are more than one batch.
const texts = ['', 'a cat', 'Alice', evalText.slice(0, 3000), evalText.slice(9000, 14_000), 'a cat']

test('vectors are those of the encoder over bos, text and eos', async () => {
  const { tokenizer } = gemma
  const ids = texts.map((text) => [tokenizer.bos, ...tokenizer.encode(text, { markers: false }), tokenizer.eos])
  const device = await openDevice(exactIsa, 1)
  using model = await GemmaModel.load(device, await openCheckpoint(folder), options)
  const vectors = await gemma.embed(texts)
  for (const [index, one] of ids.entries()) {
    using alone = encoder(model, encoderInput(device, model.config, [one]))
    expect([...vectors[index]!]).toEqual([...(await alone.readF32())])
  }
})

test('vectors have length 1, and depend on their text only', async () => {
  const vectors = await gemma.embed(texts)
  for (const vector of vectors) {
    expect(vector.length).toBe(gemma.config.hiddenSize)
    // Rounding of f32 elements: 2⁻²⁴ each, relative.
    expect(Math.abs(vector.reduce((sum, x) => sum + x * x, 0) - 1)).not.toBeGreaterThan(1e-6)
  }
  expect(vectors[5]).toEqual(vectors[1])
  expect(vectors[2]).not.toEqual(vectors[1])
  const reversed = await gemma.embed([...texts].reverse())
  expect(reversed.reverse()).toEqual(vectors)
  expect(await gemma.embed([])).toEqual([])
})

test('several calls at once, and one in flight when the model is disposed', async () => {
  const other = await Gemma.load(folder, { ...options, device: await openDevice(exactIsa, 1) })
  const [a, b] = await Promise.all([other.embed(texts.slice(0, 3)), other.embed(texts.slice(1, 2))])
  expect(a[1]).toEqual(b[0])
  const calls = Promise.allSettled([other.embed(texts), other.embed(texts)])
  await other[Symbol.asyncDispose]()
  for (const result of await calls) {
    if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'ERR_DISPOSED' })
    else expect(result.value.length).toBe(texts.length)
  }
})

test('what an embedding model cannot do', async () => {
  throwsCode(() => gemma.stream('text'), 'ERR_INVALID_ARGUMENT', /embeds texts/)
  throwsCode(() => gemma.chat([{ role: 'user', content: 'text' }]), 'ERR_INVALID_ARGUMENT', /embeds texts/)
  await rejectsCode(gemma.logits('text'), 'ERR_INVALID_ARGUMENT')
  await rejectsCode(gemma.perplexity('text'), 'ERR_INVALID_ARGUMENT')
  await rejectsCode(gemma.embed([evalText]), 'ERR_INVALID_ARGUMENT', /at most 2048 tokens/)
  await rejectsCode(gemma.embed('text' as unknown as string[]), 'ERR_INVALID_ARGUMENT', /array/)
  await rejectsCode(gemma.embed([1 as unknown as string]), 'ERR_INVALID_ARGUMENT', /string/)
})
