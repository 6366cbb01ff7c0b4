// Finds the C++ headers that native code of this package is compiled against.
import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const build = resolve(dirname(fileURLToPath(import.meta.url)), '..', 'build');

// onnxruntime-node does not carry ONNX Runtime's headers; this package does, of the same release. It holds libraries
// for every phone besides (385 MB), so it is fetched when somebody builds, and only its headers are kept.
const ORT_VERSION = '1.29.0';
const ORT_HEADERS = {
  name: 'com.github.asus4.onnxruntime',
  version: '0.4.9',
  integrity: 'sha512-BkzxduSZ9IkeDP6Q8lz2TFU2ie7hSSvS7ZIfzMooExoq0CNzJnuuGaUJ7IsojBgqO4ouD1jXah8OYyJbCN29Fg==',
};
const NODE_ADDON_API = { name: 'node-addon-api', version: '8.9.2', integrity: undefined };

/** Fetches an npm package, unpacked, for as long as `use` takes. */
function withPackage({ name, version, integrity }, use) {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-'));
  try {
    const npm = (...args) =>
      execFileSync('npm', args, { cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    const report = JSON.parse(npm('pack', '--json', `${name}@${version}`));
    const [packed] = Array.isArray(report) ? report : Object.values(report);
    if (integrity !== undefined && packed.integrity !== integrity)
      throw new Error(`${name}@${version} is not the package that was checked: its hash differs`);
    execFileSync('tar', ['xzf', basename(packed.filename)], { cwd: folder });
    return use(join(folder, 'package'));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function findFile(folder, name) {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true }))
    if (entry.isFile() && entry.name === name) return entry.parentPath ?? entry.path;
  throw new Error(`${name} is not in ${folder}`);
}

/** Puts files into a folder whole: a build that is interrupted leaves no half of it. */
function keep(source, target, wanted) {
  mkdirSync(build, { recursive: true });
  const half = mkdtempSync(join(build, 'partial-'));
  chmodSync(half, 0o755);
  cpSync(source, half, { recursive: true, filter: (path) => path === source || wanted(basename(path)) });
  rmSync(target, { recursive: true, force: true });
  renameSync(half, target);
}

/**
 * The folder of ONNX Runtime's C and C++ headers: ORT_FLASH_ONNXRUNTIME_HEADERS, or else fetched once into
 * kernels-cuda/build (a download of 150 MB).
 */
export function onnxRuntimeHeaders() {
  const given = process.env.ORT_FLASH_ONNXRUNTIME_HEADERS;
  if (given) {
    if (existsSync(join(given, 'onnxruntime_cxx_api.h'))) return resolve(given);
    throw new Error(`ORT_FLASH_ONNXRUNTIME_HEADERS: there is no onnxruntime_cxx_api.h in ${given}`);
  }
  const target = join(build, `onnxruntime-${ORT_VERSION}-headers`);
  if (!existsSync(target)) {
    process.stderr.write(`fetching the headers of ONNX Runtime ${ORT_VERSION} (npm ${ORT_HEADERS.name}, 150 MB)\n`);
    withPackage(ORT_HEADERS, (folder) =>
      keep(findFile(folder, 'onnxruntime_cxx_api.h'), target, (name) => name.endsWith('.h')),
    );
  }
  return target;
}

/** The folder of napi.h: the installed node-addon-api, or else fetched once into kernels-cuda/build. */
export function nodeAddonApiHeaders() {
  const require = createRequire(import.meta.url);
  try {
    return dirname(require.resolve('node-addon-api/package.json'));
  } catch {
    const target = join(build, `node-addon-api-${NODE_ADDON_API.version}`);
    if (!existsSync(target))
      withPackage(NODE_ADDON_API, (folder) => keep(folder, target, (name) => name.endsWith('.h')));
    return target;
  }
}

/** The folder of node_api.h: NODE_INCLUDE_DIR, the npm package of Node-API's headers, or those of the running Node. */
export function nodeHeaders() {
  if (process.env.NODE_INCLUDE_DIR) return process.env.NODE_INCLUDE_DIR;
  try {
    return createRequire(import.meta.url)('node-api-headers').include_dir;
  } catch {
    const beside = resolve(dirname(process.execPath), '..', 'include', 'node');
    const found = [beside, '/usr/include/node'].find((folder) => existsSync(join(folder, 'node_api.h')));
    if (found) return found;
    throw new Error(`Node's headers are not in ${beside}: npm install node-api-headers, or set NODE_INCLUDE_DIR`);
  }
}
