/**
 * The rules of a grammar, read from EBNF.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { type Range, readClass, readEscaped } from './code-points.ts'

/** What a part of a rule stands for. */
export type Expression =
  | { readonly kind: 'literal'; readonly bytes: Uint8Array }
  /** One character. Without ranges: nothing fits. */
  | { readonly kind: 'class'; readonly ranges: readonly Range[] }
  | { readonly kind: 'rule'; readonly name: string }
  | { readonly kind: 'sequence'; readonly parts: readonly Expression[] }
  | { readonly kind: 'choice'; readonly options: readonly Expression[] }
  | { readonly kind: 'repeat'; readonly part: Expression; readonly least: number; readonly most: number }

/** A grammar that some text fits, and in which no rule begins with itself. */
export interface Rules {
  readonly root: string
  /** Rules come before those that they may begin with. */
  readonly byName: ReadonlyMap<string, Expression>
  /** Those that the empty text fits. */
  readonly nullable: ReadonlySet<string>
}

const nothing: Expression = { kind: 'class', ranges: [] }

/**
 * Reads the EBNF that XGrammar writes of a grammar that it has checked, whose first rule is `root`. Assertions about what follows a rule
 * are left out: they speed XGrammar up and mean nothing.
 * @throws ERR_INVALID_ARGUMENT if no text fits it, a rule begins with itself, or for a TagDispatch.
 */
export function readRules(ebnf: string): Rules {
  const rules = new Map<string, Expression>()
  const reader = new Reader(ebnf)
  while (!reader.atEnd) rules.set(reader.head(), reader.body())
  const root = 'root'
  const productive = fixpoint(rules, produces)
  if (!productive.has(root)) throw invalid('expected one that some text fits: no text fits it')
  for (const [name, expression] of rules) {
    if (productive.has(name)) rules.set(name, withoutDeadEnds(expression, productive))
    else rules.delete(name)
  }
  const nullable = fixpoint(rules, isNullable)
  return { root, byName: inOrder(rules, root, nullable), nullable }
}

function invalid(problem: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}`)
}

/** The rules for which `isKnown` is true, where it may take for granted that it is of those found so far. */
function fixpoint(
  rules: ReadonlyMap<string, Expression>,
  isKnown: (expression: Expression, known: ReadonlySet<string>) => boolean,
): Set<string> {
  const known = new Set<string>()
  // Chains of rules run either way.
  const order = [...rules]
  for (let size = -1; size < known.size; order.reverse()) {
    size = known.size
    for (const [name, expression] of order) if (!known.has(name) && isKnown(expression, known)) known.add(name)
  }
  return known
}

/** Whether some text fits, where texts fit the known rules. */
function produces(expression: Expression, known: ReadonlySet<string>): boolean {
  return holds(expression, known, (leaf) => leaf.kind === 'literal' || leaf.ranges.length > 0)
}

/** Whether the empty text fits, where it fits the known rules. */
function isNullable(expression: Expression, known: ReadonlySet<string>): boolean {
  return holds(expression, known, (leaf) => leaf.kind === 'literal' && leaf.bytes.length === 0)
}

/** Whether a text of some kind fits, where one fits the known rules: the kind says which leaves it fits. */
function holds(
  expression: Expression,
  known: ReadonlySet<string>,
  ofLeaf: (leaf: Extract<Expression, { kind: 'literal' | 'class' }>) => boolean,
): boolean {
  switch (expression.kind) {
    case 'literal':
    case 'class':
      return ofLeaf(expression)
    case 'rule':
      return known.has(expression.name)
    case 'sequence':
      return expression.parts.every((part) => holds(part, known, ofLeaf))
    case 'choice':
      return expression.options.some((option) => holds(option, known, ofLeaf))
    case 'repeat':
      return expression.least === 0 || holds(expression.part, known, ofLeaf)
  }
}

/** Without what leads to no end: from every place that is left some text goes on to the end. */
function withoutDeadEnds(expression: Expression, productive: ReadonlySet<string>): Expression {
  if (!produces(expression, productive)) return nothing
  switch (expression.kind) {
    case 'sequence':
      return { kind: 'sequence', parts: expression.parts.map((part) => withoutDeadEnds(part, productive)) }
    case 'choice': {
      const options = expression.options.filter((option) => produces(option, productive))
      return { kind: 'choice', options: options.map((option) => withoutDeadEnds(option, productive)) }
    }
    case 'repeat':
      if (!produces(expression.part, productive)) return { kind: 'sequence', parts: [] }
      return { ...expression, part: withoutDeadEnds(expression.part, productive) }
    default:
      return expression
  }
}

/** The rules that `expression` may begin with. */
function* firstRules(expression: Expression, nullable: ReadonlySet<string>): Generator<string> {
  if (expression.kind === 'rule') yield expression.name
  else if (expression.kind === 'choice') for (const option of expression.options) yield* firstRules(option, nullable)
  else if (expression.kind === 'repeat') yield* firstRules(expression.part, nullable)
  else if (expression.kind === 'sequence') {
    for (const part of expression.parts) {
      yield* firstRules(part, nullable)
      if (!isNullable(part, nullable)) return
    }
  }
}

/** The rules that can be reached, each before those it may begin with. @throws ERR_INVALID_ARGUMENT if one begins with itself. */
function inOrder(
  rules: ReadonlyMap<string, Expression>,
  root: string,
  nullable: ReadonlySet<string>,
): Map<string, Expression> {
  const finished = new Set<string>()
  const order: string[] = []
  for (const start of [root, ...rules.keys()]) {
    // Depth first, without recursion: chains of rules may be long.
    const path: { readonly name: string; readonly next: Iterator<string> }[] = []
    const open = new Set<string>()
    const enter = (name: string): void => {
      if (finished.has(name)) return
      if (open.has(name)) throw invalid(`expected rules that do not begin with themselves, got ${name}`)
      open.add(name)
      path.push({ name, next: firstRules(rules.get(name) as Expression, nullable) })
    }
    enter(start)
    for (let top = path.at(-1); top; top = path.at(-1)) {
      const { done, value } = top.next.next()
      if (!done) {
        enter(value)
        continue
      }
      path.pop()
      open.delete(top.name)
      finished.add(top.name)
      order.push(top.name)
    }
  }
  return new Map(order.reverse().map((name) => [name, rules.get(name) as Expression]))
}

/** How deep parentheses may be nested. XGrammar writes two. */
const deepest = 100
/** What is written: names and signs, literals, classes. Comments were left out. */
const token =
  /\s*(?:([A-Za-z_][\w.-]*)|"((?:[^"\\]|\\.)*)"|(\[(?:[^\]\\]|\\.)*\])|(::=|\(=|\{\s*(\d+)\s*(,?)\s*(\d+|-1)?\s*\}|[()|*+?]))/suy

type Token =
  | { readonly kind: 'name' | 'sign'; readonly text: string }
  | { readonly kind: 'expression'; readonly value: Expression }
  | { readonly kind: 'count'; readonly least: number; readonly most: number }

class Reader {
  readonly #text: string
  #at = 0
  #next: Token | undefined
  #depth = 0

  constructor(text: string) {
    this.#text = text.trimEnd()
    this.#next = this.#read()
  }

  get atEnd(): boolean {
    return this.#next === undefined
  }

  /** `name ::=` */
  head(): string {
    const name = this.#take()
    if (name?.kind !== 'name' || !this.#takeSign('::=')) throw this.#problem()
    return name.text
  }

  /** What follows, up to the next head. */
  body(): Expression {
    const expression = this.#choice()
    if (this.#takeSign('(=')) {
      this.#choice()
      if (!this.#takeSign(')')) throw this.#problem()
    }
    return expression
  }

  #choice(): Expression {
    if (++this.#depth > deepest) throw invalid(`expected parentheses nested at most ${deepest} deep`)
    const options = [this.#sequence()]
    while (this.#takeSign('|')) options.push(this.#sequence())
    this.#depth--
    return options.length === 1 ? (options[0] as Expression) : { kind: 'choice', options }
  }

  #sequence(): Expression {
    const parts: Expression[] = []
    for (let part = this.#part(); part; part = this.#part()) parts.push(this.#repeated(part))
    return parts.length === 1 ? (parts[0] as Expression) : { kind: 'sequence', parts }
  }

  #part(): Expression | undefined {
    const next = this.#next
    if (next?.kind === 'expression') {
      this.#take()
      return next.value
    }
    if (this.#takeSign('(')) {
      const inner = this.#choice()
      if (!this.#takeSign(')')) throw this.#problem()
      return inner
    }
    // A name before ::= is that of the next rule.
    if (next?.kind !== 'name' || /^\s*::=/.test(this.#text.slice(this.#at, this.#at + 100))) return undefined
    if (next.text === 'TagDispatch') throw invalid('expected rules of characters: TagDispatch is not supported')
    this.#take()
    return { kind: 'rule', name: next.text }
  }

  #repeated(part: Expression): Expression {
    const next = this.#next
    if (next?.kind === 'count') {
      this.#take()
      return { kind: 'repeat', part, least: next.least, most: next.most }
    }
    if (this.#takeSign('*')) return { kind: 'repeat', part, least: 0, most: Number.POSITIVE_INFINITY }
    if (this.#takeSign('+')) return { kind: 'repeat', part, least: 1, most: Number.POSITIVE_INFINITY }
    if (this.#takeSign('?')) return { kind: 'repeat', part, least: 0, most: 1 }
    return part
  }

  #takeSign(text: string): boolean {
    const next = this.#next
    if (next?.kind !== 'sign' || next.text !== text) return false
    this.#take()
    return true
  }

  #take(): Token | undefined {
    const taken = this.#next
    this.#next = this.#read()
    return taken
  }

  #read(): Token | undefined {
    if (this.#at >= this.#text.length) return undefined
    token.lastIndex = this.#at
    const match = token.exec(this.#text)
    if (!match) throw this.#problem()
    this.#at = token.lastIndex
    const [, name, literal, set, sign, least, comma, most] = match
    if (name !== undefined) return { kind: 'name', text: name }
    if (literal !== undefined) {
      const characters = readEscaped(literal).points.map((point) => String.fromCodePoint(point))
      const bytes = Buffer.from(characters.join(''))
      return { kind: 'expression', value: { kind: 'literal', bytes } }
    }
    if (set !== undefined) return { kind: 'expression', value: { kind: 'class', ranges: readClass(set) } }
    if (least === undefined) return { kind: 'sign', text: sign as string }
    const end =
      comma === '' ? Number(least) : most === undefined || most === '-1' ? Number.POSITIVE_INFINITY : Number(most)
    return { kind: 'count', least: Number(least), most: end }
  }

  #problem(): LapidaryError {
    const shown = JSON.stringify(this.#text.slice(this.#at, this.#at + 40))
    return new LapidaryError('ERR_INTERNAL', `grammar: expected the EBNF of XGrammar 0.1.27, got ${shown}`)
  }
}
