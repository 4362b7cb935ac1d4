/**
 * Grammars: what a generated text must look like, token by token.
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import { readRules } from './grammar-rules.ts'
import { GrammarStates, type State } from './grammar-states.ts'
import { withoutEscapes } from './json-strings.ts'
import { withoutRanges } from './number-ranges.ts'
import { VocabularyTrie } from './vocabulary-trie.ts'
import { toEbnf } from './xgrammar.ts'

/** What a text must be; exactly one of these. */
export type GrammarSource =
  /** Any JSON value. */
  | { readonly json: true }
  /**
   * JSON that a schema accepts. Objects hold the properties it declares, in their order, and others only where `additionalProperties`
   * says so, or if `strict` is false. White space is one blank after a colon or comma. What XGrammar does not know of JSON Schema (`not`,
   * `uniqueItems`, `multipleOf`, …) bounds nothing.
   */
  | { readonly schema: object | boolean; readonly strict?: boolean | undefined }
  /**
   * A grammar in the EBNF of XGrammar (that of llama.cpp's GBNF), beginning with the rule `root`. No rule may begin with itself: repeat
   * instead.
   */
  | { readonly ebnf: string }

/** The state of one text that follows a grammar. */
export interface TokenConstraint {
  /** Which tokens may come next: bit id mod 32 of word id / 32. Not to be changed: texts share it. */
  readonly mask: Int32Array
  /** Takes the token that came. Returns true if nothing may follow. @throws ERR_INTERNAL if it was not allowed. */
  accept(id: number): boolean
}

/** What texts that follow grammars of one model share. */
interface Vocabulary {
  readonly tokenizer: Tokenizer
  readonly trie: VocabularyTrie
  /** Those that may come where the grammar is complete. */
  readonly stopTokens: ReadonlySet<number>
  readonly masks: Masks
}

/** A compiled grammar, for any number of texts at once. Made by `gemma.compileGrammar`. */
export class Grammar {
  readonly #states: GrammarStates
  readonly #vocabulary: Vocabulary

  /** @internal */
  constructor(states: GrammarStates, vocabulary: Vocabulary) {
    this.#states = states
    this.#vocabulary = vocabulary
  }

  /** @internal Begins a text. @throws ERR_INVALID_ARGUMENT for another model than it was compiled for. */
  begin(tokenizer: Tokenizer): TokenConstraint {
    if (tokenizer === this.#vocabulary.tokenizer) return new GrammarText(this.#states, this.#vocabulary)
    throw new LapidaryError('ERR_INVALID_ARGUMENT', 'grammar: expected one that this model compiled, got another’s')
  }
}

class GrammarText implements TokenConstraint {
  // Made when a token is taken, not when a step needs it: what goes wrong then is this text's trouble alone.
  mask: Int32Array
  readonly #states: GrammarStates
  readonly #vocabulary: Vocabulary
  #state: State

  constructor(states: GrammarStates, vocabulary: Vocabulary) {
    this.#states = states
    this.#vocabulary = vocabulary
    this.#state = states.start
    this.mask = vocabulary.masks.of(this.#state, () => this.#makeMask())
  }

  accept(id: number): boolean {
    const { tokenizer, stopTokens, masks } = this.#vocabulary
    if (this.#state.accepting && stopTokens.has(id)) return true
    const bytes = tokenizer.textBytesOf(id)
    let state: State | null = bytes === undefined ? null : this.#state
    for (const byte of bytes ?? []) state = state && this.#states.step(state, byte)
    if (!state) throw new LapidaryError('ERR_INTERNAL', `grammar: expected a token that the mask allows, got ${id}`)
    this.#state = state
    if (state.accepting && state.places.length === 0) return true
    this.mask = masks.of(state, () => this.#makeMask())
    return false
  }

  #makeMask(): Int32Array {
    const { trie, stopTokens } = this.#vocabulary
    const mask = trie.maskOf(this.#states, this.#state)
    if (this.#state.accepting) for (const id of stopTokens) mask[id >> 5] = (mask[id >> 5] as number) | (1 << (id & 31))
    return mask
  }
}

/** Masks at most that are kept: 32 KiB each for Gemma 3's vocabulary. */
const maxMasks = 512

/** The masks of states that texts have come to lately: within a string, or between the same names, it is the same one time after time. */
class Masks {
  readonly #known = new Map<State, Int32Array>()

  of(state: State, make: () => Int32Array): Int32Array {
    const mask = this.#known.get(state) ?? make()
    this.#known.delete(state)
    this.#known.set(state, mask)
    const oldest = this.#known.keys().next().value
    if (this.#known.size > maxMasks && oldest !== undefined) this.#known.delete(oldest)
    return mask
  }
}

/** JSON text of a schema at most. */
const maxSourceLength = 2 ** 16
/** Grammars kept. Requests mostly come with the same few. */
const maxCached = 64

/** Compiles grammars for one model, and keeps the last ones. */
export class Grammars {
  readonly #tokenizer: Tokenizer
  readonly #vocabularySize: number
  readonly #stopTokens: ReadonlySet<number>
  readonly #cache = new Map<string, Promise<Grammar>>()
  #vocabulary: Promise<Vocabulary> | undefined

  /** @param stopTokens Those that may come where the grammar is complete. */
  constructor(tokenizer: Tokenizer, vocabularySize: number, stopTokens: ReadonlySet<number>) {
    this.#tokenizer = tokenizer
    this.#vocabularySize = vocabularySize
    this.#stopTokens = stopTokens
  }

  /** Equal sources are compiled once, also while that is under way. @throws ERR_INVALID_ARGUMENT for a source that is none, or too long. */
  async compile(source: GrammarSource): Promise<Grammar> {
    const key = keyOf(source)
    if (key.length > maxSourceLength) {
      const problem = `expected at most ${maxSourceLength} characters, got ${key.length}`
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}`)
    }
    const made = this.#cache.get(key) ?? this.#compile(source)
    // Looked up last, given up last.
    this.#cache.delete(key)
    this.#cache.set(key, made)
    const oldest = this.#cache.keys().next().value
    if (this.#cache.size > maxCached && oldest !== undefined) this.#cache.delete(oldest)
    try {
      return await made
    } catch (error) {
      if (this.#cache.get(key) === made) this.#cache.delete(key)
      throw error
    }
  }

  async #compile(source: GrammarSource): Promise<Grammar> {
    const ebnf = await ebnfOf(source)
    this.#vocabulary ??= this.#read()
    const vocabulary = await this.#vocabulary
    return new Grammar(new GrammarStates(readRules(ebnf)), vocabulary)
  }

  async #read(): Promise<Vocabulary> {
    const tokenizer = this.#tokenizer
    const trie = await VocabularyTrie.build(tokenizer, this.#vocabularySize)
    return { tokenizer, trie, stopTokens: this.#stopTokens, masks: new Masks() }
  }
}

async function ebnfOf(source: GrammarSource): Promise<string> {
  if ('json' in source) return await toEbnf({ kind: 'json' })
  if ('ebnf' in source) return await toEbnf({ kind: 'ebnf', text: source.ebnf })
  const { schema, insert } = withoutRanges(source.schema)
  const ebnf = await toEbnf({ kind: 'schema', text: JSON.stringify(schema), strict: source.strict ?? true })
  return insert(withoutEscapes(ebnf))
}

/** Levels of a schema. */
const deepest = 200

/**
 * @throws ERR_INVALID_ARGUMENT for a schema that is nested too deeply, and for a pattern with a character that a string of JSON writes by an
 *   escape: the library would not.
 */
function checkSchema(schema: unknown, depth = 0): void {
  if (typeof schema !== 'object' || schema === null) return
  if (depth > deepest) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: expected a schema of at most ${deepest} levels, got more`)
  }
  for (const [key, value] of Object.entries(schema)) {
    if (key === 'pattern' && typeof value === 'string' && /"|\\\\|\\[nrtfv0]|\\x[01]/.test(value)) {
      const problem = 'expected a pattern without quotation marks, backslashes and control characters'
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}, got ${JSON.stringify(value.slice(0, 100))}`)
    }
    checkSchema(value, depth + 1)
  }
}

function keyOf(source: GrammarSource): string {
  if (typeof source !== 'object' || source === null) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `grammar: expected { json }, { schema } or { ebnf }, got ${describeValue(source)}`,
    )
  }
  if ('json' in source) return 'json'
  if ('ebnf' in source && typeof source.ebnf === 'string') return `ebnf ${source.ebnf}`
  if ('schema' in source && ['object', 'boolean'].includes(typeof source.schema) && source.schema !== null) {
    // Before it is written: what is nested too deeply, or in itself, cannot be.
    checkSchema(source.schema)
    return `schema ${source.strict ?? true} ${JSON.stringify(source.schema)}`
  }
  throw new LapidaryError('ERR_INVALID_ARGUMENT', 'grammar: expected { json: true }, { schema } or { ebnf }')
}
