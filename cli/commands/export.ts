import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { EXIT, type ExitCode, type Output } from '../output.js';

export interface ExportCommandOptions {
  readonly out: string;
  readonly name?: string;
  readonly modelVersion: number;
  readonly library?: string;
  readonly serverPath?: string;
  readonly maxBatch?: number;
  readonly instances: number;
  readonly device: 'gpu' | 'cpu';
}

/** `ort-flash export triton MODEL --out REPO` */
export async function exportModel(
  output: Output,
  format: string,
  model: string,
  options: ExportCommandOptions,
): Promise<ExitCode> {
  if (format !== 'triton') {
    throw new OrtFlashError('invalid-argument', `there is no export to "${format}"`, {}, 'there is triton');
  }
  const { exportTriton } = await import('../../kernels-cuda/node-triton.js');
  const { out, name, modelVersion, library, serverPath, maxBatch, instances, device } = options;
  const result = await exportTriton({
    model,
    repository: out,
    version: modelVersion,
    instances,
    device,
    ...(name === undefined ? {} : { name }),
    ...(library === undefined ? {} : { customOpLibrary: library }),
    ...(serverPath === undefined ? {} : { repositoryOnServer: serverPath }),
    ...(maxBatch === undefined ? {} : { maxBatchSize: maxBatch }),
  });
  output.document({ model, format, ...result });
  output.line(`wrote ${result.folder}`);
  for (const file of result.files) output.line(`  ${file}`);
  return EXIT.success;
}
