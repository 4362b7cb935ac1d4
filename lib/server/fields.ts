/**
 * The fields of a JSON body: read one by one, each checked, with errors that name it. Fields nobody asks for are ignored; null counts
 * as absent, as OpenAI's API has it.
 * @module
 */
import { ApiError, invalid } from './api-error.ts'

/** How a value is named in a message: never at length, and not the text of a prompt. */
export function describe(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'object') return 'an object'
  if (typeof value === 'string') return value.length <= 40 ? JSON.stringify(value) : 'a long string'
  return String(value)
}

/** An object of a request. */
export class Fields {
  /** Where it stands, with a dot at its end; empty for the body. */
  readonly path: string
  readonly #values: Readonly<Record<string, unknown>>

  /** @throws ApiError 400 unless it is an object. */
  constructor(value: unknown, path = '') {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new ApiError(400, `${path || 'body'}: expected an object, got ${describe(value)}`, {
        param: path || undefined,
        code: 'invalid_type',
      })
    }
    this.path = path === '' ? '' : `${path}.`
    this.#values = value as Record<string, unknown>
  }

  /** The value as it is; undefined for null. */
  raw(name: string): unknown {
    return Object.hasOwn(this.#values, name) ? (this.#values[name] ?? undefined) : undefined
  }

  has(name: string): boolean {
    return this.raw(name) !== undefined
  }

  /** Why a field is wrong. */
  fail(name: string, expected: string): never {
    throw invalid(`${this.path}${name}`, `expected ${expected}, got ${describe(this.raw(name))}`)
  }

  string(name: string): string | undefined {
    const value = this.raw(name)
    return value === undefined || typeof value === 'string' ? value : this.fail(name, 'a string')
  }

  boolean(name: string): boolean | undefined {
    const value = this.raw(name)
    return value === undefined || typeof value === 'boolean' ? value : this.fail(name, 'true or false')
  }

  number(name: string, low: number, high: number): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (typeof value === 'number' && value >= low && value <= high) return value
    return this.fail(name, `a number from ${low} to ${high}`)
  }

  integer(name: string, low: number, high: number = Number.MAX_SAFE_INTEGER): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (Number.isSafeInteger(value) && (value as number) >= low && (value as number) <= high) return value as number
    const range = high === Number.MAX_SAFE_INTEGER ? `of at least ${low}` : `from ${low} to ${high}`
    return this.fail(name, `an integer ${range}`)
  }

  choice<T extends string>(name: string, values: readonly T[]): T | undefined {
    const value = this.raw(name)
    if (value === undefined || values.includes(value as T)) return value as T | undefined
    return this.fail(name, `one of ${values.map((choice) => `'${choice}'`).join(', ')}`)
  }

  array(name: string): readonly unknown[] | undefined {
    const value = this.raw(name)
    return value === undefined || Array.isArray(value) ? value : this.fail(name, 'an array')
  }

  object(name: string): Fields | undefined {
    const value = this.raw(name)
    return value === undefined ? undefined : new Fields(value, `${this.path}${name}`)
  }

  /** The objects of an array. */
  objects(name: string): Fields[] | undefined {
    return this.array(name)?.map((value, index) => new Fields(value, `${this.path}${name}[${index}]`))
  }

  /** A field that must be there. */
  required<T>(name: string, value: T | undefined): T {
    if (value !== undefined) return value
    throw new ApiError(400, `${this.path}${name}: missing`, {
      param: `${this.path}${name}`,
      code: 'missing_required_parameter',
    })
  }
}

/** Whether it is a list of token ids; whether they are in the vocabulary is the engine's to say. */
export function isTokenIds(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.length > 0 && value.every((id) => Number.isSafeInteger(id))
}
