/** Writes rewritten models and their reference data as the folders that test/session.cpp runs. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readModelFile } from '../../graph-rewrite/files.js';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';
import { readTestData, standardAttentionCases, type TestData, type TestTensor } from '../../models/corpus.js';

/** TensorProto data types by name, as far as test data has them. */
const TYPE_NUMBERS: Readonly<Record<string, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  bfloat16: 16,
};

export interface PreparedModel {
  readonly folder: string;
  /** FlashAttention nodes in the model as written. */
  readonly sites: number;
}

/** Rewrites a model and writes it, with its reference inputs and outputs, to a folder. */
export function prepareModel(modelFile: string, dataFolder: string, folder: string, tolerance: number): PreparedModel {
  return prepareRewritten(readModelFile(modelFile), readTestData(dataFolder), folder, tolerance);
}

/** The same for a model and its reference data in memory; rewrites the model in place. */
export function prepareRewritten(
  model: ModelProto,
  { inputs, outputs }: TestData,
  folder: string,
  tolerance: number,
): PreparedModel {
  rewriteModel(model);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'model.onnx'), encodeModel(model));
  const names = graphNames(model);
  const lines = [
    ...inputs.map((tensor, i) => writeTensor(folder, 'input', i, tensor, names.inputs, 0)),
    ...outputs.map((tensor, i) => writeTensor(folder, 'output', i, tensor, names.outputs, tolerance)),
  ];
  writeFileSync(join(folder, 'tensors.txt'), `${lines.join('\n')}\n`);
  return { folder, sites: model.graph?.node?.filter((node) => node.op_type === 'FlashAttention').length ?? 0 };
}

/**
 * The standard's own cases of `Attention` that become FlashAttention, each in a folder of its own under this one; undefined
 * where the corpus is not there.
 */
export function prepareStandardCases(folder: string): string[] | undefined {
  const prepared = standardAttentionCases()?.map(({ name, modelFile, dataFolder }) =>
    prepareModel(modelFile, dataFolder, join(folder, name), name.includes('bf16') ? 1e-2 : 2e-3),
  );
  return prepared?.filter(({ sites }) => sites > 0).map((model) => model.folder);
}

function graphNames(model: ModelProto): { inputs: string[]; outputs: string[] } {
  const constants = new Set((model.graph?.initializer ?? []).map((tensor) => tensor.name));
  const names = (values: readonly { name?: string | null }[] | null | undefined) =>
    (values ?? []).map((value) => value.name ?? '');
  return {
    inputs: names(model.graph?.input).filter((name) => !constants.has(name)),
    outputs: names(model.graph?.output),
  };
}

function writeTensor(
  folder: string,
  role: 'input' | 'output',
  index: number,
  tensor: TestTensor,
  names: readonly string[],
  tolerance: number,
): string {
  const file = `${role}_${index}.bin`;
  const data = tensor.data as ArrayBufferView;
  writeFileSync(join(folder, file), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const name = tensor.name || names[index]!;
  return [role, name, TYPE_NUMBERS[tensor.type], tolerance, file, tensor.dims.length, ...tensor.dims].join(' ');
}
