import type { Dimension, ModelInput, ModelSignature } from './signature.js';

/** What a symbolic dimension counts. */
export type DimensionRole = 'batch' | 'length' | 'past' | 'total' | 'pixels' | 'samples';

/** A symbolic dimension, by what it counts. Lengths of different streams (encoder, decoder, context) are independent. */
interface Symbol {
  readonly role: DimensionRole;
  /** Which sequence a length, past or total belongs to. */
  readonly stream: string;
}

/** How masks leave out keys: nothing, the end, the start, or keys at random. */
export type MaskPattern = 'full' | 'right' | 'left' | 'holes';

const MASK_PATTERNS: readonly MaskPattern[] = ['full', 'right', 'left', 'holes'];

/** One set of sizes to try. */
export interface SizeCase {
  readonly batch: number;
  readonly length: number;
  readonly past: number;
  readonly pixels: number;
  readonly samples: number;
  /** Pattern of batch item i: `patterns[i mod patterns.length]`. */
  readonly patterns: readonly MaskPattern[];
}

/** Every symbolic dimension's size. */
export type Binding = ReadonlyMap<string, number>;

/**
 * A guess at how a model's symbolic dimensions hang together. Exporters give equal dimensions different names (the
 * batch of ids and of their mask), so names alone do not tell.
 */
export interface Hypothesis {
  readonly describe: string;
  bind(sizes: SizeCase): Binding;
}

const STREAM_NOISE =
  /^(input|inputs|ids|id|embeds|embeddings|attention|attn|mask|masks|hidden|states|state|position|positions|token|type|segment|padding|pad|values|features|key|is|valid|nonpad|past|present|cache|kv|length|lengths|cross)$/;

/** The part of an input's name that says which sequence it belongs to: '' in `input_ids`, 'decoder' in `decoder_input_ids`. */
function streamOf(name: string): string {
  const words = name.toLowerCase().split(/[^a-z]+/);
  return words.filter((word) => word !== '' && !STREAM_NOISE.test(word)).join('_');
}

export function isPastName(name: string): boolean {
  return /past|cache/i.test(name) && !/mask|length|position|use_cache|branch/i.test(name);
}

export function isMaskName(name: string): boolean {
  return /mask/i.test(name);
}

/** The role of one dimension of an input. */
function roleOf(input: ModelInput, axis: number, hasPast: boolean): DimensionRole {
  const rank = input.dimensions.length;
  if (isMaskName(input.name)) {
    if (axis === 0 && rank > 1) return 'batch';
    return axis === rank - 1 && hasPast && !/encoder|cross/i.test(input.name) ? 'total' : 'length';
  }
  if (axis === 0) return 'batch';
  if (isPastName(input.name)) return 'past';
  if (rank >= 4 && axis >= 2) return 'pixels';
  const isFloat = input.tableSize === undefined && /^(1|10|11|16)$/.test(String(input.elementType));
  if (rank === 2 && isFloat && /input_values|audio|wave|speech|signal|sample/i.test(input.name)) return 'samples';
  return 'length';
}

function readSymbols(signature: ModelSignature): Map<string, Symbol> {
  const hasPast = signature.inputs.some((input) => isPastName(input.name));
  const symbols = new Map<string, Symbol>();
  // Masks last: a name that ids and mask share takes the meaning that it has for the ids.
  const ordered = [...signature.inputs].sort((a, b) => Number(isMaskName(a.name)) - Number(isMaskName(b.name)));
  for (const input of ordered) {
    for (const [axis, dimension] of input.dimensions.entries()) {
      if (typeof dimension === 'number' || symbols.has(dimension) || parseSum(dimension)) continue;
      const role = roleOf(input, axis, hasPast);
      const stream = role === 'batch' || role === 'past' || role === 'total' ? '' : streamOf(input.name);
      symbols.set(dimension, { role, stream });
    }
  }
  return symbols;
}

/** Terms of a dimension written as a sum, `past_sequence_length + 1`; `undefined` for a plain name. */
function parseSum(dimension: string): string[] | undefined {
  const terms = dimension.split('+').map((term) => term.trim());
  return terms.length > 1 && terms.every((term) => /^\w+$/.test(term)) ? terms : undefined;
}

/** Fills in the dimensions that are sums of others, and those with a size of their own. */
export function resolve(dimensions: readonly Dimension[], binding: Binding): number[] | undefined {
  const sizes = dimensions.map((dimension) => {
    if (typeof dimension === 'number') return dimension;
    const known = binding.get(dimension);
    if (known !== undefined) return known;
    return parseSum(dimension)?.reduce(
      (sum, term) => sum + (/^\d+$/.test(term) ? Number(term) : (binding.get(term) ?? Number.NaN)),
      0,
    );
  });
  return sizes.every((size) => size !== undefined && Number.isInteger(size)) ? (sizes as number[]) : undefined;
}

/** The guesses to try, most likely first. `recorded` are the dimensions of inputs that came with the model. */
export function hypotheses(
  signature: ModelSignature,
  recorded: ReadonlyMap<string, readonly number[]> | undefined,
): Hypothesis[] {
  const symbols = readSymbols(signature);
  const streams = [...new Set([...symbols.values()].filter((s) => s.role === 'length').map((s) => s.stream))];
  const byRole = (lengthOf: (stream: string, sizes: SizeCase) => number) => (sizes: SizeCase) =>
    new Map(
      [...symbols].map(([name, { role, stream }]) => {
        if (role === 'total') return [name, sizes.past + lengthOf(stream, sizes)];
        return [name, role === 'length' ? lengthOf(stream, sizes) : sizes[role]];
      }),
    );
  const guesses: Hypothesis[] = [];
  if (streams.length > 1) {
    guesses.push({
      describe: 'each sequence with a length of its own',
      bind: byRole((stream, { length }) => length + 4 * streams.indexOf(stream)),
    });
  }
  guesses.push({ describe: 'one length for all sequences', bind: byRole((_, { length }) => length) });
  if (recorded) {
    // Tracing bakes sizes in: a model may run at the batch or at the lengths of the recorded inputs only.
    const known = recordedSizes(signature, recorded);
    const keep = (kept: (role: DimensionRole) => boolean, guess: Hypothesis, what: string): Hypothesis => ({
      describe: `${guess.describe}, ${what} as recorded`,
      bind: (sizes) =>
        new Map(
          [...guess.bind(sizes)].map(([name, size]) => [
            name,
            kept(symbols.get(name)!.role) ? (known.get(name) ?? size) : size,
          ]),
        ),
    });
    guesses.push(
      ...guesses.map((guess) => keep((role) => role === 'batch', guess, 'the batch')),
      keep((role) => role !== 'batch', guesses[0]!, 'all but the batch'),
      tieByRecorded(symbols, known),
    );
  }
  return guesses;
}

/** The size of each symbolic dimension in the recorded inputs. */
function recordedSizes(
  signature: ModelSignature,
  recorded: ReadonlyMap<string, readonly number[]>,
): Map<string, number> {
  const sizeOf = new Map<string, number>();
  for (const input of signature.inputs) {
    for (const [axis, dimension] of input.dimensions.entries()) {
      const size = recorded.get(input.name)?.[axis];
      if (typeof dimension === 'string' && size !== undefined) sizeOf.set(dimension, size);
    }
  }
  return sizeOf;
}

/** Dimensions that had the same size in the recorded inputs are taken for the same dimension. */
function tieByRecorded(symbols: ReadonlyMap<string, Symbol>, sizeOf: ReadonlyMap<string, number>): Hypothesis {
  const leaders = new Map<number, Symbol>();
  for (const [name, symbol] of symbols) {
    const size = sizeOf.get(name);
    if (size !== undefined && !leaders.has(size)) leaders.set(size, symbol);
  }
  return {
    describe: 'dimensions tied as in the recorded inputs',
    bind: (sizes) =>
      new Map(
        [...symbols].map(([name, own]) => {
          const { role } = leaders.get(sizeOf.get(name) ?? -1) ?? own;
          return [name, role === 'total' ? sizes.past + sizes.length : sizes[role]];
        }),
      ),
  };
}

/**
 * The sizes to verify at: lengths 1, odd and longer than any window of the model, batches of 1 and 3, with and without
 * past keys, and masks with holes.
 */
export function planSizes(signature: ModelSignature): SizeCase[] {
  const long = signature.largestWindow + 33 + (signature.largestWindow % 2 === 0 ? 0 : 1);
  const spread = (rotation: number) => MASK_PATTERNS.map((_, index) => MASK_PATTERNS[(index + rotation) % 4]!);
  const base = { pixels: 64, samples: 1601 };
  return [
    { ...base, batch: 1, length: 7, past: 0, patterns: ['full'] },
    { ...base, batch: 1, length: 1, past: 0, patterns: ['full'] },
    { ...base, batch: 3, length: 13, past: 5, patterns: spread(0) },
    { ...base, batch: 3, length: 7, past: 0, pixels: 96, samples: 4000, patterns: spread(2) },
    { ...base, batch: 1, length: 1, past: 9, pixels: 224, samples: 16000, patterns: ['holes'] },
    { ...base, batch: 1, length: 13, past: 0, pixels: 32, samples: 400, patterns: ['right'] },
    { ...base, batch: 3, length: long, past: 0, pixels: 128, samples: 8001, patterns: spread(1) },
    { ...base, batch: 1, length: 1, past: long, pixels: 256, patterns: ['left'] },
  ];
}

/** Sizes to fall back on where few of {@link planSizes} suit the model: multiples of patches, windows and strides. */
export function fallbackSizes(): SizeCase[] {
  const lengths = [8, 16, 32, 64, 128, 197, 256, 512];
  const pixels = [48, 112, 160, 192, 320, 384, 448, 512];
  const samples = [800, 1000, 3200, 5000, 6400, 10000, 32000, 48000];
  return lengths.map((length, index) => ({
    batch: index % 2 === 0 ? 1 : 3,
    length,
    past: 0,
    pixels: pixels[index]!,
    samples: samples[index]!,
    patterns: MASK_PATTERNS.map((_, shift) => MASK_PATTERNS[(index + shift) % 4]!),
  }));
}
