/**
 * The tokens that a Hugging Face folder adds to its `tokenizer.model`: `added_tokens_decoder` of `tokenizer_config.json`. They
 * rename reserved pieces, and go on where the model ends.
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import { mostPieces, PieceType, type VocabularySource } from './vocabulary.ts'

/** @internal One entry, its position known from `where`. */
export interface AddedToken {
  readonly id: number
  readonly content: string
  readonly type: number
}

/** @internal Checks an entry of `added_tokens` or `added_tokens_decoder`. */
export function addedToken(id: unknown, entry: unknown, where: string): AddedToken {
  const { content, special, ...flags } = (typeof entry === 'object' && entry !== null ? entry : {}) as Record<
    string,
    unknown
  >
  const isId = typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < mostPieces
  if (!isId || typeof content !== 'string' || content === '') {
    const got = `${typeof id === 'number' ? id : describeValue(id)} and ${JSON.stringify(content) ?? 'none'}`
    throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${where}: expected an id and a content, got ${got}`)
  }
  for (const flag of ['single_word', 'lstrip', 'rstrip']) {
    if (flags[flag] !== true) continue
    throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${where}: ${JSON.stringify(content)} sets ${flag}`)
  }
  const type = content === '<unk>' ? PieceType.unknown : special === true ? PieceType.control : PieceType.userDefined
  return { id, content, type }
}

/** @internal */
export function withAddedTokens(source: VocabularySource, decoder: unknown, what: string): VocabularySource {
  if (decoder === undefined) return source
  const where = `${what}: added_tokens_decoder`
  if (typeof decoder !== 'object' || decoder === null || Array.isArray(decoder)) {
    throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${where}: expected an object, got ${describeValue(decoder)}`)
  }
  const added = Object.entries(decoder).map(([id, entry]) => addedToken(Number(id), entry, `${where}[${id}]`))
  added.sort((a, b) => a.id - b.id)
  const modelSize = source.offsets.length
  const size = Math.max(modelSize, ...added.slice(-1).map(({ id }) => id + 1))
  const offsets = new Int32Array(size)
  const lengths = new Int32Array(size)
  const types = new Uint8Array(size)
  const scores = new Float32Array(size)
  offsets.set(source.offsets)
  lengths.set(source.lengths)
  types.set(source.types)
  if (source.scores) scores.set(source.scores)
  const texts = added.map(({ content }) => Buffer.from(content, 'utf8'))
  let end = source.bytes.length
  for (const [index, { id, type }] of added.entries()) {
    offsets[id] = end
    lengths[id] = texts[index]!.length
    types[id] = type
    end += lengths[id]!
  }
  const hole = types.indexOf(0)
  if (hole >= 0) {
    const problem = `no piece has id ${hole}; expected ${size} without holes, ${modelSize} of them in the model`
    throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${where}: ${problem}`)
  }
  return { ...source, bytes: Buffer.concat([source.bytes, ...texts]), offsets, lengths, types, scores }
}
