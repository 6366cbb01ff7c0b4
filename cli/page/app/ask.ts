import type { Report } from './answer.js';
import type { Answer } from './messages.js';

/** A call that was given up. */
export class Cancelled extends Error {}

/** A call that failed; the message is one sentence for the user. */
export class Failed extends Error {}

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly report: Report;
}

/** The page's side of a worker: one call at a time; `stop` gives it up. */
export class Asked<Calls extends { [Name in keyof Calls]: { given: unknown; gives: unknown } }> {
  readonly #address: string;
  #worker: Worker | undefined;
  #waiting: Waiting | undefined;

  constructor(address: string) {
    this.#address = address;
  }

  /** @throws Failed, Cancelled */
  ask<Name extends keyof Calls>(
    name: Name,
    given: Calls[Name]['given'],
    report: Report = () => undefined,
  ): Promise<Calls[Name]['gives']> {
    this.#worker ??= this.#start();
    const worker = this.#worker;
    return new Promise<unknown>((resolve, reject) => {
      this.#waiting = { resolve, reject, report };
      worker.postMessage({ name, given });
    });
  }

  /** Ends the worker with all that it holds; a call under way rejects with Cancelled. */
  stop(): void {
    this.#worker?.terminate();
    this.#worker = undefined;
    this.#end()?.reject(new Cancelled('cancelled'));
  }

  #end(): Waiting | undefined {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    return waiting;
  }

  #start(): Worker {
    const worker = new Worker(this.#address, { type: 'module' });
    worker.addEventListener('message', ({ data }: MessageEvent<Answer>) => {
      if (data.kind === 'progress') this.#waiting?.report(data.text, data.done, data.total);
      else if (data.kind === 'done') this.#end()?.resolve(data.value);
      else this.#end()?.reject(new Failed(data.message));
    });
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      this.#worker = undefined;
      worker.terminate();
      const why = event.message ? ` (${event.message})` : '';
      this.#end()?.reject(
        new Failed(
          `The browser ended this work${why}, perhaps for lack of memory: choose a smaller size and try again.`,
        ),
      );
    });
    return worker;
  }
}
