/** The cases of qkNormRope, their inputs, and the call that each stands for. */

import { qkNormRope, Tensor } from '../../lib/index.ts'
import type { HostTensor } from '../support/host-tensor.ts'
import type { FloatDType } from '../support/numbers.ts'
import { Random } from '../support/random.ts'

type CacheDType = FloatDType | 'i8'

export interface Case {
  readonly name: string
  readonly tokens: number
  readonly queryHeads: number
  /** 0: no k and v. */
  readonly kvHeads: number
  readonly headDim: number
  readonly dtype?: 'f32' | 'bf16'
  readonly qNorm?: FloatDType
  readonly kNorm?: FloatDType
  readonly weightBias?: number
  readonly eps?: number
  readonly valueNorm?: boolean
  readonly ropeTheta?: number
  readonly positionScale?: number
  readonly rotaryDims?: number
  readonly rotate?: boolean
  readonly outputDtype?: 'same' | 'f32' | 'bf16'
  readonly cache?: CacheDType
  readonly pageTokens?: number
  /** Every third token is not kept. */
  readonly skips?: boolean
  readonly positions?: (token: number) => number
  /** Where q, k and v lie: slices of one projection (default), or tensors of their own. */
  readonly separate?: boolean
  /** What some rows hold. */
  readonly rows?: 'normal' | 'zeros' | 'wide'
}

export const gemma3 = { qNorm: 'bf16', kNorm: 'bf16', weightBias: 1, ropeTheta: 10_000, dtype: 'bf16' } as const
export const gemma4 = { qNorm: 'f32', kNorm: 'f32', valueNorm: true, ropeTheta: 1_000_000 } as const

export const cases: Case[] = [
  { name: 'one head of two elements', tokens: 1, queryHeads: 1, kvHeads: 0, headDim: 2 },
  { name: 'gemma 3 local, decode', tokens: 1, queryHeads: 8, kvHeads: 4, headDim: 256, ...gemma3, cache: 'bf16' },
  {
    name: 'gemma 3 global',
    tokens: 5,
    queryHeads: 4,
    kvHeads: 1,
    headDim: 256,
    ...gemma3,
    ropeTheta: 1e6,
    positionScale: 1 / 8,
    cache: 'f16',
    positions: (t) => 1000 * t + 7,
  },
  { name: 'gemma 3, no cache', tokens: 7, queryHeads: 4, kvHeads: 2, headDim: 128, ...gemma3 },
  {
    name: 'gemma 4 global, proportional',
    tokens: 3,
    queryHeads: 2,
    kvHeads: 1,
    headDim: 512,
    ...gemma4,
    rotaryDims: 128,
    cache: 'bf16',
  },
  {
    name: 'gemma 4 local, f32',
    tokens: 4,
    queryHeads: 3,
    kvHeads: 1,
    headDim: 256,
    ...gemma4,
    ropeTheta: 10_000,
    cache: 'f32',
  },
  {
    name: 'gemma 4, queries only',
    tokens: 4,
    queryHeads: 8,
    kvHeads: 0,
    headDim: 256,
    dtype: 'bf16',
    qNorm: 'f16',
    ropeTheta: 10_000,
  },
  { name: 'gemma 2, no norm', tokens: 6, queryHeads: 2, kvHeads: 2, headDim: 64, dtype: 'bf16', cache: 'bf16' },
  { name: 'i8 cache', tokens: 9, queryHeads: 2, kvHeads: 2, headDim: 64, ...gemma3, cache: 'i8', pageTokens: 4 },
  {
    name: 'i8 cache, f32 in, odd tail',
    tokens: 3,
    queryHeads: 1,
    kvHeads: 3,
    headDim: 50,
    qNorm: 'f32',
    kNorm: 'f16',
    cache: 'i8',
    valueNorm: true,
  },
  { name: 'i8 cache, rows of zeros', tokens: 3, queryHeads: 1, kvHeads: 1, headDim: 32, cache: 'i8', rows: 'zeros' },
  { name: 'zeros, normalised', tokens: 2, queryHeads: 1, kvHeads: 1, headDim: 32, ...gemma4, rows: 'zeros' },
  {
    name: 'wide range of magnitudes',
    tokens: 4,
    queryHeads: 2,
    kvHeads: 2,
    headDim: 72,
    ...gemma4,
    cache: 'f32',
    rows: 'wide',
  },
  { name: 'head of 72', tokens: 3, queryHeads: 5, kvHeads: 1, headDim: 72, dtype: 'bf16', qNorm: 'f32', kNorm: 'f32' },
  {
    name: 'head of 30, partly rotated',
    tokens: 3,
    queryHeads: 2,
    kvHeads: 2,
    headDim: 30,
    rotaryDims: 14,
    cache: 'f32',
  },
  {
    name: 'head of 7, no rotation',
    tokens: 3,
    queryHeads: 2,
    kvHeads: 1,
    headDim: 7,
    rotate: false,
    qNorm: 'f32',
    kNorm: 'bf16',
    valueNorm: true,
  },
  {
    name: 'tokens not kept',
    tokens: 11,
    queryHeads: 1,
    kvHeads: 2,
    headDim: 32,
    ...gemma3,
    cache: 'bf16',
    pageTokens: 3,
    skips: true,
  },
  {
    name: 'far positions',
    tokens: 16,
    queryHeads: 1,
    kvHeads: 1,
    headDim: 128,
    ropeTheta: 10_000,
    positions: (t) => 262_144 - 37 * t,
  },
  {
    name: 'farther positions, base a million',
    tokens: 16,
    queryHeads: 1,
    kvHeads: 0,
    headDim: 256,
    ropeTheta: 1e6,
    positions: (t) => 2 ** 20 - 1019 * t,
  },
  { name: 'f32 to bf16', tokens: 2, queryHeads: 2, kvHeads: 1, headDim: 34, outputDtype: 'bf16', qNorm: 'f32' },
  {
    name: 'bf16 to f32, separate tensors',
    tokens: 2,
    queryHeads: 3,
    kvHeads: 2,
    headDim: 96,
    dtype: 'bf16',
    outputDtype: 'f32',
    ...gemma4,
    separate: true,
  },
  { name: 'large eps', tokens: 2, queryHeads: 1, kvHeads: 1, headDim: 16, qNorm: 'f32', kNorm: 'f32', eps: 0.5 },
  { name: 'no tokens', tokens: 0, queryHeads: 2, kvHeads: 1, headDim: 64, ...gemma3, cache: 'bf16' },
  {
    name: 'more tokens than threads, many heads',
    tokens: 37,
    queryHeads: 7,
    kvHeads: 3,
    headDim: 48,
    ...gemma3,
    cache: 'bf16',
    pageTokens: 16,
  },
]

const sweep = new Random(20_250_312)
for (let i = 0; i < 16; i++) {
  const headDim = 2 * sweep.integer(1, 80)
  const cache = sweep.pick([undefined, 'f32', 'bf16', 'f16', 'i8'] as const)
  const norm = () => sweep.pick([undefined, 'f32', 'bf16', 'f16'] as const)
  const [qNorm, kNorm] = [norm(), norm()]
  const far = sweep.integer(0, 300_000)
  cases.push({
    name: `seeded ${i}: ${headDim}, ${cache ?? 'no'} cache`,
    tokens: sweep.integer(1, 12),
    queryHeads: sweep.integer(1, 6),
    kvHeads: sweep.integer(1, 4),
    headDim,
    dtype: sweep.pick(['f32', 'bf16'] as const),
    weightBias: sweep.pick([0, 1] as const),
    valueNorm: sweep.pick([false, true]),
    ropeTheta: sweep.pick([10_000, 1_000_000]),
    positionScale: sweep.pick([1, 1 / 8]),
    rotaryDims: 2 * sweep.integer(0, headDim / 2 + 1),
    pageTokens: sweep.integer(1, 9),
    skips: sweep.pick([false, true]),
    positions: (t) => far + t,
    separate: sweep.pick([false, true]),
    ...(qNorm && { qNorm }),
    ...(kNorm && { kNorm }),
    ...(cache && { cache }),
  })
}

export const theta = (c: Case) => c.ropeTheta ?? 10_000
const dtypeOf = (c: Case) => c.dtype ?? 'f32'
export const outputDtypeOf = (c: Case) =>
  c.outputDtype === undefined || c.outputDtype === 'same' ? dtypeOf(c) : c.outputDtype
export const pageTokensOf = (c: Case) => c.pageTokens ?? 8
const pagesOf = (c: Case) => Math.ceil(c.tokens / pageTokensOf(c)) + 1

export interface Inputs extends Record<string, HostTensor | undefined> {
  /** All heads of q, k and v: [tokens, queryHeads + 2 · kvHeads, headDim]. */
  readonly heads: HostTensor
  readonly qNorm: HostTensor | undefined
  readonly kNorm: HostTensor | undefined
  readonly positions: HostTensor
  readonly kCache: HostTensor | undefined
  readonly vCache: HostTensor | undefined
  readonly slots: HostTensor | undefined
  readonly kScales: HostTensor | undefined
  readonly vScales: HostTensor | undefined
}

function makeHeads(c: Case, random: Random): HostTensor {
  const shape = [c.tokens, c.queryHeads + 2 * c.kvHeads, c.headDim]
  if (c.rows === 'zeros')
    return random.tensor(dtypeOf(c), shape, (i) => (Math.floor(i / c.headDim) % 2 ? random.gaussian() : 0))
  if (c.rows === 'wide') return random.tensor(dtypeOf(c), shape, () => random.gaussian() * 10 ** random.integer(-12, 9))
  return random.normal(dtypeOf(c), shape)
}

export function makeInputs(c: Case, random: Random): Inputs {
  const cacheShape = [pagesOf(c), c.kvHeads, pageTokensOf(c), c.headDim]
  const cache = () => {
    if (!c.cache) return undefined
    return c.cache === 'i8'
      ? random.tensor('i8', cacheShape, () => random.integer(-127, 128))
      : random.normal(c.cache, cacheShape)
  }
  const scales = () => (c.cache === 'i8' ? random.uniform('f32', cacheShape.slice(0, 3), 0.01, 1) : undefined)
  const places = random.permutation(pagesOf(c) * pageTokensOf(c))
  return {
    heads: makeHeads(c, random),
    qNorm: c.qNorm && random.normal(c.qNorm, [c.headDim], 0.3),
    kNorm: c.kvHeads && c.kNorm ? random.normal(c.kNorm, [c.headDim], 0.3) : undefined,
    positions: random.tensor('i32', [c.tokens], c.positions ?? ((t) => t)),
    kCache: cache(),
    vCache: cache(),
    slots: c.cache && random.tensor('i32', [c.tokens], (t) => (c.skips && t % 3 === 0 ? -1 : places[t]!)),
    kScales: scales(),
    vScales: scales(),
  }
}

export interface OnDevice {
  readonly heads: Tensor
  readonly qNorm?: Tensor | undefined
  readonly kNorm?: Tensor | undefined
  readonly positions: Tensor
  readonly kCache?: Tensor | undefined
  readonly vCache?: Tensor | undefined
  readonly slots?: Tensor | undefined
  readonly kScales?: Tensor | undefined
  readonly vScales?: Tensor | undefined
}

/** Calls the op; q, k and v are slices of `heads`. Returns the outputs, then what it wrote into. */
function call(c: Case, t: OnDevice, parts: { q: Tensor; k: Tensor | undefined; v: Tensor | undefined }): Tensor[] {
  const { q, k, v } = qkNormRope(parts.q, parts.k, parts.v, {
    positions: t.positions,
    ...(c.rotate !== false && { ropeTheta: theta(c) }),
    ...(c.positionScale !== undefined && { positionScale: c.positionScale }),
    ...(c.rotaryDims !== undefined && { rotaryDims: c.rotaryDims }),
    ...(c.rotate !== undefined && { rotate: c.rotate }),
    ...(c.eps !== undefined && { eps: c.eps }),
    ...(c.weightBias !== undefined && { weightBias: c.weightBias }),
    ...(c.valueNorm !== undefined && { valueNorm: c.valueNorm }),
    ...(c.outputDtype !== undefined && { outputDtype: c.outputDtype }),
    qNorm: t.qNorm,
    kNorm: t.kNorm,
    cache:
      t.kCache && t.vCache && t.slots
        ? { kCache: t.kCache, vCache: t.vCache, slots: t.slots, kScales: t.kScales, vScales: t.vScales }
        : undefined,
  })
  return [q, k, v, t.kCache, t.vCache, t.kScales, t.vScales].filter((tensor) => tensor !== undefined)
}

export function run(c: Case, t: OnDevice): Tensor[] {
  const { heads } = t
  const copy = (tensor: Tensor) => (c.separate ? contiguousCopy(tensor) : tensor)
  const keys = c.queryHeads + c.kvHeads
  using q = copy(heads.slice(0, c.queryHeads, 1))
  if (c.kvHeads === 0) return call(c, t, { q, k: undefined, v: undefined })
  using k = copy(heads.slice(c.queryHeads, keys, 1))
  using v = copy(heads.slice(keys, keys + c.kvHeads, 1))
  return call(c, t, { q, k, v })
}

/** The op itself, told to do nothing. */
function contiguousCopy(tensor: Tensor): Tensor {
  using positions = Tensor.zeros(tensor.device, [tensor.shape[0]!], 'i32')
  return qkNormRope(tensor, undefined, undefined, { positions, rotate: false }).q
}
