/** Models in which one attention is for the kernels and one gives its scores, through `ort-flash/web` over Dawn. */
import anyTest from 'ava';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { rewriteFor } from '../kernels-wgsl/session/rewritten-model.js';
import { buildModel, difference, runModel } from './attention-problems.js';
import { hasWebGpu, loadWeb } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

const shape = [1, 2, 5, 8];
const tensor = (seed: number) => ({
  type: 'float32' as const,
  shape,
  data: Float32Array.from({ length: 80 }, (_, i) => Math.sin(seed + i * 1.7)),
});
const tensors = { Q: tensor(1), K: tensor(2), V: tensor(3) };

/** Y = Attention(Attention(Q, K, V), K, V), and the second one's causal scores. */
function chain(): Uint8Array {
  const nodes = [
    makeNode('Attention', ['Q', 'K', 'V'], ['first']),
    makeNode('Attention', ['first', 'K', 'V'], ['Y', '', '', 'scores'], { is_causal: 1, qk_matmul_output_mode: 2 }),
  ];
  return buildModel({ nodes, inputs: tensors, outputs: { Y: 'float32', scores: 'float32' }, opset: 23, domains: [] });
}

/** Keys after a query are −∞, for which ONNX Runtime's CPU kernel has the lowest number. */
const withInfinity = (data: ArrayLike<number>) => Array.from(data, (x) => (x < -1e37 ? Number.NEGATIVE_INFINITY : x));

function rewritten(model: Uint8Array): Uint8Array {
  const proto = decodeModel(model);
  rewriteModel(proto);
  return encodeModel(proto);
}

anyTest('what ONNX Runtime is to have whole differs from the file only in the scores', (t) => {
  const file = chain();
  const model = decodeModel(file);
  const { expanded, bytes } = rewriteFor({ halfFloats: false }, model, () => decodeModel(file));
  t.is(expanded, 1);
  const operators = (proto: ModelProto) => proto.graph!.node.map(({ op_type: type }) => type);
  t.deepEqual(operators(decodeModel(bytes!)), ['Attention', ...operators(model).slice(1)]);
  t.is(operators(model)[0], 'FlashAttention');
  t.false(operators(model).includes('Attention'));
});

for (const [what, model] of [
  ['a model', chain()],
  ['a model that was rewritten before', rewritten(chain())],
] as const)
  for (const flash of ['on', 'auto'] as const)
    test(`${what}, with flash ${flash}: a kernel for one, operators for the other`, async (t) => {
      t.timeout(120_000);
      const expected = await runModel(chain(), tensors);
      t.true(withInfinity(expected.scores!.data).includes(Number.NEGATIVE_INFINITY));
      const session = await ort.InferenceSession.create(model, { logSeverityLevel: 4, flash });
      try {
        const { text, attentions } = session.explain();
        // On a GPU, `auto` may leave so small a model whole.
        if (flash === 'on') t.is(attentions, 1, text);
        t.regex(text, /attentions in plain operators, as their scores are outputs: 1/);
        const feeds = Object.entries(tensors).map(
          ([name, { type, data }]) => [name, new ort.Tensor(type, data, shape)] as const,
        );
        const results = await session.run(Object.fromEntries(feeds));
        for (const [name, { data }] of Object.entries(expected)) {
          const actual = results[name]!.data as Float32Array;
          t.is(difference(actual, withInfinity(data), { absolute: 1e-5, relative: 1e-5 }), undefined, name);
        }
      } finally {
        await session.release();
      }
    });
