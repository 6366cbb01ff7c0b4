/**
 * Types, symbolic shapes and small integer tensors of a model's values, in one pass over its nodes.
 *
 * Every fact holds for every input that the model admits, that is, on which all its nodes run. Nothing is solved for:
 * two symbols are equal only where the file gives them one name, or an operator makes one from the other.
 */
import type { Graph, Model, Node, Value } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import { constantOfNode, constantOfTensor } from './constant.js';
import { inferControlFlow } from './control-flow.js';
import { Expression } from './expression.js';
import {
  ConstantFacts,
  constantCount,
  type Derived,
  isFollowed,
  MOST_ELEMENTS,
  NOTHING_KNOWN,
  type ValueFacts,
} from './facts.js';
import { FunctionTable } from './functions.js';
import { Call, type RuleTable, type SizeBounds } from './operators/call.js';
import { contractionRules } from './operators/contraction.js';
import { elementwiseRules } from './operators/elementwise.js';
import { flashAttentionRules } from './operators/flash-attention.js';
import { indexingRules } from './operators/indexing.js';
import { microsoftRules } from './operators/microsoft.js';
import { movementRules } from './operators/movement.js';
import { networkRules } from './operators/network.js';
import { type Stated, StatedReader } from './stated.js';

export type { ConstantTensor } from './constant.js';
export type { ValueFacts } from './facts.js';

const RULES: Readonly<Record<string, RuleTable>> = {
  '': { ...elementwiseRules, ...movementRules, ...indexingRules, ...contractionRules, ...networkRules },
  'com.microsoft': microsoftRules,
  ortflash: flashAttentionRules,
};

/** Where a graph stands: its unknowns' names begin with the prefix, its operators have these versions. */
interface Scope {
  readonly prefix: string;
  readonly opset: (domain: string) => number;
  /** How many subgraphs and function bodies are around it. */
  readonly depth: number;
}

/** Deeper nesting of subgraphs and function calls is not followed. */
const DEEPEST = 16;
/** Expressions with longer keys, or more terms, become symbols: work stays linear in the model's size. */
const LONGEST_KEY = 2000;
const MOST_TERMS = 48;
const HIGHEST_RANK = 64;
/** Elements of unknown integer tensors get symbols up to this many. */
const MOST_UNKNOWN_ELEMENTS = 16;

/** What is known of the values of a model and its subgraphs. */
export class Inference {
  readonly #model: Model;
  readonly #stated: StatedReader;
  readonly #functions: FunctionTable;
  readonly #facts = new Map<Value, ValueFacts>();
  readonly #scopes = new Map<Graph, Scope>();
  /** Lower bounds of the inputs' dimensions that follow from sizes being sizes. */
  readonly #bounds = new Map<string, number>();

  /** Runs the pass. Never throws for what a model says: what makes no sense is unknown. */
  constructor(model: Model) {
    this.#model = model;
    this.#stated = new StatedReader(model);
    this.#functions = new FunctionTable(model);
    this.#inferGraph(model.graph, { prefix: '', opset: (domain) => model.opset(domain), depth: 0 }, []);
  }

  /** What is known of a value; of one added to a graph since, it is found out now. */
  of(value: Value): ValueFacts {
    return this.#facts.get(value) ?? this.#inferLate(value);
  }

  /**
   * The number that a scalar, or a tensor of one element, has for every shape that the model admits; floats rounded to
   * the value's own type at every step.
   */
  scalarOf(value: Value): number | undefined {
    const facts = this.of(value);
    return constantCount(facts.shape) === 1 ? facts.uniform : undefined;
  }

  /** The number that every element of a tensor of any size is. */
  uniformOf(value: Value): number | undefined {
    return this.of(value).uniform;
  }

  #inferGraph(graph: Graph, scope: Scope, inputs: readonly Derived[]): readonly ValueFacts[] {
    this.#scopes.set(graph, scope);
    for (const [i, input] of graph.inputs.entries()) {
      const tensor = input.initializer && constantOfTensor(input.initializer);
      const fallback = tensor && { type: tensor.type, shape: tensor.dims.map((d) => Expression.constant(d)) };
      this.#set(input, inputs[i] ?? {}, scope, fallback);
    }
    for (const value of graph.values)
      if ((value.initializer && !value.isInput) || value.sparseInitializer) this.#setInitializer(value, scope);
    for (const node of graph.nodes) this.#inferNode(node, scope);
    return graph.outputs.map((output) => this.#facts.get(output) ?? NOTHING_KNOWN);
  }

  #setInitializer(value: Value, scope: Scope): void {
    const { initializer, sparseInitializer: sparse } = value;
    if (sparse) {
      const shape = sparse.dims.map((size) => Expression.constant(Number(size)));
      this.#set(value, { type: sparse.values?.data_type ?? undefined, shape }, scope);
      return;
    }
    const constant = constantOfTensor(initializer!);
    this.#set(value, constant ? { constant } : {}, scope);
  }

  #inferNode(node: Node, scope: Scope): void {
    let derived: Derived | readonly (Derived | undefined)[] | undefined;
    try {
      derived = this.#derive(node, scope);
    } catch {
      // A node that does not fit its operator: its outputs are unknown, what is wrong is for the runtime to say.
    }
    const list = Array.isArray(derived) ? (derived as readonly (Derived | undefined)[]) : [derived as Derived];
    for (const [i, output] of node.outputs.entries()) if (output) this.#set(output, list[i] ?? {}, scope);
  }

  #derive(node: Node, scope: Scope): Derived | readonly (Derived | undefined)[] | undefined {
    const inputs = node.inputs.map((input) => input && this.of(input));
    const call = new Call(node, scope.opset(node.domain), inputs, this.#boundsIn(scope));
    if (node.is('Constant')) {
      const constant = constantOfNode(node);
      return constant && { constant };
    }
    if (node.subgraphs.length > 0)
      return inferControlFlow(call, (graph, given) =>
        scope.depth < DEEPEST ? this.#inferGraph(graph, this.#inside(graph, scope), given) : [],
      );
    const table = RULES[node.domain];
    const rule = table && Object.hasOwn(table, node.opType) ? table[node.opType] : undefined;
    if (rule) return rule(call);
    const body = scope.depth < DEEPEST ? this.#functions.find(node) : undefined;
    if (!body) return undefined;
    const { graph, opset, prefix } = body;
    return this.#inferGraph(
      graph,
      { prefix: `${scope.prefix}${prefix}`, opset, depth: scope.depth + 1 },
      inputs.map((i) => i ?? {}),
    );
  }

  #inside(graph: Graph, outer: Scope): Scope {
    const known = this.#scopes.get(graph);
    return known ?? { ...outer, prefix: `{graph ${this.#scopes.size}}`, depth: outer.depth + 1 };
  }

  /** Settles what is known of a value: derived facts first, then what the file states, then symbols. */
  #set(value: Value, derived: Derived, scope: Scope, fallback: Stated | undefined = undefined): void {
    this.#facts.set(value, this.#settle(value, derived, scope, fallback));
  }

  #settle(value: Value, derived: Derived, scope: Scope, fallback: Stated | undefined): ValueFacts {
    if (derived.constant) return new ConstantFacts(derived.constant);
    const stated = this.#stated.read(value.info);
    const type = derived.type ?? stated.type ?? fallback?.type;
    const name = `?${scope.prefix}${value.name}`;
    const sizes = derived.shape ?? stated.shape ?? fallback?.shape;
    const shape =
      sizes === undefined || sizes.length > HIGHEST_RANK
        ? undefined
        : sizes.map((size, axis) => {
            const other = stated.shape?.length === sizes.length ? stated.shape[axis] : undefined;
            const settled = preferred(size, other) ?? Expression.symbol(`${name}:${axis}`);
            return this.#asSize(settled, scope);
          });
    const elements = settledElements(derived, type, shape, name);
    return { type, shape, elements, constant: undefined, uniform: derived.uniform ?? uniformOf(elements) };
  }

  /** A size is at least 0; outside subgraphs, which may not run, that also tells of the inputs' dimensions. */
  #asSize(size: Expression, scope: Scope): Expression {
    return size.assumeAtLeast(0, this.#boundsIn(scope).learned);
  }

  #boundsIn(scope: Scope): SizeBounds {
    return { known: this.#bounds, learned: scope.depth === 0 ? this.#bounds : undefined };
  }

  #inferLate(value: Value): ValueFacts {
    const scope = this.#scopes.get(value.graph);
    if (!scope) {
      const parent = value.graph.parent && this.#scopes.get(value.graph.parent);
      const fallback: Scope = { prefix: '', opset: (domain) => this.#model.opset(domain), depth: 0 };
      this.#inferGraph(value.graph, this.#inside(value.graph, parent ?? fallback), []);
    } else if (value.producer) this.#inferNode(value.producer, scope);
    else if (value.initializer || value.sparseInitializer) this.#setInitializer(value, scope);
    else this.#set(value, {}, scope);
    return this.#facts.get(value) ?? NOTHING_KNOWN;
  }
}

/** The derived size where it says more than the stated one. */
function preferred(derived: Expression | undefined, stated: Expression | undefined): Expression | undefined {
  const usable = derived && isManageable(derived) && !(derived.range.upper < 0) ? derived : undefined;
  if (!usable || !stated) return usable ?? stated;
  if (usable.value !== undefined) return usable;
  const atom = usable.atom;
  if (atom?.operation === 'broadcast' && (stated.value !== undefined || atom.operands.some((o) => o.equals(stated))))
    return stated;
  for (const symbol of usable.symbols) if (symbol.startsWith('?')) return stated;
  return usable;
}

function isManageable(expression: Expression): boolean {
  return expression.termCount <= MOST_TERMS && expression.exact && expression.key.length <= LONGEST_KEY;
}

/** Elements of a small tensor of integers: as derived, or symbols. */
function settledElements(
  derived: Derived,
  type: number | undefined,
  shape: readonly Expression[] | undefined,
  name: string,
): readonly Expression[] | undefined {
  const count = isFollowed(type) ? constantCount(shape) : undefined;
  if (count === undefined || count > MOST_ELEMENTS) return undefined;
  const given = derived.elements?.length === count ? derived.elements : undefined;
  const { uniform } = derived;
  if (!given && uniform === undefined && count > MOST_UNKNOWN_ELEMENTS) return undefined;
  const range = type === DataType.BOOL ? { lower: 0, upper: 1 } : undefined;
  return Array.from({ length: count }, (_, i) => {
    const element = given ? given[i] : uniform === undefined ? undefined : Expression.constant(uniform);
    // Integers past 2⁵³ stay, for Slice's "to the end"; arithmetic on them is not followed.
    if (element && (element.value !== undefined || isManageable(element))) return element;
    return Expression.unknown(`${name}[${i}]`, range);
  });
}

function uniformOf(elements: readonly Expression[] | undefined): number | undefined {
  const first = elements?.[0]?.value;
  return first !== undefined && elements!.every((e) => e.value === first) ? first : undefined;
}
