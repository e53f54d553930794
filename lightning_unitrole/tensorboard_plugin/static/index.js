// Entry point: TensorBoard imports this module inside the tab's own frame and calls render(). It needs little, so that
// a slow server does not leave the frame white: the rest is asked for when there is something to read.
import { h } from './dom.js';
import { borrowFonts, isDark } from './host.js';

export async function render() {
  document.title = 'Unit roles';
  document.documentElement.lang = 'en';
  document.documentElement.dataset.theme = isDark() ? 'dark' : 'light';
  document.documentElement.style.colorScheme = document.documentElement.dataset.theme; // before the styles are there
  for (const sheet of ['style', 'overview'])
    document.head.append(h('link', { rel: 'stylesheet', href: `./${sheet}.css` }));
  const message = h('div', { class: 'message', role: 'status' }, h('p', {}, 'Reading the logs …'));
  document.body.append(message);
  borrowFonts();
  try {
    const { prepare } = await import('./start.js');
    const start = await prepare();
    document.documentElement.style.removeProperty('color-scheme');
    message.remove();
    start();
  } catch (error) {
    message.replaceChildren(h('h2', {}, 'The tab could not start'), h('p', {}, error.message));
  }
}
