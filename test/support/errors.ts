/** How tests say "this is one clear error". */

import { expect } from 'vitest'
import { LapidaryError } from '../../lib/index.ts'

type Code = LapidaryError['code']

function expectLapidaryError(error: unknown, code: Code | readonly Code[], message?: RegExp): void {
  expect(error).toBeInstanceOf(LapidaryError)
  const { code: got, message: text } = error as LapidaryError
  if (typeof code === 'string') expect({ code: got, text }).toMatchObject({ code })
  else expect(code).toContain(got)
  // A message says what is wrong in words, not only that something is.
  expect(text.length).toBeGreaterThan(10)
  if (message) expect(text).toMatch(message)
}

/** The call throws a LapidaryError with this code, now. */
export function throwsCode(body: () => unknown, code: Code | readonly Code[], message?: RegExp): void {
  let thrown: unknown
  try {
    body()
  } catch (error) {
    thrown = error
  }
  expect(thrown, `expected ${code} to be thrown`).toBeDefined()
  expectLapidaryError(thrown, code, message)
}

/** The promise rejects with a LapidaryError with this code. */
export async function rejectsCode(
  promise: PromiseLike<unknown>,
  code: Code | readonly Code[],
  message?: RegExp,
): Promise<void> {
  let rejected: unknown
  try {
    await promise
  } catch (error) {
    rejected = error
  }
  expect(rejected, `expected a rejection with ${code}`).toBeDefined()
  expectLapidaryError(rejected, code, message)
}
