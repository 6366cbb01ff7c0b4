import { readFileSync } from 'node:fs';
import anyTest from 'ava';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataType } from '../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { bundledModels, type ModelExample, wholeCorpus } from '../models/corpus.js';
import { counts, feedsOf, hasWebGpu, largestDifference, loadWeb } from './web-runtime.js';

/**
 * Every float32 export with dynamic shapes through `ort-flash/web`: the selection, and with ORT_FLASH_WEB=all the whole
 * corpus, which takes hours on SwiftShader.
 */
const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

const isHalf = (type: number | null | undefined) =>
  type === DataType.FLOAT16 || type === DataType.BFLOAT16 || type === DataType.DOUBLE;

function isFloat32({ modelFile }: ModelExample): boolean {
  const model = decodeModel(readFileSync(modelFile), modelFile);
  let hasHalf = false;
  forEachTensor(model, (tensor) => {
    hasHalf ||= isHalf(tensor.data_type);
  });
  return !hasHalf;
}

async function runOurs(example: ModelExample, options: { flash: 'auto' | 'off' }) {
  const session = await ort.InferenceSession.create(example.modelFile, { ...options, logSeverityLevel: 4 });
  try {
    counts.maps = 0;
    const results = await session.run(feedsOf(ort, session, example));
    const { attentions, segments } = session.explain();
    return { difference: largestDifference(session, results, example), maps: counts.maps, attentions, segments };
  } finally {
    await session.release();
  }
}

const models = process.env.ORT_FLASH_WEB === 'all' ? (wholeCorpus() ?? bundledModels()) : bundledModels();
for (const example of models) {
  if (example.static || example.exporter !== 'dynamo' || example.unrunnableOnCpu || !isFloat32(example)) continue;
  test(`${example.name}: PyTorch's outputs through ort-flash/web`, async (t) => {
    t.timeout(1_800_000);
    try {
      const { difference, attentions, segments, maps } = await runOurs(example, { flash: 'auto' });
      t.log(`${attentions} of ${example.sites} attentions in kernels, ${segments} parts, ${maps} readbacks`);
      t.true(difference <= example.tolerance, `differs by ${difference}`);
      t.is(attentions, example.sites);
    } catch (error) {
      // What onnxruntime-web itself cannot run is told, and no fault of ours.
      const plain = await t.throwsAsync(runOurs(example, { flash: 'off' }), undefined, String(error));
      t.log(`onnxruntime-web cannot run it: ${plain!.message}`);
    }
  });
}
