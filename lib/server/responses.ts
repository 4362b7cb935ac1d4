/**
 * POST /v1/responses
 * @module
 */
import { ApiError } from './api-error.ts'
import type { Call } from './call.ts'
import type { ApiResponse } from './http.ts'

export async function responses(_call: Call): Promise<ApiResponse> {
  throw new ApiError(404, 'not there yet')
}
