/**
 * Images of remote URLs: for servers that let their clients name them. Off unless asked for, since a URL in a request makes the server
 * fetch (server-side request forgery, CWE-918).
 * @module
 */
import { lookup as dnsLookup, type LookupAddress } from 'node:dns'
import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { BlockList, isIP, isIPv4, isIPv6, type LookupFunction, type Socket } from 'node:net'
import { createSecureContext } from 'node:tls'
import { describeValue, LapidaryError } from '../errors.ts'

/** Resolves a name to addresses. */
export type Resolve = (hostname: string) => Promise<readonly LookupAddress[]>

/** What {@link RemoteImages} may fetch. */
export interface RemoteImageOptions {
  /** Hosts that may be asked, as in a URL (`images.example.com`, `*.example.com` for those below it). Default: every public one. */
  readonly allowedHosts?: readonly string[] | undefined
  /** Default `https:` only. */
  readonly protocols?: readonly ('https:' | 'http:')[] | undefined
  /** Default 443 and 80. */
  readonly ports?: readonly number[] | undefined
  /**
   * Whether addresses of the machine itself and of private networks may be asked, or which: a function is given each. Default false; true is
   * for tests and closed networks.
   */
  readonly allowPrivateAddresses?: boolean | ((address: string) => boolean) | undefined
  /** Bytes of one image. Default 2^24 (16 MiB). */
  readonly maxBytes?: number | undefined
  /** For everything, from the name to the last byte. Default 10,000. */
  readonly timeoutMs?: number | undefined
  /** Default 3. */
  readonly maxRedirects?: number | undefined
  /** Fetches at a time; more wait, within their time. Default 8. */
  readonly maxConcurrent?: number | undefined
  /** Authorities that certificates may come from, in PEM, in place of Node's own: for networks with one of their own. */
  readonly ca?: string | undefined
  /** Default: the system's resolver. */
  readonly resolve?: Resolve | undefined
}

type Checked = { readonly [K in Exclude<keyof RemoteImageOptions, 'ca'>]-?: NonNullable<RemoteImageOptions[K]> } & Pick<
  RemoteImageOptions,
  'ca'
>

/**
 * Fetches images with limits on size, time, redirects and addresses. A name is resolved once per request, all its addresses are checked, and
 * the connection goes to one of those: a name that resolves to another address a moment later (DNS rebinding) gains nothing. Redirects are
 * checked as the first URL is. No cookies, credentials, proxies or kept connections.
 *
 * @example
 * const remote = new RemoteImages({ allowedHosts: ['*.example.com'] })
 * const image = await remote.fetch('https://images.example.com/cat.png')   // the bytes, for { type: 'image', image }
 */
export class RemoteImages {
  readonly #options: Checked
  #running = 0
  readonly #waiting: (() => void)[] = []

  /** @throws ERR_INVALID_ARGUMENT for an option out of range. */
  constructor(options: RemoteImageOptions = {}) {
    this.#options = checkOptions(options)
  }

  /**
   * The bytes of a remote image. What they are is found out when they are decoded.
   *
   * @throws (rejects) ERR_INVALID_ARGUMENT for a URL, host, port or address that is not allowed, a body that is too large or no image, too
   *   many redirects; ERR_FILE if the server cannot be reached, is too slow or answers with an error; ERR_ABORTED. Messages name the host,
   *   never what an inner server said.
   */
  async fetch(url: string | URL, signal?: AbortSignal): Promise<Uint8Array> {
    const first = parseUrl(url)
    const timeout = AbortSignal.timeout(this.#options.timeoutMs)
    const ended = signal ? AbortSignal.any([signal, timeout]) : timeout
    try {
      await this.#turn(ended)
      try {
        return await this.#follow(first, ended)
      } finally {
        // The turn goes to whoever waits longest.
        const next = this.#waiting.shift()
        if (next) next()
        else this.#running--
      }
    } catch (error) {
      if (signal?.aborted) {
        throw new LapidaryError('ERR_ABORTED', 'image: the fetch was ended by its AbortSignal', {
          cause: signal.reason,
        })
      }
      if (timeout.aborted) throw unreachable(first, `it took longer than ${this.#options.timeoutMs} ms`, error)
      throw error
    }
  }

  async #turn(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (this.#running < this.#options.maxConcurrent) {
      this.#running++
      return
    }
    await new Promise<void>((resolve, reject) => {
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1)
        reject(signal.reason)
      }
      const enter = () => {
        signal.removeEventListener('abort', leave)
        resolve()
      }
      this.#waiting.push(enter)
      signal.addEventListener('abort', leave, { once: true })
    })
  }

  async #follow(first: URL, signal: AbortSignal): Promise<Uint8Array> {
    const { maxRedirects } = this.#options
    let url = first
    for (let redirects = 0; redirects <= maxRedirects; redirects++) {
      const answer = await this.#get(url, signal)
      if (answer instanceof Uint8Array) return answer
      url = answer
    }
    throw refuse(first, `expected at most ${maxRedirects} redirects, got more`)
  }

  /** The body, or where it has moved to. */
  async #get(url: URL, signal: AbortSignal): Promise<Uint8Array | URL> {
    const { maxBytes, ca } = this.#options
    const address = await this.#addressOf(url, signal)
    return await new Promise((resolve, reject) => {
      const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, {
        // A connection of its own, to the address that was checked; TLS still asks for the name.
        agent: false,
        lookup: pinned(address),
        signal,
        ...(ca !== undefined && { ca }),
        maxHeaderSize: 16_384,
        headers: { accept: 'image/*', 'accept-encoding': 'identity', 'user-agent': 'lapidary' },
      })
      const fail = (error: unknown) => {
        request.destroy()
        reject(error)
      }
      request.on('error', (error) => reject(unreachable(url, describeNetwork(error), error)))
      request.on('socket', (socket: Socket) => {
        socket.once('connect', () => {
          const { remoteAddress = '' } = socket
          if (!this.#mayAsk(remoteAddress)) fail(refuse(url, 'expected a public address'))
        })
      })
      request.on('response', (response) => {
        this.#receive(url, request, response, maxBytes).then(resolve, fail)
      })
      request.end()
    })
  }

  async #receive(
    url: URL,
    request: ClientRequest,
    response: IncomingMessage,
    maxBytes: number,
  ): Promise<Uint8Array | URL> {
    const { statusCode = 0, headers } = response
    if ([301, 302, 303, 307, 308].includes(statusCode)) {
      request.destroy()
      if (!headers.location || !URL.canParse(headers.location, url.href))
        throw refuse(url, 'expected a redirect to a URL')
      return new URL(headers.location, url)
    }
    if (statusCode !== 200) throw unreachable(url, `it answered ${statusCode}`)
    const type = headers['content-type'] ?? ''
    if (type !== '' && !/^\s*(image\/|application\/octet-stream)/i.test(type)) {
      throw refuse(url, `expected an image, got ${describeType(type)}`)
    }
    if (headers['content-encoding'] && headers['content-encoding'] !== 'identity') {
      throw refuse(url, 'expected an image as it is, got one with a content encoding')
    }
    const tooLarge = () => refuse(url, `expected at most ${maxBytes} bytes, got more`)
    if (Number(headers['content-length'] ?? 0) > maxBytes) throw tooLarge()
    const parts: Buffer[] = []
    let length = 0
    try {
      for await (const part of response as AsyncIterable<Buffer>) {
        length += part.length
        if (length > maxBytes) throw tooLarge()
        parts.push(part)
      }
    } catch (error) {
      throw error instanceof LapidaryError ? error : unreachable(url, describeNetwork(error), error)
    }
    return Buffer.concat(parts, length)
  }

  /** The address to connect to, of a URL that may be asked. */
  async #addressOf(url: URL, signal: AbortSignal): Promise<LookupAddress> {
    const { protocols, ports, allowedHosts, resolve } = this.#options
    if (!(protocols as readonly string[]).includes(url.protocol)) {
      throw refuse(
        url,
        `expected ${protocols.map((protocol) => protocol.slice(0, -1)).join(' or ')}, got ${url.protocol.slice(0, -1)}`,
      )
    }
    if (url.username !== '' || url.password !== '') throw refuse(url, 'expected a URL without credentials')
    const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
    if (!ports.includes(port)) throw refuse(url, `expected port ${ports.join(' or ')}, got ${port}`)
    const hostname = url.hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '')
    if (allowedHosts.length > 0 && !allowedHosts.some((pattern) => matchesHost(hostname, pattern))) {
      throw refuse(url, 'expected a host of the list of allowed ones')
    }
    const addresses = isIP(hostname)
      ? [{ address: hostname, family: isIP(hostname) }]
      : await within(resolveName(url, hostname, resolve), signal)
    // One that is not public among several is a trap, or a mistake.
    if (!addresses.every(({ address }) => this.#mayAsk(address))) {
      throw refuse(url, 'expected a public address')
    }
    return addresses[0] as LookupAddress
  }

  #mayAsk(address: string): boolean {
    const { allowPrivateAddresses: allow } = this.#options
    return isPublicAddress(address) || (typeof allow === 'function' ? allow(address) : allow)
  }
}

async function resolveName(url: URL, hostname: string, resolve: Resolve): Promise<readonly LookupAddress[]> {
  let addresses: readonly LookupAddress[]
  try {
    addresses = await resolve(hostname)
  } catch (error) {
    throw unreachable(url, 'its name does not resolve', error)
  }
  if (addresses.length === 0 || !addresses.every(({ address }) => isIP(address))) {
    throw unreachable(url, 'its name does not resolve')
  }
  return addresses
}

const systemResolve: Resolve = (hostname) =>
  new Promise((resolve, reject) => {
    dnsLookup(hostname, { all: true, verbatim: true }, (error, addresses) =>
      error ? reject(error) : resolve(addresses),
    )
  })

/** Gives up a wait that cannot be ended. */
async function within<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let leave = () => {}
  const left = new Promise<never>((_, reject) => {
    leave = () => reject(signal.reason)
  })
  work.catch(() => {})
  if (signal.aborted) throw signal.reason
  signal.addEventListener('abort', leave, { once: true })
  try {
    return await Promise.race([work, left])
  } finally {
    signal.removeEventListener('abort', leave)
  }
}

/** A lookup that knows one answer. */
function pinned({ address, family }: LookupAddress): LookupFunction {
  return (_hostname, options, callback) => {
    if (options.all) callback(null, [{ address, family }])
    else callback(null, address, family)
  }
}

const notPublic = new BlockList()
// RFC 6890 and the IANA special-purpose registries: this network, private, shared, loopback, link-local (cloud metadata), protocol assignments,
// documentation, 6to4 relays, benchmarking, multicast, reserved, broadcast.
for (const [network, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
] as const) {
  notPublic.addSubnet(network, prefix, 'ipv4')
}
// Of the global unicast addresses those with a meaning of their own, some of which hold an IPv4 address: Teredo and the rest of 2001::/23,
// documentation, 6to4.
const globalUnicast = new BlockList()
globalUnicast.addSubnet('2000::', 3, 'ipv6')
for (const [network, prefix] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20],
] as const) {
  notPublic.addSubnet(network, prefix, 'ipv6')
}

/** Whether an address is one of the public internet. IPv4 addresses in IPv6 ones (`::ffff:10.0.0.1`, NAT64) are not. */
export function isPublicAddress(address: string): boolean {
  if (isIPv4(address)) return !notPublic.check(address, 'ipv4')
  const plain = address.split('%')[0] as string
  // A socket of both families writes IPv4 peers like this.
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(plain)?.[1]
  if (mapped !== undefined) return isIPv4(mapped) && !notPublic.check(mapped, 'ipv4')
  return isIPv6(plain) && globalUnicast.check(plain, 'ipv6') && !notPublic.check(plain, 'ipv6')
}

function matchesHost(hostname: string, pattern: string): boolean {
  const [host, wanted] = [hostname.toLowerCase(), pattern.toLowerCase()]
  return wanted.startsWith('*.') ? host.endsWith(wanted.slice(1)) && host.length > wanted.length - 1 : host === wanted
}

function checkOptions(options: RemoteImageOptions): Checked {
  const {
    allowedHosts = [],
    protocols = ['https:'],
    ports = [443, 80],
    allowPrivateAddresses = false,
    maxBytes = 2 ** 24,
    timeoutMs = 10_000,
    maxRedirects = 3,
    maxConcurrent = 8,
    ca,
    resolve = systemResolve,
  } = options
  const check = (name: string, holds: boolean, expected: string, got: unknown) => {
    if (holds) return
    const problem = `RemoteImages: ${name}: expected ${expected}, got ${describeValue(got)}`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', problem)
  }
  const isList = (list: unknown, holds: (item: unknown) => boolean) => Array.isArray(list) && list.every(holds)
  check(
    'allowedHosts',
    isList(allowedHosts, (host) => typeof host === 'string' && host !== ''),
    'names',
    allowedHosts,
  )
  check(
    'protocols',
    isList(protocols, (name) => name === 'https:' || name === 'http:'),
    'https: or http:',
    protocols,
  )
  check(
    'ports',
    isList(ports, (port) => Number.isInteger(port)),
    'port numbers',
    ports,
  )
  const isChoice = typeof allowPrivateAddresses === 'boolean' || typeof allowPrivateAddresses === 'function'
  check('allowPrivateAddresses', isChoice, 'true, false or a function', allowPrivateAddresses)
  check('ca', ca === undefined || isPem(ca), 'certificates in PEM', ca)
  check('resolve', typeof resolve === 'function', 'a function', resolve)
  const counts = { maxBytes, timeoutMs, maxConcurrent, maxRedirects: maxRedirects + 1 }
  for (const [name, value] of Object.entries(counts)) {
    check(
      name,
      Number.isSafeInteger(value) && value >= 1 && value < 2 ** 31,
      'a positive integer',
      options[name as keyof RemoteImageOptions],
    )
  }
  return {
    allowedHosts,
    protocols,
    ports,
    allowPrivateAddresses,
    maxBytes,
    timeoutMs,
    maxRedirects,
    maxConcurrent,
    ca,
    resolve,
  }
}

function isPem(ca: unknown): boolean {
  if (typeof ca !== 'string' || !ca.includes('-----BEGIN CERTIFICATE-----')) return false
  try {
    createSecureContext({ ca })
    return true
  } catch {
    return false
  }
}

function parseUrl(url: unknown): URL {
  if (url instanceof URL) return url
  if (typeof url === 'string' && url.length <= 8192 && URL.canParse(url)) return new URL(url)
  const got = typeof url === 'string' ? JSON.stringify(url.slice(0, 80)) : describeValue(url)
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `image: expected a URL, got ${got}`)
}

function refuse({ host }: URL, problem: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `image: ${host}: ${problem}`)
}

function unreachable({ host }: URL, problem: string, cause?: unknown): LapidaryError {
  return new LapidaryError('ERR_FILE', `image: ${host}: ${problem}`, cause === undefined ? undefined : { cause })
}

/** A code such as ECONNREFUSED says enough; a message may hold an inner address. */
function describeNetwork(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException
  return typeof code === 'string' ? `the connection failed: ${code}` : 'the connection failed'
}

function describeType(type: string): string {
  return JSON.stringify((type.split(';')[0] as string).slice(0, 60))
}
