import { describe, expect, test } from 'vitest'
import { argmax, Program, sample, Tensor } from '../../lib/index.ts'
import {
  anyDevice,
  cudaExhaustive,
  forEachDevice,
  openDevice,
  presentIsas,
  upload,
  valuesOf,
} from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { hostTensor } from '../support/host-tensor.ts'
import { Random } from '../support/random.ts'
import { distribution, fractionOf, makeLogits, type Settings } from './sampling.reference.ts'

describe('sample', () => {
  test('equal logits give the bits of the random number: the published vector, and a thousand others', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const vocabulary = 2 ** 16
        const rows = 40
        const logits = Tensor.zeros(device, [rows, vocabulary], 'bf16')
        const seeds = Int32Array.from({ length: 2 * rows }, (_, i) => (i % 2 ? 0 : (i / 2) * 0x3c6ef372))
        const state = Tensor.from(device, seeds, [rows, 2])
        for (let draw = 0; draw < 25; draw++) {
          const tokens = [...(await valuesOf(sample(logits, state)))]
          if (draw === 0) expect(tokens[0]).toBe(0x6627)
          expect(tokens).toEqual(tokens.map((_, row) => Math.floor(fractionOf(seeds[2 * row]!, draw) * vocabulary)))
        }
      },
      { long: true },
    ))

  test.each<[string, Settings]>([
    ['plain', {}],
    ['temperature, topK and topP', { temperature: 0.8, topK: 20, topP: 0.9 }],
    ['minP', { minP: 0.1 }],
  ])(
    'draws follow the distribution: %s',
    (_, settings) =>
      forEachDevice(
        ['argmax', 'sample'],
        async (device) => {
          const [vocabulary, rows, draws] = [40, 500, 40]
          const x = Random.named('chi-square').normal('f32', [1, vocabulary])
          const logits = Tensor.from(
            device,
            Float32Array.from({ length: rows * vocabulary }, (_, i) => x.values[i % vocabulary]!),
            [rows, vocabulary],
          )
          const state = Tensor.from(
            device,
            Int32Array.from({ length: 2 * rows }, (_, i) => (i % 2 ? 0 : i)),
            [rows, 2],
          )
          const counts = new Float64Array(vocabulary)
          for (let draw = 0; draw < draws; draw++)
            for (const token of await valuesOf(sample(logits, state, settings))) counts[token]!++

          const probabilities = distribution(x.values, settings)
          let [chiSquare, kept] = [0, 0]
          for (const [id, p] of probabilities.entries()) {
            if (p === 0) {
              expect(counts[id]).toBe(0)
              continue
            }
            kept++
            chiSquare += (counts[id]! - p * rows * draws) ** 2 / (p * rows * draws)
          }
          // Wilson and Hilferty's normal approximation of the distribution of chi-square; 4.5 σ is one chance in 300,000.
          const freedom = kept - 1
          const sigma = 2 / (9 * freedom)
          expect(Math.abs((chiSquare / freedom) ** (1 / 3) - (1 - sigma)) / Math.sqrt(sigma)).toBeLessThan(4.5)
        },
        { long: true },
      ),
    cudaExhaustive ? 900_000 : undefined,
  )

  test('topK 1, topP 0 and temperature 0 are argmax', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const logits = upload(device, makeLogits('bf16', 9, 2000, 'levels', Random.named('argmax')))
        const expected = await valuesOf(argmax(logits))
        for (const settings of [{ topK: 1 }, { topP: 0 }, { temperature: 0 }, { temperature: 1e-40, topK: 3 }]) {
          const state = Tensor.from(device, new Int32Array(18).fill(5), [9, 2])
          expect(await valuesOf(sample(logits, state, settings))).toEqual(expected)
        }
      },
      { long: true },
    ))

  test('rows with temperature 0 in their settings are argmax, beside rows that are not', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const random = Random.named('mixed')
        for (const kind of ['normal', 'levels', 'zeros', 'nan', 'infinite', 'huge'] as const) {
          for (const dtype of ['f32', 'bf16'] as const) {
            const [rows, vocabulary] = [11, 3001]
            const logits = upload(device, makeLogits(dtype, rows, vocabulary, kind, random))
            // Whatever the other settings of a greedy row, and whatever its neighbours need.
            const perRow = (row: number) =>
              row % 2
                ? random.pick([
                    [1, 64, 0.95, 0],
                    [0.7, 0, 0.9, 0.05],
                    [1, 2000, 1, 0],
                    [2, 0, 1, 0],
                  ])
                : [
                    random.pick([0, 1e-40]),
                    random.pick([0, 1, 64, 2000]),
                    random.pick([0, 0.5, 1]),
                    random.pick([0, 1]),
                  ]
            const settings = Float32Array.from(Array.from({ length: rows }, (_, row) => perRow(row)).flat())
            const state = Tensor.from(device, new Int32Array(2 * rows).fill(3), [rows, 2])
            const tokens = await valuesOf(sample(logits, state, { settings: Tensor.from(device, settings, [rows, 4]) }))
            const largest = await valuesOf(argmax(logits))
            for (let row = 0; row < rows; row += 2) expect(tokens[row], `${kind}, row ${row}`).toBe(largest[row])
          }
        }
      },
      { long: true },
    ))

  test('a bias of −∞ forbids a token', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const [vocabulary, rows] = [300, 64]
        const logits = Tensor.zeros(device, [rows, vocabulary], 'f32')
        const mask = Float32Array.from({ length: vocabulary }, (_, id) => (id % 3 ? Number.NEGATIVE_INFINITY : 0))
        const state = Tensor.from(
          device,
          Int32Array.from({ length: 2 * rows }, (_, i) => i * 77),
          [rows, 2],
        )
        for (const settings of [{}, { topK: 50 }, { topK: 250 }, { topP: 0.5 }, { temperature: 0 }]) {
          const tokens = await valuesOf(
            sample(logits, state, { ...settings, bias: Tensor.from(device, mask, [1, vocabulary]) }),
          )
          expect([...tokens].every((token) => token % 3 === 0)).toBe(true)
        }
      },
      { long: true },
    ))

  test('settings of a row do what the same options do', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const logits = upload(device, makeLogits('f32', 1, 1111, 'normal', Random.named('settings')))
        for (const options of [
          {},
          { temperature: 0.5 },
          { topK: 9, topP: 0.25 },
          { temperature: 2, topP: 0.75, minP: 0.125 },
        ]) {
          const { temperature = 1, topK = 0, topP = 1, minP = 0 } = options as Settings
          const settings = Tensor.from(device, Float32Array.of(temperature, topK, topP, minP), [1, 4])
          const state = () => Tensor.from(device, Int32Array.of(12, 34), [1, 2])
          const byOptions = await valuesOf(sample(logits, state(), options))
          expect(await valuesOf(sample(logits, state(), { temperature: 0, settings }))).toEqual(byOptions)
        }
      },
      { long: true },
    ))

  test('a permuted batch gives permuted tokens', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const [rows, vocabulary] = [7, 5000]
        const random = Random.named('permuted')
        const host = makeLogits('f32', rows, vocabulary, 'normal', random)
        const order = random.permutation(rows)
        const permuted = hostTensor(
          'f32',
          [rows, vocabulary],
          order.flatMap((row) => [...host.values.subarray(row * vocabulary, (row + 1) * vocabulary)]),
        )
        const state = (ids: number[]) => Tensor.from(device, Int32Array.from(ids.flatMap((row) => [row, 3])), [rows, 2])
        for (const settings of [{}, { topK: 40, topP: 0.9 }, { topP: 0.9 }]) {
          const tokens = await valuesOf(sample(upload(device, host), state([...Array(rows).keys()]), settings))
          expect([...(await valuesOf(sample(upload(device, permuted), state(order), settings)))]).toEqual(
            order.map((row) => tokens[row]),
          )
        }
      },
      { long: true },
    ))

  test('any number of threads gives the same tokens', async () => {
    const random = Random.named('threads')
    const logits = makeLogits('f32', 3, 50_021, 'normal', random)
    for (const settings of [{}, { topK: 40, topP: 0.9 }, { topP: 0.9 }, { topK: 500 }, { temperature: 0 }]) {
      const results: number[][] = []
      for (const threads of [1, 2, 3, 16]) {
        const device = await openDevice(presentIsas.at(-1)!, threads)
        const state = Tensor.from(device, Int32Array.of(1, 2, 3, 4, 5, 6), [3, 2])
        results.push([
          ...(await valuesOf(sample(upload(device, logits), state, settings))),
          ...(await valuesOf(argmax(upload(device, logits)))),
        ])
      }
      for (const result of results) expect(result).toEqual(results[0])
    }
  })

  test('a replayed program draws on: as many calls, eager, give the same tokens', () =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const host = makeLogits('f32', 2, 900, 'normal', Random.named('program'))
        const logits = upload(device, host)
        const options = { topK: 100, topP: 0.95 }
        const [eagerState, state] = [0, 1].map(() => Tensor.from(device, Int32Array.of(7, 0, 8, 0), [2, 2]))
        using program = Program.capture(device, [{ shape: host.shape, dtype: 'f32' }], (x) =>
          sample(x!, state!, options),
        )
        const draws: number[][] = []
        for (let i = 0; i < 6; i++) {
          const token = [...(await valuesOf(program.run(logits)))]
          expect(token).toEqual([...(await valuesOf(sample(logits, eagerState!, options)))])
          draws.push(token)
        }
        expect(new Set(draws.map(String)).size).toBeGreaterThan(1)
        expect([...(await valuesOf(state!))]).toEqual([7, 6, 8, 6])
      },
      { long: true },
    ))
})

describe('argmax and sample reject', () => {
  async function setUp() {
    const device = await anyDevice()
    const zeros = (shape: readonly number[], dtype: 'f32' | 'bf16' | 'f16' | 'i32' = 'f32') =>
      Tensor.zeros(device, shape, dtype)
    return { device, zeros, logits: zeros([3, 10]), state: zeros([3, 2], 'i32') }
  }

  test('shapes that do not fit', async () => {
    const { zeros, logits, state } = await setUp()
    throwsCode(() => argmax(zeros([10])), 'ERR_SHAPE_MISMATCH', /logits: expected 2 dimensions/)
    throwsCode(() => argmax(zeros([3, 0])), 'ERR_SHAPE_MISMATCH', /vocabulary/)
    throwsCode(() => sample(zeros([3, 0]), state), 'ERR_SHAPE_MISMATCH', /vocabulary/)
    throwsCode(() => sample(logits, zeros([2, 2], 'i32')), 'ERR_SHAPE_MISMATCH', /state: .*rows/)
    throwsCode(() => sample(logits, zeros([3, 3], 'i32')), 'ERR_SHAPE_MISMATCH', /state: .*seed and counter/)
    throwsCode(() => sample(logits, state, { settings: zeros([3, 3]) }), 'ERR_SHAPE_MISMATCH', /settings/)
    throwsCode(() => sample(logits, state, { bias: zeros([3, 9]) }), 'ERR_SHAPE_MISMATCH', /bias: .*vocabulary/)
    throwsCode(() => sample(logits, state, { bias: zeros([2, 10]) }), 'ERR_SHAPE_MISMATCH', /bias: .*rows/)
  })

  test('dtypes they do not take', async () => {
    const { zeros, logits, state } = await setUp()
    throwsCode(() => argmax(zeros([3, 10], 'f16')), 'ERR_DTYPE_UNSUPPORTED', /logits: expected f32 or bf16/)
    throwsCode(() => sample(logits, zeros([3, 2])), 'ERR_DTYPE_UNSUPPORTED', /state: expected i32/)
    throwsCode(() => sample(logits, state, { settings: zeros([3, 4], 'bf16') }), 'ERR_DTYPE_UNSUPPORTED', /settings/)
    throwsCode(() => sample(logits, state, { bias: zeros([3, 10], 'bf16') }), 'ERR_DTYPE_UNSUPPORTED', /bias/)
  })

  test('attributes outside their range', async () => {
    const { logits, state } = await setUp()
    throwsCode(() => sample(logits, state, { temperature: -1 }), 'ERR_INVALID_ARGUMENT', /temperature/)
    throwsCode(() => sample(logits, state, { temperature: 1e39 }), 'ERR_INVALID_ARGUMENT', /temperature/)
    throwsCode(() => sample(logits, state, { topK: -1 }), 'ERR_INVALID_ARGUMENT', /topK/)
    throwsCode(() => sample(logits, state, { topK: 1.5 }), 'ERR_INVALID_ARGUMENT', /topK/)
    throwsCode(() => sample(logits, state, { topP: 1.01 }), 'ERR_INVALID_ARGUMENT', /topP/)
    throwsCode(() => sample(logits, state, { minP: -0.1 }), 'ERR_INVALID_ARGUMENT', /minP/)
  })

  test.each([
    ['temperature', [-1, 0, 1, 0]],
    ['temperature NaN', [Number.NaN, 0, 1, 0]],
    ['temperature infinite', [Number.POSITIVE_INFINITY, 0, 1, 0]],
    ['topK', [1, -1, 1, 0]],
    ['topP', [1, 0, 1.5, 0]],
    ['minP NaN', [1, 0, 1, Number.NaN]],
  ])('a row of settings out of range: %s', (_, bad) =>
    forEachDevice(
      ['argmax', 'sample'],
      async (device) => {
        const logits = Tensor.from(device, Float32Array.of(0, 9, 0, 0, 0, 9), [2, 3])
        const state = Tensor.from(device, Int32Array.of(1, 1, 1, 1), [2, 2])
        const settings = Tensor.from(device, Float32Array.of(0, 0, 1, 0, ...bad), [2, 4])
        const tokens = sample(logits, state, { settings })
        await rejectsCode(device.stream.synchronize(), 'ERR_INVALID_ARGUMENT', /settings: .* in row 1 of 2/)
        expect([...(await valuesOf(tokens))]).toEqual([1, 0])
        expect([...(await valuesOf(state))]).toEqual([1, 2, 1, 2])
      },
      { long: true },
    ),
  )
})
