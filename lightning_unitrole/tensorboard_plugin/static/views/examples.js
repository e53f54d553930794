// What one unit looks at: the images that it contributes and responds to most, with its map on top.
import { decimal, h, plural, signed } from '../dom.js';

const SIDE = 85; // of a picture, in pixels of the page
const NONE = 65535;
const DIM = 0.82; // how much darker a picture is where the unit does not respond; a colour would be lost in colours
const KINDS = {
  contribution: ['contributes most to', (value) => `${signed(value)} nats`],
  activation: ['responds most to', (value) => `peak ${decimal(value)}`],
};
const SPLITS = { val: 'validation', train: 'training' };

export function looksAt(ctx, found, time) {
  const { info } = found;
  const pictures = pixelsByName(found);
  const covered = ctx.state.get('map') !== 'off';
  const some = found.images.some((name) => name > 0);
  return h(
    'div',
    { class: 'card looks-at' },
    h('h3', {}, `What it looks at, at ${ctx.when(time, time.at)}`),
    some &&
      h(
        'div',
        { class: 'picture-rows' },
        info.kinds.map((kind, k) =>
          ['val', 'train'].map((split) => row(ctx, found, pictures, covered, [info.splits.indexOf(split), k], kind)),
        ),
      ),
    h('p', { class: 'key' }, some ? [toggle(ctx, covered), notes(found, pictures)] : 'No images were logged here.'),
    twins(ctx, found),
  );
}

function pixelsByName({ info, names, pixels }) {
  const [height, width, channels] = info.picture;
  const size = height * width * channels;
  const picture = (place) => pixels.subarray(place * size, (place + 1) * size);
  return new Map(Array.from(names, (name, place) => [name, { pixels: picture(place), height, width, channels }]));
}

function row(ctx, found, pictures, covered, [split, kind], name) {
  const { info } = found;
  const count = found.images.length / (info.splits.length * info.kinds.length);
  const [height, width] = info.map;
  const [verb, format] = KINDS[name];
  const side = SPLITS[info.splits[split]];
  const figures = Array.from({ length: count }, (_, i) => (split * info.kinds.length + kind) * count + i)
    .filter((place) => found.images[place] > 0)
    .map((place) => {
      const klass = classOf(ctx, found.classes[place]);
      const text = format(found.values[place]);
      const map = found.maps.subarray(place * height * width, (place + 1) * height * width);
      return h(
        'figure',
        { 'data-kind': name, 'data-split': info.splits[split] },
        draw(
          pictures.get(found.images[place]),
          covered && { map, height, width },
          `${side} image of ${klass}, ${text}`,
        ),
        h('figcaption', {}, h('b', { title: klass }, klass), h('br', {}), text),
      );
    });
  return h('div', { class: 'picture-row' }, h('h4', {}, `${verb}, ${side}`), h('div', {}, figures));
}

// A class without a name of its own is called by its number.
function classOf(ctx, index) {
  const name = index === NONE ? '–' : (ctx.run.every_class[index] ?? String(index));
  return /^\d+$/.test(name) ? `class ${name}` : name;
}

// Greys and colours as they were logged; what was not logged stays empty.
function draw(picture, cover, label) {
  const ratio = window.devicePixelRatio || 1;
  const size = SIDE * ratio;
  const canvas = h('canvas', { width: size, height: size, role: 'img', 'aria-label': label });
  if (!picture) return canvas;
  const context = canvas.getContext('2d');
  const { pixels, height, width, channels } = picture;
  const scale = size / Math.max(height, width);
  const place = [(size - width * scale) / 2, (size - height * scale) / 2, width * scale, height * scale];
  const at = (i, k) => pixels[i * channels + (channels === 3 ? k : 0)];
  context.imageSmoothingEnabled = Math.max(height, width) >= 48;
  context.drawImage(
    bitmap(width, height, (i) => [at(i, 0), at(i, 1), at(i, 2), 255]),
    ...place,
  );
  if (cover) {
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    const most = Math.max(1, ...cover.map); // pictures say where; how much is below them
    const shade = (i) => [0, 0, 0, DIM * 255 * (1 - cover.map[i] / most)];
    context.drawImage(bitmap(cover.width, cover.height, shade), ...place);
  }
  return canvas;
}

function bitmap(width, height, colour) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set(colour(i), 4 * i);
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

const toggle = (ctx, covered) =>
  h(
    'label',
    {},
    h('input', {
      type: 'checkbox',
      name: 'map',
      checked: covered,
      onchange: (event) => ctx.set({ map: event.target.checked ? '' : 'off' }),
    }),
    ' darken the images by its map ',
  );

function notes(found, pictures) {
  const missing = new Set(found.images.filter((name) => name > 0 && !pictures.has(name))).size;
  return [
    'Dark is where it does not respond. Each picture is stretched to its own range of values, as it is not known how ' +
      'images were normalised.',
    missing > 0 && ` ${plural(missing, 'picture')} beyond what a run may log.`,
  ];
}

// Units that contribute to the same images.
function twins(ctx, { twins: units, correlation }) {
  const known = Array.from(units, (unit, i) => [unit, correlation[i]]).filter(([unit]) => unit !== NONE);
  if (!known.length) return null;
  return h(
    'p',
    { class: 'twins' },
    'Contributes to the same validation images as ',
    known.map(([unit, value], i) => [
      i ? ', ' : '',
      h('button', { class: 'link', 'data-twin': unit, onclick: () => ctx.set({ unit }) }, `unit ${unit}`),
      ` (correlation ${decimal(value)})`,
    ]),
    '.',
  );
}
