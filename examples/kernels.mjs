// The kernels under the models: tensors, ops that return at once, and a program that replays a sequence of them in one crossing.
import { Device, geglu, matmul, Program, packWeights, rmsNorm, Tensor } from 'lapidary'

const device = await Device.open() // the best instruction set there is; { isa: 'scalar', threads: 1 } force it
const { name, isa, threads } = device.info()
console.log(`${name}, ${isa}, ${threads} threads`)

const hidden = 256
const random = (length, scale) => Float32Array.from({ length }, (_, index) => scale * Math.sin(index * 12.9898))
const norm = Tensor.from(device, new Float32Array(hidden).fill(1), [hidden])
const gateAndUp = packWeights(Tensor.from(device, random(4 * hidden * hidden, 0.05), [4 * hidden, hidden]))
const down = packWeights(Tensor.from(device, random(2 * hidden * hidden, 0.05), [hidden, 2 * hidden]))

// A feed-forward block as Gemma has it. Nothing waits before read().
const block = (x) => matmul(geglu(matmul(rmsNorm(x, norm), gateAndUp)), down)
const x = Tensor.from(device, random(hidden, 1), [1, hidden])
const eager = await block(x).read()

// The same calls recorded once: one crossing from JavaScript for all of them, their intermediates in one planned arena.
const program = Program.capture(device, [{ dtype: 'f32', shape: [1, hidden] }], block)
const replayed = await program.run(x).read()

console.log(`first values: ${Array.from(eager.subarray(0, 3), (value) => value.toFixed(4)).join(' ')}`)
console.log(
  eager.every((value, index) => value === replayed[index]) ? 'replayed: the same bits' : 'replayed: DIFFERENT',
)
