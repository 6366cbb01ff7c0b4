/** What the masks of the real exports become: the same for every exporter and opset of a model. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { Model } from '../graph-rewrite/graph/graph.js';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import type { SiteReport } from '../graph-rewrite/report.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { Inference } from '../graph-rewrite/shape/inference.js';
import { allModels } from '../models/corpus.js';

const PADDED = 'boolean(b,k)';
const ENCODER = `${PADDED}; ${PADDED}`;
const DECODER = `causal ${PADDED}; causal ${PADDED}`;
const WINDOWED = `causal left=5 ${PADDED}; causal left=5 ${PADDED}`;
const TRANSLATOR = `${PADDED}; ${PADDED}; causal; ${PADDED}; causal; ${PADDED}`;

/**
 * For each site of a model the attributes, and the mask that is left with the axes of the scores that it spans: batch,
 * heads, queries, keys.
 */
const EXPECTED: Readonly<Record<string, string>> = {
  albert: ENCODER,
  alibi_bias: 'additive(h,q,k)',
  bart: TRANSLATOR,
  bert: ENCODER,
  bloom: 'causal additive(b,h,k); causal additive(b,h,k)',
  bool_where_mask: PADDED,
  causal_tril_buffer: 'causal',
  clip_text: DECODER,
  codegen: DECODER,
  cohere: DECODER,
  deepseek_mla: DECODER,
  deit: '-; -',
  distilbert: ENCODER,
  electra: ENCODER,
  falcon_mqa: DECODER,
  gemma: DECODER,
  gemma2: `causal left=5 ${PADDED}; causal ${PADDED}`,
  gemma3: WINDOWED,
  gpt2: DECODER,
  gpt2_past: DECODER,
  gpt_neox: DECODER,
  gptj: DECODER,
  gqa_repeat: 'causal',
  granite: DECODER,
  llama: DECODER,
  llama_past: DECODER,
  marian: TRANSLATOR,
  mistral: WINDOWED,
  modernbert: `${PADDED}; left=4 right=4 ${PADDED}`,
  nn_transformer: '-; -; causal; -',
  olmo2: DECODER,
  opt: DECODER,
  phi: DECODER,
  phi3: DECODER,
  qwen2: DECODER,
  qwen3: DECODER,
  qwen3_past: DECODER,
  roberta: ENCODER,
  sd_unet_baddbmm: '-; -',
  smollm3: DECODER,
  starcoder2: DECODER,
  t5_dec: `causal additive(h,q,k); ${PADDED}; causal additive(h,q,k); ${PADDED}`,
  vit: '-; -',
  wav2vec2: '-; -',
  whisper_dec: 'causal; -; causal; -',
};

/** Models with a learned or linear bias on the distance between query and key, which no attribute says. */
const POSITION_BIAS = ['alibi_bias', 't5_dec'];

function describe({ attributes, mask }: SiteReport): string {
  const { isCausal, leftWindow, rightWindow } = attributes!;
  const axes = ['b', 'h', 'q', 'k'].slice(-(mask?.shape?.length ?? 0));
  const spanned = axes.filter((_, i) => mask?.shape?.[i] !== 1);
  const parts = [
    isCausal ? 'causal' : [],
    leftWindow >= 0 ? `left=${leftWindow}` : [],
    rightWindow >= 0 ? `right=${rightWindow}` : [],
    mask?.kind === 'none' ? [] : `${mask?.kind}(${spanned})`,
  ].flat();
  return parts.join(' ') || '-';
}

/** Operators that compute a tensor of queries × keys for a site of the rewritten model. */
function squares(model: Model, sites: readonly SiteReport[]): string[] {
  const inference = new Inference(model);
  const pairs = new Set(sites.map((s) => `${s.queries}|${s.keys}`));
  return model.graph.nodes
    .filter((node) =>
      node.outputs.some((output) => {
        const [queries, keys] =
          (output &&
            inference
              .of(output)
              .shape?.slice(-2)
              .map((s) => s.key)) ??
          [];
        return pairs.has(`${queries}|${keys}`);
      }),
    )
    .map((node) => node.opType);
}

for (const example of allModels()) {
  const name = example.name.replace(/(-sdpa)?-(ts|dyn)\d+$/, '');
  const expected = EXPECTED[name];
  if (expected === undefined) continue;
  test(`${example.name}: ${expected}`, (t) => {
    const proto = decodeModel(readFileSync(example.modelFile), example.modelFile);
    const { sites } = rewriteModel(proto);
    t.is(sites.map(describe).join('; '), expected);
    const dynamic = sites.filter((s) => typeof s.queries === 'string' && typeof s.keys === 'string');
    if (dynamic.length > 0 && !POSITION_BIAS.includes(name)) t.deepEqual(squares(new Model(proto), dynamic), []);
  });
}
