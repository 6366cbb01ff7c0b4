/** Each operator is run as it is, and again as FlashAttention with its function body; the outputs must be the same. */
import test from 'ava';
import fc from 'fast-check';
import { buildModel, difference, type ModelParts, runModel } from '../../test/attention-problems.js';
import { dataTypeOf } from '../onnx/data-type.js';
import { NodeProto } from '../onnx/proto.js';
import { type FunctionVariant, functionFor, overloadName } from './body.js';
import { isContribAttention, readContribAttention } from './contrib.js';
import { type AttributeValue, makeAttribute } from './emit.js';
import { flashAttentionNode } from './node.js';
import { isRefusal, type NodeFacts } from './site.js';

const OPSET = 17;
const TOLERANCE = { absolute: 2e-5, relative: 2e-5 };

interface Drawn {
  readonly operator: string;
  readonly attributes: Readonly<Record<string, AttributeValue>>;
  /** In the operator's order; undefined for those left out. */
  readonly inputs: readonly (Input | undefined)[];
  readonly outputs: readonly string[];
  readonly facts?: Partial<NodeFacts>;
}

interface Input {
  readonly type: 'float32' | 'int32' | 'int64';
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array | BigInt64Array;
}

class Draw {
  constructor(readonly pick: fc.GeneratorValue) {}

  int(min: number, max: number): number {
    return this.pick(fc.integer, { min, max });
  }

  maybe(): boolean {
    return this.pick(fc.boolean);
  }

  floats(...shape: number[]): Input {
    let state = this.int(1, 0x7ffffffe);
    const next = () => {
      state = (state * 48271) % 0x7fffffff;
      return (state / 0x7fffffff) * 4 - 2;
    };
    const count = shape.reduce((a, b) => a * b, 1);
    return { type: 'float32', shape, data: Float32Array.from({ length: count }, next) };
  }

  /** 0 and 1; the first of each row is always 1. */
  padding(...shape: number[]): Input {
    const count = shape.reduce((a, b) => a * b, 1);
    const last = shape.at(-1)!;
    const data = Int32Array.from({ length: count }, (_, i) => (i % last === 0 || this.maybe() ? 1 : 0));
    return { type: 'int32', shape, data };
  }
}

const inputName = (i: number) => `input_${i}`;

/** What differs between the operator and its FlashAttention; a refusal throws. */
async function compare({ operator, attributes, inputs, outputs, facts = {} }: Drawn): Promise<string | undefined> {
  const node = NodeProto.create({
    op_type: operator,
    domain: 'com.microsoft',
    name: 'original',
    input: inputs.map((input, i) => (input === undefined ? '' : inputName(i))),
    output: [...outputs],
    attribute: Object.entries(attributes).map(([name, value]) => makeAttribute(name, value)),
  });
  const given = Object.fromEntries(inputs.flatMap((input, i) => (input === undefined ? [] : [[inputName(i), input]])));
  const site = readContribAttention(node, {
    opset: OPSET,
    rankOf: (value) => given[value]?.shape.length,
    typeOf: (value) => (given[value] === undefined ? undefined : dataTypeOf(given[value].type)),
    isUsed: () => true,
    dimensionOf: (value, axis) => given[value]?.shape[axis],
    ...facts,
  });
  if (isRefusal(site)) throw new Error(`refused: ${site.reason}`);
  const variant: FunctionVariant = {
    attributes: site.attributes,
    elementType: 1,
    opset: OPSET,
    hasPast: site.inputs.past_key !== undefined,
    hasSink: site.inputs.sink !== undefined,
    ...(site.mask === undefined
      ? {}
      : { mask: { ...site.mask, mayBeShorter: site.maskMayBeShorter, mayEmptyRows: true } }),
  };
  const fused = flashAttentionNode({ ...site, overload: overloadName(variant) });
  const shared = { inputs: given, opset: OPSET, domains: ['com.microsoft', 'ortflash'] };
  const types = Object.fromEntries(outputs.filter((o) => o !== '').map((name) => [name, 'float32' as const]));
  const nodes = [...site.nodes, fused, ...site.nodesAfter];
  const before: ModelParts = { ...shared, nodes: [node], outputs: types };
  const after: ModelParts = { ...shared, nodes, functions: [functionFor(variant)], outputs: types };
  const expected = await runModel(buildModel(before), given);
  const actual = await runModel(buildModel(after), given);
  for (const name of Object.keys(types)) {
    if (actual[name]!.shape.join() !== expected[name]!.shape.join())
      return `${name} has shape (${actual[name]!.shape})`;
    const found = difference(actual[name]!.data, expected[name]!.data, TOLERANCE);
    if (found !== undefined) return `${name}: ${found}`;
  }
  return undefined;
}

function check(title: string, draw: (d: Draw) => Drawn) {
  test.serial(title, async (t) => {
    await fc.assert(
      fc.asyncProperty(fc.gen(), async (pick) => {
        const drawn = draw(new Draw(pick));
        const found = await compare(drawn).catch((error: Error) => error.message);
        if (found === undefined) return;
        const shapes = drawn.inputs.map((i) => (i === undefined ? '-' : `(${i.shape})`)).join(' ');
        throw new Error(`${found}\n${drawn.operator} ${shapes} ${JSON.stringify(drawn.attributes)}`);
      }),
      { numRuns: Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 30), includeErrorInReport: true },
    );
    t.pass();
  });
}

/** Sizes that every operator has. */
function sizes(d: Draw) {
  const S = d.int(1, 4);
  const D = d.int(1, 4);
  return { B: d.int(1, 3), H: d.int(1, 3), S, L: d.maybe() ? S : d.int(1, 5), D, scale: d.maybe() ? 0 : 0.3 };
}

const scaled = (scale: number): Record<string, AttributeValue> => (scale === 0 ? {} : { scale: { float: scale } });

check('MultiHeadAttention with biases, masks and past', (d) => {
  const { B, H, S, L, D, scale } = sizes(d);
  const hasPast = d.maybe();
  const P = hasPast ? d.int(1, 3) : 0;
  const newKeys = hasPast ? S : L;
  const Dv = hasPast || d.maybe() ? D : d.int(1, 4);
  const padding = d.maybe() ? d.padding(B, newKeys + P) : undefined;
  return {
    operator: 'MultiHeadAttention',
    attributes: {
      num_heads: H,
      ...scaled(scale),
      ...(newKeys === S && d.maybe() ? { unidirectional: 1 } : {}),
      ...(d.maybe() ? { mask_filter_value: { float: -100 } } : {}),
    },
    inputs: [
      d.floats(B, S, H * D),
      d.floats(B, newKeys, H * D),
      d.floats(B, newKeys, H * Dv),
      d.maybe() ? d.floats(H * (2 * D + Dv)) : undefined,
      padding,
      d.maybe() ? d.floats(d.maybe() ? B : 1, d.maybe() ? H : 1, S, newKeys + P) : undefined,
      ...(hasPast ? [d.floats(B, H, P, D), d.floats(B, H, P, D)] : []),
    ],
    outputs: hasPast ? ['Y', 'present_key', 'present_value'] : ['Y'],
    facts: { isSelfAttention: newKeys === S },
  };
});

check('MultiHeadAttention with keys and values heads first', (d) => {
  const { B, H, S, L, D, scale } = sizes(d);
  return {
    operator: 'MultiHeadAttention',
    attributes: { num_heads: H, ...scaled(scale) },
    inputs: [d.floats(B, S, H * D), d.floats(B, H, L, D), d.floats(B, H, L, D)],
    outputs: ['Y'],
  };
});

check('DecoderMaskedMultiHeadAttention over fixed keys', (d) => {
  const { B, H, L, D, scale } = sizes(d);
  return {
    operator: 'DecoderMaskedMultiHeadAttention',
    attributes: { num_heads: H, ...scaled(scale) },
    inputs: [
      d.floats(B, 1, H * D),
      d.floats(B, H, L, D),
      d.floats(B, H, L, D),
      d.maybe() ? d.padding(B, L) : undefined,
    ],
    outputs: ['Y'],
  };
});

check('GroupQueryAttention with rotary embedding, window, softcap and sink', (d) => {
  const keyHeads = d.int(1, 2);
  const H = keyHeads * d.int(1, 3);
  const D = d.maybe() ? 16 : 32;
  const P = d.int(0, 3);
  const S = P > 0 && d.maybe() ? 1 : d.int(1, 5);
  // Several queries after a past are understood in a batch of one only.
  const B = P > 0 && S > 1 ? 1 : d.int(1, 2);
  const rotary = d.maybe();
  const isPacked = d.maybe();
  const total = P + S;
  const half = D / 2;
  const projection = isPacked
    ? [d.floats(B, S, (H + 2 * keyHeads) * D), undefined, undefined]
    : [d.floats(B, S, H * D), d.floats(B, S, keyHeads * D), d.floats(B, S, keyHeads * D)];
  const softcap: Record<string, AttributeValue> = d.maybe() ? { softcap: { float: 2 } } : {};
  return {
    operator: 'GroupQueryAttention',
    attributes: {
      num_heads: H,
      kv_num_heads: keyHeads,
      ...softcap,
      ...(d.maybe() ? { scale: { float: 0.3 } } : {}),
      ...(rotary ? { do_rotary: 1, rotary_interleaved: d.int(0, 1) } : {}),
      ...(d.maybe() ? { local_window_size: d.int(1, 4) } : {}),
      ...(d.maybe() ? { smooth_softmax: 1 } : {}),
    },
    inputs: [
      ...projection,
      d.floats(B, keyHeads, P, D),
      d.floats(B, keyHeads, P, D),
      { type: 'int32', shape: [B], data: Int32Array.from({ length: B }, () => total - 1) },
      { type: 'int32', shape: [], data: Int32Array.of(total) },
      ...(rotary ? [d.floats(16, half), d.floats(16, half)] : []),
    ],
    outputs: ['Y', 'present_key', 'present_value'],
    facts: { isUnpadded: true },
  };
});

check('Attention with its projection, masks and past', (d) => {
  const { B, H, S, D, scale } = sizes(d);
  const hasPast = d.maybe();
  const P = hasPast ? d.int(1, 3) : 0;
  const Dv = hasPast || d.maybe() ? D : d.int(1, 4);
  const width = d.int(1, 6);
  const widths = [H * D, H * D, H * Dv];
  const all = H * (2 * D + Dv);
  const masks = [undefined, d.padding(B, P + S), d.padding(B, S, P + S)];
  return {
    operator: 'Attention',
    attributes: {
      num_heads: H,
      ...scaled(scale),
      ...(d.maybe() ? { unidirectional: 1 } : {}),
      ...(Dv === D && d.maybe() ? {} : { qkv_hidden_sizes: widths }),
    },
    inputs: [
      d.floats(B, S, width),
      d.floats(width, all),
      d.floats(all),
      masks[d.int(0, 2)],
      hasPast ? d.floats(2, B, H, P, D) : undefined,
      // The operator has no past together with a bias.
      !hasPast && d.maybe() ? d.floats(d.maybe() ? B : 1, d.maybe() ? H : 1, S, S) : undefined,
    ],
    outputs: hasPast ? ['Y', 'present'] : ['Y'],
  };
});

test('packed inputs, which no CPU kernel takes, are read as parts of one tensor', (t) => {
  const read = (input: string[], ranks: Record<string, number>) => {
    const attribute = [makeAttribute('num_heads', 2)];
    const node = NodeProto.create({
      op_type: 'MultiHeadAttention',
      domain: 'com.microsoft',
      input,
      output: ['y'],
      attribute,
    });
    const site = readContribAttention(node, {
      opset: OPSET,
      rankOf: (v) => ranks[v],
      typeOf: () => 1,
      isUsed: () => true,
    });
    if (isRefusal(site)) throw new Error(site.reason);
    const { queryLayout, keyLayout, valueLayout } = site.attributes;
    return [site.inputs, [queryLayout, keyLayout, valueLayout]];
  };
  t.deepEqual(read(['x'], { x: 5 }), [{ Q: 'x', K: 'x', V: 'x' }, ['BSH[0/3]D', 'BSH[1/3]D', 'BSH[2/3]D']]);
  t.deepEqual(read(['q', 'kv'], { q: 3, kv: 5 }), [{ Q: 'q', K: 'kv', V: 'kv' }, ['BS(HD)', 'BSH[0/2]D', 'BSH[1/2]D']]);
});

test('what FlashAttention cannot say is refused with the reason', (t) => {
  const facts: NodeFacts = { opset: OPSET, rankOf: () => 3, typeOf: () => 1, isUsed: () => true };
  const refusal = (operator: string, input: string[], attributes: Record<string, AttributeValue>, output = ['y']) => {
    const attribute = Object.entries({ num_heads: 2, ...attributes }).map(([name, value]) =>
      makeAttribute(name, value),
    );
    const node = NodeProto.create({ op_type: operator, domain: 'com.microsoft', input, output, attribute });
    t.true(isContribAttention(node));
    const result = readContribAttention(node, facts);
    return isRefusal(result) ? result.reason : 'read';
  };
  const qkv = ['q', 'k', 'v'];
  const mha = (input: string[], output?: string[]) => refusal('MultiHeadAttention', input, {}, output);
  t.is(mha(qkv), 'read');
  t.regex(mha(qkv, ['y', '', '', 'weights']), /weights are used/);
  t.regex(mha(qkv, ['y', 'present']), /without a past/);
  t.regex(mha([...qkv, 'bias']), /bias/);
  t.regex(refusal('MultiHeadAttention', qkv, { unidirectional: 1 }), /as many/);
  t.regex(mha([...qkv, '', '', '', 'past']), /alone/);
  t.regex(mha([...qkv, '', '', '', 'pk', 'pv', 'length']), /cache in place/);
  t.regex(refusal('GroupQueryAttention', qkv, { kv_num_heads: 1 }), /seqlens_k/);
  t.regex(refusal('DecoderMaskedMultiHeadAttention', [...qkv, '', '', 'pk', 'pv'], {}), /in place/);
  t.regex(refusal('Attention', ['x', 'w'], { do_rotary: 1 }), /do_rotary/);
  t.false(isContribAttention(NodeProto.create({ op_type: 'Attention' })));
});
