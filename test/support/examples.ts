/**
 * The examples that run inside other people's frameworks: test/clients/examples.test.ts runs them, test/package/examples.test.ts all others.
 */
export const frameworkExamples: readonly string[] = [
  'ai-sdk.mjs',
  'express.mjs',
  'fastify.mjs',
  'hono.mjs',
  'langchain.mjs',
]
