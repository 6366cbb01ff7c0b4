import test from 'ava';
import { OrtFlashError } from '../../../graph-rewrite/errors.js';
import { describeFault } from './faults.js';

const runtime = (message: string) => new OrtFlashError('runtime', `ONNX Runtime: ${message}`);

test('what the runtime and the browser say becomes one sentence that says what to do', (t) => {
  const sentences: readonly (readonly [fault: unknown, sentence: string])[] = [
    [
      runtime(
        'WebGPU validation failed. Buffer size (1102240000) exceeds the max buffer size limit (1073741824).\n' +
          ' - While calling [Device "ort-flash"].CreateBuffer([BufferDescriptor])',
      ),
      'It needs a buffer of 1,102,240,000 bytes, and this GPU allows 1,073,741,824: choose a smaller size.',
    ],
    [
      runtime(
        'failed to call OrtRun(). ERROR_CODE: 2, ERROR_MESSAGE: Non-zero status code returned while running Expand ' +
          "node. Name:'/m/Expand_1' Status Message: invalid expand shape",
      ),
      'ONNX Runtime stopped at Expand “/m/Expand_1” (invalid expand shape): the model may not take this size, try a smaller one.',
    ],
    [
      new RangeError('Array buffer allocation failed'),
      'There was not enough memory: choose a smaller size and run again (Array buffer allocation failed).',
    ],
    [
      new OrtFlashError('malformed-model', 'the file is empty', { file: 'a.onnx' }),
      'The file is empty [a.onnx]; check that it is an .onnx file, and that all of it was downloaded.',
    ],
    [
      new TypeError('x is undefined'),
      'The page itself failed: x is undefined. Reload it, and report this if it happens again.',
    ],
  ];
  for (const [fault, sentence] of sentences) t.is(describeFault(fault), sentence);
  t.true(describeFault(runtime('x'.repeat(5000))).length < 400);
});
