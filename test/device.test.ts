import { describe, expect, test } from 'vitest'
import { add, Device, type Isa, rmsNorm, Tensor } from '../lib/index.ts'
import { anyDevice, presentIsas, supportedIsas } from './support/devices.ts'
import { rejectsCode } from './support/errors.ts'

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

describe('open', () => {
  test('takes the best there is by itself', async () => {
    using device = await Device.open()
    const info = device.info()
    expect(info.kind).toBe('cpu')
    expect(info.name.length).toBeGreaterThan(0)
    expect(info.threads).toBeGreaterThanOrEqual(1)
    const shown = info.isas.filter((isa) => isa.supported && isa.name !== 'amx_emulated')
    expect(info.isa).toBe(shown.at(-1)!.name)
  })

  test.each(supportedIsas)('a forced instruction set is the one that runs: %s', async (isa) => {
    using device = await Device.open('cpu', { isa, threads: 1 })
    const info = device.info()
    expect(info.isa).toBe(isa)
    expect(info.threads).toBe(1)
    const active = info.isas.filter((entry) => entry.active).map((entry) => entry.name)
    expect(active.at(-1)).toBe(isa)
    expect(active[0]).toBe('scalar')
    const order = info.isas.map((entry) => entry.name)
    for (const provider of Object.values(info.kernels)) {
      expect(active).toContain(provider)
      expect(order.indexOf(provider)).toBeLessThanOrEqual(order.indexOf(isa))
    }
    if (isa === 'scalar') expect(new Set(Object.values(info.kernels))).toEqual(new Set(['scalar']))
  })

  test('every instruction set of the list says why it cannot be used', async () => {
    const device = await anyDevice()
    for (const isa of device.info().isas) {
      if (isa.supported) expect(isa.reason).toBeUndefined()
      else expect(isa.reason?.length ?? 0, isa.name).toBeGreaterThan(5)
    }
  })

  test('hazard: an instruction set that the machine lacks, or that is none', async () => {
    const device = await anyDevice()
    for (const isa of device.info().isas.filter((entry) => !entry.supported)) {
      await rejectsCode(Device.open('cpu', { isa: isa.name as Isa }), 'ERR_DEVICE_UNAVAILABLE', new RegExp(isa.name))
    }
    await rejectsCode(Device.open('cpu', { isa: 'sse9' as Isa }), 'ERR_DEVICE_UNAVAILABLE', /scalar.*sse9/)
  })

  test('hazard: a device that is not there is an error, not the CPU', async () => {
    await rejectsCode(Device.open('cuda'), 'ERR_DEVICE_UNAVAILABLE')
    await rejectsCode(Device.open('cuda:7'), 'ERR_DEVICE_UNAVAILABLE')
    await rejectsCode(Device.open('tpu' as 'cpu'), 'ERR_INVALID_ARGUMENT', /cuda.*tpu/)
  })

  test.each([-1, 1.5, 100_000, Number.NaN, Infinity, '2'])('threads that are none: %s', async (threads) => {
    await rejectsCode(Device.open('cpu', { threads: threads as number }), 'ERR_INVALID_ARGUMENT', /threads/)
  })

  test('more threads than processors work, slowly', async () => {
    using device = await Device.open('cpu', { threads: 5, guard: true })
    using x = Tensor.from(device, ramp(7 * 64), [7, 64])
    using normed = rmsNorm(x)
    using sum = add(normed, normed)
    const many = await sum.read()
    const other = await anyDevice()
    using again = Tensor.from(other, ramp(7 * 64), [7, 64])
    using expected = rmsNorm(again)
    using twice = add(expected, expected)
    expect(many).toEqual(await twice.read())
  })

  test('several at once', async () => {
    const devices = await Promise.all(presentIsas.map((isa) => Device.open('cpu', { isa, threads: 2 })))
    const results = await Promise.all(
      devices.map((device) => {
        const x = Tensor.from(device, ramp(64), [64])
        return add(x, x).read()
      }),
    )
    for (const result of results) expect(result).toEqual(ramp(64).map((value) => 2 * value))
    for (const device of devices) device.dispose()
  })
})

describe('list', () => {
  test('names the CPU and its instruction sets', async () => {
    const devices = Device.list()
    const cpu = devices.find((device) => device.kind === 'cpu')
    expect(cpu).toBeDefined()
    const device = await anyDevice()
    expect(cpu!.isas.map((isa) => isa.name)).toEqual(device.info().isas.map((isa) => isa.name))
  })
})

describe('memory', () => {
  test('counts what tensors hold, and comes back to where it was', async () => {
    using device = await Device.open('cpu', { threads: 1 })
    const before = device.memory()
    const x = Tensor.zeros(device, [1000], 'f32')
    expect(device.memory()).toMatchObject({ bytes: before.bytes + 4000, buffers: before.buffers + 1 })
    const y = Tensor.zeros(device, [10, 10], 'bf16')
    expect(device.memory()).toMatchObject({ bytes: before.bytes + 4200, buffers: before.buffers + 2 })
    x.dispose()
    y.dispose()
    await device.stream.synchronize()
    expect(device.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
  })
})
