/** Remote images, against servers on this machine: limits on size, time, redirects and addresses. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { isPublicAddress, type RemoteImageOptions, RemoteImages } from '../../lib/vision/remote-images.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'

const servers: Server[] = []
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    server.close()
  }
})

interface Host {
  readonly port: number
  readonly origin: string
  readonly requests: IncomingMessage[]
}

/** A server on an address of this machine. */
async function serve(
  answer: (request: IncomingMessage, response: ServerResponse) => void,
  address = '127.0.0.1',
): Promise<Host> {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    answer(request, response)
  })
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, address, resolve))
  const { port } = server.address() as AddressInfo
  return { port, origin: `http://${address}:${port}`, requests }
}

const bytes = Buffer.from('\x89PNG\r\n\x1a\nnot checked here', 'latin1')
const image = (_: unknown, response: ServerResponse) => response.setHeader('content-type', 'image/png').end(bytes)

/** Allowed to ask these servers. */
function remote(hosts: readonly Host[], options: RemoteImageOptions = {}): RemoteImages {
  return new RemoteImages({
    protocols: ['http:'],
    ports: hosts.map(({ port }) => port),
    allowPrivateAddresses: true,
    ...options,
  })
}

describe('what is fetched', () => {
  test('an image, without telling who asks', async () => {
    const host = await serve(image)
    expect(Buffer.from(await remote([host]).fetch(`${host.origin}/cat.png?x=1`))).toEqual(bytes)
    const [{ url, headers }] = host.requests as [IncomingMessage]
    expect(url).toBe('/cat.png?x=1')
    expect(Object.keys(headers).sort()).toEqual(['accept', 'accept-encoding', 'connection', 'host', 'user-agent'])
    expect(headers.connection).toBe('close')
  })

  test('in pieces, of no type, behind a redirect', async () => {
    const host = await serve((request, response) => {
      if (request.url === '/a') response.writeHead(302, { location: '/b' }).end('a body that is not read')
      else {
        response.write(bytes.subarray(0, 5))
        setTimeout(() => response.end(bytes.subarray(5)), 5)
      }
    })
    expect(Buffer.from(await remote([host]).fetch(new URL(`${host.origin}/a`)))).toEqual(bytes)
  })

  test('by a name that is resolved once, and cannot become another address between check and connection', async () => {
    const inside = await serve(image, '127.0.0.2')
    const outside = await serve(image)
    let asked = 0
    const rebinding = remote([inside, outside], {
      allowPrivateAddresses: (address) => address === '127.0.0.1',
      resolve: async () => [{ address: asked++ === 0 ? '127.0.0.1' : '127.0.0.2', family: 4 }],
    })
    expect(Buffer.from(await rebinding.fetch(`http://rebind.test:${outside.port}/`))).toEqual(bytes)
    expect(asked).toBe(1)
    expect(outside.requests[0]!.headers.host).toBe(`rebind.test:${outside.port}`)
    // Asked again it is checked again.
    await rejectsCode(rebinding.fetch(`http://rebind.test:${inside.port}/`), 'ERR_INVALID_ARGUMENT', /public address/)
    expect(asked).toBe(2)
    expect(inside.requests.length).toBe(0)
  })
})

describe('what is refused', () => {
  test.each([
    'http://127.0.0.1/',
    'http://localhost/',
    'http://0.0.0.0/',
    'http://2130706433/',
    'http://0x7f.1/',
    'http://0177.0.0.1/',
    'http://[::1]/',
    'http://[::]/',
    'http://[::ffff:127.0.0.1]/',
    'http://[64:ff9b::7f00:1]/',
    'http://[fe80::1]/',
    'http://[fd00::1]/',
    'http://169.254.169.254/latest/meta-data/',
    'http://10.0.0.1/',
    'http://172.31.255.255/',
    'http://192.168.1.1/',
    'http://100.64.0.1/',
  ])('%s, an address that is not public', async (url) => {
    const images = new RemoteImages({ protocols: ['http:'], timeoutMs: 2000 })
    await rejectsCode(images.fetch(url), 'ERR_INVALID_ARGUMENT', /expected a public address/)
  })

  test('a name with one private address among public ones, before anything is sent', async () => {
    const host = await serve(image)
    const resolve = async () => [
      { address: '93.184.216.34', family: 4 },
      { address: '127.0.0.1', family: 4 },
    ]
    const images = new RemoteImages({ protocols: ['http:'], ports: [host.port], resolve })
    await rejectsCode(images.fetch(`http://mixed.test:${host.port}/`), 'ERR_INVALID_ARGUMENT', /public address/)
    expect(host.requests.length).toBe(0)
  })

  test('redirects to what may not be asked, to nowhere, and without end', async () => {
    const inside = await serve(image, '127.0.0.2')
    const targets: Record<string, string | undefined> = {
      '/inside': `${inside.origin}/`,
      '/metadata': 'http://169.254.169.254/',
      '/file': 'file:///etc/passwd',
      '/port': 'http://127.0.0.1:22/',
      '/none': undefined,
      '/bad': 'http://',
      '/loop': '/loop',
    }
    const host = await serve((request, response) => {
      const location = targets[request.url!]
      response.writeHead(307, location === undefined ? {} : { location }).end()
    })
    const images = remote([host, inside], {
      ports: [host.port, inside.port, 80],
      allowPrivateAddresses: (address) => address === '127.0.0.1',
    })
    const refused = (path: string, message: RegExp) =>
      rejectsCode(images.fetch(`${host.origin}${path}`), 'ERR_INVALID_ARGUMENT', message)
    await refused('/inside', /public address/)
    await refused('/metadata', /public address/)
    await refused('/file', /expected http, got file/)
    await refused('/port', /expected port .*, got 22/)
    await refused('/none', /redirect to a URL/)
    await refused('/bad', /redirect to a URL/)
    await refused('/loop', /at most 3 redirects/)
    expect(inside.requests.length).toBe(0)
    expect(host.requests.filter(({ url }) => url === '/loop').length).toBe(4)
  })

  test('URLs of another kind', async () => {
    const images = new RemoteImages()
    const refused = (url: unknown, message: RegExp) =>
      rejectsCode(images.fetch(url as string), 'ERR_INVALID_ARGUMENT', message)
    await refused('http://example.com/', /expected https, got http/)
    await refused('file:///etc/passwd', /expected https, got file/)
    await refused('data:image/png;base64,AA', /expected https, got data/)
    await refused('https://user:secret@example.com/', /without credentials/)
    await refused('https://example.com:22/', /expected port 443 or 80, got 22/)
    await refused('not a URL', /expected a URL, got "not a URL"/)
    await refused(`https://example.com/${'a'.repeat(9000)}`, /expected a URL/)
    await refused(7, /expected a URL, got 7/)
    const some = new RemoteImages({ allowedHosts: ['images.example.com', '*.example.org'] })
    const host = (url: string) => rejectsCode(some.fetch(url), 'ERR_INVALID_ARGUMENT', /list of allowed ones/)
    await host('https://example.com/')
    await host('https://example.org/')
    await host('https://evilexample.org/')
    await host('https://images.example.com.evil.test/')
  })

  test('hosts of the list are asked, others are not', async () => {
    const host = await serve(image)
    const resolve = async () => [{ address: '127.0.0.1', family: 4 }]
    const images = remote([host], { allowedHosts: ['Images.example.com', '*.example.org'], resolve })
    for (const name of ['images.example.com', 'a.b.example.org']) {
      expect((await images.fetch(`http://${name}:${host.port}/`)).length).toBe(bytes.length)
    }
  })

  test('bodies that are too large, said or unsaid, or no images', async () => {
    const host = await serve((request, response) => {
      if (request.url === '/said') response.writeHead(200, { 'content-length': 10_000_000 }).write('x')
      else if (request.url === '/unsaid') {
        const more = () => {
          while (!response.destroyed && response.write(Buffer.alloc(65_536)));
        }
        response.on('drain', more)
        more()
      } else if (request.url === '/html') response.setHeader('content-type', 'text/html; charset=utf-8').end('<b>')
      else response.setHeader('content-encoding', 'gzip').end('x')
    })
    const images = remote([host], { maxBytes: 1_000_000 })
    const refused = (path: string, message: RegExp) =>
      rejectsCode(images.fetch(`${host.origin}${path}`), 'ERR_INVALID_ARGUMENT', message)
    await refused('/said', /at most 1000000 bytes/)
    await refused('/unsaid', /at most 1000000 bytes/)
    await refused('/html', /expected an image, got "text\/html"/)
    await refused('/zip', /content encoding/)
  })
})

describe('what fails', () => {
  test('errors, broken connections, closed ports, unknown names', async () => {
    const host = await serve((request, response) => {
      if (request.url === '/404') response.writeHead(404).end('an inner secret')
      else if (request.url === '/cut') {
        response.writeHead(200, { 'content-length': 1000 }).write('x', () => response.destroy())
      } else response.socket?.destroy()
    })
    const images = remote([host], { ports: [host.port, 1] })
    const failed = (url: string, message: RegExp) => rejectsCode(images.fetch(url), 'ERR_FILE', message)
    await failed(`${host.origin}/404`, /it answered 404$/)
    await failed(`${host.origin}/cut`, /the connection failed/)
    await failed(`${host.origin}/gone`, /the connection failed/)
    await failed('http://127.0.0.1:1/', /ECONNREFUSED/)
    const nowhere = remote([host], { resolve: () => Promise.reject(new Error('ENOTFOUND')) })
    await rejectsCode(nowhere.fetch(`http://nowhere.test:${host.port}/`), 'ERR_FILE', /name does not resolve/)
    const empty = remote([host], { resolve: async () => [] })
    await rejectsCode(empty.fetch(`http://nowhere.test:${host.port}/`), 'ERR_FILE', /name does not resolve/)
  })

  test('servers and resolvers that take their time', async () => {
    const host = await serve((request, response) => {
      // One says nothing, one drips.
      if (request.url !== '/drip') return
      const timer = setInterval(() => response.write('x'), 5)
      response.on('close', () => clearInterval(timer))
    })
    const images = remote([host], { timeoutMs: 60 })
    await rejectsCode(images.fetch(`${host.origin}/never`), 'ERR_FILE', /longer than 60 ms/)
    await rejectsCode(images.fetch(`${host.origin}/drip`), 'ERR_FILE', /longer than 60 ms/)
    const slow = remote([host], { timeoutMs: 60, resolve: () => new Promise(() => {}) })
    await rejectsCode(slow.fetch(`http://slow.test:${host.port}/`), 'ERR_FILE', /longer than 60 ms/)
    const one = remote([host], { timeoutMs: 60, maxConcurrent: 1 })
    const both = [one.fetch(`${host.origin}/never`), one.fetch(`${host.origin}/never`)]
    for (const fetched of both) await rejectsCode(fetched, 'ERR_FILE', /longer than 60 ms/)
  })

  test('an AbortSignal', async () => {
    const host = await serve(() => {})
    const abort = new AbortController()
    setTimeout(() => abort.abort(), 20)
    await rejectsCode(remote([host]).fetch(`${host.origin}/`, abort.signal), 'ERR_ABORTED')
    await rejectsCode(remote([host]).fetch(`${host.origin}/`, AbortSignal.abort()), 'ERR_ABORTED')
  })

  test('more at once than allowed wait their turn', async () => {
    let now = 0
    let most = 0
    const host = await serve((request, response) => {
      most = Math.max(most, ++now)
      setTimeout(() => {
        now--
        image(request, response)
      }, 10)
    })
    const images = remote([host], { maxConcurrent: 2 })
    const all = await Promise.all(Array.from({ length: 6 }, () => images.fetch(`${host.origin}/`)))
    expect(all.length).toBe(6)
    expect(most).toBe(2)
  })

  test('options out of range', () => {
    for (const [name, value] of Object.entries({
      allowedHosts: ['', 7],
      protocols: ['ftp:'],
      ports: ['80'],
      allowPrivateAddresses: 1,
      maxBytes: 0,
      timeoutMs: Number.POSITIVE_INFINITY,
      maxRedirects: -1,
      maxConcurrent: 0.5,
      resolve: 7,
    })) {
      throwsCode(() => new RemoteImages({ [name]: value }), 'ERR_INVALID_ARGUMENT', new RegExp(`RemoteImages: ${name}`))
    }
  })
})

test('public addresses', () => {
  const isPublic = [
    '8.8.8.8',
    '1.1.1.1',
    '172.32.0.1',
    '100.128.0.1',
    '2606:4700::1111',
    '2a00:1450::1',
    '::ffff:8.8.8.8',
  ]
  const isNot = [
    '0.1.2.3',
    '10.1.2.3',
    '100.127.255.255',
    '127.1.1.1',
    '169.254.0.1',
    '172.16.0.1',
    '192.0.0.1',
    '192.0.2.1',
    '192.168.0.1',
    '198.19.0.1',
    '198.51.100.7',
    '203.0.113.7',
    '224.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    'fe80::1%eth0',
    'fc00::1',
    'ff02::1',
    '::ffff:10.0.0.1',
    '::ffff:7f00:1',
    '::127.0.0.1',
    '64:ff9b::a00:1',
    '2001::1',
    '2001:db8::1',
    '2002:7f00:1::',
    '3fff::1',
    '',
    'x',
  ]
  expect(isPublic.filter((address) => !isPublicAddress(address))).toEqual([])
  expect(isNot.filter(isPublicAddress)).toEqual([])
})
