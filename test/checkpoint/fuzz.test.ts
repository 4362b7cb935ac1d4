import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { LapidaryError } from '../../lib/errors.ts'
import { globalSeed } from '../support/random.ts'
import { emptyTally, expectGoodError, expectPromises, FuzzFailure, fuzz } from './fuzzer.ts'

// `npm run fuzz` runs a million.
test('four thousand mutated checkpoints: a checkpoint or one error that says where', async () => {
  const tally = await fuzz({ seed: 1000 + globalSeed, iterations: 4000 })
  expect(tally.iterations).toBe(4000)
  // Mutations reach behind the first check, and do not miss altogether.
  expect(tally.accepted).toBeGreaterThan(200)
  expect(tally.refused.ERR_CHECKPOINT_CORRUPT).toBeGreaterThan(2000)
  expect(tally.refused.ERR_CHECKPOINT_UNSUPPORTED).toBeGreaterThan(50)
})

test('the same number gives the same inputs, also alone', async () => {
  const all = await fuzz({ seed: 7, iterations: 300 })
  const first = await fuzz({ seed: 7, iterations: 120 })
  const rest = await fuzz({ seed: 7, iterations: 180, first: 120 })
  expect(first.accepted + rest.accepted).toBe(all.accepted)
})

test('the fuzzer sees what is wrong', async () => {
  const expectFailure = (body: () => void) => expect(body).toThrow(FuzzFailure)
  const paths = ['m.gguf']
  expectFailure(() => expectGoodError(emptyTally(), paths, new TypeError('m.gguf: byte 7: expected')))
  expectFailure(() =>
    expectGoodError(emptyTally(), paths, new LapidaryError('ERR_INTERNAL', 'm.gguf: byte 7: expected')),
  )
  expectFailure(() =>
    expectGoodError(emptyTally(), paths, new LapidaryError('ERR_CHECKPOINT_CORRUPT', 'byte 7: expected')),
  )
  expectFailure(() => expectGoodError(emptyTally(), paths, new LapidaryError('ERR_CHECKPOINT_CORRUPT', 'm.gguf: bad')))
  expectFailure(() =>
    expectGoodError(emptyTally(), paths, new LapidaryError('ERR_CHECKPOINT_CORRUPT', 'm.gguf: byte 7: a\nb')),
  )
  const good = emptyTally()
  expectGoodError(good, paths, new LapidaryError('ERR_CHECKPOINT_CORRUPT', 'm.gguf: byte 7: expected'))
  expect(good.refused).toEqual({ ERR_CHECKPOINT_CORRUPT: 1 })

  const checkpoint = await openCheckpoint(fileURLToPath(new URL('../../models/tiny-q4_0.gguf', import.meta.url)))
  const [file] = checkpoint.files as [string]
  const sizes = new Map([[file, 1e9]])
  expectPromises(checkpoint, sizes)
  const tensor = checkpoint.tensors.get('output_norm.weight')!
  for (const change of [
    { offset: 2e9 },
    { bytes: 3 },
    { shape: [-1] },
    { shape: [255] },
    { offset: tensor.offset - 4 },
    { offset: Number.NaN },
  ]) {
    const tensors = new Map(checkpoint.tensors).set(tensor.name, { ...tensor, ...change })
    expectFailure(() => expectPromises({ ...checkpoint, tensors }, sizes))
  }
})
