/**
 * Images of requests: data URLs always, remote ones where the server allows them, and never anything that the server itself could open.
 * Engines are handed bytes, not names: no string of a request is ever taken for a path.
 * @module
 */
import { type ChatMessage, type ContentPart, decodeDataUrl, LapidaryError, type TextPart } from '../index.ts'
import { ApiError, invalid } from './api-error.ts'
import type { Call, ServedModel } from './call.ts'
import { describe, type Fields } from './fields.ts'

/** An image of a request, not yet read. */
export interface RequestImage {
  readonly type: 'image'
  /** A data: URL or one of http(s). */
  readonly url: string
  /** The field it stands in. */
  readonly param: string
}

/** A conversation of a request, of which turns may hold images. */
export type Turns = readonly ChatMessage<TextPart | RequestImage>[]

/**
 * Reads a part of type `image_url` (an object with `url`) or `input_image` (the URL itself); either form is taken of both. `detail` is ignored:
 * the model sees every image at one size.
 * @throws ApiError 400 for a URL of another kind: a path and `file:` are of the server's machine, which is nobody's business.
 */
export function readImagePart(part: Fields): RequestImage {
  if (part.has('file_id')) {
    throw invalid(`${part.path}file_id`, 'nothing is stored here: send the image as a data URL', 'unsupported')
  }
  const given = part.required('image_url', part.raw('image_url'))
  const holder = typeof given === 'object' ? part.object('image_url') : undefined
  const param = holder ? `${holder.path}url` : `${part.path}image_url`
  const url = holder
    ? holder.required('url', holder.string('url'))
    : part.required('image_url', part.string('image_url'))
  if (isDataUrl(url) || isRemote(url)) return { type: 'image', url, param }
  const expected = 'expected a data URL (data:image/png;base64,…) or one of http(s)'
  throw invalid(param, `${expected}, got ${describe(url)}`, 'invalid_image_url')
}

function isDataUrl(url: string): boolean {
  return /^data:/i.test(url)
}

function isRemote(url: string): boolean {
  return /^https?:\/\//i.test(url)
}

/** The images of a conversation, in order. */
export function imagesOf(turns: Turns): RequestImage[] {
  return turns.flatMap(({ content }) =>
    typeof content === 'string' ? [] : content.filter((part) => part.type === 'image'),
  )
}

/**
 * What can be said of images before one of them is read.
 * @throws ApiError 400 if the model sees none, a remote one is not allowed, or there are too many for the context.
 */
export function checkImages({ remoteImages }: Call, { id, gemma }: ServedModel, images: readonly RequestImage[]): void {
  const [first] = images
  if (!first) return
  const { vision, contextLength } = gemma.info()
  if (!vision) throw invalid(first.param, `the model ${id} sees no images`, 'model_not_supported')
  const remote = images.find(({ url }) => isRemote(url))
  if (remote && !remoteImages) {
    throw invalid(remote.param, 'expected a data URL: this server fetches no remote images', 'invalid_image_url')
  }
  const tokens = images.length * vision.imageTokens
  if (tokens >= contextLength)
    throw tooLong(first, contextLength, `your ${images.length} images alone are ${tokens} tokens`)
}

/**
 * The conversation with the bytes of its images. Remote ones are fetched side by side, each once; together they may have as many bytes as a
 * request may.
 * @throws (rejects) ApiError 400 that names the part; what ends the request ends the fetches.
 */
export async function loadImages(call: Call, turns: Turns): Promise<ChatMessage<ContentPart>[]> {
  const failed = new AbortController()
  const signal = AbortSignal.any([call.lifetime.signal, failed.signal])
  const fetched = new Map<string, Promise<Uint8Array>>()
  let left = call.bodyLimit
  const fetchOnce = async (url: string): Promise<Uint8Array> => {
    const bytes = await call.remoteImages?.fetch(url, signal)
    // checkImages has seen that they are allowed.
    if (!bytes) throw new LapidaryError('ERR_INTERNAL', 'a remote image came past the check')
    left -= bytes.length
    if (left >= 0) return bytes
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `expected images of ${call.bodyLimit} bytes in all, got more`)
  }
  const load = async ({ url, param }: RequestImage): Promise<ContentPart> => {
    try {
      if (isDataUrl(url)) return { type: 'image', image: decodeDataUrl(url), name: param }
      const bytes = fetched.get(url) ?? fetchOnce(url)
      fetched.set(url, bytes)
      return { type: 'image', image: await bytes, name: param }
    } catch (error) {
      const isClients =
        error instanceof LapidaryError && (error.code === 'ERR_INVALID_ARGUMENT' || error.code === 'ERR_FILE')
      throw isClients ? invalid(param, error.message.replace(/^image: /, ''), 'invalid_image_url') : error
    }
  }
  try {
    return await Promise.all(
      turns.map(async ({ role, content }) => {
        if (typeof content === 'string') return { role, content }
        return { role, content: await Promise.all(content.map((part) => (part.type === 'image' ? load(part) : part))) }
      }),
    )
  } finally {
    // Of several the others end with the first that fails.
    failed.abort()
  }
}

/** The answer for what making images ready rejected with: the request's fault wherever it is the image's. */
export function imageErrorOf(error: unknown, images: readonly RequestImage[], contextLength: number): unknown {
  if (!(error instanceof LapidaryError && error.images)) return error
  const { code } = error
  const { name, problem: found } = error.images
  const [first] = images
  if (name === undefined) return first ? tooLong(first, contextLength, `images: ${found}`) : error
  // Images are named by the field they stand in.
  const param = images.find((image) => image.param === name)?.param
  if (param === undefined) return error
  if (code === 'ERR_NATIVE_MISSING') {
    const problem = `${param}: this server cannot decode images: the package sharp is not installed there`
    // Trying again is of no use, and OpenAI's clients do so on 5xx unless they are told.
    const headers = { 'x-should-retry': 'false' }
    return new ApiError(501, problem, { param, code: 'images_unavailable', headers, cause: error })
  }
  const isImages = code === 'ERR_INVALID_ARGUMENT' || code === 'ERR_DATA_CORRUPT'
  return isImages ? invalid(param, found.replace(/^image: /, ''), 'invalid_image') : error
}

function tooLong({ param: image }: RequestImage, contextLength: number, problem: string): ApiError {
  // messages, or input.
  const [param] = image.split('[')
  const message = `This model's maximum context length is ${contextLength} tokens. However, ${problem}`
  return new ApiError(400, message, { param, code: 'context_length_exceeded' })
}

/** A body for the log: with its images' length in place of their bytes. */
export function withoutImageBytes(body: unknown): unknown {
  const shortened = (_: string, value: unknown): unknown =>
    typeof value === 'string' && value.length > 256 && isDataUrl(value)
      ? `${value.slice(0, 32)}… (${value.length} characters)`
      : value
  return JSON.parse(JSON.stringify(body, shortened))
}
