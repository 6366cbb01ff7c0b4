/** The two products of a site: queries with keys, probabilities with values. */
import type { Node, Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, type Dimension, leavesOf, sameLeaves } from './atoms.js';
import { type Contraction, contractedLabels } from './contraction.js';
import type { ScoreDimensions } from './cuts.js';
import { requireDivision } from './late.js';
import { type Alignment, alignOperand, type Candidate, candidates, type LabelledDimensions } from './operands.js';
import { outputCandidates } from './output.js';
import { type ProbabilityTrace, traceProbabilities } from './probabilities.js';
import { refuse, refuseProduct } from './refusal.js';
import type { ScoreTrace } from './scores.js';
import { unmatched } from './sizes.js';
import type { SoftmaxForm } from './softmax.js';
import { isLinearLayer, isWeight } from './weights.js';

/** The two products of a site and the scores' dimensions that join them. */
export interface Joint extends ScoreDimensions {
  readonly query: Side;
  readonly key: Side;
  readonly value: Side;
  readonly output: Side;
  readonly second: Contraction;
  readonly probabilityNodes: readonly Node[];
  readonly probabilityCasts: readonly number[];
  readonly guarded: boolean;
  readonly zeroed: ProbabilityTrace['zeroed'];
  /** What the probabilities are multiplied by. */
  readonly probabilityFactors: ProbabilityTrace['factors'];
}

/** An operand of one of the products, every tensor it could be read from, and how each lies against the scores. */
export interface Side {
  readonly operand: Value;
  readonly options: readonly { readonly candidate: Candidate; readonly alignment: Alignment }[];
}

export function readJoint(trace: ScoreTrace, softmax: SoftmaxForm, inference: Inference): Joint {
  const first = trace.product;
  const base: LabelledDimensions = new Map(first.outputLabels.map((label, i) => [label, trace.base[i]!]));
  const probabilities = traceProbabilities(softmax, trace, inference);
  const second = probabilities.product;
  const normalised = leavesOf(trace.view.dimensions[softmax.axis] ?? []);
  // A single key leaves no atom to know its dimension by; then nothing may have moved dimensions.
  const unmoved = trace.view.dimensions.every((d, i) => d === trace.base[i]);
  const single = unmoved ? first.outputLabels[softmax.axis] : undefined;
  const keyLabels = normalised.length > 0 ? labelsOf(normalised, base) : single === undefined ? undefined : [single];
  const keySide = first.operands.findIndex((o) => keyLabels?.every((label) => o.labels.includes(label)));
  if (keyLabels === undefined || keySide < 0)
    return refuseProduct('the softmax is not over one dimension of the product of queries and keys', softmax.input);
  const isKey = (label: string) => keyLabels.includes(label);
  if (first.operands[1 - keySide]!.labels.some(isKey))
    return refuseProduct('the softmax is over a batch dimension of the scores', softmax.input);
  const queryOperand = first.operands[1 - keySide]!;
  const keyOperand = first.operands[keySide]!;
  if (isLinearLayer(first, queryOperand.value, inference))
    return refuseProduct(
      'the scores are a linear layer of one tensor, not a product of queries and keys',
      first.output,
    );
  const onlyQuery = (label: string) =>
    label === 'row' || label === 'column' || (!label.startsWith('batch') && !keyOperand.labels.includes(label));
  const queryLabels = first.outputLabels.filter((l) => !isKey(l) && onlyQuery(l));
  const batchLabels = first.outputLabels.filter((l) => !isKey(l) && !onlyQuery(l));

  const valueOperand = second.operands[1 - probabilities.side]!;
  const probabilityLabels = second.operands[probabilities.side]!.labels;
  const summed = contractedLabels(second);
  if (probabilityLabels.length !== probabilities.view.dimensions.length)
    return refuse('the rank of the probabilities does not fit their product with the values', second.output);
  const scores: LabelledDimensions = new Map(
    probabilityLabels.map((label, i) => [label, probabilities.view.dimensions[i]!]),
  );
  const summedLeaves = new Set(summed.flatMap((label) => leavesOf(scores.get(label)!)));
  if (summed.length === 0 || summedLeaves.size !== normalised.length || normalised.some((l) => !summedLeaves.has(l)))
    return refuse('the probabilities are not summed over the keys', second.output);
  if (softmax.late) requireDivision(softmax.late, { ...probabilities, keys: normalised }, inference);
  if (isWeight(keyOperand.value, inference) || isWeight(valueOperand.value, inference))
    return refuseProduct('keys or values are constants of the model, not a sequence', second.output);

  const outputLabels: LabelledDimensions = new Map([...scores].filter(([label]) => !summed.includes(label)));
  const sides = () => ({
    query: side(queryOperand.value, queryOperand.labels, base, inference),
    key: side(keyOperand.value, keyOperand.labels, base, inference),
    value: side(valueOperand.value, valueOperand.labels, scores, inference),
    output: outputSide(second, outputLabels, softmax.late?.through, inference),
  });
  // Aligning one operand may split the scores' atoms, so that earlier ones have to be aligned again.
  let aligned = sides();
  aligned = realign(
    aligned,
    [queryOperand.labels, keyOperand.labels, valueOperand.labels, second.outputLabels],
    [base, base, scores, outputLabels],
    inference,
  );
  return {
    ...aligned,
    second,
    probabilityNodes: probabilities.nodes,
    probabilityCasts: probabilities.casts,
    guarded: probabilities.guarded,
    zeroed: probabilities.zeroed,
    probabilityFactors: probabilities.factors,
    batch: batchLabels.map((l) => base.get(l)!),
    queries: queryLabels.flatMap((l) => leavesOf(base.get(l)!)),
    keys: keyLabels.flatMap((label) => leavesOf(base.get(label)!)),
  };
}

type Sides = Pick<Joint, 'query' | 'key' | 'value' | 'output'>;

function side(operand: Value, labels: readonly string[], scores: LabelledDimensions, inference: Inference): Side {
  return alignAll(operand, candidates(operand, inference), labels, scores, inference);
}

function outputSide(
  second: Contraction,
  scores: LabelledDimensions,
  through: readonly Node[] | undefined,
  inference: Inference,
): Side {
  const found = outputCandidates(second.output, inference, through);
  if (found.length === 0)
    refuse(
      'the product of the exponentials with the values is also read before it is divided by their sum',
      second.output,
    );
  return alignAll(second.output, found, second.outputLabels, scores, inference, true);
}

function alignAll(
  operand: Value,
  found: readonly Candidate[],
  labels: readonly string[],
  scores: LabelledDimensions,
  inference: Inference,
  asResult = false,
): Side {
  const options = found.flatMap((candidate) => {
    const { view } = candidate;
    // The result of the second product is seen from its own dimensions; what follows moves them elsewhere.
    const dimensions = asResult ? view.root.map((r) => r.atoms) : view.dimensions;
    const alignment = alignOperand({ ...view, dimensions }, labels, scores);
    return alignment ? [{ candidate, alignment }] : [];
  });
  if (options.length === 0) refuseProduct(unmatched(operand, labels, scores, inference), operand);
  return { operand, options };
}

function realign(
  sides: Sides,
  labels: readonly (readonly string[])[],
  scores: readonly LabelledDimensions[],
  inference: Inference,
): Sides {
  const again = (s: Side, i: number) =>
    alignAll(
      s.operand,
      s.options.map((o) => o.candidate),
      labels[i]!,
      scores[i]!,
      inference,
      i === 3,
    );
  return {
    query: again(sides.query, 0),
    key: again(sides.key, 1),
    value: again(sides.value, 2),
    output: again(sides.output, 3),
  };
}

/** The labels whose dimensions these leaves are, in the same order; undefined where they are a part of one. */
function labelsOf(leaves: readonly Atom[], base: LabelledDimensions): string[] | undefined {
  const isPart = (dimension: Dimension) => leavesOf(dimension).some((leaf) => leaves.includes(leaf));
  const found = [...base].filter(([, dimension]) => isPart(dimension));
  found.sort(([, a], [, b]) => leaves.indexOf(leavesOf(a)[0]!) - leaves.indexOf(leavesOf(b)[0]!));
  const all = found.flatMap(([, dimension]) => leavesOf(dimension));
  return sameLeaves(all, leaves) ? found.map(([label]) => label) : undefined;
}
