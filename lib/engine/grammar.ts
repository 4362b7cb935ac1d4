/**
 * Grammars: what a generated text must look like, token by token.
 * @module
 */
import type { CompiledGrammar, GrammarCompiler } from '@mlc-ai/web-xgrammar'
import { describeValue, LapidaryError } from '../errors.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import { withoutEscapes } from './json-strings.ts'
import { withoutRanges } from './number-ranges.ts'
import { type Matcher, openXGrammar, type XGrammar } from './xgrammar.ts'

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
  /** A grammar in the EBNF of XGrammar (that of llama.cpp's GBNF), beginning with the rule `root`. */
  | { readonly ebnf: string }

/** The state of one text that follows a grammar. */
export interface TokenConstraint {
  /** Which tokens may come next: bit id mod 32 of word id / 32. */
  readonly mask: Int32Array
  /** Takes the token that came. Returns true if nothing may follow. @throws ERR_INTERNAL if it was not allowed. */
  accept(id: number): boolean
  dispose(): void
}

/** A compiled grammar, for any number of texts at once. Made by `gemma.compileGrammar`. */
export class Grammar {
  readonly #library: XGrammar
  readonly #compiled: CompiledGrammar
  /** Of the model it was compiled for. */
  readonly #tokenizer: Tokenizer

  /** @internal */
  constructor(library: XGrammar, compiled: CompiledGrammar, tokenizer: Tokenizer) {
    this.#library = library
    this.#compiled = compiled
    this.#tokenizer = tokenizer
  }

  /** @internal Begins a text. @throws ERR_INVALID_ARGUMENT for another model than it was compiled for, or if no text fits it. */
  begin(tokenizer: Tokenizer): TokenConstraint {
    if (tokenizer === this.#tokenizer) return new GrammarState(this.#library.matcher(this.#compiled))
    throw new LapidaryError('ERR_INVALID_ARGUMENT', 'grammar: expected one that this model compiled, got another’s')
  }
}

class GrammarState implements TokenConstraint {
  // Made when a token is taken, not when a step needs it: what goes wrong then is this text's trouble alone.
  readonly mask: Int32Array
  readonly #matcher: Matcher
  #disposed = false

  constructor(matcher: Matcher) {
    this.#matcher = matcher
    this.mask = matcher.mask().slice()
    try {
      this.#checkMask('no text fits it')
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  accept(id: number): boolean {
    if (!this.#matcher.acceptToken(id)) {
      throw new LapidaryError('ERR_INTERNAL', `grammar: expected a token that the mask allows, got ${id}`)
    }
    if (this.#matcher.isTerminated()) return true
    this.mask.set(this.#matcher.mask())
    this.#checkMask('no text that begins like this one fits it')
    return false
  }

  /** A schema that only leads back to itself is understood, but no text ends it. */
  #checkMask(problem: string): void {
    if (!this.mask.some((word) => word !== 0)) {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: expected one that some text fits: ${problem}`)
    }
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#matcher.dispose()
  }
}

/** JSON text of a schema at most. Compiling takes time on the thread that serves everybody. */
const maxSourceLength = 2 ** 16
/** Grammars kept. Requests mostly come with the same few. */
const maxCached = 64

/** Compiles grammars for one model, and keeps the last ones. */
export class Grammars {
  readonly #tokenizer: Tokenizer
  readonly #vocabularySize: number
  readonly #stopTokens: ReadonlySet<number>
  readonly #cache = new Map<string, Promise<Grammar>>()
  #compiler: Promise<{ readonly library: XGrammar; readonly compiler: GrammarCompiler }> | undefined

  /** @param stopTokens Those that may come where the grammar is complete. */
  constructor(tokenizer: Tokenizer, vocabularySize: number, stopTokens: ReadonlySet<number>) {
    this.#tokenizer = tokenizer
    this.#vocabularySize = vocabularySize
    this.#stopTokens = stopTokens
  }

  /** @throws ERR_INVALID_ARGUMENT for a source that is none, or too long. */
  async compile(source: GrammarSource): Promise<Grammar> {
    const key = keyOf(source)
    if (key.length > maxSourceLength) {
      const problem = `expected at most ${maxSourceLength} characters, got ${key.length}`
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}`)
    }
    const known = this.#cache.get(key)
    if (known) {
      this.#cache.delete(key)
      this.#cache.set(key, known)
      return await known
    }
    const made = this.#compile(source)
    this.#cache.set(key, made)
    // One that is given up stays whole for the texts that use it: its memory goes when it is collected.
    const oldest = this.#cache.keys().next().value
    if (this.#cache.size > maxCached && oldest !== undefined) this.#cache.delete(oldest)
    made.catch(() => this.#cache.delete(key))
    return await made
  }

  async #compile(source: GrammarSource): Promise<Grammar> {
    const ebnf = await parse(source)
    this.#compiler ??= this.#open()
    const { library, compiler } = await this.#compiler
    const compiled = await compiler.compileGrammar(ebnf)
    finalizer.register(compiled, compiled.handle)
    return new Grammar(library, compiled, this.#tokenizer)
  }

  async #open(): Promise<{ library: XGrammar; compiler: GrammarCompiler }> {
    const library = await openXGrammar()
    const pieces = Array.from({ length: this.#tokenizer.vocabularySize }, (_, id) => this.#piece(id))
    const info = await library.TokenizerInfo.createTokenizerInfo(pieces, 'byte_fallback', false, this.#vocabularySize, [
      ...this.#stopTokens,
    ])
    return { library, compiler: await library.GrammarCompiler.createGrammarCompiler(info, false) }
  }

  /** How the vocabulary spells a token; nothing for those that are no text: what is empty is never allowed. */
  #piece(id: number): string {
    const piece = this.#tokenizer.pieceOf(id)
    return /^<0x[0-9A-F]{2}>$/.test(piece) || this.#tokenizer.decode([id]) !== '' ? piece : ''
  }
}

let parser: Promise<XGrammar> | undefined

/**
 * A source in EBNF, checked. The library gives up at a source that is wrong, and its instance with it: so the checking is done by one
 * that knows no vocabulary and is soon replaced.
 */
async function parse(source: GrammarSource): Promise<string> {
  if ('schema' in source) checkPatterns(source.schema)
  const ranges = 'schema' in source ? withoutRanges(source.schema) : undefined
  parser ??= openXGrammar()
  const library = await parser
  library.takeComplaints()
  try {
    const grammar =
      'json' in source
        ? await library.Grammar.builtinJSONGrammar()
        : 'ebnf' in source
          ? await library.Grammar.fromEBNF(source.ebnf)
          : await library.Grammar.fromJSONSchema(
              JSON.stringify(ranges?.schema),
              // One space after a colon or comma, none elsewhere: what costs the fewest tokens. −1 is no indentation; undefined would be 2,
              // and `{` would have to be followed by a line break.
              false,
              -1,
              undefined,
              source.strict ?? true,
            )
    const text = grammar.toString()
    grammar.dispose()
    return ranges ? ranges.insert(withoutEscapes(text)) : text
  } catch (cause) {
    parser = undefined
    // `[FATAL] file:line: what is wrong`
    const problem = library.takeComplaints().replace(/^\[FATAL\] \S+:\d+: (?:Check failed: .*? is false: )?/, '')
    const shown = problem.replace(/\s*Aborted\(.*$/, '').slice(0, 300) || 'it cannot be understood'
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${shown}`, { cause })
  }
}

/** @throws ERR_INVALID_ARGUMENT for a pattern with a character that a string of JSON writes by an escape: the library would not. */
function checkPatterns(schema: unknown): void {
  if (typeof schema !== 'object' || schema === null) return
  for (const [key, value] of Object.entries(schema)) {
    if (key === 'pattern' && typeof value === 'string' && /"|\\\\|\\[nrtfv0]|\\x[01]/.test(value)) {
      const problem = 'expected a pattern without quotation marks, backslashes and control characters'
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}, got ${JSON.stringify(value.slice(0, 100))}`)
    }
    checkPatterns(value)
  }
}

/** Frees memory of WebAssembly with the object that stood for it. */
const finalizer = new FinalizationRegistry<{ delete(): void }>((handle) => handle.delete())

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
    return `schema ${source.strict ?? true} ${JSON.stringify(source.schema)}`
  }
  throw new LapidaryError('ERR_INVALID_ARGUMENT', 'grammar: expected { json: true }, { schema } or { ebnf }')
}
