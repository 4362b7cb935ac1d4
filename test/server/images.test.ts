/** Images in requests: OpenAI's own client against a live server with a small model that sees. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { type APIError, OpenAI } from 'openai'
import sharp from 'sharp'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { Gemma } from '../../lib/engine/gemma.ts'
import type { RemoteImageOptions } from '../../lib/index.ts'
import { LapidaryServer, type ServerOptions } from '../../lib/server/server.ts'
import * as decoding from '../../lib/vision/decode.ts'
import { importSharp } from '../../lib/vision/sharp.ts'
import { exactIsa } from '../engine/models.ts'
import { tower, writeHf } from '../engine/vision-model.ts'
import { openDevice } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { type Front, loadTiny, openai, post, startFront, until } from './fronts.ts'

const absence = vi.hoisted(() => ({ sharp: false }))
vi.mock('../../lib/vision/sharp.ts', async (original) => {
  const real = await original<typeof import('../../lib/vision/sharp.ts')>()
  const absent = Object.assign(new Error('no such package'), { code: 'ERR_MODULE_NOT_FOUND' })
  return {
    ...real,
    loadSharp: () => (absence.sharp ? importSharp(() => Promise.reject(absent)) : real.loadSharp()),
  }
})
vi.mock('../../lib/vision/decode.ts', async (original) => {
  const real = await original<typeof import('../../lib/vision/decode.ts')>()
  return { ...real, decodeImage: vi.fn(real.decodeImage) }
})

const root = mkdtempSync(path.join(tmpdir(), 'lapidary-server-images-'))
const folder = path.join(root, 'seer')
/** A file of the server that holds a picture: no request may read it. */
const secret = path.join(root, 'secret.png')
let gemma: Gemma
let blind: Gemma
let front: Front
let client: OpenAI
const servers: Server[] = []
const fronts: Front[] = []

beforeAll(async () => {
  writeHf(folder)
  const device = await openDevice(exactIsa, 1)
  gemma = await Gemma.load(folder, { device, contextLength: 256, packedCache: false, images: { maxPixels: 100_000 } })
  blind = await loadTiny()
  front = await startFront('fastify', { model: gemma, models: [{ model: blind, id: 'blind' }] })
  client = openai(front)
  writeFileSync(secret, await png(1))
})

afterEach(async () => {
  expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    server.close()
  }
  for (const open of fronts.splice(0)) await open[Symbol.asyncDispose]()
})

afterAll(async () => {
  await front[Symbol.asyncDispose]()
  await Promise.all([gemma[Symbol.asyncDispose](), blind[Symbol.asyncDispose]()])
  rmSync(root, { recursive: true })
})

/** A picture that differs with the seed. */
async function png(seed: number, width = tower.imageSize, height = tower.imageSize): Promise<Buffer> {
  const data = Buffer.alloc(width * height * 3)
  for (let i = 0; i < data.length; i++) data[i] = (Math.imul(i + 1, 2654435761 + seed * 40503) >>> 15) & 255
  return await sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
}

const dataUrl = (bytes: Buffer, type = 'image/png'): string => `data:${type};base64,${bytes.toString('base64')}`

type Part = OpenAI.ChatCompletionContentPart
const image = (url: string): Part => ({ type: 'image_url', image_url: { url, detail: 'low' } })
const text = (content: string): Part => ({ type: 'text', text: content })
const settings = { model: 'seer', temperature: 0, max_tokens: 5 }

async function ask(parts: Part[] | string, options: Partial<OpenAI.ChatCompletionCreateParams> = {}, by = client) {
  const messages = [{ role: 'user' as const, content: parts }]
  return (await by.chat.completions.create({ ...settings, messages, ...options })) as OpenAI.ChatCompletion
}

/** The error that a request is answered with. */
async function refused(work: Promise<unknown>, status = 400): Promise<APIError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(OpenAI.APIError)
  expect((error as APIError).status).toBe(status)
  return error as APIError
}

const at = (index: number): string => `messages[0].content[${index}].image_url.url`

/** What the engine says to the same bytes. */
async function expected(...content: NonNullable<Parameters<Gemma['chat']>[0][number]['content'] & object>) {
  return await gemma.chat([{ role: 'user', content }], { temperature: 0, maxTokens: 5 }).result
}

/** A server on this machine that others take for a remote one. */
async function remoteHost(answer: (response: ServerResponse, url: string) => void): Promise<string> {
  const server = createServer((request, response) => answer(response, request.url ?? ''))
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

/** A client of a server that may ask the hosts. */
async function clientWith(hosts: string[], options: RemoteImageOptions = {}, server: ServerOptions = {}) {
  const ports = hosts.map((host) => Number(new URL(host).port))
  const remoteImages = { protocols: ['http:' as const], ports, allowPrivateAddresses: true, ...options }
  const opened = await startFront('node', { model: gemma, remoteImages, ...server })
  fronts.push(opened)
  return { client: openai(opened), server: opened.server }
}

describe('data URLs', () => {
  test('an image is seen, and its tokens count', async () => {
    const bytes = await png(1)
    const whole = await ask([image(dataUrl(bytes)), text('what is this')])
    const direct = await expected({ type: 'image', image: bytes }, { type: 'text', text: 'what is this' })
    expect(whole.choices[0]?.message.content).toBe(direct.text)
    expect(whole.usage?.prompt_tokens).toBe(direct.promptTokens)
    const without = await ask('what is this')
    expect(direct.promptTokens).toBeGreaterThanOrEqual((without.usage?.prompt_tokens ?? 0) + tower.imageTokens + 2)
  })

  test('several images, between texts and over several turns, stand where the request has them', async () => {
    const [one, two, three] = [await png(1), await png(2), await png(3)]
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      { role: 'system', content: 'Be brief.' },
      {
        role: 'user',
        content: [text('compare '), text('these'), image(dataUrl(one)), text('and'), image(dataUrl(two))],
      },
      { role: 'user', content: 'please' },
      { role: 'assistant', content: 'they differ' },
      { role: 'user', content: [image(dataUrl(three)), text('and this')] },
    ]
    const whole = await client.chat.completions.create({ ...settings, messages, max_tokens: 4, stop: 'zzz' })
    const direct = await gemma.chat(
      [
        { role: 'system', content: 'Be brief.' },
        {
          role: 'user',
          content: [
            { type: 'text', text: 'compare these' },
            { type: 'image', image: one },
            { type: 'text', text: 'and' },
            { type: 'image', image: two },
            { type: 'text', text: 'please' },
          ],
        },
        { role: 'model', content: 'they differ' },
        {
          role: 'user',
          content: [
            { type: 'image', image: three },
            { type: 'text', text: 'and this' },
          ],
        },
      ],
      { temperature: 0, maxTokens: 4 },
    ).result
    expect(whole.choices[0]?.message.content).toBe(direct.text)
    expect(whole.usage?.prompt_tokens).toBe(direct.promptTokens)
    expect(whole.usage?.prompt_tokens_details?.cached_tokens).toBeLessThan(direct.promptTokens)
  })

  test('a stream begins after the images, and says the same', async () => {
    const parts = [image(dataUrl(await png(4))), text('what is this')]
    const whole = await ask(parts)
    const stream = await client.chat.completions.create({
      ...settings,
      messages: [{ role: 'user', content: parts }],
      stream: true,
      stream_options: { include_usage: true },
    })
    let streamed = ''
    let usage: OpenAI.CompletionUsage | null | undefined
    for await (const chunk of stream) {
      streamed += chunk.choices[0]?.delta.content ?? ''
      usage = chunk.usage
    }
    expect(streamed).toBe(whole.choices[0]?.message.content)
    expect(usage?.prompt_tokens).toBe(whole.usage?.prompt_tokens)
  })

  test('n choices decode an image once, and count it once', async () => {
    const decode = vi.mocked(decoding.decodeImage)
    decode.mockClear()
    const parts = [image(dataUrl(await png(5))), text('what is this')]
    const whole = await ask(parts, { n: 4, temperature: 1, seed: 3 })
    expect(decode).toHaveBeenCalledTimes(1)
    expect(new Set(whole.choices.map(({ message }) => message.content)).size).toBeGreaterThan(1)
    const one = await ask(parts, { temperature: 1, seed: 3 })
    expect(whole.choices[0]?.message.content).toBe(one.choices[0]?.message.content)
    expect(whole.usage?.prompt_tokens).toBe(one.usage?.prompt_tokens)
    expect(decode).toHaveBeenCalledTimes(1)
  })

  test('responses takes input_image, also from a function', async () => {
    const [one, two] = [await png(1), await png(2)]
    const response = await client.responses.create({
      model: 'seer',
      temperature: 0,
      max_output_tokens: 5,
      input: [
        {
          role: 'user',
          content: [
            { type: 'input_text', text: 'what is this' },
            { type: 'input_image', image_url: dataUrl(one), detail: 'auto' },
          ],
        },
        { type: 'function_call', call_id: 'c1', name: 'look', arguments: '{}' },
        {
          type: 'function_call_output',
          call_id: 'c1',
          output: [
            { type: 'input_text', text: 'seen' },
            { type: 'input_image', image_url: dataUrl(two), detail: 'auto' },
          ],
        },
      ],
    })
    const direct = await gemma.chat(
      [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'what is this' },
            { type: 'image', image: one },
          ],
        },
        { role: 'model', content: '{"name": "look", "parameters": {}}' },
        {
          role: 'user',
          content: [
            { type: 'text', text: '{"name":"look","response":"seen"}' },
            { type: 'image', image: two },
          ],
        },
      ],
      { temperature: 0, maxTokens: 5 },
    ).result
    expect(response.output_text).toBe(direct.text)
    expect(response.usage?.input_tokens).toBe(direct.promptTokens)
    const input = [{ role: 'user' as const, content: [{ type: 'input_image' as const, image_url: '/etc/hostname' }] }]
    const error = await refused(
      client.responses.create({ model: 'seer', input: input as OpenAI.Responses.ResponseInput }),
    )
    expect([error.param, error.code]).toEqual(['input[0].content[0].image_url', 'invalid_image_url'])
  })

  test('texts and images in one batch each get the answer they get alone', async () => {
    const requests: (Part[] | string)[] = [
      [image(dataUrl(await png(1))), text('what is this')],
      'once upon a time there was a king',
      [text('two'), image(dataUrl(await png(6))), image(dataUrl(await png(1)))],
      'tell me of the sea',
    ]
    const alone: unknown[] = []
    for (const parts of requests) alone.push((await ask(parts)).choices[0]?.message.content)
    const together = await Promise.all(requests.map((parts) => ask(parts)))
    expect(together.map(({ choices }) => choices[0]?.message.content)).toEqual(alone)
  })

  test('nothing goes on for a client that left while its images are made ready', async () => {
    let release = (): void => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    const decode = vi.mocked(decoding.decodeImage)
    const real = decode.getMockImplementation()
    decode.mockClear()
    decode.mockImplementationOnce(async (...given) => {
      await held
      return await (real as typeof decoding.decodeImage)(...given)
    })
    const abort = new AbortController()
    const parts = [image(dataUrl(await png(9))), image(dataUrl(await png(10)))]
    const work = client.chat.completions
      .create({ ...settings, messages: [{ role: 'user', content: parts }] }, { signal: abort.signal })
      .then(
        () => 'answered',
        () => 'gone',
      )
    await until(() => decode.mock.calls.length === 1, 'decoding begins')
    const { steps } = gemma.info().engine
    abort.abort()
    expect(await work).toBe('gone')
    await until(() => front.server.active === 0, 'the request ends')
    release()
    await new Promise((resolve) => setTimeout(resolve, 50))
    // The second image is not even decoded.
    expect(decode).toHaveBeenCalledTimes(1)
    expect(gemma.info().engine.steps).toBe(steps)
  })
})

describe('remote URLs', () => {
  test('are refused unless the server allows them, and then fetched once', async () => {
    const bytes = await png(2)
    const asked: string[] = []
    const host = await remoteHost((response, url) => {
      asked.push(url)
      response.setHeader('content-type', 'image/png').end(bytes)
    })
    const error = await refused(ask([text('look'), image(`${host}/cat.png`)]))
    expect([error.param, error.code]).toEqual([at(1), 'invalid_image_url'])
    expect(error.message).toMatch(/fetches no remote images/)
    expect(asked).toEqual([])
    const { client: allowed } = await clientWith([host])
    const url = image(`${host}/cat.png`)
    const whole = await ask([url, url, text('look')], {}, allowed)
    const source = { type: 'image', image: bytes } as const
    expect(whole.choices[0]?.message.content).toBe(
      (await expected(source, source, { type: 'text', text: 'look' })).text,
    )
    expect(asked).toEqual(['/cat.png'])
  })

  test('of private addresses, other hosts, and what is no image are refused', async () => {
    const host = await remoteHost((response, url) => {
      if (url === '/moved') response.writeHead(302, { location: pathToFileURL(secret).href }).end()
      else if (url === '/page') response.setHeader('content-type', 'text/html').end('<p>secret of the inner net</p>')
      else if (url === '/text') response.setHeader('content-type', 'image/png').end('no image at all')
      else response.writeHead(404).end('secret of the inner net')
    })
    const guarded = await clientWith([host], { allowPrivateAddresses: false })
    const inner = await refused(ask([image(`${host}/cat.png`)], {}, guarded.client))
    expect([inner.param, inner.code]).toEqual([at(0), 'invalid_image_url'])
    expect(inner.message).toMatch(/expected a public address/)
    const listed = await clientWith([host], { allowedHosts: ['*.example.com'] })
    expect((await refused(ask([image(`${host}/cat.png`)], {}, listed.client))).message).toMatch(/list of allowed ones/)
    const open = await clientWith([host])
    for (const [name, problem] of [
      ['moved', /expected http, got file/],
      ['page', /expected an image, got "text\/html"/],
      ['gone', /it answered 404/],
      ['text', /expected JPEG, PNG/],
    ] as const) {
      const error = await refused(ask([text('x'), image(`${host}/${name}`)], {}, open.client))
      expect(error.param).toBe(at(1))
      expect(error.message).toMatch(problem)
      expect(error.message).not.toMatch(/secret/)
    }
  })

  test('together have as many bytes as a request', async () => {
    const bytes = await png(2)
    const host = await remoteHost((response) => response.setHeader('content-type', 'image/png').end(bytes))
    const { client: small } = await clientWith([host], {}, { bodyLimit: bytes.length + 100 })
    await ask([image(`${host}/1`)], {}, small)
    const error = await refused(ask([image(`${host}/1`), image(`${host}/2`)], {}, small))
    expect(error.message).toMatch(new RegExp(`images of ${bytes.length + 100} bytes in all`))
  })

  test('end with their client, and with the first that fails', async () => {
    let open = 0
    let begun = 0
    const host = await remoteHost((response, url) => {
      if (url === '/gone') {
        // Answered when the other is under way.
        until(() => begun > 1, 'the other fetch begins').then(() => response.writeHead(404).end())
        return
      }
      open++
      begun++
      response.setHeader('content-type', 'image/png').write('x')
      response.once('close', () => open--)
    })
    // Longer than this test waits for anything.
    const { client: allowed, server } = await clientWith([host], { timeoutMs: 60_000 })
    const abort = new AbortController()
    const work = allowed.chat.completions.create(
      { ...settings, messages: [{ role: 'user', content: [image(`${host}/slow`)] }], stream: true },
      { signal: abort.signal },
    )
    const gone = work.then(
      () => 'answered',
      () => 'gone',
    )
    await until(() => open === 1, 'the fetch begins')
    expect(server.active).toBe(1)
    abort.abort()
    expect(await gone).toBe('gone')
    await until(() => open === 0 && server.active === 0, 'the fetch ends')
    const error = await refused(ask([image(`${host}/slow`), image(`${host}/gone`)], {}, allowed))
    expect(error.param).toBe(at(1))
    await until(() => open === 0, 'the other fetch ends')
  })

  test('options out of range are errors of the server', () => {
    throwsCode(
      () => new LapidaryServer({ model: gemma, remoteImages: { maxBytes: 0 } }),
      'ERR_INVALID_ARGUMENT',
      /maxBytes/,
    )
    const wrong = { model: gemma, remoteImages: 'yes' } as unknown as ServerOptions
    throwsCode(() => new LapidaryServer(wrong), 'ERR_INVALID_ARGUMENT', /remoteImages: expected true, false or options/)
  })
})

describe('what is refused', () => {
  test('whatever names something of the server’s machine', async () => {
    const read = vi.mocked(decoding.decodeImage)
    read.mockClear()
    const { client: allowed } = await clientWith(['http://127.0.0.1:1'])
    const urls = [
      secret,
      pathToFileURL(secret).href,
      `FILE://${secret}`,
      './secret.png',
      `~${secret}`,
      ` ${secret}`,
      '',
    ]
    for (const url of [...urls, `\\\\host\\share`, 'blob:x', 'ftp://host/x', 'http:/x', `http:${secret}`]) {
      for (const by of [client, allowed]) {
        const error = await refused(ask([text('look'), image(url)], {}, by))
        expect([error.param, error.code, error.type]).toEqual([at(1), 'invalid_image_url', 'invalid_request_error'])
      }
    }
    const object = { type: 'image_url', image_url: { data: [1], width: 1, height: 1 } } as unknown as Part
    expect((await refused(ask([object]))).param).toBe(at(0))
    const local = { type: 'image', image: secret } as unknown as Part
    expect((await refused(ask([local]))).param).toBe('messages[0].content[0].type')
    const file = { type: 'input_image', file_id: 'file-1' } as unknown as Part
    expect((await refused(ask([file]))).param).toBe('messages[0].content[0].file_id')
    expect(read).not.toHaveBeenCalled()
  })

  test('images in messages of the system and the model', async () => {
    for (const role of ['system', 'assistant']) {
      const messages = [
        { role, content: [image(dataUrl(await png(1)))] },
      ] as unknown as OpenAI.ChatCompletionMessageParam[]
      const error = await refused(client.chat.completions.create({ ...settings, messages }))
      expect(error.param).toBe('messages[0].content[0].type')
    }
  })

  test('no image, half an image, a pixel bomb, and a data URL of something else, each by the part', async () => {
    const good = await png(7, 60, 60)
    const bomb = await sharp({ create: { width: 2000, height: 2000, channels: 3, background: '#000' } })
      .png()
      .toBuffer()
    for (const [url, problem, code] of [
      [dataUrl(Buffer.from('no image')), /expected JPEG, PNG, WebP, AVIF or GIF/, 'invalid_image'],
      [dataUrl(good.subarray(0, good.length / 2)), /png cannot be decoded/, 'invalid_image'],
      [dataUrl(bomb), /at most 100000 pixels, got 2000 × 2000/, 'invalid_image'],
      [dataUrl(good, 'text/html'), /data URL of an image/, 'invalid_image_url'],
      ['data:image/png;base64,???', /expected base64/, 'invalid_image_url'],
      ['data:', /data URL of an image/, 'invalid_image_url'],
    ] as const) {
      // A stream's head is not sent before the images are ready: the error is the answer.
      for (const stream of [false, true]) {
        const error = await refused(ask([text('look'), image(dataUrl(good)), image(url)], { stream }))
        expect([error.param, error.code, error.type]).toEqual([at(2), code, 'invalid_request_error'])
        expect(error.message).toMatch(problem)
      }
    }
  })

  test('more images than the context holds, before and after they are read', async () => {
    const url = dataUrl(await png(1))
    const many = await refused(ask(Array.from({ length: 16 }, () => image(url))))
    expect([many.code, many.param]).toEqual(['context_length_exceeded', 'messages'])
    expect(many.message).toMatch(/256 tokens.*16 images alone are 256 tokens/)
    const long = await refused(ask([image(url), text('word '.repeat(300))]))
    expect([long.code, long.param]).toEqual(['context_length_exceeded', 'messages'])
  })

  test('a body that is too long', async () => {
    const opened = await startFront('node', { model: gemma, bodyLimit: 1000 })
    fronts.push(opened)
    await refused(ask([image(dataUrl(await png(1)))], {}, openai(opened)), 413)
  })

  test('a model that sees nothing, and /tokenize', async () => {
    const parts = [text('look'), image(dataUrl(await png(1)))]
    const error = await refused(ask(parts, { model: 'blind' }))
    expect([error.param, error.code]).toEqual([at(1), 'model_not_supported'])
    expect(error.message).toMatch(/the model blind sees no images/)
    const response = await post(front, '/tokenize', { messages: [{ role: 'user', content: parts }] })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { param: at(1), code: 'unsupported' } })
  })

  test('every image where sharp is not installed; text is served', async () => {
    absence.sharp = true
    try {
      const error = await refused(ask([image(dataUrl(await png(8)))]), 501)
      expect([error.param, error.code]).toEqual([at(0), 'images_unavailable'])
      expect(error.message).toMatch(/the package sharp is not installed/)
      expect(error.headers?.get('x-should-retry')).toBe('false')
      expect((await ask('hello')).choices.length).toBe(1)
    } finally {
      absence.sharp = false
    }
  })
})

test('prompts in the log hold no bytes of images', async () => {
  const lines: string[] = []
  const logger = { info: (details: object) => void lines.push(JSON.stringify(details)), error: () => {} }
  const opened = await startFront('node', { model: gemma, logPrompts: true, logger })
  fronts.push(opened)
  const url = dataUrl(await png(1))
  await ask([image(url), text('what is this')], {}, openai(opened))
  expect(lines.join()).toMatch(/data:image\/png;base64,.{0,20}… \(\d+ characters\)/)
  expect(lines.join()).toMatch(/what is this/)
  expect(lines.join()).not.toContain(url.slice(0, 200))
})
