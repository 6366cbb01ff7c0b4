import { describeFault } from './faults.js';
import type { Answer } from './messages.js';

/** Tells the page how far a call is. */
export type Report = (text: string, done: number, total: number) => void;

type Call<Calls> = { [Name in keyof Calls]: { readonly name: Name; readonly given: Given<Calls[Name]> } }[keyof Calls];
type Given<One> = One extends { given: infer Value } ? Value : never;
type Gives<One> = One extends { gives: infer Value } ? Value : never;
type Work<One> = (given: Given<One>, report: Report) => Promise<Gives<One>> | Gives<One>;

/** A worker's side: answers each call of the page with what the function of its name gives. */
export function answerCalls<Calls>(works: { readonly [Name in keyof Calls]: Work<Calls[Name]> }): void {
  addEventListener('message', async (event: MessageEvent<Call<Calls>>) => {
    const { name, given } = event.data;
    const answer = (message: Answer) => postMessage(message);
    try {
      const work = works[name] as Work<Calls[typeof name]>;
      const report: Report = (text, done, total) => answer({ kind: 'progress', text, done, total });
      answer({ kind: 'done', value: await work(given as never, report) });
    } catch (error) {
      answer({ kind: 'failed', message: describeFault(error) });
    }
  });
}
