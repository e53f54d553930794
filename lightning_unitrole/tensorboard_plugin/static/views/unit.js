// One unit: its history, and its role for each class.
import { analysisTicks, chart, interactive, linear, overTime, shortNumber } from '../charts.js';
import { codesIn, history } from '../derive.js';
import { decimal, h, percent, plural, svg } from '../dom.js';
import { fillOf, ROLE } from '../vocabulary.js';
import { ordered } from './doubts.js';
import { looksAt } from './examples.js';
import { read } from './layers.js';
import { contribution, explain, legend, nothing, swatch } from './parts.js';
import { EFFECTS, usefulness } from './usefulness.js';

const ROW = 20;
const LABEL = 130;
const PAGE = 20; // classes at a time

export const unit = {
  id: 'unit',
  tab: 'Unit',
  uses: ['run', 'layer'],
  create(ctx, root) {
    const body = h('div', {});
    root.append(
      explain(
        'One unit from the first analysis to the last',
        'Its role for every class over time, what it contributes to the answers, how regular its responses are, ' +
          'and where it stands in the ranking of its layer. A ' +
          'unit that is useful for a few classes only is a specialist; one whose stripes flicker ' +
          'has not found its place.',
      ),
      body,
    );
    return {
      async load() {
        const { run, layer } = ctx;
        const { api } = ctx;
        const step = ctx.state.get('step');
        const chosen = await chosenUnit(ctx, step);
        const data = { ...(await api.unitFields(run.name, layer.index, chosen)), units: 1 };
        const { at } = ctx.time(data);
        const ask = (part, how, ...more) =>
          layer.parts.includes(part) && at >= 0 ? how.call(api, run.name, layer.index, chosen, ...more) : null;
        const [classes, byClass, examples] = await Promise.all([
          ask('classes', api.unit),
          ask('contributions', api.contributions, data.steps[at]),
          ask('examples', api.examples, data.steps[at]),
        ]);
        return { data, classes, byClass, examples, chosen };
      },
      draw: (found) => draw(ctx, body, found),
    };
  },
};

// The chosen unit; otherwise the one that contributes most at the cursor, or ranks first where nobody measured that.
async function chosenUnit(ctx, step) {
  const { run, layer, api } = ctx;
  const wanted = ctx.state.get('unit');
  if (wanted !== '' && Number(wanted) >= 0 && Number(wanted) < layer.units) return Number(wanted);
  const [row, steps] = await Promise.all([
    api.layerAt(run.name, layer.index, ['contribution_val', 'rank'], step),
    api.overview(run.name),
  ]);
  const most = Math.max(...row.contribution_val.filter(Number.isFinite));
  const first = Number.isFinite(most)
    ? row.contribution_val.indexOf(most)
    : ordered(ctx, read(ctx, steps))
      ? row.rank.indexOf(0)
      : 0;
  return Math.max(0, first);
}

function draw(ctx, body, { data, classes, byClass, examples, chosen }) {
  const time = ctx.time(data);
  if (!time.steps.length) return body.replaceChildren(nothing('No analysis of this layer was logged.'));
  const series = (name) => Array.from(time.steps, (_, t) => [t, data[name][t]]);
  const width = Math.max(320, body.clientWidth - 28);
  const half = Math.max(300, Math.floor((body.clientWidth - 18) / (body.clientWidth > 760 ? 2 : 1)) - 28);
  const removed = series('roles').findIndex(([, code]) => code === ROLE.REMOVED);
  const present = (points, map = (value) => value) =>
    points.map(([t, value]) => [t, removed >= 0 && t >= removed ? NaN : map(value)]);
  const shared = (label) => ({
    ...overTime(time, half, ctx),
    height: 220,
    yLabel: label,
    onpick: (t) => ctx.pick(time, t),
  });
  body.replaceChildren(
    h('div', { class: 'card unit-head' }, header(ctx, data, time, chosen)),
    examples?.steps.length ? looksAt(ctx, examples, time) : '',
    byClass?.steps.length ? usefulness(ctx, data, byClass, time, half, present) : '',
    h(
      'div',
      { class: 'card' },
      h('h3', {}, 'Role over time'),
      h('div', { class: 'options' }, legend(ctx, codesIn(Uint8Array.from([...data.roles, ...(classes?.roles ?? [])])))),
      classes && ctx.run.classes.length > PAGE ? pager(ctx) : '',
      strips(ctx, data, classes, time, width),
    ),
    h(
      'div',
      { class: 'split even' },
      h(
        'div',
        { class: 'card' },
        h('h3', {}, 'Feature entropy and selective rate'),
        chart({
          ...shared('entropy (nats)'),
          yDomain: [
            0,
            Math.max(
              1,
              ...series('entropy_val')
                .concat(series('entropy_train'))
                .map(([, v]) => (Number.isFinite(v) ? v : 0)),
            ) * 1.08,
          ],
          series: [
            { points: present(series('entropy_train')), colour: 'var(--line-train)', width: 1.5, dash: '5 4' },
            { points: present(series('entropy_val')), colour: 'var(--line-val)', width: 2.5 },
          ],
          describe: (t) => describe(ctx, data, time, t),
        }),
        chart({
          ...shared('selective rate'),
          height: 170,
          yDomain: [0, 1],
          yFormat: (value) => percent(value),
          series: [
            { points: present(series('selective_train')), colour: 'var(--line-train)', width: 1.5, dash: '5 4' },
            { points: present(series('selective_val')), colour: 'var(--line-val)', width: 2.5 },
          ],
          describe: (t) => describe(ctx, data, time, t),
        }),
        h(
          'p',
          { class: 'key' },
          h('i', { class: 'dot-key', style: 'background: var(--line-val)' }),
          'validation',
          h('i', { class: 'dot-key', style: 'background: var(--line-train)' }),
          'training (dashed)',
        ),
      ),
      h(
        'div',
        { class: 'card' },
        h('h3', {}, 'Rank and usefulness'),
        ordered(ctx) &&
          chart({
            ...shared('rank'),
            yDomain: [ctx.layer.units, 1],
            yTicks: [1, ...[0.25, 0.5, 0.75, 1].map((part) => Math.round(part * ctx.layer.units))].filter(
              (tick, i, all) => all.indexOf(tick) === i,
            ),
            series: [{ points: present(series('rank'), (rank) => rank + 1), colour: 'var(--accent)' }],
            describe: (t) => describe(ctx, data, time, t),
          }),
        chart({
          ...shared('useful for'),
          height: 170,
          yDomain: [0, 1],
          yFormat: (value) => percent(value),
          series: [{ points: present(series('useful')), colour: `var(--role-${ROLE.BOTH})` }],
          describe: (t) => describe(ctx, data, time, t),
        }),
        h(
          'p',
          { class: 'key' },
          ordered(ctx) && `rank by ${ctx.run.criterion}, 1 at its head; `,
          'useful for: share of the classes with role Both',
        ),
      ),
    ),
  );
  return undefined;
}

function describe(ctx, data, time, at) {
  if (data.roles[at] === ROLE.REMOVED) return [h('strong', {}, ctx.when(time, at)), ctx.role(ROLE.REMOVED).label];
  return [
    h('strong', {}, ctx.when(time, at)),
    h('div', {}, swatch(data.roles[at]), ctx.role(data.roles[at]).label),
    `entropy ${decimal(data.entropy_val[at])} nats val, ${decimal(data.entropy_train[at])} train`,
    `selective rate ${percent(data.selective_val[at])} val, ${percent(data.selective_train[at])} train`,
    `useful for ${percent(data.useful[at])} of the classes`,
    ordered(ctx) ? `rank ${data.rank[at] + 1}` : 'no rank: the order is without information',
    Number.isFinite(data.contribution_val[at]) ? `contribution ${contribution(data, 'val', at)} nats val` : '',
  ];
}

function header(ctx, data, time, chosen) {
  const { at } = time;
  const { units } = ctx.layer;
  const code = data.roles[at];
  const role = ctx.role(code);
  const { changes, stable } = history(data, time.steps.length - 1);
  const go = (to) => ctx.set({ unit: (to + units) % units });
  const input = h('input', {
    type: 'number',
    min: 0,
    max: units - 1,
    value: chosen,
    'aria-label': 'Unit',
    onchange: (event) => go(Math.min(units - 1, Math.max(0, Math.round(Number(event.target.value)) || 0))),
  });
  const gone = code === ROLE.REMOVED;
  const facts = [
    ['role at the cursor', h('span', {}, swatch(code), role.label), role.meaning],
    !gone && Number.isFinite(data.useful[at]) && ['useful for', `${percent(data.useful[at])} of the classes`],
    !gone &&
      data.effect_val[at] in EFFECTS && [
        'effect',
        EFFECTS[data.effect_val[at]],
        'Over all classes, on validation images',
      ],
    !gone &&
      Number.isFinite(data.contribution_val[at]) && [
        'contribution',
        `${contribution(data, 'val', at)} nats`,
        'Mean over all classes on validation images, and its standard error',
      ],
    !gone && [`rank by ${ctx.run.criterion}`, ordered(ctx) ? `${data.rank[at] + 1} of ${units}` : 'none'],
    !gone && ['entropy', `${decimal(data.entropy_val[at])} nats`],
    !gone && ['selective rate', percent(data.selective_val[at])],
    code !== ROLE.NO_ROLE && ['changes of role', plural(changes[0], 'time').replace(/^1 time$/, 'once')],
    code !== ROLE.NO_ROLE && [
      gone || data.roles[time.steps.length - 1] === ROLE.REMOVED ? 'removed at' : 'present role since',
      ctx.when(time, stable[0]),
    ],
  ];
  return [
    h(
      'div',
      { class: 'unit-picker' },
      h('button', { class: 'icon', 'aria-label': 'Unit before', onclick: () => go(chosen - 1) }, '‹'),
      h('label', {}, 'Unit ', input),
      h('button', { class: 'icon', 'aria-label': 'Unit after', onclick: () => go(chosen + 1) }, '›'),
      h('small', {}, `of ${units} in ${ctx.layer.name}`),
    ),
    h(
      'dl',
      { class: 'facts wide' },
      facts.filter(Boolean).map(([name, value, title]) => h('div', {}, h('dt', {}, name), h('dd', { title }, value))),
    ),
  ];
}

// The classes whose roles are shown: those with a name that was searched for, a page at a time.
function pageOf(ctx) {
  const wanted = ctx.state.get('classes').trim().toLowerCase();
  const found = ctx.run.class_names
    .map((name, klass) => [name, klass])
    .filter(([name]) => name.toLowerCase().includes(wanted));
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const at = Math.min(pages - 1, Math.max(0, Number(ctx.state.get('page')) || 0));
  return { shown: found.slice(at * PAGE, (at + 1) * PAGE), found: found.length, at, pages };
}

function pager(ctx) {
  const { found, at, pages } = pageOf(ctx);
  const turn = (label, text, to) =>
    h(
      'button',
      { class: 'icon', 'aria-label': label, disabled: to < 0 || to >= pages, onclick: () => ctx.set({ page: to }) },
      text,
    );
  const more = ctx.run.num_classes - ctx.run.classes.length;
  return h(
    'div',
    { class: 'options pager' },
    h(
      'label',
      { class: 'field' },
      h('span', {}, 'Find'),
      h('input', {
        type: 'search',
        name: 'classes',
        placeholder: 'name of a class',
        'aria-label': 'Find a class',
        value: ctx.state.get('classes'),
        oninput: (event) => ctx.set({ classes: event.target.value, page: '' }),
      }),
    ),
    turn('Classes before', '‹', at - 1),
    h('span', {}, `page ${at + 1} of ${pages}, ${plural(found, 'class', 'classes')}`),
    turn('Classes after', '›', at + 1),
    more > 0 && h('small', {}, `${plural(more, 'more class', 'more classes')} were not logged one by one`),
  );
}

// Majority role on top, then one stripe a class.
function strips(ctx, data, classes, time, width) {
  const rows = [{ name: 'all classes', code: (t) => data.roles[t], bold: true }];
  if (classes) {
    const count = ctx.run.classes.length;
    const place = new Map(Array.from(classes.steps, (step, at) => [step, at]));
    pageOf(ctx).shown.forEach(([name, klass]) => {
      rows.push({
        name,
        code: (t) =>
          place.has(time.steps[t]) ? classes.roles[place.get(time.steps[t]) * count + klass] : ROLE.NO_ROLE,
      });
    });
  }
  const columns = time.steps.length;
  const step = (width - LABEL - 12) / columns;
  const right = LABEL + columns * step;
  const top = (place) => place * ROW + (place ? 8 : 0);
  const bottom = top(rows.length);
  const root = svg(
    'svg',
    {
      class: 'chart strips',
      width,
      height: bottom + 38,
      role: 'img',
      'aria-label': 'Role of the unit for each class over time',
    },
    rows.map((row, place) => [
      svg(
        'text',
        { class: row.bold ? 'tick bold' : 'tick', x: LABEL - 8, y: top(place) + 14, 'text-anchor': 'end' },
        row.name.length > 20 ? `${row.name.slice(0, 19)}…` : row.name,
        svg('title', {}, row.name),
      ),
      stretches(columns, row.code).map(([code, from, to]) =>
        svg('rect', {
          x: LABEL + from * step,
          y: top(place) + 1,
          width: (to - from) * step,
          height: ROW - 2,
          fill: fillOf(code),
          'data-role': code,
        }),
      ),
    ]),
    analysisTicks(time.labels, Math.max(2, Math.floor((columns * step) / 60))).map(({ at, label }) =>
      svg(
        'text',
        { class: 'tick', x: LABEL + (at + 0.5) * step, y: bottom + 16, 'text-anchor': 'middle' },
        shortNumber(label),
      ),
    ),
    svg('text', { class: 'axis-label', x: (LABEL + right) / 2, y: bottom + 33, 'text-anchor': 'middle' }, time.axis),
    svg('rect', {
      class: 'cursor-box',
      x: LABEL + time.at * step,
      y: -1,
      width: Math.max(2, step),
      height: bottom + 2,
    }),
  );
  return interactive(root, {
    x: linear([-0.5, columns - 0.5], [LABEL, right]),
    xDomain: [0, columns - 1],
    margin: { left: LABEL, right: width - right },
    width,
    top: 0,
    bottom,
    onpick: (t) => ctx.pick(time, t),
    describe: (t) => [
      h('strong', {}, ctx.when(time, t)),
      ...rows.map((row) => h('div', {}, swatch(row.code(t)), `${row.name}: ${ctx.role(row.code(t)).label}`)),
    ],
  });
}

function stretches(columns, code) {
  const found = [];
  for (let t = 0; t < columns; t++) {
    const last = found[found.length - 1];
    if (last && last[0] === code(t)) last[2] = t + 1;
    else found.push([code(t), t, t + 1]);
  }
  return found;
}
