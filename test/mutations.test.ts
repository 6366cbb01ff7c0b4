/**
 * Damaged model files: each must end in success or in one typed error, soon, and success must give a file that can be
 * read again. `ORT_FLASH_MUTATIONS=10000 npx ava test/mutations.test.ts` runs that many.
 */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { validateModel } from '../graph-rewrite/onnx/validate.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { bundledModels } from '../models/corpus.js';
import { Choices } from './fuzz/graph.js';
import { MUTATIONS, mutate } from './mutations.js';
import { outline } from './outline.js';

const COUNT = Number(process.env.ORT_FLASH_MUTATIONS ?? 2000);
const LIMIT_MS = 5000;

const whole = bundledModels().map((model) => ({
  name: model.name,
  bytes: new Uint8Array(readFileSync(model.modelFile)),
}));
/** Some of them with random pieces in functions of their own. */
const cut = whole
  .filter((_, i) => i % 4 === 0)
  .map(({ name, bytes }, i) => {
    const model = decodeModel(bytes);
    outline(model, new Choices(Array.from({ length: 4000 }, (_, n) => (n * 7919 + i * 104729) % 10007)), 8);
    return { name: `${name} in functions`, bytes: encodeModel(model) };
  });
const files = [...whole, ...cut];

/** 'success', the code of a typed error, or what went wrong instead. */
function outcome(bytes: Uint8Array): string {
  try {
    const model = decodeModel(bytes);
    validateModel(model);
    rewriteModel(model);
    const result = encodeModel(model);
    validateModel(decodeModel(result));
    return 'success';
  } catch (error) {
    if (error instanceof OrtFlashError) return error.code;
    return `UNTYPED ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
  }
}

for (const [index, kind] of MUTATIONS.entries()) {
  test(`${kind}: success or one typed error`, (t) => {
    const outcomes = new Map<string, number>();
    let slowest = 0;
    for (let seed = index; seed < COUNT; seed += MUTATIONS.length) {
      const file = files[(seed * 7 + index) % files.length]!;
      const damaged = mutate(file.bytes, kind, seed);
      const start = performance.now();
      const result = outcome(damaged);
      const elapsed = performance.now() - start;
      slowest = Math.max(slowest, elapsed);
      outcomes.set(result, (outcomes.get(result) ?? 0) + 1);
      if (result.startsWith('UNTYPED')) t.fail(`${file.name}, seed ${seed}: ${result}`);
      if (elapsed > LIMIT_MS) t.fail(`${file.name}, seed ${seed}: ${Math.round(elapsed)} ms`);
    }
    t.log([...outcomes].map(([name, count]) => `${name} ${count}`).join(', '), `slowest ${Math.round(slowest)} ms`);
    t.true(outcomes.size > 0);
  });
}
