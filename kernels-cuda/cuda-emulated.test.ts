/**
 * Every CUDA kernel, Hopper's too, run on the processor (test/emulated/threads.h) and held against double precision: sizes off
 * every tile, layouts, masks, poisoned outputs. Needs g++, and CUDA's headers beside nvcc; no GPU.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type ExecutionContext, type TestFn } from 'ava';
import { packageFolder } from './node-paths.js';
import { writeRandomCase } from './test/operator-cases.js';
import { canBuildOperator, OperatorOnCpu, seeded } from './test/operator-on-cpu.js';
import { prepareStandardCases } from './test/prepare.js';
import { runs } from './test/programs.js';

const folder = join(packageFolder(), 'kernels-cuda');

const hasCompilers = runs(process.env.NVCC ?? 'nvcc', '--version') && runs(process.env.CXX ?? 'g++', '--version');
const test = (hasCompilers ? anyTest.serial : anyTest.serial.skip) as TestFn;

function build(where: string): string {
  const jobs = `-j${Math.min(4, availableParallelism())}`;
  execFileSync('make', ['-C', where, jobs, 'emulated'], { stdio: ['ignore', 'ignore', 'pipe'], maxBuffer: 1 << 28 });
  return join(where, 'build', 'emulated', 'harness');
}

let harness = '';
test.before((t) => {
  t.timeout(9 * 60_000);
  if (hasCompilers) harness = build(folder);
});

/** By their numbers in OrtFlashKernel of ortflash_attention.h. */
const KERNELS = { automatic: 0, scalar: 1, float32: 2, ampere: 3, hopper: 4, decode: 5, tf32: 6 } as const;

interface Run {
  readonly kernel: keyof typeof KERNELS;
  /** Without it calls are of every element type. */
  readonly element?: 'float32';
  readonly cases: number;
  readonly seed: number;
  /** Where the device is not an H100: see test/emulated/runtime.cpp. */
  readonly device?: Readonly<Record<string, string>>;
}

function run(program: string, { kernel, element, cases, seed, device }: Run) {
  const chosen = ['--kernel', KERNELS[kernel], ...(element === 'float32' ? ['--element', 0] : [])];
  const options = [...chosen, '--cases', cases, '--seed', seed, '--scores', 200_000].map(String);
  const { status, stdout, stderr } = spawnSync(program, options, {
    env: { ...process.env, ...device },
    encoding: 'utf8',
  });
  return { status, report: `${stdout}${stderr}` };
}

function holds(t: ExecutionContext, what: Run): void {
  t.timeout(9 * 60_000);
  const { status, report } = run(harness, what);
  t.log(report.trim());
  t.is(status, 0, report);
  t.regex(report, /[1-9]\d* calls, 0 failed/);
}

for (const kernel of ['ampere', 'hopper', 'decode', 'float32', 'tf32'] as const)
  test(`${kernel}: random calls`, (t) => holds(t, { kernel, cases: 60, seed: 101 }));

test('scalar: random calls', (t) => holds(t, { kernel: 'scalar', cases: 12, seed: 101 }));

test('hopper: a block takes several work items', (t) =>
  holds(t, { kernel: 'hopper', cases: 60, seed: 102, device: { EMULATED_MULTIPROCESSORS: '5' } }));

test('decode: few splits', (t) =>
  holds(t, { kernel: 'decode', cases: 60, seed: 103, device: { EMULATED_MULTIPROCESSORS: '3' } }));

test('decode of float32: random calls', (t) =>
  holds(t, { kernel: 'decode', element: 'float32', cases: 80, seed: 105 }));

test('decode of float32: few splits', (t) =>
  holds(t, {
    kernel: 'decode',
    element: 'float32',
    cases: 40,
    seed: 106,
    device: { EMULATED_MULTIPROCESSORS: '3', EMULATED_COMPUTE_MAJOR: '8', EMULATED_SHARED_BYTES: '101376' },
  }));

test('automatic: a device whose blocks have 99 KiB of shared memory', (t) =>
  holds(t, {
    kernel: 'automatic',
    cases: 40,
    seed: 104,
    device: { EMULATED_COMPUTE_MAJOR: '8', EMULATED_SHARED_BYTES: '101376' },
  }));

test('the candidates that the harness compares', (t) => {
  t.timeout(5 * 60_000);
  const check = (number: number) =>
    spawnSync(harness, ['--check-candidate', `${number}`, '--cases', '8', '--scores', '100000'], { encoding: 'utf8' });
  let number = 0;
  for (; ; ++number) {
    const { status, stdout, stderr } = check(number);
    if (stderr.includes('no such candidate')) break;
    t.is(status, 0, stdout + stderr);
  }
  t.true(number > 0);
});

const withOperator = (hasCompilers && canBuildOperator() ? anyTest.serial : anyTest.serial.skip) as TestFn;

withOperator('the custom op and these kernels together, in ONNX Runtime', (t) => {
  t.timeout(9 * 60_000);
  const place = mkdtempSync(join(tmpdir(), 'ort-flash-emulated-'));
  t.teardown(() => rmSync(place, { recursive: true, force: true }));
  const objects = join(folder, 'build', 'emulated', 'objects');
  const kernels = readdirSync(objects).filter((name) =>
    /^(ampere|decode|hopper|float32|tf32|scalar|attention|device|threads|runtime)[_.]/.test(name),
  );
  const operator = new OperatorOnCpu(
    place,
    kernels.map((name) => join(objects, name)),
  );
  const random = seeded(3);
  const cases = Array.from({ length: 30 }, (_, n) => {
    const target = join(place, `random-${n}`);
    writeRandomCase(random, (['float32', 'float16', 'bfloat16'] as const)[n % 3]!, target);
    return target;
  });
  const lines = operator.run([...cases, ...(prepareStandardCases(place) ?? [])]);
  t.true(lines.length >= cases.length);
  for (const line of lines) t.true(line.startsWith('ok '), line);
});

/** What is taken out of a kernel, and the kernel that must be found wrong then. */
const FAULTS: readonly (readonly [file: string, barrier: string, kernel: Run['kernel'], element?: 'float32'])[] = [
  ['ampere.cuh', '    __syncthreads();  // the values are there, and no warp reads these keys any more\n', 'ampere'],
  ['decode.cuh', '  __syncthreads();  // results take the place of the stages\n', 'decode'],
  ['decode_float32.cuh', '  __syncthreads();  // the queries are there\n', 'decode', 'float32'],
  ['hopper.cuh', '        ptx::barrier_wait(empty, ring.parity() ^ 1);\n', 'hopper'],
];

test('a barrier left out of a kernel is found', (t) => {
  t.timeout(9 * 60_000);
  const copy = mkdtempSync(join(tmpdir(), 'ort-flash-faults-'));
  t.teardown(() => rmSync(copy, { recursive: true, force: true }));
  for (const part of ['Makefile', 'include', 'kernels', 'test'])
    cpSync(join(folder, part), join(copy, part), { recursive: true });
  for (const [name, barrier] of FAULTS) {
    const file = join(copy, 'kernels', name);
    const text = readFileSync(file, 'utf8');
    t.is(text.split(barrier).length, 2, `${name} has the barrier once`);
    writeFileSync(file, text.replace(barrier, ''));
  }
  const faulty = build(copy);
  for (const [name, , kernel, element] of FAULTS) {
    const { status, report } = run(faulty, { kernel, ...(element && { element }), cases: 60, seed: 101 });
    t.not(status, 0, `${name}: ${report}`);
  }
});
