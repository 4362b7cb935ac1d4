/** This machine's limits, measured by the `probe` op on the threads that run the kernels. */
import { type Device, type ProbeKind, probe, probeMemory, Tensor } from 'lapidary'
import { type Contender, summarize } from './race.ts'

/** GB/s for `read`, GFLOP/s (or integer GOP/s) for the others; 0 where the instruction set lacks it. */
export type Limits = Record<ProbeKind, number>

// Far beyond any last-level cache that two cores of a server see, except by rotating: 1 GiB per thread.
const readBytes = 2 ** 30
// What a reader beside a case rotates over.
const coldBytes = 768 * 2 ** 20

/** Operations (or bytes) that all threads together do in one repetition; 0 where the device lacks the instruction. */
async function perRepetition(buffer: Tensor, kind: ProbeKind): Promise<number> {
  using operations = probe(buffer, kind, 1)
  return ((await operations.read()) as Float32Array).reduce((sum, value) => sum + value, 0)
}

async function measure(
  device: Device,
  buffer: Tensor,
  kind: ProbeKind,
  repetitions: number,
  samples: number,
): Promise<number> {
  const operations = await perRepetition(buffer, kind)
  if (operations === 0) return 0
  const times: number[] = []
  for (let i = 0; i < samples; i++) {
    const start = performance.now()
    probe(buffer, kind, repetitions).dispose()
    await device.stream.synchronize()
    times.push(performance.now() - start)
  }
  return (operations * repetitions) / summarize(times).median / 1e6
}

export async function measureLimits(device: Device): Promise<Limits> {
  const { threads } = device.info()
  using small = Tensor.zeros(device, [64], 'u8')
  using large = await probeMemory(device, readBytes * threads)
  const limits: Partial<Limits> = { read: await measure(device, large, 'read', 1, 7) }
  for (const kind of ['fma_f32', 'dot_i8', 'dot_bf16', 'tile_i8', 'tile_bf16'] as const) {
    // About 10⁷ instructions: some milliseconds.
    limits[kind] = await measure(device, small, kind, 1_000_000, 9)
  }
  return limits as Limits
}

/**
 * A limit beside a case, in the same rounds: as many cold bytes read, or as many operations done, as the case's. On a shared machine
 * memory becomes twice as fast or slow within minutes, so only what was measured in the same second tells what a kernel leaves.
 */
export class LimitContender implements Contender {
  readonly name = 'limit'
  readonly unitsPerRun: number
  readonly sampleMs: number
  readonly #device: Device
  readonly #kind: ProbeKind
  readonly #buffers: Tensor[]
  readonly #repetitions: number
  #next = 0

  private constructor(
    device: Device,
    kind: ProbeKind,
    buffers: Tensor[],
    repetitions: number,
    unitsPerRun: number,
    sampleMs: number,
  ) {
    this.#device = device
    this.#kind = kind
    this.#buffers = buffers
    this.#repetitions = repetitions
    this.unitsPerRun = unitsPerRun
    this.sampleMs = sampleMs
  }

  /** @param unit Bytes (`read`) or operations of one unit of the case's work, of which a run does `unitsPerRun`. */
  static async open(device: Device, kind: ProbeKind, unit: number, unitsPerRun: number): Promise<LimitContender> {
    if (kind !== 'read') {
      const small = Tensor.zeros(device, [64], 'u8')
      const repetitions = Math.max(1, Math.round((unit * unitsPerRun) / (await perRepetition(small, kind))))
      return new LimitContender(device, kind, [small], repetitions, unitsPerRun, 25)
    }
    const bytes = Math.ceil(unit) * unitsPerRun
    const count = Math.max(1, Math.floor(coldBytes / bytes))
    using whole = await probeMemory(device, bytes * count)
    const parts = Array.from({ length: count }, (_, i) => whole.slice(i * bytes, (i + 1) * bytes))
    return new LimitContender(device, kind, parts, 1, unitsPerRun, 60)
  }

  async run(runs: number): Promise<void> {
    for (let i = 1; i <= runs; i++) {
      const buffer = this.#buffers[this.#next++ % this.#buffers.length] as Tensor
      probe(buffer, this.#kind, this.#repetitions).dispose()
      if (i % 64 === 0 || i === runs) await this.#device.stream.synchronize()
    }
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.dispose()
  }
}
