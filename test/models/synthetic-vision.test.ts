/** The tower that benchmarks run. */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, test } from 'vitest'
import { openProjector } from '../../lib/checkpoint/gguf-files.ts'
import { ggufVisionConfig } from '../../lib/models/siglip/config.ts'
import { VisionModel } from '../../lib/models/siglip/load.ts'
import { writeSyntheticVision } from '../../lib/models/siglip/synthetic.ts'
import { visionWeights } from '../../lib/models/siglip/weights.ts'
import { anyDevice } from '../support/devices.ts'
import { rejectsCode } from '../support/errors.ts'

test('a synthetic tower has the published shape', async () => {
  const root = mkdtempSync(path.join(tmpdir(), 'lapidary-tower-'))
  try {
    const file = path.join(root, 'mmproj.gguf')
    await writeSyntheticVision(file, { hiddenSize: 96, type: 'q8_0', layers: 1 })
    const checkpoint = openProjector(file)
    const config = ggufVisionConfig(checkpoint)
    const { imageTokens, patchesPerSide, headDim } = config
    expect({ imageTokens, patchesPerSide, headDim }).toEqual({ imageTokens: 256, patchesPerSide: 64, headDim: 72 })
    const weights = visionWeights(checkpoint, config)
    // 4304 columns end inside a block of 32.
    const [layer] = weights.layers
    expect([layer!.up.weight.weight.dtype, layer!.down.weight.weight.dtype]).toEqual(['q8_0', 'f16'])
    const device = await anyDevice()
    using model = await VisionModel.load(device, config, weights)
    const tower = model.tensors
    expect([tower.activations, tower.headColumns, tower.layers[0]!.qkv.length]).toEqual(['bf16', 72, 1])
    expect(tower.projection.shape).toEqual([96, 1152])
    const aborted = VisionModel.load(device, config, weights, { signal: AbortSignal.abort() })
    await rejectsCode(aborted, 'ERR_ABORTED')
    const options = { hiddenSize: 96 }
    await rejectsCode(writeSyntheticVision(file, { ...options, layers: 28 }), 'ERR_INVALID_ARGUMENT', /layers/)
    await rejectsCode(writeSyntheticVision(file, { hiddenSize: 100 }), 'ERR_INVALID_ARGUMENT', /hiddenSize/)
    await rejectsCode(writeSyntheticVision(file, { ...options, type: 'q4_0' as never }), 'ERR_INVALID_ARGUMENT', /type/)
  } finally {
    rmSync(root, { recursive: true })
  }
})
