/** The reference itself, against the oracles: it was written from the specification alone. */

import { describe, expect, test } from 'vitest'
import { oracleExpected, oracleFolder, oracles, readReference } from './fixtures.ts'
import { type ReferenceConfig, reference } from './reference.ts'

/** What an implementation in double precision reaches (specification, 13.1): the oracles themselves are f32. */
const tolerance = 5e-5

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.NaN
  let largest = 0
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Math.abs(a[i]! - b[i]!))
  return largest
}

describe.each(oracles)('the reference on %s', (name) => {
  const { config, weights } = readReference(oracleFolder(name))
  const expected = oracleExpected(name)
  const run = (changed: Partial<ReferenceConfig> = {}) => reference({ ...config, ...changed }, weights, expected.ids)

  test('hidden states and logits', () => {
    const { hidden, logits } = run()
    expect(hidden.length).toBe(expected.hidden.length)
    for (const [layer, values] of hidden.entries()) {
      expect(largestDifference(values, expected.hidden[layer]!)).toBeLessThanOrEqual(tolerance)
    }
    expect(largestDifference(logits, expected.logits)).toBeLessThanOrEqual(tolerance)
  })

  test('another theta, scale or embedding factor is seen', () => {
    const global = config.theta.global
    for (const changed of [
      { theta: { local: global * 2, global: global * 2 } },
      { queryScalar: config.queryScalar * 1.01 },
      { embeddingScale: config.embeddingScale * 1.001 },
      { eps: 1e-3 },
    ]) {
      expect(largestDifference(run(changed).logits, expected.logits)).toBeGreaterThan(tolerance)
    }
  })
})
