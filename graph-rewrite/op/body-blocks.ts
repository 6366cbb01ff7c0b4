/**
 * The body of `FlashAttention` a block of queries at a time, so that its memory grows with the sequence and not with its
 * square. A runtime's softmax still sees whole rows, so results are those of the plain body.
 */
import { tensorInfo } from '../onnx/make.js';
import { DataType, GraphProto } from '../onnx/proto.js';
import type { FunctionVariant } from './body.js';
import type { QueryBlock } from './body-mask.js';
import { NodeEmitter, once, type Size } from './emit.js';
import type { Axis } from './layout.js';

/** When queries are taken in blocks, and of what size. */
export interface BlockSizes {
  /** How many scores may be in memory at a time, batch and heads counted: where there are no more, no blocks are made. */
  readonly scores: number;
  /** How many queries a block has nevertheless, if there are so many; 1 or more. */
  readonly leastQueries: number;
}

/** What attention is computed of, in the names of a function body. */
export interface Operands {
  /** (B, H, S, D) */
  readonly query: string;
  /** (B, H, D, T) */
  readonly key: string;
  /** (B, H, T, Dv) */
  readonly value: string;
  /** Numbers of heads, where those of queries and of keys may differ. */
  readonly heads: { readonly query: Size; readonly key: Size } | undefined;
  /** Of rank 0. */
  readonly queryCount: () => string;
  readonly keyCount: () => string;
}

type Attend = (e: NodeEmitter, variant: FunctionVariant, operands: Operands, block: QueryBlock) => string;

/** The axes of the result of {@link emitBlocks}: blocks are put together along the first. */
export const BLOCKS_ORDER: readonly Axis[] = ['S', 'B', 'H', 'D'];

/**
 * Emits a Loop over blocks of queries. All have the same size, as operators before opset 13 can put together no others:
 * the last block starts so early that it is full, and what the block before has computed already is left out after.
 * @param attend emits the attention of one block, (B, H, S, D)
 * @returns the attention of all queries, its axes as {@link BLOCKS_ORDER} has them
 */
export function emitBlocks(
  e: NodeEmitter,
  variant: FunctionVariant,
  blocks: BlockSizes,
  operands: Operands,
  attend: Attend,
): string {
  const queries = operands.queryCount();
  const { size, count } = blocksOf(e, operands, queries, blocks);
  const lastStart = e.op('Sub', [queries, size], { label: 'last_start' });
  const blockRows = once(() => e.countTo(size, 'block_rows'));
  const blockSize = e.unsqueeze(size, [0], 'block_size');

  const inner = new NodeEmitter(variant.opset, `${e.prefix}block/`);
  const [index, going] = [inner.fresh('index'), inner.fresh('going')];
  const start = inner.smaller(inner.op('Mul', [index, size]), lastStart, 'start');
  const block: QueryBlock = {
    start: inner.unsqueeze(start, [0]),
    size: blockSize,
    indices: once(() => inner.op('Add', [blockRows(), start], { label: 'query_positions' })),
  };
  const end = inner.op('Add', [block.start, block.size], { label: 'end' });
  const query = inner.sliceAt(operands.query, 2, block.start, end, 'query');
  const attended = inner.transpose(attend(inner, variant, { ...operands, query }, block), [2, 0, 1, 3], 'ordered');
  const goesOn = inner.op('Identity', [going], { label: 'goes_on' });
  const body = GraphProto.create({
    name: 'block',
    node: inner.nodes,
    input: [tensorInfo(index, DataType.INT64, []), tensorInfo(going, DataType.BOOL, [])],
    output: [tensorInfo(goesOn, DataType.BOOL, []), tensorInfo(attended, variant.elementType)],
  });
  // Without an explicit condition, ONNX Runtime 1.29 breaks the Loop where it puts a branch in the place of its If.
  const results = e.op('Loop', [count, e.scalar('bool', 1)], { attributes: { body }, label: 'blocks' });
  const inRow = e.concat([e.ints([-1]), e.sizes(results, 2, 5)], 0, 'rows_shape');
  const rows = e.op('Reshape', [results, inRow], { label: 'rows' });
  return e.op('Gather', [rows, rowsOfQueries(e, queries, size, count)], { attributes: { axis: 0 }, label: 'output' });
}

/**
 * Whether so few scores are to be computed that they need no blocks.
 * @param sizes whose product is their number
 */
export function areFewScores(e: NodeEmitter, sizes: readonly Size[], { scores: most }: BlockSizes): string {
  const fixed = sizes.reduce<number>((product, size) => (typeof size === 'number' ? product * size : product), 1);
  const open = sizes.filter((size) => typeof size === 'string');
  const scores = e.op('ReduceProd', [e.concat(open, 0, 'scores_sizes')], {
    attributes: { keepdims: 0 },
    label: 'scores_count',
  });
  return e.op('Less', [scores, e.int(Math.floor(most / Math.max(fixed, 1)) + 1)], { label: 'are_few' });
}

/** Where each query's row stands among those of the blocks. */
function rowsOfQueries(e: NodeEmitter, queries: string, size: string, count: string): string {
  const all = e.countTo(queries, 'queries');
  const before = e.op('Mul', [e.op('Sub', [count, e.int(1)]), size], { label: 'rows_before_last' });
  const twice = e.op('Sub', [e.op('Mul', [count, size]), queries], { label: 'rows_twice' });
  const isBefore = e.op('Less', [all, before]);
  return e.op('Where', [isBefore, all, e.op('Add', [all, twice])], { label: 'query_rows' });
}

/**
 * How many queries a block has, and how many blocks there are, at least one: of rank 0. All blocks but one never have all
 * queries: they are one less than are needed with the most queries that a block may have, and have no more than these.
 */
function blocksOf(e: NodeEmitter, { query, keyCount }: Operands, queries: string, blocks: BlockSizes) {
  const [batch, heads] = [e.size(query, 0, 'batch'), e.size(query, 1, 'heads')];
  const scores = e.op('Mul', [e.op('Mul', [batch, heads]), keyCount()], { label: 'scores_of_query' });
  const atLeastOne = (x: string, label: string) => e.larger(x, e.int(1), label);
  const whole = e.op('Div', [e.int(blocks.scores), atLeastOne(scores, 'scores_of_query')]);
  const most = e.larger(whole, e.int(blocks.leastQueries), 'most_queries');
  const divideUp = (a: string, b: string) => e.op('Div', [e.op('Add', [a, e.op('Sub', [b, e.int(1)])]), b]);
  const count = atLeastOne(divideUp(queries, most), 'block_count');
  return { size: divideUp(queries, count), count };
}
