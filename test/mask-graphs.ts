/** Small models of one attention with a mask that is written the way exporters write it. */
import Long from 'long';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import {
  AttributeProto,
  AttributeType,
  GraphProto,
  ModelProto,
  type NodeProto,
  OperatorSetIdProto,
  type TensorProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';

export const HEADS = 2;
const HEAD_DIMENSION = 4;
/** The most negative float32. */
export const LOWEST = -3.4028234663852886e38;

/** Writes nodes; every method returns the name of what it computes. */
export class GraphWriter {
  readonly opset: number;
  readonly nodes: NodeProto[] = [];
  readonly initializers: TensorProto[] = [];
  /** Integer scalars: the numbers of samples, queries and keys. */
  batch = '';
  queries = '';
  keys = '';

  constructor(opset: number) {
    this.opset = opset;
  }

  op(opType: string, inputs: readonly string[], attributes: Record<string, number | readonly number[]> = {}): string {
    const output = `${opType}_${this.nodes.length}`;
    this.nodes.push(makeNode(opType, inputs, [output], attributes));
    return output;
  }

  tensor(type: DataTypeName, dims: readonly number[], values: readonly number[]): string {
    const name = `constant_${this.initializers.length}`;
    this.initializers.push(makeTensor(name, type, dims, values));
    return name;
  }

  int(value: number): string {
    return this.tensor('int64', [], [value]);
  }

  ints(...values: number[]): string {
    return this.tensor('int64', [values.length], values);
  }

  float(value: number): string {
    return this.tensor('float32', [], [value]);
  }

  cast(value: string, type: DataTypeName): string {
    return this.op('Cast', [value], { to: dataTypeOf(type) });
  }

  unsqueeze(value: string, ...axes: number[]): string {
    return this.opset >= 13
      ? this.op('Unsqueeze', [value, this.ints(...axes)])
      : this.op('Unsqueeze', [value], { axes });
  }

  /** Size of an axis, a scalar. */
  size(value: string, axis: number): string {
    return this.op('Gather', [this.op('Shape', [value]), this.int(axis)], { axis: 0 });
  }

  /** 0, 1, … as (n). */
  count(size: string): string {
    return this.op('Range', [this.int(0), size, this.int(1)]);
  }

  /** Query indices as (1, 1, queries, 1), key indices as (1, 1, 1, keys). */
  rows(offset?: string): string {
    const count = this.count(this.queries);
    return this.unsqueeze(offset === undefined ? count : this.op('Add', [count, offset]), 0, 1, 3);
  }

  columns(): string {
    return this.unsqueeze(this.count(this.keys), 0, 1, 2);
  }

  /** A tensor of one value, of these scalar sizes. */
  filled(sizes: readonly string[], type: DataTypeName, value: number): string {
    const shape = this.op(
      'Concat',
      sizes.map((s) => this.unsqueeze(s, 0)),
      { axis: 0 },
    );
    const output = `ConstantOfShape_${this.nodes.length}`;
    const node = makeNode('ConstantOfShape', [shape], [output]);
    node.attribute.push(
      new AttributeProto({ name: 'value', type: AttributeType.TENSOR, t: makeTensor('', type, [1], [value]) }),
    );
    this.nodes.push(node);
    return output;
  }
}

/** `self`: as many keys as queries. `cross`: both free. `past`: keys are past ones followed by one for each query. */
export type Lengths = 'self' | 'cross' | 'past';

export interface MaskedSiteOptions {
  readonly lengths?: Lengths;
  readonly opset?: number;
}

/** Puts a mask on scores (batch, heads, queries, keys). */
export type MaskWriter = (g: GraphWriter, scores: string) => string;

/**
 * A model of inputs Q, K, V (batch, 2, length, 4), attention_mask (batch, keys) of int64 and, with `past`, past_key and
 * past_value; its scores are masked by what `write` adds.
 */
export function maskedSite(write: MaskWriter, { lengths = 'self', opset = 17 }: MaskedSiteOptions = {}): ModelProto {
  const g = new GraphWriter(opset);
  const keyName = lengths === 'cross' ? 'keys' : 'queries';
  const total = lengths === 'past' ? 'total' : keyName;
  let [key, value] = ['K', 'V'];
  if (lengths === 'past') {
    key = g.op('Concat', ['past_key', key], { axis: 2 });
    value = g.op('Concat', ['past_value', value], { axis: 2 });
  }
  g.batch = g.size('Q', 0);
  g.queries = g.size('Q', 2);
  g.keys = g.size(key, 2);
  const product = g.op('MatMul', ['Q', g.op('Transpose', [key], { perm: [0, 1, 3, 2] })]);
  const scores = write(g, g.op('Mul', [product, g.float(0.5)]));
  const output = g.op('MatMul', [g.op('Softmax', [scores], { axis: -1 }), value]);
  const past = [input('past_key', 'float32', 'past'), input('past_value', 'float32', 'past')];
  return new ModelProto({
    ir_version: Long.fromNumber(8),
    opset_import: [new OperatorSetIdProto({ domain: '', version: Long.fromNumber(opset) })],
    graph: new GraphProto({
      name: 'masked',
      node: g.nodes,
      initializer: g.initializers,
      input: [
        input('Q', 'float32', 'queries'),
        input('K', 'float32', keyName),
        input('V', 'float32', keyName),
        described('attention_mask', 'int64', ['batch', total]),
        ...(lengths === 'past' ? past : []),
      ],
      output: [described(output, 'float32', ['batch', HEADS, 'queries', HEAD_DIMENSION])],
    }),
  });
}

function input(name: string, type: DataTypeName, length: string): ValueInfoProto {
  return described(name, type, ['batch', HEADS, length, HEAD_DIMENSION]);
}

function described(name: string, type: DataTypeName, dims: readonly (string | number)[]): ValueInfoProto {
  const shape = new TensorShapeProto({
    dim: dims.map(
      (d) =>
        new TensorShapeProto.Dimension(typeof d === 'string' ? { dim_param: d } : { dim_value: Long.fromNumber(d) }),
    ),
  });
  return new ValueInfoProto({
    name,
    type: new TypeProto({ tensor_type: new TypeProto.Tensor({ elem_type: dataTypeOf(type), shape }) }),
  });
}

export interface Sizes {
  readonly batch: number;
  readonly queries: number;
  /** All keys, past ones included. */
  readonly keys: number;
}

/** Random inputs of a model from {@link maskedSite}; `mask` gives the padding of sample b at key j. */
export function makeFeeds(
  lengths: Lengths,
  { batch, queries, keys }: Sizes,
  random: () => number,
  mask: (b: number, j: number) => boolean,
): Record<string, Tensor> {
  const floats = (length: number) => {
    const data = Float32Array.from({ length: batch * HEADS * length * HEAD_DIMENSION }, () => random() * 4 - 2);
    return new Tensor('float32', data, [batch, HEADS, length, HEAD_DIMENSION]);
  };
  const padding = BigInt64Array.from({ length: batch * keys }, (_, n) =>
    mask(Math.floor(n / keys), n % keys) ? 1n : 0n,
  );
  const isPast = lengths === 'past';
  return {
    Q: floats(queries),
    K: floats(isPast ? queries : keys),
    V: floats(isPast ? queries : keys),
    attention_mask: new Tensor('int64', padding, [batch, keys]),
    ...(isPast ? { past_key: floats(keys - queries), past_value: floats(keys - queries) } : {}),
  };
}

/** Runs a model on several inputs in stock ONNX Runtime; its first output each time. */
export async function runAll(model: ModelProto, feeds: readonly Record<string, Tensor>[]): Promise<Tensor[]> {
  const session = await InferenceSession.create(encodeModel(model), {
    logSeverityLevel: 4,
    intraOpNumThreads: 1,
    graphOptimizationLevel: 'basic',
  });
  try {
    const results: Tensor[] = [];
    for (const feed of feeds) {
      const used = Object.fromEntries(Object.entries(feed).filter(([name]) => session.inputNames.includes(name)));
      results.push((await session.run(used))[session.outputNames[0]!] as Tensor);
    }
    return results;
  } finally {
    await session.release();
  }
}
