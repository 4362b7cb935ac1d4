/**
 * What commands print with: standard output for results, standard error for everything about them.
 * @module
 */
import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]
type Output = 'stdout' | 'stderr'

/** `text` in a style, where the stream is a terminal that shows colours and NO_COLOR does not forbid them. */
export function styled(style: Style, text: string, output: Output = 'stdout'): string {
  const stream = process[output]
  const wanted = stream.isTTY === true && !process.env.NO_COLOR && stream.hasColors()
  return wanted ? styleText(style, text, { validateStream: false }) : text
}

/** Prints a result: text as it is, or with `json` one document. */
export function print(text: string): void {
  process.stdout.write(text)
}

/** Control characters as pictures, but for line breaks and tabs: what a model or a file says must not steer the terminal. */
export function visible(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => {
    if (character === '\n' || character === '\t') return character
    const code = character.codePointAt(0) as number
    return code < 0x20 ? String.fromCodePoint(0x2400 + code) : '\u{fffd}'
  })
}

/** Prints text that a model wrote: to files and pipes as it is, to a terminal made {@link visible}. */
export function printText(text: string): void {
  print(process.stdout.isTTY ? visible(text) : text)
}

/** Prints one JSON document, indented: for commands that answer once. */
export function printJson(value: unknown): void {
  print(`${JSON.stringify(value, null, 2)}\n`)
}

/** Prints one line of JSON Lines: for commands that answer bit by bit. */
export function printJsonLine(value: unknown): void {
  print(`${JSON.stringify(value)}\n`)
}

/** Says something about the work: standard error, dimmed. */
export function note(text: string): void {
  process.stderr.write(`${styled('dim', text, 'stderr')}\n`)
}

/**
 * Lets the reader of a pipe leave (`lapidary generate | head -1`): output that nobody takes ends the process quietly. Output that cannot be
 * written, as on a full disk, ends it with one line and status 1. Without this, Node reports either as an uncaught exception.
 */
export function endWithOutput(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit(0)
      if (stream === process.stdout) process.stderr.write(`error: standard output: ${error.message}\n`)
      process.exit(1)
    })
  }
}
