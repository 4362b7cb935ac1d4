/**
 * POST /v1/embeddings
 * @module
 */
import { invalid } from './api-error.ts'
import type { Call } from './call.ts'
import { isTokenIds } from './fields.ts'
import { type ApiResponse, jsonResponse } from './http.ts'

const maxInputs = 2048

/** One vector per text. Needs an embedding model. */
export async function embeddings(call: Call): Promise<ApiResponse> {
  const { body } = call
  const { id, gemma } = call.model('embedding')
  const given = body.required('input', body.raw('input'))
  const list = typeof given === 'string' || isTokenIds(given) ? [given] : given
  if (!Array.isArray(list) || list.length === 0 || list.length > maxInputs) {
    return body.fail('input', `a string, token ids, or an array of 1 to ${maxInputs} of these`)
  }
  const width = gemma.embeddingSize
  const size = body.integer('dimensions', 1, width) ?? width
  const format = body.choice('encoding_format', ['float', 'base64']) ?? 'float'
  const { contextLength } = gemma
  const inputs = list.map((input, index) => {
    if (typeof input !== 'string' && !isTokenIds(input)) {
      throw invalid(`input[${index}]`, 'expected a string or token ids')
    }
    const ids = typeof input === 'string' ? gemma.tokenizeForEmbedding(input) : input
    if (ids.length > contextLength) {
      const problem = `expected at most ${contextLength} tokens, got ${ids.length}`
      throw invalid(`input[${index}]`, problem, 'context_length_exceeded')
    }
    return ids
  })
  const vectors = await gemma.embed(inputs)
  call.lifetime.check()
  const tokens = inputs.reduce((sum, ids) => sum + ids.length, 0)
  call.observePrompt(tokens)
  return jsonResponse({
    object: 'list',
    data: vectors.map((vector, index) => {
      const shortened = size === width ? vector : shorten(vector, size)
      return { object: 'embedding', index, embedding: format === 'float' ? [...shortened] : base64(shortened) }
    }),
    model: id,
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  })
}

/** The first numbers, at length 1 again: EmbeddingGemma was trained for it (Kusupati et al. 2022, arXiv:2205.13147). */
function shorten(vector: Float32Array, size: number): Float32Array {
  const part = vector.slice(0, size)
  const norm = Math.hypot(...part)
  return norm > 0 ? part.map((value) => value / norm) : part
}

/** Little-endian f32, as all machines that run this have them. */
function base64({ buffer, byteOffset, byteLength }: Float32Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString('base64')
}
