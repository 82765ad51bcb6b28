// Draws the charts of readings. The values come with the page; the table beside
// each picture has them too.
'use strict';

(() => {
  const token = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Tokens are light-dark(): a canvas needs the colour that it comes to.
  const probe = document.createElement('span');
  probe.hidden = true;
  document.body.append(probe);
  let paper = false; // being printed: its colours are the light ones, whatever the page's
  const colour = name => { probe.style.colorScheme = paper ? 'light' : ''; probe.style.color = token(name); return getComputedStyle(probe).color; };

  const PAPER = 620; // px between the margins of A4, and of a card
  const draw = (box, data) => {
    const room = paper ? PAPER : box.clientWidth;
    data.times = data.runs.flatMap(([start, step, count]) => Array.from({length: count}, (_, i) => start + i * step));
    const scale = 10 ** data.precision;
    const names = [...box.parentElement.querySelectorAll('.legend strong')].map(e => e.textContent);
    const lang = data.lang === 'en' ? 'en-GB' : data.lang; // 24 October, not October 24
    const numbers = new Intl.NumberFormat(lang, {maximumFractionDigits: data.precision});
    const values = data.series.map(s => s.values.map(v => v === null ? null : v / scale));
    const many = data.times.length > 400;
    const bars = data.bars && !many ? uPlot.paths.bars({size: [0.8, 60], align: 1}) : data.bars ? uPlot.paths.stepped({align: 1}) : undefined;
    const ink = colour('--k-muted'), line = colour('--k-line');
    const axis = {stroke: ink, grid: {stroke: line, width: 1}, ticks: {stroke: line, width: 1}};
    const at = t => uPlot.tzDate(new Date(t * 1000), data.zone);
    const stamp = new Intl.DateTimeFormat(lang, {timeZone: data.zone, dateStyle: 'medium', timeStyle: 'short', hourCycle: 'h23'});
    // By the clock of 24 hours and in the page's words: under each tick the time, or
    // the day where a day begins.
    const part = options => { const f = new Intl.DateTimeFormat(lang, {timeZone: data.zone, ...options}); return t => f.format(new Date(t * 1000)); };
    const clock = part({hour: '2-digit', minute: '2-digit', hourCycle: 'h23'}), day = part({day: 'numeric', month: 'short'}), month = part({month: 'short', year: 'numeric'});
    const times = (u, ticks, axis, space, step) => ticks.map(t => step >= 28 * 86400 ? month(t) : step >= 86400 || clock(t) === '00:00' ? day(t) : clock(t));
    const marks = {hooks: {draw: u => {
      for (const m of data.marks) {
        const x = Math.round(u.valToPos(m.at, 'x', true));
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
        u.ctx.save();
        u.ctx.strokeStyle = colour('--k-warn'); u.ctx.fillStyle = colour('--k-warn');
        u.ctx.setLineDash([4, 4]); u.ctx.textAlign = 'left';
        u.ctx.beginPath(); u.ctx.moveTo(x, u.bbox.top); u.ctx.lineTo(x, u.bbox.top + u.bbox.height); u.ctx.stroke();
        u.ctx.fillText(m.text, x + 4, u.bbox.top + 12 * devicePixelRatio);
        u.ctx.restore();
      }
    }}};
    const plot = new uPlot({
      width: Math.max(200, room), height: Math.max(220, Math.min(360, room / 2)), tzDate: at, plugins: [marks],
      cursor: {drag: {x: true, y: false}},
      scales: {y: {range: (u, min, max) => data.bars ? [Math.min(0, min), max || 1] : [min, max === min ? max + 1 : max]}},
      axes: [{...axis, values: times, space: 70}, {...axis, size: room < 480 ? 44 : 56, values: (u, ticks) => ticks.map(v => numbers.format(v))}],
      series: [{label: data.time, value: (u, v) => v == null ? '' : stamp.format(new Date(v * 1000))}, ...values.map((_, i) => ({
        label: names[i] || data.series[i].name, stroke: colour(`--k-s${i % 5 + 1}`), width: 1.5, paths: bars,
        fill: bars && !many ? colour(`--k-s${i % 5 + 1}`) : undefined, points: {show: !data.bars && data.times.length < 60}, spanGaps: false,
        value: (u, v) => v == null ? '–' : `${numbers.format(v)} ${data.unit}`,
      }))],
    }, [data.times, ...values], box);
    if (!paper) new ResizeObserver(() => {
      if (paper) return;
      const width = Math.max(200, box.clientWidth);
      if (width !== plot.width) plot.setSize({width, height: Math.max(220, Math.min(360, width / 2))});
    }).observe(box);
  };

  const all = () => document.querySelectorAll('[data-plot]').forEach(box => {
    const began = performance.now();
    box.replaceChildren();
    draw(box, JSON.parse(document.getElementById(box.dataset.plot).textContent));
    requestAnimationFrame(() => { box.dataset.drawn = Math.round(performance.now() - began); });
  });
  all();
  for (const [event, is] of [['beforeprint', true], ['afterprint', false]]) {
    addEventListener(event, () => { paper = is; all(); });
  }
  // A file that is downloaded leaves the page as it is.
  document.addEventListener('click', e => {
    if (e.target.closest('[data-download]')) setTimeout(() => { const f = document.getElementById('open'); delete f.dataset.sent; f.removeAttribute('aria-busy'); }, 1000);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', all);
})();
