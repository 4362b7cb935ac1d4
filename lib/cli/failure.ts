/**
 * How commands fail: one line that says what happened, one that says what to do, and a status that scripts can tell apart.
 * @module
 */
import { type ErrorCode, LapidaryError } from '../errors.ts'
import { interruptedStatus } from './interrupt.ts'
import { styled, visible } from './terminal.ts'

/** The statuses a command ends with, besides 0 and that of an interrupt. */
export const failedStatus = 1
export const usageStatus = 2

/** A wrong use that options alone do not show: reported like a wrong option, with the usage status. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
  readonly hint: string | undefined

  constructor(message: string, hint?: string) {
    super(message)
    this.hint = hint
  }
}

const hints: Partial<Record<ErrorCode, string>> = {
  ERR_FILE: 'check the path, the permissions and the free space',
  ERR_CHECKPOINT_CORRUPT:
    'the download may be incomplete: compare its size and checksum with the publisher’s, or fetch it again',
  ERR_CHECKPOINT_UNSUPPORTED: '`lapidary --help` says which checkpoints run and where to get them',
  ERR_OUT_OF_MEMORY: 'a smaller --context-length, --kv i8 or --head q4_0 needs less; `lapidary inspect` shows how much',
  ERR_DEVICE_UNAVAILABLE: '`lapidary devices` lists what this machine has',
  ERR_NATIVE_MISSING: '`npx lapidary build` compiles the addon; it needs a C++20 compiler and CMake',
  ERR_INTERNAL: 'this is a defect in Lapidary: please report it with the command that led here',
}

/** What standard error gets for an error, and the status to end with. */
export function describeFailure(error: unknown): { text: string; status: number } {
  const label = (text: string): string => styled(['red', 'bold'], text, 'stderr')
  const hinted = (hint: string | undefined): string =>
    hint === undefined ? '' : `${styled('dim', `hint: ${hint}`, 'stderr')}\n`
  if (error instanceof UsageError) {
    return { text: `${label('error:')} ${visible(error.message)}\n${hinted(error.hint)}`, status: usageStatus }
  }
  if (error instanceof LapidaryError) {
    if (error.code === 'ERR_ABORTED') return { text: '', status: interruptedStatus }
    // The addon is not the only binary: messages about sharp say themselves what to install.
    const hint = error.code === 'ERR_NATIVE_MISSING' && /\bsharp\b/.test(error.message) ? undefined : hints[error.code]
    return {
      text: `${label(`error ${error.code}:`)} ${visible(error.message)}\n${hinted(hint)}`,
      status: failedStatus,
    }
  }
  return {
    text: `${label('error:')} ${error instanceof Error ? error.message : String(error)}\n`,
    status: failedStatus,
  }
}
