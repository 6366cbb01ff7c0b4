import type { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { ModelMetadata } from './handler.js';

/**
 * Checks inputs before any part of the model runs.
 * @throws OrtFlashError `invalid-tensor` with the input's name, where one is unknown, missing, of another type or rank,
 *   or of another size where the model fixes it
 */
export function checkFeeds({ inputs }: ModelMetadata, feeds: Readonly<Record<string, Tensor>>): void {
  const fail = (name: string, what: string, shape?: readonly number[]): never => {
    throw new OrtFlashError('invalid-tensor', `the input ${what}`, { tensor: name, ...(shape ? { shape } : {}) });
  };
  for (const name of Object.keys(feeds))
    if (!inputs.some((input) => input.name === name)) fail(name, 'is none of the model');
  for (const input of inputs) {
    const tensor = feeds[input.name];
    if (tensor === undefined) fail(input.name, 'is missing');
    if (!input.isTensor) continue;
    const { type, dims } = tensor!;
    if (type !== input.type) fail(input.name, `has type ${type}, the model takes ${input.type}`, dims);
    const expected = `the model takes (${input.shape.map((size) => size || '?').join(', ')})`;
    const fits =
      dims.length === input.shape.length &&
      input.shape.every((size, axis) => typeof size === 'string' || size === dims[axis]);
    if (!fits && input.shape.length > 0) fail(input.name, `has another shape; ${expected}`, dims);
  }
}
