/** The tiny model in every weight format that can be made and loaded here. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Device, quantize, quantizeCheckpoint, Tensor } from 'lapidary'

interface SafetensorsEntry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

interface Stored {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

function readSafetensors(path: string): Stored[] {
  const file = readFileSync(path)
  const data = 8 + Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, data)) as Record<string, SafetensorsEntry>
  return Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => {
        return { name, dtype, shape, bytes: new Uint8Array(file.subarray(data + begin, data + end)) }
      },
    )
}

function writeSafetensors(path: string, tensors: readonly Stored[]): void {
  let at = 0
  const entries = tensors.map(({ name, dtype, shape, bytes }) => {
    const begin = at
    at += bytes.length
    return [name, { dtype, shape, data_offsets: [begin, at] }]
  })
  const text = JSON.stringify(Object.fromEntries(entries))
  const header = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(header.length))
  writeFileSync(path, Buffer.concat([size, header, ...tensors.map(({ bytes }) => bytes)]))
}

const asBytes = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** A Hugging Face folder as compressed-tensors writes it: layer matrices in symmetric int4 groups, the rest as it was. */
async function writeGroups(device: Device, from: string, to: string, groupSize: 32 | 64 | 128): Promise<void> {
  mkdirSync(to, { recursive: true })
  cpSync(from, to, { recursive: true })
  const tensors: Stored[] = []
  for (const tensor of readSafetensors(join(from, 'model.safetensors'))) {
    const [n, k] = tensor.shape
    if (!tensor.name.endsWith('_proj.weight') || n === undefined || k === undefined) {
      tensors.push(tensor)
      continue
    }
    const bits = new Uint16Array(tensor.bytes.buffer, tensor.bytes.byteOffset, n * k)
    using weight = Tensor.from(device, bits, [n, k], 'bf16')
    const { packed, scales } = quantize(weight, { format: 'i4', groupSize })
    const [words, factors] = await Promise.all([packed.read(), scales.read()])
    const name = tensor.name.replace(/weight$/, '')
    tensors.push(
      { name: `${name}weight_packed`, dtype: 'I32', shape: [n, k / 8], bytes: asBytes(words) },
      { name: `${name}weight_scale`, dtype: 'BF16', shape: [n, k / groupSize], bytes: asBytes(factors) },
    )
    packed.dispose()
    scales.dispose()
  }
  writeSafetensors(join(to, 'model.safetensors'), tensors)
  const config = JSON.parse(readFileSync(join(from, 'config.json'), 'utf8')) as Record<string, unknown>
  const weights = { num_bits: 4, type: 'int', symmetric: true, strategy: 'group', group_size: groupSize }
  config.quantization_config = {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    config_groups: { group_0: { targets: ['Linear'], weights } },
    ignore: ['lm_head'],
  }
  writeFileSync(join(to, 'config.json'), JSON.stringify(config))
}

export interface WeightForm {
  readonly name: string
  readonly bitsPerWeight: number
  readonly path: string
}

/** Writes every form into `folder`; their embedding and head stay bf16. */
export async function writeForms(device: Device, original: string, folder: string): Promise<WeightForm[]> {
  const forms: WeightForm[] = [{ name: 'bf16', bitsPerWeight: 16, path: original }]
  for (const [type, bitsPerWeight] of [
    ['q8_0', 8.5],
    ['q4_0', 4.5],
  ] as const) {
    const path = join(folder, `${type}.gguf`)
    await quantizeCheckpoint(device, original, path, { type, headType: 'bf16' })
    forms.push({ name: type, bitsPerWeight, path })
  }
  for (const groupSize of [32, 64, 128] as const) {
    const path = join(folder, `int4-${groupSize}`)
    await writeGroups(device, original, path, groupSize)
    forms.push({ name: `int4, groups of ${groupSize}`, bitsPerWeight: 4 + 16 / groupSize, path })
  }
  return forms
}
