// What pruning did: each cut with its accuracy before and after, and which units of which layer went when.
import { decimal, h, percent, plural, svg, whole } from '../dom.js';
import { explain, nothing } from './parts.js';

const BESIDE = 240; // pixels for the names beside the units of a layer
const TWO_COLUMNS = 1336;
const ROW = 16;

export const pruning = {
  id: 'pruning',
  tab: 'Pruning',
  uses: ['run'],
  alone: true, // needs no analysis of units
  create(ctx, root) {
    const body = h('div', {});
    root.append(
      explain(
        'What was removed, and what it cost',
        'One row a cut, whenever UnitPruning removed units or held them at zero. Accuracies are those on the ' +
          'validation images that chose the units, a little too good. Below, the units of each layer: filled ' +
          'are those that are left.',
      ),
      body,
    );
    return {
      load: () => ctx.api.pruning(ctx.run.name),
      draw: (data) => body.replaceChildren(...draw(ctx, data, body)),
    };
  },
};

// Pixels for the units of the widest layer: in two columns where there is room for them, see overview.css.
function room(body) {
  const width = body.clientWidth > TWO_COLUMNS ? (body.clientWidth - 16) / 2 : body.clientWidth;
  return Math.max(200, Math.min(720, width - BESIDE));
}

// A table of the server as one object a row.
const rows = (data, name) => {
  const columns = data.info.columns[name];
  const count = data[name].length / columns.length;
  return Array.from({ length: count }, (_, i) =>
    Object.fromEntries(columns.map((column, place) => [column, data[name][i * columns.length + place]])),
  );
};

function draw(ctx, data, body) {
  if (!data.steps.length) return [nothing('Nothing was pruned in this run.')];
  const [before, after] = rows(data, 'network');
  const cuts = rows(data, 'cuts');
  const gone = cuts.map((_, i) => data.cut_at.reduce((sum, at) => sum + (at === i + 1), 0));
  return [
    h('p', { class: 'findings', role: 'status' }, summary(before, after, cuts, gone)),
    h(
      'div',
      { class: 'cuts' },
      cuts.length ? h('div', { class: 'card wide-table' }, table(before, after, cuts, gone)) : '',
      h('div', { class: 'card wide-table' }, layers(ctx, data, cuts, room(body))),
    ),
    reasons(data.info.kept_whole),
  ];
}

function summary(before, after, cuts, gone) {
  if (!cuts.length) return 'Nothing has been pruned yet.';
  const units = gone.reduce((sum, each) => sum + each, 0);
  const change = 100 * (after.accuracy - before.accuracy);
  const points = Number.isFinite(change)
    ? ` Accuracy was ${percent(before.accuracy, 1)} before the first cut and is ${percent(after.accuracy, 1)} now.`
    : '';
  return (
    `${plural(units, 'unit')} went in ${plural(cuts.length, 'cut')}. The network has ` +
    `${percent(after.macs / before.macs)} of its MACs and ${percent(after.parameters / before.parameters)} of its ` +
    `parameters left.${points}`
  );
}

const HEAD = [
  ['', ''],
  ['units gone', 'Units that this cut removed or masked'],
  ['MACs', 'Multiply-accumulate operations of one image, and the share that is left of those in the beginning'],
  ['parameters', ''],
  ['accuracy', 'On the validation images, right before the cut'],
  ['predicted', 'What was expected of the cut before it was made'],
  ['right after', 'The same before any fine-tuning'],
];

function table(before, after, cuts, gone) {
  const foreseen = cuts.some((cut) => Number.isFinite(cut.predicted_accuracy));
  const head = foreseen ? HEAD : HEAD.filter(([name]) => name !== 'predicted');
  const size = (net) => [
    h('td', {}, whole(net.macs), ' ', h('small', {}, percent(net.macs / before.macs))),
    h('td', {}, whole(net.parameters)),
  ];
  const line = (name, units, net, accuracy, predicted = NaN, rightAfter = NaN) =>
    h(
      'tr',
      {},
      h('th', { scope: 'row' }, name),
      h('td', {}, units),
      size(net),
      [accuracy, ...(foreseen ? [predicted] : []), rightAfter].map((value) => h('td', {}, percent(value, 1))),
    );
  return h(
    'table',
    { class: 'small cuts-table' },
    h(
      'caption',
      { class: 'note' },
      `A forward pass of ${whole(after.batch)} images took ${decimal(before.latency)} ms in the beginning and takes ` +
        `${decimal(after.latency)} ms now.`,
    ),
    h(
      'thead',
      {},
      h(
        'tr',
        {},
        head.map(([text, title]) => h('th', { scope: 'col', title }, text)),
      ),
    ),
    h(
      'tbody',
      {},
      line('in the beginning', '', before, before.accuracy),
      cuts.map((cut, i) =>
        line(
          `epoch ${whole(cut.epoch)}, step ${whole(cut.global_step)}`,
          String(gone[i]),
          cut,
          cut.accuracy_before,
          cut.predicted_accuracy,
          cut.accuracy_after,
        ),
      ),
      line('now', '', after, after.accuracy),
    ),
  );
}

function layers(ctx, data, cuts, wide) {
  const names = data.info.layers;
  const widest = Math.max(1, ...data.widths.subarray(0, names.length));
  let start = 0;
  const lines = names.map((name, place) => {
    const [width, left] = [data.widths[place], data.widths[names.length + place]];
    const cutAt = data.cut_at.subarray(start, start + width);
    start += width;
    const analysed = ctx.run.layers.some((layer) => layer.name === name);
    return h(
      'tr',
      { 'data-layer': name, 'data-left': left },
      h(
        'th',
        { scope: 'row' },
        analysed
          ? h('button', { class: 'link', onclick: () => ctx.set({ view: 'units', layer: name, unit: '' }) }, name)
          : name || '(the model itself)',
      ),
      h('td', {}, left < width ? `${left} of ${width}` : String(width)),
      h('td', {}, strip(name, cutAt, wide / widest, cuts)),
    );
  });
  return h(
    'table',
    { class: 'small' },
    h(
      'thead',
      {},
      h(
        'tr',
        {},
        ['layer', 'units left', 'units'].map((text) => h('th', { scope: 'col' }, text)),
      ),
    ),
    h('tbody', {}, lines),
  );
}

// Each unit keeps its place; neighbours that went together are one rectangle.
function strip(name, cutAt, unit, cuts) {
  const when = (cut) => (cut ? `removed at epoch ${whole(cuts[cut - 1]?.epoch)}` : 'left');
  const parts = [];
  for (let from = 0; from < cutAt.length; ) {
    let to = from + 1;
    while (to < cutAt.length && cutAt[to] === cutAt[from]) to++;
    const which = to - from > 1 ? `units ${from} to ${to - 1}` : `unit ${from}`;
    parts.push(
      svg(
        'rect',
        {
          x: from * unit,
          y: 1,
          width: Math.max(0.5, (to - from) * unit),
          height: ROW - 2,
          class: cutAt[from] ? 'gone' : 'left',
        },
        svg('title', {}, `${which}: ${when(cutAt[from])}`),
      ),
    );
    from = to;
  }
  const gone = cutAt.filter(Boolean).length;
  return svg(
    'svg',
    {
      class: 'chart units-strip',
      width: Math.max(2, cutAt.length * unit),
      height: ROW,
      role: 'img',
      'aria-label': `${name}: ${gone} of ${cutAt.length} units removed`,
    },
    parts,
  );
}

function reasons(wholeLayers) {
  const found = Object.entries(wholeLayers);
  if (!found.length) return '';
  return h(
    'details',
    { class: 'card' },
    h('summary', {}, `${plural(found.length, 'layer')} could not be pruned`),
    h(
      'ul',
      {},
      found.map(([name, reason]) => h('li', {}, h('strong', {}, name), `: ${reason}`)),
    ),
  );
}
