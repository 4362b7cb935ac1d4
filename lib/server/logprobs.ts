/**
 * Log probabilities as OpenAI writes them: of chat, and of completions.
 * @module
 */
import type { Tokenizer, TokenLogprobs } from '../index.ts'

/** What stands for minus infinity, which JSON cannot say: the number OpenAI's API gives. */
const lowest = -9999

export function finite(logprob: number): number {
  return Number.isNaN(logprob) ? lowest : Math.max(logprob, lowest)
}

/** The text of one token. A byte of a character that is not complete is written `bytes:\xhh`, as OpenAI's API does. */
export function tokenText(tokenizer: Tokenizer, id: number): string {
  const byte = byteOf(tokenizer, id)
  if (byte === undefined) return tokenizer.decode([id], { special: true })
  return byte < 0x80 ? String.fromCharCode(byte) : `bytes:\\x${byte.toString(16).padStart(2, '0')}`
}

function byteOf(tokenizer: Tokenizer, id: number): number | undefined {
  const hex = /^<0x([0-9A-F]{2})>$/.exec(tokenizer.pieceOf(id))?.[1]
  return hex === undefined ? undefined : Number.parseInt(hex, 16)
}

interface TokenEntry {
  readonly token: string
  readonly logprob: number
  readonly bytes: readonly number[]
}

function entry(tokenizer: Tokenizer, id: number, logprob: number): TokenEntry {
  const byte = byteOf(tokenizer, id)
  const token = tokenText(tokenizer, id)
  return { token, logprob: finite(logprob), bytes: byte === undefined ? [...Buffer.from(token)] : [byte] }
}

/** `logprobs.content` of a chat choice. */
export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly TokenLogprobs[]): object[] {
  return tokens.map(({ id, logprob, top }) => ({
    ...entry(tokenizer, id, logprob),
    top_logprobs: top.map((other) => entry(tokenizer, other.id, other.logprob)),
  }))
}

/** `logprobs` of a completion, gathered token by token. */
export class CompletionLogprobs {
  readonly tokens: string[] = []
  readonly token_logprobs: (number | null)[] = []
  readonly top_logprobs: (Record<string, number> | null)[] = []
  readonly text_offset: number[] = []
  readonly #tokenizer: Tokenizer
  readonly #wanted: number
  #offset: number

  /**
   * @param wanted How many alternatives were asked for.
   * @param offset Where in the text the first token begins.
   */
  constructor(tokenizer: Tokenizer, wanted: number, offset = 0) {
    this.#tokenizer = tokenizer
    this.#wanted = wanted
    this.#offset = offset
  }

  /** A token with nothing before it. */
  addFirst(id: number): void {
    this.#add(id, null, null)
  }

  add(tokens: readonly TokenLogprobs[]): this {
    for (const { id, logprob, top } of tokens) {
      const alternatives: Record<string, number> = {}
      for (const other of top.slice(0, this.#wanted)) {
        alternatives[tokenText(this.#tokenizer, other.id)] ??= finite(other.logprob)
      }
      // The chosen token is always among them, as OpenAI's API has it: up to wanted + 1 entries.
      if (this.#wanted > 0) alternatives[tokenText(this.#tokenizer, id)] ??= finite(logprob)
      this.#add(id, finite(logprob), this.#wanted > 0 ? alternatives : null)
    }
    return this
  }

  /** Takes what has been gathered, and goes on after it: for one chunk of a stream. */
  take(): object {
    const { tokens, token_logprobs, top_logprobs, text_offset } = this
    return {
      tokens: tokens.splice(0),
      token_logprobs: token_logprobs.splice(0),
      top_logprobs: top_logprobs.splice(0),
      text_offset: text_offset.splice(0),
    }
  }

  #add(id: number, logprob: number | null, top: Record<string, number> | null): void {
    const text = tokenText(this.#tokenizer, id)
    this.tokens.push(text)
    this.token_logprobs.push(logprob)
    this.top_logprobs.push(top)
    this.text_offset.push(this.#offset)
    this.#offset += text.length
  }
}
