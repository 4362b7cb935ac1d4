// Leaves the process while work is queued. argv[2]: how.
import { Device, matmul, Program, Tensor } from '../../../dist/index.js'

const how = process.argv[2]
const device = await Device.open('cpu', { threads: 2 })
const size = 512
const x = Tensor.from(device, new Float32Array(size * size).fill(1 / size), [size, size])
let result = x
for (let i = 0; i < 200; i++) result = matmul(result, x)
const pending = result.read()
pending.catch(() => {})

const program = Program.capture(device, [x], (input) => [matmul(input, x), matmul(input, input)])
for (let i = 0; i < 3; i++) {
  program.execute(new Float32Array(size * size)).catch(() => {})
  result.save(`${process.argv[3]}-${i}`).catch(() => {})
  Tensor.load(device, new URL(import.meta.url).pathname, { shape: [64], dtype: 'u8' })
}

if (how === 'exit') process.exit(0)
if (how === 'throw') throw new Error('on purpose')
if (how === 'kill') process.kill(process.pid, 'SIGTERM')
// 'end': the script ends with work queued that nobody awaits; the pending read keeps the process alive until it is settled.
if (how === 'end') pending.then((data) => console.log(`read ${data.length}`))
// 'unread': nothing is awaited at all: the process may end at once.
