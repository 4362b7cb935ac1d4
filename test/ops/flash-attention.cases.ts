/** The cases of flashAttention, their inputs, and the call that each stands for. */

import { flashAttention, type Tensor } from '../../lib/index.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import type { FloatDType } from '../support/numbers.ts'
import { Random } from '../support/random.ts'

export interface Case {
  readonly name: string
  readonly queryHeads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Tokens and keys of each sequence; a key's number is absolute. */
  readonly queries: readonly number[]
  readonly keys: readonly number[]
  readonly dtype?: 'f32' | 'bf16'
  readonly kvDtype?: FloatDType | 'i8'
  readonly outputDtype?: 'same' | 'f32' | 'bf16'
  readonly causal?: boolean
  readonly window?: number
  readonly softcap?: number
  readonly scale?: number
  /** 0 or absent: plain. */
  readonly pageTokens?: number
  /** Pages per sequence; absent: enough for all keys. Fewer make a ring. */
  readonly tableWidth?: number
  /** What keyLow and keyHigh say; absent: there are none. */
  readonly intervals?: 'random' | 'symmetric' | 'image'
  /** Starts are given even where there is one sequence. */
  readonly starts?: boolean
  /** Tokens before the first and after the last sequence. */
  readonly padding?: number
  /** Plain keys that exist beyond keyLengths. */
  readonly room?: number
  /** Standard deviation of q. */
  readonly spread?: number
}

const group41 = { queryHeads: 4, kvHeads: 1 } as const
const group42 = { queryHeads: 4, kvHeads: 2 } as const
const square = (length: number) => ({ queries: [length], keys: [length] })

export const cases: Case[] = []
for (const headDim of [8, 16, 24, 64, 72, 128, 256, 512]) {
  cases.push({ name: `head of ${headDim}`, ...group41, headDim, ...square(37) })
  cases.push({ name: `head of ${headDim}, bf16`, ...group41, headDim, ...square(37), dtype: 'bf16', kvDtype: 'bf16' })
  cases.push({ name: `head of ${headDim}, decode`, ...group42, headDim, queries: [1], keys: [77], kvDtype: 'bf16' })
}
for (const [queryHeads, kvHeads] of [
  [1, 1],
  [4, 1],
  [8, 4],
  [16, 8],
  [3, 1],
  [16, 1],
  [9, 3],
] as const) {
  cases.push({ name: `heads ${queryHeads}/${kvHeads}`, queryHeads, kvHeads, headDim: 64, queries: [23], keys: [40] })
  cases.push({
    name: `heads ${queryHeads}/${kvHeads}, decode`,
    queryHeads,
    kvHeads,
    headDim: 64,
    queries: [1],
    keys: [40],
  })
}
for (const length of [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 47, 48, 49, 95, 96, 97, 127, 128, 129, 257]) {
  cases.push({ name: `length ${length}`, queryHeads: 2, kvHeads: 1, headDim: 32, ...square(length) })
  const decoding = { ...group42, headDim: 32, queries: [1], keys: [length] }
  cases.push({ name: `decode ${length} keys`, ...decoding, dtype: 'bf16', kvDtype: 'bf16' })
}
for (const length of [255, 256, 257, 511, 513, 1031]) {
  cases.push({ name: `chunks of ${length} keys`, queryHeads: 8, kvHeads: 4, headDim: 64, queries: [1], keys: [length] })
  cases.push({ name: `chunks of ${length} keys, 2 tokens`, ...group41, headDim: 16, queries: [2], keys: [length] })
}
for (const length of [2047, 2049, 4200]) {
  cases.push({
    name: `prefill chunks of ${length} keys`,
    ...group42,
    headDim: 8,
    queries: [7],
    keys: [length],
    kvDtype: 'bf16',
  })
}
for (const window of [1, 2, 7, 64, 127, 128, 129, 299, 300, 301]) {
  cases.push({ name: `window ${window}`, ...group41, headDim: 32, ...square(300), window, kvDtype: 'bf16' })
  cases.push({ name: `window ${window}, decode`, ...group42, headDim: 32, queries: [2], keys: [300], window })
}
cases.push(
  { name: 'not causal', ...group42, headDim: 64, queries: [77], keys: [200], causal: false },
  {
    name: 'vision: one head each, 72',
    queryHeads: 3,
    kvHeads: 3,
    headDim: 72,
    ...square(90),
    causal: false,
    dtype: 'bf16',
    kvDtype: 'bf16',
  },
  { name: 'soft cap 50', ...group42, headDim: 64, queries: [60], keys: [150], softcap: 50, scale: 1 },
  {
    name: 'soft cap 50, bf16',
    ...group42,
    headDim: 64,
    queries: [60],
    keys: [150],
    softcap: 50,
    scale: 1,
    dtype: 'bf16',
    kvDtype: 'bf16',
  },
  {
    name: 'soft cap 50, decode',
    ...group42,
    headDim: 64,
    queries: [1],
    keys: [150],
    softcap: 50,
    scale: 1,
    kvDtype: 'bf16',
  },
  {
    name: 'soft cap 2: most scores saturated',
    ...group41,
    headDim: 64,
    queries: [9],
    keys: [90],
    softcap: 2,
    scale: 1,
  },
  ...[1, 60].flatMap((tokens): Case[] => [
    {
      name: `soft cap 5, ${tokens} tokens`,
      ...group42,
      headDim: 64,
      queries: [tokens],
      keys: [150],
      softcap: 5,
      scale: 1,
    },
    {
      name: `soft cap 5, ${tokens} tokens, bf16`,
      ...group42,
      headDim: 64,
      queries: [tokens],
      keys: [150],
      softcap: 5,
      scale: 1,
      dtype: 'bf16',
      kvDtype: 'bf16',
    },
  ]),
  ...[256, 512].flatMap((headDim): Case[] => [
    { name: `i8 keys, head of ${headDim}`, ...group42, headDim, queries: [30], keys: [70], kvDtype: 'i8' },
    {
      name: `i8 keys, head of ${headDim}, decode`,
      ...group42,
      headDim,
      queries: [1],
      keys: [300],
      pageTokens: 16,
      kvDtype: 'i8',
    },
  ]),
  { name: 'soft cap 200: not bounded', ...group41, headDim: 64, queries: [40], keys: [90], softcap: 200, scale: 3 },
  { name: 'negative scale', ...group41, headDim: 32, queries: [40], keys: [90], scale: -0.4 },
  { name: 'negative scale, decode', ...group41, headDim: 32, queries: [1], keys: [90], scale: -0.4 },
  { name: 'negative scale, soft cap', ...group41, headDim: 32, queries: [40], keys: [90], scale: -0.4, softcap: 3 },
  {
    name: 'large scores',
    ...group41,
    headDim: 128,
    queries: [50],
    keys: [400],
    spread: 12,
    dtype: 'bf16',
    kvDtype: 'bf16',
  },
  { name: 'large scores, decode', ...group41, headDim: 128, queries: [1], keys: [800], spread: 12, kvDtype: 'bf16' },
  { name: 'f32 to bf16', ...group41, headDim: 48, ...square(20), outputDtype: 'bf16' },
  { name: 'bf16 to f32', ...group41, headDim: 48, ...square(20), dtype: 'bf16', outputDtype: 'f32' },
  { name: 'f16 keys', ...group42, headDim: 64, queries: [30], keys: [70], kvDtype: 'f16' },
  { name: 'f16 keys, decode', ...group42, headDim: 40, queries: [1], keys: [70], kvDtype: 'f16' },
  { name: 'i8 keys', ...group42, headDim: 64, queries: [30], keys: [70], kvDtype: 'i8' },
  { name: 'i8 keys, decode', ...group42, headDim: 72, queries: [1], keys: [70], kvDtype: 'i8' },
  { name: 'sequences', ...group42, headDim: 64, queries: [1, 0, 50, 3, 1, 100, 2], keys: [70, 5, 50, 300, 1, 140, 2] },
  {
    name: 'sequences, window',
    ...group41,
    headDim: 32,
    queries: [1, 0, 50, 3, 1],
    keys: [70, 5, 50, 300, 1],
    window: 33,
    padding: 3,
  },
  {
    name: 'many decoding sequences',
    ...group42,
    headDim: 64,
    queries: Array(13).fill(1),
    keys: Array.from({ length: 13 }, (_, i) => 1 + 40 * i),
    pageTokens: 16,
    kvDtype: 'bf16',
    dtype: 'bf16',
  },
  { name: 'one sequence with starts and padding', ...group41, headDim: 32, ...square(19), starts: true, padding: 5 },
  { name: 'room beyond the keys', ...group41, headDim: 32, queries: [4], keys: [50], room: 14 },
  { name: 'room beyond the keys of each', ...group41, headDim: 32, queries: [4, 20], keys: [50, 20], room: 14 },
  { name: 'no keys', ...group42, headDim: 64, queries: [3], keys: [0] },
  { name: 'no keys of one sequence', ...group42, headDim: 64, queries: [3, 2], keys: [0, 9], pageTokens: 4 },
  { name: 'no tokens', ...group42, headDim: 64, queries: [0], keys: [9] },
  { name: 'no sequences', ...group42, headDim: 64, queries: [], keys: [], starts: true, padding: 4 },
  { name: 'more tokens than keys', ...group42, headDim: 64, queries: [30], keys: [10] },
  { name: 'images within text', ...group41, headDim: 64, ...square(120), intervals: 'image', kvDtype: 'bf16' },
  {
    name: 'symmetric window',
    queryHeads: 3,
    kvHeads: 1,
    headDim: 64,
    queries: [90, 33],
    keys: [90, 33],
    intervals: 'symmetric',
  },
)
for (const kvDtype of ['f32', 'bf16', 'f16', 'i8'] as const) {
  for (const pageTokens of [0, 16, 13]) {
    const name = `${kvDtype}, ${pageTokens ? `pages of ${pageTokens}` : 'plain'}`
    const dtype = pageTokens === 13 ? 'f32' : 'bf16'
    const some = { ...group42, queries: [1, 30, 66, 4], keys: [90, 45, 100, 260], dtype, kvDtype, pageTokens } as const
    cases.push({ name: `batch, ${name}`, ...some, headDim: 72 })
    cases.push({ name: `batch, window and cap, ${name}`, ...some, headDim: 32, window: 50, softcap: 30, scale: 0.5 })
    cases.push({ name: `intervals, ${name}`, ...some, headDim: 64, intervals: 'random', outputDtype: 'f32' })
    if (pageTokens === 0) continue
    const ring = { queries: [1, 30, 20, 4], keys: [500, 45, 377, 260], tableWidth: Math.ceil(70 / pageTokens) + 1 }
    cases.push({ name: `ring, ${name}`, ...some, ...ring, headDim: 32, window: 40 })
    cases.push({ name: `ring, intervals, ${name}`, ...some, ...ring, headDim: 64, intervals: 'random' })
  }
}

const sweep = new Random(20_250_312)
for (let i = 0; i < 24; i++) {
  const kvHeads = sweep.integer(1, 4)
  const sequences = sweep.integer(1, 4)
  const keys = Array.from({ length: sequences }, () => sweep.integer(0, 200))
  const pageTokens = sweep.pick([0, 0, 1, 5, 8, 32])
  const kvDtype = sweep.pick(['f32', 'bf16', 'f16', 'i8'] as const)
  const headDim = 8 * sweep.integer(1, 20)
  cases.push({
    name: `seeded ${i}: ${kvDtype}, head of ${headDim}`,
    queryHeads: kvHeads * sweep.integer(1, 6),
    kvHeads,
    headDim,
    queries: keys.map((length) => sweep.integer(0, Math.min(60, length) + 1)),
    keys,
    dtype: sweep.pick(['f32', 'bf16'] as const),
    kvDtype,
    outputDtype: sweep.pick(['same', 'f32', 'bf16'] as const),
    pageTokens,
    scale: sweep.pick([0.1, 0.3]),
    softcap: sweep.pick([0, 0, 20]),
    window: sweep.pick([0, 0, sweep.integer(1, 90)]),
    ...(sweep.fraction() < 0.3 && { intervals: 'random' as const }),
  })
}

export const dtypeOf = (c: Case) => c.dtype ?? 'f32'
export const kvDtypeOf = (c: Case) => c.kvDtype ?? 'f32'
export const outputDtypeOf = (c: Case) =>
  c.outputDtype === undefined || c.outputDtype === 'same' ? dtypeOf(c) : c.outputDtype
const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0)
export const tokensOf = (c: Case) => sum(c.queries) + 2 * (c.padding ?? 0)
export const tableWidthOf = (c: Case) =>
  c.tableWidth ?? Math.max(1, ...c.keys.map((length) => Math.ceil(length / c.pageTokens!)))

/** A query's visible keys, [low, high), in the words of the contract. */
export interface Interval {
  readonly low: number
  readonly high: number
}

export interface Inputs extends Record<string, HostTensor | undefined> {
  readonly q: HostTensor
  readonly k: HostTensor
  readonly v: HostTensor
  readonly queryStarts: HostTensor | undefined
  readonly keyStarts: HostTensor | undefined
  readonly pageTable: HostTensor | undefined
  readonly keyLengths: HostTensor | undefined
  readonly keyLow: HostTensor | undefined
  readonly keyHigh: HostTensor | undefined
  readonly kScales: HostTensor | undefined
  readonly vScales: HostTensor | undefined
}

const integers = (values: readonly number[], shape = [values.length]) => hostTensor('i32', shape, values)
const startsOf = (lengths: readonly number[], first = 0) => {
  const starts = [first]
  for (const length of lengths) starts.push(starts.at(-1)! + length)
  return starts
}

/** Explicit intervals of a sequence's queries. */
function intervalsOf(c: Case, sequence: number, random: Random): Interval[] {
  const [tokens, keys] = [c.queries[sequence]!, c.keys[sequence]!]
  const held = c.pageTokens ? Math.max(0, keys - tableWidthOf(c) * c.pageTokens) : 0
  return Array.from({ length: tokens }, (_, i) => {
    const position = keys - tokens + i
    if (c.intervals === 'symmetric') return { low: Math.max(0, position - 16), high: Math.min(keys, position + 17) }
    if (c.intervals === 'image') {
      // Tokens 20 … 49 and 70 … 99 see each other both ways.
      const end = [50, 100].find((end) => position >= end - 30 && position < end)
      return { low: 0, high: end ?? position + 1 }
    }
    const [a, b] = [random.integer(held, keys + 1), random.integer(held, keys + 1)]
    const reversed = random.fraction() < 0.1 // sees nothing
    return reversed === a < b ? { low: b, high: a } : { low: a, high: b }
  })
}

export function makeInputs(c: Case, random: Random): Inputs {
  const { queryHeads, kvHeads, headDim, pageTokens } = c
  const sequences = c.queries.length
  const tokens = tokensOf(c)
  const q = random.normal(dtypeOf(c), [tokens, queryHeads, headDim], c.spread ?? 1)
  const allotted = c.keys.map((length) => length + (c.room ?? 0))
  const keyStarts = startsOf(allotted)
  const width = pageTokens ? tableWidthOf(c) : 0
  const pages = sequences * width + 2
  const table = random.permutation(pages).slice(0, sequences * width)
  const shape = pageTokens ? [pages, kvHeads, pageTokens, headDim] : [keyStarts.at(-1)!, kvHeads, headDim]

  const low = new Array<number>(tokens).fill(0)
  const high = new Array<number>(tokens).fill(0)
  const queryStarts = startsOf(c.queries, c.padding ?? 0)
  for (let s = 0; s < sequences && c.intervals; s++) {
    for (const [i, interval] of intervalsOf(c, s, random).entries()) {
      low[queryStarts[s]! + i] = interval.low
      high[queryStarts[s]! + i] = interval.high
    }
  }

  const several = sequences !== 1 || c.starts
  const inputs = {
    q,
    queryStarts: several || c.padding ? integers(queryStarts) : undefined,
    keyStarts: several && !pageTokens ? integers(keyStarts) : undefined,
    pageTable: pageTokens ? integers(table, [sequences, width]) : undefined,
    keyLengths: pageTokens || c.room ? integers(c.keys) : undefined,
    keyLow: c.intervals ? integers(low) : undefined,
    keyHigh: c.intervals ? integers(high) : undefined,
  }
  // What the kernel has no reason to read is NaN: rows of k and v, or their scales.
  const dtype = kvDtypeOf(c)
  const seen = seenRows(c, inputs)
  const rows = () => {
    if (dtype === 'i8') return random.tensor('i8', shape, () => random.integer(-127, 128))
    return random.tensor(dtype, shape, (i) => (seen.has(Math.floor(i / headDim)) ? random.gaussian() : Number.NaN))
  }
  const scales = () => {
    if (dtype !== 'i8') return undefined
    return random.tensor('f32', shape.slice(0, -1), (i) =>
      seen.has(i) ? 0.005 + 0.02 * random.fraction() : Number.NaN,
    )
  }
  return { ...inputs, k: rows(), v: rows(), kScales: scales(), vScales: scales() }
}

/** Which row of k and v, of headDim elements, holds key j of a sequence. */
export function rowOf(
  c: Case,
  inputs: Pick<Inputs, 'pageTable' | 'keyStarts'>,
  sequence: number,
  head: number,
  j: number,
): number {
  if (!c.pageTokens) return ((inputs.keyStarts?.values[sequence] ?? 0) + j) * c.kvHeads + head
  const width = tableWidthOf(c)
  const page = inputs.pageTable!.values[sequence * width + (Math.floor(j / c.pageTokens) % width)]!
  return (page * c.kvHeads + head) * c.pageTokens + (j % c.pageTokens)
}

/** What query i of a sequence sees. */
export function visible(c: Case, inputs: Pick<Inputs, 'keyLow' | 'keyHigh'>, sequence: number, i: number): Interval {
  const [tokens, keys] = [c.queries[sequence]!, c.keys[sequence]!]
  if (inputs.keyLow && inputs.keyHigh) {
    const token = startsOf(c.queries, c.padding ?? 0)[sequence]! + i
    return { low: inputs.keyLow.values[token]!, high: inputs.keyHigh.values[token]! }
  }
  if (c.causal === false) return { low: 0, high: keys }
  const position = keys - tokens + i
  return { low: c.window ? Math.max(0, position + 1 - c.window) : 0, high: position + 1 }
}

/** All rows from the first to the last that some query of the sequence sees: between them the contract lets kernels read. */
function seenRows(c: Case, inputs: Pick<Inputs, 'pageTable' | 'keyStarts' | 'keyLow' | 'keyHigh'>): Set<number> {
  const seen = new Set<number>()
  for (const [s, tokens] of c.queries.entries()) {
    const intervals = Array.from({ length: tokens }, (_, i) => visible(c, inputs, s, i)).filter(
      ({ low, high }) => low < high,
    )
    const high = Math.max(...intervals.map((interval) => interval.high))
    for (let j = Math.min(...intervals.map(({ low }) => low)); j < high; j++) {
      for (let head = 0; head < c.kvHeads; head++) seen.add(rowOf(c, inputs, s, head, j))
    }
  }
  return seen
}

export type OnDevice = { readonly [K in keyof Inputs]: Inputs[K] extends HostTensor ? Tensor : Tensor | undefined }

export function run(c: Case, t: OnDevice): Tensor {
  const { queryStarts, keyStarts, pageTable, keyLengths, keyLow, keyHigh, kScales, vScales } = t
  return flashAttention(t.q, t.k, t.v, {
    ...(queryStarts && { queryStarts }),
    ...(keyStarts && { keyStarts }),
    ...(pageTable && { pageTable }),
    ...(keyLengths && { keyLengths }),
    ...(keyLow && { keyLow }),
    ...(keyHigh && { keyHigh }),
    ...(kScales && { kScales }),
    ...(vScales && { vScales }),
    ...(c.causal !== undefined && { causal: c.causal }),
    ...(c.window !== undefined && { window: c.window }),
    ...(c.softcap !== undefined && { softcap: c.softcap }),
    ...(c.scale !== undefined && { scale: c.scale }),
    ...(c.outputDtype !== undefined && { outputDtype: c.outputDtype }),
  })
}
