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
