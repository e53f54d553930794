// What index.js waits for: all other scripts, and the vocabulary, without which nothing can be drawn.
import { vocabulary } from './api.js';
import { App } from './app.js';
import { svg } from './dom.js';
import { adopt } from './vocabulary.js';

export async function prepare() {
  adopt(await vocabulary());
  return () => {
    document.body.append(hatching());
    new App(document.body).start();
  };
}

// The pattern that fills the areas of a hatched role.
function hatching() {
  const size = { width: 4, height: 4 };
  return svg(
    'svg',
    { class: 'defs', width: 0, height: 0, 'aria-hidden': true },
    svg(
      'pattern',
      { id: 'hatched', patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)', ...size },
      svg('rect', { ...size, fill: 'var(--surface)' }),
      svg('rect', { width: 1.5, height: 4, fill: 'var(--hatch)' }),
    ),
  );
}
