import test from 'ava';
import fc from 'fast-check';
import { decodeModel, encodeModel } from '../onnx/codec.js';
import { GraphProto, ModelProto, NodeProto } from '../onnx/proto.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { makeAttribute } from './emit.js';
import { flashAttentionNode, isFlashAttention, readAttributes, readInputs } from './node.js';

const layout = fc.constantFrom('BHSD', 'BS(HD)', 'BS([1/3]HD)', 'BS(HD@48/96)', 'SB(HD)');
const head = fc.integer({ min: 0, max: 64 });
const window = fc.integer({ min: -1, max: 1 << 20 });
const attributes: fc.Arbitrary<FlashAttentionAttributes> = fc.record({
  scale: fc.float({ noNaN: true }),
  isCausal: fc.boolean(),
  queryHeads: head,
  keyHeads: head,
  softcap: fc.float({ noNaN: true, min: 0 }),
  leftWindow: window,
  rightWindow: window,
  alignEnd: fc.boolean(),
  maskedValue: fc.constantFrom(Number.NEGATIVE_INFINITY, -10000, Math.fround(-3.4e38)),
  maskPeriod: head,
  softmaxPrecision: fc.constantFrom(0, 1, 10, 11, 16),
  queryLayout: layout,
  keyLayout: layout,
  valueLayout: layout,
  outputLayout: layout,
});

test('attributes survive being written, encoded and read', (t) => {
  fc.assert(
    fc.property(attributes, (a) => {
      const node = flashAttentionNode({ attributes: a, inputs: { Q: 'q', K: 'k', V: 'v' }, outputs: { Y: 'y' } });
      const model = new ModelProto({ graph: new GraphProto({ name: 'attention', node: [node] }) });
      const [decoded] = decodeModel(encodeModel(model)).graph!.node;
      const read = readAttributes(decoded!);
      for (const field of Object.keys(a) as (keyof FlashAttentionAttributes)[]) {
        // −0 equals the default 0, and is left out with it.
        if (a[field] !== read[field]) return false;
      }
      return true;
    }),
  );
  t.pass();
});

test('defaults and trailing names are left out, names between are empty', (t) => {
  const node = flashAttentionNode({
    attributes: { ...DEFAULT_ATTRIBUTES, isCausal: true },
    inputs: { Q: 'q', K: 'k', V: 'v', past_key: 'pk', past_value: 'pv' },
    outputs: { Y: 'y', present_value: 'present' },
    name: 'layer 0',
    overload: 'o',
  });
  t.true(isFlashAttention(node));
  t.deepEqual(node.input, ['q', 'k', 'v', '', 'pk', 'pv']);
  t.deepEqual(node.output, ['y', '', 'present']);
  t.deepEqual(
    node.attribute.map((a) => a.name),
    ['is_causal'],
  );
  t.deepEqual(readInputs(node), { Q: 'q', K: 'k', V: 'v', past_key: 'pk', past_value: 'pv' });
});

test('an attribute that is unknown or of another type is refused with the node', (t) => {
  const read = (...attribute: ReturnType<typeof makeAttribute>[]) =>
    readAttributes(NodeProto.create({ name: 'site', op_type: 'FlashAttention', attribute }));
  t.throws(() => read(makeAttribute('axis', 1)), { code: 'malformed-model', message: /"axis".*node site/ });
  t.throws(() => read(makeAttribute('scale', 1)), { code: 'malformed-model', message: /"scale".*float/ });
  t.throws(() => read(makeAttribute('q_layout', 'BHSDD')), { code: 'malformed-model', message: /BHSDD.*node site/ });
});
