/** What holds of flashAttention whatever the reference says: exact masks, no leaks, and what bad device data may not touch. */

import { describe, expect, test } from 'vitest'
import { type Device, flashAttention, Tensor } from '../../lib/index.ts'
import { compare } from '../support/compare.ts'
import { type Cut, cutTensor, cutValues } from '../support/cuts.ts'
import { download, fast, forEachDevice, forEachIsa, isasFor, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { gamma, type PlainDType, unitRoundoff } from '../support/numbers.ts'
import { Random } from '../support/random.ts'
import {
  type Case,
  cases,
  type Inputs,
  makeInputs,
  type OnDevice,
  rowOf,
  run,
  tableWidthOf,
  tokensOf,
  visible,
} from './flash-attention.cases.ts'
import { type Expectation, reference } from './flash-attention.reference.ts'

const dtypes = ['f32', 'bf16', 'f16', 'i8'] as const
/**
 * Every fourth of the cases in a fast run. `of` tells tests that share a list which fourth is theirs, so that together they
 * leave none out.
 */
const share = <T>(all: readonly T[], of = 0) => (fast ? all.filter((_, i) => i % 4 === of) : all)
const forEachKernel = (body: (device: Device) => unknown, long = false) =>
  forEachDevice(['flash_attention'], body, { isas: isasFor(['flash_attention']), long })

const genericIsas = ['scalar', 'avx2', 'avx512', 'neon']

function uploadAll(device: Device, h: Inputs): OnDevice {
  return Object.fromEntries(
    Object.entries(h).map(([key, host]) => [key, host && upload(device, host)]),
  ) as unknown as OnDevice
}

const bytesOf = async (tensor: Tensor) => Buffer.from((await download(tensor)).bytes)

/** Two results that are each within the bounds of one reference. */
function expectAlike(a: Float64Array, b: Float64Array, { bound }: Pick<Expectation, 'bound'>, name = ''): void {
  const result = compare(
    a,
    b,
    bound.map((limit) => 2 * limit),
  )
  expect(result.failures, `${name} ${JSON.stringify(result.worst)}`).toBe(0)
}

/** A copy of a host tensor whose rows of `n` elements that `change` names hold other values. */
function withRows(host: HostTensor, n: number, change: (row: number, d: number) => number | undefined): HostTensor {
  const values = host.values.map((value, i) => change(Math.floor(i / n), i % n) ?? value)
  return hostTensor(host.dtype as PlainDType, host.shape, values)
}

// ── which keys a row sees ─────────────────────────────────────────────────────────────────────────────────────────────

/** Key j of sequence s adds this to element (j mod headDim) of its row's sum, so that every key that is lost or extra shows. */
const mark = (c: Case, s: number, j: number) => 1 + ((Math.floor(j / c.headDim) + s) % 4)

interface Counting {
  readonly inputs: Inputs
  readonly sums: Float64Array
  readonly seen: Float64Array
}

/** Queries of zeros weigh all visible keys alike: out · (keys seen) is the sum of integer marks, whole after rounding. */
function counting(c: Case): Counting {
  const { queryHeads, headDim } = c
  const h = makeInputs(c, Random.named(`counting/${c.name}`))
  const marked = new Map<number, readonly [element: number, value: number]>()
  const seen = new Float64Array(tokensOf(c))
  const sums = new Float64Array(tokensOf(c) * queryHeads * headDim)
  let token = c.padding ?? 0
  for (const [s, queries] of c.queries.entries()) {
    for (let i = 0; i < queries; i++, token++) {
      const { low, high } = visible(c, h, s, i)
      seen[token] = Math.max(0, high - low)
      for (let j = Math.max(0, low); j < high; j++) {
        for (let head = 0; head < c.kvHeads; head++) marked.set(rowOf(c, h, s, head, j), [j % headDim, mark(c, s, j)])
        for (let head = 0; head < queryHeads; head++)
          sums[(token * queryHeads + head) * headDim + (j % headDim)]! += mark(c, s, j)
      }
    }
  }
  const v = withRows(h.v, headDim, (row, d) => {
    const entry = marked.get(row)
    return entry && (entry[0] === d ? entry[1] : 0)
  })
  const vScales = h.vScales && withRows(h.vScales, 1, (row) => (marked.has(row) ? 1 : undefined))
  const q = hostTensor(h.q.dtype as 'f32' | 'bf16', h.q.shape, new Float64Array(h.q.values.length))
  return { inputs: { ...h, q, v, vScales }, sums, seen }
}

const grouped = { queryHeads: 6, kvHeads: 2, headDim: 64, outputDtype: 'f32' } as const
const countingCases: readonly Case[] = [
  ...[1, 2, 7, 31, 33, 64, 65, 127, 200].flatMap((tokens): Case[] => [
    { name: `${tokens} of ${tokens}`, ...grouped, queries: [tokens], keys: [tokens] },
    { name: `${tokens} after 61`, ...grouped, queries: [tokens], keys: [tokens + 61] },
  ]),
  ...[1, 17, 64].flatMap((window): Case[] => [
    ...[window - 1, window, window + 1, 300].map((length) => {
      const queries = [Math.min(length, 99)]
      return { name: `window ${window} of ${length} keys`, ...grouped, queries, keys: [length], window }
    }),
    { name: `window ${window}, decode`, ...grouped, queries: [1, 1, 2], keys: [window, window + 1, 1031], window },
  ]),
  { name: 'decode of 1031', ...grouped, queries: [1], keys: [1031] },
  { name: 'decode of 1031, heads 1/1', ...grouped, queryHeads: 1, kvHeads: 1, queries: [1], keys: [1031] },
  { name: 'decode of 1031, heads 16/8', ...grouped, queryHeads: 16, kvHeads: 8, queries: [1], keys: [1031] },
  { name: 'decode of 1031, window 700', ...grouped, queries: [1], keys: [1031], window: 700 },
  { name: 'head of 8', ...grouped, headDim: 8, queries: [50], keys: [70], window: 40 },
  { name: 'head of 512', ...grouped, headDim: 512, queries: [37], keys: [150] },
  { name: 'images', ...grouped, queries: [120], keys: [120], intervals: 'image' },
  { name: 'symmetric', ...grouped, queries: [90, 33], keys: [90, 33], intervals: 'symmetric' },
  { name: 'not causal', ...grouped, queries: [33, 0, 1], keys: [70, 9, 300], causal: false },
  { name: 'more tokens than keys', ...grouped, queries: [70], keys: [31], window: 9 },
  { name: 'padding and room', ...grouped, queries: [1, 0, 33], keys: [70, 5, 33], padding: 3, room: 5 },
  ...[0, 1, 13, 32].flatMap((pageTokens): Case[] => [
    { name: `batch, pages of ${pageTokens}`, ...grouped, queries: [1, 0, 33, 7], keys: [270, 5, 33, 300], pageTokens },
    {
      name: `intervals, pages of ${pageTokens}`,
      ...grouped,
      queries: [1, 40, 3],
      keys: [300, 77, 5],
      pageTokens,
      intervals: 'random',
    },
  ]),
  ...[1, 7, 16].flatMap((pageTokens): Case[] => {
    const tableWidth = Math.ceil(64 / pageTokens)
    const ring = { ...grouped, pageTokens, tableWidth, window: 30 }
    return [
      { name: `ring of pages of ${pageTokens}`, ...ring, queries: [35, 1, 2, 12], keys: [200, 65, 64, 12] },
      { name: `ring of pages of ${pageTokens}, far`, ...ring, queries: [1, 35], keys: [1_000_003, 2 ** 30] },
      {
        name: `ring of pages of ${pageTokens}, longest`,
        ...ring,
        queries: [1, 35],
        keys: [2 ** 31 - 1024, 2 ** 31 - 1025],
      },
      {
        name: `ring of pages of ${pageTokens}, intervals`,
        ...ring,
        queries: [1, 35],
        keys: [777, 501],
        intervals: 'random',
      },
    ]
  }),
]

describe('flashAttention sees exactly the visible keys', () => {
  for (const [i, kvDtype] of dtypes.entries()) {
    test(kvDtype, async () => {
      for (const plain of share(countingCases, i)) {
        const c: Case = { ...plain, kvDtype, dtype: kvDtype === 'f16' ? 'bf16' : 'f32' }
        const { inputs, sums, seen } = counting(c)
        const tokenSize = c.queryHeads * c.headDim
        // A weight is off by at most its rounding to bf16 and by 2^-13; so is the sum by the latter.
        const largest = sums.reduce((most, sum) => Math.max(most, sum), 0)
        expect(largest * (unitRoundoff('bf16') + 2 ** -12 + gamma(4 * Math.max(1, ...seen)))).toBeLessThan(0.25)
        await forEachKernel(async (device) => {
          const out = await valuesOf(run(c, uploadAll(device, inputs)))
          const got = out.map((value, i) => value * seen[Math.floor(i / tokenSize)]!)
          const wrong = got.findIndex((value, i) => !(Math.abs(value - sums[i]!) < 0.25))
          const [token, element] = [Math.floor(wrong / tokenSize), wrong % tokenSize]
          if (wrong >= 0)
            expect.fail(`${c.name}: token ${token}, element ${element}: got ${got[wrong]}, expected ${sums[wrong]}`)
        }, true)
      }
    })
  }
  if (fast)
    test.skip(`LAPIDARY_TEST_FAST runs each of ${countingCases.length} cases with one of ${dtypes.length} dtypes`)
})

// ── the same by another way ───────────────────────────────────────────────────────────────────────────────────────────

describe('flashAttention', () => {
  test('kernels that multiply in f32 are as accurate as f32 allows, in all cases of bf16 and i8 keys', async () => {
    const third = cases.filter((c) => ['bf16', 'i8'].includes(c.kvDtype ?? 'f32')).filter((_, i) => i % 3 === 0)
    expect(third.length).toBeGreaterThan(10)
    for (const c of share(third)) {
      const h = makeInputs(c, Random.named(`f32 kind/${c.name}`))
      const [{ value, bound }] = reference(c, h, 'f32') as [Expectation]
      await forEachKernel(async (device) => {
        if (!genericIsas.includes(device.info().kernels.flash_attention!)) return
        const result = compare(await valuesOf(run(c, uploadAll(device, h))), value, bound)
        expect(result.failures, `${c.name}: ${JSON.stringify(result.worst)}`).toBe(0)
      })
    }
  })

  test('each row of a windowed prefill is full attention of its query over its keys', async () => {
    for (const kvDtype of ['f32', 'bf16'] as const) {
      for (const window of [0, 17]) {
        const c: Case = { name: '', ...grouped, queries: [70], keys: [101], window, kvDtype }
        const h = makeInputs(c, Random.named('rows'))
        const [{ bound }] = reference(c, h) as [Expectation]
        const tokenSize = c.queryHeads * c.headDim
        await forEachKernel(async (device) => {
          const { q, k, v } = uploadAll(device, h)
          const whole = await valuesOf(flashAttention(q, k, v, { window }))
          for (const i of [0, 1, 16, 31, 32, 33, 64, 69]) {
            const { low, high } = visible(c, h, 0, i)
            const keys = [k.slice(low, high), v.slice(low, high)] as const
            const row = await valuesOf(flashAttention(q.slice(i, i + 1), ...keys, { causal: false }))
            const range = [i * tokenSize, (i + 1) * tokenSize] as const
            expectAlike(row, whole.subarray(...range), { bound: bound.subarray(...range) }, `row ${i}`)
          }
        })
      }
    }
  })

  test('intervals that say what causal and window say give the same result', async () => {
    const c: Case = {
      name: '',
      ...grouped,
      queries: [1, 50, 3],
      keys: [600, 90, 33],
      window: 40,
      pageTokens: 16,
      kvDtype: 'bf16',
    }
    const h = makeInputs(c, Random.named('same intervals'))
    const intervals = c.queries.flatMap((queries, s) => Array.from({ length: queries }, (_, i) => visible(c, h, s, i)))
    const column = (values: readonly number[]) => hostTensor('i32', [values.length], values)
    const explicit: Inputs = {
      ...h,
      keyLow: column(intervals.map(({ low }) => Math.max(0, low))),
      keyHigh: column(intervals.map(({ high }) => high)),
    }
    const [expected] = reference(c, h) as [Expectation]
    await forEachKernel(async (device) => {
      const [a, b] = [await valuesOf(run(c, uploadAll(device, h))), await valuesOf(run(c, uploadAll(device, explicit)))]
      expectAlike(a, b, expected)
    })
  })

  test('views are read where they lie', async () => {
    const [queryHeads, kvHeads, headDim] = [4, 2, 24]
    // Of tensors that are wider in every dimension, the rest of which holds NaN (bytes of 127).
    const outer = (shape: readonly number[]) => shape.map((dim, axis) => dim + 3 + 5 * (axis % 2))
    const cuts = (shape: readonly number[]): Cut[] => shape.map((dim, axis) => [axis, 2, 2 + dim])
    const within = (random: Random, dtype: (typeof dtypes)[number], shape: readonly number[]) => {
      const wide = outer(shape)
      const inside = wide.map((_, axis) => wide.slice(axis + 1).reduce((product, dim) => product * dim, 1))
      return random.tensor(dtype, wide, (i) => {
        const inner = wide.every((dim, axis) => {
          const at = Math.floor(i / inside[axis]!) % dim
          return at >= 2 && at < 2 + shape[axis]!
        })
        if (dtype === 'i8') return inner ? random.integer(-127, 128) : 127
        return inner ? random.gaussian() : Number.NaN
      })
    }
    for (const dtype of dtypes) {
      for (const paged of [false, true]) {
        for (const tokens of [1, 40]) {
          const random = Random.named(`views/${dtype}`)
          const keys = paged ? [4, kvHeads, 16, headDim] : [50, kvHeads, headDim]
          const q = within(random, dtype === 'f32' ? 'f32' : 'bf16', [tokens, queryHeads, headDim])
          const [k, v] = [within(random, dtype, keys), within(random, dtype, keys)]
          const scales = random.uniform('f32', keys.slice(0, -1), 0.005, 0.02)
          await forEachKernel(async (device) => {
            const options = {
              window: 33,
              ...(dtype === 'i8' && { kScales: upload(device, scales), vScales: upload(device, scales) }),
              ...(paged && {
                pageTable: Tensor.from(device, Int32Array.of(2, 0, 3, 1), [1, 4]),
                keyLengths: Tensor.from(device, Int32Array.of(50), [1]),
              }),
            }
            const views = [
              cutTensor(upload(device, q), cuts([tokens, queryHeads, headDim])),
              cutTensor(upload(device, k), cuts(keys)),
              cutTensor(upload(device, v), cuts(keys)),
            ] as const
            const copies = [
              [q, cuts([tokens, queryHeads, headDim])] as const,
              [k, cuts(keys)] as const,
              [v, cuts(keys)] as const,
            ].map(([host, cut]) => {
              const { shape, values } = cutValues(host, cut)
              return upload(device, hostTensor(host.dtype as PlainDType, shape, values))
            }) as [Tensor, Tensor, Tensor]
            const got = await download(flashAttention(...views, options))
            expect(got.values.some(Number.isNaN)).toBe(false)
            const expected = await bytesOf(flashAttention(...copies, options))
            expect(Buffer.from(got.bytes).equals(expected), `${dtype}, paged ${paged}, ${tokens} tokens`).toBe(true)
          })
        }
      }
    }
  })

  // ── leaks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  test('what a key holds does not enter rows that do not see it', async () => {
    // Largest finite values in v; in k, which only makes scores, also what is not finite.
    const huge = { f32: 3e38, bf16: 3e38, f16: 65504, i8: 127 }
    for (const [i, kvDtype] of dtypes.entries()) {
      for (const softcap of [0, 20]) {
        const c: Case = { name: '', ...grouped, headDim: 32, queries: [70], keys: [100], window: 25, kvDtype, softcap }
        const h = makeInputs(c, Random.named('leaks'))
        const rowSize = c.queryHeads * c.headDim
        await forEachKernel(async (device) => {
          const clean = await bytesOf(run(c, uploadAll(device, h)))
          for (const key of share([12, 40, 63, 99], i)) {
            for (const poison of kvDtype === 'i8' ? [127] : [huge[kvDtype], Number.NaN, Number.NEGATIVE_INFINITY]) {
              const at = (row: number) => Math.floor(row / c.kvHeads) === key
              const got = await bytesOf(
                run(
                  c,
                  uploadAll(device, {
                    ...h,
                    k: withRows(h.k, c.headDim, (row) => (at(row) ? poison : undefined)),
                    v: withRows(h.v, c.headDim, (row) => (at(row) ? huge[kvDtype] : undefined)),
                    kScales: h.kScales && withRows(h.kScales, 1, (row) => (at(row) ? 1e36 : undefined)),
                    vScales: h.vScales && withRows(h.vScales, 1, (row) => (at(row) ? 1e36 : undefined)),
                  }),
                ),
              )
              for (let row = 0; row < 70; row++) {
                const { low, high } = visible(c, h, 0, row)
                if (key >= low && key < high) continue
                const range = [4 * row * rowSize, 4 * (row + 1) * rowSize] as const
                const same = got.subarray(...range).equals(clean.subarray(...range))
                expect(same, `${kvDtype}, softcap ${softcap}, key ${key} of ${poison} in row ${row}`).toBe(true)
              }
            }
          }
        }, true)
      }
    }
  })

  test('NaN in one sequence stays there, in its pages too', async () => {
    const all = (['f32', 'bf16', 'f16'] as const).flatMap((kvDtype) =>
      [0, 16].flatMap((pageTokens) => [1, 2].map((broken) => ({ kvDtype, pageTokens, broken }))),
    )
    // Fast: f32 plain, bf16 in pages, each with another sequence.
    for (const { kvDtype, pageTokens, broken } of fast ? [all[0]!, all[7]!] : all) {
      const c: Case = { name: '', ...grouped, queries: [1, 30, 1, 45], keys: [40, 40, 270, 45], pageTokens, kvDtype }
      const h = makeInputs(c, Random.named('sequences'))
      const starts = [0, 1, 31, 32, 77]
      const rows = new Set<number>()
      for (let j = 0; j < c.keys[broken]!; j++)
        for (let head = 0; head < c.kvHeads; head++) rows.add(rowOf(c, h, broken, head, j))
      const poisoned = (host: HostTensor) =>
        withRows(host, c.headDim, (row) => (rows.has(row) ? Number.NaN : undefined))
      await forEachKernel(async (device) => {
        const clean = run(c, uploadAll(device, h))
        const out = run(c, uploadAll(device, { ...h, k: poisoned(h.k), v: poisoned(h.v) }))
        for (const s of [0, 1, 2, 3]) {
          const part = (tensor: Tensor) => tensor.slice(starts[s]!, starts[s + 1]!)
          if (s === broken) expect((await valuesOf(part(out))).every(Number.isNaN)).toBe(true)
          else expect((await bytesOf(part(out))).equals(await bytesOf(part(clean))), `sequence ${s}`).toBe(true)
        }
      }, true)
    }
  })
})

// ── bad device data ───────────────────────────────────────────────────────────────────────────────────────────────────

describe('flashAttention with bad device data', () => {
  const c: Case = { name: '', ...grouped, queries: [1, 40, 3], keys: [300, 90, 20] }
  const tokenSize = c.queryHeads * c.headDim

  const held = new Map<Case, Expectation & { readonly h: Inputs }>()
  function prepared(c: Case) {
    const h = held.get(c)?.h ?? makeInputs(c, Random.named('bad data'))
    const result = held.get(c) ?? { h, ...(reference(c, h)[0] as Expectation) }
    held.set(c, result)
    return result
  }

  /** Rows that `zero` names are zeros, all others as without the bad data; an error only where a row is bad. */
  async function leaves(
    c: Case,
    change: (h: Inputs) => Partial<Inputs>,
    zero: (token: number, h: Inputs) => boolean,
    long = false,
  ): Promise<void> {
    const { h, value, bound } = prepared(c)
    await forEachKernel(async (device) => {
      const out = run(c, uploadAll(device, { ...h, ...change(h) }))
      const anyBad = Array.from({ length: tokensOf(c) }, (_, token) => zero(token, h)).some((bad) => bad)
      if (anyBad) await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /flash_attention/)
      const got = await valuesOf(out)
      const wrong = Array.from({ length: tokensOf(c) }, (_, token) => token).filter((token) => {
        const range = [token * tokenSize, (token + 1) * tokenSize] as const
        if (zero(token, h)) return got.subarray(...range).some((x) => x !== 0)
        return compare(got.subarray(...range), value.subarray(...range), bound.subarray(...range)).failures > 0
      })
      expect(wrong, 'wrong rows').toEqual([])
    }, long)
  }
  const integers = (values: readonly number[], shape = [values.length]) => hostTensor('i32', shape, values)
  const replaced = (host: HostTensor, index: number, value: number) => {
    const values = [...host.values]
    values[index] = value
    return integers(values, [...host.shape])
  }

  test('starts that descend: all rows are zeros', async () => {
    await leaves(
      c,
      () => ({ queryStarts: integers([0, 41, 1, 44]) }),
      () => true,
    )
    await leaves(
      c,
      () => ({ keyStarts: integers([0, 300, 299, 410]) }),
      () => true,
    )
    await leaves(
      c,
      () => ({ queryStarts: integers([0, 1, 41, 45]) }),
      () => true,
    )
  })

  test('a length beyond the keys: that sequence is zeros', async () => {
    for (const length of [-1, 91, 2 ** 31 - 1, -(2 ** 31)])
      await leaves(
        { ...c, room: 0 },
        () => ({ keyLengths: integers([300, length, 20]) }),
        (token) => token >= 1 && token < 41,
      )
    const paged = { ...c, pageTokens: 16 }
    await leaves(
      paged,
      (h) => ({ keyLengths: replaced(h.keyLengths!, 1, -5) }),
      (token) => token >= 1 && token < 41,
    )
  })

  test('an interval outside: that row is zeros', async () => {
    for (const token of [0, 17, 43]) {
      for (const [key, value] of [
        ['keyLow', -1],
        ['keyHigh', 301],
        ['keyHigh', 2 ** 31 - 1],
      ] as const)
        await leaves(
          { ...c, intervals: 'symmetric' },
          (h) => ({ [key]: replaced(h[key]!, token, value) }),
          (t) => t === token,
        )
    }
  })

  test('keys that a ring has overwritten: rows that see them are zeros', async () => {
    const ring: Case = { ...c, keys: [300, 300, 20], pageTokens: 16, tableWidth: 5, intervals: 'random' }
    for (const token of [0, 1, 20, 40]) {
      await leaves(
        ring,
        (h) => ({ keyLow: replaced(h.keyLow!, token, 219), keyHigh: replaced(h.keyHigh!, token, 300) }),
        (t) => t === token,
      )
    }
  })

  test('a length beyond what positions can be: that sequence is zeros', async () => {
    const ring: Case = { ...c, keys: [300, 2 ** 31 - 1024, 20], pageTokens: 16, tableWidth: 24, window: 20 }
    await leaves(
      ring,
      (h) => ({ keyLengths: replaced(h.keyLengths!, 1, 2 ** 31 - 1023) }),
      (token) => token >= 1 && token < 41,
    )
  })

  test('a page outside the cache: rows that see it are zeros', async () => {
    // Sequence 0 decodes in two chunks of keys, 1 is a prefill, 2 decodes three tokens, 3 is a prefill whose keys are cut (the
    // reference's largest part: fast runs leave it out).
    const lengths = { queries: [1, 40, 3, 12], keys: [600, 90, 40, 2200] }
    const count = fast ? 3 : 4
    const [queries, keys] = [lengths.queries.slice(0, count), lengths.keys.slice(0, count)]
    const batch: Case = { ...grouped, name: '', queries, keys, pageTokens: 16 }
    const width = tableWidthOf(batch)
    const bad = [-1, batch.queries.length * width + 2, 2 ** 31 - 1]
    // Sequence and page: of the one row's first and second chunk; of the middle of a prefill; of its last, which only the last
    // rows see; of a page that only the last of three decoding rows sees; of both chunks of the longest sequence.
    const places = [
      [0, 3],
      [0, 30],
      [1, 2],
      [1, 5],
      [2, 0],
      [2, 2],
      [3, 0],
      [3, 137],
    ] as const
    for (const [kvDtype, window] of [
      ['f32', 0],
      ['bf16', 0],
      ['bf16', 20],
      ['i8', 20],
    ] as const) {
      const c: Case = { ...batch, window, kvDtype }
      for (const [i, [s, page]] of share([...places.entries()].slice(0, 2 * count), window ? 1 : 3)) {
        const slots = [page * 16, page * 16 + 16] as const
        const sees = (token: number, h: Inputs) => {
          const first = c.queries.slice(0, s).reduce((a, b) => a + b, 0)
          if (token < first || token >= first + c.queries[s]!) return false
          const { low, high } = visible(c, h, s, token - first)
          return Math.max(low, slots[0]) < Math.min(high, slots[1], c.keys[s]!)
        }
        await leaves(c, (h) => ({ pageTable: replaced(h.pageTable!, s * width + page, bad[i % 3]!) }), sees, i > 3)
      }
    }
  })

  test('caches without pages, slots or table entries hold no keys', () =>
    forEachKernel(async (device) => {
      for (const [pages, pageTokens, width] of [
        [0, 4, 2],
        [2, 0, 2],
        [2, 4, 0],
      ] as const) {
        for (const tokens of [1, 30]) {
          const q = Tensor.from(device, new Float32Array(tokens * 32).fill(1), [tokens, 2, 16])
          const k = Tensor.zeros(device, [pages, 1, pageTokens, 16])
          const pageTable = Tensor.zeros(device, [1, width], 'i32')
          const call = (length: number) =>
            flashAttention(q, k, k, { pageTable, keyLengths: Tensor.from(device, Int32Array.of(length), [1]) })
          expect((await valuesOf(call(0))).every((x) => x === 0)).toBe(true)
          const out = call(3)
          await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /flash_attention/)
          expect((await valuesOf(out)).every((x) => x === 0)).toBe(true)
        }
      }
    }))
})

test('flashAttention rejects integers and scales that are not contiguous', () =>
  forEachIsa((device) => {
    const zeros = (shape: readonly number[], dtype: 'f32' | 'i32' | 'i8' = 'f32') => Tensor.zeros(device, shape, dtype)
    const rejects = (body: () => unknown, message: RegExp) => throwsCode(body, 'ERR_LAYOUT_UNSUPPORTED', message)
    const [q, pages, keyLengths] = [zeros([3, 4, 16]), zeros([6, 2, 4, 16]), zeros([2], 'i32')]
    const queryStarts = zeros([3], 'i32')
    const pageTable = zeros([2, 5], 'i32').slice(0, 3, 1)
    rejects(() => flashAttention(q, pages, pages, { queryStarts, pageTable, keyLengths }), /pageTable/)
    const bytes = zeros([5, 2, 16], 'i8')
    const [kScales, vScales] = [zeros([5, 2]), zeros([5, 3]).slice(1, 3, 1)]
    rejects(() => flashAttention(q, bytes, bytes, { kScales, vScales }), /vScales/)
    rejects(() => flashAttention(q, bytes, bytes, { kScales: vScales, vScales: kScales }), /kScales/)
    throwsCode(
      () => flashAttention(q, zeros([5, 0, 16]), zeros([5, 0, 16])),
      'ERR_SHAPE_MISMATCH',
      /queryHeads to be a multiple of kvHeads/,
    )
    throwsCode(() => flashAttention(q, zeros([5, 2, 16]), pages), 'ERR_SHAPE_MISMATCH', /v: expected 3 dimensions/)
    throwsCode(
      () => flashAttention(q, bytes, bytes, { queryStarts: zeros([1, 2], 'i32'), kScales, vScales: kScales }),
      'ERR_SHAPE_MISMATCH',
      /queryStarts/,
    )
    throwsCode(
      () =>
        flashAttention(q, pages, pages, {
          scale: Number.NaN,
          pageTable: zeros([1, 2], 'i32'),
          keyLengths: zeros([1], 'i32'),
        }),
      'ERR_INVALID_ARGUMENT',
      /scale/,
    )
  }))
