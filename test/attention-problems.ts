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
import { flashAttentionNode } from '../graph-rewrite/op/node.js';
import { type AttentionProblem, type ProblemType, resolveProblem } from '../graph-rewrite/op/problem.js';
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

type Generated = fc.GeneratorValue;

const LAYOUTS = ['BHSD', 'BSHD', 'BS(HD)', 'SB(HD)', 'S(BH)D', '(BH)SD', 'BHDS', 'B(HD)S', '(BH)DS', 'HBSD'];
const PACKED = ['BS([1/3]HD)', 'BS(H[2/3]D)', '[0/3]BHSD', 'BSH([1/2]D)', 'BS(HD@3/40)', 'BSH(D@2/12)', 'B[1/2]HSD'];

const SIZE_LIMIT: Readonly<Record<Axis, number>> = { B: 3, H: 3, S: 5, D: 5 };

/** Draws a problem. */
export function drawProblem(pick: Generated, options: ProblemOptions): TestProblem {
  const { opset, type } = options;
  const draw = new Draw(pick, options);
  const sizes = drawSizes(draw, options);
  const { query, value, heads, keyHeads } = sizes;
  const drawn = drawAttributes(draw, sizes, drawLayouts(draw, sizes, options), options);
  const tensors = drawTensors(draw, sizes, drawn, options);
  let attributes = drawn;
  let mask: MaskVariant | undefined;
  if (draw.has('mask', 2)) {
    const periods = [1, 2, 3].filter((period) => sizes.batch % period === 0);
    const maskPeriod = !options.plain && draw.has('period', 4) ? draw.of(...periods) : 0;
    const masked = drawMask(draw, sizes, maskPeriod, options);
    attributes = { ...drawn, maskPeriod };
    tensors.attn_mask = masked.tensor;
    mask = masked.variant;
  }
  const known = { headDimension: query.D, valueDimension: value.D, queryHeads: heads, keyHeads };
  return {
    attributes,
    tensors,
    problem: resolveProblem(attributes, tensors),
    variant: {
      attributes,
      elementType: dataTypeOf(type),
      opset,
      hasPast: tensors.past_key !== undefined,
      hasLengths: tensors.nonpad_kv_seqlen !== undefined,
      hasSink: tensors.sink !== undefined,
      ...(mask === undefined ? {} : { mask }),
      ...(draw.has('known', 2) ? { known } : {}),
    },
  };
}

/** Draws choices, and the features that a caller leaves open. */
class Draw {
  constructor(
    readonly pick: Generated,
    readonly options: ProblemOptions,
  ) {}

  int(min: number, max: number): number {
    return this.pick(fc.integer, { min, max });
  }

  /** True once in so many times. */
  maybe(odds = 3): boolean {
    return this.int(0, odds - 1) === 0;
  }

  has(feature: Feature, odds: number): boolean {
    return this.options.features?.[feature] ?? this.maybe(odds);
  }

  of<T>(...choices: readonly T[]): T {
    return choices[this.int(0, choices.length - 1)]!;
  }
}

interface DrawnSizes {
  readonly batch: number;
  readonly heads: number;
  readonly keyHeads: number;
  /** Undefined where there is no past. */
  readonly pastKeys: number | undefined;
  readonly keys: number;
  readonly query: Readonly<Record<Axis, number>>;
  readonly key: Readonly<Record<Axis, number>>;
  readonly value: Readonly<Record<Axis, number>>;
}

function drawSizes(draw: Draw, { headDimensions }: ProblemOptions): DrawnSizes {
  const keyHeads = draw.int(1, SIZE_LIMIT.H);
  const heads = keyHeads * (draw.has('grouped', 2) ? draw.of(2, 3) : 1);
  const batch = draw.int(1, SIZE_LIMIT.B);
  const queries = draw.int(1, SIZE_LIMIT.S);
  const newKeys = draw.has('self', 2) ? queries : draw.int(1, SIZE_LIMIT.S + 1);
  const dimension = headDimensions === undefined ? draw.int(1, SIZE_LIMIT.D) : draw.of(...headDimensions);
  const valueDimension = draw.has('sameDimension', 2) ? dimension : draw.int(1, SIZE_LIMIT.D);
  const pastKeys = draw.has('past', 3) ? draw.int(0, 4) : undefined;
  const sizes = (H: number, S: number, D: number) => ({ B: batch, H, S, D });
  return {
    batch,
    heads,
    keyHeads,
    pastKeys,
    keys: (pastKeys ?? 0) + newKeys,
    query: sizes(heads, queries, dimension),
    key: sizes(keyHeads, newKeys, dimension),
    value: sizes(keyHeads, newKeys, valueDimension),
  };
}

type Layouts = Pick<FlashAttentionAttributes, 'queryLayout' | 'keyLayout' | 'valueLayout' | 'outputLayout'>;

function drawLayouts(draw: Draw, sizes: DrawnSizes, { opset, features = {} }: ProblemOptions): Layouts {
  const { batch, heads, keyHeads, query, value, pastKeys } = sizes;
  const common = draw.of(...LAYOUTS);
  const layoutFor = (count: number, choices: readonly string[]) => {
    const special = [...(batch === 1 ? ['SHD', 'S(HD)', 'HSD'] : []), ...(count === 1 ? ['BSD', 'SBD'] : [])];
    return draw.maybe(2) ? common : draw.of(...choices, ...special);
  };
  const isSliced = (layout: string) => layout.includes('@');
  const canSlice = opset >= 10 && features.slices !== false && query.D * heads <= 30;
  const inputs = [...LAYOUTS, ...PACKED.filter((layout) => canSlice || !isSliced(layout))];
  const queryLayout = layoutFor(heads, inputs);
  const keyLayout = layoutFor(keyHeads, inputs);
  const valueLayout = layoutFor(keyHeads, inputs);
  // Where all are slices, none tells the head dimension, and a value's slice is as wide as the keys.
  const isValueOpen = isSliced(valueLayout) && value.D !== query.D && pastKeys === undefined;
  return {
    queryLayout,
    keyLayout: isSliced(queryLayout) && isSliced(keyLayout) ? 'BSHD' : keyLayout,
    valueLayout: isValueOpen ? 'BHSD' : valueLayout,
    outputLayout: layoutFor(heads, LAYOUTS),
  };
}

function drawAttributes(
  draw: Draw,
  { heads, keyHeads }: DrawnSizes,
  layouts: Layouts,
  { plain: isPlain = false }: ProblemOptions,
): FlashAttentionAttributes {
  const merges = (...names: (keyof Layouts)[]) => names.some((name) => isMerged(parseLayout(layouts[name]), 'H'));
  const isWindowed = !isPlain && draw.has('windows', 3);
  return {
    ...DEFAULT_ATTRIBUTES,
    ...layouts,
    scale: draw.maybe(4) ? 0 : draw.of(1, 0.5, 0.3, 0.125, -0.7),
    isCausal: !isPlain && draw.has('causal', 2),
    queryHeads: merges('queryLayout', 'outputLayout') || draw.maybe(2) ? heads : 0,
    keyHeads: merges('keyLayout', 'valueLayout') || draw.maybe(2) ? keyHeads : 0,
    softcap: draw.has('softcap', 4) ? draw.of(2, 0.75) : 0,
    leftWindow: isWindowed ? draw.int(-1, 3) : -1,
    rightWindow: isWindowed ? draw.int(-1, 3) : -1,
    alignEnd: !isPlain && draw.has('alignEnd', 4),
    maskedValue: draw.has('finite', 3) ? draw.of(-1e4, -3.4028234663852886e38) : Number.NEGATIVE_INFINITY,
    softmaxPrecision: draw.has('precision', 4) ? draw.of(1, 10, ...(isPlain ? [] : [11])) : 0,
  };
}

/** All inputs but the mask. */
function drawTensors(
  draw: Draw,
  { batch, heads, keyHeads, pastKeys, keys, query, key, value }: DrawnSizes,
  { queryLayout, keyLayout, valueLayout }: Layouts,
  { type, plain: isPlain = false }: ProblemOptions,
): DrawnTensors {
  const float = (shape: readonly number[]) => drawFloats(draw, type, shape);
  const hasLengths = !isPlain && draw.has('lengths', 4);
  const tensors: DrawnTensors = {
    Q: float(physicalShape(queryLayout, query)),
    K: float(physicalShape(keyLayout, key)),
    V: float(physicalShape(valueLayout, value)),
  };
  if (pastKeys !== undefined) {
    tensors.past_key = float([batch, keyHeads, pastKeys, key.D]);
    tensors.past_value = float([batch, keyHeads, pastKeys, value.D]);
  }
  if (hasLengths) {
    const lengths = Array.from({ length: batch }, () => BigInt(draw.int(0, keys)));
    tensors.nonpad_kv_seqlen = { type: 'int64', shape: [batch], data: BigInt64Array.from(lengths) };
  }
  if (draw.has('sink', 5)) tensors.sink = float([heads]);
  return tensors;
}

type DrawnTensors = { -readonly [K in keyof TestTensors]: TestTensors[K] };

function drawMask(draw: Draw, sizes: DrawnSizes, period: number, { type, plain, features }: ProblemOptions) {
  const full = [period || sizes.batch, sizes.heads, sizes.query.S, sizes.keys];
  const emptyRows = features?.emptyRows;
  const rank = period > 0 ? 4 : draw.int(0, 4);
  const shape = full.slice(4 - rank).map((size, i) => (draw.maybe() && !(period > 0 && i === 0) ? 1 : size));
  const mayBeShorter = !plain && emptyRows !== false && draw.maybe();
  if (mayBeShorter && rank > 0 && shape.at(-1)! > 2) shape[rank - 1] = draw.int(2, shape.at(-1)!);
  const count = shape.reduce((a, b) => a * b, 1);
  const kind = draw.of('boolean', 'additive');
  const last = shape.at(-1) ?? 1;
  // Without empty rows, the first key always stays.
  const out = Array.from({ length: count }, (_, i) => draw.maybe() && (emptyRows !== false || i % last > 0));
  const floats = out.map((isOut) => (isOut ? Number.NEGATIVE_INFINITY : draw.int(-8, 8) / 4));
  const tensor: TestTensor =
    kind === 'boolean'
      ? { type: 'bool', shape, data: Uint8Array.from(out, (isOut) => (isOut ? 0 : 1)) }
      : { type, shape, data: type === 'float16' ? encodeHalf(floats, type) : Float32Array.from(floats) };
  // Some row may be empty unless no element is masked at all.
  const mayEmptyRows = emptyRows ?? (mayBeShorter || out.includes(true) || draw.maybe(2));
  return { tensor, variant: { kind, rank, mayBeShorter, mayEmptyRows } as const };
}

function drawFloats(draw: Draw, type: 'float32' | 'float16', shape: readonly number[]): TestTensor {
  const count = shape.reduce((a, b) => a * b, 1);
  // One drawn seed for each tensor: thousands of drawn numbers would only slow the search down.
  let state = draw.int(1, 0x7ffffffe);
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
    // Infinity is near nothing but itself.
    const bound = Number.isFinite(expected[i]!) ? absolute + relative * Math.abs(expected[i]!) : 0;
    const isSame = Object.is(actual[i], expected[i]) || error <= bound;
    if (!isSame) return `element ${i} is ${actual[i]}, expected ${expected[i]}`;
  }
  return undefined;
}

const TOLERANCE = {
  float32: { absolute: 2e-5, relative: 2e-5 },
  // Scores of magnitude 8 rounded to 11 bits shift a weight by half a percent.
  float16: { absolute: 2e-2, relative: 1e-2 },
} as const;

const outputNames = ({ variant }: TestProblem) => ['Y', ...(variant.hasPast ? ['present_key', 'present_value'] : [])];

const elementTypeOf = ({ tensors }: TestProblem) => tensors.Q.type as 'float32' | 'float16';

/** The node that computes a problem; its inputs and outputs have the names that the operator gives them. */
export function nodeOf(drawn: TestProblem, overload?: string): NodeProto {
  const named = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, name]));
  return flashAttentionNode({
    attributes: drawn.attributes,
    inputs: named(Object.keys(drawn.tensors)) as Record<'Q' | 'K' | 'V', string>,
    outputs: named(outputNames(drawn)) as Record<'Y', string>,
    name: 'site',
    ...(overload === undefined ? {} : { overload }),
  });
}

/**
 * Runs nodes that compute a problem in stock ONNX Runtime.
 * @returns what differs from the reference; undefined where nothing does
 */
export async function runProblem(
  drawn: TestProblem,
  parts: Pick<ModelParts, 'nodes' | 'functions' | 'domains'>,
  dynamic = false,
): Promise<string | undefined> {
  const { tensors, variant, problem } = drawn;
  const type = elementTypeOf(drawn);
  const outputs = Object.fromEntries(outputNames(drawn).map((name) => [name, type]));
  const model = buildModel({ ...parts, inputs: tensors, outputs, opset: variant.opset }, dynamic);
  const { Y, present_key, present_value } = await runModel(model, tensors);
  const reference = referenceOf(drawn);
  if (Y!.shape.join() !== problem.outputShape.join()) return `shape (${Y!.shape})`;
  const found = difference(Y!.data, reference.Y, TOLERANCE[type]);
  if (found !== undefined || !variant.hasPast) return found;
  const exact = { absolute: 0, relative: 0 };
  return (
    difference(present_key!.data, reference.presentKey!, exact) ??
    difference(present_value!.data, reference.presentValue!, exact)
  );
}
