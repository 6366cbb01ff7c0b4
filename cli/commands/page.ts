import { fileURLToPath } from 'node:url';
import { EXIT, type ExitCode, type Output } from '../output.js';
import { startPageServer } from '../page/server.js';

export interface PageCommandOptions {
  readonly port: number;
}

/** Where build.mjs puts the page, beside the compiled server. */
const SITE = fileURLToPath(new URL('../page/site/', import.meta.url));

/** `ort-flash page`, which `npm run demo` runs: serves the page until it is interrupted. */
export async function page(output: Output, options: PageCommandOptions): Promise<ExitCode> {
  const server = await startPageServer(SITE, options.port);
  output.document({ address: server.address });
  output.line(`The page is at ${output.bold(server.address)} (end it with Ctrl+C)`);
  return new Promise((resolve) => {
    process.once('SIGTERM', () => server.close().then(() => resolve(EXIT.success)));
  });
}
