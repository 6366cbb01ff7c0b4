/** Random one-node models of `FlashAttention` with what the double-precision reference says they give. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Long from 'long';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { type Dimension, opsetImports, tensorInfo } from '../../graph-rewrite/onnx/make.js';
import { GraphProto, ModelProto } from '../../graph-rewrite/onnx/proto.js';
import {
  DEFAULT_ATTRIBUTES,
  FLASH_ATTENTION_INPUTS,
  FLASH_ATTENTION_OUTPUTS,
  type FlashAttentionAttributes,
  type FlashAttentionInput,
} from '../../graph-rewrite/op/definition.js';
import { decodeHalf, encodeHalf } from '../../graph-rewrite/op/half.js';
import { layoutShape, parseLayout } from '../../graph-rewrite/op/layout.js';
import { flashAttentionNode } from '../../graph-rewrite/op/node.js';
import { type ProblemType, resolveProblem } from '../../graph-rewrite/op/problem.js';
import { referenceAttention } from '../../graph-rewrite/op/reference.js';

/** A number from 0 up to, not including, `below`. */
export type Random = (below: number) => number;

interface CaseTensor {
  readonly type: ProblemType;
  readonly shape: readonly number[];
  /** Values as they are after rounding to the type. */
  readonly values: Float64Array;
}

/** Attributes and inputs of one call. */
interface Case {
  readonly attributes: FlashAttentionAttributes;
  readonly inputs: Partial<Record<FlashAttentionInput, CaseTensor>> & Record<'Q' | 'K' | 'V', CaseTensor>;
}

/** What a model declares of an input's shape; undefined for nothing, not even the rank. */
export type Declare = (input: FlashAttentionInput, shape: readonly number[]) => readonly Dimension[] | undefined;

type CaseType = 'float32' | 'float16' | 'bfloat16';

const ONNX_TYPE = { float32: 1, int64: 7, bool: 9, float16: 10, bfloat16: 16 } as const;
/** Differences allowed, absolute and relative: a few roundings of the type. */
const TOLERANCE = { float32: 1e-5, float16: 3e-3, bfloat16: 2e-2 } as const;

/** Layouts of an input whose heads and head dimension are told by attributes or shape; all of the grammar. */
const INPUT_LAYOUTS = ['BHSD', 'BS(HD)', 'BSHD', 'SB(HD)', 'BHDS', '(BH)SD', 'BS([1/3]HD)', 'BS(H[0/2]D)'];
const OUTPUT_LAYOUTS = ['BHSD', 'BS(HD)', 'BSHD', 'SB(HD)', 'S(BH)D', '(BS)(HD)'];

function typedBytes(type: ProblemType, values: Float64Array): Uint8Array {
  if (type === 'int64') return new Uint8Array(BigInt64Array.from(values, (v) => BigInt(v)).buffer);
  if (type === 'bool') return Uint8Array.from(values);
  if (type === 'float16' || type === 'bfloat16') return new Uint8Array(encodeHalf(values, type).buffer);
  return new Uint8Array(Float32Array.from(values).buffer);
}

function rounded(type: ProblemType, values: Float64Array): Float64Array {
  if (type === 'float16' || type === 'bfloat16') return Float64Array.from(decodeHalf(encodeHalf(values, type), type));
  return type === 'float32' ? Float64Array.from(Float32Array.from(values)) : values;
}

function makeTensor(type: ProblemType, shape: readonly number[], value: () => number): CaseTensor {
  const count = shape.reduce((a, b) => a * b, 1);
  return { type, shape, values: rounded(type, Float64Array.from({ length: count }, value)) };
}

function randomCase(random: Random, type: CaseType): Case {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random(from.length))]!;
  const size = (below: number) => 1 + Math.floor(random(below));
  const chance = (p: number) => random(1) < p;
  const keyHeads = pick([1, 2, 3]);
  const queryHeads = keyHeads * pick([1, 2, 4]);
  const [batch, queries, newKeys] = [pick([1, 2, 4]), size(40), size(50)];
  const hasPast = chance(0.3);
  const pastKeys = hasPast ? size(30) : 0;
  const dimension = pick([8, 16, 33, 64, 80, 128]);
  const valueDimension = hasPast || chance(0.6) ? dimension : pick([8, 24, 64]);
  // A dimension that merges batch with another axis does not tell the batch.
  const layout = () => pick(INPUT_LAYOUTS.filter((text) => batch === 1 || !text.includes('(B')));
  const attributes: FlashAttentionAttributes = {
    ...DEFAULT_ATTRIBUTES,
    queryHeads,
    keyHeads,
    queryLayout: layout(),
    keyLayout: layout(),
    valueLayout: layout(),
    outputLayout: pick(OUTPUT_LAYOUTS),
    isCausal: chance(0.4),
    softcap: chance(0.2) ? 3 : 0,
    leftWindow: chance(0.2) ? Math.floor(random(20)) : -1,
    rightWindow: chance(0.2) ? Math.floor(random(20)) : -1,
    alignEnd: chance(0.2),
    scale: chance(0.3) ? Math.fround(0.3) : 0,
    maskedValue: chance(0.2) ? -65504 : Number.NEGATIVE_INFINITY,
    maskPeriod: batch > 1 && chance(0.1) ? batch / 2 : 0,
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - random(1))) * Math.cos(2 * Math.PI * random(1));
  const shaped = (text: string, H: number, S: number, D: number) =>
    makeTensor(type, layoutShape(parseLayout(text), { B: batch, H, S, D }), normal);
  const inputs: Partial<Record<FlashAttentionInput, CaseTensor>> = {
    Q: shaped(attributes.queryLayout, queryHeads, queries, dimension),
    K: shaped(attributes.keyLayout, keyHeads, newKeys, dimension),
    V: shaped(attributes.valueLayout, keyHeads, newKeys, valueDimension),
  };
  if (hasPast) {
    inputs.past_key = makeTensor(type, [batch, keyHeads, pastKeys, dimension], normal);
    inputs.past_value = makeTensor(type, [batch, keyHeads, pastKeys, valueDimension], normal);
  }
  const keys = pastKeys + newKeys;
  if (chance(0.5) || attributes.maskPeriod > 0) {
    const masks = attributes.maskPeriod || pick([1, batch]);
    const shape = [masks, pick([1, queryHeads]), pick([1, queries]), keys];
    inputs.attn_mask = chance(0.5)
      ? makeTensor('bool', shape, () => Number(chance(0.7)))
      : makeTensor(type, shape, () => (chance(0.8) ? normal() : Number.NEGATIVE_INFINITY));
  }
  if (chance(0.2)) inputs.nonpad_kv_seqlen = makeTensor('int64', [batch], () => Math.floor(random(keys + 1)));
  if (chance(0.2)) inputs.sink = makeTensor(type, [queryHeads], normal);
  return { attributes, inputs: inputs as Case['inputs'] };
}

/**
 * Writes one random model with its inputs and expected outputs as a folder that test/session.cpp runs. Where `declare` is
 * given, it says what the model tells of its inputs' shapes, and of its outputs' it tells nothing.
 */
export function writeRandomCase(random: Random, type: CaseType, folder: string, declare?: Declare): void {
  writeCase(randomCase(random, type), folder, declare);
}

/** Writes a model with inputs of these shapes, all float32. */
export function writeShapedCase(
  attributes: FlashAttentionAttributes,
  shapes: Readonly<Record<string, readonly number[]>>,
  folder: string,
  declare: Declare,
): void {
  let n = 0;
  const inputs = Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [name, makeTensor('float32', shape, () => Math.sin(n++))]),
  );
  writeCase({ attributes, inputs: inputs as Case['inputs'] }, folder, declare);
}

function writeCase({ attributes, inputs }: Case, folder: string, declare?: Declare): void {
  const { type } = inputs.Q;
  const problem = resolveProblem(attributes, inputs);
  const data = Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, tensor.values]));
  const expected = referenceAttention(problem, data as unknown as Parameters<typeof referenceAttention>[1]);
  const outputs = {
    Y: { type, shape: problem.outputShape, values: expected.Y },
    present_key: { type, shape: problem.presentKeyShape, values: expected.presentKey },
    present_value: { type, shape: problem.presentValueShape, values: expected.presentValue },
  };
  const given = FLASH_ATTENTION_INPUTS.filter((name) => inputs[name] !== undefined);
  const made = FLASH_ATTENTION_OUTPUTS.filter((name) => outputs[name].shape !== undefined);
  const named = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, name]));
  const graph = GraphProto.create({
    name: 'test',
    input: given.map((name) => {
      const { type, shape } = inputs[name]!;
      return tensorInfo(name, type, declare === undefined ? shape : declare(name, shape));
    }),
    output: made.map((name) => tensorInfo(name, type, declare === undefined ? outputs[name].shape : undefined)),
    node: [
      flashAttentionNode({
        attributes,
        inputs: named(given) as Record<'Q' | 'K' | 'V', string>,
        outputs: named(made) as Record<'Y', string>,
      }),
    ],
  });
  const opset_import = opsetImports({ '': 21, ortflash: 1 });
  mkdirSync(folder, { recursive: true });
  writeFileSync(
    join(folder, 'model.onnx'),
    encodeModel(ModelProto.create({ ir_version: Long.fromNumber(10), opset_import, graph })),
  );
  const line = (role: string, name: string, tensor: CaseTensor, tolerance: number) => {
    writeFileSync(join(folder, `${name}.bin`), typedBytes(tensor.type, tensor.values));
    const onnxType = ONNX_TYPE[tensor.type as keyof typeof ONNX_TYPE];
    return [role, name, onnxType, tolerance, `${name}.bin`, tensor.shape.length, ...tensor.shape].join(' ');
  };
  const lines = [
    ...given.map((name) => line('input', name, inputs[name]!, 0)),
    ...made.map((name) => line('output', name, outputs[name] as CaseTensor, TOLERANCE[type as CaseType])),
  ];
  writeFileSync(join(folder, 'tensors.txt'), `${lines.join('\n')}\n`);
}
