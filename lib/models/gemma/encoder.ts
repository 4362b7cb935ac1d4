/**
 * The forward pass of EmbeddingGemma: the decoder's layers with a window to both sides, one vector per text.
 * @module
 */
import type { Device } from '../../device.ts'
import { LapidaryError } from '../../errors.ts'
import { flashAttention } from '../../ops/flash-attention.ts'
import { matmul } from '../../ops/matmul.ts'
import { qkNormRope } from '../../ops/qk-norm-rope.ts'
import { meanRows, rmsNorm } from '../../ops/row-ops.ts'
import { scope } from '../../scope.ts'
import { Tensor } from '../../tensor.ts'
import type { GemmaConfig } from './config.ts'
import { embed, positional, runLayer, scores } from './forward.ts'
import type { ModelTensors } from './model.ts'

/** Texts to embed, one after the other. */
export interface EncoderInput {
  /** i32 [tokens] */
  readonly ids: Tensor
  /** i32 [tokens]: the place of each token in its text, from 0. */
  readonly positions: Tensor
  /** i32 [sequences + 1]: text s owns tokens starts[s] to starts[s + 1]. */
  readonly starts: Tensor
  /** i32 [tokens]: the first key of its text that each token sees in local layers, and the one after the last. */
  readonly keyLow: Tensor
  readonly keyHigh: Tensor
}

/** The numbers of an {@link EncoderInput}, in its order: what a captured program takes as inputs. */
export function encoderArrays(
  config: GemmaConfig,
  texts: readonly ArrayLike<number>[],
): Record<keyof EncoderInput, Int32Array> {
  const total = texts.reduce((sum, text) => sum + text.length, 0)
  const arrays = {
    ids: new Int32Array(total),
    positions: new Int32Array(total),
    starts: new Int32Array(texts.length + 1),
    keyLow: new Int32Array(total),
    keyHigh: new Int32Array(total),
  }
  const reach = Math.floor(config.window / 2)
  let start = 0
  for (const [index, text] of texts.entries()) {
    for (let position = 0; position < text.length; position++) {
      arrays.ids[start + position] = text[position] as number
      arrays.positions[start + position] = position
      arrays.keyLow[start + position] = Math.max(0, position - reach)
      arrays.keyHigh[start + position] = Math.min(text.length, position + reach + 1)
    }
    start += text.length
    arrays.starts[index + 1] = start
  }
  return arrays
}

/** Copies texts, given as token ids, to the device. */
export function encoderInput(device: Device, config: GemmaConfig, texts: readonly ArrayLike<number>[]): EncoderInput {
  const { ids, positions, starts, keyLow, keyHigh } = encoderArrays(config, texts)
  const upload = (data: Int32Array) => Tensor.from(device, data)
  return {
    ids: upload(ids),
    positions: upload(positions),
    starts: upload(starts),
    keyLow: upload(keyLow),
    keyHigh: upload(keyHigh),
  }
}

/**
 * Embeds texts: the mean of the hidden states of each text's tokens, through the dense layers where the model has them, scaled to length 1.
 *
 * @param observe As in `decoder`.
 * @returns f32 [sequences, dimensions]. A text without tokens gives zeros.
 * @throws ERR_INVALID_ARGUMENT for a model that is not bidirectional.
 * @example
 * const vectors = await encoder(model, encoderInput(device, model.config, [ids])).read()
 */
export function encoder(
  model: ModelTensors,
  input: EncoderInput,
  observe?: (layer: number, hidden: Tensor) => void,
): Tensor {
  const { config } = model
  if (!config.bidirectional) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `encoder: expected an embedding model, got ${config.architecture}`)
  }
  return scope(() => {
    let stream = embed(model, input.ids)
    for (let layer = 0; layer < config.layers; layer++) {
      observe?.(layer, stream.residual)
      const isLocal = config.layerTypes[layer] === 'local'
      stream = runLayer(model, layer, stream, undefined, (heads) => {
        const { q, k, v } = qkNormRope(heads.q, heads.k, heads.v, positional(model, layer, input.positions))
        return flashAttention(q, k as Tensor, v as Tensor, {
          ...scores(model),
          causal: false,
          queryStarts: input.starts,
          keyStarts: input.starts,
          ...(isLocal && { keyLow: input.keyLow, keyHigh: input.keyHigh }),
        })
      })
    }
    observe?.(config.layers, stream.normed)
    const pooled = meanRows(stream.normed, input.starts)
    const projected = model.dense.reduce((x, weight) => matmul(x, weight), pooled)
    return unitLength(projected)
  })
}

/** x / ‖x‖: an RMS norm whose weight is 1 / √n. */
function unitLength(x: Tensor): Tensor {
  const n = x.shape.at(-1) as number
  const weight = Tensor.from(x.device, new Float32Array(n).fill(n ** -0.5))
  return rmsNorm(x, weight, { eps: 1e-24 })
}
