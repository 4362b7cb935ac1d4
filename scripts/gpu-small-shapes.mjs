// Every op that the bundled model uses, on small shapes, as compute-sanitizer runs them: it slows kernels down a hundredfold.
// LAPIDARY_SMALL_SHAPES_ISA=sm80_emulated runs them on the emulation instead of the GPU.
import { addRmsNorm, cast, Device, Gemma, gelu, layerNorm, meanRows, softcap, Tensor } from '../dist/index.js'

const isa = process.env.LAPIDARY_SMALL_SHAPES_ISA ?? 'sm80'
const device = await Device.open('cuda', { isa, unverified: true })
const numbers = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i))

// Rows that eight divides and rows that it does not; a warp's and a block's.
for (const columns of [8, 37, 1024, 1030, 2053]) {
  const x = Tensor.from(device, numbers(5 * columns), [5, columns])
  const results = [
    gelu(x),
    softcap(x, 5),
    cast(x, 'bf16'),
    layerNorm(x),
    meanRows(x, Tensor.from(device, Int32Array.of(0, 2, 5))),
  ]
  const { residual, normed } = addRmsNorm(x, x)
  for (const result of [...results, residual, normed]) {
    const data = await result.read()
    if (result.dtype === 'f32' && !data.every(Number.isFinite)) throw new Error(`${columns} columns: not finite`)
  }
}

const gemma = await Gemma.load(undefined, { device, contextLength: 256, maxSequences: 2, packedCache: false })
const { text } = await gemma.generate('Once upon a time', { maxTokens: 8, temperature: 0 })
console.log(`small shapes: ok; the bundled model says ${JSON.stringify(text)}`)
await gemma[Symbol.asyncDispose]()
device.dispose()
