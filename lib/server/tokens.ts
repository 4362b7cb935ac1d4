/**
 * POST /tokenize and /detokenize, with vLLM's fields.
 * @module
 */
import type { ChatMessage } from '../index.ts'
import { invalid } from './api-error.ts'
import type { Call, ServedModel } from './call.ts'
import { type Fields, isTokenIds } from './fields.ts'
import { type ApiResponse, jsonResponse } from './http.ts'
import { imagesOf } from './images.ts'
import { conversation, readMessages } from './messages.ts'
import { readTools } from './tools.ts'

/** The ids of `prompt`, or of `messages` as a chat has them. */
export async function tokenize(call: Call): Promise<ApiResponse> {
  const { body } = call
  const model = call.model('any')
  const { gemma } = model
  const bos = body.boolean('add_special_tokens') ?? true
  const ids = body.has('messages')
    ? chatIds(body, model)
    : gemma.tokenize(body.required('prompt', body.string('prompt')), { bos, markers: false })
  return jsonResponse({
    count: ids.length,
    max_model_len: gemma.contextLength,
    tokens: [...ids],
    token_strs: body.boolean('return_token_strs') ? [...ids].map((id) => gemma.tokenizer.pieceOf(id)) : null,
  })
}

function chatIds(body: Fields, { gemma }: ServedModel): Int32Array {
  const turns = conversation(readMessages(body), readTools(body), gemma)
  const [image] = imagesOf(turns)
  if (image) throw invalid(image.param, 'expected text: images have no tokens of the vocabulary', 'unsupported')
  return gemma.tokenizeChat(turns as readonly ChatMessage[])
}

/** The text of `tokens`. */
export async function detokenize(call: Call): Promise<ApiResponse> {
  const { body } = call
  const { gemma } = call.model('any')
  const tokens = body.required('tokens', body.array('tokens'))
  if (tokens.length > 0 && !isTokenIds(tokens)) body.fail('tokens', 'an array of token ids')
  return jsonResponse({ prompt: gemma.tokenizer.decode(tokens as readonly number[], { special: true }) })
}
