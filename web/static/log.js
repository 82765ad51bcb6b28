// The log: arrow keys in the calendar, and an address that says what is shown.
'use strict';

(() => {
  const links = () => [...document.querySelectorAll('.months a[data-day]')];
  const region = document.querySelector('.months');
  if (!region) return;
  region.scrollLeft = region.scrollWidth; // the latest month is last

  // One stop for Tab in the calendar: the chosen day, else the latest.
  const stop = link => links().forEach(a => { a.tabIndex = a === link ? 0 : -1; });
  const all = links();
  if (all.length) stop(all.find(a => a.ariaCurrent) || all.at(-1));
  region.addEventListener('keydown', e => {
    const list = links(), at = list.indexOf(document.activeElement);
    if (at < 0) return;
    const day = Date.parse(list[at].dataset.day), week = 7 * 24 * 3600 * 1000;
    const to = {
      ArrowRight: () => list[at + 1], ArrowLeft: () => list[at - 1], Home: () => list[0], End: () => list.at(-1),
      ArrowDown: () => list.find(a => Date.parse(a.dataset.day) >= day + week), ArrowUp: () => list.findLast(a => Date.parse(a.dataset.day) <= day - week),
    }[e.key];
    if (!to) return;
    e.preventDefault();
    const link = to();
    if (link) { stop(link); link.focus(); }
  });

  const form = document.getElementById('filter'), said = document.getElementById('said');
  region.addEventListener('click', e => {
    const link = e.target.closest('a[data-day]');
    if (!link) return;
    stop(link);
    form.elements.from.value = form.elements.to.value = link.dataset.day;
  });

  // What is shown can be reloaded and come back to; older entries follow below it.
  let from = null;
  document.addEventListener('htmx:before:request', e => { from = e.target.closest?.('#filter, a[data-day], a[data-older]'); });
  document.addEventListener('htmx:after:swap', () => {
    if (!from) return;
    const source = from;
    from = null;
    const found = [...document.querySelectorAll('#entries [data-found]')];
    if (source.dataset.older !== undefined) {
      found.at(-1)?.nextElementSibling?.querySelector('h3')?.focus();
    } else {
      const query = new URLSearchParams([...new FormData(form)].filter(([, v]) => v)).toString();
      history.replaceState(null, '', form.getAttribute('action') + (query ? '?' + query : ''));
      links().forEach(a => a.removeAttribute('aria-current'));
      const one = form.elements.from.value;
      if (one && one === form.elements.to.value) document.querySelector(`.months a[data-day="${one}"]`)?.setAttribute('aria-current', 'date');
    }
    said.textContent = found.at(-1)?.textContent.trim() ?? '';
  });
})();
