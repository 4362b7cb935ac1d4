/**
 * `npm run bench:quality`: what each weight, head, KV and activation format costs in quality, on the tiny model and a text it has not seen.
 * The reference is the same model in f32 throughout.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { Device, Gemma, type GemmaOptions } from 'lapidary'
import { describeMachine } from '../report.ts'
import { type WeightForm, writeForms } from './checkpoints.ts'
import { Divergence, logSoftmax } from './divergence.ts'

const fixtures = fileURLToPath(new URL('../../../test/fixtures/tiny-model/', import.meta.url))
const bundled = fileURLToPath(new URL('../../../models/tiny-q4_0.gguf', import.meta.url))

/** Tokens seen together, each window on its own: as expected.json of the fixture defines it. */
const windowTokens = 512

const exact = { weights: 'f32', head: 'stored', kv: 'f32', activations: 'f32' } as const satisfies GemmaOptions

interface Row {
  readonly group: string
  readonly name: string
  readonly bitsPerWeight?: number
  readonly perplexity: number
  /** Of the perplexity, relative to the reference's. */
  readonly change: number
  readonly kl: number
  readonly agreement: number
}

const options: { json?: boolean; tokens: string; isa?: string } = new Command('bench:quality')
  .description('Perplexity and divergence from f32 of every weight, head, KV and activation format.')
  .option('--json', 'print JSON instead of a Markdown table')
  .option('--tokens <count>', 'how much of the text', 'all')
  .option('--isa <name>', 'the highest instruction set to use')
  .parse()
  .opts()

/** The log-probabilities of every window under a model. */
async function* predictions(
  device: Device,
  path: string,
  settings: GemmaOptions,
  windows: readonly Window[],
): AsyncGenerator<{ logProbs: Float32Array; columns: number }> {
  const gemma = await Gemma.load(path, {
    ...settings,
    device,
    contextLength: windowTokens,
    maxSequences: 1,
    packedCache: false,
  })
  try {
    for (const { ids } of windows) {
      const { data, vocabulary } = await gemma.logits(ids)
      yield { logProbs: logSoftmax(data, vocabulary), columns: vocabulary }
    }
  } finally {
    await gemma[Symbol.asyncDispose]()
  }
}

interface Window {
  readonly ids: Int32Array
  /** What follows each of them; the last one of the text has nothing. */
  readonly targets: Int32Array
}

async function readWindows(device: Device, path: string): Promise<Window[]> {
  const gemma = await Gemma.load(path, { device, packedCache: false })
  const ids = gemma.tokenize(readFileSync(join(fixtures, 'eval.txt'), 'utf8'), { bos: true, markers: false })
  await gemma[Symbol.asyncDispose]()
  const count = options.tokens === 'all' ? ids.length : Math.min(Number(options.tokens), ids.length)
  const windows: Window[] = []
  for (let begin = 0; begin < count; begin += windowTokens) {
    const end = Math.min(begin + windowTokens, count)
    windows.push({ ids: ids.slice(begin, end), targets: ids.slice(begin + 1, end + 1) })
  }
  return windows
}

/** What is measured: one format changed at a time, the rest exact; then what users run. */
function cases(
  forms: readonly WeightForm[],
): { group: string; name: string; form: WeightForm; settings: GemmaOptions }[] {
  const bf16 = forms[0] as WeightForm
  const q4 = forms.find(({ name }) => name === 'q4_0') as WeightForm
  const { weights: _, ...rest } = exact
  const shipped = { name: 'bundled', bitsPerWeight: 4.5, path: bundled }
  return [
    ...forms.map((form) => ({ group: 'weights', name: form.name, form, settings: rest })),
    ...(['q8_0', 'q4_0'] as const).flatMap((head) => [
      { group: 'head', name: `${head}, 256 largest logits refined`, form: bf16, settings: { ...rest, head } },
      // As small a part of this vocabulary as 256 is of one of 65,536.
      {
        group: 'head',
        name: `${head}, 16 largest logits refined`,
        form: bf16,
        settings: { ...rest, head, refine: 16 },
      },
      { group: 'head', name: `${head}, not refined`, form: bf16, settings: { ...rest, head, refine: 0 } },
    ]),
    ...(['bf16', 'i8'] as const).map((kv) => ({ group: 'KV cache', name: kv, form: bf16, settings: { ...rest, kv } })),
    { group: 'activations', name: 'bf16', form: bf16, settings: { ...rest, activations: 'bf16' } },
    { group: 'together', name: 'bf16 checkpoint, defaults', form: bf16, settings: {} },
    { group: 'together', name: 'bundled model (q4_0, head q8_0), defaults', form: shipped, settings: {} },
    { group: 'together', name: 'q4_0, head q4_0, KV i8', form: q4, settings: { head: 'q4_0', kv: 'i8' } },
  ]
}

/** In 10⁻³ nats, two digits. */
function formatKl(kl: number): string {
  return kl === 0 ? '0' : String(Number((1000 * kl).toPrecision(2)))
}

/** Numbers are worth something only if the reference is right: over the whole text it is that of another implementation. */
function checkReference(perplexity: number, tokens: number): void {
  const expected = JSON.parse(readFileSync(join(fixtures, 'expected.json'), 'utf8')) as {
    perplexity: { value: number; tokens: number }
  }
  if (tokens !== expected.perplexity.tokens) return
  if (!(Math.abs(perplexity / expected.perplexity.value - 1) < 1e-4)) {
    throw new Error(`expected a reference of perplexity ${expected.perplexity.value}, got ${perplexity}`)
  }
}

function formatMarkdown(reference: { perplexity: number; tokens: number }, rows: readonly Row[]): string {
  const lines = rows.map((row) => {
    const bits = row.bitsPerWeight === undefined ? '' : String(row.bitsPerWeight)
    const change = `${row.change >= 0 ? '+' : '−'}${Math.abs(100 * row.change).toFixed(2)} %`
    return `| ${row.group} | ${row.name} | ${bits} | ${row.perplexity.toFixed(3)} | ${change} | ${formatKl(row.kl)} | ${(100 * row.agreement).toFixed(1)} % |`
  })
  return `Perplexity of the f32 reference: ${reference.perplexity.toFixed(3)} over ${reference.tokens.toLocaleString('en-US')} tokens.

| format of | | bits per weight | perplexity | against f32 | mean KL divergence, 10⁻³ nats | same likeliest token |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
${lines.join('\n')}
`
}

const folder = mkdtempSync(join(tmpdir(), 'lapidary-quality-'))
try {
  using device = await Device.open('cpu', options.isa === undefined ? {} : { isa: options.isa as 'scalar' })
  const original = join(fixtures, 'hf')
  const windows = await readWindows(device, original)
  const forms = await writeForms(device, original, folder)
  const reference: Float32Array[] = []
  const self = new Divergence()
  for await (const { logProbs, columns } of predictions(device, original, exact, windows)) {
    self.add(logProbs, logProbs, (windows[reference.length] as Window).targets, columns)
    reference.push(logProbs)
  }
  checkReference(self.result.perplexity, self.result.tokens)
  const rows: Row[] = []
  for (const { group, name, form, settings } of cases(forms)) {
    const divergence = new Divergence()
    let index = 0
    for await (const { logProbs, columns } of predictions(device, form.path, settings, windows)) {
      divergence.add(logProbs, reference[index] as Float32Array, (windows[index] as Window).targets, columns)
      index += 1
    }
    const { perplexity, kl, agreement } = divergence.result
    const change = perplexity / self.result.perplexity - 1
    rows.push({
      group,
      name,
      ...(group === 'weights' && { bitsPerWeight: form.bitsPerWeight }),
      perplexity,
      change,
      kl,
      agreement,
    })
  }
  const { perplexity, tokens } = self.result
  const info = device.info()
  if (options.json) {
    const machine = describeMachine(info.name, info.memoryLimit)
    process.stdout.write(
      `${JSON.stringify({ machine, isa: info.isa, reference: { perplexity, tokens }, rows }, null, 2)}\n`,
    )
  } else {
    process.stdout.write(formatMarkdown({ perplexity, tokens }, rows))
  }
} finally {
  rmSync(folder, { recursive: true, force: true })
}
