/** Normalisation, activation, quantisation and the standard's attention operators. */
import { DataType } from '../../onnx/proto.js';
import { Expression } from '../expression.js';
import { type Call, likeFirst, normalAxis, type Rule, type RuleTable, sum, times } from './call.js';

type Size = Expression | undefined;

const ONE = Expression.constant(1);

/** Statistics outputs keep the leading axes; the normalised ones become 1. The scale has the data's type. */
const layerNormalizationRule: Rule = (call) => {
  const shape = call.shape();
  const type = call.type() ?? call.type(1);
  const axis = shape && normalAxis(call.int('axis', -1), shape.length);
  const kept = axis === undefined ? undefined : shape!.map((s, a) => (a < axis ? s : ONE));
  const statistics = { type: call.int('stash_type', DataType.FLOAT), shape: kept };
  return [{ type, shape }, statistics, statistics];
};

const batchNormalizationRule: Rule = (call) => {
  const statistics = (index: number) => ({ type: call.type(index), shape: call.shape(index) });
  return [{ type: call.type(), shape: call.shape() }, statistics(3), statistics(4), statistics(3), statistics(4)];
};

const quantizeRule: Rule = (call) => ({
  type: call.type(2) ?? (call.has(2) ? undefined : call.int('output_dtype', 0) || DataType.UINT8),
  shape: call.shape(),
});

const dequantizeRule: Rule = (call) => ({ type: call.int('output_dtype', 0) || call.type(1), shape: call.shape() });

const dynamicQuantizeRule: Rule = (call) => [
  { type: DataType.UINT8, shape: call.shape() },
  { type: DataType.FLOAT, shape: [] },
  { type: DataType.UINT8, shape: [] },
];

/** Sizes that standard Attention (opsets 23 and up) takes from its inputs, of rank 3 or 4. */
const attentionRule: Rule = (call) => {
  const [query, key, value] = [call.shape(0), call.shape(1), call.shape(2)];
  const type = call.type();
  if (!query) return [{ type }, { type: call.type(1) }, { type: call.type(2) }, { type }];
  const merged = query.length === 3;
  const heads: Size = merged ? countAttribute(call, 'q_num_heads') : query[1];
  const keyHeads: Size = merged ? countAttribute(call, 'kv_num_heads') : key?.[1];
  const headSize = (shape: readonly Expression[] | undefined): Size =>
    merged ? keyHeads && shape?.[2]?.floorDividedBy(keyHeads) : shape?.[3];
  const keys = key?.[merged ? 1 : 2];
  const queries = query[merged ? 1 : 2];
  const total = call.has(4) ? sum([call.size(4, 2), keys]) : keys;
  const valueSize = headSize(value);
  const hidden = keyHeads && times(value?.[2], heads)?.floorDividedBy(keyHeads);
  const output = merged ? [query[0], queries, hidden] : [query[0], heads, queries, valueSize];
  return [
    { type, shape: output },
    { type: call.type(1), shape: [query[0], keyHeads, total, headSize(key)] },
    { type: call.type(2), shape: [query[0], keyHeads, total, valueSize] },
    { type, shape: [query[0], heads, queries, total] },
  ];
};

/** A positive number given by attribute, as a size. */
export function countAttribute(call: Call, name: string): Size {
  const count = call.int(name, 0);
  return count > 0 ? Expression.constant(count) : undefined;
}

/** Recurrent layers: sequence, directions, batch, hidden size. */
const recurrentRule: Rule = (call) => {
  const type = call.type();
  const directions = Expression.constant(call.node.string('direction') === 'bidirectional' ? 2 : 1);
  const hidden = countAttribute(call, 'hidden_size') ?? call.size(2, 2);
  const batchFirst = call.flag('layout');
  const [batch, steps] = batchFirst ? [call.size(0, 0), call.size(0, 1)] : [call.size(0, 1), call.size(0, 0)];
  const state = { type, shape: batchFirst ? [batch, directions, hidden] : [directions, batch, hidden] };
  const all = batchFirst ? [batch, steps, directions, hidden] : [steps, directions, batch, hidden];
  return [{ type, shape: all }, state, state];
};

const LIKE_FIRST =
  'Softmax LogSoftmax Hardmax InstanceNormalization GroupNormalization RMSNormalization SimplifiedLayerNormalization ' +
  'LpNormalization MeanVarianceNormalization LRN RotaryEmbedding';

export const networkRules: RuleTable = {
  ...Object.fromEntries(LIKE_FIRST.split(' ').map((name) => [name, likeFirst])),
  LayerNormalization: layerNormalizationRule,
  BatchNormalization: batchNormalizationRule,
  QuantizeLinear: quantizeRule,
  DequantizeLinear: dequantizeRule,
  DynamicQuantizeLinear: dynamicQuantizeRule,
  Attention: attentionRule,
  LSTM: recurrentRule,
  GRU: recurrentRule,
  RNN: recurrentRule,
};
