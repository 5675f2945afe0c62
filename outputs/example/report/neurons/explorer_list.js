/* The neurons found: filters, search and the list. */
(() => {
  'use strict';
  const {$, element, number, value, plain, word, address, isUniversal, labelOf} = explorer;
  const FIRST_ROWS = 100;
  let limit = FIRST_ROWS;

  /* Places of the neurons that pass the filters and the search, in the order chosen; explorer.hits has what matched. */
  function chosen() {
    const seed = explorer.here.seed, layer = $('layer').value, family = $('family').value, role = $('role').value, query = $('search').value.trim();
    let rows = [];
    for (let at = 0; at < seed.count; at++) {
      if (layer !== 'all' && seed.data.layer.values[at] !== Number(layer)) continue;
      if (family && word(seed, 'family', at) !== family) continue;
      if (role && word(seed, 'role_learned', at) !== role) continue;
      if ($('universal').checked && !isUniversal(seed, at)) continue;
      if ($('starred').checked && !explorer.isStarred(address(seed, at))) continue;
      rows.push(at);
    }
    const {hits, lacking} = !query || isAddress(query) ? {hits: null} : explorer.found(seed, rows, query, $('what').value);
    Object.assign(explorer, {hits, lacking});
    if (explorer.hits) rows = rows.filter(at => explorer.hits.has(at));
    const by = order();
    if (by === 'match') return [...explorer.hits.keys()];
    if (by === 'place') return rows;
    const key = by === 'score' ? at => plain(seed, 'score', at) : at => value(seed, by, at);
    const keys = new Map(rows.map(at => [at, key(at)]));
    return rows.sort((a, b) => (Number.isNaN(keys.get(a)) - Number.isNaN(keys.get(b))) || keys.get(b) - keys.get(a) || a - b);
  }
  const order = () => $('order').value !== 'match' ? $('order').value : explorer.hits ? 'match' : explorer.firstOrder;

  function marked(text, marks) {
    const parts = [];
    let end = 0;
    for (const [from, to] of [...marks].sort((a, b) => a[0] - b[0])) {
      if (from < end) continue;
      parts.push(text.slice(end, from), element('mark', {textContent: text.slice(from, to)}));
      end = to;
    }
    return [...parts, text.slice(end)];
  }

  function described(seed, at) { // what matched, or the label
    const hit = explorer.hits?.get(at);
    if (!hit) return element('td', {textContent: labelOf(seed, at) ?? '', title: labelOf(seed, at) ?? ''});
    return element('td', {title: `${hit.field} ${hit.text}`}, element('small', {textContent: `${hit.field} `}), ...marked(hit.text, hit.marks));
  }

  function list() {
    explorer.listed = chosen();
    const seed = explorer.here.seed, by = order(), body = $('rows').tBodies[0];
    const shownBy = by === 'place' ? explorer.firstOrder : by;
    const numberOf = at => shownBy === 'match' ? explorer.hits.get(at).score : shownBy === 'score' ? plain(seed, 'score', at) : value(seed, shownBy, at);
    $('by').textContent = shownBy === 'match' || shownBy === 'score' ? 'score' : shownBy === 'excess_corr' ? 'excess' : 'value';
    $('why').textContent = explorer.hits ? 'what matched' : 'label';
    body.replaceChildren(...explorer.listed.slice(0, limit).map(at => {
      const row = element('tr', {className: isUniversal(seed, at) ? 'universal' : ''},
        element('td', {}, element('a', {href: `#${address(seed, at)}`, textContent: address(seed, at)})),
        element('td', {textContent: number(Number(numberOf(at)?.toPrecision(explorer.hits ? 2 : 4)))}),
        described(seed, at));
      if (at === explorer.here.at) row.setAttribute('aria-current', 'true');
      return row;
    }));
    $('more').hidden = explorer.listed.length <= limit;
    const universal = explorer.listed.filter(at => isUniversal(seed, at)).length, all = seed.layers * seed.neurons;
    $('found').textContent = explorer.hits && !explorer.listed.length ? 'Nothing found. Try fewer words, another seed, or no filter.'
      : `${explorer.lacking ? 'Nothing has all these words. With all but one: ' : ''}${explorer.listed.length.toLocaleString('en')} neurons of seed ${seed.name}, ${universal.toLocaleString('en')} of them universal`
      + (seed.count < all ? `. This page holds ${seed.count.toLocaleString('en')} of ${all.toLocaleString('en')}: ${explorer.run.holds}. The tables have all.` : '.');
    explorer.scatter();
  }

  function isAddress(text) {
    const match = text.trim().match(/^#?(?:([\w-]+)[/ ])?L?(\d+)[/. ](\d+)$/i);
    return match && (!match[1] || explorer.run.seeds.includes(match[1])) ? `${match[1] ?? explorer.here.seed.name}/${match[2]}/${match[3]}` : null;
  }
  const listAnew = () => { limit = FIRST_ROWS; if (explorer.here) list(); document.querySelector('.rows').scrollTop = 0; };
  const listMore = () => { limit *= 3; list(); };

  Object.assign(explorer, {list, listAnew, listMore, chosen, isAddress});
})();
