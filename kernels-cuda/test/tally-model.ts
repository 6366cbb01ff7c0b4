/**
 * A model of how the decode kernel's blocks find the last of them (open_tally and count_in_tally in
 * kernels/decode_combine.cuh): every access to the word in memory is one turn, and any block may take the next.
 */

/** Where the model departs from the kernel, to show that the model would notice. */
export type TallyFault = 'not put back' | 'set without comparing';

export interface TallyCalls {
  /** What the word holds before the first call. */
  readonly garbage: { readonly tag: number; readonly count: number };
  /** Each call's tag, never the garbage's; a call with the last one's tag is the replay of a graph. */
  readonly tags: readonly number[];
  /** Blocks of each call. */
  readonly blocks: number;
  readonly fault?: TallyFault;
}

interface Word {
  readonly tag: number;
  readonly count: number;
}

/** Runs the calls one after the other, `random(n)` choosing who goes next; what went wrong, or undefined. */
export function runTally(
  { garbage, tags, blocks, fault }: TallyCalls,
  random: (below: number) => number,
): string | undefined {
  let word: Word = garbage;
  for (const tag of tags) {
    let counted = 0;
    let winners = 0;
    function* block(): Generator<void, void, void> {
      const seen = word;
      yield;
      if (seen.tag !== tag && (fault === 'set without comparing' || word === seen)) word = { tag, count: 0 };
      yield;
      const { count } = word;
      word = { tag: word.tag, count: count + 1 };
      counted += 1;
      if (count + 1 !== blocks) return;
      winners += counted === blocks ? 1 : 2;
      yield;
      if (fault !== 'not put back') word = { tag, count: 0 };
    }
    const running = Array.from({ length: blocks }, block);
    while (running.length > 0) {
      const which = random(running.length);
      if (running[which]!.next().done) running.splice(which, 1);
    }
    if (winners !== 1) return `${winners === 0 ? 'no block' : 'not the last block alone'} has combined`;
  }
  return undefined;
}
