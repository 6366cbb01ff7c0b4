/** Reads, rewrites, draws and measures a model. */

import { OrtFlashError } from '../../../graph-rewrite/errors.js';
import { decodeModel, encodeModelChunks } from '../../../graph-rewrite/onnx/codec.js';
import { dataFiles } from '../../../graph-rewrite/onnx/data-files.js';
import type { ModelProto } from '../../../graph-rewrite/onnx/proto.js';
import type { SiteReport } from '../../../graph-rewrite/report.js';
import { rewriteModel } from '../../../graph-rewrite/rewrite.js';
import type { PlacedDiagram } from '../../draw/layout.js';
import { type Panel, renderDiagram } from '../../draw/svg.js';
import { sitePanels } from '../../draw.js';
import { scoreMemory, tensorMemory } from '../../scores.js';
import { fixed, groupAlike, siteRow } from '../../sites.js';
import type { Report } from './answer.js';
import { openSize } from './make-inputs.js';
import type { DataFileState, GivenFile, MemoryCurve, OpenedModel, SitePicture } from './messages.js';

/** A protobuf message ends at 2 GiB, so a longer file is no model. */
const LARGEST_FILE = 2 ** 31 - 1;

/** Sites that look different, drawn; more are no help. */
const MOST_PICTURES = 12;

/** Lengths at which memory is computed. */
const LENGTHS = Array.from({ length: 11 }, (_, i) => 128 * 2 ** i);

/** Reads the model among the files, and rewrites it. @throws OrtFlashError */
export async function openModel(files: readonly GivenFile[], report: Report): Promise<[OpenedModel, ModelProto]> {
  const file = chooseModel(files);
  report(`Reading ${file.name}`, 0, 0);
  if (file.data.size > LARGEST_FILE) {
    const hint = 'keep its weights in a data file, and drop both';
    throw new OrtFlashError('malformed-model', 'the file is larger than the 2 GiB of an ONNX model', at(file), hint);
  }
  const bytes = await readBytes(file);
  const before = decodeModel(bytes, file.name);
  const after = decodeModel(bytes, file.name);
  const needed = dataFiles(before).map(({ location, needed }) => givenData(location, needed, files));
  const rewrite = rewriteModel(after, {
    onProgress: (done, total) => report(`Rewriting attention ${done} of ${total}`, done, total),
  });
  const { sites, movement } = rewrite;
  const panels = sitePanels(before, after, sites);
  const memory = memoryCurve(sites);
  const opened: OpenedModel = {
    name: file.name,
    bytesBefore: bytes.length,
    rewritten: new Blob(encodeModelChunks(after) as Uint8Array<ArrayBuffer>[]),
    fused: sites.filter((site) => site.fused).length,
    sites: sites.length,
    fusedBefore: rewrite.fusedBefore,
    nodesBefore: rewrite.nodesBefore,
    nodesAfter: rewrite.nodesAfter,
    movedBefore: movement[0].bytesPerToken,
    movedAfter: movement[1].bytesPerToken,
    fusedRows: groupAlike(
      sites.filter((site) => site.fused),
      siteRow,
    ),
    refused: sites.filter((site) => !site.fused).map(refusedSite),
    pictures: panels.slice(0, MOST_PICTURES).map(picture),
    picturesLeftOut: Math.max(0, panels.length - MOST_PICTURES),
    ...(memory ? { memory } : {}),
    dataFiles: needed,
    ...openSize(before),
  };
  return [opened, before];
}

function chooseModel(files: readonly GivenFile[]): GivenFile {
  const models = files.filter(({ name }) => /\.onnx$/i.test(name));
  if (models.length === 1) return models[0]!;
  if (models.length > 1) {
    const names = models.map(({ name }) => name).join(' and ');
    throw new OrtFlashError('invalid-argument', `two models were given (${names})`, {}, 'give one at a time');
  }
  if (files.length === 1) return files[0]!;
  throw new OrtFlashError(
    'invalid-argument',
    'none of the files is an .onnx file',
    {},
    'give one, with its data files',
  );
}

async function readBytes(file: GivenFile): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return new Uint8Array(await file.data.arrayBuffer());
  } catch (cause) {
    const hint = 'is it a folder, or was it moved since it was chosen? Choose the file again';
    throw new OrtFlashError('file-access', 'the file cannot be read', at(file), hint, { cause });
  }
}

const at = ({ name }: GivenFile) => ({ file: name });

/** The dropped file that stands for a data file: browsers give names without folders. */
function givenData(location: string, needed: number, files: readonly GivenFile[]): DataFileState {
  const name = location.split('/').at(-1);
  const file = files.find((one) => one.name === name);
  if (file === undefined) return { location };
  if (file.data.size >= needed) return { location, data: file.data };
  const what = `the data file has ${file.data.size} bytes, the model needs it to have ${needed}`;
  throw new OrtFlashError('external-data', what, at(file), 'it was cut short, or belongs to another model');
}

function refusedSite({ index, node, form, refusal }: SiteReport) {
  const where = refusal?.value === undefined ? '' : ` (at ${refusal.value})`;
  return { index, node, form, reason: `${refusal?.reason ?? 'no reason is known'}${where}` };
}

function picture({ heading, detail, before, after, refusal }: Panel, index: number): SitePicture {
  const draw = (diagram: PlacedDiagram, form: string) => {
    const names = diagram.boxes.filter(({ kind }) => kind === 'operator' || kind === 'attention');
    const label = `${form}: ${names.length} operators: ${names.map(({ title }) => title).join(', ')}`;
    return { svg: renderDiagram(diagram, `tip-${index}-${form}`, label), operators: names.length };
  };
  return {
    heading,
    detail,
    before: draw(before, 'before'),
    ...(after ? { after: draw(after, 'after') } : {}),
    ...(refusal === undefined ? {} : { refusal }),
  };
}

/** Of the site whose scores are largest at 4,096 tokens. */
function memoryCurve(sites: readonly SiteReport[]): MemoryCurve | undefined {
  const sized = sites.flatMap((site) => {
    const scores = scoreMemory(site, { lengths: [4096], batch: 1 })[0]?.before;
    return scores === undefined ? [] : [{ site, scores }];
  });
  const largest = sized.sort((a, b) => b.scores - a.scores)[0]?.site;
  if (largest === undefined) return undefined;
  const queries = fixed(largest.queries);
  const keys = fixed(largest.keys);
  const lengths = queries !== undefined && keys !== undefined ? [Math.max(queries, keys)] : LENGTHS;
  const points = scoreMemory(largest, { lengths, batch: 1 }).map(({ length, before: scores }) => {
    const tensors = tensorMemory(largest, length, 1);
    return { length, scores, ...(tensors === undefined ? {} : { tensors }) };
  });
  return { site: largest.index, fused: largest.fused, points };
}
