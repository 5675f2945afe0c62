/* A neuron in the other seeds: its best matches, what they do on the same passages, and the label that they share. */
(() => {
  'use strict';
  const {element, fixed, quoted, load, seedOf, details, plain, word, labelOf, examples, exampleData, passage, unshaded} = explorer;
  const MATCH_EXAMPLES = 3;

  /* Of each compared seed: {name, partner, corr, baseline, where, other, at, get}; at is undefined if the page lacks it. */
  async function partnersOf(own, get) {
    const others = explorer.run.seeds.filter(name => name !== own.seed.name);
    return Promise.all(others.map(async (name, index) => {
      const partner = get('partner')[index], one = {name, partner, corr: get('corr')[index], baseline: get('baseline')[index]};
      if (partner < 0) return one;
      const other = await seedOf(name), at = other.row.get(partner), where = `${name}/${Math.floor(partner / other.neurons)}/${partner % other.neurons}`;
      return {...one, other, at, where, get: at === undefined ? null : await details(other, at)};
    }));
  }

  function matchCard(own, one) {
    const box = element('section', {className: 'match'});
    if (one.partner < 0) { box.append(element('h4', {textContent: `seed ${one.name}`}), element('p', {className: 'none', textContent: 'Not compared.'})); return box; }
    const numbers = element('p', {className: 'numbers', textContent: `correlation ${fixed(one.corr, 3)}, rotated basis ${fixed(one.baseline, 3)}`});
    box.dataset.match = one.where;
    if (!one.get) { box.append(element('h4', {textContent: one.where}), numbers, element('p', {className: 'none', textContent: 'This page does not hold the neuron.'})); return box; }
    const back = explorer.run.seeds.filter(name => name !== one.name).indexOf(own.seed.name), label = labelOf(one.other, one.at);
    const mutual = one.get('partner')[back] === own.seed.data.layer.values[own.at] * own.seed.neurons + own.seed.data.neuron.values[own.at];
    numbers.append(mutual ? ', mutual best matches' : '', label ? element('br') : '', label ?? '');
    box.append(element('h4', {}, element('a', {href: `#${one.where}`, textContent: one.where})), numbers, examples(one.get, MATCH_EXAMPLES, true));
    return box;
  }

  function consensus({seed, at}) {
    const members = plain(seed, 'consensus_members', at), label = word(seed, 'consensus', at), score = plain(seed, 'consensus_score', at);
    if (!explorer.run.words.length || !word(seed, 'label', at)) return null;
    const votes = plain(seed, 'consensus_votes', at), share = `${votes} of the ${members} neurons of this set above chance`;
    const text = !label ? 'No consensus: no label explains two neurons of this set above chance.'
      : 2 * votes > members ? `Consensus: ${quoted(label)}. It explains ${share}, ${fixed(100 * score, 1)} % of their variance on average.`
        : `No consensus: the most frequent label, ${quoted(label)}, explains ${share}.`;
    return element('p', {className: 'consensus', textContent: text});
  }

  /* Activations of the best matches on the neuron's strongest examples: passages × seeds × window, or null. */
  async function passagesOf({seed, at}) {
    const data = await load('passages'), flat = seed.data.layer.values[at] * seed.neurons + seed.data.neuron.values[at], index = explorer.run.seeds.indexOf(seed.name);
    const row = data.flat.values.findIndex((one, place) => one === flat && data.seed.values[place] === index);
    if (row < 0) return null;
    const [, count, seeds, window] = data.shade.shape;
    return Array.from({length: count}, (_, rank) => Array.from({length: seeds}, (_, other) => {
      const place = (row * count + rank) * seeds + other, shades = data.shade.values.subarray(place * window, (place + 1) * window);
      return {activations: Array.from(shades, shade => unshaded(shade, data.low.values[place], data.high.values[place])), top: data.top.values[row * seeds + other]};
    }));
  }

  async function samePassages(own, get, partners) {
    const found = await passagesOf(own);
    if (!found) return null;
    const shown = exampleData(get).slice(0, found.length);
    const line = (name, tokens, activations, most, link) => element('div', {className: 'line'}, link ? element('a', {href: `#${link}`, textContent: name}) : element('b', {textContent: name}), passage(tokens, activations, most));
    return element('div', {className: 'same'}, ...shown.map((one, rank) => {
      const box = element('section', {}, line(explorer.address(own.seed, own.at), one.tokens, one.activations, get('high')[0], null));
      for (const partner of partners) {
        const {activations, top} = found[rank][explorer.run.seeds.indexOf(partner.name)];
        if (!activations.some(Number.isFinite)) continue;
        const within = one.activations.map((own, place) => own === undefined ? undefined : activations[place]);
        box.append(line(partner.where, one.tokens, within, top, partner.get ? partner.where : null));
      }
      return box;
    }));
  }

  /* What stands below the heading, once the other seeds are loaded. */
  async function acrossSeeds(own, get) {
    const partners = await partnersOf(own, get), same = await samePassages(own, get, partners);
    return [
      consensus(own),
      same ? element('h4', {className: 'effect'}, 'The same passages in all seeds', element('small', {textContent: ' each neuron shaded up to its own largest activation on the text'})) : null, same,
      same ? element('h4', {className: 'effect', textContent: 'Their own strongest examples'}) : null,
      element('div', {className: 'matches'}, ...partners.map(one => matchCard(own, one))),
    ].filter(Boolean);
  }

  Object.assign(explorer, {acrossSeeds, partnersOf, passagesOf});
})();
