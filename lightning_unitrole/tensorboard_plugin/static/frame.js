// What stands around the views: tabs, controls, the bar of the cursor, and what to say without data.
import { h, plural } from './dom.js';
import { helpDialog } from './help.js';

export function buildFrame(app, views) {
  const help = helpDialog();
  const tabs = h(
    'div',
    { class: 'tabs', role: 'tablist', 'aria-label': 'Views', onkeydown: (event) => walk(event, app) },
    views.map((view, place) =>
      h(
        'button',
        {
          role: 'tab',
          id: `tab-${view.id}`,
          'aria-controls': `view-${view.id}`,
          title: `${view.tab} (${place + 1})`,
          onclick: () => app.set({ view: view.id }),
        },
        view.tab,
      ),
    ),
  );
  const question = h(
    'button',
    {
      class: 'help',
      title: 'Glossary and keys (?)',
      'aria-label': 'Glossary and keys',
      onclick: () => help.showModal(),
    },
    '?',
  );
  const controls = h('div', { class: 'controls' });
  const slider = h('input', {
    type: 'range',
    min: 0,
    step: 1,
    'aria-label': 'Cursor: analysis',
    oninput: (event) => app.moveTo(Number(event.target.value)),
  });
  const readout = h('output', { class: 'readout' });
  const player = h(
    'button',
    { class: 'icon', title: 'Play (P)', 'aria-label': 'Play', onclick: () => app.play() },
    '▶',
  );
  const cursor = h(
    'div',
    { class: 'cursor-bar' },
    h(
      'button',
      {
        class: 'icon',
        title: 'One analysis back (←)',
        'aria-label': 'One analysis back',
        onclick: () => app.move(-1),
      },
      '‹',
    ),
    slider,
    h(
      'button',
      { class: 'icon', title: 'One analysis on (→)', 'aria-label': 'One analysis on', onclick: () => app.move(1) },
      '›',
    ),
    player,
    readout,
    h('span', { class: 'axis-choice' }),
  );
  const message = h('div', { class: 'message', role: 'alert', hidden: true });
  const panels = new Map(
    views.map((view) => [
      view.id,
      h('section', {
        class: `view view-${view.id}`,
        id: `view-${view.id}`,
        tabindex: 0,
        role: 'tabpanel',
        'aria-labelledby': `tab-${view.id}`,
        hidden: true,
      }),
    ]),
  );
  const notice = h('aside', { role: 'status' });
  const progress = h('p', { class: 'progress', role: 'status', hidden: true }, 'Reading …');
  const doubt = h('aside', { class: 'doubts', 'aria-label': 'Reliability' });
  const bar = h('div', { class: 'bar-of-tabs' }, tabs, question);
  const main = h('main', {}, progress, notice, message, doubt, [...panels.values()]);
  app.root.append(h('h1', { class: 'unseen' }, 'Unit roles'), h('header', {}, bar, controls, cursor), main, help);
  return { tabs, controls, slider, readout, player, cursor, progress, notice, message, doubt, panels, main, help };
}

// Arrow keys, Home and End walk through the tabs, and do not move the cursor there.
function walk(event, app) {
  if (!app.index.length) return;
  const { views } = app;
  const at = views.findIndex(({ id }) => event.target.id === `tab-${id}`);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: views.length - 1 }[event.key];
  if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  const { id } = views[(to + views.length) % views.length];
  app.set({ view: id });
  app.tabs.querySelector(`#tab-${id}`).focus();
}

// What of the logs is not shown, and why.
function reasons(skipped) {
  const where = ({ run, layer }) => [h('strong', {}, run), layer ? ` · ${layer}` : null, ': '];
  return h(
    'ul',
    {},
    skipped.map((each) => h('li', {}, where(each), each.reason)),
  );
}

export function notice(skipped) {
  if (!skipped.length) return [];
  const summary = `${plural(skipped.length, 'thing')} in these logs cannot be shown as logged`;
  return [h('details', { class: 'notice', open: skipped.length < 4 }, h('summary', {}, summary), reasons(skipped))];
}

export function emptyState(skipped) {
  if (skipped.length) return [h('h2', {}, 'No run in these logs can be shown'), reasons(skipped)];
  return [
    h('h2', {}, 'No unit roles in these logs yet'),
    h('p', {}, 'Add the monitor to your trainer; it writes to the TensorBoard logger after each analysed epoch:'),
    h(
      'pre',
      {},
      'from lightning_unitrole import UnitRoleMonitor\n\ntrainer = Trainer(callbacks=[UnitRoleMonitor()], ' +
        'logger=TensorBoardLogger("logs"))\ntrainer.fit(model, train_loader, val_loader)',
    ),
    h(
      'p',
      {},
      'Then point TensorBoard at that directory (',
      h('code', {}, 'tensorboard --logdir logs'),
      ') and reload, with the round arrow above: TensorBoard reloads by itself only if its settings say so. If ' +
        'training has just begun, the first analysis comes at the end of its first epoch.',
    ),
  ];
}
