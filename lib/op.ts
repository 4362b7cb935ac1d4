/**
 * Ops: how a typed function in lib/ops/ becomes one queued call. Arguments are validated and shapes inferred natively
 * (native/ops/), in the same crossing.
 * @module
 */
import { LapidaryError } from './errors.ts'
import { native } from './native.ts'
import { handleOf, type Tensor, wrapTensor } from './tensor.ts'

/** The TypeScript side of an op's contract. A contract test compares it with the native one. */
export interface OpSpec {
  /** Names in order; `?` marks an optional tensor, `!` one that the op writes into. */
  readonly inputs: readonly string[]
  readonly attributes: readonly string[]
  readonly outputs: readonly string[]
}

/** An attribute's value; `undefined` takes the native default. */
export type Attribute = number | boolean | undefined

// The layout of the command array: native/bridge/calls.cc.
const outputDoubles = 8

const opIndices = new Map<string, number>(native.ops().map((op, index) => [op.name, index]))

/** Every op that was defined, by name. */
export const definedOps: Map<string, OpSpec> = new Map()

export class Op {
  readonly name: string
  readonly #index: number
  readonly #labels: readonly string[]
  readonly #attributes: readonly string[]

  constructor(name: string, spec: OpSpec) {
    const index = opIndices.get(name)
    if (index === undefined) throw new LapidaryError('ERR_INTERNAL', `op ${name} is not in the native table`)
    this.name = name
    this.#index = index
    this.#attributes = spec.attributes
    this.#labels = spec.inputs.map((input) => `${name}: ${input.replace(/[?!]/g, '')}`)
  }

  /** Queues the call and returns its only (or first) output. */
  one(inputs: readonly (Tensor | undefined)[], attributes: readonly Attribute[]): Tensor {
    const first = this.#enqueue(inputs, attributes)
    return takeOutput(first, 0)
  }

  /** Queues the call and returns all its outputs; how many depends on the call. */
  all(inputs: readonly (Tensor | undefined)[], attributes: readonly Attribute[]): Tensor[] {
    const first = this.#enqueue(inputs, attributes)
    // Copied out before wrapping: nothing may enqueue in between, and wrapping allocates only.
    return Array.from({ length: native.command[0] as number }, (_, index) => takeOutput(first, index))
  }

  /** NaN stands for the default on the way across: a NaN of the caller's must not become one. */
  #attribute(index: number, value: number | boolean): number {
    const number = typeof value === 'boolean' || typeof value === 'number' ? Number(value) : Number.NaN
    if (!Number.isNaN(number)) return number
    const label = `${this.name}: ${this.#attributes[index]}`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `${label}: expected a number or boolean, got ${String(value)}`)
  }

  /** Writes the call into the command array and crosses. Returns the first tensor: it knows the device. */
  #enqueue(inputs: readonly (Tensor | undefined)[], attributes: readonly Attribute[]): Tensor {
    const { command } = native
    let first: Tensor | undefined
    let at = 2
    for (let i = 0; i < this.#labels.length; i++) {
      const tensor = inputs[i]
      if (tensor === undefined) {
        command[at++] = 0
        continue
      }
      command[at++] = handleOf(tensor, this.#labels[i] as string)
      first ??= tensor
    }
    for (let i = 0; i < attributes.length; i++) {
      const value = attributes[i]
      command[at++] = value === undefined ? Number.NaN : this.#attribute(i, value)
    }
    if (first === undefined) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `${this.#labels[0] ?? this.name}: expected a Tensor, got undefined`,
      )
    }
    command[0] = this.#index
    command[1] = first.device.currentStream.handle
    native.enqueue()
    return first
  }
}

function takeOutput(source: Tensor, index: number): Tensor {
  const { command } = native
  const at = 1 + index * outputDoubles
  const rank = command[at + 3] as number
  const shape: number[] = new Array(rank)
  for (let axis = 0; axis < rank; axis++) shape[axis] = command[at + 4 + axis] as number
  return wrapTensor(source.device, command[at] as number, command[at + 1] as number, command[at + 2] as number, shape)
}

/** Declares an op: called once, at the top of its file in lib/ops/. */
export function defineOp(name: string, spec: OpSpec): Op {
  definedOps.set(name, spec)
  return new Op(name, spec)
}

/** The value by which a choice crosses; `undefined` stays (the native default). */
export function choiceIndex<T extends string>(
  choices: readonly T[],
  value: T | undefined,
  what = 'option',
): number | undefined {
  if (value === undefined) return undefined
  const index = choices.indexOf(value)
  if (index < 0) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `${what}: expected one of ${choices.join(', ')}, got ${String(value)}`,
    )
  }
  return index
}
