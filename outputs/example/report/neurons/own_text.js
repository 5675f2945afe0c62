/* One's own text on a neuron's page: the reference seed reads it here, in the browser, and each token is shaded by the
   shown neuron's activation. The weights are loaded when the reader first enters the box. */
(() => {
  'use strict';
  const {$, element, number, quoted, load, address, isUniversal, labelOf} = explorer;
  const PAUSE = 300, MOST = 10, KEPT = 'own-text', SHADE = '213, 94, 0'; // milliseconds without a key; neurons in a list
  let shown = null, answer = null, largest = null, wanted = null, busy = false, started = null;

  const box = element('textarea', {id: 'own-text-box', rows: 3, placeholder: 'Type or paste a text …', maxLength: 4000, spellcheck: false});
  const status = element('output', {className: 'hint'}), result = element('div', {className: 'own-result'});
  const stored = change => { try { return change(sessionStorage); } catch { return null; } }; // some browsers forbid it to files

  /* ------------------------------------------------------------ the model */

  const inWorker = () => { // its source, beside ownTextModel
    let model = null;
    onmessage = ({data}) => {
      if (data.arrays) model = ownTextModel(data.arrays, data.settings);
      postMessage(data.arrays ? null : model.run(data.text));
    };
  };

  async function start() { // a function from a text to a promise of what the model says
    const arrays = await load('weights'), settings = explorer.run.own_text;
    largest = arrays.largest.values; // of each neuron in the run's text
    try {
      const source = new Blob([`${ownTextModel}\n(${inWorker})();`], {type: 'text/javascript'}), worker = new Worker(URL.createObjectURL(source));
      const ask = message => new Promise((resolve, reject) => {
        worker.onmessage = ({data}) => resolve(data);
        worker.onerror = event => reject(new Error(event.message ?? 'The worker did not start.'));
        worker.postMessage(message);
      });
      await ask({arrays, settings});
      return text => ask({text});
    } catch { // no worker here: the page stands still while the model runs
      const model = ownTextModel(arrays, settings);
      return async text => model.run(text);
    }
  }

  const engine = () => started ??= start().catch(error => { started = null; throw error; });

  async function readLatest() {
    if (busy) return;
    busy = true;
    try {
      while (wanted !== null) {
        const text = wanted;
        wanted = null;
        answer = null;
        if (text) {
          status.textContent = started ? 'Running …' : 'Loading the weights …';
          const run = await engine(), from = performance.now();
          answer = {...await run(text), seconds: (performance.now() - from) / 1000};
        }
        draw();
      }
    } catch (error) {
      status.textContent = `The model cannot run. ${error.message}`;
    }
    busy = false;
  }

  let pause = 0;
  const wait = milliseconds => {
    clearTimeout(pause);
    pause = setTimeout(() => {
      wanted = box.value;
      stored(storage => storage.setItem(KEPT, box.value));
      readLatest();
    }, milliseconds);
  };
  box.addEventListener('input', () => wait(PAUSE));
  box.addEventListener('focus', () => { if (box.value && !answer) wait(0); else engine().catch(error => { status.textContent = error.message; }); });
  box.value = stored(storage => storage.getItem(KEPT)) ?? '';

  /* ------------------------------------------------------------ what it shows */

  const tokenOf = at => explorer.run.vocabulary[answer.tokens[at]] ?? `⟨id ${answer.tokens[at]}⟩`;
  const rounded = value => number(Number(value.toPrecision(3)));
  const places = () => answer.tokens.map((_, at) => at).filter(at => answer.counted[at]);

  function draw() {
    if (!answer || !shown) { result.replaceChildren(); status.textContent = ''; return; }
    const {context} = explorer.run.own_text, tokens = count => `${count.toLocaleString('en')} token${count === 1 ? '' : 's'}`;
    status.textContent = `${tokens(answer.tokens.length - 1)} in ${answer.seconds.toFixed(2)} s.` + (answer.complete ? '' : ` The seed reads ${context - 1} at a time; the rest is left out.`);
    const activations = answer.activations[shown.layer], width = explorer.run.shapes[shown.seed.name][1];
    const own = answer.tokens.map((_, at) => activations[at * width + shown.neuron]);
    result.replaceChildren(...(places().length ? [...shaded(own), element('h4', {}, 'Neurons that fire most on this text', element('small', {textContent: ' as a share of each neuron’s largest activation in the run’s text'})), element('div', {className: 'own-lists'}, ...firing())] : []));
  }

  function shaded(own) {
    const inRun = largest[shown.layer * shown.seed.neurons + shown.neuron], peak = places().reduce((best, at) => own[at] > own[best] ? at : best);
    const pointed = element('output', {className: 'hint'}), most = Math.max(inRun, own[peak]);
    const text = element('p', {className: 'own-tokens'}, ...answer.tokens.slice(1).map((_, index) => {
      const at = index + 1, piece = element('span', {textContent: tokenOf(at), tabIndex: at === peak ? 0 : -1, className: at === peak && own[at] > 0 ? 'peak' : ''});
      piece.dataset.activation = answer.counted[at] ? `activation ${rounded(own[at])}` : 'not counted';
      if (answer.counted[at] && own[at] > 0) piece.style.backgroundColor = `rgba(${SHADE}, ${(.75 * own[at] / most).toFixed(3)})`;
      return piece;
    }));
    text.setAttribute('role', 'group');
    text.setAttribute('aria-label', 'Tokens of your text; arrow keys move between them');
    text.addEventListener('keydown', event => {
      const next = {ArrowRight: 'nextElementSibling', ArrowLeft: 'previousElementSibling'}[event.key];
      if (!next || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation(); // elsewhere they turn to another neuron
      event.target[next]?.focus();
    });
    text.addEventListener('focusin', ({target}) => {
      for (const piece of text.children) piece.tabIndex = piece === target ? 0 : -1;
      pointed.textContent = `${quoted(target.textContent)}: ${target.dataset.activation}`;
    });
    const said = own[peak] > 0
      ? `The neuron’s largest activation here is ${rounded(own[peak])}, on ${quoted(tokenOf(peak))}. Its largest in the run’s text is ${rounded(inRun)}.`
      : 'The neuron is active on no token of this text.';
    return [text, pointed, element('p', {className: 'own-said', textContent: said})];
  }

  function firing() { // of the reference's neurons, those with the largest share of their own largest activation
    const {seed} = shown, found = [];
    answer.activations.forEach((activations, layer) => {
      const width = activations.length / answer.tokens.length;
      for (let neuron = 0; neuron < width; neuron++) {
        const index = layer * width + neuron, at = seed.row.get(index);
        if (at === undefined || !(largest[index] > 0)) continue;
        let where = 0, value = 0;
        for (let place = 1; place < answer.tokens.length; place++) {
          const one = activations[place * width + neuron];
          if (one > value && answer.counted[place]) { value = one; where = place; }
        }
        if (where) found.push({at, where, share: value / largest[index]});
      }
    });
    found.sort((one, other) => other.share - one.share);
    const lists = [['Universal neurons', found.filter(one => isUniversal(seed, one.at))], ['All neurons', found]];
    return lists.filter(([, some]) => some.length).map(([which, some]) => element('section', {},
      element('h5', {textContent: which}),
      element('ol', {}, ...some.slice(0, MOST).map(({at, where, share}) => element('li', {},
        element('a', {href: `#${address(seed, at)}`, textContent: address(seed, at)}),
        element('span', {className: 'own-label', textContent: labelOf(seed, at) ?? ''}),
        element('code', {textContent: tokenOf(where).replace(/^ +/, blanks => '␣'.repeat(blanks.length))}),
        element('span', {className: 'own-share', textContent: `${(100 * share).toFixed(0)} %`}))))));
  }

  window.explorerSections.push(neuron => {
    const section = $('own-text'), {run, seed} = neuron;
    if (!run.own_text) return;
    const heading = element('h3', {}, 'Your own text', element('small', {textContent: ` read by seed ${run.reference} in your browser, weights rounded to 8 bits`}));
    section.hidden = false;
    if (seed.name === run.reference) {
      shown = neuron;
      section.replaceChildren(heading, element('label', {htmlFor: box.id, className: 'own-unseen', textContent: 'Your own text'}), box, status, result);
      if (!busy) draw();
      return;
    }
    const partner = neuron.get('partner')[run.seeds.filter(name => name !== seed.name).indexOf(run.reference)], width = run.shapes[run.reference][1];
    const best = `${run.reference}/${Math.floor(partner / width)}/${partner % width}`;
    section.replaceChildren(heading, element('p', {className: 'none'}, `Only seed ${run.reference} is in this page. `,
      ...(partner >= 0 ? ['This neuron’s best match there is ', element('a', {href: `#${best}`, textContent: best}), '.'] : [])));
  });
})();
