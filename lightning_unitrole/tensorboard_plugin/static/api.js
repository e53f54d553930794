// Requests to the server, each made once until TensorBoard reloads.
import { unpack } from './unpack.js';

export const MEASURES = ['entropy_val', 'entropy_train', 'selective_val', 'selective_train', 'useful'];
export const CONTRIBUTIONS = ['contribution_train', 'contribution_val', 'error_train', 'error_val'];
const REST = ['rank', ...MEASURES, ...CONTRIBUTIONS, 'effect_train', 'effect_val'];
const FIELDS = ['roles', ...REST];

// A large layer takes tens of megabytes, so few are kept.
const KEEP = { layer: 6, beside: 3, classes: 6 };

async function request(path, parameters) {
  let response;
  try {
    response = await fetch(`./${path}?${new URLSearchParams(parameters)}`);
  } catch {
    throw new Error('TensorBoard does not answer. Has it been stopped? Start it again, then reload this page.');
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.error || `TensorBoard answered ${response.status} to ${path}.`);
}

// What roles are called and how they look; asked for once.
export const vocabulary = async () => (await request('vocabulary')).json();

const keyOf = (kind, parameters) => JSON.stringify([kind, parameters]);

// A step as the server takes it; '' is the latest.
function until(step) {
  const latest = Number.MAX_SAFE_INTEGER;
  const wanted = Math.floor(Number(step));
  return step !== '' && Number.isFinite(wanted) ? Math.min(latest, Math.max(0, wanted)) : latest;
}

export class Api {
  constructor() {
    this.cache = new Map();
  }

  // runs, and what of the logs is skipped: [{run, reason}]
  async runs() {
    return (await request('runs')).json();
  }

  // What the data that has been asked for leaves out: [{run, layer, reason}], each once.
  skipped() {
    const found = new Map();
    for (const { run, layer, skipped } of this.cache.values()) {
      for (const reason of skipped) found.set(JSON.stringify([run, layer, reason]), { run, layer, reason });
    }
    return [...found.values()];
  }

  // Forget what belongs to runs that have gone on; `unchanged` names the others.
  forget(unchanged) {
    for (const [key, { run }] of this.cache) if (!unchanged.has(run)) this.cache.delete(key);
  }

  overview(run) {
    return this.get('overview', { run });
  }

  // roles, rank and the measures of all units of a layer, or some of these fields, each [steps, units]
  layer(run, layer, fields = FIELDS) {
    return this.get('layer', { run, layer, fields: [...new Set(fields)].sort().join() });
  }

  // the same with contributions of a few steps, and of the ones before them, as beside_<field> [n, units]
  layerBeside(run, layer, fields, steps) {
    const at = [...new Set(steps.map(until))].join();
    const wanted = { run, layer, fields: [...new Set(fields)].sort().join(), beside: CONTRIBUTIONS.join(), at };
    return this.get('layer', wanted, 'beside');
  }

  // all that belongs to the roles of a layer
  rest(run, layer) {
    return this.layer(run, layer, REST);
  }

  // the same if it is here by now
  restNow(run, layer) {
    return this.cache.get(keyOf('layer', { run, layer, fields: [...REST].sort().join() }))?.value;
  }

  // the same of all units at the last step that is not after this one, each [1, units]; the latest for ''
  layerAt(run, layer, fields, step) {
    return this.get('layer', { run, layer, fields: fields.join(), until: until(step) }, 'row');
  }

  // all fields of one unit, each [steps, 1]
  unitFields(run, layer, unit) {
    return this.get('layer', { run, layer, fields: FIELDS.join(), unit }, 'row');
  }

  classRoles(run, layer, klass) {
    return this.get('classes', { run, layer, class: klass });
  }

  unit(run, layer, unit) {
    return this.get('unit', { run, layer, unit });
  }

  // contribution of a unit to each class at one step, with its standard error
  contributions(run, layer, unit, step) {
    return this.get('contributions', { run, layer, unit, step });
  }

  // the images that a unit responds to at one step, with their pixels, and its twins
  examples(run, layer, unit, step) {
    return this.get('examples', { run, layer, unit, step });
  }

  // what pruning did so far
  pruning(run) {
    return this.get('pruning', { run });
  }

  curves(run, layer, klass) {
    return this.get('curves', { run, layer, class: klass });
  }

  // Answers of one kind make room for others of that kind alone.
  get(path, parameters, kind = path) {
    const key = keyOf(kind, parameters);
    if (!this.cache.has(key)) {
      const alike = [...this.cache.keys()].filter((other) => JSON.parse(other)[0] === kind);
      if (alike.length >= (KEEP[kind] || 40)) this.cache.delete(alike[0]);
      const promise = request(path, parameters).then(async (response) => unpack(await response.arrayBuffer()));
      const entry = { run: parameters.run, layer: parameters.layer, skipped: [], promise };
      promise.then(
        (value) => {
          entry.value = value;
          entry.skipped = value.info.skipped;
        },
        () => this.cache.delete(key),
      );
      this.cache.set(key, entry);
    }
    return this.cache.get(key).promise;
  }
}
