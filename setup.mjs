#!/usr/bin/env node
// Does all set-up that `npm start` and `npm test` need on a fresh machine, and only what is not done yet:
// dependencies, generated code, compiled TypeScript, and with --test what apt must bring.
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
  run(process.execPath, [at('kernels-wgsl', 'bundle.mjs'), at('dist', 'web.min.js')]);
}

/** The page that `npm run demo` serves; the published package has it built. */
function bundlePage() {
  say('bundling the page');
  run(process.execPath, [at('cli', 'page', 'build.mjs'), at('dist', 'cli', 'page', 'site')]);
}

/** What tests need of the system: how to tell that it is there, its Debian package, and what is skipped without it. */
const systemPackages = [
  // Chromium brings SwiftShader, a GPU in software; Dawn in Node reaches it through Vulkan's loader.
  { present: () => existsSync('/usr/bin/chromium'), name: 'chromium', skipped: 'WebGPU' },
  { present: () => hasLibrary('libvulkan.so.1'), name: 'libvulkan1', skipped: 'WebGPU in Node' },
  { present: () => works(process.env.CXX || 'g++'), name: 'g++', skipped: 'Node sessions through the addon' },
];

function works(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function hasLibrary(file) {
  return ['x86_64-linux-gnu', 'aarch64-linux-gnu'].some((triplet) => existsSync(join('/usr/lib', triplet, file)));
}

function installSystemPackages() {
  const missing = systemPackages.filter(({ present }) => !present());
  if (missing.length === 0) return;
  const names = missing.map(({ name }) => name);
  const obstacle = whyNoApt();
  if (obstacle === undefined) {
    say(`installing ${names.join(', ')} with apt`);
    const sudo = process.getuid() === 0 ? [] : ['sudo', '-n'];
    const apt = (...args) => {
      const [command, ...rest] = [...sudo, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-qq', '-y', ...args];
      run(command, rest);
    };
    apt('update');
    apt('--no-install-recommends', 'install', ...names);
    return;
  }
  const tests = missing.map(({ skipped }) => skipped).join(', ');
  process.stderr.write(`setup: ${names.join(', ')} not installed, ${obstacle}: tests are skipped (${tests})\n`);
}

/** Why packages cannot be installed here; nothing where they can. */
function whyNoApt() {
  if (process.platform !== 'linux' || !works('apt-get')) return 'and this system has no apt';
  const isRoot = process.getuid?.() === 0;
  if (isRoot || spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0) return undefined;
  return 'and apt needs root or a sudo that asks no password';
}

/** The Node addon, which the tests of Node sessions need; without a C++ compiler they are skipped. */
function buildAddon() {
  if (!works(process.env.CXX || 'g++')) return;
  say('building the Node addon');
  run(process.execPath, [at('kernels-cuda', 'addon', 'build.mjs')]);
}

installDependencies();
generateSchema();
linkShaders();
compile();
bundlePage();
if (options.has('--test')) {
  installSystemPackages();
  buildAddon();
}
