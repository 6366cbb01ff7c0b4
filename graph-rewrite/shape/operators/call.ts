/** One application of an operator, as the rules of inference see it. */
import type { Node } from '../../graph/graph.js';
import { Expression, toExpression } from '../expression.js';
import { type Derived, NOTHING_KNOWN, type ValueFacts } from '../facts.js';

/** What an operator's rule derives: a list for its outputs, or the first output's alone. */
export type Rule = (call: Call) => Derived | readonly (Derived | undefined)[] | undefined;

/** Rules by operator name, of one domain. */
export type RuleTable = Readonly<Record<string, Rule>>;

type Size = Expression | undefined;

/** Lower bounds of the model inputs' dimensions. */
export interface SizeBounds {
  readonly known: ReadonlyMap<string, number>;
  /** Where new ones go; undefined inside subgraphs, which need not run. */
  readonly learned: Map<string, number> | undefined;
}

/** The operator's node with what is known of its inputs. */
export class Call {
  readonly node: Node;
  /** Version of the node's domain that the model (or the function around it) imports. */
  readonly opset: number;
  readonly inputs: readonly (ValueFacts | undefined)[];

  readonly #bounds: SizeBounds;

  constructor(node: Node, opset: number, inputs: readonly (ValueFacts | undefined)[], bounds: SizeBounds) {
    this.node = node;
    this.opset = opset;
    this.inputs = inputs;
    this.#bounds = bounds;
  }

  /** Facts of an input; of one that is left out, nothing is known. */
  input(index: number): ValueFacts {
    return this.inputs[index] ?? NOTHING_KNOWN;
  }

  has(index: number): boolean {
    return this.inputs[index] !== undefined;
  }

  type(index = 0): number | undefined {
    return this.input(index).type;
  }

  shape(index = 0): readonly Expression[] | undefined {
    return this.input(index).shape;
  }

  /** Size of an input's axis; negative axes count from the end. */
  size(index: number, axis: number): Size {
    const shape = this.shape(index);
    return shape?.[axis < 0 ? axis + shape.length : axis];
  }

  /** An input's shape with all that is known of how large the model's inputs are at least. */
  boundedShape(index: number): readonly Expression[] | undefined {
    const { known } = this.#bounds;
    return known.size === 0 ? this.shape(index) : this.shape(index)?.map((size) => size.withLowerBounds(known));
  }

  /** A size that the operator refuses below this. */
  atLeast(size: Size, lower: number): Size {
    return size?.assumeAtLeast(lower, this.#bounds.learned);
  }

  int(name: string, otherwise: number): number {
    return this.node.int(name) ?? otherwise;
  }

  flag(name: string): boolean {
    return this.int(name, 0) !== 0;
  }

  /** An attribute of integers, where the node has it and it is not empty. */
  ints(name: string): number[] | undefined {
    const ints = this.node.ints(name);
    return ints !== undefined && ints.length > 0 ? ints : undefined;
  }

  /** Integers that old opsets give by attribute and new ones by input, as expressions. */
  integers(name: string, input: number): readonly Expression[] | undefined {
    return this.ints(name)?.map(toExpression) ?? this.elements(input);
  }

  /** {@link integers} where all of them are numbers. */
  numbers(name: string, input: number): number[] | undefined {
    const values = this.integers(name, input)?.map((e) => e.value);
    return values?.every((v) => v !== undefined) ? (values as number[]) : undefined;
  }

  elements(index: number): readonly Expression[] | undefined {
    return this.input(index).elements;
  }

  /** The elements of a constant, integer or not, where there are few. */
  constants(index: number): number[] | undefined {
    const facts = this.input(index);
    const numbers = facts.elements?.map((e) => e.value);
    if (numbers) return numbers.every((n) => n !== undefined) ? (numbers as number[]) : undefined;
    const { constant } = facts;
    const count = constant?.dims.reduce((product, d) => product * d, 1) ?? 0;
    const values = count > 0 && count <= 64 ? constant?.numbers() : undefined;
    return values && Array.from(values);
  }

  /** An axis attribute counted from the front, for a tensor of this rank; undefined where it is outside. */
  axis(name: string, otherwise: number, rank: number): number | undefined {
    return normalAxis(this.int(name, otherwise), rank);
  }
}

/** An axis counted from the front; undefined where it is outside. */
export function normalAxis(axis: number, rank: number): number | undefined {
  const at = axis < 0 ? axis + rank : axis;
  return Number.isInteger(at) && at >= 0 && at < rank ? at : undefined;
}

/** Same type and shape as the first input, as of element-wise operators whose values are not followed. */
export const likeFirst: Rule = (call) => ({ type: call.type(), shape: call.shape() });

/** A shape of this rank of which no size is known. */
export function unknownShape(rank: number | undefined): undefined[] | undefined {
  return rank === undefined ? undefined : Array.from({ length: rank }, () => undefined);
}

/** Sum of sizes; unknown where one is, or where too many different ones would have to be kept. */
export function sum(sizes: readonly Size[]): Size {
  let total = Expression.constant(0);
  for (const size of sizes) {
    if (!size || total.termCount > 64) return undefined;
    total = total.plus(size);
  }
  return total;
}

/** The product of two sizes; unknown where one is. */
export function times(a: Size, b: Size | number): Size {
  return b === undefined ? undefined : a?.times(b);
}
