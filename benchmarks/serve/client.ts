/** A client of servers that stream completions as OpenAI's API does: over real sockets, with the time of every event. */
import http from 'node:http'

/** An answer to one request, however it went. Times are of `performance.now()`. */
export interface Answer {
  /** 0: there was no answer. */
  readonly status: number
  readonly headers: http.IncomingHttpHeaders
  /** When the request was made. */
  readonly start: number
  /** When the last byte came. */
  readonly end: number
  /** When each event with text came. */
  readonly times: readonly number[]
  /** Of the first choice. */
  readonly text: string
  readonly finishReason: string | undefined
  /** Generated, as the server counts them; undefined: it does not say. */
  readonly tokens: number | undefined
  /** The body where it is no stream of events. */
  readonly body: string
  /** Whether a stream of events was ended by `[DONE]`. */
  readonly done: boolean
  /** Why there is no answer, or no whole one. */
  readonly error: Error | undefined
}

export interface RequestOptions {
  readonly agent?: http.Agent
  readonly method?: string
  readonly headers?: http.OutgoingHttpHeaders
  /** Destroys the socket when aborted. */
  readonly signal?: AbortSignal
  /** Told of the number of events so far. */
  readonly onEvent?: (events: number) => void
  /** Milliseconds to wait before each piece of the body is read. */
  readonly readDelay?: () => number
}

interface Chunk {
  readonly choices?: readonly {
    readonly text?: string
    readonly delta?: { readonly content?: string | null }
    readonly finish_reason?: string | null
  }[]
  readonly usage?: { readonly completion_tokens?: number } | null
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/**
 * Sends a request, and resolves when its answer is over, also if it failed.
 * @param body JSON; a string or bytes are sent as they are; undefined: none.
 */
export function request(url: string, body: unknown, options: RequestOptions = {}): Promise<Answer> {
  const start = performance.now()
  const payload =
    body === undefined || typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body)
  const { agent, signal, method = payload === undefined ? 'GET' : 'POST' } = options
  return new Promise((resolve) => {
    const reader = new EventReader(options.onEvent)
    let response: http.IncomingMessage | undefined
    const settle = (error?: Error): void => {
      const { statusCode = 0, headers = {} } = response ?? {}
      resolve({ status: statusCode, headers, start, end: performance.now(), error, ...reader.result() })
    }
    const headers = {
      ...(payload !== undefined && {
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(payload),
      }),
      ...options.headers,
    }
    const sent = http.request(url, { method, headers, ...(agent && { agent }) }, (answer) => {
      response = answer
      reader.begin(/^text\/event-stream\b/.test(answer.headers['content-type'] ?? ''))
      void readAll(answer)
    })
    const readAll = async (answer: http.IncomingMessage): Promise<void> => {
      try {
        for await (const piece of answer) {
          reader.push(piece as Buffer)
          if (options.readDelay) await pause(options.readDelay())
        }
        settle()
      } catch (error) {
        settle(error as Error)
      }
    }
    // Without an error of its own: a socket that is between two requests has nobody to tell.
    const leave = (): void => void sent.destroy()
    if (signal?.aborted) leave()
    signal?.addEventListener('abort', leave, { once: true })
    sent.on('error', (error) => {
      // After the answer has begun the reader is told of it.
      if (!response) settle(error)
    })
    sent.end(payload)
  })
}

/** Gathers a body: server-sent events, or anything else as text. */
class EventReader {
  readonly #onEvent: ((events: number) => void) | undefined
  readonly #decoder = new TextDecoder()
  #isStream = false
  #rest = ''
  #text = ''
  #finishReason: string | undefined
  #tokens: number | undefined
  #done = false
  readonly #times: number[] = []

  constructor(onEvent: ((events: number) => void) | undefined) {
    this.#onEvent = onEvent
  }

  begin(isStream: boolean): void {
    this.#isStream = isStream
  }

  push(piece: Buffer): void {
    this.#rest += this.#decoder.decode(piece, { stream: true })
    if (!this.#isStream) return
    for (;;) {
      const end = this.#rest.indexOf('\n\n')
      if (end < 0) return
      const line = this.#rest.slice(0, end)
      this.#rest = this.#rest.slice(end + 2)
      if (line.startsWith('data: ')) this.#take(line.slice(6))
    }
  }

  result(): Pick<Answer, 'times' | 'text' | 'finishReason' | 'tokens' | 'body' | 'done'> {
    return {
      times: this.#times,
      text: this.#text,
      finishReason: this.#finishReason,
      tokens: this.#tokens,
      body: this.#rest,
      done: this.#done,
    }
  }

  #take(data: string): void {
    if (data === '[DONE]') {
      this.#done = true
      return
    }
    const { choices, usage } = JSON.parse(data) as Chunk
    const choice = choices?.[0]
    const text = choice?.text ?? choice?.delta?.content ?? ''
    if (text !== '') {
      this.#times.push(performance.now())
      this.#text += text
      this.#onEvent?.(this.#times.length)
    }
    this.#finishReason = choice?.finish_reason ?? this.#finishReason
    this.#tokens = usage?.completion_tokens ?? this.#tokens
  }
}
