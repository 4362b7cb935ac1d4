/**
 * A made-up vocabulary in the form of Gemma's: special pieces and bytes at their places, then pieces of letters that merge from shorter ones.
 * @module
 */
import { LapidaryError } from '../../errors.ts'
import type { GgufVocabulary } from './gguf-metadata.ts'
import type { GemmaSize } from './sizes.ts'

const normal = 1
const unknown = 2
const control = 3
const userDefined = 4
const byte = 6

/** SentencePiece's visible space. */
const space = '▁'

/**
 * A vocabulary of `size` pieces. Text of lower-case letters becomes tokens of about four characters, as with a real one.
 * @throws ERR_INVALID_ARGUMENT if the size is beyond what is made up.
 */
export function syntheticVocabulary(architecture: GemmaSize['architecture'], size: number): GgufVocabulary {
  const tokens: string[] = []
  const types: number[] = []
  const add = (type: number, ...pieces: string[]): void => {
    for (const piece of pieces) {
      tokens.push(piece)
      types.push(type)
    }
  }
  add(control, '<pad>', '<eos>', '<bos>')
  add(unknown, '<unk>')
  add(userDefined, '<mask>')
  // Gemma 3 has its turn markers one place before Gemma 1 and 2.
  const turn = architecture === 'gemma3' ? 105 : 106
  while (tokens.length < turn) add(userDefined, `<unused${tokens.length}>`)
  add(control, '<start_of_turn>', '<end_of_turn>')
  for (let length = 1; length <= 31; length++) add(userDefined, '\n'.repeat(length))
  for (let length = 2; length <= 31; length++) add(userDefined, space.repeat(length))
  for (let value = 0; value < 256; value++) add(byte, `<0x${value.toString(16).toUpperCase().padStart(2, '0')}>`)
  const special = tokens.length

  for (const piece of letterPieces()) {
    if (tokens.length === size) break
    add(normal, piece)
  }
  if (tokens.length !== size) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `syntheticVocabulary: size: expected at most ${tokens.length}, got ${size}`,
    )
  }
  const scores = Float32Array.from(tokens, (_, id) => (id < special ? 0 : special - id))
  return {
    tokens,
    scores,
    types: Int32Array.from(types),
    bos: 2,
    eos: 1,
    pad: 0,
    unk: 3,
    endOfTurn: turn + 1,
  }
}

/** Printable characters, then all runs of letters, shorter ones first, each also with a space before it: every one is a merge of two earlier. */
function* letterPieces(): Iterable<string> {
  yield space
  for (let code = 0x21; code < 0x7f; code++) yield String.fromCharCode(code)
  // By frequency in English, so that what is cut off at the end is rare.
  const letters = 'etaoinshrdlucmfwypvbgkjqxz'
  let runs = [...letters]
  for (const letter of runs) yield space + letter
  while (runs[0] !== undefined && runs[0].length < 4) {
    runs = runs.flatMap((run) => [...letters].map((letter) => run + letter))
    for (const run of runs) {
      yield run
      yield space + run
    }
  }
}
