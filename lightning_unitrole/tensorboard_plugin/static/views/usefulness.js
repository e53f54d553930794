// What one unit contributes: to each class at the cursor, and over all classes as time goes by.
import { chart, interactive, linear, niceTicks, overTime, roundDomain, shortNumber } from '../charts.js';
import { h, signed, svg, whole } from '../dom.js';
import { contribution } from './parts.js';

// What the codes of effects stand for.
export const EFFECTS = ['hurts', 'no effect measurable', 'helps'];

const SIDES = [
  ['train', 'training', 'var(--line-train)', 5],
  ['val', 'validation', 'var(--line-val)', -4],
];
const ROW = 26;
const LABEL = 120;
const ERRORS = 2; // half the length of an error bar, in standard errors

export function usefulness(ctx, data, byClass, time, width, present) {
  return h(
    'div',
    { class: 'split even' },
    h(
      'div',
      { class: 'card' },
      h('h3', {}, `Contribution by class at ${ctx.when(time, time.at)}`),
      bars(ctx, byClass, width),
      byClass.classes.length < ctx.run.num_classes &&
        h(
          'p',
          { class: 'note' },
          `The ${byClass.classes.length} of ${whole(ctx.run.num_classes)} classes to which it contributes most, for ` +
            'better or worse.',
        ),
      key(),
    ),
    h(
      'div',
      { class: 'card' },
      h('h3', {}, 'Contribution over all classes'),
      history(ctx, data, time, width, present),
      key(),
    ),
  );
}

const key = () =>
  h(
    'p',
    { class: 'key' },
    SIDES.map(([, label, colour]) => [h('i', { class: 'dot-key', style: `background: ${colour}` }), label]),
    `, nats; ± ${ERRORS} standard errors. Above 0 it helps, below 0 it hurts.`,
  );

const ends = (data, side, at) => {
  const [mean, error] = [data[`contribution_${side}`][at], data[`error_${side}`][at]];
  return [mean - ERRORS * (error || 0), mean + ERRORS * (error || 0)];
};

// The classes of the bars, by name.
const classesOf = (ctx, data) => Array.from(data.classes, (index) => ctx.run.every_class[index] ?? `class ${index}`);

// A dot with its error bar for each class and side.
function bars(ctx, data, width) {
  const names = classesOf(ctx, data);
  const all = SIDES.flatMap(([side]) => names.flatMap((_, klass) => ends(data, side, klass))).filter(Number.isFinite);
  const domain = roundDomain(Math.min(0, ...all), Math.max(0, ...all));
  const x = linear(domain, [LABEL, width - 16]);
  const bottom = names.length * ROW + 4;
  const middle = (klass) => klass * ROW + ROW / 2 + 2;
  const words = (klass) => SIDES.map(([side, label]) => `${label} ${contribution(data, side, klass)}`).join(', ');
  const root = svg(
    'svg',
    {
      class: 'chart by-class',
      width,
      height: bottom + 38,
      role: 'img',
      'aria-label': names.map((name, klass) => `${name}: ${words(klass)}`).join('; '),
    },
    niceTicks(...domain, 5).map((tick) => [
      svg('line', { class: tick ? 'grid' : 'cursor', x1: x(tick), x2: x(tick), y1: 2, y2: bottom }),
      svg('text', { class: 'tick', x: x(tick), y: bottom + 15, 'text-anchor': 'middle' }, shortNumber(tick)),
    ]),
    names.map((name, klass) => [
      svg(
        'text',
        { class: 'tick', x: LABEL - 8, y: middle(klass) + 4, 'text-anchor': 'end' },
        name.length > 18 ? `${name.slice(0, 17)}…` : name,
      ),
      SIDES.filter(([side]) => Number.isFinite(data[`contribution_${side}`][klass])).map(([side, , colour, shift]) => {
        const [low, high] = ends(data, side, klass);
        const y = middle(klass) + shift;
        return svg(
          'g',
          { 'data-class': name, 'data-side': side },
          svg('line', { x1: x(low), x2: x(high), y1: y, y2: y, stroke: colour, 'stroke-width': 2 }),
          svg('circle', { cx: x(data[`contribution_${side}`][klass]), cy: y, r: 4, fill: colour }),
          svg('title', {}, `${name}: ${words(klass)}`),
        );
      }),
    ]),
    svg(
      'text',
      { class: 'axis-label', x: (LABEL + width - 16) / 2, y: bottom + 33, 'text-anchor': 'middle' },
      'contribution (nats)',
    ),
  );
  return interactive(root, { x, xDomain: domain, margin: { left: 0, right: 0 }, width, top: 0, bottom });
}

function history(ctx, data, time, width, present) {
  const points = (side) => Array.from(time.steps, (_, t) => [t, data[`contribution_${side}`][t]]);
  const band = (side) => Array.from(time.steps, (_, t) => [t, ...ends(data, side, t)]);
  const all = SIDES.flatMap(([side]) => band(side).flatMap(([, low, high]) => [low, high])).filter(Number.isFinite);
  return chart({
    ...overTime(time, width, ctx),
    height: Math.max(220, Math.min(320, ctx.run.num_classes * ROW + 42)),
    yDomain: roundDomain(Math.min(0, ...all), Math.max(0, ...all)),
    yLabel: 'contribution (nats)',
    yFormat: shortNumber,
    bands: SIDES.map(([side, , colour]) => ({ points: band(side), colour, opacity: 0.15 })),
    series: SIDES.map(([side, name, colour]) => ({
      name,
      points: present(points(side)),
      colour,
      width: side === 'val' ? 2.5 : 1.5,
    })),
    describe: (t) => [
      h('strong', {}, ctx.when(time, t)),
      ...SIDES.map(([side, label]) => `${label}: ${contribution(data, side, t)} nats`),
      `${signed(data.contribution_val[t], 3)} nats is what it adds to the margin of an image`,
    ],
  });
}
