/** The cases of the GPU benchmarks, with the goals of the issue of the CUDA room; and the same kinds of work, tiny, for the emulation. */

import type { Goal } from '../goals.ts'
import type { GpuCase, Work } from './case.ts'

// Rounding to bf16 moves a value by at most 2⁻⁹ of it. Attention rounds its weights and its result, on both sides: four times.
const roundoff = 2 ** -9
const attentionAgreement = 4 * roundoff
// tanh.approx is wrong by up to 2⁻¹⁰·⁹ of a score (flash_attention.h), which here is below 4.
const softcapAgreement = attentionAgreement + 4 * 2 ** -10.9
// The result alone, on both sides; a fused sum before it too.
const rowAgreement = 4 * roundoff
const int4Agreement = 2 * roundoff

function visiblePairs(tokens: number, window: number): number {
  const full = window === 0 ? tokens : Math.min(window, tokens)
  return (full * (full + 1)) / 2 + (tokens - full) * full
}

interface Prefill {
  readonly tokens: number
  readonly heads: number
  readonly headDim: number
  readonly window?: number
  readonly softcap?: number
  readonly goals?: readonly Goal[]
}

const prefillName = ({ tokens, headDim, window = 0, softcap = 0 }: Prefill): string =>
  `prefill attention d${headDim} S=${tokens}${window ? ` window ${window}` : ''}${softcap ? ` softcap ${softcap}` : ''}`

function prefill(of: Prefill): GpuCase {
  const { tokens, heads, headDim, window = 0, softcap = 0, goals = [] } = of
  const own = window || softcap ? ['flex_attention'] : ['sdpa_flash', 'sdpa_cudnn', 'flex_attention', 'jax_cudnn']
  return {
    name: prefillName(of),
    work: { kind: 'prefill', tokens, queryHeads: heads, kvHeads: heads, headDim, window, softcap },
    // Of the pairs that are visible: Q·Kᵀ and P·V.
    operations: 4 * visiblePairs(tokens, window) * headDim * heads,
    bytes: 4 * tokens * heads * headDim * 2,
    limit: 'matmul',
    peers: window && !softcap ? [...own, 'jax_cudnn'] : own,
    agreement: softcap ? softcapAgreement : attentionAgreement,
    goals,
  }
}

type Decode = Omit<Extract<Work, { kind: 'decode' }>, 'kind'>

function decode(of: Decode, goals: readonly Goal[] = []): GpuCase {
  const { sequences, keys, queryHeads, kvHeads, headDim } = of
  return {
    name: `decode attention d${headDim} ${queryHeads}/${kvHeads} batch ${sequences} keys=${keys}`,
    work: { kind: 'decode', ...of },
    operations: 4 * sequences * keys * headDim * queryHeads,
    bytes: 2 * sequences * keys * kvHeads * headDim * 2,
    limit: 'copy',
    peers: ['sdpa_flash', 'flex_attention'],
    agreement: attentionAgreement,
    goals,
  }
}

function int4(rows: number, columns: number, outputs: number, goals: readonly Goal[] = []): GpuCase {
  return {
    name: `int4 matmul M=${rows} ${columns}x${outputs}`,
    work: { kind: 'int4', rows, columns, outputs },
    operations: 2 * rows * columns * outputs,
    // Q4_0: 18 bytes per 32 weights.
    bytes: (columns * outputs * 18) / 32 + 2 * rows * (columns + outputs),
    limit: rows <= 16 ? 'copy' : 'matmul',
    peers: rows <= 16 ? ['cublas', 'tinygemm'] : ['cublas'],
    agreement: int4Agreement,
    goals,
  }
}

function rows(kind: 'rms_norm' | 'geglu', count: number, columns: number, goals: readonly Goal[] = []): GpuCase {
  return {
    name: kind === 'geglu' ? `GeGLU [${count}, 2x${columns}]` : `residual + RMSNorm [${count}, ${columns}]`,
    work: { kind, rows: count, columns },
    operations: 0,
    // GeGLU: two columns in, one out. RMSNorm: x and residual in, sum and normed out.
    bytes: (kind === 'geglu' ? 3 : 4) * count * columns * 2,
    limit: 'copy',
    peers: ['compile'],
    agreement: rowAgreement,
    goals,
  }
}

const plain: Prefill = { tokens: 16384, heads: 8, headDim: 256 }

/** On a GPU: the table of the issue, in its order. */
export const gpuCases: readonly GpuCase[] = [
  prefill({ ...plain, goals: [{ tflops: 300 }] }),
  prefill({ tokens: 16384, heads: 16, headDim: 128, goals: [{ tflops: 335 }] }),
  prefill({ ...plain, window: 1024, goals: [{ times: 2, peer: 'flex_attention' }] }),
  prefill({
    ...plain,
    softcap: 50,
    goals: [
      { times: 2, peer: 'flex_attention' },
      { percentSlower: 8, than: prefillName(plain) },
    ],
  }),
  // 256 MiB of keys and values each: one long sequence, and sixteen.
  decode({ sequences: 1, keys: 65536, queryHeads: 8, kvHeads: 4, headDim: 256 }, [{ percent: 85, of: 'copy' }]),
  decode({ sequences: 16, keys: 4096, queryHeads: 8, kvHeads: 4, headDim: 256 }, [{ percent: 85, of: 'copy' }]),
  // The feed-forward matrices of Gemma 3 12B and 27B: 33 and 65 MB.
  int4(1, 3840, 15360, [{ percent: 75, of: 'copy' }]),
  int4(1, 5376, 21504, [{ percent: 75, of: 'copy' }]),
  int4(16, 5376, 21504, [{ times: 2.5, peer: 'cublas' }]),
  int4(2048, 5376, 21504, [{ times: 0.45, peer: 'cublas' }]),
  rows('rms_norm', 16384, 4096, [{ gbps: 3900 }]),
  rows('geglu', 8192, 10240, [{ gbps: 3900 }]),
]

const tiny: Prefill = { tokens: 80, heads: 2, headDim: 64 }

/** Of every kind, as small as the emulation likes it. Their goals say what has no meaning there. */
export const tinyCases: readonly GpuCase[] = [
  prefill({ ...tiny, goals: [{ tflops: 300 }] }),
  prefill({
    ...tiny,
    window: 40,
    softcap: 5,
    goals: [
      { times: 2, peer: 'flex_attention' },
      { percentSlower: 8, than: prefillName(tiny) },
    ],
  }),
  decode({ sequences: 2, keys: 128, queryHeads: 4, kvHeads: 2, headDim: 64 }, [{ percent: 85, of: 'copy' }]),
  int4(1, 64, 96, [{ percent: 75, of: 'copy' }]),
  int4(20, 64, 96, [{ times: 0.45, peer: 'cublas' }]),
  rows('rms_norm', 6, 128, [{ gbps: 3900 }]),
  rows('geglu', 5, 96, [{ gbps: 3900 }]),
]

/** What a GPU does at most: a device copy of 2 × 512 MiB, and the multiplication whose speed people quote. */
export const limitWork: Record<GpuCase['limit'], Work> = {
  copy: { kind: 'copy', rows: 32768, columns: 4096 },
  matmul: { kind: 'matmul', size: 8192 },
}

/** The same for the emulation. */
export const tinyLimitWork: Record<GpuCase['limit'], Work> = {
  copy: { kind: 'copy', rows: 4, columns: 64 },
  matmul: { kind: 'matmul', size: 32 },
}

/** Operations, or bytes read and written, of a limit's work. */
export function limitUnit(work: Work): number {
  if (work.kind === 'copy') return 2 * work.rows * work.columns * 4
  if (work.kind === 'matmul') return 2 * work.size ** 3
  throw new Error(`${work.kind} is no limit`)
}
