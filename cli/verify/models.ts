import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { readModelFile } from '../../graph-rewrite/files.js';
import { decodeModel, decodeTensor, encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { dataFiles } from '../../graph-rewrite/onnx/data-files.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { widenBfloat16 } from '../../graph-rewrite/widen.js';
import type { ModelSignature } from './signature.js';
import { type Feeds, toOrtTensor } from './values.js';

/** A model's path, or its bytes. Bytes cannot refer to external data. */
export type ModelSource = string | Uint8Array;

/** Inputs that came from files. */
export interface Sample {
  readonly label: string;
  readonly feeds: Feeds;
}

/** Reads a file. @throws OrtFlashError `file-access` */
async function readBytes(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw fileError(path, cause);
  }
}

/** The error of a failed file operation, in plain words. */
function fileError(path: string, cause: unknown): OrtFlashError {
  const code = (cause as NodeJS.ErrnoException).code ?? '';
  const why = FILE_FAULTS[code] ?? `cannot be read (${code || String(cause)})`;
  return new OrtFlashError('file-access', why, { file: path }, undefined, { cause });
}

const FILE_FAULTS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file or folder',
  EISDIR: 'this is a folder, not a file',
  ENOTDIR: 'this is a file, not a folder',
  EACCES: 'you have no right to read this',
};

/** Reads a model, and checks that its external data is there. @throws OrtFlashError as readModelFile and decodeModel */
export function readModel(source: ModelSource): ModelProto {
  return typeof source === 'string' ? readModelFile(source) : decodeModel(source);
}

/** A model that onnxruntime-node runs on the CPU. */
export interface RunnableModel {
  readonly model: ModelProto;
  readonly session: InferenceSession;
  /** Whether it has bfloat16 that the CPU lacks kernels for, and is in float32 here. */
  readonly isWidened: boolean;
}

/**
 * Opens a model as it is, or in float32 where onnxruntime refuses it and it has bfloat16.
 * @param what what the model is, for errors
 * @throws OrtFlashError as readModel, createSession and inFloat32
 */
export async function openRunnable(source: ModelSource, what: string): Promise<RunnableModel> {
  const model = readModel(source);
  try {
    return { model, session: await createSession(source, what), isWidened: false };
  } catch (error) {
    const wide = inFloat32(model);
    if (wide === undefined) throw error;
    return { model, session: await createSession(wide, what), isWidened: true };
  }
}

/**
 * Widens a model in place; undefined where it has no bfloat16, or has data files: its bytes alone would not say where they
 * are.
 * @throws OrtFlashError `unsupported` where float32 cannot stand for it
 */
export function inFloat32(model: ModelProto): Uint8Array | undefined {
  return dataFiles(model).length === 0 && widenBfloat16(model) ? encodeModel(model) : undefined;
}

/**
 * Opens a model in onnxruntime-node, on the CPU, optimised as it does by default.
 * @throws OrtFlashError `runtime` where onnxruntime refuses the model
 */
export async function createSession(source: ModelSource, what: string): Promise<InferenceSession> {
  // Refusals come back as exceptions; onnxruntime's own log lines beside them would only repeat them.
  const options: InferenceSession.SessionOptions = { logSeverityLevel: 4 };
  try {
    return typeof source === 'string'
      ? await InferenceSession.create(source, options)
      : await InferenceSession.create(source, options);
  } catch (cause) {
    const place = typeof source === 'string' ? { file: source } : {};
    throw new OrtFlashError('runtime', `onnxruntime refuses ${what}: ${firstLine(cause)}`, place, undefined, { cause });
  }
}

/** Runs a model; the reason where onnxruntime refuses to. */
export async function runModel(
  session: InferenceSession,
  feeds: Feeds,
): Promise<InferenceSession.OnnxValueMapType | string> {
  try {
    return await session.run(feeds);
  } catch (cause) {
    return firstLine(cause);
  }
}

function firstLine(cause: unknown): string {
  const text = cause instanceof Error ? cause.message : String(cause);
  const line = text.split('\n').find((part) => part.trim() !== '') ?? text;
  return line.length > 300 ? `${line.slice(0, 300)}…` : line;
}

/**
 * Reads the samples of a folder: its own `input_N.pb`, or those of each `test_data_set_*` in it.
 * @throws OrtFlashError `file-access`, `malformed-model`, or `invalid-argument` where files and inputs do not match
 */
export async function readSamples(folder: string, signature: ModelSignature): Promise<Sample[]> {
  const names = await readdir(folder).catch((cause) => {
    throw fileError(folder, cause);
  });
  const sets = names.filter((name) => name.startsWith('test_data_set_')).sort(byNumber);
  const folders = sets.length > 0 ? sets.map((name) => join(folder, name)) : [folder];
  return Promise.all(folders.map((one) => readSample(one, signature)));
}

const byNumber = (a: string, b: string) => a.localeCompare(b, 'en', { numeric: true });

async function readSample(folder: string, signature: ModelSignature): Promise<Sample> {
  const names = await readdir(folder).catch((cause) => {
    throw fileError(folder, cause);
  });
  const files = names.filter((name) => /^input_\d+\.pb$/.test(name)).sort(byNumber);
  if (files.length !== signature.inputs.length) {
    throw new OrtFlashError(
      'invalid-argument',
      `the model takes ${signature.inputs.length} inputs and ${files.length} files input_N.pb are here`,
      { file: folder },
      `give one file for each of ${signature.inputs.map((input) => input.name).join(', ')}`,
    );
  }
  const feeds: Feeds = {};
  for (const file of files) {
    const path = join(folder, file);
    const proto = decodeTensor(await readBytes(path), path);
    const position = Number(/\d+/.exec(file)?.[0]);
    // ONNX's convention: the file's number is the input's position; a name inside, where there is one, agrees.
    const named = signature.inputs.find((input) => input.name === proto.name);
    const input = named ?? signature.inputs[position];
    if (!input) throw new OrtFlashError('invalid-argument', 'there is no input for this file', { file: path });
    feeds[input.name] = toOrtTensor(proto, path);
  }
  return { label: `the inputs of ${basename(folder)}`, feeds };
}
