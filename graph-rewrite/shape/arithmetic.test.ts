/** Random arithmetic on sizes, as graphs: what is inferred of every value against what ONNX Runtime computes. */
import test from 'ava';
import fc from 'fast-check';
import type { TestTensor } from '../../models/corpus.js';
import { Model } from '../graph/graph.js';
import { encodeModel } from '../onnx/codec.js';
import { Inference } from './inference.js';
import { contradictions, openWithAllOutputs, run } from './testing/agreement.js';
import { ints, modelProto, type NodeText } from './testing/build.js';

const INTEGER = ['Add', 'Sub', 'Mul', 'Max', 'Min'];
const UNARY = ['Neg', 'Abs', 'Sign'];
const COMPARISON = ['Equal', 'Less', 'Greater', 'LessOrEqual', 'GreaterOrEqual'];
const LOGICAL = ['And', 'Or', 'Xor'];

/** One random step: an operator and where its operands are among the values so far. */
const step = fc.record({
  op: fc.constantFrom(
    ...INTEGER,
    ...UNARY,
    ...COMPARISON,
    ...LOGICAL,
    'Not',
    'Where',
    'Cast',
    'Div',
    'Mod',
    'fmod',
    'Slice',
  ),
  a: fc.nat(),
  b: fc.nat(),
  c: fc.nat(),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

/** Nodes on vectors of three integers that begin with the shape of x; no divisor is ever 0, which would end the process. */
function graphOf(steps: readonly Step[]) {
  const integers = ['shape', 'small', 'mixed'];
  const flags: string[] = [];
  const nodes: NodeText[] = [{ op: 'Shape', inputs: ['x'], outputs: ['shape'] }];
  const pick = (from: readonly string[], at: number) => from[at % from.length]!;
  for (const [i, { op, a, b, c }] of steps.entries()) {
    const name = `v${i}`;
    const [x, y] = [pick(integers, a), pick(integers, b)];
    const add = (kind: string[], node: Omit<NodeText, 'outputs'>) => {
      nodes.push({ ...node, outputs: [name] });
      kind.push(name);
    };
    if (INTEGER.includes(op)) add(integers, { op, inputs: [x, y] });
    else if (UNARY.includes(op)) add(integers, { op, inputs: [x] });
    else if (COMPARISON.includes(op)) add(flags, { op, inputs: [x, y] });
    else if (op === 'Div' || op === 'Mod') add(integers, { op, inputs: [x, c % 2 === 0 ? 'divisor' : 'negative'] });
    else if (op === 'fmod') add(integers, { op: 'Mod', inputs: [x, 'divisor'], attributes: { fmod: 1 } });
    else if (flags.length === 0) continue;
    else if (LOGICAL.includes(op)) add(flags, { op, inputs: [pick(flags, a), pick(flags, b)] });
    else if (op === 'Not') add(flags, { op, inputs: [pick(flags, a)] });
    else if (op === 'Where') add(integers, { op, inputs: [pick(flags, c), x, y] });
    else if (op === 'Cast') add(integers, { op, inputs: [pick(flags, a)], attributes: { to: 7 } });
    else continue;
  }
  const cut = slices(steps, integers);
  return {
    nodes: [...nodes, ...cut.nodes],
    outputs: [...new Set([...nodes.slice(1).flatMap((n) => n.outputs), ...cut.outputs])],
  };
}

/** Slices of a vector as long as x's first axis, between computed positions. */
function slices(steps: readonly Step[], integers: readonly string[]) {
  const nodes: NodeText[] = [];
  const outputs: string[] = [];
  for (const [i, { op, a, b, c }] of steps.entries()) {
    if (op !== 'Slice') continue;
    const at = (source: number, name: string) =>
      nodes.push({ op: 'Gather', inputs: [integers[source % integers.length]!, `index${c % 3}`], outputs: [name] });
    at(a, `start${i}`);
    at(b, `end${i}`);
    nodes.push({ op: 'Slice', inputs: ['x', `start${i}`, `end${i}`, 'index0', `step${c % 4}`], outputs: [`cut${i}`] });
    outputs.push(`cut${i}`);
  }
  return { nodes, outputs };
}

const CONSTANTS = [
  ints('small', [1, 2, 3]),
  ints('mixed', [-1, 0, 5]),
  ints('divisor', [2, 3, 4]),
  ints('negative', [-2, 3, -5]),
  ...[0, 1, 2].map((at) => ints(`index${at}`, [at])),
  ...[1, 2, -1, -3].map((size, at) => ints(`step${at}`, [size])),
];

const sizes = fc.tuple(fc.nat({ max: 9 }), fc.nat({ max: 9 }), fc.nat({ max: 9 }));

test('arithmetic on sizes is what it computes, whatever the sizes', async (t) => {
  let followed = 0;
  let values = 0;
  const property = fc.asyncProperty(
    fc.array(step, { minLength: 3, maxLength: 14 }),
    fc.array(sizes, { minLength: 3, maxLength: 3 }),
    async (steps, runs) => {
      const { nodes, outputs } = graphOf(steps);
      fc.pre(outputs.length > 0);
      const proto = modelProto(
        { inputs: { x: ['float32', ['a', 'b', 'c']] }, constants: CONSTANTS, nodes, outputs },
        17,
      );
      const model = new Model(proto);
      const inference = new Inference(model);
      const session = await openWithAllOutputs(encodeModel(proto), model.graph.outputs);
      try {
        for (const dims of runs) {
          const x: TestTensor = {
            name: 'x',
            type: 'float32',
            dims,
            data: new Float32Array(dims[0] * dims[1] * dims[2]),
          };
          const results = await run(session, [x]);
          const bindings = new Map(['a', 'b', 'c'].map((name, axis) => [name, dims[axis]!]));
          for (const value of model.graph.outputs) {
            const facts = inference.of(value);
            values++;
            if ([...(facts.elements ?? []), ...facts.shape!].every((e) => e.evaluate(bindings) !== undefined))
              followed++;
            const wrong = contradictions(facts, results[value.name]!, new Map(bindings));
            if (wrong.length > 0)
              throw new Error(`sizes ${dims}: ${value.name} (${value.producer!.opType}): ${wrong[0]}`);
          }
        }
      } finally {
        await session.release();
      }
    },
  );
  await fc.assert(property, { numRuns: Number(process.env.ORT_FLASH_SHAPE_RUNS ?? 150) });
  t.log(`${((100 * followed) / values).toFixed(1)} % of ${values} values followed`);
  t.true(followed > 0.8 * values);
});
