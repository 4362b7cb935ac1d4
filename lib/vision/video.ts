/**
 * Frames of a video file, by the ffmpeg that its user has installed.
 * @module
 */
import { spawn } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { describeValue, LapidaryError } from '../errors.ts'
import type { RawImage } from './image-source.ts'

/** Which frames {@link extractFrames} takes. */
export interface VideoOptions {
  /** Frames per second. Default 1. */
  readonly fps?: number | undefined
  /** Frames at most, from the beginning. An image costs a model some 260 tokens. Default 16. */
  readonly maxFrames?: number | undefined
  /** The program. Default `ffmpeg`, looked up in PATH. */
  readonly ffmpeg?: string | undefined
}

/** Frames larger than this on a side are reduced by ffmpeg, evenly: twice what the model sees. */
const largestSide = 1792
const mostFrames = 4096

/**
 * Extracts frames at a constant rate. The file is opened by its path only: a playlist cannot make ffmpeg fetch anything.
 *
 * @returns Frames as raw RGB, and their times in seconds.
 * @throws (rejects) ERR_FILE if there is no ffmpeg, no such file, or no video in it, with what ffmpeg says; ERR_INVALID_ARGUMENT for an
 *   option; ERR_ABORTED.
 * @example
 * const { frames, timestamps } = await extractFrames('talk.mp4', { fps: 0.5, maxFrames: 8 })
 */
export async function extractFrames(
  video: string | URL,
  options: VideoOptions & { readonly signal?: AbortSignal | undefined } = {},
): Promise<{ frames: RawImage[]; timestamps: number[] }> {
  const { fps = 1, maxFrames = 16, ffmpeg = 'ffmpeg', signal } = options
  const check = (name: string, value: unknown, holds: boolean, expected: string) => {
    if (!holds) throw new LapidaryError('ERR_INVALID_ARGUMENT', `video: ${name}: expected ${expected}, got ${value}`)
  }
  check('fps', fps, typeof fps === 'number' && fps > 0 && fps <= 1000, 'a number above 0, at most 1000')
  const isCount = Number.isInteger(maxFrames) && maxFrames >= 1 && maxFrames <= mostFrames
  check('maxFrames', maxFrames, isCount, `an integer from 1 to ${mostFrames}`)
  const path = await fileOf(video)
  const fit = `min(1\\,${largestSide}/max(iw\\,ih))`
  const args = [
    ...['-v', 'error', '-nostdin', '-protocol_whitelist', 'file', '-i', `file:${path}`, '-an', '-sn', '-dn'],
    ...['-vf', `fps=${fps}:round=up,scale=w='max(1\\,trunc(iw*${fit}))':h='max(1\\,trunc(ih*${fit}))':flags=area`],
    ...['-frames:v', String(maxFrames), '-f', 'image2pipe', '-c:v', 'ppm', '-pix_fmt', 'rgb24', 'pipe:1'],
  ]
  const frames = parsePpm(await run(ffmpeg, args, path, signal), path)
  if (frames.length === 0) throw new LapidaryError('ERR_FILE', `video: ${path}: expected at least one frame, got none`)
  return { frames, timestamps: frames.map((_, index) => index / fps) }
}

async function fileOf(video: unknown): Promise<string> {
  const isPath = typeof video === 'string' && video !== '' && !video.includes('\0')
  if (!isPath && !(video instanceof URL && video.protocol === 'file:')) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `video: expected the path of a file, got ${describeValue(video)}`)
  }
  const path = isPath ? video : fileURLToPath(video as URL)
  try {
    if ((await stat(path)).isFile()) return path
  } catch (cause) {
    throw new LapidaryError('ERR_FILE', `video: ${(cause as Error).message}`, { cause })
  }
  throw new LapidaryError('ERR_FILE', `video: ${path}: expected a file, got something else`)
}

/** Standard output of a program. */
async function run(program: string, args: string[], path: string, signal: AbortSignal | undefined): Promise<Buffer> {
  const aborted = () => new LapidaryError('ERR_ABORTED', `video: ${path}: aborted`, { cause: signal?.reason })
  if (signal?.aborted) throw aborted()
  return await new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], windowsHide: true })
    const output: Buffer[] = []
    let complaint = ''
    const stop = () => child.kill('SIGKILL')
    signal?.addEventListener('abort', stop, { once: true })
    child.stdout.on('data', (part: Buffer) => output.push(part))
    child.stderr.on('data', (part: Buffer) => {
      complaint = (complaint + part.toString()).slice(0, 2000)
    })
    child.on('error', (cause: NodeJS.ErrnoException) => {
      signal?.removeEventListener('abort', stop)
      const problem =
        cause.code === 'ENOENT' ? 'it is not installed, or not in PATH; give the frames as images' : cause.message
      reject(
        new LapidaryError('ERR_FILE', `video: expected the program ${program} to extract frames: ${problem}`, {
          cause,
        }),
      )
    })
    child.on('close', (status) => {
      signal?.removeEventListener('abort', stop)
      if (signal?.aborted) reject(aborted())
      else if (status === 0) resolve(Buffer.concat(output))
      else {
        const said = complaint.trim().split('\n')[0] || `it ended with ${status}`
        reject(new LapidaryError('ERR_FILE', `video: ${path}: ${program}: ${said}`))
      }
    })
  })
}

/** Images in the binary PPM format, one after the other: `P6 width height 255`, a space, and RGB. */
function parsePpm(bytes: Buffer, path: string): RawImage[] {
  const frames: RawImage[] = []
  for (let at = 0; at < bytes.length; ) {
    const [header, width, height] = /^P6\s(\d+)\s(\d+)\s255\s/.exec(bytes.toString('latin1', at, at + 64)) ?? []
    const size = Number(width) * Number(height) * 3
    if (header === undefined || size === 0 || at + header.length + size > bytes.length) {
      throw new LapidaryError(
        'ERR_DATA_CORRUPT',
        `video: ${path}: expected frame ${frames.length} from ffmpeg, got damage`,
      )
    }
    at += header.length
    frames.push({ data: bytes.subarray(at, at + size), width: Number(width), height: Number(height), channels: 3 })
    at += size
  }
  return frames
}
