import test from 'ava';
import fc from 'fast-check';
import { type Box, type Edge, layout } from './layout.js';

/** A random graph without cycles: box i reads only boxes before it. */
const diagrams = fc
  .array(fc.record({ sources: fc.array(fc.nat(), { maxLength: 3 }), title: fc.string({ maxLength: 30 }) }), {
    minLength: 1,
    maxLength: 25,
  })
  .map((nodes) => {
    const boxes = nodes.map(({ title }, index): Box => ({ id: `${index}`, title, kind: 'operator' }));
    const edges = nodes.flatMap(({ sources }, index): Edge[] =>
      index === 0 ? [] : sources.map((source) => ({ from: `${source % index}`, to: `${index}` })),
    );
    return { boxes, edges };
  });

test('every edge points down, from one layer to the next', (t) => {
  fc.assert(
    fc.property(diagrams, (diagram) => {
      const placed = layout(diagram);
      const boxes = new Map(placed.boxes.map((box) => [box.id, box]));
      for (const { from, to } of placed.edges) {
        t.is(boxes.get(to)!.y - boxes.get(from)!.y, boxes.get(diagram.boxes[0]!.id)!.height + 34);
      }
      t.true(diagram.boxes.every(({ id }) => boxes.has(id)));
    }),
  );
});

test('boxes do not overlap and stay within the picture', (t) => {
  fc.assert(
    fc.property(diagrams, (diagram) => {
      const { boxes, width, height } = layout(diagram);
      for (const box of boxes) {
        t.true(box.x >= 0 && box.y >= 0 && box.x + box.width <= width + 1e-6 && box.y + box.height <= height);
        for (const other of boxes) {
          const apart = box.x + box.width <= other.x || other.x + other.width <= box.x || box.y !== other.y;
          t.true(box === other || apart);
        }
      }
    }),
  );
});
