/* What a reader takes along: stars, links, and neurons as JSON. */
(() => {
  'use strict';
  const {$, element, address, value, plain, word, labelOf} = explorer;

  /* ------------------------------------------------------------ stars, by run, in the browser or else on this page only */

  let stars = new Set();
  const key = () => `stars ${explorer.run.run}`;
  function recallStars() {
    try { stars = new Set(JSON.parse(localStorage.getItem(key()) ?? '[]')); } catch { /* a browser may forbid it */ }
    countStars();
  }
  const isStarred = name => stars.has(name);
  function star(name) {
    if (!stars.delete(name)) stars.add(name);
    try { localStorage.setItem(key(), JSON.stringify([...stars])); } catch { /* then they last as long as the page */ }
    countStars();
  }
  function countStars() {
    $('stars').textContent = stars.size;
    $('save-stars').disabled = !stars.size;
  }
  function showStar() {
    const on = isStarred(address(explorer.here.seed, explorer.here.at));
    $('star').textContent = on ? '★' : '☆';
    $('star').setAttribute('aria-pressed', on);
  }

  /* ------------------------------------------------------------ files and links */

  const finite = (_, one) => typeof one === 'number' && !Number.isFinite(one) ? null : typeof one === 'number' && !Number.isInteger(one) ? Number(one.toPrecision(6)) : one;
  function save(name, content) {
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, finite, 1)], {type: 'application/json'}));
    element('a', {href: url, download: name}).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  const tokenName = token => explorer.run.vocabulary[token] ?? null;
  const placeOf = (seed, flat) => flat < 0 ? null : `${seed.name}/${Math.floor(flat / seed.neurons)}/${flat % seed.neurons}`;
  function columnsOf(seed, at) {
    const {run} = explorer, percentile = column => { const one = seed.data.percentile.values[column * seed.count + at]; return one === 255 ? null : one; };
    return {
      universal: explorer.isUniversal(seed, at),
      properties: Object.fromEntries(run.ranked.map((one, column) => [one.name, {value: value(seed, one.name, at), percentile_in_layer: percentile(column)}])),
      ...Object.fromEntries(run.texts.map(name => [name, word(seed, name, at)])),
      ...Object.fromEntries(run.plain.map(name => [name, plain(seed, name, at)])),
    };
  }

  /* All that the page shows of a neuron. */
  async function asJson({seed, at}, get) {
    const {run, exampleData, near, trainingOf, partnersOf, passagesOf} = explorer, {tokens} = seed, layer = seed.data.layer.values[at], neuron = seed.data.neuron.values[at];
    const written = name => { const {shape: [, count], values} = tokens[name]; return [...values.subarray(at * count, (at + 1) * count)].map((token, place) => ({token: tokenName(token), cosine: tokens[`${name}_cos`].values[at * count + place] / 10000})); };
    const passages = await passagesOf({seed, at}), partners = await partnersOf({seed, at}, get);
    return {
      run: run.run, seed: seed.name, layer, neuron, threshold: run.threshold, ...columnsOf(seed, at),
      promoted: written('promoted'), suppressed: written('suppressed'),
      pre_activation: {low: get('first')[0], high: get('last')[0], counts: [...get('counts')], lowest: explorer.lowest(get)},
      examples: exampleData(get).map((one, rank) => ({
        ...one, tokens: one.tokens.map(tokenName),
        other_seeds: passages?.[rank] ? Object.fromEntries(partners.filter(other => other.where).map(other => [other.where, passages[rank][run.seeds.indexOf(other.name)].activations])) : undefined,
      })),
      best_matches: partners.filter(one => one.where).map(one => ({neuron: one.where, correlation: one.corr, rotated_basis: one.baseline, label: one.get ? labelOf(one.other, one.at) : null})),
      ...Object.fromEntries(Object.entries(near(get)).map(([name, rows]) => [name, rows.map(({flat, ...rest}) => ({neuron: placeOf(seed, flat), ...rest}))])),
      training: trainingOf(get), interventions: seed.name === run.reference ? run.measured[`${layer}/${neuron}`] ?? null : null,
    };
  }

  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* a browser may forbid it for files */ }
    const field = element('textarea', {value: text});
    document.body.append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    return done;
  }

  function keepers() {
    recallStars();
    $('star').addEventListener('click', () => { star(address(explorer.here.seed, explorer.here.at)); showStar(); if ($('starred').checked) explorer.listAnew(); });
    $('copy').addEventListener('click', async () => {
      $('copy').textContent = await copy(location.href) ? 'Copied' : 'Not copied';
      setTimeout(() => { $('copy').textContent = 'Copy link'; }, 1500);
    });
    $('save').addEventListener('click', async () => {
      const own = explorer.here;
      save(`${explorer.run.run}-${address(own.seed, own.at).replaceAll('/', '-')}.json`, await asJson(own, await explorer.details(own.seed, own.at)));
    });
    $('save-stars').addEventListener('click', async () => {
      const names = [...stars].map(name => name.split('/'));
      const content = await Promise.all(names.map(async ([name, layer, neuron]) => {
        const seed = explorer.run.seeds.includes(name) ? await explorer.seedOf(name) : null, at = seed?.row.get(layer * seed.neurons + Number(neuron));
        return {seed: name, layer: Number(layer), neuron: Number(neuron), ...(at === undefined ? {} : columnsOf(seed, at))};
      }));
      save(`${explorer.run.run}-starred.json`, {run: explorer.run.run, neurons: content});
    });
  }

  Object.assign(explorer, {isStarred, showStar, keepers});
})();
