// Layers x analyses as charts: how large the share of each role is, and how many units changed theirs.
import { analysisTicks, chart, interactive, linear, shortNumber } from '../charts.js';
import { choice, decimal, h, percent, plural, signed, svg } from '../dom.js';
import { columnOf, fillOf, isRole, ROLE, SHARED_ROLES, STACK } from '../vocabulary.js';
import { doubts } from './doubts.js';
import { legend, swatch } from './parts.js';

const SHARES = 84;
const CHANGES = 30;
const GAP = 8;

// The choice between the two ways to count, here and in the comparison of runs.
export const SHARES_OF = [
  ['pairs', 'units × classes', 'Every unit counts once for each class'],
  ['units', 'units', 'Every unit counts once, with its role over all classes'],
];
export const changedColumn = (pairs) => (pairs ? 'pairs_changed' : 'units_changed');

// Columns that follow from others.
const DERIVED = {
  // how much less a layer does for validation images than for training images, as a share of the latter
  training_surplus(at, t, layer) {
    const [train, val] = [at(t, layer, 'margin_train'), at(t, layer, 'margin_val')];
    return train > 0 ? 1 - val / train : NaN;
  },
};

const places = new WeakMap(); // of the columns, by the data that they are in

// table.at(t, layer, column) and table.verdict(t, layer) over the flat numbers of the server
export function read(ctx, data) {
  if (!places.has(data)) places.set(data, new Map(data.info.columns.map((name, place) => [name, place])));
  const columns = places.get(data);
  const layers = data.info.layers.length;
  const logged = (t, layer, column) => data.table[(t * layers + layer) * columns.size + columns.get(column)];
  const at = (t, layer, column) => (column in DERIVED ? DERIVED[column](logged, t, layer) : logged(t, layer, column));
  const verdict = (t, layer) => data.info.verdicts[data.verdict[t * layers + layer]];
  // Why not to rely on the roles ('doubt_roles') or the order ('doubt_order') of a layer, if there is a reason.
  const doubt = (what, t, layer) => data.info.doubts[data[what][t * layers + layer] - 1];
  const findings = (t) => data.info.findings[t] || [];
  const byContribution = (t, layer) => Number.isFinite(at(t, layer, 'units_help'));
  return { data, at, verdict, doubt, findings, byContribution, time: ctx.time(data), layers: data.info.layers };
}

// Shares of the roles of one layer at one analysis, [[code, share], ...] from the bottom of the stack to its top. Many
// are asked for, again and again: they are kept for as long as the data.
const stacks = new WeakMap();
export function stack(table, t, layer, original, pairs) {
  if (!stacks.has(table.data)) stacks.set(table.data, { true: [], false: [] });
  const known = stacks.get(table.data)[pairs];
  const place = t * table.layers.length + layer;
  known[place] ??= shares(table, t, layer, original, pairs);
  return known[place];
}

const columnsOf = { true: null, false: null };

function shares(table, t, layer, original, pairs) {
  columnsOf[pairs] ??= SHARED_ROLES.map((code) => [code, `${pairs ? 'pairs' : 'units'}_${columnOf(code)}`]);
  const counts = columnsOf[pairs].map(([code, column]) => [code, table.at(t, layer, column)]);
  const present = table.at(t, layer, 'present');
  if (pairs) {
    const left = present / original;
    return [...counts.map(([code, share]) => [code, left * share]), [ROLE.REMOVED, 1 - left]];
  }
  if (!Number.isFinite(counts[0][1])) return [];
  const known = counts.reduce((sum, [, count]) => sum + (count || 0), 0);
  return [...counts, [ROLE.REMOVED, original - present], [ROLE.NO_ROLE, present - known]].map(([code, count]) => [
    code,
    count / original,
  ]);
}

export function drawLayers(ctx, root, table) {
  const { time } = table;
  const pairs = ctx.state.get('shares') === 'pairs';
  const highest = Math.max(
    0.05,
    ...time.labels.flatMap((_, t) => table.layers.map((_, l) => table.at(t, l, changedColumn(pairs)) || 0)),
  );
  const top = [0.05, 0.1, 0.25, 0.5, 0.75, 1].find((limit) => limit >= highest);
  root.replaceChildren(
    h(
      'div',
      { class: 'options' },
      legend(ctx, codesOf(ctx, table, pairs)),
      choice('Shares of', SHARES_OF, ctx.state.get('shares'), (shares) => ctx.set({ shares })),
    ),
    h(
      'p',
      { class: 'note' },
      'The bars below each chart: for what share the role differs from the analysis before. Tall early and short ' +
        'late means that roles settle. Click a column to move the cursor, a layer to see its units.',
    ),
  );
  const list = h('div', { class: 'layers' });
  root.append(list);
  ctx.run.layers.forEach((layer, place) => {
    const open = () => ctx.set({ view: 'units', layer: layer.name, unit: '', filter: '' });
    const picture = h('div', { class: 'layer-chart' });
    list.append(
      h(
        'article',
        { class: table.doubt('doubt_roles', time.at, place) ? 'layer-row doubtful' : 'layer-row' },
        h(
          'div',
          { class: 'layer-name' },
          h(
            'button',
            { class: 'link', onclick: open, title: 'See the units of this layer' },
            layer.name || '(the model itself)',
          ),
          h('small', {}, `${plural(layer.units, 'unit')}, ${layer.map_size.join(' × ')} maps`),
        ),
        picture,
        facts(table, place, layer, pairs),
      ),
    );
    const width = Math.max(200, picture.clientWidth);
    const lastRow = place === ctx.run.layers.length - 1;
    const shown = time.labels.some(
      (_, t) =>
        stack(table, t, place, layer.units, pairs).length &&
        Number.isFinite(stack(table, t, place, layer.units, pairs)[0][1]),
    );
    picture.append(
      shown ? columns(ctx, table, place, layer, { width, pairs, top, lastRow }) : band(ctx, table, place, width),
    );
  });
}

const codes = new WeakMap();
export function codesOf(ctx, table, pairs) {
  if (!codes.has(table.data)) codes.set(table.data, {});
  const known = codes.get(table.data);
  known[pairs] ??= codesIn(ctx, table, pairs);
  return known[pairs];
}

function codesIn(ctx, table, pairs) {
  const seen = new Set();
  ctx.run.layers.forEach((layer, place) => {
    for (let t = 0; t < table.time.labels.length; t++)
      for (const [code, share] of stack(table, t, place, layer.units, pairs)) if (share > 0) seen.add(code);
  });
  const any = [...seen].some(isRole);
  return STACK.filter((code) => (any && isRole(code)) || seen.has(code));
}

function columns(ctx, table, place, layer, { width, pairs, top, lastRow }) {
  const { time } = table;
  const left = 56;
  const right = width - 8;
  const count = time.labels.length;
  const step = (right - left) / count;
  const height = SHARES + GAP + CHANGES + (lastRow ? 36 : 20);
  // Whole pixels, or hairlines of the background would show between the columns.
  const x = (t) => Math.round(left + t * step);
  const y = linear([0, 1], [SHARES, 4]);
  const base = SHARES + GAP + CHANGES;
  const areas = new Map();
  let bars = '';
  for (let t = 0; t < count; t++) {
    let filled = 0;
    for (const [code, share] of stack(table, t, place, layer.units, pairs)) {
      if (!(share > 0)) continue;
      const edge = `M${x(t)},${y(filled + share).toFixed(2)}H${x(t + 1)}V${y(filled).toFixed(2)}H${x(t)}Z`;
      areas.set(code, (areas.get(code) || '') + edge);
      filled += share;
    }
    const changed = table.at(t, place, changedColumn(pairs));
    if (changed > 0) {
      const [from, up, wide] = [x(t) + step * 0.12, (-changed / top) * CHANGES, step * 0.76];
      bars += `M${from.toFixed(2)},${base}v${up.toFixed(2)}h${wide.toFixed(2)}V${base}Z`;
    }
  }
  const ticks = analysisTicks(time.labels, Math.max(2, Math.floor((count * step) / 70)));
  const root = svg(
    'svg',
    { class: 'chart', width, height, role: 'img', 'aria-label': `Shares of roles in ${layer.name} over time` },
    [0, 0.5, 1].map((share) =>
      svg('text', { class: 'tick', x: left - 6, y: y(share) + 4, 'text-anchor': 'end' }, percent(share)),
    ),
    [...areas].map(([code, d]) => svg('path', { d, fill: fillOf(code), class: 'area', 'data-role': code })),
    svg('line', { class: 'axis', x1: left, x2: x(count), y1: y(0), y2: y(0) }),
    svg('text', { class: 'tick', x: left - 6, y: base - CHANGES + 8, 'text-anchor': 'end' }, percent(top)),
    svg('text', { class: 'tick', x: left - 6, y: base, 'text-anchor': 'end' }, 'differ'),
    svg('line', { class: 'grid', x1: left, x2: x(count), y1: base - CHANGES, y2: base - CHANGES }),
    svg('path', { class: 'changes', d: bars }),
    svg('line', { class: 'axis', x1: left, x2: x(count), y1: base, y2: base }),
    ticks.map(({ at, label }) =>
      svg('text', { class: 'tick', x: x(at + 0.5), y: base + 15, 'text-anchor': 'middle' }, shortNumber(label)),
    ),
    lastRow &&
      svg('text', { class: 'axis-label', x: (left + x(count)) / 2, y: base + 32, 'text-anchor': 'middle' }, time.axis),
    svg('rect', { class: 'cursor-box', x: x(time.at), y: 2, width: Math.max(2, step), height: base - 2 }),
  );
  return interactive(root, {
    x: linear([-0.5, count - 0.5], [left, x(count)]),
    xDomain: [0, count - 1],
    margin: { left, right: width - x(count) },
    width,
    top: 4,
    bottom: base,
    onpick: (t) => ctx.pick(time, t),
    describe: (t) => [h('strong', {}, ctx.when(time, t)), ...describe(ctx, table, t, place, layer, pairs)],
  });
}

function describe(ctx, table, t, place, layer, pairs) {
  const lines = stack(table, t, place, layer.units, pairs)
    .filter(([, share]) => share > 0)
    .map(([code, share]) => h('div', {}, swatch(code), `${ctx.role(code).label} ${percent(share, 1)}`))
    .reverse();
  const changed = table.at(t, place, changedColumn(pairs));
  return [...lines, Number.isFinite(changed) ? `role differs: ${percent(changed, 1)}` : 'role differs: not known'];
}

// Without ablation there are no roles; the entropy still tells a story.
function band(ctx, table, place, width) {
  const { time } = table;
  const points = (column) => time.labels.map((_, t) => [t, table.at(t, place, column)]);
  const low = points('entropy_q25');
  const high = points('entropy_q75');
  const last = Math.max(time.labels.length - 1, 1);
  return chart({
    width,
    height: SHARES + CHANGES + 40,
    margin: { left: 56, right: 8, top: 8, bottom: 34 },
    xDomain: time.labels.length > 1 ? [0, last] : [-0.5, 0.5],
    yDomain: [0, Math.max(1, ...high.map(([, v]) => v || 0))],
    xTicks: analysisTicks(time.labels, Math.max(2, Math.floor(width / 90))),
    xLabel: `${time.axis} · no ablation, so no roles: median and quartiles of the feature entropy (nats)`,
    label: 'Feature entropy over time',
    bands: [{ points: low.map(([t, value], i) => [t, value, high[i][1]]), colour: 'var(--accent)' }],
    series: [{ points: points('entropy_q50'), colour: 'var(--accent)' }],
    cursor: time.at,
    onpick: (t) => ctx.pick(time, t),
    describe: (t) => [
      h('strong', {}, ctx.when(time, t)),
      `median entropy ${decimal(table.at(t, place, 'entropy_q50'))} nats`,
    ],
  });
}

// What the cursor says of the layer.
function facts(table, place, layer, pairs) {
  const t = table.time.at;
  const value = (column) => table.at(t, place, column);
  const present = value('present');
  const gap = value('ranking_gap');
  const rows = [
    ['role differs', percent(value(changedColumn(pairs)), 1), 'Share whose role differs from the analysis before'],
    ['median entropy', `${decimal(value('entropy_q50'))} nats`, 'Feature entropy on validation images, over the units'],
    Number.isFinite(gap) && [
      'ranking gap',
      signed(gap),
      'Area between the ablation curves of the order and of its reverse, on validation images',
    ],
    Number.isFinite(value('turning_val')) && [
      'effective',
      percent(1 - value('turning_val')),
      'Units that stand at the turning point, on validation images',
    ],
    present < layer.units && ['units left', `${present} of ${layer.units}`, 'Removed units are shown as removed'],
  ];
  const { text: verdict, warn } = table.verdict(t, place);
  const without = table.doubt('doubt_order', t, place);
  return h(
    'div',
    {},
    h(
      'dl',
      { class: 'facts' },
      rows.filter(Boolean).map(([name, text, title]) => [h('dt', { title }, name), h('dd', {}, text)]),
    ),
    Number.isFinite(gap) && !without && h('p', { class: warn ? 'verdict warn' : 'verdict' }, verdict),
    doubts(table, place),
  );
}
