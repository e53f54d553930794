// The dialog behind the question mark: what the words mean, and which keys there are.
import { h } from './dom.js';
import { glossary } from './vocabulary.js';

const KEYS = [
  ['← →', 'move the cursor; with Shift by ten, Home and End to the ends'],
  ['1 – 8', 'choose a view; ← → among the tabs'],
  ['[ ]', 'layer before, layer after'],
  ['↑ ↓ Enter', 'in the raster: choose a unit, inspect it'],
  ['P', 'play, pause'],
  ['Esc', 'drop the filter'],
  ['?', 'this page'],
];

const list = (pairs) =>
  h(
    'dl',
    {},
    pairs.map(([name, meaning]) => [h('dt', {}, name), h('dd', {}, meaning)]),
  );

export const helpDialog = () =>
  h(
    'dialog',
    { class: 'keys', 'aria-label': 'Glossary and keys' },
    h('h2', { tabindex: -1, autofocus: true }, 'What the words mean'), // not the button, far below
    list(glossary.map(({ name, meaning }) => [name, meaning])),
    h('h2', {}, 'New analyses'),
    h(
      'p',
      {},
      'TensorBoard shows what a running training has logged since when it reloads: with the round arrow at the top ' +
        'right, or by itself if “Reload data” is on in its settings.',
    ),
    h('h2', {}, 'Keys'),
    list(KEYS),
    h('form', { method: 'dialog' }, h('button', { class: 'plain' }, 'Close')),
  );
