/**
 * Images of a model's requests: read, decoded, encoded once, and known again by what they hold.
 * @module
 */
import { createHash } from 'node:crypto'
import type { VisionConfig } from '../models/siglip/config.ts'
import { decodeImage } from '../vision/decode.ts'
import { type CheckedLimits, contentKey, type ImageBytes, readImage } from '../vision/image-source.ts'
import { imageViews } from '../vision/views.ts'
import type { PlacedImage } from './content.ts'
import { abortError } from './scoring.ts'

/** One view of an image: what the model sees of it at once. */
export interface EncodedView {
  /** Stands for its soft tokens in a sequence, below −1: no other content has it. */
  readonly id: number
  readonly soft: Float32Array
}

/** An image that is ready, or will be. */
export interface StoredImage {
  readonly ids: readonly number[]
  /** Begins on the first call. Ends with ERR_ABORTED when nobody waits any more. */
  encode(signal: AbortSignal | undefined): Promise<readonly EncodedView[]>
}

/** Encodes the pixels of one view: f32 [imageTokens, hiddenSize]. */
export type EncodeView = (pixels: Uint8Array, signal: AbortSignal) => Promise<Float32Array>

/** Soft tokens of about so many bytes are kept for later turns: some 50 images of a 4B model. */
const keptBytes = 2 ** 27
/** Ids that are remembered. A forgotten one is only a prefix that is not found again. */
const knownIds = 65_536

/** @internal Numbers for contents, which are never given twice. */
export class ContentIds {
  readonly #ids = new Map<string, number>()
  #last = -1

  of(key: string): number {
    const id = this.#ids.get(key) ?? --this.#last
    this.#ids.delete(key)
    this.#ids.set(key, id)
    const oldest = this.#ids.keys().next().value
    if (this.#ids.size > knownIds && oldest !== undefined) this.#ids.delete(oldest)
    return id
  }
}

/** The views of one image being encoded for everybody who waits for them. */
class Encoding {
  readonly views: Promise<readonly EncodedView[]>
  readonly #abort = new AbortController()
  #waiters = 0
  ended = false

  constructor(body: (signal: AbortSignal) => Promise<readonly EncodedView[]>) {
    this.views = body(this.#abort.signal)
    const end = () => {
      this.ended = true
    }
    this.views.then(end, end)
  }

  get abandoned(): boolean {
    return this.#abort.signal.aborted
  }

  async wait(signal: AbortSignal | undefined): Promise<readonly EncodedView[]> {
    this.#waiters++
    let leave = () => {}
    const left = new Promise<never>((_, reject) => {
      leave = () => reject(signal && abortError(signal))
    })
    signal?.addEventListener('abort', leave, { once: true })
    try {
      if (signal?.aborted) throw abortError(signal)
      return await Promise.race([this.views, left])
    } finally {
      signal?.removeEventListener('abort', leave)
      if (--this.#waiters === 0 && !this.ended) this.#abort.abort()
    }
  }
}

interface Kept {
  readonly encoding: Encoding
  readonly bytes: number
}

export class ImageStore {
  readonly #config: VisionConfig
  readonly #limits: CheckedLimits
  readonly #encode: EncodeView
  readonly #ids = new ContentIds()
  /** In order of last use. */
  readonly #kept = new Map<string, Kept>()
  #bytes = 0

  constructor(config: VisionConfig, limits: CheckedLimits, encode: EncodeView) {
    this.#config = config
    this.#limits = limits
    this.#encode = encode
  }

  /** Bytes of soft tokens at hand. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Reads an image, and decodes it unless its soft tokens are at hand.
   * @throws (rejects) what reading and decoding throw, naming the image; ERR_ABORTED.
   */
  async add({ source, panAndScan }: PlacedImage, signal: AbortSignal | undefined): Promise<StoredImage> {
    const bytes = await readImage(source, this.#limits)
    if (signal?.aborted) throw abortError(signal)
    const key = createHash('sha256')
      .update(contentKey(bytes))
      .update(JSON.stringify(panAndScan ?? null))
      .digest('hex')
    const known = this.#kept.get(key)
    if (known && !known.encoding.abandoned) return await this.#stored(key, known, signal)
    const views = await this.#views(bytes, panAndScan)
    if (signal?.aborted) throw abortError(signal)
    const ids = views.map((_, index) => this.#ids.of(`${key} ${index}`))
    return {
      ids,
      encode: (waiting) => this.#begin(key, ids, views).encoding.wait(waiting),
    }
  }

  async #stored(key: string, known: Kept, signal: AbortSignal | undefined): Promise<StoredImage> {
    this.#touch(key, known)
    const views = await known.encoding.wait(signal)
    return { ids: views.map(({ id }) => id), encode: async () => views }
  }

  async #views(bytes: ImageBytes, panAndScan: PlacedImage['panAndScan']): Promise<Uint8Array[]> {
    return await imageViews(await decodeImage(bytes, this.#limits), this.#config.imageSize, panAndScan)
  }

  /** The encoding of an image, begun by whoever asks first. */
  #begin(key: string, ids: readonly number[], views: readonly Uint8Array[]): Kept {
    const known = this.#kept.get(key)
    if (known && !known.encoding.abandoned) {
      this.#touch(key, known)
      return known
    }
    const { imageTokens, hiddenSize } = this.#config
    const encoding = new Encoding(async (signal) => {
      const encoded: EncodedView[] = []
      for (const [index, pixels] of views.entries()) {
        encoded.push({ id: ids[index] as number, soft: await this.#encode(pixels, signal) })
      }
      return encoded
    })
    const kept = { encoding, bytes: views.length * imageTokens * hiddenSize * 4 }
    this.#forget(key)
    this.#kept.set(key, kept)
    this.#bytes += kept.bytes
    // One that failed is tried again.
    encoding.views.catch(() => {
      if (this.#kept.get(key) === kept) this.#forget(key)
    })
    this.#evict()
    return kept
  }

  #touch(key: string, kept: Kept): void {
    this.#kept.delete(key)
    this.#kept.set(key, kept)
  }

  #forget(key: string): void {
    this.#bytes -= this.#kept.get(key)?.bytes ?? 0
    this.#kept.delete(key)
  }

  /** Requests hold on to the soft tokens that they use. */
  #evict(): void {
    for (const [key, { encoding }] of this.#kept) {
      if (this.#bytes <= keptBytes) return
      if (encoding.ended) this.#forget(key)
    }
  }
}
