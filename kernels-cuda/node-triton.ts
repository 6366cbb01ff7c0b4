/** Serving beyond one machine: a model repository for NVIDIA Triton Inference Server. */
import { existsSync } from 'node:fs';
import { copyFile, rename, rmdir, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { readModelFile } from '../graph-rewrite/files.js';
import { dataFiles } from '../graph-rewrite/onnx/data-files.js';
import { type DataTypeName, dataTypeName } from '../graph-rewrite/onnx/data-type.js';
import type { ModelProto, ValueInfoProto } from '../graph-rewrite/onnx/proto.js';
import { accessError, makeFolders, temporaryFolder } from '../graph-rewrite/whole-files.js';
import { formatTritonConfig, TRITON_TYPES, type TritonConfig, type TritonTensor } from './node-triton-schema.js';

/** What to export, and how it is to be served. */
export interface ExportTritonOptions {
  /** Path of the `.onnx` file; files with external data are taken along. */
  readonly model: string;
  /** Folder of the model repository, made where it is absent. */
  readonly repository: string;
  /** Default: the model file's name without its ending. */
  readonly name?: string;
  /** Default 1. */
  readonly version?: number;
  /**
   * The library of our CUDA kernels, taken along. Without it the server computes FlashAttention by the function that
   * the model carries. It needs a server whose ONNX Runtime is no older than the one that it was built for.
   */
  readonly customOpLibrary?: string;
  /**
   * Where the server sees the repository, for instance `/models` where a container mounts it there: Triton wants the
   * library's whole path. Default: the repository's own path.
   */
  readonly repositoryOnServer?: string;
  /** The most samples the server may run together; 0 for none. Default: 8 where the model allows it, else 0. */
  readonly maxBatchSize?: number;
  /** How long a request may wait for others to run with, in microseconds; default 100. */
  readonly maxQueueDelay?: number;
  /** How many copies of the model run at a time, for each GPU, or on the CPU; default 1. */
  readonly instances?: number;
  /** Default `gpu`. */
  readonly device?: 'gpu' | 'cpu';
  /** GPUs to run on; default all. */
  readonly gpus?: readonly number[];
}

/** What was written. */
export interface ExportTritonResult {
  /** The model's folder in the repository. */
  readonly folder: string;
  /** Paths in that folder. */
  readonly files: readonly string[];
  readonly config: TritonConfig;
}

/**
 * Writes a Triton model repository for an ONNX model: `config.pbtxt`, the model, its external data, and the library
 * of our kernels. The model's folder appears whole or not at all.
 * @throws OrtFlashError `invalid-argument`, `file-access`, `malformed-model`, `external-data`, or `unsupported` where
 *   Triton cannot serve an input or output
 */
export async function exportTriton(options: ExportTritonOptions): Promise<ExportTritonResult> {
  const name = options.name ?? basename(options.model).replace(/\.onnx$/, '');
  const version = options.version ?? 1;
  checkOptions(options, name, version);
  const model = readModelFile(options.model);
  const target = join(options.repository, name);
  if (existsSync(target)) {
    const hint = 'choose another name or remove it; Triton takes new versions of a model as numbered folders in it';
    throw new OrtFlashError('invalid-argument', 'the repository has this model already', { file: target }, hint);
  }
  const config = describe(model, name, version, options);
  const sources = new Map([[join(String(version), 'model.onnx'), options.model]]);
  for (const { location } of dataFiles(model))
    sources.set(join(String(version), location), join(dirname(options.model), location));
  const library = options.customOpLibrary;
  if (library !== undefined) await checkLibrary(library);
  if (library !== undefined) sources.set(join(String(version), basename(library)), library);
  await writeWhole(options.repository, target, sources, formatTritonConfig(config));
  return { folder: target, files: ['config.pbtxt', ...sources.keys()], config };
}

function checkOptions(options: ExportTritonOptions, name: string, version: number): void {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', why);
  };
  const whole = (what: string, value: number | undefined, least: number) => {
    if (value !== undefined && (!Number.isSafeInteger(value) || value < least || value >= 2 ** 31))
      fail(`${what} must be a whole number from ${least} on, not ${value}`);
  };
  if (!/^[\w.-]+$/.test(name) || /^\.+$/.test(name))
    fail(`"${name}" is no name for a model: use letters, digits, _ - .`);
  whole('version', version, 1);
  whole('maxBatchSize', options.maxBatchSize, 0);
  whole('maxQueueDelay', options.maxQueueDelay, 0);
  whole('instances', options.instances, 1);
  for (const gpu of options.gpus ?? []) whole('gpus', gpu, 0);
  if (options.device === 'cpu' && options.gpus !== undefined) fail('gpus are for device gpu');
}

async function checkLibrary(file: string): Promise<void> {
  const status = await stat(file).catch((cause: unknown) => {
    throw accessError('read', file, cause);
  });
  if (!status.isFile()) throw new OrtFlashError('invalid-argument', 'the custom-op library is no file', { file });
}

interface Value {
  readonly name: string;
  readonly type: string;
  /** −1 for a size that is not fixed. */
  readonly shape: readonly number[];
}

function describe(model: ModelProto, name: string, version: number, options: ExportTritonOptions): TritonConfig {
  const graph = model.graph!;
  const initialized = new Set(graph.initializer.map((tensor) => tensor.name));
  const inputs = graph.input.filter((input) => !initialized.has(input.name)).map(readValue);
  const outputs = graph.output.map(readValue);
  const values = [...inputs, ...outputs];
  const fixed = values.find(({ shape }) => shape[0] !== -1);
  if (fixed !== undefined && (options.maxBatchSize ?? 0) > 0) {
    const what = 'maxBatchSize must be 0, because the first axis of a tensor does not count samples';
    throw new OrtFlashError('invalid-argument', what, { tensor: fixed.name, shape: fixed.shape });
  }
  const batch = options.maxBatchSize ?? (fixed === undefined ? 8 : 0);
  const toTensor = (value: Value) => describeTensor(value, batch > 0);
  const { customOpLibrary, device = 'gpu', gpus, repository, repositoryOnServer = resolve(repository) } = options;
  return {
    name,
    backend: 'onnxruntime',
    max_batch_size: batch,
    input: inputs.map(toTensor),
    output: outputs.map(toTensor),
    instance_group: [
      {
        count: options.instances ?? 1,
        kind: device === 'gpu' ? 'KIND_GPU' : 'KIND_CPU',
        ...(gpus === undefined ? {} : { gpus }),
      },
    ],
    default_model_filename: 'model.onnx',
    ...(batch > 1 ? { dynamic_batching: dynamicBatching(batch, options.maxQueueDelay ?? 100) } : {}),
    ...(customOpLibrary === undefined
      ? {}
      : {
          model_operations: {
            op_library_filename: [`${repositoryOnServer}/${name}/${version}/${basename(customOpLibrary)}`],
          },
        }),
  };
}

/** Full batches run at once; what comes together in the meantime runs when the delay is over. */
function dynamicBatching(batch: number, delay: number) {
  return { preferred_batch_size: [batch], max_queue_delay_microseconds: delay };
}

function readValue(value: ValueInfoProto): Value {
  const name = value.name ?? '';
  const fail = (why: string): never => {
    throw new OrtFlashError('unsupported', `Triton cannot serve the model: ${why}`, { tensor: name });
  };
  const tensor = value.type?.tensor_type ?? fail('a sequence, map or optional is no tensor');
  const shape = tensor.shape ?? fail('the tensor has no shape');
  const dims = shape.dim.map(({ dim_value: size }) => (size == null ? -1 : Number(size)));
  return { name, type: dataTypeName(tensor.elem_type), shape: dims };
}

function describeTensor({ name, type, shape }: Value, batched: boolean): TritonTensor {
  const data_type = TRITON_TYPES[type as DataTypeName];
  if (data_type === undefined) throw new OrtFlashError('unsupported', `Triton has no ${type}`, { tensor: name, shape });
  const dims = batched ? shape.slice(1) : shape;
  // Triton's dims cannot be empty: such a tensor is served as one of a single element.
  return dims.length > 0 ? { name, data_type, dims } : { name, data_type, dims: [1], reshape: { shape: [] } };
}

/**
 * Puts all files into a folder that appears when they are all there: Triton may be watching the repository. Where that
 * fails or is interrupted, nothing stays of it.
 */
async function writeWhole(
  repository: string,
  target: string,
  sources: ReadonlyMap<string, string>,
  config: string,
): Promise<void> {
  const made: string[] = [];
  try {
    await makeFolders(repository, made);
    const partial = temporaryFolder(repository);
    try {
      // A folder in it, because a temporary one is readable by its owner alone, and the server may be somebody else.
      const folder = join(partial.path, basename(target));
      for (const [path, source] of sources) {
        await makeFolders(dirname(join(folder, path)));
        await copyFile(source, join(folder, path));
      }
      await writeFile(join(folder, 'config.pbtxt'), config);
      await rename(folder, target);
    } finally {
      partial.remove();
    }
  } catch (error) {
    for (const folder of made) await rmdir(folder).catch(() => undefined);
    throw accessError('written', target, error);
  }
}
