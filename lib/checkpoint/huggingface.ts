/**
 * Hugging Face checkpoints: a folder of safetensors files with configuration, tokenizer and chat template beside them.
 * @module
 */
import { existsSync, readdirSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { LapidaryError } from '../errors.ts'
import type { Checkpoint, StoredTensor } from './checkpoint.ts'
import { splitName } from './gguf-files.ts'
import { isObject, type JsonObject, longestJson, parseJsonObject } from './json.ts'
import { parseSafetensors } from './safetensors.ts'
import { corrupt, fileError, quote, unsupported, withFile } from './source.ts'
import { addTensor } from './tensor-table.ts'

const indexName = 'model.safetensors.index.json'
const singleName = 'model.safetensors'

/**
 * The file that opens the checkpoint in a folder: its index, its one safetensors file, or its one GGUF model.
 * @throws ERR_FILE if there is none, or more than one; ERR_CHECKPOINT_UNSUPPORTED if it holds weights of another kind.
 */
export function findInFolder(folder: string): string {
  let names: string[]
  try {
    names = readdirSync(folder).sort()
  } catch (error) {
    throw fileError(folder, error)
  }
  for (const name of [indexName, singleName]) if (names.includes(name)) return join(folder, name)
  const safetensors = names.filter((name) => name.endsWith('.safetensors') && !name.startsWith('adapter_'))
  if (safetensors.length === 1) return join(folder, safetensors[0] as string)
  if (safetensors.length > 1) {
    throw new LapidaryError(
      'ERR_FILE',
      `${folder}: expected ${indexName} beside ${safetensors.length} safetensors files, got none: name one of the files: ${listed(safetensors)}`,
    )
  }
  // A vision projector lies beside its model, and is none.
  const isModel = (name: string) => name.endsWith('.gguf') && !/mmproj/i.test(name)
  const models = names.filter((name) => isModel(name) && (splitName(name)?.index ?? 1) === 1)
  if (models.length === 1) return join(folder, models[0] as string)
  if (models.length > 1) {
    throw new LapidaryError(
      'ERR_FILE',
      `${folder}: expected one GGUF model, got ${models.length}: name one of the files: ${listed(models)}`,
    )
  }
  const pickled = names.find((name) => /\.(bin|pt|pth|ckpt|h5|msgpack|npz)$/.test(name))
  if (pickled) {
    throw unsupported(
      folder,
      undefined,
      `expected safetensors or GGUF files, got ${quote(pickled)}: save the model again with transformers, safe_serialization=True`,
    )
  }
  throw new LapidaryError(
    'ERR_FILE',
    `${folder}: expected ${singleName}, ${indexName} or a .gguf file, got none of them among ${names.length} files`,
  )
}

/** Names in a message: the first few of many. */
function listed(names: readonly string[]): string {
  const shown = names.slice(0, 8).map((name) => quote(name))
  return [...shown, ...(names.length > shown.length ? ['…'] : [])].join(', ')
}

/** A checkpoint of one safetensors file. */
export function openSafetensors(path: string, file: string): Checkpoint {
  const { tensors } = withFile(file, parseSafetensors)
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  return { format: 'safetensors', path, files: [file], tensors: byName, ...companions(path, dirname(file)) }
}

/** A checkpoint whose index says which safetensors file holds which tensor. */
export function openSafetensorsIndex(path: string, index: string): Checkpoint {
  const folder = dirname(index)
  const content = readJson(index)
  const map = content.weight_map
  if (!isObject(map)) throw corrupt(index, undefined, `weight_map: expected an object, got ${quote(map)}`)
  const shards = new Set<string>()
  for (const [name, shard] of Object.entries(map)) {
    // A name that leads elsewhere would open files the user never chose.
    if (typeof shard !== 'string' || !shard.endsWith('.safetensors') || /[/\\\0]/.test(shard)) {
      throw corrupt(
        index,
        undefined,
        `weight_map: tensor ${quote(name)}: expected the name of a .safetensors file beside it, got ${quote(shard)}`,
      )
    }
    shards.add(shard)
  }
  const files = [...shards].sort().map((shard) => join(folder, shard))
  const tensors = new Map<string, StoredTensor>()
  for (const file of files) {
    for (const tensor of withFile(file, parseSafetensors).tensors) {
      const home = Object.hasOwn(map, tensor.name) ? map[tensor.name] : basename(file)
      if (home !== basename(file)) continue
      addTensor(tensors, tensor)
    }
  }
  for (const [name, shard] of Object.entries(map)) {
    if (!tensors.has(name)) {
      throw corrupt(
        join(folder, shard as string),
        undefined,
        `tensor ${quote(name)}: expected it here (${index}), got none`,
      )
    }
  }
  return { format: 'safetensors', path, files: [index, ...files], tensors, ...companions(path, folder) }
}

function readJson(file: string): JsonObject {
  return withFile(file, (source) => parseJsonObject(source, 'the file'))
}

type Companions = Pick<Checkpoint, 'config' | 'generationConfig' | 'tokenizerFiles' | 'chatTemplate'>

/** What lies beside the weights. */
function companions(path: string, folder: string): Companions {
  const existing = (name: string): string | undefined => {
    const file = join(folder, name)
    return existsSync(file) ? file : undefined
  }
  const config = existing('config.json')
  if (!config && !path.endsWith('.safetensors')) {
    throw new LapidaryError(
      'ERR_FILE',
      `${join(folder, 'config.json')}: expected the model's configuration, got no such file`,
    )
  }
  const generation = existing('generation_config.json')
  const model = existing('tokenizer.model')
  const json = existing('tokenizer.json')
  const tokenizerConfig = existing('tokenizer_config.json')
  const chatTemplate = readChatTemplate(existing, tokenizerConfig)
  return {
    config: config ? readJson(config) : {},
    ...(generation && { generationConfig: readJson(generation) }),
    tokenizerFiles: {
      ...(model && { model }),
      ...(json && { json }),
      ...(tokenizerConfig && { config: tokenizerConfig }),
    },
    ...(chatTemplate !== undefined && { chatTemplate }),
  }
}

/** The template file rules, as in transformers; older checkpoints have the template in a configuration. */
function readChatTemplate(
  existing: (name: string) => string | undefined,
  tokenizerConfig: string | undefined,
): string | undefined {
  const jinja = existing('chat_template.jinja')
  if (jinja) return readText(jinja)
  for (const file of [tokenizerConfig, existing('chat_template.json')]) {
    if (!file) continue
    const template = readJson(file).chat_template
    if (template === undefined || template === null) continue
    if (typeof template === 'string') return template
    if (!Array.isArray(template)) {
      throw corrupt(file, undefined, `chat_template: expected a string or a list, got ${quote(template)}`)
    }
    const named = template.map((item: unknown) => {
      if (isObject(item) && typeof item.name === 'string' && typeof item.template === 'string') return item
      throw corrupt(file, undefined, `chat_template: expected items { name, template } of strings, got ${quote(item)}`)
    })
    const chosen = named.find((item) => item.name === 'default') ?? named[0]
    if (chosen) return chosen.template as string
  }
  return undefined
}

function readText(file: string): string {
  return withFile(file, (source) => {
    if (source.size > longestJson) throw corrupt(file, 0, `expected at most ${longestJson} bytes, got ${source.size}`)
    const bytes = new Uint8Array(source.size)
    source.read(0, bytes)
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (error) {
      throw corrupt(file, 0, `expected UTF-8: ${(error as Error).message}`)
    }
  })
}
