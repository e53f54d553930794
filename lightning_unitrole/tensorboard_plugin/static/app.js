// The frame around the views: what is chosen, the cursor, the keyboard, reloading, and which view is in sight.
import { Api } from './api.js';
import { indexOf } from './derive.js';
import { choice, h, keepFocus, plural, search, select, whole } from './dom.js';
import { buildFrame, emptyState, notice } from './frame.js';
import { watchDarkMode, watchReload } from './host.js';
import { Palette } from './palette.js';
import { State } from './state.js';
import { ablation } from './views/ablation.js';
import { warn } from './views/doubts.js';
import { entropy } from './views/entropy.js';
import { read } from './views/layers.js';
import { overview } from './views/overview.js';
import { pruning } from './views/pruning.js';
import { runs } from './views/runs.js';
import { transitions } from './views/transitions.js';
import { unit } from './views/unit.js';
import { units } from './views/units.js';
import { ROLE, roleOf } from './vocabulary.js';

const VIEWS = [overview, units, transitions, entropy, ablation, unit, runs, pruning];

const MANY_CLASSES = 30; // more are searched by name

export class App {
  constructor(root) {
    this.root = root;
    this.api = new Api();
    this.index = [];
    this.skipped = []; // what of the logs cannot be shown
    this.drawn = new Map();
    this.timings = {}; // milliseconds to draw each view
    this.loads = {}; // the same from the request on
    this.opened = null; // milliseconds from the opening of the frame to the first drawn view
    this.state = new State(() => this.refresh());
  }

  async start() {
    Object.assign(this, buildFrame(this, VIEWS));
    watchDarkMode((dark) => {
      this.palette = new Palette(dark);
      this.palette.apply(document.documentElement);
      this.refresh();
    });
    watchReload(() => this.reload());
    addEventListener('keydown', (event) => this.key(event));
    let waiting = 0;
    addEventListener('resize', () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.refresh(), 80);
    });
    window.unitRoles = this; // for scripts that drive the page
    window.focus(); // so that the keys work at once
    this.say(h('p', {}, 'Reading the logs …'));
    await this.reload();
  }

  // --- data ---

  async reload() {
    try {
      const { runs: index, skipped } = await this.api.runs();
      const key = (run) => JSON.stringify(run);
      const before = new Set(this.index.map(key));
      const unchanged = new Set(index.filter((run) => before.has(key(run))).map((run) => run.name));
      const asBefore = unchanged.size === index.length && JSON.stringify(skipped) === JSON.stringify(this.skipped);
      const same = this.index.length === index.length && asBefore && index.length > 0;
      if (same && !this.main.classList.contains('failed')) return;
      this.api.forget(unchanged);
      this.index = index;
      this.skipped = skipped;
      this.loaded = true;
      await this.refresh();
    } catch (error) {
      this.say([h('h2', {}, 'The roles could not be read'), h('p', {}, error.message)]);
    }
  }

  get run() {
    const wanted = this.index.find((run) => run.name === this.state.get('run'));
    return wanted || this.index.find((run) => run.layers.length) || this.index[0];
  }

  get layer() {
    const { layers } = this.run;
    const found = layers.findIndex((layer) => layer.name === this.state.get('layer'));
    const place = found < 0 ? layers.length - 1 : found;
    return { ...layers[place], index: place };
  }

  // The views that the run in sight has something for.
  get views() {
    return VIEWS.filter((view) => (view.alone ? this.run.pruned : this.run.layers.length > 0));
  }

  get view() {
    return this.views.find(({ id }) => id === this.state.get('view')) || this.views[0];
  }

  // 'all', or the place of a class
  get klass() {
    const place = Number(this.state.get('klass'));
    return this.state.get('klass') !== 'all' && place >= 0 && place < this.run.classes.length ? place : 'all';
  }

  set(patch) {
    this.state.set(patch);
  }

  // Where the cursor is among the steps of some data, and how to label them.
  time({ steps, epochs }) {
    const byEpoch = this.state.get('axis') === 'epoch';
    return {
      steps,
      epochs,
      labels: Array.from(byEpoch ? epochs : steps),
      axis: byEpoch ? 'epoch' : 'step',
      at: indexOf(steps, this.state.get('step')),
    };
  }

  when(time, at) {
    return `epoch ${whole(time.epochs[at])}, step ${whole(time.steps[at])}`;
  }

  pick(time, at) {
    this.set({ step: at >= time.steps.length - 1 ? '' : time.steps[at] });
  }

  // Some fields of the layer in sight; roles are those of the chosen class, or over all classes. Contributions may be
  // those of a few steps alone.
  async unitData(fields, steps = null) {
    const { run, layer, klass } = this;
    const data = await (steps
      ? this.api.layerBeside(run.name, layer.index, fields, steps)
      : this.api.layer(run.name, layer.index, fields));
    if (klass === 'all' || !layer.parts.includes('classes')) return { ...data, units: layer.units };
    const byClass = await this.api.classRoles(run.name, layer.index, klass);
    if (byClass.steps.length === data.steps.length) return { ...data, roles: byClass.roles, units: layer.units };
    const roles = new Uint8Array(data.roles.length).fill(ROLE.NO_ROLE);
    const place = new Map(Array.from(byClass.steps, (step, at) => [step, at]));
    Array.from(data.steps).forEach((step, at) => {
      if (!place.has(step)) return;
      const row = place.get(step) * layer.units;
      roles.set(byClass.roles.subarray(row, row + layer.units), at * layer.units);
    });
    return { ...data, roles, units: layer.units };
  }

  // What a view can be drawn without is read when it stands: all other fields of its data, for those who ask for more.
  async complete(data, done) {
    if ('rank' in data) return;
    const { run, layer, token } = this;
    this.completing = (this.completing || 0) + 1;
    try {
      await new Promise((resolve) => setTimeout(resolve));
      const more = await this.api.rest(run.name, layer.index);
      if (more.steps.length !== data.steps.length) return;
      for (const name in more) data[name] ??= more[name];
      if (token === this.token) done();
    } catch {
      // It stays as it is; whoever asks for what is missing is told nothing of it.
    } finally {
      this.completing -= 1;
    }
  }

  // What of the logs cannot be shown, with names of layers in the place of their numbers.
  named(skipped) {
    const layerOf = (run, layer) => this.index.find(({ name }) => name === run)?.layers[layer]?.name;
    return skipped.map((each) => ({ ...each, layer: layerOf(each.run, each.layer) }));
  }

  role(code) {
    return roleOf(code);
  }

  className(place) {
    return place === 'all' ? 'all classes' : this.run.class_names[place];
  }

  // --- drawing ---

  // Scripts that drive the page wait for this.
  get idle() {
    return this.loaded && !this.busy && !this.completing;
  }

  async refresh() {
    if (!this.loaded || !this.palette) return;
    this.token = (this.token || 0) + 1;
    const { token } = this;
    if (!this.index.length) {
      this.notice.replaceChildren();
      this.cursor.hidden = this.controls.hidden = true;
      for (const tab of this.tabs.querySelectorAll('[role=tab]')) tab.hidden = true;
      return this.say(emptyState(this.skipped));
    }
    this.busy = true;
    const asked = performance.now();
    const { view } = this;
    for (const [id, panel] of this.panels) panel.hidden = id !== view.id;
    for (const tab of this.tabs.querySelectorAll('[role=tab]')) {
      tab.setAttribute('aria-selected', tab.id === `tab-${view.id}`);
      tab.tabIndex = tab.id === `tab-${view.id}` ? 0 : -1;
      tab.hidden = !this.views.some(({ id }) => tab.id === `tab-${id}`);
    }
    this.drawControls(view);
    this.cursor.hidden = Boolean(view.alone);
    const panel = this.panels.get(view.id);
    if (!this.drawn.has(view.id)) this.drawn.set(view.id, view.create(this, panel));
    const instance = this.drawn.get(view.id);
    const slow = setTimeout(() => {
      panel.classList.add('loading');
      this.progress.hidden = !this.message.hidden; // which says so itself at first
    }, 200);
    try {
      const analysed = this.run.layers.length > 0;
      const [steps, data] = await Promise.all([analysed && this.api.overview(this.run.name), instance.load()]);
      if (token !== this.token) return;
      this.notice.replaceChildren(...notice([...this.skipped, ...this.named(this.api.skipped())]));
      if (analysed && !steps.steps.length) {
        const why = steps.info.skipped.join(' ');
        throw new Error(`there is no analysis of the run “${this.run.name}” to show. ${why}`);
      }
      this.message.hidden = true;
      this.main.classList.remove('failed');
      if (analysed) {
        this.drawCursor(this.time(steps));
        this.table = read(this, steps);
      }
      this.doubt.replaceChildren(...(view.alone ? [] : warn(this, view.id, panel)));
      const start = performance.now();
      keepFocus(() => instance.draw(data));
      panel.getBoundingClientRect(); // so that the layout is part of the measured time
      this.keep(this.timings, view.id, performance.now() - start);
      this.keep(this.loads, view.id, performance.now() - asked);
      this.opened ??= performance.now();
      panel.dataset.drawn = String(Number(panel.dataset.drawn || 0) + 1);
    } catch (error) {
      if (token !== this.token) return;
      console.error(error);
      this.say([h('h2', {}, 'This view could not be drawn'), h('p', {}, error.message)]);
    } finally {
      clearTimeout(slow);
      panel.classList.remove('loading');
      if (token === this.token) {
        this.progress.hidden = true;
        this.busy = false;
      }
    }
  }

  // The slowest of each view.
  keep(times, view, milliseconds) {
    times[view] = Math.max(times[view] || 0, milliseconds);
  }

  say(content) {
    this.message.replaceChildren(...[content].flat());
    this.message.hidden = false;
    this.main.classList.add('failed');
  }

  drawControls(view) {
    const { run } = this;
    const { layer, klass } = run.layers.length ? this : {};
    const uses = new Set(view.uses);
    const fields = [];
    const pickRun = (name) => this.set({ run: name, step: '', from: '', filter: '' });
    if (uses.has('run'))
      fields.push(
        select(
          'Run',
          this.index.map(({ name }) => [name, name]),
          run.name,
          pickRun,
        ),
      );
    if (uses.has('layer')) {
      const describe = ({ name, units }) => `${name || '(the model itself)'} · ${plural(units, 'unit')}`;
      fields.push(
        select(
          'Layer',
          run.layers.map((each) => [each.name, describe(each)]),
          layer.name,
          (name) => this.set({ layer: name, unit: '', filter: '' }),
        ),
      );
    }
    if (uses.has('class')) {
      const more = run.num_classes - run.classes.length;
      const field = run.classes.length > MANY_CLASSES ? search : select;
      const options = [
        ['all', view.allClasses || 'All classes together'],
        ...run.class_names.map((name, place) => [String(place), name]),
      ];
      fields.push(
        field('Class', options, String(klass), (value) => this.set({ klass: value, filter: '' }), {
          title: more > 0 ? `${more} more classes are part of "all" but were not logged one by one` : null,
        }),
      );
    }
    const signature = JSON.stringify([view.id, run, layer?.name, klass, this.index.map(({ name }) => name)]);
    if (this.controls.dataset.signature === signature) return; // keeps the focus where it is
    this.controls.dataset.signature = signature;
    keepFocus(() => this.controls.replaceChildren(...fields));
    this.controls.hidden = fields.length === 0;
  }

  drawCursor(time) {
    this.cursorTime = time;
    this.slider.max = Math.max(0, time.steps.length - 1);
    this.slider.value = time.at;
    this.slider.setAttribute('aria-valuetext', this.when(time, time.at));
    const latest = this.state.get('step') === '' ? ', the latest' : '';
    this.readout.replaceChildren(
      h('strong', {}, `epoch ${whole(time.epochs[time.at])}`),
      ` · step ${whole(time.steps[time.at])} · analysis ${time.at + 1} of ${time.steps.length}${latest}`,
    );
    const holder = this.cursor.querySelector('.axis-choice');
    if (holder.dataset.axis !== time.axis) {
      holder.dataset.axis = time.axis;
      holder.replaceChildren(
        choice(
          'Label',
          [
            ['epoch', 'epochs'],
            ['step', 'steps'],
          ],
          time.axis,
          (axis) => this.set({ axis }),
        ),
      );
    }
  }

  // --- the cursor ---

  moveTo(at) {
    const time = this.cursorTime;
    if (time) this.pick(time, Math.min(time.steps.length - 1, Math.max(0, at)));
  }

  move(by) {
    if (this.cursorTime) this.moveTo(indexOf(this.cursorTime.steps, this.state.get('step')) + by);
  }

  play() {
    const stop = () => {
      clearInterval(this.playing);
      this.playing = 0;
      this.player.textContent = '▶';
    };
    if (this.playing) return stop();
    const length = this.cursorTime ? this.cursorTime.steps.length : 0;
    if (length < 2) return undefined;
    if (this.state.get('step') === '') this.moveTo(0);
    this.player.textContent = '❚❚';
    this.playing = setInterval(
      () => {
        this.move(1);
        if (this.state.get('step') === '') stop();
      },
      Math.max(120, Math.min(500, 12000 / length)),
    );
    return undefined;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.('select, textarea, input:not([type=range])');
    if (typing || this.help.open || !this.index.length) return;
    const actions = {
      ArrowLeft: () => this.move(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.move(event.shiftKey ? 10 : 1),
      Home: () => this.moveTo(0),
      End: () => this.moveTo(Infinity),
      '[': () => this.nextLayer(-1),
      ']': () => this.nextLayer(1),
      Escape: () => this.set({ filter: '' }),
      '?': () => this.help.showModal(),
      p: () => this.play(),
    };
    const view = /^[1-9]$/.test(event.key) && VIEWS[Number(event.key) - 1];
    if (view && this.views.includes(view)) actions[event.key] = () => this.set({ view: view.id });
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  nextLayer(by) {
    const { layers } = this.run;
    if (!layers.length) return;
    const next = Math.min(layers.length - 1, Math.max(0, this.layer.index + by));
    this.set({ layer: layers[next].name, unit: '', filter: '' });
  }
}
