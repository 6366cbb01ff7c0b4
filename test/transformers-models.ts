/** Folders of models as transformers.js reads them, made of bundled models, for tests. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { GraphProto, ValueInfoProto } from '../graph-rewrite/onnx/proto.js';
import { bundledModel } from '../models/corpus.js';

/** Names of inputs, outputs and dimensions by what the export calls them; others stay. */
type Names = Readonly<Record<string, string>>;

const LAYERS = [0, 1];
const PARTS = ['key', 'value'];
const caches = LAYERS.flatMap((layer) => PARTS.map((part) => `${layer}.${part}`));

const SIZES = { hidden_size: 32, num_attention_heads: 4, num_hidden_layers: 2, vocab_size: 96 } as const;
/** The two architectures, with the names that transformers.js expects: those of Optimum's exports. */
const MODELS = {
  'tiny-bert': {
    example: 'bert-sdpa-dyn18',
    names: { output: 'last_hidden_state' } as Names,
    config: { model_type: 'bert', architectures: ['BertModel'], ...SIZES },
    paddingSide: 'right',
  },
  'tiny-llama': {
    example: 'llama_past-dyn18',
    names: {
      output: 'logits',
      s10: 'batch_size',
      ...Object.fromEntries(caches.map((cache) => [`past.${cache}`, `past_key_values.${cache}`])),
    } as Names,
    config: {
      model_type: 'llama',
      architectures: ['LlamaForCausalLM'],
      ...SIZES,
      num_key_value_heads: 2,
      head_dim: 8,
      eos_token_id: 0,
    },
    paddingSide: 'left',
  },
} as const;

/** One token for each printable character of ASCII, and one for padding and the end. */
const END = '<end>';
const vocabulary = Object.fromEntries(
  [END, ...Array.from({ length: SIZES.vocab_size - 1 }, (_, i) => String.fromCharCode(32 + i))].map((c, i) => [c, i]),
);
const TOKENIZER = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: [
    { id: 0, content: END, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
  ],
  normalizer: null,
  pre_tokenizer: null,
  post_processor: null,
  decoder: { type: 'Fuse' },
  model: { type: 'BPE', vocab: vocabulary, merges: [], unk_token: END, fuse_unk: false, byte_fallback: false },
};

/** Writes `tiny-bert` and `tiny-llama`, a decoder with a key and value cache, into a folder. */
export function writeTransformersModels(folder: string): void {
  for (const [name, { example, names, config, paddingSide }] of Object.entries(MODELS)) {
    const target = join(folder, name);
    mkdirSync(join(target, 'onnx'), { recursive: true });
    const { modelFile } = bundledModel(example);
    const model = decodeModel(readFileSync(modelFile), modelFile);
    rename(model.graph!, names);
    writeFileSync(join(target, 'onnx', 'model.onnx'), encodeModel(model));
    const json = (file: string, value: unknown) => writeFileSync(join(target, file), JSON.stringify(value));
    json('config.json', config);
    json('tokenizer.json', TOKENIZER);
    json('tokenizer_config.json', {
      tokenizer_class: 'PreTrainedTokenizerFast',
      pad_token: END,
      eos_token: END,
      padding_side: paddingSide,
      model_max_length: 64,
    });
    if (config.model_type === 'llama') json('generation_config.json', { eos_token_id: 0, pad_token_id: 0 });
  }
}

function rename(graph: GraphProto, names: Names): void {
  const named = (name: string) => names[name] ?? name;
  const renameInfo = (info: ValueInfoProto) => {
    info.name = named(info.name!);
    for (const dim of info.type?.tensor_type?.shape?.dim ?? []) if (dim.dim_param) dim.dim_param = named(dim.dim_param);
  };
  for (const node of graph.node) {
    node.input = node.input.map(named);
    node.output = node.output.map(named);
  }
  for (const info of [...graph.input, ...graph.output, ...graph.value_info]) renameInfo(info);
}
