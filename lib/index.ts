/**
 * Lapidary: the Gemma family in Node.js, on kernels of its own.
 * @module
 */
import { cast } from './ops/row-ops.ts'
import { setCast } from './tensor.ts'

setCast(cast)

export { type Checkpoint, openCheckpoint, type StoredTensor } from './checkpoint/checkpoint.ts'
export { type LinearWeight, linearWeight } from './checkpoint/linear.ts'
export {
  Device,
  type DeviceInfo,
  type DeviceKind,
  type DeviceListing,
  type DeviceOptions,
  type GpuFamily,
  type GpuListing,
  type Isa,
} from './device.ts'
export { type DType, type DTypeArray, type DTypeInfo, dtypes, type Layout } from './dtype.ts'
export {
  bundledModel,
  type ContentPart,
  type FinishReason,
  Gemma,
  type GemmaInfo,
  type GemmaOptions,
  type GenerateOptions,
  Generation,
  type GenerationResult,
  type GenerationTimings,
  Grammar,
  type GrammarSource,
  type ImagePart,
  type KvDType,
  type KvMemory,
  type LogitsOptions,
  type PerplexityOptions,
  type Piece,
  type SamplingDefaults,
  type SamplingOptions,
  type ScoreOptions,
  type TokenLogprobs,
  type VideoPart,
} from './engine/gemma.ts'
export { type ErrorCode, errorCodes, LapidaryError } from './errors.ts'
export type { Architecture, GemmaConfig, LayerType } from './models/gemma/config.ts'
export type { HeadFormat } from './models/gemma/load-options.ts'
export { type QuantizeCheckpointOptions, quantizeCheckpoint } from './models/gemma/quantize.ts'
export { type GemmaSize, type GemmaSizeName, gemmaSizes } from './models/gemma/sizes.ts'
export { type SyntheticOptions, writeSynthetic } from './models/gemma/synthetic.ts'
export { type SyntheticVisionOptions, writeSyntheticVision } from './models/siglip/synthetic.ts'
export * from './ops/embedding.ts'
export * from './ops/flash-attention.ts'
export * from './ops/matmul.ts'
export * from './ops/pack-weights.ts'
export { type ProbeKind, probe, probeKinds, probeMemory } from './ops/probe.ts'
export * from './ops/qk-norm-rope.ts'
export * from './ops/quantize.ts'
export * from './ops/refine-logits.ts'
export * from './ops/row-ops.ts'
export * from './ops/sampling.ts'
export {
  Program,
  type ProgramArrays,
  type ProgramInput,
  type ProgramOptions,
  type ProgramOutputs,
  type TensorSpec,
} from './program.ts'
export { scope } from './scope.ts'
export { Stream } from './stream.ts'
export { type PackedForm, Tensor } from './tensor.ts'
export {
  type ChatEncodeOptions,
  type ChatMessage,
  type ChatOptions,
  ChatTemplate,
  type TextPart,
} from './tokenizer/chat.ts'
export type { StreamDecoder } from './tokenizer/stream-decoder.ts'
export { type DecodeOptions, type EncodeOptions, Tokenizer } from './tokenizer/tokenizer.ts'
export { decodeDataUrl, type ImageLimits, type ImageSource, type RawImage } from './vision/image-source.ts'
export { isPublicAddress, type RemoteImageOptions, RemoteImages, type Resolve } from './vision/remote-images.ts'
export { extractFrames, type VideoOptions } from './vision/video.ts'
export type { PanAndScanOptions } from './vision/views.ts'
