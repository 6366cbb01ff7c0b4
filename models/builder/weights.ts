import { closeSync, openSync, writeSync } from 'node:fs';
import Long from 'long';
import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import { DataLocation, StringStringEntryProto, TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { numberToHalf } from '../../graph-rewrite/op/half.js';

export type WeightType = 'float32' | 'float16';

/** Makes weights: uniformly random between −bound and bound, or all of one value. */
export interface WeightSource {
  random(name: string, shape: readonly number[], bound: number): TensorProto;
  constant(name: string, shape: readonly number[], value: number): TensorProto;
  /** Ends the data file, where there is one. */
  close(): void;
}

const BYTES: Readonly<Record<WeightType, number>> = { float32: 4, float16: 2 };
/** Elements made at a time: what bounds the memory of a model whose weights go to a file. */
const BLOCK = 1 << 20;
/** External tensors begin at multiples of this many bytes, so that a runtime can map the file. */
const ALIGNMENT = 4096;
/** float16 weights take one of this many values; a table is what makes them fast. */
const LEVELS = 4096;

/** A small fast generator with a period of 2³² (xorshift, Marsaglia 2003), its state in one number. */
class Random {
  private state: number;

  constructor(seed: number) {
    this.state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  }

  fill(block: Uint8Array, type: WeightType, bound: number): void {
    let state = this.state;
    const count = block.length / BYTES[type];
    const floats = type === 'float32' ? new Float32Array(block.buffer, block.byteOffset, count) : undefined;
    const halves = type === 'float16' ? new Uint16Array(block.buffer, block.byteOffset, count) : undefined;
    const levels = Uint16Array.from({ length: halves ? LEVELS : 0 }, (_, i) =>
      numberToHalf(((2 * i + 1) / LEVELS - 1) * bound, 'float16'),
    );
    for (let i = 0; i < count; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      if (floats) floats[i] = (state / 2 ** 31) * bound;
      else halves![i] = levels[state >>> 20]!;
    }
    this.state = state;
  }
}

function fillConstant(block: Uint8Array, type: WeightType, value: number): void {
  const count = block.length / BYTES[type];
  if (type === 'float32') new Float32Array(block.buffer, block.byteOffset, count).fill(value);
  else new Uint16Array(block.buffer, block.byteOffset, count).fill(numberToHalf(value, 'float16'));
}

abstract class Source implements WeightSource {
  protected readonly type: WeightType;
  private readonly generator: Random;

  constructor(type: WeightType, seed: number) {
    this.type = type;
    this.generator = new Random(seed);
  }

  random(name: string, shape: readonly number[], bound: number): TensorProto {
    return this.make(name, shape, (block) => this.generator.fill(block, this.type, bound));
  }

  constant(name: string, shape: readonly number[], value: number): TensorProto {
    return this.make(name, shape, (block) => fillConstant(block, this.type, value));
  }

  close(): void {}

  protected abstract make(name: string, shape: readonly number[], fill: (block: Uint8Array) => void): TensorProto;

  protected tensor(name: string, shape: readonly number[]): TensorProto {
    const dims = shape.map((extent) => Long.fromNumber(extent));
    return TensorProto.create({ name, dims, data_type: dataTypeOf(this.type) });
  }

  protected byteSize(shape: readonly number[]): number {
    return shape.reduce((product, extent) => product * extent, BYTES[this.type]);
  }
}

/** Keeps weights in the model. */
export class InlineWeights extends Source {
  protected override make(name: string, shape: readonly number[], fill: (block: Uint8Array) => void): TensorProto {
    const tensor = this.tensor(name, shape);
    tensor.raw_data = new Uint8Array(this.byteSize(shape));
    fill(tensor.raw_data);
    return tensor;
  }
}

/** Streams weights to a data file, a block at a time. */
export class ExternalWeights extends Source {
  private readonly file: number;
  private readonly location: string;
  private readonly block: Uint8Array;
  private position = 0;

  /** @param location the file's name as the model gives it, relative to the model's folder */
  constructor(type: WeightType, seed: number, path: string, location: string) {
    super(type, seed);
    this.file = openSync(path, 'w');
    this.location = location;
    this.block = new Uint8Array(BLOCK * BYTES[type]);
  }

  protected override make(name: string, shape: readonly number[], fill: (block: Uint8Array) => void): TensorProto {
    const length = this.byteSize(shape);
    const offset = Math.ceil(this.position / ALIGNMENT) * ALIGNMENT;
    for (let done = 0; done < length; done += this.block.length) {
      const part = this.block.subarray(0, Math.min(this.block.length, length - done));
      fill(part);
      writeSync(this.file, part, 0, part.length, offset + done);
    }
    this.position = offset + length;
    const entry = (key: string, value: string | number) => StringStringEntryProto.create({ key, value: String(value) });
    const tensor = this.tensor(name, shape);
    tensor.data_location = DataLocation.EXTERNAL;
    tensor.external_data = [entry('location', this.location), entry('offset', offset), entry('length', length)];
    return tensor;
  }

  override close(): void {
    closeSync(this.file);
  }
}
