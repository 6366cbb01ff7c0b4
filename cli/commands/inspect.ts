import { statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { readModelFile } from '../../graph-rewrite/files.js';
import { dataFiles } from '../../graph-rewrite/onnx/data-files.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import type { SiteReport } from '../../graph-rewrite/report.js';
import { rewriteModel, withoutCalls } from '../../graph-rewrite/rewrite.js';
import { writeWholeFile } from '../../graph-rewrite/whole-files.js';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { scoreMemory } from '../scores.js';
import { groupAlike, printSites } from '../sites.js';
import { count, formatBytes, formatTable } from '../text.js';

export interface InspectCommandOptions {
  readonly lengths: readonly number[];
  readonly batch: number;
  readonly svg?: string;
}

/** `ort-flash inspect IN` */
export async function inspect(output: Output, input: string, options: InspectCommandOptions): Promise<ExitCode> {
  output.progress(`reading ${input}`);
  const model = readModelFile(input);
  if (options.svg !== undefined) refuseToOverwrite(options.svg, input, model);
  const report = rewriteModel(model, {});
  const sites = report.sites.map((site) => ({ ...site, scores: scoreMemory(site, options) }));
  if (options.svg !== undefined) {
    const { drawSites } = await import('../draw.js');
    const picture = drawSites(basename(input), withoutCalls(readModelFile(input)), model, report.sites);
    await writeWholeFile(options.svg, [new TextEncoder().encode(picture)]);
  }
  output.document({ input, batch: options.batch, ...report, sites });
  printSites(output, report);
  printMemory(output, report.sites, options);
  return EXIT.success;
}

/** @throws OrtFlashError `invalid-argument` where the picture would take the place of the model or of its data */
function refuseToOverwrite(svg: string, input: string, model: ModelProto): void {
  const target = statSync(svg, { throwIfNoEntry: false });
  if (target === undefined) return;
  for (const file of [input, ...dataFiles(model).map(({ location }) => join(dirname(input), location))]) {
    const { dev, ino } = statSync(file);
    if (dev !== target.dev || ino !== target.ino) continue;
    const what = 'the picture would overwrite the model';
    throw new OrtFlashError('invalid-argument', what, { file: svg }, 'choose another name');
  }
}

function printMemory(output: Output, sites: readonly SiteReport[], options: InspectCommandOptions): void {
  const measured = sites.filter((site) => site.scoreBytesPerPair !== undefined);
  if (measured.length === 0) return;
  output.line();
  output.line(`${output.bold('memory of the scores of one attention')}, batch ${options.batch}, before → after`);
  const head = ['sites', ...options.lengths.map((length) => count(length, 'token')), 'first node'];
  const row = (site: SiteReport) =>
    scoreMemory(site, options).map(({ before, after }) => `${formatBytes(before)} → ${formatBytes(after)}`);
  for (const line of formatTable(head, groupAlike(measured, row))) output.line(line);
  output.line(output.dim('  after: FlashAttention holds a tile of scores on the chip and none in memory'));
}
