import test from 'ava';
import fc from 'fast-check';
import { DEFAULT_ATTRIBUTES } from '../graph-rewrite/op/definition.js';
import { type AttentionProblem, resolveProblem } from '../graph-rewrite/op/problem.js';
import { type AdapterFacts, DEFAULT_ADAPTER } from './adapter.js';
import { constantsOf, foldBranches } from './fold.js';
import { type AttentionPlan, planAttention } from './plan.js';
import { decodeCandidates } from './plan-decode-lanes.js';
import type { MatrixTiles } from './plan-matrix.js';
import { headShape } from './plan-prefill.js';
import { rowCandidates, rowMemory } from './plan-rows.js';
import { SHADERS } from './shaders/linked.js';
import { specialize } from './specialize.js';
import { callSpecs, makeCall } from './testing/problems.js';
import { prefillCandidates, prefillMemory } from './tiles.js';
import { PROBLEM_FIELDS } from './uniforms.js';
import { unrollLoops } from './unroll.js';

/** An adapter with everything: limits and matrix shapes of an H100 under Dawn. */
const LARGE: AdapterFacts = {
  ...DEFAULT_ADAPTER,
  vendor: 'nvidia',
  workgroupMemory: 49152,
  workgroupThreads: 1024,
  bindingSize: 2147483644,
  halfFloats: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  subgroupMatrices: [
    { M: 16, N: 8, K: 8 },
    { M: 16, N: 16, K: 16 },
  ],
};

function problem(
  type: 'float32' | 'float16' | 'bfloat16' | 'float64',
  [B, H, Hk, S, T, D]: readonly [number, number, number, number, number, number],
): AttentionProblem {
  const tensor = (...shape: number[]) => ({ type, shape });
  return resolveProblem(DEFAULT_ATTRIBUTES, { Q: tensor(B, H, S, D), K: tensor(B, Hk, T, D), V: tensor(B, Hk, T, D) });
}

const kernels = (plan: AttentionPlan) => plan.dispatches.map((d) => d.kernel);

test('the kernel follows from problem and adapter', (t) => {
  const long = [1, 8, 8, 512, 512, 64] as const;
  t.deepEqual(kernels(planAttention(problem('float32', long), DEFAULT_ADAPTER)), ['prefill']);
  t.deepEqual(kernels(planAttention(problem('float16', long), LARGE)), ['prefill-matrix']);
  t.deepEqual(kernels(planAttention(problem('float32', long), LARGE)), ['prefill']);
  t.deepEqual(kernels(planAttention(problem('float32', long), LARGE, { allowsHalfPrecision: true })), [
    'prefill-matrix',
  ]);
  const token = [1, 32, 8, 1, 8192, 128] as const;
  t.deepEqual(kernels(planAttention(problem('float16', token), LARGE)), ['decode-lanes', 'combine']);
  t.deepEqual(kernels(planAttention(problem('float32', token), DEFAULT_ADAPTER)), ['decode', 'combine']);
  t.deepEqual(kernels(planAttention(problem('float32', [1, 2, 2, 1, 20, 8]), DEFAULT_ADAPTER)), ['decode']);
});

test('rows stay in registers where that was measured to be faster, or is asked for', (t) => {
  const long = problem('float32', [1, 32, 32, 4096, 4096, 64]);
  t.deepEqual(kernels(planAttention(long, LARGE)), ['prefill-rows-subgroups']);
  t.deepEqual(kernels(planAttention(long, { ...LARGE, vendor: 'intel' })), ['prefill']);
  t.deepEqual(kernels(planAttention(problem('float32', [1, 32, 32, 512, 4096, 64]), LARGE)), ['prefill']);
  const half = problem('float16', [1, 32, 32, 4096, 4096, 64]);
  t.deepEqual(kernels(planAttention(half, LARGE)), ['prefill-matrix']);
  t.deepEqual(kernels(planAttention(half, LARGE, { kernel: 'prefill' })), ['prefill-rows-subgroups']);
  const few = problem('float32', [1, 1, 1, 40, 40, 64]);
  t.deepEqual(kernels(planAttention(few, LARGE, { kernel: 'prefill-rows' })), ['prefill-rows-subgroups']);
  t.deepEqual(kernels(planAttention(few, DEFAULT_ADAPTER, { kernel: 'prefill-rows' })), ['prefill-rows']);
});

test('rows in registers lie over lanes that the adapter’s subgroups have', (t) => {
  for (const d of [1, 20, 64, 96, 128, 256]) {
    for (const facts of [DEFAULT_ADAPTER, LARGE, { ...LARGE, subgroupMinSize: 8 }]) {
      const p = problem('float32', [1, 2, 2, 500, 500, d]);
      const head = headShape(p);
      const candidates = rowCandidates(head, facts);
      for (const rowTiles of candidates) {
        const { lanes, laneDistance } = rowTiles;
        t.true(lanes === 1 || lanes * laneDistance <= facts.subgroupMinSize);
        t.true(rowMemory(rowTiles, head) <= facts.workgroupMemory);
        const [{ kernel, parameters, enables, workgroups }] = planAttention(p, facts, { rowTiles }).dispatches as [
          AttentionPlan['dispatches'][number],
        ];
        t.is(kernel, lanes > 1 ? 'prefill-rows-subgroups' : 'prefill-rows');
        // Nothing indexes an array of registers by a variable.
        const source = specialize(kernel, parameters, enables);
        t.notRegex(source, /(?:sums|scores|weights|result|query|fetched|maximum|shrink|norm)\)?\[[^\]]*(?<!\d)[a-z]/);
        t.is(workgroups[0], Math.ceil(500 / ((rowTiles.threads / lanes) * rowTiles.rows)));
      }
      t.true(candidates.length > 0 || facts.subgroupMinSize < 16, `${d}`);
    }
  }
  const rowTiles = { threads: 64, rows: 4, lanes: 8, laneDistance: 4, keyBatch: 2, keyTile: 8 };
  t.throws(() => planAttention(problem('float32', [1, 1, 1, 64, 64, 128]), DEFAULT_ADAPTER, { rowTiles }), {
    code: 'unsupported',
    message: /subgroups of 32/,
  });
});

test('decoding without barriers has tiles that the adapter’s subgroups and memory hold', (t) => {
  for (const d of [1, 20, 64, 96, 128, 256]) {
    for (const [heads, queries] of [
      [2, 1],
      [8, 1],
      [14, 1],
      [16, 1],
      [8, 3],
    ] as const) {
      for (const facts of [DEFAULT_ADAPTER, LARGE, { ...LARGE, subgroupMinSize: 8 }]) {
        const p = problem('float16', [1, heads, 2, queries, 5000, d]);
        const all = decodeCandidates(p, facts);
        for (const decodeTiles of all) {
          const { kernel, parameters, enables, workgroups } = planAttention(p, LARGE, { decodeTiles }).dispatches[0]!;
          t.is(kernel, 'decode-lanes');
          t.is(workgroups[1], 2 * Math.ceil(((heads / 2) * queries) / decodeTiles.rows));
          t.true(decodeTiles.lanes <= facts.subgroupMinSize);
          // Nothing indexes an array of registers by a variable.
          const source = specialize(kernel, parameters, enables);
          t.notRegex(source, /(?:products|query|result|fetched\w*)\)?\[[^\]]*(?<!\d)[a-z]/);
        }
        t.true(all.length > 0 || facts.subgroupMinSize < 32 || d > 128, `${d}, ${heads}, ${queries}`);
      }
    }
  }
  const item = (p: AttentionProblem, readsWide = true) => {
    const tiles = { ...decodeCandidates(p, LARGE)[0]!, readsWide };
    return planAttention(p, LARGE, { decodeTiles: tiles }).dispatches[0]!.parameters.KeyItem;
  };
  const half = problem('float16', [1, 32, 8, 1, 8192, 128]);
  t.is(item(half), 'vec4<u32>');
  t.is(item(half, false), 'vec4<f16>');
  t.is(item({ ...half, value: { ...half.value, offset: 4 } }), 'vec4<f16>');
  t.is(item(problem('float16', [1, 32, 8, 1, 8192, 96])), 'vec4<f16>');
  t.is(item(problem('float32', [1, 32, 8, 1, 8192, 128])), 'vec4<f32>');
  const decodeTiles = { threads: 64, rows: 4, lanes: 16, keys: 4 };
  t.throws(() => planAttention(problem('float32', [1, 4, 1, 1, 64, 128]), DEFAULT_ADAPTER, { decodeTiles }), {
    code: 'unsupported',
    message: /subgroups of 16/,
  });
});

test('what WGSL or the adapter lacks is refused with the reason', (t) => {
  const shape = [1, 1, 1, 4, 4, 8] as const;
  for (const type of ['bfloat16', 'float64', 'float16'] as const)
    t.throws(() => planAttention(problem(type, shape), DEFAULT_ADAPTER), {
      code: 'unsupported',
      message: new RegExp(type),
    });
  t.throws(() => planAttention(problem('float32', [1, 1, 1, 4, 4, 257]), DEFAULT_ADAPTER), { code: 'unsupported' });
});

test('every head dimension from 1 to 256 fits the default limits', (t) => {
  for (let d = 1; d <= 256; d++) {
    const p = problem('float32', [1, 1, 1, 100, 100, d]);
    const tiles = prefillCandidates(headShape(p), DEFAULT_ADAPTER, 100);
    t.true(tiles.length > 0, `head dimension ${d}`);
    for (const candidate of tiles) t.true(prefillMemory(candidate, headShape(p)) <= DEFAULT_ADAPTER.workgroupMemory);
  }
});

test('a tensor larger than a binding is taken in parts that cover every head once', (t) => {
  const facts = { ...DEFAULT_ADAPTER, bindingSize: 1 << 20 };
  const plan = planAttention(problem('float32', [2, 6, 3, 1000, 1000, 64]), facts);
  const seen = new Map<string, number>();
  for (const { bindings, workgroups, uniform } of plan.dispatches) {
    for (const { size, offset } of bindings) {
      t.true(size <= facts.bindingSize);
      t.is(offset % facts.bindingAlignment, 0);
    }
    const field = (name: (typeof PROBLEM_FIELDS)[number]) => uniform[PROBLEM_FIELDS.indexOf(name)]!;
    for (let b = 0; b < workgroups[2]; b++)
      for (let h = 0; h < workgroups[1]; h++) {
        const key = `${field('first_batch') + b},${field('first_head') + h}`;
        seen.set(key, (seen.get(key) ?? 0) + field('covered_queries'));
      }
  }
  t.is(seen.size, 12);
  t.true([...seen.values()].every((queries) => queries === 1000));
  t.throws(() => planAttention(problem('float32', [1, 1, 1, 64, 10000, 64]), facts), { code: 'unsupported' });
});

test('extra memory of a decode is linear in splits, and there is none without', (t) => {
  const plan = planAttention(problem('float16', [1, 32, 8, 1, 65536, 128]), LARGE, { splits: 32 });
  t.is(plan.scratchBytes, 32 * 32 * 128 * 4 + 32 * 32 * 8);
  t.is(planAttention(problem('float16', [1, 16, 16, 65536, 65536, 128]), LARGE).scratchBytes, 0);
});

test('bindings lie in their tensors and dispatches within the limits, whatever the call', (t) => {
  fc.assert(
    fc.property(
      callSpecs,
      fc.constantFrom(DEFAULT_ADAPTER, LARGE),
      fc.constantFrom(undefined, 200),
      (spec, facts, capacity) => {
        const call = makeCall(spec);
        const cacheCapacity = call.problem.presentKeyShape === undefined ? undefined : capacity;
        const plan = planAttention(call.problem, facts, { writesLse: true, ...(cacheCapacity && { cacheCapacity }) });
        for (const { bindings, workgroups, kernel, parameters, enables } of plan.dispatches) {
          specialize(kernel, parameters, enables);
          for (const { tensor, offset, size } of bindings) {
            if (tensor === undefined) continue;
            const bytes = tensor === 'scratch' ? plan.scratchBytes : plan.tensorBytes[tensor]!;
            if (offset + size > bytes) throw new Error(`${kernel}: ${tensor} ends at ${offset + size} of ${bytes}`);
          }
          if (workgroups.some((n) => n < 1 || n > facts.workgroupsPerDimension)) throw new Error(`grid ${workgroups}`);
        }
      },
    ),
  );
  t.pass();
});

test('the uniform has the fields of the shaders’ struct, in their order', (t) => {
  for (const kernel of ['prefill', 'prefill-rows', 'decode', 'decode-lanes', 'combine', 'prefill-matrix'] as const) {
    const struct = /struct Problem \{([^}]*)\}/.exec(SHADERS[kernel])![1]!;
    t.deepEqual(
      [...struct.matchAll(/(\w+):/g)].map((m) => m[1]),
      [...PROBLEM_FIELDS],
    );
  }
});

test('loops over constants are unrolled, and no others', (t) => {
  const source = [
    'const N: u32 = 2u;',
    'for (var i = 0u; i < N * 2u - 1u; i++) { a[i] = b.i; }',
    'for (var i = 0u; i < N; i += 1u) { keep(); }',
    'for (var i = 0u; i < count; i++) { keep(); }',
    'for (var i = 0u; i < (N >> 1u) << (N - 1u); i++) { d[i]; }',
    'for (var i = 0u; i < 4u; i += N) { for (var j = 0u; j < N; j++) { c[i + j]; } }',
  ].join('\n');
  t.deepEqual(
    unrollLoops(source).replace(/\s+/g, ' ').trim(),
    [
      'const N: u32 = 2u;',
      '{ a[0u] = b.i; } { a[1u] = b.i; } { a[2u] = b.i; }',
      'for (var i = 0u; i < N; i += 1u) { keep(); }',
      'for (var i = 0u; i < count; i++) { keep(); }',
      '{ d[0u]; } { d[1u]; }',
      '{ { c[0u + 0u]; } { c[0u + 1u]; } } { { c[2u + 0u]; } { c[2u + 1u]; } }',
    ].join(' '),
  );
});

test('branches that constants decide are taken, and no others', (t) => {
  const source = [
    'const N: u32 = 2u;',
    'const IS: bool = false;',
    'if (IS) { a(); } else { b(); }',
    'if (IS && x > 1) { a(); }',
    'if (IS || !x) { a(); }',
    'if (N == 2u || x > 1) { if (N * 2u <= 3u) { a(); } c(); }',
    'if (x > 1) { if (!IS) { a(); } } else { if (IS) { b(); } }',
    'if (x.N == 2u) { a(); } else if (IS) { b(); }',
  ].join('\n');
  t.deepEqual(
    foldBranches(source, constantsOf(source)).replace(/\s+/g, ' ').trim(),
    [
      'const N: u32 = 2u; const IS: bool = false;',
      '{ b(); }',
      '{}',
      'if (IS || !x) { a(); }',
      '{ {} c(); }',
      'if (x > 1) { { a(); } } else { {} }',
      'if (x.N == 2u) { a(); } else if (IS) { b(); }',
    ].join(' '),
  );
});

test('an adapter in software gets little workgroup memory, and small code', (t) => {
  const software = { ...LARGE, isSoftware: true, workgroupMemory: 32768, subgroupMatrices: [] };
  for (const d of [1, 20, 64, 128, 256]) {
    for (const queries of [20, 1000]) {
      const head = headShape(problem('float32', [1, 1, 1, queries, queries, d]));
      const [tiles] = prefillCandidates(head, software, queries);
      t.false(tiles!.prefetches);
      t.true(prefillMemory(tiles!, head) <= 8192, `${d} takes ${prefillMemory(tiles!, head)}`);
    }
  }
});

test('subgroup matrices: order of work, queries at once and outputs in quads, each where it can be', (t) => {
  type Type = 'float16' | 'float32';
  const attention = (
    dimension: number,
    attributes: object,
    matrixTiles: Partial<MatrixTiles>,
    type: Type = 'float16',
  ) => {
    const tensor = { type, shape: [2, 4, 1000, dimension] };
    const call = resolveProblem({ ...DEFAULT_ATTRIBUTES, ...attributes }, { Q: tensor, K: tensor, V: tensor });
    const options = { matrixTiles: { subgroups: 4, rows: 32, keyTile: 16, ...matrixTiles }, allowsHalfPrecision: true };
    return planAttention(call, LARGE, options).dispatches[0]!;
  };
  t.deepEqual(attention(64, {}, {}).workgroups, [8, 4, 2]);
  t.deepEqual(attention(64, { isCausal: true }, {}).workgroups, [4, 2, 8]);
  t.deepEqual(attention(64, { isCausal: true, leftWindow: 100 }, {}).workgroups, [8, 4, 2]);
  t.deepEqual(attention(64, { isCausal: true }, { longestFirst: false }).workgroups, [8, 4, 2]);
  t.is(attention(64, {}, {}).parameters.OutputItem, 'vec4<f16>');
  t.is(attention(20, {}, {}, 'float32').parameters.OutputItem, 'vec4<f32>');
  t.is(attention(33, {}, {}).parameters.OutputItem, 'f16');
  t.is(attention(64, { outputLayout: 'BHDS' }, {}).parameters.OutputItem, 'f16');
});
