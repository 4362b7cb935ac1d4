// Two copies of the package in one process, as two dependencies of one application may bring them. argv[2]: the other one's dist/.
import { pathToFileURL } from 'node:url'
import * as here from '../../../dist/index.js'

const there = await import(pathToFileURL(`${process.argv[2]}/index.js`).href)
if (there.Tensor === here.Tensor) throw new Error('expected two copies')

const results = await Promise.all(
  [here, there].map(async ({ Device, Tensor, add }) => {
    const device = await Device.open('cpu', { threads: 2, guard: true })
    const x = Tensor.from(device, Float32Array.of(1, 2, 3))
    return { x, sum: await add(x, x).read() }
  }),
)
for (const { sum } of results) if (`${sum}` !== '2,4,6') throw new Error(`got ${sum}`)

const codes = [
  [here, there],
  [there, here],
].map(([one, other]) => {
  try {
    one.add(results[one === here ? 0 : 1].x, results[other === here ? 0 : 1].x)
    return 'no error'
  } catch (error) {
    return error instanceof one.LapidaryError ? error.code : String(error)
  }
})
console.log(codes.join(' '))
