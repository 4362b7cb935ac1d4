/**
 * Synthetic vision towers: the published shape with random weights, so that speed can be measured without a download.
 * @module
 */
import { type GgufTensor, ggufArray, ggufValue, writeGguf } from '../../checkpoint/gguf-writer.ts'
import { LapidaryError } from '../../errors.ts'
import { Pools } from '../gemma/synthetic.ts'

/** SigLIP-So400m over 896 × 896 pixels, as Gemma 3 4B, 12B and 27B have it. */
export const so400m = {
  layers: 27,
  width: 1152,
  ffnSize: 4304,
  heads: 16,
  imageSize: 896,
  patchSize: 14,
  poolSize: 4,
} as const

export const syntheticVisionTypes = ['bf16', 'f16', 'q8_0'] as const

/** Which vision tower {@link writeSyntheticVision} writes. */
export interface SyntheticVisionOptions {
  /** Of the text model: 2560 for Gemma 3 4B. */
  readonly hiddenSize: number
  /** Of the matrices; those whose rows are no multiple of 32 stay f16 beside q8_0. Default bf16. */
  readonly type?: (typeof syntheticVisionTypes)[number] | undefined
  /** Fewer layers than published, for a quick look. Default: all. */
  readonly layers?: number | undefined
  /** Default 0. */
  readonly seed?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Writes an `mmproj` file of the published shape with random weights. Matrices W [n, k] have mean 0 and standard deviation 1/√k, norms are
 * 1 and biases 0. The bytes depend on the options only.
 *
 * @returns Bytes of the file.
 * @throws ERR_INVALID_ARGUMENT, ERR_FILE, ERR_ABORTED
 * @example
 * await writeSyntheticVision('mmproj-4b.gguf', { hiddenSize: 2560 })
 */
export async function writeSyntheticVision(path: string, options: SyntheticVisionOptions): Promise<number> {
  const { hiddenSize, type = 'bf16', layers = so400m.layers, seed = 0, signal } = options
  const check = (name: string, holds: boolean, expected: string, got: unknown) => {
    if (holds) return
    const problem = `writeSyntheticVision: ${name}: expected ${expected}, got ${String(got)}`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', problem)
  }
  check('type', syntheticVisionTypes.includes(type), syntheticVisionTypes.join(', '), type)
  const isSize = Number.isInteger(hiddenSize) && hiddenSize > 0 && hiddenSize % 32 === 0
  check('hiddenSize', isSize, 'a multiple of 32', hiddenSize)
  const isCount = Number.isInteger(layers) && layers >= 1 && layers <= so400m.layers
  check('layers', isCount, `an integer from 1 to ${so400m.layers}`, layers)
  check('seed', Number.isSafeInteger(seed), 'an integer', seed)
  const { width, ffnSize, heads, imageSize, patchSize, poolSize } = so400m
  const u32 = (value: number) => ggufValue('u32', value)
  const halves = ggufArray('f32', Float32Array.of(0.5, 0.5, 0.5))
  const metadata = [
    ['general.architecture', ggufValue('string', 'clip')],
    ['general.name', ggufValue('string', 'Synthetic SigLIP-So400m')],
    ['clip.has_vision_encoder', ggufValue('bool', true)],
    ['clip.projector_type', ggufValue('string', 'gemma3')],
    ['clip.vision.image_size', u32(imageSize)],
    ['clip.vision.patch_size', u32(patchSize)],
    ['clip.vision.embedding_length', u32(width)],
    ['clip.vision.feed_forward_length', u32(ffnSize)],
    ['clip.vision.block_count', u32(layers)],
    ['clip.vision.attention.head_count', u32(heads)],
    ['clip.vision.attention.layer_norm_epsilon', ggufValue('f32', 1e-6)],
    ['clip.vision.projection_dim', u32(hiddenSize)],
    ['clip.vision.projector.scale_factor', u32(poolSize)],
    ['clip.vision.image_mean', halves],
    ['clip.vision.image_std', halves],
  ] as const
  const tensors = describeTensors(layers, hiddenSize, type, new Pools(seed))
  return await writeGguf(path, metadata, tensors, signal ? { signal } : {})
}

function describeTensors(
  layers: number,
  hiddenSize: number,
  type: (typeof syntheticVisionTypes)[number],
  pools: Pools,
): GgufTensor[] {
  const { width, ffnSize, imageSize, patchSize } = so400m
  const vector = (name: string, dim: number, value: number): GgufTensor => ({
    name,
    dtype: 'f32',
    shape: [dim],
    data: () => [new Uint8Array(new Float32Array(dim).fill(value).buffer)],
  })
  const matrix = (name: string, shape: readonly number[], columns: number, wanted: typeof type = type): GgufTensor => {
    const dtype = columns % 32 === 0 || wanted !== 'q8_0' ? wanted : 'f16'
    const rows = shape.reduce((product, dim) => product * dim, 1) / columns
    return { name, dtype, shape, data: () => pools.matrix(dtype, rows, columns) }
  }
  const linear = (name: string, n: number, k: number): GgufTensor[] => [
    matrix(`${name}.weight`, [n, k], k),
    vector(`${name}.bias`, n, 0),
  ]
  const norm = (name: string): GgufTensor[] => [vector(`${name}.weight`, width, 1), vector(`${name}.bias`, width, 0)]
  const patches = (imageSize / patchSize) ** 2
  return [
    matrix('v.patch_embd.weight', [width, 3, patchSize, patchSize], 3 * patchSize ** 2, 'f16'),
    vector('v.patch_embd.bias', width, 0),
    matrix('v.position_embd.weight', [patches, width], width, 'f16'),
    ...Array.from({ length: layers }, (_, layer) => {
      const name = (part: string): string => `v.blk.${layer}.${part}`
      return [
        ...norm(name('ln1')),
        ...['attn_q', 'attn_k', 'attn_v', 'attn_out'].flatMap((part) => linear(name(part), width, width)),
        ...norm(name('ln2')),
        ...linear(name('ffn_up'), ffnSize, width),
        ...linear(name('ffn_down'), width, ffnSize),
      ]
    }).flat(),
    ...norm('v.post_ln'),
    vector('mm.soft_emb_norm.weight', width, 1),
    matrix('mm.input_projection.weight', [width, hiddenSize], hiddenSize, 'f16'),
  ]
}
