// transformers.js as its own documentation has it. That ort-flash/web runs the models is said in vite.config.js alone.
import { env, pipeline } from '@huggingface/transformers';

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = './models/';
// Not from a CDN, which transformers.js sets, but the file beside this bundle.
env.backends.onnx.wasm.wasmPaths = undefined;

const device = new URLSearchParams(location.search).get('device') ?? 'webgpu';
const show = (id, text) => {
  document.getElementById(id).textContent = text;
};

const models = { 'feature-extraction': 'tiny-bert', 'text-generation': 'tiny-llama' };
const use = {
  'feature-extraction': async (extract, texts) => (await extract(texts, { pooling: 'mean', normalize: true })).tolist(),
  'text-generation': async (generate, texts) => {
    const results = await generate(texts, { max_new_tokens: 12, do_sample: false });
    return results.map(([{ generated_text }]) => generated_text);
  },
};

document.querySelector('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const task = event.submitter.value;
  const texts = document.getElementById('texts').value.trim().split('\n');
  show('result', '');
  show('how', 'loading the model');
  try {
    const run = await pipeline(task, models[task], { device, dtype: 'fp32' });
    const result = await use[task](run, texts);
    // Sessions of ort-flash/web tell how they run.
    show('how', run.model.sessions.model.explain?.().text ?? `runs on ${device}`);
    show('result', JSON.stringify(result));
    await run.dispose();
  } catch (error) {
    show('how', error.message);
  }
});
