// Readings: opened for a reason, drawn, listed, and taken along as a file.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {after, before, test} from 'node:test';
import {ago} from './api.js';
import {accessible, eans, everyLook, fits, launch, openCase, picture, signIn, url, DESKTOP, PHONE} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

async function open(page, path, {from, to, detail = 'finest'}) {
  await page.goto(url + path + '/readings');
  await page.fill('#from', from);
  await page.fill('#to', to);
  await page.selectOption('#detail', detail);
  await page.locator('#open button[type=submit]').first().click();
  await page.locator('[data-opened]').waitFor();
}

// The day on which summer time last ended: it has 25 hours.
function longDay() {
  for (let year = new Date().getUTCFullYear(); ; year--) {
    const end = new Date(Date.UTC(year, 9, 31));
    end.setUTCDate(31 - end.getUTCDay());
    if (end.getTime() < Date.now() - 8 * 86400e3) return end;
  }
}
const iso = (day, plus = 0) => new Date(day.getTime() + plus * 86400e3).toISOString().slice(0, 10);

test('the form looks well, and what is opened does', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[12]);
  await everyLook(p, path + '/readings', 'readings-form');
  for (const language of ['nl', 'en']) {
    for (const theme of ['light', 'dark']) {
      for (const viewport of [DESKTOP, PHONE]) {
        const q = await signIn(browser, 'eva', {language, theme, viewport});
        await open(q.page, await openCase(q.page, eans[12]), {from: ago(8), to: ago(1)});
        await q.page.locator('[data-drawn]').first().waitFor();
        await fits(q.page);
        await accessible(q.page);
        await picture(q.page, `readings-${language}-${theme}-${viewport.width}`);
        q.calm();
        await q.context.close();
      }
    }
  }
  p.calm();
  await p.context.close();
});

test('a year of quarter-hours is drawn, and the table has the file’s sums', async t => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[3]);
  await open(p.page, path, {from: ago(364), to: ago(1)});
  const plot = p.page.locator('[data-drawn]').first();
  await plot.waitFor();
  const {points, series} = await p.page.evaluate(() => { const d = JSON.parse(document.querySelector('script[type="application/json"]').textContent); return {points: d.series[0].values.length, series: d.series.length}; });
  t.diagnostic(`${points} points of ${series} series drawn in ${await plot.getAttribute('data-drawn')} ms`);
  assert.ok(points > 30000);

  const [download] = await Promise.all([p.page.waitForEvent('download'), p.page.locator('[data-download]').click()]);
  const lines = readFileSync(await download.path(), 'utf8').trim().split(/\r?\n/);
  const columns = lines[0].split(',');
  const at = name => { const i = columns.indexOf(name); assert.ok(i >= 0, `${name} in ${lines[0]}`); return i; };
  const [field, value] = [at('field'), at('value')];
  const sums = {};
  for (const line of lines.slice(1)) {
    const cells = line.split(',');
    sums[cells[field]] = (sums[cells[field]] ?? 0) + Math.round(Number(cells[value] || 0) * 1000);
  }
  const totals = await p.page.locator('table.values').first().evaluate(table => [...table.tBodies[0].rows].reduce((sum, row) => sum.map((n, i) => n + Math.round(Number(row.cells[i + 1].textContent.replace(/[^\d.]/g, '')) * 1000)), [0, 0]));
  assert.deepEqual(totals, [sums.import_intervals, sums.export_intervals]);
  const said = await p.page.locator('.legend').first().innerText();
  for (const sum of totals) assert.ok(said.replace(/[\s\u202f]/g, '').includes((sum / 1000).toFixed(3)), `${sum} in ${said}`);
  // The page goes on working after a file.
  await p.page.waitForFunction(() => !document.getElementById('open').dataset.sent);
  p.calm();
  await p.context.close();
});

test('gaps are seen, and so is a day of 25 hours', async () => {
  const p = await signIn(browser, 'eva', {language: 'nl'});
  const path = await openCase(p.page, eans[0]);
  const day = longDay();
  await open(p.page, path, {from: iso(day, -1), to: iso(day, 2)});
  assert.equal(await p.page.getByText('dag van 25 uur').count(), 1);
  const {marks, series} = await p.page.evaluate(() => JSON.parse(document.querySelector('script[type="application/json"]').textContent));
  assert.deepEqual(marks.map(m => m.text), ['25 h']);
  assert.ok(series[0].values.length >= 100);
  await open(p.page, path, {from: iso(day), to: iso(day)}); // each quarter by itself, with its zone
  assert.equal(await p.page.locator('table.values tbody tr').count(), 100);
  assert.equal(await p.page.getByText(/\s02:00\sCES?T/).count(), 2);
  await accessible(p.page);

  // Before anything was kept there is nothing, and it is said.
  await open(p.page, path, {from: ago(364), to: ago(1)});
  assert.ok(await p.page.locator('td.gap').count() + await p.page.getByText('(onvolledig)').count() > 0);
  assert.match(await p.page.locator('.legend').first().innerText(), /ontbreken/);
  p.calm();
  await p.context.close();
});

test('what is wrong with a period is said beside it', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[0]);
  for (const [from, to] of [[ago(3), ago(5)], [ago(800), ago(1)], [ago(1), ago(-3)]]) {
    await p.page.goto(url + path + '/readings');
    await p.page.fill('#from', from);
    await p.page.fill('#to', to);
    const [res] = await Promise.all([p.page.waitForResponse(r => r.request().method() === 'POST'), p.page.locator('#open button[type=submit]').first().click()]);
    assert.equal(res.status(), 422);
    await p.page.locator('#to[aria-invalid=true]').waitFor();
    assert.equal(await p.page.inputValue('#from'), from);
  }
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('gas, meter reads and months are shown too', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[14]);
  for (const detail of ['hour', 'day', 'month', 'register']) {
    await open(p.page, path, {from: ago(100), to: ago(1), detail});
    await p.page.locator('[data-drawn]').first().waitFor();
    assert.ok(await p.page.locator('table.values tbody tr').count() > 1, detail);
  }
  await accessible(p.page);
  p.calm();
  await p.context.close();
});
