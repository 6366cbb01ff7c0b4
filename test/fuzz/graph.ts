/** Builds random ONNX graphs whose tensors know which axes each of their dimensions is made of. */
import Long from 'long';
import { makeNode } from '../../graph-rewrite/graph/builder.js';
import { type DataTypeName, dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import {
  GraphProto,
  ModelProto,
  type NodeProto,
  OperatorSetIdProto,
  type TensorProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';
import type { AttributeValue } from '../../graph-rewrite/op/emit.js';

/** A stream of choices; where it has ended every choice is the first, which is the plainest. */
export class Choices {
  #at = 0;
  readonly #numbers: readonly number[];

  constructor(numbers: readonly number[]) {
    this.#numbers = numbers;
  }

  below(limit: number): number {
    return (this.#numbers[this.#at++] ?? 0) % limit;
  }

  pick<T>(...items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  /** True once in so many times. */
  rarely(times: number): boolean {
    return this.below(times) === times - 1;
  }

  shuffle<T>(items: readonly T[]): T[] {
    const left = [...items];
    return items.map(() => left.splice(this.below(left.length), 1)[0]!);
  }
}

/** Axes of one dimension, outermost first; none for size 1. */
export type Dims = readonly (readonly string[])[];

/** A tensor and what its dimensions mean. */
export interface Piece {
  readonly name: string;
  readonly dims: Dims;
}

export interface FuzzInput {
  readonly name: string;
  readonly type: DataTypeName;
  readonly dims: Dims;
}

export const sameAxes = (a: readonly string[] = [], b: readonly string[] = []) =>
  a.length === b.length && a.every((x, i) => x === b[i]);
export const sameDims = (a: Dims, b: Dims) => a.length === b.length && a.every((x, i) => sameAxes(x, b[i]));
/** 'b q hgd' as dimensions: letters are axes, 1 is a dimension of size 1. */
export const dims = (text: string): Dims => text.split(' ').map((d) => [...d].filter((c) => c !== '1'));

export class FuzzGraph {
  readonly opset: number;
  readonly type: DataTypeName;
  readonly choices: Choices;
  readonly nodes: NodeProto[] = [];
  readonly inputs: FuzzInput[] = [];
  readonly outputs: string[] = [];
  /** Axes whose sizes the file calls by another's name. */
  readonly aliases = new Map<string, string>();
  readonly #initializers: TensorProto[] = [];
  /** Fixed sizes of axes; others are dynamic. */
  readonly #sizes: Map<string, number>;
  readonly #homes = new Map<string, { readonly tensor: string; readonly axis: number; readonly divisor: number }>();
  readonly #ownNames: boolean;

  constructor(opset: number, type: DataTypeName, sizes: Map<string, number>, choices: Choices, ownNames: boolean) {
    this.opset = opset;
    this.type = type;
    this.choices = choices;
    this.#sizes = sizes;
    this.#ownNames = ownNames;
  }

  op(
    opType: string,
    inputs: readonly string[],
    attributes: Record<string, AttributeValue> = {},
    outputs = 1,
    domain = '',
  ): string {
    const name = `${opType}_${this.nodes.length}`;
    const names = Array.from({ length: outputs }, (_, i) => (i === 0 ? name : `${name}_${i}`));
    this.nodes.push(makeNode(opType, inputs, names, attributes, domain));
    return name;
  }

  tensor(type: DataTypeName, shape: readonly number[], values: readonly number[]): string {
    const name = `constant_${this.#initializers.length}`;
    this.#initializers.push(makeTensor(name, type, shape, values));
    return name;
  }

  /** A scalar of the element type, of rank 0 or 1. */
  float(value: number): string {
    return this.tensor(this.type, this.choices.rarely(3) ? [1] : [], [value]);
  }

  /** A scalar of the element type, of rank 0. */
  float0(value: number): string {
    return this.tensor(this.type, [], [value]);
  }

  ints(values: readonly number[]): string {
    return this.tensor('int64', [values.length], values);
  }

  input(name: string, type: DataTypeName, wanted: Dims): Piece {
    // What a file calls n is not known to be the product of two sizes.
    const shape = wanted.flatMap((d) => (this.hasFixedSize(d) ? [d] : d.map((l) => [l])));
    this.inputs.push({ name, type, dims: shape });
    for (const [axis, labels] of shape.entries()) {
      const open = labels.filter((l) => !this.#sizes.has(l));
      const rest = labels.filter((l) => this.#sizes.has(l)).reduce((n, l) => n * this.#sizes.get(l)!, 1);
      if (open.length === 1 && !this.#homes.has(open[0]!))
        this.#homes.set(open[0]!, { tensor: name, axis, divisor: rest });
    }
    return { name, dims: shape };
  }

  /** Says where the size of an axis can be read. */
  setHome(label: string, piece: Piece, dimension: readonly string[] = [label]): void {
    const axis = piece.dims.findIndex((d) => sameAxes(d, dimension));
    this.#homes.set(label, { tensor: piece.name, axis, divisor: 1 });
  }

  setSize(label: string, size: number): void {
    this.#sizes.set(label, size);
  }

  hasFixedSize(labels: readonly string[]): boolean {
    return labels.every((l) => this.#sizes.has(l));
  }

  fixedSize(labels: readonly string[]): number | undefined {
    const size = (l: string) => this.#sizes.get(l);
    return labels.reduce<number | undefined>(
      (n, l) => (n === undefined || size(l) === undefined ? undefined : n * size(l)!),
      1,
    );
  }

  unsqueeze(x: string, axes: readonly number[]): string {
    return this.opset >= 13 ? this.op('Unsqueeze', [x, this.ints(axes)]) : this.op('Unsqueeze', [x], { axes });
  }

  squeeze(x: string, axes: readonly number[]): string {
    return this.opset >= 13 ? this.op('Squeeze', [x, this.ints(axes)]) : this.op('Squeeze', [x], { axes });
  }

  /** Size of a dimension, a scalar. */
  size(labels: readonly string[], near?: Piece): string {
    const fixed = this.fixedSize(labels);
    if (fixed !== undefined) return this.tensor('int64', [], [fixed]);
    const axis = near?.dims.findIndex((d) => sameAxes(d, labels)) ?? -1;
    if (near && axis >= 0) return this.#sizeAt(near.name, axis);
    return labels
      .map((label) => {
        const home = this.#homes.get(label);
        if (!home) return this.tensor('int64', [], [this.#sizes.get(label)!]);
        const whole = this.#sizeAt(home.tensor, home.axis);
        return home.divisor === 1 ? whole : this.op('Div', [whole, this.tensor('int64', [], [home.divisor])]);
      })
      .reduce((a, b) => this.op('Mul', [a, b]));
  }

  #sizeAt(tensor: string, axis: number): string {
    return this.op('Gather', [this.op('Shape', [tensor]), this.tensor('int64', [], [axis])], { axis: 0 });
  }

  /** A shape as a vector, read off tensors. */
  shape(target: Dims, near?: Piece): string {
    const parts = target.map((labels) => this.unsqueeze(this.size(labels, near), [0]));
    return this.op('Concat', parts, { axis: 0 });
  }

  reshape(t: Piece, target: Dims): Piece {
    if (sameDims(t.dims, target)) return t;
    const full = (list: Dims) => list.filter((d) => d.length > 0);
    if (sameDims(full(t.dims), full(target)) && this.choices.below(3) !== 1) return this.#onesOnly(t, target);
    const sizes = target.map((labels, i) => {
      const fixed = this.fixedSize(labels);
      if (fixed !== undefined) return fixed;
      return sameAxes(labels, t.dims[i]) && t.dims[i] !== undefined ? 0 : -1;
    });
    const style = this.choices.below(4);
    const isConstant = sizes.filter((s) => s === -1).length <= 1;
    if (isConstant && style !== 3) {
      if (style === 1 && !sizes.includes(-1)) sizes[this.choices.below(sizes.length)] = -1;
      return { name: this.op('Reshape', [t.name, this.ints(sizes)]), dims: target };
    }
    return { name: this.op('Reshape', [t.name, this.shape(target, t)]), dims: target };
  }

  #onesOnly(t: Piece, target: Dims): Piece {
    const ones = (list: Dims) => list.flatMap((d, i) => (d.length === 0 ? [i] : []));
    let name = t.name;
    if (ones(t.dims).length > 0) name = this.squeeze(name, ones(t.dims));
    if (ones(target).length > 0) name = this.unsqueeze(name, ones(target));
    return { name, dims: target };
  }

  transpose(t: Piece, order: readonly number[]): Piece {
    if (order.every((axis, i) => axis === i)) return t;
    return { name: this.op('Transpose', [t.name], { perm: order }), dims: order.map((axis) => t.dims[axis]!) };
  }

  /** Brings the axes into these dimensions, as Reshape, Transpose, Reshape. */
  rearrange(t: Piece, target: Dims): Piece {
    if (sameDims(t.dims, target)) return t;
    const flat = target.flat();
    const intact = t.dims.every((d) => {
      const at = flat.indexOf(d[0] ?? '');
      return d.length === 0 || sameAxes(flat.slice(at, at + d.length), d);
    });
    const keepsOnes = intact && t.dims.length === target.length;
    const moved = intact ? t.dims : t.dims.flat().map((l) => [l]);
    const split = keepsOnes || intact ? t : this.reshape(t, moved);
    const places = split.dims.map((d, i) => ({ i, at: d.length === 0 ? -1 : flat.indexOf(d[0]!) }));
    // Dimensions of size 1 stay where they are as far as that goes.
    const present = places.filter((p) => p.at >= 0).sort((a, b) => a.at - b.at);
    const order = places.map((p) => (p.at < 0 ? p.i : present.shift()!.i));
    return this.reshape(this.transpose(split, order), target);
  }

  /** Repeats along an axis that the tensor lacks, put in front of dimension `at`. */
  repeat(t: Piece, at: number, label: string): Piece {
    const wide = this.reshape(t, [...t.dims.slice(0, at), [], ...t.dims.slice(at)]);
    return this.widen(wide, at, [label]);
  }

  /** Repeats a dimension of size 1. */
  widen(t: Piece, at: number, labels: readonly string[]): Piece {
    const target = t.dims.map((d, i) => (i === at ? labels : d));
    const counts = t.dims.map((_, i) => (i === at ? this.fixedSize(labels) : 1));
    const style = this.choices.below(4);
    const known = counts.every((c) => c !== undefined);
    if (style === 1 && known) return { name: this.op('Tile', [t.name, this.ints(counts)]), dims: target };
    if (style === 2 && known && counts[at]! <= 4 && this.choices.below(2) === 0)
      return { name: this.op('Concat', Array(counts[at]!).fill(t.name), { axis: at }), dims: target };
    if (style === 2 && known)
      return { name: this.op('Gather', [t.name, this.ints(Array(counts[at]!).fill(0))], { axis: at }), dims: target };
    if (style === 3 || !known) return { name: this.op('Expand', [t.name, this.shape(target, t)]), dims: target };
    return { name: this.op('Expand', [t.name, this.ints(counts)]), dims: target };
  }

  /** A tensor over some of the axes in a shape that broadcasts to the target's dimensions. */
  broadcast(t: Piece, target: Dims): Piece {
    const own = new Set(t.dims.flat());
    let atoms = this.rearrange(
      t,
      target
        .flat()
        .filter((l) => own.has(l))
        .map((l) => [l]),
    );
    let at = 0;
    for (const dimension of target) {
      const some = dimension.some((l) => own.has(l));
      for (const label of dimension) {
        if (own.has(label)) at++;
        else if (some) atoms = this.repeat(atoms, at++, label);
      }
    }
    const present = new Set(atoms.dims.flat());
    const shaped = target.map((d) => (d.every((l) => present.has(l)) ? d : []));
    const needed = this.choices.rarely(3) ? shaped.slice(shaped.findIndex((d) => d.length > 0)) : shaped;
    return this.reshape(atoms, needed);
  }

  /** One index of an axis, which goes away. */
  part(x: string, axis: number, index: number, count: number, c: Choices): string {
    const style = c.below(3);
    if (style === 0)
      return this.op('Gather', [x, this.tensor('int64', [], [c.rarely(3) ? index - count : index])], { axis });
    if (style === 1) return this.squeeze(this.splitEvenly(x, axis, count, 1, c.below(3))[index]!, [axis]);
    const bounds = [[index], [index + 1], [axis], [1]].map((v) => this.ints(v));
    return this.squeeze(this.op('Slice', [x, ...bounds]), [axis]);
  }

  /** Equal parts of an axis, by Split or by Slices. */
  splitEvenly(x: string, axis: number, count: number, size: number, style: number): string[] {
    if (style === 2) {
      return Array.from({ length: count }, (_, i) => {
        const end = i === count - 1 && this.choices.rarely(2) ? 2 ** 31 : (i + 1) * size;
        return this.op('Slice', [x, ...[[i * size], [end], [axis]].map((v) => this.ints(v))]);
      });
    }
    const sizes = Array<number>(count).fill(size);
    const inputs = this.opset >= 13 ? [x, this.ints(sizes)] : [x];
    const first = this.op('Split', inputs, this.opset >= 13 ? { axis } : { axis, split: sizes }, count);
    return sizes.map((_, i) => (i === 0 ? first : `${first}_${i}`));
  }

  output(name: string): void {
    if (!this.outputs.includes(name)) this.outputs.push(name);
  }

  model(): ModelProto {
    const imports = [new OperatorSetIdProto({ domain: '', version: Long.fromNumber(this.opset) })];
    if (this.nodes.some((n) => n.domain === 'com.microsoft'))
      imports.push(new OperatorSetIdProto({ domain: 'com.microsoft', version: Long.fromNumber(1) }));
    const names = new Map(this.outputs.map((o) => [o, `out_${o}`]));
    const exits = [...names].map(([from, to]) => makeNode('Identity', [from], [to]));
    return new ModelProto({
      ir_version: Long.fromNumber(8),
      opset_import: imports,
      graph: new GraphProto({
        name: 'fuzz',
        node: [...this.nodes, ...exits],
        initializer: this.#initializers,
        input: this.inputs.map((i) => this.#described(i)),
        output: [...names.values()].map((name) => new ValueInfoProto({ name })),
      }),
    });
  }

  #described({ name, type, dims: shape }: FuzzInput): ValueInfoProto {
    const dim = shape.map((labels, axis) => {
      const fixed = this.fixedSize(labels);
      return new TensorShapeProto.Dimension(
        fixed !== undefined
          ? { dim_value: Long.fromNumber(fixed) }
          : { dim_param: this.#ownNames ? `${name}_${axis}` : labels.map((l) => this.aliases.get(l) ?? l).join('x') },
      );
    });
    const tensor = new TypeProto.Tensor({ elem_type: dataTypeOf(type), shape: new TensorShapeProto({ dim }) });
    return new ValueInfoProto({ name, type: new TypeProto({ tensor_type: tensor }) });
  }
}
