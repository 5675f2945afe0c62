/* Examples by activation interval: a few tokens of each tenth of the neuron's range, marked by whether its label holds
   there, and the tokens of largest mean activation. Data: `contexts` and `contexts.<number>` (lib/report/contexts.py). */
(() => {
  'use strict';
  const SHADES = 253, UNCOUNTED = 254, MORE = 48;  // tokens to each side of an expanded context
  const MARKS = [['✗', 'label does not hold'], ['✓', 'label holds'], ['·', 'label not known here']];
  const percent = (part, whole) => whole ? `${(100 * part / whole).toFixed(part && part < whole / 100 ? 1 : 0)} %` : '–';

  /* Whole words: outwards from a token as long as letters touch across its border. */
  const starts = text => /^[\p{L}\p{N}]|^⟨[0-9A-F]{2}[ ⟩]/u.test(text), ends = text => /[\p{L}\p{N}]$|⟨[0-9A-F ]+⟩$/u.test(text);
  function wholeWords(tokens, first, last) {
    const text = at => explorer.run.vocabulary[tokens[at]] ?? '';
    while (first > 0 && starts(text(first)) && ends(text(first - 1))) first--;
    while (last < tokens.length - 1 && ends(text(last)) && starts(text(last + 1))) last++;
    return [first, last];
  }

  function context(sample, own, slot, high) {
    const {element, passage} = explorer, [, size] = sample.tokens.shape, flat = own.place[slot], block = Math.floor(flat / size), at = flat % size;
    const tokens = [...sample.tokens.values.subarray(block * size, (block + 1) * size)], window = own.shade.length / own.place.length, radius = (window - 1) / 2;
    const shade = place => own.shade[slot * window + place - at + radius];
    const known = place => Math.abs(place - at) <= radius && shade(place) < UNCOUNTED;
    const text = (first, last) => { // the token is in the middle; places outside are left out
      const reach = Math.max(at - first, last - at), places = Array.from({length: 2 * reach + 1}, (_, index) => at - reach + index);
      const made = passage(places.map(place => tokens[place]), places.map(place => place < first || place > last ? undefined : known(place) ? shade(place) / SHADES * high : NaN), high);
      for (const [index, piece] of [...made.children].entries()) if (Math.abs(first + index - at) > radius) delete piece.dataset.activation;
      return made;
    };
    const short = wholeWords(tokens, Math.max(0, at - radius), Math.min(size - 1, at + radius));
    const long = wholeWords(tokens, Math.max(0, at - MORE), Math.min(size - 1, at + MORE));
    const [sign, about] = MARKS[own.carries[slot]], mark = element('b', {className: `mark ${['no', 'yes', 'unknown'][own.carries[slot]]}`, textContent: sign, title: about});
    mark.setAttribute('role', 'img'); mark.setAttribute('aria-label', about);
    const more = element('button', {type: 'button', textContent: 'more'}), box = element('div', {className: 'context'}, mark, text(...short), more);
    more.title = `${explorer.run.domains[sample.domain.values[block]]}, block ${sample.block.values[block]}, token ${at}`;
    more.setAttribute('aria-expanded', 'false');
    more.addEventListener('click', () => {
      const open = more.getAttribute('aria-expanded') === 'false';
      more.setAttribute('aria-expanded', String(open));
      more.textContent = open ? 'less' : 'more';
      box.replaceChild(text(...open ? long : short), box.children[1]);
    });
    return box;
  }

  function topTokens(own, least) {
    const {element, fixed} = explorer, rows = [...own.top_token.keys()].filter(rank => own.top_token[rank] >= 0), most = Math.max(...rows.map(rank => Math.abs(own.top_mean[rank])), 1e-9);
    if (!rows.length) return [];
    const items = rows.map(rank => {
      const bar = element('i'), text = explorer.run.vocabulary[own.top_token[rank]] ?? `id ${own.top_token[rank]}`;
      bar.style.width = `${100 * Math.max(0, own.top_mean[rank]) / most}%`;
      return element('li', {}, element('code', {textContent: text.replace(/^ +/, blanks => '␣'.repeat(blanks.length))}), element('span', {className: 'track'}, bar), element('span', {textContent: `${fixed(own.top_mean[rank], 2)} (${own.top_count[rank].toLocaleString('en')} ×)`}));
    });
    return [element('h4', {textContent: `Tokens by mean activation, of those that occur at least ${least} times in the labelled text`}), element('ul', {className: 'logits up means'}, ...items)];
  }

  async function fill({seed, at, run}) {
    const here = explorer.here, section = document.getElementById('contexts'), {element, fixed, quoted, load, word, plain} = explorer;
    if (seed.name !== run.reference || !run.contexts) return;
    const [sample, file] = await Promise.all([load('contexts'), load(`contexts.${Math.floor(at / run.chunk)}`)]);
    if (explorer.here !== here) return;
    const own = {}, row = at % run.chunk;
    for (const [name, {shape, values}] of Object.entries(file)) { const size = shape[1] ?? 1; own[name] = values.subarray(row * size, (row + 1) * size); }
    const [intervals, each, least] = sample.shape.values, high = own.high[0], count = (truth, interval) => own.counts[truth * (intervals + 1) + interval];
    const total = truth => Array.from({length: intervals + 1}, (_, interval) => count(truth, interval)).reduce((sum, one) => sum + one, 0);
    const label = word(seed, 'label', at), yes = total(1), judged = yes + total(0), less = plain(seed, 'difference', at) < 0;
    const rows = Array.from({length: intervals}, (_, index) => intervals - index).map(interval => {
      const held = count(1, interval), known = held + count(0, interval), tokens = known + count(2, interval), slots = Array.from({length: each}, (_, rank) => (interval - 1) * each + rank).filter(slot => own.place[slot] >= 0);
      const where = element('div', {className: 'where'}, element('b', {textContent: `${fixed((interval - 1) * high / intervals, 2)} to ${fixed(interval * high / intervals, 2)}`}), element('span', {textContent: `${tokens.toLocaleString('en')} token${tokens === 1 ? '' : 's'}`}));
      if (judged) where.append(element('span', {textContent: `precision ${percent(held, known)}`}), element('span', {textContent: `recall ${percent(held, yes)}`}));
      return element('li', {}, where, element('div', {}, ...slots.map(slot => context(sample, own, slot, high)), slots.length ? null : element('p', {className: 'none', textContent: 'No token in this sample.'})));
    });
    const says = [`The range from 0 to the largest activation, ${fixed(high, 2)}, is cut into tenths. Up to ${each} tokens of each are drawn at random from a sample of ${sample.counted.values[0].toLocaleString('en')} tokens, in which the highest tenths may be empty.`];
    if (judged) says.push(`✓ and ✗ say whether the label ${quoted(label)} holds; it does on ${percent(yes, judged)} of all tokens.${less ? ' The neuron is less active there.' : ''} Precision: the share of an interval’s tokens with the label. Recall: the share of the label’s tokens that lie in the interval; on ${percent(count(1, 0), yes)} the neuron is not active.`);
    section.replaceChildren(element('h3', {textContent: 'Examples by activation interval'}), ...says.map(text => element('p', {className: 'none', textContent: text})),
      ...(high > 0 ? [element('ul', {className: 'examples intervals'}, ...rows)] : []), ...topTokens(own, least));
    section.hidden = false;
  }
  window.explorerSections.push(shown => { fill(shown); });
})();
