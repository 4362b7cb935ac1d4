/** Runs before each test file: `setupFiles` of vitest.config.ts. */

import { afterAll } from 'vitest'
import { closeFile } from './after-file.ts'

afterAll(closeFile)
