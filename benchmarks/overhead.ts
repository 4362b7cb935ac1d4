/** What a call costs beyond its kernel: queuing it from JavaScript, and replaying it in a program. */
import { type Device, Program, probe, softcap, Tensor } from 'lapidary'
import { summarize } from './race.ts'

/** Microseconds. */
export interface Overhead {
  readonly threads: number
  /** One op on the JS thread, its output disposed: the median over batches of 1,000 calls. */
  readonly enqueue: number
  /** One replay of a program of one empty call, many queued in a row. */
  readonly replayFixed: number
  /** What each further call of a program of 300 adds. The calls are empty: dispatch and the team's barrier are all there is. */
  readonly replayPerCall: number
  /** From `program.run` to the awaited end of the stream: what a decode step that is awaited costs on top. */
  readonly roundTrip: number
}

const calls = 300
const batch = 1000

/** Median microseconds of a replay when `queued` of them are awaited at once. */
async function timeReplay(device: Device, program: Program, x: Tensor, queued: number): Promise<number> {
  const times: number[] = []
  for (let sample = 0; sample < 200; sample++) {
    const start = performance.now()
    for (let i = 0; i < queued; i++) program.run(x).dispose()
    await device.stream.synchronize()
    times.push(performance.now() - start)
  }
  return (summarize(times).median * 1000) / queued
}

export async function measureOverhead(device: Device): Promise<Overhead> {
  using x = Tensor.zeros(device, [64])
  using bytes = Tensor.zeros(device, [64], 'u8')
  const enqueue: number[] = []
  for (let sample = 0; sample < 30; sample++) {
    const start = performance.now()
    for (let i = 0; i < batch; i++) softcap(x, 50).dispose()
    enqueue.push(performance.now() - start)
    await device.stream.synchronize()
  }
  const capture = (count: number): Program =>
    Program.capture(device, [{ shape: [64], dtype: 'u8' }], (input) => {
      let out = probe(input, 'fma_f32', 0)
      for (let i = 1; i < count; i++) out = probe(input, 'fma_f32', 0)
      return out
    })
  using one = capture(1)
  using many = capture(calls)
  const fixed = await timeReplay(device, one, bytes, 50)
  const all = await timeReplay(device, many, bytes, 50)
  return {
    threads: device.info().threads,
    enqueue: (summarize(enqueue).median * 1000) / batch,
    replayFixed: fixed,
    replayPerCall: Math.max(0, all - fixed) / (calls - 1),
    roundTrip: await timeReplay(device, one, bytes, 1),
  }
}
