/** Prompts with images in Gemma 3's own vocabulary and chat format. */

import { describe, expect, test } from 'vitest'
import { imagePrompt } from '../../lib/engine/image-prompt.ts'
import { ChatTemplate, Tokenizer } from '../../lib/index.ts'
import { throwsCode } from '../support/errors.ts'
import { tokenizerConfig, tokenizerJson } from '../tokenizer/support/gemma.ts'

const gemma3 = Tokenizer.fromJson(tokenizerJson('gemma3'))
const published = tokenizerConfig('gemma3').chat_template as string

describe.each([
  ['the published template', ChatTemplate.for({ path: 'model', chatTemplate: published }, gemma3)],
  ['the built-in template', ChatTemplate.for({ path: 'model' }, gemma3)],
])('%s', (_, template) => {
  const image = { type: 'image' } as const
  const text = (content: string) => ({ type: 'text', text: content }) as const

  test('an image before a question, as the reference’s processor encodes it', () => {
    const rendered = template.renderGuarded([{ role: 'user', content: [image, text(' What is this? ')] }])
    const { ids, places } = imagePrompt(gemma3, rendered, [[-2]], 256)
    // 107, 108 and 109 are one, two and three line breaks.
    const question = [...gemma3.encode('What is this?')]
    const start = [2, 105, 2364, 109, 255_999]
    const soft = Array.from({ length: 256 }, () => -2)
    expect([...ids]).toEqual([...start, ...soft, 256_000, 108, ...question, 106, 107, 105, 4368, 107])
    expect(places).toEqual([{ start: 5, end: 261 }])
  })

  test('what stands between images is one text: markers aside, the ids are those of the whole', () => {
    const messages = [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: [text('one'), image, image, text('two')] },
      { role: 'assistant', content: 'fine' },
      { role: 'user', content: [image] },
    ] as const
    const rendered = template.renderGuarded(messages)
    const { ids, places } = imagePrompt(gemma3, rendered, [[-2], [-3], [-4]], 2)
    const expanded = rendered.replaceAll('<start_of_image>', '\n\n<start_of_image><end_of_image>\n\n')
    const whole = [...gemma3.encodeGuarded(expanded)].flatMap((id) => (id === 255_999 ? [id, 0, 0] : [id]))
    for (const [index, { start, end }] of places.entries()) whole.fill(-2 - index, start, end)
    expect([...ids]).toEqual(whole)
    expect(whole.filter((id) => id < 0)).toEqual([-2, -2, -3, -3, -4, -4])
  })

  test('contents that spell the marker stay text, and are no place for an image', () => {
    const marker = '<start_of_image>'
    const rendered = template.renderGuarded([{ role: 'user', content: [text(`a${marker}b`), image] }])
    const { ids } = imagePrompt(gemma3, rendered, [[-2]], 1)
    expect([...ids].filter((id) => id === 255_999).length).toBe(1)
    expect(gemma3.decode([...ids].filter((id) => id >= 0))).toContain(`a${marker}b`)
    const allowed = template.renderGuarded([{ role: 'user', content: [text(`a${marker}b`), image] }], {
      allowMarkers: true,
    })
    const { places } = imagePrompt(gemma3, allowed, [[-2]], 1)
    expect(places.length).toBe(1)
  })

  test('images are for prompts that have them encoded', () => {
    throwsCode(
      () => template.encode([{ role: 'user', content: [image as never] }]),
      'ERR_INVALID_ARGUMENT',
      /content\[0\]/,
    )
  })
})

test('a template without a place for images is an error', () => {
  const blind = ChatTemplate.for(
    { path: 'model', chatTemplate: '{{ bos_token }}{{ messages[0].content[1].text }}' },
    gemma3,
  )
  const rendered = blind.renderGuarded([{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: 'Hi' }] }])
  throwsCode(
    () => imagePrompt(gemma3, rendered, [[-2]], 4),
    'ERR_INVALID_ARGUMENT',
    /a place for each of 1 images, got 0/,
  )
})
