/* The parts of one neuron's card. */
(() => {
  'use strict';
  const {$, element, drawn, number, fixed, quoted, seedOf, details, value, plain, word, labelOf} = explorer;
  const NO_PERCENTILE = 255, SHADES = 253, UNCOUNTED = 254, OUTSIDE = 255, COSINE_STEPS = 10000;

  function tokenCode(token) {
    const text = explorer.run.vocabulary[token] ?? `id ${token}`, code = element('code');
    const bare = text.replace(/^ +/, '');
    if (bare.length < text.length) code.append(element('span', {className: 'space', textContent: '␣'.repeat(text.length - bare.length)}));
    code.append(bare);
    return code;
  }

  function tokenText(token) { // runs of blanks, as in indented code, by their number
    return (explorer.run.vocabulary[token] ?? `⟨id ${token}⟩`).split(/( {3,})/).filter(Boolean).map(part => part.startsWith('   ') ? element('small', {textContent: `␣${part.length}`}) : part);
  }

  function logits(seed, at, name, kind) {
    const {shape: [, number], values} = seed.tokens[name], part = [at * number, (at + 1) * number];
    const tokens = values.subarray(...part), cosines = seed.tokens[`${name}_cos`].values.subarray(...part), most = Math.max(...[...cosines].map(Math.abs), 1);
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
    /* The outermost bins also hold whatever lies beyond them. */
    picture.append(label(0, 'start', counts[0] ? `≤ ${number(first + bin)}` : number(first)), label(width, 'end', counts.at(-1) ? `≥ ${number(last - bin)}` : number(last)));
    if (zero > 60 && zero < width - 60) picture.append(label(zero, 'middle', '0'));
    return picture;
  }

  /* The lowest pre-activation, from the first bin with a token; the outermost bin also holds whatever lies beyond it. */
  function lowest(get) {
    const counts = [...get('counts')], first = get('first')[0], bin = (get('last')[0] - first) / counts.length, at = counts.findIndex(count => count > 0);
    if (at < 0) return null;
    return at ? `between ${number(first + at * bin)} and ${number(first + (at + 1) * bin)}` : `${number(first + bin)} or lower`;
  }

  /* A passage with a background a token: `activations` in the order of `tokens` (NaN: not counted), dark at `most`. */
  function passage(tokens, activations, most) {
    const text = element('p'), middle = (tokens.length - 1) / 2;
    for (const [place, token] of tokens.entries()) {
      const activation = activations[place];
      if (activation === undefined) continue;  // outside the block
      const piece = element('span', {}, ...tokenText(token));
      piece.dataset.activation = Number.isFinite(activation) ? `activation ${number(Number(activation.toPrecision(3)))}` : 'not counted';
      if (activation > 0 && most > 0) piece.style.backgroundColor = `rgba(${shadeColour}, ${(.75 * Math.min(1, activation / most)).toFixed(3)})`;
      if (place === middle) piece.className = 'peak';
      text.append(piece);
    }
    return text;
  }
  const unshaded = (shade, low, high) => shade === OUTSIDE ? undefined : shade === UNCOUNTED ? NaN : low + shade / SHADES * (high - low);

  /* The strongest examples as data, those that exist: {value, block, position, domain, tokens, activations}. */
  function exampleData(get) {
    const values = get('value'), blocks = get('block'), tokens = get('tokens'), shades = get('shade'), size = tokens.length / values.length;
    return [...values].map((value, rank) => {
      const part = [rank * size, (rank + 1) * size], activations = Array.from(shades.subarray(...part), shade => unshaded(shade, get('low')[0], get('high')[0]));
      activations[(size - 1) / 2] = value;
      return {value, block: blocks[rank], position: get('position')[rank], domain: explorer.run.domains[get('domain')[rank]], tokens: [...tokens.subarray(...part)], activations};
    }).filter(one => one.block >= 0);
  }

  function examples(get, most, small) {
    const items = exampleData(get).slice(0, most).map(one => {
      const where = element('div', {className: 'where'}, element('b', {textContent: fixed(one.value, 2)}), small ? null : `${one.domain}, block ${one.block}, token ${one.position}`);
      return element('li', {}, where, passage(one.tokens, one.activations, get('high')[0]));
    });
    return items.length ? element('ul', {className: small ? 'examples small' : 'examples'}, ...items)
      : element('p', {className: 'none', textContent: 'No example: the neuron saw no counted token.'});
  }
  const shadeColour = '213, 94, 0';

  function properties(seed, at) {
    const headings = [...new Set(explorer.run.ranked.map(one => one.heading))];
    return element('div', {className: 'properties'}, ...headings.map(heading => {
      const rows = explorer.run.ranked.map((one, index) => ({...one, index})).filter(one => one.heading === heading).map(one => {
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
    if (Number.isFinite(excess)) badge(excess > explorer.run.threshold ? 'universal' : 'not universal', excess > explorer.run.threshold ? 'universal' : '');
    const named = explorer.run.families[family] ?? family, label = word(seed, 'label', at);
    if (family) badge(family === 'unexplained' ? 'unexplained' : label.startsWith(`${named}:`) ? label : `${named}: ${label}`, 'family');
    if (role && role !== 'none') badge(`${role} neuron`);
    const own = seed.name === explorer.run.reference ? explorer.run.measured[`${seed.data.layer.values[at]}/${seed.data.neuron.values[at]}`] : null;
    for (const group of own?.group ?? []) if (!group.endsWith('control')) badge(`${group} candidate`);
    return element('ul', {className: 'badges'}, ...items);
  }

  function sentence(seed, at) {
    const rows = [], excess = value(seed, 'excess_corr', at), score = plain(seed, 'score', at);
    const row = (term, text) => rows.push(element('dt', {textContent: term}), element('dd', {textContent: text}));
    if (Number.isFinite(excess)) row('Universality', `Excess correlation ${fixed(excess, 3)}: on average its best matches in other seeds correlate at ${fixed(value(seed, 'mean_corr', at), 3)}, against ${fixed(value(seed, 'mean_baseline', at), 3)} in a rotated basis.`);
    if (Number.isFinite(score)) {
      const second = word(seed, 'runner_up_label', at);
      row('Responds to', `${quoted(word(seed, 'label', at))} explains ${fixed(100 * score, 1)} % of its variance on held-out text (chance level ${fixed(100 * plain(seed, 'chance', at), 1)} %). It is ${plain(seed, 'difference', at) >= 0 ? 'more' : 'less'} active on such tokens.`
        + (second ? ` The best label of another family is ${quoted(second)} (${fixed(100 * plain(seed, 'runner_up_score', at), 1)} %).` : ''));
    }
    if (Number.isFinite(plain(seed, 'raised_score', at))) {
      const named = kind => `${quoted(word(seed, kind, at))} (${fixed(100 * plain(seed, `${kind}_score`, at), 1)} %)`;
      const chance = plain(seed, 'null_score', at), clear = kind => plain(seed, `${kind}_score`, at) > chance, kinds = ['raised', 'lowered'].filter(clear);
      const said = kinds.length ? `It clearly ${kinds.map(kind => `${kind === 'raised' ? 'raises' : 'lowers'} ${named(kind)}`).join(' and ')}` : `No token class stands out; it raises ${named('raised')} and lowers ${named('lowered')} most`;
      row('Writes', `${said}, as a share of the variance of its logit effects (chance level ${fixed(100 * chance, 1)} %).`);
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
      const held = seed.row.has(partnerLayer * seed.neurons + partner);
      facts.push(element('li', {}, 'Its most opposed output weights are those of ', held ? element('a', {href: `#${name}`, textContent: name}) : name, ` (cosine ${fixed(plain(seed, 'partner_cos', at), 3)}).`));
    }
    if (explorer.run.ranked.some(one => one.name === 'attention_score') && Number.isFinite(head)) facts.push(element('li', {textContent: `Of all later heads it moves L${plain(seed, 'attention_head_layer', at)}H${plain(seed, 'attention_head', at)} most ${head > 0 ? 'towards' : 'away from'} the first token: score ${fixed(head, 3)}, ${fixed(plain(seed, 'attention_deviations', at), 1)} standard deviations of random directions.`}));
    const own = seed.name === explorer.run.reference ? explorer.run.measured[`${layer}/${seed.data.neuron.values[at]}`] : null;
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

  Object.assign(explorer, {badges, sentence, histogram, lowest, logits, passage, unshaded, exampleData, examples, properties, circuits});
})();
