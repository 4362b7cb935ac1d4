import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { linearWeight } from '../../lib/checkpoint/linear.ts'
import { type Device, dequantize, packWeights, Tensor } from '../../lib/index.ts'
import { anyDevice } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { randomWeights, type WeightForm, weightForms } from '../support/formats.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { Random } from '../support/random.ts'

const folder = mkdtempSync(join(tmpdir(), 'lapidary-linear-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const storedNames: Record<string, string> = { f32: 'F32', f16: 'F16', bf16: 'BF16', i32: 'I32', i8: 'I8', u8: 'U8' }

/** A safetensors checkpoint of these tensors. */
async function checkpointOf(
  tensors: Readonly<Record<string, HostTensor | undefined>>,
  config: unknown,
): Promise<Checkpoint> {
  const header: Record<string, unknown> = {}
  const data: Buffer[] = []
  let end = 0
  for (const [name, tensor] of Object.entries(tensors)) {
    if (!tensor) continue
    const { buffer, byteOffset, byteLength } = tensor.data
    header[name] = { dtype: storedNames[tensor.dtype], shape: tensor.shape, data_offsets: [end, end + byteLength] }
    data.push(Buffer.from(buffer, byteOffset, byteLength))
    end += byteLength
  }
  const text = Buffer.from(JSON.stringify(header))
  const prefix = Buffer.alloc(8)
  prefix.writeUInt32LE(text.length)
  writeFileSync(join(folder, 'model.safetensors'), Buffer.concat([prefix, text, ...data]))
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
  return openCheckpoint(folder)
}

const int4 = {
  quant_method: 'compressed-tensors',
  format: 'pack-quantized',
  config_groups: { group_0: { targets: ['Linear'], weights: { num_bits: 4 } } },
}

/** How a form is stored: names of its tensors, and the configuration that goes with it. */
function storage({ format }: WeightForm): {
  names: readonly [string, string, string]
  config: Record<string, unknown>
} {
  switch (format) {
    case 'gptq':
      return {
        names: ['qweight', 'scales', 'qzeros'],
        config: { quant_method: 'gptq', bits: 4, checkpoint_format: 'gptq' },
      }
    case 'gptq_v2':
      return {
        names: ['qweight', 'scales', 'qzeros'],
        config: { quant_method: 'gptq', bits: 4, checkpoint_format: 'gptq_v2' },
      }
    case 'awq':
      return { names: ['qweight', 'scales', 'qzeros'], config: { quant_method: 'awq', bits: 4, version: 'gemm' } }
    case 'compressed_tensors':
      return { names: ['weight_packed', 'weight_scale', 'weight_zero_point'], config: int4 }
    default:
      return {
        names: ['weight', 'weight_scale', 'none'],
        config: { quant_method: 'compressed-tensors', format: 'int-quantized' },
      }
  }
}

const forms = weightForms.filter(({ format, dtype }) =>
  format === 'stored' ? dtype in storedNames : format !== 'i4_channel',
)

describe('a layer in every layout, from the file to its weights', () => {
  let device: Device
  const map = (stored: StoredTensor | undefined) =>
    stored && Tensor.map(device, stored.file, { shape: stored.shape, dtype: stored.dtype!, offset: stored.offset })

  test.each(forms.map((form) => [form.name, form] as const))('%s', async (_, form) => {
    device ??= await anyDevice()
    const [n, k] = [24, 256]
    const stored = randomWeights(Random.named(`linear ${form.name}`), form, n, k)
    const { names, config } = storage(form)
    const prefix = 'model.layers.0.mlp.up_proj'
    const [weight, scales, zeros] = names.map((name) => `${prefix}.${name}`) as [string, string, string]
    const checkpoint = await checkpointOf(
      {
        [weight]: stored.weight,
        [scales]: stored.scales,
        [zeros]: stored.zeros,
        ...(form.format.startsWith('gptq') && {
          [`${prefix}.g_idx`]: hostTensor(
            'i32',
            [k],
            Float64Array.from({ length: k }, (_, i) => Math.floor(i / (form.group || k))),
          ),
        }),
        ...(form.format === 'compressed_tensors' && { [`${prefix}.weight_shape`]: hostTensor('i32', [2], [n, k]) }),
      },
      { model_type: 'gemma3_text', ...(form.format !== 'stored' && { quantization_config: config }) },
    )
    const linear = linearWeight(checkpoint, prefix)
    expect(linear).toMatchObject({ name: prefix, shape: [n, k], format: form.format })
    if (form.format !== 'stored') expect(linear.groupSize).toBe(form.group ?? 0)
    const { groupSize } = linear
    expect(linear.columnOrder).toBeUndefined()
    const [mappedScales, mappedZeros] = [map(linear.scales), map(linear.zeros)]
    using packed = packWeights(map(linear.weight)!, {
      format: linear.format,
      ...(mappedScales && { scales: mappedScales }),
      ...(mappedZeros && { zeros: mappedZeros }),
      ...(groupSize !== undefined && groupSize > 0 && { groupSize }),
    })
    using values = dequantize(packed)
    expect(Float64Array.from(await values.readF32())).toEqual(Float64Array.from(stored.values, Math.fround))
  })
})

describe('layers that cannot be run', () => {
  const random = Random.named('linear refused')
  const words = (...shape: number[]) =>
    hostTensor(
      'i32',
      shape,
      Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.integer(0, 9)),
    )
  const half = (...shape: number[]) =>
    hostTensor('f16', shape, new Float64Array(shape.reduce((a, b) => a * b, 1)).fill(1))
  const bytes = (dtype: 'i8' | 'u8', ...shape: number[]) =>
    hostTensor(dtype, shape, new Float64Array(shape.reduce((a, b) => a * b, 1)))
  const gptq = { quant_method: 'gptq', bits: 4 }
  const awq = { quant_method: 'awq', bits: 4 }
  const corrupt = 'ERR_CHECKPOINT_CORRUPT'
  const unsupported = 'ERR_CHECKPOINT_UNSUPPORTED'

  type Case = [
    what: string,
    tensors: Record<string, HostTensor>,
    config: Record<string, unknown>,
    code: typeof corrupt | typeof unsupported,
    message: RegExp,
  ]
  const cases: Case[] = [
    [
      'bitsandbytes NF4',
      { weight: bytes('u8', 128, 1), 'weight.absmax': half(4) },
      { quantization_config: { quant_method: 'bitsandbytes', load_in_4bit: true } },
      unsupported,
      /model\.safetensors: byte \d+: tensor "w\.weight": U8 \[128, 1\]: bitsandbytes .* take the original bf16 checkpoint/,
    ],
    [
      'bitsandbytes LLM.int8, which nobody names',
      { weight: bytes('i8', 8, 32), SCB: half(8) },
      {},
      unsupported,
      /bitsandbytes/,
    ],
    [
      'MLX',
      { weight: bytes('u8', 8, 4) },
      { quantization: { bits: 4, group_size: 64 } },
      unsupported,
      /an MLX quantised checkpoint/,
    ],
    [
      'another method',
      { weight: bytes('u8', 8, 4) },
      { quantization_config: { quant_method: 'hqq' } },
      unsupported,
      /quantised by "hqq", which cannot be run/,
    ],
    ['integers that nobody explains', { weight: bytes('u8', 8, 4) }, {}, unsupported, /no kernel reads this type/],
    ['no weight', { bias: half(8) }, {}, corrupt, /tensor "w\.weight": expected it, got none/],
    ['a vector', { weight: half(8) }, {}, corrupt, /tensor "w\.weight": expected a matrix, got F16 \[8\]/],
    ['a matrix without rows', { weight: half(0, 8) }, {}, corrupt, /expected a matrix, got F16 \[0, 8\]/],
    [
      'packed words without a method',
      { qweight: words(4, 8) },
      {},
      unsupported,
      /expected quantization_config\.quant_method gptq or awq in config\.json, got undefined/,
    ],
    [
      'GPTQ of 8 bits',
      { qweight: words(4, 8) },
      { quantization_config: { ...gptq, bits: 8 } },
      unsupported,
      /gptq of 8 bits: expected 4/,
    ],
    [
      'GPTQ without scales',
      { qweight: words(4, 8) },
      { quantization_config: gptq },
      corrupt,
      /tensor "w\.scales": expected it, got none/,
    ],
    [
      'GPTQ with groups of 16',
      { qweight: words(4, 8), scales: half(2, 8) },
      { quantization_config: gptq },
      unsupported,
      /groups of 16 columns: expected 32, 64, 128 or one scale per row/,
    ],
    [
      'GPTQ with scales of other rows',
      { qweight: words(4, 8), scales: half(1, 7) },
      { quantization_config: gptq },
      corrupt,
      /tensor "w\.scales": expected f16 or bf16 \[1, 8\], got F16 \[1, 7\]/,
    ],
    [
      'GPTQ with zeros of other rows',
      { qweight: words(4, 8), scales: half(1, 8), qzeros: words(1, 2) },
      { quantization_config: gptq },
      corrupt,
      /tensor "w\.qzeros": expected i32 \[1, 1\]/,
    ],
    [
      'GPTQ with an index of other columns',
      { qweight: words(4, 8), scales: half(1, 8), g_idx: words(31) },
      { quantization_config: gptq },
      corrupt,
      /tensor "w\.g_idx": expected i32 \[32\]/,
    ],
    ...(
      [
        [
          'groups that are not there',
          [...Array(32).fill(0), 2, ...Array(31).fill(1)],
          'groups below 2, got 2 for column 32',
        ],
        ['negative groups', [-1, ...Array(31).fill(0), ...Array(32).fill(1)], 'groups below 2, got -1 for column 0'],
        ['groups of unequal size', [...Array(33).fill(0), ...Array(31).fill(1)], '32 columns in group 0, got more'],
      ] as const
    ).map(
      ([what, groups, message]): Case => [
        `GPTQ with ${what}`,
        { qweight: words(8, 8), scales: half(2, 8), g_idx: hostTensor('i32', [64], Float64Array.from(groups)) },
        { quantization_config: gptq },
        corrupt,
        new RegExp(`tensor "w\\.g_idx": expected ${message}`),
      ],
    ),
    [
      'GPTQ of bytes',
      { qweight: bytes('u8', 4, 8) },
      { quantization_config: gptq },
      corrupt,
      /tensor "w\.qweight": expected i32/,
    ],
    [
      'AWQ in another order',
      { qweight: words(32, 1) },
      { quantization_config: { ...awq, version: 'GEMV' } },
      unsupported,
      /AWQ in "GEMV" order/,
    ],
    [
      'AWQ with empty scales',
      { qweight: words(32, 1), scales: half(0, 8) },
      { quantization_config: awq },
      corrupt,
      /tensor "w\.scales": expected f16 or bf16 \[1, 8\]/,
    ],
    [
      'compressed-tensors of 8 bits',
      { weight_packed: words(8, 8) },
      { quantization_config: { ...int4, config_groups: { a: { targets: ['Linear'], weights: { num_bits: 8 } } } } },
      unsupported,
      /packed to 8 bits: expected 4/,
    ],
    [
      'compressed-tensors in nvfp4',
      { weight_packed: bytes('u8', 8, 16) },
      { quantization_config: { ...int4, format: 'nvfp4-pack-quantized' } },
      unsupported,
      /quantised by "compressed-tensors", "nvfp4-pack-quantized"/,
    ],
    [
      'compressed-tensors of another shape',
      { weight_packed: words(8, 4), weight_scale: half(8, 1), weight_shape: hostTensor('i32', [2], [8, 31]) },
      { quantization_config: int4 },
      corrupt,
      /tensor "w\.weight_shape": expected 8 x 32, by the packed weights, got 8 x 31/,
    ],
    [
      'int8 with one scale for all',
      { weight: bytes('i8', 8, 32), weight_scale: half(1) },
      { quantization_config: int4 },
      unsupported,
      /int8 with one scale per tensor/,
    ],
    [
      'int8 with groups',
      { weight: bytes('i8', 8, 64), weight_scale: half(8, 2) },
      { quantization_config: int4 },
      unsupported,
      /int8 with groups of columns/,
    ],
    [
      'int8 with zero points',
      { weight: bytes('i8', 8, 32), weight_scale: half(8, 1), weight_zero_point: bytes('i8', 8, 1) },
      { quantization_config: int4 },
      unsupported,
      /asymmetric int8/,
    ],
    [
      'int8 with scales of other rows',
      { weight: bytes('i8', 8, 32), weight_scale: half(7, 1) },
      { quantization_config: int4 },
      corrupt,
      /tensor "w\.weight_scale": expected f32 or f16 or bf16 \[8, 1\]/,
    ],
  ]
  test.each(cases)('%s', async (_, tensors, config, code, message) => {
    const named = Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [`w.${name}`, tensor]))
    const checkpoint = await checkpointOf(named, config)
    throwsCode(() => linearWeight(checkpoint, 'w'), code, message)
  })

  test('in a checkpoint of integers, a layer that stayed in floats', async () => {
    const checkpoint = await checkpointOf(
      { 'w.weight': half(8, 32) },
      { quantization_config: { quant_method: 'bitsandbytes' } },
    )
    expect(linearWeight(checkpoint, 'w')).toMatchObject({ format: 'stored', shape: [8, 32] })
  })
})
