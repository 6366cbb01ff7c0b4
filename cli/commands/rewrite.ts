import { statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { type ExternalDataMode, readModelFile, type WriteReport, writeModelFile } from '../../graph-rewrite/files.js';
import type { LoweringTarget } from '../../graph-rewrite/lower.js';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { isExternal } from '../../graph-rewrite/onnx/external.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../../graph-rewrite/onnx/walk.js';
import type { LoweredSite, RewriteReport } from '../../graph-rewrite/report.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';
import { temporaryFolder } from '../../graph-rewrite/whole-files.js';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { printSites } from '../sites.js';
import { count, formatBytes } from '../text.js';
import type { VerifyReport } from '../verify.js';
import { printVerification } from './verify.js';

export interface RewriteCommandOptions {
  readonly output?: string;
  readonly dryRun?: boolean;
  readonly verify?: boolean;
  readonly target: 'flash' | LoweringTarget;
  readonly externalData: ExternalDataMode;
}

/** `ort-flash rewrite IN -o OUT` */
export async function rewrite(output: Output, input: string, options: RewriteCommandOptions): Promise<ExitCode> {
  const target = options.dryRun ? undefined : options.output;
  if (target === undefined && !options.dryRun) {
    throw new OrtFlashError(
      'invalid-argument',
      'where to write is not given',
      {},
      'add -o OUT, or --dry-run to only report what would be done',
    );
  }
  output.progress(`reading ${input}`);
  const model = readModelFile(input);
  const report = rewriteModel(model, {
    target: options.target,
    onProgress: (done, total) => output.progress(`rewriting, site ${done} of ${total}`),
  });
  const verification = options.verify ? await verifyRewritten(output, input, model, target) : undefined;
  const written =
    target === undefined || verification?.holds === false
      ? undefined
      : await writeModelFile(target, model, { source: input, externalData: options.externalData });
  output.document({
    input,
    output: written && target !== undefined ? target : null,
    target: options.target,
    fused: report.sites.filter((site) => site.fused).length,
    ...report,
    ...(verification === undefined ? {} : { verification }),
    ...(written === undefined ? {} : { written }),
  });
  printRewrite(output, report, verification);
  if (written && target !== undefined) printWritten(output, target, written);
  else if (verification?.holds === false) output.line('nothing was written');
  return verification?.holds === false ? EXIT.checkFailed : EXIT.success;
}

function printRewrite(output: Output, report: RewriteReport, verification: VerifyReport | undefined): void {
  printSites(output, report);
  if (report.lowered) printLowered(output, report.lowered);
  output.line(`nodes: ${report.nodesBefore} before, ${report.nodesAfter} after`);
  const [before, after] = report.movement;
  const moved = `${formatBytes(before.bytesPerToken)} before, ${formatBytes(after.bytesPerToken)} after`;
  output.line(`moved without computing, a token: ${moved} (${before.nodes} and ${after.nodes} nodes)`);
  if (verification) printVerification(output, verification);
}

/** What the fused sites became, and why some stayed FlashAttention. */
function printLowered(output: Output, lowered: readonly LoweredSite[]): void {
  const operators = new Map<string, number>();
  for (const { operator } of lowered) operators.set(operator, (operators.get(operator) ?? 0) + 1);
  for (const [operator, sites] of operators) output.line(`${count(sites, 'site')} became ${operator}`);
  for (const { node, refusal, inBlocks } of lowered) {
    const how = inBlocks ? ', a block of queries at a time' : '';
    if (refusal) output.line(`  ${node} stayed${how}: ${refusal.reason}`);
  }
}

function printWritten(output: Output, target: string, { bytes, dataFiles }: WriteReport): void {
  output.line(`wrote ${target} (${formatBytes(bytes)})`);
  for (const file of dataFiles) output.line(`  ${file.action} ${file.location} (${formatBytes(file.bytes)})`);
}

/** Compares with the untouched model. A model with external data has to lie beside it, so it goes to a folder for this. */
async function verifyRewritten(
  output: Output,
  input: string,
  model: ModelProto,
  target: string | undefined,
): Promise<VerifyReport> {
  const { verifyModels } = await import('../verify.js');
  const onProgress = (done: number, total: number) => output.progress(`comparing ${done}/${total}`);
  if (!hasExternalData(model)) return verifyModels(input, encodeModel(model), { onProgress });
  const parent = target === undefined ? tmpdir() : dirname(resolve(target));
  if (!statSync(parent, { throwIfNoEntry: false })?.isDirectory()) {
    throw new OrtFlashError('file-access', 'the folder to write to does not exist', { file: parent }, 'make it first');
  }
  const folder = temporaryFolder(parent);
  try {
    const file = join(folder.path, basename(input));
    await writeModelFile(file, model, { source: input, externalData: 'link' });
    return await verifyModels(input, file, { onProgress });
  } finally {
    folder.remove();
  }
}

function hasExternalData(model: ModelProto): boolean {
  let found = false;
  forEachTensor(model, (tensor) => {
    found ||= isExternal(tensor);
  });
  return found;
}
