/** transformers.js in Node on `ort-flash/node`, against itself on onnxruntime-node. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import anyTest from 'ava';
import * as ortFlash from '../kernels-cuda/index.js';
import { writeTransformersModels } from './transformers-models.js';
import { root, withFolder } from './web-browser.js';
import { hasWebGpu, useTestAdapter } from './web-runtime.js';

type Transformers = typeof import('@huggingface/transformers');

const TEXTS = ['Attention is all you need.', 'To be, or not to be', '!'];
const library = pathToFileURL(
  join(root, 'node_modules', '@huggingface', 'transformers', 'dist', 'transformers.node.mjs'),
).href;
/** The name under which transformers.js looks for a runtime to use in place of its own. */
const RUNTIME = Symbol.for('onnxruntime');

/** transformers.js decides on a runtime as it is loaded; with another address it is loaded once more. */
async function loadOnOrtFlash(): Promise<Transformers> {
  Object.assign(globalThis, { [RUNTIME]: ortFlash });
  try {
    return (await import(`${library}?ort-flash`)) as Transformers;
  } finally {
    Reflect.deleteProperty(globalThis, RUNTIME);
  }
}

async function use({ env, pipeline }: Transformers, models: string, options: object) {
  env.allowRemoteModels = false;
  env.localModelPath = models;
  const extract = await pipeline('feature-extraction', 'tiny-bert', { dtype: 'fp32', ...options });
  const embeddings = (await extract(TEXTS, { pooling: 'mean', normalize: true })).tolist() as number[][];
  const generate = await pipeline('text-generation', 'tiny-llama', { dtype: 'fp32', ...options });
  const generated = (await generate(TEXTS, { max_new_tokens: 12, do_sample: false })) as { generated_text: string }[][];
  const session = generate.model.sessions.model as Partial<ortFlash.InferenceSession>;
  const how = session.explain?.().text;
  await extract.dispose();
  await generate.dispose();
  return { embeddings, texts: generated.map(([one]) => one!.generated_text), how };
}

async function compare(t: import('ava').ExecutionContext, provider: string, how: RegExp) {
  await withFolder(async (models) => {
    writeTransformersModels(models);
    const expected = await use((await import(library)) as Transformers, models, {});
    t.is(expected.how, undefined);
    const options = { device: 'auto', session_options: { executionProviders: [provider] } };
    const actual = await use(await loadOnOrtFlash(), models, options);
    t.regex(actual.how!, how);
    t.deepEqual(actual.texts, expected.texts);
    const differences = actual.embeddings.flatMap((row, i) =>
      row.map((x, j) => Math.abs(x - expected.embeddings[i]![j]!)),
    );
    t.true(Math.max(...differences) <= 1e-5);
  });
}

anyTest.serial('transformers.js on ort-flash/node gives what it gives on onnxruntime-node', async (t) => {
  await compare(t, 'cpu', /^runs on cpu/);
});

// In Node, SwiftShader compiles the kernels for minutes.
const onGpu = hasWebGpu && process.env.ORT_FLASH_WEB === 'all' ? anyTest.serial : anyTest.skip;
onGpu('transformers.js on ort-flash/node over Dawn', async (t) => {
  t.timeout(1_800_000);
  useTestAdapter();
  await compare(t, 'webgpu', /^runs on webgpu.*2 attentions in FlashAttention kernels/);
});
