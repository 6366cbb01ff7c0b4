import { OrtFlashError } from '../errors.js';
import type { FlashAttentionAttributes, FlashAttentionInput } from './definition.js';
import { layoutShape, parseLayout, resolveLayout, type StridedTensor } from './layout.js';

/** Data type names of ONNX Runtime's JavaScript tensors, as far as this operator takes them. */
export type ProblemType = 'float32' | 'float16' | 'bfloat16' | 'float64' | 'bool' | 'int64';

/** What is known of one input before its data: everything a planner needs. */
export interface TensorDescription {
  readonly type: ProblemType;
  readonly shape: readonly number[];
}

/** Types and shapes of the operator's inputs; those left out are absent. */
export type ProblemInputs = Partial<Record<FlashAttentionInput, TensorDescription>> &
  Record<'Q' | 'K' | 'V', TensorDescription>;

/** How the mask is read: element (b, h, i, j) is at Σ stride·index, with b taken modulo `batch`. */
export interface MaskDescription {
  readonly kind: 'boolean' | 'additive';
  readonly type: ProblemType;
  /** Elements; 0 on a dimension that is broadcast. */
  readonly stride: { readonly batch: number; readonly head: number; readonly query: number; readonly key: number };
  /** Masks along the batch: batch b reads mask b mod this. */
  readonly batch: number;
  /** Keys that the mask covers; later keys are masked, as in the standard. Equal to all keys where it is broadcast. */
  readonly keys: number;
}

/**
 * One call of FlashAttention with every size, stride and option resolved to numbers: what the reference implementation,
 * the planners and the kernels all start from. Strides and offsets count elements.
 */
export interface AttentionProblem {
  readonly type: FloatType;
  readonly batch: number;
  readonly queryHeads: number;
  /** Divides queryHeads; query head h reads key head ⌊h · keyHeads / queryHeads⌋. */
  readonly keyHeads: number;
  readonly queries: number;
  /** Keys in K, without past ones. */
  readonly newKeys: number;
  readonly pastKeys: number;
  /** pastKeys + newKeys. */
  readonly keys: number;
  readonly headDimension: number;
  readonly valueDimension: number;
  readonly query: StridedTensor;
  readonly key: StridedTensor;
  readonly value: StridedTensor;
  readonly output: StridedTensor;
  readonly outputShape: readonly number[];
  /** (B, key heads, keys, D) and (B, key heads, keys, Dv), where there is a past. */
  readonly presentKeyShape: readonly number[] | undefined;
  readonly presentValueShape: readonly number[] | undefined;
  readonly mask: MaskDescription | undefined;
  readonly hasLengths: boolean;
  readonly hasSink: boolean;
  /** Never 0: the default is filled in. */
  readonly scale: number;
  readonly softcap: number;
  readonly isCausal: boolean;
  readonly leftWindow: number;
  readonly rightWindow: number;
  readonly alignEnd: boolean;
  readonly maskedValue: number;
}

type FloatType = Exclude<ProblemType, 'bool' | 'int64'>;

/**
 * Checks one call's attributes, types and shapes against the operator's definition and resolves them.
 * @throws OrtFlashError `invalid-tensor` with the input's name and shape, where something does not fit.
 */
export function resolveProblem(attributes: FlashAttentionAttributes, inputs: ProblemInputs): AttentionProblem {
  const { query, key, value } = resolveTensors(attributes, inputs);
  const type = checkTypes(inputs);
  checkSizes(inputs, query.size, key.size, value.size);
  const { B: batch, H: queryHeads, S: queries, D: headDimension } = query.size;
  const { H: keyHeads, S: newKeys } = key.size;
  const valueDimension = value.size.D;
  const pastKeys = checkPast(inputs, batch, key, value);
  const keys = pastKeys + newKeys;
  checkSmallInputs(inputs, batch, queryHeads);
  const present = (dimension: number) =>
    inputs.past_key === undefined ? undefined : [batch, keyHeads, keys, dimension];
  const outputLayout = parseLayout(attributes.outputLayout);
  const outputSize = { B: batch, H: queryHeads, S: queries, D: valueDimension };
  const outputShape = layoutShape(outputLayout, outputSize);
  const { scale, softcap, isCausal, leftWindow, rightWindow, alignEnd, maskedValue } = attributes;
  return {
    type,
    batch,
    queryHeads,
    keyHeads,
    queries,
    newKeys,
    pastKeys,
    keys,
    headDimension,
    valueDimension,
    query,
    key,
    value,
    output: resolveLayout(outputLayout, outputShape, outputSize),
    outputShape,
    presentKeyShape: present(headDimension),
    presentValueShape: present(valueDimension),
    mask: describeMask(attributes, inputs, [batch, queryHeads, queries, keys]),
    hasLengths: inputs.nonpad_kv_seqlen !== undefined,
    hasSink: inputs.sink !== undefined,
    scale: scale === 0 ? 1 / Math.sqrt(headDimension) : scale,
    softcap,
    isCausal,
    leftWindow,
    rightWindow,
    alignEnd,
    maskedValue,
  };
}

/** Q, K and V as their layouts have them. */
function resolveTensors(attributes: FlashAttentionAttributes, inputs: ProblemInputs) {
  const { queryLayout, keyLayout, valueLayout, queryHeads, keyHeads } = attributes;
  const { Q, K, V, past_key: pastKey, past_value: pastValue } = inputs;
  const see = (tensor: TensorDescription, layout: string, heads: number, dimension?: number) =>
    resolveLayout(parseLayout(layout), tensor.shape, {
      ...(heads > 0 ? { H: heads } : {}),
      ...(dimension === undefined ? {} : { D: dimension }),
    });
  // A sliced dimension tells nothing of the head dimension; the other of Q and K does.
  const seeWhole = (tensor: TensorDescription, layout: string, heads: number) =>
    /D[^)]*@/.test(layout) ? undefined : see(tensor, layout, heads);
  const query = seeWhole(Q, queryLayout, queryHeads);
  const key = seeWhole(K, keyLayout, keyHeads);
  const value = seeWhole(V, valueLayout, keyHeads);
  const dimension = query?.size.D ?? key?.size.D ?? pastKey?.shape[3] ?? value?.size.D;
  return {
    query: query ?? see(Q, queryLayout, queryHeads, dimension),
    key: key ?? see(K, keyLayout, keyHeads, dimension),
    value: value ?? see(V, valueLayout, keyHeads, pastValue?.shape[3] ?? dimension),
  };
}

type Sizes = StridedTensor['size'];

function checkSizes({ K, V }: ProblemInputs, query: Sizes, key: Sizes, value: Sizes): void {
  require(key.B === query.B, 'K', K, `must have batch ${query.B}, as Q`);
  require(value.B === query.B, 'V', V, `must have batch ${query.B}, as Q`);
  require(value.H === key.H, 'V', V, `must have ${key.H} heads, as K`);
  require(value.S === key.S, 'V', V, `must have ${key.S} positions, as K`);
  require(key.D === query.D, 'K', K, `must have head dimension ${query.D}, as Q`);
  const divides = key.H > 0 && query.H % key.H === 0;
  require(divides, 'K', K, `must have a number of heads that divides ${query.H}`);
}

function fail(name: FlashAttentionInput, tensor: TensorDescription, why: string): never {
  throw new OrtFlashError('invalid-tensor', `FlashAttention: ${name} ${why}`, { tensor: name, shape: tensor.shape });
}

function require(condition: boolean, name: FlashAttentionInput, tensor: TensorDescription, why: string): void {
  if (!condition) fail(name, tensor, why);
}

function checkTypes(inputs: ProblemInputs): FloatType {
  const { type } = inputs.Q;
  if (type === 'bool' || type === 'int64') return fail('Q', inputs.Q, `has type ${type}, expected a float type`);
  for (const name of ['K', 'V', 'past_key', 'past_value', 'sink'] as const) {
    const tensor = inputs[name];
    if (tensor !== undefined) require(tensor.type === type, name, tensor, `has type ${tensor.type}, Q has ${type}`);
  }
  return type;
}

function checkPast(inputs: ProblemInputs, batch: number, key: StridedTensor, value: StridedTensor): number {
  const { past_key: pastKey, past_value: pastValue } = inputs;
  if (pastKey === undefined && pastValue === undefined) return 0;
  if (pastKey === undefined || pastValue === undefined)
    return fail(
      pastKey === undefined ? 'past_value' : 'past_key',
      (pastKey ?? pastValue)!,
      'is given without the other',
    );
  const pastKeys = pastKey.shape[2] ?? -1;
  const check = (name: 'past_key' | 'past_value', tensor: TensorDescription, d: number) => {
    const expected = [batch, key.size.H, pastKeys, d];
    const same = tensor.shape.length === 4 && expected.every((e, i) => e === tensor.shape[i]);
    require(same, name, tensor, `must have shape (${expected.join(', ')})`);
  };
  check('past_key', pastKey, key.size.D);
  check('past_value', pastValue, value.size.D);
  return pastKeys;
}

function checkSmallInputs(inputs: ProblemInputs, batch: number, queryHeads: number): void {
  const { nonpad_kv_seqlen: lengths, sink } = inputs;
  if (lengths !== undefined) {
    require(lengths.type === 'int64', 'nonpad_kv_seqlen', lengths, 'must be int64');
    require(lengths.shape.length === 1 &&
      lengths.shape[0] === batch, 'nonpad_kv_seqlen', lengths, `must have shape (${batch})`);
  }
  if (sink !== undefined)
    require(sink.shape.length === 1 && sink.shape[0] === queryHeads, 'sink', sink, `must have shape (${queryHeads})`);
}

function describeMask(
  attributes: FlashAttentionAttributes,
  inputs: ProblemInputs,
  scores: readonly [number, number, number, number],
): MaskDescription | undefined {
  const tensor = inputs.attn_mask;
  if (tensor === undefined) return undefined;
  require(tensor.shape.length <= 4, 'attn_mask', tensor, 'must have rank 4 at most');
  require(tensor.type === 'bool' ||
    tensor.type === inputs.Q.type, 'attn_mask', tensor, `must be bool or ${inputs.Q.type}`);
  const [batch, head, query, key] = [...new Array<number>(4 - tensor.shape.length).fill(1), ...tensor.shape] as [
    number,
    number,
    number,
    number,
  ];
  const period = attributes.maskPeriod;
  if (period > 0)
    require(batch === period &&
      scores[0] % period === 0, 'attn_mask', tensor, `must have ${period} masks, a divisor of the batch`);
  else require(batch === 1 || batch === scores[0], 'attn_mask', tensor, `must broadcast to (${scores.join(', ')})`);
  require((head === 1 || head === scores[1]) &&
    (query === 1 || query === scores[2]) &&
    (key === 1 || key <= scores[3]), 'attn_mask', tensor, `must broadcast to (${scores.join(', ')})`);
  // One key in the mask and several in the scores: a broadcast, except where the mask is of a single column by length.
  const broadcastKeys = key === 1 && scores[3] !== 1;
  return {
    kind: tensor.type === 'bool' ? 'boolean' : 'additive',
    type: tensor.type,
    stride: {
      batch: batch === 1 ? 0 : head * query * key,
      head: head === 1 ? 0 : query * key,
      query: query === 1 ? 0 : key,
      key: broadcastKeys ? 0 : 1,
    },
    batch,
    keys: broadcastKeys ? scores[3] : key,
  };
}
