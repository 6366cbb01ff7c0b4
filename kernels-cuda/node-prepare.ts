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

/**
 * Gives a model the form of its `FlashAttention` nodes that suits where it will run.
 *
 * The one place for it: every session passes its model through here.
 */
export async function prepareModel(model: string | Uint8Array, _target: AttentionTarget): Promise<PreparedModel> {
  return { model, configEntries: {}, note: undefined };
}
