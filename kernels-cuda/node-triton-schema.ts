import protobuf from 'protobufjs';
import textformat from 'protobufjs/ext/textformat.js';

/**
 * The fields of NVIDIA Triton's model configuration that are written here, with the names, numbers and types that its
 * protobuf/model_config.proto (github.com/triton-inference-server/common) gives them.
 */
const SCHEMA = `
syntax = "proto3";
package inference;

enum DataType {
  TYPE_INVALID = 0;
  TYPE_BOOL = 1;
  TYPE_UINT8 = 2;
  TYPE_UINT16 = 3;
  TYPE_UINT32 = 4;
  TYPE_UINT64 = 5;
  TYPE_INT8 = 6;
  TYPE_INT16 = 7;
  TYPE_INT32 = 8;
  TYPE_INT64 = 9;
  TYPE_FP16 = 10;
  TYPE_FP32 = 11;
  TYPE_FP64 = 12;
  TYPE_STRING = 13;
  TYPE_BF16 = 14;
}

message ModelTensorReshape { repeated int64 shape = 1; }

message ModelInput {
  string name = 1;
  DataType data_type = 2;
  repeated int64 dims = 4;
  ModelTensorReshape reshape = 5;
}

message ModelOutput {
  string name = 1;
  DataType data_type = 2;
  repeated int64 dims = 3;
  ModelTensorReshape reshape = 5;
}

message ModelInstanceGroup {
  enum Kind {
    KIND_AUTO = 0;
    KIND_GPU = 1;
    KIND_CPU = 2;
    KIND_MODEL = 3;
  }
  int32 count = 2;
  repeated int32 gpus = 3;
  Kind kind = 4;
}

message ModelDynamicBatching {
  repeated int32 preferred_batch_size = 1;
  uint64 max_queue_delay_microseconds = 2;
}

message ModelOperations { repeated string op_library_filename = 1; }

message ModelConfig {
  string name = 1;
  string backend = 17;
  int32 max_batch_size = 4;
  repeated ModelInput input = 5;
  repeated ModelOutput output = 6;
  ModelDynamicBatching dynamic_batching = 11;
  repeated ModelInstanceGroup instance_group = 7;
  string default_model_filename = 8;
  ModelOperations model_operations = 18;
}
`;

/** Triton's DataType by the names of this package. */
export const TRITON_TYPES: Readonly<Record<string, string>> = {
  bool: 'TYPE_BOOL',
  uint8: 'TYPE_UINT8',
  uint16: 'TYPE_UINT16',
  uint32: 'TYPE_UINT32',
  uint64: 'TYPE_UINT64',
  int8: 'TYPE_INT8',
  int16: 'TYPE_INT16',
  int32: 'TYPE_INT32',
  int64: 'TYPE_INT64',
  float16: 'TYPE_FP16',
  float32: 'TYPE_FP32',
  float64: 'TYPE_FP64',
  string: 'TYPE_STRING',
  bfloat16: 'TYPE_BF16',
};

/** A ModelInput or ModelOutput. */
export interface TritonTensor {
  readonly name: string;
  readonly data_type: string;
  /** Without the batch; −1 for a size that is not fixed. */
  readonly dims: readonly number[];
  /** Where the model's tensor has no dimension but the batch, which `dims` cannot say. */
  readonly reshape?: { readonly shape: readonly number[] };
}

/** A ModelConfig. */
export interface TritonConfig {
  readonly name: string;
  readonly backend: string;
  readonly max_batch_size: number;
  readonly input: readonly TritonTensor[];
  readonly output: readonly TritonTensor[];
  readonly instance_group: readonly {
    readonly count: number;
    readonly kind: 'KIND_AUTO' | 'KIND_GPU' | 'KIND_CPU';
    readonly gpus?: readonly number[];
  }[];
  readonly default_model_filename: string;
  readonly dynamic_batching?: {
    readonly preferred_batch_size: readonly number[];
    readonly max_queue_delay_microseconds: number;
  };
  readonly model_operations?: { readonly op_library_filename: readonly string[] };
}

const modelConfig = () => protobuf.parse(SCHEMA, { keepCase: true }).root.lookupType('inference.ModelConfig');

/** Writes `config.pbtxt`. */
export function formatTritonConfig(config: TritonConfig): string {
  const type = modelConfig();
  return `${textformat.toText(type, type.fromObject(config)).trimEnd()}\n`;
}

/** Reads `config.pbtxt`; throws where a field is not of the schema. */
export function parseTritonConfig(text: string): TritonConfig {
  const type = modelConfig();
  return type.toObject(textformat.fromText(type, text), { enums: String, longs: Number }) as TritonConfig;
}
