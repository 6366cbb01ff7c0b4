/** Generation as apps write it: the present keys and values of one run are the past ones of the next. */
import { readFileSync } from 'node:fs';
import { InferenceSession as NodeSession, Tensor as NodeTensor } from 'onnxruntime-node';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { type ModelProto, ValueInfoProto } from '../graph-rewrite/onnx/proto.js';
import type { ModelExample } from '../models/corpus.js';
import type { Ort } from './web-runtime.js';

export type WebSession = import('../kernels-wgsl/web.js').InferenceSession;
type AnyTensor = InstanceType<Ort['Tensor']>;
export type Tensors = Record<string, AnyTensor>;

/** Tokens of one run, (batch, length). */
export type Tokens = readonly (readonly number[])[];

/** The sizes of a decoder, as its inputs tell them; all of the corpus have a vocabulary of 96. */
const VOCABULARY = 96;

const pastNames = (session: { readonly inputNames: readonly string[] }) =>
  session.inputNames.filter((name) => name.startsWith('past.'));

/** A past of no keys, in CPU memory, as apps begin with. */
export function emptyPast(
  ort: Pick<Ort, 'Tensor'>,
  session: Pick<WebSession, 'inputNames' | 'inputMetadata'>,
  batch: number,
): Tensors {
  const shapes = new Map(session.inputMetadata.map((input) => [input.name, input.isTensor ? input.shape : []]));
  const entries = pastNames(session).map((name) => {
    const [, heads, , dimension] = shapes.get(name)!;
    const tensor = new ort.Tensor('float32', new Float32Array(0), [batch, Number(heads), 0, Number(dimension)]);
    return [name, tensor] as const;
  });
  return Object.fromEntries(entries);
}

/** The inputs of a run that continues a past of some length. */
export function feedsOf(ort: Pick<Ort, 'Tensor'>, tokens: Tokens, pastLength: number): Tensors {
  const [batch, length] = [tokens.length, tokens[0]!.length];
  const integers = (values: readonly number[], columns: number) =>
    new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [batch, columns]);
  const total = pastLength + length;
  return {
    input_ids: integers(tokens.flat(), length),
    attention_mask: integers(new Array<number>(batch * total).fill(1), total),
    position_ids: integers(
      tokens.flatMap((row) => row.map((_, i) => pastLength + i)),
      length,
    ),
  };
}

/** Output `present.N.part` as input `past.N.part`. */
export function asPast(results: Readonly<Record<string, unknown>>): Tensors {
  const presents = Object.entries(results).filter(([name]) => name.startsWith('present.'));
  return Object.fromEntries(presents.map(([name, tensor]) => [name.replace('present', 'past'), tensor as AnyTensor]));
}

/** The most likely token of each row's last position. */
export function greedy(logits: { readonly dims: readonly number[]; readonly data: unknown }): number[] {
  const [batch, length, vocabulary] = logits.dims as [number, number, number];
  const data = logits.data as Float32Array;
  return Array.from({ length: batch }, (_, b) => {
    const last = data.subarray(((b + 1) * length - 1) * vocabulary, (b + 1) * length * vocabulary);
    return last.indexOf(Math.max(...last));
  });
}

/** Tokens that look random, the same for the same seed. */
export function prompt(batch: number, length: number, seed = 1): number[][] {
  let state = seed;
  const next = () => {
    state = (state * 48271) % 2147483647;
    return state % VOCABULARY;
  };
  return Array.from({ length: batch }, () => Array.from({ length }, next));
}

/** A model of which one more node reads a value: its output `also` is the value's negative. */
export function readAlso(example: ModelExample, name: string): ModelProto {
  const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
  const graph = model.graph!;
  const info = [...graph.input, ...graph.output].find((one) => one.name === name)!;
  graph.node.push(makeNode('Neg', [name], ['also']));
  graph.output.push(new ValueInfoProto({ name: 'also', type: info.type }));
  return model;
}

/** The untouched model in stock onnxruntime-node. */
export async function referenceSession(model: ModelExample | Uint8Array): Promise<NodeSession> {
  const options = { logSeverityLevel: 4, intraOpNumThreads: 1 } as const;
  return model instanceof Uint8Array
    ? NodeSession.create(model, options)
    : NodeSession.create(model.modelFile, options);
}

/** A run of it, given and giving elements in CPU memory. */
export function runReference(session: NodeSession, tokens: Tokens, past: Tensors): Promise<NodeSession.ReturnType> {
  const pastLength = Object.values(past)[0]!.dims[2]!;
  return session.run({ ...feedsOf({ Tensor: NodeTensor } as unknown as Ort, tokens, pastLength), ...past } as never);
}
