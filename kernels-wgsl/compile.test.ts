/** Every kernel passes WGSL validation with float16, subgroups and subgroup matrices: on Dawn's null backend, which has
 * every feature and computes nothing, so that a machine without a GPU finds errors in shaders that it cannot run. */
import test from 'ava';
import { DEFAULT_ATTRIBUTES } from '../graph-rewrite/op/definition.js';
import { resolveProblem } from '../graph-rewrite/op/problem.js';
import { type AdapterFacts, DEFAULT_ADAPTER, FlashAttention, planAttention } from './index.js';
import { specialize } from './specialize.js';

const { create, globals } = await import('webgpu');
Object.assign(globalThis, globals);
const gpu = create(['backend=null', 'enable-dawn-features=allow_unsafe_apis']);
const adapter = (await gpu.requestAdapter())!;
const features = ['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix'] as GPUFeatureName[];
const device = await adapter.requestDevice({ requiredFeatures: features });
test.after.always(() => {
  device.destroy();
  // Dawn crashes where its instance is collected before its devices: it is held to the end.
  return gpu.wgslLanguageFeatures.size;
});

const FACTS: AdapterFacts = {
  ...DEFAULT_ADAPTER,
  halfFloats: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  subgroupMatrices: [{ M: 16, N: 16, K: 16 }],
};

/** 128 threads, as the null device has subgroups of up to 128; tiles that fit its 16 KiB up to 64 dimensions. */
const MATRICES = {
  allowsHalfPrecision: true,
  writesLse: true,
  matrixTiles: { subgroups: 4, rows: 16, keyTile: 16 },
};

/** Everything that is no default, at its one end and at its other. */
const MATRIX_FORMS = [{ longestFirst: true }, { longestFirst: false }] as const;

/** Everything that is no default. */
const VARIANT = {
  queryTile: 32,
  keyTile: 64,
  rowThreads: 8,
  columnThreads: 8,
  depthChunk: 4,
  valueSteps: 1,
  queriesStay: false,
  weightQuads: 1,
  halfWeights: true,
};

for (const type of ['float32', 'float16'] as const) {
  for (const dimension of [20, 64, 128, 256]) {
    for (const [name, queries, attributes, options] of [
      ['matrices', 100, { isCausal: true, maskedValue: -1e4 }, MATRICES],
      ...MATRIX_FORMS.map(
        (form, i) =>
          [
            `matrices in form ${i}`,
            100,
            { isCausal: i !== 1 },
            { ...MATRICES, matrixTiles: { ...MATRICES.matrixTiles, ...form } },
          ] as const,
      ),
      ['portable', 100, { softcap: 3 }, { kernel: 'prefill', splits: 2 }],
      ['portable variants', 100, {}, { prefillTiles: VARIANT }],
      ['rows in registers', 100, { isCausal: true, maskedValue: -1e4 }, { kernel: 'prefill-rows', splits: 2 }],
      ['decoding', 1, { leftWindow: 100 }, {}],
      ['decoding with barriers', 1, {}, { kernel: 'decode' }],
      ['decoding over 16 lanes', 1, {}, { decodeTiles: { threads: 32, rows: 4, lanes: 16, keys: 4 } }],
    ] as const) {
      if (name.startsWith('matrices') && dimension > 64) continue;
      test.serial(`${type} at ${dimension}, ${name}: the shaders are valid`, async (t) => {
        const tensor = (heads: number, tokens: number) => ({ type, shape: [1, heads, tokens, dimension] });
        const problem = resolveProblem(
          { ...DEFAULT_ATTRIBUTES, ...attributes },
          {
            Q: tensor(4, queries),
            K: tensor(2, 1000),
            V: tensor(2, 1000),
            past_key: tensor(2, 24),
            past_value: tensor(2, 24),
            ...(name.includes('form')
              ? {}
              : { attn_mask: { type: name === 'portable' ? 'bool' : type, shape: [queries, 1024] } }),
            sink: { type, shape: [4] },
          },
        );
        const flash = FlashAttention.create(device);
        // The null device describes no matrices: the plan is made for an adapter that has them, and only compiled.
        const plan = planAttention(problem, FACTS, options);
        await t.notThrowsAsync(flash.compile(plan));
        // An array that a loop's variable indexes may go to memory: for matrices that is ruinous.
        const attention = plan.dispatches.find(({ kernel }) => kernel === 'prefill-matrix');
        if (attention !== undefined)
          t.notRegex(
            specialize(attention.kernel, attention.parameters, attention.enables),
            /\bfor \(var \w+ = 0u;.*\+\+/,
          );
        t.true(plan.dispatches.length >= 3);
      });
    }
  }
}
