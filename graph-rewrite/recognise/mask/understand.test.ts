import test from 'ava';
import {
  type GraphWriter,
  LOWEST,
  type MaskedSiteOptions,
  type MaskWriter,
  makeFeeds,
  maskedSite,
  runAll,
} from '../../../test/mask-graphs.js';
import type { ModelProto } from '../../onnx/proto.js';
import { isFlashAttention } from '../../op/node.js';
import { rewriteModel } from '../../rewrite.js';

/** What became of a mask, in a line: `causal left=4 right=4 end past fill=-1 boolean(batch,1,1,queries)`. */
function understood(write: MaskWriter, options: MaskedSiteOptions = {}): string {
  const model = maskedSite(write, options);
  const [site] = rewriteModel(model).sites;
  const inputs = model.graph?.node.find(isFlashAttention)?.input ?? [];
  if (!site?.fused) return `refused: ${site?.refusal?.reason}`;
  const { isCausal, leftWindow, rightWindow, alignEnd, maskedValue } = site.attributes!;
  const { kind, shape } = site.mask!;
  return [
    isCausal ? 'causal' : [],
    leftWindow >= 0 ? `left=${leftWindow}` : [],
    rightWindow >= 0 ? `right=${rightWindow}` : [],
    alignEnd ? 'end' : [],
    inputs.includes('past_key') ? 'past' : [],
    maskedValue === Number.NEGATIVE_INFINITY ? [] : `fill=${maskedValue}`,
    kind === 'none' ? [] : `${kind}(${shape})`,
  ]
    .flat()
    .join(' ');
}

const add = (g: GraphWriter, scores: string, mask: string) => g.op('Add', [scores, mask]);
const whereAdded = (g: GraphWriter, keep: string, fill: number) => g.op('Where', [keep, g.float(0), g.float(fill)]);
const causal = (g: GraphWriter, offset?: string) => g.op('LessOrEqual', [g.columns(), g.rows(offset)]);
const past = (g: GraphWriter) => g.op('Sub', [g.keys, g.queries]);
const ones = (g: GraphWriter, sizes = [g.queries, g.keys]) => g.filled(sizes, 'float32', 1);

/** attention_mask[b, j] ≠ 0 as (batch, 1, 1, keys), the way that tracing spells an index by two tensors. */
function paddingByFlatIndex(g: GraphWriter): string {
  const flags = g.cast('attention_mask', 'bool');
  const rows = g.unsqueeze(g.count(g.batch), 1, 2, 3);
  const position = g.op('Add', [g.columns(), g.op('Mul', [rows, g.unsqueeze(g.size('attention_mask', 1), 0)])]);
  return g.op('Gather', [g.op('Reshape', [flags, g.ints(-1)]), position], { axis: 0 });
}

/** The same, the way that torch.export spells it. */
function paddingByGatherND(g: GraphWriter): string {
  const shape = g.op('Concat', [g.unsqueeze(g.batch, 0), g.ints(1, 1), g.unsqueeze(g.keys, 0)], { axis: 0 });
  const indices = [g.unsqueeze(g.count(g.batch), 1, 2, 3), g.columns()].map((index) =>
    g.unsqueeze(g.op('Expand', [index, shape]), 4),
  );
  return g.op('GatherND', [g.cast('attention_mask', 'bool'), g.op('Concat', indices, { axis: -1 })]);
}

const padding = (g: GraphWriter) => g.cast(g.unsqueeze('attention_mask', 1, 2), 'bool');

test('causality by comparing indices, in both directions and negated', (t) => {
  const variants: ((g: GraphWriter) => string)[] = [
    (g) => causal(g),
    (g) => g.op('GreaterOrEqual', [g.rows(), g.columns()]),
    (g) => g.op('Not', [g.op('Greater', [g.columns(), g.rows()])]),
    (g) => g.op('Not', [g.op('Less', [g.op('Sub', [g.rows(), g.columns()]), g.int(0)])]),
    (g) => g.op('Less', [g.columns(), g.op('Add', [g.rows(), g.int(1)])]),
  ];
  for (const keep of variants)
    t.is(
      understood((g, s) => add(g, s, whereAdded(g, keep(g), LOWEST))),
      'causal',
    );
});

test('causality by Trilu, from either side', (t) => {
  const lower = (g: GraphWriter) => g.op('Trilu', [ones(g)], { upper: 0 });
  const upper = (g: GraphWriter) => g.op('Trilu', [ones(g), g.int(1)], { upper: 1 });
  const isZero = (g: GraphWriter, x: string) => g.op('Equal', [x, g.float(0)]);
  const infinite = Number.NEGATIVE_INFINITY;
  t.is(
    understood((g, s) => g.op('Where', [isZero(g, lower(g)), g.float(infinite), s])),
    'causal',
  );
  t.is(
    understood((g, s) => g.op('Where', [isZero(g, upper(g)), s, g.float(infinite)])),
    'causal',
  );
  t.is(
    understood((g, s) => g.op('Where', [g.cast(upper(g), 'bool'), g.float(-1e4), s])),
    'causal',
  );
  t.is(
    understood((g, s) => add(g, s, g.op('Mul', [upper(g), g.float(-1e9)]))),
    'causal',
  );
  const filled = (g: GraphWriter) => g.filled([g.queries, g.keys], 'float32', infinite);
  t.is(
    understood((g, s) => add(g, s, g.op('Trilu', [filled(g), g.int(1)], { upper: 1 }))),
    'causal',
  );
});

test('causality by a buffer, of which a part is taken', (t) => {
  const size = 16;
  const triangle = (g: GraphWriter, type: 'bool' | 'float32', kept: number, gone: number, d = 0) =>
    g.tensor(
      type,
      [1, 1, size, size],
      Array.from({ length: size * size }, (_, n) => (n % size <= Math.floor(n / size) + d ? kept : gone)),
    );
  const part = (g: GraphWriter, buffer: string, start: string) => {
    const end = g.unsqueeze(g.op('Add', [start, g.queries]), 0);
    const rows = g.op('Slice', [buffer, g.unsqueeze(start, 0), end, g.ints(2), g.ints(1)]);
    return g.op('Slice', [rows, g.ints(0), g.unsqueeze(g.keys, 0), g.ints(3), g.ints(1)]);
  };
  const select: MaskWriter = (g, s) => g.op('Where', [part(g, triangle(g, 'bool', 1, 0), past(g)), s, g.float(LOWEST)]);
  t.is(understood(select, { lengths: 'past' }), 'causal past');
  t.is(understood(select), 'causal');
  const added: MaskWriter = (g, s) => add(g, s, part(g, triangle(g, 'float32', 0, -Infinity), g.int(0)));
  t.is(understood(added), 'causal');
  const almost: MaskWriter = (g, s) => add(g, s, part(g, triangle(g, 'float32', 0, -Infinity, 1), g.int(0)));
  t.is(understood(almost), 'right=1');
});

test('queries at the end of the keys, where the graph shows it', (t) => {
  const write: MaskWriter = (g, s) => add(g, s, whereAdded(g, causal(g, past(g)), LOWEST));
  t.is(understood(write, { lengths: 'past' }), 'causal past');
  t.is(understood(write, { lengths: 'self' }), 'causal');
  t.regex(understood(write, { lengths: 'cross' }), /^causal end/);
  const range: MaskWriter = (g, s) => {
    const positions = g.op('Range', [past(g), g.keys, g.int(1)]);
    return add(g, s, whereAdded(g, g.op('LessOrEqual', [g.columns(), g.unsqueeze(positions, 0, 1, 3)]), LOWEST));
  };
  t.is(understood(range, { lengths: 'past' }), 'causal past');
});

test('windows', (t) => {
  const distance = (g: GraphWriter) => g.op('Sub', [g.rows(), g.columns()]);
  const keep = (write: (g: GraphWriter) => string) => understood((g, s) => add(g, s, whereAdded(g, write(g), LOWEST)));
  t.is(
    keep((g) => g.op('And', [causal(g), g.op('Less', [distance(g), g.int(6)])])),
    'causal left=5',
  );
  t.is(
    keep((g) => g.op('And', [g.op('Greater', [g.columns(), g.op('Sub', [g.rows(), g.int(6)])]), causal(g)])),
    'causal left=5',
  );
  t.is(
    keep((g) => g.op('LessOrEqual', [g.op('Abs', [distance(g)]), g.int(4)])),
    'left=4 right=4',
  );
  t.is(
    keep((g) => g.op('Not', [g.op('Greater', [g.op('Abs', [distance(g)]), g.int(4)])])),
    'left=4 right=4',
  );
  const both = (g: GraphWriter) => g.op('Max', [distance(g), g.op('Neg', [distance(g)])]);
  t.is(
    keep((g) => g.op('Less', [both(g), g.int(3)])),
    'left=2 right=2',
  );
});

test('padding stays a small boolean tensor, and its fill is kept for rows without keys', (t) => {
  for (const pad of [padding, paddingByFlatIndex, paddingByGatherND]) {
    const keep = (g: GraphWriter) => g.op('And', [causal(g), pad(g)]);
    const small = 'boolean(batch,1,1,queries)';
    t.is(
      understood((g, s) => add(g, s, whereAdded(g, keep(g), LOWEST))),
      `causal fill=${LOWEST} ${small}`,
    );
    t.is(
      understood((g, s) => add(g, s, whereAdded(g, keep(g), -Infinity))),
      `causal ${small}`,
    );
    t.is(
      understood((g, s) => g.op('Where', [keep(g), s, g.float(-1e4)])),
      `causal fill=-10000 ${small}`,
    );
  }
});

test('padding that an exporter expanded to all queries is small again', (t) => {
  const write: MaskWriter = (g, s) => {
    const always = g.op('GreaterOrEqual', [g.rows(), g.int(0)]);
    const shape = g.op(
      'Concat',
      [g.unsqueeze(g.batch, 0), g.ints(1), g.unsqueeze(g.queries, 0), g.unsqueeze(g.keys, 0)],
      {
        axis: 0,
      },
    );
    const all = g.op('Expand', [g.op('And', [always, padding(g)]), shape]);
    return add(g, s, whereAdded(g, all, LOWEST));
  };
  t.is(understood(write, { lengths: 'cross' }), `fill=${LOWEST} boolean(batch,1,1,keys)`);
});

test('a bias is kept apart from the mask that it was added to', (t) => {
  const slopes = (g: GraphWriter) => {
    const positions = g.cast(g.columns(), 'float32');
    return g.op('Mul', [positions, g.tensor('float32', [2, 1, 1], [-0.5, -0.25])]);
  };
  const sum: MaskWriter = (g, s) => add(g, s, g.op('Add', [slopes(g), whereAdded(g, causal(g), LOWEST)]));
  t.is(understood(sum), 'causal additive(1,2,1,queries)');
  const inside: MaskWriter = (g, s) => add(g, s, g.op('Where', [causal(g), slopes(g), g.float(-Infinity)]));
  t.is(understood(inside), 'causal additive(1,2,1,queries)');
  const padded: MaskWriter = (g, s) => {
    const keep = g.op('And', [causal(g), padding(g)]);
    return add(g, add(g, s, slopes(g)), whereAdded(g, keep, LOWEST));
  };
  t.is(understood(padded), `causal fill=${LOWEST} additive(batch,2,1,queries)`);
});

test('clipping brings a sum of two fills back to one', (t) => {
  const sum = (g: GraphWriter) => g.op('Add', [whereAdded(g, causal(g), LOWEST), whereAdded(g, padding(g), LOWEST)]);
  t.is(
    understood((g, s) => add(g, s, sum(g))),
    'additive(batch,1,queries,queries)',
  );
  const clipped: MaskWriter = (g, s) => add(g, s, g.op('Max', [sum(g), g.float(LOWEST)]));
  t.is(understood(clipped), `causal fill=${LOWEST} boolean(batch,1,1,queries)`);
  const clippedScores: MaskWriter = (g, s) => g.op('Max', [add(g, s, sum(g)), g.float(LOWEST)]);
  t.is(understood(clippedScores), `causal fill=${LOWEST} boolean(batch,1,1,queries)`);
});

test('masks stay tensors where the attributes could give another result', (t) => {
  const whole = /^additive\(batch,1,queries,(queries|keys|total)\)$/;
  // A score is still told apart at −10⁹, in rows without keys.
  t.regex(
    understood((g, s) => add(g, s, whereAdded(g, g.op('And', [causal(g), padding(g)]), -1e9))),
    whole,
  );
  // Keys that both masks take out are lower than those that one does.
  const twice: MaskWriter = (g, s) =>
    add(g, add(g, s, whereAdded(g, causal(g), LOWEST)), whereAdded(g, padding(g), LOWEST));
  t.regex(understood(twice), /^additive/);
  // Query 0 at a place that an input gives.
  const unknown: MaskWriter = (g, s) => {
    const start = g.op('ReduceSum', ['attention_mask'], { keepdims: 0 });
    return add(g, s, whereAdded(g, causal(g, start), LOWEST));
  };
  t.regex(understood(unknown), /^(additive|boolean)\(1,1,queries,queries\)$/);
  // Strictly before the query: no attribute says that.
  const strict: MaskWriter = (g, s) => add(g, s, whereAdded(g, g.op('Less', [g.columns(), g.rows()]), -Infinity));
  t.regex(understood(strict), /^(additive|boolean)\(1,1,queries,queries\)$/);
});

test('a mask that repeats the causality which scores were selected by', (t) => {
  // Selected by a triangle, then masked by causality and padding: what both take out is lower than −3.4·10³⁸.
  const write: MaskWriter = (g, s) => {
    const selected = g.op('Where', [causal(g), s, g.float(LOWEST)]);
    return add(g, selected, whereAdded(g, g.op('And', [causal(g), padding(g)]), LOWEST));
  };
  t.is(understood(write), 'causal additive(batch,1,1,queries)');
});

test('what masks nothing goes away', (t) => {
  t.is(
    understood((g, s) => add(g, s, whereAdded(g, g.op('Less', [g.columns(), g.keys]), LOWEST))),
    '',
  );
  t.is(
    understood((g, s) => g.op('Where', [g.op('GreaterOrEqual', [g.rows(), g.int(0)]), s, g.float(-1e4)])),
    '',
  );
});

test('with past keys, attributes that count from key 0 do not meet the operator that counts from the new ones', async (t) => {
  const write: MaskWriter = (g, s) => add(g, s, whereAdded(g, causal(g), LOWEST));
  t.is(understood(write, { lengths: 'past' }), 'causal');
  t.true(await agree(maskedSite(write, { lengths: 'past' }), maskedSite(write, { lengths: 'past' })));
});

async function agree(model: ModelProto, toRewrite: ModelProto): Promise<boolean> {
  rewriteModel(toRewrite);
  const feeds = [makeFeeds('past', { batch: 2, queries: 3, keys: 8 }, Math.random, () => true)];
  const [expected, actual] = [await runAll(model, feeds), await runAll(toRewrite, feeds)];
  const [want, got] = [expected[0]!.data as Float32Array, actual[0]!.data as Float32Array];
  return want.every((x, i) => Math.abs(x - got[i]!) < 1e-5);
}
