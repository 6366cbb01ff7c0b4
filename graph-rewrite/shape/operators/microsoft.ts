/** Operators of ONNX Runtime's domain com.microsoft that transformer models carry. */
import { DataType } from '../../onnx/proto.js';
import { Expression } from '../expression.js';
import type { Derived } from '../facts.js';
import { likeFirst, type Rule, type RuleTable, sum, times } from './call.js';
import { contractionRules, matrixProductShape } from './contraction.js';
import { countAttribute, networkRules } from './network.js';

type Size = Expression | undefined;

const TWO = Expression.constant(2);

/** Size of heads that attention merges with others: hidden size over heads. */
function headSizeOf(hidden: Size, heads: Size): Size {
  return heads && hidden?.floorDividedBy(heads);
}

/** Attention: one projection of the input to packed queries, keys and values. */
const attentionRule: Rule = (call) => {
  const [batch, tokens] = [call.size(0, 0), call.size(0, 1)];
  const type = call.type();
  const sizes = call.ints('qkv_hidden_sizes');
  const packed = call.size(1, 1) ?? call.size(2, 0);
  const hidden: Size = sizes ? Expression.constant(sizes[2]!) : packed?.floorDividedBy(3);
  const heads = countAttribute(call, 'num_heads');
  const headSize = headSizeOf(hidden, heads);
  const past = call.has(4) ? call.size(4, 3) : Expression.constant(0);
  const total = call.flag('past_present_share_buffer') ? past : sum([past, tokens]);
  return [
    { type, shape: [batch, tokens, hidden] },
    { type, shape: [TWO, batch, heads, total, headSize] },
  ];
};

const multiHeadAttentionRule: Rule = (call) => {
  const type = call.type();
  const query = call.shape(0);
  const heads = countAttribute(call, 'num_heads');
  if (!query) return { type };
  if (query.length === 5) {
    const [batch, tokens, count, , size] = query as [Expression, Expression, Expression, Expression, Expression];
    return [{ type, shape: [batch, tokens, count.times(size)] }];
  }
  const [key, value] = [call.shape(1), call.shape(2)];
  const separate = value?.length === 4;
  const valueHidden: Size = separate
    ? times(value[1], value[3])
    : (value?.[2] ?? (key?.length === 5 ? times(key[2], key[4]) : undefined));
  const valueSize = separate ? value[3] : headSizeOf(valueHidden, heads);
  const keySize = headSizeOf(query[2], heads);
  const keys = key?.length === 4 ? key[2] : key?.[1];
  const past = call.has(6) ? call.size(6, 2) : Expression.constant(0);
  // Past keys in a buffer that is also the present: the buffer's size stays.
  const total = call.has(8) || call.flag('past_present_share_buffer') ? past : sum([past, keys]);
  return [
    { type, shape: [query[0], query[1], valueHidden] },
    { type, shape: [query[0], heads, total, keySize] },
    { type, shape: [query[0], heads, total, valueSize] },
  ];
};

const groupQueryAttentionRule: Rule = (call) => {
  const type = call.type();
  const query = call.shape(0);
  const heads = countAttribute(call, 'num_heads');
  const keyHeads = countAttribute(call, 'kv_num_heads');
  if (!query || !heads || !keyHeads) return { type };
  const headSize = headSizeOf(query[2], call.has(1) ? heads : heads.plus(keyHeads.times(2)));
  const present = { type: call.type(3) ?? type, shape: [query[0], keyHeads, undefined, headSize] };
  return [{ type, shape: [query[0], query[1], times(heads, headSize)] }, present, present];
};

const skipNormalizationRule: Rule = (call) => {
  const { type, shape } = call.input(0);
  const statistics: Derived = {
    type: DataType.FLOAT,
    shape: shape?.map((s, a) => (a < shape.length - 1 ? s : Expression.constant(1))),
  };
  return [{ type, shape }, statistics, statistics, { type, shape }];
};

const fusedMatMulRule: Rule = (call) => {
  const operand = (index: number, transpose: string, batch: string) => {
    const shape = call.shape(index);
    if (!shape || shape.length < 2) return shape;
    const moved = call.flag(batch) ? [...shape.slice(1, -1), shape[0], shape.at(-1)] : shape;
    return call.flag(transpose) ? [...moved.slice(0, -2), moved.at(-1), moved.at(-2)] : moved;
  };
  return {
    type: call.type(),
    shape: matrixProductShape(operand(0, 'transA', 'transBatchA'), operand(1, 'transB', 'transBatchB')),
  };
};

/** Products with weights that are stored in blocks of few bits; attribute N is the number of columns. */
const quantizedMatMulRule: Rule = (call) => {
  const shape = call.shape();
  return { type: call.type(), shape: shape && [...shape.slice(0, -1), countAttribute(call, 'N')] };
};

const embedNormalizationRule: Rule = (call) => {
  const type = call.type(2);
  const shape = [call.size(0, 0), call.size(0, 1), call.size(2, 1)];
  return [
    { type, shape },
    { type: DataType.INT32, shape: [call.size(0, 0)] },
    { type, shape },
  ];
};

/** Attention on quantised input and weight: the scale of the input (input 3) has the output's type. */
const quantizedAttentionRule: Rule = (call) => {
  const hidden = call.size(1, 1)?.floorDividedBy(3);
  return { type: call.type(3), shape: [call.size(0, 0), call.size(0, 1), hidden] };
};

/** Products of quantised matrices whose result has the type of a scale. */
const floatProductRule =
  (scale: number): Rule =>
  (call) => ({ type: call.type(scale), shape: matrixProductShape(call.shape(0), call.shape(1)) });

/** Table of (buckets, heads), query length, key length → (1, heads, query length, key length). */
const relativePositionBiasRule: Rule = (call) => {
  const length = (input: number): Size => {
    const size = call.elements(input)?.[0];
    return size && size.range.lower >= 0 ? size : undefined;
  };
  return { type: call.type(), shape: [Expression.constant(1), call.size(0, 1), length(1), length(2)] };
};

const LIKE_FIRST =
  'FastGelu BiasGelu Gelu QuickGelu RotaryEmbedding GroupNorm SkipGroupNorm BiasAdd BiasSoftmax LongformerAttention Inverse';

export const microsoftRules: RuleTable = {
  ...Object.fromEntries(LIKE_FIRST.split(' ').map((name) => [name, likeFirst])),
  Attention: attentionRule,
  MultiHeadAttention: multiHeadAttentionRule,
  DecoderMaskedMultiHeadAttention: multiHeadAttentionRule,
  GroupQueryAttention: groupQueryAttentionRule,
  SkipLayerNormalization: skipNormalizationRule,
  SkipSimplifiedLayerNormalization: skipNormalizationRule,
  EmbedLayerNormalization: embedNormalizationRule,
  FusedMatMul: fusedMatMulRule,
  TransposeMatMul: fusedMatMulRule,
  FusedGemm: contractionRules.Gemm!,
  MatMulNBits: quantizedMatMulRule,
  MatMulBnb4: quantizedMatMulRule,
  FusedConv: contractionRules.Conv!,
  QAttention: quantizedAttentionRule,
  MatMulIntegerToFloat: floatProductRule(2),
  DynamicQuantizeMatMul: floatProductRule(2),
  RelativePositionBias: relativePositionBiasRule,
  QuantizeLinear: networkRules.QuantizeLinear!,
  DequantizeLinear: networkRules.DequantizeLinear!,
};
