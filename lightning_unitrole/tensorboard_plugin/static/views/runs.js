// Runs side by side, by shares alone: unit 7 of one run has nothing to do with unit 7 of another.
import { chart, niceTicks, roundDomain } from '../charts.js';
import { choice, decimal, h, percent, plural, select, svg } from '../dom.js';
import { columnOf, REAL_ROLES, SHARED_ROLES } from '../vocabulary.js';
import { changedColumn, read, SHARES_OF } from './layers.js';
import { explain, nothing, swatch } from './parts.js';

const AT_FIRST = 6;
const AT_MOST = 24;
const ALL = '\u0000all';

export const runs = {
  id: 'runs',
  tab: 'Runs',
  uses: ['run'],
  create(ctx, root) {
    const body = h('div', { class: 'runs' });
    root.append(
      explain(
        'Runs compared by their shares of roles',
        'Unit numbers do not correspond between runs, so only shares are compared, those of the units that are ' +
          'still there. Lines end where a run ends; the dot on each line is the analysis nearest to the cursor, ' +
          'which moves along the run chosen above.',
      ),
      body,
    );
    return {
      async load() {
        const chosen = chosenRuns(ctx);
        return Promise.all(chosen.map(async (run) => ({ run, table: read(ctx, await ctx.api.overview(run.name)) })));
      },
      draw: (loaded) => draw(ctx, body, loaded),
    };
  },
};

const analysed = (ctx) => ctx.index.filter((run) => run.layers.length);

function chosenRuns(ctx) {
  let names = null;
  try {
    names = JSON.parse(ctx.state.get('compared'));
  } catch {
    // nothing chosen yet
  }
  const found = Array.isArray(names)
    ? analysed(ctx).filter((run) => names.includes(run.name))
    : analysed(ctx).slice(0, AT_FIRST);
  return found.slice(0, AT_MOST);
}

function draw(ctx, body, loaded) {
  const layers = [...new Set(analysed(ctx).flatMap((run) => run.layers.map((layer) => layer.name)))];
  const scope = layers.includes(ctx.state.get('scope')) ? ctx.state.get('scope') : ALL;
  const options = [[ALL, 'all layers together'], ...layers.map((name) => [name, name])];
  const head = h(
    'div',
    { class: 'options' },
    select('Layer', options, scope, (value) => ctx.set({ scope: value === ALL ? '' : value })),
    choice('Shares of', SHARES_OF, ctx.state.get('shares'), (shares) => ctx.set({ shares })),
  );
  const side = chooser(ctx, loaded);
  const main = h('div', { class: 'run-charts' });
  body.replaceChildren(side, h('div', { class: 'run-main' }, head, main));
  const lines = loaded.map(({ run, table }) => line(ctx, run, table, scope)).filter((found) => found?.points.length);
  if (!lines.length) return main.append(nothing('Choose a run that has this layer.'));
  const width = Math.max(
    240,
    Math.floor((main.clientWidth - 36) / (main.clientWidth > 1100 ? 3 : main.clientWidth > 640 ? 2 : 1)) - 28,
  );
  const panels = [
    ...REAL_ROLES.map((code) => ({
      title: [swatch(code), ctx.role(code).label],
      value: (point) => point[columnOf(code)],
      share: true,
    })),
    { title: ['Role differs from the analysis before'], value: (point) => point.changed, share: true },
    { title: ['Median feature entropy (nats)'], value: (point) => point.entropy, share: false },
  ];
  main.append(...panels.map((panel) => small(ctx, lines, panel, width)), latest(ctx, lines));
  return undefined;
}

// One run: its points, each a weighted mean over the layers in question.
function line(ctx, run, table, scope) {
  const pairs = ctx.state.get('shares') === 'pairs';
  const places = run.layers
    .map((layer, place) => [layer, place])
    .filter(([layer]) => scope === ALL || layer.name === scope);
  if (!places.length) return null;
  const mean = (t, value) => {
    let sum = 0;
    let weight = 0;
    for (const [, place] of places) {
      const present = table.at(t, place, 'present');
      const each = value(t, place, present);
      if (Number.isFinite(each)) {
        sum += each * present;
        weight += present;
      }
    }
    return weight ? sum / weight : NaN;
  };
  const points = table.time.labels.map((label, t) => ({
    x: label,
    step: table.time.steps[t],
    epoch: table.time.epochs[t],
    changed: mean(t, (s, place) => table.at(s, place, changedColumn(pairs))),
    entropy: mean(t, (s, place) => table.at(s, place, 'entropy_q50')),
    ...Object.fromEntries(
      SHARED_ROLES.map(columnOf).map((name) => [
        name,
        mean(t, (s, place, present) =>
          pairs ? table.at(s, place, `pairs_${name}`) : table.at(s, place, `units_${name}`) / present,
        ),
      ]),
    ),
  }));
  const end = table.time.labels.length - 1;
  const doubtful = places.filter(([, place]) => table.doubt('doubt_roles', end, place)).length;
  return { run, points, doubtful, layers: places.length, ...ctx.palette.run(analysed(ctx).indexOf(run)) };
}

// The cursor is a step of one run; elsewhere the analysis at the same place of the axis is meant.
function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best), points[0]);
}

function cursorOf(ctx) {
  const time = ctx.cursorTime;
  return time ? time.labels[time.at] : NaN;
}

function small(ctx, lines, { title, value, share }, width) {
  const all = lines.flatMap(({ points }) => points.map((point) => point.x));
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const values = lines.flatMap(({ points }) => points.map(value)).filter(Number.isFinite);
  const at = cursorOf(ctx);
  const top = share ? [0.1, 0.25, 0.5, 0.75, 1].find((limit) => limit >= Math.max(0, ...values)) || 1 : 1;
  return h(
    'div',
    { class: 'card' },
    h('h3', {}, title),
    values.length
      ? chart({
          width,
          height: 210,
          margin: { left: 50 },
          xDomain: low < high ? [low, high] : [low - 0.5, high + 0.5],
          yDomain: share ? [0, top] : roundDomain(Math.min(...values), Math.max(...values)),
          yFormat: share ? (part) => percent(part, top < 0.2 ? 1 : 0) : undefined,
          xTicks: (low < high ? niceTicks(low, high, Math.max(2, Math.floor(width / 80))) : [low])
            .filter(Number.isInteger)
            .map((tick) => ({ at: tick, label: tick })),
          xLabel: ctx.state.get('axis'),
          label: 'Comparison of runs',
          cursor: at >= low && at <= high ? at : NaN,
          series: lines.map(({ run, points, colour, dash, doubtful }) => ({
            name: run.name,
            points: points.map((point) => [point.x, value(point)]),
            colour,
            dash,
            faded: doubtful > 0,
          })),
          marks: (x, y) =>
            lines.map(({ points, colour, run }) => {
              const point = nearest(points, at);
              return (
                Number.isFinite(value(point)) &&
                svg('circle', {
                  class: 'end',
                  cx: x(point.x),
                  cy: y(value(point)),
                  r: 3.5,
                  fill: colour,
                  'data-run': run.name,
                })
              );
            }),
          xSnap: (x) =>
            nearest(
              lines.flatMap(({ points }) => points),
              x,
            ).x,
          describe: (x) => [
            h('strong', {}, `${ctx.state.get('axis')} ${x}`),
            ...lines.map(({ run, points, colour }) =>
              h(
                'div',
                {},
                h('i', { class: 'swatch', style: `background: ${colour}` }),
                `${run.name}: ${share ? percent(value(nearest(points, x)), 1) : decimal(value(nearest(points, x)))}`,
              ),
            ),
          ],
        })
      : nothing('Not known for these runs.'),
  );
}

function latest(ctx, lines) {
  const at = cursorOf(ctx);
  return h(
    'div',
    { class: 'card full' },
    h('h3', {}, 'At the cursor, or the analysis nearest to it'),
    h(
      'table',
      { class: 'small runs-table' },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          ['run', 'analysis', 'shares', ...REAL_ROLES.map((code) => ctx.role(code).label), 'differs', 'entropy'].map(
            (text) => h('th', {}, text),
          ),
        ),
      ),
      h(
        'tbody',
        {},
        lines.map(({ run, points, colour, dash, doubtful, layers }) => {
          const point = nearest(points, at);
          return h(
            'tr',
            { class: doubtful ? 'doubtful' : null },
            h(
              'th',
              { scope: 'row' },
              lineKey(colour, dash),
              run.name,
              doubtful
                ? h(
                    'p',
                    { class: 'doubt' },
                    `too few images for the roles of ${doubtful} of ${plural(layers, 'layer')}`,
                  )
                : '',
            ),
            h('td', {}, `epoch ${point.epoch}`),
            h(
              'td',
              {},
              h(
                'div',
                { class: 'bar' },
                SHARED_ROLES.map(
                  (code) =>
                    Number.isFinite(point[columnOf(code)]) &&
                    h('i', {
                      'data-role': code,
                      style: `width: ${(100 * point[columnOf(code)]).toFixed(2)}%; background: var(--role-${code})`,
                    }),
                ),
              ),
            ),
            REAL_ROLES.map((code) => h('td', {}, percent(point[columnOf(code)]))),
            h('td', {}, percent(point.changed, 1)),
            h('td', {}, decimal(point.entropy)),
          );
        }),
      ),
    ),
  );
}

const lineKey = (colour, dash) =>
  svg(
    'svg',
    { class: 'line-sample', width: 26, height: 8, 'aria-hidden': true },
    svg('line', { x1: 0, x2: 26, y1: 4, y2: 4, stroke: colour, 'stroke-width': 2.5, 'stroke-dasharray': dash || null }),
  );

function chooser(ctx, loaded) {
  const chosen = new Set(loaded.map(({ run }) => run.name));
  const toggle = (name) => {
    const next = new Set(chosen);
    if (!next.delete(name)) next.add(name);
    ctx.set({ compared: JSON.stringify([...next]) });
  };
  return h(
    'fieldset',
    { class: 'card chooser' },
    h('legend', {}, plural(analysed(ctx).length, 'run')),
    analysed(ctx).map((run, place) => {
      const { colour, dash } = ctx.palette.run(place);
      return h(
        'label',
        {},
        h('input', { type: 'checkbox', checked: chosen.has(run.name), onchange: () => toggle(run.name) }),
        lineKey(colour, dash),
        h('span', {}, run.name),
      );
    }),
  );
}
