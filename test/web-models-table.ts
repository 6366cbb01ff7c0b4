/**
 * Writes docs/web-models.md from the outcomes of web-models.test.ts (Chromium) and run-webgpu.test.ts (Node):
 * `npx tsx test/web-models-table.ts CHROMIUM.jsonl [NODE.jsonl]`.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './web-browser.js';
import { readOutcomes, type WebOutcome } from './web-outcomes.js';

const [chromium = '', node] = process.argv.slice(2);

const count = (outcomes: readonly WebOutcome[], outcome: WebOutcome['outcome']) =>
  outcomes.filter((one) => one.outcome === outcome).length;
const sum = (outcomes: readonly WebOutcome[], of: (one: WebOutcome) => number | undefined) =>
  outcomes.reduce((total, one) => total + (of(one) ?? 0), 0);

function summary(outcomes: readonly WebOutcome[]): string {
  const right = outcomes.filter(({ outcome }) => outcome === 'right');
  const largest = Math.max(...right.map(({ difference }) => difference ?? 0));
  return [
    '| | |',
    '| --- | --- |',
    `| exports | ${outcomes.length} |`,
    `| PyTorch's outputs | ${right.length} |`,
    `| largest difference among them, relative to the outputs' magnitude | ${largest.toExponential(1)} |`,
    `| attentions in kernels | ${sum(right, ({ attentions }) => attentions)} of ${sum(right, ({ sites }) => sites)} |`,
    `| onnxruntime-web fails on the untouched model | ${count(outcomes, 'not runnable')} |`,
    `| onnxruntime-web's own outputs are not PyTorch's | ${count(outcomes, 'not right')} |`,
    `| our fault | ${count(outcomes, 'failed')} |`,
  ].join('\n');
}

function exceptions(outcomes: readonly WebOutcome[]): string {
  const listed = outcomes.filter(({ outcome }) => outcome !== 'right');
  if (listed.length === 0) return 'None.';
  const row = ({ name, outcome, difference, why = '' }: WebOutcome) => {
    const untouched = difference === undefined ? '' : `the untouched model differs by ${difference.toExponential(1)}; `;
    return `| ${name} | ${outcome} | ${untouched}${why.replaceAll('|', '\\|').slice(0, 200)} |`;
  };
  return ['| export | outcome | why |', '| --- | --- | --- |', ...listed.map(row)].join('\n');
}

function readbacks(outcomes: readonly WebOutcome[]): string {
  const listed = outcomes.filter(({ maps = 0, outputs = 0 }) => maps > outputs);
  if (listed.length === 0) return 'None.';
  const row = ({ name, maps, mapsUntouched, outputs }: WebOutcome) =>
    `| ${name} | ${outputs} | ${maps} | ${mapsUntouched} |`;
  const head = '| export | outputs | readbacks | of the untouched model |\n| --- | --- | --- | --- |';
  return [head, ...listed.map(row)].join('\n');
}

const sorted = (file: string) => readOutcomes(file).sort((a, b) => (a.name < b.name ? -1 : 1));
const inChromium = sorted(chromium);
const inNode = node === undefined ? [] : sorted(node);
const parts = [
  '# Exports on WebGPU',
  'Every export of the corpus with dynamic shapes and float32, on its reference input, against the outputs of PyTorch. ' +
    'The GPU is SwiftShader (Vulkan in software). Made by `test/web-models-table.ts` from what the tests wrote down.',
  '## `ort-flash/web` in Chromium',
  '    ORT_FLASH_WEB=all ORT_FLASH_WEB_RESULTS=chromium.jsonl npx ava test/web-models.test.ts',
  summary(inChromium),
  '### Not right',
  exceptions(inChromium),
  '### Read back more than the outputs',
  "What ONNX Runtime itself reads back for operators that only its CPU provider has, or for If's condition.",
  readbacks(inChromium),
  ...(inNode.length === 0
    ? []
    : [
        '## `ort-flash run --device webgpu` in Node',
        '    ORT_FLASH_WEB=all ORT_FLASH_RUN_RESULTS=node.jsonl npx ava test/run-webgpu.test.ts',
        ...(inNode.length < inChromium.length
          ? [`Not run to its end: the first ${inNode.length} of ${inChromium.length} exports.`]
          : []),
        summary(inNode),
        '### Not right',
        exceptions(inNode),
      ]),
];
writeFileSync(join(root, 'docs', 'web-models.md'), `${parts.join('\n\n')}\n`);
