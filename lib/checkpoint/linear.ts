/**
 * Linear layers: a weight matrix in whatever layout the checkpoint's quantisation gives it.
 * @module
 */
import type { DType } from '../dtype.ts'
import type { WeightFormat } from '../ops/pack-weights.ts'
import type { Checkpoint, StoredTensor } from './checkpoint.ts'
import { isObject, type JsonObject } from './json.ts'
import { corrupt, quote, unsupported, withFile } from './source.ts'

/** A matrix W [n, k] as `packWeights` takes it. */
export interface LinearWeight {
  readonly name: string
  readonly shape: readonly [n: number, k: number]
  readonly format: WeightFormat
  readonly weight: StoredTensor
  readonly scales?: StoredTensor
  readonly zeros?: StoredTensor
  /** GPTQ's g_idx, where the file has one. */
  readonly groupIndex?: StoredTensor
  /** Columns in the order of their groups, as `packWeights` takes it; absent where they are in order. */
  readonly columnOrder?: Int32Array
  /** 0: one scale per row. Absent where the weight holds its own scales. */
  readonly groupSize?: 0 | 32 | 64 | 128
}

/**
 * The matrix of a linear layer without bias.
 *
 * | stored as | recognised by | format |
 * | --- | --- | --- |
 * | floats; GGUF blocks | `<prefix>.weight` of such a type | stored |
 * | compressed-tensors int4 | `<prefix>.weight_packed` | compressed_tensors |
 * | compressed-tensors int8, one scale per row | `<prefix>.weight` of I8 and `<prefix>.weight_scale` | i8_channel |
 * | GPTQ, 4 bits | `<prefix>.qweight`, quant_method gptq | gptq, gptq_v2 |
 * | AWQ, 4 bits, GEMM order | `<prefix>.qweight`, quant_method awq | awq |
 *
 * @param prefix The layer's name: `model.layers.0.mlp.up_proj`, in GGUF `blk.0.ffn_up`.
 * @throws ERR_CHECKPOINT_CORRUPT if a tensor is absent or its shape does not fit, ERR_CHECKPOINT_UNSUPPORTED if nothing here reads the
 *   layout (bitsandbytes, MLX, fp8, other bit widths …); the message says what to do.
 * @example
 * const { weight, scales, zeros, format, groupSize } = linearWeight(checkpoint, 'model.layers.0.self_attn.q_proj')
 */
export function linearWeight(checkpoint: Checkpoint, prefix: string): LinearWeight {
  const layer = new Layer(checkpoint, prefix)
  const quantization = quantizationOf(checkpoint)
  if (layer.find('weight_packed')) return compressedTensors(layer, quantization)
  if (layer.find('qweight')) return packedIntegers(layer, quantization)
  const weight = layer.get('weight')
  const isPlain = weight.dtype !== undefined && weight.dtype !== 'i8' && weight.dtype !== 'u8' && weight.dtype !== 'i32'
  if (isPlain) return { name: prefix, shape: layer.matrix(weight), format: 'stored', weight }
  if (weight.dtype === 'i8' && layer.find('weight_scale')) return integerChannels(layer, weight)
  throw notRunnable(layer, weight, quantization)
}

/** What a checkpoint's configuration says about its quantisation, and the method's name. */
interface Quantization {
  readonly method: string
  readonly settings: JsonObject
}

function quantizationOf({ config, format }: Checkpoint): Quantization | undefined {
  if (format === 'gguf') return undefined
  const text = isObject(config.text_config) ? config.text_config : {}
  const settings = [
    config.quantization_config,
    text.quantization_config,
    config.compression_config,
    text.compression_config,
  ].find(isObject)
  if (settings) {
    const method = settings.quant_method
    return { method: typeof method === 'string' ? method : 'compressed-tensors', settings }
  }
  return isObject(config.quantization) ? { method: 'mlx', settings: config.quantization } : undefined
}

/** The tensors of one linear layer. */
class Layer {
  readonly prefix: string
  readonly #checkpoint: Checkpoint

  constructor(checkpoint: Checkpoint, prefix: string) {
    this.#checkpoint = checkpoint
    this.prefix = prefix
  }

  find(part: string): StoredTensor | undefined {
    return this.#checkpoint.tensors.get(`${this.prefix}.${part}`)
  }

  get(part: string): StoredTensor {
    const tensor = this.find(part)
    if (tensor) return tensor
    throw corrupt(this.#checkpoint.path, undefined, `tensor ${quote(`${this.prefix}.${part}`)}: expected it, got none`)
  }

  matrix(tensor: StoredTensor): [number, number] {
    const [n, k] = tensor.shape
    if (tensor.shape.length === 2 && n && k) return [n, k]
    return fail(tensor, `expected a matrix, got ${describeShape(tensor)}`)
  }

  /** A part of one of these dtypes and this shape. */
  expect(part: string, dtypes: readonly DType[], shape: readonly number[]): StoredTensor {
    return check(this.get(part), dtypes, shape)
  }

  expectOptional(part: string, dtypes: readonly DType[], shape: readonly number[]): StoredTensor | undefined {
    const tensor = this.find(part)
    return tensor && check(tensor, dtypes, shape)
  }
}

function describeShape({ storedType, shape }: StoredTensor): string {
  return `${storedType} [${shape.join(', ')}]`
}

function fail(tensor: StoredTensor, what: string): never {
  throw corrupt(tensor.file, tensor.offset, `tensor ${quote(tensor.name)}: ${what}`)
}

function check(tensor: StoredTensor, dtypes: readonly DType[], shape: readonly number[]): StoredTensor {
  const fits = tensor.shape.length === shape.length && shape.every((dim, axis) => dim === tensor.shape[axis])
  if (fits && tensor.dtype && dtypes.includes(tensor.dtype)) return tensor
  return fail(tensor, `expected ${dtypes.join(' or ')} [${shape.join(', ')}], got ${describeShape(tensor)}`)
}

const halves: readonly DType[] = ['f16', 'bf16']

/** The group that makes `groups` scales of a row of k; 0 for one scale per row. */
function groupSizeOf(scales: StoredTensor, k: number, groups: number): 0 | 32 | 64 | 128 {
  if (groups === 1) return 0
  const size = k / groups
  if (size === 32 || size === 64 || size === 128) return size
  throw unsupported(
    scales.file,
    scales.offset,
    `tensor ${quote(scales.name)}: groups of ${size} columns: expected 32, 64, 128 or one scale per row: quantise the model again with one of those`,
  )
}

function compressedTensors(layer: Layer, quantization: Quantization | undefined): LinearWeight {
  const weight = layer.get('weight_packed')
  const bits = bitsOf(quantization, layer.prefix)
  if (bits !== undefined && bits !== 4) {
    throw unsupported(
      weight.file,
      weight.offset,
      `tensor ${quote(weight.name)}: compressed-tensors packed to ${quote(bits)} bits: expected 4: for 8 bits use the int-quantized format`,
    )
  }
  if (weight.dtype === 'u8') throw notRunnable(layer, weight, quantization)
  const [n, words] = layer.matrix(weight)
  if (weight.dtype !== 'i32') fail(weight, `expected i32, eight weights to a word, got ${describeShape(weight)}`)
  const k = words * 8
  const scales = layer.get('weight_scale')
  const groups = scales.shape[1] ?? 1
  check(scales, halves, [n, groups])
  const groupSize = groupSizeOf(scales, k, groups)
  checkStoredShape(layer.find('weight_shape'), n, k)
  const stored = layer.find('weight_zero_point')
  const zeros =
    stored?.dtype === 'i8'
      ? check(stored, ['i8'], [n, groups])
      : stored && check(stored, ['i32'], [Math.ceil(n / 8), groups])
  const groupIndex = layer.expectOptional('weight_g_idx', ['i32'], [k])
  return {
    name: layer.prefix,
    shape: [n, k],
    format: 'compressed_tensors',
    weight,
    scales,
    groupSize,
    ...(zeros && { zeros }),
    ...(groupIndex && { groupIndex, ...activationOrder(groupIndex, k, groupSize) }),
  }
}

/**
 * The order that brings the columns of each group together. GPTQ quantises columns by their activations where it is asked to, so that those
 * of a group are scattered (`desc_act`; compressed-tensors: actorder group).
 */
function activationOrder(stored: StoredTensor, k: number, groupSize: number): { columnOrder?: Int32Array } {
  const size = groupSize || k
  const groups = new Int32Array(k)
  readTensor(stored, Buffer.from(groups.buffer))
  if (groups.every((group, column) => group === Math.floor(column / size))) return {}
  const next = Int32Array.from({ length: k / size }, (_, group) => group * size)
  const columnOrder = new Int32Array(k)
  for (const [column, group] of groups.entries()) {
    const place = next[group]
    if (place === undefined) fail(stored, `expected groups below ${k / size}, got ${group} for column ${column}`)
    if (place === (group + 1) * size) fail(stored, `expected ${size} columns in group ${group}, got more`)
    columnOrder[place] = column
    next[group] = place + 1
  }
  return { columnOrder }
}

function readTensor({ file, offset, bytes }: StoredTensor, into: Buffer): void {
  withFile(file, (source) => {
    // The file may have changed since its header was read.
    if (offset + bytes > source.size)
      throw corrupt(file, offset, `expected ${bytes} bytes, got ${source.size - offset}`)
    source.read(offset, into)
  })
}

/** compressed-tensors repeats the matrix's shape as a tensor, because the last word of a row may be filled in part. */
function checkStoredShape(stored: StoredTensor | undefined, n: number, k: number): void {
  if (!stored) return
  const { bytes, storedType } = stored
  if (bytes !== (storedType === 'I64' ? 16 : 8) || stored.shape[0] !== 2) {
    fail(stored, `expected I64 or I32 [2], got ${describeShape(stored)}`)
  }
  const content = Buffer.alloc(bytes)
  readTensor(stored, content)
  const [rows, columns] =
    bytes === 16
      ? [content.readBigInt64LE(0), content.readBigInt64LE(8)]
      : [content.readInt32LE(0), content.readInt32LE(4)]
  if (Number(rows) !== n || Number(columns) !== k) {
    fail(stored, `expected ${n} x ${k}, by the packed weights, got ${rows} x ${columns}`)
  }
}

/** num_bits of the group of a compressed-tensors configuration that names this layer or its class; of the only group, if there is one. */
function bitsOf(quantization: Quantization | undefined, prefix: string): unknown {
  const groups = quantization?.settings.config_groups
  if (!isObject(groups)) return undefined
  const schemes = Object.values(groups).filter(isObject)
  const named = schemes.find(
    (scheme) => Array.isArray(scheme.targets) && scheme.targets.some((target) => matches(target, prefix)),
  )
  const weights = (named ?? (schemes.length === 1 ? schemes[0] : undefined))?.weights
  return isObject(weights) ? weights.num_bits : undefined
}

/** A target is a layer's name; others are class names or regular expressions, which a file must not make us run. */
function matches(target: unknown, prefix: string): boolean {
  return typeof target === 'string' && (target === prefix || target === 'Linear')
}

function integerChannels(layer: Layer, weight: StoredTensor): LinearWeight {
  const shape = layer.matrix(weight)
  const scales = layer.get('weight_scale')
  const [rows, columns = 1] = scales.shape
  if (rows === 1 && shape[0] > 1) {
    throw unsupported(
      scales.file,
      scales.offset,
      `tensor ${quote(scales.name)}: int8 with one scale per tensor: expected one per row: quantise the model again with strategy channel`,
    )
  }
  if (columns > 1) {
    throw unsupported(
      scales.file,
      scales.offset,
      `tensor ${quote(scales.name)}: int8 with groups of columns: expected one scale per row: quantise the model again with strategy channel`,
    )
  }
  check(scales, ['f32', 'f16', 'bf16'], scales.shape.length === 1 ? [shape[0]] : [shape[0], 1])
  const zeros = layer.find('weight_zero_point')
  if (zeros) {
    throw unsupported(
      zeros.file,
      zeros.offset,
      `tensor ${quote(zeros.name)}: asymmetric int8: expected weights without zero points: quantise the model again with symmetric: true`,
    )
  }
  return { name: layer.prefix, shape, format: 'i8_channel', weight, scales, groupSize: 0 }
}

/** GPTQ and AWQ, which name their tensors alike. */
function packedIntegers(layer: Layer, quantization: Quantization | undefined): LinearWeight {
  const weight = layer.get('qweight')
  const refuse = (what: string): never => {
    throw unsupported(weight.file, weight.offset, `tensor ${quote(weight.name)}: ${what}`)
  }
  const { method, settings } = quantization ?? { method: undefined, settings: {} as JsonObject }
  if (method !== 'gptq' && method !== 'awq') {
    return refuse(`expected quantization_config.quant_method gptq or awq in config.json, got ${quote(method)}`)
  }
  const bits = settings.bits ?? settings.w_bit
  if (bits !== undefined && bits !== 4)
    return refuse(`${method} of ${quote(bits)} bits: expected 4: take a 4-bit version of the model`)
  const version = settings.version
  if (method === 'awq' && typeof version === 'string' && version.toLowerCase() !== 'gemm') {
    return refuse(`AWQ in ${quote(version)} order: expected version gemm: pack the model again`)
  }
  const format = method === 'awq' ? 'awq' : isSecondVersion(settings) ? 'gptq_v2' : 'gptq'
  const [rows, columns] = layer.matrix(weight)
  if (weight.dtype !== 'i32') fail(weight, `expected i32, eight weights to a word, got ${describeShape(weight)}`)
  const [n, k] = format === 'awq' ? [columns * 8, rows] : [columns, rows * 8]
  const scales = layer.get('scales')
  const groups = scales.shape[0] ?? 0
  check(scales, halves, [Math.max(groups, 1), n])
  const groupSize = groupSizeOf(scales, k, groups)
  const zeros = layer.expectOptional('qzeros', ['i32'], [groups, Math.ceil(n / 8)])
  const groupIndex = layer.expectOptional('g_idx', ['i32'], [k])
  return {
    name: layer.prefix,
    shape: [n, k],
    format,
    weight,
    scales,
    groupSize,
    ...(zeros && { zeros }),
    ...(groupIndex && { groupIndex, ...activationOrder(groupIndex, k, groupSize) }),
  }
}

function isSecondVersion(settings: JsonObject): boolean {
  return settings.checkpoint_format === 'gptq_v2' || settings.format === 'gptq_v2'
}

const remedies: Readonly<Record<string, string>> = {
  bitsandbytes: 'bitsandbytes (NF4, FP4 or LLM.int8) cannot be run: take the original bf16 checkpoint, or a GGUF of it',
  mlx: 'an MLX quantised checkpoint cannot be run: take the original bf16 checkpoint, or a GGUF of it',
}

function notRunnable(layer: Layer, weight: StoredTensor, quantization: Quantization | undefined): Error {
  const method = quantization?.method ?? (layer.find('weight.absmax') || layer.find('SCB') ? 'bitsandbytes' : undefined)
  const names = [method, quantization?.settings.format].filter((part) => typeof part === 'string')
  const described = names.map(quote).join(', ')
  const remedy =
    (method !== undefined && Object.hasOwn(remedies, method) ? remedies[method] : undefined) ??
    (method === undefined
      ? 'no kernel reads this type: take a Q4_0, Q8_0, Q4_K, Q6_K, bf16 or f16 version of the model'
      : `quantised by ${described}, which cannot be run: take the original bf16 checkpoint, or a GGUF of it`)
  return unsupported(weight.file, weight.offset, `tensor ${quote(weight.name)}: ${describeShape(weight)}: ${remedy}`)
}
