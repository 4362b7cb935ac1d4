/** This machine's limits, measured by the `probe` op on the threads that run the kernels. */
import { type Device, type ProbeKind, probe, Tensor } from 'lapidary'
import { summarize } from './race.ts'

/** GB/s for `read`, GFLOP/s (or integer GOP/s) for the others; 0 where the instruction set lacks it. */
export type Limits = Record<ProbeKind, number>

// Far beyond any last-level cache that two cores of a server see, except by rotating: 1 GiB per thread.
const readBytes = 2 ** 30

async function measure(
  device: Device,
  buffer: Tensor,
  kind: ProbeKind,
  repetitions: number,
  samples: number,
): Promise<number> {
  const times: number[] = []
  let perRepetition = 0
  for (let i = 0; i < samples; i++) {
    const start = performance.now()
    using operations = probe(buffer, kind, repetitions)
    perRepetition = ((await operations.read()) as Float32Array).reduce((sum, value) => sum + value, 0)
    times.push(performance.now() - start)
    if (perRepetition === 0) return 0
  }
  await device.stream.synchronize()
  return (perRepetition * repetitions) / summarize(times).median / 1e6
}

export async function measureLimits(device: Device): Promise<Limits> {
  const { threads } = device.info()
  using small = Tensor.zeros(device, [64], 'u8')
  using large = Tensor.zeros(device, [readBytes * threads], 'u8')
  const limits: Partial<Limits> = { read: await measure(device, large, 'read', 1, 7) }
  for (const kind of ['fma_f32', 'dot_i8', 'dot_bf16', 'tile_i8', 'tile_bf16'] as const) {
    // About 10⁷ instructions: some milliseconds.
    limits[kind] = await measure(device, small, kind, 1_000_000, 9)
  }
  return limits as Limits
}
