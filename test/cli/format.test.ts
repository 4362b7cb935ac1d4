/** Numbers, tables and the line of progress, as people see them. */
import { describe, expect, test } from 'vitest'
import {
  formatBytes,
  formatCount,
  formatNumber,
  formatParameters,
  formatSeconds,
  formatTable,
  formatTokens,
} from '../../lib/cli/format.ts'
import { progressLine } from '../../lib/cli/progress.ts'
import { visible } from '../../lib/cli/terminal.ts'

test.each([
  [0, '0'],
  [0.01234, '0.0123'],
  [1.005, '1.00'],
  [9.999, '10.0'],
  [12.34, '12.3'],
  [99.96, '100.0'],
  [1234.5, '1,235'],
  [-3, '-3.00'],
  [Number.NaN, 'NaN'],
])('number %s is %s', (value, text) => {
  expect(formatNumber(value)).toBe(text)
})

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.00 KiB'],
  [4_789_728, '4.57 MiB'],
  [2 ** 40, '1.00 TiB'],
  [2 ** 50, '1,024 TiB'],
])('%s bytes are %s', (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text)
})

test('other units', () => {
  expect(formatCount(1_234_567)).toBe('1,234,567')
  expect(formatParameters(7_350_000)).toBe('7.35M')
  expect(formatParameters(27_432_000_000)).toBe('27.4B')
  expect(formatParameters(12)).toBe('12')
  expect(formatSeconds(0.42)).toBe('0.420 s')
  expect(formatSeconds(59.96)).toBe('60.0 s')
  expect(formatSeconds(245)).toBe('4 min 5 s')
  expect(formatTokens(512)).toBe('512')
  expect(formatTokens(32_768)).toBe('32K')
  expect(formatTokens(1500)).toBe('1500')
})

describe('a table', () => {
  test('pads columns, aligns as asked, and leaves no blanks at the ends', () => {
    const rows = [
      ['name', 'n', ''],
      ['a', '1', 'x'],
      ['bcdefg', '1000'],
    ]
    expect(formatTable(rows, 'lr', '  ')).toBe('  name       n\n  a          1  x\n  bcdefg  1000\n')
  })

  test('of nothing is nothing', () => {
    expect(formatTable([])).toBe('')
  })
})

describe('the line of progress', () => {
  test('says how far, how fast and how long', () => {
    expect(progressLine('loading x', 'bytes', 512 * 2 ** 20, 2 ** 30, 4)).toBe(
      'loading x  ████████████░░░░░░░░░░░░  50 %  128 MiB/s  4.00 s left',
    )
    expect(progressLine('reading', 'tokens', 100, 400, 2)).toMatch(/25 % {2}50\.0 tokens\/s {2}6\.00 s left$/)
  })

  test.each([
    [0, 100],
    [0, 0],
    [7, 3],
  ])('%s of %s has a bar of the same width', (done, total) => {
    const line = progressLine('', '', done, total, 1)
    expect([...line].filter((letter) => letter === '█' || letter === '░')).toHaveLength(24)
    expect(line).not.toMatch(/NaN|Infinity/)
  })
})

test('control characters become visible, line breaks and tabs stay', () => {
  expect(visible('a\x1b[31mb\x07\r\n\tc\x7f\x9bé€')).toBe('a␛[31mb␇␍\n\tc\u{fffd}\u{fffd}é€')
})
