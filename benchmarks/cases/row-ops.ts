/** Row operations at the width of Gemma 3 4B, 512 tokens: f32 in, f32 out, on data that fits the last-level cache. */
import { addRmsNorm, type Device, geglu, rmsNorm, Tensor } from 'lapidary'
import { type OnnxNode, onnxModel } from '../peers/onnx-model.ts'
import { OnnxPeer, peerName } from '../peers/onnxruntime.ts'
import { type BenchmarkCase, Ours, uniform } from './case.ts'

const tokens = 512
const hidden = 2560
const ffn = 10240

interface RowCase {
  name: string
  bytes: number
  inputs: Record<string, [data: Float32Array, dims: number[]]>
  output: [name: string, dims: number[]]
  nodes: OnnxNode[]
  extraOutputs?: Record<string, number[]>
  ours: (...inputs: Tensor[]) => Tensor
}

function rowCase({ name, bytes, inputs, output, nodes, extraOutputs = {}, ours }: RowCase): BenchmarkCase {
  return {
    name,
    operations: 0,
    bytes,
    agreement: 1e-3,
    limit: () => 'read',
    goals: [{ times: 5, peer: peerName }],
    async ours(device: Device) {
      return new Ours(
        device,
        Object.values(inputs).map(([data, dims]) => Tensor.from(device, data, dims)),
        ours,
      )
    },
    async peer(threads: number) {
      const outputs = { [output[0]]: output[1], ...extraOutputs }
      const model = onnxModel(
        nodes,
        Object.entries(inputs).map(([input, [, dims]]) => ({ name: input, type: 'float32', dims })),
        Object.entries(outputs).map(([result, dims]) => ({ name: result, type: 'float32', dims })),
      )
      const feeds = Object.fromEntries(Object.entries(inputs).map(([input, [data, dims]]) => [input, { data, dims }]))
      return await OnnxPeer.open(model, threads, feeds, outputs)
    },
  }
}

const x = uniform(tokens * hidden, 1, 31)
const residual = uniform(tokens * hidden, 1, 32)
const weight = uniform(hidden, 1, 33)
const gateUp = uniform(tokens * 2 * ffn, 1, 34)
const epsilon = { epsilon: { f: 1e-6 } }

export const rowOpsCases: BenchmarkCase[] = [
  rowCase({
    name: `RMSNorm [${tokens}, ${hidden}]`,
    bytes: 8 * tokens * hidden,
    inputs: { x: [x, [tokens, hidden]], w: [weight, [hidden]] },
    output: ['y', [tokens, hidden]],
    nodes: [
      {
        op: 'SimplifiedLayerNormalization',
        inputs: ['x', 'w'],
        outputs: ['y'],
        attributes: { axis: { i: -1 }, stash_type: { i: 1 }, ...epsilon },
      },
    ],
    ours: (a, w) => rmsNorm(a as Tensor, w as Tensor),
  }),
  rowCase({
    name: `residual + RMSNorm [${tokens}, ${hidden}]`,
    bytes: 16 * tokens * hidden,
    inputs: { x: [x, [1, tokens, hidden]], r: [residual, [1, tokens, hidden]], w: [weight, [hidden]] },
    output: ['y', [1, tokens, hidden]],
    extraOutputs: { z: [1, tokens, hidden] },
    nodes: [
      {
        op: 'SkipSimplifiedLayerNormalization',
        domain: 'com.microsoft',
        inputs: ['x', 'r', 'w'],
        outputs: ['y', '', '', 'z'],
        attributes: epsilon,
      },
    ],
    ours: (a, r, w) => addRmsNorm(a as Tensor, r as Tensor, { preWeight: w as Tensor, postNorm: false }).normed,
  }),
  rowCase({
    name: `GeGLU [${tokens}, 2x${ffn}]`,
    bytes: 12 * tokens * ffn,
    inputs: { x: [gateUp, [tokens, 2 * ffn]] },
    output: ['y', [tokens, ffn]],
    nodes: [
      { op: 'Split', inputs: ['x'], outputs: ['gate', 'up'], attributes: { axis: { i: -1 }, num_outputs: { i: 2 } } },
      { op: 'Gelu', inputs: ['gate'], outputs: ['activated'], attributes: { approximate: { s: 'tanh' } } },
      { op: 'Mul', inputs: ['activated', 'up'], outputs: ['y'] },
    ],
    ours: (a) => geglu(a as Tensor),
  }),
]
