// Elements are built from text, never from markup: names of runs, layers and classes come from somebody's log.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked') element[name] = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A text that follows the pointer and stays inside the window.
class Tooltip {
  constructor() {
    this.element = h('div', { class: 'tooltip', role: 'status', hidden: true });
  }

  show(event, ...lines) {
    if (!this.element.isConnected) document.body.append(this.element);
    this.element.replaceChildren(...lines.map((line) => (line instanceof Node ? line : h('div', {}, line))));
    this.element.hidden = false;
    const { width, height } = this.element.getBoundingClientRect();
    const x = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
    const y = Math.min(event.clientY + 12, innerHeight - height - 8);
    this.element.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
  }

  hide() {
    this.element.hidden = true;
  }
}

export const tooltip = new Tooltip();

// A row of radio buttons that looks like one control.
export function choice(label, options, value, onchange) {
  const name = `choice-${label.replace(/\W+/g, '-')}`;
  return h(
    'fieldset',
    { class: 'choice' },
    h('legend', {}, label),
    options.map(([key, text, title]) =>
      h(
        'label',
        { title },
        h('input', { type: 'radio', name, value: key, checked: key === value, onchange: () => onchange(key) }),
        h('span', {}, text),
      ),
    ),
  );
}

export function select(label, options, value, onchange, attributes = {}) {
  const element = h(
    'select',
    { ...attributes, 'aria-label': label, onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => h('option', { value: key }, text)),
  );
  element.value = value;
  return h('label', { class: 'field' }, h('span', {}, label), element);
}

// A field to search a long list by name; what is not in the list is not taken.
export function search(label, options, value, onchange, attributes = {}) {
  const names = new Map(options.map(([key, text]) => [text, key]));
  const shown = options.find(([key]) => key === value)?.[1] ?? '';
  const list = h(
    'datalist',
    { id: `list-${label.replace(/\W+/g, '-')}` },
    options.map(([, text]) => h('option', { value: text })),
  );
  const element = h('input', {
    ...attributes,
    type: 'search',
    list: list.id,
    value: shown,
    placeholder: shown,
    'aria-label': label,
    onfocus: (event) => event.target.select(),
    onchange(event) {
      if (names.has(event.target.value)) onchange(names.get(event.target.value));
      else event.target.value = shown;
    },
  });
  return h('label', { class: 'field' }, h('span', {}, label), element, list);
}

// Redraw without taking the focus away from who uses the keyboard: the same control, made anew, gets it back.
export function keepFocus(redraw) {
  const focused = document.activeElement;
  const selector = focused && focused !== document.body && describe(focused);
  redraw();
  if (!selector || focused.isConnected) return;
  const again = [...document.querySelectorAll(selector)].find((element) => element.getClientRects().length);
  if (again) again.focus({ preventScroll: true });
}

function describe(element) {
  const tag = element.tagName.toLowerCase();
  const known = ['data-cell', 'aria-label', 'name', 'value', 'title'].filter((name) => element.getAttribute(name));
  return known.length
    ? tag + known.map((name) => `[${name}="${CSS.escape(element.getAttribute(name))}"]`).join('')
    : null;
}

export const percent = (share, digits = 0) =>
  Number.isFinite(share) ? `${(100 * share).toFixed(digits).replace('-', '−')} %` : '–';
export function decimal(value, digits = 2) {
  if (!Number.isFinite(value)) return '–';
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}
export function signed(value, digits = 2) {
  if (!Number.isFinite(value)) return '–';
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value > 0 ? '+' : '−'}${text}`;
}
export const whole = (value) => Number(value).toLocaleString('en-US');
export const plural = (count, noun, nouns = `${noun}s`) => `${whole(count)} ${count === 1 ? noun : nouns}`;
