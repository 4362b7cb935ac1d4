/**
 * How long one image takes: 896 × 896 pixels through a tower of SigLIP-So400m's shape (5.5 TFLOP), beside this machine's fastest
 * multiply-add and onnxruntime-node on a graph of the same shape, in turn.
 *
 *     npm run bench:vision -- [--threads 2] [--isa amx] [--rounds 5] [--type bf16] [--layers 27] [--no-peer] [--json out.json]
 *
 * The checkpoint is synthetic, written to the temporary folder and kept there. Ours includes what an application pays beside the tower:
 * hashing the pixels, cutting them into patches, and copying the soft tokens to JavaScript; decoding and resizing are timed apart. The peer
 * computes in f32, which is what its CPU provider is fast in; all layers of its graph share the weights of one, since 27 layers of f32 do not
 * fit the 2 GB that a model's file may have: the arithmetic is the same, and so is what comes from memory, as a layer is larger than the caches.
 */
import { existsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Command } from 'commander'
import { Device, Gemma, type Isa, type RawImage, writeSynthetic, writeSyntheticVision } from 'lapidary'
import { fastestAttentionDot, uniform } from './cases/case.ts'
import { formatVerdict, type Goal, judge } from './goals.ts'
import { LimitContender, measureLimits } from './limits.ts'
import { type OnnxNode, type OnnxWeight, onnxModel } from './peers/onnx-model.ts'
import { loadOnnxRuntime, OnnxPeer, peerName } from './peers/onnxruntime.ts'
import { type Contender, medianRatio, race, type Timing } from './race.ts'
import { describeMachine } from './report.ts'

const options = new Command('vision')
  .option('--threads <count>', 'default: all')
  .option('--isa <name>', 'default: the best')
  .option('--rounds <count>', 'samples of each contender', '5')
  .option('--type <type>', 'bf16, f16 or q8_0', 'bf16')
  .option('--layers <count>', 'fewer, for a quick look', '27')
  .option('--no-peer', 'leave the peer out')
  .option('--json <file>', 'write the result')
  .parse()
  .opts<{ threads?: string; isa?: Isa; rounds: string; type: 'bf16'; layers: string; peer: boolean; json?: string }>()

const [patches, width, ffn, heads, imageSize, patchColumns] = [4096, 1152, 4304, 16, 896, 588]
const layers = Number(options.layers)
// The text model is not timed: the smallest there is.
const hiddenSize = 640

/** Multiplications and additions, each counted. */
const operations =
  2 * patches * patchColumns * width +
  layers * (2 * patches * (4 * width ** 2 + 2 * width * ffn) + 4 * patches ** 2 * width) +
  2 * 256 * width * hiddenSize

async function checkpoint(name: string, write: (file: string) => Promise<number>): Promise<string> {
  const file = path.join(tmpdir(), name)
  if (!existsSync(file)) {
    console.error(`writing ${file}`)
    await write(file)
  }
  return file
}

/** Encodes an image that it has not seen before: one that it has would cost nothing. */
class Ours implements Contender {
  readonly name = 'lapidary'
  readonly unitsPerRun = 1
  readonly #gemma: Gemma
  readonly #image: RawImage
  #seen = 0

  constructor(gemma: Gemma, image: RawImage) {
    this.#gemma = gemma
    this.#image = image
  }

  async run(runs: number): Promise<void> {
    for (let i = 0; i < runs; i++) {
      new DataView(this.#image.data.buffer).setUint32(0, this.#seen++)
      const [soft] = await this.#gemma.encodeImage(this.#image)
      if (!soft?.every(Number.isFinite)) throw new Error('the soft tokens are not finite')
    }
  }
}

/** The same tower as a graph. */
async function openPeer(threads: number): Promise<OnnxPeer | undefined> {
  const weights: OnnxWeight[] = []
  const weight = (name: string, dims: number[], scale: number): string => {
    const data = uniform(
      dims.reduce((product, dim) => product * dim, 1),
      scale,
      weights.length,
    )
    weights.push({ name, type: 'float32', dims, data })
    return name
  }
  const matrix = (name: string, k: number, n: number) => weight(name, [k, n], Math.sqrt(3 / k))
  const bias = (name: string, n: number) => weight(name, [n], 0.01)
  const nodes: OnnxNode[] = []
  let count = 0
  const node = (op: string, inputs: string[], attributes: OnnxNode['attributes'] = {}, domain = ''): string => {
    const output = `t${count++}`
    nodes.push({ op, inputs, outputs: [output], attributes, domain })
    return output
  }
  const linear = (x: string, w: string, b: string) => node('Add', [node('MatMul', [x, w]), b])
  const norm = (x: string, name: string) =>
    node('LayerNormalization', [x, `${name}.w`, `${name}.b`], { axis: { i: -1 }, epsilon: { f: 1e-6 } })
  for (const name of ['ln1', 'ln2', 'ln']) {
    weights.push({ name: `${name}.w`, type: 'float32', dims: [width], data: new Float32Array(width).fill(1) })
    bias(`${name}.b`, width)
  }
  for (const name of ['q', 'k', 'v', 'o']) {
    matrix(name, width, width)
    bias(`${name}.b`, width)
  }
  matrix('fc1', width, ffn)
  bias('fc1.b', ffn)
  matrix('fc2', ffn, width)
  bias('fc2.b', width)
  let x = linear('patches', matrix('patch', patchColumns, width), bias('patch.b', width))
  x = node('Add', [x, weight('positions', [1, patches, width], 1)])
  for (let layer = 0; layer < layers; layer++) {
    const normed = norm(x, 'ln1')
    const [q, k, v] = ['q', 'k', 'v'].map((name) => linear(normed, name, `${name}.b`)) as [string, string, string]
    const attended = node('MultiHeadAttention', [q, k, v], { num_heads: { i: heads } }, 'com.microsoft')
    x = node('Add', [x, linear(attended, 'o', 'o.b')])
    const activated = node('Gelu', [linear(norm(x, 'ln2'), 'fc1', 'fc1.b')], { approximate: { s: 'tanh' } })
    x = node('Add', [x, linear(activated, 'fc2', 'fc2.b')])
  }
  nodes.push({
    op: 'LayerNormalization',
    inputs: [x, 'ln.w', 'ln.b'],
    outputs: ['states'],
    attributes: { axis: { i: -1 }, epsilon: { f: 1e-6 } },
  })
  const dims = [1, patches, patchColumns]
  const graph = onnxModel(
    nodes,
    [{ name: 'patches', type: 'float32', dims }],
    [{ name: 'states', type: 'float32', dims: [1, patches, width] }],
    weights,
  )
  const feeds = { patches: { data: uniform(patches * patchColumns, 1, 99), dims } }
  return await OnnxPeer.open(graph, threads, feeds, { states: [1, patches, width] })
}

const device = await Device.open('cpu', {
  ...(options.threads !== undefined && { threads: Number(options.threads) }),
  ...(options.isa !== undefined && { isa: options.isa }),
})
const { threads, isa, name, memoryLimit } = device.info()
const limits = await measureLimits(device)
// Weights are floats: what multiplies bytes does not count.
const limit = fastestAttentionDot(limits)
const text = await checkpoint('lapidary-vision-text.gguf', (file) =>
  writeSynthetic(file, { size: 'gemma-3-270m', layers: 1 }),
)
const mmproj = await checkpoint(`lapidary-vision-so400m-${options.type}-${layers}.gguf`, (file) =>
  writeSyntheticVision(file, { hiddenSize, type: options.type, layers }),
)
const gemma = await Gemma.load(text, { device, mmproj, packedCache: false, contextLength: 512, maxSequences: 1 })
const pixels = Uint8Array.from(uniform(imageSize ** 2 * 3, 127, 5), (value) => 128 + value)
const ours = new Ours(gemma, { data: pixels, width: imageSize, height: imageSize, channels: 3 })
const atLimit = await LimitContender.open(device, limit, operations, 1)
const peer = options.peer ? await openPeer(threads) : undefined
if (options.peer && !(await loadOnnxRuntime())) console.error(`${peerName} is not installed: no peer`)

/** Of the whole tower; seconds on the machine with AMX that benchmarks/README.md describes. */
const goals: Goal[] = [
  { percent: 50, of: limit },
  { isa: 'amx', atMost: 1.8 },
]

const start = performance.now()
await ours.run(1)
const firstMs = performance.now() - start
const contenders: Contender[] = peer ? [atLimit, ours, peer] : [atLimit, ours]
const timings = await race(contenders, Number(options.rounds))
if (peer && !peer.firstOutput().every(Number.isFinite)) throw new Error('the peer’s states are not finite')
const timing = timings.get(ours.name) as Timing
const limitTiming = timings.get(atLimit.name) as Timing
const peerTiming = peer && timings.get(peer.name)
const result = {
  machine: describeMachine(name, memoryLimit),
  isa,
  threads,
  type: options.type,
  layers,
  teraOperations: operations / 1e12,
  seconds: timing.median / 1000,
  spread: timing.spread,
  teraflops: operations / timing.median / 1e9,
  limit,
  limitTeraflops: operations / limitTiming.median / 1e9,
  percentOfLimit: 100 * medianRatio(limitTiming, timing),
  firstSeconds: firstMs / 1000,
  weightBytes: gemma.info().vision?.weightBytes,
  peers: peerTiming
    ? { [peerName]: { seconds: peerTiming.median / 1000, ratio: peerTiming.median / timing.median } }
    : {},
}
console.log(
  `one image, ${layers} layers of ${options.type}, ${isa}, ${threads} threads: ${result.seconds.toFixed(2)} s, ` +
    `${result.teraflops.toFixed(2)} TFLOP/s, ${result.percentOfLimit.toFixed(0)} % of ${limit} (${result.limitTeraflops.toFixed(2)}); ` +
    `the first, with loading, ${result.firstSeconds.toFixed(2)} s`,
)
if (peerTiming) {
  console.log(
    `${peerName}, f32: ${(peerTiming.median / 1000).toFixed(2)} s, ${(peerTiming.median / timing.median).toFixed(1)} times as long`,
  )
}
if (layers === 27) {
  const row = { case: 'image', isa, value: result.seconds, limit, percentOfLimit: result.percentOfLimit, peers: {} }
  for (const verdict of judge(goals, row, [])) console.log(formatVerdict(verdict))
}
if (options.json) writeFileSync(options.json, `${JSON.stringify(result, null, 1)}\n`)
atLimit.dispose()
await peer?.dispose()
await gemma[Symbol.asyncDispose]()
device.dispose()
