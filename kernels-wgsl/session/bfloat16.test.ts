import { readFileSync } from 'node:fs';
import test from 'ava';
import { decodeModel, encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { tensorInfo } from '../../graph-rewrite/onnx/make.js';
import {
  AttributeProto,
  AttributeType,
  DataType,
  FunctionProto,
  GraphProto,
  ModelProto,
  NodeProto,
  TypeProto,
} from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';
import { makeAttribute } from '../../graph-rewrite/op/emit.js';
import { widenBfloat16 } from '../../graph-rewrite/widen.js';
import { allModels } from '../../models/corpus.js';
import { mayHaveBfloat16 } from './bfloat16.js';

const graph = (properties: Partial<GraphProto>) => new ModelProto({ graph: new GraphProto(properties) });
const withAttribute = (attribute: AttributeProto) =>
  graph({ node: [new NodeProto({ op_type: 'Cast', output: ['y'], attribute: [attribute] })] });
const vector = tensorInfo('x', 'bfloat16', ['n']);

test('bfloat16 is seen wherever a model can name it', (t) => {
  const sequence = new TypeProto({ sequence_type: { elem_type: vector.type! } });
  const typed = new AttributeProto({ name: 'type', type: AttributeType.TYPE_PROTO, tp: sequence });
  const inner = new GraphProto({ initializer: [makeTensor('w', 'bfloat16', [1], [1])] });
  const f = (properties: Partial<FunctionProto>) => {
    const model = graph({});
    model.functions.push(new FunctionProto({ name: 'f', ...properties }));
    return model;
  };
  const models = [
    graph({ input: [vector] }),
    graph({ output: [vector] }),
    graph({ value_info: [vector] }),
    graph({ initializer: [makeTensor('w', 'bfloat16', [1], [1])] }),
    withAttribute(makeAttribute('to', DataType.BFLOAT16)),
    withAttribute(makeAttribute('value', makeTensor('', 'bfloat16', [1], [1]))),
    withAttribute(makeAttribute('then_branch', inner)),
    withAttribute(typed),
    f({ value_info: [vector] }),
    f({ node: [new NodeProto({ op_type: 'Cast', attribute: [makeAttribute('to', DataType.BFLOAT16)] })] }),
  ];
  for (const built of models) {
    const model = decodeModel(encodeModel(built));
    t.true(mayHaveBfloat16(model), JSON.stringify(built));
    t.truthy(widenBfloat16(model), JSON.stringify(built));
  }
});

test('of the models, those in bfloat16 are seen, and few others', (t) => {
  let others = 0;
  const models = allModels();
  for (const { modelFile } of models) {
    const model = decodeModel(new Uint8Array(readFileSync(modelFile)));
    const seen = mayHaveBfloat16(model);
    const has = widenBfloat16(model) !== undefined;
    if (has) t.true(seen, modelFile);
    else if (seen) others++;
  }
  t.log(`${others} of ${models.length} without bfloat16 are looked at further`);
  t.true(others < models.length / 20);
});
