/**
 * Reading a configuration's fields: numbers within bounds, lists, defaults; one error that names file and key.
 * @module
 */
import { LapidaryError } from '../../errors.ts'

export type Corrupt = 'ERR_CHECKPOINT_CORRUPT' | 'ERR_CHECKPOINT_UNSUPPORTED'

/** What no model comes near: a value beyond is damage, and must not become an allocation or a loop. */
export const limits = {
  layers: 1024,
  hiddenSize: 65_536,
  ffnSize: 1_048_576,
  heads: 1024,
  headDim: 512,
  vocabularySize: 4_194_304,
  /** Rotary angles are exact up to this position. */
  contextLength: 1_048_576,
} as const

/** Named values of a file: the keys of config.json, or of GGUF metadata under its architecture's prefix. */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>
  readonly #path: string
  readonly #prefix: string

  constructor(values: Readonly<Record<string, unknown>>, path: string, prefix = '') {
    this.#values = values
    this.#path = path
    this.#prefix = prefix
  }

  /** The value of a key; null counts as absent. */
  value(key: string): unknown {
    const value = Object.hasOwn(this.#values, this.#prefix + key) ? this.#values[this.#prefix + key] : undefined
    return value === null ? undefined : value
  }

  has(key: string): boolean {
    return this.value(key) !== undefined
  }

  /** Whether the file says null, which is not the same as saying nothing. */
  isNull(key: string): boolean {
    return Object.hasOwn(this.#values, this.#prefix + key) && this.#values[this.#prefix + key] === null
  }

  /** An error that names file and key. */
  error(code: Corrupt, key: string, expected: string): LapidaryError {
    return new LapidaryError(
      code,
      `${this.#path}: ${this.#prefix}${key}: expected ${expected}, got ${show(this.value(key))}`,
    )
  }

  /** A number for which low ≤ value ≤ high. Without a default the key is required. */
  number(key: string, [low, high]: readonly [number, number], absent?: number): number {
    const value = this.#numeric(key) ?? absent
    if (typeof value === 'number' && value >= low && value <= high) return value
    throw this.error('ERR_CHECKPOINT_CORRUPT', key, `a number from ${low} to ${high}`)
  }

  /** A whole number for which low ≤ value ≤ high. */
  integer(key: string, [low, high]: readonly [number, number], absent?: number): number {
    const value = this.#numeric(key) ?? absent
    if (Number.isInteger(value) && (value as number) >= low && (value as number) <= high) return value as number
    throw this.error('ERR_CHECKPOINT_CORRUPT', key, `an integer from ${low} to ${high}`)
  }

  /** A dimension: an integer from 1 to `high`. */
  dimension(key: string, high: number, absent?: number): number {
    return this.integer(key, [1, high], absent)
  }

  /** A soft cap: above 0, or 0 where there is none. */
  softcap(key: string, absent: number): number {
    return this.has(key) ? this.number(key, [0, 1e6]) : absent
  }

  string(key: string, absent?: string): string {
    const value = this.value(key) ?? absent
    if (typeof value === 'string') return value
    throw this.error('ERR_CHECKPOINT_CORRUPT', key, 'a string')
  }

  boolean(key: string, absent: boolean): boolean {
    const value = this.value(key) ?? absent
    if (typeof value === 'boolean') return value
    throw this.error('ERR_CHECKPOINT_CORRUPT', key, 'true or false')
  }

  /** An object's fields, or undefined where the key is absent. */
  record(key: string): Fields | undefined {
    const value = this.value(key)
    if (value === undefined) return undefined
    if (typeof value !== 'object' || Array.isArray(value)) throw this.error('ERR_CHECKPOINT_CORRUPT', key, 'an object')
    return new Fields(value as Record<string, unknown>, `${this.#path}: ${this.#prefix}${key}`)
  }

  /** Throws unless the key is absent or one of `values`: features that change the result and are not built. */
  only(key: string, ...values: readonly unknown[]): void {
    const value = this.value(key)
    if (value === undefined || values.includes(value)) return
    throw this.error('ERR_CHECKPOINT_UNSUPPORTED', key, values.map(show).join(' or '))
  }

  /** GGUF has 64-bit integers. */
  #numeric(key: string): unknown {
    const value = this.value(key)
    return typeof value === 'bigint' ? Number(value) : value
  }
}

function show(value: unknown): string {
  if (value === undefined) return 'nothing'
  const text = typeof value === 'bigint' ? String(value) : (JSON.stringify(value) ?? String(value))
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}
