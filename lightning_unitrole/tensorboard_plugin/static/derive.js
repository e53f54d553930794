// What the views compute from roles [steps, units] and measures; pure functions on flat typed arrays.
import { isRole, STACK } from './vocabulary.js';

// The roles to explain: the real ones where there are any, and what else occurs.
const seen = new WeakMap();
export function codesIn(roles) {
  if (!seen.has(roles)) {
    const any = roles.some(isRole);
    seen.set(
      roles,
      STACK.filter((code) => (any && isRole(code)) || roles.includes(code)),
    );
  }
  return seen.get(roles);
}

// Index of the last step that is not after `step`; the latest one for ''.
export function indexOf(steps, step) {
  if (step === '' || step === undefined || !Number.isFinite(Number(step))) return steps.length - 1;
  let found = 0;
  for (let i = 0; i < steps.length && steps[i] <= Number(step); i++) found = i;
  return found;
}

// Whether a unit changed between two analyses: its role differs, and where contributions were measured, one of them
// differs by more than so many standard errors of the difference. Both analyses look at the same images, so that
// their errors go together and the test is a careful one.
export const CHANGE_ERRORS = 2;
export function changed(data, unit, from, to) {
  const [a, b] = [from * data.units + unit, to * data.units + unit];
  if (data.roles[a] === data.roles[b] || !isRole(data.roles[a]) || !isRole(data.roles[b])) return false;
  const beyond = (side) => {
    const [mean, error] = [data[`contribution_${side}`], data[`error_${side}`]];
    return Math.abs(mean[b] - mean[a]) > CHANGE_ERRORS * Math.hypot(error[a], error[b]);
  };
  return !tested(data, a, b) || beyond('val') || beyond('train');
}

const tested = (data, ...places) => places.every((place) => Number.isFinite(data.error_val?.[place]));

// Which units changed since the analysis before, at one analysis.
export function changedAt(data, at) {
  return Uint8Array.from({ length: data.units }, (_, unit) => at > 0 && changed(data, unit, at - 1, at));
}

// For each unit: how often it changed up to step `until`, and since which step it has had the role it has there.
export function history(data, until) {
  const { roles, units } = data;
  const changes = new Uint16Array(units);
  const stable = new Uint16Array(units);
  for (let t = 1; t <= until; t++) {
    const row = t * units;
    for (let u = 0; u < units; u++) {
      if (roles[row + u] === roles[row - units + u]) continue;
      stable[u] = t;
      if (changed(data, u, t - 1, t)) changes[u]++;
    }
  }
  return { changes, stable };
}

// counts['before-after'] of units between two steps
export function transitions(roles, units, from, to) {
  const counts = new Map();
  for (let u = 0; u < units; u++) {
    const key = `${roles[from * units + u]}-${roles[to * units + u]}`;
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  return counts;
}

export function count(roles, units, at) {
  const counts = new Map();
  for (let u = 0; u < units; u++) {
    const code = roles[at * units + u];
    counts.set(code, (counts.get(code) || 0) + 1);
  }
  return counts;
}

// Quantiles of the finite values of one row. Long rows are counted instead of sorted: with so many bins that the
// error is that of the half-precision numbers themselves, and many times as fast.
const MANY = 512;
const FINE = 4096;
const counts = new Uint32Array(FINE);

function countedQuantiles(row, shares) {
  const [low, high] = extent(row);
  const scale = (FINE - 1) / (high - low || 1);
  let total = 0;
  counts.fill(0);
  for (const value of row) {
    if (Number.isNaN(value)) continue;
    counts[Math.round((value - low) * scale)]++;
    total++;
  }
  if (!total) return shares.map(() => NaN);
  const found = [];
  let bin = 0;
  let passed = counts[0];
  for (const share of shares) {
    while (passed <= share * (total - 1)) passed += counts[++bin];
    found.push(low + bin / scale);
  }
  return found;
}

export function quantiles(row, shares) {
  if (row.length > MANY) return countedQuantiles(row, shares);
  const finite = row.filter(Number.isFinite).sort();
  if (!finite.length) return shares.map(() => NaN);
  return shares.map((share) => {
    const at = share * (finite.length - 1);
    const low = Math.floor(at);
    return finite[low] + (at - low) * ((finite[low + 1] ?? finite[low]) - finite[low]);
  });
}

export function bins(values, low, high, size) {
  const counts = new Float64Array(size);
  for (const value of values) {
    if (Number.isFinite(value))
      counts[Math.min(size - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * size)))]++;
  }
  return counts;
}

// Units in the order in which the raster shows them. Ties keep the order of the unit numbers.
export function order(sort, data, at) {
  const { roles, units, entropy_val: measure, contribution_val: contribution } = data;
  const indices = Array.from({ length: units }, (_, u) => u);
  const last = (value) => (Number.isFinite(value) ? value : Infinity);
  const { changes, stable } = sort === 'stable' || sort === 'changes' ? history(data, at) : {};
  const keys = {
    unit: () => 0,
    role: (u) => STACK.indexOf(roles[at * units + u]),
    contribution: () => 0,
    stable: (u) => stable[u],
    changes: (u) => -changes[u],
    entropy: (u) => last(measure ? measure[at * units + u] : NaN),
  };
  const key = Float64Array.from(indices, keys[sort] || keys.unit);
  // Within a role, and by itself, what contributes most comes first.
  const second = sort === 'role' || sort === 'contribution' ? contribution : null;
  const more = second ? Float64Array.from(indices, (u) => last(-second[at * units + u])) : new Float64Array(units);
  const between = (a, b) => (a === b ? 0 : a - b);
  return indices.sort((a, b) => key[a] - key[b] || between(more[a], more[b]) || a - b);
}

export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low && Number.isFinite(value)) low = value;
    if (value > high && Number.isFinite(value)) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}
