/** Checkpoint files in memory, written from the formats' descriptions and able to lie. They share nothing with the library's writers. */

export interface Field {
  /** What the bytes are: a count, a length, a type … */
  readonly kind: 'magic' | 'version' | 'count' | 'length' | 'type' | 'value' | 'rank' | 'dim' | 'offset' | 'text'
  readonly at: number
  readonly bytes: number
}

/** A GGUF value: [type, value], or ['array', item type, values]. */
export type Value =
  | readonly [type: string, value: unknown]
  | readonly ['array', items: string, values: readonly unknown[]]

export interface Tensor {
  readonly name: string
  /** Innermost first, as the file has them. */
  readonly dims: readonly (number | bigint)[]
  readonly type: number
  /** Default: after the tensor before. */
  readonly offset?: number | bigint
  /** Of data. */
  readonly bytes: number
}

export interface GgufDescription {
  readonly version?: number
  readonly magic?: string
  readonly metadata: readonly (readonly [key: string, ...value: Value])[]
  readonly tensors?: readonly Tensor[]
  readonly tensorCount?: number | bigint
  readonly metadataCount?: number | bigint
  readonly alignment?: number
}

const types = ['u8', 'i8', 'u16', 'i16', 'u32', 'i32', 'f32', 'bool', 'string', 'array', 'u64', 'i64', 'f64']
const sizes: Record<string, number> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  u64: 8,
  i64: 8,
  f64: 8,
}

/** Writes a GGUF file and remembers where each of its fields lies. */
class Writer {
  readonly fields: Field[] = []
  #parts: Buffer[] = []
  #at = 0

  put(kind: Field['kind'], bytes: Buffer): void {
    this.fields.push({ kind, at: this.#at, bytes: bytes.length })
    this.pad(bytes)
  }

  pad(bytes: Buffer): void {
    this.#parts.push(bytes)
    this.#at += bytes.length
  }

  get at(): number {
    return this.#at
  }

  u32(kind: Field['kind'], value: number): void {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value)
    this.put(kind, bytes)
  }

  u64(kind: Field['kind'], value: number | bigint): void {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)))
    this.put(kind, bytes)
  }

  text(text: string | Buffer): void {
    const bytes = Buffer.from(text as string)
    this.u64('length', bytes.length)
    this.put('text', bytes)
  }

  value(type: string, value: unknown, items?: readonly unknown[]): void {
    if (type === 'string') {
      this.text(value as string)
    } else if (type === 'array') {
      const itemType = value as string
      this.u32('type', types.indexOf(itemType))
      this.u64('count', (items as readonly unknown[]).length)
      for (const item of items as readonly unknown[]) {
        if (itemType === 'array') this.value('array', (item as Value)[1], (item as Value)[2] as readonly unknown[])
        else this.value(itemType, item)
      }
    } else {
      const bytes = Buffer.alloc(8)
      if (type === 'f32') bytes.writeFloatLE(value as number)
      else if (type === 'f64') bytes.writeDoubleLE(value as number)
      else bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value as number)))
      this.put('value', bytes.subarray(0, sizes[type]))
    }
  }

  finish(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** Bytes 0, 1, 2 … 255, 0 … */
function filling(length: number): Buffer {
  return Buffer.alloc(
    length,
    Uint8Array.from({ length: 256 }, (_, i) => i),
  )
}

export interface BuiltFile {
  readonly bytes: Buffer
  readonly fields: readonly Field[]
}

export function buildGguf(description: GgufDescription): BuiltFile {
  const { version = 3, magic = 'GGUF', metadata, tensors = [], alignment = 32 } = description
  const out = new Writer()
  out.put('magic', Buffer.from(magic, 'latin1'))
  out.u32('version', version)
  out.u64('count', description.tensorCount ?? tensors.length)
  out.u64('count', description.metadataCount ?? metadata.length)
  for (const [key, type, value, items] of metadata) {
    out.text(key)
    out.u32('type', types.indexOf(type))
    out.value(type, value, items as readonly unknown[] | undefined)
  }
  let end = 0
  const ends: number[] = []
  for (const tensor of tensors) {
    out.text(tensor.name)
    out.u32('rank', tensor.dims.length)
    for (const dim of tensor.dims) out.u64('dim', dim)
    out.u32('type', tensor.type)
    out.u64('offset', tensor.offset ?? end)
    end = Math.ceil((end + tensor.bytes) / alignment) * alignment
    ends.push(end)
  }
  if (tensors.length > 0) out.pad(Buffer.alloc((alignment - (out.at % alignment)) % alignment))
  out.pad(filling(end))
  return { bytes: out.finish(), fields: out.fields }
}

/** A small Gemma 3 as GGUF metadata and tensors. */
export const smallGguf: GgufDescription = {
  metadata: [
    ['general.architecture', 'string', 'gemma3'],
    ['general.name', 'string', 'small'],
    ['gemma3.context_length', 'u32', 64],
    ['gemma3.embedding_length', 'u32', 32],
    ['gemma3.block_count', 'u32', 1],
    ['gemma3.feed_forward_length', 'u32', 64],
    ['gemma3.attention.head_count', 'u32', 2],
    ['gemma3.attention.head_count_kv', 'u32', 1],
    ['gemma3.attention.key_length', 'u32', 16],
    ['gemma3.attention.value_length', 'u32', 16],
    ['gemma3.attention.layer_norm_rms_epsilon', 'f32', 1e-6],
    ['gemma3.attention.sliding_window', 'u32', 8],
    ['gemma3.attention.sliding_window_pattern', 'array', 'bool', [1]],
    ['gemma3.rope.freq_base', 'f32', 1e6],
    ['tokenizer.ggml.model', 'string', 'llama'],
    ['tokenizer.ggml.tokens', 'array', 'string', ['<pad>', '<eos>', '<bos>', '<unk>', '▁', 'a', '▁a', '<0x00>']],
    ['tokenizer.ggml.scores', 'array', 'f32', [0, 0, 0, 0, -1, -2, -3, 0]],
    ['tokenizer.ggml.token_type', 'array', 'i32', [3, 3, 3, 2, 1, 1, 1, 6]],
    ['tokenizer.chat_template', 'string', '{{ messages }}'],
    ['other.u8', 'u8', 200],
    ['other.i8', 'i8', -3],
    ['other.u16', 'u16', 60000],
    ['other.i16', 'i16', -300],
    ['other.i32', 'i32', -70000],
    ['other.bool', 'bool', 1],
    ['other.u64', 'u64', 2 ** 40],
    ['other.i64', 'i64', -(2 ** 40)],
    ['other.f64', 'f64', 0.1],
    ['other.longs', 'array', 'u64', [1, 2]],
    [
      'other.nested',
      'array',
      'array',
      [
        ['array', 'u8', [1, 2]],
        ['array', 'string', ['x']],
        ['array', 'i16', []],
      ],
    ],
  ],
  tensors: [
    { name: 'token_embd.weight', dims: [32, 8], type: 8, bytes: 34 * 8 },
    { name: 'blk.0.attn_q.weight', dims: [32, 32], type: 2, bytes: 18 * 32 },
    { name: 'blk.0.attn_k.weight', dims: [32, 16], type: 2, bytes: 18 * 16 },
    { name: 'blk.0.attn_v.weight', dims: [32, 16], type: 30, bytes: 64 * 16 },
    { name: 'blk.0.attn_output.weight', dims: [32, 32], type: 20, bytes: 18 * 32 },
    { name: 'output_norm.weight', dims: [32], type: 0, bytes: 128 },
  ],
}

/** A safetensors file. `header` is an object, or text that stands as it is; `length` lies about it. */
export function buildSafetensors(header: unknown, dataBytes: number, length?: number | bigint): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt.asUintN(64, BigInt(length ?? text.length)))
  return Buffer.concat([prefix, text, filling(dataBytes)])
}

export interface HeaderEntry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

/** A header whose tensors lie one after the other. */
export function headerOf(
  tensors: Readonly<Record<string, readonly [dtype: string, shape: readonly number[], bytes: number]>>,
): {
  header: Record<string, HeaderEntry>
  bytes: number
} {
  let end = 0
  const header: Record<string, HeaderEntry> = {}
  for (const [name, [dtype, shape, bytes]] of Object.entries(tensors)) {
    header[name] = { dtype, shape: [...shape], data_offsets: [end, end + bytes] }
    end += bytes
  }
  return { header, bytes: end }
}
