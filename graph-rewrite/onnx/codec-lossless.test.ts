/** Lossless over every field of the schema, and safe over damaged bytes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import protobuf from 'protobufjs';
import { allModels, bundledModel, standardAttentionCases } from '../../models/corpus.js';
import { OrtFlashError } from '../errors.js';
import { decodeModel, decodeTensor, encodeModel, encodeModelChunks, encodeTensor } from './codec.js';

/** The wire format, written from its specification and not with the code under test. */
const varint = (value: bigint): number[] =>
  value < 128n ? [Number(value)] : [Number(value & 127n) | 128, ...varint(value >> 7n)];
const tag = (number: number, wireType: number) => varint(BigInt(number * 8 + wireType));
const delimited = (number: number, bytes: readonly number[]) => [
  ...tag(number, 2),
  ...varint(BigInt(bytes.length)),
  ...bytes,
];
const text = (value: string) => [...new TextEncoder().encode(value)];

/** A field that no schema will have, in each wire form that a newer writer may use. */
const UNKNOWN = [
  ...delimited(15_000, text('from the future')),
  ...[...tag(15_001, 0), ...varint(2n ** 64n - 1n)],
  ...[...tag(15_002, 5), 1, 2, 3, 4],
  ...[...tag(15_003, 1), 1, 2, 3, 4, 5, 6, 7, 8],
];

/** A message of this type with every field set, repeated ones twice, down to this depth. */
function everyField(type: protobuf.Type, depth: number): number[] {
  const fields = [...type.fieldsArray].sort((a, b) => a.id - b.id);
  const oneofs = new Set<unknown>();
  const bytes = fields.flatMap((field) => {
    field.resolve();
    const inner = field.resolvedType;
    if (inner instanceof protobuf.Type && depth === 0) return [];
    // Of a oneof, a message holds one.
    if (field.partOf !== null && oneofs.has(field.partOf)) return [];
    oneofs.add(field.partOf);
    const one = (salt: number): number[] => {
      if (inner instanceof protobuf.Type) return delimited(field.id, everyField(inner, depth - 1));
      if (inner !== null) return [...tag(field.id, 0), 1];
      if (field.type === 'string')
        return delimited(field.id, text(`${type.name}.${field.name} ${salt} \u00e9\u{1f600}`));
      if (field.type === 'bytes') {
        const length = field.name === 'raw_data' && depth === 0 ? 4200 : 5; // one that is written without a copy
        return delimited(field.id, Array<number>(length).fill(salt + field.id));
      }
      if (field.type === 'int64') return [...tag(field.id, 0), ...varint(2n ** 64n - BigInt(1 + salt))];
      if (field.type === 'int32') return [...tag(field.id, 0), ...varint(BigInt(1000 + salt))];
      if (field.type === 'float') return [...tag(field.id, 5), 0, 0, 0x80 + salt, 0x3f];
      throw new Error(`a ${field.type}`);
    };
    return field.repeated ? [...one(0), ...one(1)] : one(0);
  });
  return [...bytes, ...UNKNOWN];
}

const schema = protobuf.parse(readFileSync(join(import.meta.dirname, 'onnx.proto'), 'utf8'), { keepCase: true }).root;
const complete = Uint8Array.from(everyField(schema.lookupType('onnx.ModelProto'), 3));

test('every field of the schema, and fields that it does not know, survive to the byte', (t) => {
  const used = new Set<string>();
  const note = (type: protobuf.Type, depth: number): void => {
    used.add(type.fullName);
    for (const { resolvedType } of type.fieldsArray) {
      if (resolvedType instanceof protobuf.Type && depth > 0) note(resolvedType, depth - 1);
    }
  };
  note(schema.lookupType('onnx.ModelProto'), 6);
  for (const name of [
    'TrainingInfoProto',
    'FunctionProto',
    'ShardingSpecProto',
    'SparseTensorProto',
    'TensorAnnotation',
  ]) {
    t.true(used.has(`.onnx.${name}`));
  }
  // Each message on its own, one level down; and all of a model, three levels down.
  const wrappers: [string, number][] = [
    ['NodeProto', 1],
    ['TensorProto', 5],
    ['ValueInfoProto', 11],
    ['TensorAnnotation', 14],
  ];
  for (const [name, id] of wrappers) {
    const graph = delimited(id, everyField(schema.lookupType(`onnx.${name}`), 3));
    const bytes = Uint8Array.from([...tag(1, 0), 13, ...delimited(7, graph)]);
    t.deepEqual(Buffer.from(encodeModel(decodeModel(bytes))), Buffer.from(bytes), name);
  }
  t.deepEqual(Buffer.from(encodeModel(decodeModel(complete))), Buffer.from(complete));
  t.deepEqual(Buffer.concat(encodeModelChunks(decodeModel(complete))), Buffer.from(complete));
});

test('every kind of type that a oneof holds survives', (t) => {
  const elem = [...tag(1, 0), 1];
  const tensor = delimited(1, elem);
  const types = [
    tensor,
    delimited(4, delimited(1, tensor)),
    delimited(5, [...elem, ...delimited(2, tensor)]),
    delimited(7, [...delimited(1, text('own')), ...delimited(2, text('opaque'))]),
    delimited(8, elem),
    delimited(9, delimited(1, tensor)),
  ];
  for (const type of types) {
    const info = [...delimited(1, text('x')), ...delimited(2, [...delimited(6, text('IMAGE')), ...type].slice())];
    const bytes = Uint8Array.from(delimited(7, delimited(11, info)));
    const again = encodeModel(decodeModel(bytes));
    t.is(again.length, bytes.length);
    t.deepEqual(encodeModel(decodeModel(again)), again);
  }
});

test('text that is no UTF-8 survives', (t) => {
  const invalid = [0x61, 0xff, 0xc3, 0x28, 0xe2, 0x82, 0xed, 0xa0, 0x80, 0xf0, 0x9f, 0x98, 0x80, 0xc3];
  fc.assert(
    fc.property(fc.oneof(fc.constant(invalid), fc.array(fc.nat({ max: 255 }), { maxLength: 80 })), (name) => {
      const bytes = Uint8Array.from(delimited(7, delimited(2, name)));
      t.deepEqual(encodeModel(decodeModel(bytes)), bytes);
    }),
    { numRuns: 2000 },
  );
});

test('every export and every case of the standard survives to the byte, and so does its test data', (t) => {
  for (const { modelFile, name } of [...allModels(), ...(standardAttentionCases() ?? [])]) {
    const bytes = readFileSync(modelFile);
    t.true(bytes.equals(encodeModel(decodeModel(bytes))), name);
  }
  const tensor = readFileSync(join(bundledModel('bert-ts11').dataFolder, 'output_0.pb'));
  t.true(tensor.equals(encodeTensor(decodeTensor(tensor))));
});

/** Undefined for success, the typed error's message, or a test failure for anything else. */
function decode(bytes: Uint8Array): string | undefined {
  try {
    encodeModel(decodeModel(bytes));
    return undefined;
  } catch (error) {
    if (error instanceof OrtFlashError && error.code === 'malformed-model') return error.message;
    throw error;
  }
}

test('cut anywhere, or changed in any byte, a model is read or refused', (t) => {
  const small = Uint8Array.from(everyField(schema.lookupType('onnx.ModelProto'), 2).slice(0, 12_000));
  let refused = 0;
  for (let end = 0; end < small.length; end++) if (decode(small.subarray(0, end)) !== undefined) refused++;
  t.true(refused > small.length / 2);
  for (let at = 0; at < small.length; at++) {
    for (const value of [0, 0x7f, 0x80, 0xff]) {
      const copy = small.slice();
      copy[at] = value;
      decode(copy);
    }
  }
});

test('random bytes, alone or within a real model, are read or refused', (t) => {
  const model = new Uint8Array(readFileSync(bundledModel('neg_moe_router-dyn18').modelFile));
  const splice = fc.tuple(fc.nat({ max: model.length }), fc.nat({ max: 40 }), fc.uint8Array({ maxLength: 40 }));
  fc.assert(
    fc.property(fc.array(splice, { minLength: 1, maxLength: 4 }), (splices) => {
      let bytes = [...model];
      for (const [at, removed, added] of splices)
        bytes = [...bytes.slice(0, at), ...added, ...bytes.slice(at + removed)];
      decode(Uint8Array.from(bytes));
    }),
    { numRuns: 2000 },
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      decode(bytes);
    }),
    { numRuns: 5000 },
  );
  t.pass();
});

test('deep nesting is refused before the stack ends', (t) => {
  const nest = (levels: number, wrap: (inner: number[]) => number[]) => {
    let bytes: number[] = [];
    for (let level = 0; level < levels; level++) bytes = wrap(bytes);
    return bytes;
  };
  const sequences = nest(2000, (inner) => delimited(4, delimited(1, inner)));
  const types = Uint8Array.from(delimited(7, delimited(11, delimited(2, sequences))));
  t.regex(String(decode(types)), /not an ONNX model: max depth exceeded at byte/);
  const graphs = nest(1000, (inner) => delimited(1, delimited(5, delimited(6, inner))));
  t.regex(String(decode(Uint8Array.from(delimited(7, graphs)))), /max depth exceeded/);
  t.regex(String(decode(new Uint8Array(100_000).fill(0x7b))), /max depth exceeded/);
  // 30 subgraphs within each other are within the bounds of protobuf's own readers.
  t.is(
    decode(
      Uint8Array.from(
        delimited(
          7,
          nest(30, (inner) => delimited(1, delimited(5, delimited(6, inner)))),
        ),
      ),
    ),
    undefined,
  );
});

test('a small file cannot become gigabytes of objects', (t) => {
  const bomb = (field: number, payload: Uint8Array) => {
    const inner = [...tag(field, 2), ...varint(BigInt(payload.length))];
    const graph = [...tag(7, 2), ...varint(BigInt(inner.length + payload.length)), ...inner];
    return Buffer.concat([Uint8Array.from(graph), payload]);
  };
  // A node with a million empty attributes, and a tensor with forty million dimensions.
  const attributes = new Uint8Array(2_000_000).fill(0x2a).map((byte, i) => (i % 2 === 0 ? byte : 0));
  t.regex(String(decode(bomb(1, attributes))), /more fields and numbers than any model has/);
  const dims = Buffer.concat([Uint8Array.from([...tag(1, 2), ...varint(40_000_000n)]), new Uint8Array(40_000_000)]);
  t.regex(String(decode(bomb(5, dims))), /more fields and numbers than any model has/);
});
