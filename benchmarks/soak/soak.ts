/**
 * A soak test: many short requests against a server that runs, among them such as are given up, wrong, or read slowly. What must hold:
 * every healthy request gets the answer it gets alone; wrong ones are refused in OpenAI's form; nothing is left behind.
 */
import http from 'node:http'
import net from 'node:net'
import { type Answer, request } from '../serve/client.ts'
import { uniform } from '../serve/measure.ts'
import { residentBytes, startServer } from '../serve/processes.ts'
import { type Bad, badRequests, type Healthy, healthyRequests, largeRequest } from './requests.ts'

export interface SoakOptions {
  readonly requests: number
  /** Requests at once; more than the batch holds, so that some wait. */
  readonly concurrency: number
  readonly seed: number
  /** Arguments of Node that start the server; it prints its address. */
  readonly server: readonly string[]
  /** Told how many requests are done, and of the memory then. */
  readonly onProgress?: (done: number, residentMiB: number) => void
}

export interface SoakReport {
  readonly requests: number
  readonly seconds: number
  /** Requests of each kind. */
  readonly kinds: Readonly<Record<Kind, number>>
  /** At the end of each twentieth of the run, with nothing in flight. */
  readonly residentMiB: readonly number[]
  /** From the middle of the run to its end, the medians of three each, in per cent. */
  readonly growthPercent: number
  /** What must not be, at most the first 20. */
  readonly violations: readonly string[]
  readonly violationCount: number
}

type Kind = 'healthy' | 'slow' | 'aborted' | 'cut' | 'bad'

const parts = 20
// V8 lets garbage lie while there is room, tens of megabytes of it: memory is measured after a collection, which the server makes at SIGUSR2.
const collectable = ['--expose-gc', '--import', 'data:text/javascript,process.on("SIGUSR2",()=>gc())']
const allowedGrowthPercent = 2

export async function soak(options: SoakOptions): Promise<SoakReport> {
  const { requests, concurrency, seed, onProgress } = options
  const server = await startServer('lapidary', [...collectable, ...options.server], '/ready')
  const run = new SoakRun(server.url, seed)
  const begin = performance.now()
  const residentMiB: number[] = []
  try {
    await run.learn()
    for (let part = 1; part <= parts; part++) {
      await run.send(Math.round((requests * part) / parts), concurrency)
      await run.untilIdle()
      process.kill(server.pid, 'SIGUSR2')
      await new Promise((resolve) => setTimeout(resolve, 300))
      residentMiB.push(residentBytes(server.pid) / 2 ** 20)
      onProgress?.(run.sent, residentMiB.at(-1) as number)
    }
    await run.checkMetrics()
  } finally {
    run.close()
    const code = await server.stop()
    if (code !== 0) run.violate(`the server ended with ${code}, expected 0`)
  }
  // The first half is warm-up: pages of prefixes, masks of grammars and V8's heap fill up to their bounds. What is then lost for good shows: 2 % are
  // some 300 bytes for each request of the second half of 20,000.
  const middle = residentMiB.length >> 1
  const growthPercent = 100 * (median(residentMiB.slice(-3)) / median(residentMiB.slice(middle - 1, middle + 2)) - 1)
  return {
    requests: run.sent,
    seconds: (performance.now() - begin) / 1000,
    kinds: run.kinds,
    residentMiB,
    growthPercent,
    violations: run.violations,
    violationCount: run.violationCount,
  }
}

/** Whether memory grew more than it may. Apart from the other rules: a short run is all warm-up. */
export function grewTooMuch({ growthPercent }: SoakReport): boolean {
  return !(growthPercent <= allowedGrowthPercent)
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] as number
}

class SoakRun {
  readonly kinds: Record<Kind, number> = { healthy: 0, slow: 0, aborted: 0, cut: 0, bad: 0 }
  readonly violations: string[] = []
  violationCount = 0
  sent = 0
  readonly #url: string
  readonly #random: () => number
  readonly #agent = new http.Agent({ keepAlive: true, maxSockets: 64 })
  readonly #healthy = healthyRequests()
  readonly #bad = badRequests()
  /** What each healthy request is answered, alone. */
  readonly #expected = new Map<Healthy, string>()

  constructor(url: string, seed: number) {
    this.#url = url
    this.#random = uniform(seed)
  }

  close(): void {
    this.#agent.destroy()
  }

  violate(text: string): void {
    this.violationCount++
    if (this.violations.length < 20) this.violations.push(text)
  }

  /** Asks everything once, one after the other. */
  async learn(): Promise<void> {
    for (const healthy of [...this.#healthy, largeRequest]) {
      const answer = await this.#ask(healthy)
      this.#checkWhole(healthy, answer)
      this.#expected.set(healthy, essence(answer))
    }
  }

  /** Sends requests until there have been so many. */
  async send(total: number, concurrency: number): Promise<void> {
    const user = async (): Promise<void> => {
      while (this.sent < total) {
        this.sent++
        await this.#one()
      }
    }
    await Promise.all(Array.from({ length: concurrency }, user))
  }

  /** Nothing may be running or waiting, and no page in use, soon after the last request. */
  async untilIdle(): Promise<void> {
    const deadline = performance.now() + 5000
    for (;;) {
      const left = await this.#left()
      if (left.length === 0) return
      if (performance.now() > deadline) {
        this.violate(`5 s after the last request: ${left.join(', ')}`)
        return
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  async checkMetrics(): Promise<void> {
    const metrics = await this.#metrics()
    for (const [name, value] of metrics) {
      if (/http_requests_total\{.*status="5\d\d"/.test(name) && value > 0) this.violate(`${name} ${value}`)
      if (name.includes('request_failure_total') && value > 0) this.violate(`${name} ${value}`)
    }
  }

  async #left(): Promise<string[]> {
    const metrics = await this.#metrics()
    const found = [...metrics].filter(([name]) => /num_requests_(running|waiting)|kv_cache_usage_perc/.test(name))
    if (found.length !== 3) throw new Error(`/metrics: expected three gauges of the engine, got ${found.length}`)
    return found.filter(([, value]) => value !== 0).map(([name, value]) => `${name} ${value}`)
  }

  async #metrics(): Promise<Map<string, number>> {
    const { body } = await request(`${this.#url}/metrics`, undefined, { agent: this.#agent })
    const lines = body.split('\n').filter((line) => line !== '' && !line.startsWith('#'))
    return new Map(
      lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ')))]),
    )
  }

  async #one(): Promise<void> {
    const draw = this.#random()
    const kind: Kind =
      draw < 0.6 ? 'healthy' : draw < 0.7 ? 'slow' : draw < 0.82 ? 'aborted' : draw < 0.86 ? 'cut' : 'bad'
    this.kinds[kind]++
    if (kind === 'healthy') await this.#answered(this.#pick(this.#healthy))
    else if (kind === 'slow') await this.#slow()
    else if (kind === 'aborted') await this.#aborted()
    else if (kind === 'cut') await this.#cut()
    else await this.#refused(this.#pick(this.#bad))
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random() * list.length)] as T
  }

  #ask({ path, body }: Healthy, options: Parameters<typeof request>[2] = {}): Promise<Answer> {
    return request(this.#url + path, body, { agent: this.#agent, ...options })
  }

  async #answered(healthy: Healthy, options: Parameters<typeof request>[2] = {}): Promise<void> {
    const answer = await this.#ask(healthy, options)
    if (!this.#checkWhole(healthy, answer)) return
    const got = essence(answer)
    const expected = this.#expected.get(healthy) as string
    if (got !== expected) {
      this.violate(`${healthy.name}: expected ${expected.slice(0, 200)}, got ${got.slice(0, 200)}`)
    }
  }

  #checkWhole({ name, body }: Healthy, answer: Answer): boolean {
    const { status, error, done } = answer
    if (status === 200 && !error && (!body.stream || done)) return true
    this.violate(`${name}: expected a whole answer, got ${error?.message ?? `${status} ${answer.body.slice(0, 200)}`}`)
    return false
  }

  /** Reads late: an answer of small events now and then, one that fills every buffer seldom. */
  async #slow(): Promise<void> {
    const large = this.#random() < 0.05
    const healthy = large ? largeRequest : this.#pick(this.#healthy)
    const longest = large ? 4 : 15
    await this.#answered(healthy, { readDelay: () => this.#random() * longest })
  }

  /** Goes away: before, while, or after the answer comes. */
  async #aborted(): Promise<void> {
    const controller = new AbortController()
    const healthy = this.#random() < 0.2 ? largeRequest : this.#pick(this.#healthy)
    const events = this.#random() < 0.5 ? Math.floor(this.#random() * 6) : Number.POSITIVE_INFINITY
    const timer = setTimeout(() => controller.abort(), this.#random() * 40)
    await this.#ask(healthy, {
      signal: controller.signal,
      onEvent: (count) => {
        if (count > events) controller.abort()
      },
    })
    clearTimeout(timer)
  }

  /** Sends half a request, then goes away. */
  #cut(): Promise<void> {
    const { path, body } = this.#pick(this.#healthy)
    const json = JSON.stringify(body)
    const whole = `POST ${path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${json.length}\r\n\r\n${json}`
    const sent = whole.slice(0, 1 + Math.floor(this.#random() * (whole.length - 1)))
    const { hostname, port } = new URL(this.#url)
    return new Promise((resolve) => {
      const socket = net.connect(Number(port), hostname, () => {
        socket.write(sent)
        setTimeout(() => socket.destroy(), this.#random() * 10)
      })
      socket.on('error', () => {})
      socket.on('close', () => resolve())
    })
  }

  async #refused({ name, path, body, headers, status }: Bad): Promise<void> {
    const answer = await request(this.#url + path, body, { agent: this.#agent, ...(headers && { headers }) })
    // A body that is too long may be refused by closing the connection under it.
    if (status === 413 && answer.status === 0) return
    const problem =
      answer.status === status ? malformed(answer.body) : `got ${answer.status} ${answer.error?.message ?? ''}`
    if (problem !== undefined) this.violate(`${name}: expected ${status}: ${problem} ${answer.body.slice(0, 200)}`)
  }
}

/** What is the same of two answers to the same request. */
function essence({ body, text, finishReason, tokens }: Answer): string {
  if (body === '') return JSON.stringify({ text, finishReason, tokens })
  const { choices, usage } = JSON.parse(body) as { choices: unknown; usage: Record<string, unknown> }
  const { prompt_tokens_details: _, ...counts } = usage
  return JSON.stringify({ choices, counts })
}

/** Why a body is no error of OpenAI's form; undefined: it is one. */
function malformed(body: string): string | undefined {
  try {
    const { error } = JSON.parse(body) as { error?: { message?: unknown; type?: unknown } }
    return typeof error?.message === 'string' && typeof error.type === 'string'
      ? undefined
      : 'it has no message or type'
  } catch {
    return 'it is no JSON'
  }
}
