/** If, Loop and Scan: what their subgraphs' outputs have in common over all branches and rounds. */
import type { Graph, Node } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import type { Expression } from './expression.js';
import type { Derived, ValueFacts } from './facts.js';
import type { Call } from './operators/call.js';
import { normalAxis } from './operators/call.js';

/** Infers a subgraph whose inputs have these facts; gives its outputs'. */
export type InferSubgraph = (graph: Graph, inputs: readonly Derived[]) => readonly ValueFacts[];

type Outputs = readonly (Derived | undefined)[];

export function inferControlFlow(call: Call, infer: InferSubgraph): Outputs | undefined {
  switch (call.node.opType) {
    case 'If':
      return inferIf(call, infer);
    case 'Loop':
      return inferLoop(call, infer);
    case 'Scan':
      return inferScan(call, infer);
    default:
      // Graphs of other operators: their inputs are as they state.
      for (const graph of call.node.subgraphs) infer(graph, []);
      return undefined;
  }
}

function subgraph(node: Node, name: string): Graph | undefined {
  const withGraph = node.proto.attribute.filter((a) => a.g);
  return node.subgraphs[withGraph.findIndex((a) => a.name === name)];
}

function inferIf(call: Call, infer: InferSubgraph): Outputs | undefined {
  const branches = [subgraph(call.node, 'then_branch'), subgraph(call.node, 'else_branch')];
  const [yes, no] = branches.map((branch) => branch && infer(branch, []));
  if (!yes || !no) return undefined;
  const taken = call.input(0).uniform;
  if (taken !== undefined) return taken !== 0 ? yes : no;
  return yes.map((facts, i) => no[i] && common(facts, no[i]));
}

/** What holds of a value that is one or the other. */
function common(a: ValueFacts, b: ValueFacts): Derived {
  return {
    type: a.type === b.type ? a.type : undefined,
    shape: commonShape(a.shape, b.shape),
    uniform: a.uniform === b.uniform ? a.uniform : undefined,
    elements: a.elements?.length === b.elements?.length ? commonShape(a.elements, b.elements) : undefined,
  };
}

function commonShape(a: Derived['shape'], b: Derived['shape']): (Expression | undefined)[] | undefined {
  if (!a || !b || a.length !== b.length) return undefined;
  return a.map((size, axis) => {
    const other = b[axis];
    if (!size || !other?.equals(size)) return undefined;
    // Of equal expressions the one of which less is assumed.
    return size.range.lower <= other.range.lower ? size : other;
  });
}

const COUNTER: Derived = { type: DataType.INT64, shape: [] };
const CONDITION: Derived = { type: DataType.BOOL, shape: [] };

function inferLoop(call: Call, infer: InferSubgraph): Outputs | undefined {
  const body = subgraph(call.node, 'body');
  if (!body) return undefined;
  const initial = call.inputs.slice(2);
  const { carried, outputs } = steady(initial, (states) => infer(body, [COUNTER, CONDITION, ...states]).slice(1));
  const trips = call.elements(0)?.[0];
  // A condition may end the loop early; without one (or with one that is always true) the trip count is the length.
  const everyTrip = !call.has(1) && trips !== undefined && trips.range.lower >= 0;
  const length = everyTrip ? trips : undefined;
  const scanned = outputs
    .slice(carried.length)
    .map(({ type, shape }) => ({ type, shape: shape && [length, ...shape] }));
  return [...carried, ...scanned];
}

function inferScan(call: Call, infer: InferSubgraph): Outputs | undefined {
  const body = subgraph(call.node, 'body');
  if (!body || call.opset < 9) return undefined;
  const scanCount = call.int('num_scan_inputs', 0);
  const stateCount = call.inputs.length - scanCount;
  const axes = call.ints('scan_input_axes');
  let length: Expression | undefined;
  const slices = call.inputs.slice(stateCount).map((facts, i): Derived => {
    const axis = facts?.shape && normalAxis(axes?.[i] ?? 0, facts.shape.length);
    if (axis === undefined) return { type: facts?.type };
    length ??= facts!.shape![axis];
    return { type: facts!.type, shape: facts!.shape!.filter((_, a) => a !== axis) };
  });
  const { carried, outputs } = steady(call.inputs.slice(0, stateCount), (states) =>
    infer(body, [...states, ...slices]),
  );
  const outputAxes = call.ints('scan_output_axes');
  const scanned = outputs.slice(stateCount).map(({ type, shape }, i) => {
    const at = shape && normalAxis(outputAxes?.[i] ?? 0, shape.length + 1);
    return { type, shape: at === undefined ? undefined : [...shape!.slice(0, at), length, ...shape!.slice(at)] };
  });
  return [...carried, ...scanned];
}

/**
 * Facts of carried values that hold in every round: those of the initial values, weakened until a round keeps them.
 * Sizes that change from round to round end up unknown.
 */
function steady(
  initial: readonly (ValueFacts | undefined)[],
  round: (states: readonly Derived[]) => readonly ValueFacts[],
): { carried: Derived[]; outputs: readonly ValueFacts[] } {
  let carried = initial.map((facts): Derived => ({ type: facts?.type, shape: facts?.shape }));
  for (let attempt = 0; attempt < 3; attempt++) {
    const outputs = round(carried);
    const next = carried.map(({ type, shape }, i) => ({ type, shape: commonShape(shape, outputs[i]?.shape) }));
    const same = next.every((n, i) => n.shape === carried[i]!.shape || keepsAll(carried[i]!.shape, n.shape));
    carried = next;
    if (same) return { carried, outputs };
  }
  carried = carried.map(({ type }) => ({ type }));
  return { carried, outputs: round(carried) };
}

/** Whether no size that was known has been lost. */
function keepsAll(before: Derived['shape'], after: Derived['shape']): boolean {
  return before === undefined || (after !== undefined && before.every((size, axis) => !size || after[axis]));
}
