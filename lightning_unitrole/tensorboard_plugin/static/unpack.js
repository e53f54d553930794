// Reads the containers of the server; see packing.py for their layout.

let halves = null;

// All 65,536 half-precision numbers: looking one up is faster than decoding it.
function halfTable() {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 0) table[bits] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else table[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

function fromHalves(raw) {
  halves ??= halfTable();
  const values = new Float32Array(raw.length);
  for (let i = 0; i < raw.length; i++) values[i] = halves[raw[i]];
  return values;
}

const READERS = {
  u1: (buffer, at, n) => new Uint8Array(buffer, at, n),
  u2: (buffer, at, n) => new Uint16Array(buffer, at, n),
  u4: (buffer, at, n) => new Uint32Array(buffer, at, n),
  f2: (buffer, at, n) => fromHalves(new Uint16Array(buffer, at, n)),
  f4: (buffer, at, n) => new Float32Array(buffer, at, n),
  f8: (buffer, at, n) => new Float64Array(buffer, at, n),
};

export function unpack(buffer) {
  const view = new DataView(buffer);
  if (view.getUint32(0) !== 0x55524231) throw new Error('The server sent something that is not unit roles.');
  const length = view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const result = { info: header.info };
  for (const [name, type, shape, offset] of header.arrays) {
    const count = shape.reduce((product, size) => product * size, 1);
    result[name] = READERS[type](buffer, 8 + length + offset, count);
  }
  return result;
}
