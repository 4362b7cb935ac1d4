/**
 * Finds calls of functions in an answer while it is written.
 * @module
 */
import type { TokenLogprobs } from '../index.ts'
import { makeId } from './call.ts'

/** What an answer consists of. */
export type AnswerEvent =
  | { readonly type: 'text'; readonly text: string; readonly logprobs?: readonly TokenLogprobs[] }
  /** A call begins. */
  | { readonly type: 'call'; readonly call: number; readonly id: string; readonly name: string }
  /** A part of its arguments. */
  | { readonly type: 'arguments'; readonly call: number; readonly text: string }

/** Up to where the name of a call is known and its arguments begin. */
const opening = /^\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)/
/** What may come before the calls: a code fence, and the bracket of an array. */
const before = /^\s*(?:```(?:json|tool_code|tool_call)?\s*)?(?:\[\s*)?(?=\{)/
const keys = ['name', 'parameters', 'arguments']

type State = 'start' | 'arguments' | 'between' | 'text' | 'done'

/**
 * Reads an answer that either calls functions or is text. Text is held back only while it may be the beginning of a call. Arguments are
 * passed on as they come, from the moment the name is known; a call whose fields stand in another order is found at its end.
 */
export class CallParser {
  readonly #names: ReadonlySet<string>
  #state: State = 'start'
  #held = ''
  #calls = 0
  /** Of the arguments: open brackets, and whether in a string, after a backslash. */
  #depth = 0
  #inString = false
  #escaped = false

  constructor(names: Iterable<string>) {
    this.#names = new Set(names)
  }

  /** How many calls have begun. */
  get calls(): number {
    return this.#calls
  }

  push(text: string): AnswerEvent[] {
    if (this.#state === 'text') return text === '' ? [] : [{ type: 'text', text }]
    this.#held += text
    const events: AnswerEvent[] = []
    while (this.#advance(events)) {}
    return events
  }

  /** The answer is over. */
  end(): AnswerEvent[] {
    const events: AnswerEvent[] = []
    const held = this.#held
    this.#held = ''
    if (this.#state === 'start' && held !== '') {
      const calls = this.#wholeCalls(held)
      if (calls) events.push(...calls)
      else events.push({ type: 'text', text: held })
    }
    this.#state = 'done'
    return events
  }

  /** One step of reading; false when more text is needed. */
  #advance(events: AnswerEvent[]): boolean {
    switch (this.#state) {
      case 'start':
        return this.#start(events)
      case 'arguments':
        return this.#arguments(events)
      case 'between':
        return this.#between(events)
      case 'text':
        if (this.#held !== '') events.push({ type: 'text', text: this.#held })
        this.#held = ''
        return false
      case 'done':
        this.#held = ''
        return false
    }
  }

  #start(events: AnswerEvent[]): boolean {
    const prefix = before.exec(this.#held)?.[0]
    const rest = prefix === undefined ? '' : this.#held.slice(prefix.length)
    if (prefix === undefined ? couldOpen(this.#held) : mayBeCall(rest, this.#names)) return this.#open(rest, events)
    this.#state = 'text'
    return true
  }

  /** Begins a call if its name has come and is one of ours. */
  #open(text: string, events: AnswerEvent[]): boolean {
    const match = opening.exec(text)
    const name = match && parse(match[1] as string)
    if (!match || typeof name !== 'string' || !this.#names.has(name)) return false
    events.push({ type: 'call', call: this.#calls++, id: makeId('call_'), name })
    this.#held = text.slice(match[0].length)
    this.#state = 'arguments'
    this.#depth = 0
    return true
  }

  #arguments(events: AnswerEvent[]): boolean {
    const text = this.#held
    if (text === '') return false
    let at = 0
    for (; at < text.length; at++) {
      const character = text[at] as string
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false
        else if (character === '\\') this.#escaped = true
        else if (character === '"') this.#inString = false
      } else if (character === '"') this.#inString = true
      else if (character === '{' || character === '[') this.#depth++
      else if ((character === '}' || character === ']') && --this.#depth === 0) {
        at++
        this.#state = 'between'
        break
      }
    }
    events.push({ type: 'arguments', call: this.#calls - 1, text: text.slice(0, at) })
    this.#held = text.slice(at)
    return this.#state === 'between'
  }

  /** After a call: the end of its object, then another one, or nothing that counts. */
  #between(events: AnswerEvent[]): boolean {
    const next = /^[\s\]}]*,?\s*(?=\{)/.exec(this.#held)
    if (next) return this.#open(this.#held.slice(next[0].length), events)
    if (/^[\s\]}]*,?\s*$/.test(this.#held)) return false
    this.#state = 'done'
    return true
  }

  #wholeCalls(text: string): AnswerEvent[] | undefined {
    const body = text.replace(/^\s*```(?:json|tool_code|tool_call)?\s*/, '').replace(/\s*```\s*$/, '')
    const value = parse(body)
    const list = Array.isArray(value) ? value : [value]
    const events: AnswerEvent[] = []
    let call = 0
    for (const item of list as Partial<Record<'name' | 'parameters' | 'arguments', unknown>>[]) {
      const { name, parameters = item?.arguments ?? {} } = item ?? {}
      if (typeof name !== 'string' || !this.#names.has(name)) return undefined
      if (typeof parameters !== 'object' || parameters === null) return undefined
      events.push({ type: 'call', call, id: makeId('call_'), name })
      events.push({ type: 'arguments', call, text: JSON.stringify(parameters) })
      call++
    }
    this.#calls = call
    return events.length > 0 ? events : undefined
  }
}

/** Whether more text could make {@link before} match. */
function couldOpen(text: string): boolean {
  return /^\s*(?:`{0,3}|```[a-z_]{0,9}\s*)(?:\[\s*)?$/.test(text)
}

/** Whether the beginning of an object may be that of a call: by its first key, and by its name if that comes first. */
function mayBeCall(text: string, names: ReadonlySet<string>): boolean {
  const [, key = '', end] = /^\{\s*(?:"([^"]*)("?))?/.exec(text) ?? []
  if (end !== '"') return keys.some((known) => known.startsWith(key)) && (key !== '' || /^\{\s*"?$/.test(text))
  if (key !== 'name') return keys.includes(key)
  const value = /^\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")/.exec(text)?.[1]
  return value === undefined || names.has(String(parse(value)))
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}
