/** What the page and its workers say to each other. */

/** A file that was dropped or chosen; its bytes are read when they are needed. */
export interface GivenFile {
  readonly name: string;
  readonly data: Blob;
}

/** A tensor in a form that can be posted. */
export interface PlainTensor {
  readonly name: string;
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: ArrayBufferView<ArrayBuffer>;
}

/** A site that stays as it is. */
export interface RefusedSite {
  readonly index: number;
  readonly node: string;
  readonly form: string;
  readonly reason: string;
}

/** Pictures of one site, or of several that look alike; `after` is absent where it is not fused. */
export interface SitePicture {
  readonly heading: string;
  readonly detail: string;
  /** SVG, and how many operators it shows. */
  readonly before: { readonly svg: string; readonly operators: number };
  readonly after?: { readonly svg: string; readonly operators: number };
  readonly refusal?: string;
}

/** Memory of one attention at one sequence length, batch 1: bytes. */
export interface MemoryPoint {
  readonly length: number;
  /** The score matrix of all heads: what the exported form writes, and FlashAttention does not. */
  readonly scores: number;
  /** Queries, keys, values and results, which both forms have; absent where a size is not known. */
  readonly tensors?: number;
}

export interface MemoryCurve {
  /** The site with the largest scores. */
  readonly site: number;
  readonly fused: boolean;
  /** One point where the model fixes its lengths. */
  readonly points: readonly MemoryPoint[];
}

/** What one number sets the sizes that a model leaves open: tokens, pixels a side, audio samples; or it leaves none. */
export type OpenSize = 'tokens' | 'pixels' | 'samples' | 'none';

/** A data file that the model names. */
export interface DataFileState {
  readonly location: string;
  readonly data?: Blob;
}

/** A model that was read and rewritten. */
export interface OpenedModel {
  readonly name: string;
  readonly bytesBefore: number;
  /** The rewritten file; a Blob is passed on without a copy. */
  readonly rewritten: Blob;
  readonly fused: number;
  readonly sites: number;
  /** Attentions that were FlashAttention already; they are no sites. */
  readonly fusedBefore: number;
  readonly nodesBefore: number;
  readonly nodesAfter: number;
  /** Bytes a token that operators only move, before and after. */
  readonly movedBefore: number;
  readonly movedAfter: number;
  /** Fused sites, those alike in one row: positions, form, heads, head dimension, mask, first node. */
  readonly fusedRows: readonly (readonly string[])[];
  readonly refused: readonly RefusedSite[];
  readonly pictures: readonly SitePicture[];
  /** How many more pictures there would be. */
  readonly picturesLeftOut: number;
  readonly memory?: MemoryCurve;
  readonly dataFiles: readonly DataFileState[];
  readonly size: OpenSize;
  /** Why the page cannot run it, where it cannot. */
  readonly notRunnable?: string;
}

/** Inputs of one run of the opened model. */
export interface MadeInputs {
  readonly tensors: readonly PlainTensor[];
  /** The sizes chosen, `batch 1, sequence 512`. */
  readonly sizes: string;
}

/** How one output differs between the two forms. */
export interface OutputDifference {
  readonly name: string;
  readonly type: string;
  /** Largest difference as a share of the largest value. */
  readonly relative: number;
  readonly tolerance: number;
  readonly holds: boolean;
  /** Set where they cannot be compared or are not both defined. */
  readonly mismatch?: string;
}

/** What the rewriting worker does, by name: what it is given and what it gives. */
export interface RewriteCalls {
  open: { given: { files: readonly GivenFile[] }; gives: OpenedModel };
  inputs: { given: { size: number }; gives: MadeInputs };
  compare: { given: { before: readonly PlainTensor[]; after: readonly PlainTensor[] }; gives: OutputDifference[] };
}

export type Device = 'webgpu' | 'wasm';

/** One form of a model, to be run in a worker of its own. */
export interface RunTask {
  readonly form: 'exported' | 'rewritten';
  readonly device: Device;
  readonly model: Blob;
  readonly dataFiles: readonly DataFileState[];
  readonly inputs: readonly PlainTensor[];
}

export interface RunResult {
  /** Where it ran and how attention was carried out, in one sentence. */
  readonly explanation: string;
  /** Attentions that ran in our kernels. */
  readonly attentions: number;
  /** Milliseconds to open the model, of the first run, and of the runs after that. */
  readonly opened: number;
  readonly first: number;
  readonly runs: readonly number[];
  /** The most bytes held at once: in GPU buffers, or in WebAssembly's memory. */
  readonly peakBytes: number;
  readonly outputs: readonly PlainTensor[];
}

export interface RunCalls {
  run: { given: RunTask; gives: RunResult };
}

/** What a worker answers, any number of times `progress`, then one of the others. */
export type Answer =
  | { readonly kind: 'progress'; readonly text: string; readonly done: number; readonly total: number }
  | { readonly kind: 'done'; readonly value: unknown }
  | { readonly kind: 'failed'; readonly message: string };
