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
const SIDES = ['val', 'train'];

function changes(data, from, to) {
  const [before, after] = [rowOf(data, 'roles', from), rowOf(data, 'roles', to)];
  const [means, errors] = ['contribution', 'error'].map((what) =>
    SIDES.map((side) => [from, to].map((at) => rowOf(data, `${what}_${side}`, at))),
  );
  const known = [...means, ...errors].every(([a, b]) => a && b);
  const tested = (u) => known && errors[0].every((row) => Number.isFinite(row[u]));
  const beyond = (u, side) => {
    const [[a, b], [c, d]] = [means[side], errors[side]];
    return Math.abs(b[u] - a[u]) > CHANGE_ERRORS * Math.hypot(c[u], d[u]);
  };
  return (u) =>
    before[u] !== after[u] && isRole(before[u]) && isRole(after[u]) && (!tested(u) || beyond(u, 0) || beyond(u, 1));
}

// A field of all units at one analysis; null where it has not been read.
export function rowOf(data, name, at) {
  const { units } = data;
  if (data[name]) return data[name].subarray(at * units, (at + 1) * units);
  const place = data.beside ? data.beside.indexOf(at) : -1;
  return place < 0 ? null : data[`beside_${name}`].subarray(place * units, (place + 1) * units);
}

// Whether contributions were measured, as far as they have been read.
export const hasContributions = (data) =>
  Boolean((data.contribution_val ?? data.beside_contribution_val)?.some(Number.isFinite));

// Which units changed between two analyses, and between one and that before.
export function changedBetween(data, from, to) {
  const test = changes(data, from, to);
  return Uint8Array.from({ length: data.units }, (_, u) => test(u));
}
export const changedAt = (data, at) => changedBetween(data, Math.max(0, at - 1), at);

// For each unit: how often it changed up to step `until`, and since which step it has had the role it has there; null
// as long as not all contributions have been read.
export function history(data, until) {
  if (data.beside && !data.contribution_val) return null;
  const { roles, units } = data;
  const counted = new Uint16Array(units);
  const stable = new Uint16Array(units);
  for (let t = 1; t <= until; t++) {
    const row = t * units;
    const test = changes(data, t - 1, t);
    for (let u = 0; u < units; u++) {
      if (roles[row + u] === roles[row - units + u]) continue;
      stable[u] = t;
      if (test(u)) counted[u]++;
    }
  }
  return { changes: counted, stable };
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
  const { roles, units, entropy_val: measure } = data;
  const contribution = rowOf(data, 'contribution_val', at);
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
  const more = second ? Float64Array.from(indices, (u) => last(-second[u])) : new Float64Array(units);
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
