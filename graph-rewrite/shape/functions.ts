/** Calls of model-local functions, as graphs with the call's attributes filled in. */
import { Graph, type Model, type Node } from '../graph/graph.js';
import { AttributeProto, type FunctionProto, GraphProto, NodeProto, ValueInfoProto } from '../onnx/proto.js';

/** A function's body for one call. */
export interface FunctionBody {
  readonly graph: Graph;
  readonly opset: (domain: string) => number;
  /** Tells apart the unknowns of different calls. */
  readonly prefix: string;
}

/** Nodes of function bodies are inferred anew for every call, up to this many in all. */
const MOST_NODES = 20_000;

/** The functions that a model defines. */
export class FunctionTable {
  readonly #model: Model;
  readonly #functions = new Map<string, FunctionProto>();
  #nodes = 0;
  #calls = 0;

  constructor(model: Model) {
    this.#model = model;
    for (const f of model.proto.functions) this.#functions.set(keyOf(f.domain, f.name, f.overload), f);
  }

  /** The body for a node that calls a function; undefined where it calls none, or too much has been inferred. */
  find(node: Node): FunctionBody | undefined {
    if (this.#functions.size === 0) return undefined;
    const { domain, op_type, overload } = node.proto;
    const called = this.#functions.get(keyOf(domain, op_type, overload));
    if (!called || this.#nodes + called.node.length > MOST_NODES) return undefined;
    this.#nodes += called.node.length;
    this.#calls++;
    return {
      graph: new Graph(bodyGraph(called, node), this.#model, undefined),
      opset: (of) => versionOf(called, of) ?? this.#model.opset(of),
      prefix: `{call ${this.#calls}}`,
    };
  }
}

function keyOf(domain: string | null, name: string | null, overload: string | null): string {
  return `${domain === 'ai.onnx' ? '' : (domain ?? '')}:${name ?? ''}:${overload ?? ''}`;
}

function versionOf(called: FunctionProto, domain: string): number | undefined {
  const match = called.opset_import.find((o) => (o.domain === 'ai.onnx' ? '' : (o.domain ?? '')) === domain);
  return match?.version?.toNumber();
}

function bodyGraph(called: FunctionProto, node: Node): GraphProto {
  const given = new Map<string, AttributeProto>();
  for (const attribute of called.attribute_proto) given.set(attribute.name ?? '', attribute);
  for (const attribute of node.proto.attribute) given.set(attribute.name ?? '', attribute);
  const names = (list: readonly string[]) => list.map((name) => ValueInfoProto.create({ name }));
  return GraphProto.create({
    node: called.node.map((n) => withAttributes(n, given)),
    input: names(called.input),
    output: names(called.output),
    value_info: called.value_info,
  });
}

/** The node with references to the call's attributes replaced; one whose attribute is not given is left out. */
function withAttributes(node: NodeProto, given: ReadonlyMap<string, AttributeProto>): NodeProto {
  const attribute = node.attribute.flatMap((a) => {
    if (a.g) return [AttributeProto.create({ ...a, g: withinGraph(a.g, given) })];
    if (!a.ref_attr_name) return [a];
    const value = given.get(a.ref_attr_name);
    return value ? [AttributeProto.create({ ...value, name: a.name })] : [];
  });
  return NodeProto.create({ ...node, attribute });
}

function withinGraph(graph: GraphProto, given: ReadonlyMap<string, AttributeProto>): GraphProto {
  return GraphProto.create({ ...graph, node: graph.node.map((n) => withAttributes(n, given)) });
}
