// The customer statement: on the screen, and as it is printed.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {accessible, eans, everyLook, launch, openCase, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('it looks well in every look', async () => {
  const p = await signIn(browser, 'eva');
  await everyLook(p, await openCase(p.page, eans[0]) + '/statement', 'statement');
  p.calm();
  await p.context.close();
});

test('its language is the customer’s, not the employee’s', async () => {
  const p = await signIn(browser, 'eva', {language: 'en'});
  const path = await openCase(p.page, eans[0]);
  await p.page.goto(url + path + '/statement');
  assert.equal(await p.page.locator('article.paper').getAttribute('lang'), 'en');
  await p.page.selectOption('#lang', 'nl');
  await p.page.locator('#settings button[type=submit]').click();
  await p.page.waitForURL(/lang=nl/);
  await p.page.getByRole('heading', {name: 'Uw energiemeter: wie mag meelezen, en wie deed dat'}).waitFor();
  assert.equal(await p.page.locator('html').getAttribute('lang'), 'en');
  assert.equal(await p.page.locator('article.paper').getAttribute('lang'), 'nl');
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('a period that is none is said beside the field', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[0]);
  const res = await p.page.goto(url + path + '/statement?from=2026-03-02&to=2026-03-01');
  assert.equal(res.status(), 422);
  assert.equal(await p.page.locator('#to[aria-invalid=true]').count(), 1);
  assert.equal(await p.page.locator('article.paper').count(), 0);
  await accessible(p.page);
  await p.context.close();
});

test('printed, it is the paper alone', async () => {
  const p = await signIn(browser, 'eva', {theme: 'dark'});
  const path = await openCase(p.page, eans[0]);
  await p.page.goto(url + path + '/statement');
  await p.page.evaluate(() => { window.print = () => { document.body.dataset.printed = 'yes'; }; });
  await p.page.getByRole('button', {name: 'Print'}).click();
  assert.equal(await p.page.locator('body').getAttribute('data-printed'), 'yes');
  await p.page.emulateMedia({media: 'print', colorScheme: 'dark'});
  const seen = await p.page.evaluate(() => [...document.querySelectorAll('header.top, nav, .case, #settings, main > h1, footer.bottom, article.paper')]
    .filter(e => e.offsetParent !== null || e.getClientRects().length).map(e => e.className || e.id));
  assert.deepEqual(seen, ['paper']);
  assert.equal(await p.page.locator('.paper').evaluate(e => getComputedStyle(e).color), 'rgb(0, 0, 0)');
  const pdf = await p.page.pdf({preferCSSPageSize: true});
  const boxes = pdf.toString('latin1').match(/\/MediaBox\s*\[[^\]]*\]/g);
  assert.match(boxes[0], /0 0 59[45](\.\d+)? 84[12]/); // A4, in points
  await p.context.close();
});

test('an auditor’s names nobody', async () => {
  const p = await signIn(browser, 'thomas');
  const path = await openCase(p.page, eans[0]);
  await p.page.goto(url + path + '/statement');
  assert.match(await p.page.locator('article.paper header').innerText(), /Your connection/);
  assert.doesNotMatch(await p.page.locator('article.paper header').innerText(), /For\n|name/);
  await accessible(p.page);
  p.calm();
  await p.context.close();
});
