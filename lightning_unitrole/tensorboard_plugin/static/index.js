// Entry point: TensorBoard imports this module inside the tab's own frame and calls render().
import { vocabulary } from './api.js';
import { App } from './app.js';
import { h, svg } from './dom.js';
import { borrowFonts, isDark } from './host.js';
import { adopt } from './vocabulary.js';

export async function render() {
  document.title = 'Unit roles';
  document.documentElement.lang = 'en';
  for (const sheet of ['style', 'overview'])
    document.head.append(h('link', { rel: 'stylesheet', href: `./${sheet}.css` }));
  borrowFonts();
  document.documentElement.dataset.theme = isDark() ? 'dark' : 'light';
  const message = h('div', { class: 'message', role: 'status' }, h('p', {}, 'Reading the logs …'));
  document.body.append(message);
  try {
    adopt(await vocabulary());
  } catch (error) {
    message.replaceChildren(h('h2', {}, 'The tab could not start'), h('p', {}, error.message));
    return;
  }
  message.remove();
  document.body.append(hatching());
  new App(document.body).start();
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
