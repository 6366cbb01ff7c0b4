/** The elements of a mask as functions of the scores' indices, read from the nodes that compute it. */
import type { Node, Value } from '../../graph/graph.js';
import { DataType } from '../../onnx/proto.js';
import { Expression } from '../../shape/expression.js';
import type { Inference } from '../../shape/inference.js';
import { roundTo } from '../../shape/rounding.js';
import { Affine, type IndexVariable } from './affine.js';
import { addedUp, arithmetic, compare, exclusive, type Known, sumOf } from './arithmetic.js';
import { constantElement } from './constants.js';
import { stepped, zeroWhereFalse } from './derived.js';
import {
  alsoIn,
  and,
  atMostZero,
  choice,
  complexity,
  conditional,
  constant,
  type Element,
  FALSE,
  linear,
  not,
  or,
  TRUE,
} from './element.js';
import { broadcastIndices, gatheredIndex, type Indices, movedIndices } from './movement.js';

/** Integers up to this are what they are in float32 too; positions in a sequence are far below. */
const EXACT_POSITIONS: ReadonlySet<number> = new Set([DataType.INT64, DataType.INT32, DataType.FLOAT, DataType.DOUBLE]);
const MOST_NODES = 4000;
const MOST_COMPLEX = 200;
const DEEPEST = 200;

/** Evaluates tensors element by element, symbolically. */
export class Evaluator {
  readonly #inference: Inference;
  readonly #variables: readonly IndexVariable[];
  #nodes = 0;
  #depth = 0;

  /** @param variables the indices in use: where one has a value, its size is at least 1. */
  constructor(inference: Inference, variables: readonly IndexVariable[]) {
    this.#inference = inference;
    this.#variables = variables;
  }

  /** The element of a tensor at these indices, which must lie inside it. */
  at(value: Value, indices: Indices): Element {
    if (indices.includes(undefined as never)) throw new RangeError('an axis that the tensor does not have');
    const source = { value, indices, keepWhere: true };
    const known = this.#depth < DEEPEST && this.#nodes < MOST_NODES ? this.#find(value, indices) : undefined;
    if (known && complexity(known) <= MOST_COMPLEX) return alsoIn(known, source);
    if (this.#inference.of(value).type === DataType.BOOL) return conditional({ kind: 'opaque', sources: [source] });
    return { kind: 'opaque', sources: [source] };
  }

  #find(value: Value, indices: Indices): Known {
    const facts = this.#inference.of(value);
    if (!facts.shape || facts.shape.length !== indices.length) return undefined;
    const asElement = (element: Known) => (facts.type === DataType.BOOL ? asCondition(element) : element);
    if (facts.uniform !== undefined) return asElement(constant(facts.uniform));
    if (facts.constant) return asElement(constantElement(facts.constant, indices));
    const element = facts.elements && pick(facts.elements, facts.shape, indices);
    if (element && (element.value !== undefined || facts.type !== DataType.BOOL))
      return asElement(element.value === undefined ? linear(Affine.constant(element)) : constant(element.value));
    const node = value.producer;
    if (node?.domain !== '') return undefined;
    this.#nodes++;
    this.#depth++;
    try {
      return this.#apply(node, value, indices);
    } catch {
      // A node that does not fit its operator: what is wrong is for the runtime to say.
      return undefined;
    } finally {
      this.#depth--;
    }
  }

  #apply(node: Node, output: Value, indices: Indices): Known {
    const moved = movedIndices(node, output, indices, this.#inference);
    if (moved) return this.at(node.inputs[0]!, moved);
    switch (node.opType) {
      case 'Cast':
      case 'CastLike':
        return this.#cast(node, output, indices);
      case 'Range':
        return this.#range(node, indices);
      case 'NonZero':
        return this.#nonZero(node, indices);
      case 'Gather':
        return this.#gather(node, indices);
      case 'GatherND':
        return this.#gatherND(node, indices);
      case 'GatherElements':
        return this.#gatherElements(node, indices);
      case 'Concat':
        return this.#concat(node, indices);
      case 'Trilu':
        return this.#trilu(node, indices);
      case 'EyeLike':
        return diagonal(indices, node.int('k') ?? 0);
      case 'CumSum':
        return this.#cumulativeSum(node, indices);
      default:
        return this.#elementwise(node, output, indices);
    }
  }

  #elementwise(node: Node, output: Value, indices: Indices): Known {
    if (!ELEMENTWISE.has(node.opType)) return undefined;
    const operands: Element[] = [];
    for (const input of node.inputs) {
      const shape = input && this.#inference.of(input).shape;
      const own = shape && broadcastIndices(shape, indices);
      if (!own) return undefined;
      operands.push(this.at(input, own));
    }
    const conditions = operands.map((o) => (o.kind === 'condition' ? o.condition : undefined));
    const [p, q] = conditions;
    const [a, b, c] = operands as [Element, Element, Element];
    switch (node.opType) {
      case 'And':
        return p && q && conditional(and(p, q));
      case 'Or':
        return p && q && conditional(or(p, q));
      case 'Xor':
        return p && q && conditional(exclusive(p, q));
      case 'Not':
        return p && conditional(not(p));
      case 'Where': {
        if (!p) return undefined;
        const [yes, no] = [b, c].map((e, i) =>
          zeroWhereFalse((i === 0 ? not(p) : p).sources, e) ? constant(0) : e,
        ) as [Element, Element];
        return choice(p, yes, no);
      }
      case 'Less':
      case 'LessOrEqual':
      case 'Greater':
      case 'GreaterOrEqual':
      case 'Equal': {
        const condition = compare(node.opType, a, b, this.#typeOf(node.inputs[0]));
        return condition && conditional(condition);
      }
      default: {
        const type = this.#inference.of(output).type;
        return arithmetic(node.opType, operands, type) ?? masksInSum(node.opType, operands, type);
      }
    }
  }

  #typeOf(value: Value | undefined): number | undefined {
    return value && this.#inference.of(value).type;
  }

  #cast(node: Node, output: Value, indices: Indices): Known {
    const to = this.#inference.of(output).type;
    const [input] = node.inputs;
    if (!input || to === undefined) return undefined;
    return castElement(this.at(input, indices), to, this.#inference.of(input).type);
  }

  #range(node: Node, [index]: Indices): Known {
    const [start, , step] = node.inputs.map((input) => {
      const element = input && this.at(input, []);
      if (element?.kind === 'linear') return element.affine;
      const whole = element?.kind === 'constant' && Number.isSafeInteger(element.value) ? element.value : undefined;
      return whole === undefined ? undefined : Affine.constant(whole);
    });
    if (!start || !index || step?.value === undefined) return undefined;
    return linear(start.plus(index.times(step.value)));
  }

  /** Positions of a vector whose elements are all another number than 0: 0, 1, … */
  #nonZero({ inputs: [input] }: Node, [, index]: Indices): Known {
    const { shape, uniform } = input ? this.#inference.of(input) : { shape: undefined, uniform: undefined };
    return shape?.length === 1 && uniform !== undefined && uniform !== 0 && index ? linear(index) : undefined;
  }

  /** An element of a tensor of indices as an index of an axis. */
  #index(value: Value, indices: Indices, size: Expression): Affine | undefined {
    const element = this.at(value, indices);
    if (element.kind === 'constant') return gatheredIndex(Affine.constant(element.value), size);
    return element.kind === 'linear' ? gatheredIndex(element.affine, size) : undefined;
  }

  #gather(node: Node, indices: Indices): Known {
    const [data, positions] = node.inputs;
    const shape = data && this.#inference.of(data).shape;
    const rank = positions && this.#inference.of(positions).shape?.length;
    if (!shape || !positions || rank === undefined) return undefined;
    const axis = normal(node.int('axis') ?? 0, shape.length);
    const index = this.#index(positions, indices.slice(axis, axis + rank), shape[axis]!);
    return index && this.at(data, [...indices.slice(0, axis), index, ...indices.slice(axis + rank)]);
  }

  #gatherND(node: Node, indices: Indices): Known {
    const [data, positions] = node.inputs;
    const shape = data && this.#inference.of(data).shape;
    const positionShape = positions && this.#inference.of(positions).shape;
    const width = positionShape?.at(-1)?.value;
    if (!shape || !positionShape || width === undefined) return undefined;
    const batch = node.int('batch_dims') ?? 0;
    const outer = indices.slice(0, positionShape.length - 1);
    const found: Affine[] = indices.slice(0, batch);
    for (let k = 0; k < width; k++) {
      const index: Affine | undefined = this.#index(positions, [...outer, Affine.constant(k)], shape[batch + k]!);
      if (!index) return undefined;
      found.push(index);
    }
    return this.at(data, [...found, ...indices.slice(positionShape.length - 1)]);
  }

  #gatherElements(node: Node, indices: Indices): Known {
    const [data, positions] = node.inputs;
    const shape = data && this.#inference.of(data).shape;
    if (!shape || !positions) return undefined;
    const axis = normal(node.int('axis') ?? 0, shape.length);
    const index = this.#index(positions, indices, shape[axis]!);
    return index && this.at(data, indices.with(axis, index));
  }

  /** Which part an element is of, by its index: one part where that is decided, else a choice of elements. */
  #concat(node: Node, indices: Indices): Known {
    const axis = normal(node.int('axis') ?? 0, indices.length);
    let start = Expression.constant(0);
    const parts: { readonly input: Value; readonly start: Expression; readonly end: Expression }[] = [];
    for (const input of node.inputs) {
      const size = input && this.#inference.of(input).shape?.[axis];
      if (!input || !size) return undefined;
      const end = start.plus(this.#nonEmpty(size));
      parts.push({ input, start, end });
      start = end;
    }
    let result: Known;
    for (const part of parts.reverse()) {
      const inside = result ? atMostZero(indices[axis]!.minus(part.end).plus(1)) : TRUE;
      if (inside.kind === 'constant' && !inside.value) continue;
      const element = this.at(part.input, indices.with(axis, indices[axis]!.minus(part.start)));
      if (inside.kind === 'constant') result = element;
      else if (element.kind === 'opaque' || result?.kind === 'opaque') return undefined;
      else result = choice(inside, element, result!);
    }
    return result;
  }

  /** min(1, n) is 1 where n is the size of an index. */
  #nonEmpty(size: Expression): Expression {
    const atom = size.atom;
    const others = atom?.operation === 'min' ? atom.operands.filter((o) => !o.equals(1)) : [];
    const isOne =
      others.length === 1 && atom!.operands.length === 2 && this.#variables.some((v) => v.hasSize(others[0]!));
    return isOne ? Expression.constant(1) : size;
  }

  #trilu(node: Node, indices: Indices): Known {
    const [input, offset] = node.inputs;
    const diagonal = offset ? this.#inference.of(offset).elements?.[0] : Expression.constant(0);
    const [row, column] = indices.slice(-2);
    if (!input || !diagonal || !row || !column) return undefined;
    const distance = column.minus(row).minus(diagonal);
    const upper = (node.int('upper') ?? 1) !== 0;
    const kept = atMostZero(upper ? distance.times(-1) : distance);
    const element = this.at(input, indices);
    if (element.kind === 'condition') return choice(kept, element, conditional(FALSE));
    return choice(kept, element, constant(0));
  }

  /** Sums of a constant. */
  #cumulativeSum(node: Node, indices: Indices): Known {
    const [input, axisInput] = node.inputs;
    const stated = axisInput && this.#inference.of(axisInput).elements?.[0]?.value;
    if (!input || stated === undefined || node.int('reverse')) return undefined;
    const element = this.at(input, indices);
    if (element.kind !== 'constant' || !Number.isSafeInteger(element.value)) return undefined;
    const count = indices[normal(stated, indices.length)]!.plus(node.int('exclusive') ? 0 : 1);
    return linear(count.times(element.value));
  }
}

const ELEMENTWISE: ReadonlySet<string> = new Set(
  'And Or Xor Not Where Less LessOrEqual Greater GreaterOrEqual Equal Add Sub Mul Div Neg Abs Max Min'.split(' '),
);

/** A sum in which one operand is a mask, or one number: what the other adds is kept apart. */
function masksInSum(opType: string, operands: readonly Element[], type: number | undefined): Known {
  const isSum = opType === 'Add' && operands.some((e) => ['choice', 'constant', 'sum'].includes(e.kind));
  return isSum ? sumOf(operands, type) : undefined;
}

function diagonal([row, column]: Indices, offset: number): Known {
  if (!row || !column) return undefined;
  const distance = column.minus(row).minus(offset);
  return choice(and(atMostZero(distance), atMostZero(distance.times(-1))), constant(1), constant(0));
}

/** A boolean tensor's numbers as a condition. */
function asCondition(element: Known): Known {
  const test = element && compare('Equal', element, constant(0));
  return test && conditional(not(test));
}

function castElement(element: Element, to: number, from: number | undefined): Known {
  if (to === DataType.BOOL && element.kind !== 'opaque' && element.kind !== 'choice')
    return element.kind === 'condition' ? element : asCondition(element);
  switch (element.kind) {
    case 'condition':
      return choice(element.condition, constant(1), constant(0));
    case 'constant': {
      const value = roundTo(to, element.value);
      return value === undefined ? undefined : constant(value);
    }
    case 'choice': {
      const yes = castElement(element.yes, to, from);
      const no = castElement(element.no, to, from);
      return yes && no && choice(element.condition, yes, no);
    }
    case 'sum': {
      const sum = addedUp(element);
      return sum && castElement(sum, to, from);
    }
    case 'opaque':
      if (from === to) return element;
      return from === undefined ? undefined : stepped(element, { opType: 'Cast', from, to });
    default:
      return EXACT_POSITIONS.has(to) ? element : undefined;
  }
}

/** An element of a small integer tensor at constant indices. */
function pick(elements: readonly Expression[], shape: readonly Expression[], indices: Indices): Expression | undefined {
  let offset = 0;
  for (const [axis, index] of indices.entries()) {
    const size = shape[axis]!.value;
    const at = size === 1 ? 0 : index.value;
    if (size === undefined || at === undefined || at < 0 || at >= size) return undefined;
    offset = offset * size + at;
  }
  return elements[offset];
}

function normal(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}
