/**
 * `lapidary inspect`: what a checkpoint holds and what running it takes, from its headers alone.
 * @module
 */
import { statSync } from 'node:fs'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../checkpoint/linear.ts'
import { type KvMemory, kvDtypes, kvMemory } from '../engine/kv-cache.ts'
import { LapidaryError } from '../errors.ts'
import { bundledModel } from '../index.ts'
import { type GemmaConfig, gemmaConfig } from '../models/gemma/config.ts'
import { type ModelWeights, modelWeights } from '../models/gemma/weights.ts'
import { type FoundVision, findVision } from '../models/siglip/find.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { formatBytes, formatCount, formatNumber, formatParameters, formatTable, formatTokens } from './format.ts'
import { packedBytes, packedHeadBytes } from './packed-size.ts'
import { print, printJson, styled, visible } from './terminal.ts'

/** Tensors of one kind and type. */
export interface WeightGroup {
  /** embedding, attention, feed-forward, norms, head, dense; or of a model that does not run, `tensors`. */
  readonly part: string
  /** As the file names it, with the layout of quantised integers: `Q4_0`, `I32 gptq, groups of 128`. */
  readonly type: string
  readonly tensors: number
  readonly parameters: number
  /** In the files. */
  readonly bytes: number
}

/** What `inspect` finds; its JSON. */
export interface Inspection {
  readonly path: string
  readonly format: 'safetensors' | 'gguf'
  readonly files: readonly { readonly path: string; readonly bytes: number }[]
  /** Why it does not run; absent where it does. */
  readonly unsupported?: string
  readonly config?: GemmaConfig
  readonly parameters: number
  readonly weights: readonly WeightGroup[]
  /** Bytes in memory once packed, by the format of the head. */
  readonly packed?: Readonly<Record<'stored' | 'q8_0' | 'q4_0', number>>
  /** One full sequence, by context length and dtype of the cache. */
  readonly kv?: readonly KvMemory[]
  /** How it sees images; absent where it does not. */
  readonly vision?: {
    /** What holds the tower: the checkpoint itself, or a projector file beside it. */
    readonly path: string
    readonly layers: number
    /** Pixels of a side. */
    readonly imageSize: number
    /** Of an image. */
    readonly imageTokens: number
    /** Bytes of the tower in memory once it is packed, which is when the first image comes. */
    readonly packed?: number
  }
  /** Why the tower that lies there does not run. */
  readonly visionProblem?: string
  readonly tokenizer?: {
    readonly pieces: number
    readonly bos: number
    readonly eos: number
    readonly endOfTurn?: number
  }
  /** Why there is none. */
  readonly tokenizerProblem?: string
  /** Whether the checkpoint brings its own; otherwise Gemma's is used. */
  readonly chatTemplate: boolean
  readonly tensors?: readonly Pick<StoredTensor, 'name' | 'storedType' | 'shape' | 'file' | 'offset' | 'bytes'>[]
}

const contextLengths = [2048, 8192, 32_768, 131_072]

/** Reads headers and tokenizer, no weights. @throws what `openCheckpoint` and `modelWeights` throw for damaged files. */
export async function inspectCheckpoint(
  path: string,
  { tensors = false }: { tensors?: boolean } = {},
): Promise<Inspection> {
  const checkpoint = await openCheckpoint(path)
  const model = describeModel(checkpoint)
  return {
    path,
    format: checkpoint.format,
    files: checkpoint.files.map((file) => ({ path: file, bytes: statSync(file).size })),
    ...model,
    parameters: model.weights.reduce((sum, group) => sum + group.parameters, 0),
    ...(await describeTokenizer(checkpoint)),
    chatTemplate: checkpoint.chatTemplate !== undefined,
    ...(tensors && {
      tensors: [...checkpoint.tensors.values()].map(({ name, storedType, shape, file, offset, bytes }) => {
        return { name, storedType, shape, file, offset, bytes }
      }),
    }),
  }
}

type ModelDescription = Pick<
  Inspection,
  'unsupported' | 'config' | 'weights' | 'packed' | 'kv' | 'vision' | 'visionProblem'
>

function describeModel(checkpoint: Checkpoint): ModelDescription {
  try {
    const config = gemmaConfig(checkpoint)
    const weights = modelWeights(checkpoint, config)
    const packed = packedSizes(weights)
    return {
      config,
      weights: groupWeights(weights),
      ...describeVision(checkpoint, config),
      ...(packed && { packed }),
      ...(!config.bidirectional && {
        kv: [
          ...new Set([...contextLengths.filter((length) => length < config.contextLength), config.contextLength]),
        ].flatMap((length) => kvDtypes.map((dtype) => kvMemory(config, length, dtype))),
      }),
    }
  } catch (error) {
    // Also a model of another kind is worth a look.
    if (!(error instanceof LapidaryError && error.code === 'ERR_CHECKPOINT_UNSUPPORTED')) throw error
    return { unsupported: error.message, weights: merge([...checkpoint.tensors.values()].map(plain('tensors'))) }
  }
}

function describeVision(checkpoint: Checkpoint, text: GemmaConfig): Pick<Inspection, 'vision' | 'visionProblem'> {
  const { found, problem } = findVision(checkpoint, text)
  if (problem) return { visionProblem: problem.message }
  if (!found) return {}
  const { layers, imageSize, imageTokens } = found.config
  const packed = packedVisionSize(found)
  return { vision: { path: found.path, layers, imageSize, imageTokens, ...(packed !== undefined && { packed }) } }
}

/** Packed matrices; norms, biases and positions in f32. */
function packedVisionSize({ config, weights }: FoundVision): number | undefined {
  const { patch, layers, positions, finalNorm, softNorm, projection } = weights
  const { width, patchSize, hiddenSize } = config
  const stored = (weight: StoredTensor, shape: readonly [number, number]) =>
    packedBytes({ name: weight.name, shape, format: 'stored', weight })
  // It is turned, and so kept as floats.
  const isHalf = projection.dtype === 'bf16' || projection.dtype === 'f16'
  const matrices = [
    stored(patch.weight, [width, 3 * patchSize ** 2]),
    ...layers.flatMap(({ q, k, v, output, up, down }) =>
      [q, k, v, output, up, down].map(({ weight }) => packedBytes(weight)),
    ),
    stored(isHalf ? projection : { ...projection, dtype: 'f32' }, [hiddenSize, width]),
  ]
  if (matrices.includes(undefined)) return undefined
  const vectors = [
    patch.bias,
    positions,
    ...layers.flatMap(({ attentionNorm, ffnNorm, q, k, v, output, up, down }) => [
      ...[attentionNorm, ffnNorm].flatMap(({ weight, bias }) => [weight, bias]),
      ...[q, k, v, output, up, down].map(({ bias }) => bias),
    ]),
    finalNorm.weight,
    finalNorm.bias,
    softNorm,
  ]
  const floats = vectors.reduce((sum, { shape }) => sum + 4 * size(shape), 0)
  return (matrices as number[]).reduce((sum, bytes) => sum + bytes, floats)
}

const size = (shape: readonly number[]): number => shape.reduce((product, dim) => product * dim, 1)

function plain(part: string): (tensor: StoredTensor) => WeightGroup {
  return ({ storedType, shape, bytes }) => ({ part, type: storedType, tensors: 1, parameters: size(shape), bytes })
}

function linear(part: string): (matrix: LinearWeight) => WeightGroup {
  return ({ shape, format, weight, scales, zeros, groupIndex, groupSize }) => {
    const layout =
      format === 'stored' ? '' : ` ${format}, ${groupSize ? `groups of ${groupSize}` : 'one scale per row'}`
    const stored = [weight, scales, zeros, groupIndex].filter((tensor) => tensor !== undefined)
    return {
      part,
      type: `${weight.storedType}${layout}`,
      tensors: stored.length,
      parameters: size(shape),
      bytes: stored.reduce((sum, tensor) => sum + tensor.bytes, 0),
    }
  }
}

/** Groups of one part and type made one, in the order of their first members. */
function merge(groups: readonly WeightGroup[]): WeightGroup[] {
  const merged = new Map<string, WeightGroup>()
  for (const group of groups) {
    const key = `${group.part}\n${group.type}`
    const before = merged.get(key)
    merged.set(key, {
      ...group,
      tensors: group.tensors + (before?.tensors ?? 0),
      parameters: group.parameters + (before?.parameters ?? 0),
      bytes: group.bytes + (before?.bytes ?? 0),
    })
  }
  return [...merged.values()]
}

const present = <T>(values: readonly (T | undefined)[]): T[] => values.filter((value) => value !== undefined)

function normsOf({ layers, finalNorm }: ModelWeights): StoredTensor[] {
  return [
    ...layers.flatMap((layer) =>
      present([
        layer.attentionNorm,
        layer.qNorm,
        layer.kNorm,
        layer.attentionPostNorm,
        layer.ffnNorm,
        layer.ffnPostNorm,
      ]),
    ),
    finalNorm,
  ]
}

function groupWeights(weights: ModelWeights): WeightGroup[] {
  const { embedding, layers, head, dense } = weights
  return merge([
    plain('embedding')(embedding),
    ...layers.flatMap(({ q, k, v, output }) => [q, k, v, output].map(linear('attention'))),
    ...layers.flatMap(({ gate, up, down }) => [gate, up, down].map(linear('feed-forward'))),
    ...normsOf(weights).map(plain('norms')),
    ...present([head]).map(plain('head')),
    ...dense.map(plain('dense')),
  ])
}

/** Packed matrices and f32 norms, by the format of the head. The embedding itself stays in the file: only rows that occur are read. */
function packedSizes(weights: ModelWeights): Inspection['packed'] {
  const { embedding, layers, head, dense } = weights
  const stored = (weight: StoredTensor): number | undefined => {
    const [n = 0, k = 0] = weight.shape
    return packedBytes({ name: weight.name, shape: [n, k], format: 'stored', weight })
  }
  const matrices = [
    ...layers.flatMap(({ q, k, v, output, gate, up, down }) => [q, k, v, output, gate, up, down].map(packedBytes)),
    ...dense.map(stored),
  ]
  const headWeight = head ?? embedding
  const asStored = dense.length > 0 ? 0 : stored(headWeight)
  if (asStored === undefined || matrices.includes(undefined)) return undefined
  const norms = normsOf(weights).reduce((sum, norm) => sum + 4 * size(norm.shape), 0)
  const rest = (matrices as number[]).reduce((sum, bytes) => sum + bytes, norms)
  const [n = 0, k = 0] = headWeight.shape
  const requantized = (dtype: 'q8_0' | 'q4_0'): number => (asStored === 0 ? rest : rest + packedHeadBytes(n, k, dtype))
  return { stored: rest + asStored, q8_0: requantized('q8_0'), q4_0: requantized('q4_0') }
}

async function describeTokenizer(checkpoint: Checkpoint): Promise<Pick<Inspection, 'tokenizer' | 'tokenizerProblem'>> {
  try {
    const { vocabularySize, bos, eos, endOfTurn } = await Tokenizer.load(checkpoint)
    return { tokenizer: { pieces: vocabularySize, bos, eos, ...(endOfTurn !== undefined && { endOfTurn }) } }
  } catch (error) {
    if (!(error instanceof LapidaryError)) throw error
    return { tokenizerProblem: error.message }
  }
}

const mib = (bytes: number): string => formatNumber(bytes / 2 ** 20)

function configRows(config: GemmaConfig): string[][] {
  const { layers, layerTypes, window, ropeTheta, positionScale } = config
  const global = layerTypes.filter((type) => type === 'global').length
  const rope = (type: 'local' | 'global'): string =>
    `${formatCount(ropeTheta[type])}${positionScale[type] === 1 ? '' : `, positions × ${positionScale[type]}`}`
  const caps = [
    config.attentionSoftcap && `attention ${config.attentionSoftcap}`,
    config.finalSoftcap && `logits ${config.finalSoftcap}`,
  ].filter(Boolean)
  return [
    ['layers', global === layers ? `${layers}, all global` : `${layers}: ${layers - global} local, ${global} global`],
    ...(window > 0 ? [['window', `${formatCount(window)} tokens${config.bidirectional ? ', both sides' : ''}`]] : []),
    ['context', `${formatCount(config.contextLength)} tokens`],
    ['hidden size', formatCount(config.hiddenSize)],
    ['feed-forward size', formatCount(config.ffnSize)],
    ['heads', `${config.queryHeads} query, ${config.kvHeads} key-value, ${config.headDim} dimensions`],
    ['vocabulary', `${formatCount(config.vocabularySize)} rows`],
    ['rope theta', window > 0 ? `local ${rope('local')}; global ${rope('global')}` : rope('global')],
    ...(caps.length > 0 ? [['soft caps', caps.join(', ')]] : []),
    ['query scale', `${config.queryScale.toPrecision(6)}${config.qkNorm ? ', with QK norm' : ''}`],
  ]
}

function imageRows({ vision, visionProblem, path }: Inspection): string[][] {
  if (visionProblem !== undefined) return [['images', `none: ${visible(visionProblem)}`]]
  if (!vision) return []
  const { imageSize, imageTokens, layers, packed } = vision
  const memory = packed === undefined ? '' : `, ${formatBytes(packed)} in memory`
  const where = vision.path === path ? '' : `, ${visible(vision.path)}`
  return [['images', `${imageSize} × ${imageSize} pixels, ${imageTokens} tokens, ${layers} layers${memory}${where}`]]
}

/** The report for people. */
export function formatInspection(found: Inspection): string {
  const heading = (text: string): string => `\n${styled('bold', text)}\n`
  const total = found.files.reduce((sum, file) => sum + file.bytes, 0)
  const parts = found.files.length === 1 ? '' : ` in ${found.files.length} files`
  const name = found.config ? `${found.config.architecture}, ` : ''
  let text = `${found.path}: ${found.format}, ${name}${formatParameters(found.parameters)} parameters, ${formatBytes(total)}${parts}\n`
  if (found.unsupported !== undefined) text += `does not run here: ${visible(found.unsupported)}\n`
  if (found.config) text += heading('Configuration') + formatTable(configRows(found.config), '', '  ')
  text += heading('Weights')
  text += formatTable(
    [
      ['part', 'type', 'tensors', 'parameters', 'bytes', 'bits each'],
      ...found.weights.map((group) => [
        group.part,
        visible(group.type),
        formatCount(group.tensors),
        formatCount(group.parameters),
        formatBytes(group.bytes),
        group.parameters > 0 ? ((8 * group.bytes) / group.parameters).toFixed(2) : '',
      ]),
    ],
    'llrrrr',
    '  ',
  )
  if (found.packed) {
    text += heading('Weights in memory, packed')
    const forms = [
      ['head as stored', found.packed.stored],
      ['--head q8_0', found.packed.q8_0],
      ['--head q4_0', found.packed.q4_0],
    ] as const
    text += formatTable(
      forms.map(([form, bytes]) => [form, formatBytes(bytes)]),
      'lr',
      '  ',
    )
  }
  if (found.kv) {
    text += heading('Keys and values of one sequence, MiB')
    const lengths = [...new Set(found.kv.map(({ contextLength }) => contextLength))]
    const of = (length: number, dtype: string): KvMemory =>
      found.kv?.find((row) => row.contextLength === length && row.dtype === dtype) as KvMemory
    text += formatTable(
      [
        ['tokens', 'bf16', 'i8', 'f32', 'bf16 without windows'],
        ...lengths.map((length) => [
          formatTokens(length),
          ...(['bf16', 'i8', 'f32'] as const).map((dtype) => mib(of(length, dtype).windowed)),
          mib(of(length, 'bf16').allGlobal),
        ]),
      ],
      'rrrrr',
      '  ',
    )
  }
  text += heading('Text')
  const { tokenizer } = found
  const special = tokenizer && [
    `<bos> ${tokenizer.bos}`,
    `<eos> ${tokenizer.eos}`,
    ...(tokenizer.endOfTurn === undefined ? [] : [`end of turn ${tokenizer.endOfTurn}`]),
  ]
  text += formatTable(
    [
      [
        'tokenizer',
        tokenizer
          ? `${formatCount(tokenizer.pieces)} pieces, ${special?.join(', ')}`
          : `none: ${visible(found.tokenizerProblem ?? '')}`,
      ],
      ['chat template', found.chatTemplate ? 'its own' : 'none; Gemma’s is used'],
      ...imageRows(found),
    ],
    '',
    '  ',
  )
  if (found.tensors) {
    text += heading('Tensors')
    text += formatTable(
      [
        ['name', 'type', 'shape', 'bytes', 'at byte'],
        ...found.tensors.map((tensor) => [
          visible(tensor.name),
          visible(tensor.storedType),
          `[${tensor.shape.join(', ')}]`,
          formatBytes(tensor.bytes),
          formatCount(tensor.offset),
        ]),
      ],
      'lllrr',
      '  ',
    )
  }
  return text
}

/** Runs the command. */
export async function inspect(path: string | undefined, options: { json?: boolean; tensors?: boolean }): Promise<void> {
  const found = await inspectCheckpoint(path ?? bundledModel, { tensors: options.tensors === true })
  if (options.json) printJson(found)
  else print(formatInspection(found))
}
