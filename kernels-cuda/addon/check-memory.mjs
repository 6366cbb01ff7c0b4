// The cycles that check-memory.sh runs: opens a session, runs it in several ways, also wrongly, and releases it.
// node check-memory.mjs ADDON LIBRARY MODEL CYCLES, where MODEL adds the float32 vector x to itself.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [addonPath, library, modelPath, cycles] = process.argv.slice(2);
const addon = createRequire(import.meta.url)(addonPath);
addon.initialize(library, 3);
const model = new Uint8Array(readFileSync(modelPath));
const data = new Uint8Array(Float32Array.from({ length: 8 }, (_, i) => i).buffer);
const feed = ['x', 'float32', [1, 8], data];
// Past the size that is copied on JavaScript's own thread.
const large = ['x', 'float32', [1, 300_000], new Uint8Array(1_200_000)];
const run = (session, feed, options) => session.run([feed], ['y'], [], options);

const refused = async (work) => {
  try {
    await work();
  } catch {
    return;
  }
  throw new Error('accepted what it should refuse');
};

async function cycle(number) {
  const session = await addon.createSession(number % 2 === 0 ? model : modelPath, {
    intraOpNumThreads: 1,
    freeDimensionOverrides: { unused: 1 },
    configEntries: { 'session.set_denormal_as_zero': '1' },
  });
  if (session.inputs.length !== 1 || session.outputs[0].name !== 'y') throw new Error('wrong metadata');
  const [[, , sums]] = await run(session, feed, { tag: 'cycle' });
  if (new Float32Array(sums)[7] !== 14) throw new Error('wrong result');
  if (number % 50 === 0) {
    await run(session, large);
    await refused(() => run(session, ['x', 'float32', [3], data]));
    await refused(() => run(session, ['x', 'float32', [8], data]));
    await refused(() => addon.createSession(Uint8Array.of(1, 2, 3), {}));
    await refused(() => addon.createSession('/no/such/model', {}));
    // Released in the middle of runs.
    const runs = [run(session, large), run(session, feed)];
    await session.release();
    await Promise.all(runs);
  }
  await session.release();
  await session.release();
}

const start = performance.now();
let residentAtStart = 0;
for (let number = 0; number < Number(cycles); number++) {
  await cycle(number);
  // What still grows after this is glibc's fragmentation over the pool's threads: with MALLOC_ARENA_MAX=1, nothing does.
  if (number === Math.floor(Number(cycles) / 10)) residentAtStart = process.memoryUsage.rss();
}
const grown = (process.memoryUsage.rss() - residentAtStart) / 2 ** 20;
const seconds = (performance.now() - start) / 1000;
console.log(
  `${cycles} cycles in ${seconds.toFixed(1)} s; resident memory grew by ${grown.toFixed(1)} MiB after the first tenth`,
);
