/**
 * Writes SentencePiece models, field by field from the format's definition: sentencepiece_model.proto.
 * @module
 */
import { PieceType } from '../../../lib/tokenizer/vocabulary.ts'

export interface WrittenPiece {
  readonly piece: string
  readonly score?: number
  readonly type?: number
}

export interface WrittenModel {
  readonly pieces: readonly WrittenPiece[]
  /** Trainer settings by field number. */
  readonly trainer?: Readonly<Record<number, number | string>>
  /** Normaliser settings by field number. */
  readonly normalizer?: Readonly<Record<number, number | string>>
}

/** Bytes that grow. */
class Writer {
  #bytes: Buffer = Buffer.alloc(1 << 12)
  #length = 0

  get written(): Buffer {
    return this.#bytes.subarray(0, this.#length)
  }

  varint(value: number): void {
    this.#reserve(10)
    let rest = value
    for (; rest >= 0x80; rest = Math.floor(rest / 128)) this.#bytes[this.#length++] = (rest & 0x7f) | 0x80
    this.#bytes[this.#length++] = rest
  }

  number(field: number, value: number): void {
    this.varint(field * 8)
    this.varint(value)
  }

  content(field: number, content: string | Buffer): void {
    const length = Buffer.byteLength(content)
    this.varint(field * 8 + 2)
    this.varint(length)
    this.#reserve(length)
    if (typeof content === 'string') this.#bytes.write(content, this.#length)
    else content.copy(this.#bytes, this.#length)
    this.#length += length
  }

  float(field: number, value: number): void {
    this.varint(field * 8 + 5)
    this.#reserve(4)
    this.#length = this.#bytes.writeFloatLE(value, this.#length)
  }

  piece({ piece, score = 0, type = PieceType.normal }: WrittenPiece): void {
    this.varint(1 * 8 + 2)
    const length = Buffer.byteLength(piece)
    this.varint(1 + (length < 128 ? 1 : 2) + length + 5 + (type === PieceType.normal ? 0 : 2))
    this.content(1, piece)
    this.float(2, score)
    if (type !== PieceType.normal) this.number(3, type)
  }

  #reserve(more: number): void {
    if (this.#length + more <= this.#bytes.length) return
    this.#bytes = Buffer.concat([this.#bytes, Buffer.alloc(this.#bytes.length + more)])
  }
}

function settings(values: Readonly<Record<number, number | string>>): Buffer {
  const writer = new Writer()
  for (const [field, value] of Object.entries(values)) {
    if (typeof value === 'number') writer.number(Number(field), value)
    else writer.content(Number(field), value)
  }
  return writer.written
}

/** Gemma's settings: BPE, byte fallback, its names for the control pieces; no dummy prefix, whitespace kept. */
export const gemmaTrainer: Readonly<Record<number, number | string>> = {
  3: 2,
  35: 1,
  46: '<bos>',
  47: '<eos>',
  48: '<pad>',
}
export const gemmaNormalizer: Readonly<Record<number, number | string>> = { 1: 'identity', 3: 0, 4: 0, 5: 1 }

export function writeSentencePiece({
  pieces,
  trainer = gemmaTrainer,
  normalizer = gemmaNormalizer,
}: WrittenModel): Buffer {
  const writer = new Writer()
  for (const piece of pieces) writer.piece(piece)
  writer.content(2, settings(trainer))
  writer.content(3, settings(normalizer))
  return Buffer.from(writer.written)
}

/** Control, unknown and byte pieces as Gemma has them: ids 0 to 3 and 4 to 259. */
export function gemmaSpecials(): WrittenPiece[] {
  const specials: WrittenPiece[] = [
    { piece: '<pad>', type: PieceType.control },
    { piece: '<eos>', type: PieceType.control },
    { piece: '<bos>', type: PieceType.control },
    { piece: '<unk>', type: PieceType.unknown },
  ]
  for (let byte = 0; byte < 256; byte++) {
    const hex = byte.toString(16).toUpperCase().padStart(2, '0')
    specials.push({ piece: `<0x${hex}>`, type: PieceType.byte })
  }
  return specials
}

/** What a SentencePiece model and a tokenizer.json have in common. */
export interface TokenizerJson {
  readonly added_tokens: readonly { id: number; content: string; special: boolean }[]
  readonly model: { vocab: Record<string, number>; merges: (string | [string, string])[] }
}

/**
 * The SentencePiece model that a tokenizer.json was converted from: the score of a piece is minus the rank of the first merge that
 * makes it; added tokens are user-defined, but for the four control pieces.
 */
export function sentencePieceOf({ added_tokens, model }: TokenizerJson): Buffer {
  const ids = Object.entries(model.vocab)
  const pieces: WrittenPiece[] = new Array(ids.length)
  const ranks = new Map<string, number>()
  for (const [rank, merge] of model.merges.entries()) {
    const product = typeof merge === 'string' ? merge.replace(' ', '') : merge[0] + merge[1]
    if (!ranks.has(product)) ranks.set(product, rank)
  }
  const added = new Map(added_tokens.map(({ content }) => [content, true]))
  const controls = ['<pad>', '<eos>', '<bos>']
  for (const [piece, id] of ids) {
    const type = controls.includes(piece)
      ? PieceType.control
      : piece === '<unk>'
        ? PieceType.unknown
        : /^<0x[0-9A-F]{2}>$/.test(piece)
          ? PieceType.byte
          : added.has(piece)
            ? PieceType.userDefined
            : PieceType.normal
    pieces[id] = { piece, score: -(ranks.get(piece) ?? 0), type }
  }
  return writeSentencePiece({ pieces })
}
