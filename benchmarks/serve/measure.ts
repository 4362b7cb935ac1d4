/** Load on one server, and what it makes of it. */
import http from 'node:http'
import { type Answer, request } from './client.ts'

export interface LoadOptions {
  readonly url: string
  /** Requests in all. */
  readonly requests: number
  /** The body of request number `index`. */
  readonly body: (index: number) => object
}

/** What each request was, with the time at which it was due. */
export interface Sample {
  readonly due: number
  readonly answer: Answer
}

/**
 * So many users at once, each of whom asks again as soon as it has its answer. The rate is the server's: what it can do with so many
 * requests in flight.
 */
export async function closedLoop({ url, requests, body }: LoadOptions, users: number): Promise<Sample[]> {
  const samples: Sample[] = []
  let next = 0
  using connections = openConnections()
  const user = async (): Promise<void> => {
    while (next < requests) {
      const due = performance.now()
      samples.push({ due, answer: await request(url, body(next++), connections) })
    }
  }
  await Promise.all(Array.from({ length: users }, user))
  return samples
}

/**
 * Requests come when they come: at `rate` per second on average, with exponential times between them, whether earlier ones are answered
 * or not. Latency counts from when a request was due, so that a server that falls behind cannot hide it (Tene 2013,
 * "coordinated omission").
 */
export async function openLoop({ url, requests, body }: LoadOptions, rate: number, seed: number): Promise<Sample[]> {
  using connections = openConnections()
  const random = uniform(seed)
  const begin = performance.now()
  const pending: Promise<Sample>[] = []
  let due = begin
  for (let index = 0; index < requests; index++) {
    due += (-Math.log(1 - random()) / rate) * 1000
    const wait = due - performance.now()
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
    const at = due
    pending.push(request(url, body(index), connections).then((answer) => ({ due: at, answer })))
  }
  return await Promise.all(pending)
}

function openConnections(): { agent: http.Agent } & Disposable {
  const agent = new http.Agent({ keepAlive: true })
  return { agent, [Symbol.dispose]: () => agent.destroy() }
}

/** Uniform numbers from 0 to 1 (Steele and Vigna's mulberry32): the same schedule for every contender. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Percentiles in milliseconds. */
export interface Percentiles {
  readonly p50: number
  readonly p95: number
  readonly p99: number
}

export interface Summary {
  readonly requests: number
  /** Requests without a whole answer of the length asked for. */
  readonly failed: number
  readonly requestsPerSecond: number
  readonly tokensPerSecond: number
  /** From when a request was due to its first token. */
  readonly firstToken: Percentiles
  /** Of each request, the mean time between its tokens. */
  readonly perToken: Percentiles
  readonly endToEnd: Percentiles
}

/**
 * @param turns The samples of each turn that a server had; latencies of all turns count alike.
 * @param tokens What each answer has if it is whole.
 */
export function summarizeLoad(turns: readonly (readonly Sample[])[], tokens: number): Summary {
  const samples = turns.flat()
  const whole = samples.filter(({ answer }) => answer.status === 200 && answer.done && answer.tokens === tokens)
  const seconds = turns.reduce((sum, turn) => {
    const begin = Math.min(...turn.map(({ due }) => due))
    return sum + (Math.max(...turn.map(({ answer }) => answer.end)) - begin) / 1000
  }, 0)
  const between = whole.map(({ answer: { times } }) => {
    return times.length < 2 ? 0 : ((times.at(-1) as number) - (times[0] as number)) / (tokens - 1)
  })
  return {
    requests: samples.length,
    failed: samples.length - whole.length,
    requestsPerSecond: whole.length / seconds,
    tokensPerSecond: (whole.length * tokens) / seconds,
    firstToken: percentiles(whole.map(({ due, answer }) => (answer.times[0] ?? answer.end) - due)),
    perToken: percentiles(between),
    endToEnd: percentiles(whole.map(({ due, answer }) => answer.end - due)),
  }
}

/** By the nearest rank: the smallest value that at least so many per cent do not exceed. */
export function percentiles(values: readonly number[]): Percentiles {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (percent: number): number =>
    sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN
  return { p50: at(50), p95: at(95), p99: at(99) }
}
