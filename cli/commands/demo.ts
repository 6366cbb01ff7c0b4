import { mkdtemp, rm } from 'node:fs/promises';
import { cpus, freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { readModelFile, writeModelFile } from '../../graph-rewrite/files.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';
import { buildTransformer } from '../../models/builder.js';
import { bundledModel } from '../../models/corpus.js';
import { type Measurement, measureInChild } from '../measure.js';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { formatBytes, formatDifference, formatMilliseconds, formatTable } from '../text.js';
import { verifyModels } from '../verify.js';

export interface DemoCommandOptions {
  readonly lengths: readonly number[];
}

/** Real exports of well-known architectures, from models/. */
const EXAMPLES = [
  { name: 'bert-sdpa-dyn18', title: 'BERT' },
  { name: 'llama_past-dyn18', title: 'Llama, with KV cache' },
  { name: 'vit-sdpa-ts17', title: 'ViT' },
  { name: 'whisper_dec-sdpa-dyn18', title: 'Whisper decoder' },
] as const;

interface ExampleResult {
  readonly name: string;
  readonly title: string;
  readonly sites: number;
  readonly fused: number;
  readonly nodesBefore: number;
  readonly nodesAfter: number;
  readonly runsCompared: number;
  readonly largestRelativeDifference: number;
  readonly holds: boolean;
  readonly failures: readonly string[];
}

interface LengthResult {
  readonly tokens: number;
  /** Absent where this machine has too little free memory for it. */
  readonly before?: Measurement;
  readonly after?: Measurement;
}

/** The encoder whose memory is measured: wide enough that attention counts, small enough for any machine. */
const ENCODER = { style: 'torchscript', layers: 1, width: 768, heads: 12 } as const;
const SCORE_BYTES_PER_PAIR = ENCODER.heads * Float32Array.BYTES_PER_ELEMENT;

/** `ort-flash demo`, which `npm start` runs: rewrites real exports, compares them, and shows what attention costs. */
export async function demo(output: Output, options: DemoCommandOptions): Promise<ExitCode> {
  const folder = await mkdtemp(join(tmpdir(), 'ort-flash-demo-'));
  try {
    const examples = await compareExamples(output, folder);
    const encoder = await measureEncoder(output, folder, options.lengths);
    output.document({ machine: describeMachine(), examples, encoder: { ...ENCODER, ...encoder } });
    const holds = encoder.holds && examples.every((example) => example.holds);
    return holds ? EXIT.success : EXIT.checkFailed;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function compareExamples(output: Output, folder: string): Promise<ExampleResult[]> {
  output.line(output.bold('1. Real exports: attention fused, then compared with the untouched model in ONNX Runtime'));
  const results: ExampleResult[] = [];
  for (const { name, title } of EXAMPLES) {
    output.progress(`rewriting and comparing ${title}`);
    results.push(await compareExample(name, title, join(folder, `${name}.onnx`)));
  }
  const head = ['model', 'attention fused', 'nodes before', 'after', 'runs compared', 'largest difference', ''];
  const rows = results.map((one) => [
    one.title,
    `${one.fused} of ${one.sites}`,
    `${one.nodesBefore}`,
    `${one.nodesAfter}`,
    `${one.runsCompared}`,
    formatDifference(one.largestRelativeDifference),
    output.mark(one.holds),
  ]);
  for (const line of formatTable(head, rows, [2, 3, 4])) output.line(line);
  for (const one of results) for (const failure of one.failures.slice(0, 3)) output.line(`  ${one.title}: ${failure}`);
  output.line(output.dim('  a difference is a share of the largest value of the output; 1e-4 is allowed'));
  output.line(output.dim('  compared at several lengths, batch sizes and masks, with and without past keys'));
  return results;
}

async function compareExample(name: string, title: string, file: string): Promise<ExampleResult> {
  const source = bundledModel(name).modelFile;
  const model = readModelFile(source);
  const { sites, nodesBefore, nodesAfter } = rewriteModel(model, {});
  await writeModelFile(file, model, { source });
  const { compared, outputs, holds, failures } = await verifyModels(source, file);
  return {
    name,
    title,
    sites: sites.length,
    fused: sites.filter((site) => site.fused).length,
    nodesBefore,
    nodesAfter,
    runsCompared: compared,
    largestRelativeDifference: Math.max(0, ...outputs.map((one) => one.largestRelativeDifference)),
    holds,
    failures,
  };
}

/**
 * Memory and time of an encoder, as exporters write it and as `rewrite --target ort` gives it: what a stock ONNX
 * Runtime on the CPU gains without our kernels.
 */
async function measureEncoder(output: Output, folder: string, lengths: readonly number[]) {
  output.line();
  output.line(output.bold('2. What attention costs: an encoder of 12 heads × 64, one layer, batch 1, on this CPU'));
  const before = join(folder, 'encoder.onnx');
  const after = join(folder, 'encoder.ort.onnx');
  const holds = await writeEncoder(before, after);
  if (!holds) output.line(`${output.mark(false)} the rewritten encoder gives other outputs`);
  const results: LengthResult[] = [];
  for (const tokens of lengths) {
    output.progress(`measuring at ${tokens} tokens`);
    results.push(await measureLength(before, after, tokens));
  }
  const head = ['tokens', 'memory before', 'after', 'time before', 'after', 'scores, one copy'];
  const rows = results.map(({ tokens, before: was, after: is }) => [
    tokens.toLocaleString('en'),
    was ? formatBytes(was.peakBytes) : 'too little free',
    is ? formatBytes(is.peakBytes) : '',
    was ? formatMilliseconds(was.milliseconds) : '',
    is ? formatMilliseconds(is.milliseconds) : '',
    formatBytes(SCORE_BYTES_PER_PAIR * tokens ** 2),
  ]);
  for (const line of formatTable(head, rows, [0, 1, 2, 3, 4, 5])) output.line(line);
  output.line(
    output.dim('  memory: measured, the most that a run takes on top of the loaded model, in a process of its own'),
  );
  output.line(
    output.dim('  after: written with --target ort, for ONNX Runtime without our kernels; last column computed'),
  );
  output.line(output.dim(`  ${describeMachine()}`));
  return { holds, lengths: results };
}

/** Writes the encoder and its rewritten form, and says whether the two agree. */
async function writeEncoder(before: string, after: string): Promise<boolean> {
  const model = buildTransformer(ENCODER);
  await writeModelFile(before, model);
  rewriteModel(model, { target: 'ort' });
  await writeModelFile(after, model);
  return (await verifyModels(before, after)).holds;
}

async function measureLength(before: string, after: string, tokens: number): Promise<LengthResult> {
  // Unfused attention holds about three copies of the scores at once; a machine that swaps shows nothing.
  if (3 * SCORE_BYTES_PER_PAIR * tokens ** 2 > 0.7 * freemem()) return { tokens };
  const runs = tokens <= 1024 ? 5 : tokens <= 2048 ? 3 : 1;
  return {
    tokens,
    before: await measureInChild(before, tokens, runs),
    after: await measureInChild(after, tokens, runs),
  };
}

function describeMachine(): string {
  const processors = cpus();
  return `${processors[0]?.model.trim() ?? 'unknown processor'} × ${processors.length}, Node ${process.versions.node}`;
}
