// Names, meanings and colours of the roles. They come from the server when the tab starts; no script repeats them.

export const ROLE = {}; // codes by name
export const STACK = []; // all codes, from the bottom of a stack of shares to its top
export const REAL_ROLES = []; // those that say what a unit is good for
export const SHARED_ROLES = []; // the same and "undecided": what the shares of a layer add up from
export const background = {};
export const glossary = []; // [{name, meaning}]

const byCode = new Map();
const real = new Uint8Array(256);

export function adopt(vocabulary) {
  Object.assign(background, vocabulary.background);
  glossary.push(...vocabulary.glossary);
  for (const role of vocabulary.roles) {
    byCode.set(role.code, role);
    ROLE[role.name] = role.code;
    STACK.push(role.code);
    if (role.fill !== 'empty') SHARED_ROLES.push(role.code);
    if (role.fill !== 'solid') continue;
    REAL_ROLES.push(role.code);
    real[role.code] = 1;
  }
}

export const isRole = (code) => real[code] === 1;
export const roleOf = (code) => byCode.get(code) || { code, label: String(code), meaning: '', fill: 'empty' };
// The part of the name of a column in the overview.
export const columnOf = (code) => roleOf(code).name.toLowerCase();

// What fills an area of an SVG; index.js puts the pattern into the page.
export const fillOf = (code) => (roleOf(code).fill === 'hatched' ? 'url(#hatched)' : `var(--role-${code})`);
