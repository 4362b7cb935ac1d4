// The two sides of every table and contract: TypeScript is the typed mirror of what the addon exports.

import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import * as library from '../lib/index.ts'
import { dtypes, errorCodes } from '../lib/index.ts'
import { native } from '../lib/native.ts'
import { definedOps, Op } from '../lib/op.ts'
import '../lib/ops/probe.ts'
import type { Isa } from '../lib/device.ts'
import { unitRoundoff } from './support/numbers.ts'

test('dtypes: the same names, blocks and roundoffs, in the same order', () => {
  expect(dtypes).toEqual(native.dtypes())
  for (const dtype of ['f32', 'f16', 'bf16'] as const) {
    expect(dtypes.find((info) => info.name === dtype)?.unitRoundoff).toBe(unitRoundoff(dtype))
  }
})

test('errors: the same codes with the same meanings', () => {
  expect(errorCodes).toEqual(native.errors())
})

test('instruction sets: the names of isa.def', () => {
  const names: Record<Isa, true> = {
    scalar: true,
    avx2: true,
    avx512: true,
    avx512_bf16: true,
    amx: true,
    amx_emulated: true,
    neon: true,
    i8mm: true,
  }
  expect(native.listIsas().map((isa) => isa.name)).toEqual(Object.keys(names))
})

describe('ops', () => {
  const table = native.ops()

  test('both sides have the same ones', () => {
    expect([...definedOps.keys()].sort()).toEqual(table.map((op) => op.name).sort())
  })

  test.each(table.map((op) => [op.name, op] as const))('%s: inputs, attributes and outputs', (name, op) => {
    expect(definedOps.get(name)).toEqual({
      inputs: op.inputs,
      attributes: op.attributes.map((attribute) => attribute.name),
      outputs: op.outputs,
    })
  })

  test.each(table.map((op) => [op.name, op] as const))('%s: attributes are well formed', (_name, op) => {
    const names = [...op.inputs, ...op.attributes.map((attribute) => attribute.name), ...op.outputs].map((n) =>
      n.replace(/[?!]/g, ''),
    )
    for (const name of names) expect(name, 'camelCase, as users see it').toMatch(/^[a-z][a-zA-Z0-9]*$/)
    // An output that is an input, written in place, has its name.
    const given = names.slice(0, names.length - op.outputs.length)
    expect(new Set(given).size, `names of ${op.name} are distinct`).toBe(given.length)
    expect(new Set(op.outputs).size, `outputs of ${op.name} are distinct`).toBe(op.outputs.length)
    for (const { name, kind, initial, choices } of op.attributes) {
      if (kind === 'choice') {
        const options = choices?.split('|') ?? []
        expect(options.length, name).toBeGreaterThan(1)
        if (initial !== undefined) expect(options[initial], name).toBeDefined()
      } else {
        expect(choices, name).toBeUndefined()
      }
      if (kind === 'boolean' && initial !== undefined) expect([0, 1], name).toContain(initial)
      if (kind === 'integer' && initial !== undefined) expect(Number.isInteger(initial), name).toBe(true)
    }
  })

  test('every op is a public function of the same stem', () => {
    const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())
    for (const { name } of table) {
      if (name === 'probe') continue // for benchmarks only
      expect(typeof (library as Record<string, unknown>)[camel(name)], name).toBe('function')
      expect((library as Record<string, unknown>)[`${camel(name)}Op`], name).toBeInstanceOf(Op)
    }
  })

  test('every file of lib/ops has its cases in test/ops', () => {
    const files = (folder: string, suffix: string) =>
      readdirSync(fileURLToPath(new URL(folder, import.meta.url)))
        .filter((file) => file.endsWith(suffix))
        .map((file) => file.slice(0, -suffix.length))
    const tests = files('ops/', '.test.ts')
    for (const stem of files('../lib/ops/', '.ts')) {
      expect(
        tests.some((test) => test === stem || test.startsWith(`${stem}-`)),
        `test/ops/${stem}.test.ts`,
      ).toBe(true)
    }
  })
})
