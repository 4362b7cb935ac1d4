// A peer of the GPU benchmarks (benchmarks/gpu/peers.ts) that needs no GPU: our CPU kernels, compiled from benchmarks/gpu/ours.ts. Its times
// are invented. `node gpu-peer.mjs <how>`: what it does wrong as flex_attention; the other peers behave.
import { createInterface } from 'node:readline'
import { Device } from '../../dist/index.js'

const { OursOnGpu } = await import('../../build/benchmarks/gpu/ours.js')
const how = process.argv[2]
const opened = new Map()
// Row ops and matmul in floats: integer dot products round activations.
const device = await Device.open('cpu', { isa: 'scalar', threads: 1 })

async function answer(request) {
  const state = opened.get(request.as)
  const misbehaves = state && state.peer === 'flex_attention'
  switch (request.do) {
    case 'hello': {
      const names = ['copy', 'sdpa_flash', 'flex_attention', 'cublas', 'compile']
      return {
        peers: Object.fromEntries(names.map((name) => [name, 'fake 1.0'])),
        absent: { tinygemm: 'left at home' },
      }
    }
    case 'open':
      if (how === 'refuses' && request.peer === 'compile') return { absent: 'no compiler' }
      if (how === 'raises' && request.peer === 'flex_attention') return { error: 'TypeError: planted' }
      opened.set(request.as, { peer: request.peer, ours: await OursOnGpu.open(device, request.work, 1, 0) })
      return { units: 2 }
    case 'rows': {
      const { values } = await state.ours.rows(() => request.rows)
      if (how === 'wrong' && misbehaves) values[0] += 1
      return { values }
    }
    case 'run':
      if (how === 'dies' && misbehaves) process.exit(3)
      if (how === 'hangs' && misbehaves) await new Promise(() => setInterval(() => {}, 1000))
      if (how === 'nonsense' && misbehaves) return { ms: -1 }
      if (how === 'babbles' && misbehaves) console.log('Compiling, please wait …')
      return { ms: 0.5 * request.runs }
    case 'close':
      state?.ours.dispose()
      opened.delete(request.as)
      return {}
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line)
  console.log(JSON.stringify({ id: request.id, ...(await answer(request)) }))
}
