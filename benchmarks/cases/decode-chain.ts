/**
 * All matmuls of a decode step of Gemma 3 1B in their order, with the norms between them and no attention: what the weights cost when
 * every op is short, one waits for the other, and the last one has left the caches.
 */
import { addRmsNorm, type Device, matmul, packWeights, stackWeights, Tensor } from 'lapidary'
import { type BenchmarkCase, Ours, uniform } from './case.ts'
import { quantizedMatrix, tallMatrix } from './matmul.ts'

const layers = 26
const hidden = 1152
const ffn = 6912
const heads = 1024
const qkv = 1536
const vocabulary = 262144

const layerWeights = hidden * qkv + heads * hidden + 3 * hidden * ffn
const headWeights = hidden * vocabulary
const q4Bytes = 18 / 32
const q8Bytes = 34 / 32

function pack(device: Device, rows: number, columns: number, seed: number): Tensor {
  using stored = Tensor.from(device, quantizedMatrix(rows, columns, seed).q4_0, [rows, columns], 'q4_0')
  return packWeights(stored)
}

function chainCase(sequences: number): BenchmarkCase {
  return {
    name: `Gemma 3 1B matmuls of a step, M=${sequences}, q8_0 head`,
    operations: 2 * sequences * (layers * layerWeights + headWeights),
    bytes: layers * layerWeights * q4Bytes + headWeights * q8Bytes,
    limit: () => 'read',
    async ours(device: Device) {
      const weight = Tensor.from(device, uniform(hidden, 1, 5), [hidden])
      const owned = [weight]
      const layer = (): { qkv: Tensor; o: Tensor; gateUp: Tensor; down: Tensor } => {
        using gate = pack(device, ffn, hidden, 2)
        using up = pack(device, ffn, hidden, 3)
        const made = {
          qkv: pack(device, qkv, hidden, 1),
          o: pack(device, hidden, heads, 4),
          gateUp: stackWeights([gate, up], { interleave: 'gate_up' }),
          down: pack(device, hidden, ffn, 6),
        }
        owned.push(...Object.values(made))
        return made
      }
      const made = Array.from({ length: layers }, layer)
      using storedHead = Tensor.from(device, tallMatrix([hidden, vocabulary], 'q8_0'), [vocabulary, hidden], 'q8_0')
      const head = packWeights(storedHead)
      owned.push(head)
      await device.stream.synchronize()

      const norm = { postWeight: weight, preWeight: weight, weightBias: 1 }
      const body = (x: Tensor): Tensor => {
        let residual = x
        let normed = x
        for (const { qkv, o, gateUp, down } of made) {
          const attended = matmul(normed, qkv).slice(0, heads, 1)
          ;({ residual, normed } = addRmsNorm(matmul(attended, o), residual, norm))
          const expanded = matmul(normed, gateUp, { epilogue: 'geglu' })
          ;({ residual, normed } = addRmsNorm(matmul(expanded, down), residual, norm))
        }
        return matmul(normed, head)
      }
      return new Ours(
        device,
        [Tensor.from(device, uniform(sequences * hidden, 1, 7), [sequences, hidden])],
        body,
        owned,
      )
    },
  }
}

export const decodeChainCases: BenchmarkCase[] = [chainCase(1), chainCase(8)]
