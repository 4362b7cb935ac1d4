/**
 * The KV cache: its tensors, and how much memory a configuration takes.
 * @module
 */
import type { Device } from '../device.ts'
import type { GemmaConfig, LayerType } from '../models/gemma/config.ts'
import type { LayerCache } from '../models/gemma/forward.ts'
import { Tensor } from '../tensor.ts'
import { KvPages, type KvPagesOptions } from './kv-pages.ts'

/** How keys and values are stored. i8: bytes with one f32 scale per token and head. */
export const kvDtypes = ['bf16', 'f32', 'i8'] as const
/** How keys and values are kept. */
export type KvDType = (typeof kvDtypes)[number]

/** Keys and values of one token in one layer, in bytes. */
export function kvBytesPerToken(config: Pick<GemmaConfig, 'kvHeads' | 'headDim'>, dtype: KvDType): number {
  const row = { bf16: config.headDim * 2, f32: config.headDim * 4, i8: config.headDim + 4 }[dtype]
  return 2 * config.kvHeads * row
}

/** What the keys and values of one sequence take, in bytes. */
export interface KvMemory {
  readonly dtype: KvDType
  readonly contextLength: number
  readonly globalLayers: number
  readonly localLayers: number
  /** Per token, over all layers, were all of them global. */
  readonly bytesPerToken: number
  /** Were all layers global. */
  readonly allGlobal: number
  /** Local layers keep their window only. */
  readonly windowed: number
}

/**
 * The memory of one full sequence: every layer keeps contextLength rows, local ones at most `window` of them. Rings are
 * larger by the chunk being written, pages are whole; `Gemma.info()` has the numbers of an engine.
 *
 * @example
 * kvMemory(config, 32_768, 'bf16').windowed / 2 ** 20   // 139 for Gemma 3 1B
 */
export function kvMemory(
  config: Pick<GemmaConfig, 'layerTypes' | 'window' | 'kvHeads' | 'headDim'>,
  contextLength: number,
  dtype: KvDType,
): KvMemory {
  const token = kvBytesPerToken(config, dtype)
  const globalLayers = config.layerTypes.filter((type) => type === 'global').length
  const localLayers = config.layerTypes.length - globalLayers
  return {
    dtype,
    contextLength,
    globalLayers,
    localLayers,
    bytesPerToken: token * config.layerTypes.length,
    allGlobal: token * config.layerTypes.length * contextLength,
    windowed: token * (globalLayers * contextLength + localLayers * Math.min(contextLength, config.window)),
  }
}

export interface KvCacheOptions {
  readonly dtype: KvDType
  readonly contextLength: number
  /** The most tokens of one step. */
  readonly chunk: number
  /** Sequences that may run at once, each up to contextLength. */
  readonly maxSequences: number
  readonly pageTokens: number
  readonly prefixCache: boolean
  /** Tokens of all sequences together that have room in global layers. */
  readonly cacheTokens: number
}

/**
 * Pages of keys and values: per layer [pages, kvHeads, pageTokens, headDim]. A page number means the same place in
 * every global layer, and another one the same place in every local layer.
 *
 * Memory is touched when a page is first used, in huge pages of 2 MiB. Each global layer has memory of its own, in which the pages of
 * a long sequence follow one another and are read as one stream. Local layers read little at a time; all of them share one tensor, so that
 * a short sequence does not touch 2 MiB for each.
 */
export class KvCache implements Disposable {
  readonly dtype: KvDType
  readonly pages: KvPages
  readonly layers: readonly LayerCache[]
  /** Of one page, over all layers of its kind. */
  readonly pageBytes: Readonly<Record<LayerType, number>>
  readonly #tensors: Tensor[] = []

  constructor(device: Device, config: GemmaConfig, options: KvCacheOptions) {
    const { dtype } = options
    this.dtype = dtype
    this.pages = new KvPages(pagesOptions(config, options))
    const { pageTokens } = this.pages
    const { kvHeads, headDim, layerTypes } = config
    const counts = { global: this.pages.globalPool.count, local: this.pages.localPool.count }
    const localLayers = layerTypes.filter((type) => type === 'local').length
    // One row of heads more than needed makes the distance of pages odd in units of a head's page: a power of two
    // would put the pages of a layer on the same cache sets.
    const localHeads = localLayers * 2 * kvHeads + 1
    const row = kvBytesPerToken(config, dtype) / (2 * kvHeads)
    this.pageBytes = {
      global: row * pageTokens * 2 * kvHeads * (layerTypes.length - localLayers),
      local: row * pageTokens * localHeads,
    }
    const zeros = (type: LayerType, heads: number): Tensor =>
      this.#keep(Tensor.zeros(device, [counts[type], heads, pageTokens, headDim], dtype))
    const scales = (type: LayerType): Tensor =>
      this.#keep(Tensor.zeros(device, [counts[type], kvHeads, pageTokens], 'f32'))
    try {
      const shared = localLayers > 0 ? zeros('local', localHeads) : undefined
      let heads = 0
      this.layers = layerTypes.map((type) => {
        const isShared = type === 'local' && shared !== undefined
        const memory = isShared ? shared : zeros('global', 2 * kvHeads)
        const first = isShared ? heads : 0
        if (isShared) heads += 2 * kvHeads
        const cache = {
          kCache: this.#keep(memory.slice(first, first + kvHeads, 1)),
          vCache: this.#keep(memory.slice(first + kvHeads, first + 2 * kvHeads, 1)),
        }
        return dtype === 'i8' ? { ...cache, kScales: scales(type), vScales: scales(type) } : cache
      })
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /** Bytes of all pages, and of those in use by sequences and the prefix cache. */
  memory(): { reserved: number; used: number; cached: number } {
    const { globalPool, localPool, prefixes } = this.pages
    const { global, local } = this.pageBytes
    const cached = prefixes?.size ?? { global: 0, local: 0 }
    return {
      reserved: globalPool.count * global + localPool.count * local,
      used: (globalPool.count - globalPool.free) * global + (localPool.count - localPool.free) * local,
      cached: cached.global * global + cached.local * local,
    }
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #keep(tensor: Tensor): Tensor {
    this.#tensors.push(tensor)
    return tensor
  }
}

function pagesOptions(config: GemmaConfig, options: KvCacheOptions): KvPagesOptions {
  const { contextLength, chunk, maxSequences, pageTokens, prefixCache } = options
  const window = config.layerTypes.includes('local') ? config.window : 0
  // Every sequence its window, in pages that it may begin and end within; what a step adds, twice, since a page is let go only when its
  // sequence advances; two windows that nobody uses, for later turns. The last global page of each sequence may be all but empty.
  const pagesOf = (tokens: number): number => Math.ceil(tokens / pageTokens)
  const perSequence = Math.min(pagesOf(contextLength), pagesOf(window) + 3)
  const kept = prefixCache ? 2 * (pagesOf(window) + 1) : 0
  return {
    pageTokens,
    window,
    contextLength,
    chunk,
    prefixCache,
    globalPages: pagesOf(options.cacheTokens) + maxSequences,
    localPages: maxSequences * perSequence + 2 * pagesOf(chunk) + kept,
  }
}
