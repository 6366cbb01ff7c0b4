import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { readModelFile } from '../graph-rewrite/files.js';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { tensorNumbers, tensorShape } from '../graph-rewrite/onnx/tensor.js';
import { validateModel } from '../graph-rewrite/onnx/validate.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import { buildTransformer, ENCODER_12_LAYERS, type TransformerOptions, writeTransformer } from './builder.js';

type Matrix = number[][];

/** The same transformer in double precision for one sequence, written straight from its definition. */
function reference(model: ModelProto, options: TransformerOptions, input: Matrix, seen: readonly boolean[]): Matrix {
  const { layers, width, heads, causal } = options;
  const dim = options.headDimension ?? width / heads;
  const group = heads / (options.keyHeads ?? heads);
  const weights = new Map(
    model.graph!.initializer.map((w) => [w.name, { values: tensorNumbers(w), shape: tensorShape(w) }] as const),
  );
  const linear = (name: string, rows: Matrix): Matrix => {
    const { values, shape } = weights.get(`${name}.weight`)!;
    const bias = weights.get(`${name}.bias`)!.values;
    const to = shape[1]!;
    return rows.map((row) => bias.map((b, j) => row.reduce((sum, x, i) => sum + x * values[i * to + j]!, b)));
  };
  const norm = (rows: Matrix): Matrix =>
    rows.map((row) => {
      const mean = row.reduce((sum, x) => sum + x, 0) / width;
      const variance = row.reduce((sum, x) => sum + (x - mean) ** 2, 0) / width;
      return row.map((x) => (x - mean) / Math.sqrt(variance + 1e-5));
    });
  const erf = (x: number): number => {
    // Taylor series: exact enough for the small arguments here.
    let [term, sum] = [x, x];
    for (let n = 1; n < 200; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  };
  const add = (a: Matrix, b: Matrix): Matrix => a.map((row, i) => row.map((x, j) => x + b[i]![j]!));
  const attention = (name: string, rows: Matrix): Matrix => {
    const [q, k, v] = ['query', 'key', 'value'].map((part) => linear(`${name}.${part}`, rows));
    const merged = rows.map((_, i) =>
      Array.from({ length: heads }, (_, h) => {
        const [at, from] = [h * dim, Math.floor(h / group) * dim];
        const weight = rows.map((_, j) => {
          if (!seen[j] || (causal && j > i)) return 0;
          let score = 0;
          for (let d = 0; d < dim; d++) score += q![i]![at + d]! * k![j]![from + d]!;
          return Math.exp(score / Math.sqrt(dim));
        });
        const total = weight.reduce((sum, w) => sum + w, 0);
        return Array.from({ length: dim }, (_, d) =>
          weight.reduce((s, w, j) => s + (w / total) * v![j]![from + d]!, 0),
        );
      }).flat(),
    );
    return linear(`${name}.output`, merged);
  };
  let hidden = input;
  for (let layer = 0; layer < layers; layer++) {
    const name = `layers.${layer}`;
    const added = add(attention(`${name}.attention`, causal ? norm(hidden) : hidden), hidden);
    const middle = causal ? added : norm(added);
    const up = linear(`${name}.intermediate`, causal ? norm(added) : middle);
    const gelu = up.map((row) => row.map((x) => 0.5 * x * (1 + erf(x / Math.SQRT2))));
    const output = add(linear(`${name}.output`, gelu), middle);
    hidden = causal ? output : norm(output);
  }
  return causal ? norm(hidden) : hidden;
}

const wave = (length: number, phase: number) => Array.from({ length }, (_, i) => Math.sin(i * 1.7 + phase));

const float = (values: readonly number[], dims: number[], type: 'float32' | 'float16' = 'float32') =>
  type === 'float32'
    ? new Tensor('float32', Float32Array.from(values), dims)
    : new Tensor('float16', encodeHalf(values, type), dims);

const values = (tensor: Tensor): number[] =>
  tensor.type === 'float16'
    ? [...decodeHalf(tensor.data as unknown as Uint16Array, 'float16')]
    : [...(tensor.data as Float32Array)];

const largestDifference = (a: readonly number[], b: readonly number[]) =>
  a.length === b.length ? Math.max(...a.map((x, i) => Math.abs(x - b[i]!))) : Number.NaN;

const small = { layers: 2, width: 24, heads: 4 } as const;
const variants: Record<string, Omit<TransformerOptions, 'style'>> = {
  encoder: small,
  'encoder with padding': { ...small, paddingMask: true },
  'decoder with grouped heads': { ...small, causal: true, keyHeads: 2, headDimension: 8 },
  'decoder with one key head and padding': { ...small, causal: true, keyHeads: 1, paddingMask: true },
  'encoder in float16': { ...small, type: 'float16', paddingMask: true },
};

for (const style of ['torchscript', 'dynamo'] as const) {
  for (const [name, variant] of Object.entries(variants)) {
    test(`${style}: ${name} computes what a transformer is defined to`, async (t) => {
      const options = { ...variant, style };
      const model = buildTransformer(options);
      validateModel(model);
      const session = await InferenceSession.create(encodeModel(model));
      const [batch, sequence, width] = [2, 5, small.width];
      const input = wave(batch * sequence * width, 0.3);
      const mask = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0];
      const feeds: Record<string, Tensor> = { hidden_states: float(input, [batch, sequence, width], variant.type) };
      if (variant.paddingMask) feeds.attention_mask = new Tensor('int64', BigInt64Array.from(mask, BigInt), [2, 5]);
      const { last_hidden_state: output } = await session.run(feeds);
      t.deepEqual([...output!.dims], [batch, sequence, width]);
      const expected = [0, 1].flatMap((b) => {
        const rows = Array.from({ length: sequence }, (_, s) =>
          input.slice((b * sequence + s) * width).slice(0, width),
        );
        const seen = mask.slice(b * sequence, (b + 1) * sequence).map((m) => !variant.paddingMask || m === 1);
        return reference(model, options, rows, seen).flat();
      });
      const difference = largestDifference(values(output!), expected);
      t.true(difference < (variant.type === 'float16' ? 0.02 : 2e-5), String(difference));
    });
  }

  test(`${style}: a decoder with a cache continues as if it had read everything at once`, async (t) => {
    const options = { ...small, style, causal: true, keyHeads: 2, paddingMask: true };
    const whole = await InferenceSession.create(encodeModel(buildTransformer(options)));
    const cached = await InferenceSession.create(encodeModel(buildTransformer({ ...options, cache: true })));
    const input = wave(6 * 24, 1);
    const ones = (length: number) => new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]);
    const full = await whole.run({ hidden_states: float(input, [1, 6, 24]), attention_mask: ones(6) });
    const empty = Object.fromEntries(
      [0, 1].flatMap((n) => ['key', 'value'].map((p) => [`past.${n}.${p}`, float([], [1, 2, 0, 6])])),
    );
    const first = await cached.run({
      ...empty,
      hidden_states: float(input.slice(0, 4 * 24), [1, 4, 24]),
      attention_mask: ones(4),
    });
    const past = Object.fromEntries(
      [0, 1].flatMap((n) => ['key', 'value'].map((p) => [`past.${n}.${p}`, first[`present.${n}.${p}`]!])),
    );
    const second = await cached.run({
      ...past,
      hidden_states: float(input.slice(4 * 24), [1, 2, 24]),
      attention_mask: ones(6),
    });
    const joined = [...values(first.last_hidden_state!), ...values(second.last_hidden_state!)];
    const difference = largestDifference(joined, values(full.last_hidden_state!));
    t.true(difference < 2e-5, String(difference));
  });
}

test('weights streamed to a data file are the inline ones', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-builder-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const options = { ...small, style: 'dynamo', seed: 7 } as const;
  const path = join(folder, 'model.onnx');
  await writeTransformer(path, options);
  validateModel(readModelFile(path));
  const feeds = { hidden_states: float(wave(3 * 24, 0), [1, 3, 24]) };
  const external = await (await InferenceSession.create(path)).run(feeds);
  const inline = await (await InferenceSession.create(encodeModel(buildTransformer(options)))).run(feeds);
  t.deepEqual(values(external.last_hidden_state!), values(inline.last_hidden_state!));
  t.true(statSync(join(folder, 'model.data')).size > statSync(path).size / 4);
});

test('the same seed gives the same bytes, another seed others', (t) => {
  const make = (seed: number) => encodeModel(buildTransformer({ ...small, style: 'torchscript', seed }));
  t.deepEqual(make(1), make(1));
  t.notDeepEqual(make(1), make(2));
});

test('the 12-layer encoder has the size of BERT-base without its embeddings', (t) => {
  const model = buildTransformer({ ...ENCODER_12_LAYERS, style: 'dynamo', type: 'float16' });
  const parameters = model
    .graph!.initializer.filter((w) => w.name!.startsWith('layers.'))
    .reduce((sum, w) => sum + tensorShape(w).reduce((p, d) => p * d, 1), 0);
  t.is(parameters, 85_054_464);
});
