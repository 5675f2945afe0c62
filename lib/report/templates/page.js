/* What every page does: light and dark, search, figures that enlarge, tables that sort and filter, the ledger's
   verdicts, notes on terms, code to copy, the current section. */
(() => {
  'use strict';
  const root = document.documentElement;
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const recall = () => { try { return localStorage.getItem('theme'); } catch { return null; } };
  const remember = theme => { try { localStorage.setItem('theme', theme); } catch { /* a browser may forbid it */ } };
  const theme = () => root.dataset.theme || (dark.matches ? 'dark' : 'light');
  if (recall()) root.dataset.theme = recall();

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  function themeButton() {
    const button = make('button', {className: 'theme', type: 'button'});
    const say = () => { button.textContent = theme() === 'dark' ? 'Light' : 'Dark'; button.title = `Show the page ${button.textContent.toLowerCase()}`; };
    button.addEventListener('click', () => { root.dataset.theme = theme() === 'dark' ? 'light' : 'dark'; remember(root.dataset.theme); say(); });
    dark.addEventListener('change', say);
    say();
    document.querySelector('nav.chapters').append(button);
  }

  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

  /* A figure is saved from the page itself: from a compressed copy, or the picture shown. */
  async function save(event) {
    const link = event.currentTarget, {gzip} = link.dataset;
    event.preventDefault();
    const blob = gzip
      ? await new Response(new Blob([bytes(gzip)]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
      : bytes(link.closest('figure').querySelector('img').src.split(',')[1]);
    const address = URL.createObjectURL(new Blob([blob], {type: link.download.endsWith('.svg') ? 'image/svg+xml' : 'image/png'}));
    make('a', {href: address, download: link.download}).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function enlarging() {
    const close = make('button', {type: 'button', className: 'close', textContent: 'Close'});
    const box = make('div', {className: 'scroll', tabIndex: 0});
    const dialog = make('dialog', {className: 'enlarged'}, close, box);
    dialog.setAttribute('aria-label', 'Figure, enlarged');
    dialog.addEventListener('click', event => { if (event.target === dialog || event.target === close || box.firstChild?.contains(event.target)) dialog.close(); });
    document.body.append(dialog);
    for (const figure of document.querySelectorAll('figure.picture')) {
      const image = figure.querySelector('img, svg');
      const open = () => { box.replaceChildren(image.cloneNode(true)); dialog.showModal(); };
      const button = make('button', {type: 'button', textContent: 'Enlarge'});
      button.addEventListener('click', open);
      image.addEventListener('click', open);
      image.classList.add('enlarges');
      figure.querySelector('.tools').prepend(button);
      figure.querySelectorAll('.tools a').forEach(link => link.addEventListener('click', save));
    }
  }

  const number = text => {
    const match = text.replace(/,(?=\d{3})/g, '').replace('−', '-').match(/^\s*(?:less than )?([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i);
    return match ? Number(match[1]) : NaN;
  };

  function sorting(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = make('button', {type: 'button', className: 'sort'}, ...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') === 'ascending';
        heads.forEach(other => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const rows = [...body.rows].map(row => ({row, text: row.cells[column]?.textContent.trim() ?? ''}));
        const known = rows.filter(({text}) => text && text !== '–');
        const numeric = known.every(({text}) => !Number.isNaN(number(text)));
        const order = (a, b) => numeric ? number(a.text) - number(b.text) : a.text.localeCompare(b.text, 'en', {numeric: true});
        known.sort((a, b) => down ? order(b, a) : order(a, b));
        body.append(...known.map(({row}) => row), ...rows.filter(each => !known.includes(each)).map(({row}) => row));
      });
    });
  }

  function filtering(table, box) {
    const field = make('input', {type: 'search', autocomplete: 'off'});
    const shown = make('output', {});
    field.addEventListener('input', () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...table.tBodies[0].rows];
      for (const row of rows) { const text = row.textContent.toLowerCase(); row.hidden = !words.every(word => text.includes(word)); }
      shown.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : '';
    });
    box.before(make('p', {className: 'filter'}, make('label', {}, 'Filter ', field), ' ', shown));
  }

  /* The ledger's counts become buttons; the one that is chosen stands in the address. */
  function verdicts(counts) {
    const rows = [...document.querySelectorAll('table.ledger tbody tr')], all = counts.dataset.total;
    const slug = verdict => verdict.replaceAll(' ', '-');
    const field = make('input', {type: 'search', autocomplete: 'off'}), shown = make('output', {});
    const buttons = [make('button', {type: 'button', textContent: `all ${all}`})];
    buttons[0].dataset.verdict = '';
    for (const span of counts.querySelectorAll('[data-verdict]')) {
      const button = make('button', {type: 'button'}, ...span.childNodes);
      button.dataset.verdict = slug(span.dataset.verdict);
      buttons.push(button);
    }
    const chosen = () => buttons.find(button => button.dataset.verdict && `#${button.dataset.verdict}` === location.hash)?.dataset.verdict ?? '';
    const show = () => {
      const verdict = chosen(), words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const button of buttons) button.setAttribute('aria-pressed', button.dataset.verdict === verdict);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = (verdict && slug(row.dataset.verdict) !== verdict) || !words.every(word => text.includes(word));
      }
      for (const group of document.querySelectorAll('section.claims')) group.hidden = !group.querySelector('tbody tr:not([hidden])');
      const left = rows.filter(row => !row.hidden).length;
      shown.textContent = left < rows.length ? `${left} of ${rows.length} rows` : '';
    };
    for (const button of buttons) button.addEventListener('click', () => {
      history.replaceState(null, '', button.dataset.verdict ? `#${button.dataset.verdict}` : location.pathname + location.search);
      show();
    });
    field.addEventListener('input', show);
    addEventListener('hashchange', show);
    counts.replaceChildren(...buttons);
    counts.after(make('p', {className: 'filter'}, make('label', {}, 'Filter ', field), ' ', shown));
    show();
  }

  /* What scrolls sideways says so, and can be reached by keyboard. */
  function reachable() {
    for (const box of document.querySelectorAll('main .scroll, main .equation, main pre, main .neuron-table')) {
      const wide = box.scrollWidth > box.clientWidth + 1;
      if (wide) box.setAttribute('tabindex', '0'); else box.removeAttribute('tabindex');
      if (!box.matches('.scroll, .equation, .neuron-table')) continue;
      const hint = box.nextElementSibling?.matches('.sideways') ? box.nextElementSibling : null;
      if (wide && !hint) box.after(make('span', {className: 'sideways', textContent: '↔ scrolls sideways'}));
      if (!wide) hint?.remove();
    }
  }

  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* a browser may forbid it */ }
    const area = make('textarea', {value: text});
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }

  function code() {
    const folds = [...document.querySelectorAll('details.source')], place = document.querySelector('.sources');
    for (const fold of folds) {
      const text = fold.querySelector('pre'), button = make('button', {type: 'button', className: 'copy', textContent: 'Copy'});
      button.setAttribute('aria-label', `Copy: ${fold.querySelector('summary').textContent}`);
      button.addEventListener('click', async () => {
        button.textContent = await copy(text.textContent) ? 'Copied' : 'Not allowed';
        setTimeout(() => { button.textContent = 'Copy'; }, 2000);
      });
      fold.querySelector('summary').after(button);
    }
    if (!place || !folds.length) return;
    const all = make('button', {type: 'button', textContent: 'Show all code'});
    all.setAttribute('aria-pressed', 'false');
    all.addEventListener('click', () => {
      const open = all.getAttribute('aria-pressed') === 'false';
      for (const fold of folds) fold.open = open;
      all.setAttribute('aria-pressed', open);
      all.textContent = open ? 'Hide all code' : 'Show all code';
    });
    place.append(all);
  }

  /* The meaning of a term beside it, while it is pointed at or has the focus. */
  function notes() {
    const note = make('div', {className: 'note', id: 'note', hidden: true});
    note.setAttribute('role', 'tooltip');
    document.body.append(note);
    let current = null;
    const show = term => {
      current = term;
      const box = term.getBoundingClientRect();
      note.textContent = term.dataset.note;
      note.hidden = false;
      term.setAttribute('aria-describedby', 'note');
      note.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - note.offsetWidth - 8))}px`;
      note.style.top = `${box.bottom + note.offsetHeight + 8 < innerHeight ? box.bottom + 6 : box.top - note.offsetHeight - 6}px`;
    };
    const hide = term => { current = null; note.hidden = true; term.removeAttribute('aria-describedby'); };
    addEventListener('scroll', () => { if (current) show(current); }, {passive: true});
    for (const term of document.querySelectorAll('a.term')) {
      for (const when of ['pointerenter', 'focus']) term.addEventListener(when, () => show(term));
      for (const when of ['pointerleave', 'blur']) term.addEventListener(when, () => hide(term));
      term.addEventListener('keydown', event => { if (event.key === 'Escape') hide(term); });
    }
  }

  /* Search over all pages: every word must be in an entry's title or text; titles count more, and beginnings of words. */
  const plainly = text => text.normalize('NFKD').replace(/\p{M}/gu, '').replace(/[‘’]/g, "'").replace(/[“”]/g, '"').toLowerCase();
  const asWords = text => ` ${text.replace(/[^\p{L}\p{N}]+/gu, ' ')}`;
  function score(word, {head, headWords, body, bodyWords}) {
    const own = (text, words, weight) => !text.includes(word) ? 0 : words.includes(` ${word}`) ? 2 * weight : weight;
    return Math.max(own(head, headWords, 10), own(body, bodyWords, 2));
  }

  /* The words that matter in a question, without their endings. */
  const small = new Set('a an and are as at do does for how in is it of on or the their they to what when where which who why with'.split(' '));
  function asked(text) {
    const words = plainly(text).split(/\s+/).filter(Boolean), kept = words.filter(word => !small.has(word));
    return (kept.length ? kept : words).map(word => word.replace(/[?.,!]$/, '')).map(word => word.match(/^(.{4,}?)(?:ies|es|s|ing|ed|y)$/)?.[1] ?? word);
  }

  function search() {
    const source = document.getElementById('search-index');
    if (!source) return;
    let entries = null, titles = null;
    const load = () => {
      const read = JSON.parse(source.textContent);
      titles = new Map(read.filter(([, anchor]) => !anchor).map(([page, , title]) => [page, title]));
      entries = read.map(([page, anchor, title, text]) => {
        const head = plainly(title), body = plainly(text);
        return {page, anchor, title, text, head, body, headWords: asWords(head), bodyWords: asWords(body)};
      });
    };
    const field = make('input', {type: 'search', autocomplete: 'off', placeholder: 'entropy, kurtosis, layer …'});
    const found = make('ol', {className: 'found'}), said = make('p', {className: 'said'});
    said.setAttribute('role', 'status');
    const close = make('button', {type: 'button', className: 'close', textContent: 'Close'});
    const dialog = make('dialog', {className: 'search'}, make('label', {}, 'Search this report ', field), close, said, found);
    dialog.setAttribute('aria-label', 'Search this report');
    const snippet = ({text, body}, word) => {
      const at = Math.max(0, body.indexOf(word) - 50);
      return (at ? '… ' : '') + text.slice(at, at + 150) + (text.length > at + 150 ? ' …' : '');
    };
    const look = () => {
      const words = asked(field.value);
      const hits = [];
      for (const entry of words.length ? entries : []) {
        const scores = words.map(word => score(word, entry));
        if (scores.every(Boolean)) hits.push({entry, score: scores.reduce((a, b) => a + b)});
      }
      hits.sort((a, b) => b.score - a.score);
      said.textContent = !words.length ? '' : hits.length ? `${hits.length} found` : 'Nothing found.';
      found.replaceChildren(...hits.slice(0, 20).map(({entry}) => {
        const where = make('small', {textContent: entry.anchor ? titles.get(entry.page) ?? '' : 'page'});
        const link = make('a', {href: entry.page + (entry.anchor && `#${entry.anchor}`)}, make('b', {textContent: entry.title}), ' ', where);
        link.addEventListener('click', () => dialog.close());
        return make('li', {}, link, make('p', {textContent: snippet(entry, words[0])}));
      }));
      if (words.length && titles.has('neurons.html')) {
        const link = make('a', {href: `neurons.html#?q=${encodeURIComponent(field.value)}`, textContent: `Neurons for “${field.value}”`});
        link.addEventListener('click', () => dialog.close());
        found.append(make('li', {}, link));
      }
    };
    const open = () => { if (!entries) load(); dialog.showModal(); field.select(); };
    field.addEventListener('input', look);
    field.addEventListener('keydown', event => { if (event.key === 'Enter') { event.preventDefault(); found.querySelector('a')?.click(); } });
    close.addEventListener('click', () => dialog.close());
    dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
    const button = make('button', {type: 'button', className: 'open-search', textContent: 'Search'});
    button.setAttribute('aria-keyshortcuts', '/');
    button.title = 'Search this report ( / )';
    button.addEventListener('click', open);
    addEventListener('keydown', event => {
      if (event.key !== '/' || event.target.closest?.('input, select, textarea, dialog')) return;
      event.preventDefault();
      open();
    });
    document.querySelector('nav.chapters').append(button);
    document.body.append(dialog);
  }

  function contents() {
    const links = new Map([...document.querySelectorAll('nav.sections a')].map(link => [link.hash.slice(1), link]));
    const heads = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean);
    const mark = () => {
      const here = heads.filter(head => head.getBoundingClientRect().top < innerHeight / 4).pop();
      for (const link of links.values()) link.removeAttribute('aria-current');
      if (here) links.get(here.id).setAttribute('aria-current', 'location');
    };
    addEventListener('scroll', mark, {passive: true});
    mark();
  }

  addEventListener('DOMContentLoaded', () => {
    search();
    themeButton();
    if (document.querySelector('figure.picture')) enlarging();
    for (const box of document.querySelectorAll('main .scroll')) {
      const table = box.querySelector(':scope > table');
      if (!table?.tHead || !table.tBodies.length || table.querySelector('[rowspan]') || table.tBodies[0].rows.length < 3) continue;
      sorting(table);
      if (table.tBodies[0].rows.length > 7) filtering(table, box);
    }
    if (document.querySelector('nav.sections')) contents();
    const folded = document.querySelector('nav.sections details');
    if (folded && innerWidth < 1180) folded.open = false;
    const counts = document.querySelector('.counts');
    if (counts) verdicts(counts);
    code();
    notes();
    reachable();
    addEventListener('resize', reachable);
    document.addEventListener('toggle', reachable, true);
  });
})();
