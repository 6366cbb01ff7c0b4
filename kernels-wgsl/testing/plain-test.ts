/**
 * The part of AVA that the GPU tests use, over Node's own test runner: for machines that have Node and a GPU and can
 * install nothing. pack.mjs puts it in AVA's place.
 */
import { deepStrictEqual, fail, match, ok, strictEqual } from 'node:assert/strict';
import { after, test as nodeTest } from 'node:test';

interface Expectation {
  readonly code?: string;
  readonly message?: RegExp;
}

function check(error: unknown, { code, message }: Expectation = {}): Error {
  ok(error instanceof Error, `${String(error)} is no error`);
  if (code !== undefined) strictEqual((error as { code?: unknown }).code, code);
  if (message !== undefined) match(error.message, message);
  return error;
}

function thrown(run: () => unknown, expected?: Expectation): Error {
  try {
    run();
  } catch (error) {
    return check(error, expected);
  }
  return fail('nothing was thrown');
}

async function thrownAsync(run: Promise<unknown> | (() => Promise<unknown>), expected?: Expectation): Promise<Error> {
  try {
    await (typeof run === 'function' ? run() : run);
  } catch (error) {
    return check(error, expected);
  }
  return fail('nothing was thrown');
}

const assertions = {
  true: (value: unknown, message?: string) => strictEqual(value, true, message),
  false: (value: unknown, message?: string) => strictEqual(value, false, message),
  is: strictEqual,
  deepEqual: deepStrictEqual,
  pass: () => ok(true),
  regex: match,
  log: (...values: unknown[]) => console.log(...values),
  // Whoever runs the file limits it.
  timeout: () => undefined,
  throws: thrown,
  throwsAsync: thrownAsync,
  notThrowsAsync: (run: Promise<unknown>) => run,
};

type Body = (t: typeof assertions) => unknown;

/** Declared in order, run one after another. */
const declare = (name: string, body: Body) => {
  nodeTest(name, async () => {
    await body(assertions);
  });
};
const skip = (name: string, _body: Body) => {
  nodeTest(name, { skip: true });
};
const serial = Object.assign(declare, { skip });

export default Object.assign((name: string, body: Body) => declare(name, body), {
  serial,
  skip,
  after: { always: (body: () => unknown) => after(() => void body()) },
});
