/** int4 matmul in groups of 32 (Q4_0) at the shapes of Gemma 3 1B, 4B and 27B; up to M=16 with weights cold in DRAM. */
import { type Device, matmul, packWeights, Tensor } from 'lapidary'
import type { Goal } from '../goals.ts'
import { type OnnxNode, onnxModel } from '../peers/onnx-model.ts'
import { OnnxPeer, peerName } from '../peers/onnxruntime.ts'
import { type BenchmarkCase, fastestDot, generator, Ours, uniform } from './case.ts'

type Shape = readonly [columns: number, rows: number]
const shapes: readonly Shape[] = [
  [1152, 6912],
  [2560, 10240],
  [5376, 21504],
]
const decodeShapes: readonly Shape[] = [...shapes, [1152, 1536], [6912, 1152], [10240, 2560]]
const head: Shape = [1152, 262144]
// Bytes of weights that one run goes through where they must come from DRAM: beyond the last-level cache.
const coldBytes = 768 * 2 ** 20
const group = 32

/** One matrix as the file stores it, in both forms: the same nibbles and scales. */
interface Quantized {
  q4_0: Uint8Array
  nibbles: Uint8Array
  scales: Float32Array
}

function f16Bits(value: number): number {
  // Scales are drawn as multiples of 2⁻¹⁸ in (2⁻⁷, 2⁻⁶): exact in f16 with exponent field 8.
  return (8 << 10) | (Math.round(value * 2 ** 17) - 1024)
}

export function quantizedMatrix(rows: number, columns: number, seed: number): Quantized {
  const blocks = (rows * columns) / group
  const q4_0 = new Uint8Array(blocks * 18)
  const nibbles = new Uint8Array(blocks * 16)
  const scales = new Float32Array(blocks)
  const next = generator(seed)
  for (let block = 0; block < blocks; block++) {
    const scale = (1024 + Math.floor((next() * 0.5 + 0.5) * 1023)) * 2 ** -17
    const bits = f16Bits(scale)
    scales[block] = scale
    q4_0[block * 18] = bits & 255
    q4_0[block * 18 + 1] = bits >> 8
    const values = Uint8Array.from({ length: group }, () => Math.floor((next() * 0.5 + 0.5) * 16))
    for (let j = 0; j < 16; j++) {
      // Q4_0 puts weights j and j + 16 into one byte, MatMulNBits weights 2j and 2j + 1.
      q4_0[block * 18 + 2 + j] = (values[j] as number) | ((values[j + 16] as number) << 4)
      nibbles[block * 16 + j] = (values[2 * j] as number) | ((values[2 * j + 1] as number) << 4)
    }
  }
  return { q4_0, nibbles, scales }
}

/** A tall matrix as the file stores it: the same rows again and again. */
export function tallMatrix([columns, rows]: Shape, dtype: 'q4_0' | 'q8_0'): Uint8Array {
  const own = 1024
  const { q4_0 } = quantizedMatrix(own, columns, 9)
  const blockBytes = dtype === 'q4_0' ? 18 : 34
  const part = dtype === 'q4_0' ? q4_0 : new Uint8Array((own * columns * blockBytes) / group)
  if (dtype === 'q8_0') {
    // The scale of the block, and its nibble pairs twice: any codes will do.
    for (let block = 0; block * blockBytes < part.length; block++) {
      part.set(q4_0.subarray(block * 18, block * 18 + 18), block * blockBytes)
      part.set(q4_0.subarray(block * 18 + 2, block * 18 + 18), block * blockBytes + 18)
    }
  }
  const whole = new Uint8Array((part.length * rows) / own)
  for (let start = 0; start < whole.length; start += part.length) whole.set(part, start)
  return whole
}

function coldLayers(weightBytes: number): number {
  return Math.max(2, Math.ceil(coldBytes / weightBytes))
}

/** Multiplies x by each of `layers` copies of a matrix. */
async function manyLayers(
  device: Device,
  x: Float32Array,
  bytes: Uint8Array,
  [columns, rows]: Shape,
  dtype: 'q4_0' | 'q8_0',
  layers: number,
): Promise<Ours> {
  const stored = Tensor.from(device, bytes, [rows, columns], dtype)
  const packed = Array.from({ length: layers }, () => packWeights(stored))
  await device.stream.synchronize()
  stored.dispose()
  const body = (input: Tensor): Tensor => {
    let y = matmul(input, packed[0] as Tensor)
    for (const weight of packed.slice(1)) y = matmul(input, weight)
    return y
  }
  return new Ours(device, [Tensor.from(device, x, [x.length / columns, columns])], body, packed, layers)
}

/** Of decoding; of 16 rows; of a prompt. */
function goalsOf(batch: number): Goal[] {
  if (batch === 1) return [{ percent: 92, of: 'read' }]
  if (batch === 16) return [{ isa: 'amx', tflops: 1.2 }]
  if (batch < 512) return []
  return [
    { percent: 60, of: 'tile_bf16' },
    { isa: 'amx', times: 12, peer: peerName },
    { percent: 70, of: 'dot_i8' },
  ]
}

function headCase(dtype: 'q4_0' | 'q8_0'): BenchmarkCase {
  const [columns, rows] = head
  const weightBytes = (rows * columns * (dtype === 'q4_0' ? 18 : 34)) / group
  return {
    name: `${dtype} head M=1 ${columns}x${rows} cold`,
    operations: 2 * columns * rows,
    bytes: weightBytes,
    limit: () => 'read',
    goals: goalsOf(1),
    ours: (device) =>
      manyLayers(device, uniform(columns, 1, 3), tallMatrix(head, dtype), head, dtype, coldLayers(weightBytes)),
  }
}

function matmulCase(batch: number, [columns, rows]: Shape): BenchmarkCase {
  const weightBytes = (rows * columns * 18) / group
  const cold = batch <= 16
  const layers = cold ? coldLayers(weightBytes) : 1
  const operations = 2 * batch * columns * rows
  let matrix: Quantized | undefined
  const weights = (): Quantized => {
    matrix ??= quantizedMatrix(rows, columns, 7)
    return matrix
  }
  const x = uniform(batch * columns, 1, 3)
  return {
    name: `int4 matmul M=${batch} ${columns}x${rows}${cold ? ' cold' : ''}`,
    operations,
    bytes: weightBytes,
    agreement: 0.02,
    goals: goalsOf(batch),
    limit(limits) {
      const dot = fastestDot(limits)
      return cold && weightBytes / limits.read > operations / limits[dot] ? 'read' : dot
    },
    ours: (device) => manyLayers(device, x, weights().q4_0, [columns, rows], 'q4_0', layers),
    async peer(threads: number) {
      const { nibbles, scales } = weights()
      const blocks = columns / group
      const nodes: OnnxNode[] = []
      const initializers = []
      for (let layer = 0; layer < layers; layer++) {
        // Every copy differs, or the runtime would keep one.
        const own = nibbles.slice()
        own[layer] = (own[layer] as number) ^ (layer ? 1 : 0)
        initializers.push(
          { name: `w${layer}`, type: 'uint8' as const, dims: [rows, blocks, 16], data: own },
          { name: `s${layer}`, type: 'float32' as const, dims: [rows, blocks], data: scales.slice() },
        )
        nodes.push({
          op: 'MatMulNBits',
          domain: 'com.microsoft',
          inputs: ['x', `w${layer}`, `s${layer}`],
          outputs: [`y${layer}`],
          attributes: {
            K: { i: columns },
            N: { i: rows },
            bits: { i: 4 },
            block_size: { i: group },
            accuracy_level: { i: 4 },
          },
        })
      }
      // A result that nothing uses would be dropped with its layer.
      if (layers > 1) nodes.push({ op: 'Sum', inputs: nodes.map((node) => node.outputs[0] as string), outputs: ['y'] })
      const output = layers > 1 ? 'y' : 'y0'
      const model = onnxModel(
        nodes,
        [{ name: 'x', type: 'float32', dims: [batch, columns] }],
        [{ name: output, type: 'float32', dims: [batch, rows] }],
        initializers,
      )
      return await OnnxPeer.open(
        model,
        threads,
        { x: { data: x, dims: [batch, columns] } },
        { [output]: [batch, rows] },
        layers,
      )
    },
  }
}

export const matmulCases: BenchmarkCase[] = [
  ...decodeShapes.map((shape) => matmulCase(1, shape)),
  headCase('q8_0'),
  headCase('q4_0'),
  ...shapes.map((shape) => matmulCase(8, shape)),
  ...shapes.map((shape) => matmulCase(16, shape)),
  ...shapes.slice(1).map((shape) => matmulCase(512, shape)),
]
