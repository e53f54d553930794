// Small pieces that several views share.
import { decimal, h, percent, whole } from '../dom.js';
import { ROLE, roleOf, STACK } from '../vocabulary.js';

export const explain = (title, text) => h('div', { class: 'explain' }, h('h2', {}, title), h('p', {}, text));

export const swatch = (code) =>
  h('i', { class: `swatch ${roleOf(code).fill}`, style: `background: var(--role-${code})` });

export function legend(ctx, codes = STACK) {
  return h(
    'ul',
    { class: 'legend', 'aria-label': 'Roles' },
    codes.map((code) => {
      const { label, meaning } = ctx.role(code);
      return h('li', { title: meaning }, swatch(code), label);
    }),
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
  return [
    head,
    roleLine,
    `useful (both) for ${percent(data.useful[place])} of the classes`,
    `entropy ${decimal(data.entropy_val[place])} nats val, ${decimal(data.entropy_train[place])} train`,
    `selective rate ${percent(data.selective_val[place])} val, ${percent(data.selective_train[place])} train`,
    `rank ${data.rank[place] + 1}, 1 is the most effective`,
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
