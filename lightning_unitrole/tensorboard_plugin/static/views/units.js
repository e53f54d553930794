// The raster of one layer: each unit a row, each analysis a column.
import { changedAt, codesIn, extent, hasContributions, history, order } from '../derive.js';
import { choice, h, plural, select } from '../dom.js';
import { Raster } from '../raster.js';
import { isRole, SHARED_ROLES } from '../vocabulary.js';
import { ordered } from './doubts.js';
import { describeUnit, explain, legend, nothing, rampLegend } from './parts.js';

const SORTS = [
  ['role', 'role, then contribution'],
  ['contribution', 'contribution at the cursor'],
  ['unit', 'unit number'],
  ['stable', 'since when the role is stable'],
  ['changes', 'number of changes'],
  ['entropy', 'entropy at the cursor'],
];
const COLOURS = [
  ['role', 'role'],
  ['entropy', 'entropy', 'Feature entropy on validation images; low is regular'],
  ['selective', 'selective rate', 'Share of images without a birth point'],
  ['contribution', 'contribution', 'Mean contribution to the margin on validation images, over all classes'],
  ['useful', 'useful for', 'Share of the classes for which the unit has the role for both sides'],
];
const FIELD = {
  contribution: 'contribution_val',
  entropy: 'entropy_val',
  selective: 'selective_val',
  useful: 'useful',
};
const RAMP = {
  contribution: ['contribution (nats)', 'below 0 hurts'],
  entropy: ['entropy (nats)', 'low is regular'],
  selective: ['selective rate', ''],
  useful: ['useful for (share of classes)', ''],
};

export const units = {
  id: 'units',
  tab: 'Units',
  uses: ['run', 'layer', 'class'],
  create(ctx, root) {
    const panel = rasterPanel(ctx);
    const options = h('div', { class: 'options' });
    root.append(
      explain(
        'Every unit of one layer over time',
        'Each row is a unit and keeps its number for the whole run; each column is an analysis. Long stretches ' +
          'of one colour are units that have found their role. Hover for all that is known, click to choose a unit ' +
          'and move the cursor, double-click to inspect it.',
      ),
      options,
      panel.element,
    );
    return {
      load: () => rasterData(ctx),
      draw(data) {
        options.replaceChildren(...controls(ctx, data));
        panel.show(data);
        ctx.complete(data, () => panel.show(data));
      },
    };
  },
};

// What the raster is drawn from: contributions are read at the cursor alone, where that will do. Tooltips read more.
export async function rasterData(ctx, { compared = false } = {}) {
  const { run, layer, api } = ctx;
  const { colour, sort, step, from } = ctx.state.values;
  const all = colour === 'contribution' || sort === 'changes' || sort === 'stable';
  const rest = all ? await api.rest(run.name, layer.index) : api.restNow(run.name, layer.index);
  if (rest) {
    const data = await ctx.unitData(['roles']);
    if (data.steps.length === rest.steps.length) return { ...rest, ...data };
  }
  const shown = [FIELD[colour], sort === 'entropy' && 'entropy_val'].filter(Boolean);
  const steps = compared && from !== BEFORE ? [step, from === '' ? 0 : from] : [step];
  const read = (...more) => ctx.unitData(['roles', ...shown, ...more], steps);
  const data = await read();
  return colourOf(ctx, data) === 'entropy' && !data.entropy_val ? read('entropy_val') : data;
}

function controls(ctx, data) {
  const colour = colourOf(ctx, data);
  return [
    colour === 'role'
      ? legend(ctx, codesIn(data.roles))
      : rampLegend(RAMP[colour][0], rangeOf(colour, data), RAMP[colour][1]),
    h('span', { class: 'spring' }),
    choice('Colour', COLOURS, colour, (value) => ctx.set({ colour: value })),
    select('Sort by', sortsOf(ctx, data), sortOf(ctx, data), (sort) => ctx.set({ sort })),
  ];
}

// What was not measured, or is without information, is nothing to sort by.
function sortsOf(ctx, data) {
  const measured = hasContributions(data);
  const absent = [!measured && 'contribution', !ordered(ctx) && 'entropy'];
  return SORTS.filter(([sort]) => !absent.includes(sort)).map(([sort, label]) =>
    sort === 'role' && !measured ? [sort, 'role at the cursor'] : [sort, label],
  );
}

const sortOf = (ctx, data) => {
  const wanted = ctx.state.get('sort');
  return sortsOf(ctx, data).some(([sort]) => sort === wanted) ? wanted : 'unit';
};

const hasRoles = (data) => data.roles.some((code) => SHARED_ROLES.includes(code));

// Without roles the raster would be blank.
const colourOf = (ctx, data) =>
  ctx.state.get('colour') === 'role' && ctx.klass === 'all' && !hasRoles(data) ? 'entropy' : ctx.state.get('colour');

const ranges = new WeakMap();
function rangeOf(colour, data) {
  if (colour !== 'entropy' && colour !== 'contribution') return [0, 1];
  const values = data[FIELD[colour]];
  if (!ranges.has(values)) ranges.set(values, extent(values));
  return ranges.get(values);
}

// The raster with its filter and row height; the view of transitions shows it too.
export function rasterPanel(ctx, { from } = {}) {
  let shown = null;
  const raster = new Raster({
    onpick: (unit, at) => ctx.set({ unit, step: at >= shown.time.steps.length - 1 ? '' : shown.time.steps[at] }),
    onopen: (unit) => ctx.set({ unit, view: 'unit' }),
    describe: (unit, at) => describeUnit(ctx, shown.data, shown.time, unit, at, shown.past()),
  });
  const caption = h('div', { class: 'caption' });
  const empty = h('div', {});
  const element = h('div', { class: 'raster-panel' }, caption, raster.element, empty);

  function show(data) {
    const time = ctx.time(data);
    if (!time.steps.length) {
      raster.element.hidden = true;
      empty.replaceChildren(nothing('No analysis of this layer was logged.'));
      caption.replaceChildren();
      return;
    }
    const filter = ctx.state.get('filter');
    const start = from ? from(time) : fromOf(ctx, time);
    const sort = sortOf(ctx, data);
    let rows = order(sort, data, time.at);
    const changes = ctx.klass === 'all' ? changedAt(data, time.at) : null;
    if (filter)
      rows = rows.filter(
        (u) => `${data.roles[start * data.units + u]}-${data.roles[time.at * data.units + u]}` === filter,
      );
    let known = null; // asked for by tooltips, and not by every frame of a cursor on the move
    const past = () => {
      known ??= history(data, time.at);
      return known;
    };
    shown = { data, time, past };
    const colour = colourOf(ctx, data);
    raster.element.hidden = rows.length === 0;
    empty.replaceChildren(...(rows.length ? [] : [nothing('No unit passes the filter.')]));
    caption.replaceChildren(...captionOf(ctx, data, time, start, rows, raster, past, changes));
    const unit = ctx.state.get('unit');
    raster.show({
      roles: data.roles,
      values: colour === 'role' ? null : data[FIELD[colour]],
      range: rangeOf(colour, data),
      units: data.units,
      order: keep(rows),
      at: time.at,
      changed: changes,
      from: from || filter ? start : null,
      selected: unit === '' ? -1 : Number(unit),
      rowHeight: Number(ctx.state.get('rows')),
      sort,
      labels: time.labels,
      axis: time.axis,
      palette: ctx.palette,
    });
  }

  // The same order as before as the same array, so that the image need not be made again.
  let last = [];
  function keep(rows) {
    if (rows.length !== last.length || rows.some((unit, place) => unit !== last[place])) last = rows;
    return last;
  }

  return { element, show };
}

export const BEFORE = 'before'; // the analysis before the cursor, wherever that is
export function fromOf(ctx, time) {
  const from = ctx.state.get('from');
  if (from === '') return 0;
  if (from === BEFORE) return Math.max(0, time.at - 1);
  const place = Array.from(time.steps).indexOf(Number(from));
  return Math.max(place, 0);
}

function changeNote(data, changes) {
  const count = changes.reduce((sum, one) => sum + one, 0);
  const beyond = hasContributions(data) ? ', beyond the error bars' : '';
  return [
    count ? h('i', { class: 'change-key' }) : '',
    `${count || 'none'} changed since the analysis before${beyond}`,
  ];
}

function captionOf(ctx, data, time, start, rows, raster, past, changes) {
  const filter = ctx.state.get('filter');
  const unit = ctx.state.get('unit');
  const parts = [
    h('span', {}, filter ? `${rows.length} of ${plural(data.units, 'unit')}` : plural(data.units, 'unit')),
    changes && time.at > 0 && data.roles.some(isRole)
      ? h('span', { class: 'changed-note' }, changeNote(data, changes))
      : '',
  ];
  if (filter) {
    const [before, after] = filter.split('-').map((code) => ctx.role(Number(code)).label);
    const text = `${before} → ${after}, from ${ctx.when(time, start)} to the cursor`;
    parts.push(
      h(
        'button',
        { class: 'chip', title: 'Drop the filter (Esc)', onclick: () => ctx.set({ filter: '' }) },
        text,
        h('b', {}, '×'),
      ),
    );
  }
  if (unit !== '' && Number(unit) < data.units) {
    const code = data.roles[time.at * data.units + Number(unit)];
    const so = past();
    const count = so ? `, ${plural(so.changes[Number(unit)], 'change')} so far` : '';
    const text = `unit ${unit}: ${ctx.role(code).label}${count}`;
    parts.push(h('button', { class: 'chip', onclick: () => ctx.set({ view: 'unit' }) }, text, h('b', {}, 'inspect')));
  }
  const grow = (factor) => {
    const next =
      factor > 1
        ? Math.max(Math.floor(raster.row) + 1, Math.round(raster.row * factor))
        : Math.floor(raster.row * factor);
    ctx.set({ rows: Math.min(32, Math.max(1, next)) });
  };
  parts.push(
    h('span', { class: 'spring' }),
    h(
      'span',
      { class: 'zoom' },
      'row height ',
      h('button', { class: 'icon', 'aria-label': 'Lower rows', onclick: () => grow(0.6) }, '−'),
      h(
        'button',
        { class: 'icon', 'aria-label': 'Fit rows', title: 'Fit', onclick: () => ctx.set({ rows: '' }) },
        'fit',
      ),
      h('button', { class: 'icon', 'aria-label': 'Higher rows', onclick: () => grow(1.6) }, '+'),
    ),
  );
  return parts;
}
