/**
 * A Hugging Face tokenizer as GGUF lists it: pieces, scores and types, from tokenizer.model or tokenizer.json.
 * @module
 */
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import { isObject, type JsonObject, parseJsonObject } from '../../checkpoint/json.ts'
import { corrupt, quote, withFile } from '../../checkpoint/source.ts'
import { LapidaryError } from '../../errors.ts'
import type { GgufVocabulary } from './gguf-metadata.ts'

/** GGUF's piece types; SentencePiece's are the same. */
const normal = 1
const unknown = 2
export const control = 3
export const userDefined = 4
const unused = 5
const byte = 6

/** Gemma 3's tokenizer.json has 33 MB, its tokenizer.model 4.7. */
const longestTokenizer = 48 << 20
/** Ids of a tokenizer; no list grows beyond. */
const mostPieces = 1 << 22

interface Piece {
  text: string
  score: number
  type: number
}

/**
 * The vocabulary of a Hugging Face checkpoint. tokenizer.model has the scores that GGUF wants; from tokenizer.json they are minus the rank
 * of the merge that makes a piece. Added tokens rule over both: special ones are control pieces, the others user-defined.
 *
 * @throws ERR_CHECKPOINT_CORRUPT, ERR_FILE
 */
export function readVocabulary(checkpoint: Checkpoint): GgufVocabulary {
  const { model, json, config } = checkpoint.tokenizerFiles
  const path = model ?? json
  if (path === undefined) {
    const text = `${checkpoint.path}: expected tokenizer.model or tokenizer.json beside the weights, got neither`
    throw new LapidaryError('ERR_FILE', text)
  }
  const settings = config === undefined ? {} : readJson(config)
  const content =
    json !== undefined && (model === undefined || !isObject(settings.added_tokens_decoder)) ? readJson(json) : {}
  const pieces = model === undefined ? jsonPieces(path, content) : sentencePieces(model)
  addTokens(json ?? path, pieces, addedTokens(settings, content))

  const ids = new Map(pieces.map(({ text }, id) => [text, id]))
  const find = (text: string): number => {
    const id = ids.get(text)
    if (id === undefined)
      throw corrupt(path, undefined, `expected a piece ${quote(text)}, as every Gemma tokenizer has, got none`)
    return id
  }
  const endOfTurn = ids.get('<end_of_turn>')
  const { chatTemplate } = checkpoint
  return {
    tokens: pieces.map(({ text }) => text),
    scores: Float32Array.from(pieces, ({ score }) => score),
    types: Int32Array.from(pieces, ({ type }) => type),
    bos: find('<bos>'),
    eos: find('<eos>'),
    pad: find('<pad>'),
    unk: find('<unk>'),
    ...(endOfTurn !== undefined && { endOfTurn }),
    ...(chatTemplate !== undefined && { chatTemplate }),
  }
}

function readJson(file: string): JsonObject {
  return withFile(file, (source) => parseJsonObject(source, 'the file', 0, source.size, longestTokenizer))
}

// ── tokenizer.json ───────────────────────────────────────────────────────────────────────────────────────────────────

function jsonPieces(path: string, content: JsonObject): Piece[] {
  const fail = (what: string): never => {
    throw corrupt(path, undefined, what)
  }
  const model = isObject(content.model) ? content.model : fail(`model: expected an object, got ${quote(content.model)}`)
  if (model.type !== undefined && model.type !== 'BPE') fail(`model.type: expected "BPE", got ${quote(model.type)}`)
  const vocabulary = isObject(model.vocab)
    ? model.vocab
    : fail(`model.vocab: expected an object, got ${quote(model.vocab)}`)
  const merges = Array.isArray(model.merges)
    ? model.merges
    : fail(`model.merges: expected a list, got ${quote(model.merges)}`)
  const ranks = new Map<string, number>()
  for (const [rank, merge] of merges.entries()) {
    const parts: unknown = typeof merge === 'string' ? merge.split(' ') : merge
    if (!Array.isArray(parts) || parts.length !== 2 || parts.some((part) => typeof part !== 'string')) {
      return fail(`model.merges: expected pairs of pieces, got ${quote(merge)}`)
    }
    const product = parts.join('')
    if (!ranks.has(product)) ranks.set(product, rank)
  }
  const pieces: Piece[] = []
  for (const [text, id] of Object.entries(vocabulary)) {
    if (!isId(id)) return fail(`model.vocab: ${quote(text)}: expected an id, got ${quote(id)}`)
    const isByte = model.byte_fallback === true && /^<0x[0-9A-F]{2}>$/.test(text)
    const type = isByte ? byte : text === model.unk_token ? unknown : normal
    pieces[id] = { text, score: -(ranks.get(text) ?? 0), type }
  }
  return fillHoles(pieces)
}

function isId(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < mostPieces
}

/** Ids that no piece has get a name that text does not. */
function fillHoles(pieces: Piece[]): Piece[] {
  return Array.from(pieces, (piece, id) => piece ?? { text: `[PAD${id}]`, score: 0, type: unused })
}

// ── added tokens ─────────────────────────────────────────────────────────────────────────────────────────────────────

interface AddedToken {
  readonly id: number
  readonly text: string
  readonly special: boolean
}

function addedTokens(settings: JsonObject, content: JsonObject): AddedToken[] {
  const { added_tokens_decoder: decoder } = settings
  const listed: [unknown, unknown][] = isObject(decoder)
    ? Object.entries(decoder).map(([id, token]) => [Number(id), token])
    : Array.isArray(content.added_tokens)
      ? content.added_tokens.map((token: unknown) => [isObject(token) ? token.id : undefined, token])
      : []
  return listed.flatMap(([id, token]) => {
    if (!isId(id) || !isObject(token) || typeof token.content !== 'string') return []
    return [{ id, text: token.content, special: token.special === true }]
  })
}

/** Tokens that follow the pieces without a gap extend the vocabulary. */
function addTokens(path: string, pieces: Piece[], added: readonly AddedToken[]): void {
  for (const { id, text, special } of [...added].sort((a, b) => a.id - b.id)) {
    if (id > pieces.length) {
      throw corrupt(path, undefined, `added token ${quote(text)}: expected an id up to ${pieces.length}, got ${id}`)
    }
    const before = pieces[id]
    const type = before?.type === unknown ? unknown : special ? control : userDefined
    pieces[id] = { text, score: before?.score ?? 0, type }
  }
}

// ── tokenizer.model ──────────────────────────────────────────────────────────────────────────────────────────────────

/** The pieces of a SentencePiece model: field 1 of a protobuf message, each { piece = 1, score = 2, type = 3 }. */
function sentencePieces(path: string): Piece[] {
  return withFile(path, (source) => {
    if (source.size > longestTokenizer) {
      throw corrupt(path, 0, `expected at most ${longestTokenizer} bytes, got ${source.size}`)
    }
    const bytes = Buffer.allocUnsafe(source.size)
    source.read(0, bytes)
    const pieces: Piece[] = []
    for (const { field, start, end } of protobufFields(path, bytes, 0, bytes.length)) {
      if (field === 1) pieces.push(readPiece(path, bytes, start, end))
    }
    if (pieces.length === 0) throw corrupt(path, 0, 'expected a SentencePiece model, got no pieces')
    return pieces
  })
}

function readPiece(path: string, bytes: Buffer, from: number, to: number): Piece {
  const piece: Piece = { text: '', score: 0, type: normal }
  for (const { field, wire, start, end, value } of protobufFields(path, bytes, from, to)) {
    if (field === 1 && wire === 2) piece.text = bytes.toString('utf8', start, end)
    else if (field === 2 && wire === 5) piece.score = bytes.readFloatLE(start)
    else if (field === 3 && wire === 0) piece.type = value
  }
  if (!Number.isFinite(piece.score))
    throw corrupt(path, from, `piece ${quote(piece.text)}: expected a finite score, got ${piece.score}`)
  if (piece.type < normal || piece.type > byte) {
    throw corrupt(
      path,
      from,
      `piece ${quote(piece.text)}: expected a type from ${normal} to ${byte}, got ${piece.type}`,
    )
  }
  return piece
}

interface ProtobufField {
  readonly field: number
  /** 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. */
  readonly wire: number
  readonly start: number
  readonly end: number
  /** Of a varint. */
  readonly value: number
}

function* protobufFields(path: string, bytes: Buffer, from: number, to: number): Generator<ProtobufField> {
  let at = from
  const varint = (): number => {
    let value = 0
    for (let shift = 0; shift < 70; shift += 7) {
      if (at >= to) break
      const next = bytes[at++] as number
      value += (next & 0x7f) * 2 ** shift
      if (next < 0x80) return value
    }
    throw corrupt(path, at, 'expected a protobuf number to end')
  }
  while (at < to) {
    const begin = at
    const key = varint()
    const wire = key & 7
    const value = wire === 0 || wire === 2 ? varint() : 0
    const length = wire === 0 ? 0 : wire === 1 ? 8 : wire === 2 ? value : wire === 5 ? 4 : -1
    if (length < 0 || at + length > to)
      throw corrupt(path, begin, 'expected a protobuf field, got one that does not fit')
    yield { field: Math.floor(key / 8), wire, start: at, end: at + length, value }
    at += length
  }
}
