/** Operators that select, scatter, count or sort along axes. */
import { DataType } from '../../onnx/proto.js';
import { Expression, product } from '../expression.js';
import { constantSizes, type Derived, MOST_ELEMENTS } from '../facts.js';
import { type Call, likeFirst, normalAxis, type Rule, type RuleTable, unknownShape } from './call.js';

type Size = Expression | undefined;

const ONE = Expression.constant(1);

const gatherRule: Rule = (call) => {
  const { type, shape: source, uniform } = call.input(0);
  const indices = call.shape(1);
  const axis = source && call.axis('axis', 0, source.length);
  if (!source || !indices || axis === undefined) return { type, uniform };
  const shape = [...source.slice(0, axis), ...indices, ...source.slice(axis + 1)];
  return { type, uniform, shape, elements: gathered(call, source, axis) };
};

/** Elements picked by known indices along an axis. */
function gathered(call: Call, source: readonly Expression[], axis: number): Size[] | undefined {
  const elements = call.elements(0);
  const indices = call.elements(1);
  const sizes = constantSizes(source);
  if (!elements || !indices || !sizes) return undefined;
  const inner = sizes.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = sizes.slice(0, axis).reduce((a, b) => a * b, 1);
  const result: Size[] = [];
  for (let block = 0; block < outer; block++)
    for (const { value } of indices) {
      const at = value === undefined ? undefined : normalAxis(value, sizes[axis]!);
      for (let i = 0; i < inner; i++)
        result.push(at === undefined ? undefined : elements[(block * sizes[axis]! + at) * inner + i]);
    }
  return result;
}

const gatherElementsRule: Rule = (call) => ({
  type: call.type(),
  uniform: call.input(0).uniform,
  shape: call.shape(1),
});

const gatherNdRule: Rule = (call) => {
  const { type, shape: source, uniform } = call.input(0);
  const indices = call.shape(1);
  const depth = indices?.at(-1)?.value;
  const batch = call.int('batch_dims', 0);
  if (!source || !indices || depth === undefined) return { type, uniform };
  return { type, uniform, shape: [...indices.slice(0, -1), ...source.slice(batch + depth)] };
};

/** ScatterND of known elements at known positions, for shape tensors that are written to in place. */
const scatterNdRule: Rule = (call) => {
  const { type, shape, elements } = call.input(0);
  const indices = call.elements(1)?.map((e) => e.value);
  const updates = call.elements(2);
  const plain = shape?.length === 1 && call.node.string('reduction') !== 'add' && indices?.length === updates?.length;
  if (!plain || !elements || !indices || !updates || indices.some((i) => i === undefined)) return { type, shape };
  const result: Size[] = [...elements];
  for (const [i, index] of indices.entries()) {
    const at = normalAxis(index!, elements.length);
    if (at === undefined) return { type, shape };
    result[at] = updates[i];
  }
  return { type, shape, elements: call.node.attribute('reduction') ? undefined : result };
};

const topKRule: Rule = (call) => {
  const { type, shape: source } = call.input(0);
  const axis = source && call.axis('axis', -1, source.length);
  const count = call.node.int('k') !== undefined ? Expression.constant(call.int('k', 0)) : call.elements(1)?.[0];
  const size = count && count.range.lower >= 0 ? count : undefined;
  const shape = axis === undefined ? unknownShape(source?.length) : source!.map((s, a) => (a === axis ? size : s));
  return [
    { type, shape },
    { type: DataType.INT64, shape },
  ];
};

const argRule: Rule = (call) => {
  const source = call.shape();
  const axis = source && call.axis('axis', 0, source.length);
  const keep = call.int('keepdims', 1) !== 0;
  const type = DataType.INT64;
  if (!source || axis === undefined) return { type };
  return { type, shape: keep ? source.map((s, a) => (a === axis ? ONE : s)) : source.filter((_, a) => a !== axis) };
};

const nonZeroRule: Rule = (call) => {
  const { shape, uniform } = call.input(0);
  const rank = shape?.length;
  // Exporters count by it up to opset 10: where every element is another number than 0, all positions are given.
  if (shape && uniform !== undefined) {
    const length = uniform === 0 ? Expression.constant(0) : product(shape);
    const count = rank === 1 ? length.value : undefined;
    const elements =
      count !== undefined && count <= MOST_ELEMENTS
        ? Array.from({ length: count }, (_, i) => Expression.constant(i))
        : undefined;
    return { type: DataType.INT64, shape: [Expression.constant(shape.length), length], elements };
  }
  return { type: DataType.INT64, shape: [rank === undefined ? undefined : Expression.constant(rank), undefined] };
};

const oneHotRule: Rule = (call) => {
  const indices = call.shape();
  const type = call.type(2);
  const axis = indices && call.axis('axis', -1, indices.length + 1);
  if (!indices || axis === undefined) return { type };
  const depth = call.elements(1)?.[0];
  const shape: Size[] = [...indices];
  shape.splice(axis, 0, depth && depth.range.lower >= 0 ? depth : undefined);
  return { type, shape };
};

const compressRule: Rule = (call) => {
  const { type, shape: source } = call.input(0);
  const axis = call.node.int('axis');
  if (axis === undefined) return { type, shape: [undefined] };
  const at = source && normalAxis(axis, source.length);
  return {
    type,
    shape: at === undefined ? unknownShape(source?.length) : source!.map((s, a) => (a === at ? undefined : s)),
  };
};

const uniqueRule: Rule = (call) => {
  const { type, shape: source } = call.input(0);
  const axis = call.node.int('axis');
  const at = axis === undefined || !source ? undefined : normalAxis(axis, source.length);
  const values: Derived = {
    type,
    shape: axis === undefined ? [undefined] : source?.map((s, a) => (a === at ? undefined : s)),
  };
  const index = { type: DataType.INT64, shape: [undefined] };
  return [values, index, index, index];
};

/** Sums of elements before each, for known elements on one axis. */
const cumSumRule: Rule = (call) => {
  const { type, shape, elements } = call.input(0);
  if (!elements || shape?.length !== 1 || call.flag('reverse')) return { type, shape };
  const exclusive = call.flag('exclusive');
  let sum = Expression.constant(0);
  const result = elements.map((e) => {
    const before = sum;
    sum = sum.plus(e);
    return exclusive ? before : sum;
  });
  return { type, shape, elements: result.every((e) => e.exact) ? result : undefined };
};

const eyeLikeRule: Rule = (call) => ({ type: call.int('dtype', 0) || call.type(), shape: call.shape() });

/** A shape given by attribute, as of the random generators. */
const ofShapeRule: Rule = (call) => ({
  type: call.int('dtype', DataType.FLOAT),
  shape: call.node.ints('shape')?.map((s) => Expression.constant(s)),
});

const ofLikeRule: Rule = (call) => ({ type: call.int('dtype', 0) || call.type(), shape: call.shape() });

const multinomialRule: Rule = (call) => ({
  type: call.int('dtype', DataType.INT32),
  shape: [call.size(0, 0), Expression.constant(call.int('sample_size', 1))],
});

/** Windows for spectra: as long as the scalar says. */
const windowRule: Rule = (call) => {
  const length = call.elements(0)?.[0];
  return {
    type: call.int('output_datatype', DataType.FLOAT),
    shape: [length && length.range.lower >= 0 ? length : undefined],
  };
};

const centerCropPadRule: Rule = (call) => {
  const { type, shape: source } = call.input(0);
  const target = call.elements(1);
  if (!source) return { type };
  const shape: Size[] = [...source];
  const axes = call.ints('axes') ?? [...source.keys()];
  for (const [i, axis] of axes.entries()) {
    const at = normalAxis(axis, source.length);
    if (at !== undefined) shape[at] = target?.[i];
  }
  return { type, shape };
};

const reduction =
  (value: (elements: readonly Expression[]) => Size): Rule =>
  (call) => {
    const { type, shape: source, elements } = call.input(0);
    const given = call.numbers('axes', 1);
    const keep = call.int('keepdims', 1) !== 0;
    if (!source) return { type };
    if (!given && call.has(1)) return { type, shape: keep ? unknownShape(source.length) : undefined };
    if (!given?.length && call.flag('noop_with_empty_axes')) return { type, shape: source, elements };
    const axes = new Set(given?.length ? given.map((a) => normalAxis(a, source.length)) : source.keys());
    const shape = keep ? source.map((s, a) => (axes.has(a) ? ONE : s)) : source.filter((_, a) => !axes.has(a));
    const all = elements && elements.length > 0 && axes.size === source.length ? value(elements) : undefined;
    return { type, shape, elements: all?.exact ? [all] : undefined };
  };

const fold = (combine: (a: Expression, b: Expression) => Expression) =>
  reduction((elements) => (elements.every((e) => e.exact) ? elements.reduce((a, b) => combine(a, b)) : undefined));

export const indexingRules: RuleTable = {
  Gather: gatherRule,
  GatherElements: gatherElementsRule,
  GatherND: gatherNdRule,
  ScatterND: scatterNdRule,
  Scatter: likeFirst,
  ScatterElements: likeFirst,
  TensorScatter: likeFirst,
  TopK: topKRule,
  ArgMax: argRule,
  ArgMin: argRule,
  NonZero: nonZeroRule,
  OneHot: oneHotRule,
  Compress: compressRule,
  Unique: uniqueRule,
  CumSum: cumSumRule,
  CumProd: likeFirst,
  EyeLike: eyeLikeRule,
  HannWindow: windowRule,
  HammingWindow: windowRule,
  BlackmanWindow: windowRule,
  CenterCropPad: centerCropPadRule,
  NonMaxSuppression: () => ({ type: DataType.INT64, shape: [undefined, Expression.constant(3)] }),
  Det: (call) => ({ type: call.type(), shape: call.shape()?.slice(0, -2) }),
  RandomNormal: ofShapeRule,
  RandomUniform: ofShapeRule,
  RandomNormalLike: ofLikeRule,
  RandomUniformLike: ofLikeRule,
  Bernoulli: ofLikeRule,
  Multinomial: multinomialRule,
  ReduceSum: fold((a, b) => a.plus(b)),
  ReduceProd: reduction((elements) => (elements.every((e) => e.exact) ? product(elements) : undefined)),
  ReduceMax: fold(Expression.maximum),
  ReduceMin: fold(Expression.minimum),
  ReduceMean: reduction(() => undefined),
  ReduceL1: reduction(() => undefined),
  ReduceL2: reduction(() => undefined),
  ReduceLogSum: reduction(() => undefined),
  ReduceLogSumExp: reduction(() => undefined),
  ReduceSumSquare: reduction(() => undefined),
};
