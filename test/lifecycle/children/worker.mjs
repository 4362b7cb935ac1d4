// One worker: computes with a device of its own and reports, or keeps working until it is terminated.
import { parentPort, workerData } from 'node:worker_threads'
import { add, Device, LapidaryError, matmul, Program, Tensor } from '../../../dist/index.js'

const { role, foreign, path } = workerData
const device = await Device.open('cpu', { threads: 2, guard: true })
const size = 256
const x = Tensor.from(device, new Float32Array(size * size).fill(1), [size, size])

if (role === 'compute') {
  const weight = Tensor.from(device, new Float32Array(size * size).fill(1 / size), [size, size])
  let value = x
  for (let i = 0; i < 30; i++) value = add(matmul(value, weight), x)
  const data = await value.read()
  parentPort.postMessage({ first: data[0], same: data.every((element) => element === data[0]) })
  device.dispose()
} else if (role === 'foreign') {
  // A tensor does not survive the way to another thread; what is left of it is no tensor.
  let code
  try {
    add(foreign, x)
  } catch (error) {
    code = error instanceof LapidaryError ? error.code : String(error)
  }
  parentPort.postMessage({ code })
} else if (role === 'transfers') {
  const program = Program.capture(device, [{ shape: [size, size], dtype: 'f32' }], (input) => matmul(input, x))
  await x.save(path)
  parentPort.postMessage('working')
  for (;;) {
    const loaded = Tensor.load(device, path, { shape: [size, size], dtype: 'f32' })
    const results = [loaded.read(), loaded.save(path)]
    for (let i = 0; i < 4; i++) results.push(program.execute(new Float32Array(size * size)), program.execute(loaded))
    await Promise.all(results)
    loaded.dispose()
  }
} else {
  parentPort.postMessage('working')
  for (;;) {
    let value = x
    for (let i = 0; i < 20; i++) {
      value = matmul(value, x)
      // Building JavaScript objects is what fails first in an environment that is being torn down.
      if (device.info().threads !== 2) throw new Error('threads')
    }
    await value.read()
  }
}
