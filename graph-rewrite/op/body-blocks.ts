/**
 * The body of `FlashAttention` a block of queries at a time, so that its memory grows with the sequence and not with its
 * square. A runtime's softmax still sees whole rows, so results are those of the plain body.
 */
import { DataType, GraphProto, TypeProto, ValueInfoProto } from '../onnx/proto.js';
import type { FunctionVariant } from './body.js';
import type { QueryBlock } from './body-mask.js';
import { NodeEmitter, once, type Size } from './emit.js';
import type { Axis } from './layout.js';

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

/**
 * Emits a Loop over blocks of queries, as equal in size as can be.
 * @param order the axes of the result
 * @param attend emits the attention of one block
 * @returns the attention of all queries
 */
export function emitBlocks(
  e: NodeEmitter,
  variant: FunctionVariant & { readonly blockScores: number },
  operands: Operands,
  order: readonly Axis[],
  attend: Attend,
): string {
  const queries = operands.queryCount();
  const { size, count } = blocksOf(e, operands, queries, variant.blockScores);
  const inner = new NodeEmitter(variant.opset, 'block/');
  const [index, going, before] = ['index', 'going', 'before'].map((name) => inner.fresh(name)) as [
    string,
    string,
    string,
  ];
  const first = inner.op('Mul', [index, size], { label: 'first' });
  const block: QueryBlock = {
    start: inner.unsqueeze(first, [0], 'start'),
    size: e.unsqueeze(size, [0], 'block_size'),
    indices: once(() => {
      const end = inner.op('Min', [inner.op('Add', [first, size]), queries]);
      return inner.op('Range', [first, end, inner.int(1)], { label: 'query_positions' });
    }),
  };
  const end = inner.op('Add', [block.start, block.size], { label: 'end' });
  const query = inner.sliceAt(operands.query, 2, block.start, end, 'query');
  const attended = attend(inner, variant, { ...operands, query }, block);
  const ordered = order[1] === 'S' ? inner.transpose(attended, [0, 2, 1, 3], 'ordered') : attended;
  const after = inner.op('SequenceInsert', [before, ordered], { label: 'after' });
  const goesOn = inner.op('Identity', [going], { label: 'goes_on' });

  const none = e.op('SequenceEmpty', [], { attributes: { dtype: variant.elementType }, label: 'no_blocks' });
  const sequence = TypeProto.create({ sequence_type: { elem_type: tensorType(variant.elementType) } });
  const body = GraphProto.create({
    name: 'block',
    node: inner.nodes,
    input: [
      ValueInfoProto.create({ name: index, type: tensorType(DataType.INT64, []) }),
      ValueInfoProto.create({ name: going, type: tensorType(DataType.BOOL, []) }),
      ValueInfoProto.create({ name: before, type: sequence }),
    ],
    output: [
      ValueInfoProto.create({ name: goesOn, type: tensorType(DataType.BOOL, []) }),
      ValueInfoProto.create({ name: after, type: sequence }),
    ],
  });
  const blocks = e.op('Loop', [count, '', none], { attributes: { body }, label: 'blocks' });
  return e.op('ConcatFromSequence', [blocks], { attributes: { axis: order.indexOf('S') }, label: 'output' });
}

/** How many queries a block has, and how many blocks there are, at least one: of rank 0. */
function blocksOf(e: NodeEmitter, { query, keyCount }: Operands, queries: string, blockScores: number) {
  const [batch, heads] = [e.size(query, 0, 'batch'), e.size(query, 1, 'heads')];
  const scores = e.op('Mul', [e.op('Mul', [batch, heads]), keyCount()], { label: 'scores_of_query' });
  const atLeastOne = (x: string, label: string) => e.op('Max', [x, e.int(1)], { label });
  const most = atLeastOne(e.op('Div', [e.int(blockScores), atLeastOne(scores, 'scores_of_query')]), 'most_queries');
  const divideUp = (a: string, b: string) => e.op('Div', [e.op('Add', [a, e.op('Sub', [b, e.int(1)])]), b]);
  const count = atLeastOne(divideUp(queries, most), 'block_count');
  return { size: divideUp(queries, count), count };
}

function tensorType(elementType: number, shape?: readonly []): TypeProto {
  return TypeProto.create({ tensor_type: { elem_type: elementType, ...(shape ? { shape: { dim: [] } } : {}) } });
}
