/**
 * Chat templates: from messages to the ids that a model was trained on.
 * @module
 */
import { Template } from '@huggingface/jinja'
import type { Checkpoint } from '../checkpoint/checkpoint.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import { guard, wellFormed } from './guards.ts'
import { Trust } from './matcher.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Text as a part of a message. */
export interface TextPart {
  readonly type: 'text'
  readonly text: string
}

/**
 * One message of a conversation. `assistant` and `model` mean the same.
 * @typeParam Part What its content is made of, where it is no string.
 */
export interface ChatMessage<Part extends { readonly type: string } = TextPart> {
  readonly role: 'system' | 'user' | 'assistant' | 'model'
  readonly content: string | readonly Part[]
}

/** @internal Where an image stands: the template writes `<start_of_image>` for it. */
export interface ImagePlace {
  readonly type: 'image'
}

/** @internal What a template writes for an image. */
export const imageMarker = '<start_of_image>'

/** How a conversation becomes text. */
export interface ChatOptions {
  /** End with the beginning of the model's turn. Default: true. */
  readonly generationPrompt?: boolean
}

/** How a conversation becomes tokens. */
export interface ChatEncodeOptions extends ChatOptions {
  /** Recognise markers such as `<start_of_turn>` in the contents of messages. Default: false, they stay text. */
  readonly allowMarkers?: boolean
}

const roles = ['system', 'user', 'assistant', 'model']

const turns = `
{%- macro text(content) -%}
  {%- if content is string -%}{{ content | trim }}
  {%- else -%}{%- for part in content -%}
    {%- if part.type == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ part.text | trim }}{%- endif -%}
  {%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in loop_messages -%}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('roles must alternate between user and model, beginning with user') }}
  {%- endif -%}
  {{ '<start_of_turn>' + ('user' if message.role == 'user' else 'model') + '\\n' -}}
  {{ (first_user_prefix if loop.first else '') + text(message.content) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}`

/** For checkpoints without a template of their own: Gemma 1 and 2, which know no system message. */
const gemma2Template = `{{ bos_token }}
{%- if messages[0].role == 'system' -%}{{ raise_exception('this model takes no system message') }}{%- endif -%}
{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}${turns}`

/** Gemma 3: a system message goes in front of the first user turn. */
const gemma3Template = `{{ bos_token }}
{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set system = messages[0].content -%}
  {%- set first_user_prefix = (system if system is string else system[0].text) + '\\n\\n' -%}
  {%- set loop_messages = messages[1:] -%}
{%- endif -%}${turns}`

/** Tells what a template raises from what it fails at. Jinja drops the line break after a block. */
const ownRaise = '{% set raise_exception = refuse %}\n'

/** What a template raised by itself, in contrast to what it could not be run for. */
class TemplateRefusal extends Error {}

/**
 * A checkpoint's chat template, or the format of its family where it has none.
 *
 * @example
 * const template = ChatTemplate.for(checkpoint, tokenizer)
 * const ids = template.encode([{ role: 'user', content: 'Why is the sky blue?' }])
 */
export class ChatTemplate {
  readonly #tokenizer: Tokenizer
  readonly #source: string
  readonly #what: string
  #template: Template | undefined

  private constructor(tokenizer: Tokenizer, source: string, what: string) {
    this.#tokenizer = tokenizer
    this.#source = source
    this.#what = what
  }

  /**
   * @throws ERR_CHECKPOINT_UNSUPPORTED if the checkpoint has no template and its vocabulary is not that of a family with a known
   *   format.
   */
  static for(checkpoint: Pick<Checkpoint, 'path' | 'chatTemplate'>, tokenizer: Tokenizer): ChatTemplate {
    const what = `${checkpoint.path}: chat template`
    if (checkpoint.chatTemplate !== undefined) return new ChatTemplate(tokenizer, checkpoint.chatTemplate, what)
    const turn = tokenizer.idOf('<start_of_turn>')
    if (turn === undefined || tokenizer.idOf('<end_of_turn>') === undefined) {
      const problem = 'there is none, and the vocabulary has no <start_of_turn> and <end_of_turn> to build one from'
      throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', `${what}: ${problem}`)
    }
    // The vocabulary of Gemma 1 and 2 has one reserved name more in front of it than that of Gemma 3.
    return new ChatTemplate(tokenizer, turn === 106 ? gemma2Template : gemma3Template, `${what} (built in)`)
  }

  /**
   * The conversation as ids, bos once at the start. Markers of the template are recognised; those in the contents of messages are
   * text unless `allowMarkers`, and control pieces such as `<bos>` always are.
   *
   * @throws ERR_INVALID_ARGUMENT if a message is malformed or the template refuses the conversation,
   *   ERR_CHECKPOINT_UNSUPPORTED if the template cannot be run.
   */
  encode(messages: readonly ChatMessage[], options: ChatEncodeOptions = {}): Int32Array {
    const text = this.#renderGuarded(messages, options, false)
    return withBosOnce(this.#tokenizer.encodeGuarded(text), this.#tokenizer.bos)
  }

  /**
   * @internal The conversation as text with guards (guards.ts), of which messages may have images: {@link imageMarker} stands for each, and
   * nothing in the contents is taken for one.
   * @throws as {@link encode}
   */
  renderGuarded(messages: readonly ChatMessage<TextPart | ImagePlace>[], options: ChatEncodeOptions = {}): string {
    return this.#renderGuarded(messages, options, true)
  }

  #renderGuarded(
    messages: readonly ChatMessage<TextPart | ImagePlace>[],
    { generationPrompt = true, allowMarkers = false }: ChatEncodeOptions,
    images: boolean,
  ): string {
    const matcher = this.#tokenizer.matcher
    const trust = allowMarkers ? Trust.markers : Trust.text
    return this.#render(messages, generationPrompt, (content) => guard(content, matcher, trust), images)
  }

  /**
   * The conversation as text, as the template writes it. Not for encoding: in it, contents and template can no longer be told
   * apart.
   *
   * @throws as {@link encode}
   */
  render(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    return this.#render(messages, options.generationPrompt ?? true, wellFormed)
  }

  #render(
    messages: readonly ChatMessage<TextPart | ImagePlace>[],
    generationPrompt: boolean,
    prepare: (content: string) => string,
    images = false,
  ): string {
    const checked = checkMessages(messages, prepare, images)
    try {
      this.#template ??= new Template(ownRaise + wellFormed(this.#source))
      return this.#template.render({
        ...this.#tokenizer.templateTokens,
        messages: checked,
        add_generation_prompt: generationPrompt,
        refuse: (message: unknown) => {
          throw new TemplateRefusal(String(message))
        },
      })
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      if (error instanceof TemplateRefusal) {
        throw new LapidaryError('ERR_INVALID_ARGUMENT', `messages: ${this.#what}: ${message}`, { cause: error })
      }
      const problem = `${this.#what}: it cannot be run: ${message}`
      throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', problem, { cause: error })
    }
  }
}

/** @internal Ids with bos once at the start, however many there are. */
export function withBosOnce(ids: Int32Array, bos: number): Int32Array {
  let start = 0
  while (start < ids.length && ids[start] === bos) start += 1
  if (start === 1) return ids
  const once = new Int32Array(ids.length - start + 1)
  once[0] = bos
  once.set(ids.subarray(start), 1)
  return once
}

function checkMessages(
  messages: readonly ChatMessage<TextPart | ImagePlace>[],
  prepare: (content: string) => string,
  images: boolean,
): unknown[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    const got = Array.isArray(messages) ? 'none' : describeValue(messages)
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `messages: expected at least one message, got ${got}`)
  }
  return messages.map((message: ChatMessage<TextPart | ImagePlace> | undefined, index) => {
    const fail = (problem: string): never => {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `messages[${index}]${problem}`)
    }
    if (typeof message !== 'object' || message === null)
      return fail(`: expected a message, got ${describeValue(message)}`)
    const { role, content } = message
    if (!roles.includes(role))
      fail(`.role: expected ${roles.join(', ')}, got ${JSON.stringify(role) ?? describeValue(role)}`)
    if (typeof content === 'string') return { role, content: prepare(content) }
    if (!Array.isArray(content)) fail(`.content: expected a string or an array of parts, got ${describeValue(content)}`)
    const parts = content.map((part: { type?: unknown; text?: unknown } | null, at) => {
      if (images && part?.type === 'image') return { type: 'image' }
      if (part?.type !== 'text' || typeof part.text !== 'string') {
        fail(`.content[${at}]: expected { type: 'text', text }, got ${JSON.stringify(part) ?? describeValue(part)}`)
      }
      return { type: 'text', text: prepare((part as { text: string }).text) }
    })
    // Templates of text models take strings only.
    return { role, content: parts.length === 1 && parts[0]!.text !== undefined ? parts[0]!.text : parts }
  })
}
