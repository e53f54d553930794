// Units x analyses as an image, one pixel a cell, drawn with as many screen pixels as there is room for.
// Only the rows in sight are drawn, so thousands of units cost no more than dozens.

import { analysisTicks, shortNumber } from './charts.js';
import { h, tooltip } from './dom.js';
import { ROLE, roleOf, STACK } from './vocabulary.js';

const LEFT = 68; // labels of units, and the strip of roles at the cursor
const BOTTOM = 40;
const TOP = 9;
const RIGHT = 10;
const STRIP = 8;
const CHANGE = 5; // width of the mark of a change

// Where each role stands in the stack; filled when the first raster is made, after the roles are known.
const PLACE = new Uint8Array(256);

// One of several units for each row, so that of all rows together each rank comes up as often as it should and shares
// are right to the eye: the unit at this place among those that are ranked by role or by a measure.
const placeIn = (size, row) => Math.floor(size * ((0.5 + 0.618034 * row) % 1));

// Of the roles of some units the one at a place; counted, not sorted, as there are few roles and many cells.
const tally = new Uint32Array(256);
function roleAt(place, roles, start, units) {
  tally.fill(0, 0, STACK.length);
  for (let i = 0; i < units.length; i++) tally[PLACE[roles[start + units[i]]]]++;
  let rank = 0;
  for (let left = place; left >= tally[rank]; rank++) left -= tally[rank];
  return STACK[rank];
}

function unitAt(place, values, start, units) {
  return [...units].sort((a, b) => values[start + a] - values[start + b])[place];
}

export class Raster {
  // onpick(unit, at), onopen(unit), describe(unit, at) -> lines
  constructor({ onpick, onopen, describe }) {
    Object.assign(this, { onpick, onopen, describe });
    STACK.forEach((code, place) => {
      PLACE[code] = place;
    });
    this.canvas = h('canvas', {});
    this.spacer = h('div', { class: 'raster-spacer' });
    this.element = h(
      'div',
      {
        class: 'raster',
        tabindex: 0,
        role: 'application',
        'aria-label': 'Units by analyses. Arrow up and down choose a unit, Enter inspects it.',
        onscroll: () => this.paint(),
        onpointermove: (event) => this.hover(event),
        onpointerleave: () => this.leave(),
        onclick: (event) => this.click(event),
        ondblclick: (event) => this.open(event),
        onkeydown: (event) => this.key(event),
      },
      this.canvas,
      this.spacer,
    );
    new ResizeObserver(() => this.model && this.layout()).observe(this.element);
  }

  // model: roles, values or null, range, units, order, at, from, selected, rowHeight, labels, axis, palette
  show(model) {
    const before = this.model;
    this.model = model;
    const same = before && ['roles', 'values', 'order', 'palette'].every((key) => before[key] === model[key]);
    if (!same) this.image = null;
    this.layout();
  }

  // So many rows, each for one unit, or for several units where there is less room.
  render({ roles, values, range, units, order, palette, labels }, rows) {
    const columns = labels.length;
    const image = new ImageData(columns, Math.max(1, rows));
    const pixels = new Uint32Array(image.data.buffer);
    const scale = 255 / (range[1] - range[0] || 1);
    const shade = (at) => {
      if (roles[at] === ROLE.REMOVED) return palette.rolePixels[ROLE.REMOVED];
      if (!Number.isFinite(values[at])) return palette.missingPixel;
      return palette.ramp[Math.min(255, Math.max(0, Math.round((values[at] - range[0]) * scale)))];
    };
    for (let row = 0; row < rows; row++) {
      const together = order.slice(
        Math.floor((row * order.length) / rows),
        Math.floor(((row + 1) * order.length) / rows),
      );
      const place = placeIn(together.length, row);
      for (let t = 0; t < columns; t++) {
        const start = t * units;
        pixels[row * columns + t] = values
          ? shade(start + unitAt(place, values, start, together))
          : palette.rolePixels[roleAt(place, roles, start, together)];
      }
    }
    const canvas = h('canvas', { width: columns, height: Math.max(1, rows) });
    canvas.getContext('2d').putImageData(image, 0, 0);
    return canvas;
  }

  layout() {
    const { order, labels, rowHeight } = this.model;
    const room = Math.min(640, Math.max(260, window.innerHeight - 340));
    const inner = room - TOP - BOTTOM;
    const fitting = inner / Math.max(1, order.length);
    this.row = rowHeight || Math.min(18, fitting < 1 ? fitting : Math.floor(fitting));
    const rows = this.row < 1 ? inner : order.length;
    if (this.image?.height !== Math.max(1, rows)) this.image = this.render(this.model, rows);
    const content = order.length * this.row;
    this.viewHeight = Math.min(room, content + TOP + BOTTOM);
    this.element.style.height = `${this.viewHeight}px`;
    this.spacer.style.height = `${Math.max(0, content + TOP + BOTTOM - this.viewHeight)}px`;
    this.width = this.element.clientWidth;
    this.column = Math.max(0.5, (this.width - LEFT - RIGHT) / Math.max(1, labels.length));
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.viewHeight * ratio);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.viewHeight}px`;
    this.paint();
  }

  paint() {
    const { model, row, column, width, viewHeight } = this;
    if (!model || !width) return;
    const { order, labels, palette, roles, units, at } = model;
    const context = this.canvas.getContext('2d');
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(this.element);
    const ink = style.getPropertyValue('--ink').trim();
    const faint = style.getPropertyValue('--ink-faint').trim();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, viewHeight);
    context.imageSmoothingEnabled = false;
    context.font = '11px Roboto, system-ui, sans-serif';

    const scroll = this.element.scrollTop;
    const bottom = viewHeight - BOTTOM;
    const first = Math.floor(scroll / row);
    const last = Math.min(order.length, Math.ceil((scroll + bottom - TOP) / row));
    const yOf = (place) => TOP + place * row - scroll;
    context.save();
    context.beginPath();
    context.rect(0, TOP, width, bottom - TOP);
    context.clip();
    const wide = labels.length * column;
    const hatch = context.createPattern(palette.hatch, 'repeat');
    context.fillStyle = hatch;
    context.fillRect(LEFT, yOf(first), wide, (last - first) * row);
    const [top, rows] = row < 1 ? [0, this.image.height] : [first, last - first];
    context.drawImage(this.image, 0, top, labels.length, rows, LEFT, yOf(first), wide, (last - first) * row);
    const every = Math.max(1, Math.round(1 / row));
    for (let place = first; place < last; place += every) {
      const code = roles[at * units + order[place]];
      context.fillStyle =
        roleOf(code).fill === 'hatched' ? hatch : palette.colour(code) || palette.colour(ROLE.NO_ROLE);
      context.fillRect(LEFT - STRIP - 3, yOf(place), STRIP, every * row + (row < 1 ? 0.5 : 0));
    }
    this.changes(context, first, last, yOf);
    if (row >= 5) this.lines(context, first, last, yOf, wide, palette.background);
    this.marks(context, yOf, wide, ink, bottom);
    context.restore();
    this.unitLabels(context, first, last, yOf, faint, bottom);

    context.fillStyle = faint;
    context.textAlign = 'center';
    for (const { at: place, label } of analysisTicks(labels, Math.max(2, Math.floor(wide / 60)))) {
      context.fillText(shortNumber(label), LEFT + (place + 0.5) * column, bottom + 15);
    }
    context.fillText(model.axis, LEFT + wide / 2, bottom + 32);
  }

  // Beside the column of the cursor, what changed since the analysis before.
  changes(context, first, last, yOf) {
    const { order, changed, at, palette } = this.model;
    if (!changed) return;
    context.fillStyle = palette.change;
    const left = LEFT + at * this.column;
    for (let place = first; place < last; place++)
      if (changed[order[place]]) context.fillRect(left, yOf(place), CHANGE, Math.max(1, this.row));
  }

  // Thin gaps let single units be told apart once there is room for them.
  lines(context, first, last, yOf, wide, colour) {
    context.fillStyle = colour;
    for (let place = first; place <= last; place++)
      context.fillRect(LEFT - STRIP - 3, yOf(place) - 0.5, wide + STRIP + 3, 1);
  }

  unitLabels(context, first, last, yOf, colour, bottom) {
    const { row, model } = this;
    context.fillStyle = colour;
    context.textAlign = 'right';
    const sorted = model.sort === 'unit';
    const every = row >= 11 ? 1 : sorted ? Math.ceil(22 / row / 4) * 4 : Math.ceil(26 / row);
    for (let place = Math.ceil(first / every) * every; place < last; place += every) {
      const y = yOf(place) + row / 2;
      if (y >= TOP - 2 && y <= bottom) context.fillText(String(model.order[place]), LEFT - STRIP - 8, y + 4);
    }
    context.save();
    context.translate(11, (TOP + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = 'center';
    if (bottom - TOP > 90) context.fillText(sorted ? 'unit' : 'unit, sorted', 0, 0);
    context.restore();
  }

  marks(context, yOf, wide, ink, bottom) {
    const { model, row, column } = this;
    context.strokeStyle = ink;
    const box = (at, dash) => {
      const place = [LEFT + at * column - 0.5, TOP - 1, Math.max(3, column) + 1, bottom - TOP + 2];
      context.setLineDash([]);
      context.strokeStyle = model.palette.background; // seen on dark roles, as the line itself is on light ones
      context.lineWidth = 2;
      context.strokeRect(place[0] - 1.75, place[1], place[2] + 3.5, place[3]);
      context.setLineDash(dash);
      context.strokeStyle = ink;
      context.lineWidth = 1.5;
      context.strokeRect(...place);
    };
    box(model.at, []);
    if (model.from !== undefined && model.from !== null) box(model.from, [4, 3]);
    context.setLineDash([]);
    const place = model.order.indexOf(model.selected);
    if (place < 0) return;
    context.lineWidth = 2;
    context.strokeRect(LEFT - STRIP - 4, yOf(place) - 1, wide + STRIP + 5, row + 2);
  }

  cell(event) {
    const box = this.element.getBoundingClientRect();
    const y = event.clientY - box.top;
    if (!this.model || y < TOP || y > this.viewHeight - BOTTOM) return null;
    const place = Math.floor((y - TOP + this.element.scrollTop) / this.row);
    const at = Math.floor((event.clientX - box.left - LEFT) / this.column);
    if (place < 0 || place >= this.model.order.length || at < -1 || at >= this.model.labels.length) return null;
    return { unit: this.model.order[place], at: at < 0 ? this.model.at : at };
  }

  hover(event) {
    const cell = this.cell(event);
    if (cell) tooltip.show(event, ...this.describe(cell.unit, cell.at));
    else tooltip.hide();
  }

  leave() {
    tooltip.hide();
  }

  click(event) {
    const cell = this.cell(event);
    if (cell) this.onpick(cell.unit, cell.at);
  }

  open(event) {
    const cell = this.cell(event);
    if (cell) this.onopen(cell.unit);
  }

  key(event) {
    const { order, selected } = this.model;
    const move = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (move && order.length) {
      event.preventDefault();
      const place = order.indexOf(selected);
      const next = place < 0 ? 0 : Math.min(order.length - 1, Math.max(0, place + move));
      this.reveal(next);
      this.onpick(order[next], this.model.at);
    } else if (event.key === 'Enter' && order.includes(selected)) {
      this.onopen(selected);
    }
  }

  reveal(place) {
    const top = place * this.row;
    const room = this.viewHeight - TOP - BOTTOM;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + this.row > this.element.scrollTop + room) this.element.scrollTop = top + this.row - room;
  }
}
