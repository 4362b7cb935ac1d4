/** `npm run bench:serve`: see ../README.md. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { bundledModel, Device, type GemmaSizeName, openCheckpoint, Tokenizer, writeSynthetic } from 'lapidary'
import { describeMachine, formatTable } from '../report.ts'
import {
  closedLoop,
  type LoadOptions,
  openLoop,
  type Percentiles,
  type Sample,
  type Summary,
  summarizeLoad,
  uniform,
} from './measure.ts'
import { type ServerProcess, startServer } from './processes.ts'

interface Options {
  size: string
  layers?: string
  model?: string
  threads?: string
  concurrency: string
  load: string
  requests: string
  rounds: string
  promptTokens: string
  sharedTokens: string
  tokens: string
  peer: boolean
  json?: string
}

const options: Options = new Command('bench:serve')
  .description('Serves one model by us and by node-llama-cpp, and asks both over HTTP, in turn.')
  .option('--size <name>', 'published size, with random weights', 'gemma-3-1b')
  .option('--layers <count>', 'fewer layers than published: a run that only shows that it runs')
  .option('--model <file>', "a GGUF file instead; 'bundled': the package's own")
  .option('--threads <count>', 'threads of either server (default: physical cores)')
  .option('--concurrency <counts>', 'comma-separated: users at once', '1,2,4,8,16')
  .option('--load <shares>', 'comma-separated: open-loop arrivals, as shares of our rate at the most users', '0.5,0.8')
  .option('--requests <count>', 'requests of one user in a round; a share of load gets as many as 4 users', '6')
  .option('--rounds <count>', 'turns that each server gets', '3')
  .option('--prompt-tokens <count>', 'mean length of prompts: each is half to one and a half times as long', '128')
  .option('--shared-tokens <count>', 'tokens at the start that all prompts have in common', '0')
  .option('--tokens <count>', 'length of answers', '32')
  .option('--no-peer', 'leave the peer out')
  .option('--json <file>', 'write the report as JSON')
  .parse()
  .opts<Options>()

/** One server under one load. */
interface LoadRow extends Summary {
  readonly server: string
  /** `closed`: so many users who ask again at once; `open`: requests that come at a rate of their own. */
  readonly loop: 'closed' | 'open'
  /** Users, or requests per second. */
  readonly load: number
}

const fromRoot = (path: string): string => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const users = options.concurrency.split(',').map(Number)
const mostUsers = Math.max(...users)
const [tokens, promptTokens, sharedTokens, rounds, perUser] = [
  options.tokens,
  options.promptTokens,
  options.sharedTokens,
  options.rounds,
  options.requests,
].map(Number) as [number, number, number, number, number]
/** A prompt, an answer, and room for the peer's own tokens. */
const contextLength = Math.ceil((sharedTokens + 1.5 * promptTokens + tokens + 16) / 64) * 64

async function modelFile(): Promise<string> {
  if (options.model !== undefined) return options.model === 'bundled' ? bundledModel : options.model
  const folder = join(tmpdir(), 'lapidary-benchmarks')
  mkdirSync(folder, { recursive: true })
  const layers = options.layers === undefined ? {} : { layers: Number(options.layers) }
  const path = join(folder, `${options.size}${layers.layers === undefined ? '' : `-${layers.layers}-layers`}-q4_0.gguf`)
  if (!existsSync(path)) {
    await writeSynthetic(path, {
      size: options.size as GemmaSizeName,
      type: 'q4_0',
      headType: 'q8_0',
      seed: 1,
      ...layers,
    })
  }
  return path
}

/** Bodies of requests: nothing but the shared tokens is ever asked twice, so that a cache of prefixes helps with these only. */
function bodies(seed: number, vocabulary: number): (index: number) => object {
  const id = (random: () => number): number => Math.floor(vocabulary * (0.1 + 0.8 * random()))
  const common = uniform(1)
  const shared = Array.from({ length: sharedTokens }, () => id(common))
  return (index) => {
    const random = uniform(seed * 1_000_003 + index)
    const length = Math.max(1, Math.round(promptTokens * (0.5 + random())))
    return {
      prompt: [[2, ...shared, ...Array.from({ length }, () => id(random))]],
      max_tokens: tokens,
      temperature: 0,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    }
  }
}

async function startServers(path: string, threads: number): Promise<ServerProcess[]> {
  const size = ['--threads', String(threads), '--context-length', String(contextLength)]
  const command = [
    fromRoot('dist/cli/main.js'),
    'serve',
    '-m',
    path,
    '--port',
    '0',
    '--max-sequences',
    String(mostUsers),
  ]
  const servers = [await startServer('lapidary', [...command, ...size], '/ready')]
  const peerFolder = fromRoot('benchmarks/peers/node-llama-cpp/node_modules')
  if (options.peer && existsSync(peerFolder)) {
    const script = fileURLToPath(new URL('./node-llama-cpp.js', import.meta.url))
    servers.push(
      await startServer(
        'node-llama-cpp',
        [script, path, String(threads), String(mostUsers), String(contextLength)],
        '/',
      ),
    )
  } else if (options.peer) {
    console.error(
      'node-llama-cpp is not installed (npm install --omit=optional --prefix benchmarks/peers/node-llama-cpp)',
    )
  }
  return servers
}

const path = await modelFile()
const { vocabularySize } = await Tokenizer.load(await openCheckpoint(path))
const info = await (async () => {
  using device = await Device.open('cpu')
  return device.info()
})()
const threads = Number(options.threads ?? info.threads)
const machine = describeMachine(info.name, info.memoryLimit)
console.log(
  Object.entries(machine)
    .map(([key, value]) => `${key} ${value}`)
    .join(', '),
)
console.log(
  `${path}: ${threads} threads, prompts of about ${sharedTokens + promptTokens} tokens (${sharedTokens} shared), answers of ${tokens}`,
)

const rows: LoadRow[] = []
const servers = await startServers(path, threads)
let turn = 0

/** Each server in turn, with prompts that nobody has seen. */
async function measure(
  loop: LoadRow['loop'],
  load: number,
  ask: (target: Pick<LoadOptions, 'url' | 'body'>, round: number) => Promise<Sample[]>,
): Promise<void> {
  const turns = new Map<string, Sample[][]>(servers.map(({ name }) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const { name, url } of servers) {
      const body = bodies(++turn, vocabularySize)
      turns.get(name)?.push(await ask({ url: `${url}/v1/completions`, body }, round))
    }
  }
  for (const [server, samples] of turns) {
    const row = { server, loop, load, ...summarizeLoad(samples, tokens) }
    rows.push(row)
    console.error(cells(row).join(' | '))
  }
}

const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))
const three = ({ p50, p95, p99 }: Percentiles): string => [p50, p95, p99].map(number).join(' / ')
const header = ['server', 'load', 'requests', 'failed', 'req/s', 'tok/s', 'first token ms', 'per token ms', 'whole ms']

function cells(row: LoadRow): string[] {
  return [
    row.server,
    row.loop === 'closed' ? `${row.load} at once` : `${number(row.load)} req/s come`,
    String(row.requests),
    String(row.failed),
    number(row.requestsPerSecond),
    number(row.tokensPerSecond),
    three(row.firstToken),
    three(row.perToken),
    three(row.endToEnd),
  ]
}

/** What the goals are about: our rate over the peer's, and our p95 of the first token over theirs. */
function ratios(): string[] {
  const pairs = rows.filter(({ server }) => server === 'lapidary')
  return pairs.flatMap((ours) => {
    const theirs = rows.find(
      ({ server, loop, load }) => server !== ours.server && loop === ours.loop && load === ours.load,
    )
    if (!theirs) return []
    const rate = ours.requestsPerSecond / theirs.requestsPerSecond
    const first = ours.firstToken.p95 / theirs.firstToken.p95
    const load = cells(ours)[1]
    return [
      `${load}: ${number(rate)}x the requests per second of ${theirs.server}, p95 of the first token ${number(first)}x`,
    ]
  })
}

try {
  // Captured steps and touched memory are the first requests' to pay; users of a server that runs do not.
  for (const { url } of servers) {
    const body = bodies(++turn, vocabularySize)
    await closedLoop({ url: `${url}/v1/completions`, requests: 2 * mostUsers, body }, mostUsers)
  }
  for (const count of users) {
    await measure('closed', count, (target) => closedLoop({ ...target, requests: count * perUser }, count))
  }
  const ours = rows.find(({ server, load }) => server === 'lapidary' && load === mostUsers) as LoadRow
  const shares = options.load === '' ? [] : options.load.split(',').map(Number)
  for (const share of shares) {
    const rate = share * ours.requestsPerSecond
    await measure('open', rate, (target, round) => openLoop({ ...target, requests: 4 * perUser }, rate, round))
  }
  console.log('percentiles are 50 / 95 / 99')
  console.log(formatTable([header, ...rows.map(cells)]))
  for (const line of ratios()) console.log(line)
  const failed = rows.filter((row) => row.failed > 0 && row.server === 'lapidary')
  if (failed.length > 0) {
    console.error(`${failed.length} loads had failed requests`)
    process.exitCode = 1
  }
} finally {
  for (const server of servers) await server.stop()
}
if (options.json) writeFileSync(options.json, `${JSON.stringify({ machine, path, threads, options, rows }, null, 1)}\n`)
