/** The CUDA kernels on a GPU: the standalone harness, and the operator through ONNX Runtime's CUDA provider. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type ExecutionContext, type TestFn } from 'ava';
import { cudaProviderPath, customOpLibraryPath, onnxRuntimePath, packageFolder } from './node-paths.js';
import { type Random, writeRandomCase } from './test/operator-cases.js';
import { prepareStandardCases } from './test/prepare.js';
import { runs } from './test/programs.js';

const hasGpu = runs('nvidia-smi', '-L');
const build = join(packageFolder(), 'kernels-cuda', 'build');
// Each needs a GPU and what `npm run build:cuda` made: the library, and with the argument `harness` the harness.
const withHarness = (hasGpu && existsSync(join(build, 'harness')) ? anyTest.serial : anyTest.skip) as TestFn;
const headers = process.env.ORT_FLASH_ONNXRUNTIME_HEADERS ?? join(build, 'onnxruntime-1.29.0-headers');
const hasSession = [customOpLibraryPath(), cudaProviderPath(), headers].every((path) => existsSync(path));
const withSession = (hasGpu && hasSession ? anyTest.serial : anyTest.skip) as TestFn;

withHarness('random calls of every kernel agree with double precision', (t) => {
  t.timeout(9 * 60_000);
  const seed = String(Math.floor(Math.random() * 1e6));
  const arguments_ = ['--cases', '300', '--seed', seed];
  const output = execFileSync(join(build, 'harness'), arguments_, { encoding: 'utf8' });
  t.log(`seed ${seed}`, output);
  t.regex(output, /automatic {2,}300 calls, 0 failed/);
});

/** Runs prepared folders through ONNX Runtime's CUDA provider with our library. */
function assertAllHold(t: ExecutionContext, folder: string, cases: readonly string[]) {
  const runner = join(folder, 'session');
  const source = join(packageFolder(), 'kernels-cuda', 'test', 'session.cpp');
  execFileSync('g++', ['-std=c++17', '-O1', '-isystem', headers, '-o', runner, source, '-ldl']);
  // The runner exits with 1 where a case fails, and its lines say which.
  const command = [onnxRuntimePath(), customOpLibraryPath(), 'cuda', ...cases];
  const { stdout } = spawnSync(runner, command, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  t.is(stdout.match(/^ok /gm)?.length, cases.length, stdout);
}

function temporaryFolder(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-gpu-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

withSession('the standard’s own cases of Attention hold in every element type', (t) => {
  t.timeout(5 * 60_000);
  const folder = temporaryFolder(t);
  const cases = prepareStandardCases(folder);
  if (cases === undefined) return t.pass('the corpus is not here');
  for (const type of ['bf16', 'fp16']) t.true(cases.some((name) => name.includes(type)));
  assertAllHold(t, folder, cases);
});

withSession('random models through ONNX Runtime’s CUDA provider agree with the reference', (t) => {
  t.timeout(5 * 60_000);
  const folder = temporaryFolder(t);
  const random: Random = (below) => Math.random() * below;
  const types = ['float32', 'float16', 'bfloat16'] as const;
  const cases = Array.from({ length: 60 }, (_, i) => {
    const target = join(folder, `case-${i}`);
    writeRandomCase(random, types[i % 3]!, target);
    return target;
  });
  assertAllHold(t, folder, cases);
});
