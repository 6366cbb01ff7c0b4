import test from 'ava';
import { OrtFlashError } from '../errors.js';
import { decodeModel, encodeModel, encodeModelChunks } from './codec.js';
import { ModelProto } from './proto.js';

/** The wire format, written independently of the code under test. */
const field = (number: number, bytes: readonly number[]) => [(number << 3) | 2, bytes.length, ...bytes];
const text = (value: string) => [...new TextEncoder().encode(value)];

const malformed = (bytes: Uint8Array) => {
  try {
    decodeModel(bytes, 'some.onnx');
    return undefined;
  } catch (error) {
    return error instanceof OrtFlashError && error.code === 'malformed-model' ? error.message : error;
  }
};

test('an empty file, other formats and truncated models are refused with what they are', (t) => {
  const bytes = (value: string) => new TextEncoder().encode(value);
  t.regex(String(malformed(new Uint8Array())), /^the file is empty \[some.onnx\]$/);
  t.regex(String(malformed(bytes('version https://git-lfs.github.com/spec/v1'))), /git lfs pull/);
  t.regex(String(malformed(bytes('<!DOCTYPE html><html>'))), /this is text/);
  t.regex(String(malformed(bytes('Not Found\n'))), /this is text/);
  t.regex(
    String(malformed(Uint8Array.of(15, 0))),
    /^not an ONNX model: invalid wire type 7 at byte 1 of 2 \[some.onnx\]$/,
  );
  t.regex(String(malformed(bytes('PK\x03\x04 archive'))), /ZIP/);
  const model = Uint8Array.from([8, 13, ...field(7, field(2, text('graph')))]);
  t.is(decodeModel(model).graph?.name, 'graph');
  t.regex(String(malformed(model.subarray(0, 8))), /past its end at byte 4 of 8 .*; it may have been cut short/);
  t.regex(String(malformed(model.subarray(0, 2))), /holds no graph/);
});

test('fields that the schema does not know are kept at every level', (t) => {
  const unknown = field(15, text('later'));
  const model = Uint8Array.from([
    ...[8, 13],
    ...field(7, [...field(1, [...field(4, text('Relu')), ...unknown]), ...field(9, text('later'))]),
    ...unknown,
  ]);
  t.deepEqual(encodeModel(decodeModel(model)), model);
});

test('large tensor data is neither copied on reading nor on writing', (t) => {
  const weights = new Uint8Array(1 << 20).fill(7);
  const bytes = encodeModel(ModelProto.create({ graph: { initializer: [{ name: 'weights', raw_data: weights }] } }));
  const model = decodeModel(bytes);
  const data = model.graph?.initializer?.[0]?.raw_data;
  t.is(data?.buffer, bytes.buffer);
  t.true(encodeModelChunks(model).includes(data!));
});
