/**
 * `lapidary chat`: a conversation at the terminal, or from a script's lines.
 * @module
 */
import { writeFileSync } from 'node:fs'
import { outputError } from '../checkpoint/source.ts'
import type { ChatMessage, ContentPart, Gemma, GenerateOptions, GenerationResult } from '../index.ts'
import { describeFailure } from './failure.ts'
import { formatCount, formatTable } from './format.ts'
import { Interrupt, interruptedStatus } from './interrupt.ts'
import { LineReader } from './line-reader.ts'
import { loadModel, summarize } from './model.ts'
import { given, type ModelOptions, modelOptionNames, type SamplingOptions } from './options.ts'
import { withImages } from './prompt.ts'
import { note, print, printJsonLine, printText, styled } from './terminal.ts'

export interface ChatCommandOptions extends ModelOptions, SamplingOptions {
  system?: string
  image?: string[]
  json?: boolean
  quiet?: boolean
}

/** What can be typed instead of a message, and what it does. */
const commands = [
  ['/help', 'this list'],
  ['/reset', 'forget the conversation; a system message stays'],
  ['/system [text]', 'set the system message and start anew; without text: remove it'],
  ['/image <file>', 'show an image with the next message; several may be named one after the other'],
  ['/save <file>', 'write the conversation as JSON'],
  ['/stats', 'tokens, speed and context of the last answer and of the session'],
  ['/quit', 'leave, like Ctrl-D'],
] as const

/** A conversation with a model: messages so far, and what they cost. */
class Conversation {
  readonly #gemma: Gemma
  readonly #options: ChatCommandOptions
  #system: string | undefined
  #messages: ChatMessage<ContentPart>[] = []
  /** Of the next message. */
  #images: string[]
  #last: GenerationResult | undefined
  #answers = 0
  #tokens = 0

  constructor(gemma: Gemma, options: ChatCommandOptions) {
    this.#gemma = gemma
    this.#options = options
    this.#system = options.system
    this.#images = options.image ?? []
  }

  /** Prints the answer as it comes. False: it was interrupted. */
  async answer(text: string): Promise<boolean> {
    const { json, quiet } = this.#options
    const content = this.#images.length > 0 ? withImages(this.#images, text) : text
    const question: ChatMessage<ContentPart> = { role: 'user', content }
    using interrupt = new Interrupt()
    const generation = this.#gemma.chat([...this.#prefix(), ...this.#messages, question], {
      ...(given(this.#options, ...modelOptionNames, 'system', 'image', 'json', 'quiet') as GenerateOptions),
      signal: interrupt.signal,
    })
    for await (const piece of generation) {
      if (json) printJsonLine({ type: 'piece', ...piece })
      else printText(piece.text)
    }
    const result = await generation.result
    if (json) printJsonLine({ type: 'result', ...result })
    else print('\n')
    // What was said until an interrupt has been said: the model sees it, as the reader does.
    this.#messages.push(question, { role: 'assistant', content: result.text })
    this.#images = []
    this.#last = result
    this.#answers += 1
    this.#tokens += result.tokens
    if (!json && !quiet && process.stdin.isTTY) note(summarize(result))
    if (!json && result.finishReason === 'context') note('the context is full: /reset starts anew')
    return !interrupt.signal.aborted
  }

  /** Does what a line that begins with a slash says. False: leave. */
  command(line: string): boolean {
    const [, name = '', argument = ''] = /^(\S+)\s*([\s\S]*)$/.exec(line) ?? []
    switch (name) {
      case '/quit':
      case '/exit':
        return false
      case '/help':
        // About the conversation, not of it: standard error, so that a script's output holds answers only.
        note(formatTable(commands, '', '  ').trimEnd())
        break
      case '/reset':
        this.#messages = []
        note('the conversation is forgotten')
        break
      case '/system':
        this.#system = argument.trim() === '' ? undefined : argument.trim()
        this.#messages = []
        note(this.#system === undefined ? 'no system message' : 'the system message is set')
        break
      case '/image':
        if (argument.trim() === '') note('expected a file: /image photo.jpg')
        else {
          this.#images.push(argument.trim())
          note(`${this.#images.length === 1 ? 'an image' : `${this.#images.length} images`} with the next message`)
        }
        break
      case '/save':
        this.#save(argument.trim())
        break
      case '/stats':
        this.#stats()
        break
      default:
        note(`no command ${name}: /help lists them; a message that begins with a slash needs a space before it`)
    }
    return true
  }

  /** After a failure: images that cannot be shown are not tried again. */
  dropImages(): void {
    if (this.#images.length > 0) note('the images are left out of the next message: /image shows others')
    this.#images = []
  }

  #prefix(): ChatMessage[] {
    return this.#system === undefined ? [] : [{ role: 'system', content: this.#system }]
  }

  #save(path: string): void {
    if (path === '') {
      note('expected a file: /save chat.json')
      return
    }
    const { path: model } = this.#gemma.info()
    try {
      const content = { model, messages: [...this.#prefix(), ...this.#messages] }
      writeFileSync(path, `${JSON.stringify(content, null, 2)}\n`, { flag: 'wx' })
      note(`saved to ${path}`)
    } catch (error) {
      const exists = (error as NodeJS.ErrnoException).code === 'EEXIST'
      note(exists ? `${path} exists and is left as it is` : outputError(path, error).message)
    }
  }

  #stats(): void {
    if (!this.#last) {
      note('no answer yet')
      return
    }
    const { contextLength } = this.#gemma.info()
    const { promptTokens, cachedTokens, tokens } = this.#last
    const used = promptTokens + tokens
    note(
      formatTable(
        [
          ['last answer', summarize(this.#last)],
          ['reused', `${formatCount(cachedTokens)} of ${formatCount(promptTokens)} prompt tokens`],
          ['context', `${formatCount(used)} of ${formatCount(contextLength)} tokens`],
          ['session', `${formatCount(this.#answers)} answers, ${formatCount(this.#tokens)} tokens`],
        ],
        '',
        '  ',
      ).trimEnd(),
    )
  }
}

/** Runs the command. */
export async function chat(options: ChatCommandOptions): Promise<void> {
  const loading = new Interrupt()
  await using gemma = await loadModel(options, loading.signal)
  loading[Symbol.dispose]()
  const conversation = new Conversation(gemma, options)
  const terminal = process.stdin.isTTY === true
  using reader = new LineReader({
    input: process.stdin,
    output: process.stdout.isTTY && !options.json ? process.stdout : process.stderr,
    terminal,
    commands: commands.map(([form]) => form.split(' ')[0] as string),
  })
  if (terminal) note('/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves; a line that ends in \\ goes on')
  // At a terminal the second Ctrl-C in a row leaves, as in other prompts.
  let interrupted = false
  for (;;) {
    const line = await reader.next(styled(['bold', 'cyan'], '> '))
    if (typeof line !== 'string') {
      if (line.ending === 'end' || interrupted) return
      interrupted = true
      note('Ctrl-C again, or Ctrl-D, leaves')
      continue
    }
    interrupted = false
    if (line.trim() === '') continue
    if (line.startsWith('/')) {
      if (!conversation.command(line)) return
      continue
    }
    try {
      if (!(await conversation.answer(line.trim())) && !terminal) {
        process.exitCode = interruptedStatus
        return
      }
    } catch (error) {
      // A person can go on; a script must not, as if nothing had happened.
      if (!terminal) throw error
      process.stderr.write(describeFailure(error).text)
      conversation.dropImages()
    }
  }
}
