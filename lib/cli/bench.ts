/**
 * `lapidary bench`: tokens per second of a model beside what the machine can do.
 * @module
 */
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openCheckpoint } from '../checkpoint/checkpoint.ts'
import { kvMemory } from '../engine/kv-cache.ts'
import type { Gemma } from '../index.ts'
import { type GemmaConfig, gemmaConfig } from '../models/gemma/config.ts'
import type { SyntheticType } from '../models/gemma/synthetic.ts'
import { UsageError } from './failure.ts'
import { formatBytes, formatNumber, formatTable, formatTokens } from './format.ts'
import { Interrupt, interruptedStatus } from './interrupt.ts'
import { type Limits, measureLimits } from './limits.ts'
import { loadModel } from './model.ts'
import { given, type ModelOptions } from './options.ts'
import { Progress } from './progress.ts'
import { print, printJson } from './terminal.ts'

export interface BenchCommandOptions extends ModelOptions {
  prefill: number[]
  decode: number[]
  repeat: number
  generate: number
  synthetic?: string
  type: SyntheticType
  headType?: SyntheticType
  layers?: number
  keep?: string
  json?: boolean
}

/** One line of the table. */
export interface BenchRow {
  readonly kind: 'prefill' | 'decode'
  /** Tokens of the prompt: evaluated (prefill), or in the cache before the first generated one (decode). */
  readonly tokens: number
  /** Median and best. */
  readonly tokensPerSecond: number
  readonly best: number
  /** What binds: GB/s read by decode, 10⁹ operations per second by prefill. */
  readonly rate: number
  readonly percentOfLimit: number
}

export interface BenchReport {
  readonly model: string
  readonly device: { readonly name: string; readonly isa: string; readonly threads: number }
  readonly limits: Limits
  /** Bytes that every generated token reads besides keys and values. */
  readonly weightBytes: number
  readonly kv: string
  readonly contextLength: number
  readonly loadSeconds: number
  readonly rows: readonly BenchRow[]
  /** Lengths asked for that do not fit the context. */
  readonly skipped: readonly number[]
  readonly residentBytes: number
}

/** Multiply-adds of one token in the layers' matrices, twice: the operations that prefill is judged by. */
export function operationsPerToken(config: GemmaConfig): number {
  const { layers, hiddenSize, ffnSize, queryHeads, kvHeads, headDim } = config
  const attention = hiddenSize * headDim * (2 * queryHeads + 2 * kvHeads)
  return 2 * layers * (attention + 3 * hiddenSize * ffnSize)
}

/** Random prompts that share no beginning: nothing of one is in the cache for the next. */
function randomPrompt(tokens: number, vocabularySize: number, seed: number): Int32Array {
  let state = (seed + 1) * 0x9e3779b1
  return Int32Array.from({ length: tokens }, () => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x6d2b79f5
    return (state >>> 0) % vocabularySize
  })
}

/** Generates `count` tokens whatever they are. Milliseconds to the first, and from the first to the last. */
async function time(
  gemma: Gemma,
  prompt: Int32Array,
  count: number,
  signal: AbortSignal,
): Promise<{ first: number; rest: number; cached: number }> {
  const generation = gemma.stream(prompt, { maxTokens: count, temperature: 0, stopTokens: [], signal })
  const start = performance.now()
  let first = start
  let seen = 0
  for await (const piece of generation) {
    if (seen === 0) first = performance.now()
    seen += piece.ids.length
  }
  const { cachedTokens } = await generation.result
  signal.throwIfAborted()
  return { first: first - start, rest: performance.now() - first, cached: cachedTokens }
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[(values.length - 1) >> 1] as number

/** Measures a loaded model. `progress(done, total)` counts measurements. */
async function measureRows(
  gemma: Gemma,
  limits: Limits,
  options: Pick<BenchCommandOptions, 'prefill' | 'decode' | 'repeat' | 'generate'>,
  signal: AbortSignal,
  progress: (done: number, total: number) => void,
): Promise<Pick<BenchReport, 'rows' | 'skipped'>> {
  const { contextLength, weightBytes, kv } = gemma.info()
  const { prefill, decode, repeat, generate } = options
  const fits = (tokens: number, generated: number): boolean => tokens + generated <= contextLength
  const skipped = [
    ...prefill.filter((tokens) => !fits(tokens, 1)),
    ...decode.filter((tokens) => !fits(tokens, generate + 1)),
  ]
  const prefills = prefill.filter((tokens) => fits(tokens, 1))
  const decodes = decode.filter((tokens) => fits(tokens, generate + 1))
  const total = (prefills.length + decodes.length) * repeat
  let done = 0
  const { vocabularySize } = gemma.config
  const rows: BenchRow[] = []
  // The first step of a model records its programs.
  await time(gemma, randomPrompt(Math.min(64, contextLength - 2), vocabularySize, 0), 2, signal)
  let seed = 1
  for (const tokens of prefills) {
    const speeds: number[] = []
    for (let i = 0; i < repeat; i++) {
      const { first } = await time(gemma, randomPrompt(tokens, vocabularySize, seed++), 1, signal)
      speeds.push((1000 * tokens) / first)
      progress(++done, total)
    }
    const rate = (median(speeds) * operationsPerToken(gemma.config)) / 1e9
    rows.push({
      kind: 'prefill',
      tokens,
      tokensPerSecond: median(speeds),
      best: Math.max(...speeds),
      rate,
      percentOfLimit: (100 * rate) / limits.compute.gops,
    })
  }
  for (const tokens of decodes) {
    // The same prompt each time: all but the first find it in the cache.
    const prompt = randomPrompt(tokens, vocabularySize, seed++)
    const speeds: number[] = []
    for (let i = 0; i < repeat; i++) {
      const { rest } = await time(gemma, prompt, generate + 1, signal)
      speeds.push((1000 * generate) / rest)
      progress(++done, total)
    }
    const visible = kvMemory(gemma.config, tokens + (generate >> 1), kv).windowed
    const rate = (median(speeds) * (weightBytes + visible)) / 1e9
    rows.push({
      kind: 'decode',
      tokens,
      tokensPerSecond: median(speeds),
      best: Math.max(...speeds),
      rate,
      percentOfLimit: (100 * rate) / limits.read,
    })
  }
  return { rows, skipped }
}

/** Writes a synthetic checkpoint, or finds one kept before. Returns its path. */
async function synthesize(options: BenchCommandOptions, folder: string, signal: AbortSignal): Promise<string> {
  const { writeSynthetic } = await import('../models/gemma/synthetic.ts')
  const { gemmaSizes } = await import('../models/gemma/sizes.ts')
  const size = options.synthetic as string
  if (!Object.hasOwn(gemmaSizes, size)) {
    throw new UsageError(`--synthetic: expected a published size, got ${size}`, Object.keys(gemmaSizes).join(', '))
  }
  const path = options.keep ?? join(folder, `${size}-${options.type}.gguf`)
  if (options.keep !== undefined && existsSync(path)) return path
  using progress = new Progress(`writing ${size}`, 'bytes')
  await writeSynthetic(path, {
    size: size as keyof typeof gemmaSizes,
    type: options.type,
    ...given({ headType: options.headType, layers: options.layers }),
    seed: 1,
    onProgress: (done, total) => progress.update(done, total),
    signal,
  })
  return path
}

function formatReport(report: BenchReport): string {
  const { limits, device, rows } = report
  const unit = { prefill: 'GOP/s', decode: 'GB/s' }
  const limit = { prefill: limits.compute.kind, decode: 'DRAM read' }
  const table = formatTable(
    [
      ['', 'tokens', 'tokens/s', 'best', 'rate', '', 'of the limit'],
      ...rows.map((row) => [
        row.kind,
        formatTokens(row.tokens),
        formatNumber(row.tokensPerSecond),
        formatNumber(row.best),
        formatNumber(row.rate),
        unit[row.kind],
        `${row.percentOfLimit.toFixed(0)} % of ${limit[row.kind]}`,
      ]),
    ],
    'lrrrrll',
  )
  const skipped = report.skipped.length > 0 ? `left out, beyond the context: ${report.skipped.join(', ')} tokens\n` : ''
  return `${device.name}, ${device.isa}, ${device.threads} threads: reads ${formatNumber(limits.read)} GB/s, ${limits.compute.kind} ${formatNumber(limits.compute.gops)} GOP/s
${report.model}: ${formatBytes(report.weightBytes)} of weights per token, KV in ${report.kv}, loaded in ${formatNumber(report.loadSeconds)} s, ${formatBytes(report.residentBytes)} resident

${table}${skipped}`
}

/** Runs the command. */
export async function bench(model: string | undefined, options: BenchCommandOptions): Promise<void> {
  if (model !== undefined && options.synthetic !== undefined) {
    throw new UsageError('both a model and --synthetic were given')
  }
  for (const option of ['keep', 'layers', 'headType'] as const) {
    if (options[option] !== undefined && options.synthetic === undefined) {
      throw new UsageError(`--${option === 'headType' ? 'head-type' : option} is for --synthetic`)
    }
  }
  using interrupt = new Interrupt()
  const folder = await mkdtemp(join(tmpdir(), 'lapidary-bench-'))
  try {
    const path = options.synthetic === undefined ? model : await synthesize(options, folder, interrupt.signal)
    // A packed cache would outlive its use.
    const temporary = options.synthetic !== undefined && options.keep === undefined
    const report = await measure(path, temporary ? { ...options, packedCache: false } : options, interrupt.signal)
    if (options.json) printJson(report)
    else print(formatReport(report))
  } catch (error) {
    if (!interrupt.signal.aborted) throw error
    process.exitCode = interruptedStatus
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The context that the lengths asked for need, as far as the model has it. */
async function neededContext(
  path: string | undefined,
  { prefill, decode, generate }: Pick<BenchCommandOptions, 'prefill' | 'decode' | 'generate'>,
): Promise<number> {
  const { bundledModel } = await import('../index.ts')
  const { contextLength } = gemmaConfig(await openCheckpoint(path ?? bundledModel))
  const needed = Math.max(64, ...prefill.map((tokens) => tokens + 1), ...decode.map((tokens) => tokens + generate + 1))
  return Math.min(needed, contextLength)
}

async function measure(
  path: string | undefined,
  options: BenchCommandOptions,
  signal: AbortSignal,
): Promise<BenchReport> {
  const { Device } = await import('../index.ts')
  const { threads, isa } = options
  const opened = { ...(threads !== undefined && { threads }), ...(isa !== undefined && { isa: isa as 'scalar' }) }
  let limits: Limits
  let device: BenchReport['device']
  {
    using probed = await Device.open('cpu', opened)
    const info = probed.info()
    device = { name: info.name, isa: info.isa, threads: info.threads }
    limits = await measureLimits(probed, signal)
  }
  signal.throwIfAborted()
  const contextLength = options.contextLength ?? (await neededContext(path, options))
  const start = performance.now()
  await using gemma = await loadModel({ ...options, contextLength, ...(path !== undefined && { model: path }) }, signal)
  const loadSeconds = (performance.now() - start) / 1000
  using progress = new Progress('measuring', 'measurements')
  const measured = await measureRows(gemma, limits, options, signal, (done, total) => progress.update(done, total))
  const info = gemma.info()
  return {
    model: options.synthetic ?? info.path,
    device,
    limits,
    weightBytes: info.weightBytes,
    kv: info.kv,
    contextLength: info.contextLength,
    loadSeconds,
    ...measured,
    residentBytes: process.memoryUsage.rss(),
  }
}
