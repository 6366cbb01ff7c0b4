/** Constant tensors, decoded only where a value of theirs is asked for. */
import type { Node } from '../graph/graph.js';
import { isExternal } from '../onnx/external.js';
import { DataType, type TensorProto } from '../onnx/proto.js';
import { tensorNumbers, tensorShape } from '../onnx/tensor.js';

/** A tensor whose elements the model file holds. */
export interface ConstantTensor {
  /** TensorProto.DataType number. */
  readonly type: number;
  readonly dims: readonly number[];
  /**
   * The elements, row-major, decoded once. Integers past 2⁵³ are rounded. `undefined` for strings, complex numbers,
   * external data, and data that does not fit the dimensions.
   */
  numbers(): ArrayLike<number> | undefined;
  /** The only element, where there is exactly one. */
  scalar(): number | undefined;
}

/** A constant with its elements read on first use. */
class LazyConstant implements ConstantTensor {
  readonly type: number;
  readonly dims: readonly number[];
  readonly #read: () => ArrayLike<number> | undefined;
  #numbers: { readonly value: ArrayLike<number> | undefined } | undefined;

  constructor(type: number, dims: readonly number[], read: () => ArrayLike<number> | undefined) {
    this.type = type;
    this.dims = dims;
    this.#read = read;
  }

  numbers(): ArrayLike<number> | undefined {
    this.#numbers ??= { value: attempt(this.#read) };
    return this.#numbers.value;
  }

  scalar(): number | undefined {
    return this.dims.every((d) => d === 1) ? this.numbers()?.[0] : undefined;
  }
}

/** The constant in a TensorProto; `undefined` where its dimensions make no sense. */
export function constantOfTensor(tensor: TensorProto): ConstantTensor | undefined {
  const dims = attempt(() => tensorShape(tensor));
  if (dims === undefined) return undefined;
  return new LazyConstant(tensor.data_type ?? 0, dims, () => (isExternal(tensor) ? undefined : tensorNumbers(tensor)));
}

/** The constant that a `Constant` node produces, whichever of its attributes holds it; sparse ones are not read. */
export function constantOfNode(node: Node): ConstantTensor | undefined {
  const attribute = node.proto.attribute.find((a) => (a.name ?? '').startsWith('value') || a.name === 'sparse_value');
  switch (attribute?.name) {
    case 'value':
      return attribute.t ? constantOfTensor(attribute.t) : undefined;
    case 'value_float':
      return scalar(DataType.FLOAT, attribute.f ?? 0);
    case 'value_int':
      return scalar(DataType.INT64, attribute.i?.toNumber() ?? 0);
    case 'value_floats':
      return new LazyConstant(DataType.FLOAT, [attribute.floats.length], () => attribute.floats);
    case 'value_ints':
      return new LazyConstant(DataType.INT64, [attribute.ints.length], () => attribute.ints.map((i) => i.toNumber()));
    case 'value_string':
      return new LazyConstant(DataType.STRING, [], () => undefined);
    case 'value_strings':
      return new LazyConstant(DataType.STRING, [attribute.strings.length], () => undefined);
    default:
      return undefined;
  }
}

function scalar(type: number, value: number): ConstantTensor {
  return new LazyConstant(type, [], () => [value]);
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
