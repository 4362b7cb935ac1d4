/**
 * A vocabulary as flat arrays: all pieces in one block of UTF-8 bytes, found by hash. A quarter of a million pieces cost a few
 * megabytes and no object each.
 * @module
 */
import { LapidaryError } from '../errors.ts'

/** What a piece is. The first six values are those of SentencePiece and GGUF. */
export const PieceType = {
  /** Ordinary text, made by merging. */
  normal: 1,
  unknown: 2,
  /** Begin, end and padding of a sequence. */
  control: 3,
  /** Matched in text before anything merges: runs of whitespace, HTML tags. */
  userDefined: 4,
  /** A hole filled by a converter. Never produced. */
  unused: 5,
  /** One byte of a character that has no piece. */
  byte: 6,
  /** Matched in text like a user-defined piece, but only where the caller trusts the text: turns, images, reserved names. */
  marker: 7,
} as const

/** Far more than any vocabulary has, and few enough for every array over them. */
export const mostPieces: number = 2 ** 24

/** U+2581, which stands for a space inside pieces. */
export const spaceSymbol = 0x2581

/** Merge i makes product[i] of left[i] and right[i]. */
export interface MergeLists {
  readonly left: Int32Array
  readonly right: Int32Array
  readonly product: Int32Array
}

/** What a reader of a file format hands over. `types` may still hold what the file says; {@link Vocabulary} sorts out markers. */
export interface VocabularySource {
  /** Names the file in messages. */
  readonly what: string
  /** UTF-8 of all pieces, one after the other. */
  readonly bytes: Uint8Array
  /** Piece i is bytes[offsets[i] … offsets[i] + lengths[i]]. */
  readonly offsets: Int32Array
  readonly lengths: Int32Array
  readonly types: Uint8Array
  /** By piece, the highest merges first: SentencePiece and GGUF. */
  readonly scores?: Float32Array
  /** Pairs of pieces, the first of the list merges first: tokenizer.json and some GGUF. Asked for once, with the pieces known. */
  readonly merges?: (vocabulary: Vocabulary) => MergeLists
  readonly bos: number
  readonly eos: number
  /** -1 where there is none. */
  readonly pad: number
  readonly endOfTurn?: number | undefined
  /** A space is put in front of the text (Mistral, Llama; never Gemma). */
  readonly dummyPrefix: boolean
}

/** The user-defined pieces that are ordinary text: these element names of HTML, and whitespace. */
const htmlElements = new Set(
  (
    'a b bbox blockquote body br caption code div em footer h1 h2 h3 h4 h5 h6 header hr html i iframe img li main nav ol p pre s ' +
    'section span strong sub sup table tbody td tfoot th thead tr u ul'
  ).split(' '),
)

/** Whether a user-defined piece is ordinary text rather than a marker. What is not known to be harmless is a marker. */
function isPlain(piece: string): boolean {
  if (/^[\u2581\s]+$/.test(piece)) return true
  const element = /^<\/?([a-z0-9]+)>$/.exec(piece)?.[1]
  return element !== undefined && htmlElements.has(element)
}

const fnvOffset = 0x811c9dc5 | 0
const fnvPrime = 0x01000193

/** FNV-1a over bytes, from a state: the hash of a concatenation continues the hash of its first half. */
export function hashBytes(state: number, bytes: Uint8Array, start: number, end: number): number {
  let hash = state
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, fnvPrime)
  return hash
}

/** FNV-1a is weak in its low bits, which index a table: this mixes the high ones in. */
function spread(hash: number): number {
  const mixed = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d)
  return mixed ^ (mixed >>> 13)
}

/** Where one piece's hash, start and length stand side by side: a look-up touches few cache lines. */
const stride = 4
const hashField = 0
const startField = 1
const lengthField = 2

/** Entries that one look-up may pass: far more than chance puts side by side, so few that crafted files cannot hang a load. */
export const longestProbe = 1024

/** What sequences begin, end and are padded with, under every name that Gemma-like models use. */
const sequencePieces = new Set(['<bos>', '<s>', '<eos>', '</s>', '<pad>'])

/**
 * What chat formats and images are written with. Published GGUF files list them as ordinary pieces: Google's own of Gemma 1 all of them, those
 * of Gemma 1.1 at least `<end_of_turn>`. No merge makes them, so they would never be recognised.
 */
const knownMarkers = [
  ...['<start_of_turn>', '<end_of_turn>', '<start_of_image>', '<end_of_image>', '<image_soft_token>'],
  ...['<|turn>', '<turn|>'],
]

/** @internal */
export class Vocabulary {
  readonly what: string
  readonly size: number
  /** Final types, markers told from user-defined pieces. */
  readonly types: Uint8Array
  readonly bos: number
  readonly eos: number
  readonly pad: number
  readonly endOfTurn: number | undefined
  readonly dummyPrefix: boolean
  /** Id of the piece `<0x00>` … `<0xFF>`. */
  readonly byteIds: Int32Array = new Int32Array(256).fill(-1)
  #bytes: Uint8Array
  /** The same memory, for making strings of it. */
  #buffer: Buffer
  /** By id; symbols without a piece follow the pieces. */
  #records: Int32Array
  /** Pairs of id and hash; id -1 where a slot is free. */
  readonly #slots: Int32Array
  readonly #mask: number
  readonly #texts: (string | undefined)[] = []

  constructor(source: VocabularySource) {
    const { what, bytes, offsets, lengths } = source
    this.what = what
    this.size = offsets.length
    this.types = Uint8Array.from(source.types)
    this.dummyPrefix = source.dummyPrefix
    this.#bytes = bytes
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    this.#records = new Int32Array(this.size * stride)
    this.#mask = 2 ** Math.max(4, Math.ceil(Math.log2(this.size * 1.5))) - 1
    this.#slots = new Int32Array((this.#mask + 1) * 2).fill(-1)
    for (let id = 0; id < this.size; id++) this.#add(id, offsets[id]!, lengths[id]!)
    this.endOfTurn = source.endOfTurn ?? this.idOf('<end_of_turn>') ?? this.idOf('<turn|>')
    this.bos = source.bos
    this.pad = source.pad
    // Files of instruction-tuned models may name the end of a turn as eos; the end of the sequence is meant.
    this.eos = source.eos === this.endOfTurn ? (this.idOf('<eos>') ?? source.eos) : source.eos
    this.#checkSequenceIds()
    this.#findBytePieces()
    this.#findMarkers()
  }

  /** The id of a piece, spelt as the file spells it. */
  idOf(piece: string): number | undefined {
    const bytes = Buffer.from(piece, 'utf8')
    const id = this.find(bytes, 0, bytes.length)
    return id < 0 ? undefined : id
  }

  /** The id of the piece that consists of these bytes, or -1. */
  find(bytes: Uint8Array, start: number, end: number): number {
    const hash = hashBytes(fnvOffset, bytes, start, end)
    const slots = this.#slots
    for (let slot = spread(hash) & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const id = slots[2 * slot]!
      if (id < 0) return -1
      if (slots[2 * slot + 1] === hash && this.#equals(id, bytes, start, end - start)) return id
    }
  }

  /** The piece whose text is that of piece `left` followed by that of piece `right`, or -1. */
  concatenation(left: number, right: number): number {
    const records = this.#records
    const slots = this.#slots
    const rightStart = records[right * stride + startField]!
    const rightLength = records[right * stride + lengthField]!
    const hash = hashBytes(records[left * stride + hashField]!, this.#bytes, rightStart, rightStart + rightLength)
    for (let slot = spread(hash) & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const id = slots[2 * slot]!
      if (id < 0) return -1
      if (slots[2 * slot + 1] !== hash) continue
      const leftStart = records[left * stride + startField]!
      const leftLength = records[left * stride + lengthField]!
      if (records[id * stride + lengthField] !== leftLength + rightLength) continue
      const start = records[id * stride + startField]!
      if (!this.#sameBytes(start, leftStart, leftLength)) continue
      if (this.#sameBytes(start + leftLength, rightStart, rightLength)) return id
    }
  }

  /**
   * Gives characters that are no pieces, but occur in some, ids beyond the vocabulary: they take part in merging, and what is left
   * of them at its end becomes byte pieces. Returns the first of the ids.
   */
  addSymbols(characters: readonly string[]): number {
    const added = characters.map((character) => Buffer.from(character, 'utf8'))
    const first = this.#records.length / stride
    const records = new Int32Array((first + added.length) * stride)
    records.set(this.#records)
    let end = this.#bytes.length
    for (const [index, bytes] of added.entries()) {
      const record = (first + index) * stride
      records[record + hashField] = hashBytes(fnvOffset, bytes, 0, bytes.length)
      records[record + startField] = end
      records[record + lengthField] = bytes.length
      end += bytes.length
    }
    this.#records = records
    this.#buffer = Buffer.concat([this.#bytes, ...added])
    this.#bytes = this.#buffer
    return first
  }

  /** UTF-8 of all pieces and symbols; the bytes of one begin at {@link startOf} and end at {@link endOf}. */
  get bytes(): Uint8Array {
    return this.#bytes
  }

  startOf(id: number): number {
    return this.#records[id * stride + startField]!
  }

  endOf(id: number): number {
    return this.#records[id * stride + startField]! + this.#records[id * stride + lengthField]!
  }

  /** The piece as the file spells it, spaces as U+2581. */
  pieceOf(id: number): string {
    return this.#buffer.toString('utf8', this.startOf(id), this.endOf(id))
  }

  /** The piece as text, U+2581 turned into spaces. */
  textOf(id: number): string {
    this.#texts[id] ??= this.pieceOf(id).replaceAll('\u2581', ' ')
    return this.#texts[id]!
  }

  /** The bytes of the piece as text; undefined for one that is no text. */
  textBytesOf(id: number): Uint8Array | undefined {
    const type = this.types[id]
    if (type === PieceType.byte) return Uint8Array.of(Number.parseInt(this.pieceOf(id).slice(3, 5), 16))
    if (type !== PieceType.normal && type !== PieceType.userDefined) return undefined
    const bytes = this.#bytes.subarray(this.startOf(id), this.endOf(id))
    // U+2581 begins with a byte that few pieces have.
    return bytes.includes(0xe2) ? Buffer.from(this.pieceOf(id).replaceAll('\u2581', ' ')) : bytes
  }

  /** A piece in a message. */
  describe(id: number): string {
    return `piece ${id} (${JSON.stringify(this.pieceOf(id))})`
  }

  #add(id: number, start: number, length: number): void {
    const bytes = this.#bytes
    if (!isWellFormed(bytes, start, start + length)) throw this.corrupt(`piece ${id} is not UTF-8`)
    const hash = hashBytes(fnvOffset, bytes, start, start + length)
    this.#records[id * stride + hashField] = hash
    this.#records[id * stride + startField] = start
    this.#records[id * stride + lengthField] = length
    const slots = this.#slots
    let slot = spread(hash) & this.#mask
    for (let probe = 0; slots[2 * slot]! >= 0; probe++) {
      const other = slots[2 * slot]!
      if (slots[2 * slot + 1] === hash && this.#equals(other, bytes, start, length)) {
        throw this.corrupt(`${this.describe(id)} has the text of piece ${other}`)
      }
      if (probe === longestProbe)
        throw this.corrupt(`more than ${longestProbe} pieces have hashes like that of piece ${id}`)
      slot = (slot + 1) & this.#mask
    }
    slots[2 * slot] = id
    slots[2 * slot + 1] = hash
  }

  #equals(id: number, bytes: Uint8Array, start: number, length: number): boolean {
    if (this.#records[id * stride + lengthField] !== length) return false
    const own = this.#bytes
    const at = this.#records[id * stride + startField]!
    for (let i = 0; i < length; i++) if (own[at + i] !== bytes[start + i]) return false
    return true
  }

  #sameBytes(a: number, b: number, length: number): boolean {
    const bytes = this.#bytes
    for (let i = 0; i < length; i++) if (bytes[a + i] !== bytes[b + i]) return false
    return true
  }

  #checkSequenceIds(): void {
    for (const [name, id] of [
      ['bos', this.bos],
      ['eos', this.eos],
      ['pad', this.pad],
    ] as const) {
      const optional = name === 'pad' && id === -1
      if (!optional && !(Number.isInteger(id) && id >= 0 && id < this.size)) {
        throw this.corrupt(`the ${name} id is ${id}; expected one of the ${this.size} pieces`)
      }
      if (!optional && id !== this.endOfTurn) this.types[id] = PieceType.control
    }
  }

  #findBytePieces(): void {
    for (let id = 0; id < this.size; id++) {
      if (this.types[id] !== PieceType.byte) continue
      const hex = /^<0x([0-9A-F]{2})>$/.exec(this.pieceOf(id))?.[1]
      if (hex === undefined) throw this.corrupt(`${this.describe(id)} is a byte piece; expected <0x00> to <0xFF>`)
      this.byteIds[Number.parseInt(hex, 16)] = id
    }
    // Hugging Face's conversion of Gemma 2 puts the piece "\t" in the place of <0x09>.
    const missing = this.byteIds.findIndex(
      (id, byte) => id < 0 && (byte > 127 || this.idOf(String.fromCharCode(byte)) === undefined),
    )
    if (missing < 0) return
    const name = `<0x${missing.toString(16).toUpperCase().padStart(2, '0')}>`
    throw this.corrupt(`there is no byte piece ${name}; expected all 256, so that every text has ids`)
  }

  /** Control pieces that are none of a sequence's own, such as turns in GGUF files, are markers. */
  #findMarkers(): void {
    const { types, bos, eos, pad } = this
    for (const piece of knownMarkers) {
      const id = this.idOf(piece)
      if (id !== undefined && types[id] === PieceType.normal) types[id] = PieceType.marker
    }
    for (let id = 0; id < this.size; id++) {
      const type = types[id]
      if (type !== PieceType.control && type !== PieceType.userDefined) continue
      const piece = this.pieceOf(id)
      // llama.cpp's converter lists it as control; SentencePiece does not recognise it in text.
      if (piece === '<unk>') {
        types[id] = PieceType.unknown
        continue
      }
      const isOwn = sequencePieces.has(piece) || ((id === bos || id === eos || id === pad) && id !== this.endOfTurn)
      if (isOwn) types[id] = PieceType.control
      else if (type === PieceType.control || !isPlain(piece)) types[id] = PieceType.marker
    }
  }

  /** @internal */
  corrupt(problem: string): LapidaryError {
    return new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${this.what}: ${problem}`)
  }
}

/** Whether bytes are the UTF-8 of some text: no cut characters, so that what walks them stays inside. */
function isWellFormed(bytes: Uint8Array, start: number, end: number): boolean {
  for (let at = start; at < end; ) {
    const lead = bytes[at++]!
    if (lead < 0x80) continue
    const more = lead < 0xc2 || lead > 0xf4 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3
    if (more === 0 || at + more > end) return false
    // No overlong forms, no surrogates, nothing above U+10FFFF.
    const second = bytes[at]!
    const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80
    const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf
    if (second < low || second > high) return false
    for (let i = 1; i < more; i++) if ((bytes[at + i]! & 0xc0) !== 0x80) return false
    at += more
  }
  return true
}
