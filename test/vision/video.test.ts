/** Frames of videos: what ffmpeg is told, and what is made of what it says. A stand-in answers, since ffmpeg is the user's. */

import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, expect, test } from 'vitest'
import { extractFrames } from '../../lib/vision/video.ts'
import { rejectsCode } from '../support/errors.ts'

const root = mkdtempSync(path.join(tmpdir(), 'lapidary-video-'))
afterAll(() => rmSync(root, { recursive: true }))
const video = path.join(root, '-a talk.mp4')
writeFileSync(video, 'not read by the stand-in')

/** A program that runs this in place of ffmpeg, with its arguments as `args`. */
function standIn(name: string, body: string): string {
  const file = path.join(root, name)
  writeFileSync(file, `#!${process.execPath}\nconst args = process.argv.slice(2)\n${body}\n`)
  chmodSync(file, 0o755)
  return file
}

const frames = `
const count = Number(args[args.indexOf('-frames:v') + 1])
require('node:fs').writeFileSync(${JSON.stringify(path.join(root, 'args.json'))}, JSON.stringify(args))
for (let i = 0; i < Math.min(count, 3); i++) process.stdout.write(Buffer.concat([Buffer.from('P6\\n2 1\\n255\\n'), Buffer.alloc(6, 10 + i)]))
`

test('frames with their times, and a file that is only ever a file', async () => {
  const ffmpeg = standIn('frames.cjs', frames)
  const { frames: all, timestamps } = await extractFrames(video, { ffmpeg, fps: 0.5, maxFrames: 8 })
  expect(timestamps).toEqual([0, 2, 4])
  expect(all.map(({ width, height, channels, data }) => [width, height, channels, ...data])).toEqual(
    [10, 11, 12].map((value) => [2, 1, 3, ...Array.from({ length: 6 }, () => value)]),
  )
  const args = JSON.parse((await import('node:fs')).readFileSync(path.join(root, 'args.json'), 'utf8')) as string[]
  expect(args[args.indexOf('-i') + 1]).toBe(`file:${video}`)
  expect(args[args.indexOf('-protocol_whitelist') + 1]).toBe('file')
  expect(args[args.indexOf('-vf') + 1]).toMatch(/^fps=0.5:round=up,scale=/)
  expect((await extractFrames(pathToFileURL(video), { ffmpeg, maxFrames: 2 })).timestamps).toEqual([0, 1])
})

test('what goes wrong', async () => {
  await rejectsCode(
    extractFrames(video, { ffmpeg: path.join(root, 'absent') }),
    'ERR_FILE',
    /expected the program .*not installed/,
  )
  const failing = standIn('failing.cjs', "console.error('Invalid data found'); process.exit(1)")
  await rejectsCode(extractFrames(video, { ffmpeg: failing }), 'ERR_FILE', /talk\.mp4: .*: Invalid data found/)
  await rejectsCode(extractFrames(video, { ffmpeg: standIn('none.cjs', '') }), 'ERR_FILE', /at least one frame/)
  const damaged = standIn('damaged.cjs', "process.stdout.write('P6\\n2 1\\n255\\nabc')")
  await rejectsCode(extractFrames(video, { ffmpeg: damaged }), 'ERR_DATA_CORRUPT', /frame 0/)
  await rejectsCode(extractFrames(path.join(root, 'absent.mp4')), 'ERR_FILE', /absent/)
  await rejectsCode(extractFrames(root), 'ERR_FILE', /expected a file/)
  await rejectsCode(extractFrames(''), 'ERR_INVALID_ARGUMENT', /video/)
  await rejectsCode(extractFrames(new URL('https://example.com/a.mp4')), 'ERR_INVALID_ARGUMENT', /video/)
  await rejectsCode(extractFrames(video, { fps: 0 }), 'ERR_INVALID_ARGUMENT', /fps/)
  await rejectsCode(extractFrames(video, { maxFrames: 1e6 }), 'ERR_INVALID_ARGUMENT', /maxFrames/)
  const slow = standIn('slow.cjs', 'setTimeout(() => {}, 30_000)')
  const abort = new AbortController()
  setTimeout(() => abort.abort(), 200)
  await rejectsCode(extractFrames(video, { ffmpeg: slow, signal: abort.signal }), 'ERR_ABORTED')
  await rejectsCode(extractFrames(video, { ffmpeg: slow, signal: AbortSignal.abort() }), 'ERR_ABORTED')
})

const isInstalled = spawnSync('ffmpeg', ['-version']).status === 0

test.skipIf(!isInstalled)(
  `frames of a real video, by the ffmpeg in PATH${isInstalled ? '' : ': it is not installed'}`,
  async () => {
    // Four seconds: red, then blue; an odd size, so that padding would show.
    const file = path.join(root, 'colours.avi')
    const colour = (name: string) => ['-f', 'lavfi', '-i', `color=${name}:size=62x34:rate=10:duration=2`]
    const join = ['-filter_complex', '[0][1]concat=n=2', '-c:v', 'rawvideo', '-pix_fmt', 'bgr24']
    execFileSync('ffmpeg', ['-v', 'error', '-y', ...colour('red'), ...colour('blue'), ...join, file])
    const { frames, timestamps } = await extractFrames(file)
    expect(timestamps).toEqual([0, 1, 2, 3])
    for (const [index, { data, width, height }] of frames.entries()) {
      expect([width, height, data.length]).toEqual([62, 34, 62 * 34 * 3])
      for (const at of [0, data.length - 3]) {
        const [r = 0, g, b = 0] = data.subarray(at, at + 3)
        expect(g).toBeLessThan(8)
        expect(index < 2 ? r : b).toBeGreaterThan(240)
      }
    }
    expect((await extractFrames(file, { fps: 2, maxFrames: 3 })).timestamps).toEqual([0, 0.5, 1])
    writeFileSync(file, 'no video')
    await rejectsCode(extractFrames(file), 'ERR_FILE', /colours\.avi: ffmpeg: /)
  },
)
