// Embeds sequences of token ids with a BERT. With onnxruntime-web alone, only the next line would differ.
import { InferenceSession, Tensor } from 'ort-flash/web';

const form = document.querySelector('form');
const show = (id, text) => {
  document.getElementById(id).textContent = text;
};

/** Sequences of different lengths as one batch: shorter ones are filled up, and the mask says where. */
function batch(sequences) {
  const length = Math.max(...sequences.map((sequence) => sequence.length));
  const fill = (valueAt) => sequences.flatMap((sequence) => Array.from({ length }, (_, i) => valueAt(sequence, i)));
  const tensor = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [sequences.length, length]);
  return {
    input_ids: tensor(fill((sequence, i) => sequence[i] ?? 0)),
    attention_mask: tensor(fill((sequence, i) => (i < sequence.length ? 1 : 0))),
  };
}

/** The mean of each sequence's hidden states. */
function pool({ data, dims }, sequences) {
  const [, length, width] = dims;
  return sequences.map((sequence, row) =>
    Array.from({ length: width }, (_, column) => {
      const at = (token) => data[(row * length + token) * width + column];
      return sequence.reduce((sum, _, token) => sum + at(token), 0) / sequence.length;
    }),
  );
}

async function embed(session, sequences) {
  const { output } = await session.run(batch(sequences));
  return pool(output, sequences);
}

const address = new URLSearchParams(location.search).get('model') ?? './models/bert-sdpa-dyn18/model.onnx';
try {
  const session = await InferenceSession.create(address);
  show('how', session.explain().text);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const lines = document.getElementById('tokens').value.trim().split('\n');
    const sequences = lines.map((line) => line.trim().split(/\s+/).map(Number));
    show('embeddings', '');
    try {
      show('embeddings', JSON.stringify(await embed(session, sequences)));
    } catch (error) {
      show('how', error.message);
    }
  });
  form.querySelector('button').disabled = false;
} catch (error) {
  show('how', error.message);
}
