/**
 * The real exports that tests and benchmarks run: the selection in this folder, and the whole corpus where it is there.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { decodeTensor } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { type TensorData, tensorData, tensorShape } from '../graph-rewrite/onnx/tensor.js';

/** One exported model with its reference inputs and outputs. */
export interface ModelExample {
  readonly name: string;
  readonly architecture: string;
  /** Where the architecture's code is from; absent in the whole corpus. */
  readonly library?: string;
  /** Which of the library's attention implementations was exported. */
  readonly attention: string;
  readonly exporter: 'torchscript' | 'dynamo';
  readonly opset: number;
  /** How many attentions must be fused; 0 for those that must be left alone. */
  readonly sites: number;
  /** Largest difference from PyTorch's outputs that is allowed, absolute and relative. */
  readonly tolerance: number;
  readonly inputs: readonly string[];
  /** Exported with fixed shapes. */
  readonly static?: boolean;
  /** Uses operators that ONNX Runtime's CPU provider lacks for its types. */
  readonly unrunnableOnCpu?: boolean;
  readonly note?: string;
  readonly modelFile: string;
  /** Holds `input_N.pb` and `output_N.pb`. */
  readonly dataFolder: string;
}

/** One of the ONNX standard's own test cases of `Attention`. */
export interface StandardCase {
  readonly name: string;
  readonly modelFile: string;
  /** The same as its function-expanded graph, where the standard has it. */
  readonly expandedFile: string | undefined;
  readonly dataFolder: string;
}

/** One tensor of a test data set. */
export interface TestTensor {
  /** The graph input or output's name; empty where the file does not say. */
  readonly name: string;
  readonly type: DataTypeName;
  readonly dims: readonly number[];
  readonly data: TensorData;
}

export interface TestData {
  readonly inputs: readonly TestTensor[];
  readonly outputs: readonly TestTensor[];
}

/** The folder that holds package.json, wherever this module was compiled to. */
const root = (() => {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
})();

const files = (folder: string) => ({
  modelFile: join(folder, 'model.onnx'),
  dataFolder: join(folder, 'test_data_set_0'),
});

/** The selection in this folder. */
export function bundledModels(): ModelExample[] {
  const folder = join(root, 'models');
  const entries = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8')) as Omit<ModelExample, 'modelFile'>[];
  return entries.map((entry) => ({ ...entry, ...files(join(folder, entry.name)) }));
}

/** One model of the selection by its name. */
export function bundledModel(name: string): ModelExample {
  const found = bundledModels().find((model) => model.name === name);
  if (found === undefined) throw new Error(`models/index.json has no "${name}"`);
  return found;
}

/** An entry of the corpus's own index. */
interface CorpusEntry {
  readonly name: string;
  readonly model: string;
  readonly exporter: 'ts' | 'dyn';
  readonly opset: number;
  readonly sites: number;
  readonly tol: number;
  readonly inputs: readonly string[];
  readonly static?: boolean;
  readonly unrunnable_on_cpu?: boolean;
  readonly note?: string;
}

/** The whole corpus; undefined where it is not there. */
export function wholeCorpus(): ModelExample[] | undefined {
  const unpacked = unpack('exports.tar.xz');
  if (unpacked === undefined) return undefined;
  const folder = join(unpacked, 'corpus');
  const entries = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8')) as CorpusEntry[];
  return entries.map((entry) => {
    const [architecture = '', attention = 'eager'] = entry.model.split('@');
    return {
      name: entry.name,
      architecture,
      attention,
      exporter: entry.exporter === 'ts' ? 'torchscript' : 'dynamo',
      opset: entry.opset,
      sites: entry.sites,
      tolerance: entry.tol,
      inputs: entry.inputs,
      ...(entry.static === undefined ? {} : { static: entry.static }),
      ...(entry.unrunnable_on_cpu === undefined ? {} : { unrunnableOnCpu: entry.unrunnable_on_cpu }),
      ...(entry.note === undefined ? {} : { note: entry.note }),
      ...files(join(folder, entry.name)),
    };
  });
}

/** The whole corpus where it is there, else the selection. */
export function allModels(): ModelExample[] {
  return wholeCorpus() ?? bundledModels();
}

/** The standard's cases of `Attention` (opsets 23 to 25); undefined where the corpus is not there. */
export function standardAttentionCases(): StandardCase[] | undefined {
  const unpacked = unpack('onnx-attention.tar.xz');
  if (unpacked === undefined) return undefined;
  const folder = join(unpacked, 'onnx-attention');
  const names = readdirSync(folder).sort();
  return names
    .filter((name) => !name.endsWith('_expanded'))
    .map((name) => ({
      name,
      ...files(join(folder, name)),
      expandedFile: names.includes(`${name}_expanded`) ? join(folder, `${name}_expanded`, 'model.onnx') : undefined,
    }));
}

/** Unpacks an archive of the corpus once, into a temporary folder that later processes find again. */
function unpack(archive: string): string | undefined {
  const source = join(process.env.ORT_FLASH_CORPUS ?? join(root, '..', 'shared', 'corpus'), archive);
  if (!existsSync(source)) return undefined;
  const { size, mtimeMs } = statSync(source);
  const parent = join(tmpdir(), 'ort-flash-corpus');
  const target = join(parent, `${archive.split('.')[0]}-${size}-${Math.round(mtimeMs)}`);
  if (existsSync(target)) return target;
  mkdirSync(parent, { recursive: true });
  const partial = mkdtempSync(join(parent, 'partial-'));
  try {
    execFileSync('tar', ['-xJf', source, '-C', partial], { stdio: ['ignore', 'ignore', 'pipe'] });
    renameSync(partial, target);
  } catch (error) {
    rmSync(partial, { recursive: true, force: true });
    // Another process may have been first.
    if (!existsSync(target)) throw new Error(`cannot unpack ${source}: tar and xz are needed`, { cause: error });
  }
  return target;
}

/** The reference inputs and outputs in a folder, in the order of the graph's inputs and outputs. */
export function readTestData(folder: string): TestData {
  const names = readdirSync(folder);
  const read = (kind: 'input' | 'output') => {
    const numbers = names.flatMap((name) => new RegExp(`^${kind}_(\\d+)\\.pb$`).exec(name)?.[1] ?? []).map(Number);
    return numbers.sort((a, b) => a - b).map((number) => readTensorFile(join(folder, `${kind}_${number}.pb`)));
  };
  return { inputs: read('input'), outputs: read('output') };
}

/** Reads one `.pb` file that holds a tensor. */
function readTensorFile(file: string): TestTensor {
  const tensor = decodeTensor(readFileSync(file), file);
  return {
    name: tensor.name ?? '',
    type: dataTypeName(tensor.data_type) as DataTypeName,
    dims: tensorShape(tensor),
    data: tensorData(tensor),
  };
}
