import { halfToNumber } from '../../graph-rewrite/op/half.js';

/** What is compared of a tensor: any ONNX Runtime's. */
export interface ComparedTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: unknown;
}

/** How two tensors of the same name differ. */
export interface Difference {
  /** Set where the tensors cannot be compared element by element: another type or shape. */
  readonly mismatch?: string;
  /** Largest |a − b| over the elements where both are finite. */
  readonly largest: number;
  /** Largest finite |a|. */
  readonly scale: number;
  /** Elements that are finite in both, or the same infinity, or NaN in both. */
  readonly compared: number;
  /** Elements where a is NaN and b is not. */
  readonly onlyFirstUndefined: number;
  /** Elements where b is NaN or infinite and a is something else, and infinities of a that b lacks. */
  readonly onlySecondUndefined: number;
}

type Elements = ArrayLike<number> | ArrayLike<bigint> | readonly string[];

let halfTable: Float32Array | undefined;

/** A tensor's elements as numbers, 64-bit integers or strings; float16 bits are decoded. */
export function elementsOf(tensor: ComparedTensor): Elements {
  const data = tensor.data;
  if (tensor.type !== 'float16' || !(data instanceof Uint16Array)) return data as Elements;
  halfTable ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => halfToNumber(bits, 'float16'));
  const table = halfTable;
  return Float32Array.from(data, (bits) => table[bits]!);
}

/** Compares two tensors element by element. */
export function compareTensors(a: ComparedTensor, b: ComparedTensor): Difference {
  const none = { largest: 0, scale: 0, compared: 0, onlyFirstUndefined: 0, onlySecondUndefined: 0 };
  if (a.type !== b.type) return { ...none, mismatch: `type ${a.type} became ${b.type}` };
  if (a.dims.join() !== b.dims.join()) {
    return { ...none, mismatch: `shape (${a.dims.join(', ')}) became (${b.dims.join(', ')})` };
  }
  const first = elementsOf(a);
  const second = elementsOf(b);
  if (typeof first[0] === 'string') {
    const differ = Array.from(first as readonly string[]).filter((text, index) => text !== second[index]).length;
    return { ...none, largest: differ > 0 ? Number.POSITIVE_INFINITY : 0, compared: first.length };
  }
  return compareNumbers(first as ArrayLike<number>, second as ArrayLike<number>);
}

function compareNumbers(first: ArrayLike<number | bigint>, second: ArrayLike<number | bigint>): Difference {
  let largest = 0;
  let scale = 0;
  let compared = 0;
  let onlyFirstUndefined = 0;
  let onlySecondUndefined = 0;
  for (let index = 0; index < first.length; index++) {
    const x = Number(first[index]);
    const y = Number(second[index]);
    if (Number.isFinite(x)) scale = Math.max(scale, Math.abs(x));
    if (Object.is(x, y) || first[index] === second[index]) compared++;
    else if (Number.isNaN(x)) onlyFirstUndefined++;
    else if (!Number.isFinite(x) || !Number.isFinite(y)) onlySecondUndefined++;
    else {
      compared++;
      largest = Math.max(largest, Math.abs(x - y));
    }
  }
  return { largest, scale, compared, onlyFirstUndefined, onlySecondUndefined };
}

/**
 * Largest difference allowed, as a share of the output's largest magnitude: what reordering the sums of a transformer
 * of this element type amounts to. Integers, booleans and strings must be equal.
 */
export function defaultTolerance(type: string): number {
  if (type === 'float32') return 1e-4;
  if (type === 'float16') return 2e-2;
  if (type === 'bfloat16') return 5e-2;
  if (type === 'float64') return 1e-9;
  return 0;
}
