import { describe, expect, test } from 'vitest'
import { Program, qkNormRope, Tensor } from '../../lib/index.ts'
import { download, forEachDevice, openDevice, presentIsas, upload, valuesOf } from '../support/devices.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import { type Case, cases, gemma3, type Inputs, makeInputs, type OnDevice, run } from './qk-norm-rope.cases.ts'
import { reference, tableError } from './qk-norm-rope.reference.ts'

opSuite<Case, Inputs>('qkNormRope', {
  ops: ['qk_norm_rope'],
  emulated: { cases: 24, elements: 100_000 },
  cases,
  inputs: makeInputs,
  run: (c, t) => run(c, t),
  reference,
  control: { case: 'gemma 4 local, f32' },
})

describe('qkNormRope', () => {
  test('sines and cosines are those of the exact angle, at every position', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const headDim = 256
      const positions = [0, 1, 2, 3, 1023, 4096, 100_003, 131_071, 262_143, 262_144, 524_287, 1_000_003, 2 ** 20]
      for (const ropeTheta of [10_000, 1_000_000]) {
        // (1, 0) in each pair becomes (cos, sin).
        const unit = hostTensor(
          'f32',
          [positions.length, 1, headDim],
          positions.flatMap(() => Array.from({ length: headDim }, (_, i) => (i < headDim / 2 ? 1 : 0))),
        )
        const at = Tensor.from(device, Int32Array.from(positions), [positions.length])
        const got = await valuesOf(
          qkNormRope(upload(device, unit), undefined, undefined, { positions: at, ropeTheta }).q,
        )
        let worst = 0
        for (const [t, position] of positions.entries()) {
          for (let i = 0; i < headDim / 2; i++) {
            const angle = position * ropeTheta ** ((-2 * i) / headDim)
            worst = Math.max(
              worst,
              Math.abs(got[t * headDim + i]! - Math.cos(angle)),
              Math.abs(got[t * headDim + headDim / 2 + i]! - Math.sin(angle)),
            )
          }
        }
        expect(worst).toBeLessThan(tableError)
      }
    }))

  test('scores depend on the distance of positions only', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const headDim = 64
      const random = Random.named('relative')
      const [a, b] = [random.normal('f32', [1, 1, headDim]), random.normal('f32', [1, 1, headDim])]
      const rotated = async (host: HostTensor, position: number) => {
        const positions = Tensor.from(device, Int32Array.of(position), [1])
        return valuesOf(qkNormRope(upload(device, host), undefined, undefined, { positions, ropeTheta: 10_000 }).q)
      }
      const score = async (p: number, distance: number) => {
        const [x, y] = [await rotated(a, p + distance), await rotated(b, p)]
        return x.reduce((sum, element, i) => sum + element * y[i]!, 0)
      }
      const size = a.values.reduce((sum, x, i) => sum + Math.abs(x) + Math.abs(b.values[i]!), 0)
      for (const distance of [0, 1, 511]) {
        const near = await score(0, distance)
        for (const p of [1, 1000, 262_144])
          expect(Math.abs((await score(p, distance)) - near)).toBeLessThan(size * 8 * tableError)
      }
    }))

  test('chunks of tokens give the bits of all at once', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const c: Case = {
        name: '',
        tokens: 9,
        queryHeads: 3,
        kvHeads: 2,
        headDim: 32,
        ...gemma3,
        positions: (t) => 50 + t,
      }
      const h = makeInputs(c, Random.named('chunks'))
      const heads = upload(device, h.heads)
      const norms = { qNorm: upload(device, h.qNorm!), kNorm: upload(device, h.kNorm!) }
      const positions = upload(device, h.positions)
      const whole = await Promise.all(run(c, { heads, positions, ...norms }).map(download))
      const pieces = [
        [0, 2],
        [2, 7],
        [7, 9],
      ].map(([from, to]) => run(c, { heads: heads.slice(from!, to), positions: positions.slice(from!, to), ...norms }))
      for (const [i, output] of whole.entries()) {
        const parts = await Promise.all(pieces.map((piece) => download(piece[i]!)))
        expect(Buffer.concat(parts.map((part) => part.bytes)).equals(Buffer.from(output.bytes))).toBe(true)
      }
    }))

  test('any number of threads gives the same bits', async () => {
    const c: Case = { name: '', tokens: 3, queryHeads: 2, kvHeads: 1, headDim: 96, ...gemma3, cache: 'i8' }
    const h = makeInputs(c, Random.named('threads'))
    const results: Buffer[] = []
    for (const threads of [1, 2, 5, 16]) {
      const device = await openDevice(presentIsas.at(-1)!, threads)
      const t = Object.fromEntries(Object.entries(h).map(([key, host]) => [key, host && upload(device, host)]))
      results.push(
        Buffer.concat((await Promise.all(run(c, t as unknown as OnDevice).map(download))).map(({ bytes }) => bytes)),
      )
    }
    for (const result of results) expect(result.equals(results[0]!)).toBe(true)
  })

  test('k and v may be the same tensor', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const random = Random.named('shared')
      const shared = upload(device, random.normal('bf16', [3, 2, 64]))
      const positions = Tensor.from(device, Int32Array.of(4, 5, 6), [3])
      const options = { positions, ropeTheta: 1e6, valueNorm: true }
      const { v } = qkNormRope(shared, shared, shared, options)
      const { v: alone } = qkNormRope(shared, upload(device, random.normal('bf16', [3, 2, 64])), shared, options)
      expect(await valuesOf(v!)).toEqual(await valuesOf(alone!))
    }))

  test('a captured call gives the bits of an eager one', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const c: Case = { name: '', tokens: 2, queryHeads: 4, kvHeads: 2, headDim: 64, ...gemma3, cache: 'bf16' }
      const h = makeInputs(c, Random.named('captured'))
      const at = (key: keyof Inputs) => upload(device, h[key]!)
      const fixed = { qNorm: at('qNorm'), kNorm: at('kNorm'), slots: at('slots') }
      const eager = run(c, {
        ...fixed,
        heads: at('heads'),
        positions: at('positions'),
        kCache: at('kCache'),
        vCache: at('vCache'),
      })
      const [kCache, vCache] = [at('kCache'), at('vCache')]
      const specs = [h.heads, h.positions].map(({ shape, dtype }) => ({ shape, dtype: dtype as 'bf16' | 'i32' }))
      using program = Program.capture(
        device,
        specs,
        (heads, positions) => run(c, { ...fixed, heads: heads!, positions: positions!, kCache, vCache })[0]!,
      )
      const captured = [program.run(at('heads'), at('positions')), kCache, vCache]
      for (const [i, tensor] of captured.entries())
        expect((await download(tensor)).bytes).toEqual((await download(eager[i]!)).bytes)
    }))

  test('an i8 row with a NaN or an infinity has scale NaN and bytes 0', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const headDim = 40
      const values = Float32Array.from({ length: 3 * headDim }, (_, i) => Math.sin(i))
      values[7] = Number.NaN
      values[headDim + 39] = Number.NEGATIVE_INFINITY
      const x = Tensor.from(device, values, [3, 1, headDim])
      const cache = {
        kCache: Tensor.zeros(device, [1, 1, 4, headDim], 'i8'),
        vCache: Tensor.zeros(device, [1, 1, 4, headDim], 'i8'),
        kScales: Tensor.zeros(device, [1, 1, 4], 'f32'),
        vScales: Tensor.zeros(device, [1, 1, 4], 'f32'),
        slots: Tensor.from(device, Int32Array.of(0, 1, 2), [3]),
      }
      qkNormRope(x, x, x, { positions: Tensor.zeros(device, [3], 'i32'), rotate: false, cache })
      const scales = await valuesOf(cache.vScales)
      expect([...scales]).toEqual([Number.NaN, Number.NaN, expect.closeTo(1 / 127, 3), 0])
      expect((await valuesOf(cache.vCache)).subarray(0, 2 * headDim).every((byte) => byte === 0)).toBe(true)
    }))
})
