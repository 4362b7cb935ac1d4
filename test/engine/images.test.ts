/** Images in conversations: a model with a small tower, on the bits and on what may go wrong. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Gemma, type GenerationResult } from '../../lib/engine/gemma.ts'
import { imagePrompt } from '../../lib/engine/image-prompt.ts'
import { ContentIds } from '../../lib/engine/image-store.ts'
import type { ChatMessage, ContentPart, GemmaOptions, GenerateOptions, RawImage } from '../../lib/index.ts'
import { openDevice } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { exactIsa, loadBundled } from './models.ts'
import { hfNames, tower, writeGgufFolder, writeHf, writeProjector } from './vision-model.ts'

const root = mkdtempSync(path.join(tmpdir(), 'lapidary-vision-'))
const folder = path.join(root, 'hf')
let shared: Gemma
beforeAll(async () => {
  writeHf(folder)
  shared = await load()
})
afterAll(async () => {
  await shared[Symbol.asyncDispose]()
  rmSync(root, { recursive: true })
})

async function load(options: GemmaOptions = {}, from = folder): Promise<Gemma> {
  const device = await openDevice(exactIsa, 1)
  const exact = { weights: 'f32', activations: 'f32', kv: 'f32', contextLength: 512, packedCache: false } as const
  return await Gemma.load(from, { device, ...exact, ...options })
}

const { imageSize, imageTokens } = tower

/** Pixels that differ with the seed. */
function picture(seed: number, width = imageSize, height = imageSize): RawImage {
  const data = new Uint8Array(width * height * 3)
  for (let i = 0; i < data.length; i++) data[i] = (Math.imul(i + 1, 2654435761 + seed * 40503) >>> 15) & 255
  return { data, width, height }
}

const image = (seed: number): ContentPart => ({ type: 'image', image: picture(seed) })
const text = (content: string): ContentPart => ({ type: 'text', text: content })
const user = (...content: ContentPart[]): ChatMessage<ContentPart> => ({ role: 'user', content })

const settings: GenerateOptions = { temperature: 0, stopTokens: [], maxTokens: 6, logprobs: 3 }
/** Ids and probabilities, to the bit. */
const bits = ({ ids, logprobs }: GenerationResult): object => ({ ids, logprobs })

async function ask(gemma: Gemma, ...messages: ChatMessage<ContentPart>[]): Promise<GenerationResult> {
  return await gemma.chat(messages, settings).result
}

function idle(gemma: Gemma): void {
  const { engine, cache } = gemma.info()
  expect([engine.running, engine.waiting]).toEqual([0, 0])
  expect(cache.used).toBe(cache.cached)
}

describe('prompts', () => {
  test('images stand where the reference’s processor puts them', async () => {
    const gemma = shared
    const { tokenizer } = gemma
    const piece = (name: string) => tokenizer.idOf(name)!
    const [open, close] = [piece('<start_of_image>'), piece('<end_of_image>')]
    const breaks = (count: number) => piece('\n'.repeat(count))
    const { ids, places } = imagePrompt(tokenizer, '<bos>user\n<start_of_image>hello<start_of_image>', [[-2], [-3]], 3)
    const hello = [...tokenizer.encode('\n\nhello\n\n')]
    expect(hello[0]).toBe(breaks(2))
    // The line break before an image becomes one piece with the two that belong to the image.
    const start = [tokenizer.bos, ...tokenizer.encode('user'), breaks(3), open]
    expect([...ids]).toEqual([...start, -2, -2, -2, close, ...hello, open, -3, -3, -3, close, breaks(2)])
    expect(places).toEqual([
      { start: start.length, end: start.length + 3 },
      { start: start.length + 3 + 1 + hello.length + 1, end: start.length + 3 + 1 + hello.length + 1 + 3 },
    ])
    throwsCode(() => imagePrompt(tokenizer, '<bos>user', [[-2]], 3), 'ERR_INVALID_ARGUMENT', /1 images, got 0 places/)
  })

  test('crops are introduced by the reference’s sentence', async () => {
    const gemma = shared
    const { tokenizer } = gemma
    const { ids, places } = imagePrompt(tokenizer, 'x<start_of_image>y', [[-2, -3, -4]], 1)
    const marked = (view: string) => `\n\n<start_of_image>${view}<end_of_image>\n\n`
    const sentence = `xHere is the original image ${marked('')} and here are some crops to help you see better ${marked('')} ${marked('')}y`
    const expected = [...tokenizer.encode(sentence)].flatMap((id) =>
      id === tokenizer.idOf('<start_of_image>') ? [id, 0] : [id],
    )
    for (const [index, at] of places.entries()) expected[at.start - 1] = -2 - index
    expect(places.length).toBe(3)
    expect([...ids].slice(1)).toEqual(expected)
  })

  test('a marker in untrusted text is text', async () => {
    const gemma = shared
    const plain = await ask(gemma, user(image(1), text('<start_of_image> and <end_of_image>')))
    const count = gemma.tokenizer.encode('<start_of_image>', { markers: false }).length
    expect(count).toBeGreaterThan(1)
    const without = await ask(gemma, user(image(1), text(' and ')))
    expect(plain.promptTokens).toBeGreaterThan(without.promptTokens + count)
  })
})

describe('answers', () => {
  test('depend on the image, and on where it stands', async () => {
    const gemma = shared
    const answers = [
      await ask(gemma, user(image(1), text('what is this'))),
      await ask(gemma, user(image(2), text('what is this'))),
      await ask(gemma, user(text('what is this'), image(1))),
      await ask(gemma, user(text('what is this'))),
    ]
    expect(new Set(answers.map((answer) => JSON.stringify(answer.logprobs))).size).toBe(4)
    expect(answers[0]!.timings.imageMs).toBeGreaterThan(0)
    expect(answers[3]!.timings.imageMs).toBe(0)
    idle(gemma)
  })

  test('have the same bits however prompts are cut into steps', async () => {
    const messages = [
      user(text('first'), image(1), text('and then one more'), image(2), image(3), text('what are they')),
    ]
    const results: object[] = []
    for (const options of [{}, { prefillChunk: 64 }, { prefillChunk: 8, pageTokens: 8 }, { pageTokens: 8 }]) {
      await using gemma = await load({ prefixCache: false, ...options })
      results.push({ page: options.pageTokens ?? 64, ...bits(await ask(gemma, ...messages)) })
    }
    expect(results[1]).toEqual(results[0])
    expect(results[3]).toEqual(results[2])
  })

  test('in a batch of texts and images have the bits of each alone', async () => {
    const conversations = [
      [user(image(1), text('what is this'))],
      [user(text('once upon a time there was a king who had nothing to say'))],
      [user(text('two of them'), image(2), image(1))],
      [user(image(3)), { role: 'model', content: 'a thing' }, user(text('and this'), image(2))],
    ] as ChatMessage<ContentPart>[][]
    await using together = await load({ prefixCache: false, maxSequences: 4, prefillChunk: 64 })
    const batch = await Promise.all(conversations.map((messages) => ask(together, ...messages)))
    await using alone = await load({ prefixCache: false, maxSequences: 1 })
    for (const [index, messages] of conversations.entries()) {
      expect(bits(batch[index]!)).toEqual(bits(await ask(alone, ...messages)))
    }
    idle(together)
  })

  test('of later turns begin where earlier ones ended, and are the same', async () => {
    const first = [user(image(1), text('what is this'))]
    await using gemma = await load({ pageTokens: 8 })
    const { text: said, promptTokens } = await ask(gemma, ...first)
    const second = [...first, { role: 'model', content: said } as const, user(image(2), text('and what is that one'))]
    const reused = await ask(gemma, ...second)
    expect(reused.cachedTokens).toBeGreaterThanOrEqual(Math.floor(promptTokens / 8) * 8 - 8)
    await using fresh = await load({ pageTokens: 8, prefixCache: false })
    const computed = await ask(fresh, ...second)
    expect(computed.cachedTokens).toBe(0)
    expect(reused.ids).toEqual(computed.ids)
    idle(gemma)
  })

  test('another image with the same words is not taken from the cache', async () => {
    await using gemma = await load({ pageTokens: 8 })
    const shared = text('a few words that both begin with, so that a page is shared')
    await ask(gemma, user(shared, image(1), text('what is this')))
    const other = await ask(gemma, user(shared, image(2), text('what is this')))
    expect(other.cachedTokens).toBeGreaterThan(0)
    await using fresh = await load({ pageTokens: 8 })
    expect(bits(other)).toEqual(bits(await ask(fresh, user(shared, image(2), text('what is this')))))
    const again = await ask(gemma, user(shared, image(1), text('what is this')))
    expect(again.cachedTokens).toBeGreaterThan(other.cachedTokens)
  })

  test('are the same from every source of the same pixels', async () => {
    const gemma = shared
    const { data, width, height } = picture(5)
    const png = await sharp(Buffer.from(data), { raw: { width, height, channels: 3 } })
      .png()
      .toBuffer()
    const raw = await ask(gemma, user(image(5), text('what')))
    for (const source of [png, `data:image/png;base64,${png.toString('base64')}`, new Blob([Uint8Array.from(png)])]) {
      const answer = await ask(gemma, user({ type: 'image', image: source }, text('what')))
      expect(answer.ids).toEqual(raw.ids)
    }
  })

  test('to a prompt of text and images that is no conversation', async () => {
    const gemma = shared
    const { promptTokens, ids } = await gemma
      .generate([text('look: '), image(4), text(' it is')], settings)
      .then((r) => r)
    const lengths = ['look: \n\n', '\n\n it is'].map((part) => gemma.tokenizer.encode(part).length)
    expect(promptTokens).toBe(1 + lengths[0]! + 1 + imageTokens + 1 + lengths[1]!)
    expect(ids.length).toBe(6)
  })

  test('with penalties, which see no soft tokens', async () => {
    const gemma = shared
    const options = { ...settings, repetitionPenalty: 1.3, logitBias: { 7: -5 } }
    const { ids } = await gemma.chat([user(image(1), text('what'))], options).result
    expect(ids.length).toBe(6)
  })

  test('to videos are those to their frames with their times', async () => {
    const gemma = shared
    const frames = [picture(1), picture(2)]
    const video = await ask(gemma, user({ type: 'video', frames, timestamps: [0.4, 75.9] }, text('what happens')))
    const parts = await ask(gemma, user(text('00:00'), image(1), text('01:15'), image(2), text('what happens')))
    expect(bits(video)).toEqual(bits(parts))
    expect(bits(await ask(gemma, user({ type: 'video', frames })))).toEqual(
      bits(await ask(gemma, user(text('00:00'), image(1), text('00:01'), image(2)))),
    )
    await rejectsCode(
      ask(gemma, user({ type: 'video', frames: [] })),
      'ERR_INVALID_ARGUMENT',
      /content\[0\].*no frames/,
    )
    const wrong = user({ type: 'video', frames, timestamps: [1] })
    await rejectsCode(ask(gemma, wrong), 'ERR_INVALID_ARGUMENT', /expected 2 times in seconds/)
  })

  test('with pan and scan see crops too', async () => {
    const gemma = shared
    const wide = picture(1, 90, 30)
    const options = { minCropSize: 20, maxCrops: 3 }
    const whole = await ask(gemma, user({ type: 'image', image: wide }))
    const crops = await ask(gemma, user({ type: 'image', image: wide, panAndScan: options }))
    expect(crops.promptTokens).toBeGreaterThan(whole.promptTokens + 3 * (imageTokens + 4) - 1)
    const square = await ask(gemma, user({ type: 'image', image: picture(2), panAndScan: options }))
    expect(square.promptTokens).toBe(whole.promptTokens)
  })
})

describe('towers', () => {
  test.each(Object.keys(hfNames) as (keyof typeof hfNames)[])('names as %s has them', async (names) => {
    await using gemma = await load({}, writeHf(path.join(root, names), names))
    const messages = user(image(1), text('what is this'))
    expect(bits(await ask(gemma, messages))).toEqual(bits(await ask(shared, messages)))
    expect(gemma.info().vision).toMatchObject({ imageSize, imageTokens })
    expect(gemma.info().vision!.weightBytes).toBeGreaterThan(0)
  })

  test('a projector beside a GGUF model is found, in a folder too; its soft tokens are those of the Hugging Face folder', async () => {
    const gguf = await writeGgufFolder(path.join(root, 'gguf'))
    await using gemma = await load({ weights: 'stored' }, gguf)
    expect(gemma.info().vision).toMatchObject({ path: path.join(gguf, 'mmproj-model-f16.gguf'), imageTokens })
    const answer = await ask(gemma, user(image(1), text('what is this')))
    expect(bits(answer)).not.toEqual(bits(await ask(gemma, user(image(2), text('what is this')))))
    // The text model of one with the tower of the other.
    await using mixed = await load({ mmproj: path.join(gguf, 'mmproj-model-f16.gguf') })
    expect(bits(await ask(mixed, user(image(1))))).toEqual(bits(await ask(shared, user(image(1)))))
  })

  test('of several projectors the one that fits is taken, and none if none does', async () => {
    const gguf = await writeGgufFolder(path.join(root, 'several'), 'other-mmproj-f32.gguf')
    await writeProjector(path.join(gguf, 'mmproj-BF16.gguf'), { hidden: 512 })
    await using gemma = await load({ weights: 'stored' }, gguf)
    expect(gemma.info().vision?.path).toBe(path.join(gguf, 'other-mmproj-f32.gguf'))
    await using without = await load({ weights: 'stored', mmproj: false }, gguf)
    expect(without.info().vision).toBe(undefined)
    throwsCode(() => without.chat([user(image(1))]), 'ERR_INVALID_ARGUMENT', /sees images .* mmproj/)
    expect((await ask(without, user(text('text works')))).ids.length).toBe(6)
  })

  // Floats are multiplied as they are. Beside bytes, what they are multiplied by is rounded to bytes too: six times in each layer, by at
  // most half of 1/127 of a group's largest.
  test.each([
    ['f16', 1e-5],
    ['bf16', 1e-5],
    ['q8_0', (6 * tower.layers) / 127],
  ] as const)('weights of %s are used as they are stored', async (stored, bound) => {
    const soft: Float32Array[] = []
    for (const widened of [false, true]) {
      const mmproj = await writeProjector(path.join(root, `${stored}-${widened}.gguf`), { stored, widened })
      await using gemma = await load({ mmproj, weights: 'stored' })
      soft.push((await gemma.encodeImage(picture(1)))[0]!)
    }
    const [got, expected] = soft as [Float32Array, Float32Array]
    const norm = (values: Float32Array) => Math.hypot(...values)
    expect(norm(got.map((value, i) => value - expected[i]!)) / norm(expected)).toBeLessThan(bound)
    const unrounded = (await shared.encodeImage(picture(1)))[0]!
    expect(norm(expected.map((value, i) => value - unrounded[i]!))).toBeGreaterThan(0)
  })

  test("a projector whose feed-forward parts have each other's names, as the first published ones", async () => {
    const soft: Float32Array[] = []
    for (const exchanged of [false, true]) {
      const mmproj = await writeProjector(path.join(root, `exchanged-${exchanged}.gguf`), { exchanged })
      await using gemma = await load({ mmproj })
      soft.push((await gemma.encodeImage(picture(1)))[0]!)
    }
    expect(soft[1]).toEqual(soft[0])
  })

  test('a damaged projector beside a model, or one of another kind, is no hindrance to text', async () => {
    const gguf = await writeGgufFolder(path.join(root, 'damaged'))
    const file = path.join(gguf, 'mmproj-model-f16.gguf')
    const whole = readFileSync(file)
    writeFileSync(file, whole.subarray(0, whole.length / 2))
    await using gemma = await load({ weights: 'stored' }, gguf)
    expect((await ask(gemma, user(text('text works')))).ids.length).toBe(6)
    throwsCode(() => gemma.chat([user(image(1))]), 'ERR_CHECKPOINT_CORRUPT', /image: .*mmproj-model-f16\.gguf/)
    await writeProjector(file, { type: 'qwen2vl_merger' })
    await using other = await load({ weights: 'stored' }, gguf)
    throwsCode(() => other.chat([user(image(1))]), 'ERR_CHECKPOINT_UNSUPPORTED', /image: .*expected gemma3/)
  })

  test('a projector of another model, or of no model', async () => {
    const file = (name: string) => path.join(root, name)
    await writeProjector(file('large.gguf'), { hidden: 512 })
    await rejectsCode(
      load({ mmproj: file('large.gguf') }),
      'ERR_INVALID_ARGUMENT',
      /hidden size of 256 .* got one for 512/,
    )
    await writeProjector(file('qwen.gguf'), { type: 'qwen2vl_merger' })
    await rejectsCode(
      load({ mmproj: file('qwen.gguf') }),
      'ERR_CHECKPOINT_UNSUPPORTED',
      /projector_type: expected gemma3/,
    )
    await writeProjector(file('uneven.gguf'), { scaleFactor: 3 })
    await rejectsCode(load({ mmproj: file('uneven.gguf') }), 'ERR_CHECKPOINT_CORRUPT', /whole soft tokens/)
    const model = path.join(await writeGgufFolder(path.join(root, 'text')), 'model-q4_0.gguf')
    await rejectsCode(load({ mmproj: model }), 'ERR_CHECKPOINT_UNSUPPORTED', /expected a vision projector/)
    await rejectsCode(load({ mmproj: file('absent.gguf') }), 'ERR_FILE', /absent/)
    await rejectsCode(load({ mmproj: 7 as never }), 'ERR_INVALID_ARGUMENT', /mmproj/)
  })
})

describe('what goes wrong', () => {
  test('one clear error each, nothing held', async () => {
    const gemma = shared
    const refuse = async (part: unknown, code: Parameters<typeof rejectsCode>[1], message: RegExp) =>
      rejectsCode(ask(gemma, user(text('look'), part as ContentPart)), code, message)
    await refuse(
      { type: 'image', image: Buffer.from('no image') },
      'ERR_INVALID_ARGUMENT',
      /messages\[0\]\.content\[1\]: image: expected JPEG/,
    )
    await refuse({ type: 'image', image: '/nowhere.png' }, 'ERR_FILE', /content\[1\].*nowhere/)
    await refuse({ type: 'image', image: { ...picture(1), width: 0 } }, 'ERR_INVALID_ARGUMENT', /at least 1, got 0/)
    await refuse({ type: 'image' }, 'ERR_INVALID_ARGUMENT', /got undefined/)
    await refuse({ type: 'image', image: picture(1), panAndScan: 3 }, 'ERR_INVALID_ARGUMENT', /panAndScan/)
    const png = await sharp(Buffer.from(picture(9, 96, 96).data), { raw: { width: 96, height: 96, channels: 3 } })
      .png()
      .toBuffer()
    await refuse({ type: 'image', image: png.subarray(0, png.length / 2) }, 'ERR_DATA_CORRUPT', /png cannot be decoded/)
    await rejectsCode(
      ask(gemma, user(image(1), { type: 'audio' } as never)),
      'ERR_INVALID_ARGUMENT',
      /messages\[0\]\.content\[1\]: expected \{ type: 'text', text \}/,
    )
    idle(gemma)
    expect((await ask(gemma, user(image(1)))).ids.length).toBe(6)
  })

  test('too many images for the context, before any of them is read', async () => {
    await using gemma = await load({ contextLength: 64 })
    const many = Array.from({ length: 4 }, () => ({ type: 'image', image: '/nowhere.png' }) as const)
    await rejectsCode(
      ask(gemma, user(...many)),
      'ERR_INVALID_ARGUMENT',
      /at most 63 tokens.*4 images of 20 tokens each/,
    )
    const long = text('word '.repeat(40))
    await rejectsCode(
      ask(gemma, user(image(1), image(2), long)),
      'ERR_INVALID_ARGUMENT',
      /2 images of 20 tokens each, and \d+ tokens in all/,
    )
    const crops = user({ type: 'image', image: picture(1, 90, 30), panAndScan: { minCropSize: 10, maxCrops: 3 } })
    await rejectsCode(ask(gemma, crops), 'ERR_INVALID_ARGUMENT', /1 images, of which pan and scan makes 4 views/)
    expect(gemma.info().cache.used).toBe(0)
  })

  test('larger than the model’s limits', async () => {
    await using gemma = await load({ images: { maxPixels: 100 } })
    await rejectsCode(ask(gemma, user(image(1))), 'ERR_INVALID_ARGUMENT', /at most 100 pixels, got 48 × 48/)
    await rejectsCode(load({ images: { maxPixels: -1 } }), 'ERR_INVALID_ARGUMENT', /maxPixels/)
  })

  test('a model without a tower takes text, and refuses images', async () => {
    await using gemma = await loadBundled()
    expect(gemma.info().vision).toBe(undefined)
    throwsCode(() => gemma.chat([user(image(1))]), 'ERR_INVALID_ARGUMENT', /expected a model that sees images/)
    throwsCode(() => gemma.stream([image(1)]), 'ERR_INVALID_ARGUMENT', /expected a model that sees images/)
  })

  test('an abort while images are made ready ends the generation at once', async () => {
    const gemma = shared
    const abort = new AbortController()
    const generation = gemma.chat([user(image(1), image(2))], { ...settings, signal: abort.signal })
    abort.abort()
    const { finishReason, promptTokens, tokens } = await generation.result
    expect([finishReason, promptTokens, tokens]).toEqual(['abort', 0, 0])
    const left = gemma.chat([user(image(3))], settings)
    for await (const _ of left) break
    expect((await left.result).finishReason).toBe('abort')
    expect((await ask(gemma, user(image(1)))).ids.length).toBe(6)
    idle(gemma)
  })

  test('a generation is ready when its prompt is queued, and fails by then', async () => {
    const gemma = shared
    const seen = gemma.chat([user(image(41))], settings)
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
    await seen.ready
    const { running, waiting } = gemma.info().engine
    expect(running + waiting).toBe(1)
    expect((await seen.result).ids.length).toBe(6)
    const plain = gemma.chat([user(text('hello'))], settings)
    await plain.ready
    expect((await plain.result).ids.length).toBe(6)
    const part = { type: 'image', image: Buffer.from('no image'), name: 'the cat' } as const
    const broken = gemma.chat([user(part)], settings)
    await rejectsCode(broken.ready, 'ERR_INVALID_ARGUMENT', /^the cat: image: expected JPEG/)
    expect(await broken.ready.catch((error) => error)).toBe(await broken.result.catch((error) => error))
    const left = gemma.chat([user(image(42))], settings)
    left.cancel()
    await left.ready
    expect((await left.result).finishReason).toBe('abort')
    idle(gemma)
  })

  test('who waits for an image is not disturbed by others who gave up', async () => {
    const gemma = shared
    const abort = new AbortController()
    const [one, two] = [
      gemma.chat([user(image(1))], { ...settings, signal: abort.signal }),
      gemma.chat([user(image(1))], settings),
    ]
    setTimeout(() => abort.abort(), 3)
    expect((await two.result).ids.length).toBe(6)
    await one.result
    idle(gemma)
  })

  test('disposing while images are encoded rejects, and ends', async () => {
    const gemma = await load()
    const pending = [1, 2, 3].map((seed) => gemma.chat([user(image(seed))], settings).result)
    const ends = Promise.allSettled(pending)
    await new Promise((resolve) => setTimeout(resolve, 5))
    await gemma[Symbol.asyncDispose]()
    for (const { status } of await ends) expect(['fulfilled', 'rejected']).toContain(status)
    throwsCode(() => gemma.chat([user(image(1))]), 'ERR_DISPOSED')
  })
})

test('encodeImage gives the soft tokens of each view, and what it encoded is known', async () => {
  const [soft, ...others] = await shared.encodeImage(picture(77))
  expect([soft!.length, others.length]).toEqual([imageTokens * 256, 0])
  expect(soft!.some((value) => value !== 0) && soft!.every(Number.isFinite)).toBe(true)
  const steps = shared.info().engine.steps
  expect(await shared.encodeImage(picture(77))).toEqual([soft])
  expect(shared.info().engine.steps).toBe(steps)
  const views = await shared.encodeImage(picture(78, 90, 30), { panAndScan: { minCropSize: 20, maxCrops: 3 } })
  expect(views.length).toBe(4)
  await rejectsCode(shared.encodeImage(picture(79), { signal: AbortSignal.abort() }), 'ERR_ABORTED')
  await rejectsCode(shared.encodeImage('/nowhere.png'), 'ERR_FILE')
})

test('images leave no memory of the device behind, and neither do those that fail', async () => {
  const device = await openDevice(exactIsa, 1)
  await shared.encodeImage(picture(80))
  const { weightBytes, arenaBytes } = shared.info().vision!
  expect(Math.min(weightBytes, arenaBytes)).toBeGreaterThan(0)
  await device.stream.synchronize()
  const { buffers, bytes } = device.memory()
  for (const seed of [81, 82, 83]) await shared.encodeImage(picture(seed))
  const abort = new AbortController()
  const given = shared.encodeImage(picture(84), { signal: abort.signal })
  setTimeout(() => abort.abort(), 1)
  await given.catch(() => {})
  await rejectsCode(shared.encodeImage(Buffer.from('no image')), 'ERR_INVALID_ARGUMENT')
  await shared.encodeImage(picture(85))
  await device.stream.synchronize()
  expect(device.memory()).toMatchObject({ buffers, bytes })
  expect(shared.info().vision).toMatchObject({ weightBytes, arenaBytes })
})

test('content ids are never given twice, however many are forgotten', () => {
  const ids = new ContentIds()
  const first = ids.of('a')
  expect(first).toBeLessThan(-1)
  expect(ids.of('a')).toBe(first)
  const seen = new Set([first])
  for (let i = 0; i < 70_000; i++) seen.add(ids.of(`key ${i}`))
  expect(seen.size).toBe(70_001)
  expect(seen.has(ids.of('a'))).toBe(false)
  expect(ids.of('key 69999')).toBe(Math.min(...seen))
})
