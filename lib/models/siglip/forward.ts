/**
 * The forward pass of Gemma 3's vision tower: an ordinary function over ops, run eagerly or captured as programs.
 *
 * SigLIP-So400m (Zhai et al. 2023, arXiv:2303.15343; Alabdulmohsin et al. 2023, arXiv:2305.13035) over 14×14 patches, averages of 4×4
 * patches as soft tokens, and their projection into the text model (Gemma 3 report, arXiv:2503.19786).
 *
 * Patches do not come in raster order, but those of a soft token one after the other: the encoder sees no order but through the learned
 * positions, which are put into the same one at loading, and pooling is a mean of consecutive rows.
 * @module
 */
import { LapidaryError } from '../../errors.ts'
import { flashAttention } from '../../ops/flash-attention.ts'
import { type MatmulOptions, matmul } from '../../ops/matmul.ts'
import { layerNorm, meanRows, rmsNorm } from '../../ops/row-ops.ts'
import { scope } from '../../scope.ts'
import type { Tensor } from '../../tensor.ts'
import type { VisionConfig } from './config.ts'
import type { Affine, VisionLayer, VisionTensors } from './model.ts'

/** Which patch in raster order stands at each place: the patches of a soft token follow one another. */
export function patchOrder({
  patchesPerSide,
  poolSize,
}: Pick<VisionConfig, 'patchesPerSide' | 'poolSize'>): Int32Array {
  const order = new Int32Array(patchesPerSide ** 2)
  let at = 0
  for (let top = 0; top < patchesPerSide; top += poolSize) {
    for (let left = 0; left < patchesPerSide; left += poolSize) {
      for (let y = top; y < top + poolSize; y++) {
        for (let x = left; x < left + poolSize; x++) order[at++] = y * patchesPerSide + x
      }
    }
  }
  return order
}

/**
 * The soft tokens of one image.
 *
 * @param patches f32 [patches, 3 · patchSize²]: normalised pixels, channel by channel, in the order of {@link patchOrder}.
 * @param observe Is given the input of each layer, and as number `layers` the normed states: f32 [patches, width]. It may queue a read;
 *   the tensor is released afterwards.
 * @returns f32 [imageTokens, hiddenSize]: takes the place of embeddings, without their factor.
 * @throws ERR_SHAPE_MISMATCH if the patches are not those of one image.
 * @example
 * const soft = visionTower(model, Tensor.from(device, imagePatches(pixels, model.config), [4096, 588]))
 */
export function visionTower(
  model: VisionTensors,
  patches: Tensor,
  observe?: (layer: number, states: Tensor) => void,
): Tensor {
  return scope(() => {
    let states = embedPatches(model, patches)
    for (let layer = 0; layer < model.config.layers; layer++) {
      observe?.(layer, states)
      states = encoderLayer(model, layer, states)
    }
    return softTokens(model, states, observe)
  })
}

/** @internal The first states: patches through the convolution, which is a matrix product as patches do not overlap, and positions. */
export function embedPatches(model: VisionTensors, patches: Tensor): Tensor {
  const { patchesPerSide, patchSize } = model.config
  const expected = [patchesPerSide ** 2, 3 * patchSize ** 2]
  if (patches.shape.length !== 2 || expected.some((dim, axis) => dim !== patches.shape[axis])) {
    throw new LapidaryError(
      'ERR_SHAPE_MISMATCH',
      `visionTower: patches: expected [${expected.join(', ')}], got [${patches.shape.join(', ')}]`,
    )
  }
  return scope(() => affine(patches, model.patch, 'f32', { residual: model.positions }))
}

/** @internal One encoder layer: states + attention(norm(states)), then + ffn(norm(…)). f32 [patches, width]. */
export function encoderLayer(model: VisionTensors, layer: number, states: Tensor): Tensor {
  const { activations } = model
  const weights = model.layers[layer] as VisionLayer
  return scope(() => {
    const context = attention(model, weights, norm(model, states, weights.attentionNorm))
    const attended = affine(context, weights.output, 'f32', { residual: states })
    const activated = affine(norm(model, attended, weights.ffnNorm), weights.up, activations, { epilogue: 'gelu' })
    return affine(activated, weights.down, 'f32', { residual: attended })
  })
}

/** @internal From the last states to soft tokens: norm, average pooling, norm, projection. */
export function softTokens(
  model: VisionTensors,
  states: Tensor,
  observe?: (layer: number, states: Tensor) => void,
): Tensor {
  const { config, finalNorm, softNorm, poolStarts, projection } = model
  return scope(() => {
    const normed = layerNorm(states, finalNorm.weight, finalNorm.bias, { eps: config.normEps })
    observe?.(config.layers, normed)
    const pooled = meanRows(normed, poolStarts)
    return matmul(rmsNorm(pooled, softNorm, { eps: config.normEps, weightBias: config.softNormBias }), projection)
  })
}

/** Every patch sees every other. */
function attention(model: VisionTensors, { qkv }: VisionLayer, normed: Tensor): Tensor {
  const { config, activations, headColumns } = model
  const patches = normed.shape[0] as number
  const heads = qkv.flatMap((part) => {
    const all = affine(normed, part, activations).reshape([patches, part.parts * config.heads, headColumns])
    return Array.from({ length: part.parts }, (_, index) =>
      all.slice(index * config.heads, (index + 1) * config.heads, 1),
    )
  })
  const [q, k, v] = heads as [Tensor, Tensor, Tensor]
  const context = flashAttention(q, k, v, { causal: false, scale: config.headDim ** -0.5 })
  return context.reshape([patches, config.heads * headColumns])
}

function norm({ activations, config }: VisionTensors, x: Tensor, { weight, bias }: Affine): Tensor {
  return layerNorm(x, weight, bias, { eps: config.normEps, outputDtype: activations })
}

function affine(
  x: Tensor,
  { weight, bias }: Affine,
  outputDtype: 'f32' | 'bf16',
  after: Pick<MatmulOptions, 'epilogue' | 'residual'> = {},
): Tensor {
  return matmul(x, weight, { bias, outputDtype, ...after })
}
