// A table to decide from: one row a layer. The charts of the same layers are behind it.
import { shortNumber } from '../charts.js';
import { choice, decimal, h, percent, signed, svg } from '../dom.js';
import { columnOf, fillOf, REAL_ROLES, roleOf, SHARED_ROLES } from '../vocabulary.js';
import { doubts } from './doubts.js';
import { codesOf, drawLayers, read, stack } from './layers.js';
import { explain, legend, nothing } from './parts.js';

const WIDTH = 150;
const HEIGHT = 30;

const MACS = ['macs', 'MACs', "Multiply-accumulate operations of the layer's convolution for one image", shortNumber];
// name, heading, what it says, how to read it from a table; a column that is known of no layer is left out
const MEASURED = [
  ['units_help', 'help', 'Units that help over all classes, by a test of their contributions on validation images'],
  ['units_no_effect', 'no effect', 'Units without a measurable effect on any class'],
  ['units_hurt', 'hurt', 'Units that hurt over all classes'],
  [
    'differing_share',
    'differing',
    'Share of the (class, unit) pairs whose contribution differs between training and validation images',
    (share) => percent(share, 1),
  ],
  [
    'training_surplus',
    'training surplus',
    'How much less the layer adds to the answers on validation images than on training images, a share of the latter',
    (share) => percent(Math.abs(share) < 0.005 ? 0 : share),
  ],
  [
    'agreement',
    'agreement',
    'How well the roles from two halves of the images agree: 1 at best',
    (kappa) => decimal(kappa),
  ],
  [
    'units_removable',
    'removable',
    'Units without which, all at once, the network was measured to be as good on other images',
  ],
  MACS,
];
const WITHOUT = [
  [
    'entropy_q50',
    'median entropy',
    'Feature entropy on validation images, nats, over the units',
    (nats) => `${decimal(nats)} nats`,
  ],
  ['selective_rate', 'selective rate', 'Share of images without a birth point, mean over the units', percent],
];
const ABOUT_THE_ORDER =
  'Whether switching off units in this order, last rank first, does better than a random order. Roles by ' +
  'contribution do not depend on it.';
const SPARK = 'Shares of the units, each with its role over all classes; the charts show (class, unit) pairs as well';
const WITHOUT_ROLES =
  'This run was analysed without ablation, so its units have no roles. What was measured of them is in Entropy.';
const text = (value) => (Number.isFinite(value) ? String(value) : '–');

export const overview = {
  id: 'overview',
  tab: 'Overview',
  uses: ['run'],
  create(ctx, root) {
    const search = h('input', {
      type: 'search',
      placeholder: 'name of a layer',
      'aria-label': 'Find a layer',
      oninput: (event) => ctx.set({ find: event.target.value }),
    });
    const found = h('p', { class: 'findings', role: 'status' });
    const form = h('span', {});
    const roles = h('span', {});
    const body = h('div', {});
    root.append(
      explain(
        'Which layers are too wide, and which memorise',
        'One row a layer, at the cursor. Click a heading to sort by it, a layer to see its units.',
      ),
      found,
      h('div', { class: 'options' }, h('label', { class: 'field' }, h('span', {}, 'Find'), search), form, roles),
      body,
    );
    return {
      load: () => ctx.api.overview(ctx.run.name),
      draw(data) {
        const table = read(ctx, data);
        const shown = ctx.state.get('form') === 'charts' ? 'charts' : 'table';
        search.value = ctx.state.get('find');
        search.parentElement.hidden = shown === 'charts';
        const codes = codesOf(ctx, table, false);
        found.textContent = codes.some((code) => SHARED_ROLES.includes(code))
          ? table.findings(table.time.at).join(' ')
          : WITHOUT_ROLES;
        found.hidden = !found.textContent;
        form.replaceChildren(
          choice(
            'Show',
            [
              ['table', 'table'],
              ['charts', 'charts over time'],
            ],
            shown,
            (value) => ctx.set({ form: value }),
          ),
        );
        roles.replaceChildren(shown === 'charts' ? '' : legend(ctx, codes));
        if (shown === 'charts') drawLayers(ctx, body, table);
        else drawTable(ctx, body, table);
      },
    };
  },
};

function drawTable(ctx, body, table) {
  const t = table.time.at;
  const every = ctx.run.layers.map((layer, place) => ({ ...layer, place }));
  const known = (column) => every.some(({ place }) => Number.isFinite(table.at(t, place, column)));
  const byRole = REAL_ROLES.map((code) => [`units_${columnOf(code)}`, roleOf(code).label, roleOf(code).meaning]);
  const rolesKnown = codesOf(ctx, table, false).some((code) => SHARED_ROLES.includes(code));
  const counted = known('units_help') ? MEASURED : [...(rolesKnown ? byRole : WITHOUT), MACS];
  const shown = {
    measured: counted.filter(([column]) => known(column)),
    roles: rolesKnown,
    order: known('ranking_gap'),
    doubts: every.some(({ place }) => table.doubt('doubt_roles', t, place)),
  };
  const [sort, down] = sorting(ctx);
  const wanted = ctx.state.get('find').trim().toLowerCase();
  const rows = every.filter(({ name }) => name.toLowerCase().includes(wanted));
  const key = ({ place }) => table.at(t, place, sort === 'ranking' ? 'ranking_gap' : sort);
  if (sort) {
    const last = (value) => (Number.isFinite(value) ? (down ? -value : value) : Infinity);
    rows.sort((a, b) =>
      sort === 'name' ? (down ? -1 : 1) * a.name.localeCompare(b.name) : last(key(a)) - last(key(b)) || 0,
    );
  }
  const heading = ([column, label, title]) =>
    h(
      'th',
      { scope: 'col', 'aria-sort': sort === column ? (down ? 'descending' : 'ascending') : null },
      h(
        'button',
        { class: 'sort', title, 'data-sort': column, onclick: () => ctx.set({ order: next(sort, down, column) }) },
        label,
        h('span', { 'aria-hidden': true }, sort === column ? (down ? ' ▾' : ' ▴') : ''),
      ),
    );
  const head = [
    heading(['name', 'layer', 'Name, number of units and size of the maps']),
    shown.roles && h('th', { scope: 'col', title: SPARK }, 'units by role over time'),
    ...shown.measured.map(heading),
    shown.order &&
      heading(['ranking', `order by ${ctx.run.criterion}`, `${ABOUT_THE_ORDER} Sorted by its ranking gap.`]),
    shown.doubts && h('th', { scope: 'col' }, 'to note'),
  ];
  body.replaceChildren(
    h(
      'div',
      { class: 'card wide-table' },
      h(
        'table',
        { class: 'layers-table' },
        h('thead', {}, h('tr', {}, head)),
        h(
          'tbody',
          {},
          rows.map((layer) => row(ctx, table, layer, shown)),
        ),
      ),
    ),
    rows.length ? '' : nothing('No layer has such a name.'),
  );
}

// The state of the sorting is 'column' or '-column', the latter from the largest down.
function sorting(ctx) {
  const order = ctx.state.get('order');
  return order.startsWith('-') ? [order.slice(1), true] : [order, false];
}

function next(sort, down, column) {
  if (sort !== column) return column === 'name' ? column : `-${column}`;
  return down === (column === 'name') ? '' : `${down ? '' : '-'}${column}`;
}

function row(ctx, table, layer, shown) {
  const t = table.time.at;
  const { place } = layer;
  const doubtful = table.doubt('doubt_roles', t, place);
  const value = (column) => table.at(t, place, column);
  const open = () => ctx.set({ view: 'units', layer: layer.name, unit: '', filter: '' });
  const present = value('present');
  const left = present < layer.units ? `${present} of ${layer.units} units left` : `${layer.units} units`;
  return h(
    'tr',
    { 'data-layer': layer.name, class: doubtful ? 'doubtful' : null },
    h(
      'th',
      { scope: 'row' },
      h('button', { class: 'link', onclick: open }, layer.name || '(the model itself)'),
      h('small', {}, `${left}, ${layer.map_size.join(' × ')}`),
    ),
    shown.roles && h('td', {}, spark(ctx, table, layer)),
    shown.measured.map(([column, , , format = text]) =>
      h(
        'td',
        { class: 'number', 'data-column': column, title: column.startsWith('units_removable') ? check(value) : null },
        format(value(column)),
      ),
    ),
    shown.order && h('td', { class: 'words' }, orderVerdict(table, t, place), doubts(table, place, ['doubt_order'])),
    shown.doubts && h('td', { class: 'words' }, doubts(table, place, ['doubt_roles'])),
  );
}

// What the order is worth: in red only where roles follow from it, and nothing where there is none.
function orderVerdict(table, t, place) {
  if (table.doubt('doubt_order', t, place)) return '';
  const { word, text: sentence, warn } = table.verdict(t, place);
  const gap = table.at(t, place, 'ranking_gap');
  const title = Number.isFinite(gap) ? `${sentence} Ranking gap ${signed(gap)}.` : sentence;
  return h('span', { class: warn ? 'warn' : null, title }, word);
}

// The measured accuracies behind the removable units.
function check(value) {
  if (!Number.isFinite(value('check_accuracy'))) return null;
  return (
    `accuracy on ${value('check_images')} images: ${percent(value('check_accuracy'), 1)} as it is, ` +
    `${percent(value('check_removed_accuracy'), 1)} without the units that have no effect, ` +
    `${percent(value('check_helpers_accuracy'), 1)} with the helpers alone, ` +
    `${percent(value('check_random_accuracy'), 1)} without as many random units`
  );
}

// The history of the roles of the units, as small as a word.
function spark(ctx, table, layer) {
  const count = table.time.labels.length;
  const wide = Math.max(1, Math.min(24, WIDTH / count));
  const areas = new Map();
  for (let t = 0; t < count; t++) {
    let filled = 0;
    for (const [code, share] of stack(table, t, layer.place, layer.units, false)) {
      if (!(share > 0)) continue;
      const [top, bottom] = [filled + share, filled].map((part) => (HEIGHT * (1 - part)).toFixed(1));
      areas.set(code, `${areas.get(code) || ''}M${t * wide},${top}H${(t + 1) * wide}V${bottom}H${t * wide}Z`);
      filled += share;
    }
  }
  if (!areas.size) return '–';
  const now = stack(table, table.time.at, layer.place, layer.units, false);
  const words = now
    .filter(([, share]) => share > 0)
    .map(([code, share]) => `${ctx.role(code).label} ${percent(share)}`);
  return svg(
    'svg',
    { class: 'chart spark', width: count * wide, height: HEIGHT, role: 'img', 'aria-label': words.join(', ') },
    [...areas].map(([code, d]) => svg('path', { d, fill: fillOf(code), class: 'area', 'data-role': code })),
    svg('rect', { class: 'cursor-box', x: table.time.at * wide, y: 0, width: wide, height: HEIGHT }),
  );
}
