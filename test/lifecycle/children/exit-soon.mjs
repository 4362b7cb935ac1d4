// Exits while replays are queued that would take seconds. Prints how long they would take and when it left, in milliseconds.
import { Device, matmul, Program, Tensor } from '../../../dist/index.js'

const device = await Device.open('cpu', { threads: 2 })
const size = 512
const x = Tensor.from(device, new Float32Array(size * size).fill(1 / size), [size, size])
const program = Program.capture(device, [x], (input) => {
  let value = input
  for (let i = 0; i < 200; i++) value = matmul(value, x)
  return value
})
program.run(x)
await device.stream.synchronize()
const start = performance.now()
program.run(x)
await device.stream.synchronize()
const one = performance.now() - start
const runs = Math.ceil(4000 / one)
for (let i = 0; i < runs; i++) program.run(x)
console.log(JSON.stringify({ queued: runs * one, leftAt: Date.now() }))
process.exit(0)
