// Oversight: what stands out, and whether the log verifies.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {asEmployee, supplier} from './api.js';
import {accessible, everyLook, eans, launch, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('it looks well for a week, and for a day', async () => {
  const p = await signIn(browser, 'thomas');
  await everyLook(p, '/oversight', 'oversight');
  await p.page.goto(url + '/oversight');
  await p.page.locator('.choices a').first().click();
  await p.page.locator('.choices a[aria-current]').waitFor();
  assert.equal(await p.page.locator('table.heat tbody tr').count(), 1);
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('its figures are the API’s, and it names no connection', async () => {
  await (await supplier(0)).send('GET', `/v1/metering-points/${eans[0]}/access`);
  const p = await signIn(browser, 'samira');
  await p.page.goto(url + '/oversight');
  const said = (await asEmployee(['--oversee', '--role', 'auditor'], 'GET', '/v1/oversight')).json();
  const shown = await p.page.locator('table.heat td.number').allInnerTexts();
  const total = shown.reduce((sum, n) => sum + Number(n.replace(/\D/g, '')), 0);
  const asked = said.hours.reduce((sum, h) => sum + h.requests, 0);
  assert.ok(total > 0 && total <= asked, `${total} of ${asked}`); // the API was asked later
  assert.equal(await p.page.locator('[data-log]').getAttribute('data-log'), said.log.result);
  const text = await p.page.content();
  for (const ean of eans) assert.ok(!text.includes(ean));
  p.calm();
  await p.context.close();
});

test('a period that is none is as if none were asked for', async () => {
  const p = await signIn(browser, 'samira');
  for (const query of ['?from=x&to=y', '?from=2026-02-01&to=2026-01-01', '?from=2020-01-01&to=2026-01-01']) {
    assert.equal((await p.page.goto(url + '/oversight' + query)).status(), 200, query);
    assert.equal(await p.page.locator('table.heat tbody tr').count(), 7, query);
  }
  p.calm();
  await p.context.close();
});
