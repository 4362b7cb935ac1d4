/**
 * Text to ids and back.
 * @module
 */
import { readFile } from 'node:fs/promises'
import type { Checkpoint } from '../checkpoint/checkpoint.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import { withAddedTokens } from './added-tokens.ts'
import { Encoder, unitsOf } from './encoder.ts'
import { readGgufTokenizer } from './gguf.ts'
import { unitsOfGuarded } from './guards.ts'
import { readTokenizerJson, tokenizerJsonBytes } from './json.ts'
import { type PieceMatcher, Trust } from './matcher.ts'
import { readSentencePiece } from './sentencepiece.ts'
import { StreamDecoder } from './stream-decoder.ts'
import { Vocabulary, type VocabularySource } from './vocabulary.ts'

/** Settings of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /** Put the bos id in front. Every Gemma model expects it once, at the start of a sequence. Default: false. */
  readonly bos?: boolean
  /** Recognise markers (turns, images, reserved names) in the text. Default: true; pass false for text that is not trusted. */
  readonly markers?: boolean
  /**
   * Recognise control pieces and markers: the text `<bos>` becomes the bos id, as in Hugging Face's fast tokenizers and unlike
   * SentencePiece. Default: false.
   */
  readonly control?: boolean
}

/** Settings of {@link Tokenizer.decode}. */
export interface DecodeOptions {
  /** Keep control pieces and markers as text. Default: false, they are left out. */
  readonly special?: boolean
}

/**
 * A model's tokenizer: byte-pair encoding as SentencePiece does it, with bytes for a character that has no piece. Its results
 * are those of SentencePiece for `tokenizer.model` and GGUF, and those of Hugging Face's tokenizers for `tokenizer.json`.
 *
 * Kinds of pieces: ordinary text; *control* pieces (bos, eos, pad), which text never becomes; *markers* (turns, images, reserved
 * names), which text becomes only where it is trusted; and user-defined text (runs of whitespace, HTML tags).
 *
 * @example
 * const tokenizer = await Tokenizer.load(await openCheckpoint('gemma-3-1b-it'))
 * const ids = tokenizer.encode('Why is the sky blue?', { bos: true })
 * console.log(tokenizer.decode(ids))
 */
export class Tokenizer {
  /** Ids are below it. A model's embedding may have more rows. */
  readonly vocabularySize: number
  readonly bos: number
  readonly eos: number
  /** -1 where the vocabulary has none. */
  readonly pad: number
  /** `<end_of_turn>` or its counterpart; undefined where the vocabulary has none. */
  readonly endOfTurn: number | undefined
  /** @internal */
  readonly templateTokens: Readonly<Record<string, string>>
  readonly #vocabulary: Vocabulary
  readonly #encoder: Encoder
  readonly #units: (text: string) => Uint16Array

  private constructor(source: VocabularySource, templateTokens: Readonly<Record<string, string>> = {}) {
    const vocabulary = new Vocabulary(source)
    this.#vocabulary = vocabulary
    this.#encoder = new Encoder(vocabulary, source)
    // Not a property of `source` in the closure, which would keep the whole file.
    const unify = source.merges === undefined
    this.#units = (text) => unitsOf(text, vocabulary.dummyPrefix, unify)
    this.vocabularySize = vocabulary.size
    this.bos = vocabulary.bos
    this.eos = vocabulary.eos
    this.pad = vocabulary.pad
    this.endOfTurn = vocabulary.endOfTurn
    this.templateTokens = {
      bos_token: vocabulary.pieceOf(this.bos),
      eos_token: vocabulary.pieceOf(this.eos),
      ...(this.pad < 0 ? {} : { pad_token: vocabulary.pieceOf(this.pad) }),
      ...templateTokens,
    }
  }

  /**
   * From the bytes of a `tokenizer.model`.
   * @param what names the file in messages
   * @throws ERR_CHECKPOINT_CORRUPT with the byte offset if the file contradicts itself, ERR_CHECKPOINT_UNSUPPORTED if it is not
   *   byte-pair encoding with byte pieces (a unigram or word model).
   */
  static fromSentencePiece(bytes: Uint8Array, what = 'tokenizer.model'): Tokenizer {
    return new Tokenizer(readSentencePiece(bytes, what))
  }

  /**
   * From a `tokenizer.json`: its bytes, or what parsing it gives, which takes several times as long.
   * @param what names the file in messages
   * @throws ERR_CHECKPOINT_CORRUPT if the file contradicts itself, ERR_CHECKPOINT_UNSUPPORTED if it does other things to text
   *   than Gemma's tokenizers do.
   */
  static fromJson(json: unknown, what = 'tokenizer.json'): Tokenizer {
    const bytes = json instanceof Uint8Array ? asBuffer(json) : tokenizerJsonBytes(json, what)
    return new Tokenizer(readTokenizerJson(bytes, what))
  }

  /**
   * From the metadata of a GGUF file.
   * @param what names the file in messages
   * @throws as {@link fromJson}
   */
  static fromGguf(metadata: Readonly<Record<string, unknown>>, what = 'GGUF metadata'): Tokenizer {
    return new Tokenizer(readGgufTokenizer(metadata, what))
  }

  /**
   * The tokenizer of a checkpoint. Of a Hugging Face folder, `tokenizer.model` with the added tokens of `tokenizer_config.json`
   * is read where both are there, since it loads several times faster; `tokenizer.json` otherwise.
   *
   * @throws ERR_FILE if a file cannot be read, ERR_CHECKPOINT_UNSUPPORTED if the checkpoint has no tokenizer; as {@link fromJson}
   */
  static async load(checkpoint: Pick<Checkpoint, 'format' | 'path' | 'config' | 'tokenizerFiles'>): Promise<Tokenizer> {
    if (checkpoint.format === 'gguf') return Tokenizer.fromGguf(checkpoint.config, checkpoint.path)
    const { model, json, config: configFile } = checkpoint.tokenizerFiles
    const config = configFile === undefined ? {} : await readJson(configFile)
    const tokens = templateTokens(config)
    const added = config.added_tokens_decoder
    if (model !== undefined && (added !== undefined || json === undefined)) {
      const source = readSentencePiece(await read(model), model)
      return new Tokenizer(withAddedTokens(source, added, configFile ?? model), tokens)
    }
    if (json !== undefined) return new Tokenizer(readTokenizerJson(await read(json), json), tokens)
    const problem = 'it has no tokenizer; expected tokenizer.model or tokenizer.json beside the weights'
    throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${checkpoint.path}: ${problem}`)
  }

  /**
   * The ids of a text. Any text has ids; unpaired surrogates count as U+FFFD. Takes time in proportion to n log n at worst.
   *
   * @throws ERR_INVALID_ARGUMENT if `text` is not a string.
   * @example
   * tokenizer.encode('hello world') // Int32Array [ 23391, 1902 ] with Gemma 3
   * tokenizer.encode(untrusted, { markers: false })
   */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    if (typeof text !== 'string') {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `encode: text: expected a string, got ${describeValue(text)}`)
    }
    const trust = options.control ? Trust.control : options.markers === false ? Trust.text : Trust.markers
    return this.#encoder.encode({ units: this.#units(text) }, trust, options.bos ?? false)
  }

  /** @internal Of a rendered chat template, with guards: see guards.ts. */
  encodeGuarded(text: string): Int32Array {
    return this.#encoder.encode(unitsOfGuarded(text, this.#units), Trust.control, false)
  }

  /** @internal */
  get matcher(): PieceMatcher {
    return this.#encoder.matcher
  }

  /** @internal Work done on long stretches so far, for tests. */
  get heapPops(): number {
    return this.#encoder.heapPops
  }

  /** The text of ids. Ids outside the vocabulary have none; bytes that make no character are U+FFFD each. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const decoder = this.decoder(options)
    let text = ''
    for (let i = 0; i < ids.length; i++) text += decoder.push(ids[i]!)
    return text + decoder.end()
  }

  /** Decodes ids one at a time. */
  decoder(options: DecodeOptions = {}): StreamDecoder {
    return new StreamDecoder(this.#vocabulary, options.special ?? false)
  }

  /**
   * The piece as the vocabulary spells it, with U+2581 for a space.
   * @throws ERR_INVALID_ARGUMENT if there is no such id.
   */
  pieceOf(id: number): string {
    if (Number.isInteger(id) && id >= 0 && id < this.vocabularySize) return this.#vocabulary.pieceOf(id)
    const got = typeof id === 'number' ? id : describeValue(id)
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `id: expected 0 to ${this.vocabularySize - 1}, got ${got}`)
  }

  /** @internal The bytes that an id adds to a text; undefined for one that is no text (control pieces, markers). */
  textBytesOf(id: number): Uint8Array | undefined {
    return this.#vocabulary.textBytesOf(id)
  }

  /** The id of a piece, spelt with U+2581 for a space. */
  idOf(piece: string): number | undefined {
    return this.#vocabulary.idOf(piece)
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file)
  } catch (cause) {
    throw new LapidaryError('ERR_FILE', `${file}: cannot be read: ${(cause as Error).message}`, { cause })
  }
}

async function readJson(file: string): Promise<Record<string, unknown>> {
  const bytes = await read(file)
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'))
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
    throw new SyntaxError(`expected an object, got ${describeValue(value)}`)
  } catch (cause) {
    throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${file}: not JSON: ${(cause as Error).message}`, { cause })
  }
}

/** `bos_token` and the like, which templates refer to by name. */
function templateTokens(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const tokens: Record<string, string> = {}
  for (const name of ['bos_token', 'eos_token', 'pad_token', 'unk_token']) {
    const value = config[name]
    const content = typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value
    if (typeof content === 'string') tokens[name] = content
  }
  return tokens
}
