/* The neuron explorer: finds neurons and shows one. Its address is the page's hash, #seed/layer/neuron.
   Data files are scripts that call explorerFile(name, base64 of gzip); lib/report/explorer_files.py writes and describes them. */
(() => {
  'use strict';
  const $ = id => document.getElementById(id);
  const FIRST_ROWS = 100, NEAR = 14, NO_WORD = 65535, NO_PERCENTILE = 255, SHADES = 253, UNCOUNTED = 254, OUTSIDE = 255, COSINE_STEPS = 10000;
  const MATCH_EXAMPLES = 3;
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
    const letters = atob(text), bytes = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
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
        const script = element('script', {src: `neurons/${encodeURIComponent(name)}.js`, onerror: () => reject(new Error(`The file neurons/${name}.js is missing; make report writes it beside this page.`))});
        document.head.append(script);
      }).then(unpacked).then(buffer => name === 'run' ? JSON.parse(new TextDecoder().decode(buffer)) : tensors(buffer)));
    }
    return loaded.get(name);
  }

  /* ------------------------------------------------------------ neurons */

  let run, seeds = new Map(), here = null, listed = [], limit = FIRST_ROWS, places = [];

  async function seedOf(name) {
    if (!seeds.has(name)) {
      seeds.set(name, load(`seed.${name}`).then(data => {
        const count = data.layer.shape[0], [layers, neurons] = run.shapes[name], row = new Map();
        for (let at = 0; at < count; at++) row.set(data.layer.values[at] * neurons + data.neuron.values[at], at);
        return {name, data, count, layers, neurons, row, texts: []};
      }));
    }
    return seeds.get(name);
  }
  const value = (seed, column, at) => seed.data.values.values[run.ranked.findIndex(one => one.name === column) * seed.count + at];
  const plain = (seed, column, at) => seed.data.plain.values[run.plain.indexOf(column) * seed.count + at];
  const word = (seed, column, at) => {
    const index = seed.data.words.values[run.texts.indexOf(column) * seed.count + at];
    return index === NO_WORD ? null : run.words[index];
  };
  const address = (seed, at) => `${seed.name}/${seed.data.layer.values[at]}/${seed.data.neuron.values[at]}`;
  const isUniversal = (seed, at) => value(seed, 'excess_corr', at) > run.threshold;
  const searched = (seed, at) => seed.texts[at] ??= run.texts.map(name => name === 'family' ? run.families[word(seed, name, at)] : word(seed, name, at)).filter(Boolean).join(' ').toLowerCase();

  async function details(seed, at) {
    const data = await load(`seed.${seed.name}.${Math.floor(at / run.chunk)}`), own = at % run.chunk;
    return name => {
      const {shape, values} = data[name], size = shape.slice(1).reduce((product, one) => product * one, 1);
      return values.subarray(own * size, (own + 1) * size);
    };
  }

  /* ------------------------------------------------------------ find */

  function chosen() {
    const seed = here.seed, layer = $('layer').value, family = $('family').value, role = $('role').value;
    const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean), direct = isAddress($('search').value);
    const rows = [];
    for (let at = 0; at < seed.count; at++) {
      if (layer !== 'all' && seed.data.layer.values[at] !== Number(layer)) continue;
      if (family && word(seed, 'family', at) !== family) continue;
      if (role && word(seed, 'role_learned', at) !== role) continue;
      if ($('universal').checked && !isUniversal(seed, at)) continue;
      if (!direct && words.length && !words.every(one => searched(seed, at).includes(one))) continue;
      rows.push(at);
    }
    const by = $('order').value;
    if (by === 'place') return rows;
    const key = by === 'score' ? at => plain(seed, 'score', at) : at => value(seed, by, at);
    const keys = new Map(rows.map(at => [at, key(at)]));
    return rows.sort((a, b) => (Number.isNaN(keys.get(a)) - Number.isNaN(keys.get(b))) || keys.get(b) - keys.get(a) || a - b);
  }

  function list() {
    listed = chosen();
    const seed = here.seed, by = $('order').value, body = $('rows').tBodies[0];
    const shownBy = by === 'place' ? 'excess_corr' : by;
    $('by').textContent = by === 'score' ? 'score' : shownBy === 'excess_corr' ? 'excess' : 'value';
    body.replaceChildren(...listed.slice(0, limit).map(at => {
      const row = element('tr', {className: isUniversal(seed, at) ? 'universal' : ''},
        element('td', {}, element('a', {href: `#${address(seed, at)}`, textContent: address(seed, at)})),
        element('td', {textContent: number(shownBy === 'score' ? plain(seed, 'score', at) : value(seed, shownBy, at))}),
        element('td', {textContent: labelOf(seed, at) ?? '', title: labelOf(seed, at) ?? ''}));
      if (at === here.at) row.setAttribute('aria-current', 'true');
      return row;
    }));
    $('more').hidden = listed.length <= limit;
    const universal = listed.filter(at => isUniversal(seed, at)).length, all = seed.layers * seed.neurons;
    $('found').textContent = `${listed.length.toLocaleString('en')} neurons of seed ${seed.name}, ${universal.toLocaleString('en')} of them universal`
      + (seed.count < all ? `. This page holds the ${seed.count.toLocaleString('en')} of ${all.toLocaleString('en')} that match other seeds best. The tables have all.` : '.');
    scatter();
  }
  const labelOf = (seed, at) => word(seed, 'family', at) === 'unexplained' ? 'unexplained' : word(seed, 'label', at);

  function isAddress(text) {
    const match = text.trim().match(/^#?(?:([\w-]+)[/ ])?L?(\d+)[/. ](\d+)$/i);
    return match && (!match[1] || run.seeds.includes(match[1])) ? `${match[1] ?? here.seed.name}/${match[2]}/${match[3]}` : null;
  }

  /* ------------------------------------------------------------ scatter */

  const jitter = at => ((at * 2654435761 >>> 0) / 2 ** 32 - .5) * .7;
  const coordinate = (seed, column, at) => column === 'layer' ? seed.data.layer.values[at] + jitter(at) : value(seed, column, at);

  function range(values, column) {
    if (column === 'layer') return [-.5, here.seed.layers - .5];
    let low = Infinity, high = -Infinity;
    for (const one of values) if (Number.isFinite(one)) { low = Math.min(low, one); high = Math.max(high, one); }
    if (!(low <= high)) return [0, 1];
    const margin = (high - low || 1) * .04;
    return [low - margin, high + margin];
  }

  function ticks(low, high, most) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough), made = [];
    for (let at = Math.ceil(low / step); at * step <= high; at++) made.push(at * step);
    return made;
  }

  function scatter() {
    const canvas = $('scatter'), box = canvas.getBoundingClientRect();
    if (!box.width) return;
    const scale = devicePixelRatio || 1, width = box.width, height = box.height, left = 44, bottom = 24, top = 6, right = 6;
    canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
    const ink = canvas.getContext('2d');
    ink.scale(scale, scale);
    const colour = name => getComputedStyle(document.querySelector(`.key.${name}`), '::before')[name === 'chosen' ? 'borderTopColor' : 'backgroundColor'], soft = getComputedStyle($('found')).color;
    const line = getComputedStyle(document.querySelector('.rows')).borderTopColor;
    const seed = here.seed, across = $('across').value, up = $('up').value;
    const everyone = Array.from({length: seed.count}, (_, at) => at);
    const [x0, x1] = range(everyone.map(at => coordinate(seed, across, at)), across), [y0, y1] = range(everyone.map(at => coordinate(seed, up, at)), up);
    const x = one => left + (one - x0) / (x1 - x0) * (width - left - right), y = one => height - bottom - (one - y0) / (y1 - y0) * (height - bottom - top);
    ink.font = `11px ${getComputedStyle(document.body).fontFamily}`; ink.fillStyle = soft; ink.strokeStyle = line; ink.lineWidth = 1;
    ink.textAlign = 'center'; ink.textBaseline = 'top';
    const layers = Array.from({length: seed.layers}, (_, layer) => layer).filter(layer => layer % Math.ceil(seed.layers / 12) === 0);
    for (const one of across === 'layer' ? layers : ticks(x0, x1, 5)) ink.fillText(number(one), x(one), height - bottom + 7);
    ink.textAlign = 'right'; ink.textBaseline = 'middle';
    for (const one of ticks(y0, y1, 5)) { ink.beginPath(); ink.moveTo(left, y(one)); ink.lineTo(width - right, y(one)); ink.stroke(); ink.fillText(number(one), left - 6, y(one)); }
    if (up === 'excess_corr') { ink.setLineDash([4, 4]); ink.strokeStyle = soft; ink.beginPath(); ink.moveTo(left, y(run.threshold)); ink.lineTo(width - right, y(run.threshold)); if (run.threshold < y1) ink.stroke(); ink.setLineDash([]); }
    places = [];
    const colours = {true: colour('universal'), false: colour('other')};
    for (const group of [false, true]) {
      ink.fillStyle = colours[group]; ink.globalAlpha = group ? .9 : .45;
      for (const at of listed) {
        const px = x(coordinate(seed, across, at)), py = y(coordinate(seed, up, at));
        if (isUniversal(seed, at) !== group || !Number.isFinite(px) || !Number.isFinite(py)) continue;
        places.push({at, x: px, y: py});
        ink.beginPath(); ink.arc(px, py, group ? 2.6 : 1.8, 0, 2 * Math.PI); ink.fill();
      }
    }
    ink.globalAlpha = 1;
    const px = x(coordinate(seed, across, here.at)), py = y(coordinate(seed, up, here.at));
    if (Number.isFinite(px) && Number.isFinite(py)) { ink.strokeStyle = colour('chosen'); ink.lineWidth = 2; ink.beginPath(); ink.arc(px, py, 6, 0, 2 * Math.PI); ink.stroke(); }
    const name = column => column === 'layer' ? 'layer' : run.ranked.find(one => one.name === column).words;
    canvas.setAttribute('aria-label', `Scatter of ${listed.length} neurons of seed ${seed.name}: ${name(up)} against ${name(across)}.`);
  }

  function nearest(event) {
    const box = $('scatter').getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let best = null, least = NEAR ** 2;
    for (const place of places) {
      const distance = (place.x - px) ** 2 + (place.y - py) ** 2;
      if (distance <= least) { least = distance; best = place; }
    }
    return best;
  }

  /* ------------------------------------------------------------ one neuron */

  function tokenCode(token) {
    const text = run.vocabulary[token] ?? `id ${token}`, code = element('code');
    const bare = text.replace(/^ +/, '');
    if (bare.length < text.length) code.append(element('span', {className: 'space', textContent: '␣'.repeat(text.length - bare.length)}));
    code.append(bare);
    return code;
  }

  function tokenText(token) { // runs of blanks, as in indented code, by their number
    return (run.vocabulary[token] ?? `⟨id ${token}⟩`).split(/( {3,})/).filter(Boolean).map(part => part.startsWith('   ') ? element('small', {textContent: `␣${part.length}`}) : part);
  }

  function logits(get, name, kind) {
    const tokens = get(name), cosines = get(`${name}_cos`), most = Math.max(...[...cosines].map(Math.abs), 1);
    return element('ul', {className: `logits ${kind}`}, ...[...tokens].map((token, index) => {
      const bar = element('i');
      bar.style.width = `${100 * Math.abs(cosines[index]) / most}%`;
      return element('li', {}, tokenCode(token), element('span', {className: 'track'}, bar), element('span', {textContent: fixed(cosines[index] / COSINE_STEPS, 3)}));
    }));
  }

  function histogram(get) {
    const counts = [...get('counts')], first = get('first')[0], last = get('last')[0], total = counts.reduce((sum, one) => sum + one, 0);
    if (!total) return element('p', {className: 'none', textContent: 'The histogram has no counted token.'});
    const width = 340, height = 222, base = 200, most = Math.log1p(Math.max(...counts)), step = width / counts.length, bin = (last - first) / counts.length;
    const zero = -first / (last - first) * width;
    const picture = drawn('svg', {class: 'histogram', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `Histogram of the pre-activation from ${number(first)} to ${number(last)}, ${total} tokens`});
    counts.forEach((count, index) => {
      const tall = count ? Math.max(1.5, Math.log1p(count) / most * (base - 8)) : 0;
      const bar = drawn('rect', {class: first + (index + .5) * bin > 0 ? 'bar' : 'bar off', x: index * step + .4, y: base - tall, width: Math.max(.5, step - .8), height: tall});
      bar.append(drawn('title', {}, `${number(first + index * bin)} to ${number(first + (index + 1) * bin)}: ${count.toLocaleString('en')} tokens`));
      picture.append(bar);
    });
    picture.append(drawn('line', {x1: 0, x2: width, y1: base, y2: base}));
    if (zero > 0 && zero < width) picture.append(drawn('line', {x1: zero, x2: zero, y1: base, y2: 4, 'stroke-dasharray': '3 3'}));
    const label = (at, anchor, text) => { const made = drawn('text', {x: at, y: base + 15, 'text-anchor': anchor}); made.textContent = text; return made; };
    picture.append(label(0, 'start', number(first)), label(width, 'end', number(last)));
    if (zero > 40 && zero < width - 40) picture.append(label(zero, 'middle', '0'));
    return picture;
  }

  function examples(get, most, small) {
    const values = get('value'), blocks = get('block'), positions = get('position'), domains = get('domain'), tokens = get('tokens'), shades = get('shade');
    const low = get('low')[0], high = get('high')[0], size = tokens.length / values.length, middle = (size - 1) / 2, items = [];
    for (let rank = 0; rank < Math.min(most, values.length); rank++) {
      if (blocks[rank] < 0) continue;
      const text = element('p');
      for (let place = 0; place < size; place++) {
        const shade = shades[rank * size + place];
        if (shade === OUTSIDE) continue;
        const piece = element('span', {}, ...tokenText(tokens[rank * size + place]));
        const activation = place === middle ? values[rank] : shade === UNCOUNTED ? NaN : low + shade / SHADES * (high - low);
        piece.dataset.activation = Number.isFinite(activation) ? `activation ${number(Number(activation.toPrecision(3)))}` : 'not counted';
        if (activation > 0 && high > 0) piece.style.backgroundColor = `rgba(${shadeColour}, ${(.75 * Math.min(1, activation / high)).toFixed(3)})`;
        if (place === middle) piece.className = 'peak';
        text.append(piece);
      }
      const where = element('div', {className: 'where'}, element('b', {textContent: fixed(values[rank], 2)}), small ? null : `${run.domains[domains[rank]]}, block ${blocks[rank]}, token ${positions[rank]}`);
      items.push(element('li', {}, where, text));
    }
    return items.length ? element('ul', {className: small ? 'examples small' : 'examples'}, ...items)
      : element('p', {className: 'none', textContent: 'No example: the neuron saw no counted token.'});
  }
  const shadeColour = '213, 94, 0';

  function properties(seed, at) {
    const headings = [...new Set(run.ranked.map(one => one.heading))];
    return element('div', {className: 'properties'}, ...headings.map(heading => {
      const rows = run.ranked.map((one, index) => ({...one, index})).filter(one => one.heading === heading).map(one => {
        const percentile = seed.data.percentile.values[one.index * seed.count + at], known = percentile !== NO_PERCENTILE;
        const meter = element('dd', {className: 'meter'});
        if (known) { const mark = element('i'); mark.style.left = `${percentile}%`; meter.append(mark); }
        const row = element('div', {className: 'property'}, element('dt', {textContent: one.words}),
          element('dd', {textContent: number(seed.data.values.values[one.index * seed.count + at])}), meter, element('dd', {textContent: known ? percentile : '–'}));
        row.dataset.column = one.name;
        return row;
      });
      return element('section', {}, element('h4', {textContent: heading}), element('dl', {}, ...rows));
    }));
  }

  function badges(seed, at) {
    const items = [], excess = value(seed, 'excess_corr', at), role = word(seed, 'role_learned', at), family = word(seed, 'family', at);
    const badge = (text, kind) => items.push(element('li', {className: kind ?? '', textContent: text}));
    if (Number.isFinite(excess)) badge(excess > run.threshold ? 'universal' : 'not universal', excess > run.threshold ? 'universal' : '');
    if (family) badge(family === 'unexplained' ? 'unexplained' : `${run.families[family] ?? family}: ${word(seed, 'label', at)}`, 'family');
    if (role && role !== 'none') badge(`${role} neuron`);
    const own = seed.name === run.reference ? run.measured[`${seed.data.layer.values[at]}/${seed.data.neuron.values[at]}`] : null;
    for (const group of own?.group ?? []) if (!group.endsWith('control')) badge(`${group} candidate`);
    return element('ul', {className: 'badges'}, ...items);
  }

  function sentence(seed, at) {
    const rows = [], excess = value(seed, 'excess_corr', at), score = plain(seed, 'score', at);
    const row = (term, text) => rows.push(element('dt', {textContent: term}), element('dd', {textContent: text}));
    if (Number.isFinite(excess)) row('Universality', `Excess correlation ${fixed(excess, 3)}: on average its best matches in other seeds correlate at ${fixed(value(seed, 'mean_corr', at), 3)}, against ${fixed(value(seed, 'mean_baseline', at), 3)} in a rotated basis.`);
    if (Number.isFinite(score)) {
      const second = word(seed, 'runner_up_label', at);
      row('Responds to', `${quoted(word(seed, 'label', at))} explains ${fixed(100 * score, 1)} % of its variance on held-out text (chance level ${fixed(100 * plain(seed, 'chance', at), 1)} %). It is ${plain(seed, 'difference', at) >= 0 ? 'more' : 'less'} active there.`
        + (second ? ` The best label of another family is ${quoted(second)} (${fixed(100 * plain(seed, 'runner_up_score', at), 1)} %).` : ''));
    }
    if (Number.isFinite(plain(seed, 'raised_score', at))) {
      const named = kind => `${quoted(word(seed, kind, at))} (${fixed(100 * plain(seed, `${kind}_score`, at), 1)} %)`;
      row('Writes', `Of all token classes it raises ${named('raised')} and lowers ${named('lowered')} most clearly, as shares of the variance of its logit effects (chance level ${fixed(100 * plain(seed, 'null_score', at), 1)} %).`);
    }
    return rows.length ? element('dl', {className: 'said'}, ...rows) : null;
  }

  function table(heads, rows, about) {
    const head = element('tr', {}, ...heads.map(text => element('th', {scope: 'col', textContent: text})));
    const body = rows.map(row => element('tr', {}, ...row.map((text, index) => element(index ? 'td' : 'th', {...(index ? {} : {scope: 'row'}), textContent: text}))));
    const box = element('div', {className: 'wide', tabIndex: 0}, element('table', {}, element('thead', {}, head), element('tbody', {}, ...body)));
    box.setAttribute('role', 'region'); box.setAttribute('aria-label', about);
    return box;
  }

  function circuits(seed, at) {
    const layer = seed.data.layer.values[at], parts = [], facts = [];
    const partner = plain(seed, 'partner_neuron', at), partnerLayer = plain(seed, 'partner_layer', at), head = plain(seed, 'attention_score', at) || value(seed, 'attention_score', at);
    if (Number.isFinite(partner)) {
      const name = `${seed.name}/${partnerLayer}/${partner}`;
      facts.push(element('li', {}, 'Its most opposed output weights are those of ', element('a', {href: `#${name}`, textContent: name}), ` (cosine ${fixed(plain(seed, 'partner_cos', at), 3)}).`));
    }
    if (run.ranked.some(one => one.name === 'attention_score') && Number.isFinite(head)) facts.push(element('li', {textContent: `Of all later heads it moves L${plain(seed, 'attention_head_layer', at)}H${plain(seed, 'attention_head', at)} most ${head > 0 ? 'towards' : 'away from'} the first token: score ${fixed(head, 3)}, ${fixed(plain(seed, 'attention_deviations', at), 1)} standard deviations of random directions.`}));
    const own = seed.name === run.reference ? run.measured[`${layer}/${seed.data.neuron.values[at]}`] : null;
    for (const one of own?.heads ?? []) facts.push(element('li', {textContent: `Measured for attention ${one.role} of L${one.layer}H${one.head} at ${one.destinations.toLocaleString('en')} positions: when its path is cut, its activation correlates at ${fixed(one.bos_corr, 2)} with the change in attention to the first token, and at ${fixed(one.norm_corr, 2)} with the change in the head's output norm.`}));
    if (facts.length) parts.push(element('ul', {className: 'facts'}, ...facts));
    const outcomes = {loss: 'loss [nats]', entropy: 'entropy [nats]', kl_unigram: 'KL to unigram [nats]', reciprocal_rank: 'reciprocal rank', scale: 'final scale'};
    for (const [kind, column, about] of [['ablation', 'variant', 'Fixed at its mean activation'], ['fixed', 'value', 'Fixed at a value']]) {
      if (!own?.[kind]) continue;
      const known = Object.keys(outcomes).filter(one => `${one}_change` in own[kind][0]);
      const cell = (row, one) => `${fixed(1000 * (row[`${one}_change`] ?? NaN), 2)} ± ${fixed(1000 * (row[`${one}_error`] ?? NaN), 2)}`;
      parts.push(element('h4', {className: 'effect', textContent: `${about}: changes in thousandths, with standard error, over ${own.tokens.toLocaleString('en')} tokens`}),
        table([column === 'value' ? 'activation' : 'effect', ...known.map(one => outcomes[one])], own[kind].map(row => [column === 'value' ? number(row.value) : row.variant, ...known.map(one => cell(row, one))]), about));
    }
    return parts.length ? parts : null;
  }

  async function matchCard(own, name, partner, corr, baseline, column) {
    if (partner < 0) return element('section', {className: 'match'}, element('h4', {textContent: `seed ${name}`}), element('p', {className: 'none', textContent: 'Not compared.'}));
    const other = await seedOf(name), at = other.row.get(partner);
    const where = `${name}/${Math.floor(partner / other.neurons)}/${partner % other.neurons}`;
    const numbers = element('p', {className: 'numbers', textContent: `correlation ${fixed(corr, 3)}, rotated basis ${fixed(baseline, 3)}`});
    const box = element('section', {className: 'match'});
    box.dataset.match = where;
    if (at === undefined) { box.append(element('h4', {textContent: where}), numbers, element('p', {className: 'none', textContent: 'This page does not hold the neuron.'})); return box; }
    const get = await details(other, at), back = run.seeds.filter(one => one !== name).indexOf(own.seed.name);
    const mutual = get('partner')[back] === own.seed.data.layer.values[own.at] * own.seed.neurons + own.seed.data.neuron.values[own.at];
    numbers.append(mutual ? ', mutual best matches' : '', labelOf(other, at) ? element('br') : '', labelOf(other, at) ?? '');
    box.append(element('h4', {}, element('a', {href: `#${where}`, textContent: where})), numbers, examples(get, MATCH_EXAMPLES, true));
    return box;
  }

  async function matches(own, get) {
    const others = run.seeds.filter(name => name !== own.seed.name), partners = get('partner'), corr = get('corr'), baseline = get('baseline');
    return element('div', {className: 'matches'}, ...await Promise.all(others.map((name, index) => matchCard(own, name, partners[index], corr[index], baseline[index]))));
  }

  async function show() {
    const own = here, {seed, at} = own, name = address(seed, at);
    $('name').textContent = `${seed.name} / layer ${seed.data.layer.values[at]} / neuron ${seed.data.neuron.values[at]}`;
    document.title = `${name} · Neurons · ${run.run}`;
    const get = await details(seed, at);
    if (here !== own) return;
    const heading = (text, small) => element('h3', {}, text, small ? element('small', {textContent: ` ${small}`}) : null);
    const made = element('div', {className: 'matches-wait none', textContent: 'Loading the other seeds …'}), effect = circuits(seed, at);
    $('body').replaceChildren(...[
      badges(seed, at), sentence(seed, at),
      element('div', {className: 'pair'},
        element('section', {}, heading('Pre-activation', 'tokens on a log scale; active right of 0'), histogram(get)),
        element('section', {}, heading('Promotes', 'cos(w_out, W_U)'), logits(get, 'promoted', 'up')),
        element('section', {}, heading('Suppresses', 'cos(w_out, W_U)'), logits(get, 'suppressed', 'down'))),
      heading('Strongest examples', 'point at a token for its activation'), examples(get, Infinity, false),
      heading('Best matches in the other seeds', 'the most correlated neuron of each'), made,
      heading('Properties', `value, and percentile in layer ${seed.data.layer.values[at]}`), properties(seed, at),
      ...(effect ? [heading('Circuits and effects'), ...effect] : []),
    ].filter(Boolean));
    $('card').dataset.shown = name;
    const found = await matches(own, get);
    if (here === own) { made.replaceWith(found); $('card').dataset.complete = name; }
  }

  /* ------------------------------------------------------------ ways to a neuron */

  function fail(text) {
    $('name').textContent = 'No such neuron';
    $('body').replaceChildren(element('p', {className: 'none', textContent: text}));
    delete $('card').dataset.shown;
  }

  async function follow() {
    const parts = decodeURIComponent(location.hash.slice(1)).split('/'), [name, layer, neuron] = [parts[0], Number(parts[1]), Number(parts[2])];
    if (!location.hash.slice(1)) return follow.first();
    if (!run.seeds.includes(name)) return fail(`There is no seed “${name}”. The seeds are ${run.seeds.join(', ')}.`);
    const seed = await seedOf(name), at = seed.row.get(layer * seed.neurons + neuron);
    const exists = Number.isInteger(layer) && Number.isInteger(neuron) && layer >= 0 && layer < seed.layers && neuron >= 0 && neuron < seed.neurons;
    if (!exists) return fail(`There is no neuron “${parts.slice(1).join('/')}” in seed ${name}; layers are 0 to ${seed.layers - 1}, neurons 0 to ${seed.neurons - 1}.`);
    if (at === undefined) return fail(`This page holds the ${seed.count.toLocaleString('en')} neurons of seed ${name} that match other seeds best, without ${parts.slice(1).join('/')}. The tables have all.`);
    here = {seed, at};
    $('seed').value = name;
    if ($('layer').value !== 'all') $('layer').value = String(layer);
    $('number').value = neuron;
    list();
    $('rows').querySelector('[aria-current]')?.scrollIntoView({block: 'nearest'});
    return show();
  }
  follow.first = async (name = run.reference) => {
    const seed = await seedOf(name);
    here = {seed, at: 0};
    listed = chosen();
    history.replaceState(null, '', `#${address(seed, listed[0] ?? 0)}`);
    return follow();
  };

  const go = (seed, at) => { location.hash = address(seed, at); };
  const step = by => {
    if (!listed.length || !here) return;
    const at = listed.indexOf(here.at);
    go(here.seed, listed[at < 0 ? 0 : (at + by + listed.length) % listed.length]);
  };

  function options(select, entries) { select.replaceChildren(...entries.map(([key, text]) => element('option', {value: key, textContent: text}))); }

  function controls() {
    const columns = run.ranked.map(one => [one.name, one.words]), families = Object.entries(run.families).filter(([key]) => run.words.includes(key));
    options($('seed'), run.seeds.map(name => [name, name === run.reference ? `${name} (ref.)` : name]));
    options($('layer'), [['all', 'all'], ...Array.from({length: Math.max(...Object.values(run.shapes).map(shape => shape[0]))}, (_, layer) => [layer, layer])]);
    options($('family'), [['', 'all'], ...families]);
    options($('role'), [['', 'all'], ...['prediction', 'suppression', 'partition'].filter(role => run.words.includes(role)).map(role => [role, role])]);
    options($('order'), [...columns, ...(families.length ? [['score', 'score of its label']] : []), ['place', 'place in the model']]);
    options($('up'), columns); options($('across'), [['layer', 'layer'], ...columns]);
    $('order').value = $('up').value = columns.some(([name]) => name === 'excess_corr') ? 'excess_corr' : columns[0]?.[0];
    $('across').value = 'layer';
    $('number').max = Math.max(...Object.values(run.shapes).map(shape => shape[1])) - 1;
    $('family').disabled = !families.length;
    $('controls').addEventListener('submit', event => event.preventDefault());
    const again = () => { limit = FIRST_ROWS; if (here) list(); };
    for (const name of ['layer', 'family', 'role', 'order', 'universal']) $(name).addEventListener('change', again);
    $('search').addEventListener('input', again);
    $('search').addEventListener('keydown', event => {
      if (event.key !== 'Enter') return;
      const direct = isAddress($('search').value);
      if (direct) location.hash = direct; else if (listed.length) go(here.seed, listed[0]);
    });
    $('seed').addEventListener('change', () => {
      const layer = here.seed.data.layer.values[here.at], neuron = here.seed.data.neuron.values[here.at];
      seedOf($('seed').value).then(seed => neuron < seed.neurons && seed.row.has(layer * seed.neurons + neuron) ? go(seed, seed.row.get(layer * seed.neurons + neuron)) : follow.first(seed.name));
    });
    $('number').addEventListener('change', () => {
      const layer = $('layer').value === 'all' ? here.seed.data.layer.values[here.at] : $('layer').value;
      location.hash = `${here.seed.name}/${layer}/${$('number').value}`;
    });
    for (const name of ['up', 'across']) $(name).addEventListener('change', scatter);
    $('more').addEventListener('click', () => { limit *= 3; list(); });
    $('previous').addEventListener('click', () => step(-1));
    $('next').addEventListener('click', () => step(1));
    addEventListener('keydown', event => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest('input, select, textarea, .wide, dialog')) return;
      if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') { event.preventDefault(); step(event.key === 'ArrowLeft' ? -1 : 1); }
    });
    $('scatter').addEventListener('click', event => { const place = nearest(event); if (place) go(here.seed, place.at); });
    $('scatter').addEventListener('pointermove', event => {
      const place = nearest(event), seed = here?.seed;
      $('pointed').textContent = place ? `${address(seed, place.at)}, ${labelOf(seed, place.at) ?? 'excess'} ${labelOf(seed, place.at) ? '' : number(value(seed, 'excess_corr', place.at))}` : '';
    });
    const hover = $('hover');
    $('card').addEventListener('pointerover', event => {
      const piece = event.target.closest('[data-activation]');
      hover.hidden = !piece;
      if (!piece) return;
      const box = piece.getClientRects()[0] ?? piece.getBoundingClientRect();
      hover.textContent = piece.dataset.activation;
      hover.style.left = `${Math.max(4, Math.min(box.left, innerWidth - hover.offsetWidth - 8))}px`;
      hover.style.top = `${box.top - hover.offsetHeight - 4}px`;
    });
    $('card').addEventListener('pointerleave', () => { hover.hidden = true; });
    addEventListener('resize', () => here && scatter());
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => here && scatter());
    new MutationObserver(() => here && scatter()).observe(document.documentElement, {attributes: true, attributeFilter: ['data-theme']});
    const finder = document.querySelector('.finder'), wide = matchMedia('(min-width: 861px)');
    const fold = () => { finder.open = wide.matches; };
    wide.addEventListener('change', fold);
    finder.addEventListener('toggle', () => here && scatter());
    fold();
  }

  /* Where a neuron lies in the scatter plot [CSS pixels from its corner]; for tests. */
  window.neuronPlace = (layer, neuron) => places.find(({at}) => here.seed.data.layer.values[at] === layer && here.seed.data.neuron.values[at] === neuron);

  load('run').then(async content => {
    run = content;
    controls();
    addEventListener('hashchange', () => follow().catch(error => fail(error.message)));
    await follow();
  }).catch(error => fail(error.message));
})();
