// The packed layout of a GPU, fragment order: read as native/ops/weight_panels.h describes it, one code at a time; what leaves a device
// and comes back; and what kernels find in device data.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { type Device, dequantize, embedding, packWeights, Tensor } from '../../lib/index.ts'
import { anyDevice, cudaFor, download, openDevice, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { encodeGroups, packOptions, randomWeights, signedZeros, weightForms } from '../support/formats.ts'
import { firstWrong, unpackFragments } from '../support/panels.ts'
import { Random } from '../support/random.ts'

const family = cudaFor(['pack_weights', 'dequantize', 'embedding'])
const near = (columns: number, granule: number) => Math.max(1, Math.round(columns / granule)) * granule

describe.skipIf(!family)('packWeights on CUDA', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'lapidary-fragments-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  const onCuda = async (body: (device: Device) => Promise<void>) => body(await openDevice(family!))

  for (const form of weightForms) {
    test(`${form.name}: the layout is the one that weight_panels.h describes`, () =>
      onCuda(async (device) => {
        const rows = form.format === 'awq' ? 24 : 19
        const columns = near(200, form.granule)
        const stored = randomWeights(Random.named(form.name), form, rows, columns)
        const weight = upload(device, stored.weight)
        const scales = stored.scales && upload(device, stored.scales)
        const zeros = stored.zeros && upload(device, stored.zeros)
        const packed = packWeights(weight, packOptions(form, { scales, zeros }))
        const { bytes } = await download(packed)
        const { groupSize, scaleDtype, symmetric, dtype } = packed.packedForm()
        const unpacked = unpackFragments(bytes, {
          dtype,
          rows,
          columns,
          panelRows: 16,
          group: groupSize,
          symmetric,
          ...(groupSize > 0 && { scaleDtype: scaleDtype as 'f16' }),
        })
        // gptq's z of 16 is no code, so that a row with it has no zeros to be padded with.
        const checked = form.name === 'gptq row' ? columns : unpacked.columns
        expect(firstWrong(unpacked, stored.values, columns, checked)).toBe(-1)
      }))
  }

  test('saved and loaded; a form of the other order is refused on either side', () =>
    onCuda(async (device) => {
      const host = Random.named('saved').normal('bf16', [33, 64])
      const packed = packWeights(upload(device, host))
      const file = path.join(folder, 'packed.bin')
      await packed.save(file)
      const form = packed.packedForm()
      const again = Tensor.load(device, file, { shape: form.shape, dtype: form.dtype, form })
      expect(await valuesOf(dequantize(again))).toEqual(host.values)
      const cpu = await anyDevice()
      const other = packWeights(upload(cpu, host)).packedForm()
      const load = (on: Device, given: typeof form) => () =>
        Tensor.load(on, file, { shape: given.shape, dtype: given.dtype, form: given })
      throwsCode(load(cpu, form), 'ERR_LAYOUT_UNSUPPORTED', /layoutVersion: expected/)
      throwsCode(load(device, other), 'ERR_LAYOUT_UNSUPPORTED', /layoutVersion: expected/)
    }))

  test('q3_k and iq4_nl are packed as the wider formats that hold the same weights, and in no other form', () =>
    onCuda(async (device) => {
      for (const [dtype, held] of [
        ['q3_k', 'q6_k'],
        ['iq4_nl', 'q8_0'],
      ] as const) {
        const form = weightForms.find(({ name }) => name === dtype)!
        const stored = randomWeights(Random.named(dtype), form, 16, 256)
        const packed = packWeights(upload(device, stored.weight))
        expect(packed.dtype).toBe(held)
        expect(await valuesOf(dequantize(packed))).toEqual(stored.values.map(Math.fround))
        const file = path.join(folder, `${dtype}.bin`)
        await packed.save(file)
        throwsCode(
          () => Tensor.load(device, file, { shape: [16, 256], dtype, form: { ...packed.packedForm(), dtype } }),
          'ERR_LAYOUT_UNSUPPORTED',
          new RegExp(`form: dtype: expected ${held}`),
        )
      }
    }))

  test('bad device data is reported with its own code', () =>
    onCuda(async (device) => {
      const group = {
        rows: 16,
        columns: 128,
        group: 64,
        q: new Uint8Array(16 * 128).fill(3),
        s: new Float64Array(32).fill(1),
      }
      const gptq = encodeGroups('gptq', group)
      const columnOrder = upload(
        device,
        Random.named('order').tensor('i32', [128], (k) => k - 1),
      )
      const permuted = packWeights(upload(device, gptq.weight), {
        format: 'gptq',
        scales: upload(device, gptq.scales!),
        columnOrder,
      })
      await rejectsCode(permuted.read(), 'ERR_INDEX_OUT_OF_RANGE', /columnOrder/)
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')

      const z = new Int32Array(32).fill(8)
      z[5] = 16
      const compressed = encodeGroups('compressed_tensors', group)
      const corrupt = packWeights(upload(device, compressed.weight), {
        format: 'compressed_tensors',
        scales: upload(device, compressed.scales!),
        zeros: upload(device, signedZeros({ ...group, z })),
      })
      await rejectsCode(corrupt.read(), 'ERR_DATA_CORRUPT', /zeros: expected -8 ... 7, got 8 in row 2/)
      await rejectsCode(device.stream.synchronize(), 'ERR_DATA_CORRUPT')

      const ids = Tensor.from(device, Int32Array.of(1, 5, 2))
      await rejectsCode(
        embedding(ids, Tensor.zeros(device, [5, 8])).read(),
        'ERR_INDEX_OUT_OF_RANGE',
        /-1 \.\.\. 4, got 5/,
      )
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
    }))
})
