// How the entropy of a layer's units spreads over time, and how it is distributed at the cursor, split by role.
import { chart, niceTicks, overTime, roundDomain } from '../charts.js';
import { bins, codesIn, extent, quantiles } from '../derive.js';
import { choice, decimal, h, percent, plural, svg } from '../dom.js';
import { fillOf, ROLE, STACK } from '../vocabulary.js';
import { explain, keyItem, legend, nothing, swatch } from './parts.js';

const SHARES = [0.05, 0.25, 0.5, 0.75, 0.95];
const BINS = 28;
const MEASURES = {
  entropy: {
    val: 'entropy_val',
    train: 'entropy_train',
    label: 'feature entropy (nats)',
    short: 'entropy',
    unit: ' nats',
  },
  selective: {
    val: 'selective_val',
    train: 'selective_train',
    label: 'selective rate',
    short: 'selective rate',
    unit: '',
  },
};

const measureOf = (ctx) => MEASURES[ctx.state.get('measure')] || MEASURES.entropy;

export const entropy = {
  id: 'entropy',
  tab: 'Entropy',
  uses: ['run', 'layer', 'class'],
  create(ctx, root) {
    const options = h('div', { class: 'options' });
    const body = h('div', { class: 'split even' });
    root.append(
      explain(
        'How regular the units’ responses are',
        'Feature entropy says how scattered the birth points of a unit’s maps are over the images of a class ' +
          '(mean over the classes): low means that the unit answers alike to alike images. The selective rate is ' +
          'the share of images whose map has no cycle at all. A gap between the training and the validation median ' +
          'is a hint of memorising.',
      ),
      options,
      body,
    );
    return {
      load() {
        const { val, train } = measureOf(ctx);
        return ctx.unitData(['roles', val, train]);
      },
      draw(data) {
        const measure = measureOf(ctx);
        options.replaceChildren(
          legend(ctx, codesIn(data.roles)),
          h('span', { class: 'spring' }),
          choice(
            'Measure',
            [
              ['entropy', 'feature entropy'],
              ['selective', 'selective rate'],
            ],
            ctx.state.get('measure'),
            (value) => ctx.set({ measure: value }),
          ),
        );
        const time = ctx.time(data);
        if (!time.steps.length) return body.replaceChildren(nothing('No analysis of this layer was logged.'));
        const left = h('div', { class: 'card' });
        const right = h('div', { class: 'card' });
        body.replaceChildren(left, right);
        band(ctx, left, data, time, measure);
        distribution(ctx, right, data, time, measure);
        return undefined;
      },
    };
  },
};

// Sorting all rows costs; the quantiles of a layer do not change with the cursor.
const cache = new WeakMap();
function allQuantiles(values, units, count) {
  if (!cache.has(values)) {
    cache.set(
      values,
      Array.from({ length: count }, (_, t) => quantiles(values.subarray(t * units, (t + 1) * units), SHARES)),
    );
  }
  return cache.get(values);
}

function band(ctx, root, data, time, measure) {
  const count = time.labels.length;
  const val = allQuantiles(data[measure.val], data.units, count);
  const train = allQuantiles(data[measure.train], data.units, count);
  const domain =
    measure.short === 'entropy' ? roundDomain(...extent([...val.flat(), ...train.map((row) => row[2])])) : [0, 1];
  root.append(
    h('h3', {}, `Spread over the ${plural(data.units, 'unit')} of the layer`),
    chart({
      ...overTime(time, Math.max(280, root.clientWidth - 26), ctx),
      height: 405, // as high as the chart beside it with its table
      yDomain: domain,
      yLabel: measure.label,
      bands: [
        { points: val.map((row, t) => [t, row[0], row[4]]), colour: 'var(--accent)', opacity: 0.14 },
        { points: val.map((row, t) => [t, row[1], row[3]]), colour: 'var(--accent)', opacity: 0.28 },
      ],
      series: [
        { points: train.map((row, t) => [t, row[2]]), colour: 'var(--ink)', dash: '5 4', width: 1.5 },
        { points: val.map((row, t) => [t, row[2]]), colour: 'var(--accent)', width: 2.5 },
      ],
      describe: (t) => [
        h('strong', {}, ctx.when(time, t)),
        `validation median ${decimal(val[t][2])}${measure.unit}`,
        `quartiles ${decimal(val[t][1])} to ${decimal(val[t][3])}, ` +
          `5 to 95 %: ${decimal(val[t][0])} to ${decimal(val[t][4])}`,
        `training median ${decimal(train[t][2])}${measure.unit}`,
      ],
    }),
    h(
      'p',
      { class: 'key' },
      keyItem(h('i', { class: 'line-key' }), 'validation median'),
      keyItem(h('i', { class: 'band-key strong' }), 'quartiles'),
      keyItem(h('i', { class: 'band-key' }), '5 to 95 %'),
      keyItem(h('i', { class: 'line-key dashed' }), 'training median'),
    ),
  );
}

function distribution(ctx, root, data, time, measure) {
  const row = time.at * data.units;
  const roles = data.roles.subarray(row, row + data.units);
  const values = data[measure.val].subarray(row, row + data.units);
  const [low, high] = measure.short === 'entropy' ? roundDomain(...extent(data[measure.val])) : [0, 1];
  const groups = STACK.map((code) => ({ code, values: values.filter((_, u) => roles[u] === code) })).filter(
    ({ values: some }) => some.length,
  );
  const counted = groups.map((group) => ({ ...group, bins: bins(group.values, low, high, BINS) }));
  const totals = Array.from({ length: BINS }, (_, i) => counted.reduce((sum, group) => sum + group.bins[i], 0));
  const missing = values.filter((value, u) => !Number.isFinite(value) && roles[u] !== ROLE.REMOVED).length;
  root.append(
    h(
      'h3',
      {},
      `Distribution at ${ctx.when(time, time.at)}, by role`,
      ctx.klass === 'all' ? null : ` for ${ctx.className(ctx.klass)}`,
    ),
    chart({
      width: Math.max(280, root.clientWidth - 26),
      height: 300,
      xDomain: [low, high],
      yDomain: [0, Math.max(1, ...totals) * 1.08],
      xTicks: niceTicks(low, high, 6).map((at) => ({ at, label: at })),
      xLabel: `${measure.label}, validation`,
      yLabel: 'units',
      yTicks: niceTicks(0, Math.max(1, ...totals), 5).filter(Number.isInteger),
      label: 'Distribution by role',
      marks: (x, y) => bars(counted, x, y, low, high),
    }),
    medians(ctx, groups, measure),
    h(
      'p',
      { class: 'note', hidden: !missing },
      `${plural(missing, 'unit')} without a value: no map of theirs has a birth point.`,
    ),
  );
}

function bars(groups, x, y, low, high) {
  const width = (high - low) / BINS;
  const filled = new Float64Array(BINS);
  return groups.map(({ code, bins: counts }) => {
    let d = '';
    counts.forEach((count, i) => {
      if (!count) return;
      const from = x(low + i * width) + 0.5;
      const to = x(low + (i + 1) * width) - 0.5;
      const [bottom, top] = [y(filled[i]), y(filled[i] + count)];
      d += `M${from.toFixed(1)},${bottom.toFixed(1)}V${top.toFixed(1)}H${to.toFixed(1)}V${bottom.toFixed(1)}Z`;
      filled[i] += count;
    });
    return svg('path', { d, fill: fillOf(code), class: 'area', 'data-role': code });
  });
}

function medians(ctx, groups, measure) {
  const real = groups.filter(({ code }) => code !== ROLE.REMOVED);
  const sum = real.reduce((total, { values }) => total + values.length, 0);
  return h(
    'table',
    { class: 'small' },
    h(
      'thead',
      {},
      h(
        'tr',
        {},
        ['role', 'units', 'share', `median ${measure.short}`].map((text) => h('th', {}, text)),
      ),
    ),
    h(
      'tbody',
      {},
      real.map(({ code, values }) =>
        h(
          'tr',
          {},
          h('td', {}, swatch(code), ctx.role(code).label),
          h('td', {}, String(values.length)),
          h('td', {}, percent(values.length / sum)),
          h('td', {}, `${decimal(quantiles(values, [0.5])[0])}${measure.unit}`),
        ),
      ),
    ),
  );
}
