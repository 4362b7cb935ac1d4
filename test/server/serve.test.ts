/** `lapidary serve` as a process of its own. */
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import { connect } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { finished, runCli, startCli } from '../cli/cli.ts'

const children: ChildProcessWithoutNullStreams[] = []
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

interface Serving {
  readonly url: string
  readonly child: ChildProcessWithoutNullStreams
  readonly result: ReturnType<typeof finished>
}

const withoutFastify = { NODE_OPTIONS: `--import ${new URL('children/without-fastify.mjs', import.meta.url).href}` }

/** Starts the command; resolves when the model is there. */
async function serve(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Serving> {
  const child = startCli(['serve', '--port', '0', '--threads', '1', ...args], { env })
  children.push(child)
  const result = finished(child)
  let text = ''
  const url = await new Promise<string>((resolve, reject) => {
    child.stderr.on('data', (part: string) => {
      text += part
      const [, address] = /listening on (http:\S+);/.exec(text) ?? []
      if (address !== undefined && /ready: /.test(text)) resolve(address)
    })
    void result.then(({ stderr }) => reject(new Error(stderr)))
  })
  return { url, child, result }
}

async function chat(url: string, fields: object, headers: Record<string, string> = {}): Promise<Response> {
  return await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ messages: [{ role: 'user', content: 'swordfish' }], ...fields }),
  })
}

/** The first part of a stream has come: it runs. */
async function begun(response: Response): Promise<ReadableStreamDefaultReader<Uint8Array>> {
  const reader = response.body!.getReader()
  await reader.read()
  return reader
}

async function rest(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<string> {
  let text = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return text
    text += Buffer.from(value).toString()
  }
}

describe('lapidary serve', () => {
  test.each([
    ['SIGTERM', 'with Fastify', {}],
    ['SIGINT', 'on plain HTTP, Fastify not being installed', withoutFastify],
  ] as const)('%s, %s: what runs finishes, nothing more is accepted, status 0', async (signal, _, env) => {
    const { url, child, result } = await serve([], env)
    const reader = await begun(await chat(url, { stream: true, max_tokens: 400, ignore_eos: true }))
    child.kill(signal)
    const text = await rest(reader)
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true)
    expect(text).toContain('"finish_reason":"length"')
    const { code, stderr } = await result
    expect(code).toBe(0)
    expect(stderr).toMatch(/closing: 1 requests in flight/)
    expect(stderr).toMatch(/POST \/v1\/chat\/completions 200 \d+ ms/)
    expect(stderr).not.toContain('swordfish')
    await expect(fetch(`${url}/health`)).rejects.toThrow()
  })

  test('at the deadline what still runs is cut, and told so', async () => {
    const { url, child, result } = await serve(['--close-deadline', '0.1', '--max-sequences', '1'])
    const reader = await begun(await chat(url, { stream: true, ignore_eos: true }))
    const waiting = chat(url, { ignore_eos: true })
    // A connection that says nothing does not keep the process.
    const silent = connect(Number(new URL(url).port), '127.0.0.1')
    silent.on('error', () => {})
    await new Promise((resolve) => setTimeout(resolve, 50))
    child.kill('SIGTERM')
    expect(await rest(reader)).toMatch(/"code":"shutting_down"\}\}\n\n$/)
    expect((await waiting).status).toBe(503)
    expect((await result).code).toBe(0)
    silent.destroy()
  })

  test('keys, also from the environment; loopback by default', async () => {
    const { url } = await serve(['--api-key', 'a', '--id', 'mine', '--any-model-name'], { LAPIDARY_API_KEY: 'b,c' })
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
    expect((await chat(url, {})).status).toBe(401)
    const answer = await chat(url, { max_tokens: 1, model: 'gpt-5' }, { authorization: 'Bearer b' })
    expect(await answer.json()).toMatchObject({ model: 'mine' })
  })

  test('a model or port that cannot be had ends it with one line', async () => {
    const [missing, wrong, { url }] = await Promise.all([
      runCli(['serve', '--port', '0', '-m', '/nowhere/model.gguf']),
      runCli(['serve', '--port', 'x']),
      serve(),
    ])
    expect(missing.code).toBe(1)
    expect(missing.stderr).toMatch(/error ERR_FILE: .*nowhere/)
    const taken = await runCli(['serve', '--port', new URL(url).port])
    expect(taken.code).toBe(2)
    expect(taken.stderr).toMatch(/cannot be listened on: EADDRINUSE/)
    expect(wrong.code).toBe(2)
  })
})
