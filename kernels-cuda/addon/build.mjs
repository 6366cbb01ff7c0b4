#!/usr/bin/env node
// Builds the Node addon: kernels-cuda/build/ort_flash_node.node. `npm run build:addon`, with --sanitize for a build
// with AddressSanitizer and UndefinedBehaviorSanitizer (ort_flash_node.asan.node; see check-memory.sh).
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeAddonApiHeaders, nodeHeaders, onnxRuntimeHeaders } from './headers.mjs';

const source = dirname(fileURLToPath(import.meta.url));
const sanitize = process.argv.includes('--sanitize');
const name = sanitize ? 'ort_flash_node.asan' : 'ort_flash_node';
const build = join(source, '..', 'build');
const objects = join(build, `${name}-objects`);
const compiler = process.env.CXX || (process.platform === 'darwin' ? 'clang++' : 'g++');

const run = (command, args) =>
  new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: 'inherit' });
    child.on('error', () => fail(new Error(`cannot run ${command}: install a C++17 compiler, or name one in CXX`)));
    child.on('exit', (code) => (code === 0 ? done() : fail(new Error(`${command} failed; see above`))));
  });

function flags() {
  return [
    '-std=c++17',
    '-fPIC',
    '-fvisibility=hidden',
    '-Wall',
    '-Wextra',
    ...(sanitize ? ['-O1', '-g', '-fsanitize=address,undefined', '-fno-omit-frame-pointer'] : ['-O2']),
    // Without this, g++ would share ONNX Runtime's inline statics with every other addon of the process that uses its
    // C++ API, onnxruntime-node's among them, whatever version that was compiled for.
    ...(process.platform === 'linux' ? ['-fno-gnu-unique'] : []),
    '-DNODE_ADDON_API_CPP_EXCEPTIONS',
    // A worker thread may end while a promise is being settled.
    '-DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
    '-DNAPI_VERSION=8',
    '-DORT_API_MANUAL_INIT',
    ...[onnxRuntimeHeaders(), nodeAddonApiHeaders(), nodeHeaders()].flatMap((folder) => ['-isystem', folder]),
  ];
}

/** Compiles one source where it, a header of ours or the flags have changed since. */
async function compile(file, compileFlags, headersHash) {
  const object = join(objects, `${file}.o`);
  const stamp = `${object}.hash`;
  const hash = createHash('sha256')
    .update(headersHash)
    .update(readFileSync(join(source, file)))
    .digest('hex');
  if (existsSync(object) && existsSync(stamp) && readFileSync(stamp, 'utf8') === hash) return object;
  await run(compiler, [...compileFlags, '-c', join(source, file), '-o', object]);
  writeFileSync(stamp, hash);
  return object;
}

async function main() {
  if (process.platform === 'win32') throw new Error('the addon is not built on Windows: sessions use onnxruntime-node');
  const compileFlags = flags();
  mkdirSync(objects, { recursive: true });
  const files = readdirSync(source).sort();
  const headers = createHash('sha256').update(JSON.stringify([compiler, compileFlags, process.version]));
  for (const file of files.filter((f) => f.endsWith('.h'))) headers.update(readFileSync(join(source, file)));
  const headersHash = headers.digest('hex');
  const waiting = files.filter((f) => f.endsWith('.cc'));
  const linked = [];
  const worker = async () => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift())
      linked.push(await compile(file, compileFlags, headersHash));
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  const link =
    process.platform === 'darwin'
      ? ['-bundle', '-undefined', 'dynamic_lookup']
      : // A symbol that nobody has is then an error while the addon is loaded, and no crash in the middle of a run.
        ['-shared', '-Wl,-z,now', '-ldl', '-s'];
  const target = join(build, `${name}.node`);
  const sanitizers = sanitize ? ['-fsanitize=address,undefined'] : [];
  await run(compiler, [
    ...linked.sort(),
    ...link.filter((f) => !(sanitize && f === '-s')),
    ...sanitizers,
    '-o',
    `${target}.partial`,
  ]);
  renameSync(`${target}.partial`, target);
  process.stderr.write(`built ${target}\n`);
}

try {
  await main();
} catch (error) {
  process.stderr.write(`build:addon: ${error.message}\n`);
  process.exitCode = 1;
}
