/** Compiles every CUDA kernel for every target and bounds what each takes of a multiprocessor; needs nvcc, no GPU. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import anyTest, { type TestFn } from 'ava';
import { packageFolder } from './node-paths.js';

const folder = join(packageFolder(), 'kernels-cuda');
const build = join(folder, 'build');

function compilerVersion(): string | undefined {
  try {
    return execFileSync(process.env.NVCC ?? 'nvcc', ['--version'], { encoding: 'utf8' });
  } catch {
    return undefined;
  }
}

const version = compilerVersion();
// Without nvcc the kernels cannot be compiled: nothing here can be said of them.
const test = (version === undefined ? anyTest.skip : anyTest) as TestFn;

/** What the compiler reports of one kernel on one architecture. */
interface KernelReport {
  readonly kernel: string;
  readonly architecture: string;
  readonly registers: number;
  readonly spillBytes: number;
}

/** Reads `-Xptxas -v` reports. */
function readReport(text: string): KernelReport[] {
  const entries = text.split(/Compiling entry function /).slice(1);
  return entries.map((entry) => {
    const [, kernel = '', architecture = ''] = /^'([^']+)' for '([^']+)'/.exec(entry) ?? [];
    const number = (pattern: RegExp) => Number(pattern.exec(entry)?.[1] ?? Number.NaN);
    return {
      kernel,
      architecture,
      registers: number(/Used (\d+) registers/),
      spillBytes: number(/(\d+) bytes spill stores/),
    };
  });
}

function sourceHash(): string {
  const hash = createHash('sha256').update(version ?? '');
  for (const part of ['include', 'kernels']) {
    for (const file of readdirSync(join(folder, part)).sort()) hash.update(readFileSync(join(folder, part, file)));
  }
  return hash.update(readFileSync(join(folder, 'Makefile'))).digest('hex');
}

/** Compiles what has changed since the last time; the reports stay beside the objects. */
function compile(): void {
  const stamp = join(build, 'kernels-checked');
  const hash = sourceHash();
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === hash) return;
  const jobs = `-j${Math.min(4, availableParallelism())}`;
  execFileSync('make', ['-C', folder, jobs, 'check'], { stdio: ['ignore', 'ignore', 'pipe'], maxBuffer: 1 << 28 });
  writeFileSync(stamp, hash);
}

test('every kernel compiles, and none spills where it counts', (t) => {
  t.timeout(9.5 * 60_000);
  compile();
  const reports = readdirSync(build)
    .filter((file) => /^(ampere|decode|hopper|float32|tf32|scalar)\w*\.log$/.test(file))
    .flatMap((file) => readReport(readFileSync(join(build, file), 'utf8')));
  const of = (name: string) => reports.filter(({ kernel }) => kernel.includes(name));
  // Two element types, three head dimensions, with and without rules. Hopper: one more for additive masks, and for short rows
  // at 64 and 128. Ampere and decode for two architectures; Ampere at 256 once more for devices with little shared memory,
  // decode in three forms, of float32 in one for 1, 4, 8 and 16 rows; other float32 with tiles of two sizes.
  t.is(of('hopper_attention').length, 22);
  t.is(of('ampere_attention').length, 32);
  t.is(of('decode_attention').length, 72);
  t.is(of('decode_float32').length, 24);
  t.is(of('float32_attention').length, 24);
  t.is(of('tf32_attention').length, 12);
  t.is(of('scalar_attention').length, 6);
  t.deepEqual(new Set(of('hopper_attention').map((report) => report.architecture)), new Set(['sm_90a']));
  for (const { kernel, architecture, registers, spillBytes } of reports) {
    const place = `${kernel} on ${architecture}`;
    t.true(registers <= 255, place);
    // Hopper's producer lives on 32 or 40 registers and may put a few of its counters aside. Consumers have none to spare, but
    // with three warpgroups two kernels put up to 40 bytes aside and are, measured, 1.1 and 1.5 to 1.9 times as fast as what
    // they took the place of: for short rows, and for additive masks.
    const threeWarpgroups = /HopperShortTiles|HopperBiasTiles/.test(kernel) && kernel.includes('Li64E');
    const others = kernel.includes('hopper') ? 16 : kernel.includes('ampere') ? 192 : 64;
    const bound = kernel.includes('decode_float32') ? 0 : threeWarpgroups ? 40 : others;
    t.true(spillBytes <= bound, `${place} spills ${spillBytes} bytes, more than ${bound}`);
  }
  t.log(reports.map((r) => `${r.architecture} ${r.registers} registers, ${r.spillBytes} B spilled  ${r.kernel}`));
});

test('the candidates that the harness compares compile', (t) => {
  t.timeout(5 * 60_000);
  const nvcc = process.env.NVCC ?? 'nvcc';
  // To PTX only, and one head dimension each: what the compiler makes of them is seen where the harness is built.
  for (const [kernel, architecture, dimension] of [
    ['ampere', '80', 256],
    ['decode', '90', 128],
  ] as const) {
    const macros = ['-DORTFLASH_ELEMENT=__half', `-DORTFLASH_HEAD_DIMENSION=${dimension}`];
    const target = ['--ptx', `-gencode=arch=compute_${architecture},code=compute_${architecture}`, '-o', '-'];
    const source = join(folder, 'test', 'candidates', `${kernel}.cu`);
    const ptx = execFileSync(nvcc, ['-std=c++17', ...target, ...macros, source], { maxBuffer: 1 << 28 });
    t.regex(ptx.toString(), /\.entry/, kernel);
  }
});
