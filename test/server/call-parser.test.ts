import { expect, test } from 'vitest'
import { type AnswerEvent, CallParser } from '../../lib/server/call-parser.ts'
import { Random } from '../support/random.ts'

interface Parsed {
  text: string
  calls: [name: string, given: string][]
}

function parse(pieces: readonly string[]): Parsed & { events: AnswerEvent[] } {
  const parser = new CallParser(['get_weather', 'get_time'])
  const events = [...pieces.flatMap((piece) => parser.push(piece)), ...parser.end()]
  const result: Parsed = { text: '', calls: [] }
  for (const event of events) {
    if (event.type === 'text') result.text += event.text
    else if (event.type === 'call') result.calls.push([event.name, ''])
    else (result.calls[event.call] as [string, string])[1] += event.text
  }
  expect(parser.calls).toBe(result.calls.length)
  return { ...result, events }
}

const oslo = '{"city": "Oslo", "notes": ["a}\\"]", {"deep": {}}]}'
const cases: { name: string; text: string; calls?: [string, string][]; said?: string }[] = [
  { name: 'one', text: `{"name": "get_weather", "parameters": ${oslo}}`, calls: [['get_weather', oslo]] },
  { name: 'arguments', text: '{"name":"get_time","arguments":{}}', calls: [['get_time', '{}']] },
  { name: 'spaced', text: ` \n{ "name" : "get_time" ,\n "parameters" : { } }\n`, calls: [['get_time', '{ }']] },
  {
    name: 'several',
    text: `[{"name": "get_weather", "parameters": ${oslo}}, {"name": "get_time", "parameters": {}}]`,
    calls: [
      ['get_weather', oslo],
      ['get_time', '{}'],
    ],
  },
  {
    name: 'lines',
    text: '{"name": "get_time", "parameters": {}}\n{"name": "get_time", "parameters": {"a": 1}}',
    calls: [
      ['get_time', '{}'],
      ['get_time', '{"a": 1}'],
    ],
  },
  { name: 'fenced', text: `\`\`\`json\n[{"name": "get_time", "parameters": {}}]\n\`\`\``, calls: [['get_time', '{}']] },
  {
    name: 'tool_code',
    text: `\`\`\`tool_code\n{"name": "get_time", "parameters": {}}\n\`\`\``,
    calls: [['get_time', '{}']],
  },
  { name: 'turned', text: `{"parameters": {"a": 1}, "name": "get_time"}`, calls: [['get_time', '{"a":1}']] },
  { name: 'nothing given', text: `{"name": "get_time"}`, calls: [['get_time', '{}']] },
  { name: 'text', text: 'The weather is fine.', said: 'The weather is fine.' },
  { name: 'nothing', text: '', said: '' },
  { name: 'blank', text: ' \n', said: ' \n' },
  { name: 'JSON that is none', text: '{"degrees": 3}', said: '{"degrees": 3}' },
  { name: 'a function of nobody', text: '{"name": "rm", "parameters": {}}', said: '{"name": "rm", "parameters": {}}' },
  { name: 'a name that never ends', text: '{"name": "get_', said: '{"name": "get_' },
  { name: 'a list', text: '[1, 2]', said: '[1, 2]' },
  { name: 'code', text: '```js\nlet a = {"name": 1}\n```', said: '```js\nlet a = {"name": 1}\n```' },
  { name: 'a bracket', text: '{', said: '{' },
]

test.each(cases)('$name: the same however it is cut', ({ text, calls = [], said = '' }) => {
  const expected = { text: said, calls }
  expect(parse([text])).toMatchObject(expected)
  expect(parse([...text])).toMatchObject(expected)
  for (let at = 0; at <= text.length; at++) expect(parse([text.slice(0, at), text.slice(at)])).toMatchObject(expected)
})

test('a call that was cut off keeps what came', () => {
  expect(parse(['{"name": "get_weather", "parameters": {"city": "Os']).calls).toEqual([['get_weather', '{"city": "Os']])
})

test('text is not held back, and arguments come as they are written', () => {
  const parser = new CallParser(['f'])
  expect(parser.push('T')).toEqual([{ type: 'text', text: 'T' }])
  const call = new CallParser(['f'])
  expect(call.push('{"name": "f", "parameters": ')).toEqual([])
  expect(call.push('{"a')).toMatchObject([
    { type: 'call', call: 0, name: 'f' },
    { type: 'arguments', text: '{"a' },
  ])
  expect(call.push('": 1')).toEqual([{ type: 'arguments', call: 0, text: '": 1' }])
})

test('any text is either said or called, and nothing throws', () => {
  const random = Random.named('call parser')
  const parts = [
    '{',
    '}',
    '[',
    ']',
    '"',
    '\\',
    '"name"',
    ':',
    '"get_time"',
    ',',
    '"parameters"',
    ' ',
    '```',
    'json',
    'a',
    '\n',
  ]
  for (let round = 0; round < 3000; round++) {
    const pieces = Array.from({ length: random.integer(0, 20) }, () => random.pick(parts))
    const { text, calls } = parse(pieces)
    if (calls.length === 0) expect(text).toBe(pieces.join(''))
  }
})
