/** protobufjs's reader and writer, made lossless, bounded, and free of copies of tensor data. */
import Long from 'long';
import { Reader, Writer } from 'protobufjs/minimal.js';

/**
 * How many fields and numbers one message may hold in all; very short fields count more, since each may become an object
 * of hundreds of bytes. Far beyond what real models need, and so low that a small hostile file cannot fill the memory.
 */
const LARGEST_COUNT = 2 ** 25;
const fieldCost = (length: number) => (length === 0 ? 64 : length < 8 ? 8 : 1);

const NON_ASCII = /[^\0-\x7f]/;
const LONE_SURROGATE = /\p{Surrogate}/u;
/** An invalid byte b is held as the lone surrogate 0xDC00 + b, which no valid UTF-8 gives. */
const INVALID_BYTE_BASE = 0xdc00;

const strictDecoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** Reads messages whose byte fields are views of the bytes read. */
export class MessageReader extends Reader {
  private remaining = LARGEST_COUNT;

  constructor(bytes: Uint8Array) {
    // A plain Uint8Array, so that fields have one type whether the caller's was a Node Buffer or not.
    super(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    this.discardUnknown = false;
  }

  private charge(count: number): void {
    this.remaining -= count;
    if (this.remaining < 0) throw new Error('more fields and numbers than any model has');
  }

  /** The length of a length-delimited field. */
  override size(): number {
    const length = super.size();
    this.charge(fieldCost(length));
    return length;
  }

  override int64(): ReturnType<Reader['int64']> {
    this.charge(1);
    const byte = this.buf[this.pos];
    if (byte !== undefined && byte < 128 && this.pos < this.len) {
      this.pos++;
      return Long.fromInt(byte); // shared objects: most numbers of a model are small
    }
    return super.int64();
  }

  override floats(array?: number[]): number[] {
    const start = this.pos;
    this.charge(super.size() >>> 2);
    this.pos = start;
    return super.floats(array);
  }

  override string(): string {
    const bytes = this.bytes();
    return decodeText(bytes);
  }
}

function decodeText(bytes: Uint8Array): string {
  if (bytes.length < 32) {
    let text = '';
    for (const byte of bytes) {
      if (byte >= 128) return decodeLongText(bytes);
      text += String.fromCharCode(byte);
    }
    return text;
  }
  return decodeLongText(bytes);
}

function decodeLongText(bytes: Uint8Array): string {
  try {
    return strictDecoder.decode(bytes);
  } catch {
    return decodeInvalidText(bytes);
  }
}

/** Valid sequences as they are, every other byte as a lone surrogate. */
function decodeInvalidText(bytes: Uint8Array): string {
  const parts: string[] = [];
  for (let i = 0; i < bytes.length; ) {
    const lead = bytes[i]!;
    const width = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    try {
      parts.push(strictDecoder.decode(bytes.subarray(i, i + width)));
      i += width;
    } catch {
      parts.push(String.fromCharCode(INVALID_BYTE_BASE + lead));
      i++;
    }
  }
  return parts.join('');
}

function encodeInvalidText(text: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of text) {
    const code = character.codePointAt(0)!;
    if (code >= INVALID_BYTE_BASE + 0x80 && code <= INVALID_BYTE_BASE + 0xff) bytes.push(code - INVALID_BYTE_BASE);
    else bytes.push(...encoder.encode(character));
  }
  return Uint8Array.from(bytes);
}

/** From this size on, a byte field is handed on as it is and not copied. */
const SMALLEST_CHUNK = 4096;

interface Insertion {
  /** Where in the writer's own bytes the array belongs. */
  position: number;
  readonly bytes: Uint8Array;
}

/** Writes messages as chunks: its own bytes, and between them the large byte fields of the message, not copied. */
export class MessageWriter extends Writer {
  private readonly insertions: Insertion[] = [];
  private readonly open: { start: number; insertion: number }[] = [];

  override fork(): Writer {
    this.open.push({ start: this.pos, insertion: this.insertions.length });
    return this;
  }

  /** Closes the innermost open field: puts its length, which counts insertions too, before it. */
  override ldelim(): Writer {
    const { start, insertion } = this.open.pop()!;
    const own = this.pos - start;
    let length = own;
    for (let i = insertion; i < this.insertions.length; i++) length += this.insertions[i]!.bytes.length;
    if (length >= 2 ** 32) throw new Error('a field reaches 4 GiB');
    const before = this.pos;
    this.uint32(length); // grows the buffer, and gives the bytes of the length, to be moved to the front
    const width = this.pos - before;
    const prefix = this.buf.slice(before, this.pos);
    this.buf.copyWithin(start + width, start, before);
    this.buf.set(prefix, start);
    for (let i = insertion; i < this.insertions.length; i++) this.insertions[i]!.position += width;
    return this;
  }

  override bytes(value: Uint8Array | string): Writer {
    if (typeof value === 'string' || value.length < SMALLEST_CHUNK) return super.bytes(value);
    this.uint32(value.length);
    this.insertions.push({ position: this.pos, bytes: value });
    return this;
  }

  override raw(value: Uint8Array): Writer {
    if (value.length < SMALLEST_CHUNK) return super.raw(value);
    this.insertions.push({ position: this.pos, bytes: value });
    return this;
  }

  override string(value: string): Writer {
    if (NON_ASCII.test(value) && LONE_SURROGATE.test(value)) return this.bytes(encodeInvalidText(value));
    return super.string(value);
  }

  /** All that was written, in order. */
  chunks(): Uint8Array[] {
    const chunks: Uint8Array[] = [];
    let position = 0;
    for (const insertion of this.insertions) {
      if (insertion.position > position) chunks.push(this.buf.subarray(position, insertion.position));
      chunks.push(insertion.bytes);
      position = insertion.position;
    }
    if (this.pos > position) chunks.push(this.buf.subarray(position, this.pos));
    return chunks;
  }
}
