// One kind of chart for all views: lines and bands over a linear axis, with the cursor of the tab in it.
import { svg, tooltip } from './dom.js';

const MARGIN = { top: 14, right: 18, bottom: 38, left: 62 };

// A domain that holds the values with some air, and ends on round numbers.
export function roundDomain(low, high) {
  const air = (high - low) * 0.05 || 0.1;
  const ticks = niceTicks(low - air, high + air, 6);
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 0.1;
  return [
    Math.max(Math.min(0, low), ticks[0] - (ticks[0] > low - air ? step : 0)),
    Math.max(high, ticks[ticks.length - 1] + (ticks[ticks.length - 1] < high + air ? step : 0)),
  ];
}

export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  scale.invert = (at) => low + ((at - from) / (to - from || 1)) * span;
  return scale;
}

export function niceTicks(low, high, wanted = 5, whole = false) {
  if (!(high > low)) return [low];
  const raw = Math.max((high - low) / wanted, whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = (whole && power < 10 ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10])
    .map((m) => m * power)
    .find((candidate) => candidate >= raw * 0.999);
  const ticks = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step)
    ticks.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return ticks;
}

// Labels for an axis on which each analysis has the same room: at most so many, at round epochs or steps.
export function analysisTicks(labels, wanted) {
  const all = labels.map((label, at) => ({ at, label }));
  if (all.length <= wanted) return all;
  const round = niceTicks(labels[0], labels[labels.length - 1], wanted, labels.every(Number.isInteger));
  const chosen = round.map((value) => {
    let best = 0;
    for (let i = 1; i < labels.length; i++) if (Math.abs(labels[i] - value) < Math.abs(labels[best] - value)) best = i;
    return all[best];
  });
  return [...new Set(chosen)];
}

export const shortNumber = (value) => {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size >= 1000 ? value.toLocaleString('en-US') : String(+value.toPrecision(6));
};

const path = (points, x, y) => {
  let text = '';
  let pen = 'M';
  for (const [px, py] of points) {
    if (!Number.isFinite(py)) {
      pen = 'M';
      continue;
    }
    text += `${pen}${x(px).toFixed(1)},${y(py).toFixed(1)}`;
    pen = 'L';
  }
  return text;
};

const bandPath = (points, x, y) => {
  const runs = [[]];
  for (const point of points) {
    if (Number.isFinite(point[1])) runs[runs.length - 1].push(point);
    else runs.push([]);
  }
  return runs
    .filter((run) => run.length)
    .map((run) => {
      const upper = run.map(([px, , high]) => `${x(px).toFixed(1)},${y(high).toFixed(1)}`);
      const lower = run.map(([px, low]) => `${x(px).toFixed(1)},${y(low).toFixed(1)}`).reverse();
      return `M${[...upper, ...lower].join('L')}Z`;
    })
    .join('');
};

// What a chart shows for those who cannot see it: how each line with a name begins and ends.
function inWords({ label, yLabel, xLabel, yFormat = shortNumber }, series) {
  const lines = series.flatMap(({ name, points }) => {
    const values = points.map(([, y]) => y).filter(Number.isFinite);
    const format = (value) => yFormat(Number(value.toPrecision(3)));
    return name && values.length ? [`${name} from ${format(values[0])} to ${format(values[values.length - 1])}`] : [];
  });
  const what = [label || yLabel, xLabel && `over ${xLabel}`].filter(Boolean).join(' ');
  return lines.length ? `${what}: ${lines.join(', ')}` : what;
}

// options: width, height, xDomain, yDomain, xTicks [{at, label}], yFormat, xLabel, yLabel, label (for screen readers),
// series [{points, colour, dash, width, name, dots, faded}], bands [{points: [x, low, high], colour, opacity}],
// cursor, onpick(x), describe(x) -> lines, marks: SVG nodes from (x, y) => nodes
export function chart(options) {
  const { width, height, xDomain, yDomain, series = [], bands = [] } = options;
  const margin = { ...MARGIN, ...options.margin };
  const x = linear(xDomain, [margin.left, width - margin.right]);
  const y = linear(yDomain, [height - margin.bottom, margin.top]);
  const bottom = height - margin.bottom;
  const yTicks =
    options.yTicks || niceTicks(yDomain[0], yDomain[1], Math.max(2, Math.floor((bottom - margin.top) / 42)));
  const format = options.yFormat || shortNumber;

  const grid = yTicks.map((value) => [
    svg('line', { class: 'grid', x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }),
    svg('text', { class: 'tick', x: margin.left - 7, y: y(value) + 3.5, 'text-anchor': 'end' }, format(value)),
  ]);
  const ticks = options.xTicks.map(({ at, label }) => [
    svg('line', { class: 'tickmark', x1: x(at), x2: x(at), y1: bottom, y2: bottom + 4 }),
    svg('text', { class: 'tick', x: x(at), y: bottom + 16, 'text-anchor': 'middle' }, shortNumber(label)),
  ]);
  const lines = series.map((line) => [
    svg('path', {
      class: 'line',
      d: path(line.points, x, y),
      stroke: line.colour,
      'stroke-width': line.width || 2,
      'stroke-dasharray': line.dash || null,
      'stroke-opacity': line.faded ? 0.35 : null,
    }),
    // A line of a single point would not be seen.
    (line.dots || line.points.length === 1) &&
      line.points
        .filter(([, py]) => Number.isFinite(py))
        .map(([px, py]) => svg('circle', { cx: x(px), cy: y(py), r: 3, fill: line.colour })),
  ]);
  const root = svg(
    'svg',
    {
      class: 'chart',
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: 'img',
      'aria-label': inWords(options, series),
    },
    grid,
    bands.map((band) =>
      svg('path', {
        class: 'band',
        d: bandPath(band.points, x, y),
        fill: band.colour,
        'fill-opacity': band.opacity ?? 0.2,
      }),
    ),
    svg('line', { class: 'axis', x1: margin.left, x2: width - margin.right, y1: bottom, y2: bottom }),
    ticks,
    options.under?.(x, y),
    Number.isFinite(options.cursor) &&
      svg('line', { class: 'cursor', x1: x(options.cursor), x2: x(options.cursor), y1: margin.top - 4, y2: bottom }),
    lines,
    options.marks?.(x, y),
    options.xLabel &&
      svg(
        'text',
        { class: 'axis-label', x: (margin.left + width - margin.right) / 2, y: height - 5, 'text-anchor': 'middle' },
        options.xLabel,
      ),
    options.yLabel &&
      svg(
        'text',
        {
          class: 'axis-label',
          transform: `translate(13 ${(margin.top + bottom) / 2}) rotate(-90)`,
          'text-anchor': 'middle',
        },
        options.yLabel,
      ),
  );
  return interactive(root, { ...options, x, margin, top: margin.top, bottom });
}

// Hovering describes the nearest x, clicking or dragging picks it.
export function interactive(root, { x, margin, width, top, bottom, xDomain, xSnap, onpick, describe }) {
  if (!onpick && !describe) return root;
  const hover = svg('line', { class: 'hover', y1: top - 4, y2: bottom, visibility: 'hidden' });
  const shield = svg('rect', {
    class: onpick ? 'shield pickable' : 'shield',
    x: margin.left,
    y: top,
    width: Math.max(0, width - margin.left - margin.right),
    height: Math.max(0, bottom - top),
  });
  const nearest = (event) => {
    const at = x.invert(event.clientX - root.getBoundingClientRect().left);
    const clamped = Math.min(xDomain[1], Math.max(xDomain[0], at));
    return xSnap ? xSnap(clamped) : Math.round(clamped);
  };
  shield.addEventListener('pointermove', (event) => {
    const at = nearest(event);
    hover.setAttribute('x1', x(at));
    hover.setAttribute('x2', x(at));
    hover.setAttribute('visibility', 'visible');
    if (describe) tooltip.show(event, ...describe(at));
    if (onpick && event.buttons & 1) onpick(at);
  });
  shield.addEventListener('pointerleave', () => {
    hover.setAttribute('visibility', 'hidden');
    tooltip.hide();
  });
  if (onpick) shield.addEventListener('pointerdown', (event) => onpick(nearest(event)));
  root.append(hover, shield);
  return root;
}

// Options of a chart whose x axis is the analyses of one run, with the cursor of the tab on it.
export function overTime(time, width, ctx) {
  const margin = { ...MARGIN };
  const room = Math.max(2, Math.floor((width - margin.left - margin.right) / 64));
  const last = Math.max(time.labels.length - 1, 1);
  return {
    width,
    xDomain: time.labels.length > 1 ? [0, last] : [-0.5, 0.5],
    xTicks: analysisTicks(time.labels, room),
    xLabel: time.axis,
    cursor: time.at,
    onpick: (at) => ctx.pick(time, at),
  };
}
