// From which role to which: two analyses compared unit by unit.
import { changedBetween, transitions as countTransitions, hasContributions } from '../derive.js';
import { h, percent, plural, select } from '../dom.js';
import { REAL_ROLES, ROLE, SHARED_ROLES } from '../vocabulary.js';
import { explain, NO_ROLES, nothing, swatch } from './parts.js';
import { BEFORE, fromOf, rasterData, rasterPanel } from './units.js';

export const transitions = {
  id: 'transitions',
  tab: 'Transitions',
  uses: ['run', 'layer', 'class'],
  create(ctx, root) {
    const panel = rasterPanel(ctx, { from: (time) => fromOf(ctx, time) });
    const matrix = h('div', { class: 'matrix-side' });
    root.append(
      explain(
        'Which units went from which role to which',
        'Rows are the roles at the analysis chosen below, columns those at the cursor. Large numbers on the ' +
          'diagonal are units that stayed what they were. Click a cell to see only its units in the raster, click ' +
          'it again to see all.',
      ),
      h('div', { class: 'split' }, matrix, panel.element),
    );
    return {
      load: () => rasterData(ctx, { compared: true }),
      draw(data) {
        matrix.replaceChildren(...draw(ctx, data));
        panel.show(data);
        ctx.complete(data, () => panel.show(data));
      },
    };
  },
};

function draw(ctx, data) {
  const time = ctx.time(data);
  if (!time.steps.length) return [nothing('No analysis of this layer was logged.')];
  const from = fromOf(ctx, time);
  const counts = countTransitions(data.roles, data.units, from, time.at);
  const number = (before, after) => counts.get(`${before}-${after}`) || 0;
  const among = (code) => SHARED_ROLES.some((other) => number(code, other) + number(other, code) > 0);
  const codes = SHARED_ROLES.filter((code) => REAL_ROLES.includes(code) || among(code));
  const gone = codes.some((code) => number(code, ROLE.REMOVED) > 0);
  const columns = gone ? [...codes, ROLE.REMOVED] : codes;
  const total = codes.reduce(
    (sum, before) => sum + columns.reduce((inner, after) => inner + number(before, after), 0),
    0,
  );
  const picker = select(
    'From',
    [[BEFORE, 'the analysis before'], ...Array.from(time.steps, (step, at) => [String(step), ctx.when(time, at)])],
    ctx.state.get('from') === BEFORE ? BEFORE : String(time.steps[from]),
    (step) => ctx.set({ from: Number(step) === time.steps[0] ? '' : step, filter: '' }),
  );
  const head = h('div', { class: 'options' }, picker, h('span', {}, `to the cursor, ${ctx.when(time, time.at)}`));
  if (!total) return [head, nothing(NO_ROLES)];
  const stayed = codes.reduce((sum, code) => sum + number(code, code), 0);
  const backwards = from > time.at;
  return [
    head,
    table(ctx, codes, columns, number),
    h(
      'p',
      { class: 'note' },
      `${percent(stayed / total)} of ${plural(total, 'unit')} have the same role at both analyses. `,
      certain(ctx, data, from, time.at),
      'Percentages are shares of a row.',
      backwards && ' The cursor is before the first analysis: this reads back in time.',
    ),
  ];
}

// Roles may differ by chance; a change is what error bars do not explain.
function certain(ctx, data, from, to) {
  if (ctx.klass !== 'all' || !hasContributions(data)) return '';
  const count = changedBetween(data, from, to).reduce((sum, one) => sum + one, 0);
  return `${plural(count, 'unit')} changed beyond the error bars. `;
}

function table(ctx, codes, columns, number) {
  const filter = ctx.state.get('filter');
  const cell = (before, after, sum) => {
    const units = number(before, after);
    const key = `${before}-${after}`;
    const share = sum ? units / sum : 0;
    const pair = `${ctx.role(before).label} to ${ctx.role(after).label}`;
    const label = `${pair}: ${plural(units, 'unit')}, ${percent(share)} of the row`;
    return h(
      'td',
      { class: before === after ? 'stay' : null },
      h(
        'button',
        {
          'data-cell': key,
          'aria-pressed': String(filter === key),
          title: label,
          disabled: units === 0,
          style: `--share: ${(100 * share).toFixed(1)}%`,
          onclick: () => ctx.set({ filter: filter === key ? '' : key }),
        },
        h('b', {}, units ? String(units) : '·'),
        units > 0 && h('small', {}, percent(share)),
      ),
    );
  };
  return h(
    'table',
    { class: 'matrix' },
    h(
      'thead',
      {},
      h(
        'tr',
        {},
        h('th', {}, 'before ↓ · at the cursor →'),
        columns.map((code) => h('th', { scope: 'col' }, swatch(code), ctx.role(code).label)),
        h('th', {}, 'all'),
      ),
    ),
    h(
      'tbody',
      {},
      codes.map((before) => {
        const sum = columns.reduce((total, after) => total + number(before, after), 0);
        return h(
          'tr',
          {},
          h('th', { scope: 'row' }, swatch(before), ctx.role(before).label),
          columns.map((after) => cell(before, after, sum)),
          h('td', { class: 'sum' }, String(sum)),
        );
      }),
    ),
    h(
      'tfoot',
      {},
      h(
        'tr',
        {},
        h('th', {}, 'all'),
        columns.map((after) =>
          h('td', { class: 'sum' }, String(codes.reduce((total, before) => total + number(before, after), 0))),
        ),
        h('td', {}),
      ),
    ),
  );
}
