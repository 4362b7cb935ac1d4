// A launch that fails (LAPIDARY_CUDA_EMULATION_FAULT): of eager calls the third, of a replay one in the middle. Prints what comes of it.
import { add, Device, gelu, Program, Tensor } from '../../../dist/index.js'

const [how, isa] = process.argv.slice(2)
const device = await Device.open('cuda', { isa, unverified: true })
const x = Tensor.from(device, new Float32Array(64).fill(1), [64])
const program = Program.capture(device, [x], (input) => add(gelu(gelu(input)), input))
const result = how === 'replay' ? program.run(x) : add(gelu(gelu(x)), x)
const later = gelu(result)
const outcome = await later.read().then(
  () => 'no error',
  ({ code, message }) => `${code} ${message}`,
)
await device.stream.synchronize().catch(() => {})
// The stream is as new.
const values = await program.execute(x)
console.log(JSON.stringify({ outcome, value: values[0] }))
