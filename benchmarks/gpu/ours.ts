/** Our side of a case: a captured program, which is a CUDA graph, over several sets of inputs, timed by the GPU's own clock. */
import { addRmsNorm, cast, type Device, flashAttention, geglu, matmul, Program, packWeights, Tensor } from 'lapidary'
import type { Contender } from '../race.ts'
import { int4Blocks, setsFor, uniformAt, uniformBf16, type Work } from './case.ts'

const pageTokens = 64
/** Of queries: a softmax that prefers some keys, as a model's does. */
const queryAmplitude = 4

/** All outputs of one unit of work; the first is what is compared. */
type Unit = () => readonly [Tensor, ...Tensor[]]

/** Makes the next set of inputs and returns what runs the op on it. Tensors that it makes go into `owned`. */
type Maker = (owned: Tensor[]) => Unit

function prefillMaker(device: Device, work: Extract<Work, { kind: 'prefill' }>): Maker {
  const { tokens, queryHeads, kvHeads, headDim, window, softcap } = work
  const q = uniformBf16(tokens * queryHeads * headDim, 1, queryAmplitude)
  const [k, v] = [2, 3].map((seed) => uniformBf16(tokens * kvHeads * headDim, seed)) as [Uint16Array, Uint16Array]
  return (owned) => {
    const make = (data: Uint16Array, heads: number) => keep(owned, device, data, [tokens, heads, headDim])
    const [query, key, value] = [make(q, queryHeads), make(k, kvHeads), make(v, kvHeads)]
    return () => [flashAttention(query, key, value, { window, softcap })]
  }
}

/** Keys and values in pages, as an engine has them: page p of a sequence holds [kvHeads, 64, headDim]. */
function decodeMaker(device: Device, work: Extract<Work, { kind: 'decode' }>): Maker {
  const { sequences, keys, queryHeads, kvHeads, headDim } = work
  const pages = keys / pageTokens
  const shape = [sequences * pages, kvHeads, pageTokens, headDim]
  const q = uniformBf16(sequences * queryHeads * headDim, 1, queryAmplitude)
  const [k, v] = [2, 3].map((seed) => uniformBf16(sequences * keys * kvHeads * headDim, seed)) as [
    Uint16Array,
    Uint16Array,
  ]
  const integers = (count: number, at: (i: number) => number) => Int32Array.from({ length: count }, (_, i) => at(i))
  return (owned) => {
    const query = keep(owned, device, q, [sequences, queryHeads, headDim])
    const [key, value] = [keep(owned, device, k, shape), keep(owned, device, v, shape)]
    const queryStarts = Tensor.from(
      device,
      integers(sequences + 1, (i) => i),
    )
    const pageTable = Tensor.from(
      device,
      integers(sequences * pages, (i) => i),
      [sequences, pages],
    )
    const keyLengths = Tensor.from(
      device,
      integers(sequences, () => keys),
    )
    owned.push(queryStarts, pageTable, keyLengths)
    return () => [flashAttention(query, key, value, { queryStarts, pageTable, keyLengths })]
  }
}

function int4Maker(device: Device, { rows, columns, outputs }: Extract<Work, { kind: 'int4' }>): Maker {
  const x = uniformBf16(rows * columns, 1)
  const stored = int4Blocks(outputs, columns)
  return (owned) => {
    const input = keep(owned, device, x, [rows, columns])
    using weight = Tensor.from(device, stored, [outputs, columns], 'q4_0')
    const packed = packWeights(weight)
    owned.push(packed)
    return () => [matmul(input, packed)]
  }
}

function rowsMaker(device: Device, work: Extract<Work, { kind: 'rms_norm' | 'geglu' }>): Maker {
  const { rows, columns } = work
  if (work.kind === 'geglu') {
    const x = uniformBf16(rows * 2 * columns, 1, queryAmplitude)
    return (owned) => {
      const input = keep(owned, device, x, [rows, 2 * columns])
      return () => [geglu(input)]
    }
  }
  const [x, r] = [1, 2].map((seed) => uniformBf16(rows * columns, seed)) as [Uint16Array, Uint16Array]
  const w = Float32Array.from({ length: columns }, (_, i) => uniformAt(i, 3))
  return (owned) => {
    const input = keep(owned, device, x, [rows, columns])
    const residual = keep(owned, device, r, [rows, columns])
    const preWeight = Tensor.from(device, w)
    owned.push(preWeight)
    return () => {
      const { residual: sum, normed } = addRmsNorm(input, residual, { preWeight, postNorm: false })
      return [normed, sum]
    }
  }
}

function copyMaker(device: Device, { rows, columns }: Extract<Work, { kind: 'copy' }>): Maker {
  return (owned) => {
    const from = Tensor.zeros(device, [rows, columns], 'f32')
    owned.push(from)
    return () => [cast(from, 'f32')]
  }
}

function matmulMaker(device: Device, { size }: Extract<Work, { kind: 'matmul' }>): Maker {
  const [a, b] = [1, 2].map((seed) => uniformBf16(size * size, seed)) as [Uint16Array, Uint16Array]
  return (owned) => {
    const x = keep(owned, device, a, [size, size])
    using weight = Tensor.from(device, b, [size, size], 'bf16')
    const packed = packWeights(weight)
    owned.push(packed)
    return () => [matmul(x, packed)]
  }
}

function keep(owned: Tensor[], device: Device, bits: Uint16Array, shape: readonly number[]): Tensor {
  const tensor = Tensor.from(device, bits, shape, 'bf16')
  owned.push(tensor)
  return tensor
}

function makerFor(device: Device, work: Work): Maker {
  switch (work.kind) {
    case 'prefill':
      return prefillMaker(device, work)
    case 'decode':
      return decodeMaker(device, work)
    case 'int4':
      return int4Maker(device, work)
    case 'copy':
      return copyMaker(device, work)
    case 'matmul':
      return matmulMaker(device, work)
    default:
      return rowsMaker(device, work)
  }
}

/**
 * A unit of work over as many sets of inputs as make a run leave the cache. The outputs of all units are outputs of the program, so that each
 * has memory of its own: in one place they would be overwritten before they left the cache. A run is replayed and waited for; its time is that
 * between two events around the graph, so that neither the wait nor the copies of small outputs count.
 */
export class OursOnGpu implements Contender {
  readonly name = 'lapidary'
  readonly unitsPerRun: number
  readonly #device: Device
  readonly #program: Program<Tensor[]>
  readonly #owned: readonly Tensor[]

  private constructor(device: Device, units: readonly Unit[], owned: Tensor[]) {
    this.#device = device
    this.#owned = owned
    this.unitsPerRun = units.length
    this.#program = Program.capture(device, [], () => units.flatMap((unit) => unit()))
  }

  /** @param bytes What one unit reads and writes. */
  static async open(device: Device, work: Work, bytes: number, least: number): Promise<OursOnGpu> {
    const owned: Tensor[] = []
    const make = makerFor(device, work)
    const units = Array.from({ length: setsFor(bytes, least) }, () => make(owned))
    await device.stream.synchronize()
    return new OursOnGpu(device, units, owned)
  }

  /** Milliseconds of the device in replays so far. */
  #replayed(): number {
    const text = this.#device.info().notes['replay milliseconds']
    if (text === undefined)
      throw new Error('the device counts no time: LAPIDARY_CUDA_TIMING=1 must be set before it replays')
    return Number(text)
  }

  async run(runs: number): Promise<number> {
    const before = this.#replayed()
    for (let i = 0; i < runs; i++) {
      for (const output of this.#program.run()) output.dispose()
      await this.#device.stream.synchronize()
    }
    return this.#replayed() - before
  }

  /** Rows of the first unit's output, of whose dimensions all but the last are taken together; `choose` says which of how many. */
  async rows(choose: (count: number) => readonly number[]): Promise<{ rows: readonly number[]; values: number[] }> {
    const outputs = this.#program.run()
    const output = outputs[0] as Tensor
    const columns = output.shape.at(-1) as number
    using flat = output.reshape([output.size / columns, columns])
    const rows = choose(output.size / columns)
    const values: number[] = []
    for (const row of rows) {
      using slice = flat.slice(row, row + 1)
      values.push(...(await slice.readF32()))
    }
    for (const tensor of outputs) tensor.dispose()
    return { rows, values }
  }

  dispose(): void {
    this.#program.dispose()
    for (const tensor of this.#owned) tensor.dispose()
  }
}
