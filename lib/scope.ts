/**
 * Scopes: releasing eager intermediates without naming them.
 * @module
 */
import { LapidaryError } from './errors.ts'
import type { Tensor } from './tensor.ts'

let current: Set<Tensor> | undefined

/** @internal Tells the innermost scope of a new tensor. */
export function enterScope(tensor: Tensor): void {
  current?.add(tensor)
}

/**
 * Runs `body` and disposes every tensor made inside, except those it returns (a tensor, or an array or record of them).
 * Scopes nest: what one returns belongs to the one around it. `body` must be synchronous.
 *
 * @example
 * const y = scope(() => rmsNorm(add(a, b), weight))   // the sum is released, y is not
 */
export function scope<T>(body: () => T): T {
  const outer = current
  const made = new Set<Tensor>()
  current = made
  let result: T
  try {
    result = body()
    if (result instanceof Promise) {
      result.catch(() => {})
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        'scope: expected a synchronous function, got one that returns a promise',
      )
    }
    for (const tensor of tensorsIn(result, made)) {
      made.delete(tensor)
      outer?.add(tensor)
    }
  } finally {
    current = outer
    for (const tensor of made) tensor.dispose()
  }
  return result
}

function* tensorsIn(value: unknown, made: Set<Tensor>): Generator<Tensor> {
  if (made.has(value as Tensor)) yield value as Tensor
  else if (Array.isArray(value)) for (const item of value) yield* tensorsIn(item, made)
  else if (value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) yield* tensorsIn(item, made)
  }
}
