/** What a soak test sends: requests whose answers are known, and requests that no server should have to answer. */

/** A request that must be answered, always alike. */
export interface Healthy {
  readonly name: string
  readonly path: string
  readonly body: Readonly<Record<string, unknown>> & { readonly stream: boolean }
}

const subjects = [
  'the moor',
  'a letter',
  'the last train',
  'an old clock',
  'my uncle',
  'the sea',
  'a garden',
  'two dogs',
]

/** Streams and whole answers, greedy and seeded, short prompts and such as take several pages, stops, penalties, several choices. */
export function healthyRequests(): Healthy[] {
  const requests: Healthy[] = []
  const add = (name: string, path: string, body: Readonly<Record<string, unknown>>): void => {
    for (const stream of [true, false]) {
      const extra = stream ? { stream_options: { include_usage: true } } : {}
      requests.push({ name: `${name}${stream ? ', streamed' : ''}`, path, body: { ...body, stream, ...extra } })
    }
  }
  subjects.forEach((subject, index) => {
    const prompt = `${'It was late in the evening. '.repeat(index * 3)}He told me about ${subject}`
    add(`completion ${index}`, '/v1/completions', { prompt, max_tokens: 4 + index * 3, temperature: 0 })
    add(`chat ${index}`, '/v1/chat/completions', {
      messages: [
        { role: 'system', content: 'You tell short stories.' },
        { role: 'user', content: `Tell me about ${subject}.` },
      ],
      max_tokens: 6 + index * 2,
      temperature: 0.8,
      seed: index,
    })
  })
  add('stop', '/v1/completions', { prompt: 'Once upon a time', max_tokens: 40, temperature: 0, stop: ['.', ','] })
  add('penalties', '/v1/completions', {
    prompt: 'The king said',
    max_tokens: 16,
    temperature: 0,
    presence_penalty: 0.5,
    frequency_penalty: 0.5,
    logit_bias: { 100: -5 },
  })
  add('logprobs', '/v1/chat/completions', {
    messages: [{ role: 'user', content: 'Who was there?' }],
    max_tokens: 8,
    temperature: 0,
    logprobs: true,
    top_logprobs: 3,
  })
  requests.push(
    {
      name: 'several prompts and choices',
      path: '/v1/completions',
      body: { prompt: ['The door', 'The window'], n: 2, max_tokens: 5, seed: 3, stream: false },
    },
    {
      name: 'echo',
      path: '/v1/completions',
      body: { prompt: 'The house was empty', echo: true, logprobs: 1, max_tokens: 1, temperature: 0, stream: false },
    },
  )
  return requests
}

/** A long answer of large events: whoever reads it slowly fills the buffers of a socket. */
export const largeRequest: Healthy = {
  name: 'large events',
  path: '/v1/chat/completions',
  body: {
    messages: [{ role: 'user', content: 'Tell me everything.' }],
    max_tokens: 200,
    ignore_eos: true,
    temperature: 0,
    logprobs: true,
    top_logprobs: 20,
    stream: true,
    stream_options: { include_usage: true },
  },
}

/** A request with something wrong in it, and the status that says so. */
export interface Bad {
  readonly name: string
  readonly path: string
  /** Sent as it is; an object as JSON. */
  readonly body: string | Uint8Array | object
  readonly headers?: Readonly<Record<string, string>>
  readonly status: number
}

export function badRequests(): Bad[] {
  const chat = '/v1/chat/completions'
  const text = '/v1/completions'
  const messages = [{ role: 'user', content: 'Hello' }]
  return [
    { name: 'no JSON', path: chat, body: '{"messages": [', status: 400 },
    { name: 'no UTF-8', path: chat, body: new Uint8Array([0x22, 0xff, 0xfe, 0x22]), status: 400 },
    { name: 'an empty body', path: chat, body: '', status: 400 },
    { name: 'another type of body', path: chat, body: 'a=b', headers: { 'content-type': 'text/plain' }, status: 415 },
    { name: 'an array', path: chat, body: [], status: 400 },
    { name: 'no messages', path: chat, body: {}, status: 400 },
    { name: 'no message', path: chat, body: { messages: [] }, status: 400 },
    { name: 'a strange role', path: chat, body: { messages: [{ role: 'owner', content: 'Hello' }] }, status: 400 },
    { name: 'content that is none', path: chat, body: { messages: [{ role: 'user', content: 5 }] }, status: 400 },
    {
      name: 'an image',
      path: chat,
      body: { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      status: 400,
    },
    { name: 'a temperature of text', path: chat, body: { messages, temperature: 'hot' }, status: 400 },
    { name: 'a temperature below 0', path: chat, body: { messages, temperature: -1 }, status: 400 },
    { name: 'no choices', path: chat, body: { messages, n: 0 }, status: 400 },
    { name: 'too many choices', path: chat, body: { messages, n: 100_000 }, status: 400 },
    { name: 'tokens below 1', path: chat, body: { messages, max_tokens: -5 }, status: 400 },
    { name: 'a bias of nothing', path: chat, body: { messages, logit_bias: { 99999999: 1 } }, status: 400 },
    { name: 'an unknown model', path: chat, body: { model: 'gpt-4', messages }, status: 404 },
    { name: 'a prompt that is too long', path: text, body: { prompt: 'word '.repeat(20_000) }, status: 400 },
    { name: 'ids that are none', path: text, body: { prompt: [1, 2, 99_999_999] }, status: 400 },
    { name: 'no prompt', path: text, body: { max_tokens: 5 }, status: 400 },
    { name: 'stops that are none', path: text, body: { prompt: 'Hello', stop: [''] }, status: 400 },
    { name: 'nowhere', path: '/v1/nothing', body: {}, status: 404 },
    { name: 'embeddings of a model that writes', path: '/v1/embeddings', body: { input: 'Hello' }, status: 400 },
    { name: '33 MiB', path: chat, body: ' '.repeat(33 * 2 ** 20), status: 413 },
  ]
}
