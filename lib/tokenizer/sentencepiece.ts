/**
 * SentencePiece's `tokenizer.model`: a protocol buffer of pieces with scores.
 * https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { MessageReader, WireType } from './protobuf.ts'
import { mostPieces, PieceType, type VocabularySource } from './vocabulary.ts'

const modelTypes = ['', 'unigram', 'BPE', 'word', 'character']
const bpe = 2

/** Trainer and normaliser settings that decide how a text is split; the defaults are those of the format. */
interface Settings {
  modelType: number
  byteFallback: boolean
  whitespaceAsSuffix: boolean
  addDummyPrefix: boolean
  removeExtraWhitespaces: boolean
  escapeWhitespaces: boolean
  /** Length of the compiled rules that change characters. */
  normalizerRules: number
  denormalizerRules: number
  bosPiece: string
  eosPiece: string
  padPiece: string
}

const none = new Uint8Array(0)

/** @internal Reads a model. Nothing of a piece is copied: the vocabulary keeps the file's bytes. */
export function readSentencePiece(bytes: Uint8Array, what: string): VocabularySource {
  const reader = new MessageReader(bytes, what)
  const pieceSpans: number[] = []
  const settings = defaults()
  const submessages: { field: number; start: number; end: number }[] = []
  while (reader.next()) {
    if (reader.field === 1) {
      reader.expect(WireType.bytes, 'a piece')
      pieceSpans.push(reader.start, reader.end)
      if (pieceSpans.length > 2 * mostPieces)
        throw reader.corrupt(reader.start, `there are more than ${mostPieces} pieces`)
    } else if (reader.field === 2 || reader.field === 3 || reader.field === 5) {
      reader.expect(WireType.bytes, 'the trainer or normaliser settings')
      submessages.push({ field: reader.field, start: reader.start, end: reader.end })
    }
  }
  for (const { field, start, end } of submessages) readSettings(reader, field, start, end, settings, bytes)
  if (pieceSpans.length === 0) throw reader.corrupt(bytes.length, 'the model has no pieces')
  refuse(settings, what)

  const size = pieceSpans.length / 2
  const offsets = new Int32Array(size)
  const lengths = new Int32Array(size)
  const types = new Uint8Array(size).fill(PieceType.normal)
  const scores = new Float32Array(size)
  const scoreBits = new Int32Array(scores.buffer)
  for (let id = 0; id < size; id++) {
    const pieceStart = pieceSpans[2 * id]!
    reader.enter(pieceStart, pieceSpans[2 * id + 1]!)
    while (reader.next()) {
      if (reader.field === 1) {
        reader.expect(WireType.bytes, `the text of piece ${id}`)
        offsets[id] = reader.start
        lengths[id] = reader.end - reader.start
      } else if (reader.field === 2) {
        reader.expect(WireType.fixed32, `the score of piece ${id}`)
        scoreBits[id] = reader.value
      } else if (reader.field === 3) {
        reader.expect(WireType.varint, `the type of piece ${id}`)
        if (reader.value < PieceType.normal || reader.value > PieceType.byte) {
          throw reader.corrupt(pieceStart, `piece ${id} has type ${reader.value}; expected 1 to 6`)
        }
        types[id] = reader.value
      }
    }
    if (lengths[id] === 0) throw reader.corrupt(pieceStart, `piece ${id} is empty`)
    if (Number.isNaN(scores[id])) throw reader.corrupt(pieceStart, `the score of piece ${id} is not a number`)
    if (types[id] === PieceType.unused) {
      throw unsupported(what, `piece ${id} is of type "unused", which no model of the Gemma family has`)
    }
  }
  const idOf = (name: string): number => {
    const text = Buffer.from(name, 'utf8')
    for (let id = 0; id < size; id++) {
      const isControl = types[id] === PieceType.control && lengths[id] === text.length
      if (isControl && text.equals(bytes.subarray(offsets[id]!, offsets[id]! + text.length))) return id
    }
    return -1
  }
  const required = (name: string, piece: string): number => {
    const id = idOf(piece)
    if (id < 0)
      throw reader.corrupt(bytes.length, `there is no control piece ${JSON.stringify(piece)}, the ${name} piece`)
    return id
  }
  return {
    what,
    bytes,
    offsets,
    lengths,
    types,
    scores,
    bos: required('bos', settings.bosPiece),
    eos: required('eos', settings.eosPiece),
    pad: idOf(settings.padPiece),
    dummyPrefix: settings.addDummyPrefix,
  }
}

function defaults(): Settings {
  return {
    modelType: 1,
    byteFallback: false,
    whitespaceAsSuffix: false,
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
    escapeWhitespaces: true,
    normalizerRules: 0,
    denormalizerRules: 0,
    bosPiece: '<s>',
    eosPiece: '</s>',
    padPiece: '<pad>',
  }
}

function readSettings(
  reader: MessageReader,
  message: number,
  start: number,
  end: number,
  settings: Settings,
  bytes: Uint8Array,
): void {
  const number = (): number => {
    reader.expect(WireType.varint, `field ${reader.field} of the settings`)
    return reader.value
  }
  const content = (): Uint8Array => {
    reader.expect(WireType.bytes, `field ${reader.field} of the settings`)
    return reader.end > reader.start ? bytes.subarray(reader.start, reader.end) : none
  }
  const text = (): string => Buffer.from(content()).toString('utf8')
  reader.enter(start, end)
  while (reader.next()) {
    if (message === 2) {
      if (reader.field === 3) settings.modelType = number()
      else if (reader.field === 24) settings.whitespaceAsSuffix = number() !== 0
      else if (reader.field === 35) settings.byteFallback = number() !== 0
      else if (reader.field === 46) settings.bosPiece = text()
      else if (reader.field === 47) settings.eosPiece = text()
      else if (reader.field === 48) settings.padPiece = text()
    } else if (message === 3) {
      if (reader.field === 2) settings.normalizerRules = content().length
      else if (reader.field === 3) settings.addDummyPrefix = number() !== 0
      else if (reader.field === 4) settings.removeExtraWhitespaces = number() !== 0
      else if (reader.field === 5) settings.escapeWhitespaces = number() !== 0
    } else if (reader.field === 2) {
      settings.denormalizerRules = content().length
    }
  }
}

/** What other models of the format do, and Gemma's do not. */
function refuse(settings: Settings, what: string): void {
  if (settings.modelType !== bpe) {
    const name = modelTypes[settings.modelType] ?? settings.modelType
    throw unsupported(what, `the model is of type ${name}; only BPE is read`)
  }
  if (!settings.byteFallback) throw unsupported(what, 'byte_fallback is off; only models with byte pieces are read')
  if (settings.whitespaceAsSuffix) throw unsupported(what, 'treat_whitespace_as_suffix is on')
  if (settings.removeExtraWhitespaces) throw unsupported(what, 'remove_extra_whitespaces is on')
  if (!settings.escapeWhitespaces) throw unsupported(what, 'escape_whitespaces is off')
  if (settings.normalizerRules > 0) throw unsupported(what, 'it normalises characters; expected the identity')
  if (settings.denormalizerRules > 0)
    throw unsupported(what, 'it changes characters when decoding; expected the identity')
}

function unsupported(what: string, problem: string): LapidaryError {
  return new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${what}: ${problem}`)
}
