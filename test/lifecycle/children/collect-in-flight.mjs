// Lets the collector take tensors, programs and streams whose work is still queued. Run with --expose-gc.
import { existsSync, readdirSync } from 'node:fs'
import { add, Device, matmul, Program, Tensor } from '../../../dist/index.js'

const device = await Device.open('cpu', { threads: 2, guard: true })
const size = 256
const ones = new Float32Array(size * size).fill(1)

function chain(length) {
  // Nothing but the last result stays reachable; its inputs are collected while they are being read.
  const one = Tensor.from(device, ones, [size, size])
  const weight = Tensor.from(
    device,
    ones.map((value) => value / size),
    [size, size],
  )
  let value = one
  for (let i = 0; i < length; i++) value = add(matmul(value, weight), one)
  return value
}

function replayed(length) {
  const one = Tensor.from(device, ones, [size, size])
  const program = Program.capture(device, [one], (x) => {
    let value = x
    for (let i = 0; i < length; i++) value = add(value, one)
    return value
  })
  return program.run(one)
}

const turn = () => new Promise((resolve) => setImmediate(resolve))
for (let round = 0; round < 20; round++) {
  const results = [chain(10), replayed(10)]
  globalThis.gc()
  await turn()
  globalThis.gc()
  for (const result of results) {
    const data = await result.read()
    if (!data.every((value) => value === 11))
      throw new Error(`round ${round}: got ${data.find((value) => value !== 11)}`)
  }
}

// What nobody holds any more is given back.
for (let i = 0; i < 50 && device.memory().buffers > 4; i++) {
  globalThis.gc()
  await turn()
  await device.stream.synchronize()
}
const { buffers } = device.memory()
if (buffers > 4) throw new Error(`${buffers} buffers are still held`)

// Devices and streams that nobody disposed give their threads back too.
const threads = () => (existsSync('/proc/self/task') ? readdirSync('/proc/self/task').length : 0)
const before = threads()
async function abandon() {
  const other = await Device.open('cpu', { threads: 2 })
  const stream = other.createStream()
  const x = Tensor.from(other, ones, [size, size])
  const product = matmul(x, x)
  stream.wait(other.stream)
  stream.use(() => add(product, x))
}
for (let i = 0; i < 5; i++) await abandon()
for (let i = 0; i < 100 && threads() > before; i++) {
  globalThis.gc()
  await turn()
}
if (threads() > before) throw new Error(`${threads() - before} threads are still there`)
console.log('collected')
