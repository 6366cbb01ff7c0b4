/**
 * Structural rules of the ONNX standard (docs/IR.md) that everything after reading relies on. Linear in the model's
 * size; tensor data is measured, not decoded. Operators' own rules are left to ONNX Runtime.
 *
 * Where exporters are known to break a rule that nothing here needs (node names that repeat, values of an inner graph
 * that hide outer ones), the model is let through.
 */
import Long from 'long';
import { type ErrorPlace, OrtFlashError } from '../errors.js';
import type { FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto } from './proto.js';
import { checkTensor } from './tensor.js';
import { forEachTensor, subgraphs } from './walk.js';

/**
 * Checks a model's structure.
 * @throws OrtFlashError `malformed-model` (or `external-data` for a reference to a data file) with the node's and the
 *   tensor's name, at the first rule that is broken:
 *   - it has an IR version, a graph, and an import for each operator set that its nodes use, none of them twice
 *   - every value is computed once, and before it is read: nodes are in topological order, without cycles; a subgraph
 *     may read what was computed before the node that holds it
 *   - graph outputs are computed
 *   - functions are defined once and do not call themselves
 *   - tensors have dimensions that multiply to an exact number, and as much data as these say
 */
export function validateModel(model: ModelProto): void {
  const { graph } = model;
  if (graph === null || graph === undefined) fail('the model has no graph');
  if (Long.fromValue(model.ir_version ?? 0).lessThan(1)) fail('the model has no IR version');
  forEachTensor(model, checkTensor);
  for (const sparse of graph.sparse_initializer) {
    if (!sparse.values) fail('a sparse initializer has no values');
  }
  checkFunctions(model);
  checkGraph(graph, new Scope(undefined), checkOpsets(model.opset_import, 'the model'));
  for (const training of model.training_info) {
    // Training graphs may read the main graph's initializers by name; nothing here looks into them further.
    for (const inner of [training.initialization, training.algorithm]) if (inner) checkNames(inner);
  }
}

/** The values that may be read at some point of a graph, those of the graphs around it included. */
class Scope {
  private readonly names = new Set<string>();
  private readonly outer: Scope | undefined;

  constructor(outer: Scope | undefined) {
    this.outer = outer;
  }

  has(name: string): boolean {
    for (let scope: Scope | undefined = this; scope !== undefined; scope = scope.outer) {
      if (scope.names.has(name)) return true;
    }
    return false;
  }

  /** Adds a value; false where this graph has one of that name. */
  add(name: string): boolean {
    if (this.names.has(name)) return false;
    this.names.add(name);
    return true;
  }
}

function fail(what: string, place: ErrorPlace = {}, hint?: string): never {
  throw new OrtFlashError('malformed-model', what, place, hint);
}

/** A node's name for messages: its own, or its operator and first output. */
function label(node: NodeProto): string {
  return node.name || `${node.op_type || 'without an operator'} → ${node.output.find((name) => name !== '') ?? '?'}`;
}

function normalDomain(domain: string | null | undefined): string {
  return domain === 'ai.onnx' ? '' : (domain ?? '');
}

function checkOpsets(imports: readonly OperatorSetIdProto[], owner: string): Set<string> {
  if (imports.length === 0) fail(`${owner} imports no operator set`);
  const versions = new Map<string, string>();
  for (const { domain, version } of imports) {
    const name = normalDomain(domain);
    const number = Long.fromValue(version ?? 0);
    if (number.lessThan(1)) fail(`${owner} imports "${name || 'ai.onnx'}" without a version`);
    const known = versions.get(name);
    if (known !== undefined && known !== number.toString()) {
      fail(`${owner} imports "${name || 'ai.onnx'}" in versions ${known} and ${number}`);
    }
    versions.set(name, number.toString());
  }
  return new Set(versions.keys());
}

/** Names defined outside of nodes, each once; an initializer may give an input's default. */
function checkNames(graph: GraphProto, scope = new Scope(undefined)): void {
  const initializers = new Set<string>();
  const sparse = graph.sparse_initializer.map((tensor) => tensor.values?.name);
  for (const name of [...graph.initializer.map((tensor) => tensor.name), ...sparse]) {
    if (!name) fail('an initializer has no name');
    if (initializers.has(name)) fail('two initializers have one name', { tensor: name });
    initializers.add(name);
  }
  for (const { name } of graph.input) {
    if (!name) fail('a graph input has no name');
    if (!scope.add(name)) fail('two graph inputs have one name', { tensor: name });
  }
  for (const name of initializers) scope.add(name);
}

function checkGraph(graph: GraphProto, scope: Scope, opsets: ReadonlySet<string>): void {
  checkNames(graph, scope);
  checkNodes(graph.node, scope, opsets);
  for (const { name } of graph.output) {
    if (!name) fail('a graph output has no name');
    if (!scope.has(name)) fail('a graph output is not computed', { tensor: name });
  }
}

function checkNodes(nodes: readonly NodeProto[], scope: Scope, opsets: ReadonlySet<string>): void {
  for (const node of nodes) {
    if (!node.op_type) fail('a node has no operator', { node: label(node) });
    const domain = normalDomain(node.domain);
    if (!opsets.has(domain)) {
      fail(`the operator set "${domain || 'ai.onnx'}" is not imported`, { node: label(node) });
    }
    for (const name of node.input) {
      if (name !== '' && !scope.has(name)) failUndefined(nodes, node, name);
    }
    checkAttributes(node);
    for (const graph of subgraphs(node)) checkGraph(graph, new Scope(scope), opsets);
    for (const name of node.output) {
      if (name !== '' && !scope.add(name)) fail('a value is computed twice', { node: label(node), tensor: name });
    }
  }
}

function checkAttributes(node: NodeProto): void {
  const names = new Set<string>();
  for (const { name } of node.attribute) {
    if (!name) fail('an attribute has no name', { node: label(node) });
    if (names.has(name)) fail(`attribute "${name}" is set twice`, { node: label(node) });
    names.add(name);
  }
}

/** Tells a missing value, nodes out of order, and a cycle apart. */
function failUndefined(nodes: readonly NodeProto[], reader: NodeProto, name: string): never {
  const producers = new Map<string, NodeProto>();
  for (const node of nodes) for (const output of node.output) if (output !== '') producers.set(output, node);
  const place = { node: label(reader), tensor: name };
  const producer = producers.get(name);
  if (producer === undefined) fail('a node reads a value that does not exist', place);
  const cycle = findCycle(reader, producers);
  if (cycle !== undefined) {
    const shown = cycle.length > 8 ? [...cycle.slice(0, 4), '…', ...cycle.slice(-4)] : cycle;
    fail(`nodes form a cycle: ${shown.join(' → ')}`, place);
  }
  const hint = 'nodes must be in topological order; loading and saving the model with onnx-graphsurgeon sorts them';
  fail(`a node reads a value before node ${label(producer)} computes it`, place, hint);
}

/** The labels along a cycle through what this node needs, if there is one; depth-first, without recursion. */
function findCycle(start: NodeProto, producers: ReadonlyMap<string, NodeProto>): string[] | undefined {
  const finished = new Set<NodeProto>();
  const path: { readonly node: NodeProto; readonly needs: NodeProto[] }[] = [];
  const onPath = new Set<NodeProto>();
  const enter = (node: NodeProto) => {
    onPath.add(node);
    const needs = [...namesRead(node)].flatMap((name) => producers.get(name) ?? []);
    path.push({ node, needs });
  };
  enter(start);
  while (path.length > 0) {
    const { node, needs } = path[path.length - 1]!;
    const next = needs.pop();
    if (next === undefined) {
      path.pop();
      onPath.delete(node);
      finished.add(node);
    } else if (onPath.has(next)) {
      const nodes = path.map((step) => step.node);
      return [...nodes.slice(nodes.indexOf(next)), next].map(label).reverse();
    } else if (!finished.has(next)) {
      enter(next);
    }
  }
  return undefined;
}

/** Names that a node or its subgraphs read; those that a subgraph computes itself are among them and do no harm. */
function namesRead(node: NodeProto, names = new Set<string>()): Set<string> {
  for (const name of node.input) if (name !== '') names.add(name);
  for (const graph of subgraphs(node)) for (const inner of graph.node) namesRead(inner, names);
  return names;
}

function functionKey(domain: string | null | undefined, name: string | null | undefined, overload?: string | null) {
  return `${normalDomain(domain)}\n${name ?? ''}\n${overload ?? ''}`;
}

function functionLabel(definition: FunctionProto): string {
  return `${definition.domain ?? ''}::${definition.name ?? ''}${definition.overload ? `:${definition.overload}` : ''}`;
}

function checkFunctions(model: ModelProto): void {
  const functions = new Map<string, FunctionProto>();
  for (const definition of model.functions) {
    const key = functionKey(definition.domain, definition.name, definition.overload);
    if (functions.has(key)) fail(`function ${functionLabel(definition)} is defined twice`);
    functions.set(key, definition);
  }
  for (const definition of model.functions) {
    const owner = `function ${functionLabel(definition)}`;
    const scope = new Scope(undefined);
    for (const name of definition.input)
      if (!scope.add(name)) fail(`two inputs of ${owner} have one name`, { tensor: name });
    checkNodes(definition.node, scope, checkOpsets(definition.opset_import, owner));
    for (const name of definition.output) {
      if (!scope.has(name)) fail(`an output of ${owner} is not computed`, { tensor: name });
    }
  }
  checkCalls(functions);
}

/** Refuses functions that call themselves, directly or through others: no runtime could inline them. */
function checkCalls(functions: ReadonlyMap<string, FunctionProto>): void {
  const state = new Map<FunctionProto, 'open' | 'done'>();
  for (const root of functions.values()) {
    const path = [{ definition: root, calls: calledFunctions(root, functions) }];
    if (state.has(root)) continue;
    state.set(root, 'open');
    while (path.length > 0) {
      const { definition, calls } = path[path.length - 1]!;
      const next = calls.pop();
      if (next === undefined) {
        state.set(definition, 'done');
        path.pop();
      } else if (state.get(next) === 'open') {
        fail(`function ${functionLabel(next)} calls itself`);
      } else if (!state.has(next)) {
        state.set(next, 'open');
        path.push({ definition: next, calls: calledFunctions(next, functions) });
      }
    }
  }
}

function calledFunctions(caller: FunctionProto, functions: ReadonlyMap<string, FunctionProto>): FunctionProto[] {
  const called = new Set<FunctionProto>();
  const visit = (nodes: readonly NodeProto[]) => {
    for (const node of nodes) {
      const callee = functions.get(functionKey(node.domain, node.op_type, node.overload));
      if (callee !== undefined) called.add(callee);
      for (const graph of subgraphs(node)) visit(graph.node);
    }
  };
  visit(caller.node);
  return [...called];
}
