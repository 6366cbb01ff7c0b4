/** Views of caches that grow in place, on buffers of plain arrays, against arrays of their own. */
import test from 'ava';
import fc from 'fast-check';
import { BufferPool } from './buffer-pool.js';
import { CacheView, cacheOf, cacheTensor, canGrow, capacityFor } from './growing-cache.js';

/** A device whose buffers hold words, and whose commands are carried out as they are given. */
class ArrayDevice {
  readonly words = new Map<GPUBuffer, Float32Array>();
  readonly limits = { maxBufferSize: 1 << 20 };
  readonly queue = { submit: () => {} };

  createBuffer({ size }: GPUBufferDescriptor): GPUBuffer {
    const buffer = { size, destroy: () => this.words.delete(buffer) } as unknown as GPUBuffer;
    this.words.set(buffer, new Float32Array(size / 4).fill(Number.NaN));
    return buffer;
  }

  createCommandEncoder() {
    const copyBufferToBuffer = (from: GPUBuffer, start: number, to: GPUBuffer, at: number, bytes: number) =>
      this.words.get(to)!.set(this.words.get(from)!.subarray(start / 4, (start + bytes) / 4), at / 4);
    return { copyBufferToBuffer, finish: () => ({}) };
  }
}

Object.assign(globalThis, { GPUBufferUsage: globalThis.GPUBufferUsage ?? { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4 } });

const SHAPE = { type: 'float32', batch: 2, heads: 2, dimension: 3 } as const;
const ROWS = SHAPE.batch * SHAPE.heads;

/** Writes positions [from, to) of every head of a view, as the append kernel does. */
function write(
  { words }: ArrayDevice,
  view: CacheView,
  from: number,
  values: (row: number, position: number) => number,
) {
  const memory = words.get(view.buffer)!;
  for (let row = 0; row < ROWS; row++)
    for (let position = from; position < view.length; position++)
      memory.fill(
        values(row, position),
        (row * view.capacity + position) * SHAPE.dimension,
        (row * view.capacity + position + 1) * SHAPE.dimension,
      );
}

interface Held {
  readonly view: CacheView;
  /** What each head has at each position. */
  readonly values: readonly (readonly number[])[];
}

const operations = fc.array(
  fc.record({
    kind: fc.constantFrom('append', 'append', 'append', 'release', 'hold', 'create'),
    from: fc.nat(99),
    length: fc.integer({ min: 1, max: 40 }),
  }),
  { maxLength: 60 },
);

test('each view keeps its elements, and memory is freed with the last that shares it', (t) => {
  let appended = 0;
  fc.assert(
    fc.property(operations, (list) => {
      const device = new ArrayDevice();
      const pool = new BufferPool(device as unknown as GPUDevice);
      const held: Held[] = [];
      let stamp = 0;
      for (const { kind, from, length } of list) {
        const past = held[from % Math.max(1, held.length)];
        if (kind === 'release' && past) held.splice(held.indexOf(past), 1)[0]!.view.release();
        else if (kind === 'hold' && past) held.push({ ...past, view: past.view.hold() });
        else if (kind === 'append' || kind === 'create') {
          const values = past && kind === 'append' ? past.values : Array.from({ length: ROWS }, () => []);
          const keys = values[0]!.length + length;
          const isInPlace = kind === 'append' && past?.view.hasRoom(keys) === true;
          const view = isInPlace
            ? past.view.grow(keys)
            : CacheView.create(SHAPE, keys, capacityFor([SHAPE], keys, pool), pool);
          const all = values.map((row) => [...row, ...Array.from({ length }, () => ++stamp)]);
          write(device, view, isInPlace ? keys - length : 0, (row, position) => all[row]![position]!);
          if (isInPlace) appended++;
          held.push({ view, values: all });
        }
        pool.endRun();
        for (const { view, values: expected } of held) {
          const dense = view.copyDense(device as unknown as GPUDevice);
          const actual = Array.from(device.words.get(dense)!.subarray(0, ROWS * view.length * SHAPE.dimension));
          if (expected.flat().some((x, i) => actual[i * SHAPE.dimension] !== x)) throw new Error('other elements');
          pool.release(dense);
        }
        // What is in use is what some view shares.
        pool.clear();
        const memories = new Set(held.map(({ view }) => view.buffer)).size;
        if (device.words.size !== memories) throw new Error(`${device.words.size} buffers for ${memories} caches`);
      }
      for (const { view } of [...held]) {
        view.release();
        view.release();
      }
      pool.clear();
      return device.words.size === 0;
    }),
    { numRuns: 500 },
  );
  t.true(appended > 500);
});

test('a view grows only where nobody has grown it before, and again where that was given back', (t) => {
  const pool = new BufferPool(new ArrayDevice() as unknown as GPUDevice);
  const past = CacheView.create(SHAPE, 10, 20, pool);
  t.true(past.hasRoom(20));
  t.false(past.hasRoom(21));
  const next = past.grow(12);
  t.false(past.hasRoom(11));
  t.true(next.hasRoom(13));
  const after = next.grow(13);
  next.release();
  t.false(past.hasRoom(11));
  after.release();
  t.true(past.hasRoom(11));
});

test('there is room for a quarter more at least, as long as the device has such buffers', (t) => {
  const device = new ArrayDevice();
  const pool = new BufferPool(device as unknown as GPUDevice);
  const value = { ...SHAPE, dimension: 5 };
  for (const keys of [1, 63, 100, 1000, 3000]) {
    const capacity = capacityFor([SHAPE, value], keys, pool);
    t.true(capacity >= Math.min(keys + Math.max(64, keys / 4), (1 << 20) / (ROWS * 5 * 4)) - 3, `${keys}: ${capacity}`);
    t.true(capacity * ROWS * 5 * 4 <= device.limits.maxBufferSize);
  }
  t.is(capacityFor([SHAPE], 21_845, pool), 21_845);
  t.true(canGrow({ ...SHAPE, type: 'float16', dimension: 2 }));
  t.false(canGrow({ ...SHAPE, type: 'float16' }));
  t.false(canGrow({ ...SHAPE, batch: 0 }));
});

test('a tensor is a view until its buffer is asked for, its shape changed, or it is disposed of', (t) => {
  const device = new ArrayDevice() as unknown as GPUDevice;
  const [pool, other] = [new BufferPool(device), new BufferPool(device)];
  const view = CacheView.create(SHAPE, 10, 20, pool);
  const [one, two, three] = [view, view.hold(), view.hold()].map((each) => cacheTensor(each, device));
  t.is(cacheOf(one!, pool), view);
  t.is(cacheOf(one!, other), undefined);
  Object.assign(one!, { dims: [1, ...one!.dims] });
  t.is(cacheOf(one!, pool), undefined);
  t.is(cacheOf(two!, pool)?.buffer, view.buffer);
  const dense = two!.gpuBuffer as unknown;
  t.not(dense, view.buffer);
  t.is(two!.gpuBuffer as unknown, dense);
  t.is(cacheOf(two!, pool), undefined);
  three!.dispose();
  t.is(cacheOf(three!, pool), undefined);
  t.throws(() => three!.gpuBuffer, { code: 'invalid-argument', message: /disposed/ });
  two!.dispose();
  one!.dispose();
  pool.clear();
  t.is(pool.size.buffers, 0);
});
