/* What every page does: light and dark, figures that enlarge, tables that sort and filter, the current section. */
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

  /* A figure is saved from the page itself: the SVG from its compressed copy, the PNG from the picture shown. */
  async function save(event) {
    const link = event.currentTarget, {gzip} = link.dataset;
    event.preventDefault();
    const blob = gzip
      ? await new Response(new Blob([bytes(gzip)]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
      : bytes(link.closest('figure').querySelector('img').src.split(',')[1]);
    const address = URL.createObjectURL(new Blob([blob], {type: gzip ? 'image/svg+xml' : 'image/png'}));
    make('a', {href: address, download: link.download}).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function enlarging() {
    const picture = make('img', {alt: ''});
    const close = make('button', {type: 'button', className: 'close', textContent: 'Close'});
    const dialog = make('dialog', {className: 'enlarged'}, close, make('div', {className: 'scroll', tabIndex: 0}, picture));
    dialog.setAttribute('aria-label', 'Figure, enlarged');
    dialog.addEventListener('click', event => { if (event.target === dialog || event.target === picture || event.target === close) dialog.close(); });
    document.body.append(dialog);
    for (const figure of document.querySelectorAll('figure.picture')) {
      const image = figure.querySelector('img');
      const open = () => { picture.src = image.src; picture.alt = image.alt; dialog.showModal(); };
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

  /* Only what scrolls sideways can be reached by keyboard. */
  function reachable() {
    for (const box of document.querySelectorAll('main math[display="block"], main pre, main .neuron-table')) {
      if (box.scrollWidth > box.clientWidth) box.setAttribute('tabindex', '0'); else box.removeAttribute('tabindex');
    }
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
    themeButton();
    if (document.querySelector('figure.picture')) enlarging();
    for (const box of document.querySelectorAll('main .scroll')) {
      const table = box.querySelector(':scope > table');
      if (!table?.tHead || !table.tBodies.length || table.querySelector('[rowspan]') || table.tBodies[0].rows.length < 3) continue;
      sorting(table);
      if (table.tBodies[0].rows.length > 7) filtering(table, box);
    }
    if (document.querySelector('nav.sections')) contents();
    reachable();
    addEventListener('resize', reachable);
    document.addEventListener('toggle', reachable, true);
    document.querySelector('nav.chapters [aria-current]')?.scrollIntoView({block: 'nearest', inline: 'center'});
  });
})();
