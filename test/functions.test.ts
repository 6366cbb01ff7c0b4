/** Attention in and around model-local functions, as exporters write them that keep a model's modules. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import Long from 'long';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import {
  AttributeProto,
  AttributeType,
  FunctionProto,
  GraphProto,
  type ModelProto,
  NodeProto,
  OperatorSetIdProto,
  ValueInfoProto,
} from '../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import type { RewriteReport } from '../graph-rewrite/report.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { bundledModels, readTestData } from '../models/corpus.js';
import { Choices, dims, FuzzGraph } from './fuzz/graph.js';
import { judge } from './fuzz/run.js';
import { outline } from './outline.js';
import { relativeDifference, runModel } from './runtime.js';

for (const example of bundledModels().filter((model) => !model.unrunnableOnCpu)) {
  test(`${example.name}: cut into random functions, it is fused as the whole was`, async (t) => {
    const bytes = readFileSync(example.modelFile);
    const data = readTestData(example.dataFolder);
    const numbers = fc.array(fc.nat({ max: 10_000 }), { minLength: 4000, maxLength: 4000 });
    const property = fc.asyncProperty(numbers, fc.integer({ min: 1, max: 12 }), async (choices, pieces) => {
      const model = decodeModel(bytes);
      outline(model, new Choices(choices), pieces);
      const before = encodeModel(model);
      const { sites } = rewriteModel(model);
      t.is(sites.filter((site) => site.fused).length, example.sites, JSON.stringify(sites.filter((s) => !s.fused)));
      const after = encodeModel(model);
      if (example.sites === 0) t.deepEqual(after, before);
      const again = decodeModel(after);
      rewriteModel(again);
      t.deepEqual(encodeModel(again), after, 'rewriting is idempotent');
      const [original, rewritten] = [await runModel(before, data.inputs), await runModel(after, data.inputs)];
      for (const [i, expected] of data.outputs.entries()) {
        t.true(relativeDifference(original[i]!.numbers, expected) <= example.tolerance, 'the functions themselves');
        t.true(relativeDifference(rewritten[i]!.numbers, expected) <= example.tolerance, `${expected.name} differs`);
      }
    });
    await fc.assert(property, { numRuns: 3, seed: 20, endOnFailure: true });
  });
}

const SIZES = new Map(Object.entries({ h: 2, d: 4, e: 4 }));
const imports = (version: number) => OperatorSetIdProto.create({ domain: '', version: Long.fromNumber(version) });
const LOCAL = OperatorSetIdProto.create({ domain: 'local', version: Long.fromNumber(1) });

interface Definition {
  readonly name: string;
  readonly input: string[];
  readonly output: string[];
  readonly node: NodeProto[];
  readonly attribute?: string[];
  readonly attribute_proto?: AttributeProto[];
}

function define(definition: Definition, opset = 17): FunctionProto {
  return FunctionProto.create({ domain: 'local', opset_import: [imports(opset), LOCAL], ...definition });
}

const call = (name: string, inputs: string[], outputs: string[], attributes = {}) =>
  makeNode(name, inputs, outputs, attributes, 'local');
const constant = (name: string, values: number[]) =>
  makeNode('Constant', [], [name], {
    value: makeTensor('', 'float32', values.length === 1 ? [] : [values.length], values),
  });
const reference = (name: string, of: string, type: AttributeType) =>
  AttributeProto.create({ name, type, ref_attr_name: of });
const scalarAttribute = (name: string, f: number) => AttributeProto.create({ name, type: AttributeType.FLOAT, f });

/** Inputs Q (b, q, h·d), K (b, k, h·d) and V (b, k, h·e), and the functions given. */
class Calls {
  readonly graph: FuzzGraph;
  readonly functions: FunctionProto[];

  constructor(functions: FunctionProto[], opset = 17) {
    this.functions = functions;
    this.graph = new FuzzGraph(opset, 'float32', new Map(SIZES), new Choices([]), false);
    for (const [name, shape] of [
      ['Q', 'b q hd'],
      ['K', 'b k hd'],
      ['V', 'b k he'],
    ] as const)
      this.graph.input(name, 'float32', dims(shape));
  }

  /** Heads of an input, (b, h, s, d). */
  heads(name: string): string {
    const sequence = name === 'Q' ? 'q' : 'k';
    const width = name === 'V' ? 'e' : 'd';
    const whole = dims(`b ${sequence} h${width}`);
    return this.graph.rearrange({ name, dims: whole }, dims(`b h ${sequence} ${width}`)).name;
  }

  call(name: string, inputs: string[], attributes = {}, outputs = 1): string {
    const output = `${name}_${this.graph.nodes.length}`;
    const names = Array.from({ length: outputs }, (_, i) => (i === 0 ? output : `${output}_${i}`));
    this.graph.nodes.push(call(name, inputs, names, attributes));
    return output;
  }

  model(): ModelProto {
    const model = this.graph.model();
    model.functions.push(...this.functions);
    model.opset_import.push(LOCAL);
    if (Number(model.ir_version) < 10) model.ir_version = Long.fromNumber(10);
    return model;
  }

  /** The model is rewritten, compared in ONNX Runtime with what it was, and its report given. */
  async fused(): Promise<{ report: RewriteReport; model: ModelProto; outcome: string }> {
    const rest = { lengths: 'cross', oddities: [], mayEmptyRows: false, isCoarse: false, keepsAll: false } as const;
    const judged = await judge({ model: this.model(), inputs: this.graph.inputs, sizes: SIZES, ...rest });
    const model = this.model();
    const report = rewriteModel(model);
    return { report, model, outcome: 'reason' in judged ? `${judged.kind}: ${judged.reason}` : judged.kind };
  }
}

/** softmax(scale · q kᵀ) v of (b, h, s, d), the scale an attribute with a default. */
const attend = define({
  name: 'Attend',
  input: ['q', 'k', 'v', 'least'],
  output: ['y', 'p'],
  attribute_proto: [scalarAttribute('scale', 0.5)],
  node: [
    makeNode('Transpose', ['k'], ['kt'], { perm: [0, 1, 3, 2] }),
    makeNode('MatMul', ['q', 'kt'], ['s']),
    NodeProto.create({
      op_type: 'Constant',
      output: ['factor'],
      attribute: [reference('value_float', 'scale', AttributeType.FLOAT)],
    }),
    makeNode('Mul', ['s', 'factor'], ['scaled']),
    makeNode('Softmax', ['scaled'], ['p'], { axis: -1 }),
    // An input that may be left out.
    makeNode('Clip', ['v', 'least'], ['clipped']),
    makeNode('MatMul', ['p', 'clipped'], ['y']),
    // What only an output that no call takes needs.
    makeNode('Identity', ['p'], ['unused']),
  ],
});

/** Layer normalisation without parameters, of the last axis. */
const normalise = define({
  name: 'Normalise',
  input: ['x'],
  output: ['y'],
  node: [
    makeNode('ReduceMean', ['x'], ['mean'], { axes: [-1] }),
    makeNode('Sub', ['x', 'mean'], ['centred']),
    makeNode('Mul', ['centred', 'centred'], ['squares']),
    makeNode('ReduceMean', ['squares'], ['variance'], { axes: [-1] }),
    constant('epsilon', [1e-5]),
    makeNode('Add', ['variance', 'epsilon'], ['safe']),
    makeNode('Sqrt', ['safe'], ['deviation']),
    makeNode('Div', ['centred', 'deviation'], ['y']),
  ],
});

test('one function called with different attributes and shapes; others stay calls', async (t) => {
  const g = new Calls([attend, normalise]);
  const first = g.call('Attend', [g.heads('Q'), g.heads('K'), g.heads('V')], { scale: { float: 0.25 } }, 2);
  const second = g.call('Attend', [g.heads('K'), g.heads('K'), g.call('Normalise', [g.heads('V')])], {}, 2);
  g.graph.output(first);
  g.graph.output(g.call('Normalise', [second]));
  const { report, model, outcome } = await g.fused();
  t.is(outcome, 'fused');
  t.deepEqual(
    report.sites.map((site) => site.attributes?.scale),
    [0.25, 0.5],
  );
  const called = model.graph!.node.filter((node) => node.domain === 'local').map((node) => node.op_type);
  t.deepEqual(called, ['Normalise', 'Normalise']);
  t.deepEqual(
    model.functions.filter((f) => f.domain === 'local').map((f) => f.name),
    ['Normalise'],
  );
});

test('attention spread over functions: softmax, scores and mask each in one of their own', async (t) => {
  const scores = define({
    name: 'Scores',
    input: ['q', 'k'],
    output: ['s'],
    node: [makeNode('Transpose', ['k'], ['kt'], { perm: [0, 1, 3, 2] }), makeNode('MatMul', ['q', 'kt'], ['s'])],
  });
  const softmax = define({
    name: 'Softmax',
    input: ['x'],
    output: ['y'],
    attribute: ['axis'],
    node: [
      NodeProto.create({
        op_type: 'Softmax',
        input: ['x'],
        output: ['y'],
        attribute: [reference('axis', 'axis', AttributeType.INT)],
      }),
    ],
  });
  const causal = define({
    name: 'Causal',
    input: ['s'],
    output: ['masked'],
    node: [
      makeNode('Shape', ['s'], ['shape'], { start: 2 }),
      constant('one', [1]),
      makeNode('Expand', ['one', 'shape'], ['ones']),
      makeNode('Trilu', ['ones'], ['lower'], { upper: 0 }),
      makeNode('Cast', ['lower'], ['keep'], { to: 9 }),
      constant('out', [Number.NEGATIVE_INFINITY]),
      makeNode('Where', ['keep', 's', 'out'], ['masked']),
    ],
  });
  const outer = define({
    name: 'Weights',
    input: ['q', 'k'],
    output: ['p'],
    node: [
      call('Scores', ['q', 'k'], ['s']),
      call('Causal', ['s'], ['m']),
      call('Softmax', ['m'], ['p'], { axis: -1 }),
    ],
  });
  const g = new Calls([scores, softmax, causal, outer]);
  const p = g.call('Weights', [g.heads('Q'), g.heads('K')]);
  g.graph.output(g.graph.op('MatMul', [p, g.heads('V')]));
  const { report, model, outcome } = await g.fused();
  t.is(outcome, 'fused');
  t.is(report.sites[0]!.mask?.causal, true);
  t.is(model.functions.filter((f) => f.domain === 'local').length, 0);
});

test('an If in a function whose condition the shapes decide, as torch_lib guards scalars', async (t) => {
  const branch = (op: string, inputs: string[], name: string) =>
    GraphProto.create({
      name,
      node: [makeNode(op, inputs, [`${name}_out`])],
      output: [ValueInfoProto.create({ name: `${name}_out` })],
    });
  const guarded = (condition: string, value: string, result: string, scalar: string) => {
    const node = makeNode('If', [condition], [result]);
    const graphs = {
      then_branch: branch(scalar, [value, 'zero'], `${result}_then`),
      else_branch: branch('Identity', [value], `${result}_else`),
    };
    for (const [name, g] of Object.entries(graphs))
      node.attribute.push(AttributeProto.create({ name, type: AttributeType.GRAPH, g }));
    return node;
  };
  const softmax = define({
    name: 'aten_softmax',
    input: ['self'],
    output: ['result'],
    node: [
      makeNode('Shape', ['self'], ['shape']),
      makeNode('Size', ['shape'], ['rank']),
      makeNode('Constant', [], ['none'], { value: makeTensor('', 'int64', [], [0]) }),
      makeNode('Constant', [], ['zero'], { value: makeTensor('', 'int64', [1], [0]) }),
      makeNode('Equal', ['rank', 'none'], ['is_scalar']),
      guarded('is_scalar', 'self', 'vector', 'Unsqueeze'),
      makeNode('Softmax', ['vector'], ['soft'], { axis: -1 }),
      guarded('is_scalar', 'soft', 'result', 'Squeeze'),
    ],
  });
  const g = new Calls([softmax]);
  const k = g.graph.op('Transpose', [g.heads('K')], { perm: [0, 1, 3, 2] });
  const scores = g.graph.op('Mul', [g.graph.op('MatMul', [g.heads('Q'), k]), g.graph.float(0.5)]);
  g.graph.output(g.graph.op('MatMul', [g.call('aten_softmax', [scores]), g.heads('V')]));
  const { model, outcome } = await g.fused();
  t.is(outcome, 'fused');
  t.false(model.graph!.node.some((node) => ['If', 'Equal', 'Softmax'].includes(node.op_type ?? '')));
});

test('a function written for an opset in which its operators are the same', async (t) => {
  const g = new Calls([FunctionProto.create({ ...attend, opset_import: [imports(15)] })]);
  g.graph.output(g.call('Attend', [g.heads('Q'), g.heads('K'), g.heads('V')], {}, 2));
  t.is((await g.fused()).outcome, 'fused');
});

/** What a model's rewriting refuses, where that leaves its bytes as they were. */
function refusals(model: ModelProto): (string | undefined)[] | 'changed' {
  const before = encodeModel(model);
  const { sites } = rewriteModel(model);
  return Buffer.compare(before, encodeModel(model)) === 0 ? sites.map((site) => site.refusal?.reason) : 'changed';
}

test('what cannot stand in the place of its call stays, with the reason', (t) => {
  const refused = (f: FunctionProto, inputs: string[], opset = 17) => {
    const g = new Calls([f], opset);
    g.graph.output(g.call('Attend', [...inputs.map((name) => g.heads(name))]));
    const reasons = refusals(g.model());
    return reasons === 'changed' ? reasons : reasons.join();
  };
  const given = ['Q', 'K', 'V'];
  t.regex(refused(FunctionProto.create({ ...attend, opset_import: [imports(11)] }), given), /Softmax is of version 11/);
  t.regex(
    refused(FunctionProto.create({ ...attend, output: ['y', 'least'] }), given),
    /leaves out an input that it returns/,
  );
  t.regex(
    refused(
      FunctionProto.create({ ...attend, input: ['q', 'k'], node: attend.node.slice(0, 5), output: ['p'] }),
      given,
    ),
    /more inputs than it has/,
  );
});

test('an operator that the model defines anew is the one that ONNX Runtime has', async (t) => {
  const own = FunctionProto.create({
    ...define({ name: 'Softmax', input: ['x'], output: ['y'], node: [makeNode('Neg', ['x'], ['y'])] }),
    domain: '',
  });
  const g = new Calls([own]);
  const k = g.graph.op('Transpose', [g.heads('K')], { perm: [0, 1, 3, 2] });
  const p = g.graph.op('Softmax', [g.graph.op('MatMul', [g.heads('Q'), k])], { axis: -1 });
  g.graph.output(g.graph.op('MatMul', [p, g.heads('V')]));
  t.is((await g.fused()).outcome, 'fused');
});

test('functions made to be hostile end in one typed error or a refusal', (t) => {
  const chain = (length: number, calls: number) =>
    Array.from({ length }, (_, i) =>
      define({
        name: i === 0 ? 'Top' : `F${i}`,
        input: ['x'],
        output: ['y'],
        node:
          i === length - 1
            ? [makeNode('Softmax', ['x'], ['y'], { axis: -1 })]
            : Array.from({ length: calls }, (_, c) =>
                call(`F${i + 1}`, [c === 0 ? 'x' : `y${c - 1}`], [c === calls - 1 ? 'y' : `y${c}`]),
              ),
      }),
    );
  const top = (functions: FunctionProto[]) => {
    const g = new Calls(functions);
    g.graph.output(g.call('Top', ['Q']));
    return g.model();
  };
  // 10⁶ and 2⁶⁰ softmaxes, and functions 20,000 deep.
  t.regex(String(refusals(top(chain(7, 10)))), /more than 200000 nodes/);
  t.regex(String(refusals(top(chain(61, 2)))), /more than 200000 nodes/);
  t.regex(String(refusals(top(chain(20_000, 1)))), /nests functions more than 64 deep/);
  const [f, g] = chain(2, 1) as [FunctionProto, FunctionProto];
  const own = FunctionProto.create({ ...g, node: [call('Top', ['x'], ['y'])] });
  const error = t.throws(() => rewriteModel(top([f, own])), { instanceOf: OrtFlashError });
  t.is(error.code, 'malformed-model');
  // The function that is called is not there: an operator like any other that is not known.
  t.deepEqual(refusals(top([])), []);
  const weights = makeTensor('', 'float32', [2 ** 20], new Float32Array(2 ** 20));
  const heavy = define({
    name: 'F7',
    input: ['x'],
    output: ['y'],
    node: [makeNode('Constant', [], ['w'], { value: weights }), makeNode('Softmax', ['x'], ['y'], { axis: -1 })],
  });
  t.regex(String(refusals(top([...chain(8, 2).slice(0, 7), heavy]))), /more than 268435456 bytes/);
});
