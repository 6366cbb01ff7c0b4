/** The worker that runs one form of a model; ended after that, so that what it held is free for the other form. */

import { loadFile } from '../../../kernels-wgsl/session/external-files.js';
import { env, type FlashMode, InferenceSession, OrtFlashError, Tensor } from '../../../kernels-wgsl/web.js';
import { answerCalls, type Report } from './answer.js';
import type { PlainTensor, RunCalls, RunResult, RunTask } from './messages.js';
import { broken, checkGpu, peakGpuBytes, startMeter, wasmBytes } from './meter.js';

/** Runs after the first until there are this many, or this many milliseconds are over. */
const MOST_RUNS = 9;
const LONGEST = 3000;

startMeter();
env.wasm.numThreads = 1;
env.wasm.wasmPaths = { wasm: new URL('ort.wasm', import.meta.url).href };
env.logLevel = 'error';

answerCalls<RunCalls>({
  run: (task, report) => Promise.race([runForm(task, report), broken]),
});

async function runForm(task: RunTask, report: Report): Promise<RunResult> {
  const what = task.form === 'exported' ? 'As exported' : 'Rewritten';
  const total = MOST_RUNS + 2;
  report(`${what}: opening the model`, 0, total);
  const started = performance.now();
  const session = await openSession(task);
  const opened = performance.now() - started;
  const feeds = Object.fromEntries(task.inputs.map((input) => [input.name, toTensor(input)]));
  report(`${what}: first run, shaders are compiled`, 1, total);
  const [first, results] = await timed(() => session.run(feeds));
  checkGpu();
  const outputs = session.outputNames.map((name) => fromTensor(name, results[name]!));
  const runs: number[] = [];
  const end = performance.now() + LONGEST;
  while (runs.length < MOST_RUNS && (runs.length === 0 || performance.now() < end)) {
    report(`${what}: run ${runs.length + 1}`, runs.length + 2, total);
    runs.push((await timed(() => session.run(feeds)))[0]);
  }
  checkGpu();
  const { text, attentions } = session.explain();
  const peakBytes = task.device === 'webgpu' ? peakGpuBytes() : wasmBytes();
  return { explanation: text, attentions, opened, first, runs, peakBytes, outputs };
}

async function openSession({ form, device, model, dataFiles }: RunTask): Promise<InferenceSession> {
  const files = dataFiles.flatMap(({ location, data }) => (data ? [{ path: location, data }] : []));
  const externalData = await Promise.all(files.map(async ({ path, data }) => ({ path, data: await loadFile(data) })));
  const bytes = await loadFile(model);
  const open = (flash: FlashMode) =>
    InferenceSession.create(bytes, {
      executionProviders: [device],
      flash,
      logSeverityLevel: 3,
      ...(externalData.length > 0 ? { externalData } : {}),
    });
  if (form === 'exported') return open('off');
  if (device !== 'webgpu') return open('auto');
  try {
    // The kernels are to be seen, also where another form may be faster.
    return await open('on');
  } catch (error) {
    if (!(error instanceof OrtFlashError) || error.code !== 'unsupported') throw error;
    return open('auto');
  }
}

async function timed<T>(work: () => Promise<T>): Promise<[milliseconds: number, value: T]> {
  const start = performance.now();
  const value = await work();
  return [performance.now() - start, value];
}

/** The data has the array type that the name asks for; the constructor's overloads cannot express that. */
function toTensor({ type, data, dims }: PlainTensor): Tensor {
  return new Tensor(type as 'float32', data as unknown as Float32Array, dims);
}

function fromTensor(name: string, tensor: Tensor): PlainTensor {
  const data = tensor.data as unknown as PlainTensor['data'];
  return { name, type: tensor.type, dims: tensor.dims, data };
}
