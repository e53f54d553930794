// What is looked at. One flat object; whatever differs from the defaults is in the address.
import { readAddress, watchAddress, writeAddress } from './host.js';

const DEFAULTS = {
  view: 'overview',
  run: '',
  layer: '', // name
  klass: 'all', // 'all', or the place of a class among those that were logged
  step: '', // '' follows the latest analysis
  from: '', // first step of a transition; '' is the first analysis
  filter: '', // 'before-after': codes of two roles
  unit: '',
  map: '', // 'off' leaves the maps off the images of a unit
  sort: 'role',
  form: 'table', // of the overview
  order: '', // column by which the overview is sorted
  find: '', // part of the name of a layer
  colour: 'role',
  classes: '', // part of the name of a class
  page: '', // of classes
  measure: 'entropy',
  shares: 'pairs',
  axis: 'epoch',
  accuracy: 'accuracy',
  compared: '', // JSON list of runs; '' is the first few
  scope: '', // layer of the comparison; '' is all of them
  rows: '', // height of a row of the raster in pixels; '' fits
};

export class State {
  constructor(onchange) {
    this.values = { ...DEFAULTS, ...known(readAddress()) };
    this.onchange = onchange;
    watchAddress(() => {
      const next = { ...DEFAULTS, ...known(readAddress()) };
      if (JSON.stringify(next) !== JSON.stringify(this.values) && !this.pending) {
        this.values = next;
        this.onchange();
      }
    });
  }

  get(key) {
    return this.values[key];
  }

  set(patch) {
    const next = { ...this.values };
    for (const [key, value] of Object.entries(patch)) next[key] = String(value);
    if (Object.keys(next).every((key) => next[key] === this.values[key])) return;
    this.values = next;
    // Browsers allow few changes of the address a second; a dragged cursor makes many.
    clearTimeout(this.pending);
    this.pending = setTimeout(() => {
      this.pending = 0;
      writeAddress(Object.fromEntries(Object.entries(this.values).filter(([key, value]) => value !== DEFAULTS[key])));
    }, 150);
    this.onchange();
  }
}

function known(values) {
  return Object.fromEntries(Object.entries(values).filter(([key]) => key in DEFAULTS));
}
