/** Random problems for FlashAttention over all its options, and ONNX Runtime as the machine to run them on. */
import fc from 'fast-check';
import Long from 'long';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import { opsetImports, tensorInfo } from '../graph-rewrite/onnx/make.js';
import { type FunctionProto, GraphProto, ModelProto, type NodeProto } from '../graph-rewrite/onnx/proto.js';
import type { FunctionVariant } from '../graph-rewrite/op/body.js';
import type { MaskVariant } from '../graph-rewrite/op/body-mask.js';
import {
  DEFAULT_ATTRIBUTES,
  type FlashAttentionAttributes,
  type FlashAttentionInput,
} from '../graph-rewrite/op/definition.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import { type Axis, isMerged, parseLayout } from '../graph-rewrite/op/layout.js';
import {
  type AttentionProblem,
  type ProblemInputs,
  type ProblemType,
  resolveProblem,
} from '../graph-rewrite/op/problem.js';
import { type ReferenceInputs, referenceAttention } from '../graph-rewrite/op/reference.js';

export type Values = Float32Array | Float64Array | Uint16Array | Uint8Array | BigInt64Array;

export interface TestTensor {
  readonly type: ProblemType;
  readonly shape: readonly number[];
  readonly data: Values;
}

export type TestTensors = Readonly<
  Record<'Q' | 'K' | 'V', TestTensor> & Partial<Record<FlashAttentionInput, TestTensor>>
>;

/** A call of FlashAttention with its data, and what a function body may know of it. */
export interface TestProblem {
  readonly attributes: FlashAttentionAttributes;
  readonly tensors: TestTensors;
  readonly problem: AttentionProblem;
  readonly variant: FunctionVariant;
}

export interface ProblemOptions {
  readonly opset: number;
  readonly type: 'float32' | 'float16';
  /** Leaves out what opsets 7 and 8 cannot say. */
  readonly plain?: boolean;
  /** Draws problems as other operators may have them: always as listed, never otherwise where a feature is false. */
  readonly features?: Partial<Record<Feature, boolean>>;
  /** Head dimensions that may be drawn. */
  readonly headDimensions?: readonly number[];
}

export type Feature =
  | 'past'
  | 'causal'
  | 'windows'
  | 'alignEnd'
  | 'lengths'
  | 'sink'
  | 'mask'
  | 'emptyRows'
  | 'period'
  | 'softcap'
  | 'precision'
  | 'finite'
  | 'grouped'
  | 'slices'
  | 'self'
  | 'sameDimension'
  | 'known';

type Pick = fc.GeneratorValue;

const LAYOUTS = ['BHSD', 'BSHD', 'BS(HD)', 'SB(HD)', 'S(BH)D', '(BH)SD', 'BHDS', 'B(HD)S', '(BH)DS', 'HBSD'];
const PACKED = ['BS([1/3]HD)', 'BS(H[2/3]D)', '[0/3]BHSD', 'BSH([1/2]D)', 'BS(HD@3/40)', 'BSH(D@2/12)', 'B[1/2]HSD'];

const SIZE_LIMIT: Readonly<Record<Axis, number>> = { B: 3, H: 3, S: 5, D: 5 };

/** Draws a problem. */
export function drawProblem(
  pick: Pick,
  { opset, type, plain = false, features = {}, headDimensions }: ProblemOptions,
): TestProblem {
  const int = (min: number, max: number) => pick(fc.integer, { min, max });
  const maybe = (odds = 3) => int(0, odds - 1) === 0;
  const has = (feature: Feature, odds: number) => features[feature] ?? maybe(odds);
  const of = <T>(...choices: readonly T[]): T => choices[int(0, choices.length - 1)]!;

  const keyHeads = int(1, SIZE_LIMIT.H);
  const ratio = has('grouped', 2) ? of(2, 3) : 1;
  const batch = int(1, SIZE_LIMIT.B);
  const queries = int(1, SIZE_LIMIT.S);
  const newKeys = has('self', 2) ? queries : int(1, SIZE_LIMIT.S + 1);
  const dim = headDimensions === undefined ? int(1, SIZE_LIMIT.D) : of(...headDimensions);
  const valueDim = has('sameDimension', 2) ? dim : int(1, SIZE_LIMIT.D);
  const hasPast = has('past', 3);
  const pastKeys = hasPast ? int(0, 4) : 0;
  const keys = pastKeys + newKeys;
  const heads = keyHeads * ratio;

  const common = LAYOUTS[int(0, LAYOUTS.length - 1)]!;
  const layoutFor = (heads_: number, choices: readonly string[]) => {
    const special = [...(batch === 1 ? ['SHD', 'S(HD)', 'HSD'] : []), ...(heads_ === 1 ? ['BSD', 'SBD'] : [])];
    return maybe(2) ? common : of(...choices, ...special);
  };
  const query = { B: batch, H: heads, S: queries, D: dim };
  const key = { B: batch, H: keyHeads, S: newKeys, D: dim };
  const value = { B: batch, H: keyHeads, S: newKeys, D: valueDim };
  const packed = PACKED.filter((layout) => !layout.includes('@') || (opset >= 10 && features.slices !== false));
  const inputLayouts = [...LAYOUTS, ...packed.filter((l) => !l.includes('@') || dim * keyHeads * ratio <= 30)];
  const queryLayout = layoutFor(heads, inputLayouts);
  const keyLayout = layoutFor(keyHeads, inputLayouts);
  // Where all are slices, none tells the head dimension, and a value's slice is as wide as the keys.
  const sliced = (layout: string) => layout.includes('@');
  let valueLayout = layoutFor(keyHeads, inputLayouts);
  if (sliced(valueLayout) && valueDim !== dim && !hasPast) valueLayout = 'BHSD';
  const outputLayout = layoutFor(heads, LAYOUTS);
  const safeKeyLayout = sliced(queryLayout) && sliced(keyLayout) ? 'BSHD' : keyLayout;

  const merged = (layout: string) => isMerged(parseLayout(layout), 'H');
  const needsKeyHeads = merged(safeKeyLayout) || merged(valueLayout);
  const canMask = !plain;
  const windowed = canMask && has('windows', 3);
  const attributes: FlashAttentionAttributes = {
    ...DEFAULT_ATTRIBUTES,
    scale: maybe(4) ? 0 : of(1, 0.5, 0.3, 0.125, -0.7),
    isCausal: canMask && has('causal', 2),
    queryHeads: merged(queryLayout) || merged(outputLayout) || maybe(2) ? heads : 0,
    keyHeads: needsKeyHeads || maybe(2) ? keyHeads : 0,
    softcap: has('softcap', 4) ? of(2, 0.75) : 0,
    leftWindow: windowed ? int(-1, 3) : -1,
    rightWindow: windowed ? int(-1, 3) : -1,
    alignEnd: canMask && has('alignEnd', 4),
    maskedValue: has('finite', 3) ? of(-1e4, -3.4028234663852886e38) : Number.NEGATIVE_INFINITY,
    softmaxPrecision: has('precision', 4) ? of(1, 10, ...(plain ? [] : [11])) : 0,
    queryLayout,
    keyLayout: safeKeyLayout,
    valueLayout,
    outputLayout,
  };
  const float = (shape: readonly number[]) => drawFloats(pick, type, shape);
  const hasLengths = canMask && has('lengths', 4);
  const tensors: Record<string, TestTensor> = {
    Q: float(physicalShape(queryLayout, query)),
    K: float(physicalShape(safeKeyLayout, key)),
    V: float(physicalShape(valueLayout, value)),
  };
  if (hasPast) {
    tensors.past_key = float([batch, keyHeads, pastKeys, dim]);
    tensors.past_value = float([batch, keyHeads, pastKeys, valueDim]);
  }
  if (hasLengths) {
    const lengths = Array.from({ length: batch }, () => BigInt(int(0, keys)));
    tensors.nonpad_kv_seqlen = { type: 'int64', shape: [batch], data: BigInt64Array.from(lengths) };
  }
  if (has('sink', 5)) tensors.sink = float([heads]);
  let maskPeriod = 0;
  let mask: MaskVariant | undefined;
  if (has('mask', 2)) {
    maskPeriod = !plain && has('period', 4) ? of(...[1, 2, 3].filter((p) => batch % p === 0)) : 0;
    const full = [maskPeriod || batch, heads, queries, keys];
    const drawn = drawMask(pick, type, full, maskPeriod > 0, plain || features.emptyRows === false, features.emptyRows);
    tensors.attn_mask = drawn.tensor;
    mask = drawn.variant;
  }
  const withPeriod = { ...attributes, maskPeriod };
  const known = has('known', 2)
    ? { headDimension: dim, valueDimension: valueDim, queryHeads: heads, keyHeads }
    : undefined;
  return {
    attributes: withPeriod,
    tensors: tensors as unknown as TestTensors,
    problem: resolveProblem(withPeriod, tensors as unknown as ProblemInputs),
    variant: {
      attributes: withPeriod,
      elementType: dataTypeOf(type),
      opset,
      hasPast,
      hasLengths,
      hasSink: tensors.sink !== undefined,
      ...(mask === undefined ? {} : { mask }),
      ...(known === undefined ? {} : { known }),
    },
  };
}

function drawMask(
  pick: Pick,
  type: 'float32' | 'float16',
  full: readonly number[],
  isPeriodic: boolean,
  spansKeys: boolean,
  emptyRows?: boolean,
) {
  const int = (min: number, max: number) => pick(fc.integer, { min, max });
  const rank = isPeriodic ? 4 : int(0, 4);
  const shape = full.slice(4 - rank).map((size, i) => (int(0, 2) === 0 && !(isPeriodic && i === 0) ? 1 : size));
  const mayBeShorter = !spansKeys && int(0, 2) === 0;
  if (mayBeShorter && rank > 0 && shape.at(-1)! > 2) shape[rank - 1] = int(2, shape.at(-1)!);
  const count = shape.reduce((a, b) => a * b, 1);
  const kind = int(0, 1) === 0 ? 'boolean' : 'additive';
  const last = shape.at(-1) ?? 1;
  // Without empty rows, the first key always stays.
  const out = Array.from({ length: count }, (_, i) => int(0, 2) === 0 && (emptyRows !== false || i % last > 0));
  const floats = out.map((isOut) => (isOut ? Number.NEGATIVE_INFINITY : int(-8, 8) / 4));
  const tensor: TestTensor =
    kind === 'boolean'
      ? { type: 'bool', shape, data: Uint8Array.from(out, (isOut) => (isOut ? 0 : 1)) }
      : { type, shape, data: type === 'float16' ? encodeHalf(floats, type) : Float32Array.from(floats) };
  // Some row may be empty unless no element is masked at all.
  const mayEmptyRows = emptyRows ?? (mayBeShorter || out.includes(true) || int(0, 1) === 0);
  return { tensor, variant: { kind, rank, mayBeShorter, mayEmptyRows } as const };
}

function drawFloats(pick: Pick, type: 'float32' | 'float16', shape: readonly number[]): TestTensor {
  const count = shape.reduce((a, b) => a * b, 1);
  // One drawn seed for each tensor: thousands of drawn numbers would only slow the search down.
  let state = pick(fc.integer, { min: 1, max: 0x7ffffffe });
  const next = () => {
    state = (state * 48271) % 0x7fffffff;
    return (state / 0x7fffffff) * 4 - 2;
  };
  const values = Float32Array.from({ length: count }, next);
  return { type, shape, data: type === 'float16' ? encodeHalf(values, type) : values };
}

/** Shape of a tensor that holds these sizes in this layout, packed parts and slices included. */
export function physicalShape(layout: string, size: Readonly<Record<Axis, number>>): number[] {
  return parseLayout(layout).map(
    ({ factors, slice }) =>
      slice?.width ?? factors.reduce<number>((p, f) => p * (typeof f === 'string' ? size[f] : f.parts), 1),
  );
}

/** Describes a problem in one line, for a failed property's message. */
export function describeProblem({ attributes, tensors, variant }: TestProblem): string {
  const shapes = Object.entries(tensors).map(([name, { type, shape }]) => `${name} ${type}(${shape.join(',')})`);
  const set = Object.entries(attributes).filter(
    ([field, value]) => value !== DEFAULT_ATTRIBUTES[field as keyof FlashAttentionAttributes],
  );
  return `opset ${variant.opset}: ${shapes.join(' ')}; ${set.map(([f, v]) => `${f}=${v}`).join(' ')}; ${JSON.stringify(variant.known)} ${JSON.stringify(variant.mask)}`;
}

export interface ModelParts {
  readonly nodes: readonly NodeProto[];
  readonly functions?: readonly FunctionProto[];
  readonly inputs: Readonly<
    Record<string, { readonly type: ProblemType | 'int32'; readonly shape: readonly number[] }>
  >;
  /** Names of the outputs, and their types. */
  readonly outputs: Readonly<Record<string, ProblemType>>;
  readonly opset: number;
  readonly domains?: readonly string[];
}

/** A model of these parts. With `dynamic`, only the ranks of its inputs are declared, and no size. */
export function buildModel(parts: ModelParts, dynamic = false): Uint8Array {
  const { nodes, functions = [], inputs, outputs, opset, domains = ['ortflash'] } = parts;
  const input = Object.entries(inputs).map(([name, { type, shape }]) =>
    tensorInfo(name, type, dynamic ? shape.map((_, i) => `${name}_${i}`) : shape),
  );
  const versions = { '': opset, ...Object.fromEntries(domains.map((domain) => [domain, 1])) };
  return encodeModel(
    ModelProto.create({
      ir_version: Long.fromNumber(10),
      opset_import: opsetImports(versions),
      functions: [...functions],
      graph: GraphProto.create({
        name: 'test',
        node: [...nodes],
        input,
        output: Object.entries(outputs).map(([name, type]) => tensorInfo(name, type)),
      }),
    }),
  );
}

/** Runs a model in onnxruntime-node on the CPU; float16 comes back as numbers. */
export async function runModel(
  model: Uint8Array,
  tensors: Readonly<Record<string, { type: string; shape: readonly number[]; data: unknown }>>,
): Promise<Record<string, { shape: readonly number[]; data: ArrayLike<number> }>> {
  const session = await InferenceSession.create(model, { logSeverityLevel: 4 });
  try {
    const feeds = Object.fromEntries(
      session.inputNames.map((name) => {
        const { type, shape, data } = tensors[name]!;
        return [name, new Tensor(type as 'float32', data as Float32Array, shape)];
      }),
    );
    const results = await session.run(feeds);
    return Object.fromEntries(
      Object.entries(results).map(([name, { type, dims, data }]) => [
        name,
        { shape: dims, data: type === 'float16' ? decodeHalf(data as Uint16Array, 'float16') : (data as Float32Array) },
      ]),
    );
  } finally {
    await session.release();
  }
}

export function referenceOf({ problem, tensors }: TestProblem) {
  const data = Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, tensor.data]));
  return referenceAttention(problem, data as unknown as ReferenceInputs);
}

/** What differs more than `absolute + relative · |expected|`; undefined where nothing does. */
export function difference(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { absolute, relative }: { absolute: number; relative: number },
): string | undefined {
  if (actual.length !== expected.length) return `${actual.length} elements, expected ${expected.length}`;
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i]! - expected[i]!);
    const isSame = Object.is(actual[i], expected[i]) || error <= absolute + relative * Math.abs(expected[i]!);
    if (!isSame) return `element ${i} is ${actual[i]}, expected ${expected[i]}`;
  }
  return undefined;
}
