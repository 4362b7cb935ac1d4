/**
 * A grammar as an automaton over bytes. A state knows which bytes may follow; states are made when a text first reaches them, and kept.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { plainRanges, type Range, utf8Sequences } from './code-points.ts'
import type { Expression, Rules } from './grammar-rules.ts'

interface Edge {
  readonly low: number
  readonly high: number
  readonly target: number
}

/** A place in a rule. */
interface Node {
  /** By a byte. */
  readonly edges: Edge[]
  /** By nothing. */
  readonly epsilons: number[]
  /** By a text that fits a rule, and from there to `target`. */
  readonly call: { readonly rule: number; readonly target: number } | undefined
}

/**
 * Where the rule in hand was asked for: it may be in several places at once. Rules that are asked for where a text stands now share one
 * frame each, however many ways there are to ask: that keeps the number of ways small (Tomita 1985, "An efficient context-free parsing
 * algorithm"; Earley 1970 has the same sets).
 */
interface Frame {
  readonly id: number
  readonly returns: readonly Place[]
}

interface Place {
  readonly node: number
  readonly frame: Frame
}

/** All that a text may be in the middle of. */
export interface State {
  readonly places: readonly Place[]
  /** Whether the text may end here. */
  readonly accepting: boolean
  /** By class of byte; null: no text that fits goes on so; undefined: not known yet. */
  readonly next: (State | null | undefined)[]
}

/** Nodes of all rules. Repetitions are written out. */
const mostNodes = 2 ** 17
/** Places of one state: a source of 64 KiB can list some ten thousand values. */
const mostPlaces = 2 ** 15
/** States that are kept. One for a bounded string of each length, times a few. */
const mostStates = 2 ** 14
/** States that differ after the same number of plain characters, before it is not worth looking further. */
const mostAlike = 8
const plainSequences: readonly (readonly Range[])[] = plainRanges.flatMap(utf8Sequences)
/** The end of a rule, and of the text. */
const endNode = 0
const acceptNode = 1

/**
 * The states of a grammar. Few are ever visited: JSON of a schema has some for each of its places.
 *
 * A state is the set of places that are reached by the bytes so far, each with the frames to return to. Sets and frames are found again by
 * what they hold, so that loops come back to the same states, and a rule at the end of another returns to where that one does: recursion
 * at the end costs nothing.
 */
export class GrammarStates {
  readonly start: State
  /** Places looked at so far: what making states has cost. */
  work = 0
  /** Bytes of a class are alike everywhere in the grammar. */
  readonly classOf: Uint8Array = new Uint8Array(256)
  readonly #nodes: Node[] = [node(), node()]
  readonly #ruleStarts: number[] = []
  readonly #nullable: boolean[] = []
  readonly #firstOfClass: number[] = []
  readonly #frames = new Map<string, Frame>()
  readonly #states = new Map<string, State>()
  readonly #suffixes = new Map<string, number>()
  #frameCount = 0

  /** @throws ERR_INVALID_ARGUMENT if it is too large. */
  constructor({ root, byName, nullable }: Rules) {
    const numbers = new Map([...byName.keys()].map((name, index) => [name, index]))
    for (const [name, expression] of byName) {
      this.#nullable.push(nullable.has(name))
      this.#ruleStarts.push(this.#build(expression, endNode, numbers))
      this.#suffixes.clear()
    }
    this.#classify()
    const top = this.#frame([])
    const whole = this.#frame([{ node: acceptNode, frame: top }])
    const entry = this.#add({ edges: [], epsilons: [], call: { rule: numbers.get(root) as number, target: endNode } })
    this.start = this.#close([{ node: entry, frame: whole }])
  }

  /** The state after one more byte; null: no text that fits goes on so. @throws ERR_INVALID_ARGUMENT as {@link advance}. */
  step(state: State, byte: number): State | null {
    const index = this.classOf[byte] as number
    const known = state.next[index]
    return known === undefined ? this.advance(state, index) : known
  }

  /** What `state.next` does not know yet. @throws ERR_INVALID_ARGUMENT if there are too many ways to read the text. */
  advance(state: State, byteClass: number): State | null {
    const byte = this.#firstOfClass[byteClass] as number
    const reached: Place[] = []
    for (const { node, frame } of state.places) {
      for (const { low, high, target } of (this.#nodes[node] as Node).edges) {
        if (byte >= low && byte <= high) reached.push({ node: target, frame })
      }
    }
    const next = reached.length === 0 ? null : this.#close(reached)
    state.next[byteClass] = next
    return next
  }

  /**
   * How many plain characters, whichever they are, may follow for certain: at most `limit`. Within a string of JSON any number may, within one
   * of bounded length as many as are left.
   */
  plainDepth(state: State, limit: number): number {
    let level: ReadonlySet<State> = new Set([state])
    for (let depth = 0; depth < limit; depth++) {
      const next = new Set<State>()
      for (const from of level) if (!this.#addAfterPlain(from, next)) return depth
      if (next.size === 1 && level.size === 1 && next.has(state)) return limit
      if (next.size > mostAlike) return depth + 1
      level = next
    }
    return limit
  }

  /** Adds the states after one plain character. False if not all of them may follow. */
  #addAfterPlain(state: State, to: Set<State>): boolean {
    for (const sequence of plainSequences) {
      let reached = [state]
      for (const range of sequence) {
        const next = new Set<State>()
        for (const from of reached) if (!this.#addAfter(from, range, next)) return false
        reached = [...next]
      }
      for (const end of reached) to.add(end)
    }
    return true
  }

  #addAfter(state: State, [low, high]: Range, to: Set<State>): boolean {
    for (let byte = low; byte <= high; byte++) {
      if (byte > low && this.classOf[byte] === this.classOf[byte - 1]) continue
      const next = this.step(state, byte)
      if (next === null) return false
      to.add(next)
    }
    return true
  }

  #add(added: Node): number {
    if (this.#nodes.length === mostNodes) throw tooLarge(`at most ${mostNodes} places in its rules`)
    return this.#nodes.push(added) - 1
  }

  /** The node from which texts that fit lead to `target`. */
  #build(expression: Expression, target: number, numbers: ReadonlyMap<string, number>): number {
    switch (expression.kind) {
      case 'literal':
        return expression.bytes.reduceRight(
          (after, byte) => this.#add(node([{ low: byte, high: byte, target: after }])),
          target,
        )
      case 'class':
        return this.#class(expression.ranges, target)
      case 'rule': {
        const rule = numbers.get(expression.name)
        if (rule === undefined) throw new LapidaryError('ERR_INTERNAL', `grammar: there is no rule ${expression.name}`)
        return this.#add({ edges: [], epsilons: [], call: { rule, target } })
      }
      case 'sequence':
        return expression.parts.reduceRight((after, part) => this.#build(part, after, numbers), target)
      case 'choice':
        return this.#add(
          node(
            [],
            expression.options.map((option) => this.#build(option, target, numbers)),
          ),
        )
      case 'repeat':
        return this.#repeat(expression, target, numbers)
    }
  }

  #repeat(
    { part, least, most }: Extract<Expression, { kind: 'repeat' }>,
    target: number,
    numbers: ReadonlyMap<string, number>,
  ): number {
    let at: number
    if (most === Number.POSITIVE_INFINITY) {
      const loop = node([], [target])
      at = this.#add(loop)
      loop.epsilons.push(this.#build(part, at, numbers))
    } else {
      at = target
      for (let count = least; count < most; count++) at = this.#add(node([], [target, this.#build(part, at, numbers)]))
    }
    for (let count = 0; count < least; count++) at = this.#build(part, at, numbers)
    return at
  }

  #class(ranges: readonly Range[], target: number): number {
    const first = node()
    for (const sequence of ranges.flatMap(utf8Sequences)) {
      const [[low, high], ...rest] = sequence as [Range, ...Range[]]
      first.edges.push({ low, high, target: rest.reduceRight((after, range) => this.#suffix(range, after), target) })
    }
    return this.#add(first)
  }

  /** Characters that end alike share the nodes of their ends. */
  #suffix([low, high]: Range, target: number): number {
    const key = `${low} ${high} ${target}`
    let known = this.#suffixes.get(key)
    if (known === undefined) {
      known = this.#add(node([{ low, high, target }]))
      this.#suffixes.set(key, known)
    }
    return known
  }

  #classify(): void {
    const starts = new Uint8Array(257)
    starts[0] = 1
    for (const { edges } of this.#nodes) {
      for (const { low, high } of edges) {
        starts[low] = 1
        starts[high + 1] = 1
      }
    }
    for (let byte = 0; byte < 256; byte++) {
      if (starts[byte] === 1) this.#firstOfClass.push(byte)
      this.classOf[byte] = this.#firstOfClass.length - 1
    }
  }

  /** The state of some places and all that is reached from them by nothing. */
  #close(reached: readonly Place[]): State {
    const seen = new Set<string>()
    const places: Place[] = []
    /** Rules that are asked for here, and where they return to. */
    const calls = new Map<number, Map<string, Place>>()
    let accepting = false
    const ask = (rule: number, back: Place): void => {
      const returns = calls.get(rule) ?? new Map<string, Place>()
      calls.set(rule, returns)
      // What has nothing to do after it returns lets its own returns be returned to.
      for (const place of back.node === endNode ? back.frame.returns : [back]) returns.set(keyOf(place), place)
    }
    const walk = (from: readonly Place[], ends: boolean): void => {
      const work = [...from]
      for (let place = work.pop(); place; place = work.pop()) {
        const key = keyOf(place)
        if (seen.has(key)) continue
        seen.add(key)
        this.work++
        if (seen.size > mostPlaces) throw tooLarge(`at most ${mostPlaces} ways to read a text`)
        const { node: at, frame } = place
        if (at === acceptNode) accepting = true
        // A rule that has just been asked for and needs no text is stepped over where it is asked for.
        if (at === endNode && ends) work.push(...frame.returns)
        const { edges, epsilons, call } = this.#nodes[at] as Node
        if (edges.length > 0) places.push(place)
        for (const target of epsilons) work.push({ node: target, frame })
        if (!call) continue
        const back = { node: call.target, frame }
        if (this.#nullable[call.rule]) work.push(back)
        ask(call.rule, back)
      }
    }
    walk(reached, true)
    // Rules ask only for later ones where they begin: whoever asks has asked when its turn comes.
    for (let rule = 0; calls.size > 0; rule++) {
      const returns = calls.get(rule)
      if (!returns) continue
      calls.delete(rule)
      walk([{ node: this.#ruleStarts[rule] as number, frame: this.#frame([...returns.values()]) }], false)
    }
    return this.#state(places, accepting)
  }

  #frame(returns: readonly Place[]): Frame {
    const key = returns.map(keyOf).sort().join()
    let frame = this.#frames.get(key)
    if (!frame) {
      frame = { id: this.#frameCount++, returns }
      this.#frames.set(key, frame)
    }
    return frame
  }

  #state(places: readonly Place[], accepting: boolean): State {
    const key = `${accepting} ${places.map(keyOf).sort().join()}`
    let state = this.#states.get(key)
    if (!state) {
      // What was made so far stays right, and is not found any more: only texts that are in it keep it.
      if (this.#states.size >= mostStates) {
        this.#states.clear()
        this.#frames.clear()
      }
      state = { places, accepting, next: [] }
      this.#states.set(key, state)
    }
    return state
  }
}

function node(edges: Edge[] = [], epsilons: number[] = []): Node {
  return { edges, epsilons, call: undefined }
}

function keyOf({ node: at, frame }: Place): string {
  return `${at}:${frame.id}`
}

function tooLarge(limit: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: expected one with ${limit}, got more: simplify it`)
}
