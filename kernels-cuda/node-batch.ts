/** Batch inference: a model over any number of samples. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { toOrtFlashError } from './node-addon.js';
import { BatchRun } from './node-batch-run.js';
import type { BatchSummary, RunBatchOptions } from './node-batch-types.js';
import { openSamples } from './node-samples.js';
import { InferenceSession } from './node-session.js';

/**
 * Runs a model over many samples, and writes each one's results when they are there.
 *
 * While a batch runs, the next is read and put together, and results of the last are written. Samples of equal shapes
 * run together, along the first axis; sequences of different lengths, too, where the model has an `attention_mask`.
 * That a model treats batched samples as it does single ones is checked on the first batch, which runs both ways; one
 * that does not gets its samples one by one. Several GPUs take batches from one queue; where one fails for good, the
 * others do its part.
 * @throws OrtFlashError `invalid-argument`, `file-access`, `malformed-model` or `external-data` where options, model or
 *   the samples' place are at fault; `file-access` where results cannot be written any more, as on a full disk; `device` where all devices have failed. What was finished by
 *   then is there, and the same call goes on from it. A fault in one sample ends up in the summary instead.
 */
export async function runBatch(options: RunBatchOptions): Promise<BatchSummary> {
  checkOptions(options);
  const sessions = await openSessions(options);
  try {
    const source = await openSamples(options.inputs, sessions[0]!.inputMetadata);
    try {
      return await new BatchRun(options, sessions, source).run();
    } finally {
      await source.close();
    }
  } finally {
    await Promise.all(sessions.map((session) => session.release()));
  }
}

const BATCH_DEVICES: readonly string[] = ['cpu', 'wasm', 'webgpu', 'cuda'];

function checkOptions({ batch = 1, deviceIds, device = 'cpu', inputs, outputs, format }: RunBatchOptions): void {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', why);
  };
  if (!Number.isSafeInteger(batch) || batch < 1) fail(`batch must be a whole number from 1 on, not ${batch}`);
  if (!BATCH_DEVICES.includes(device)) fail(`device "${device}" is not known; ${BATCH_DEVICES.join(', ')} are`);
  if (format !== undefined && format !== 'pb' && format !== 'npy') fail(`format "${format}" is not known`);
  if (deviceIds !== undefined && device !== 'cuda') fail('deviceIds are for device cuda');
  if (deviceIds?.length === 0 || (new Set(deviceIds).size !== deviceIds?.length && deviceIds !== undefined))
    fail('deviceIds must name each GPU once');
  if (sameFolder(inputs, outputs)) fail('inputs and outputs are the same folder: choose another for outputs');
}

/** Whether two paths lead to one folder, by symbolic links or not: results would take the place of samples. */
function sameFolder(a: string, b: string): boolean {
  if (resolve(a) === resolve(b)) return true;
  const [statusA, statusB] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false }));
  return statusA !== undefined && statusA.dev === statusB?.dev && statusA.ino === statusB.ino;
}

async function openSessions({ model, device = 'cpu', deviceIds = [0] }: RunBatchOptions): Promise<InferenceSession[]> {
  const providers = device === 'cuda' ? deviceIds.map((deviceId) => ({ name: 'cuda', deviceId }) as const) : [device];
  const opened = await Promise.allSettled(
    providers.map((provider) => InferenceSession.create(model, { executionProviders: [provider] })),
  );
  const sessions = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = opened.find((result) => result.status === 'rejected');
  if (failed === undefined) return sessions;
  await Promise.all(sessions.map((session) => session.release()));
  throw toOrtFlashError(failed.reason, model);
}
