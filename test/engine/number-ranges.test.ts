import { expect, test } from 'vitest'
import { withoutRanges } from '../../lib/engine/number-ranges.ts'
import { throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'

/** The rule of one bounded number as a regular expression: literals and classes mean the same there. */
function pattern(schema: object): RegExp {
  const { schema: stripped, insert } = withoutRanges(schema)
  const mark = (stripped as { const: string }).const
  const text = insert(`root ::= "\\"${mark}\\""`)
  expect(text).toMatch(/^root ::= "" bounded_number_0 ""\n/)
  const rule = text.split('bounded_number_0 ::= ')[1]!
  const alternatives = rule.split(' | ').map((one) => one.replaceAll('"."', '\\.').replace(/[" ]/g, ''))
  return new RegExp(`^(?:${alternatives.join('|')})$`)
}

test.each([
  [0, 120],
  [1, 9],
  [-5, 120],
  [-120, -7],
  [99, 1001],
  [0, 0],
  [-1, 1],
  [17, 17],
])('integers from %i to %i, and no others', (minimum, maximum) => {
  const regexp = pattern({ type: 'integer', minimum, maximum })
  for (let value = -1500; value <= 1500; value++) {
    expect(regexp.test(String(value)), String(value)).toBe(value >= minimum && value <= maximum)
  }
  for (const odd of ['', '-', '-0', '01', '+1', '1.0', '1e1']) expect(regexp.test(odd), odd).toBe(false)
})

test('random bounds, closed, open and missing', () => {
  const random = Random.named('bounds')
  for (let round = 0; round < 200; round++) {
    const low = random.integer(-300, 300)
    const high = low + random.integer(2, 400)
    const lowName = random.pick(['minimum', 'exclusiveMinimum', 'none'])
    const highName = random.pick(['maximum', 'exclusiveMaximum', 'none'])
    if (lowName === 'none' && highName === 'none') continue
    const regexp = pattern({ type: 'integer', [lowName]: low, [highName]: high })
    for (const value of [low - 1, low, low + 1, high - 1, high, high + 1, random.integer(-2000, 2000)]) {
      const above = lowName === 'none' || (lowName === 'minimum' ? value >= low : value > low)
      const below = highName === 'none' || (highName === 'maximum' ? value <= high : value < high)
      expect(regexp.test(String(value)), `${value} of ${low} ${lowName} ${high} ${highName}`).toBe(above && below)
    }
  }
})

test.each([
  [0, 1.5],
  [0.2, 0.8],
  [-2.75, 3.07],
  [-0.5, -0.25],
])('decimals from %d to %d', (minimum, maximum) => {
  const regexp = pattern({ type: 'number', minimum, maximum })
  for (let hundredths = -500; hundredths <= 500; hundredths++) {
    const text = (hundredths / 100).toFixed(2)
    const value = Number(text)
    // A zero has no sign here.
    if (text !== '-0.00') expect(regexp.test(text), text).toBe(value >= minimum && value <= maximum)
  }
})

test('nothing between the bounds', () => {
  throwsCode(() => withoutRanges({ type: 'integer', minimum: 3, maximum: 2 }), 'ERR_INVALID_ARGUMENT', /between them/)
})

test('what is no bounded number stays', () => {
  const schema = {
    type: 'object',
    properties: { a: { type: 'integer' }, b: { const: { type: 'integer', minimum: 1 } } },
  }
  expect(withoutRanges(schema).schema).toEqual(schema)
  expect(withoutRanges({ type: ['integer', 'null'], minimum: 1 }).schema).toEqual({
    anyOf: [{ const: 'lapidary number 0' }, { type: 'null', minimum: 1 }],
  })
})
