/* The neuron explorer: finds neurons and shows one. This part reads its data and is what the other parts share.
   Data files are scripts that call explorerFile(name, gzip as a string, a letter a byte); lib/report/explorer_files.py writes and describes them.

   A part may add a section of its own: window.explorerSections.push(neuron => …). Each function is called whenever a
   neuron is shown, with {seed, layer, neuron, at, get, run, element, drawn}: the seed (its name is seed.name), the
   neuron's place in it (at), its arrays (get('tokens')), what is known of the run, and makers of HTML and SVG. It fills
   and unhides its <section> in explorer.html.j2; all sections are empty and hidden when it is called. */
(() => {
  'use strict';
  const $ = id => document.getElementById(id);
  const NO_WORD = 65535;
  const ARRAYS = {U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array, U32: Uint32Array, I32: Int32Array, F32: Float32Array};

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children.filter(child => child !== null && child !== undefined));
    return made;
  };
  const drawn = (tag, attributes, ...children) => {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const number = value => {
    if (value === null || value === undefined || !Number.isFinite(value)) return '–';
    const size = Math.abs(value);
    const text = size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : size >= 1e4 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(4)));
    return text.replace('-', '−');
  };
  const fixed = (value, digits) => Number.isFinite(value) ? value.toFixed(digits).replace('-', '−') : '–';
  const quoted = label => `“${label.replace(/“/g, "‘").replace(/”/g, "’")}”`;  // a label may quote a word itself

  /* ------------------------------------------------------------ files */

  const waiting = new Map(), loaded = new Map();
  window.explorerFile = (name, content) => waiting.get(name)(content);

  async function unpacked(text) {
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);  // modulo 256: x-user-defined has U+F780 for 0x80
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
  }

  function tensors(buffer) { // safetensors: the length of a JSON header, the header, the values
    const length = Number(new DataView(buffer).getBigUint64(0, true)), made = {};
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    for (const [name, {dtype, shape, data_offsets: [start, end]}] of Object.entries(header)) {
      if (name === '__metadata__') continue;
      const kind = ARRAYS[dtype];
      made[name] = {shape, values: new kind(buffer, 8 + length + start, (end - start) / kind.BYTES_PER_ELEMENT)};
    }
    return made;
  }

  function load(name) {
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        const script = element('script', {charset: 'x-user-defined', src: `neurons/${encodeURIComponent(name)}.js`, onerror: () => reject(new Error(`The file neurons/${name}.js is missing; make report writes it beside this page.`))});
        document.head.append(script);
      }).then(unpacked).then(buffer => name === 'run' ? JSON.parse(new TextDecoder().decode(buffer)) : tensors(buffer)));
    }
    return loaded.get(name);
  }

  /* ------------------------------------------------------------ neurons */

  const seeds = new Map();

  async function seedOf(name) {
    if (!seeds.has(name)) {
      seeds.set(name, load(`seed.${name}`).then(data => {
        const count = data.layer.shape[0], [layers, neurons] = explorer.run.shapes[name], row = new Map();
        for (let at = 0; at < count; at++) row.set(data.layer.values[at] * neurons + data.neuron.values[at], at);
        return {name, data, count, layers, neurons, row, tokens: null};
      }));
    }
    return seeds.get(name);
  }
  async function withTokens(seed) { // the tokens that its neurons fire on, promote and suppress
    seed.tokens ??= await load(`tokens.${seed.name}`);
    return seed;
  }
  const value = (seed, column, at) => seed.data.values.values[explorer.run.ranked.findIndex(one => one.name === column) * seed.count + at];
  const plain = (seed, column, at) => seed.data.plain.values[explorer.run.plain.indexOf(column) * seed.count + at];
  const word = (seed, column, at) => {
    const index = seed.data.words.values[explorer.run.texts.indexOf(column) * seed.count + at];
    return index === NO_WORD ? null : explorer.run.words[index];
  };
  const address = (seed, at) => `${seed.name}/${seed.data.layer.values[at]}/${seed.data.neuron.values[at]}`;
  const isUniversal = (seed, at) => value(seed, 'excess_corr', at) > explorer.run.threshold;

  async function details(seed, at) {
    const data = await load(`seed.${seed.name}.${Math.floor(at / explorer.run.chunk)}`), own = at % explorer.run.chunk;
    return name => {
      const {shape, values} = data[name], size = shape.slice(1).reduce((product, one) => product * one, 1);
      return values.subarray(own * size, (own + 1) * size);
    };
  }

  const labelOf = (seed, at) => word(seed, 'family', at) === 'unexplained' ? 'unexplained' : word(seed, 'label', at);

  window.explorerSections = [];
  window.explorer = {run: null, here: null, listed: [], $, element, drawn, number, fixed, quoted, load, seedOf, withTokens, details, value, plain, word, address, isUniversal, labelOf};
})();
