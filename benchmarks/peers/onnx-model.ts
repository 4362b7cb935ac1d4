/** ONNX models of a few operators, built in memory. Field numbers: onnx.proto3 of the ONNX project. */
import protobuf from 'protobufjs'

const { root } = protobuf.parse(
  `
  syntax = "proto3";
  message Attribute { string name = 1; float f = 2; int64 i = 3; bytes s = 4; repeated int64 ints = 8; int32 type = 20; }
  message Node { repeated string input = 1; repeated string output = 2; string op_type = 4; repeated Attribute attribute = 5; string domain = 7; }
  message Tensor { repeated int64 dims = 1; int32 data_type = 2; string name = 8; bytes raw_data = 9; }
  message Dimension { int64 dim_value = 1; string dim_param = 2; }
  message Shape { repeated Dimension dim = 1; }
  message TensorType { int32 elem_type = 1; Shape shape = 2; }
  message Type { TensorType tensor_type = 1; }
  message ValueInfo { string name = 1; Type type = 2; }
  message Graph { repeated Node node = 1; string name = 2; repeated Tensor initializer = 5; repeated ValueInfo input = 11; repeated ValueInfo output = 12; }
  message OperatorSet { string domain = 1; int64 version = 2; }
  message Model { int64 ir_version = 1; string producer_name = 2; Graph graph = 7; repeated OperatorSet opset_import = 8; }
`,
  { keepCase: true },
)

const Model = root.lookupType('Model')
const dataTypes = { float32: 1, uint8: 2, int32: 6 } as const
const attributeTypes = { f: 1, i: 2, s: 3, ints: 7 } as const

export type ElementType = keyof typeof dataTypes
export type AttributeValue = { f: number } | { i: number } | { s: string }

export interface OnnxNode {
  op: string
  inputs: string[]
  outputs: string[]
  attributes?: Record<string, AttributeValue>
  /** `com.microsoft` for onnxruntime's own operators. */
  domain?: string
}

export interface OnnxValue {
  name: string
  type: ElementType
  /** A string is a free dimension. */
  dims: (number | string)[]
}

export interface OnnxWeight {
  name: string
  type: ElementType
  dims: number[]
  data: ArrayBufferView
}

/** The bytes of a model for `InferenceSession.create`. */
export function onnxModel(
  nodes: OnnxNode[],
  inputs: OnnxValue[],
  outputs: OnnxValue[],
  weights: OnnxWeight[] = [],
): Uint8Array {
  const value = ({ name, type, dims }: OnnxValue) => ({
    name,
    type: {
      tensor_type: {
        elem_type: dataTypes[type],
        shape: { dim: dims.map((dim) => (typeof dim === 'string' ? { dim_param: dim } : { dim_value: dim })) },
      },
    },
  })
  const attribute = ([name, given]: [string, AttributeValue]) => {
    const kind = Object.keys(given)[0] as keyof typeof attributeTypes
    return { name, ...given, ...('s' in given ? { s: Buffer.from(given.s) } : {}), type: attributeTypes[kind] }
  }
  const message = Model.create({
    ir_version: 10,
    producer_name: 'benchmark',
    opset_import: [
      { domain: '', version: 21 },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: 'benchmark',
      node: nodes.map(({ op, inputs: input, outputs: output, attributes = {}, domain = '' }) => ({
        op_type: op,
        input,
        output,
        domain,
        attribute: Object.entries(attributes).map(attribute),
      })),
      initializer: weights.map(({ name, type, dims, data }) => ({
        name,
        dims,
        data_type: dataTypes[type],
        raw_data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
      })),
      input: inputs.map(value),
      output: outputs.map(value),
    },
  })
  return Model.encode(message).finish()
}
