/** The models that the clients' tests talk to. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Gemma } from '../../lib/index.ts'
import { exactIsa, tinyFolder } from '../engine/models.ts'
import { openDevice } from '../support/devices.ts'

/** The small model's weights, read as an embedding model's. */
export async function loadEmbedding(): Promise<AsyncDisposable & { readonly gemma: Gemma }> {
  const folder = mkdtempSync(join(tmpdir(), 'lapidary-clients-'))
  cpSync(tinyFolder, folder, { recursive: true })
  const file = join(folder, 'config.json')
  const config = JSON.parse(readFileSync(file, 'utf8')) as object
  writeFileSync(file, JSON.stringify({ ...config, use_bidirectional_attention: true }))
  const gemma = await Gemma.load(folder, { device: await openDevice(exactIsa, 1) })
  return {
    gemma,
    async [Symbol.asyncDispose]() {
      await gemma[Symbol.asyncDispose]()
      rmSync(folder, { recursive: true })
    },
  }
}
