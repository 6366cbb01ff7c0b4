/** One attention as a model of its own, in each form that models have it and each way to carry it out. */
import Long from 'long';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import type { DataTypeName } from '../../graph-rewrite/onnx/data-type.js';
import { opsetImports, tensorInfo } from '../../graph-rewrite/onnx/make.js';
import { DataType, GraphProto, ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { type FunctionVariant, functionFor, overloadName } from '../../graph-rewrite/op/body.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from '../../graph-rewrite/op/definition.js';
import { NodeEmitter } from '../../graph-rewrite/op/emit.js';
import { flashAttentionNode } from '../../graph-rewrite/op/node.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';

export interface Sizes {
  readonly tokens: number;
  readonly heads: number;
  readonly dimension: number;
}

/**
 * As exporters write it; by ONNX Runtime's operators, written by hand; as `ort-flash rewrite --target ort` writes it.
 */
export type Way = 'decomposed' | 'operator' | 'target-ort';

type MaskShape = 'keys' | 'queries×keys';

export interface Form {
  readonly name: string;
  /** 18 where it is not given. */
  readonly opset?: number;
  readonly attributes?: Partial<FlashAttentionAttributes>;
  /** Key heads as a share of the query heads. */
  readonly keyShare?: number;
  readonly mask?: { readonly kind: 'boolean' | 'additive'; readonly shape: MaskShape };
  /** Emits ONNX Runtime's operator on Q, K, V and mask, and gives its inputs and attributes. */
  readonly operator?: (e: NodeEmitter, sizes: Sizes, keyHeads: number) => void;
}

const MICROSOFT = 'com.microsoft';

const opsetOf = ({ opset = 18 }: Form) => opset;

function multiHead(rest: (e: NodeEmitter) => readonly string[] = () => [], attributes: Record<string, number> = {}) {
  return (e: NodeEmitter, { heads }: Sizes) =>
    e.node('MultiHeadAttention', ['Q', 'K', 'V', ...rest(e)], ['Y'], {
      domain: MICROSOFT,
      attributes: { num_heads: heads, ...attributes },
    });
}

/** @param bias emits the attention bias, where there is one */
function groupQuery(attributes: Record<string, number | { float: number }> = {}, bias?: (e: NodeEmitter) => string) {
  return (e: NodeEmitter, { heads, tokens }: Sizes, keyHeads: number) => {
    const last = e.constant('int32', [1], [tokens - 1]);
    const total = e.scalar('int32', tokens);
    const rest = bias === undefined ? [] : ['', '', '', bias(e)];
    e.node(
      'GroupQueryAttention',
      ['Q', 'K', 'V', '', '', last, total, ...rest],
      ['Y', 'present_key', 'present_value'],
      {
        domain: MICROSOFT,
        attributes: { num_heads: heads, kv_num_heads: keyHeads, ...attributes },
      },
    );
  };
}

const bias = (e: NodeEmitter) =>
  e.op('Where', ['mask', e.scalar('float32', 0), e.scalar('float32', Number.NEGATIVE_INFINITY)]);
/** The bias for every query: the operators do not broadcast it over these. */
const wholeBias = (e: NodeEmitter) =>
  e.op('Expand', [bias(e), e.concat([e.ints([1, 1]), e.sizes('Q', 1, 2), e.sizes('K', 1, 2)], 0)]);
const padding = (e: NodeEmitter) => e.cast(e.squeeze('mask', [1, 2]), DataType.INT32);

export const FORMS: readonly Form[] = [
  { name: 'plain', operator: multiHead() },
  { name: 'key padding', mask: { kind: 'boolean', shape: 'keys' }, operator: multiHead((e) => ['', padding(e)]) },
  {
    name: 'key padding, opset 11',
    opset: 11,
    mask: { kind: 'boolean', shape: 'keys' },
    operator: multiHead((e) => ['', padding(e)]),
  },
  {
    name: 'boolean mask',
    mask: { kind: 'boolean', shape: 'queries×keys' },
    operator: multiHead((e) => ['', '', bias(e)]),
  },
  {
    name: 'additive mask',
    mask: { kind: 'additive', shape: 'queries×keys' },
    operator: multiHead(() => ['', '', 'mask']),
  },
  { name: 'causal', attributes: { isCausal: true }, operator: groupQuery() },
  {
    name: 'causal, key padding',
    attributes: { isCausal: true },
    mask: { kind: 'boolean', shape: 'keys' },
    operator: groupQuery({}, wholeBias),
  },
  {
    name: 'causal, left window',
    attributes: { isCausal: true, leftWindow: 511 },
    operator: groupQuery({ local_window_size: 512 }),
  },
  { name: 'two-sided window', attributes: { leftWindow: 64, rightWindow: 64 } },
  {
    name: 'causal, softcap',
    attributes: { isCausal: true, softcap: 50 },
    operator: groupQuery({ softcap: { float: 50 } }),
  },
  { name: 'causal, grouped', attributes: { isCausal: true }, keyShare: 1 / 3, operator: groupQuery() },
  { name: 'grouped', keyShare: 1 / 3 },
];

/** The model's inputs by name: types and shapes. */
export function inputsOf(form: Form, { tokens, heads, dimension }: Sizes) {
  const keyHeads = heads * (form.keyShare ?? 1);
  const float = (count: number) => ({ type: 'float32' as const, shape: [1, tokens, count * dimension] });
  const { mask } = form;
  const type: DataTypeName = mask?.kind === 'boolean' ? 'bool' : 'float32';
  const shape = [1, 1, mask?.shape === 'keys' ? 1 : tokens, tokens];
  return {
    Q: float(heads),
    K: float(keyHeads),
    V: float(keyHeads),
    ...(mask === undefined ? {} : { mask: { type, shape } }),
  };
}

/** The model's bytes; nothing where ONNX Runtime has no operator for the form. */
export function makeForm(form: Form, way: Way, sizes: Sizes): Uint8Array | undefined {
  const keyHeads = sizes.heads * (form.keyShare ?? 1);
  if (way === 'operator') {
    if (form.operator === undefined) return undefined;
    const e = new NodeEmitter(opsetOf(form));
    form.operator(e, sizes, keyHeads);
    return encodeModel(modelOf(form, sizes, { node: e.nodes, domain: MICROSOFT }));
  }
  const model = decomposed(form, sizes, keyHeads);
  if (way === 'target-ort') rewriteModel(model, { target: 'ort' });
  return encodeModel(model);
}

function decomposed(form: Form, sizes: Sizes, keyHeads: number): ModelProto {
  const layout = 'BS(HD)';
  const attributes: FlashAttentionAttributes = {
    ...DEFAULT_ATTRIBUTES,
    queryHeads: sizes.heads,
    keyHeads,
    queryLayout: layout,
    keyLayout: layout,
    valueLayout: layout,
    outputLayout: layout,
    ...form.attributes,
  };
  const variant: FunctionVariant = {
    attributes,
    elementType: DataType.FLOAT,
    opset: opsetOf(form),
    known: { headDimension: sizes.dimension, valueDimension: sizes.dimension },
    ...(form.mask === undefined
      ? {}
      : { mask: { kind: form.mask.kind, rank: 4, mayBeShorter: false, mayEmptyRows: true } }),
  };
  const node = flashAttentionNode({
    attributes,
    inputs: { Q: 'Q', K: 'K', V: 'V', ...(form.mask === undefined ? {} : { attn_mask: 'mask' }) },
    outputs: { Y: 'Y' },
    name: 'attention',
    overload: overloadName(variant),
  });
  return modelOf(form, sizes, { node: [node], functions: [functionFor(variant)], domain: 'ortflash' });
}

interface Parts {
  readonly node: GraphProto['node'];
  readonly functions?: ModelProto['functions'];
  readonly domain: string;
}

/** The graph around; batch and tokens are symbolic, as exporters leave them. */
function modelOf(form: Form, sizes: Sizes, { node, functions = [], domain }: Parts): ModelProto {
  const input = Object.entries(inputsOf(form, sizes)).map(([name, { type, shape }]) => {
    const named = shape.map((size, axis) => (axis === 0 ? 'batch' : size === sizes.tokens ? 'tokens' : size));
    return tensorInfo(name, type, named);
  });
  const output = [tensorInfo('Y', 'float32', ['batch', 'tokens', sizes.heads * sizes.dimension])];
  return ModelProto.create({
    ir_version: Long.fromNumber(10),
    opset_import: opsetImports({ '': opsetOf(form), [domain]: 1 }),
    functions,
    graph: GraphProto.create({ name: form.name, node, input, output }),
  });
}
