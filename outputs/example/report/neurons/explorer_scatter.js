/* The scatter plot of the neurons found. */
(() => {
  'use strict';
  const {$, number, value, isUniversal} = explorer;
  const NEAR = 14;  // CSS pixels
  let places = [];

  const jitter = at => ((at * 2654435761 >>> 0) / 2 ** 32 - .5) * .7;
  const coordinate = (seed, column, at) => column === 'layer' ? seed.data.layer.values[at] + jitter(at) : value(seed, column, at);

  function range(values, column) {
    if (column === 'layer') return [-.5, explorer.here.seed.layers - .5];
    let low = Infinity, high = -Infinity;
    for (const one of values) if (Number.isFinite(one)) { low = Math.min(low, one); high = Math.max(high, one); }
    if (!(low <= high)) return [0, 1];
    const margin = (high - low || 1) * .04;
    return [low - margin, high + margin];
  }

  function ticks(low, high, most) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough), made = [];
    for (let at = Math.ceil(low / step); at * step <= high; at++) made.push(at * step);
    return made;
  }

  function scatter() {
    const canvas = $('scatter'), box = canvas.getBoundingClientRect();
    if (!box.width) return;
    const scale = devicePixelRatio || 1, width = box.width, height = box.height, left = 44, bottom = 24, top = 6, right = 6;
    canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
    const ink = canvas.getContext('2d');
    ink.scale(scale, scale);
    const colour = name => getComputedStyle(document.querySelector(`.key.${name}`), '::before')[name === 'chosen' ? 'borderTopColor' : 'backgroundColor'], soft = getComputedStyle($('found')).color;
    const line = getComputedStyle(document.querySelector('.rows')).borderTopColor;
    const seed = explorer.here.seed, across = $('across').value, up = $('up').value;
    const everyone = Array.from({length: seed.count}, (_, at) => at);
    const [x0, x1] = range(everyone.map(at => coordinate(seed, across, at)), across), [y0, y1] = range(everyone.map(at => coordinate(seed, up, at)), up);
    const x = one => left + (one - x0) / (x1 - x0) * (width - left - right), y = one => height - bottom - (one - y0) / (y1 - y0) * (height - bottom - top);
    ink.font = `11px ${getComputedStyle(document.body).fontFamily}`; ink.fillStyle = soft; ink.strokeStyle = line; ink.lineWidth = 1;
    ink.textAlign = 'center'; ink.textBaseline = 'top';
    const layers = Array.from({length: seed.layers}, (_, layer) => layer).filter(layer => layer % Math.ceil(seed.layers / 12) === 0);
    for (const one of across === 'layer' ? layers : ticks(x0, x1, 5)) ink.fillText(number(one), x(one), height - bottom + 7);
    ink.textAlign = 'right'; ink.textBaseline = 'middle';
    for (const one of ticks(y0, y1, 5)) { ink.beginPath(); ink.moveTo(left, y(one)); ink.lineTo(width - right, y(one)); ink.stroke(); ink.fillText(number(one), left - 6, y(one)); }
    if (up === 'excess_corr') { ink.setLineDash([4, 4]); ink.strokeStyle = soft; ink.beginPath(); ink.moveTo(left, y(explorer.run.threshold)); ink.lineTo(width - right, y(explorer.run.threshold)); if (explorer.run.threshold < y1) ink.stroke(); ink.setLineDash([]); }
    places = [];
    const colours = {true: colour('universal'), false: colour('other')};
    for (const group of [false, true]) {
      ink.fillStyle = colours[group]; ink.globalAlpha = group ? .9 : .45;
      for (const at of explorer.listed) {
        const px = x(coordinate(seed, across, at)), py = y(coordinate(seed, up, at));
        if (isUniversal(seed, at) !== group || !Number.isFinite(px) || !Number.isFinite(py)) continue;
        places.push({at, x: px, y: py});
        ink.beginPath(); ink.arc(px, py, group ? 2.6 : 1.8, 0, 2 * Math.PI); ink.fill();
      }
    }
    ink.globalAlpha = 1;
    const px = x(coordinate(seed, across, explorer.here.at)), py = y(coordinate(seed, up, explorer.here.at));
    if (Number.isFinite(px) && Number.isFinite(py)) { ink.strokeStyle = colour('chosen'); ink.lineWidth = 2; ink.beginPath(); ink.arc(px, py, 6, 0, 2 * Math.PI); ink.stroke(); }
    const name = column => column === 'layer' ? 'layer' : explorer.run.ranked.find(one => one.name === column).words;
    canvas.setAttribute('aria-label', `Scatter of ${explorer.listed.length} neurons of seed ${seed.name}: ${name(up)} against ${name(across)}.`);
  }

  function nearest(event) {
    const box = $('scatter').getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let best = null, least = NEAR ** 2;
    for (const place of places) {
      const distance = (place.x - px) ** 2 + (place.y - py) ** 2;
      if (distance <= least) { least = distance; best = place; }
    }
    return best;
  }

  /* Where a neuron lies in the scatter plot [CSS pixels from its corner]; for tests. */
  window.neuronPlace = (layer, neuron) => places.find(({at}) => explorer.here.seed.data.layer.values[at] === layer && explorer.here.seed.data.neuron.values[at] === neuron);

  Object.assign(explorer, {scatter, nearest});
})();
