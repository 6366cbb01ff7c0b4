import { resolve } from 'node:path';
import type { BatchDevice, BatchProgress, TensorFileFormat } from '../../kernels-cuda/node-batch-types.js';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { count } from '../text.js';

export interface RunCommandOptions {
  readonly inputs: string;
  readonly outputs: string;
  readonly device: BatchDevice;
  readonly deviceIds?: readonly number[];
  readonly batch: number;
  readonly resume: boolean;
  readonly format?: TensorFileFormat;
}

const ENDING_SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/**
 * `ort-flash run MODEL --inputs … --outputs …`. Ctrl-C, and the SIGTERM of a cluster that wants its machine back, let
 * what is running finish and be written; a second one ends the process at once.
 */
export async function run(output: Output, model: string, options: RunCommandOptions): Promise<ExitCode> {
  const { runBatch } = await import('../../kernels-cuda/node-batch.js');
  const { inputs, outputs, device, deviceIds, batch, resume, format } = options;
  const interruption = new AbortController();
  let signal: NodeJS.Signals = 'SIGINT';
  const interrupt = (received: NodeJS.Signals) => {
    signal = received;
    interruption.abort();
    stopListening();
  };
  const stopListening = () => {
    for (const ending of ENDING_SIGNALS) process.off(ending, interrupt);
  };
  for (const ending of ENDING_SIGNALS) process.once(ending, interrupt);
  try {
    const summary = await runBatch({
      model,
      inputs,
      outputs,
      device,
      batch,
      resume,
      ...(deviceIds === undefined ? {} : { deviceIds }),
      ...(format === undefined ? {} : { format }),
      signal: interruption.signal,
      onProgress: (progress) => output.progress(describe(progress)),
    });
    const failed = summary.failed.map(({ sample, error }) => ({ sample, code: error.code, message: error.message }));
    output.document({ model, inputs, outputs, ...summary, failed });
    output.line(`${summary.explanation}`);
    for (const { sample, message } of failed.slice(0, 20)) output.line(`${output.mark(false)} ${sample}: ${message}`);
    if (failed.length > 20) output.line(`  and ${failed.length - 20} more; --json lists them all`);
    const already = summary.skipped > 0 ? `, ${summary.skipped} were there already` : '';
    const rate = `${summary.samplesPerSecond.toPrecision(3)} a second`;
    output.line(
      `${output.mark(failed.length === 0 && !summary.interrupted)} ${count(summary.finished, 'sample')} of ` +
        `${summary.total} run in ${summary.seconds.toFixed(1)} s (${rate})${already}; results in ${resolve(outputs)}`,
    );
    if (summary.interrupted) {
      output.line('interrupted: the same command goes on from here');
      // What was started is written; now end as any interrupted process does, so that a script around it ends too.
      process.kill(process.pid, signal);
      return EXIT.interrupted;
    }
    return failed.length > 0 ? EXIT.fault : EXIT.success;
  } finally {
    stopListening();
  }
}

function describe({ total, finished, skipped, failed, samplesPerSecond }: BatchProgress): string {
  const faults = failed > 0 ? `, ${failed} failed` : '';
  return `${finished + skipped + failed}/${total} samples${faults}, ${samplesPerSecond.toPrecision(3)} a second`;
}
