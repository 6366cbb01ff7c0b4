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
/** A body runs only where the condition holds. */
const CONDITION: Derived = { type: DataType.BOOL, shape: [], uniform: 1 };

function inferLoop(call: Call, infer: InferSubgraph): Outputs | undefined {
  const body = subgraph(call.node, 'body');
  if (!body) return undefined;
  const { carried, outputs } = steady(
    call.inputs.slice(2),
    (states) => infer(body, [COUNTER, CONDITION, ...states]),
    1,
  );
  const trips = call.elements(0)?.[0];
  // The trip count is the length, unless a condition may end the loop early.
  const endless = !call.has(1) || (call.input(1).uniform === 1 && outputs[0]?.uniform === 1);
  const length = endless && trips !== undefined && trips.range.lower >= 0 ? trips : undefined;
  const scanned = outputs
    .slice(1 + carried.length)
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
  const states = call.inputs.slice(0, stateCount);
  const { carried, outputs } = steady(states, (current) => infer(body, [...current, ...slices]), 0);
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
 * @param first where the carried values begin among a round's outputs
 */
function steady(
  initial: readonly (ValueFacts | undefined)[],
  round: (states: readonly Derived[]) => readonly ValueFacts[],
  first: number,
): { carried: Derived[]; outputs: readonly ValueFacts[] } {
  let carried = initial.map((facts): Derived => ({ type: facts?.type, shape: facts?.shape }));
  for (let attempt = 0; attempt < 3; attempt++) {
    const outputs = round(carried);
    const next = carried.map(({ type, shape }, i) => ({ type, shape: commonShape(shape, outputs[first + i]?.shape) }));
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
