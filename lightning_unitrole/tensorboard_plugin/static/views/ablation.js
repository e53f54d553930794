// What happens to accuracy and loss as more and more units of the layer are switched off.
import { chart } from '../charts.js';
import { choice, decimal, h, percent, plural, signed, svg } from '../dom.js';
import { ordered } from './doubts.js';
import { explain, keyItem, nothing } from './parts.js';

const SPLITS = {
  val: { label: 'validation', colour: 'var(--line-val)' },
  train: { label: 'training', colour: 'var(--line-train)' },
};
const ORDERS = {
  least_first: { label: (criterion) => `by ${criterion}, last rank first`, dash: '', width: 2.5 },
  contribution: { label: () => 'contributing least first', dash: '10 3 2 3', width: 2 },
  random: { label: () => 'random orders', dash: '2 3', width: 1.5 },
  most_first: { label: (criterion) => `by ${criterion}, first rank first`, dash: '7 4', width: 1.5 },
};
const isRandom = (curve) => curve.order.startsWith('random');
const orderOf = (curve) => ORDERS[isRandom(curve) ? 'random' : curve.order];

export const ablation = {
  id: 'ablation',
  tab: 'Ablation',
  uses: ['run', 'layer', 'class'],
  allClasses: 'All classes',
  create(ctx, root) {
    const body = h('div', {});
    root.append(
      explain(
        'How many units the layer can do without',
        'Units are switched off one after another, from all on at the left to all off at the right. If an order is ' +
          'right, the network keeps its accuracy longest when its last ranks go first; the area between that and the ' +
          'reverse order is the ranking gap, shaded for validation. An order that knows something leaves the grey ' +
          'band of random orders. Roles by contribution do not depend on any of these orders.',
      ),
      body,
    );
    return {
      load: () =>
        ctx.layer.parts.includes('curves') ? ctx.api.curves(ctx.run.name, ctx.layer.index, ctx.klass) : null,
      draw: (data) => body.replaceChildren(...draw(ctx, data, body)),
    };
  },
};

// The curves of one analysis, each with its points.
export function curvesAt(data, at) {
  const found = [];
  let start = 0;
  for (const curve of data.info.curves) {
    const stop = start + curve.points;
    if (curve.at === at) {
      const part = (name) => data[name].subarray(start, stop);
      found.push({
        ...curve,
        ablated: part('ablated'),
        loss: part('loss'),
        accuracy: part('accuracy'),
        top5: part('top5'),
      });
    }
    start = stop;
  }
  return found;
}

function draw(ctx, data, body) {
  const time = data && ctx.time(data);
  if (!time?.steps.length) return [nothing('There are no ablation curves: this run was analysed without ablation.')];
  const curves = curvesAt(data, time.at);
  if (!curves.length)
    return [nothing(`There are no curves for ${ctx.className(ctx.klass)} at ${ctx.when(time, time.at)}.`)];
  const hasTop5 = curves.some((curve) => curve.top5.some(Number.isFinite));
  const metric = hasTop5 ? ctx.state.get('accuracy') : 'accuracy';
  const units = Math.max(...curves.map((curve) => curve.ablated[curve.ablated.length - 1]));
  const width = Math.max(300, Math.floor((body.clientWidth - 18) / (body.clientWidth > 760 ? 2 : 1)) - 28);
  const turningPoints = data.info.by_class[time.at];
  const shared = { curves, units, width, turningPoints, criterion: ctx.run.criterion };
  return [
    h(
      'div',
      { class: 'options' },
      key(ctx, curves, turningPoints),
      h('span', { class: 'spring' }),
      hasTop5 &&
        choice(
          'Show',
          [
            ['accuracy', 'accuracy'],
            ['top5', 'top-5 accuracy'],
          ],
          metric,
          (accuracy) => ctx.set({ accuracy }),
        ),
    ),
    h(
      'div',
      { class: 'split even' },
      h(
        'div',
        { class: 'card' },
        h('h3', {}, metric === 'top5' ? 'Top-5 accuracy' : 'Accuracy'),
        curveChart({
          ...shared,
          metric,
          yDomain: [0, 1],
          yFormat: (value) => percent(value),
          label: `${metric === 'top5' ? 'top-5 accuracy' : 'accuracy'}, ${ctx.className(ctx.klass)}`,
        }),
      ),
      h(
        'div',
        { class: 'card' },
        h('h3', {}, 'Loss'),
        curveChart({
          ...shared,
          metric: 'loss',
          yDomain: lossDomain(curves),
          label: `loss, ${ctx.className(ctx.klass)}`,
        }),
      ),
    ),
    h(
      'div',
      { class: 'card facts-line' },
      sentences(
        ctx,
        curves,
        data.info.rankings.filter(({ at }) => at === time.at),
        time,
        turningPoints,
      ),
    ),
  ];
}

function key(ctx, curves, turningPoints) {
  const orders = Object.keys(ORDERS).filter((order) => curves.some((curve) => orderOf(curve) === ORDERS[order]));
  return h(
    'p',
    { class: 'key' },
    Object.entries(SPLITS)
      .filter(([split]) => curves.some((curve) => curve.split === split))
      .map(([, { label, colour }]) => keyItem(h('i', { class: 'dot-key', style: `background: ${colour}` }), label)),
    h('span', { class: 'divider' }),
    orders.map((order) =>
      keyItem(
        svg(
          'svg',
          { width: 30, height: 8, 'aria-hidden': true },
          svg('line', {
            x1: 0,
            x2: 30,
            y1: 4,
            y2: 4,
            stroke: 'var(--ink)',
            'stroke-width': ORDERS[order].width,
            'stroke-dasharray': ORDERS[order].dash || null,
          }),
        ),
        ORDERS[order].label(ctx.run.criterion),
      ),
    ),
    turningPoints && [
      h('span', { class: 'divider' }),
      keyItem(
        svg(
          'svg',
          { width: 12, height: 12, 'aria-hidden': true },
          svg('path', { d: 'M6,0.5L11.5,6L6,11.5L0.5,6Z', fill: 'var(--ink)' }),
        ),
        'turning point',
      ),
    ],
  );
}

function lossDomain(curves) {
  // The loss of the whole net lies near the bottom; a few wild values at the end would flatten all that matters.
  const values = curves
    .flatMap((curve) => Array.from(curve.loss))
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  const high = values.length
    ? Math.min(values[values.length - 1], 3 * values[Math.floor(0.8 * values.length)] + 0.01)
    : 1;
  return [Math.min(0, values[0] || 0), high * 1.05];
}

function curveChart({ curves, units, width, turningPoints, criterion, metric, yDomain, yFormat, label }) {
  const nameOf = (curve) => `${SPLITS[curve.split].label}, ${orderOf(curve).label(criterion)}`;
  const points = (curve) => Array.from(curve.ablated, (off, i) => [off, curve[metric][i]]);
  const clipped = (list) => list.map(([x, y]) => [x, Number.isFinite(y) ? Math.min(y, yDomain[1]) : y]);
  const drawn = [...curves].sort((a, b) => (orderOf(b).width < orderOf(a).width ? -1 : 1)).reverse();
  const pair = metric === 'loss' ? [] : gap(curves, metric);
  const ticks = Array.from({ length: 5 }, (_, i) => Math.round((units * i) / 4));
  return chart({
    width,
    height: 320,
    xDomain: [0, units],
    yDomain,
    yFormat,
    xTicks: [...new Set(ticks)].map((at) => ({ at, label: at })),
    xLabel: `units switched off, of ${units} in the layer`,
    yLabel: label,
    bands: [
      ...(pair.length ? [{ points: pair, colour: SPLITS.val.colour, opacity: 0.1 }] : []),
      ...Object.keys(SPLITS).map((split) => ({
        points: randomBand(
          curves.filter((curve) => curve.split === split && isRandom(curve)),
          metric,
          yDomain,
        ),
        colour: 'var(--ink-faint)',
        opacity: 0.35,
      })),
    ],
    series: drawn.map((curve) => ({
      name: nameOf(curve),
      points: clipped(points(curve)),
      colour: isRandom(curve) ? 'var(--ink-faint)' : SPLITS[curve.split].colour,
      dash: orderOf(curve).dash,
      width: orderOf(curve).width,
    })),
    marks: (x, y) =>
      turningPoints &&
      curves.filter((curve) => curve.order === 'least_first').map((curve) => turning(curve, metric, x, y, yDomain)),
    xSnap: (at) => nearest(measuredAt(curves), at),
    describe: (off) => [
      h('strong', {}, `${off} of ${units} units off`),
      ...curves.map((curve) => {
        const value = valueAt(curve, metric, off);
        const text = metric === 'loss' ? decimal(value, 3) : percent(value, 1);
        return `${nameOf(curve)}: ${text}`;
      }),
    ],
  });
}

const nearest = (values, at) =>
  values.reduce((best, value) => (Math.abs(value - at) < Math.abs(best - at) ? value : best), values[0]);

function turning(curve, metric, x, y, [low, high]) {
  const place = curve.ablated.indexOf(curve.turning);
  if (place < 0) return null;
  const value = Math.min(high, Math.max(low, curve[metric][place]));
  const [px, py] = [x(curve.turning), y(value)];
  const { colour, label } = SPLITS[curve.split];
  return svg(
    'g',
    { class: 'turning', 'data-split': curve.split, 'data-turning': curve.turning },
    svg('line', { x1: px, x2: px, y1: y(low), y2: y(high), stroke: colour, 'stroke-dasharray': '3 3' }),
    svg(
      'path',
      { d: `M${px},${py - 6}l6,6l-6,6l-6,-6Z`, fill: colour, stroke: 'var(--surface)', 'stroke-width': 1.5 },
      svg('title', {}, `turning point, ${label}: ${curve.turning} units off`),
    ),
  );
}

// Numbers of units off at which any of several curves was measured.
const measuredAt = (curves) => [...new Set(curves.flatMap(({ ablated }) => Array.from(ablated)))].sort((a, b) => a - b);

// A curve's value with any number of units off, on the straight line between the two measured ones around it.
function valueAt(curve, metric, off) {
  const right = curve.ablated.findIndex((number) => number >= off);
  const [from, to] = [curve.ablated[Math.max(right - 1, 0)], curve.ablated[right]];
  const [before, after] = [curve[metric][Math.max(right - 1, 0)], curve[metric][right]];
  return to === off || to === from ? after : before + ((after - before) * (off - from)) / (to - from);
}

// From the lowest to the highest of several random orders.
function randomBand(curves, metric, [, high]) {
  if (curves.length < 2) return [];
  return measuredAt(curves).map((off) => {
    const values = curves.map((curve) => Math.min(high, valueAt(curve, metric, off)));
    return [off, Math.min(...values), Math.max(...values)];
  });
}

// Between the order and its reverse on validation images.
function gap(curves, metric) {
  const find = (order) => curves.find((curve) => curve.split === 'val' && curve.order === order);
  const pair = [find('least_first'), find('most_first')];
  if (!pair.every(Boolean)) return [];
  return measuredAt(pair).map((off) => [off, ...pair.map((curve) => valueAt(curve, metric, off))]);
}

function sentences(ctx, curves, rankings, time, turningPoints) {
  const rows = [];
  for (const split of ['train', 'val']) {
    const least = curves.find((curve) => curve.split === split && curve.order === 'least_first');
    if (!least) continue;
    const total = least.ablated[least.ablated.length - 1];
    const { gap, over_random: overRandom, text, warn } = rankings.find((ranking) => ranking.split === split);
    rows.push(
      h(
        'tr',
        { 'data-split': split },
        h(
          'th',
          { scope: 'row' },
          h('i', { class: 'dot-key', style: `background: ${SPLITS[split].colour}` }),
          SPLITS[split].label,
        ),
        turningPoints && [
          h('td', {}, `${least.turning} of ${total} off`),
          h('td', {}, `${plural(total - least.turning, 'unit')} (${percent((total - least.turning) / total)})`),
          h('td', {}, `${least.turning_accuracy} off`),
        ],
        h('td', {}, signed(gap ?? NaN)),
        h('td', {}, signed(overRandom ?? NaN)),
        h(
          'td',
          { class: warn ? 'warn' : null },
          ctx.klass === 'all' ? (ordered(ctx) ? text : '–') : 'Put to the test for all classes together.',
        ),
      ),
    );
  }
  return [
    h(
      'h3',
      {},
      `${ctx.klass === 'all' ? 'All classes' : `Class ${ctx.className(ctx.klass)}`} at ${ctx.when(time, time.at)}`,
    ),
    h(
      'table',
      { class: 'small' },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          [
            'images',
            ...(turningPoints ? ['turning point (loss)', 'effective units', 'turning point (accuracy)'] : []),
            'ranking gap',
            'over random orders',
            'verdict',
          ].map((text) => h('th', { scope: 'col' }, text)),
        ),
      ),
      h('tbody', {}, rows),
    ),
    ctx.klass === 'all' ? repeats(ctx) : '',
  ];
}

// What else was measured of the orders of this layer.
function repeats(ctx) {
  const { table, layer } = ctx;
  const value = (column) => table.at(table.time.at, layer.index, column);
  const said = [];
  if (Number.isFinite(value('contribution_gap'))) {
    said.push(
      `Switching off what contributes least first leaves an area of ${signed(value('contribution_gap'))} over random ` +
        'orders.',
    );
  }
  if (Number.isFinite(value('rank_agreement'))) {
    said.push(
      `The scores that rank units correlate to ${decimal(value('rank_agreement'))} between two halves of the images.`,
    );
  }
  return said.length ? h('p', { class: 'note repeats' }, said.join(' ')) : '';
}
