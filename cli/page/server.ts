import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { dirname, extname, join } from 'node:path';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { buildTransformer } from '../../models/builder.js';
import { bundledModels } from '../../models/corpus.js';
import { BUILT_ENCODER, type ListedModel } from './app/examples.js';

/**
 * The page may load from its own server and from nowhere else: a model that is opened in it cannot leave the machine.
 * WebAssembly has to be allowed for ONNX Runtime.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};

export interface PageServer {
  readonly address: string;
  close(): Promise<void>;
}

/**
 * Serves the built page, the bundled models and ONNX Runtime's WebAssembly, to this machine only.
 * @param folder where build.mjs put the page
 * @param port 0 for any that is free
 * @throws OrtFlashError `file-access` where the page is not built, `invalid-argument` where the port is taken
 */
export async function startPageServer(folder: string, port: number): Promise<PageServer> {
  const files = pageFiles(folder);
  const server = createServer((request, response) => answer(files, request, response));
  await listen(server, port);
  return {
    address: `http://localhost:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((done) => {
        server.close(() => done());
        server.closeAllConnections();
      }),
  };
}

/** Every path that is answered, and what gives its bytes: nothing else of the disk can be asked for. */
function pageFiles(folder: string): Map<string, () => Uint8Array> {
  if (!existsSync(join(folder, 'index.html'))) {
    throw new OrtFlashError('file-access', 'the page is not built', { file: folder }, 'build it with "npm run build"');
  }
  const files = new Map<string, () => Uint8Array>();
  for (const name of readdirSync(folder)) files.set(`/${name}`, () => readFileSync(join(folder, name)));
  files.set('/', files.get('/index.html')!);
  const runtime = createRequire(import.meta.url).resolve('onnxruntime-web');
  files.set('/ort.wasm', () => readFileSync(join(dirname(runtime), 'ort-wasm-simd-threaded.asyncify.wasm')));
  const examples = bundledModels();
  const listed = examples.map(({ name, architecture, exporter, opset, sites }): ListedModel => {
    return { name, architecture, exporter, opset, sites };
  });
  files.set('/models.json', () => new TextEncoder().encode(JSON.stringify(listed)));
  for (const { name, modelFile } of examples) files.set(`/models/${name}.onnx`, () => readFileSync(modelFile));
  let encoder: Uint8Array | undefined;
  files.set(`/models/${BUILT_ENCODER.name}.onnx`, () => {
    encoder ??= encodeModel(buildTransformer(BUILT_ENCODER.options));
    return encoder;
  });
  return files;
}

function answer(files: ReadonlyMap<string, () => Uint8Array>, request: IncomingMessage, response: ServerResponse) {
  const path = (request.url ?? '/').split('?')[0]!;
  const read = files.get(path);
  response.setHeader('content-security-policy', POLICY);
  response.setHeader('cross-origin-opener-policy', 'same-origin');
  response.setHeader('cross-origin-embedder-policy', 'require-corp');
  response.setHeader('cross-origin-resource-policy', 'same-origin');
  response.setHeader('x-content-type-options', 'nosniff');
  response.setHeader('referrer-policy', 'no-referrer');
  response.setHeader('cache-control', 'no-cache');
  if (request.method !== 'GET' && request.method !== 'HEAD') return void response.writeHead(405).end();
  if (!read) return void response.writeHead(404).end();
  try {
    const bytes = read();
    const type = path === '/' ? '.html' : extname(path);
    response.setHeader('content-type', TYPES[type] ?? 'application/octet-stream');
    response.setHeader('content-length', bytes.length);
    response.end(request.method === 'HEAD' ? undefined : bytes);
  } catch {
    response.writeHead(500).end();
  }
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why = cause.code === 'EADDRINUSE' ? 'is taken' : `cannot be used (${cause.code})`;
      const hint = 'choose another with --port, or 0 for any';
      reject(new OrtFlashError('invalid-argument', `port ${port} ${why}`, {}, hint, { cause }));
    });
    server.listen(port, 'localhost', resolve);
  });
}
