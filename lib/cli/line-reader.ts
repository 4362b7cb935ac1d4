/**
 * Messages typed or piped in: line by line, with history and multi-line input at a terminal.
 * @module
 */
import { createInterface, type Interface } from 'node:readline/promises'
import type { Readable, Writable } from 'node:stream'

export interface LineReaderOptions {
  readonly input: Readable
  /** Where a terminal shows prompts and what is typed. */
  readonly output: Writable
  /** Whether a person types: prompts, line editing, history, completion. */
  readonly terminal: boolean
  /** What Tab completes at the beginning of a line. */
  readonly commands?: readonly string[]
}

/** Why no message came. `interrupt`: Ctrl-C, at a terminal only. */
export type Ending = 'end' | 'interrupt'

/** Terminals that know bracketed paste announce what is pasted, so that its line breaks do not send it off piece by piece. */
const bracketedPaste = { on: '\x1b[?2004h', off: '\x1b[?2004l' }

/**
 * Reads messages. At a terminal, a line that ends in `\` goes on in the next, and so do the lines of a paste; the terminal is in its
 * ordinary state between calls, so that Ctrl-C is a signal then. Elsewhere every line is a message.
 *
 * @example
 * using reader = new LineReader({ input: process.stdin, output: process.stdout, terminal: true })
 * for (;;) {
 *   const line = await reader.next('> ')
 *   if (typeof line !== 'string') break
 * }
 */
export class LineReader implements Disposable {
  readonly #options: LineReaderOptions
  #history: string[] = []
  /** Typed ahead: whole messages, and the beginning of one. */
  #ahead: string[] = []
  #begun = ''
  #ended = false
  #piped: AsyncIterator<string> | undefined
  #interface: Interface | undefined

  constructor(options: LineReaderOptions) {
    this.#options = options
  }

  /** The next message, or why there is none. */
  async next(prompt: string): Promise<string | { ending: Ending }> {
    if (this.#options.terminal) {
      const ahead = this.#ahead.shift()
      if (ahead !== undefined) return ahead
      return this.#ended ? { ending: 'end' } : await this.#typed(prompt)
    }
    if (!this.#piped) {
      this.#interface = createInterface({ input: this.#options.input, crlfDelay: Number.POSITIVE_INFINITY })
      this.#piped = this.#interface[Symbol.asyncIterator]()
    }
    const { done, value } = await this.#piped.next()
    return done ? { ending: 'end' } : value
  }

  #typed(prompt: string): Promise<string | { ending: Ending }> {
    const { input, output, commands = [] } = this.#options
    const editor = createInterface({
      input,
      output,
      prompt,
      terminal: true,
      history: this.#history,
      removeHistoryDuplicates: true,
      completer: (line: string): [string[], string] => [
        commands.filter((command) => line !== '' && command.startsWith(line)),
        line,
      ],
    })
    this.#interface = editor
    output.write(bracketedPaste.on)
    const lines: string[] = []
    let pasting = false
    const onKey = (_text: string | undefined, key: { name?: string } | undefined): void => {
      if (key?.name === 'paste-start') pasting = true
      if (key?.name === 'paste-end') pasting = false
    }
    input.on('keypress', onKey)
    return new Promise((resolve) => {
      let result: string | { ending: Ending } | undefined
      // Keys that came together with Enter are still being handed out: they are for the next message.
      const finish = (last: string | { ending: Ending }): void => {
        if (result !== undefined) return
        result = last
        setImmediate(() => {
          this.#begun = typeof last === 'string' ? editor.line : ''
          editor.off('close', onClose)
          input.off('keypress', onKey)
          output.write(bracketedPaste.off)
          editor.close()
          this.#interface = undefined
          resolve(last)
        })
      }
      const onClose = (): void => {
        output.write('\n')
        this.#ended = true
        finish({ ending: 'end' })
      }
      editor.on('history', (history) => {
        this.#history = [...history]
      })
      editor.on('close', onClose)
      editor.on('SIGINT', () => {
        output.write('\n')
        this.#ahead = []
        finish({ ending: 'interrupt' })
      })
      editor.on('line', (line) => {
        const continued = !pasting && line.endsWith('\\')
        lines.push(continued ? line.slice(0, -1) : line)
        if (!pasting && !continued) {
          const message = lines.splice(0).join('\n')
          if (result === undefined) finish(message)
          else this.#ahead.push(message)
        } else if (result === undefined) {
          editor.setPrompt('… ')
          editor.prompt()
        }
      })
      editor.prompt()
      if (this.#begun !== '') editor.write(this.#begun)
    })
  }

  [Symbol.dispose](): void {
    this.#interface?.close()
  }
}
