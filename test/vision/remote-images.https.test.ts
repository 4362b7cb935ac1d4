/** Remote images over TLS, against servers on this machine whose certificates an authority of the test has signed. */

import { createServer as createPlainServer, type Server as PlainServer } from 'node:http'
import { createServer, type Server } from 'node:https'
import {
  type AddressInfo,
  createServer as createSocketServer,
  type Socket,
  type Server as SocketServer,
} from 'node:net'
import type { TLSSocket } from 'node:tls'
import { afterEach, expect, test } from 'vitest'
import { type RemoteImageOptions, RemoteImages } from '../../lib/vision/remote-images.ts'
import { type Certificate, CertificateAuthority } from '../support/certificates.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'

const authority = new CertificateAuthority()
const certificate = authority.of('images.test')
const bytes = Buffer.from('\x89PNG\r\n\x1a\nnot checked here', 'latin1')

const closing: (() => void)[] = []
afterEach(() => {
  for (const close of closing.splice(0)) close()
})

async function listen(server: Server | PlainServer | SocketServer, address = '127.0.0.1'): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, address, resolve))
  closing.push(() => {
    if ('closeAllConnections' in server) server.closeAllConnections()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

interface Seen {
  readonly url: string | undefined
  readonly servername: string | false | undefined
  readonly address: string | undefined
}

async function serve(
  { cert, key }: Certificate,
  location?: string,
  address?: string,
): Promise<{ port: number; seen: Seen[] }> {
  const seen: Seen[] = []
  const server = createServer({ cert, key }, (request, response) => {
    const { servername, localAddress } = request.socket as TLSSocket & { servername?: string | false }
    seen.push({ url: request.url, servername, address: localAddress })
    if (request.url === '/moved') response.writeHead(302, { location }).end()
    else response.setHeader('content-type', 'image/png').end(bytes)
  })
  return { port: await listen(server, address), seen }
}

/** Names are those of this machine, and the authority is trusted. */
const remote = (ports: readonly number[], options: RemoteImageOptions = {}): RemoteImages =>
  new RemoteImages({
    ports,
    ca: authority.cert,
    allowPrivateAddresses: true,
    resolve: async () => [{ address: '127.0.0.1', family: 4 }],
    ...options,
  })

test('an image of a host whose certificate is right; the host is asked for by name', async () => {
  const { port, seen } = await serve(certificate)
  expect(Buffer.from(await remote([port]).fetch(`https://images.test:${port}/cat.png`))).toEqual(bytes)
  expect(seen).toEqual([{ url: '/cat.png', servername: 'images.test', address: '127.0.0.1' }])
})

test.each([
  ['of another host', authority.of('other.test'), 'images.test', /ERR_TLS_CERT_ALTNAME_INVALID/],
  ['for a name, asked for by address', certificate, '127.0.0.1', /ERR_TLS_CERT_ALTNAME_INVALID/],
  ['that has ended', authority.of('images.test', -1), 'images.test', /CERT_HAS_EXPIRED/],
  ['of another authority', new CertificateAuthority().of('images.test'), 'images.test', /CERT|UNABLE_TO/],
])('a certificate %s is refused before anything is asked', async (_, wrong, host, message) => {
  const { port, seen } = await serve(wrong)
  await rejectsCode(remote([port]).fetch(`https://${host}:${port}/`), 'ERR_FILE', message)
  expect(seen).toEqual([])
})

test('an authority of one’s own is trusted only where it is given, and must be PEM', async () => {
  const { port, seen } = await serve(certificate)
  const images = remote([port], { ca: undefined })
  await rejectsCode(images.fetch(`https://images.test:${port}/`), 'ERR_FILE', /UNABLE_TO_VERIFY_LEAF_SIGNATURE/)
  expect(seen).toEqual([])
  throwsCode(() => remote([port], { ca: 'not PEM' }), 'ERR_INVALID_ARGUMENT', /ca: expected certificates in PEM/)
  throwsCode(() => remote([port], { ca: 7 as unknown as string }), 'ERR_INVALID_ARGUMENT', /ca: expected/)
})

test('a redirect to http is followed only where http is allowed', async () => {
  let asked = 0
  const plain = createPlainServer((_, response) => {
    asked++
    response.setHeader('content-type', 'image/png').end(bytes)
  })
  const plainPort = await listen(plain)
  const { port } = await serve(certificate, `http://images.test:${plainPort}/`)
  const url = `https://images.test:${port}/moved`
  await rejectsCode(remote([port, plainPort]).fetch(url), 'ERR_INVALID_ARGUMENT', /expected https, got http/)
  expect(asked).toBe(0)
  const both = remote([port, plainPort], { protocols: ['https:', 'http:'] })
  expect(Buffer.from(await both.fetch(url))).toEqual(bytes)
  expect(asked).toBe(1)
})

test('a redirect from https to https is checked anew: name, certificate, address', async () => {
  const inside = await serve(authority.of('inside.test'), undefined, '127.0.0.2')
  const { port } = await serve(certificate, `https://inside.test:${inside.port}/`)
  const resolve = async (name: string) => [{ address: name === 'inside.test' ? '127.0.0.2' : '127.0.0.1', family: 4 }]
  const url = `https://images.test:${port}/moved`
  const ports = [port, inside.port]
  const allowPrivateAddresses = (address: string) => address === '127.0.0.1'
  await rejectsCode(
    remote(ports, { resolve, allowPrivateAddresses }).fetch(url),
    'ERR_INVALID_ARGUMENT',
    /public address/,
  )
  const hosts = remote(ports, { resolve, allowedHosts: ['images.test'] })
  await rejectsCode(hosts.fetch(url), 'ERR_INVALID_ARGUMENT', /list of allowed/)
  expect(inside.seen).toEqual([])
  expect(Buffer.from(await remote(ports, { resolve }).fetch(url))).toEqual(bytes)
  expect(inside.seen.map(({ servername }) => servername)).toEqual(['inside.test'])
})

test('the connection goes to the address that was checked, whatever the name becomes', async () => {
  const outside = await serve(certificate)
  const inside = await serve(certificate, undefined, '127.0.0.2')
  let asked = 0
  const images = remote([outside.port, inside.port], {
    allowPrivateAddresses: (address) => address === '127.0.0.1',
    resolve: async () => [{ address: asked++ === 0 ? '127.0.0.1' : '127.0.0.2', family: 4 }],
  })
  expect(Buffer.from(await images.fetch(`https://images.test:${outside.port}/`))).toEqual(bytes)
  expect(asked).toBe(1)
  expect(outside.seen.map(({ address }) => address)).toEqual(['127.0.0.1'])
  await rejectsCode(images.fetch(`https://images.test:${inside.port}/`), 'ERR_INVALID_ARGUMENT', /public address/)
  expect(inside.seen).toEqual([])
})

test('limits on bytes and time, also of a host that never finishes the handshake', async () => {
  const { port } = await serve(certificate)
  const url = `https://images.test:${port}/`
  await rejectsCode(
    remote([port], { maxBytes: bytes.length - 1 }).fetch(url),
    'ERR_INVALID_ARGUMENT',
    /at most 23 bytes/,
  )
  const sockets: Socket[] = []
  const silent = await listen(createSocketServer((socket) => void sockets.push(socket)))
  const hurried = remote([silent], { timeoutMs: 100 })
  await rejectsCode(hurried.fetch(`https://images.test:${silent}/`), 'ERR_FILE', /longer than 100 ms/)
  for (const socket of sockets) socket.destroy()
  const aborted = remote([silent]).fetch(`https://images.test:${silent}/`, AbortSignal.timeout(50))
  await rejectsCode(aborted, 'ERR_ABORTED', /AbortSignal/)
  for (const socket of sockets) socket.destroy()
})
