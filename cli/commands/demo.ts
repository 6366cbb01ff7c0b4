import { mkdtemp, rm } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { readModelFile, writeModelFile } from '../../graph-rewrite/files.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';
import { bundledModel } from '../../models/corpus.js';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { formatDifference, formatTable } from '../text.js';
import { verifyModels } from '../verify.js';

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

/** `ort-flash demo`, which `npm start` runs: rewrites real exports, compares them, and shows what attention costs. */
export async function demo(output: Output): Promise<ExitCode> {
  const folder = await mkdtemp(join(tmpdir(), 'ort-flash-demo-'));
  try {
    const examples = await compareExamples(output, folder);
    output.document({ machine: describeMachine(), examples });
    return examples.every((example) => example.holds) ? EXIT.success : EXIT.checkFailed;
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

function describeMachine(): string {
  const processors = cpus();
  return `${processors[0]?.model.trim() ?? 'unknown processor'} × ${processors.length}, Node ${process.versions.node}`;
}
