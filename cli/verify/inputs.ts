/** Random inputs that make sense to a model. Runs in browsers too. */
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { dataTypeName } from '../../graph-rewrite/onnx/data-type.js';
import type { TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';
import type { ModelInput, ModelSignature } from './signature.js';
import { type Binding, isMaskName, isPastName, type MaskPattern, resolve, type SizeCase } from './sizes.js';

/** Uniform numbers in [0, 1) that are the same in every run with the same seed (Marsaglia, "Xorshift RNGs", 2003). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0 || 1;
    for (let warmUp = 0; warmUp < 8; warmUp++) this.uniform();
  }

  uniform(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    return this.#state / 2 ** 32;
  }

  /** An integer in [0, limit). */
  below(limit: number): number {
    return Math.floor(this.uniform() * limit);
  }

  /** Standard normal (Box and Muller, 1958). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
}

/** Element types that ONNX Runtime's JavaScript packages take. */
export const RUNTIME_TYPES: ReadonlySet<string> = new Set([
  'float32',
  'uint8',
  'int8',
  'uint16',
  'int16',
  'int32',
  'int64',
  'bool',
  'float16',
  'float64',
  'uint32',
  'uint64',
]);

/**
 * Random inputs of the given sizes, by name: ids within the tables that they index, positions that follow the past,
 * masks of the given patterns.
 * @returns `undefined` where the binding does not give every dimension
 * @throws OrtFlashError `unsupported` for an element type that the runtime does not take
 */
export function makeInputs(
  signature: ModelSignature,
  binding: Binding,
  sizes: SizeCase,
  random: Random,
): Map<string, TensorProto> | undefined {
  const inputs = new Map<string, TensorProto>();
  for (const input of signature.inputs) {
    const shape = resolve(input.dimensions, binding);
    if (!shape) return undefined;
    const values = makeValues(input, shape, sizes, random);
    const type = dataTypeName(input.elementType);
    if (!RUNTIME_TYPES.has(type)) {
      const hint = 'give its inputs with --inputs';
      throw new OrtFlashError(
        'unsupported',
        `no random values for inputs of type ${type}`,
        { tensor: input.name },
        hint,
      );
    }
    inputs.set(input.name, makeTensor(input.name, type as 'float32', shape, values));
  }
  return inputs;
}

function makeValues(input: ModelInput, shape: readonly number[], sizes: SizeCase, random: Random): number[] {
  const count = shape.reduce((product, extent) => product * extent, 1);
  const fill = (next: (index: number) => number) => Array.from({ length: count }, (_, index) => next(index));
  const type = dataTypeName(input.elementType);
  const isFloat = type.startsWith('float');
  if (isMaskName(input.name)) {
    const allowed = maskValues(shape, sizes, random);
    // A float mask is either multiplied (1 and 0) or added (0 and a large negative number); any value is legal input.
    const additive = isFloat && shape.length > 2;
    return additive ? allowed.map((allow) => (allow ? 0 : -10000)) : allowed;
  }
  if (isFloat) return fill(() => random.normal());
  if (type === 'bool') return fill(() => random.below(2));
  const limit = input.tableSize;
  if (isPositionName(input.name)) {
    const extent = shape.at(-1) ?? 1;
    return fill((index) => Math.min(sizes.past + (index % extent), (limit ?? Number.MAX_SAFE_INTEGER) - 1));
  }
  if (/nonpad|seqlen|lengths?$/i.test(input.name)) return fill(() => sizes.past + 1 + random.below(sizes.length));
  if (isPastName(input.name)) return fill(() => sizes.past);
  return fill(() => random.below(limit ?? 2));
}

function isPositionName(name: string): boolean {
  return /position/i.test(name);
}

/** 1 where a key takes part; the last axis counts keys, the first the batch, and rows in between differ. */
function maskValues(shape: readonly number[], sizes: SizeCase, random: Random): number[] {
  const keys = shape.at(-1) ?? 1;
  const rows = shape.slice(0, -1).reduce((product, extent) => product * extent, 1);
  const items = shape.length > 1 ? shape[0]! : 1;
  const values: number[] = [];
  for (let row = 0; row < rows; row++) {
    const item = Math.floor((row * items) / rows);
    values.push(...maskRow(keys, sizes.patterns[item % sizes.patterns.length]!, item, random));
  }
  return values;
}

function maskRow(keys: number, pattern: MaskPattern, item: number, random: Random): number[] {
  const padding = Math.min(keys - 1, 1 + Math.floor(keys / 3) + item);
  const row = Array.from({ length: keys }, (_, key) => {
    if (pattern === 'right') return Number(key < keys - padding);
    if (pattern === 'left') return Number(key >= padding);
    return pattern === 'holes' ? Number(random.uniform() < 0.7) : 1;
  });
  if (!row.includes(1)) row[random.below(keys)] = 1;
  return row;
}
