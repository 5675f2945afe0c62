/* What the page does: shows the neuron of its address, #seed/layer/neuron, and answers to its controls.
   Filters and search follow in the address, where they are not as at first: #a/0/17?q=german&what=fires */
(() => {
  'use strict';
  const {
    $, element, drawn, number, load, seedOf, withTokens, details, value, address, labelOf, badges, sentence, circuits, histogram, lowest, logits, examples, properties, acrossSeeds,
    sparkline, weights, scatter, nearest, list, listAnew, listMore, chosen, isAddress, keepers,
  } = explorer;
  function emptySections() { // which other parts fill
    for (const section of document.querySelectorAll('#body > section')) { section.hidden = true; section.replaceChildren(); }
  }

  async function show() {
    const own = explorer.here, {seed, at} = own, name = address(seed, at), layer = seed.data.layer.values[at];
    $('name').textContent = `${seed.name} / layer ${layer} / neuron ${seed.data.neuron.values[at]}`;
    document.title = `${name} · Neurons · ${explorer.run.run}`;
    explorer.showStar();
    const get = await details(seed, at);
    if (explorer.here !== own) return;
    const heading = (text, small) => element('h3', {}, text, small ? element('small', {textContent: ` ${small}`}) : null);
    const made = element('div', {className: 'matches-wait none', textContent: 'Loading the other seeds …'}), effect = circuits(seed, at), low = lowest(get);
    const grown = sparkline(get), near = weights(seed, at, get);
    emptySections();
    $('above').replaceChildren(...[
      badges(seed, at), sentence(seed, at),
      element('div', {className: 'pair'},
        element('section', {}, heading('Pre-activation', `a sample of ${[...get('counts')].reduce((sum, one) => sum + one, 0).toLocaleString('en')} tokens, on a log scale; active right of 0`), histogram(get), low ? element('p', {className: 'none', textContent: `Lowest value: ${low}.`}) : null),
        element('section', {}, heading('Promotes', 'cos(w_out, W_U)'), logits(seed, at, 'promoted', 'up')),
        element('section', {}, heading('Suppresses', 'cos(w_out, W_U)'), logits(seed, at, 'suppressed', 'down'))),
      heading('Strongest examples', 'point at a token for its activation; ⟨E2⟩ is a raw byte, ␣11 is 11 spaces, ⏎ a line end'), examples(get, Infinity, false),
    ].filter(Boolean));
    $('below').replaceChildren(...[
      heading('In the other seeds', 'the most correlated neuron of each'), made,
      ...(grown ? [heading('Over training', 'excess correlation at checkpoints; dashed: threshold'), grown] : []),
      ...(near ? [heading('Within this model', 'cosines of weights; z in standard deviations of a layer’s cosines'), near] : []),
      heading('Properties', `value, and percentile in layer ${layer}`), properties(seed, at),
      ...(effect ? [heading('Circuits and effects'), ...effect] : []),
    ].filter(Boolean));
    const neuron = {seed, layer, neuron: seed.data.neuron.values[at], at, get, run: explorer.run, element, drawn};
    for (const section of window.explorerSections) section(neuron);
    $('card').dataset.shown = name;
    const found = await acrossSeeds(own, get);
    if (explorer.here === own) { made.replaceWith(...found); $('card').dataset.complete = name; }
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
    const [where, query] = location.hash.slice(1).split(/\?(.*)/), parts = decodeURIComponent(where).split('/'), [name, layer, neuron] = [parts[0], Number(parts[1]), Number(parts[2])];
    if (query !== undefined) setControls(new URLSearchParams(query));
    if (!where) return follow.first();
    if (!explorer.run.seeds.includes(name)) return fail(`There is no seed “${name}”. The seeds are ${explorer.run.seeds.join(', ')}.`);
    const seed = await withTokens(await seedOf(name)), at = seed.row.get(layer * seed.neurons + neuron);
    const exists = Number.isInteger(layer) && Number.isInteger(neuron) && layer >= 0 && layer < seed.layers && neuron >= 0 && neuron < seed.neurons;
    if (!exists) return fail(`There is no neuron “${parts.slice(1).join('/')}” in seed ${name}; layers are 0 to ${seed.layers - 1}, neurons 0 to ${seed.neurons - 1}.`);
    if (at === undefined) return fail(`This page holds ${seed.count.toLocaleString('en')} neurons of seed ${name}: ${explorer.run.holds}. ${parts.slice(1).join('/')} is none of them. The tables have all.`);
    explorer.here = {seed, at};
    $('seed').value = name;
    if ($('layer').value !== 'all') $('layer').value = String(layer);
    $('number').value = neuron;
    list();
    keepControls();
    $('rows').querySelector('[aria-current]')?.scrollIntoView({block: 'nearest'});
    return show();
  }
  follow.first = async (name = explorer.run.reference) => {
    const seed = await withTokens(await seedOf(name));
    explorer.here = {seed, at: 0};
    explorer.listed = chosen();
    explorer.here = {seed, at: explorer.listed[0] ?? 0};
    keepControls();
    return follow();
  };

  /* ------------------------------------------------------------ controls in the address */

  const KEPT = {q: 'search', what: 'what', layer: 'layer', family: 'family', role: 'role', order: 'order', universal: 'universal', starred: 'starred', up: 'up', across: 'across'};
  const first = {};  // their values at the beginning
  const valueOf = id => $(id).type === 'checkbox' ? ($(id).checked ? '1' : '') : $(id).value;
  const usual = id => id === 'order' && $('search').value ? 'match' : first[id];  // of a control, given the search
  function setControls(query) {
    for (const [name, id] of Object.entries(KEPT)) {
      const wanted = query.get(name) ?? usual(id);
      if ($(id).type === 'checkbox') $(id).checked = wanted === '1'; else $(id).value = wanted;
      if ($(id).tagName === 'SELECT' && $(id).selectedIndex < 0) $(id).value = first[id];  // no such choice
    }
  }
  function keepControls() {
    const query = new URLSearchParams(Object.entries(KEPT).filter(([, id]) => valueOf(id) !== usual(id)).map(([name, id]) => [name, valueOf(id)]));
    const where = `#${address(explorer.here.seed, explorer.here.at)}${query.size ? `?${query}` : ''}`;
    if (location.hash !== where) history.replaceState(null, '', where);
  }

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
    options($('order'), [['match', 'best match'], ...columns, ...(families.length ? [['score', 'score of its label']] : []), ['place', 'place in the model']]);
    options($('up'), columns); options($('across'), [['layer', 'layer'], ...columns]);
    explorer.firstOrder = columns.some(([name]) => name === 'excess_corr') ? 'excess_corr' : columns[0]?.[0] ?? 'place';
    $('order').value = $('up').value = explorer.firstOrder;
    $('across').value = 'layer';
    $('number').max = Math.max(...Object.values(explorer.run.shapes).map(shape => shape[1])) - 1;
    $('family').disabled = !families.length;
    $('controls').addEventListener('submit', event => event.preventDefault());
    for (const id of Object.values(KEPT)) first[id] = valueOf(id);
    const again = () => { listAnew(); keepControls(); };
    for (const name of ['layer', 'family', 'role', 'order', 'universal', 'starred', 'what']) $(name).addEventListener('change', again);
    $('search').addEventListener('input', () => {
      if ($('search').value && $('order').value === explorer.firstOrder) $('order').value = 'match';
      if (!$('search').value && $('order').value === 'match') $('order').value = explorer.firstOrder;
      again();
    });
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
    for (const name of ['up', 'across']) $(name).addEventListener('change', () => { scatter(); keepControls(); });
    $('more').addEventListener('click', listMore);
    $('previous').addEventListener('click', () => step(-1));
    $('random').addEventListener('click', () => {
      const others = explorer.listed.filter(at => at !== explorer.here.at);
      if (others.length) go(explorer.here.seed, others[Math.floor(Math.random() * others.length)]);
    });
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
    keepers();
    addEventListener('hashchange', () => follow().catch(error => fail(error.message)));
    await follow();
  }).catch(error => fail(error.message));
})();
