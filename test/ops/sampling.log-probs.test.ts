import { describe, expect, test } from 'vitest'
import { logProbs, Tensor } from '../../lib/index.ts'
import type { Expected } from '../support/compare.ts'
import { anyDevice, forEachDevice, openDevice, presentIsas, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import type { HostTensor } from '../support/host-tensor.ts'
import { gamma, outputBound, unitRoundoff } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import { type Kind, makeLogits } from './sampling.reference.ts'

interface Case {
  readonly name: string
  readonly rows: number
  readonly vocabulary: number
  readonly top: number
  readonly dtype?: 'f32' | 'bf16'
  readonly kind?: Kind
  readonly margin?: number
}

const cases: Case[] = [
  { name: 'a row', rows: 1, vocabulary: 700, top: 5 },
  { name: 'one token', rows: 3, vocabulary: 1, top: 1 },
  { name: 'no rows', rows: 0, vocabulary: 10, top: 3 },
  { name: 'no top', rows: 4, vocabulary: 300, top: 0 },
  { name: 'all of the vocabulary', rows: 3, vocabulary: 37, top: 37 },
  { name: '256 of few blocks', rows: 3, vocabulary: 2000, top: 256, dtype: 'bf16' },
  { name: '256 of many blocks', rows: 2, vocabulary: 80_000, top: 256 },
  ...[255, 256, 257, 513].map((vocabulary) => ({ name: `vocabulary ${vocabulary}`, rows: 3, vocabulary, top: 2 })),
  { name: 'more rows than threads, strided', rows: 9, vocabulary: 1111, top: 20, margin: 7, dtype: 'bf16' },
  { name: 'Gemma 3', rows: 1, vocabulary: 262_144, top: 20, kind: 'peaked' },
  ...(['flat', 'levels', 'zeros', 'nan', 'all nan', 'infinite', 'forbidden', 'huge'] as const).map((kind) => ({
    name: kind,
    rows: 5,
    vocabulary: 600,
    top: 100,
    kind,
  })),
]

interface Inputs extends Record<string, HostTensor | undefined> {
  readonly logits: HostTensor
  readonly tokens: HostTensor
}

/** log softmax of a row, and how far a correct kernel may be from it. */
function logSoftmax(x: Float64Array): (element: number) => { value: number; error: number } {
  const u = unitRoundoff('f32')
  const numbers = x.filter((element) => !Number.isNaN(element))
  const largest = numbers.reduce((most, element) => Math.max(most, element), Number.NEGATIVE_INFINITY)
  if (!Number.isFinite(largest)) return () => ({ value: Number.NaN, error: 0 })
  let [sum, sumError] = [0, 0]
  for (const element of numbers) {
    const argument = element - largest
    const weight = Math.exp(argument)
    sum += weight
    // 1 ulp of the exponential and the rounding of its argument; then a chunk of 256 in lanes of at least 4.
    sumError += argument < -86 ? 2 ** -120 : weight * (2 ** -22 + 4 * u * Math.abs(argument))
  }
  sumError += gamma(70) * sum
  const error = -Math.log1p(-sumError / sum)
  return (element) => {
    const value = Number.isNaN(element) ? Number.NEGATIVE_INFINITY : element - largest - Math.log(sum)
    return { value, error: Number.isFinite(value) ? error + 2 ** -50 * Math.abs(value) : 0 }
  }
}

const rowOf = (h: Inputs, c: Case, row: number) => {
  const start = row * (c.vocabulary + 2 * (c.margin ?? 0)) + (c.margin ?? 0)
  return h.logits.values.subarray(start, start + c.vocabulary)
}

function bounded(parts: readonly { value: number; error: number }[]): Expected {
  const value = parts.map((part) => part.value)
  return {
    value,
    bound: outputBound(
      'f32',
      value,
      parts.map((part) => part.error),
    ),
  }
}

opSuite<Case, Inputs>('logProbs', {
  ops: ['log_probs'],
  emulated: { cases: 24, elements: 100_000 },
  cases,
  inputs: (c, random) => ({
    logits: makeLogits(c.dtype ?? 'f32', c.rows, c.vocabulary + 2 * (c.margin ?? 0), c.kind ?? 'normal', random),
    tokens: random.tensor('i32', [c.rows], () => random.integer(0, c.vocabulary)),
  }),
  run: (c, { logits, tokens }) => {
    const view = c.margin ? logits.slice(c.margin, c.margin + c.vocabulary, 1) : logits
    const { chosen, ids, values } = logProbs(view, tokens, { top: c.top })
    return [chosen, ids, values]
  },
  reference: (c, h) => {
    const chosen: { value: number; error: number }[] = []
    const ids: number[] = []
    const values: { value: number; error: number }[] = []
    for (let row = 0; row < c.rows; row++) {
      const x = rowOf(h, c, row)
      const y = logSoftmax(x)
      chosen.push(y(x[h.tokens.values[row]!]!))
      const order = [...x.keys()].filter((id) => !Number.isNaN(x[id]!)).sort((a, b) => x[b]! - x[a]! || a - b)
      for (let i = 0; i < c.top; i++) {
        ids.push(order[i] ?? -1)
        values.push(y(x[order[i] ?? -1] ?? Number.NaN))
      }
    }
    return [bounded(chosen), { exact: ids }, bounded(values)]
  },
  control: { case: 'a row' },
})

describe('logProbs', () => {
  test('of all tokens sum to 1', () =>
    forEachDevice(['log_probs'], async (device) => {
      const logits = upload(device, makeLogits('f32', 1, 256, 'normal', Random.named('sum')))
      const { values } = logProbs(logits, Tensor.from(device, Int32Array.of(0)), { top: 256 })
      const sum = (await valuesOf(values)).reduce((total, y) => total + Math.exp(y), 0)
      expect(Math.abs(sum - 1)).toBeLessThan(1e-5)
    }))

  test('any number of threads gives the same bits', async () => {
    const host = makeLogits('f32', 3, 50_021, 'normal', Random.named('threads'))
    const results: number[][] = []
    for (const threads of [1, 2, 3, 16]) {
      const device = await openDevice(presentIsas.at(-1)!, threads)
      const { chosen, values } = logProbs(upload(device, host), Tensor.from(device, Int32Array.of(1, 2, 3)), { top: 9 })
      results.push([...(await valuesOf(chosen)), ...(await valuesOf(values))])
    }
    for (const result of results) expect(result).toEqual(results[0])
  })

  test.each([-1, 5, 2 ** 31 - 1])('bad data: token %d of 5: a sticky error and NaN', (token) =>
    forEachDevice(['log_probs'], async (device) => {
      const logits = Tensor.zeros(device, [2, 5])
      const { chosen, ids } = logProbs(logits, Tensor.from(device, Int32Array.of(token, 4)), { top: 1 })
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /tokens: expected 0 \.\.\. 4, got/)
      const [bad, good] = await valuesOf(chosen)
      expect(bad).toBeNaN()
      expect(good).toBeCloseTo(-Math.log(5), 5)
      expect([...(await valuesOf(ids))]).toEqual([0, 0])
    }),
  )

  test('arguments that do not fit', async () => {
    const device = await anyDevice()
    const zeros = (shape: number[], dtype: 'f32' | 'i32' = 'f32') => Tensor.zeros(device, shape, dtype)
    const [logits, tokens] = [zeros([3, 10]), zeros([3], 'i32')]
    throwsCode(() => logProbs(zeros([30]), tokens), 'ERR_SHAPE_MISMATCH', /logits/)
    throwsCode(() => logProbs(zeros([3, 0]), tokens), 'ERR_SHAPE_MISMATCH', /vocabulary/)
    throwsCode(() => logProbs(zeros([3, 10], 'i32'), tokens), 'ERR_DTYPE_UNSUPPORTED', /logits/)
    throwsCode(() => logProbs(logits, zeros([2], 'i32')), 'ERR_SHAPE_MISMATCH', /tokens/)
    throwsCode(() => logProbs(logits, zeros([3])), 'ERR_DTYPE_UNSUPPORTED', /tokens/)
    for (const top of [-1, 11, 257, 1.5]) {
      throwsCode(() => logProbs(logits, tokens, { top }), 'ERR_INVALID_ARGUMENT', /top/)
    }
    throwsCode(() => logProbs(zeros([3, 1000]), tokens, { top: 257 }), 'ERR_INVALID_ARGUMENT', /0 to 256/)
  })
})
