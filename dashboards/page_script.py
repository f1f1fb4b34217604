"""The page's own script, served from its own address, so that no script inside the page is needed.

It turns what people do with native controls into the page's address, from which the server draws; it knows nothing of
studies. What it finds in the page: links that begin with `?`, `id="set-NAME"` controls, `data-action` forms.
"""

SCRIPT = """
'use strict';
(() => {
  const root = document.documentElement;

  function theme() {
    const chosen = new URLSearchParams(location.search).get('theme');
    if (chosen === 'light' || chosen === 'dark') root.dataset.theme = chosen; else delete root.dataset.theme;
  }

  let focused = null; // what had the keyboard before the page was drawn anew
  function go(query) {
    if (query === location.search) return;
    const at = document.activeElement, around = at && at.parentElement && at.parentElement.closest('[id]');
    focused = at && at !== document.body ? {id: at.id, text: at.textContent, around: around && around.id} : null;
    history.pushState({}, '', query || '?');
    window.dispatchEvent(new CustomEvent('_dashprivate_pushstate'));
    theme();
  }

  function set(changes) {
    const query = new URLSearchParams(location.search);
    query.delete('page');
    for (const [key, value] of changes) {
      if (value === '' || value === null) query.delete(key); else query.set(key, value);
    }
    go('?' + query);
  }

  function say(text, bad) {
    const place = document.getElementById('said');
    if (!place) return;
    place.textContent = text;
    place.className = bad ? 'message bad' : 'message';
  }

  // --- Links and controls ---

  document.addEventListener('click', (event) => {
    const link = event.target.closest && event.target.closest('a[href^="?"]');
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    say('');
    const menu = link.closest('details.menu');
    if (menu) menu.open = false;
    const before = new URLSearchParams(location.search).get('view');
    go(link.getAttribute('href'));
    if (link.closest('nav') || new URLSearchParams(location.search).get('view') !== before) window.scrollTo(0, 0);
  });

  function position(input) {
    const scale = input.closest('[data-low]').dataset, low = +scale.low, high = +scale.high, at = +input.value / 1000;
    if (at >= 1) return '';
    const value = scale.log ? low * Math.pow(high / low, at) : low + (high - low) * at;
    return String(Number(value.toPrecision(3)));
  }

  document.addEventListener('change', (event) => {
    const input = event.target, id = input.id || '';
    if (!id.startsWith('set-')) return;
    const name = id.slice(4);
    if (name.startsWith('low.') || name.startsWith('high.')) { range(input); return; }
    if (name === 'study') {
      const query = new URLSearchParams(location.search), next = new URLSearchParams({study: input.value});
      for (const key of ['view', 'theme']) if (query.get(key)) next.set(key, query.get(key));
      go('?' + next);
      return;
    }
    set([[name, input.type === 'range' ? position(input) : input.value]]);
  });

  document.addEventListener('input', (event) => {
    const input = event.target, scale = input.closest && input.closest('[data-low]');
    if (!scale || input.type !== 'range') return;
    const output = scale.querySelector('output'), value = position(input);
    if (output) output.textContent = value === '' ? 'no limit' : short(+value);
    input.setAttribute('aria-valuetext', output ? output.textContent : value);
  });

  function short(value) {
    for (const [size, letter] of [[1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) {
      if (Math.abs(value) >= size) {
        const unit = letter === 'k' ? 1e3 : size;
        return '≤ ' + Number((value / unit).toPrecision(3)) + letter;
      }
    }
    return '≤ ' + Number(value.toPrecision(3));
  }

  function range(input) {
    const box = input.closest('fieldset'), name = box.dataset.brush;
    const low = box.querySelector('[id^="set-low."]').value, high = box.querySelector('[id^="set-high."]').value;
    set([['brush.' + name, low === '' && high === '' ? '' : (low || '-1e300') + '..' + (high || '1e300')]]);
  }

  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.target.id || '').startsWith('set-')) event.target.blur();
  });

  // --- Points and axes of figures ---

  function attend(graph) {
    if (graph.attended || !graph.on) return;
    graph.attended = true;
    graph.on('plotly_click', (event) => {
      const point = event.points && event.points[0];
      const figure = graph.closest('[data-open]');
      if (!point || !figure || point.customdata === undefined || point.customdata === null) return;
      const number = Array.isArray(point.customdata) ? point.customdata[0] : point.customdata;
      if (!Number.isInteger(number)) return;
      if (!figure.dataset.open) return;
      const query = new URLSearchParams();
      for (const [key, value] of new URLSearchParams(location.search)) {
        if (/^(study|theme|max\\..*|brush\\..*)$/.test(key)) query.set(key, value);
      }
      query.set('view', figure.dataset.open);
      query.set('trials', number);
      go('?' + query);
    });
    graph.on('plotly_selected', (event) => {
      const axes = graph.data[0] && graph.data[0].meta;
      if (axes && event && event.range) brush(axes, event.range);
    });
    graph.on('plotly_deselect', () => {
      if (!graph.data[0] || !graph.data[0].meta) return;
      const query = new URLSearchParams(location.search);
      set([...query.keys()].filter((key) => key.startsWith('brush.')).map((key) => [key, '']));
    });
  }

  // A box over parallel axes: heights, 0 to 1, become values of each axis below it.
  function brush(axes, box) {
    const [low, high] = [...box.y].sort((a, b) => a - b), [left, right] = [...box.x].sort((a, b) => a - b);
    const changes = [];
    axes.forEach((axis, place) => {
      if (place < left || place > right) return;
      const at = (height) => axis.low + Math.min(Math.max(height, 0), 1) * (axis.high - axis.low);
      let text = '';
      if (axis.words) {
        const inside = axis.words.filter((_, row) => at(low) <= row && row <= at(high));
        text = inside.map((word) => encodeURIComponent(word).replace(/\\./g, '%2E')).join(',');
      } else if (low > 0 || high < 1) {
        const ends = [low, high].map(at).map((end) => (axis.log ? Math.pow(10, end) : end) / axis.scale);
        text = ends.map((end) => Number(end.toPrecision(6))).join('..');
      }
      changes.push(['brush.' + axis.name, text]);
    });
    if (changes.length) set(changes);
  }

  for (const kind of ['pointerover', 'focusin', 'touchstart']) {
    document.addEventListener(kind, (event) => {
      const graph = event.target.closest && event.target.closest('.js-plotly-plot');
      if (graph) attend(graph);
    }, {capture: true, passive: true});
  }

  // --- Actions ---

  document.addEventListener('click', async (event) => {
    const button = event.target.closest && event.target.closest('button[data-action]');
    if (!button || button.disabled) return;
    const content = {study: button.dataset.study, trial: button.dataset.trial};
    const form = button.closest('[data-form]');
    for (const field of form ? form.querySelectorAll('textarea, input') : []) {
      content[field.id.replace('write-', '')] = field.value;
    }
    button.disabled = true;
    say(button.textContent + ' …');
    try {
      const session = document.getElementById('app').dataset.session;
      const answer = await fetch('/action/' + button.dataset.action, {
        method: 'POST',
        headers: {'Content-Type': 'application/json', 'X-Mnet-Session': session},
        body: JSON.stringify(content),
      });
      const plain = (answer.headers.get('Content-Type') || '').startsWith('text/plain');
      say(plain ? (await answer.text()).trim() : (await answer.json()).said, !answer.ok);
    } catch (error) {
      say('the dashboard does not answer: is it still running?', true);
    } finally {
      button.disabled = false;
    }
  });

  // --- After the page was drawn ---

  function slot(place) {
    let input = place.querySelector('input');
    if (!input) {
      input = document.createElement('input');
      input.type = place.dataset.kind;
      if (input.type === 'range') Object.assign(input, {min: 0, max: 1000, step: 5});
      Object.assign(input, {id: place.dataset.slot, placeholder: place.dataset.placeholder || '', autocomplete: 'off'});
      if (place.dataset.label) input.setAttribute('aria-label', place.dataset.label);
      place.append(input);
    }
    if (input.dataset.given !== place.dataset.value) {
      input.value = input.dataset.given = place.dataset.value;
      const output = place.parentElement.querySelector('output');
      if (output) input.setAttribute('aria-valuetext', output.textContent);
    }
  }

  new MutationObserver(() => {
    document.querySelectorAll('[data-slot]').forEach(slot);
    if (focused && document.activeElement === document.body) {
      const around = document.getElementById(focused.around);
      const again = focused.id ? document.getElementById(focused.id)
        : around && [...around.querySelectorAll('a, button')].find((one) => one.textContent === focused.text);
      if (again) { again.focus({preventScroll: true}); focused = null; }
    }
    const names = ['h1', '#page h2'].map((place) => document.querySelector(place)).filter((one) => one);
    if (names.length) document.title = [...names.map((one) => one.textContent), 'mnet-search'].join(' · ');
  }).observe(document.body, {childList: true, subtree: true});

  window.addEventListener('popstate', theme);
  theme();
})();
"""
