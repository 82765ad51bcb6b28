// A connection at a glance, and the phone call that it is for.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {ago, supplier} from './api.js';
import {accessible, eans, everyLook, launch, openCase, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('it looks well, and so does who may read what', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[11]); // a street, a name and a house number that are markup
  await everyLook(p, path, 'connection', page => page.locator('section details').last().evaluate(d => { d.open = true; }));
  await everyLook(p, path + '/access?former=yes', 'access');
  p.calm();
  await p.context.close();
});

test('former suppliers are shown on demand, in place', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[11]);
  await p.page.goto(url + path + '/access');
  assert.equal(await p.page.locator('tr[data-gln]').count(), 1);
  await p.page.locator('[hx-get$="/access/former"]').click();
  await p.page.locator('tr[data-gln]').nth(1).waitFor();
  assert.equal(new URL(p.page.url()).pathname, path + '/access');
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('a name and an address that are markup are text', async () => {
  const p = await signIn(browser, 'eva');
  await openCase(p.page, eans[11]);
  const given = await p.page.locator('.identity').innerText();
  assert.match(given, /<i>/);
  assert.equal(await p.page.locator('.identity i, .identity b, .identity img, .identity script').count(), 0);
  p.calm();
  await p.context.close();
});

test('an auditor sees the rights, and neither name nor address nor a way to change them', async () => {
  const eva = await signIn(browser, 'eva'), thomas = await signIn(browser, 'thomas');
  await openCase(eva.page, eans[0]);
  const name = await eva.page.locator('.identity strong').innerText();
  const street = (await eva.page.locator('.identity').innerText()).split('\n')[1];
  const path = await openCase(thomas.page, eans[0]);
  await thomas.page.locator('[data-identity=NOT_FOR_ROLE]').waitFor();
  for (const page of ['', '/access', '/consents']) {
    await thomas.page.goto(url + path + page);
    const text = await thomas.page.content();
    assert.ok(!text.includes(name) && !text.includes(street), page);
    assert.equal(await thomas.page.locator('main a[href$="/revoke"], main a[href$="/new"], main form').count(), 0, page);
  }
  const res = await thomas.page.goto(url + path + '/readings');
  assert.equal(res.status(), 403);
  await thomas.page.goto(url + path);
  await everyLook(thomas, path, 'connection-auditor');
  thomas.calm();
  for (const p of [eva, thomas]) await p.context.close();
});

// Who phones: "Who has looked at my meter? Stop it."
test('the phone call: find, see, withdraw, statement', async t => {
  const reader = await supplier(1), ean = eans[9];
  assert.ok((await reader.quarterHours(ean, ago(13))).given > 0); // somebody did look
  const p = await signIn(browser, 'eva');
  let clicks = 0;
  const click = async what => { clicks++; await what.click(); };
  await p.page.goto(url);
  const began = performance.now();
  await p.page.fill('#ean', ean);
  await p.page.fill('#reason', 'call-2026-1123');
  await click(p.page.locator('form[action="/open"] button[type=submit]'));
  await p.page.locator(`[data-reader="${reader.id}"]`).waitFor(); // who read, at a glance
  const seen = performance.now();
  await click(p.page.locator('a[href$="/revoke"]').first());
  await click(p.page.locator('main form button[type=submit]'));
  await p.page.locator('[data-changed=REVOKED]').waitFor();
  const stopped = performance.now();
  assert.equal((await reader.quarterHours(ean, ago(13))).given, 0);
  await click(p.page.locator('nav.tabs a[href$="/statement"]'));
  await p.page.locator('main[data-page=statement]').waitFor();
  t.diagnostic(`${clicks} clicks; who read: ${((seen - began) / 1000).toFixed(2)} s, stopped: ${((stopped - began) / 1000).toFixed(2)} s, statement: ${((performance.now() - began) / 1000).toFixed(2)} s`);
  assert.ok(clicks <= 6, `${clicks} clicks`);
  p.calm();
  await p.context.close();
});
