/** What is known of a value, while it is inferred and afterwards. */
import { DataType } from '../onnx/proto.js';
import type { ConstantTensor } from './constant.js';
import { Expression } from './expression.js';

/** What is known of one value, for every shape that the model admits. */
export interface ValueFacts {
  /** TensorProto.DataType number; undefined where unknown. */
  readonly type: number | undefined;
  /** Undefined where even the rank is unknown. Unknown sizes are fresh symbols, one per value and axis. */
  readonly shape: readonly Expression[] | undefined;
  /**
   * Elements of a small integer or bool (0 and 1) tensor, row-major. Those that are not known are symbols; undefined
   * where the tensor is large, of another type, or its number of elements is not known.
   */
  readonly elements: readonly Expression[] | undefined;
  /** The constant behind the value: an initializer that is no graph input, a Constant node, or Identity of one. */
  readonly constant: ConstantTensor | undefined;
  /** The number that every element is, where that is known, whatever the shape. */
  readonly uniform: number | undefined;
}

/** What a rule derives for one output: sizes and elements that it leaves undefined become symbols. */
export interface Derived {
  readonly type?: number | undefined;
  readonly shape?: readonly (Expression | undefined)[] | undefined;
  readonly elements?: readonly (Expression | undefined)[] | undefined;
  readonly constant?: ConstantTensor | undefined;
  readonly uniform?: number | undefined;
}

export const NOTHING_KNOWN: ValueFacts = {
  type: undefined,
  shape: undefined,
  elements: undefined,
  constant: undefined,
  uniform: undefined,
};

/** Tensors with more elements than this are not followed element by element. */
export const MOST_ELEMENTS = 64;

/** INT32, INT64 and BOOL: what shapes are computed in. Arithmetic of narrower and unsigned types wraps around. */
const FOLLOWED_TYPES: ReadonlySet<number> = new Set([DataType.INT32, DataType.INT64, DataType.BOOL]);

/** Whether tensors of this TensorProto data type have {@link ValueFacts.elements}. */
export function isFollowed(type: number | undefined): boolean {
  return type !== undefined && FOLLOWED_TYPES.has(type);
}

/** The sizes as numbers, where all are. */
export function constantSizes(shape: readonly Expression[] | undefined): number[] | undefined {
  if (shape === undefined) return undefined;
  const sizes: number[] = [];
  for (const size of shape) {
    const { value } = size;
    if (value === undefined) return undefined;
    sizes.push(value);
  }
  return sizes;
}

/** Number of elements where it is known. */
export function constantCount(shape: readonly Expression[] | undefined): number | undefined {
  return constantSizes(shape)?.reduce((product, size) => product * size, 1);
}

/** The facts of a constant tensor; its elements are read on first use, and only where it is small. */
export class ConstantFacts implements ValueFacts {
  readonly type: number;
  readonly shape: readonly Expression[];
  readonly constant: ConstantTensor;
  #elements: readonly Expression[] | undefined;
  #uniform: { readonly value: number | undefined } | undefined;

  constructor(constant: ConstantTensor) {
    this.constant = constant;
    this.type = constant.type;
    this.shape = constant.dims.map((d) => Expression.constant(d));
  }

  get elements(): readonly Expression[] | undefined {
    if (this.#elements === undefined && isFollowed(this.type) && this.#count <= MOST_ELEMENTS) {
      const numbers = this.constant.numbers();
      this.#elements = numbers && Array.from(numbers, (n) => Expression.constant(n));
    }
    return this.#elements;
  }

  get uniform(): number | undefined {
    if (this.#uniform === undefined) {
      const numbers = this.#count <= MOST_ELEMENTS ? this.constant.numbers() : undefined;
      const first = numbers?.[0];
      const same = numbers !== undefined && Array.prototype.every.call(numbers, (n) => Object.is(n, first));
      this.#uniform = { value: same ? first : undefined };
    }
    return this.#uniform.value;
  }

  get #count(): number {
    return this.constant.dims.reduce((product, d) => product * d, 1);
  }
}

/** The size that two sizes broadcast to, in a model that runs: equal, or one of them 1. */
export function broadcastSize(a: Expression, b: Expression): Expression {
  if (a.equals(b) || b.equals(1)) return a;
  if (a.equals(1)) return b;
  // A constant other than 1 stands: the other size is that or 1.
  if (a.value !== undefined) return a;
  if (b.value !== undefined) return b;
  return absorbed(a, b) ?? absorbed(b, a) ?? Expression.operation('broadcast', ...ordered(a, b));
}

/**
 * The broadcast of a and b where b is made from a: x with min(x, c), c > 1, is x (either they are equal, or x > c and
 * could not broadcast with c); what is broadcast with x already stays.
 */
function absorbed(a: Expression, b: Expression): Expression | undefined {
  const atom = b.atom;
  if (!atom?.operands.some((o) => o.equals(a))) return undefined;
  if (atom.operation === 'broadcast') return b;
  return atom.operation === 'min' && atom.operands.every((o) => o.equals(a) || o.range.lower > 1) ? a : undefined;
}

function ordered(a: Expression, b: Expression): [Expression, Expression] {
  return a.key <= b.key ? [a, b] : [b, a];
}

/** The shape that shapes broadcast to (NumPy's rules, ONNX "multidirectional broadcasting"). */
export function broadcastShapes(
  shapes: readonly (readonly (Expression | undefined)[] | undefined)[],
): (Expression | undefined)[] | undefined {
  const rank = Math.max(0, ...shapes.map((s) => s?.length ?? 0));
  if (shapes.some((s) => s === undefined)) return undefined;
  return Array.from({ length: rank }, (_, axis) => {
    let size: Expression | undefined = Expression.constant(1);
    let anyUnknown = false;
    for (const shape of shapes) {
      const at = axis - (rank - shape!.length);
      if (at < 0) continue;
      const other = shape![at];
      if (other === undefined) anyUnknown = true;
      else size = broadcastSize(size, other);
    }
    // A size that is not known may widen one of 1, and no other constant.
    return anyUnknown && (size.value === undefined || size.value === 1) ? undefined : size;
  });
}

/** Reads elements of a tensor at the flat indices of what it is broadcast to. */
export function broadcastReader(
  elements: readonly Expression[],
  own: readonly number[],
  target: readonly number[],
): (index: number) => Expression | undefined {
  if (elements.length === 1) return () => elements[0];
  const strides: number[] = [];
  let stride = 1;
  for (let axis = own.length - 1; axis >= 0; axis--) {
    strides.unshift(own[axis] === 1 ? 0 : stride);
    stride *= own[axis]!;
  }
  return (index) => {
    let at = 0;
    for (let axis = target.length - 1; axis >= 0; axis--) {
      at += (index % target[axis]!) * (strides[axis - (target.length - own.length)] ?? 0);
      index = Math.floor(index / target[axis]!);
    }
    return elements[at];
  };
}
