/**
 * The tokenizer inside a GGUF file's metadata: `llama` is SentencePiece with scores, `gemma4` is the same with a list of merges.
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import { packPieces } from './pieces.ts'
import { type MergeLists, PieceType, type Vocabulary, type VocabularySource } from './vocabulary.ts'

const prefix = 'tokenizer.ggml.'

/** @internal */
export function readGgufTokenizer(metadata: Readonly<Record<string, unknown>>, what: string): VocabularySource {
  const model = metadata[`${prefix}model`]
  if (model !== 'llama' && model !== 'gemma4') {
    const problem = `${prefix}model is ${JSON.stringify(model) ?? 'missing'}; only "llama" and "gemma4" are read`
    throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${what}: ${problem}`)
  }
  const tokens = metadata[`${prefix}tokens`]
  if (!Array.isArray(tokens) || tokens.length === 0 || !tokens.every((token) => typeof token === 'string')) {
    throw corrupt(what, `${prefix}tokens: expected an array of strings, got ${describeValue(tokens)}`)
  }
  const size = tokens.length
  const types = new Uint8Array(size)
  const storedTypes = numbers(metadata, 'token_type', size, what)
  for (let id = 0; id < size; id++) {
    const type = storedTypes[id]!
    if (!(type >= PieceType.normal && type <= PieceType.byte)) {
      throw corrupt(what, `${prefix}token_type[${id}] is ${type}; expected 1 to 6`)
    }
    types[id] = type
  }

  // llama.cpp's converter writes user-defined pieces with plain spaces.
  const pieces = (tokens as string[]).map((token, id) =>
    types[id] === PieceType.userDefined ? token.replaceAll(' ', '\u2581') : token,
  )
  const architecture = metadata['general.architecture']
  const isGemma = typeof architecture === 'string' && architecture.startsWith('gemma')
  const source = {
    what,
    ...packPieces(pieces, what),
    types,
    bos: idAt(metadata, 'bos_token_id', size, what) ?? -1,
    eos: idAt(metadata, 'eos_token_id', size, what) ?? -1,
    pad: idAt(metadata, 'padding_token_id', size, what) ?? -1,
    endOfTurn: idAt(metadata, 'eot_token_id', size, what),
    dummyPrefix: model === 'llama' && (metadata[`${prefix}add_space_prefix`] ?? !isGemma) === true,
  }
  if (model === 'gemma4') {
    const list = metadata[`${prefix}merges`]
    return { ...source, merges: (vocabulary) => readMerges(list, vocabulary, `${what}: ${prefix}merges`) }
  }
  const scores = Float32Array.from(numbers(metadata, 'scores', size, what))
  const nan = scores.findIndex((score) => Number.isNaN(score))
  if (nan >= 0) throw corrupt(what, `${prefix}scores[${nan}] is not a number`)
  return { ...source, scores }
}

/** Each entry is two pieces with a space between. */
function readMerges(list: unknown, vocabulary: Vocabulary, where: string): MergeLists {
  if (!Array.isArray(list)) throw corrupt(where, `expected an array of strings, got ${describeValue(list)}`)
  const left = new Int32Array(list.length)
  const right = new Int32Array(list.length)
  const product = new Int32Array(list.length)
  for (const [index, entry] of list.entries()) {
    const parts = typeof entry === 'string' ? entry.split(' ') : []
    const [first = -1, second = -1] = parts.map((part) => vocabulary.idOf(part) ?? -1)
    const made = first < 0 || second < 0 || parts.length !== 2 ? -1 : vocabulary.concatenation(first, second)
    if (made < 0) {
      const expected = 'expected two pieces that make a third, with a space between'
      throw corrupt(where, `[${index}]: ${expected}, got ${JSON.stringify(entry) ?? describeValue(entry)}`)
    }
    left[index] = first
    right[index] = second
    product[index] = made
  }
  return { left, right, product }
}

function numbers(
  metadata: Readonly<Record<string, unknown>>,
  key: string,
  size: number,
  what: string,
): ArrayLike<number> {
  const value = metadata[prefix + key]
  const isNumbers =
    ArrayBuffer.isView(value) || (Array.isArray(value) && value.every((entry) => typeof entry === 'number'))
  const length = isNumbers ? (value as unknown as ArrayLike<number>).length : -1
  if (length === size) return value as unknown as ArrayLike<number>
  const got = length < 0 ? describeValue(value) : `${length}`
  throw corrupt(what, `${prefix}${key}: expected ${size} numbers, one for each token, got ${got}`)
}

function idAt(
  metadata: Readonly<Record<string, unknown>>,
  key: string,
  size: number,
  what: string,
): number | undefined {
  const value = metadata[prefix + key]
  if (value === undefined) return undefined
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < size) return value
  throw corrupt(what, `${prefix}${key} is ${describeValue(value)}; expected one of the ${size} tokens`)
}

function corrupt(what: string, problem: string): LapidaryError {
  return new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${what}: ${problem}`)
}
