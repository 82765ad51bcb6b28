// What every page does beyond links and forms. All of it can be done without.
'use strict';

(() => {
  // What went wrong, else the field that a page is for; "/" goes there from anywhere.
  const first = document.querySelector('[aria-invalid="true"]') || document.querySelector('[data-failed]') || document.querySelector('[data-focus]');
  if (first && !location.hash) first.focus();
  // On a phone menus are one line: where one is stays in sight.
  document.querySelectorAll('nav > ul [aria-current]').forEach(a => {
    const nav = a.closest('nav');
    nav.scrollLeft = a.offsetLeft - (nav.clientWidth - a.offsetWidth) / 2;
  });
  document.addEventListener('keydown', e => {
    const typing = e.target.closest('input, select, textarea, [contenteditable]');
    if (e.key === '/' && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) {
      const field = document.querySelector('[data-focus]');
      if (field) { field.focus(); e.preventDefault(); }
    }
    if (e.key === 'Escape') {
      const menu = document.querySelector('details.menu[open]');
      if (menu) { menu.open = false; menu.querySelector('summary').focus(); }
    }
  });
  document.addEventListener('click', e => {
    const menu = document.querySelector('details.menu[open]');
    if (menu && !menu.contains(e.target)) menu.open = false;
    if (e.target.closest('[data-print]')) window.print();
  });

  // A part that took the place of the button it was asked with takes the focus too:
  // at the button that it has in turn, else at what it says.
  let asked = null;
  document.addEventListener('htmx:before:request', e => { asked = e.target.contains?.(document.activeElement) ? e.target : null; });
  document.addEventListener('htmx:after:swap', () => {
    const source = asked;
    if (!source || source.isConnected) return;
    asked = null;
    if (document.activeElement !== document.body) return;
    const part = document.querySelector(source.getAttribute('hx-target'));
    (part?.querySelector('[data-again]') || part?.querySelector('[tabindex]'))?.focus();
  });

  // A form is sent once, however often somebody clicks.
  document.addEventListener('submit', e => {
    const form = e.target;
    if (form.method !== 'post' || e.defaultPrevented) return;
    if (form.dataset.sent) { e.preventDefault(); return; }
    form.dataset.sent = 'yes';
    form.setAttribute('aria-busy', 'true');
  });
  addEventListener('pageshow', () => document.querySelectorAll('form[data-sent]').forEach(f => { delete f.dataset.sent; f.removeAttribute('aria-busy'); }));

  // A session that is about to end says so; a click lets it go on.
  const body = document.body, dialog = document.getElementById('ends');
  if (dialog && body.dataset.idleEnds) {
    const warn = 2 * 60 * 1000, began = Date.now(), idle = Math.max(0, Number(body.dataset.idleEnds) - began);
    const ends = Number(body.dataset.ends);
    let timers = [];
    const schedule = from => {
      timers.forEach(clearTimeout);
      const end = Math.min(from + idle, ends);
      timers = [
        setTimeout(() => { if (!dialog.open) dialog.showModal(); }, Math.max(0, end - warn - Date.now())),
        setTimeout(() => { dialog.querySelector('.ended').hidden = false; location.assign('/signin'); }, Math.max(0, end - Date.now() + 1000)),
      ];
    };
    schedule(began);
    document.addEventListener('htmx:after:request', e => { if (!e.target.closest?.('[data-quiet]')) schedule(Date.now()); });
    document.getElementById('stay').addEventListener('click', async () => {
      const res = await fetch('/session/stay', {method: 'POST', redirect: 'manual'}).catch(() => null);
      if (res && res.status === 204) schedule(Date.now()); else location.assign('/signin');
    });
  }
})();
