/* What the page does: shows the neuron of its address, #seed/layer/neuron, and answers to its controls. */
(() => {
  'use strict';
  const {$, element, drawn, number, load, seedOf, details, value, address, labelOf, badges, sentence, circuits, histogram, logits, examples, properties, matches, scatter, nearest, list, listAnew, listMore, chosen, isAddress} = explorer;
  function emptySections() { // which other parts fill
    for (const section of document.querySelectorAll('#body > section')) { section.hidden = true; section.replaceChildren(); }
  }

  async function show() {
    const own = explorer.here, {seed, at} = own, name = address(seed, at);
    $('name').textContent = `${seed.name} / layer ${seed.data.layer.values[at]} / neuron ${seed.data.neuron.values[at]}`;
    document.title = `${name} · Neurons · ${explorer.run.run}`;
    const get = await details(seed, at);
    if (explorer.here !== own) return;
    const heading = (text, small) => element('h3', {}, text, small ? element('small', {textContent: ` ${small}`}) : null);
    const made = element('div', {className: 'matches-wait none', textContent: 'Loading the other seeds …'}), effect = circuits(seed, at);
    emptySections();
    $('above').replaceChildren(...[
      badges(seed, at), sentence(seed, at),
      element('div', {className: 'pair'},
        element('section', {}, heading('Pre-activation', 'tokens on a log scale; active right of 0'), histogram(get)),
        element('section', {}, heading('Promotes', 'cos(w_out, W_U)'), logits(get, 'promoted', 'up')),
        element('section', {}, heading('Suppresses', 'cos(w_out, W_U)'), logits(get, 'suppressed', 'down'))),
      heading('Strongest examples', 'point at a token for its activation'), examples(get, Infinity, false),
    ].filter(Boolean));
    $('below').replaceChildren(...[
      heading('Best matches in the other seeds', 'the most correlated neuron of each'), made,
      heading('Properties', `value, and percentile in layer ${seed.data.layer.values[at]}`), properties(seed, at),
      ...(effect ? [heading('Circuits and effects'), ...effect] : []),
    ].filter(Boolean));
    const neuron = {seed, layer: seed.data.layer.values[at], neuron: seed.data.neuron.values[at], at, get, run: explorer.run, element, drawn};
    for (const section of window.explorerSections) section(neuron);
    $('card').dataset.shown = name;
    const found = await matches(own, get);
    if (explorer.here === own) { made.replaceWith(found); $('card').dataset.complete = name; }
  }

  /* ------------------------------------------------------------ ways to a neuron */

  function fail(text) {
    $('name').textContent = 'No such neuron';
    emptySections();
    $('above').replaceChildren(element('p', {className: 'none', textContent: text}));
    $('below').replaceChildren();
    delete $('card').dataset.shown;
  }

  async function follow() {
    const parts = decodeURIComponent(location.hash.slice(1)).split('/'), [name, layer, neuron] = [parts[0], Number(parts[1]), Number(parts[2])];
    if (!location.hash.slice(1)) return follow.first();
    if (!explorer.run.seeds.includes(name)) return fail(`There is no seed “${name}”. The seeds are ${explorer.run.seeds.join(', ')}.`);
    const seed = await seedOf(name), at = seed.row.get(layer * seed.neurons + neuron);
    const exists = Number.isInteger(layer) && Number.isInteger(neuron) && layer >= 0 && layer < seed.layers && neuron >= 0 && neuron < seed.neurons;
    if (!exists) return fail(`There is no neuron “${parts.slice(1).join('/')}” in seed ${name}; layers are 0 to ${seed.layers - 1}, neurons 0 to ${seed.neurons - 1}.`);
    if (at === undefined) return fail(`This page holds the ${seed.count.toLocaleString('en')} neurons of seed ${name} that match other seeds best, without ${parts.slice(1).join('/')}. The tables have all.`);
    explorer.here = {seed, at};
    $('seed').value = name;
    if ($('layer').value !== 'all') $('layer').value = String(layer);
    $('number').value = neuron;
    list();
    $('rows').querySelector('[aria-current]')?.scrollIntoView({block: 'nearest'});
    return show();
  }
  follow.first = async (name = explorer.run.reference) => {
    const seed = await seedOf(name);
    explorer.here = {seed, at: 0};
    explorer.listed = chosen();
    history.replaceState(null, '', `#${address(seed, explorer.listed[0] ?? 0)}`);
    return follow();
  };

  const go = (seed, at) => { location.hash = address(seed, at); };
  const step = by => {
    if (!explorer.listed.length || !explorer.here) return;
    const at = explorer.listed.indexOf(explorer.here.at);
    go(explorer.here.seed, explorer.listed[at < 0 ? 0 : (at + by + explorer.listed.length) % explorer.listed.length]);
  };

  function options(select, entries) { select.replaceChildren(...entries.map(([key, text]) => element('option', {value: key, textContent: text}))); }

  function controls() {
    const columns = explorer.run.ranked.map(one => [one.name, one.words]), families = Object.entries(explorer.run.families).filter(([key]) => explorer.run.words.includes(key));
    options($('seed'), explorer.run.seeds.map(name => [name, name === explorer.run.reference ? `${name} (ref.)` : name]));
    options($('layer'), [['all', 'all'], ...Array.from({length: Math.max(...Object.values(explorer.run.shapes).map(shape => shape[0]))}, (_, layer) => [layer, layer])]);
    options($('family'), [['', 'all'], ...families]);
    options($('role'), [['', 'all'], ...['prediction', 'suppression', 'partition'].filter(role => explorer.run.words.includes(role)).map(role => [role, role])]);
    options($('order'), [...columns, ...(families.length ? [['score', 'score of its label']] : []), ['place', 'place in the model']]);
    options($('up'), columns); options($('across'), [['layer', 'layer'], ...columns]);
    $('order').value = $('up').value = columns.some(([name]) => name === 'excess_corr') ? 'excess_corr' : columns[0]?.[0];
    $('across').value = 'layer';
    $('number').max = Math.max(...Object.values(explorer.run.shapes).map(shape => shape[1])) - 1;
    $('family').disabled = !families.length;
    $('controls').addEventListener('submit', event => event.preventDefault());
    for (const name of ['layer', 'family', 'role', 'order', 'universal']) $(name).addEventListener('change', listAnew);
    $('search').addEventListener('input', listAnew);
    $('search').addEventListener('keydown', event => {
      if (event.key !== 'Enter') return;
      const direct = isAddress($('search').value);
      if (direct) location.hash = direct; else if (explorer.listed.length) go(explorer.here.seed, explorer.listed[0]);
    });
    $('seed').addEventListener('change', () => {
      const layer = explorer.here.seed.data.layer.values[explorer.here.at], neuron = explorer.here.seed.data.neuron.values[explorer.here.at];
      seedOf($('seed').value).then(seed => neuron < seed.neurons && seed.row.has(layer * seed.neurons + neuron) ? go(seed, seed.row.get(layer * seed.neurons + neuron)) : follow.first(seed.name));
    });
    $('number').addEventListener('change', () => {
      const layer = $('layer').value === 'all' ? explorer.here.seed.data.layer.values[explorer.here.at] : $('layer').value;
      location.hash = `${explorer.here.seed.name}/${layer}/${$('number').value}`;
    });
    for (const name of ['up', 'across']) $(name).addEventListener('change', scatter);
    $('more').addEventListener('click', listMore);
    $('previous').addEventListener('click', () => step(-1));
    $('next').addEventListener('click', () => step(1));
    addEventListener('keydown', event => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest('input, select, textarea, .wide, dialog')) return;
      if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') { event.preventDefault(); step(event.key === 'ArrowLeft' ? -1 : 1); }
    });
    $('scatter').addEventListener('click', event => { const place = nearest(event); if (place) go(explorer.here.seed, place.at); });
    $('scatter').addEventListener('pointermove', event => {
      const place = nearest(event), seed = explorer.here?.seed;
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
    addEventListener('resize', () => explorer.here && scatter());
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => explorer.here && scatter());
    new MutationObserver(() => explorer.here && scatter()).observe(document.documentElement, {attributes: true, attributeFilter: ['data-theme']});
    const finder = document.querySelector('.finder'), wide = matchMedia('(min-width: 861px)');
    const fold = () => { finder.open = wide.matches; };
    wide.addEventListener('change', fold);
    finder.addEventListener('toggle', () => explorer.here && scatter());
    fold();
  }

  load('run').then(async content => {
    explorer.run = content;
    controls();
    addEventListener('hashchange', () => follow().catch(error => fail(error.message)));
    await follow();
  }).catch(error => fail(error.message));
})();
