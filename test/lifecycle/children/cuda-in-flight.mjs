// Leaves the process, or works until its worker is terminated, while calls and replays of a CUDA device are queued. argv: how, family.
import { parentPort } from 'node:worker_threads'
import { Device, gelu, Program, rmsNorm, Tensor } from '../../../dist/index.js'

const [how, isa] = process.argv.slice(2)
const device = await Device.open('cuda', { isa, unverified: true })
const x = Tensor.from(device, new Float32Array(4096).fill(1), [16, 256])
const program = Program.capture(device, [x], (input) => gelu(rmsNorm(gelu(input))))

if (how === 'endless') {
  parentPort.postMessage('working')
  for (;;) {
    let value = x
    for (let i = 0; i < 10; i++) value = rmsNorm(value)
    await Promise.all([value.read(), program.execute(x)])
  }
}

let value = x
for (let i = 0; i < 60; i++) value = gelu(value)
const pending = value.read()
pending.catch(() => {})
for (let i = 0; i < 10; i++) program.execute(new Float32Array(4096)).catch(() => {})

if (how === 'exit') process.exit(0)
if (how === 'throw') throw new Error('on purpose')
if (how === 'end') pending.then((data) => console.log(`read ${data.length}`))
