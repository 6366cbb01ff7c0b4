/**
 * The custom op through ONNX Runtime, on the CPU: its own part (attributes, layouts, shapes, types, optional inputs and
 * outputs, overloads) with a host reference implementation in place of the CUDA kernels. Needs g++ and ONNX Runtime's
 * headers, which building the Node addon fetches.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type ExecutionContext, type TestFn } from 'ava';
import fc from 'fast-check';
import { readModelFile } from '../graph-rewrite/files.js';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { AttributeType } from '../graph-rewrite/onnx/proto.js';
import { isFlashAttention } from '../graph-rewrite/op/node.js';
import { allModels } from '../models/corpus.js';
import { onnxRuntimePath, packageFolder } from './node-paths.js';
import { type Random, writeRandomCase } from './test/operator-cases.js';
import { prepareModel, prepareStandardCases } from './test/prepare.js';

const source = join(packageFolder(), 'kernels-cuda');

/** ONNX Runtime's headers, if the addon's build has brought them. */
function headersFolder(): string | undefined {
  const given = process.env.ORT_FLASH_ONNXRUNTIME_HEADERS;
  if (given !== undefined) return given;
  const build = join(source, 'build');
  const found = existsSync(build)
    ? readdirSync(build).find((name) => /^onnxruntime-.*-headers$/.test(name))
    : undefined;
  return found === undefined ? undefined : join(build, found);
}

function hasCompiler(): boolean {
  try {
    execFileSync('g++', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

const headers = headersFolder();
const present = process.platform === 'linux' && headers !== undefined && hasCompiler() && existsSync(onnxRuntimePath());
const test = (present ? anyTest.serial : anyTest.skip) as TestFn;
const folder = mkdtempSync(join(tmpdir(), 'ort-flash-operator-'));
const library = join(folder, 'libortflash_reference.so');
const runner = join(folder, 'session');

anyTest.before((t) => {
  if (!present) return;
  t.timeout(5 * 60_000);
  const flags = ['-std=c++17', '-O2', '-Wall', '-Wextra', '-Werror', '-isystem', headers!];
  const op = ['op', 'layout', 'problem'].map((name) => join(source, 'custom-op', `${name}.cpp`));
  const reference = join(source, 'test', 'reference_host.cpp');
  const shared = ['-fPIC', '-fvisibility=hidden', '-DORTFLASH_ON_CPU', '-shared', '-o', library];
  execFileSync('g++', [...flags, ...shared, ...op, reference], { stdio: ['ignore', 'ignore', 'inherit'] });
  execFileSync('g++', [...flags, '-o', runner, join(source, 'test', 'session.cpp'), '-ldl'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
});
anyTest.after.always(() => rmSync(folder, { recursive: true, force: true }));

/** Runs prepared folders in one process; its line for each. */
function run(folders: readonly string[]): string[] {
  const command = [onnxRuntimePath(), library, 'cpu', ...folders];
  try {
    const output = execFileSync(runner, command, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    return output.trim().split('\n');
  } catch (error) {
    const { stdout } = error as { stdout?: string };
    if (!stdout) throw error;
    return stdout.trim().split('\n');
  }
}

function assertAllHold(t: ExecutionContext, folders: readonly string[]) {
  const lines = run(folders);
  t.is(lines.length, folders.length);
  for (const line of lines) t.true(line.startsWith('ok '), line);
}

test('random calls in every layout give what the double-precision reference gives', (t) => {
  t.timeout(5 * 60_000);
  let count = 0;
  fc.assert(
    fc.property(fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })), (stream) => {
      const random: Random = (below) => (stream.next().value as number) * below;
      const types = ['float32', 'float16', 'bfloat16'] as const;
      const target = join(folder, `random-${count}`);
      writeRandomCase(random, types[count++ % 3]!, target);
      const [line = ''] = run([target]);
      return line.startsWith('ok ') || t.log(line) === null;
    }),
    { numRuns: 60, endOnFailure: true },
  );
  t.pass();
});

test('the standard’s own cases of Attention hold', (t) => {
  t.timeout(5 * 60_000);
  const fused = prepareStandardCases(folder);
  if (fused === undefined) return t.pass('the corpus is not here');
  t.true(fused.length > 50, `${fused.length} cases became FlashAttention`);
  return assertAllHold(t, fused);
});

test('whole models give PyTorch’s outputs, each site through the op', (t) => {
  t.timeout(8 * 60_000);
  const models = allModels().filter(({ sites, unrunnableOnCpu }) => sites > 0 && !unrunnableOnCpu);
  const step = Math.max(1, Math.floor(models.length / 24));
  const some = models.filter((_, i) => i % step === 0);
  const prepared = some.map(({ name, modelFile, dataFolder, tolerance }) =>
    prepareModel(modelFile, dataFolder, join(folder, name), tolerance),
  );
  t.true(prepared.every(({ sites }) => sites > 0));
  assertAllHold(
    t,
    prepared.map((model) => model.folder),
  );
});

test('a softmax in double precision and an unreadable layout are refused when the session is created', (t) => {
  const target = join(folder, 'refused');
  let state = 1;
  const random: Random = (below) => {
    state = (state * 1664525 + 1013904223) >>> 0;
    return (state / 2 ** 32) * below;
  };
  const refusal = (name: string, attribute: { name: string; type: number; i?: number; s?: Uint8Array }) => {
    writeRandomCase(random, 'float32', target);
    const model = readModelFile(join(target, 'model.onnx'));
    const node = model.graph!.node!.find(isFlashAttention)!;
    node.attribute = [...node.attribute!.filter((a) => a.name !== attribute.name), attribute as never];
    writeFileSync(join(target, 'model.onnx'), encodeModel(model));
    const [line = ''] = run([target]);
    t.true(line.startsWith('failed '), name);
    return line;
  };
  t.regex(refusal('precision', { name: 'softmax_precision', type: AttributeType.INT, i: 11 }), /double precision/);
  const layout = new TextEncoder().encode('BXSD');
  t.regex(refusal('layout', { name: 'q_layout', type: AttributeType.STRING, s: layout }), /no tensor layout/);
});
