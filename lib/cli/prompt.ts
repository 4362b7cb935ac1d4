/**
 * Where the text that a command works on comes from: an argument, a file, or standard input.
 * @module
 */
import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { fileError } from '../checkpoint/source.ts'
import type { ContentPart } from '../index.ts'
import { UsageError } from './failure.ts'

/** A file's text. @throws ERR_FILE that names the file. */
export function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw fileError(path, error)
  }
}

/**
 * The argument, or the text of the file, or what is piped in; `-` is standard input too. One line break at the end of a file or of
 * standard input belongs to the file, not to the text.
 * @throws UsageError where there is none: a terminal is not waited for.
 */
export async function readPrompt(argument: string | undefined, file: string | undefined): Promise<string> {
  if (argument !== undefined && file !== undefined) throw new UsageError('both a prompt and --file were given')
  const source = file ?? (argument === undefined || argument === '-' ? '-' : undefined)
  if (source === undefined) return argument as string
  if (source !== '-') return withoutLastBreak(readText(source))
  if (process.stdin.isTTY) {
    throw new UsageError(
      'expected a prompt',
      'give it as an argument, with --file, or on standard input: lapidary generate "Once upon a time"',
    )
  }
  return withoutLastBreak(await text(process.stdin))
}

/** Images, then the text about them. */
export function withImages(paths: readonly string[], text: string): ContentPart[] {
  return [...paths.map((image): ContentPart => ({ type: 'image', image })), { type: 'text', text }]
}

function withoutLastBreak(content: string): string {
  return content.replace(/\r?\n$/, '')
}
