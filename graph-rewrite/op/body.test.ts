import test from 'ava';
import fc from 'fast-check';
import {
  describeProblem,
  drawProblem,
  nodeOf,
  physicalShape,
  runProblem,
  type TestProblem,
} from '../../test/attention-problems.js';
import { OrtFlashError } from '../errors.js';
import { DataType } from '../onnx/proto.js';
import { BLOCKWISE_OPSET, type FunctionVariant, functionFor, overloadName } from './body.js';
import { DEFAULT_ATTRIBUTES } from './definition.js';
import { resolveProblem } from './problem.js';

/** Runs the node with its body in stock ONNX Runtime; says what differs from the reference. */
function runBody(drawn: TestProblem, dynamic: boolean): Promise<string | undefined> {
  const parts = { nodes: [nodeOf(drawn, overloadName(drawn.variant))], functions: [functionFor(drawn.variant)] };
  return runProblem(drawn, parts, dynamic);
}

// Every opset that changes an operator the bodies use, and those that exporters write most.
const OPSETS = [7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 21, 23, 24, 25];

for (const opset of OPSETS) {
  for (const type of ['float32', 'float16'] as const) {
    test.serial(`bodies in opset ${opset}, ${type}, compute what the reference does`, async (t) => {
      await fc.assert(
        fc.asyncProperty(fc.gen(), fc.boolean(), async (pick, dynamic) => {
          const drawn = drawProblem(pick, { opset, type, plain: opset < 9 });
          if (opset < 8 && drawn.variant.hasSink) return;
          let found: string | undefined;
          try {
            found = await runBody(drawn, dynamic);
          } catch (error) {
            found = (error as Error).message;
          }
          if (found !== undefined) throw new Error(`${found}\n${describeProblem(drawn)}`);
        }),
        { numRuns: Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 25), includeErrorInReport: true },
      );
      t.pass();
    });
  }
}

for (const opset of OPSETS.filter((version) => version >= BLOCKWISE_OPSET)) {
  test.serial(`bodies in opset ${opset} compute the same a block of queries at a time`, async (t) => {
    await fc.assert(
      fc.asyncProperty(fc.gen(), fc.boolean(), fc.integer({ min: 1, max: 200 }), async (pick, dynamic, scores) => {
        const drawn = drawProblem(pick, { opset, type: 'float32' });
        const blocks = { scores, leastQueries: scores % 7 === 0 ? 3 : 1 };
        let found: string | undefined;
        try {
          found = await runBody({ ...drawn, variant: { ...drawn.variant, blocks } }, dynamic);
        } catch (error) {
          found = (error as Error).message;
        }
        if (found !== undefined) throw new Error(`${found}\n${describeProblem(drawn)} ${JSON.stringify(blocks)}`);
      }),
      { numRuns: Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 25), includeErrorInReport: true },
    );
    t.pass();
  });
}

const plain: FunctionVariant = {
  attributes: { ...DEFAULT_ATTRIBUTES, scale: 0.125, queryHeads: 12, keyHeads: 12, ...layouts('BS(HD)') },
  elementType: DataType.FLOAT,
  opset: 17,
  known: { headDimension: 64, valueDimension: 64 },
};

function layouts(layout: string) {
  return { queryLayout: layout, keyLayout: layout, valueLayout: layout, outputLayout: layout };
}

function operators(variant: FunctionVariant): string {
  const { node } = functionFor(variant);
  return node
    .map((n) => n.op_type)
    .filter((op) => op !== 'Constant')
    .join(' ');
}

test('a plain attention is what a careful exporter writes, and nothing more', (t) => {
  const view = 'Reshape Transpose';
  t.is(operators(plain), `${view} ${view} ${view} Mul MatMul Softmax MatMul Transpose Reshape`);
  const heads = { ...plain, attributes: { ...plain.attributes, ...layouts('BHSD'), scale: 1 } };
  t.is(operators(heads), 'Transpose MatMul Softmax MatMul');
  const grouped = { ...heads, attributes: { ...heads.attributes, keyHeads: 4 } };
  t.is(operators(grouped), 'Transpose Reshape MatMul Softmax MatMul Reshape');
  const causal = { ...heads, attributes: { ...heads.attributes, isCausal: true } };
  t.is(
    operators(causal),
    'Transpose MatMul Shape Gather Range Shape Gather Range Unsqueeze Add Less Where Add Softmax MatMul',
    'no row of it can be empty',
  );
  const mask = { kind: 'additive', rank: 4, mayBeShorter: false, mayEmptyRows: false } as const;
  t.is(operators({ ...heads, mask }), 'Transpose MatMul Add Softmax MatMul');
});

// ONNX Runtime does not load a model in which a Reshape to a computed shape is followed by a view of fixed sizes.
test('the result is reshaped to fixed sizes where they are known', (t) => {
  for (const outputLayout of ['S(BH)D', 'SB(HD)', '(SB)HD', '(BS)(HD)']) {
    const { node } = functionFor({ ...plain, attributes: { ...plain.attributes, outputLayout } });
    const last = node.at(-1)!;
    t.is(last.op_type, 'Reshape', outputLayout);
    t.is(node.find((n) => n.output[0] === last.input[1])?.op_type, 'Constant', outputLayout);
  }
});

// The CUDA provider's is a finite number where all values are −∞, which no test on a CPU can show.
test('no maximum is taken of values that may be −∞', (t) => {
  for (const opset of OPSETS) {
    const variant = {
      ...plain,
      opset,
      mask: { kind: 'additive', rank: 4, mayBeShorter: false, mayEmptyRows: true },
    } as const;
    const { node } = functionFor(variant);
    const reduced = node.filter(({ op_type }) => op_type === 'ReduceMax').map(({ input }) => input[0]!);
    t.true(reduced.length > 0);
    for (const name of reduced) t.is(node.find(({ output }) => output[0] === name)?.op_type, 'Cast', `opset ${opset}`);
  }
});

// All but no keys at all, with grouped heads and a mask: ONNX Runtime then refuses to infer a size.
test('sequences of length zero pass', async (t) => {
  for (const layout of ['BS(HD)', 'BHSD']) {
    for (const [keyHeads, isCausal, queries, keys] of [
      [4, false, 0, 3],
      [2, true, 0, 3],
      [4, true, 2, 0],
      [2, false, 2, 0],
    ] as const) {
      const attributes = { ...DEFAULT_ATTRIBUTES, ...layouts(layout), queryHeads: 4, keyHeads, isCausal, scale: 0.5 };
      const tensor = (H: number, S: number) => {
        const shape = physicalShape(layout, { B: 1, H, S, D: 8 });
        return { type: 'float32' as const, shape, data: new Float32Array(H * S * 8).fill(0.5) };
      };
      const tensors = { Q: tensor(4, queries), K: tensor(keyHeads, keys), V: tensor(keyHeads, keys) };
      const variant = {
        attributes,
        elementType: DataType.FLOAT,
        opset: 17,
        known: { headDimension: 8, valueDimension: 8 },
      };
      const problem = resolveProblem(attributes, tensors);
      for (const part of [{}, { blocks: { scores: 16, leastQueries: 1 } }]) {
        const found = await runBody({ attributes, tensors, variant: { ...variant, ...part }, problem }, true);
        t.is(found, undefined, `${layout} ${keyHeads} ${isCausal} ${queries} ${keys} ${JSON.stringify(part)}`);
      }
    }
  }
});

test('equal variants have one name, and different ones have different names', (t) => {
  t.is(overloadName(plain), 'float32 opset17 BS(HD) scale=0.125 q_num_heads=12 kv_num_heads=12 sizes=?,?,64,64');
  const rewritten = { ...plain, attributes: { ...plain.attributes, scale: Math.fround(0.3) } };
  t.is(overloadName(rewritten), overloadName({ ...rewritten, attributes: { ...rewritten.attributes, scale: 0.3 } }));
  const mask = { kind: 'boolean', rank: 2, mayBeShorter: true, mayEmptyRows: true } as const;
  const variants: FunctionVariant[] = [
    plain,
    rewritten,
    { ...plain, opset: 18 },
    { ...plain, mask },
    { ...plain, mask: { ...mask, rank: 3 } },
    { ...plain, mask: { ...mask, mayEmptyRows: false } },
    { ...plain, mask: { ...mask, kind: 'additive' } },
    { ...plain, hasPast: true },
    { ...plain, hasSink: true },
    { ...plain, blocks: { scores: 4096, leastQueries: 1 } },
    { ...plain, blocks: { scores: 4096, leastQueries: 2 } },
    { ...plain, blocks: { scores: 8192, leastQueries: 1 } },
    { ...plain, hasLengths: true },
    { ...plain, elementType: DataType.FLOAT16 },
    { ...plain, known: {} },
    { ...plain, attributes: { ...plain.attributes, outputLayout: 'BHSD' } },
    { ...plain, attributes: { ...plain.attributes, maskedValue: -1e4 } },
  ];
  t.is(new Set(variants.map(overloadName)).size, variants.length);
});

test('what an opset or a variant cannot say is refused', (t) => {
  const refuse = (variant: FunctionVariant, code: string, message: RegExp) =>
    t.throws(() => functionFor(variant), { instanceOf: OrtFlashError, code, message });
  refuse({ ...plain, opset: 6 }, 'unsupported', /opset 6/);
  refuse({ ...plain, opset: 8, attributes: { ...plain.attributes, isCausal: true } }, 'unsupported', /causality/);
  refuse({ ...plain, opset: 7, hasSink: true }, 'unsupported', /sink/);
  refuse({ ...plain, opset: 10, blocks: { scores: 4096, leastQueries: 1 } }, 'unsupported', /Loop/);
  refuse({ ...plain, elementType: DataType.INT64 }, 'invalid-argument', /int64/);
  const slice = { ...plain.attributes, ...layouts('BS(HD@0/768)'), outputLayout: 'BS(HD)' };
  refuse({ ...plain, attributes: slice, known: {} }, 'invalid-argument', /head dimension/);
  refuse(
    { ...plain, attributes: { ...plain.attributes, outputLayout: 'BS([0/3]HD)' } },
    'invalid-argument',
    /no output/,
  );
  refuse({ ...plain, known: {}, attributes: { ...plain.attributes, queryHeads: 0 } }, 'invalid-argument', /heads/);
});
