/**
 * What a message or a prompt may hold beside text: images, and videos as images with their times.
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import type { ChatMessage, ImagePlace, TextPart } from '../tokenizer/chat.ts'
import type { ImageSource } from '../vision/image-source.ts'
import { extractFrames, type VideoOptions } from '../vision/video.ts'
import { checkPanAndScan, type PanAndScan, type PanAndScanOptions } from '../vision/views.ts'

/** An image as a part of a message. */
export interface ImagePart {
  readonly type: 'image'
  readonly image: ImageSource
  /** Crops beside the whole image, which cost as many tokens each. Default false, as the reference's. */
  readonly panAndScan?: boolean | PanAndScanOptions | undefined
  /** How errors call it. Default: where it stands, as in `messages[0].content[1]`. */
  readonly name?: string | undefined
}

/** A video as a part of a message: frames, each after its time, as mm:ss. */
export type VideoPart = { readonly type: 'video' } & (
  | {
      readonly frames: readonly ImageSource[]
      /** In seconds, one per frame. Default: frame i is at i seconds. */
      readonly timestamps?: readonly number[] | undefined
      readonly video?: undefined
    }
  | ({
      /** The path of a file, or a file: URL: frames are extracted by the `ffmpeg` that is installed. */
      readonly video: string | URL
      readonly frames?: undefined
    } & VideoOptions)
)

/** A part of a message: text, an image or a video. */
export type ContentPart = TextPart | ImagePart | VideoPart

/** An image to be shown, in the order of the text around it. */
export interface PlacedImage {
  readonly source: ImageSource
  readonly panAndScan: PanAndScan | undefined
  /** How messages name it. */
  readonly what: string
}

/** Content with places where the images were. */
export interface Placed<T> {
  readonly content: T
  readonly images: readonly PlacedImage[]
}

/** Whether some message has a part that is not text. Malformed messages have none: they are reported by the template. */
export function hasImageParts(messages: unknown): boolean {
  if (!Array.isArray(messages)) return false
  return messages.some((message) => hasImagePart((message as ChatMessage | undefined)?.content))
}

/** The same of one message's content, or of a prompt. */
export function hasImagePart(content: unknown): content is readonly ContentPart[] {
  if (!Array.isArray(content)) return false
  return content.some((part: { type?: unknown } | null) => part?.type === 'image' || part?.type === 'video')
}

/**
 * Takes the images out of messages; frames of video files are extracted first.
 * @throws (rejects) ERR_INVALID_ARGUMENT that names message and part; what `extractFrames` throws.
 */
export async function placeMessages(
  messages: readonly ChatMessage<ContentPart>[],
  signal?: AbortSignal,
): Promise<Placed<ChatMessage<TextPart | ImagePlace>[]>> {
  const images: PlacedImage[] = []
  const content: ChatMessage<TextPart | ImagePlace>[] = []
  for (const [index, message] of messages.entries()) {
    if (!hasImagePart(message?.content)) {
      content.push(message as ChatMessage)
      continue
    }
    const placed = await placeContent(message.content, `messages[${index}].content`, signal)
    images.push(...placed.images)
    content.push({ role: message.role, content: placed.content })
  }
  return { content, images }
}

/** Takes the images out of one message's content, or out of a prompt. @throws as {@link placeMessages} */
export async function placeContent(
  parts: readonly ContentPart[],
  what: string,
  signal?: AbortSignal,
): Promise<Placed<(TextPart | ImagePlace)[]>> {
  const images: PlacedImage[] = []
  const content: (TextPart | ImagePlace)[] = []
  for (const [at, part] of parts.entries()) {
    const where = `${what}[${at}]`
    if (part?.type === 'image') {
      images.push({ source: part.image, panAndScan: checkPanAndScan(part.panAndScan), what: part.name ?? where })
      content.push({ type: 'image' })
    } else if (part?.type === 'video') {
      const { frames, timestamps } = await framesOf(part, where, signal)
      for (const [frame, source] of frames.entries()) {
        content.push({ type: 'text', text: clock(timestamps[frame] as number) }, { type: 'image' })
        images.push({ source, panAndScan: undefined, what: `${where}.frames[${frame}]` })
      }
    } else {
      content.push(part)
    }
  }
  return { content, images }
}

async function framesOf(
  part: VideoPart,
  where: string,
  signal: AbortSignal | undefined,
): Promise<{ frames: readonly ImageSource[]; timestamps: readonly number[] }> {
  const fail = (problem: string) => new LapidaryError('ERR_INVALID_ARGUMENT', `${where}: ${problem}`)
  if (part.video !== undefined) {
    const { video, fps, maxFrames, ffmpeg } = part
    return await extractFrames(video, { fps, maxFrames, ffmpeg, signal })
  }
  const { frames, timestamps = frames?.map((_, index) => index) } = part
  if (!Array.isArray(frames) || frames.length === 0) {
    throw fail(`expected { type: 'video', frames: [...], timestamps } or { type: 'video', video }, got no frames`)
  }
  const areTimes =
    Array.isArray(timestamps) &&
    timestamps.length === frames.length &&
    timestamps.every((time) => typeof time === 'number' && time >= 0 && Number.isFinite(time))
  if (!areTimes) throw fail(`timestamps: expected ${frames.length} times in seconds, got ${describeValue(timestamps)}`)
  return { frames, timestamps: timestamps as number[] }
}

/** mm:ss, as the reference's video models are given times. */
function clock(seconds: number): string {
  const two = (value: number): string => String(value).padStart(2, '0')
  return `${two(Math.floor(seconds / 60))}:${two(Math.floor(seconds % 60))}`
}
