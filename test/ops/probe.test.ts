// probe computes nothing, so there is no reference: what it promises is how much work a repetition is.

import { expect, test } from 'vitest'
import { type Isa, type ProbeKind, probe, probeKinds, Tensor } from '../../lib/index.ts'
import { anyDevice, cudaFor, forEachIsa, openDevice } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'

const accumulators = 12
const lanes: Record<Isa, number> = {
  scalar: 4,
  avx2: 8,
  avx512: 16,
  avx512_bf16: 16,
  amx: 16,
  amx_emulated: 16,
  neon: 4,
  i8mm: 4,
}
const withBf16: readonly Isa[] = ['avx512_bf16', 'amx', 'amx_emulated']
const withTiles: readonly Isa[] = ['amx', 'amx_emulated']

/** Operations of one repetition on one thread. */
function expected(kind: ProbeKind, isa: Isa): number {
  const vectors = 2 * accumulators * lanes[isa]
  const products = 2 * 4 * 16 * 16
  switch (kind) {
    case 'fma_f32':
      return vectors
    case 'dot_i8':
      return 4 * vectors
    case 'dot_bf16':
      return withBf16.includes(isa) ? 2 * vectors : 0
    case 'tile_i8':
      return withTiles.includes(isa) ? products * 64 : 0
    case 'tile_bf16':
      return withTiles.includes(isa) ? products * 32 : 0
    default:
      throw new Error(`no operations: ${kind}`)
  }
}

test('operations of a repetition, on every thread', async () => {
  await forEachIsa(async (device, isa) => {
    const { threads } = device.info()
    using buffer = Tensor.zeros(device, [64], 'u8')
    for (const kind of probeKinds) {
      if (kind === 'read') continue
      using operations = probe(buffer, kind, 3)
      expect(Array.from(await operations.read()), `${isa}: ${kind}`).toEqual(Array(threads).fill(expected(kind, isa)))
    }
  })
})

test('read divides the buffer among the threads', async () => {
  await forEachIsa(async (device) => {
    for (const bytes of [0, 1, 4096, 100_003]) {
      using buffer = Tensor.zeros(device, [bytes], 'u8')
      using shares = probe(buffer, 'read', 2)
      expect(Array.from(await shares.read()).reduce((sum, share) => sum + share, 0)).toBe(bytes)
    }
  })
})

const family = cudaFor(['probe'])

test.skipIf(!family)('a GPU has a number for each multiprocessor', async () => {
  const device = await openDevice(family!)
  const { threads } = device.info()
  const blockThreads = 512
  const expectedOnCuda: Record<ProbeKind, number> = {
    read: 0,
    fma_f32: 2 * accumulators * blockThreads,
    dot_i8: 8 * accumulators * blockThreads,
    dot_bf16: 2 * accumulators * 16 * 8 * 16 * (blockThreads / 32),
    tile_i8: 0,
    tile_bf16: 0,
  }
  using buffer = Tensor.zeros(device, [64], 'u8')
  for (const kind of probeKinds) {
    if (kind === 'read') continue
    using operations = probe(buffer, kind, 3)
    expect(Array.from(await operations.read()), kind).toEqual(Array(threads).fill(expectedOnCuda[kind]))
  }
  for (const bytes of [0, 1, 4096, 100_003]) {
    using bytesRead = Tensor.zeros(device, [bytes], 'u8')
    using shares = probe(bytesRead, 'read', 2)
    expect(Array.from(await shares.read()).reduce((sum, share) => sum + share, 0)).toBe(bytes)
  }
})

test('wrong arguments', async () => {
  const device = await anyDevice()
  using floats = Tensor.zeros(device, [64])
  using bytes = Tensor.zeros(device, [64], 'u8')
  throwsCode(() => probe(floats, 'read', 1), 'ERR_DTYPE_UNSUPPORTED', /buffer/)
  throwsCode(() => probe(bytes, 'write' as ProbeKind, 1), 'ERR_INVALID_ARGUMENT', /kind/)
  throwsCode(() => probe(bytes, 'read', -1), 'ERR_INVALID_ARGUMENT', /repetitions/)
  throwsCode(() => probe(bytes, 'read', 0.5), 'ERR_INVALID_ARGUMENT', /repetitions/)
})
