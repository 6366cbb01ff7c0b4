/** Visits the parts of a model, wherever the standard allows them. */
import type { AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto } from './proto.js';

/** What a tensor is in the model: an initializer, part of a sparse tensor, or an attribute's value. */
export type TensorRole = 'initializer' | 'sparse' | 'attribute';

export type TensorVisitor = (tensor: TensorProto, role: TensorRole) => void;

/** Calls `visit` for each tensor: initializers, attributes, subgraphs, functions and training graphs. */
export function forEachTensor(model: ModelProto, visit: TensorVisitor): void {
  visitGraph(model.graph, visit);
  for (const training of model.training_info) {
    visitGraph(training.initialization, visit);
    visitGraph(training.algorithm, visit);
  }
  for (const definition of model.functions) {
    visitNodes(definition.node, visit);
    visitAttributes(definition.attribute_proto, visit);
  }
}

function visitGraph(graph: GraphProto | null | undefined, visit: TensorVisitor): void {
  if (graph === null || graph === undefined) return;
  for (const tensor of graph.initializer) visit(tensor, 'initializer');
  for (const tensor of graph.sparse_initializer) visitSparse(tensor, visit);
  visitNodes(graph.node, visit);
}

function visitNodes(nodes: readonly NodeProto[], visit: TensorVisitor): void {
  for (const node of nodes) visitAttributes(node.attribute, visit);
}

function visitAttributes(attributes: readonly AttributeProto[], visit: TensorVisitor): void {
  for (const attribute of attributes) {
    if (attribute.t) visit(attribute.t, 'attribute');
    for (const tensor of attribute.tensors) visit(tensor, 'attribute');
    if (attribute.sparse_tensor) visitSparse(attribute.sparse_tensor, visit);
    for (const tensor of attribute.sparse_tensors) visitSparse(tensor, visit);
    visitGraph(attribute.g, visit);
    for (const graph of attribute.graphs) visitGraph(graph, visit);
  }
}

function visitSparse(tensor: SparseTensorProto, visit: TensorVisitor): void {
  if (tensor.values) visit(tensor.values, 'sparse');
  if (tensor.indices) visit(tensor.indices, 'sparse');
}

/** The graphs in a node's attributes (If, Loop, Scan, SequenceMap). */
export function subgraphs(node: NodeProto): GraphProto[] {
  return node.attribute.flatMap(({ g, graphs }) => (g ? [g, ...graphs] : graphs));
}
