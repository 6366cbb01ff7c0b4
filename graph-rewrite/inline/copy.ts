/** Copies of nodes under other names. Tensors are shared: nothing here writes into them. */
import { OrtFlashError } from '../errors.js';
import {
  type AttributeProto as Attribute,
  AttributeProto,
  GraphProto,
  NodeProto,
  SparseTensorProto,
  TensorProto,
  ValueInfoProto,
} from '../onnx/proto.js';

/** What becomes of names and attributes on the way into a copy. */
export interface Scope {
  /** The name that a value of the copied nodes has outside; `undefined` where the scope does not define it. */
  readonly find: (name: string) => string | undefined;
  /** A name for a value that the copied nodes compute. */
  readonly define: (name: string) => string;
  /** A name for a value of a graph inside them. */
  readonly inner: (name: string) => string;
  /** The attribute that a reference stands for. */
  readonly attribute?: (name: string) => Attribute | undefined;
  /** Name for a node. */
  readonly label: (name: string) => string;
}

/** Every value keeps its name. */
export const SAME: Scope = ((same: (name: string) => string) => ({
  find: same,
  define: same,
  inner: same,
  label: same,
}))((name) => name);

/** Copies nodes in order; each value that one computes is defined in the scope before the next is copied. */
export function copyNodes(nodes: readonly NodeProto[], scope: Scope): NodeProto[] {
  return nodes.map((node) => {
    // Subgraphs see what was computed before, not what the node computes.
    const attribute = node.attribute.flatMap((a) => copyAttribute(a, scope));
    const input = node.input.map((name) => found(name, scope));
    const output = node.output.map((name) => (name === '' ? '' : scope.define(name)));
    const named = node.name ? { name: scope.label(node.name) } : {};
    return NodeProto.create({ ...node, ...named, input, output, attribute });
  });
}

function found(name: string, scope: Scope): string {
  const outer = name === '' ? '' : scope.find(name);
  if (outer === undefined) throw new OrtFlashError('malformed-model', 'a value is not defined', { tensor: name });
  return outer;
}

/** The attribute, or what it refers to; one that refers to nothing given is left out, as the standard has it. */
function copyAttribute(a: Attribute, scope: Scope): Attribute[] {
  if (a.ref_attr_name && scope.attribute) {
    const value = scope.attribute(a.ref_attr_name);
    return value ? [AttributeProto.create({ ...value, name: a.name, ref_attr_name: null })] : [];
  }
  if (!a.g && a.graphs.length === 0) return [a];
  const graphs = a.graphs.map((graph) => copyGraph(graph, scope));
  return [AttributeProto.create({ ...a, g: a.g ? copyGraph(a.g, scope) : null, graphs })];
}

/** Copies a graph; names of its own go through the scope too, so that no two graphs of the model share one. */
export function copyGraph(graph: GraphProto, outer: Scope): GraphProto {
  if (outer === SAME) {
    const value_info = [...graph.value_info];
    return GraphProto.create({
      ...graph,
      node: copyNodes(graph.node, SAME),
      initializer: [...graph.initializer],
      value_info,
    });
  }
  const own = new Map<string, string>();
  const define = (name: string) => {
    const fresh = outer.inner(name);
    own.set(name, fresh);
    return fresh;
  };
  const scope: Scope = { ...outer, find: (name) => own.get(name) ?? outer.find(name), define };
  const rename = (info: ValueInfoProto, name: string) => ValueInfoProto.create({ ...info, name });
  const input = graph.input.map((info) => rename(info, define(info.name ?? '')));
  // An initializer may be an input's default.
  const named = (tensor: TensorProto) => {
    const name = tensor.name ?? '';
    return TensorProto.create({ ...tensor, name: own.get(name) ?? define(name) });
  };
  const initializer = graph.initializer.map(named);
  const sparse_initializer = graph.sparse_initializer.map((sparse) =>
    SparseTensorProto.create({ ...sparse, values: sparse.values && named(sparse.values) }),
  );
  const node = copyNodes(graph.node, scope);
  const output = graph.output.map((info) => rename(info, found(info.name ?? '', scope)));
  const value_info = graph.value_info.flatMap((info) => {
    const name = own.get(info.name ?? '');
    return name === undefined ? [] : [rename(info, name)];
  });
  return GraphProto.create({ ...graph, input, initializer, sparse_initializer, node, output, value_info });
}
