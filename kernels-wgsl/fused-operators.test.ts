/** ONNX Runtime's own fused operators on WebGPU, for every form that attention is lowered to there. */
import anyTest from 'ava';
import fc from 'fast-check';
import { lowerToOrt } from '../graph-rewrite/op/lower.js';
import { flashAttentionNode } from '../graph-rewrite/op/node.js';
import { isRefusal } from '../graph-rewrite/op/site.js';
import { buildModel, difference, drawProblem, type ProblemOptions, referenceOf } from '../test/attention-problems.js';
import { hasWebGpu, loadWeb } from '../test/web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);
const TOLERANCE = { absolute: 2e-5, relative: 2e-5 };

const none = {
  alignEnd: false,
  lengths: false,
  precision: false,
  period: false,
  windows: false,
  softcap: false,
  sink: false,
  grouped: false,
  mask: false,
  slices: false,
  known: true,
  past: false,
} as const;
const grouped = { ...none, causal: true, self: true, sameDimension: true } as const;
const base = { opset: 17, type: 'float32' } as const;

const FAMILIES: Readonly<Record<string, { readonly operator: string; readonly options: ProblemOptions }>> = {
  MultiHeadAttention: { operator: 'MultiHeadAttention', options: { ...base, features: { ...none, causal: false } } },
  'causal GroupQueryAttention': {
    operator: 'GroupQueryAttention',
    options: { ...base, headDimensions: [8, 16], features: { ...grouped, grouped: true } },
  },
  'causal GroupQueryAttention of as many key heads': {
    operator: 'GroupQueryAttention',
    options: { ...base, headDimensions: [8], features: grouped },
  },
  'GroupQueryAttention after a past': {
    operator: 'GroupQueryAttention',
    options: { ...base, headDimensions: [8, 16], features: { ...grouped, grouped: true, past: true } },
  },
};

/** What the operator computes on WebGPU that the reference does not; undefined where they agree. */
async function compare(pick: fc.GeneratorValue, { operator, options }: (typeof FAMILIES)[string]) {
  const drawn = drawProblem(pick, options);
  const { tensors, variant, problem, attributes } = drawn;
  const names = ['Y', ...(variant.hasPast ? ['present_key', 'present_value'] : [])];
  const same = (list: readonly string[]) => Object.fromEntries(list.map((name) => [name, name]));
  const node = flashAttentionNode({
    attributes,
    inputs: same(Object.keys(tensors)) as { Q: string; K: string; V: string },
    outputs: same(names) as { Y: string },
    name: 'site',
  });
  const { batch, queries } = problem;
  const lowered = lowerToOrt(node, { ...variant, isSelfAttention: true, provider: 'webgpu', batch, queries });
  if (isRefusal(lowered)) return `refused: ${lowered.reason}`;
  if (!lowered.nodes.some(({ op_type }) => op_type === operator)) return 'another operator';
  const outputs = Object.fromEntries(names.map((name) => [name, 'float32' as const]));
  const model = buildModel({ ...lowered, inputs: tensors, outputs, opset: variant.opset }, true);
  const session = await ort.InferenceSession.create(model, { flash: 'off', executionProviders: ['webgpu'] });
  try {
    const feeds = Object.entries(tensors).map(
      ([name, { shape, data }]) => [name, new ort.Tensor('float32', data as Float32Array, shape)] as const,
    );
    const results = await session.run(Object.fromEntries(feeds));
    const { Y, presentKey, presentValue } = referenceOf(drawn);
    const expected = { Y, present_key: presentKey, present_value: presentValue } as Record<string, Float64Array>;
    const found = names.map((name) => [
      name,
      difference(results[name]!.data as Float32Array, expected[name]!, TOLERANCE),
    ]);
    const shape = `batch ${batch}, heads ${problem.queryHeads}/${problem.keyHeads}, ${queries} queries, ${problem.keys} keys, ${problem.headDimension}`;
    return found.filter(([, what]) => what !== undefined).map(([name, what]) => `${name} (${shape}): ${what}`)[0];
  } finally {
    await session.release();
  }
}

for (const [name, family] of Object.entries(FAMILIES)) {
  test(`${name}: ONNX Runtime computes on WebGPU what the reference does`, async (t) => {
    t.timeout(900_000);
    let ran = 0;
    await fc.assert(
      fc.asyncProperty(fc.gen(), async (pick) => {
        const found = await compare(pick, family);
        if (found !== undefined && /refused: .*(several queries after a past)/.test(found)) return;
        ran++;
        if (found !== undefined) throw new Error(found);
      }),
      { numRuns: Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 12), includeErrorInReport: true, endOnFailure: true },
    );
    t.true(ran > 0);
  });
}
