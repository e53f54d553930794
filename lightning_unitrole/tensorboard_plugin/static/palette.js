// Colours: those of the roles for the theme in use, those of runs, and a scale for measures.
import { background, ROLE, roleOf, STACK } from './vocabulary.js';

// Okabe and Ito's qualitative colours, for lines that stand for runs; the dashes tell them apart without colour.
const RUNS = {
  light: ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#7a6a00', '#56b4e9', '#000000', '#8c510a'],
  dark: ['#56b4e9', '#ff8c42', '#2fd3a2', '#f0a3cb', '#f0e442', '#4d94ff', '#ffffff', '#d9a066'],
};
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '4 4', '12 4', '1 4', '6 2 1 2 1 2'];

// viridis, from matplotlib (CC0)
const VIRIDIS = [
  '#440154',
  '#482878',
  '#3e4a89',
  '#31688e',
  '#26828e',
  '#1f9e89',
  '#35b779',
  '#6dcd59',
  '#b4de2c',
  '#fde725',
];

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
// ImageData is little endian: alpha, blue, green, red
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

function ramp(size) {
  const stops = VIRIDIS.map(parse);
  return Uint32Array.from({ length: size }, (_, i) => {
    const at = (i / (size - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return packed(stops[low].map((value, k) => Math.round(value + (stops[low + 1][k] - value) * (at - low))));
  });
}

const STRIPE = 3; // pixels from one stripe of a hatched role to the next, and half the width of the pattern

export class Palette {
  constructor(dark) {
    this.theme = dark ? 'dark' : 'light';
    this.background = background[this.theme];
    this.missingPixel = this.pixel(ROLE.NO_ROLE);
    this.rolePixels = new Uint32Array(256).fill(this.missingPixel);
    // A hatched role is left open, for the pattern below the image to show through.
    for (const code of STACK) this.rolePixels[code] = roleOf(code).fill === 'hatched' ? 0 : this.pixel(code);
    this.ramp = ramp(256);
    this.change = dark ? '#f5d90a' : '#e0007a'; // unlike every role
    this.hatch = this.hatched(ROLE.UNDECIDED);
  }

  colour(code) {
    return roleOf(code)[this.theme];
  }

  pixel(code) {
    return packed(parse(this.colour(code)));
  }

  // A tile of diagonal stripes.
  hatched(code) {
    const tile = new OffscreenCanvas(2 * STRIPE, 2 * STRIPE);
    const context = tile.getContext('2d');
    for (let y = 0; y < 2 * STRIPE; y++) {
      for (let x = 0; x < 2 * STRIPE; x++) {
        context.fillStyle = (x + y) % (2 * STRIPE) < 2 ? this.colour(code) : this.background;
        context.fillRect(x, y, 1, 1);
      }
    }
    return tile;
  }

  apply(root) {
    root.dataset.theme = this.theme;
    for (const code of STACK) {
      const colour = this.colour(code);
      const stripes = `repeating-linear-gradient(135deg, ${colour} 0 1.5px, ${this.background} 1.5px 4px)`;
      root.style.setProperty(`--role-${code}`, roleOf(code).fill === 'hatched' ? stripes : colour);
    }
    root.style.setProperty('--surface', this.background);
    root.style.setProperty('--change', this.change);
    root.style.setProperty('--hatch', this.colour(ROLE.UNDECIDED));
    root.style.setProperty('--ramp', `linear-gradient(to right, ${VIRIDIS.join(', ')})`);
  }

  run(index) {
    const colours = RUNS[this.theme];
    return { colour: colours[index % colours.length], dash: DASHES[index % DASHES.length] };
  }
}
