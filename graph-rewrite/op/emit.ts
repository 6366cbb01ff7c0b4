/** Writes ONNX nodes whose spelling depends on the opset, for function bodies and for lowered sites. */
import Long from 'long';
import { OrtFlashError } from '../errors.js';
import { type DataTypeName, dataTypeInfo, dataTypeOf } from '../onnx/data-type.js';
import { tensorInfo } from '../onnx/make.js';
import { AttributeProto, AttributeType, DataType, GraphProto, NodeProto, TensorProto } from '../onnx/proto.js';
import { makeTensor } from '../onnx/tensor.js';

/** An integer, integers, a string, a tensor, a graph, or, told apart from an integer, a float. */
export type AttributeValue =
  | number
  | readonly number[]
  | string
  | TensorProto
  | GraphProto
  | { readonly float: number };

/** A size: a number, or the name of an int64 tensor of one element. */
export type Size = number | string;

export function makeAttribute(name: string, value: AttributeValue): AttributeProto {
  if (typeof value === 'number') {
    return AttributeProto.create({ name, type: AttributeType.INT, i: Long.fromNumber(value) });
  }
  if (typeof value === 'string') {
    return AttributeProto.create({ name, type: AttributeType.STRING, s: new TextEncoder().encode(value) });
  }
  if (value instanceof TensorProto) return AttributeProto.create({ name, type: AttributeType.TENSOR, t: value });
  if (value instanceof GraphProto) return AttributeProto.create({ name, type: AttributeType.GRAPH, g: value });
  if ('float' in value) return AttributeProto.create({ name, type: AttributeType.FLOAT, f: value.float });
  const ints = (value as readonly number[]).map((i) => Long.fromNumber(i));
  return AttributeProto.create({ name, type: AttributeType.INTS, ints });
}

export interface NodeOptions {
  readonly attributes?: Readonly<Record<string, AttributeValue>>;
  /** What the node's output is called; a number is added where the name is taken. */
  readonly label?: string;
  readonly domain?: string;
}

/**
 * Collects nodes. Every method adds nodes and returns the name of their result; axes count from 0, none is negative.
 * Constants are made once for each type, shape and value.
 */
export class NodeEmitter {
  readonly nodes: NodeProto[] = [];
  readonly #constants = new Map<string, string>();
  readonly #taken = new Set<string>();

  /**
   * @param opset the ai.onnx opset of the model, by whose semantics ONNX Runtime reads a function's nodes too
   * @param prefix put before the name of every value made
   */
  constructor(
    readonly opset: number,
    readonly prefix = '',
  ) {}

  /** A name not yet used here. */
  fresh(label: string): string {
    let name = `${this.prefix}${label}`;
    for (let i = 2; this.#taken.has(name); i++) name = `${this.prefix}${label}_${i}`;
    this.#taken.add(name);
    return name;
  }

  op(type: string, inputs: readonly string[], options: NodeOptions = {}): string {
    const output = this.fresh(options.label ?? type.toLowerCase());
    this.node(type, inputs, [output], options);
    return output;
  }

  /** Adds a node whose outputs are already named. */
  node(type: string, inputs: readonly string[], outputs: readonly string[], options: NodeOptions = {}): void {
    this.nodes.push(
      NodeProto.create({
        op_type: type,
        name: outputs.find((name) => name !== '') ?? null,
        ...(options.domain === undefined ? {} : { domain: options.domain }),
        input: [...inputs],
        output: [...outputs],
        attribute: Object.entries(options.attributes ?? {}).map(([name, value]) => makeAttribute(name, value)),
      }),
    );
  }

  constant(type: DataTypeName, shape: readonly number[], values: readonly number[], label = 'constant'): string {
    const key = `${type} ${shape} ${values.map((v) => (Object.is(v, -0) ? '-0' : v))}`;
    const made = this.#constants.get(key);
    if (made !== undefined) return made;
    // Before opset 9, constants are floats only.
    const isFloat = dataTypeInfo(dataTypeOf(type))?.kind === 'float';
    const name =
      this.opset < 9 && !isFloat
        ? this.cast(this.constant('float32', shape, values), dataTypeOf(type), label)
        : this.op('Constant', [], { attributes: { value: makeTensor('', type, shape, values) }, label });
    this.#constants.set(key, name);
    return name;
  }

  /** A constant of rank 0. */
  scalar(type: DataTypeName, value: number, label?: string): string {
    return this.constant(type, [], [value], label);
  }

  int(value: number): string {
    return this.scalar('int64', value);
  }

  ints(values: readonly number[], label?: string): string {
    return this.constant('int64', [values.length], values, label);
  }

  cast(x: string, to: number, label?: string): string {
    return this.op('Cast', [x], { attributes: { to }, ...(label === undefined ? {} : { label }) });
  }

  transpose(x: string, perm: readonly number[], label?: string): string {
    if (perm.every((axis, i) => axis === i)) return x;
    return this.op('Transpose', [x], { attributes: { perm }, ...(label === undefined ? {} : { label }) });
  }

  /** Axes moved from an attribute to an input in opset 13. */
  unsqueeze(x: string, axes: readonly number[], label?: string): string {
    return this.#withAxes('Unsqueeze', x, axes, {}, 13, label);
  }

  /** Axes moved from an attribute to an input in opset 13. */
  squeeze(x: string, axes: readonly number[], label?: string): string {
    return this.#withAxes('Squeeze', x, axes, {}, 13, label);
  }

  /** The largest along one axis, which stays with size 1; axes moved from an attribute to an input in opset 18. */
  reduceMax(x: string, axis: number, label?: string): string {
    return this.#withAxes('ReduceMax', x, [axis], { keepdims: 1 }, 18, label);
  }

  #withAxes(
    type: string,
    x: string,
    axes: readonly number[],
    attributes: Record<string, AttributeValue>,
    inputSince: number,
    label?: string,
  ): string {
    const named = label === undefined ? {} : { label };
    if (this.opset < inputSince) return this.op(type, [x], { attributes: { axes, ...attributes }, ...named });
    return this.op(type, [x, this.ints(axes)], { attributes, ...named });
  }

  /** What one of two branches computes, of this type; both see all values made before. */
  choose(
    condition: string,
    elementType: number,
    then: (e: NodeEmitter) => string,
    otherwise: (e: NodeEmitter) => string,
    label: string,
  ): string {
    const branch = (name: string, emit: (e: NodeEmitter) => string) => {
      const inner = new NodeEmitter(this.opset, `${this.prefix}${name}/`);
      const output = [tensorInfo(emit(inner), elementType)];
      return GraphProto.create({ name, node: inner.nodes, output });
    };
    const attributes = { then_branch: branch('then', then), else_branch: branch('else', otherwise) };
    return this.op('If', [condition], { attributes, label });
  }

  /** The smaller of two integers, one by one; `Min` takes integers since opset 12, `Less` since 9. */
  smaller(a: string, b: string, label: string): string {
    if (this.opset >= 12) return this.op('Min', [a, b], { label });
    return this.op('Where', [this.op('Less', [a, b]), a, b], { label });
  }

  /** The larger of two integers, one by one; `Max` takes integers since opset 12, `Less` since 9. */
  larger(a: string, b: string, label: string): string {
    if (this.opset >= 12) return this.op('Max', [a, b], { label });
    return this.op('Where', [this.op('Less', [a, b]), b, a], { label });
  }

  /** Elements start to end, not counting end, of one axis. Bounds that are no numbers need opset 10. */
  slice(x: string, axis: number, start: number, end: Size, label?: string): string {
    const named = label === undefined ? {} : { label };
    if (this.opset >= 10) {
      const stop = typeof end === 'number' ? this.ints([end]) : end;
      return this.op('Slice', [x, this.ints([start]), stop, this.ints([axis])], named);
    }
    if (typeof end === 'string') {
      throw new OrtFlashError(
        'unsupported',
        `a slice whose size is known at run time only, in opset ${this.opset}`,
        {},
        'convert the model to opset 10 or later',
      );
    }
    return this.op('Slice', [x], { attributes: { axes: [axis], starts: [start], ends: [end] }, ...named });
  }

  /** Elements of one axis, from and up to what vectors of one int64 say; needs opset 10. An end past the axis is its end. */
  sliceAt(x: string, axis: number, start: string, end: string, label: string): string {
    return this.op('Slice', [x, start, end, this.ints([axis])], { label });
  }

  /** Sizes of the axes from start to end, not counting end, as a vector. */
  sizes(x: string, start: number, end: number, label = 'sizes'): string {
    if (this.opset >= 15) return this.op('Shape', [x], { attributes: { start, end }, label });
    return this.slice(this.op('Shape', [x], { label: 'shape' }), 0, start, end, label);
  }

  /** Size of one axis, of rank 0. */
  size(x: string, axis: number, label = 'size'): string {
    return this.op('Gather', [this.op('Shape', [x], { label: 'shape' }), this.int(axis)], { label });
  }

  /**
   * Reshapes; a size of 0 stands for that of the input's axis of the same place, −1 for what remains.
   */
  reshape(x: string, shape: readonly Size[], label?: string): string {
    const named = label === undefined ? {} : { label };
    if (shape.every((s) => typeof s === 'number')) return this.op('Reshape', [x, this.ints(shape, 'shape')], named);
    const parts: string[] = [];
    let run: number[] = [];
    const flush = () => {
      if (run.length > 0) parts.push(this.ints(run));
      run = [];
    };
    for (const size of shape) {
      if (typeof size === 'number') {
        run.push(size);
        continue;
      }
      flush();
      parts.push(size);
    }
    flush();
    return this.op('Reshape', [x, this.concat(parts, 0, 'shape')], named);
  }

  concat(parts: readonly string[], axis: number, label?: string): string {
    if (parts.length === 1) return parts[0]!;
    return this.op('Concat', parts, { attributes: { axis }, ...(label === undefined ? {} : { label }) });
  }

  /**
   * The vector 0, 1, … count − 1; count has rank 0.
   * `Range` exists since opset 11; before, the indices of a vector of ones say the same, and that takes opset 9.
   */
  countTo(count: string, label: string): string {
    if (this.opset >= 11) return this.op('Range', [this.int(0), count, this.int(1)], { label });
    const ones = this.op('ConstantOfShape', [this.unsqueeze(count, [0])], {
      attributes: { value: makeTensor('', 'int64', [1], [1]) },
    });
    return this.squeeze(this.op('NonZero', [ones]), [0], label);
  }

  /** Softmax over the last axis; before opset 13 the operator sees two dimensions, split at its axis. */
  softmax(x: string, rank: number): string {
    return this.op('Softmax', [x], { attributes: { axis: rank - 1 } });
  }
}

/**
 * The name of a float element type.
 * @throws OrtFlashError `invalid-argument` for a type that Q, K and V cannot have
 */
export function floatTypeName(elementType: number): 'float32' | 'float16' | 'bfloat16' | 'float64' {
  const name = dataTypeInfo(elementType)?.name;
  if (name === 'float32' || name === 'float16' || name === 'bfloat16' || name === 'float64') return name;
  throw new OrtFlashError('invalid-argument', `FlashAttention takes no elements of ${name ?? `type ${elementType}`}`);
}

/** The wider of two float types; float16 and bfloat16 count as equally wide, and the first of them is kept. */
export function widerFloat(a: number, b: number): number {
  const width = (type: number) => (type === DataType.DOUBLE ? 64 : type === DataType.FLOAT ? 32 : 16);
  return width(b) > width(a) ? b : a;
}

/** A value made when it is first asked for, and kept. */
export function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
