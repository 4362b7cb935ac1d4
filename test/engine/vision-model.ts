/** The small model with a small vision tower of random weights: as Hugging Face folders of every age, and as GGUF with its projector. */

import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { type GgufTensor, ggufArray, ggufValue, writeGguf } from '../../lib/checkpoint/gguf-writer.ts'
import { bundledModel } from '../../lib/engine/gemma.ts'
import { fromBits, toBits } from '../support/numbers.ts'
import { Random } from '../support/random.ts'
import { tinyFolder } from './models.ts'

/** 8 × 8 patches, 16 soft tokens. */
export const tower = {
  layers: 2,
  width: 32,
  ffnSize: 48,
  heads: 4,
  imageSize: 48,
  patchSize: 6,
  poolSize: 2,
  imageTokens: 16,
}
const hiddenSize = 256

interface Weight {
  readonly hf: string
  readonly gguf: string
  readonly shape: readonly number[]
  readonly values: Float32Array
}

function weights(hidden: number): Weight[] {
  const random = Random.named('vision tower')
  const { width, ffnSize, patchSize, imageSize } = tower
  const all: Weight[] = []
  const add = (hf: string, gguf: string, shape: readonly number[], scale: number, center = 0) => {
    const size = shape.reduce((product, dim) => product * dim, 1)
    const values = Float32Array.from(random.uniform('f32', [size], center - scale, center + scale).values)
    all.push({ hf, gguf, shape, values })
  }
  const affine = (hf: string, gguf: string, shape: readonly number[], center = 0) => {
    const scale = center ? 0.2 : 2 / Math.sqrt(shape.slice(1).reduce((product, dim) => product * dim, 1))
    add(`${hf}.weight`, `${gguf}.weight`, shape, scale, center)
    add(`${hf}.bias`, `${gguf}.bias`, [shape[0]!], 0.1)
  }
  affine('embeddings.patch_embedding', 'v.patch_embd', [width, 3, patchSize, patchSize])
  add('embeddings.position_embedding.weight', 'v.position_embd.weight', [(imageSize / patchSize) ** 2, width], 0.5)
  for (let layer = 0; layer < tower.layers; layer++) {
    const hf = `encoder.layers.${layer}`
    const gguf = `v.blk.${layer}`
    affine(`${hf}.layer_norm1`, `${gguf}.ln1`, [width], 1)
    affine(`${hf}.layer_norm2`, `${gguf}.ln2`, [width], 1)
    affine(`${hf}.self_attn.q_proj`, `${gguf}.attn_q`, [width, width])
    affine(`${hf}.self_attn.k_proj`, `${gguf}.attn_k`, [width, width])
    affine(`${hf}.self_attn.v_proj`, `${gguf}.attn_v`, [width, width])
    affine(`${hf}.self_attn.out_proj`, `${gguf}.attn_out`, [width, width])
    affine(`${hf}.mlp.fc1`, `${gguf}.ffn_up`, [ffnSize, width])
    affine(`${hf}.mlp.fc2`, `${gguf}.ffn_down`, [width, ffnSize])
  }
  affine('post_layernorm', 'v.post_ln', [width], 1)
  add('mm_soft_emb_norm.weight', 'mm.soft_emb_norm.weight', [width], 0.2)
  add('mm_input_projection_weight', 'mm.input_projection.weight', [width, hidden], 1)
  return all
}

const isProjector = (name: string) => name.startsWith('mm_')

/** How names begin: of the text model, the tower, the projector. */
export const hfNames = {
  published: ['language_model.model.', 'vision_tower.vision_model.', 'multi_modal_projector.'],
  'transformers 4.52': ['model.language_model.', 'model.vision_tower.vision_model.', 'model.multi_modal_projector.'],
  'transformers 5': ['model.language_model.', 'model.vision_tower.', 'model.multi_modal_projector.'],
} as const

/** Writes a Hugging Face folder. */
export function writeHf(folder: string, names: keyof typeof hfNames = 'published'): string {
  mkdirSync(folder, { recursive: true })
  const [text, vision, projector] = hfNames[names]
  for (const name of ['tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'generation_config.json']) {
    copyFileSync(path.join(tinyFolder, name), path.join(folder, name))
  }
  const config = JSON.parse(readFileSync(path.join(tinyFolder, 'config.json'), 'utf8'))
  const { layers, width, ffnSize, heads, imageSize, patchSize, imageTokens } = tower
  const combined = {
    model_type: 'gemma3',
    text_config: config,
    mm_tokens_per_image: imageTokens,
    vision_config: {
      model_type: 'siglip_vision_model',
      num_hidden_layers: layers,
      hidden_size: width,
      intermediate_size: ffnSize,
      num_attention_heads: heads,
      image_size: imageSize,
      patch_size: patchSize,
      vision_use_head: false,
    },
  }
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(combined))
  const file = readFileSync(path.join(tinyFolder, 'model.safetensors'))
  const bytes = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + bytes)) as Record<string, { data_offsets: [number, number] }>
  const entries: Record<string, unknown> = {}
  let end = 0
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    entries[name.replace(/^model\./, text)] = entry
    end = Math.max(end, entry.data_offsets[1])
  }
  const parts: Uint8Array[] = [file.subarray(8 + bytes, 8 + bytes + end)]
  for (const { hf, shape, values } of weights(hiddenSize)) {
    const data = Buffer.from(values.buffer, values.byteOffset, values.byteLength)
    const name = `${isProjector(hf) ? projector : vision}${hf}`
    entries[name] = { dtype: 'F32', shape, data_offsets: [end, end + data.length] }
    end += data.length
    parts.push(data)
  }
  const json = Buffer.from(JSON.stringify(entries))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(json.length))
  writeFileSync(path.join(folder, 'model.safetensors'), Buffer.concat([size, json, ...parts]))
  return folder
}

export interface ProjectorOptions {
  readonly hidden?: number
  readonly type?: string
  readonly scaleFactor?: number
  /** How matrices are stored; q8_0 those whose rows are whole blocks. Default f32. */
  readonly stored?: StoredType
  /** Store them as f32 after all, with the values that they would have. Default false. */
  readonly widened?: boolean
  /** Name what goes up in the feed-forward part down, and the other way round, as the first converter did. Default false. */
  readonly exchanged?: boolean
}

export type StoredType = 'f32' | 'f16' | 'bf16' | 'q8_0'

/** The bytes of values in a stored type, and the values that those bytes have. */
function encode(values: Float32Array, type: StoredType): { bytes: Uint8Array; rounded: Float32Array } {
  if (type === 'f32') return { bytes: new Uint8Array(values.buffer), rounded: values }
  if (type !== 'q8_0') {
    const bits = Uint16Array.from(values, (value) => toBits(type, value))
    return { bytes: new Uint8Array(bits.buffer), rounded: Float32Array.from(bits, (value) => fromBits(type, value)) }
  }
  const bytes = Buffer.alloc((values.length / 32) * 34)
  const rounded = new Float32Array(values.length)
  for (let block = 0; block < values.length / 32; block++) {
    const part = values.subarray(block * 32, block * 32 + 32)
    const bits = toBits('f16', Math.max(...part.map(Math.abs)) / 127)
    const scale = fromBits('f16', bits)
    bytes.writeUInt16LE(bits, block * 34)
    for (const [i, value] of part.entries()) {
      const q = Math.max(-127, Math.min(127, Math.round(value / scale)))
      bytes.writeInt8(q, block * 34 + 2 + i)
      rounded[block * 32 + i] = q * scale
    }
  }
  return { bytes, rounded }
}

/** Writes a projector file. */
export async function writeProjector(file: string, options: ProjectorOptions = {}): Promise<string> {
  const {
    hidden = hiddenSize,
    type = 'gemma3',
    scaleFactor = tower.poolSize,
    stored = 'f32',
    widened = false,
    exchanged = false,
  } = options
  const other = { ffn_up: 'ffn_down', ffn_down: 'ffn_up' }
  const tensors = weights(hidden).map(({ gguf: name, shape, values }): GgufTensor => {
    const gguf = exchanged ? name.replace(/ffn_up|ffn_down/, (part) => other[part as keyof typeof other]) : name
    // Writers have added 1 to the weight of Gemma's own norm.
    if (gguf === 'mm.soft_emb_norm.weight') {
      return { name: gguf, dtype: 'f32', shape, data: () => [new Uint8Array(values.map((x) => x + 1).buffer)] }
    }
    const isWhole = shape.at(-1)! % 32 === 0
    const dtype =
      shape.length === 1 || gguf === 'v.position_embd.weight' ? 'f32' : stored === 'q8_0' && !isWhole ? 'f16' : stored
    const { bytes, rounded } = encode(values, dtype)
    if (widened) return { name: gguf, dtype: 'f32', shape, data: () => [new Uint8Array(rounded.buffer)] }
    return { name: gguf, dtype, shape, data: () => [bytes] }
  })
  const u32 = (value: number) => ggufValue('u32', value)
  await writeGguf(
    file,
    [
      ['general.architecture', ggufValue('string', 'clip')],
      ['clip.has_vision_encoder', ggufValue('bool', true)],
      ['clip.projector_type', ggufValue('string', type)],
      ['clip.vision.image_size', u32(tower.imageSize)],
      ['clip.vision.patch_size', u32(tower.patchSize)],
      ['clip.vision.embedding_length', u32(tower.width)],
      ['clip.vision.feed_forward_length', u32(tower.ffnSize)],
      ['clip.vision.block_count', u32(tower.layers)],
      ['clip.vision.attention.head_count', u32(tower.heads)],
      ['clip.vision.attention.layer_norm_epsilon', ggufValue('f32', 1e-6)],
      ['clip.vision.projection_dim', u32(hidden)],
      ['clip.vision.projector.scale_factor', u32(scaleFactor)],
      ['clip.vision.image_mean', ggufArray('f32', Float32Array.of(0.5, 0.5, 0.5))],
      ['clip.vision.image_std', ggufArray('f32', Float32Array.of(0.5, 0.5, 0.5))],
    ],
    tensors,
  )
  return file
}

/** A folder with the bundled model, and a projector beside it. */
export async function writeGgufFolder(folder: string, name = 'mmproj-model-f16.gguf'): Promise<string> {
  mkdirSync(folder, { recursive: true })
  copyFileSync(bundledModel, path.join(folder, 'model-q4_0.gguf'))
  await writeProjector(path.join(folder, name))
  return folder
}
