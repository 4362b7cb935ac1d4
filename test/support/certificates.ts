/**
 * X.509 certificates made on the spot (RFC 5280, DER as X.690 has it), so that TLS is tested without a key in the repository, without
 * openssl and without a date on which the tests begin to fail.
 */

import { generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'

/** PEM of a certificate and of its key. */
export interface Certificate {
  readonly cert: string
  readonly key: string
}

interface Issuer extends Certificate {
  readonly name: string
  readonly privateKey: KeyObject
}

function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts)
  const size = body.length
  const length = size < 128 ? [size] : size < 256 ? [0x81, size] : [0x82, size >> 8, size & 255]
  return Buffer.concat([Buffer.from([tag, ...length]), body])
}
const sequence = (...parts: readonly Uint8Array[]) => der(0x30, ...parts)
const integer = (bytes: Uint8Array) => der(0x02, bytes)
const octets = (...parts: readonly Uint8Array[]) => der(0x04, ...parts)
const bits = (bytes: Uint8Array) => der(0x03, Buffer.of(0), bytes)
/** Arcs below 128, or given as bytes. */
const objectId = (...bytes: readonly number[]) => der(0x06, Buffer.from(bytes))
const time = (date: Date) => der(0x18, Buffer.from(`${date.toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`))
const commonName = (name: string) => sequence(der(0x31, sequence(objectId(0x55, 4, 3), der(0x0c, Buffer.from(name)))))
const yes = der(0x01, Buffer.of(0xff))

const ecdsaWithSha256 = sequence(objectId(0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2))
const basicConstraints = objectId(0x55, 0x1d, 19)
const subjectAltName = objectId(0x55, 0x1d, 17)

function issue(subject: string, extension: Uint8Array, issuer: Issuer | undefined, end: Date): Issuer {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const serial = randomBytes(8)
  serial[0] = 0x40 // positive, and no leading zero
  const body = sequence(
    der(0xa0, integer(Buffer.of(2))),
    integer(serial),
    ecdsaWithSha256,
    commonName(issuer?.name ?? subject),
    sequence(time(new Date(Date.now() - 2 * 86_400_000)), time(end)),
    commonName(subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(extension)),
  )
  const signed = sequence(body, ecdsaWithSha256, bits(sign('sha256', body, issuer?.privateKey ?? privateKey)))
  const lines = signed
    .toString('base64')
    .match(/.{1,64}/g)!
    .join('\n')
  return {
    name: subject,
    privateKey,
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  }
}

/** An authority that nobody knows yet, and what it says of hosts. */
export class CertificateAuthority {
  readonly #root: Issuer

  constructor() {
    const isAuthority = sequence(basicConstraints, yes, octets(sequence(yes)))
    this.#root = issue('a test’s authority', isAuthority, undefined, new Date(Date.now() + 86_400_000))
  }

  /** PEM, for those who trust it. */
  get cert(): string {
    return this.#root.cert
  }

  /** @param days Until it ends; below 0 it has. Default 1. */
  of(hostname: string, days = 1): Certificate {
    const names = sequence(subjectAltName, octets(sequence(der(0x82, Buffer.from(hostname)))))
    return issue(hostname, names, this.#root, new Date(Date.now() + days * 86_400_000))
  }
}
