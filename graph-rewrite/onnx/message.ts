/**
 * Protobuf messages from a table of their fields: one reader and one writer for all of them, in place of generated code
 * for each, which is several times as large.
 */
import type Long from 'long';
import type { Reader, Writer } from 'protobufjs/minimal.js';

/** What a message may nest, as in Google's own readers. */
const LARGEST_DEPTH = 100;

/** A field: number, type, name; before the type `repeated` where it is, behind the name the oneof that it belongs to. */
type FieldText = string;

/** Messages by name, nested ones as `Outer.Inner`, and enumerations likewise. Generated from onnx.proto by setup.mjs. */
export interface Schema {
  readonly messages: Readonly<Record<string, readonly FieldText[]>>;
  readonly enums: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

type Message = Record<string, unknown> & { $unknowns?: Uint8Array[] };
type MessageType = (new (
  properties?: object,
) => Message) & {
  create(properties?: object): Message;
  encode(message: Message, writer: Writer, depth?: number): Writer;
  decode(reader: Reader, length?: number, depth?: number, target?: Message): Message;
};

/** How values of one type stand in the bytes. */
interface Codec {
  readonly wireType: number;
  /** @param target the value that is there already: of a message that comes in several pieces, all count */
  readonly read: (reader: Reader, depth: number, target: unknown) => unknown;
  readonly write: (writer: Writer, value: never, depth: number) => unknown;
  /** Reads values that stand together under one tag. */
  readonly readPacked?: (reader: Reader, list: never[]) => unknown;
  /** Whether a value is one of the type's; others are kept as unknown fields. */
  readonly isKnown?: (value: unknown) => boolean;
}

const SCALARS: Readonly<Record<string, Codec>> = {
  string: { wireType: 2, read: (reader) => reader.string(), write: (writer, value: string) => writer.string(value) },
  bytes: { wireType: 2, read: (reader) => reader.bytes(), write: (writer, value: Uint8Array) => writer.bytes(value) },
  int64: {
    wireType: 0,
    read: (reader) => reader.int64(),
    readPacked: (reader, list) => reader.int64s(list),
    write: (writer, value: Long) => writer.int64(value),
  },
  int32: { wireType: 0, read: (reader) => reader.int32(), write: (writer, value: number) => writer.int32(value) },
  float: {
    wireType: 5,
    read: (reader) => reader.float(),
    readPacked: (reader, list) => reader.floats(list),
    write: (writer, value: number) => writer.float(value),
  },
};

interface Field extends Codec {
  readonly id: number;
  readonly name: string;
  readonly repeated: boolean;
  /** The other members of its oneof. */
  readonly rivals: readonly string[];
}

/** Makes the messages and enumerations of a schema, nested ones as members of the outer ones. */
export function defineMessages({ messages, enums }: Schema): Readonly<Record<string, unknown>> {
  const root: Record<string, unknown> = {};
  const types = new Map<string, MessageType>();
  const known = new Map(Object.entries(enums).map(([name, values]) => [name, new Set(Object.values(values))]));
  const codecOf = (type: string): Codec => {
    const values = known.get(type);
    if (values) return { ...SCALARS.int32!, isKnown: (value) => values.has(value as number) };
    return (
      SCALARS[type] ?? {
        wireType: 2,
        read: (reader, depth, target) =>
          types.get(type)!.decode(reader, reader.size(), depth + 1, (target as Message | null) ?? undefined),
        write: (writer, value: Message, depth) =>
          types
            .get(type)!
            .encode(value, writer.fork(), depth + 1)
            .ldelim(),
      }
    );
  };
  const put = (name: string, value: object) => {
    const [inner, outer] = name.split('.').reverse() as [string, string?];
    Object.assign(outer === undefined ? root : types.get(outer)!, { [inner]: value });
  };
  for (const [name, lines] of Object.entries(messages)) {
    const type = defineMessage(name, readFields(lines, codecOf));
    types.set(name, type);
    put(name, type);
  }
  for (const [name, values] of Object.entries(enums)) {
    const names = Object.fromEntries(Object.entries(values).map(([text, value]) => [value, text]));
    put(name, Object.assign(Object.create(names), values));
  }
  return root;
}

/** Fields in the order of their numbers, in which they are written. */
function readFields(lines: readonly FieldText[], codecOf: (type: string) => Codec): Field[] {
  const split = lines.map((line) => /^(\d+) (repeated )?(\S+) (\S+)(?: (\S+))?$/.exec(line)!);
  return split
    .map(([, id, repeated, type, name, oneof]) => ({
      ...codecOf(type!),
      id: Number(id),
      name: name!,
      repeated: repeated !== undefined,
      rivals: oneof === undefined ? [] : split.flatMap((m) => (m[5] === oneof && m[4] !== name ? [m[4]!] : [])),
    }))
    .sort((a, b) => a.id - b.id);
}

function defineMessage(name: string, fields: readonly Field[]): MessageType {
  const lists = fields.filter((field) => field.repeated).map((field) => field.name);
  const byId = new Map(fields.map((field) => [field.id, field]));
  const type = class {
    constructor(properties: object = {}) {
      const message = this as unknown as Message;
      for (const list of lists) message[list] = [];
      for (const [key, value] of Object.entries(properties))
        if (value !== null && value !== undefined) message[key] = value;
    }
    static create(properties?: object): Message {
      return new MessageClass(properties);
    }
    static encode(message: Message, writer: Writer, depth = 0): Writer {
      return writeMessage(fields, message, writer, depth);
    }
    static decode(reader: Reader, length?: number, depth = 0, target = new MessageClass()): Message {
      return readMessage(byId, reader, length, depth, target);
    }
  };
  const MessageClass = type as unknown as MessageType;
  Object.defineProperty(type, 'name', { value: name });
  // What a message lacks reads as null, and as no elements, and is not written.
  for (const field of fields) Object.assign(type.prototype, { [field.name]: field.repeated ? NONE : null });
  return MessageClass;
}

const NONE: readonly never[] = Object.freeze([]);

function checkDepth(depth: number): void {
  if (depth > LARGEST_DEPTH) throw new Error('max depth exceeded');
}

function writeMessage(fields: readonly Field[], message: Message, writer: Writer, depth: number): Writer {
  checkDepth(depth);
  for (const { id, name, wireType, repeated, write } of fields) {
    const value = message[name];
    if (value === null || value === undefined || !Object.hasOwn(message, name)) continue;
    const tag = ((id << 3) | wireType) >>> 0;
    for (const one of repeated ? (value as never[]) : [value as never]) write(writer.uint32(tag), one, depth);
  }
  for (const bytes of message.$unknowns ?? []) writer.raw(bytes);
  return writer;
}

function readMessage(
  fields: ReadonlyMap<number, Field>,
  reader: Reader,
  length: number | undefined,
  depth: number,
  message: Message,
): Message {
  checkDepth(depth);
  const outerEnd = reader.len;
  const end = length === undefined ? outerEnd : reader.pos + length;
  if (end > outerEnd) throw new RangeError('index out of range');
  reader.len = end;
  while (reader.pos < end) {
    const start = reader.pos;
    const tag = reader.tag();
    const wireType = tag & 7;
    const field = fields.get(tag >>> 3);
    if (
      field !== undefined &&
      (wireType === field.wireType || (wireType === 2 && field.repeated && field.readPacked))
    ) {
      if (readField(field, wireType, reader, depth, message)) continue;
    } else reader.skipType(wireType, depth, tag >>> 3);
    if (!Object.hasOwn(message, '$unknowns'))
      Object.defineProperty(message, '$unknowns', { value: [], configurable: true, writable: true });
    message.$unknowns!.push(reader.raw(start, reader.pos));
  }
  if (reader.pos !== end) throw new RangeError('index out of range');
  reader.len = outerEnd;
  return message;
}

/** @returns false where the value read is none of the field's type */
function readField(field: Field, wireType: number, reader: Reader, depth: number, message: Message): boolean {
  const { name, repeated, rivals, read, readPacked, isKnown } = field;
  if (repeated) {
    const list = message[name] as unknown[];
    if (wireType === field.wireType) list.push(read(reader, depth, undefined));
    else readPacked!(reader, list as never[]);
    return true;
  }
  const value = read(reader, depth, message[name]);
  if (isKnown?.(value) === false) return false;
  message[name] = value;
  for (const rival of rivals) delete message[rival];
  return true;
}
