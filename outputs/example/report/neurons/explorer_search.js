/* Search: which neurons a query means, how well each hit fits, and what in it matched.
   A query is words, with quotes for a word as such: german, "the", suppresses: newline, which fire on closing brackets?
   A hit is a field of a neuron that has every term of the query: {at, tier, score, field, text, marks}. Hits are ranked
   by tier (how literally and completely the field matches), then by the field's own score. */
(() => {
  'use strict';
  const {plain, word} = explorer;
  const FIELDS = {fires: 'fires on', promotes: 'promotes', suppresses: 'suppresses', role: 'role'};
  const SCOPES = {any: ['fires', 'promotes', 'suppresses', 'role'], fires: ['fires'], writes: ['promotes', 'suppresses'], promotes: ['promotes'], suppresses: ['suppresses']};
  const WORDS = /"[^"]*"|\([a-z]{2}\)|-?[\p{L}\p{N}]+(?:['-][\p{L}\p{N}]+)*:?|[^\s\p{L}\p{N}"]/gu;

  const straight = text => text.replace(/[“”„‟]/g, '"').replace(/[‘’‚‛]/g, "'");
  function stem(text) {
    if (text.length < 4 || /(?:ss|us|is)$/.test(text)) return text;
    return text.replace(/ies$/, 'y').replace(/(s|x|z|ch|sh)es$/, '$1').replace(/([^s])s$/, '$1');
  }
  /* The words of a text: {text, stem, quoted, colon, start, end}; a colon belongs to the word before it. */
  const wordsOf = text => [...straight(text).toLowerCase().matchAll(WORDS)].map(found => {
    const quoted = found[0].length > 2 && found[0].startsWith('"'), colon = !quoted && found[0].length > 1 && found[0].endsWith(':');
    const own = quoted ? found[0].slice(1, -1).trim() : colon ? found[0].slice(0, -1) : found[0];
    return {text: own, stem: quoted ? own : stem(own), quoted, colon, start: found.index, end: found.index + found[0].length};
  });
  const stems = text => wordsOf(text).map(one => one.stem);

  let known;  // the run's synonyms, as stems
  function vocabulary() {
    if (known) return known;
    const {synonyms, signs, asks, ignored} = explorer.run.search, groups = synonyms.map(group => group.map(stems));
    const asked = new Map(Object.entries(asks).flatMap(([scope, list]) => list.map(one => [one, scope])));
    return known = {groups, signs, asked, ignored: new Set(ignored.split(/\s+/)), longest: Math.max(...groups.flat().map(one => one.length))};
  }
  const same = (one, other) => one.length === other.length && one.every((text, at) => text === other[at]);

  /* {scope, terms}: each term has `variants`, lists of stems that mean it, the query's own first. */
  function parsed(query, chosen) {
    const {groups, signs, asked, ignored, longest} = vocabulary();
    let scope = chosen, words = wordsOf(query);
    const first = words.findIndex(one => !one.quoted && asked.has(one.text) && (one.colon || words.length > 1));
    if (first >= 0) {
      if (scope === 'any') scope = asked.get(words[first].text);
      words.splice(first, 1);
    }
    if (first >= 0 || /^(which|what|where|show|find|neurons?)$/.test(words[0]?.text)) {
      while (words.length > 1 && /^[?.!]$/.test(words.at(-1).text)) words.pop();
      words = words.filter((one, at) => one.quoted || at === words.length - 1 || !ignored.has(one.text) || asTerm(words, at));
    }
    function asTerm(all, at) { // a word that says nothing may be part of a phrase
      return groups.flat().some(phrase => phrase.length > 1 && phrase.some((_, offset) => at >= offset && same(phrase, all.slice(at - offset, at - offset + phrase.length).map(one => one.stem))));
    }
    const terms = [];
    for (let at = 0; at < words.length;) {
      let size = 1, means = [];
      if (!words[at].quoted) for (let length = Math.min(longest, words.length - at); length >= 1 && !means.length; length--) {
        const own = words.slice(at, at + length).map(one => one.stem);
        means = groups.filter(group => group.some(phrase => same(phrase, own))).flat();
        if (means.length) size = length;
      }
      const own = words.slice(at, at + size), raw = own.map(one => one.text).join(' ');
      const names = signs[raw] ? [stems(signs[raw])] : [];
      terms.push({raw, quoted: words[at].quoted, variants: [own.map(one => one.stem), ...means, ...names]});
      at += size;
    }
    return {scope, terms};
  }

  /* How a term is in a list of words: {rank, from, to}, 3 as it stands, 2 by a synonym, 1 by its beginning; or null. */
  function inWords(words, term, last) {
    for (const [number, variant] of term.variants.entries()) {
      for (let from = 0; from + variant.length <= words.length; from++) {
        if (term.quoted && !words[from].quoted) continue;
        if (variant.every((text, offset) => words[from + offset].stem === text || words[from + offset].text === text)) return {rank: number ? 2 : 3, from, to: from + variant.length};
      }
    }
    if (!last || term.quoted || term.raw.length < 3) return null;
    const from = words.findIndex(one => one.text.startsWith(term.raw));
    return from < 0 ? null : {rank: 1, from, to: from + 1};
  }

  /* A label's hit: {tier, marks}, or null. `about` are words that belong to it but do not stand in it; so many terms may
     be `lacking`. */
  function inLabel(label, terms, about, lacking) {
    const words = wordsOf(label), beside = wordsOf(about), marks = [], covered = new Set();
    let tier = 3, missing = 0;
    for (const [number, term] of terms.entries()) {
      let found = inWords(words, term, number === terms.length - 1);
      if (found) {
        for (let at = found.from; at < found.to; at++) covered.add(at);
        marks.push([words[found.from].start, words[found.to - 1].end]);
      } else if ((found = inWords(beside, term, false))) found.rank = 1;
      else if (++missing > lacking) return null;
      else continue;
      tier = Math.min(tier, found.rank);
    }
    if (missing === terms.length) return null;
    const shifted = words.length && words[0].colon && ['previous', 'next'].includes(words[0].text);
    const colon = shifted ? 0 : words.findIndex(one => one.colon) + 1, core = words.map((_, at) => at).slice(words[0]?.text === 'word' ? 1 : colon);
    if (marks.length && core.every(at => covered.has(at))) tier = Math.max(tier, 2) + 1;
    else if (shifted && !covered.has(0)) tier -= 1;
    return {tier, marks};
  }

  /* A token's tier, 0 for none: its text as such, or signs by their names unless only the text counts. */
  function inToken(text, terms, signs, named) {
    const bare = text.trim().toLowerCase(), own = {text: bare, stem: stem(bare), quoted: true};
    const names = !named ? [] : [...bare].every(sign => signs[sign]) ? [...new Set(bare)].flatMap(sign => wordsOf(signs[sign])) : /^\d+$/.test(bare) ? wordsOf('digits') : [];
    const found = terms.map(term => inWords([own], term, false) ?? inWords(names, term, false));
    if (!bare || found.some(one => !one)) return 0;
    return Math.min(...found.map(one => one.rank)) + (bare.length === 1 || terms.some(term => term.raw === bare) ? 1 : 0);
  }

  /* The neurons of a seed among `rows` that a query finds, best first: `hits` by place; `lacking` is 1 if none had all
     terms and these have all but one. */
  function found(seed, rows, query, chosen) {
    const all = hitsOf(seed, rows, query, chosen, 0);
    return all.hits?.size === 0 && all.terms > 1 ? {...hitsOf(seed, rows, query, chosen, 1), lacking: 1} : {...all, lacking: 0};
  }

  function hitsOf(seed, rows, query, chosen, lacking) {
    const {scope, terms} = parsed(query, chosen), {run} = explorer, {tokens} = seed, kinds = SCOPES[scope], labels = new Map(), signs = run.search.signs, writes = scope === 'any' ? 1.5 : 0;
    if (!terms.length) return {terms: 0, hits: null};
    const ofLabel = (text, about) => {
      const key = `${text}\n${about}`;
      if (!labels.has(key)) labels.set(key, inLabel(text, terms, about, lacking));
      return labels.get(key);
    };
    const ofToken = run.vocabulary.map(text => inToken(text, terms, signs, scope !== 'any')), hits = [];
    for (const at of rows) {
      let best = null;
      const offer = (field, text, hit, score, less = 0) => {
        if (hit && kinds.includes(field) && (!best || hit.tier - less > best.tier || (hit.tier - less === best.tier && score > best.score))) best = {at, tier: hit.tier - less, score, field: FIELDS[field], text, marks: hit.marks};
      };
      const label = (field, name, score, about, less) => { const text = word(seed, name, at); if (text && score > 0) offer(field, text, ofLabel(text, about), score, less); };
      if (kinds.includes('fires')) {
        const chance = plain(seed, 'chance', at), family = word(seed, 'family', at), runnerUp = plain(seed, 'runner_up_score', at);
        if (family && family !== 'unexplained') label('fires', 'label', plain(seed, 'score', at), run.families[family] ?? '', 0);
        if (runnerUp > chance) label('fires', 'runner_up_label', runnerUp, '', 1);
      }
      for (const [field, name] of [['promotes', 'raised'], ['suppresses', 'lowered']]) {
        const score = plain(seed, `${name}_score`, at);
        if (score > plain(seed, 'null_score', at)) label(field, name, score, '', writes);
      }
      if (kinds.includes('role')) {
        const role = word(seed, 'role_learned', at), own = seed.name === run.reference ? run.measured[`${seed.data.layer.values[at]}/${seed.data.neuron.values[at]}`] : null;
        for (const text of [role && role !== 'none' ? `${role} neuron` : '', ...(own?.group ?? [])].filter(Boolean)) offer('role', text, ofLabel(text, 'candidate neuron'), 1, .5);
      }
      if (tokens) for (const [field, name, less] of [['fires', 'peak', 2], ['promotes', 'promoted', writes], ['suppresses', 'suppressed', writes]]) {
        const {shape: [, number], values} = tokens[name], cosines = tokens[`${name}_cos`]?.values;
        for (let place = 0; place < number; place++) {
          const token = values[at * number + place], tier = ofToken[token];
          if (!tier) continue;
          const text = run.vocabulary[token];
          offer(field, name === 'peak' ? `“${text}” in its strongest examples` : `“${text}”`, {tier, marks: [[1, text.length + 1]]}, cosines ? Math.abs(cosines[at * number + place]) / 10000 : (number - place) / number / 100, less);
        }
      }
      if (best) hits.push(best);
    }
    hits.sort((a, b) => b.tier - a.tier || b.score - a.score || a.at - b.at);
    return {terms: terms.length, hits: new Map(hits.map(hit => [hit.at, hit]))};
  }

  Object.assign(explorer, {found});
})();
