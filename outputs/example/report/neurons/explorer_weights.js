/* A neuron within its own model: neighbours and connections by weights, and its excess over training. */
(() => {
  'use strict';
  const {element, drawn, number, fixed, labelOf} = explorer;
  const COSINE_STEPS = 10000, Z_STEPS = 100, HUNDREDTHS = 100, UNKNOWN = -128;
  const NAMES = {near_in: 'Nearest by w_in', near_out: 'Nearest by w_out', earlier: 'Earlier neurons that write what it reads', later: 'Later neurons that read what it writes'};

  const has = (get, name) => { try { return get(name); } catch { return null; } };  // a run may lack an array

  /* By name: {flat, cosine, z} of each neuron; z only for connections. */
  function near(get) {
    const found = {};
    for (const name of Object.keys(NAMES)) {
      const flat = has(get, name), cosines = flat && get(`${name}_cos`), z = flat && has(get, `${name}_z`);
      found[name] = flat ? [...flat].map((one, place) => ({flat: one, cosine: cosines[place] / COSINE_STEPS, ...(z ? {z: z[place] / Z_STEPS} : {})})).filter(one => one.flat >= 0) : [];
    }
    return found;
  }

  function rowOf(seed, one) {
    const name = `${seed.name}/${Math.floor(one.flat / seed.neurons)}/${one.flat % seed.neurons}`, at = seed.row.get(one.flat);
    return element('tr', {},
      element('th', {scope: 'row'}, at === undefined ? name : element('a', {href: `#${name}`, textContent: name})),
      element('td', {textContent: fixed(one.cosine, 2)}), 'z' in one ? element('td', {textContent: fixed(one.z, 1)}) : null,
      element('td', {className: 'left', textContent: at === undefined ? '' : labelOf(seed, at) ?? ''}));
  }

  function weights(seed, at, get) {
    const found = near(get), chance = explorer.run.chance_z[seed.name][seed.data.layer.values[at]];
    const boxes = Object.entries(found).filter(([, rows]) => rows.length).map(([name, rows]) => {
      const z = 'z' in rows[0], usual = z ? chance[name === 'earlier' ? 0 : 1] : null;
      const head = element('tr', {}, ...['neuron', 'cosine', ...(z ? ['z'] : []), 'label'].map(text => element('th', {scope: 'col', className: text === 'label' ? 'left' : '', textContent: text})));
      return element('section', {}, element('h4', {}, NAMES[name], usual ? element('small', {textContent: ` chance reaches |z| = ${fixed(usual, 1)}`}) : null),
        element('table', {}, element('thead', {}, head), element('tbody', {}, ...rows.map(one => rowOf(seed, one)))));
    });
    return boxes.length ? element('div', {className: 'near'}, ...boxes) : null;
  }

  /* Excess at each checkpoint, in order; NaN where the checkpoint lacks it. Null without checkpoints. */
  function trainingOf(get) {
    const values = explorer.run.training.length ? has(get, 'training') : null;
    return values && [...values].map((one, place) => ({...explorer.run.training[place], excess: one === UNKNOWN ? NaN : one / HUNDREDTHS}));
  }

  function sparkline(get) {
    const points = trainingOf(get);
    if (!points || !points.some(one => Number.isFinite(one.excess))) return null;
    const width = 340, height = 92, base = 74, top = 8, {threshold} = explorer.run, y = one => base - (Math.max(one, -.1) + .1) / 1.1 * (base - top);
    const logs = points.map((one, place) => one.tokens ? Math.log(one.tokens) : place), x = one => 8 + (one - logs[0]) / (logs.at(-1) - logs[0] || 1) * (width - 16);
    const known = points.map((one, place) => [x(logs[place]), y(one.excess), one]).filter(([, , one]) => Number.isFinite(one.excess));
    const short = tokens => tokens >= 1e9 ? `${number(tokens / 1e9)} bn` : tokens >= 1e6 ? `${Math.round(tokens / 1e6)} M` : `${tokens}`;
    const picture = drawn('svg', {class: 'spark', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `Excess correlation over training: ${known.map(([, , one]) => fixed(one.excess, 2)).join(', ')}`});
    picture.append(drawn('line', {x1: 0, x2: width, y1: y(0), y2: y(0)}), drawn('line', {x1: 0, x2: width, y1: y(threshold), y2: y(threshold), 'stroke-dasharray': '4 3'}),
      drawn('polyline', {points: known.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(' ')}));
    for (const [px, py, one] of known) {
      const dot = drawn('circle', {cx: px, cy: py, r: 3, class: one.excess > threshold ? 'universal' : ''}), title = drawn('title', {});
      title.textContent = `${one.tokens ? `${short(one.tokens)} tokens` : one.label}: excess ${fixed(one.excess, 2)}`;
      dot.append(title); picture.append(dot);
    }
    const text = (at, anchor, words) => { const made = drawn('text', {x: at, y: height - 3, 'text-anchor': anchor}); made.textContent = words; return made; };
    if (points[0].tokens) picture.append(text(8, 'start', `${short(points[0].tokens)} tokens`), text(width - 8, 'end', short(points.at(-1).tokens ?? 0)));
    return picture;
  }

  Object.assign(explorer, {near, weights, trainingOf, sparkline});
})();
