// What the customer says to a supplier's reading: the forms, the matrix, and the
// supplier's very next request.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {ago, supplier} from './api.js';
import {accessible, eans, everyLook, launch, openCase, picture, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

const day = ago(13);
const cell = (page, gln) => page.locator(`tr[data-gln="${gln}"] [data-cell="intervals PT15M"]`);

test('the list and the form look well', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[4]);
  await everyLook(p, path + '/consents', 'consents', page => page.locator('article details').first().evaluate(d => { d.open = true; }));
  await everyLook(p, path + '/consents/new', 'consent-new');
  p.calm();
  await p.context.close();
});

test('withdrawn: the matrix says no at once, and so does the API to the supplier', async () => {
  const reader = await supplier(0), ean = eans[2];
  assert.ok((await reader.quarterHours(ean, day)).given > 0);
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, ean);
  await p.page.goto(url + path + '/access');
  assert.match(await cell(p.page, reader.id).getAttribute('class'), /yes/);
  await p.page.goto(url + path);
  await p.page.locator('a[href$="/revoke"]').click();
  await p.page.locator('tr[data-change=gone]').first().waitFor();
  await accessible(p.page);
  await picture(p.page, 'consent-revoke');
  await p.page.locator('main form button[type=submit]').click();
  await p.page.locator('[data-changed=REVOKED]').waitFor();
  await accessible(p.page);
  const refused = await reader.quarterHours(ean, day);
  assert.equal(refused.given, 0);
  assert.match(refused.text, /CONSENT_REVOKED/);
  await p.page.getByRole('link', {name: 'See who may read what'}).click();
  assert.match(await cell(p.page, reader.id).getAttribute('class'), /no/);
  assert.match(await cell(p.page, reader.id).innerText(), /withdrawn/);
  p.calm();
  await p.context.close();
});

test('a request that the customer grants is readable from then on', async () => {
  const reader = await supplier(1), ean = eans[5];
  const asked = await reader.ask(ean);
  assert.equal((await reader.quarterHours(ean, day)).given, 0);
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, ean);
  await everyLook(p, path + '/consents', 'consents-request');
  await p.page.goto(url + path + '/consents');
  await p.page.locator(`[data-consent="${asked.id}"] a[href$="/grant"]`).click();
  await p.page.locator('tr[data-change=new]').first().waitFor();
  await everyLook(p, new URL(p.page.url()).pathname, 'consent-grant');
  await p.page.goto(url + path + `/consents/${asked.id}/grant`);
  // Nothing is recorded without where the customer's word is kept.
  await p.page.locator('main form button[type=submit]').click();
  await p.page.locator('#evidence[aria-invalid=true]').waitFor();
  await accessible(p.page);
  assert.equal((await reader.quarterHours(ean, day)).given, 0);
  await p.page.fill('#evidence', 'recording-77120');
  await p.page.keyboard.press('Enter');
  await p.page.locator('[data-changed=ACTIVE]').waitFor();
  assert.ok((await reader.quarterHours(ean, day)).given > 0);
  await p.page.goto(url + path + '/access');
  assert.match(await cell(p.page, reader.id).getAttribute('class'), /yes/);
  p.calm();
  await p.context.close();
});

test('a request that the customer rejects gives nothing', async () => {
  const reader = await supplier(1), ean = eans[7];
  const asked = await reader.ask(ean);
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, ean);
  await p.page.locator(`[data-consent="${asked.id}"] a[href$="/reject"]`).click(); // at a glance, on the connection
  await p.page.locator('main form button[type=submit]').click();
  await p.page.locator('[data-changed=REJECTED]').waitFor();
  assert.equal((await reader.quarterHours(ean, day)).given, 0);
  await p.page.goto(url + path + '/consents');
  assert.equal(await p.page.locator(`[data-consent="${asked.id}"]`).getAttribute('data-state'), 'REJECTED');
  p.calm();
  await p.context.close();
});

test('recorded on the customer’s word, with what it changes shown before', async () => {
  const reader = await supplier(1), ean = eans[10];
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, ean);
  assert.equal((await reader.quarterHours(ean, day)).given, 0);
  await p.page.goto(url + path + '/consents/new');
  assert.equal(await p.page.inputValue('#supplier'), reader.id); // there is no other to choose
  await p.page.fill('#evidence', '<script>alert(1)</script>');
  await p.page.fill('#to', ago(200));
  await p.page.locator('main form button[type=submit]').click();
  await p.page.locator('#to[aria-invalid=true]').waitFor(); // before the first day
  await accessible(p.page);
  assert.equal(await p.page.inputValue('#evidence'), '<script>alert(1)</script>');
  await p.page.fill('#evidence', 'recording-77121');
  await p.page.fill('#from', ago(20));
  await p.page.fill('#to', '');
  await p.page.selectOption('#granularity', 'PT15M');
  await p.page.locator('main form button[type=submit]').click();
  await p.page.locator('tr[data-change=new]').first().waitFor();
  await accessible(p.page);
  await picture(p.page, 'consent-new-confirm');
  assert.equal((await reader.quarterHours(ean, day)).given, 0); // looking changes nothing
  await p.page.locator('button[name=confirmed]').click();
  await p.page.locator('[data-changed=ACTIVE]').waitFor();
  assert.ok((await reader.quarterHours(ean, day)).given > 0);
  p.calm();
  await p.context.close();
});

test('two employees answer the same request: the second is told that it is answered', async () => {
  const reader = await supplier(1), ean = eans[3];
  const asked = await reader.ask(ean, {granularity: 'PT1H', evidence: 'app-2'});
  const people = await Promise.all(['eva', 'joris'].map(name => signIn(browser, name)));
  for (const p of people) {
    const path = await openCase(p.page, ean);
    await p.page.goto(url + path + `/consents/${asked.id}/reject`);
  }
  const [eva, joris] = people;
  await eva.page.locator('main form button[type=submit]').click();
  await eva.page.locator('[data-changed=REJECTED]').waitFor();
  await joris.page.locator('main form button[type=submit]').click();
  await joris.page.locator('[data-before=REJECTED]').waitFor();
  assert.match(await joris.page.locator('[data-before]').innerText(), /answered already.*customer said no.*changed nothing/s);
  await accessible(joris.page);
  await picture(joris.page, 'consent-answered-already');
  for (const p of people) await p.context.close();
});

