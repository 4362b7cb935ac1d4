/** Attention with head dimension 256: causal prefill, windows, soft cap, and decode over a long cache. */
import { type Device, flashAttention, Tensor } from 'lapidary'
import type { Goal } from '../goals.ts'
import { onnxModel } from '../peers/onnx-model.ts'
import { OnnxPeer } from '../peers/onnxruntime.ts'
import { type BenchmarkCase, fastestAttentionDot, Ours, uniform } from './case.ts'

const headDim = 256

interface Options {
  tokens: number
  queryHeads: number
  kvHeads: number
  window?: number
  softcap?: number
  goals?: readonly Goal[]
}

function prefillCase({ tokens, queryHeads, kvHeads, window = 0, softcap = 0, goals = [] }: Options): BenchmarkCase {
  let pairs = 0
  for (let i = 0; i < tokens; i++) pairs += window ? Math.min(i + 1, window) : i + 1
  const q = uniform(tokens * queryHeads * headDim, 1, 11)
  const k = uniform(tokens * kvHeads * headDim, 1, 12)
  const v = uniform(tokens * kvHeads * headDim, 1, 13)
  const suffix = `${window ? ` window ${window}` : ''}${softcap ? ` softcap ${softcap}` : ''}`
  return {
    name: `attention prefill d${headDim} ${queryHeads}/${kvHeads} S=${tokens}${suffix}`,
    operations: 4 * pairs * headDim * queryHeads,
    bytes: 0,
    agreement: 0.01,
    goals,
    limit: fastestAttentionDot,
    async ours(device: Device) {
      const input = Tensor.from(device, q, [tokens, queryHeads, headDim])
      const keys = Tensor.from(device, k, [tokens, kvHeads, headDim], 'bf16')
      const values = Tensor.from(device, v, [tokens, kvHeads, headDim], 'bf16')
      return new Ours(device, [input, keys, values], (a, b, c) => flashAttention(a, b, c, { window, softcap }))
    },
    async peer(threads: number) {
      const model = onnxModel(
        [
          {
            op: 'GroupQueryAttention',
            domain: 'com.microsoft',
            inputs: ['q', 'k', 'v', 'past_k', 'past_v', 'lengths', 'total'],
            outputs: ['out', 'present_k', 'present_v'],
            attributes: {
              num_heads: { i: queryHeads },
              kv_num_heads: { i: kvHeads },
              scale: { f: 1 / Math.sqrt(headDim) },
              ...(window ? { local_window_size: { i: window } } : {}),
              ...(softcap ? { softcap: { f: softcap } } : {}),
            },
          },
        ],
        [
          { name: 'q', type: 'float32', dims: [1, tokens, queryHeads * headDim] },
          { name: 'k', type: 'float32', dims: [1, tokens, kvHeads * headDim] },
          { name: 'v', type: 'float32', dims: [1, tokens, kvHeads * headDim] },
          { name: 'past_k', type: 'float32', dims: [1, kvHeads, 0, headDim] },
          { name: 'past_v', type: 'float32', dims: [1, kvHeads, 0, headDim] },
          { name: 'lengths', type: 'int32', dims: [1] },
          { name: 'total', type: 'int32', dims: [] },
        ],
        [
          { name: 'out', type: 'float32', dims: [1, tokens, queryHeads * headDim] },
          { name: 'present_k', type: 'float32', dims: [1, kvHeads, tokens, headDim] },
          { name: 'present_v', type: 'float32', dims: [1, kvHeads, tokens, headDim] },
        ],
      )
      return await OnnxPeer.open(
        model,
        threads,
        {
          q: { data: q, dims: [1, tokens, queryHeads * headDim] },
          k: { data: k, dims: [1, tokens, kvHeads * headDim] },
          v: { data: v, dims: [1, tokens, kvHeads * headDim] },
          past_k: { data: new Float32Array(0), dims: [1, kvHeads, 0, headDim] },
          past_v: { data: new Float32Array(0), dims: [1, kvHeads, 0, headDim] },
          lengths: { data: Int32Array.of(tokens - 1), dims: [1] },
          total: { data: Int32Array.of(tokens), dims: [] },
        },
        {
          out: [1, tokens, queryHeads * headDim],
          present_k: [1, kvHeads, tokens, headDim],
          present_v: [1, kvHeads, tokens, headDim],
        },
      )
    },
  }
}

/** One query against caches of bf16, several of them so that none stays in cache. */
function decodeCase(keys: number, queryHeads: number, kvHeads: number): BenchmarkCase {
  const cacheBytes = 2 * keys * kvHeads * headDim * 2
  const layers = Math.max(2, Math.ceil((768 * 2 ** 20) / cacheBytes))
  return {
    name: `attention decode d${headDim} ${queryHeads}/${kvHeads} keys=${keys} bf16 cold`,
    operations: 4 * keys * headDim * queryHeads,
    bytes: cacheBytes,
    limit: () => 'read',
    goals: [{ percent: 90, of: 'read' }],
    async ours(device: Device) {
      const q = Tensor.from(device, uniform(queryHeads * headDim, 1, 21), [1, queryHeads, headDim])
      const shape = [keys, kvHeads, headDim]
      const data = uniform(keys * kvHeads * headDim, 1, 22)
      const caches = Array.from({ length: layers }, () => [
        Tensor.from(device, data, shape, 'bf16'),
        Tensor.from(device, data, shape, 'bf16'),
      ])
      await device.stream.synchronize()
      const body = (input: Tensor): Tensor => {
        let out = input
        for (const [k, v] of caches) out = flashAttention(input, k as Tensor, v as Tensor)
        return out
      }
      return new Ours(device, [q], body, caches.flat(), layers)
    },
  }
}

export const attentionCases: BenchmarkCase[] = [
  prefillCase({ tokens: 512, queryHeads: 4, kvHeads: 1 }),
  prefillCase({ tokens: 4096, queryHeads: 4, kvHeads: 1, goals: [{ percent: 45, of: 'tile_bf16' }] }),
  prefillCase({ tokens: 4096, queryHeads: 4, kvHeads: 1, window: 512, goals: [{ percent: 30, of: 'tile_bf16' }] }),
  prefillCase({
    tokens: 4096,
    queryHeads: 4,
    kvHeads: 1,
    softcap: 50,
    goals: [{ percentSlower: 15, than: `attention prefill d${headDim} 4/1 S=4096` }],
  }),
  decodeCase(4096, 8, 4),
  decodeCase(32768, 8, 4),
]
