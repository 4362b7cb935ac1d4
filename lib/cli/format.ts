/**
 * Numbers, units and tables for people.
 * @module
 */

/** Three significant digits or all integer ones: 0.0123, 1.23, 12.3, 123, 1,234. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (size >= 100) return Math.round(value).toLocaleString('en-US')
  if (size === 0) return '0'
  return size >= 10 ? value.toFixed(1) : value.toPrecision(3)
}

/** An integer with all its digits: 1,234,567. */
export function formatCount(value: number): string {
  return value.toLocaleString('en-US')
}

/** A parameter count in the field's short form: 999M, 27.4B. */
export function formatParameters(count: number): string {
  if (count >= 1e9) return `${(count / 1e9).toPrecision(3)}B`
  if (count >= 1e6) return `${(count / 1e6).toPrecision(3)}M`
  return formatCount(count)
}

/** Bytes with a binary unit: 512 B, 4.57 MiB, 1.21 GiB. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${unit === 0 ? value : formatNumber(value)} ${units[unit]}`
}

/** Seconds as 0.42 s, 12.3 s, 4 min 5 s. */
export function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${formatNumber(seconds)} s`
  const whole = Math.round(seconds)
  return `${Math.floor(whole / 60)} min ${whole % 60} s`
}

/** A token count as models are spoken of: 512, 8K, 128K. */
export function formatTokens(tokens: number): string {
  return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}K` : String(tokens)
}

/**
 * Columns padded to their widest cell, two spaces apart.
 * @param align One letter per column, `l` or `r`; columns without one are left-aligned.
 * @param indent Put before every line.
 */
export function formatTable(rows: readonly (readonly string[])[], align = '', indent = ''): string {
  const columns = Math.max(0, ...rows.map((row) => row.length))
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? '').length)),
  )
  return rows
    .map((row) => {
      const cells = row.map((cell, column) => {
        const width = widths[column] as number
        return align[column] === 'r' ? cell.padStart(width) : cell.padEnd(width)
      })
      return `${indent}${cells.join('  ')}`.trimEnd()
    })
    .map((line) => `${line}\n`)
    .join('')
}
