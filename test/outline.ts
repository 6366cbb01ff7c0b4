/** Turns pieces of a model's main graph into model-local functions, as exporters that keep modules do. */
import Long from 'long';
import {
  AttributeProto,
  FunctionProto,
  type ModelProto,
  NodeProto,
  OperatorSetIdProto,
  ValueInfoProto,
} from '../graph-rewrite/onnx/proto.js';
import { subgraphs } from '../graph-rewrite/onnx/walk.js';
import type { Choices } from './fuzz/graph.js';

const DOMAIN = 'pieces';

/**
 * Puts random runs of consecutive nodes into functions, so often as given; later ones may hold calls of earlier ones.
 * Attributes of a run's nodes become the call's at times, or the function's defaults.
 */
export function outline(model: ModelProto, choices: Choices, pieces: number): number {
  const graph = model.graph!;
  let made = 0;
  for (let n = 0; n < pieces; n++) {
    const start = choices.below(graph.node.length);
    const length = 1 + choices.below(choices.pick(4, 12, 60));
    const run = graph.node.slice(start, start + length);
    const call = makeFunction(model, run, `Piece${n}`, choices);
    if (!call) continue;
    graph.node.splice(start, run.length, call);
    made++;
  }
  if (made > 0) {
    model.opset_import.push(OperatorSetIdProto.create({ domain: DOMAIN, version: Long.fromNumber(1) }));
    if (Number(model.ir_version) < 10) model.ir_version = Long.fromNumber(10);
  }
  return made;
}

function makeFunction(
  model: ModelProto,
  run: readonly NodeProto[],
  name: string,
  choices: Choices,
): NodeProto | undefined {
  const graph = model.graph!;
  // ONNX Runtime 1.30 finds overloads only where the main graph calls them.
  if (run.some((node) => node.overload || subgraphs(node).length > 0)) return undefined;
  const inside = new Set(run);
  const computed = new Set(run.flatMap((node) => node.output).filter(Boolean));
  const input = [...new Set(run.flatMap(readsOf))].filter((value) => value !== '' && !computed.has(value));
  const outside = new Set(graph.node.filter((node) => !inside.has(node)).flatMap(readsOf));
  for (const output of graph.output) outside.add(output.name ?? '');
  const isNeeded = (value: string) => outside.has(value);
  // At times what nothing reads is returned as well.
  const output = [...computed].filter((value) => isNeeded(value) || choices.rarely(8));
  if (!output.some(isNeeded)) return undefined;
  const rename = new Map([...input, ...computed].map((value, i) => [value, choices.rarely(3) ? `v${i}` : value]));
  const inner = (value: string) => rename.get(value) ?? value;
  const given: AttributeProto[] = [];
  const defaults: AttributeProto[] = [];
  const nodes = run.map((node, i) => {
    const attribute = node.attribute.map((a) => {
      // Not every runtime takes a tensor as a function's attribute.
      if (a.t || a.ref_attr_name || !choices.rarely(3)) return a;
      const named = AttributeProto.create({ ...a, name: `a${i}_${a.name}` });
      (choices.rarely(2) ? defaults : given).push(named);
      return AttributeProto.create({ name: a.name, type: a.type, ref_attr_name: named.name });
    });
    return NodeProto.create({ ...node, attribute, input: node.input.map(inner), output: node.output.map(inner) });
  });
  const overload = choices.rarely(4) ? `o${name}` : '';
  model.functions.push(
    FunctionProto.create({
      name: overload ? 'Overloaded' : name,
      domain: DOMAIN,
      overload,
      input: input.map(inner),
      output: output.map(inner),
      attribute: given.map((a) => a.name ?? ''),
      attribute_proto: defaults,
      node: nodes,
      value_info: graph.value_info.flatMap((info) =>
        computed.has(info.name ?? '') ? [ValueInfoProto.create({ ...info, name: inner(info.name ?? '') })] : [],
      ),
      opset_import: [
        ...model.opset_import.filter((o) => o.domain !== DOMAIN),
        OperatorSetIdProto.create({ domain: DOMAIN, version: Long.fromNumber(1) }),
      ],
    }),
  );
  return NodeProto.create({
    op_type: overload ? 'Overloaded' : name,
    domain: DOMAIN,
    overload,
    name: choices.rarely(3) ? '' : `call${name}`,
    input,
    output: output.map((value) => (isNeeded(value) || choices.rarely(2) ? value : '')),
    attribute: given,
  });
}

function readsOf(node: NodeProto): string[] {
  const inner = subgraphs(node).flatMap((graph) => [
    ...graph.node.flatMap(readsOf),
    ...graph.output.map(({ name }) => name ?? ''),
  ]);
  return [...node.input, ...inner];
}
