// Colours. Those of the roles were chosen by search: the smallest distance between any two of them, and to the
// background, is as large as it gets for people with normal vision, protanopia, deuteranopia and tritanopia alike.
// "Val only" is the light relative of "Both"; "Train only", which does not generalise, is the warm one.

export const ROLE = { NEITHER: 0, TRAIN_ONLY: 1, VAL_ONLY: 2, BOTH: 3, REMOVED: 254, NO_ROLE: 255 };
// From the bottom of a stack to its top.
export const STACK = [3, 2, 1, 0, 254, 255];
export const REAL_ROLES = [3, 2, 1, 0];

export const COLOURS = {
  light: {
    3: '#1c5293',
    2: '#4d9ebc',
    1: '#cb6620',
    0: '#c8cbce',
    254: '#ffffff',
    255: '#efe9f5',
    background: '#ffffff',
  },
  dark: {
    3: '#0593e6',
    2: '#a5e7f8',
    1: '#d98a2e',
    0: '#55585c',
    254: '#1c1f23',
    255: '#2c2735',
    background: '#1c1f23',
  },
};

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

export class Palette {
  constructor(dark) {
    this.theme = dark ? 'dark' : 'light';
    this.colours = COLOURS[this.theme];
    this.rolePixels = new Uint32Array(256).fill(packed(parse(this.colours[255])));
    for (const code of STACK) this.rolePixels[code] = packed(parse(this.colours[code]));
    this.ramp = ramp(256);
    this.missingPixel = packed(parse(this.colours[255]));
    this.removedPixel = packed(parse(this.colours[254]));
  }

  apply(root) {
    root.dataset.theme = this.theme;
    for (const code of STACK) root.style.setProperty(`--role-${code}`, this.colours[code]);
    root.style.setProperty('--ramp', `linear-gradient(to right, ${VIRIDIS.join(', ')})`);
  }

  run(index) {
    const colours = RUNS[this.theme];
    return { colour: colours[index % colours.length], dash: DASHES[index % DASHES.length] };
  }
}
