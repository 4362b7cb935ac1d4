/** `--image`, with a small model that sees. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Gemma } from '../../lib/index.ts'
import { tower, writeHf } from '../engine/vision-model.ts'
import { compileLibrary } from '../support/child.ts'
import { jsonLines, runCli } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-cli-image-'))
const [model, photo, broken] = ['model', 'photo.png', 'broken.png'].map((name) => join(scratch, name)) as [
  string,
  string,
  string,
]
beforeAll(async () => {
  compileLibrary()
  writeHf(model)
  await sharp({ create: { width: 60, height: 40, channels: 3, background: '#4060c0' } })
    .png()
    .toFile(photo)
  writeFileSync(broken, 'no image')
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const short = ['-m', '', '--temperature', '0', '-n', '4', '--stop-tokens', '4095', '--json', '--context-length', '256']
const args = (command: string, ...more: string[]) => [command, ...short.map((arg) => arg || model), ...more]

interface Line {
  readonly type: string
  readonly text: string
  readonly promptTokens: number
}
const results = (stdout: string) => jsonLines<Line>(stdout).filter(({ type }) => type === 'result')

test('generate shows images before the text', async () => {
  const plain = await runCli(args('generate', 'This shows'))
  const one = await runCli(args('generate', '--image', photo, 'This shows'))
  const two = await runCli(args('generate', '-i', photo, '-i', photo, 'This shows'))
  expect([plain.code, one.code, two.code]).toEqual([0, 0, 0])
  const tokens = [plain, one, two].map(({ stdout }) => results(stdout)[0]!.promptTokens)
  expect(tokens[1]! - tokens[0]!).toBeGreaterThan(17)
  expect(tokens[2]! - tokens[1]!).toBeGreaterThan(17)
})

test('chat shows images with the first message, and with /image later', async () => {
  const { code, stdout, stderr } = await runCli(args('chat', '--image', photo), {
    input: `What is this?\nAnd now?\n/image ${photo}\nAnd this?\n`,
  })
  expect(code).toBe(0)
  const [first, second, third] = results(stdout).map(({ promptTokens }) => promptTokens) as [number, number, number]
  expect(first).toBeGreaterThan(17)
  expect(third - second).toBeGreaterThan(second - first + 16)
  expect(stderr).toMatch(/an image with the next message/)
})

test('what cannot be shown is an error', async () => {
  const bad = await runCli(args('generate', '--image', broken, 'x'))
  expect([bad.code, bad.stdout]).toEqual([1, ''])
  expect(bad.stderr).toMatch(
    /error ERR_INVALID_ARGUMENT: prompt\[0\]: image: expected JPEG, PNG, WebP, AVIF or GIF, got 8 bytes/,
  )
  const blind = await runCli(['generate', '--image', photo, 'x'])
  expect(blind.code).toBe(1)
  expect(blind.stderr).toMatch(/expected a model that sees images/)
})

test('inspect tells how a model sees', async () => {
  const { code, stdout } = await runCli(['inspect', model])
  expect(code).toBe(0)
  expect(stdout).toMatch(/images +48 × 48 pixels, 16 tokens, 2 layers, \d+ KiB in memory\n/)
  const json = await runCli(['inspect', '--json', model])
  const { vision } = JSON.parse(json.stdout)
  expect(vision).toMatchObject({ path: model, layers: 2, imageSize: 48, imageTokens: 16 })
  // What is packed then: the matrices, and in f32 norms, biases and positions.
  const { layers, width, ffnSize, imageSize, patchSize } = tower
  const vectors = width * (1 + (imageSize / patchSize) ** 2 + layers * 9 + 3) + layers * ffnSize
  await using gemma = await Gemma.load(model, { threads: 1, packedCache: false, contextLength: 64 })
  await gemma.encodeImage({ data: new Uint8Array(imageSize ** 2 * 3), width: imageSize, height: imageSize })
  expect(vision.packed).toBe((gemma.info().vision?.weightBytes ?? 0) + 4 * vectors)
})
