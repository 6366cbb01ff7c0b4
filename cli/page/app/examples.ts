/** The models that come with the page. */

/** A real export from models/, as the server lists it. */
export interface ListedModel {
  readonly name: string;
  readonly architecture: string;
  readonly exporter: string;
  readonly opset: number;
  /** Attentions that can be fused; 0 for models that must be left alone. */
  readonly sites: number;
}

/** Built by the server when it is asked for: as wide as BERT-base, so that attention costs what it does in real life. */
export const BUILT_ENCODER = {
  name: 'encoder-12x64',
  options: { style: 'torchscript', layers: 1, width: 768, heads: 12 },
} as const;

/** What is one click away; `size` is a length at which every machine answers soon. */
export const EXAMPLES = [
  { name: 'bert-sdpa-dyn18', title: 'BERT', detail: 'text encoder with a padding mask', size: 32 },
  { name: 'llama_past-dyn18', title: 'Llama', detail: 'decoder with key and value caches', size: 32 },
  { name: BUILT_ENCODER.name, title: 'Encoder 12 × 64', detail: 'one BERT-base layer, for timing', size: 1024 },
] as const;
