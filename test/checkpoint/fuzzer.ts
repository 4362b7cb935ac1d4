/**
 * Mutates small valid checkpoints, by structure and by bytes, and looks at what the readers make of them: a checkpoint that keeps its
 * promises, or one LapidaryError that says where. Anything else is a failure.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { parseGguf } from '../../lib/checkpoint/gguf.ts'
import { assembleGguf } from '../../lib/checkpoint/gguf-files.ts'
import { linearWeight } from '../../lib/checkpoint/linear.ts'
import { parseSafetensors } from '../../lib/checkpoint/safetensors.ts'
import { memorySource } from '../../lib/checkpoint/source.ts'
import { dtypes } from '../../lib/dtype.ts'
import { LapidaryError } from '../../lib/errors.ts'
import { gemmaConfig } from '../../lib/models/gemma/config.ts'
import { readVocabulary } from '../../lib/models/gemma/gguf-vocabulary.ts'
import { modelWeights } from '../../lib/models/gemma/weights.ts'
import { Random } from '../support/random.ts'
import { type BuiltFile, buildGguf, buildSafetensors, headerOf, smallGguf } from './build.ts'

// ── seeds ────────────────────────────────────────────────────────────────────────────────────────────────────────────

const ggufSeeds: readonly BuiltFile[] = [
  buildGguf(smallGguf),
  buildGguf({ ...smallGguf, version: 2 }),
  buildGguf({
    metadata: [
      ['general.architecture', 'string', 'gemma'],
      ['general.alignment', 'u32', 64],
    ],
    tensors: [
      { name: 'a', dims: [2, 3, 4, 5], type: 0, bytes: 480 },
      { name: 'b', dims: [], type: 24, bytes: 1 },
    ],
    alignment: 64,
  }),
]

/** Two parts of a split file. */
const splitSeeds: readonly BuiltFile[] = [0, 1].map((part) =>
  buildGguf({
    metadata: [
      ...(part === 0 ? smallGguf.metadata.slice(0, 14) : []),
      ['split.no', 'u16', part],
      ['split.count', 'u16', 2],
      ['split.tensors.count', 'i32', 6],
    ],
    tensors: (smallGguf.tensors ?? []).slice(part * 3, part * 3 + 3),
  }),
)

const pieces = ['<pad>', '<eos>', '<bos>', '<unk>', '<0x00>', '▁', 'a', '▁a']

const tokenizerSeed = {
  added_tokens: [
    { id: 0, content: '<pad>', special: true },
    { id: 8, content: '<added>', special: false },
  ],
  model: {
    type: 'BPE',
    byte_fallback: true,
    unk_token: '<unk>',
    vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
    merges: [['▁', 'a'], '▁ a'],
  },
}

/** A SentencePiece model: pieces { piece = 1, score = 2, type = 3 } under field 1, and a trainer's field 2. */
const sentencePieceSeed = Buffer.concat([
  ...pieces.map((piece, id) => {
    const text = Buffer.from(piece)
    const fields = Buffer.concat([
      Buffer.of(0x0a, text.length),
      text,
      Buffer.of(0x15, 0, 0, 0x80, 0xbf, 0x18, id < 3 ? 3 : 1),
    ])
    return Buffer.concat([Buffer.of(0x0a, fields.length), fields])
  }),
  Buffer.of(0x12, 3, 0x20, 0x80, 0x02),
])

const layer = 'model.layers.0.'
const safetensorsSeeds = [
  headerOf({
    'model.embed_tokens.weight': ['BF16', [8, 32], 512],
    [`${layer}input_layernorm.weight`]: ['F32', [32], 128],
    [`${layer}self_attn.q_proj.weight_packed`]: ['I32', [32, 4], 512],
    [`${layer}self_attn.q_proj.weight_scale`]: ['BF16', [32, 1], 64],
    [`${layer}self_attn.k_proj.weight`]: ['I8', [16, 32], 512],
    [`${layer}self_attn.k_proj.weight_scale`]: ['F32', [16], 64],
    'model.norm.weight': ['F16', [32], 64],
  }),
  headerOf({
    [`${layer}mlp.up_proj.qweight`]: ['I32', [8, 16], 512],
    [`${layer}mlp.up_proj.qzeros`]: ['I32', [2, 2], 16],
    [`${layer}mlp.up_proj.scales`]: ['F16', [2, 16], 64],
    [`${layer}mlp.up_proj.g_idx`]: ['I32', [64], 256],
    empty: ['F8_E4M3', [0, 7], 0],
    scalar: ['F64', [], 8],
  }),
]

const configs: readonly Record<string, unknown>[] = [
  {
    model_type: 'gemma3_text',
    hidden_size: 32,
    num_hidden_layers: 1,
    head_dim: 16,
    quantization_config: {
      quant_method: 'compressed-tensors',
      config_groups: { g: { targets: ['Linear'], weights: { num_bits: 4 } } },
    },
  },
  { model_type: 'gemma', quantization_config: { quant_method: 'gptq', bits: 4, checkpoint_format: 'gptq_v2' } },
  {
    model_type: 'gemma2',
    layer_types: ['full_attention'],
    quantization_config: { quant_method: 'awq', bits: 4, version: 'gemm' },
  },
  {
    text_config: { model_type: 'gemma3_text', rope_parameters: { full_attention: { rope_type: 'linear', factor: 8 } } },
    quantization: { bits: 4 },
  },
]

// ── mutations ────────────────────────────────────────────────────────────────────────────────────────────────────────

const interesting: readonly bigint[] = [
  0n,
  1n,
  2n,
  3n,
  7n,
  8n,
  9n,
  12n,
  13n,
  16n,
  31n,
  32n,
  33n,
  127n,
  128n,
  255n,
  256n,
  65535n,
  65536n,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x100000000n,
  2n ** 40n,
  2n ** 50n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 61n,
  2n ** 62n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
]

function writeNumber(bytes: Buffer, at: number, size: number, value: bigint): void {
  let rest = BigInt.asUintN(size * 8, value)
  for (let i = 0; i < size && at + i < bytes.length; i++, rest >>= 8n) bytes[at + i] = Number(rest & 0xffn)
}

/** Overwrites one field of a GGUF file with a value that means something. */
function mutateField(random: Random, bytes: Buffer, fields: BuiltFile['fields']): void {
  const field = random.pick(fields)
  if (field.kind === 'text') {
    for (let i = 0; i < field.bytes; i++) if (random.integer(0, 3) === 0) bytes[field.at + i] = random.integer(0, 256)
    return
  }
  const small = random.integer(0, 3) > 0
  const delta = BigInt(random.integer(-4, 5))
  let value = random.pick(interesting)
  if (small) {
    value = 0n
    for (let i = field.bytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[field.at + i] ?? 0)
    value += delta
  }
  writeNumber(bytes, field.at, field.bytes, value)
}

function mutateBytes(random: Random, bytes: Buffer): Buffer {
  const at = random.integer(0, bytes.length)
  const length = random.integer(0, Math.min(64, bytes.length - at) + 1)
  switch (random.integer(0, 8)) {
    case 0:
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.integer(0, 8))
      return bytes
    case 1:
      bytes[at] = random.integer(0, 256)
      return bytes
    case 2:
      writeNumber(bytes, at, random.pick([1, 2, 4, 8]), random.pick(interesting))
      return bytes
    case 3:
      return bytes.subarray(0, at)
    case 4:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)])
    case 5:
      return Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)])
    case 6:
      bytes.copy(bytes, at, random.integer(0, bytes.length))
      return bytes
    default:
      return Buffer.concat([bytes, Buffer.alloc(random.integer(1, 200), random.integer(0, 256))])
  }
}

function mutateGguf(random: Random, seed: BuiltFile): Buffer {
  let bytes = Buffer.from(seed.bytes)
  for (let count = random.integer(1, 5); count > 0; count--) {
    if (random.integer(0, 4) > 0) mutateField(random, bytes, seed.fields)
    else bytes = mutateBytes(random, bytes) as Buffer<ArrayBuffer>
  }
  return bytes
}

const strangeValues: readonly unknown[] = [
  null,
  true,
  false,
  0,
  1,
  -1,
  0.5,
  4,
  8,
  32,
  1e9,
  2 ** 31,
  2 ** 53 - 1,
  2 ** 53,
  1e300,
  -0,
  '',
  'x',
  'F32',
  'BF16',
  'I32',
  'I8',
  'gptq',
  'awq',
  'bitsandbytes',
  [],
  {},
  [0],
  [1, 2],
  [0, 0],
  [1e9, 1e9, 1e9],
  [2 ** 53 - 1, 2],
  [[[]]],
  { dtype: 'F32' },
  '\u0000',
  '\ud800',
  '__proto__',
]

/** A copy of a JSON value with one place changed. */
function mutateJson(random: Random, value: unknown, depth = 0): unknown {
  const isBranch = typeof value === 'object' && value !== null && Object.keys(value).length > 0
  if (!isBranch || (depth > 0 && random.integer(0, 6) === 0)) {
    if (typeof value === 'number' && random.integer(0, 2) === 0) return value + random.integer(-3, 4)
    return random.pick(strangeValues)
  }
  if (Array.isArray(value)) {
    const copy = [...value]
    const at = random.integer(0, copy.length)
    const kind = random.integer(0, 4)
    if (kind === 0) copy.splice(at, 1)
    else if (kind === 1) copy.splice(at, 0, random.pick(strangeValues))
    else copy[at] = mutateJson(random, copy[at], depth + 1)
    return copy
  }
  const entries = Object.entries(value as object)
  const at = random.integer(0, entries.length)
  const [key, inner] = entries[at] as [string, unknown]
  const kind = random.integer(0, 8)
  if (kind === 0) entries.splice(at, 1)
  else if (kind === 1)
    entries.push([random.pick(['__metadata__', '__proto__', 'constructor', `${key}.weight`, 'x', '']), inner])
  else if (kind === 2) entries[at] = [random.pick(['', '0', '__proto__', key.toUpperCase(), `${key}_scale`]), inner]
  else entries[at] = [key, mutateJson(random, inner, depth + 1)]
  return Object.fromEntries(entries)
}

function mutateSafetensors(random: Random): Buffer {
  const seed = random.pick(safetensorsSeeds)
  let header: unknown = seed.header
  for (let count = random.integer(0, 4); count > 0; count--) header = mutateJson(random, header)
  let text = JSON.stringify(header) ?? 'undefined'
  if (random.integer(0, 8) === 0) {
    const repeated = `${text.slice(1, text.indexOf('}') + 1)},`
    text = `{${repeated}${text.slice(1)}`
  }
  if (random.integer(0, 64) === 0) text = `${'['.repeat(random.integer(1, 20000))}${text}`
  const length = random.integer(0, 8) === 0 ? random.pick(interesting) : undefined
  let bytes = buildSafetensors(text, seed.bytes + (random.integer(0, 16) === 0 ? random.integer(-20, 20) : 0), length)
  for (let count = random.integer(0, 3); count > 0; count--) bytes = mutateBytes(random, bytes)
  return bytes
}

// ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────────

const codes = new Set(['ERR_CHECKPOINT_CORRUPT', 'ERR_CHECKPOINT_UNSUPPORTED', 'ERR_FILE'])

/** An input that the readers did not handle. */
export class FuzzFailure extends Error {
  constructor(what: string, options?: ErrorOptions) {
    super(what, options)
    this.name = 'FuzzFailure'
  }
}

/** A tally of nothing. */
export function emptyTally(): FuzzTally {
  return { iterations: 0, accepted: 0, refused: {}, slowest: { number: -1, milliseconds: 0 } }
}

/** What became of the inputs. */
export interface FuzzTally {
  iterations: number
  accepted: number
  refused: Record<string, number>
  /** The input that took longest, and its milliseconds. */
  slowest: { number: number; milliseconds: number }
}

/** Runs `body`; false if it threw an error as it should be. */
function holds(tally: FuzzTally, paths: readonly string[], body: () => void): boolean {
  try {
    body()
    return true
  } catch (error) {
    expectGoodError(tally, paths, error)
    return false
  }
}

/** Throws a FuzzFailure unless this is one error that says where. */
export function expectGoodError(tally: FuzzTally, paths: readonly string[], error: unknown): void {
  if (error instanceof FuzzFailure) throw error
  if (!(error instanceof LapidaryError))
    throw new FuzzFailure(`not a LapidaryError: ${String(error)}`, { cause: error })
  const { code, message } = error
  if (!codes.has(code)) throw new FuzzFailure(`code ${code}: ${message}`)
  if (!paths.some((path) => message.startsWith(path))) throw new FuzzFailure(`names no file: ${message}`)
  // A file that cannot be read has no place in it.
  const isLocated = code === 'ERR_FILE' || /byte \d+|tensor |key |: [a-z_.]+: expected|expected/.test(message)
  if (!isLocated || message.length > 2000 || /[\n\0]/.test(message)) throw new FuzzFailure(`says not where: ${message}`)
  tally.refused[code] = (tally.refused[code] ?? 0) + 1
}

/** Throws a FuzzFailure unless every tensor lies in its file, apart from the others, and has the bytes of its shape. */
export function expectPromises(checkpoint: Checkpoint, sizes: ReadonlyMap<string, number>): void {
  const fail = (tensor: StoredTensor, what: string): never => {
    throw new FuzzFailure(`${what}: ${JSON.stringify(tensor)}`)
  }
  const ends = new Map<string, number>()
  for (const tensor of [...checkpoint.tensors.values()].sort((a, b) => a.offset - b.offset)) {
    const { file, shape, dtype, offset, bytes } = tensor
    const size = sizes.get(file) ?? -1
    if (
      !(
        Number.isSafeInteger(offset) &&
        Number.isSafeInteger(bytes) &&
        offset >= 8 &&
        bytes >= 0 &&
        offset + bytes <= size
      )
    ) {
      fail(tensor, `outside its file of ${size} bytes`)
    }
    if (!shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) fail(tensor, 'has a shape that is none')
    const info = dtypes.find(({ name }) => name === dtype)
    const elements = shape.reduce((product, dim) => product * dim, 1)
    if (info && (elements / info.block) * info.blockBytes !== bytes) fail(tensor, 'has bytes that do not fit its shape')
    if (bytes > 0 && offset < (ends.get(file) ?? 0)) fail(tensor, 'overlaps another')
    if (bytes > 0) ends.set(file, offset + bytes)
  }
}

/** What stands above the readers must hold too, whatever they give. */
function useCheckpoint(tally: FuzzTally, checkpoint: Checkpoint, sizes: ReadonlyMap<string, number>): void {
  const paths = [checkpoint.path, ...checkpoint.files]
  expectPromises(checkpoint, sizes)
  for (const name of checkpoint.tensors.keys()) {
    const prefix = /^(.*)\.(weight|weight_packed|qweight)$/s.exec(name)?.[1]
    if (prefix === undefined) continue
    holds(tally, paths, () => {
      const linear = linearWeight(checkpoint, prefix)
      const { format, shape } = linear
      const isShape = shape.length === 2 && shape.every((dim) => Number.isSafeInteger(dim) && dim > 0)
      if (!isShape || (format !== 'stored' && !linear.scales))
        throw new FuzzFailure(`linear: ${JSON.stringify(linear)}`)
    })
  }
  holds(tally, paths, () => modelWeights(checkpoint, gemmaConfig(checkpoint)))
}

// ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function fuzzGguf(random: Random, tally: FuzzTally): boolean {
  const isSplit = random.integer(0, 8) === 0
  const mutated = random.integer(0, 2)
  const inputs = isSplit
    ? splitSeeds.map((seed, part) => (part === mutated ? mutateGguf(random, seed) : seed.bytes))
    : [mutateGguf(random, random.pick(ggufSeeds))]
  const paths = inputs.map((_, part) => (isSplit ? `m-0000${part + 1}-of-00002.gguf` : 'm.gguf'))
  const sizes = new Map(paths.map((path, part) => [path, (inputs[part] as Buffer).length]))
  return holds(tally, paths, () => {
    const parts = inputs.map((bytes, part) => parseGguf(memorySource(paths[part] as string, bytes)))
    useCheckpoint(tally, assembleGguf(paths, parts), sizes)
  })
}

function fuzzSafetensors(random: Random, tally: FuzzTally): boolean {
  const bytes = mutateSafetensors(random)
  let config: unknown = random.pick(configs)
  for (let count = random.integer(0, 3); count > 0; count--) config = mutateJson(random, config)
  return holds(tally, ['m.safetensors'], () => {
    const { tensors } = parseSafetensors(memorySource('m.safetensors', bytes))
    const checkpoint: Checkpoint = {
      format: 'safetensors',
      path: 'm.safetensors',
      files: ['m.safetensors'],
      tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])),
      config:
        typeof config === 'object' && config !== null && !Array.isArray(config)
          ? (config as Record<string, unknown>)
          : {},
      tokenizerFiles: {},
    }
    useCheckpoint(tally, checkpoint, new Map([['m.safetensors', bytes.length]]))
  })
}

/** A folder with an index, two shards and what lies beside them; on disk, so rarely. */
async function fuzzFolder(random: Random, tally: FuzzTally, folder: string): Promise<boolean> {
  const names = safetensorsSeeds.map((_, part) => `model-0000${part + 1}-of-00002.safetensors`)
  const json = (value: unknown): string => {
    let mutated = value
    for (let count = random.integer(0, 2); count > 0; count--) mutated = mutateJson(random, mutated)
    return JSON.stringify(mutated) ?? ''
  }
  const map = Object.fromEntries(
    safetensorsSeeds.flatMap(({ header }, part) => Object.keys(header).map((name) => [name, names[part]])),
  )
  const files: [string, string | Buffer][] = [
    ['model.safetensors.index.json', json({ metadata: { total_size: 1 }, weight_map: map })],
    ['config.json', json(random.pick(configs))],
    ['generation_config.json', json({ eos_token_id: [1, 106] })],
    ['tokenizer_config.json', json({ chat_template: [{ name: 'default', template: '{{ x }}' }] })],
    ['tokenizer.json', json(tokenizerSeed)],
    // Without it tokenizer.json is read.
    ...(random.integer(0, 2) === 0
      ? [['tokenizer.model', mutateBytes(random, Buffer.from(sentencePieceSeed))] as [string, Buffer]]
      : []),
    ...safetensorsSeeds.map(({ header, bytes }, part): [string, Buffer] => {
      const whole = buildSafetensors(header, bytes)
      return [names[part] as string, random.integer(0, 4) === 0 ? mutateBytes(random, whole) : whole]
    }),
  ]
  rmSync(join(folder, 'tokenizer.model'), { force: true })
  const sizes = new Map<string, number>()
  for (const [name, content] of files) {
    const bytes = Buffer.from(content as string)
    const written = random.integer(0, 16) === 0 ? mutateBytes(random, bytes) : bytes
    writeFileSync(join(folder, name), written)
    sizes.set(join(folder, name), written.length)
  }
  try {
    const checkpoint = await openCheckpoint(folder)
    useCheckpoint(tally, checkpoint, sizes)
    holds(tally, [folder], () => readVocabulary(checkpoint))
    return true
  } catch (error) {
    expectGoodError(tally, [folder], error)
    return false
  }
}

/**
 * Runs inputs `first` to `first + iterations` of a seed. Each depends on its number only, so that a failure is repeated alone.
 * @throws FuzzFailure with the number of the input.
 */
export async function fuzz(options: {
  seed: number
  iterations: number
  first?: number
  onProgress?: (tally: FuzzTally) => void
}): Promise<FuzzTally> {
  const { seed, iterations, first = 0, onProgress } = options
  const tally = emptyTally()
  const folder = mkdtempSync(join(tmpdir(), 'lapidary-fuzz-'))
  try {
    for (let number = first; number < first + iterations; number++) {
      const random = new Random(Math.imul(seed, 0x9e3779b1) ^ number)
      const start = performance.now()
      try {
        const kind = random.integer(0, 200)
        const accepted =
          kind < 2
            ? await fuzzFolder(random, tally, folder)
            : kind < 110
              ? fuzzGguf(random, tally)
              : fuzzSafetensors(random, tally)
        if (accepted) tally.accepted++
      } catch (error) {
        throw new FuzzFailure(`input ${number} of seed ${seed}: ${(error as Error).message}`, { cause: error })
      }
      tally.iterations++
      const milliseconds = performance.now() - start
      if (milliseconds > tally.slowest.milliseconds) tally.slowest = { number, milliseconds }
      if (onProgress && tally.iterations % 50_000 === 0) onProgress(tally)
    }
    return tally
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
