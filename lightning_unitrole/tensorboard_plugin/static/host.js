// TensorBoard's page around the tab's frame: its dark mode, its reload button, and the address bar.
// All of it may be missing, as in a notebook; the tab then works without.

const PREFIX = 'p.unit_roles.';

function parentWindow() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null; // another origin
  }
}

const host = parentWindow();

const system = window.matchMedia('(prefers-color-scheme: dark)');
export const isDark = () => (host ? host.document.body.classList.contains('dark-mode') : system.matches);

export function watchDarkMode(callback) {
  const body = host?.document.body;
  const tell = () => callback(isDark());
  if (body) new MutationObserver(tell).observe(body, { attributes: true, attributeFilter: ['class'] });
  else system.addEventListener('change', tell);
  tell();
}

export function watchReload(callback) {
  if (!host) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    if (message.type === 'experimental.DataReloaded') callback();
    port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
  };
  host.postMessage('experimental.bootstrap', window.origin, [port2]);
}

// TensorBoard's own fonts, so that the tab looks like the rest of it. They belong to the page, not to frames within it.
export function borrowFonts() {
  if (!host) return;
  for (const sheet of host.document.styleSheets) {
    let rules = [];
    try {
      rules = sheet.cssRules;
    } catch {
      continue; // from another origin
    }
    for (const rule of rules) {
      const { style } = rule;
      const family = style?.getPropertyValue('font-family').replace(/["']/g, '');
      if (rule.constructor.name !== 'CSSFontFaceRule' || family !== 'Roboto') continue;
      const base = sheet.href || host.document.baseURI;
      const source = style
        .getPropertyValue('src')
        .replace(/url\(["']?([^"')]+)["']?\)/g, (_, url) => `url("${new URL(url, base).href}")`);
      const describe = (name) => style.getPropertyValue(name) || undefined;
      const face = new FontFace(family, source, {
        weight: describe('font-weight'),
        style: describe('font-style'),
        unicodeRange: describe('unicode-range'),
      });
      document.fonts.add(face);
    }
  }
}

const target = host || window;

function parse(hash) {
  const pairs = hash
    .replace(/^#/, '')
    .split('&')
    .map((part) => part.split('='));
  return pairs
    .filter((pair) => pair.length === 2)
    .map(([key, value]) => [decodeURIComponent(key), decodeURIComponent(value)]);
}

export function readAddress() {
  try {
    const own = parse(target.location.hash).filter(([key]) => key.startsWith(PREFIX));
    return Object.fromEntries(own.map(([key, value]) => [key.slice(PREFIX.length), value]));
  } catch {
    return {}; // a malformed escape in an address that was edited by hand
  }
}

export function writeAddress(values) {
  const before = readAddress();
  const storage = target.tensorboard?.tf_storage;
  for (const key of new Set([...Object.keys(before), ...Object.keys(values)])) {
    const value = values[key] ?? '';
    if (value === (before[key] ?? '')) continue;
    // TensorBoard remembers the address; written behind its back, our part would be lost with the next change of tab.
    if (storage) storage.setString(PREFIX + key, value, { defaultValue: '', useLocationReplace: true });
  }
  if (storage) return;
  const parts = target.location.hash.replace(/^#/, '').split('&');
  const foreign = parts.filter((part) => part && !part.startsWith(PREFIX));
  const own = Object.entries(values).map(
    ([key, value]) => `${encodeURIComponent(PREFIX + key)}=${encodeURIComponent(value)}`,
  );
  target.history.replaceState(target.history.state, '', `#${[...foreign, ...own].join('&')}`);
}

export function watchAddress(callback) {
  target.addEventListener('hashchange', callback);
  addEventListener('pagehide', () => target.removeEventListener('hashchange', callback));
}
