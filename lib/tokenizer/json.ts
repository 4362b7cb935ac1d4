/**
 * Hugging Face's `tokenizer.json`, where it holds byte-pair encoding as Gemma's does: spaces become U+2581, unknown characters
 * become bytes, and nothing else happens before or after.
 * https://huggingface.co/docs/tokenizers
 * @module
 */
import { isUtf8 } from 'node:buffer'
import { describeValue, LapidaryError } from '../errors.ts'
import { type AddedToken, addedToken } from './added-tokens.ts'
import { GrowingInts } from './growing-ints.ts'
import { JsonScanner } from './json-scanner.ts'
import { type MergeLists, mostPieces, PieceType, type Vocabulary, type VocabularySource } from './vocabulary.ts'

type JsonObject = Record<string, unknown>

/** Names of control pieces; a special token of another name is a marker. */
const bosNames = ['<bos>', '<s>']
const eosNames = ['<eos>', '</s>']
const padNames = ['<pad>']

/** Where strings lie in the file, one after the other: start and end, and which of them have escapes. */
class Spans {
  readonly places: GrowingInts = new GrowingInts()
  readonly escaped: Map<number, string> = new Map()
  length = 0

  /** Notes the string that the scanner read last. */
  push(scanner: JsonScanner): void {
    if (scanner.escaped) this.escaped.set(this.length, scanner.text())
    this.add(scanner.start, scanner.end)
  }

  add(start: number, end: number): void {
    this.places.push(start)
    this.places.push(end)
    this.length += 1
  }

  start(index: number): number {
    return this.places.values[2 * index]!
  }

  end(index: number): number {
    return this.places.values[2 * index + 1]!
  }
}

/** The file, with its two long lists as places of strings. */
interface Contents {
  readonly root: JsonObject
  readonly model: JsonObject
  readonly pieces: Spans
  /** Of `pieces`. */
  readonly ids: Int32Array
  /** Two for each merge, a space between the two of "a b" cut out. */
  readonly merges: Spans
}

/** @internal Reads the bytes of a file. */
export function readTokenizerJson(bytes: Buffer, what: string): VocabularySource {
  if (!isUtf8(bytes)) throw corrupt(what, 'not UTF-8')
  const scanner = new JsonScanner(bytes, what)
  const contents = readContents(scanner)
  const dummyPrefix = readPipeline(contents.root, contents.model, what)
  const added = readAddedTokens(contents.root.added_tokens, what)
  const pieces = readVocabulary(scanner, contents, added, what)
  const find = (names: readonly string[]): number => {
    return added.find(({ content }) => names.includes(content))?.id ?? -1
  }
  return {
    what,
    ...pieces,
    merges: (vocabulary) => readMerges(scanner, contents.merges, vocabulary),
    bos: find(bosNames),
    eos: find(eosNames),
    pad: find(padNames),
    dummyPrefix,
  }
}

/** @internal The bytes of a file that somebody has parsed already. */
export function tokenizerJsonBytes(json: unknown, what: string): Buffer {
  let text: string | undefined
  try {
    text = JSON.stringify(json)
  } catch (cause) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `${what}: not JSON: ${(cause as Error).message}`, { cause })
  }
  if (text === undefined) throw corrupt(what, `expected an object, got ${describeValue(json)}`)
  return Buffer.from(text, 'utf8')
}

function readContents(scanner: JsonScanner): Contents {
  const root: JsonObject = {}
  const model: JsonObject = {}
  const pieces = new Spans()
  const merges = new Spans()
  let ids: Int32Array | undefined
  let hasMerges = false
  scanner.open('object', 'the file')
  for (let index = 0; scanner.more('object', index); index++) {
    const key = scanner.key('the file')
    if (key !== 'model') {
      root[key] = scanner.value(key)
      continue
    }
    scanner.open('object', 'model')
    for (let item = 0; scanner.more('object', item); item++) {
      const name = scanner.key('model')
      if (name === 'vocab' && scanner.peek() === 0x7b) {
        if (ids) scanner.fail('there is a second model.vocab')
        ids = scanPieces(scanner, pieces)
      } else if (name === 'merges') {
        if (hasMerges) scanner.fail('there is a second model.merges')
        hasMerges = true
        scanMerges(scanner, merges)
      } else {
        model[name] = scanner.value(`model.${name}`)
      }
    }
  }
  if (!Number.isNaN(scanner.peek())) scanner.fail('the file goes on behind its object')
  // What kind of model it is tells more than what it lacks.
  if (model.type === 'BPE' && !ids) scanner.fail('there is no model.vocab that is an object')
  if (model.type === 'BPE' && !hasMerges) scanner.fail('there is no model.merges')
  return { root, model, pieces, ids: ids ?? new Int32Array(0), merges }
}

/** An object from pieces to ids. */
function scanPieces(scanner: JsonScanner, pieces: Spans): Int32Array {
  const ids = new GrowingInts()
  scanner.open('object', 'model.vocab')
  for (let index = 0; scanner.more('object', index); index++) {
    if (index === mostPieces) scanner.fail(`model.vocab: there are more than ${mostPieces} pieces`)
    scanner.string('model.vocab')
    pieces.push(scanner)
    scanner.colon('model.vocab')
    ids.push(scanner.integer('model.vocab'))
  }
  return ids.trimmed()
}

/** An array of `["a", "b"]` or `"a b"`. */
function scanMerges(scanner: JsonScanner, merges: Spans): void {
  scanner.open('array', 'model.merges')
  for (let index = 0; scanner.more('array', index); index++) {
    if (index === mostPieces) scanner.fail(`model.merges: there are more than ${mostPieces}`)
    const isPair = scanner.peek() === 0x5b
    const start = scanner.at
    if (isPair) {
      scanner.open('array', 'a merge')
      let item = 0
      for (; scanner.more('array', item); item++) {
        scanner.string('model.merges')
        merges.push(scanner)
      }
      if (item !== 2) scanner.fail(`model.merges: expected two pieces, got ${item}`, start)
    } else {
      scanner.string('model.merges')
      splitMerge(scanner, merges)
    }
  }
}

/** The two pieces of `"a b"`, the string read last. */
function splitMerge(scanner: JsonScanner, merges: Spans): void {
  const { bytes, start, end } = scanner
  let space = start
  if (scanner.escaped) {
    const parts = scanner.text().split(' ')
    if (parts.length !== 2) space = end
    for (const [index, part] of parts.entries()) merges.escaped.set(merges.length + index, part)
  } else {
    while (space < end && bytes[space] !== 0x20) space += 1
  }
  if (space === end) scanner.fail('model.merges: expected two pieces with a space between', start)
  merges.add(start, space)
  merges.add(space + 1, end)
}

function readAddedTokens(value: unknown, what: string): AddedToken[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value)) throw corrupt(what, `added_tokens: expected an array, got ${describeValue(value)}`)
  return value.map((entry: unknown, index) => {
    const id = typeof entry === 'object' && entry !== null ? (entry as JsonObject).id : undefined
    return addedToken(id, entry, `${what}: added_tokens[${index}]`)
  })
}

function readVocabulary(
  scanner: JsonScanner,
  { pieces, ids }: Contents,
  added: readonly AddedToken[],
  what: string,
): Pick<VocabularySource, 'bytes' | 'offsets' | 'lengths' | 'types'> {
  let size = ids.length
  let length = 0
  for (let entry = 0; entry < ids.length; entry++) length += pieces.end(entry) - pieces.start(entry)
  for (const { id, content } of added) {
    size = Math.max(size, id + 1)
    length += Buffer.byteLength(content)
  }
  const bytes = Buffer.allocUnsafeSlow(length)
  const offsets = new Int32Array(size)
  const lengths = new Int32Array(size)
  const types = new Uint8Array(size)
  let at = 0
  for (let entry = 0; entry < ids.length; entry++) {
    const id = ids[entry]!
    const start = pieces.start(entry)
    const end = pieces.end(entry)
    if (id >= size || types[id] !== 0) {
      const problem = id >= size ? `expected 0 to ${size - 1}, without holes` : 'another piece has it'
      scanner.fail(`model.vocab: ${quoted(scanner, start, end)} has id ${id}: ${problem}`, start)
    }
    if (end === start) scanner.fail(`model.vocab: piece ${id} is empty`, start)
    const text = pieces.escaped.get(entry)
    offsets[id] = at
    if (text !== undefined) {
      at += bytes.write(text, at)
    } else {
      const source = scanner.bytes
      for (let i = start; i < end; i++) bytes[at++] = source[i]!
    }
    lengths[id] = at - offsets[id]!
    types[id] = isBytePiece(scanner.bytes, start, end) ? PieceType.byte : PieceType.normal
  }
  for (const [index, { id, content, type }] of added.entries()) {
    const text = Buffer.from(content, 'utf8')
    if (types[id] !== 0 && !text.equals(bytes.subarray(offsets[id]!, offsets[id]! + lengths[id]!))) {
      const other = JSON.stringify(bytes.toString('utf8', offsets[id]!, offsets[id]! + lengths[id]!))
      throw corrupt(
        what,
        `added_tokens[${index}]: ${JSON.stringify(content)} has id ${id}, which model.vocab gives to ${other}`,
      )
    }
    offsets[id] = at
    lengths[id] = text.length
    types[id] = type
    at += text.copy(bytes, at)
  }
  const hole = types.indexOf(0)
  if (hole >= 0) throw corrupt(what, `model.vocab: no piece has id ${hole}; expected ${size} of them without holes`)
  return { bytes, offsets, lengths, types }
}

/** Whether a text is <0x00> to <0xFF>. */
function isBytePiece(bytes: Uint8Array, start: number, end: number): boolean {
  if (end - start !== 6 || bytes[start] !== 0x3c || bytes[end - 1] !== 0x3e) return false
  return /^<0x[0-9A-F]{2}>$/.test(String.fromCharCode(...bytes.subarray(start, end)))
}

function readMerges(scanner: JsonScanner, merges: Spans, vocabulary: Vocabulary): MergeLists {
  const count = merges.length / 2
  const left = new Int32Array(count)
  const right = new Int32Array(count)
  const product = new Int32Array(count)
  const piece = (index: number): number => {
    const start = merges.start(index)
    const end = merges.end(index)
    const text = merges.escaped.get(index)
    const id = text === undefined ? vocabulary.find(scanner.bytes, start, end) : (vocabulary.idOf(text) ?? -1)
    if (id >= 0) return id
    const name = text === undefined ? quoted(scanner, start, end) : JSON.stringify(text)
    return scanner.fail(`model.merges: ${name} is not a piece`, start)
  }
  for (let merge = 0; merge < count; merge++) {
    const first = piece(2 * merge)
    const second = piece(2 * merge + 1)
    const made = vocabulary.concatenation(first, second)
    if (made < 0) {
      const both = JSON.stringify([vocabulary.pieceOf(first), vocabulary.pieceOf(second)])
      scanner.fail(`model.merges: the two of ${both} together are not a piece`, merges.start(2 * merge))
    }
    left[merge] = first
    right[merge] = second
    product[merge] = made
  }
  return { left, right, product }
}

function quoted(scanner: JsonScanner, start: number, end: number): string {
  return `"${scanner.bytes.toString('utf8', start, Math.min(end, start + 80))}"`
}

/** Checks that text is treated as Gemma's tokenizers do; returns whether a space is put in front. */
function readPipeline(root: JsonObject, model: JsonObject, what: string): boolean {
  if (model.type !== 'BPE') throw unsupported(what, `model.type is ${JSON.stringify(model.type)}; only BPE is read`)
  if (model.byte_fallback !== true) {
    throw unsupported(what, 'model.byte_fallback is off; only models with byte pieces are read')
  }
  for (const key of ['dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'ignore_merges']) {
    if (model[key]) throw unsupported(what, `model.${key} is ${JSON.stringify(model[key])}`)
  }
  let replacesSpaces = false
  let prefix = false
  for (const step of steps(root.normalizer, 'normalizers', what, 'normalizer')) {
    if (step.type === 'Replace' && isSpacePattern(step.pattern) && step.content === '\u2581') replacesSpaces = true
    else if (step.type === 'Prepend' && step.prepend === '\u2581') prefix = true
    else throw unsupported(what, `normalizer ${JSON.stringify(step)}`)
  }
  for (const step of steps(root.pre_tokenizer, 'pretokenizers', what, 'pre_tokenizer')) {
    if (step.type === 'Metaspace' && step.replacement === '\u2581' && step.split === false) {
      replacesSpaces = true
      prefix ||= step.prepend_scheme === 'always' || step.prepend_scheme === 'first'
    } else if (step.type !== 'Split' || !isSpacePattern(step.pattern) || !replacesSpaces) {
      // A split at spaces does nothing once they have been replaced.
      throw unsupported(what, `pre_tokenizer ${JSON.stringify(step)}`)
    }
  }
  if (!replacesSpaces) throw unsupported(what, 'its normalizer does not replace spaces by U+2581')
  return prefix
}

function steps(value: unknown, list: string, what: string, name: string): JsonObject[] {
  if (value === undefined || value === null) return []
  const step = object(value, what, name)
  if (step.type !== 'Sequence') return [step]
  const items = step[list]
  if (!Array.isArray(items)) throw corrupt(what, `${name}.${list}: expected an array, got ${describeValue(items)}`)
  return items.map((entry, index) => object(entry, what, `${name}.${list}[${index}]`))
}

function isSpacePattern(pattern: unknown): boolean {
  return typeof pattern === 'object' && pattern !== null && (pattern as JsonObject).String === ' '
}

function object(value: unknown, what: string, where: string): JsonObject {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as JsonObject
  throw corrupt(what, `${where}: expected an object, got ${describeValue(value)}`)
}

function corrupt(what: string, problem: string): LapidaryError {
  return new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${what}: ${problem}`)
}

function unsupported(what: string, problem: string): LapidaryError {
  return new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${what}: ${problem}`)
}
