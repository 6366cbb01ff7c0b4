/** The worker that holds the opened model: reads, rewrites, makes inputs and compares outputs. */
import { OrtFlashError } from '../../../graph-rewrite/errors.js';
import type { ModelProto } from '../../../graph-rewrite/onnx/proto.js';
import { compareTensors, defaultTolerance } from '../../verify/compare.js';
import { answerCalls } from './answer.js';
import { inputsOfSize } from './make-inputs.js';
import type { OutputDifference, PlainTensor, RewriteCalls } from './messages.js';
import { openModel } from './open-model.js';

let model: ModelProto | undefined;

answerCalls<RewriteCalls>({
  async open({ files }, report) {
    const [opened, proto] = await openModel(files, report);
    model = proto;
    return opened;
  },
  inputs({ size }) {
    if (!model) throw new OrtFlashError('invalid-argument', 'no model is open');
    return inputsOfSize(model, size);
  },
  compare({ before, after }) {
    return before.map((tensor) =>
      difference(
        tensor,
        after.find(({ name }) => name === tensor.name),
      ),
    );
  },
});

function difference(before: PlainTensor, after: PlainTensor | undefined): OutputDifference {
  const { name, type } = before;
  const tolerance = defaultTolerance(type);
  if (!after) return { name, type, tolerance, relative: 0, holds: false, mismatch: 'is missing' };
  const { mismatch, largest, scale, onlyFirstUndefined, onlySecondUndefined } = compareTensors(before, after);
  const relative = scale > 0 ? largest / scale : largest;
  const odd =
    mismatch ??
    (onlySecondUndefined > 0 ? `${onlySecondUndefined} elements became NaN or infinite` : undefined) ??
    (onlyFirstUndefined > 0 ? `${onlyFirstUndefined} elements ceased to be NaN` : undefined);
  return {
    name,
    type,
    relative,
    tolerance,
    holds: odd === undefined && relative <= tolerance,
    ...(odd === undefined ? {} : { mismatch: odd }),
  };
}
