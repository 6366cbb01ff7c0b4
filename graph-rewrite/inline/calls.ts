/** The model-local functions of a model: which may be put in the place of their calls, and what that would cost. */
import {
  AttributeType,
  type FunctionProto,
  type GraphProto,
  type ModelProto,
  type NodeProto,
  type OperatorSetIdProto,
  type TensorProto,
} from '../onnx/proto.js';
import { subgraphs } from '../onnx/walk.js';
import { isContribAttention } from '../op/contrib.js';
import { FLASH_ATTENTION_DOMAIN, FLASH_ATTENTION_OP } from '../op/definition.js';
import { isStandardAttention } from '../op/standard.js';
import { mayBeOperator, meansTheSame } from './operator-versions.js';

/** Nodes that calls may become in all: some fifty times the largest language models' layers. */
const MOST_NODES = 200_000;
/** What those nodes may take in a file, beyond what the functions take themselves. */
const MOST_BYTES = 2 ** 28;
/** Functions that call functions are followed this far. */
const DEEPEST = 64;

/** What putting a function in the place of one call makes. */
interface Cost {
  nodes: number;
  bytes: number;
  depth: number;
  /** Whether attention may be in it. */
  leads: boolean;
}

/** The functions that a model's nodes may call. */
export class CallTable {
  readonly #functions = new Map<string, FunctionProto>();
  readonly #versions = new Map<string, number>();
  readonly #costs = new Map<FunctionProto, Cost>();
  readonly #obstacles = new Map<FunctionProto, string | undefined>();
  #onlyLeading = false;
  #tooLarge: string | undefined;

  constructor(model: ModelProto) {
    for (const f of model.functions) {
      if (isOurs(f)) continue;
      this.#functions.set(keyOf(f.domain, f.name, f.overload), f);
    }
    // Where the model does not import a domain, it will import the version of the first function that does.
    for (const list of [model.opset_import, ...model.functions.map((f) => f.opset_import)])
      for (const { domain, version } of list)
        if (!this.#versions.has(normalDomain(domain))) this.#versions.set(normalDomain(domain), Number(version ?? 0));
    this.#choose(model.graph!);
  }

  /** Whether the model has functions of its own at all. */
  get isEmpty(): boolean {
    return this.#functions.size === 0;
  }

  /** The function that a node calls. Operators of attention are read as such, also where a function says how. */
  callee(node: NodeProto): FunctionProto | undefined {
    if (this.isEmpty || isAttention(node)) return undefined;
    return this.#functions.get(keyOf(node.domain, node.op_type, node.overload));
  }

  /** Version of a domain that the model has, or is to have. */
  version(domain: string): number | undefined {
    return this.#versions.get(normalDomain(domain));
  }

  /** Why a function cannot stand in the place of this call; `undefined` where it can. */
  obstacle(call: NodeProto, f: FunctionProto): string | undefined {
    const { depth, nodes } = this.#costOf(f);
    if (nodes === 0) return 'its body is empty';
    if (mayBeOperator(normalDomain(f.domain), f.name ?? '')) return 'runtimes have an operator of that name';
    if (depth > DEEPEST) return `it nests functions more than ${DEEPEST} deep`;
    return this.#tooLarge ?? obstacleOfCall(call, f) ?? this.#obstacleOf(f);
  }

  /** Whether calls of this function are worth putting its body in their place. */
  isWanted(f: FunctionProto): boolean {
    return !this.#onlyLeading || this.#costOf(f).leads;
  }

  /** Functions that a function's body may run, itself included. */
  *reachable(from: readonly NodeProto[], seen = new Set<FunctionProto>()): Generator<FunctionProto> {
    const queue = [from];
    for (const nodes of queue) {
      for (const node of nodes) {
        for (const graph of subgraphs(node)) queue.push(graph.node);
        const f = this.#functions.get(keyOf(node.domain, node.op_type, node.overload));
        if (!f || seen.has(f)) continue;
        seen.add(f);
        yield f;
        queue.push(f.node);
      }
    }
  }

  /** Decides between all calls, those that may lead to attention, and none. */
  #choose(graph: GraphProto): void {
    const all = this.#total(graph, () => true);
    if (isSmall(all)) return;
    this.#onlyLeading = true;
    const leading = this.#total(graph, (f) => this.#costOf(f).leads);
    if (isSmall(leading)) return;
    this.#tooLarge =
      leading.nodes > MOST_NODES
        ? `the calls that lead to attention would become more than ${MOST_NODES} nodes`
        : `the calls that lead to attention would take more than ${MOST_BYTES} bytes`;
  }

  #total(graph: GraphProto, counts: (f: FunctionProto) => boolean): Cost {
    const total: Cost = { nodes: 0, bytes: 0, depth: 0, leads: false };
    const visit = (nodes: readonly NodeProto[]) => {
      for (const node of nodes) {
        for (const inner of subgraphs(node)) visit(inner.node);
        const f = this.callee(node);
        if (f && counts(f)) add(total, this.#costOf(f));
      }
    };
    visit(graph.node);
    return total;
  }

  /** Costs of a function and all that it calls, callees first, without recursion; validation has found no cycle. */
  #costOf(f: FunctionProto): Cost {
    const stack = [f];
    while (stack.length > 0) {
      const top = stack[stack.length - 1]!;
      const callees = this.#costs.has(top) ? [] : this.#calls(top.node).filter((c) => !this.#costs.has(c));
      if (callees.length > 0) {
        for (const callee of callees) stack.push(callee);
        continue;
      }
      stack.pop();
      if (!this.#costs.has(top)) this.#costs.set(top, this.#measure(top));
    }
    return this.#costs.get(f)!;
  }

  #measure(f: FunctionProto): Cost {
    const cost: Cost = { nodes: 0, bytes: 0, depth: 0, leads: mayAttend(f.node) };
    measureNodes(f.node, cost);
    for (const callee of this.#calls(f.node)) add(cost, this.#costs.get(callee)!);
    cost.depth++;
    return cost;
  }

  /** The functions that nodes call, one entry for each call. */
  #calls(nodes: readonly NodeProto[]): FunctionProto[] {
    return nodes.flatMap((node) => {
      const f = this.callee(node);
      const inner = subgraphs(node).flatMap((graph) => this.#calls(graph.node));
      return f ? [f, ...inner] : inner;
    });
  }

  #obstacleOf(f: FunctionProto): string | undefined {
    if (!this.#obstacles.has(f)) this.#obstacles.set(f, this.#conflict(f, f.node));
    return this.#obstacles.get(f);
  }

  /** An operator of the body that the model's opset would read otherwise. */
  #conflict(f: FunctionProto, nodes: readonly NodeProto[]): string | undefined {
    for (const node of nodes) {
      const domain = normalDomain(node.domain);
      const own = versionOf(f.opset_import, domain);
      const outer = this.version(domain);
      const name = node.op_type ?? '';
      const isCall = this.callee(node) !== undefined;
      if (!isCall && own !== outer && !(domain === '' && meansTheSame(name, own ?? 0, outer ?? 0)))
        return `its ${name} is of version ${own} of ${domain || 'ai.onnx'}, the model's is ${outer}`;
      for (const graph of subgraphs(node)) {
        const inner = this.#conflict(f, graph.node);
        if (inner !== undefined) return inner;
      }
    }
    return undefined;
  }
}

/** Whether a node alone computes attention, or a part that every attention has. */
export function isCandidate(node: NodeProto): boolean {
  const isStandard = normalDomain(node.domain) === '';
  return isAttention(node) || (isStandard && (node.op_type === 'Softmax' || node.op_type === 'Exp'));
}

/** Whether nodes, or those of their subgraphs, may be part of attention. */
export function mayAttend(nodes: readonly NodeProto[]): boolean {
  return nodes.some((node) => isCandidate(node) || subgraphs(node).some((graph) => mayAttend(graph.node)));
}

export function normalDomain(domain: string | null | undefined): string {
  return domain === 'ai.onnx' ? '' : (domain ?? '');
}

export function isOurs(f: FunctionProto): boolean {
  return f.domain === FLASH_ATTENTION_DOMAIN && f.name === FLASH_ATTENTION_OP;
}

function isAttention(node: NodeProto): boolean {
  return isStandardAttention(node) || isContribAttention(node);
}

function keyOf(domain: string | null | undefined, name: string | null | undefined, overload?: string | null): string {
  return `${normalDomain(domain)}\n${name ?? ''}\n${overload ?? ''}`;
}

function versionOf(imports: readonly OperatorSetIdProto[], domain: string): number | undefined {
  const found = imports.find((o) => normalDomain(o.domain) === domain);
  return found && Number(found.version ?? 0);
}

function obstacleOfCall(call: NodeProto, f: FunctionProto): string | undefined {
  if (call.input.length > f.input.length) return 'a call gives it more inputs than it has';
  if (call.output.length > f.output.length) return 'a call takes more outputs than it has';
  if (call.attribute.some((a) => a.g || a.graphs.length > 0)) return 'a call passes it a graph';
  const missing = new Set(f.input.filter((_, i) => !call.input[i]));
  if (f.output.some((name) => missing.has(name))) return 'a call leaves out an input that it returns';
  return undefined;
}

function isSmall({ nodes, bytes }: Cost): boolean {
  return nodes <= MOST_NODES && bytes <= MOST_BYTES;
}

function add(total: Cost, part: Cost): void {
  total.nodes += part.nodes;
  total.bytes += part.bytes;
  total.depth = Math.max(total.depth, part.depth);
  total.leads ||= part.leads;
}

function measureNodes(nodes: readonly NodeProto[], cost: Cost): void {
  for (const node of nodes) {
    cost.nodes++;
    cost.bytes += 64 + lengths([node.name ?? '', node.doc_string ?? '', ...node.input, ...node.output]);
    for (const a of node.attribute) {
      cost.bytes += 4 * a.floats.length + 8 * a.ints.length + (a.s?.length ?? 0) + lengths(a.strings);
      for (const tensor of a.t ? [a.t, ...a.tensors] : a.tensors) cost.bytes += tensorBytes(tensor);
      if (a.type === AttributeType.SPARSE_TENSOR && a.sparse_tensor?.values)
        cost.bytes += tensorBytes(a.sparse_tensor.values);
    }
    for (const graph of subgraphs(node)) {
      for (const tensor of graph.initializer) cost.bytes += tensorBytes(tensor);
      measureNodes(graph.node, cost);
    }
  }
}

function tensorBytes(tensor: TensorProto): number {
  const { raw_data, float_data, int32_data, int64_data, uint64_data, double_data, string_data } = tensor;
  const wide = int64_data.length + uint64_data.length + double_data.length;
  return (raw_data?.length ?? 0) + 4 * (float_data.length + int32_data.length) + 8 * wide + lengths(string_data);
}

function lengths(items: readonly { readonly length: number }[]): number {
  return items.reduce((sum, item) => sum + item.length, 0);
}
