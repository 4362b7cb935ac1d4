/**
 * From a text with places for images to the ids and runs of a sequence.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { imageMarker, withBosOnce } from '../tokenizer/chat.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'

/** A prompt with images: soft tokens have the negative ids of their image's content. */
export interface ImagePrompt {
  readonly ids: Int32Array
  /** Where the views of the images lie, in order. */
  readonly places: readonly { readonly start: number; readonly end: number }[]
}

const endMarker = '<end_of_image>'

/** Tokens of an image beside its soft tokens: both markers, and the line breaks around them. */
export const imageFrameTokens = 4

/**
 * Puts images into their places. As the reference's processor does it: line breaks around each image become one text with what is around
 * them before they are tokens, and crops are introduced by a sentence.
 *
 * @param text With guards: see `ChatTemplate.renderGuarded`.
 * @param images The ids of each image's views: of the image itself, then of its crops.
 * @throws ERR_CHECKPOINT_UNSUPPORTED if the vocabulary has no image markers; ERR_INVALID_ARGUMENT if the template left an image out.
 */
export function imagePrompt(
  tokenizer: Tokenizer,
  text: string,
  images: readonly (readonly number[])[],
  imageTokens: number,
): ImagePrompt {
  if (tokenizer.idOf(imageMarker) === undefined || tokenizer.idOf(endMarker) === undefined) {
    const problem = `images: expected a vocabulary with ${imageMarker} and ${endMarker}, got one without`
    throw new LapidaryError('ERR_CHECKPOINT_UNSUPPORTED', problem)
  }
  const pieces = text.split(imageMarker)
  if (pieces.length - 1 !== images.length) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `messages: expected a chat template with a place for each of ${images.length} images, got ${pieces.length - 1} places`,
    )
  }
  // Between the views of all images: the text from one to the next.
  let segment = pieces[0] as string
  const segments: string[] = []
  const views: number[] = []
  const show = (id: number) => {
    segments.push(`${segment}\n\n${imageMarker}`)
    views.push(id)
    segment = `${endMarker}\n\n`
  }
  for (const [index, [whole, ...crops]] of (images as readonly [number, ...number[]][]).entries()) {
    if (crops.length > 0) segment += 'Here is the original image '
    show(whole)
    for (const [at, crop] of crops.entries()) {
      segment += at === 0 ? ' and here are some crops to help you see better ' : ' '
      show(crop)
    }
    segment += pieces[index + 1] as string
  }
  return joined(tokenizer, [...segments, segment], views, imageTokens)
}

function joined(tokenizer: Tokenizer, segments: string[], views: readonly number[], imageTokens: number): ImagePrompt {
  // A marker ends every piece before it: segments have the ids that they would have together.
  const parts = segments.map((segment) => tokenizer.encodeGuarded(segment))
  parts[0] = withBosOnce(parts[0] as Int32Array, tokenizer.bos)
  const length = parts.reduce((sum, part) => sum + part.length, views.length * imageTokens)
  const ids = new Int32Array(length)
  const places: { start: number; end: number }[] = []
  let at = 0
  for (const [index, part] of parts.entries()) {
    ids.set(part, at)
    at += part.length
    const view = views[index]
    if (view === undefined) continue
    ids.fill(view, at, at + imageTokens)
    places.push({ start: at, end: at + imageTokens })
    at += imageTokens
  }
  return { ids, places }
}
