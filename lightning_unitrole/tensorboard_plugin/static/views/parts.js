// Small pieces that several views share.
import { decimal, h, percent, signed, whole } from '../dom.js';
import { ROLE, roleOf, STACK } from '../vocabulary.js';
import { ordered } from './doubts.js';

export const explain = (title, text) => h('div', { class: 'explain' }, h('h2', {}, title), h('p', {}, text));

export const swatch = (code) =>
  h('i', { class: `swatch ${roleOf(code).fill}`, style: `background: var(--role-${code})` });

// A mark and what it stands for, never torn apart at the end of a line.
export const keyItem = (mark, text) => h('span', { class: 'key-item' }, mark, text);

let unfolded = false; // stays as it is when a view is drawn anew

// The roles and, unfolded, one sentence on what each of them means.
export function legend(ctx, codes = STACK) {
  if (!codes.length) return '';
  const labels = codes.map((code) => h('span', { title: ctx.role(code).meaning }, swatch(code), ctx.role(code).label));
  const meanings = codes.map((code) => [
    h('dt', {}, swatch(code), ctx.role(code).label),
    h('dd', {}, ctx.role(code).meaning),
  ]);
  return h(
    'details',
    { class: 'legend', open: unfolded, ontoggle: (event) => (unfolded = event.target.open) },
    h('summary', {}, labels, h('small', {}, 'what they mean')),
    h('dl', {}, meanings),
  );
}

export function rampLegend(label, [low, high], note) {
  return h(
    'div',
    { class: 'ramp' },
    h('span', {}, label),
    h('span', {}, decimal(low)),
    h('i', { class: 'ramp-bar' }),
    h('span', {}, decimal(high)),
    note && h('small', {}, note),
  );
}

// A mean with its standard error.
export const contribution = (data, split, place) =>
  `${signed(data[`contribution_${split}`][place], 3)} ± ${decimal(data[`error_${split}`][place], 3)}`;

// What a unit is at one analysis, for tooltips.
export function describeUnit(ctx, data, time, unit, at, past) {
  const place = at * data.units + unit;
  const code = data.roles[place];
  const role = ctx.role(code);
  const head = h('strong', {}, `unit ${unit} · ${ctx.when(time, at)}`);
  const roleLine = h(
    'div',
    {},
    swatch(code),
    ctx.klass === 'all' ? role.label : `${role.label} for ${ctx.className(ctx.klass)}`,
  );
  if (code === ROLE.REMOVED) return [head, roleLine];
  const rest = data.rank
    ? [
        `useful (both) for ${percent(data.useful[place])} of the classes`,
        `entropy ${decimal(data.entropy_val[place])} nats val, ${decimal(data.entropy_train[place])} train`,
        `selective rate ${percent(data.selective_val[place])} val, ${percent(data.selective_train[place])} train`,
        ordered(ctx) && `rank ${data.rank[place] + 1} by ${ctx.run.criterion}`,
      ]
    : ['reading more …'];
  return [
    head,
    roleLine,
    ...rest,
    Number.isFinite(data.contribution_val?.[place]) &&
      `contribution ${contribution(data, 'val', place)} nats val, ${contribution(data, 'train', place)} train`,
    past &&
      `at the cursor: ${whole(past.changes[unit])} changes so far, ` +
        `same role since ${ctx.when(time, past.stable[unit])}`,
  ].filter(Boolean);
}

export const nothing = (...text) =>
  h(
    'div',
    { class: 'nothing' },
    text.map((line) => h('p', {}, line)),
  );

export const NO_ROLES = 'There are no roles here: this run was analysed without ablation, or the class had no images.';
