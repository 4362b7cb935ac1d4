// Ends with work queued and nothing awaited: an open device alone does not keep a process alive.
import { Device, matmul, Tensor } from '../../../dist/index.js'

const device = await Device.open('cpu', { threads: 2 })
const size = 512
const x = Tensor.from(device, new Float32Array(size * size).fill(1 / size), [size, size])
let result = x
for (let i = 0; i < 200; i++) result = matmul(result, x)
console.log('queued')
