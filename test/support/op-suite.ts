/**
 * One driver for the tests of every op: cases are data, and each runs on every instruction set present.
 *
 * A case passes when the result has the same bits with one thread and with two, is within the reference's computed bounds, came
 * from the kernel it should come from, and left the guard regions around all buffers untouched. Per float input there is a negative
 * control: changing one element must make the comparison fail.
 */

import { afterAll, describe, expect, test } from 'vitest'
import type { Device, Tensor } from '../../lib/index.ts'
import { bitDifference, type Expected, mismatch } from './compare.ts'
import {
  bestIsa,
  cuda,
  cudaExhaustive,
  cudaFor,
  type Downloaded,
  download,
  fast,
  isasFor,
  missingIsas,
  openDevice,
  presentIsas,
  supportedIsas,
  upload,
} from './devices.ts'
import { type HostTensor, withElement } from './host-tensor.ts'
import { expectedKernel } from './kernels.ts'
import { isFloat } from './numbers.ts'
import { Random } from './random.ts'

type Inputs = Readonly<Record<string, HostTensor | undefined>>
type OnDevice<I> = { readonly [K in keyof I]: I[K] extends HostTensor ? Tensor : Tensor | undefined }

export interface OpSuite<C extends { readonly name: string }, I extends Inputs> {
  /** Native names of the ops that `run` calls: the driver asserts which instruction set's kernel each of them is. */
  readonly ops: readonly string[]
  readonly cases: readonly C[]
  /** The case's inputs; `random` is seeded by the names of suite and case. */
  readonly inputs: (c: C, random: Random) => I
  /** Runs the op. Returns its outputs; inputs that the op writes into may be returned too. */
  readonly run: (c: C, tensors: OnDevice<I>, device: Device) => Tensor | readonly Tensor[]
  /** What each tensor that `run` returns must be. Naive loops in double precision, from the formula. */
  readonly reference: (c: C, inputs: I) => readonly Expected[]
  /** The same with the bounds of the CUDA kernels, where the contract names others for them. */
  readonly cudaReference?: (c: C, inputs: I) => readonly Expected[]
  /**
   * The case for the negative control; by default the first one that has float inputs. Name inputs that it does not depend on
   * in `insensitive`.
   */
  readonly control?: { readonly case?: string; readonly insensitive?: readonly (keyof I)[] }
  /**
   * What of the cases the emulated CUDA device runs: a thread of the GPU costs a fibre of the host. A GPU runs all of them.
   * `cases`: how many at most, spread over all; default 16. `elements`: of the inputs of a case at most; default 20 000.
   * `takes`: which cases are worth the time; default: all.
   */
  readonly emulated?: {
    readonly cases?: number
    readonly elements?: number
    readonly takes?: (c: C) => boolean
  }
}

const kEmulatedCases = 16
const kEmulatedElements = 20_000

/** How many elements of an input the negative control tries: some may lie where the op rightly does not look. */
const kControlAttempts = 24

export function opSuite<C extends { readonly name: string }, I extends Inputs>(
  name: string,
  suite: OpSuite<C, I>,
): void {
  const duplicate = suite.cases.find((c, i) => suite.cases.findIndex((other) => other.name === c.name) !== i)
  if (duplicate) throw new Error(`${name}: two cases are named ${duplicate.name}`)
  const cases = fast ? suite.cases.filter((_, i) => i % 4 === 0) : suite.cases

  describe(name, () => {
    // Tests run in order, all instruction sets of a case in a row: holding one case holds its reference for all of them.
    let held: { c: C; inputs: I; expected: readonly Expected[] } | undefined
    const prepare = (c: C) => {
      if (held?.c !== c) {
        const inputs = suite.inputs(c, Random.named(`${name}/${c.name}`))
        held = { c, inputs, expected: suite.reference(c, inputs) }
      }
      return held
    }
    afterAll(() => {
      held = undefined
    })

    const isas = isasFor(suite.ops)
    for (const c of cases) {
      for (const isa of isas) {
        test(`${c.name} · ${isa}`, async () => {
          const { inputs, expected } = prepare(c)
          const one = await runOn(await openDevice(isa, 1), suite, c, inputs)
          const two = await runOn(await openDevice(isa, 2), suite, c, inputs)
          expect(one.length, 'outputs').toBe(expected.length)
          for (const [i, result] of one.entries()) {
            const where = one.length > 1 ? `output ${i}: ` : ''
            const wrong = mismatch(result.values, expected[i]!, result.bytes)
            if (wrong) expect.fail(`${where}${wrong}`)
            const difference = bitDifference(two[i]!.bytes, result.bytes)
            if (difference) expect.fail(`${where}two threads and one give different bits: ${difference}`)
          }
        })
      }
    }

    for (const isa of presentIsas) {
      test(`runs the kernels of ${isa}`, async () => {
        const device = await openDevice(isa, 2)
        expect(device.info().isa).toBe(isa)
        const { kernels } = device.info()
        for (const op of suite.ops) expect(kernels[op], `kernel of ${op}`).toBe(expectedKernel(op, isa, supportedIsas))
      })
    }

    cudaTests(name, suite, cases, prepare)

    test('negative control: a changed input element is noticed', async () => {
      const c = controlCase(name, suite, cases)
      const { inputs, expected } = prepare(c)
      const random = Random.named(`${name}/control`)
      const device = await openDevice(bestIsa)
      expect(await fails(device, suite, c, inputs, expected), `case "${c.name}" unchanged`).toBe(false)
      for (const key of sensitiveInputs(suite, inputs)) {
        const noticed = await controlNotices(device, suite, c, inputs, key, expected, random)
        expect(noticed, `case "${c.name}": a change of ${key} goes unnoticed`).toBe(true)
      }
    })

    for (const { name: isa, reason } of missingIsas) test.skip(`${cases.length} cases on ${isa}: ${reason}`)
    for (const isa of presentIsas.filter((isa) => !isas.includes(isa))) {
      test.skip(
        `LAPIDARY_TEST_FAST leaves out ${cases.length} cases on ${isa}, which has no kernel of its own for them`,
      )
    }
    if (fast)
      test.skip(`LAPIDARY_TEST_FAST leaves out ${suite.cases.length - cases.length} of ${suite.cases.length} cases`)
  })
}

/** The cases on the CUDA device: each twice, which on the emulated one means two schedules. */
function cudaTests<C extends { readonly name: string }, I extends Inputs>(
  name: string,
  suite: OpSuite<C, I>,
  cases: readonly C[],
  prepare: (c: C) => { readonly inputs: I; readonly expected: readonly Expected[] },
): void {
  const family = cudaFor(suite.ops)
  if (!family) {
    const why = cuda.missing ?? `no CUDA kernel of ${suite.ops.join(', ')}`
    test.skip(`${cases.length} cases on CUDA: ${why}`)
    return
  }
  const emulated = family === 'sm80_emulated' && !cudaExhaustive
  const { cases: most = kEmulatedCases, elements = kEmulatedElements, takes = () => true } = suite.emulated ?? {}
  const worth = emulated ? cases.filter(takes) : cases
  const stride = emulated ? Math.ceil(worth.length / most) : 1
  const chosen = worth.filter((_, i) => i % stride === 0)

  for (const c of chosen) {
    test(`${c.name} · ${family}`, async (context) => {
      const { inputs, ...prepared } = prepare(c)
      const expected = suite.cudaReference?.(c, inputs) ?? prepared.expected
      const size = Object.values(inputs).reduce((sum, host) => sum + (host?.values.length ?? 0), 0)
      if (emulated && size > elements) context.skip(`${size} elements are too many for the emulation`)
      const device = await openDevice(family)
      const first = await runOn(device, suite, c, inputs)
      const second = await runOn(device, suite, c, inputs)
      expect(first.length, 'outputs').toBe(expected.length)
      for (const [i, result] of first.entries()) {
        const where = first.length > 1 ? `output ${i}: ` : ''
        const wrong = mismatch(result.values, expected[i]!, result.bytes)
        if (wrong) expect.fail(`${where}${wrong}`)
        const difference = bitDifference(second[i]!.bytes, result.bytes)
        if (difference) expect.fail(`${where}two runs give different bits: ${difference}`)
      }
    })
  }

  test(`runs the kernels of ${family}`, async () => {
    const { isa, kernels } = (await openDevice(family)).info()
    expect(isa).toBe(family)
    for (const op of suite.ops) expect(kernels[op], `kernel of ${op}`).toBe(family)
  })

  if (chosen.length < cases.length) {
    test.skip(`the emulation leaves out ${cases.length - chosen.length} of ${cases.length} cases of ${name}`)
  }
}

async function runOn<C extends { readonly name: string }, I extends Inputs>(
  device: Device,
  suite: OpSuite<C, I>,
  c: C,
  inputs: I,
): Promise<Downloaded[]> {
  const tensors: Record<string, Tensor | undefined> = {}
  for (const [key, host] of Object.entries(inputs)) tensors[key] = host && upload(device, host)
  const made = new Set<Tensor>(Object.values(tensors).filter((tensor) => tensor !== undefined))
  try {
    const result = suite.run(c, tensors as OnDevice<I>, device)
    const outputs = Array.isArray(result) ? (result as readonly Tensor[]) : [result as Tensor]
    for (const output of outputs) made.add(output)
    return await Promise.all(outputs.map(download))
  } finally {
    for (const tensor of made) tensor.dispose()
    // Reports guard regions that were overwritten, and errors of calls whose outputs nobody read.
    await device.stream.synchronize()
  }
}

function sensitiveInputs<C extends { readonly name: string }, I extends Inputs>(
  suite: OpSuite<C, I>,
  inputs: I,
): string[] {
  return Object.keys(inputs).filter((key) => {
    const host = inputs[key]
    return (
      host !== undefined && isFloat(host.dtype) && host.values.length > 0 && !suite.control?.insensitive?.includes(key)
    )
  })
}

function controlCase<C extends { readonly name: string }, I extends Inputs>(
  name: string,
  suite: OpSuite<C, I>,
  cases: readonly C[],
): C {
  const named = suite.control?.case
  const found = named
    ? suite.cases.find((c) => c.name === named)
    : cases.find((c) => sensitiveInputs(suite, suite.inputs(c, Random.named(`${name}/${c.name}`))).length > 0)
  if (!found)
    throw new Error(`${name}: no case ${named ? `"${named}"` : 'with a float input'} for the negative control`)
  return found
}

async function controlNotices<C extends { readonly name: string }, I extends Inputs>(
  device: Device,
  suite: OpSuite<C, I>,
  c: C,
  inputs: I,
  key: string,
  expected: readonly Expected[],
  random: Random,
): Promise<boolean> {
  const host = inputs[key]!
  const largest = host.values.reduce(
    (most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most),
    0,
  )
  for (let attempt = 0; attempt < kControlAttempts; attempt++) {
    const index = random.integer(0, host.values.length)
    // Larger than every other element, of the sign that the activation functions let through.
    const changed = withElement(host, index, 4 * largest + 1)
    if (await fails(device, suite, c, { ...inputs, [key]: changed }, expected)) return true
  }
  return false
}

async function fails<C extends { readonly name: string }, I extends Inputs>(
  device: Device,
  suite: OpSuite<C, I>,
  c: C,
  inputs: I,
  expected: readonly Expected[],
): Promise<boolean> {
  const outputs = await runOn(device, suite, c, inputs)
  return outputs.some((output, i) => mismatch(output.values, expected[i]!, output.bytes) !== undefined)
}
