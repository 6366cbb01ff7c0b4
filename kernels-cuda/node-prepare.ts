import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { lowerModel } from '../graph-rewrite/lower.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { isExternal } from '../graph-rewrite/onnx/external.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { FLASH_ATTENTION_DOMAIN } from '../graph-rewrite/op/definition.js';
import type { LoweredSite } from '../graph-rewrite/report.js';

/** What carries out attention in a session: our kernels, or the fused operators of ONNX Runtime itself. */
export type AttentionTarget = 'flash' | 'ort';

/** A model as it goes to a session. */
export interface PreparedModel {
  readonly model: string | Uint8Array;
  /** Session config entries that the model needs. */
  readonly configEntries: Readonly<Record<string, string>>;
  /** How attention is carried out, for people; nothing where the model was left as it is. */
  readonly note: string | undefined;
}

/** ONNX Runtime's name for the folder of external data of a model that comes from memory. */
const DATA_FOLDER = 'session.model_external_initializers_file_folder_path';

/**
 * Gives a model the form of its `FlashAttention` nodes that suits where it will run. Other models stay as they are.
 * @param dataFolders whether the session takes config entries, which a lowered model with external data needs; without,
 *   such a model stays as it is, and its `FlashAttention` nodes run by their function bodies
 * @throws OrtFlashError `malformed-model`
 */
export async function prepareModel(
  model: string | Uint8Array,
  target: AttentionTarget,
  dataFolders = true,
): Promise<PreparedModel> {
  const asItIs = { model, configEntries: {}, note: undefined };
  if (target === 'flash') return asItIs;
  const bytes = typeof model === 'string' ? await readModel(model) : model;
  // Decoding and inference take their time: most models have no node of ours.
  if (
    bytes === undefined ||
    !Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).includes(FLASH_ATTENTION_DOMAIN)
  )
    return asItIs;
  const file = typeof model === 'string' ? model : undefined;
  const proto = decodeModel(bytes, file);
  let external = false;
  forEachTensor(proto, (tensor) => {
    external ||= isExternal(tensor);
  });
  if (external && !dataFolders) return { ...asItIs, note: 'attention runs by its function body: the addon is missing' };
  const sites = lowerModel(proto, target);
  if (sites.length === 0) return asItIs;
  const configEntries: Record<string, string> = {};
  if (external && file !== undefined) configEntries[DATA_FOLDER] = dirname(resolve(file));
  return { model: encodeModel(proto), configEntries, note: describeSites(sites) };
}

/** The file's bytes; nothing where it cannot be read, which ONNX Runtime says itself. */
async function readModel(file: string): Promise<Uint8Array | undefined> {
  return readFile(file).catch(() => undefined);
}

/** `12 attentions by MultiHeadAttention, 1 by its function body (reason)`. */
function describeSites(sites: readonly LoweredSite[]): string {
  const counts = new Map<string, number>();
  for (const { operator, refusal } of sites) {
    const way = refusal === undefined ? operator : `its function body (${refusal.reason})`;
    counts.set(way, (counts.get(way) ?? 0) + 1);
  }
  return Array.from(counts, ([way, count]) => `${count} attention${count === 1 ? '' : 's'} by ${way}`).join(', ');
}
