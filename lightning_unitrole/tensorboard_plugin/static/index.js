// Entry point: TensorBoard imports this module inside the tab's own frame and calls render().
import { App } from './app.js';
import { h } from './dom.js';
import { borrowFonts } from './host.js';

export function render() {
  document.title = 'Unit roles';
  document.head.append(h('link', { rel: 'stylesheet', href: './style.css' }));
  borrowFonts();
  new App(document.body).start();
}
