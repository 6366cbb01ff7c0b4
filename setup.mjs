#!/usr/bin/env node
// Does all set-up that `npm start` and `npm test` need on a fresh machine, and only what is not done yet:
// dependencies, generated code, compiled TypeScript, and with --test what apt must bring (Chromium, for WebGPU tests).
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(fileURLToPath(import.meta.url));
const options = new Set(process.argv.slice(2));
const at = (...parts) => join(root, ...parts);
const run = (command, args) => {
  try {
    execFileSync(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 28 });
  } catch (error) {
    process.stderr.write(`${error.stdout ?? ''}${error.stderr ?? ''}`);
    process.stderr.write(`setup: "${command} ${args.join(' ')}" failed; see above\n`);
    process.exit(1);
  }
};
const say = (text) => process.stderr.isTTY && process.stderr.write(`setup: ${text}\n`);
const binary = (name) => at('node_modules', '.bin', name);

function installDependencies() {
  const lock = createHash('sha256')
    .update(readFileSync(at('package-lock.json')))
    .digest('hex');
  const marker = at('node_modules', '.ort-flash-installed');
  if (existsSync(marker) && readFileSync(marker, 'utf8') === lock) return;
  say('installing dependencies');
  run('npm', ['ci', '--no-audit', '--no-fund']);
  writeFileSync(marker, lock);
}

function generateSchema() {
  const source = at('graph-rewrite', 'onnx', 'onnx.proto');
  const folder = at('graph-rewrite', 'onnx', 'generated');
  const target = join(folder, 'onnx.js');
  if (existsSync(target) && statSync(target).mtimeMs > statSync(source).mtimeMs) return;
  say('compiling the ONNX schema');
  mkdirSync(folder, { recursive: true });
  const without = ['verify', 'convert', 'delimited', 'typeurl', 'service'].map((w) => `--no-${w}`);
  const flags = [
    '-t',
    'static-module',
    '-w',
    'esm',
    '--es6',
    '--force-long',
    '--null-semantics',
    '--keep-case',
    '--dts',
  ];
  run(binary('pbjs'), [...flags, ...without, '-o', target, source]);
}

function linkShaders() {
  say('linking shaders');
  run(process.execPath, [at('kernels-wgsl', 'link.mjs')]);
}

function compile() {
  say('compiling TypeScript');
  rmSync(at('dist'), { recursive: true, force: true });
  run(binary('tsc'), []);
  cpSync(at('graph-rewrite', 'onnx', 'generated'), at('dist', 'graph-rewrite', 'onnx', 'generated'), {
    recursive: true,
  });
  for (const file of ['linked.js', 'linked.d.ts'])
    cpSync(at('kernels-wgsl', 'shaders', file), at('dist', 'kernels-wgsl', 'shaders', file));
}

function installBrowser() {
  // Chromium brings SwiftShader; Dawn in Node reaches it through Vulkan's loader.
  const has = (file) =>
    ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu'].some((f) => existsSync(join(f, file)));
  if ((existsSync('/usr/bin/chromium') && has('libvulkan.so.1')) || process.platform !== 'linux') return;
  say('installing Chromium with apt');
  const sudo = process.getuid?.() === 0 ? [] : ['sudo', '-n'];
  const apt = (...args) => {
    const [command, ...rest] = [...sudo, 'apt-get', ...args];
    run(command, rest);
  };
  apt('-qq', 'update');
  apt('-qq', '-y', '--no-install-recommends', 'install', 'chromium', 'libvulkan1');
}

/** The Node addon, which the tests of Node sessions need; without a C++ compiler they are skipped. */
function buildAddon() {
  if (spawnSync(process.env.CXX || 'g++', ['--version'], { stdio: 'ignore' }).status !== 0) return;
  say('building the Node addon');
  run(process.execPath, [at('kernels-cuda', 'addon', 'build.mjs')]);
}

installDependencies();
generateSchema();
linkShaders();
compile();
if (options.has('--test')) {
  installBrowser();
  buildAddon();
}
