/** The ONNX standard's own conformance tests of `Attention`, held against FlashAttention. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { type ModelProto, NodeProto } from '../graph-rewrite/onnx/proto.js';
import { type FunctionVariant, functionFor, overloadName } from '../graph-rewrite/op/body.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { flashAttentionNode } from '../graph-rewrite/op/node.js';
import { type ProblemInputs, type ProblemType, resolveProblem } from '../graph-rewrite/op/problem.js';
import { type ReferenceInputs, referenceAttention } from '../graph-rewrite/op/reference.js';
import { type FusedSite, isRefusal, type NodeFacts } from '../graph-rewrite/op/site.js';
import { readStandardAttention } from '../graph-rewrite/op/standard.js';
import { widenBfloat16 } from '../graph-rewrite/widen.js';
import { readTestData, standardAttentionCases, type TestTensor } from '../models/corpus.js';
import { buildModel, difference, runModel } from './attention-problems.js';

const bundled = join(dirname(fileURLToPath(import.meta.url)), '..', 'models', 'onnx-attention');
const cases =
  standardAttentionCases() ??
  readdirSync(bundled).map((name) => ({
    name,
    modelFile: join(bundled, name, 'model.onnx'),
    dataFolder: join(bundled, name, 'test_data_set_0'),
  }));

/** As the standard's own runner compares; the 16-bit types by their precision, 2⁻¹⁰ and 2⁻⁷. */
const TOLERANCE: Readonly<Record<string, { absolute: number; relative: number }>> = {
  float32: { absolute: 1e-7, relative: 1e-3 },
  float16: { absolute: 1e-3, relative: 4e-3 },
  bfloat16: { absolute: 4e-3, relative: 2e-2 },
};

interface Loaded {
  readonly model: ModelProto;
  readonly node: NodeProto;
  readonly opset: number;
  readonly facts: NodeFacts;
  /** By value name. */
  readonly inputs: Readonly<Record<string, TestTensor>>;
  readonly outputs: Readonly<Record<string, TestTensor>>;
}

function load({ modelFile, dataFolder }: { modelFile: string; dataFolder: string }): Loaded {
  const model = decodeModel(readFileSync(modelFile), modelFile);
  const graph = model.graph!;
  const { inputs, outputs } = readTestData(dataFolder);
  const byName = (names: readonly string[], tensors: readonly TestTensor[]) =>
    Object.fromEntries(names.map((name, i) => [name, tensors[i]!]));
  const types = new Map(graph.input.map((i) => [i.name, i.type!.tensor_type!]));
  const used = graph.output.map((o) => o.name);
  const opset = Number(model.opset_import[0]!.version);
  return {
    model,
    node: graph.node[0]!,
    opset,
    facts: {
      opset,
      rankOf: (value) => types.get(value)?.shape?.dim.length,
      typeOf: (value) => types.get(value)?.elem_type ?? undefined,
      isUsed: (value) => used.includes(value),
    },
    inputs: byName(
      graph.input.map((i) => i.name ?? ''),
      inputs,
    ),
    outputs: byName(
      graph.output.map((o) => o.name ?? ''),
      outputs,
    ),
  };
}

/** The site; where the case asks for the weights too, first checks the refusal and then reads it without. */
function readSite({ node, facts }: Loaded): { site: FusedSite; asksForWeights: boolean } {
  const site = readStandardAttention(node, facts);
  if (!isRefusal(site)) return { site, asksForWeights: false };
  if (!site.reason.startsWith('qk_matmul_output is used')) throw new Error(site.reason);
  const isUsed = (value: string) => value !== node.output[3] && facts.isUsed(value);
  const present = new Set(node.input[4] ? node.output.slice(1, 3) : []);
  const again = readStandardAttention(node, {
    ...facts,
    isUsed: (v) => isUsed(v) && (present.has(v) || v === node.output[0]),
  });
  if (isRefusal(again)) throw new Error(again.reason);
  return { site: again, asksForWeights: true };
}

function numbers({ type, data }: TestTensor): ArrayLike<number> {
  return type === 'float16' || type === 'bfloat16' ? decodeHalf(data as Uint16Array, type) : (data as Float32Array);
}

function compare(loaded: Loaded, output: string, actual: ArrayLike<number>): string | undefined {
  const expected = loaded.outputs[output]!;
  return difference(actual, numbers(expected), TOLERANCE[expected.type]!);
}

let refused = 0;
const widened: string[] = [];

for (const item of cases) {
  test(`${item.name}: the reference gives the standard's outputs`, (t) => {
    const loaded = load(item);
    const { site, asksForWeights } = readSite(loaded);
    if (asksForWeights) refused++;
    const tensors = Object.fromEntries(Object.entries(site.inputs).map(([role, name]) => [role, loaded.inputs[name]!]));
    const shapes = Object.fromEntries(
      Object.entries(tensors).map(([role, { type, dims }]) => [role, { type, shape: dims }]),
    );
    const data = Object.fromEntries(Object.entries(tensors).map(([role, tensor]) => [role, tensor.data]));
    const problem = resolveProblem(site.attributes, shapes as unknown as ProblemInputs);
    const result = referenceAttention(problem, data as unknown as ReferenceInputs);
    t.is(compare(loaded, site.outputs.Y, result.Y), undefined);
    t.deepEqual(problem.outputShape, loaded.outputs[site.outputs.Y]!.dims);
    if (site.outputs.present_key) t.is(compare(loaded, site.outputs.present_key, result.presentKey!), undefined);
    if (site.outputs.present_value) t.is(compare(loaded, site.outputs.present_value, result.presentValue!), undefined);
  });

  test(`${item.name}: the function body gives the standard's outputs in stock ONNX Runtime`, async (t) => {
    const loaded = load(item);
    const { site } = readSite(loaded);
    const { type } = loaded.inputs[site.inputs.Q]!;
    const variant = variantOf(loaded, site);
    const node = flashAttentionNode({
      attributes: site.attributes,
      inputs: site.inputs,
      outputs: site.outputs,
      overload: overloadName(variant),
    });
    const outputs = Object.fromEntries(Object.values(site.outputs).map((name) => [name, type as ProblemType]));
    const inputs = Object.fromEntries(
      Object.values(site.inputs).map((name) => {
        const { type: inputType, dims } = loaded.inputs[name]!;
        return [name, { type: inputType as ProblemType, shape: dims, data: loaded.inputs[name]!.data }];
      }),
    );
    const model = buildModel({
      nodes: [node],
      functions: [functionFor(variant)],
      inputs,
      outputs,
      opset: loaded.opset,
    });
    if (type === 'bfloat16') {
      // ONNX Runtime's CPU provider has no kernels for bfloat16, the standard's own operator included.
      widened.push(item.name);
      await t.throwsAsync(runModel(model, inputs), { message: /bfloat16|NOT_IMPLEMENTED|implementation/i });
    }
    const results = type === 'bfloat16' ? await runWidened(model, inputs) : await runModel(model, inputs);
    for (const name of Object.values(site.outputs)) t.is(compare(loaded, name, results[name]!.data), undefined, name);
  });
}

async function runWidened(model: Uint8Array, inputs: Parameters<typeof runModel>[1]) {
  const proto = decodeModel(model);
  widenBfloat16(proto);
  const wide = Object.entries(inputs).map(([name, input]) => {
    if (input.type !== 'bfloat16') return [name, input] as const;
    return [name, { ...input, type: 'float32', data: decodeHalf(input.data as Uint16Array, 'bfloat16') }] as const;
  });
  return runModel(encodeModel(proto), Object.fromEntries(wide));
}

function variantOf(loaded: Loaded, { attributes, inputs, maskMayBeShorter }: FusedSite): FunctionVariant {
  const { attn_mask } = inputs;
  const mask = attn_mask === undefined ? undefined : loaded.inputs[attn_mask]!;
  return {
    attributes,
    elementType: loaded.facts.typeOf(inputs.Q)!,
    opset: loaded.opset,
    hasPast: inputs.past_key !== undefined,
    hasLengths: inputs.nonpad_kv_seqlen !== undefined,
    ...(mask === undefined
      ? {}
      : {
          mask: {
            kind: mask.type === 'bool' ? 'boolean' : 'additive',
            rank: mask.dims.length,
            mayBeShorter: maskMayBeShorter,
            mayEmptyRows: true,
          },
        }),
  };
}

test.after('what was refused and what was widened', (t) => {
  t.log(`${cases.length} cases, ${refused} ask for qk_matmul_output, bfloat16 in float32: ${widened.join(', ')}`);
});

test('what FlashAttention cannot say is refused with the reason', (t) => {
  const facts: NodeFacts = { opset: 24, rankOf: () => 4, typeOf: () => 1, isUsed: () => true };
  const refusal = (node: Parameters<typeof NodeProto.create>[0], changed: Partial<NodeFacts> = {}) => {
    const result = readStandardAttention(
      NodeProto.create({ op_type: 'Attention', input: ['q', 'k', 'v'], output: ['y'], ...node }),
      { ...facts, ...changed },
    );
    return isRefusal(result) ? result.reason : undefined;
  };
  t.is(refusal({}), undefined);
  t.regex(refusal({ output: ['y', '', '', 'weights'] })!, /qk_matmul_output/);
  t.regex(refusal({ output: ['y', 'present'] })!, /without a past/);
  t.regex(refusal({ input: ['q', 'k', 'v', '', 'past'] })!, /alone/);
  t.regex(refusal({}, { rankOf: () => 3 })!, /q_num_heads/);
  t.regex(refusal({}, { rankOf: () => undefined })!, /rank/);
  t.regex(refusal({}, { opset: 26 })!, /newer/);
  t.regex(refusal({ input: ['q', 'k', 'v', 'm'] }, { typeOf: (v) => (v === 'm' ? 7 : 1) })!, /neither boolean/);
});
