/* The neurons found: filters, search and the list. */
(() => {
  'use strict';
  const {$, element, number, value, plain, word, address, isUniversal, labelOf} = explorer;
  const FIRST_ROWS = 100;
  let limit = FIRST_ROWS;

  const searched = (seed, at) => seed.texts[at] ??= explorer.run.texts.map(name => name === 'family' ? explorer.run.families[word(seed, name, at)] : word(seed, name, at)).filter(Boolean).join(' ').toLowerCase();

  function chosen() {
    const seed = explorer.here.seed, layer = $('layer').value, family = $('family').value, role = $('role').value;
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
    explorer.listed = chosen();
    const seed = explorer.here.seed, by = $('order').value, body = $('rows').tBodies[0];
    const shownBy = by === 'place' ? 'excess_corr' : by;
    $('by').textContent = by === 'score' ? 'score' : shownBy === 'excess_corr' ? 'excess' : 'value';
    body.replaceChildren(...explorer.listed.slice(0, limit).map(at => {
      const row = element('tr', {className: isUniversal(seed, at) ? 'universal' : ''},
        element('td', {}, element('a', {href: `#${address(seed, at)}`, textContent: address(seed, at)})),
        element('td', {textContent: number(shownBy === 'score' ? plain(seed, 'score', at) : value(seed, shownBy, at))}),
        element('td', {textContent: labelOf(seed, at) ?? '', title: labelOf(seed, at) ?? ''}));
      if (at === explorer.here.at) row.setAttribute('aria-current', 'true');
      return row;
    }));
    $('more').hidden = explorer.listed.length <= limit;
    const universal = explorer.listed.filter(at => isUniversal(seed, at)).length, all = seed.layers * seed.neurons;
    $('found').textContent = `${explorer.listed.length.toLocaleString('en')} neurons of seed ${seed.name}, ${universal.toLocaleString('en')} of them universal`
      + (seed.count < all ? `. This page holds the ${seed.count.toLocaleString('en')} of ${all.toLocaleString('en')} that match other seeds best. The tables have all.` : '.');
    explorer.scatter();
  }

  function isAddress(text) {
    const match = text.trim().match(/^#?(?:([\w-]+)[/ ])?L?(\d+)[/. ](\d+)$/i);
    return match && (!match[1] || explorer.run.seeds.includes(match[1])) ? `${match[1] ?? explorer.here.seed.name}/${match[2]}/${match[3]}` : null;
  }

  const listAnew = () => { limit = FIRST_ROWS; if (explorer.here) list(); };
  const listMore = () => { limit *= 3; list(); };

  Object.assign(explorer, {list, listAnew, listMore, chosen, isAddress});
})();
