/** Runs models in stock onnxruntime-node, for tests. */
import { InferenceSession, Tensor } from 'onnxruntime-node';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { decodeHalf, type HalfType } from '../graph-rewrite/op/half.js';
import type { TestData, TestTensor } from '../models/corpus.js';

/** An output as numbers; booleans are 0 and 1. */
export interface NumericOutput {
  readonly name: string;
  readonly dims: readonly number[];
  readonly numbers: ArrayLike<number>;
}

/** Elements as numbers, 16-bit floats decoded. */
export function toNumbers(type: DataTypeName | Tensor.Type, data: ArrayLike<number | bigint>): ArrayLike<number> {
  if ((type === 'float16' || (type as string) === 'bfloat16') && data instanceof Uint16Array)
    return decodeHalf(data, type as HalfType);
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) return Array.from(data, Number);
  return data as ArrayLike<number>;
}

/** A bfloat16 tensor in float32, as sessions that lack bfloat16 take it; others as they are. */
export function asFloat32(tensor: TestTensor): TestTensor {
  if (tensor.type !== 'bfloat16') return tensor;
  return { ...tensor, type: 'float32', data: decodeHalf(tensor.data as Uint16Array, 'bfloat16') };
}

/** Runs a model once. Inputs without a name take the graph's, in order. */
export async function runModel(model: Uint8Array, inputs: TestData['inputs']): Promise<NumericOutput[]> {
  const session = await InferenceSession.create(model, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  try {
    const feeds: Record<string, Tensor> = {};
    for (const [i, input] of inputs.entries()) {
      const name = input.name || session.inputNames[i]!;
      feeds[name] = new Tensor(input.type as Tensor.Type, input.data as Tensor.DataType, input.dims);
    }
    const results = await session.run(feeds);
    return session.outputNames.map((name) => {
      const { dims, type, data } = results[name]!;
      return { name, dims, numbers: toNumbers(type, data as ArrayLike<number | bigint>) };
    });
  } finally {
    await session.release();
  }
}

/** Largest difference over the larger of 1 and the expected values' magnitude; NaN equals only NaN. */
export function relativeDifference(actual: ArrayLike<number>, expected: TestTensor): number {
  const want = toNumbers(expected.type, expected.data as ArrayLike<number>);
  if (want.length !== actual.length) return Number.POSITIVE_INFINITY;
  let scale = 1;
  let largest = 0;
  for (let i = 0; i < want.length; i++) {
    if (Number.isFinite(want[i]!)) scale = Math.max(scale, Math.abs(want[i]!));
    const difference = Object.is(want[i], actual[i]) ? 0 : Math.abs(want[i]! - actual[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest / scale;
}
