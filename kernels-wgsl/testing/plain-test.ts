/**
 * The part of AVA that the GPU tests use, over Node's own test runner: for machines that have Node and a GPU and can
 * install nothing. pack.mjs puts it in AVA's place.
 */
import { deepStrictEqual, match, ok, rejects, strictEqual, throws } from 'node:assert/strict';
import { after, test as nodeTest } from 'node:test';

interface Expectation {
  readonly code?: string;
  readonly message?: RegExp;
}

function check(error: unknown, { code, message }: Expectation = {}): true {
  if (code !== undefined) strictEqual((error as { code?: unknown }).code, code);
  if (message !== undefined) match((error as Error).message, message);
  return true;
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
  throws: (run: () => unknown, expected?: Expectation) => throws(run, (error) => check(error, expected)),
  throwsAsync: (run: Promise<unknown>, expected?: Expectation) => rejects(run, (error) => check(error, expected)),
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
