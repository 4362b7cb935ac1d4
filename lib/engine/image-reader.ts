/**
 * Makes prompts with images ready: reads and decodes the images, writes the prompt, and has the tower encode what is new.
 * @module
 */
import type { Device } from '../device.ts'
import { LapidaryError } from '../errors.ts'
import type { FoundVision } from '../models/siglip/find.ts'
import { VisionModel } from '../models/siglip/load.ts'
import type { Stream } from '../stream.ts'
import type { ChatMessage, ChatTemplate, ImagePlace, TextPart } from '../tokenizer/chat.ts'
import { imageMarker } from '../tokenizer/chat.ts'
import { guard } from '../tokenizer/guards.ts'
import { Trust } from '../tokenizer/matcher.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import type { CheckedLimits } from '../vision/image-source.ts'
import { type ContentPart, type ImagePart, type PlacedImage, placeContent, placeMessages } from './content.ts'
import type { Engine } from './engine.ts'
import type { GemmaInfo } from './gemma.ts'
import type { ReadyPrompt } from './generation.ts'
import { imageFrameTokens, imagePrompt } from './image-prompt.ts'
import { ImageStore, type StoredImage } from './image-store.ts'
import { EncodeJob, VisionRunner } from './vision-runner.ts'

export interface ImageReaderOptions {
  readonly contextLength: number
  readonly limits: CheckedLimits
  readonly activations: 'f32' | 'bf16'
  readonly weights?: 'stored' | 'f32' | undefined
  readonly packedCache?: boolean | string | undefined
}

interface PromptOptions {
  readonly allowMarkers?: boolean | undefined
}

export class ImageReader implements AsyncDisposable {
  readonly #device: Device
  readonly #stream: Stream
  readonly #engine: Engine
  readonly #vision: FoundVision
  readonly #tokenizer: Tokenizer
  readonly #options: ImageReaderOptions
  readonly #store: ImageStore
  readonly #closing = new AbortController()
  #runner: Promise<VisionRunner> | undefined
  #loaded = { weightBytes: 0, arenaBytes: 0, fromCache: false }

  constructor(
    device: Device,
    stream: Stream,
    engine: Engine,
    vision: FoundVision,
    tokenizer: Tokenizer,
    options: ImageReaderOptions,
  ) {
    this.#device = device
    this.#stream = stream
    this.#engine = engine
    this.#vision = vision
    this.#tokenizer = tokenizer
    this.#options = options
    this.#store = new ImageStore(vision.config, options.limits, (pixels, signal) => this.#encode(pixels, signal))
  }

  info(): NonNullable<GemmaInfo['vision']> {
    const { path, config } = this.#vision
    return { path, imageSize: config.imageSize, imageTokens: config.imageTokens, ...this.#loaded }
  }

  /** The prompt of a conversation. @throws (rejects) as `Gemma.chat` says. */
  async chat(
    template: ChatTemplate,
    messages: readonly ChatMessage<ContentPart>[],
    { allowMarkers = false }: PromptOptions,
    signal: AbortSignal,
  ): Promise<ReadyPrompt> {
    const { content, images } = await placeMessages(messages, signal)
    return await this.#ready(template.renderGuarded(content, { allowMarkers }), images, signal)
  }

  /** The prompt of a text with images, in front of which the bos token is put. @throws (rejects) as `Gemma.chat` says. */
  async prompt(
    parts: readonly ContentPart[],
    { allowMarkers = false }: PromptOptions,
    signal: AbortSignal,
  ): Promise<ReadyPrompt> {
    const { content, images } = await placeContent(parts, 'prompt', signal)
    const { matcher, templateTokens } = this.#tokenizer
    const trust = allowMarkers ? Trust.markers : Trust.text
    const text = content.map((part, index) => {
      return isText(part, `prompt[${index}]`) ? guard(part.text, matcher, trust) : imageMarker
    })
    return await this.#ready((templateTokens.bos_token ?? '') + text.join(''), images, signal)
  }

  /** The soft tokens of an image's views. @throws (rejects) as `Gemma.chat` says. */
  async encode(part: ImagePart, signal: AbortSignal | undefined): Promise<Float32Array[]> {
    const { images } = await placeContent([{ ...part, type: 'image' }], 'encodeImage', signal)
    const image = await this.#store.add(images[0] as PlacedImage, signal)
    return (await image.encode(signal)).map(({ soft }) => soft.slice())
  }

  /** Stops loading and lets go of the tower. The engine has ended what it was encoding. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    const runner = await this.#runner?.catch(() => undefined)
    runner?.dispose()
  }

  async #ready(text: string, images: readonly PlacedImage[], signal: AbortSignal): Promise<ReadyPrompt> {
    const { imageTokens } = this.#vision.config
    this.#checkLength(images.length * (imageTokens + imageFrameTokens), images.length, images.length)
    const stored: StoredImage[] = []
    for (const image of images) {
      try {
        stored.push(await this.#store.add(image, signal))
      } catch (error) {
        throw error instanceof LapidaryError && error.code !== 'ERR_ABORTED'
          ? new LapidaryError(error.code, `${image.what}: ${error.message}`, {
              cause: error,
              images: { name: image.what, problem: error.message },
            })
          : error
      }
    }
    const prompt = imagePrompt(
      this.#tokenizer,
      text,
      stored.map(({ ids }) => ids),
      imageTokens,
    )
    this.#checkLength(prompt.ids.length, images.length, prompt.places.length)
    const soft: Float32Array[] = []
    for (const image of stored) soft.push(...(await image.encode(signal)).map((view) => view.soft))
    const runs = prompt.places.map((place, index) => ({ ...place, soft: soft[index] as Float32Array }))
    return { ids: prompt.ids, images: runs }
  }

  #checkLength(tokens: number, images: number, views: number): void {
    const { contextLength } = this.#options
    if (tokens < contextLength) return
    const crops = views > images ? `, of which pan and scan makes ${views} views` : ''
    const each = this.#vision.config.imageTokens + imageFrameTokens
    const problem = `expected a prompt of at most ${contextLength - 1} tokens, so that the context has room for an answer, got ${images} images${crops} of ${each} tokens each, and ${tokens} tokens in all`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `images: ${problem}`, { images: { problem } })
  }

  async #encode(pixels: Uint8Array, signal: AbortSignal): Promise<Float32Array> {
    this.#runner ??= this.#load()
    const job = new EncodeJob(await this.#runner, pixels, signal)
    this.#engine.run(job)
    return await job.done
  }

  /** On a stream of its own: steps go on meanwhile. A load that failed is tried again with the next image. */
  async #load(): Promise<VisionRunner> {
    const stream = this.#device.createStream()
    const { activations, weights, packedCache } = this.#options
    try {
      const { config, weights: stored } = this.#vision
      const model = await VisionModel.load(this.#device, config, stored, {
        activations,
        weights,
        packedCache,
        stream,
        signal: this.#closing.signal,
      })
      try {
        this.#stream.wait(stream)
        const runner = new VisionRunner(this.#device, this.#stream, model)
        const { weightBytes, fromCache } = model
        this.#loaded = { weightBytes, arenaBytes: runner.arenaBytes, fromCache }
        return runner
      } catch (error) {
        model.dispose()
        throw error
      }
    } catch (error) {
      this.#runner = undefined
      throw error
    } finally {
      stream.dispose()
    }
  }
}

function isText(part: TextPart | ImagePlace, what: string): part is TextPart {
  if (part?.type === 'image') return false
  if (part?.type === 'text' && typeof part.text === 'string') return true
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `${what}: expected a part of text, image or video`)
}
