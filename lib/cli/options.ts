/**
 * Options that several commands share: where the model is, how it is run, how text is drawn from it. Their names and defaults are the
 * API's; an option that is not given is not passed, so that a default has one home.
 * @module
 */
import { type Command, InvalidArgumentError, Option } from 'commander'

/** Parses a number within bounds; anything else is a usage error that says so. */
export function numberWithin(
  low: number,
  high: number,
  { integer = false }: { integer?: boolean } = {},
): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? Number.NaN : Number(text)
    if (value >= low && value <= high && (!integer || Number.isInteger(value))) return value
    const kind = integer ? 'an integer' : 'a number'
    const range = high >= Number.MAX_SAFE_INTEGER ? `of at least ${low}` : `from ${low} to ${high}`
    throw new InvalidArgumentError(`Expected ${kind} ${range}.`)
  }
}

export const count: (text: string) => number = numberWithin(1, Number.MAX_SAFE_INTEGER, { integer: true })

/** Parses `128,512,2K`: positive integers; K stands for 1,024. */
export function tokenCounts(text: string): number[] {
  return text.split(',').map((part) => {
    const [, digits, kilo] = /^\s*(\d+)\s*([kK]?)\s*$/.exec(part) ?? []
    const value = Number(digits) * (kilo ? 1024 : 1)
    if (Number.isSafeInteger(value) && value >= 1) return value
    throw new InvalidArgumentError('Expected token counts separated by commas, such as 128,512,2K.')
  })
}

/** Collects an option that may be repeated. */
export function each<T>(parse: (text: string) => T): (text: string, previous: T[] | undefined) => T[] {
  return (text, previous) => [...(previous ?? []), parse(text)]
}

const tokenId = numberWithin(0, 2 ** 31 - 1, { integer: true })

/** `--logit-bias 42=-100`, repeatable, to the API's record. */
function logitBias(text: string, previous: Record<number, number> = {}): Record<number, number> {
  const [, id, bias] = /^\s*(\d+)\s*=\s*(.+)$/.exec(text) ?? []
  const value = Number(bias)
  if (id === undefined || bias === undefined || Number.isNaN(value)) {
    throw new InvalidArgumentError('Expected a token id and a number, such as 42=-1.5.')
  }
  return { ...previous, [tokenId(id)]: value }
}

/** As commander hands them over: what was given, under the API's names. */
export interface ModelOptions {
  model?: string
  device?: string
  unverified?: boolean
  mmproj?: string | false
  threads?: number
  isa?: string
  contextLength?: number
  kv?: 'bf16' | 'f32' | 'i8'
  head?: 'stored' | 'q8_0' | 'q4_0'
  refine?: number
  activations?: 'f32' | 'bf16'
  prefillChunk?: number
  packedCache?: boolean | string
}

/** The keys of {@link ModelOptions}: what is left of a command's options are the sampling ones. */
export const modelOptionNames: readonly (keyof ModelOptions)[] = [
  'model',
  'device',
  'unverified',
  'mmproj',
  'threads',
  'isa',
  'contextLength',
  'kv',
  'head',
  'refine',
  'activations',
  'prefillChunk',
  'packedCache',
]

export interface SamplingOptions {
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  presencePenalty?: number
  frequencyPenalty?: number
  logitBias?: Record<number, number>
  seed?: number
  stop?: string[]
  stopTokens?: number[]
  logprobs?: number
  allowMarkers?: boolean
}

const modelGroup = 'Model:'
const samplingGroup = 'Sampling:'

function add(command: Command, group: string, options: readonly Option[]): void {
  for (const option of options) command.addOption(option.helpGroup(group))
}

/** Adds the options that say which model is run and how, but for those that a command defines otherwise. */
export function addModelOptions(command: Command, ...without: ('model' | 'contextLength')[]): void {
  const model = new Option('-m, --model <path>', 'a .gguf file or a Hugging Face folder (default: the bundled model)')
  const contextLength = new Option(
    '-c, --context-length <tokens>',
    'prompt and answer at most; more takes more KV memory (default: the model’s, at most 8,192)',
  ).argParser(count)
  add(command, modelGroup, [
    ...(without.includes('model') ? [] : [model]),
    ...(without.includes('contextLength') ? [] : [contextLength]),
    new Option('--mmproj <path>', 'the vision tower of a GGUF model (default: a file beside it named so)'),
    new Option('--kv <dtype>', 'keys and values: bf16 (default), i8 (half the memory) or f32 (twice)').choices([
      'bf16',
      'f32',
      'i8',
    ]),
    new Option(
      '--head <format>',
      'head: stored (exact), q8_0 or q4_0 (less to read for every token); default: q4_0 beside layers of 4 or 5 bits, else q8_0',
    ).choices(['stored', 'q8_0', 'q4_0']),
    new Option(
      '--refine <count>',
      'with a rounded head: so many of the largest logits are computed again from the stored one; 0: none (default: 256)',
    ).argParser(numberWithin(0, Number.MAX_SAFE_INTEGER, { integer: true })),
    new Option('--activations <dtype>', 'what layers hand each other: bf16 (default) or f32').choices(['f32', 'bf16']),
    new Option('--device <kind>', 'where it runs: cpu (default), cuda or cuda:1 (`lapidary devices` lists them)'),
    new Option('--unverified', 'take a GPU of an architecture that no acceptance run is recorded for'),
    new Option('--threads <count>', 'threads that compute (default: one per physical core)').argParser(count),
    new Option('--isa <name>', 'the highest instruction set to use (`lapidary devices` lists them)'),
    new Option('--prefill-chunk <tokens>', 'tokens of a prompt evaluated at once (default: 512)').argParser(count),
    new Option(
      '--packed-cache <folder>',
      'where packed weights are kept for faster starts (default: beside the model)',
    ),
    new Option('--no-packed-cache', 'keep none'),
  ])
}

/** Adds the option that shows images. */
export function addImageOption(command: Command): void {
  command.addOption(
    new Option('-i, --image <path>', 'an image before the text: JPEG, PNG, WebP, AVIF or GIF; repeatable').argParser(
      each(String),
    ),
  )
}

/** Adds the options that say how text is drawn from the model's probabilities. */
export function addSamplingOptions(command: Command): void {
  add(command, samplingGroup, [
    new Option(
      '-n, --max-tokens <count>',
      'stop after so many (default: at the model’s own end, or where the context is full)',
    ).argParser(count),
    new Option('-t, --temperature <value>', '0: always the likeliest token; 1: as the model has it').argParser(
      numberWithin(0, 1e6),
    ),
    new Option('--top-k <count>', 'only the so many likeliest; 0: all').argParser(
      numberWithin(0, 2 ** 24, { integer: true }),
    ),
    new Option('--top-p <share>', 'only the likeliest that together have this probability; 1: all').argParser(
      numberWithin(0, 1),
    ),
    new Option('--min-p <share>', 'only those with this share of the likeliest one’s probability; 0: all').argParser(
      numberWithin(0, 1),
    ),
    new Option('--repetition-penalty <factor>', 'above 1: what occurred becomes less likely (default: 1)').argParser(
      numberWithin(0.01, 100),
    ),
    new Option('--presence-penalty <value>', 'subtracted from the logits of what was generated (default: 0)').argParser(
      numberWithin(-100, 100),
    ),
    new Option('--frequency-penalty <value>', 'the same, once per occurrence (default: 0)').argParser(
      numberWithin(-100, 100),
    ),
    new Option('--logit-bias <id=value>', 'added to a token’s logit; repeatable').argParser(logitBias),
    new Option('-s, --seed <integer>', 'same seed, same text (default: a random one)').argParser(
      numberWithin(0, 2 ** 32 - 1, { integer: true }),
    ),
    new Option('--stop <text>', 'end before this text; repeatable').argParser(each(String)),
    new Option('--stop-tokens <id>', 'end at this token, instead of the model’s own; repeatable').argParser(
      each(tokenId),
    ),
    new Option(
      '--logprobs <count>',
      'with --json: the likeliest tokens of each step and their log-probabilities',
    ).argParser(numberWithin(0, 64, { integer: true })),
    new Option('--allow-markers', 'let text such as <start_of_turn> in the input become control tokens'),
  ])
}

/** A copy without the keys whose value is undefined and without those named. */
export function given<T extends object, K extends keyof T = never>(
  options: T,
  ...without: K[]
): { [P in Exclude<keyof T, K>]?: Exclude<T[P], undefined> } {
  const left = Object.entries(options).filter(
    ([key, value]) => value !== undefined && !(without as string[]).includes(key),
  )
  return Object.fromEntries(left) as { [P in Exclude<keyof T, K>]?: Exclude<T[P], undefined> }
}
