/** Reading messages: at a terminal (a stream that plays one) and from a pipe. */
import { PassThrough } from 'node:stream'
import { afterEach, describe, expect, test } from 'vitest'
import { LineReader } from '../../lib/cli/line-reader.ts'

const open: LineReader[] = []
afterEach(() => {
  for (const reader of open.splice(0)) reader[Symbol.dispose]()
})

function readFrom({ terminal }: { terminal: boolean }) {
  const input = new PassThrough()
  const output = new PassThrough()
  const reader = new LineReader({ input, output, terminal, commands: ['/help', '/reset'] })
  open.push(reader)
  const typed = (text: string) => {
    const next = reader.next('> ')
    input.write(text)
    return next
  }
  return { input, output, reader, typed }
}

const pasted = (text: string): string => `\x1b[200~${text.replaceAll('\n', '\r')}\x1b[201~`

describe('at a terminal', () => {
  test('a line is a message', async () => {
    const { typed } = readFrom({ terminal: true })
    expect(await typed('hello there\r')).toBe('hello there')
    expect(await typed('again\r')).toBe('again')
  })

  test('a line that ends in a backslash goes on', async () => {
    const { typed } = readFrom({ terminal: true })
    expect(await typed('one\\\rtwo\\\rthree\r')).toBe('one\ntwo\nthree')
  })

  test('a paste of several lines is one message, sent by Enter', async () => {
    const { typed } = readFrom({ terminal: true })
    expect(await typed(`${pasted('first\nsecond\nthird')} end\r`)).toBe('first\nsecond\nthird end')
    expect(await typed('next\r')).toBe('next')
  })

  test('a paste that ends in a line break waits for Enter', async () => {
    const { input, typed } = readFrom({ terminal: true })
    const next = typed(pasted('first\nsecond\n'))
    const early = await Promise.race([next, new Promise((resolve) => setTimeout(resolve, 50, 'nothing yet'))])
    expect(early).toBe('nothing yet')
    input.write('\r')
    expect(await next).toBe('first\nsecond\n')
  })

  test('the arrow brings back earlier lines, also after other messages', async () => {
    const { typed } = readFrom({ terminal: true })
    await typed('first\r')
    await typed('second\r')
    expect(await typed('\x1b[A\x1b[A\r')).toBe('first')
  })

  test('Tab completes commands', async () => {
    const { input, typed } = readFrom({ terminal: true })
    const next = typed('/he')
    // Readline completes only what is typed key by key, not a Tab in the middle of pasted text.
    input.write('\t')
    await new Promise((resolve) => setTimeout(resolve, 20))
    input.write('\r')
    expect(await next).toBe('/help')
  })

  test('what is typed ahead is not lost', async () => {
    const { input, reader, typed } = readFrom({ terminal: true })
    expect(await typed('one\rtwo\rthr')).toBe('one')
    expect(await reader.next('> ')).toBe('two')
    const last = reader.next('> ')
    input.write('ee\r')
    expect(await last).toBe('three')
  })

  test('the end may come with the last line', async () => {
    const { reader, typed } = readFrom({ terminal: true })
    expect(await typed('one\rtwo\r\x04')).toBe('one')
    expect(await reader.next('> ')).toBe('two')
    expect(await reader.next('> ')).toEqual({ ending: 'end' })
  })

  test('Ctrl-C and Ctrl-D say what they are', async () => {
    const { typed } = readFrom({ terminal: true })
    expect(await typed('half a li\x03')).toEqual({ ending: 'interrupt' })
    expect(await typed('whole\r')).toBe('whole')
    expect(await typed('\x04')).toEqual({ ending: 'end' })
  })
})

describe('from a pipe', () => {
  test('every line is a message, and the end is the end', async () => {
    const { input, reader } = readFrom({ terminal: false })
    input.end('one\r\ntwo\\\n\nlast')
    const messages: unknown[] = []
    for (let i = 0; i < 5; i++) messages.push(await reader.next('> '))
    expect(messages).toEqual(['one', 'two\\', '', 'last', { ending: 'end' }])
  })

  test('lines that come while nobody asks are kept', async () => {
    const { input, output, reader } = readFrom({ terminal: false })
    input.write('one\ntwo\n')
    expect(await reader.next('> ')).toBe('one')
    input.write('three\n')
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(await reader.next('> ')).toBe('two')
    expect(await reader.next('> ')).toBe('three')
    expect(output.read()).toBeNull()
  })
})
