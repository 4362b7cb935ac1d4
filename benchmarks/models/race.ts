/**
 * Whole models: ours and node-llama-cpp on the same synthetic checkpoint, request by request in turn, beside a read of as many
 * bytes as a step needs.
 */
import { existsSync, mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Device, type GemmaSizeName, probe, probeMemory, type Tensor, writeSynthetic } from 'lapidary'
import { formatVerdict, judge, type Verdict } from '../goals.ts'
import { llamaName } from '../peers/llama.ts'
import { summarize } from '../race.ts'
import { Contestant, type Requests } from './contestant.ts'
import { modelGoals } from './goals.ts'

export interface ModelRow {
  readonly case: string
  readonly isa: string
  readonly threads: number
  /** Of ours: tokens per second, or the unit that the case names. */
  readonly value: number
  readonly unit: 'tok/s' | 'MiB' | 's'
  /** Decoding only: per cent of a plain read of the weights and visible keys, taken between the samples. */
  readonly limit?: 'read'
  readonly percentOfLimit?: number
  readonly peers: Record<string, { value: number; ratio: number }>
  readonly verdicts: readonly Verdict[]
}

const peerFolder = fileURLToPath(new URL('../../../benchmarks/peers/node-llama-cpp/node_modules', import.meta.url))

/** Ids of ordinary pieces, other ones in every call: nothing is cached of them. */
function prompts(): (tokens: number) => number[] {
  let state = 1
  return (tokens) =>
    Array.from({ length: tokens }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return 1000 + ((state >>> 8) % 200_000)
    })
}

/** Milliseconds of one plain read of `bytes`, with the threads of the device. */
async function readMs(device: Device, buffer: Tensor): Promise<number> {
  await device.stream.synchronize()
  const start = performance.now()
  using sums = probe(buffer, 'read', 1)
  await sums.read()
  return performance.now() - start
}

/** Bytes of keys and values that a decode step of a published size sees, in bf16. */
const visibleKeyBytes = ({ layers, globals, kvHeads, window }: Shape, depth: number): number =>
  4 * kvHeads * 256 * (globals * depth + (layers - globals) * Math.min(depth, window))

interface Shape {
  readonly layers: number
  readonly globals: number
  readonly kvHeads: number
  readonly window: number
  /** Of the layers, and of the head as stored: what a decode step reads. */
  readonly layerBytes: number
  readonly headBytes: number
}

const shapes: Partial<Record<GemmaSizeName, Shape>> = {
  'gemma-3-1b': { layers: 26, globals: 4, kvHeads: 1, window: 512, layerBytes: 392_491_008, headBytes: 320_864_256 },
  'gemma-3-4b': { layers: 34, globals: 5, kvHeads: 4, window: 1024, layerBytes: 1_804_861_440, headBytes: 713_031_680 },
}

export interface RaceOptions {
  readonly threads: number
  /** Samples of each contender. */
  readonly rounds: number
  /** Whether node-llama-cpp takes part, where it is installed in benchmarks/peers/node-llama-cpp. */
  readonly peer: boolean
  /** Lengths of prompts whose prefill is timed. */
  readonly prompts: readonly number[]
  /** Lengths of contexts at which decoding is timed. */
  readonly depths: readonly number[]
}

/** Runs the cases of one published size, and hands out each row as it is known. */
export async function raceModel(
  size: GemmaSizeName,
  { threads, rounds, peer: wanted, prompts: promptLengths, depths }: RaceOptions,
  onRow: (row: ModelRow) => void,
): Promise<void> {
  const rows: Omit<ModelRow, 'verdicts'>[] = []
  const shape = shapes[size]
  if (shape === undefined) throw new Error(`${size}: expected one of ${Object.keys(shapes).join(', ')}`)
  const folder = join(tmpdir(), 'lapidary-benchmarks')
  mkdirSync(folder, { recursive: true })
  const path = join(folder, `${size}-q4_0.gguf`)
  if (!existsSync(path)) await writeSynthetic(path, { size, type: 'q4_0', headType: 'q8_0', seed: 1 })

  const withPeer = wanted && existsSync(peerFolder)
  if (wanted && !withPeer)
    console.error(
      'node-llama-cpp is not installed (npm install --prefix benchmarks/peers/node-llama-cpp): no peer columns',
    )
  const contextLength = Math.max(8 * 512, ...promptLengths, ...depths) + 1024
  const next = prompts()
  using device = await Device.open('cpu', { threads })
  const { isa } = device.info()

  /** One contestant of each kind, in turn; ours as stored, then with the default head. */
  const ask = async <K extends keyof Requests>(
    who: readonly Contestant[],
    request: K,
    make: () => Parameters<Requests[K]>[0],
    pick: (answer: ReturnType<Requests[K]>) => number,
    samples: number,
    between?: () => Promise<number>,
  ): Promise<{ values: Map<string, number>; limit: number }> => {
    const times = new Map<string, number[]>(who.map(({ name }) => [name, []]))
    const limits: number[] = []
    for (let sample = 0; sample < samples; sample++) {
      const options = make()
      for (const contestant of who) times.get(contestant.name)?.push(pick(await contestant.ask(request, options)))
      const first = times.get((who[0] as Contestant).name) as number[]
      if (between) limits.push((await between()) / (first.at(-1) as number))
    }
    const values = new Map([...times].map(([name, all]) => [name, summarize(all).median]))
    return { values, limit: limits.length > 0 ? summarize(limits).median : Number.NaN }
  }

  const heads = [
    { stored: true, label: 'head as stored', options: { head: 'stored' }, headBytes: shape.headBytes },
    { stored: false, label: 'default head', options: {}, headBytes: (shape.headBytes * 18) / 34 },
  ]
  for (const { stored, label, options, headBytes } of heads) {
    const ours = new Contestant('lapidary', './lapidary.js')
    const peer = withPeer ? new Contestant(llamaName, './node-llama-cpp.js') : undefined
    const all = peer ? [ours, peer] : [ours]
    try {
      const emit = (name: string, unit: ModelRow['unit'], values: Map<string, number>, limit = Number.NaN): void => {
        const value = values.get('lapidary') as number
        const peers: ModelRow['peers'] = {}
        for (const [peerName, other] of values) {
          if (peerName !== 'lapidary')
            peers[peerName] = { value: other, ratio: unit === 'tok/s' ? value / other : other / value }
        }
        const row = {
          case: `${size} q4_0, ${label}: ${name}`,
          isa,
          threads,
          value,
          unit,
          ...(Number.isNaN(limit) ? {} : { limit: 'read' as const, percentOfLimit: 100 * limit }),
          peers,
        }
        rows.push(row)
        onRow({ ...row, verdicts: judge(modelGoals[row.case] ?? [], row, rows) })
      }
      const perSecond = (values: Map<string, number>, tokens: number): Map<string, number> =>
        new Map([...values].map(([name, ms]) => [name, (1000 * tokens) / ms]))

      // The first load may write the packed form beside the checkpoint; what counts is every one after it.
      const warm = new Contestant('lapidary', './lapidary.js')
      await warm.ask('load', { path, threads, contextLength, options })
      warm.close()
      const load = await ask(
        all,
        'load',
        () => ({ path, threads, contextLength, options }),
        (a) => a.firstTokenMs / 1000,
        1,
      )
      emit('load to first token', 's', load.values)
      // The head is one row of a prefill: its format shows in decoding alone.
      for (const tokens of stored ? promptLengths : []) {
        const { values } = await ask(
          all,
          'prefill',
          () => ({ ids: next(tokens) }),
          ({ ms }) => ms,
          rounds,
        )
        emit(`prefill ${tokens}`, 'tok/s', perSecond(values, tokens))
      }
      for (const depth of depths) {
        const ids = next(depth)
        using buffer = await probeMemory(
          device,
          Math.round(shape.layerBytes + headBytes + visibleKeyBytes(shape, depth)),
        )
        await readMs(device, buffer)
        const { values, limit } = await ask(
          all,
          'decode',
          () => ({ ids, count: 32 }),
          ({ ms }) => ms,
          rounds + 1,
          () => readMs(device, buffer),
        )
        emit(`decode at ${depth}`, 'tok/s', perSecond(values, 1), limit)
      }
      // Our engine lets go of the table's pages after two seconds without work.
      await new Promise((resolve) => setTimeout(resolve, 3000))
      const memory = await ask(
        all,
        'memory',
        () => ({}),
        ({ resident }) => resident / 2 ** 20,
        1,
      )
      emit('resident memory', 'MiB', memory.values)
      // The peer divides its cache among sequences when it opens one: eight of them are a process of their own.
      const eight = peer && new Contestant(llamaName, './node-llama-cpp.js')
      if (eight) {
        all.push(eight)
        await eight.ask('load', { path, threads, contextLength: 512, options: { sequences: 8 } })
      }
      const { values } = await ask(
        eight ? [ours, eight] : [ours],
        'batch',
        () => ({ prompts: Array.from({ length: 8 }, () => next(256)), count: 32 }),
        ({ ms }) => ms,
        rounds,
      )
      emit('8 sequences at 256', 'tok/s', perSecond(values, 1))
    } finally {
      for (const contestant of all) contestant.close()
    }
  }
}

export function formatModelRow(row: ModelRow): string {
  const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))
  const peers = Object.entries(row.peers).map(
    ([name, { value, ratio }]) => `${ratio.toFixed(2)}x ${name} (${number(value)})`,
  )
  const limit = row.percentOfLimit === undefined ? '' : `${row.percentOfLimit.toFixed(0)} % of read`
  const goals = row.verdicts.map(formatVerdict)
  return [row.case, `${number(row.value)} ${row.unit}`, limit, ...peers, ...goals]
    .filter((cell) => cell !== '')
    .join(' | ')
}
