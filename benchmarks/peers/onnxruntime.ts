/** The peer: onnxruntime-node's CPU provider, one graph per case. */
import type { InferenceSession, Tensor } from 'onnxruntime-node'
import type { Contender } from '../race.ts'

export const peerName = 'onnxruntime-node'

type Runtime = typeof import('onnxruntime-node')
let runtime: Runtime | undefined

/** The peer's module, or undefined where it is not installed (then rows have no peer, and the report says so). */
export async function loadOnnxRuntime(): Promise<Runtime | undefined> {
  try {
    runtime ??= await import('onnxruntime-node')
  } catch {
    return undefined
  }
  return runtime
}

export class OnnxPeer implements Contender {
  readonly name: string = peerName
  readonly #session: InferenceSession
  readonly #feeds: Record<string, Tensor>
  readonly #fetches: Record<string, Tensor>
  readonly unitsPerRun: number

  private constructor(
    session: InferenceSession,
    feeds: Record<string, Tensor>,
    fetches: Record<string, Tensor>,
    unitsPerRun: number,
  ) {
    this.#session = session
    this.#feeds = feeds
    this.#fetches = fetches
    this.unitsPerRun = unitsPerRun
  }

  /**
   * Opens a graph with preallocated inputs and outputs, the fastest way that the peer has.
   * @param unitsPerRun How many times the graph does the case's work (several layers with their own weights).
   */
  static async open(
    model: Uint8Array,
    threads: number,
    feeds: Record<string, { data: Float32Array | Int32Array; dims: number[] }>,
    outputs: Record<string, number[]>,
    unitsPerRun = 1,
  ): Promise<OnnxPeer | undefined> {
    const ort = await loadOnnxRuntime()
    if (!ort) return undefined
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ['cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      graphOptimizationLevel: 'all',
      logSeverityLevel: 3,
    })
    const tensor = ({ data, dims }: { data: Float32Array | Int32Array; dims: number[] }): Tensor =>
      data instanceof Float32Array ? new ort.Tensor('float32', data, dims) : new ort.Tensor('int32', data, dims)
    const size = (dims: number[]): number => dims.reduce((product, dim) => product * dim, 1)
    return new OnnxPeer(
      session,
      Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, tensor(feed)])),
      Object.fromEntries(
        Object.entries(outputs).map(([name, dims]) => [name, tensor({ data: new Float32Array(size(dims)), dims })]),
      ),
      unitsPerRun,
    )
  }

  async run(runs: number): Promise<void> {
    for (let i = 0; i < runs; i++) await this.#session.run(this.#feeds, this.#fetches)
  }

  /** The first output of the last run. */
  firstOutput(): Float32Array {
    return (Object.values(this.#fetches)[0] as Tensor).data as Float32Array
  }

  async dispose(): Promise<void> {
    await this.#session.release()
  }
}
