import { describe, expect, test } from 'vitest'
import { adjustLogits, countTokens, Program, sample, Tensor } from '../../lib/index.ts'
import { anyDevice, forEachDevice, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import { type Kind, makeLogits } from './sampling.reference.ts'

const promptBit = 2 ** 30
const generatedMask = promptBit - 1

interface AdjustCase {
  readonly name: string
  readonly rows: number
  readonly vocabulary: number
  readonly sequences: number
  readonly dtype?: 'f32' | 'bf16'
  readonly kind?: Kind
  readonly margin?: number
  readonly without?: readonly ('counts' | 'bias')[]
  /** Some rows have no sequence. */
  readonly loose?: boolean
  readonly masked?: boolean
}

const adjustCases: AdjustCase[] = [
  { name: 'both', rows: 5, vocabulary: 300, sequences: 4 },
  { name: 'one token', rows: 2, vocabulary: 1, sequences: 1 },
  { name: 'no rows', rows: 0, vocabulary: 10, sequences: 2 },
  ...[3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33].map((vocabulary) => ({
    name: `vocabulary ${vocabulary}`,
    rows: 3,
    vocabulary,
    sequences: 3,
    dtype: vocabulary % 2 ? ('f32' as const) : ('bf16' as const),
  })),
  { name: 'a piece, one more, one less', rows: 3, vocabulary: 4097, sequences: 2, loose: true },
  { name: 'bf16, 4095', rows: 2, vocabulary: 4095, sequences: 5, dtype: 'bf16', loose: true },
  { name: 'strided rows', rows: 4, vocabulary: 777, sequences: 3, margin: 5 },
  { name: 'counts alone', rows: 4, vocabulary: 500, sequences: 3, without: ['bias'] },
  { name: 'bias alone', rows: 4, vocabulary: 500, sequences: 3, without: ['counts'] },
  { name: 'neither', rows: 4, vocabulary: 500, sequences: 3, without: ['counts', 'bias'], loose: true },
  { name: 'more rows than sequences', rows: 17, vocabulary: 123, sequences: 2 },
  ...(['levels', 'zeros', 'nan', 'infinite', 'forbidden', 'huge'] as const).map((kind) => ({
    name: kind,
    rows: 4,
    vocabulary: 600,
    sequences: 2,
    kind,
  })),
  ...[1, 31, 32, 33, 4095, 4096, 4097].map((vocabulary) => ({
    name: `mask of ${vocabulary}`,
    rows: 3,
    vocabulary,
    sequences: 2,
    loose: true,
    masked: true,
    ...(vocabulary % 2 && { dtype: 'bf16' as const }),
  })),
  { name: 'mask alone', rows: 4, vocabulary: 500, sequences: 3, without: ['counts', 'bias'], masked: true },
  { name: 'mask, strided, NaN', rows: 4, vocabulary: 777, sequences: 3, margin: 5, kind: 'nan', masked: true },
  { name: 'Gemma 3', rows: 2, vocabulary: 262_144, sequences: 3, masked: true },
]

interface AdjustInputs extends Record<string, HostTensor | undefined> {
  readonly logits: HostTensor
  readonly rows: HostTensor
  readonly settings: HostTensor
  readonly counts: HostTensor | undefined
  readonly bias: HostTensor | undefined
  readonly mask: HostTensor | undefined
}

/** A word of a mask: all, none, or some of 32 tokens. */
const word = (random: Random) => random.pick([0, -1, random.integer(-(2 ** 31), 2 ** 31)])

const count = (random: Random) =>
  random.pick([0, 0, 0, 1, 2, 17, 2 ** 24 + 1, generatedMask]) + random.pick([0, 0, promptBit])

opSuite<AdjustCase, AdjustInputs>('adjustLogits', {
  ops: ['adjust_logits'],
  emulated: { cases: 24, elements: 100_000 },
  cases: adjustCases,
  inputs: (c, random) => {
    const columns = c.vocabulary + 2 * (c.margin ?? 0)
    const table = [c.sequences, columns]
    return {
      logits: makeLogits(c.dtype ?? 'f32', c.rows, columns, c.kind ?? 'normal', random),
      rows: random.tensor('i32', [c.rows], () =>
        c.loose && random.fraction() < 0.3 ? -1 : random.integer(0, c.sequences),
      ),
      settings: random.tensor('f32', [c.rows, 3], (i) =>
        i % 3 === 0 ? random.pick([1, 1.1, 1.3, 0.5]) : random.pick([0, 0.5, -0.25, 1.7]),
      ),
      counts: c.without?.includes('counts') ? undefined : random.tensor('i32', table, () => count(random)),
      bias: c.without?.includes('bias')
        ? undefined
        : random.tensor('f32', table, () => (random.fraction() < 0.1 ? Number.NEGATIVE_INFINITY : random.gaussian())),
      // One word more than there is: rows are strided.
      mask: c.masked ? random.tensor('i32', [c.rows, Math.ceil(c.vocabulary / 32) + 1], () => word(random)) : undefined,
    }
  },
  run: (c, { logits, rows, settings, counts, bias, mask }) => {
    const inMargins = (tensor: Tensor) => tensor.slice(c.margin ?? 0, (c.margin ?? 0) + c.vocabulary, 1)
    return adjustLogits(inMargins(logits), {
      rows,
      settings,
      counts: counts && inMargins(counts),
      bias: bias && inMargins(bias),
      mask: mask?.slice(0, Math.ceil(c.vocabulary / 32), 1),
    })
  },
  reference: (c, h) => {
    const columns = c.vocabulary + 2 * (c.margin ?? 0)
    const exact = new Float64Array(c.rows * c.vocabulary)
    for (let row = 0; row < c.rows; row++) {
      const [repetition, presence, frequency] = h.settings.values.subarray(3 * row) as unknown as number[]
      const sequence = h.rows.values[row]!
      for (let id = 0; id < c.vocabulary; id++) {
        const at = (c.margin ?? 0) + id
        let x = h.logits.values[row * columns + at]!
        if (sequence >= 0) {
          const n = h.counts?.values[sequence * columns + at] ?? 0
          const times = Math.fround(n & generatedMask)
          if (n !== 0) x = Math.fround(x > 0 ? x / repetition! : x * repetition!)
          x = Math.fround(x - Math.fround(frequency! * times))
          if (times > 0) x = Math.fround(x - presence!)
          if (h.bias) x = Math.fround(x + h.bias.values[sequence * columns + at]!)
        }
        const words = Math.ceil(c.vocabulary / 32) + 1
        const bits = h.mask?.values[row * words + Math.floor(id / 32)] ?? -1
        exact[row * c.vocabulary + id] = Math.floor(bits / 2 ** (id % 32)) % 2 === 0 ? Number.NEGATIVE_INFINITY : x
      }
    }
    return [{ exact }]
  },
  control: { case: 'both' },
})

describe('adjustLogits', () => {
  test('penalties of 1, 0, 0 and no bias give the logits, whatever the counts', () =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const logits = Random.named('neutral').normal('f32', [2, 700])
      const adjusted = adjustLogits(upload(device, logits), {
        rows: Tensor.from(device, Int32Array.of(0, 0)),
        settings: Tensor.from(device, Float32Array.of(1, 0, 0, 1, 0, 0), [2, 3]),
        counts: Tensor.from(device, new Int32Array(700).fill(-1), [1, 700]),
      })
      expect(await valuesOf(adjusted)).toEqual(logits.values)
    }))

  test('a negative count is none', () =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const adjusted = adjustLogits(Tensor.from(device, Float32Array.of(1, 2), [1, 2]), {
        rows: Tensor.from(device, Int32Array.of(0)),
        settings: Tensor.from(device, Float32Array.of(2, 1, 1), [1, 3]),
        counts: Tensor.from(device, Int32Array.of(-5, 1), [1, 2]),
      })
      expect([...(await valuesOf(adjusted))]).toEqual([1, -1])
    }))

  test.each<[string, number[], number[], 'ERR_INDEX_OUT_OF_RANGE' | 'ERR_INVALID_ARGUMENT', RegExp]>([
    ['row 2 of 2 sequences', [0, 2], [], 'ERR_INDEX_OUT_OF_RANGE', /rows: expected -1 \.\.\. 1, got 2/],
    ['row −2', [0, -2], [], 'ERR_INDEX_OUT_OF_RANGE', /got -2/],
    ['repetition 0', [0, 1], [0, 0, 0], 'ERR_INVALID_ARGUMENT', /settings: .* in row 1 of 2/],
    ['repetition −1', [0, 1], [-1, 0, 0], 'ERR_INVALID_ARGUMENT', /settings/],
    ['repetition NaN', [0, 1], [Number.NaN, 0, 0], 'ERR_INVALID_ARGUMENT', /settings/],
    ['repetition infinite', [0, 1], [Infinity, 0, 0], 'ERR_INVALID_ARGUMENT', /settings/],
    ['presence infinite', [0, 1], [1, -Infinity, 0], 'ERR_INVALID_ARGUMENT', /settings/],
    ['frequency NaN', [0, 1], [1, 0, Number.NaN], 'ERR_INVALID_ARGUMENT', /settings/],
  ])('bad data: %s: a sticky error, and the row is copied', (_, rows, bad, code, message) =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const adjusted = adjustLogits(Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2]), {
        rows: Tensor.from(device, Int32Array.from(rows)),
        settings: Tensor.from(device, Float32Array.of(2, 0, 0, ...(bad.length ? bad : [2, 0, 0])), [2, 3]),
        counts: Tensor.from(device, Int32Array.of(1, 0, 1, 1), [2, 2]),
        bias: Tensor.from(device, Float32Array.of(0, 0, 9, 9), [2, 2]),
      })
      await rejectsCode(device.stream.synchronize(), code, message)
      expect([...(await valuesOf(adjusted))]).toEqual([0.5, 2, 3, 4])
    }),
  )

  test('shapes and dtypes that do not fit', async () => {
    const device = await anyDevice()
    const zeros = (shape: number[], dtype: 'f32' | 'bf16' | 'i32' = 'f32') => Tensor.zeros(device, shape, dtype)
    const [logits, rows, settings] = [zeros([3, 10]), zeros([3], 'i32'), zeros([3, 3])]
    const adjust =
      (changed: object, x = logits) =>
      () =>
        adjustLogits(x, { rows, settings, ...changed })
    throwsCode(adjust({}, zeros([10])), 'ERR_SHAPE_MISMATCH', /logits/)
    throwsCode(adjust({}, zeros([3, 0])), 'ERR_SHAPE_MISMATCH', /vocabulary/)
    throwsCode(adjust({}, zeros([3, 10], 'i32')), 'ERR_DTYPE_UNSUPPORTED', /logits/)
    throwsCode(adjust({ rows: zeros([2], 'i32') }), 'ERR_SHAPE_MISMATCH', /rows: .*rows of logits/)
    throwsCode(adjust({ rows: zeros([3]) }), 'ERR_DTYPE_UNSUPPORTED', /rows/)
    throwsCode(adjust({ rows: undefined }), 'ERR_INVALID_ARGUMENT', /rows/)
    throwsCode(adjust({ settings: zeros([3, 4]) }), 'ERR_SHAPE_MISMATCH', /settings/)
    throwsCode(adjust({ counts: zeros([2, 9], 'i32') }), 'ERR_SHAPE_MISMATCH', /counts: .*vocabulary/)
    throwsCode(adjust({ counts: zeros([2, 10]) }), 'ERR_DTYPE_UNSUPPORTED', /counts/)
    throwsCode(adjust({ bias: zeros([10]) }), 'ERR_SHAPE_MISMATCH', /bias/)
    throwsCode(adjust({ bias: zeros([2, 10], 'bf16') }), 'ERR_DTYPE_UNSUPPORTED', /bias/)
    throwsCode(adjust({ mask: zeros([2, 1], 'i32') }), 'ERR_SHAPE_MISMATCH', /mask: .*rows of logits/)
    throwsCode(adjust({ mask: zeros([3, 2], 'i32') }), 'ERR_SHAPE_MISMATCH', /mask: .*a bit per token/)
    throwsCode(adjust({ mask: zeros([3, 1]) }), 'ERR_DTYPE_UNSUPPORTED', /mask/)
    throwsCode(adjust({ bias: zeros([2, 10]), counts: zeros([3, 10], 'i32') }), 'ERR_SHAPE_MISMATCH', /bias: .*counts/)
  })
})

describe('countTokens', () => {
  test('counts what a loop counts: repeated tokens, several rows, rows without', () =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const random = Random.named('count')
      const [sequences, vocabulary, n] = [4, 50, 700]
      const start = random.tensor('i32', [sequences, vocabulary + 3], () => count(random))
      const tokens = random.tensor('i32', [n], () => random.integer(0, vocabulary))
      const rows = random.tensor('i32', [n], () => random.integer(-1, sequences))
      for (const prompt of [false, true]) {
        const expected = start.values.slice()
        for (let i = 0; i < n; i++) {
          if (rows.values[i]! < 0) continue
          const at = rows.values[i]! * (vocabulary + 3) + 2 + tokens.values[i]!
          if (prompt) expected[at]! |= promptBit
          else if ((expected[at]! & generatedMask) !== generatedMask) expected[at]!++
        }
        const counts = upload(device, start)
        countTokens(upload(device, tokens), counts.slice(2, 2 + vocabulary, 1), upload(device, rows), { prompt })
        expect(await valuesOf(counts)).toEqual(expected)
      }
    }))

  test('one row number for all tokens; no tokens; −1', () =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const counts = Tensor.zeros(device, [2, 4], 'i32')
      const int = (...values: number[]) => Tensor.from(device, Int32Array.from(values))
      countTokens(int(3, 0, 3), counts, int(1), { prompt: true })
      countTokens(int(3, 3), counts, int(1))
      countTokens(int(2, 2), counts, int(-1))
      countTokens(int(), counts, int())
      expect([...(await valuesOf(counts))]).toEqual([0, 0, 0, 0, promptBit, 0, 0, promptBit + 2])
    }))

  test('with adjustLogits and sample in a program: no token comes twice', () =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const vocabulary = 40
      const counts = Tensor.zeros(device, [3, vocabulary], 'i32')
      const state = Tensor.from(device, Int32Array.of(5, 0, 6, 0), [2, 2])
      const settings = Tensor.from(device, Float32Array.of(1, 1000, 0, 1, 0, 0), [2, 3])
      const rows = Tensor.from(device, Int32Array.of(2, 0))
      const program = Program.capture(device, [{ shape: [2, vocabulary], dtype: 'f32' }], (logits) => {
        const tokens = sample(adjustLogits(logits, { counts, rows, settings }), state)
        countTokens(tokens, counts, rows)
        return tokens
      })
      const logits = Random.named('program').normal('f32', [2, vocabulary])
      const drawn: number[][] = []
      for (let i = 0; i < vocabulary; i++) drawn.push([...(await program.execute(logits.data))])
      expect(new Set(drawn.map((tokens) => tokens[0])).size).toBe(vocabulary)
      expect(new Set(drawn.map((tokens) => tokens[1])).size).toBeLessThan(vocabulary)
      const expected = new Float64Array(3 * vocabulary)
      for (const [first, second] of drawn) {
        expected[2 * vocabulary + first!]!++
        expected[second!]!++
      }
      expect(await valuesOf(counts)).toEqual(expected)
    }))

  test.each<[string, number[], number[], RegExp]>([
    ['token 4 of 4', [1, 4, 2], [0, 0, 1], /tokens: expected 0 \.\.\. 3, got 4/],
    ['token −1', [1, -1, 2], [0, 0, 1], /got -1/],
    ['row 2 of 2', [1, 3, 2], [0, 2, 1], /rows: expected -1 \.\.\. 1, got 2/],
    ['row −2', [1, 3, 2], [0, -2, 1], /got -2/],
  ])('bad data: %s: a sticky error, the others are counted', (_, tokens, rows, message) =>
    forEachDevice(['adjust_logits', 'count_tokens'], async (device) => {
      const counts = Tensor.zeros(device, [2, 4], 'i32')
      countTokens(Tensor.from(device, Int32Array.from(tokens)), counts, Tensor.from(device, Int32Array.from(rows)))
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', message)
      expect([...(await valuesOf(counts))]).toEqual([0, 1, 0, 0, 0, 0, 1, 0])
    }),
  )

  test('shapes and dtypes that do not fit', async () => {
    const device = await anyDevice()
    const zeros = (shape: number[], dtype: 'f32' | 'i32' = 'i32') => Tensor.zeros(device, shape, dtype)
    const [tokens, counts, rows] = [zeros([3]), zeros([2, 9]), zeros([3])]
    throwsCode(() => countTokens(zeros([3], 'f32'), counts, rows), 'ERR_DTYPE_UNSUPPORTED', /tokens/)
    throwsCode(() => countTokens(zeros([3, 1]), counts, rows), 'ERR_SHAPE_MISMATCH', /tokens/)
    throwsCode(() => countTokens(tokens, zeros([9]), rows), 'ERR_SHAPE_MISMATCH', /counts/)
    throwsCode(() => countTokens(tokens, zeros([2, 9], 'f32'), rows), 'ERR_DTYPE_UNSUPPORTED', /counts/)
    throwsCode(() => countTokens(tokens, counts, zeros([2])), 'ERR_SHAPE_MISMATCH', /rows/)
    throwsCode(() => countTokens(tokens, counts, hostRows(device)), 'ERR_DTYPE_UNSUPPORTED', /rows/)
  })

  const hostRows = (device: Parameters<typeof upload>[0]) => upload(device, hostTensor('f32', [3], [0, 0, 0]))
})
