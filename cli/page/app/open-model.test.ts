import { readFileSync } from 'node:fs';
import test from 'ava';
import { decodeModel, encodeModel } from '../../../graph-rewrite/onnx/codec.js';
import { DataLocation, StringStringEntryProto } from '../../../graph-rewrite/onnx/proto.js';
import { bundledModel, bundledModels } from '../../../models/corpus.js';
import { inputsOfSize, openSize } from './make-inputs.js';
import { openModel } from './open-model.js';

const bert = readFileSync(bundledModel('bert-ts11').modelFile);
const file = (name: string, bytes: Uint8Array) => ({ name, data: new Blob([new Uint8Array(bytes)]) });
const quiet = () => undefined;

/** The model with its weights in a data file, and that file. */
function withDataFile(location: string): { model: Uint8Array; data: Uint8Array } {
  const model = decodeModel(bert);
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const tensor of model.graph!.initializer) {
    const bytes = tensor.raw_data;
    if (!bytes || bytes.length < 256) continue;
    tensor.data_location = DataLocation.EXTERNAL;
    tensor.external_data = Object.entries({ location, offset, length: bytes.length }).map(([key, value]) =>
      StringStringEntryProto.create({ key, value: String(value) }),
    );
    tensor.raw_data = null;
    parts.push(bytes);
    offset += bytes.length;
  }
  return { model: encodeModel(model), data: Buffer.concat(parts) };
}

test('a model is rewritten without its data files; which are missing is told', async (t) => {
  const { model, data } = withDataFile('weights/bert.data');
  const [alone] = await openModel([file('bert.onnx', model)], quiet);
  t.is(alone.fused, 2);
  t.deepEqual(alone.dataFiles, [{ location: 'weights/bert.data' }]);
  const [whole] = await openModel([file('bert.data', data), file('bert.onnx', model)], quiet);
  t.deepEqual(await whole.rewritten.arrayBuffer(), await alone.rewritten.arrayBuffer());
  t.is(whole.dataFiles[0]?.data?.size, data.length);
  const short = openModel([file('bert.onnx', model), file('bert.data', data.subarray(9))], quiet);
  await t.throwsAsync(short, { message: /the data file has \d+ bytes, .* needs it to have \d+ \[bert\.data\]; / });
});

test('every bundled model opens, with a picture of each kind of site and inputs that its dimensions take', async (t) => {
  for (const { name, modelFile, sites, static: isStatic } of bundledModels()) {
    const bytes = readFileSync(modelFile);
    const [opened, proto] = await openModel([file(`${name}.onnx`, bytes)], quiet);
    t.is(opened.fused, sites, name);
    t.is(opened.fused + opened.refused.length, opened.sites, name);
    t.is(opened.pictures.length > 0, opened.sites > 0, name);
    for (const { before, after, refusal } of opened.pictures) {
      t.true(before.operators > 0, name);
      t.true(after === undefined ? refusal !== undefined : after.operators > 0, name);
    }
    if (opened.notRunnable !== undefined) {
      t.log(`${name}: ${opened.notRunnable}`);
      continue;
    }
    t.deepEqual(openSize(proto), { size: opened.size });
    if (isStatic) t.is(opened.size, 'none', name);
    const { tensors } = inputsOfSize(proto, 48);
    for (const { dims, data } of tensors) {
      const count = dims.reduce((product, extent) => product * extent, 1);
      t.is((data as unknown as ArrayLike<unknown>).length, count, name);
    }
  }
});
