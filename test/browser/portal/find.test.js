// Find: where every call begins.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {accessible, eans, everyLook, fits, launch, openCase, picture, ready, signIn, url, PHONE} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('it looks well with nothing opened, and with something', async () => {
  const p = await signIn(browser, 'eva');
  await everyLook(p, '/', 'find-empty');
  await openCase(p.page, eans[0]);
  await everyLook(p, '/', 'find');
  p.calm();
  await p.context.close();
});

test('on a phone the name of who signed in is on one line', async () => {
  for (const [employee, language] of [['eva', 'nl'], ['samira', 'nl'], ['samira', 'en']]) {
    const p = await signIn(browser, employee, {language, viewport: PHONE});
    await p.page.goto(url);
    const lines = await p.page.locator('.menu .who').evaluate(e => {
      const r = document.createRange();
      r.selectNodeContents(e);
      return new Set([...r.getClientRects()].map(x => x.top)).size;
    });
    assert.equal(lines, 1);
    await fits(p.page);
    await picture(p.page, `header-${employee}-${language}`);
    await p.context.close();
  }
});

test('by keyboard alone, with blanks as people read it out', async () => {
  const p = await signIn(browser, 'eva');
  await p.page.goto(url);
  assert.equal(await p.page.evaluate(() => document.activeElement.id), 'ean');
  await p.page.keyboard.type(eans[1].replace(/(....)/g, '$1 '));
  await p.page.keyboard.press('Tab');
  await p.page.keyboard.type('call 12');
  await p.page.keyboard.press('Enter');
  await p.page.waitForURL(/\/c\/[0-9a-f]{32}$/);
  p.calm();
  await p.context.close();
});

test('what is wrong is said beside the field, and nothing is lost', async () => {
  const p = await signIn(browser, 'eva');
  await p.page.goto(url);
  await p.page.fill('#ean', '871687200000000011'); // the check digit is another
  await p.page.fill('#reason', '<img src=x onerror=alert(1)>');
  await p.page.keyboard.press('Enter');
  await p.page.locator('#ean[aria-invalid=true]').waitFor();
  assert.match(await p.page.locator('#ean-error').innerText(), /no EAN code/);
  assert.equal(await p.page.inputValue('#reason'), '<img src=x onerror=alert(1)>');
  assert.equal(await p.page.locator('img').count(), 0);
  assert.equal(await p.page.evaluate(() => document.activeElement.id), 'ean');
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('a reason that is markup is text, wherever it is shown', async () => {
  const p = await signIn(browser, 'eva');
  await openCase(p.page, eans[2], '"><script>alert(1)</script>');
  await p.page.goto(url);
  assert.equal(await p.page.locator('#recent tbody td').first().innerText(), '"><script>alert(1)</script>');
  p.calm();
  await p.context.close();
});

test('a word is explained at its button, and the explanation closes again', async () => {
  const p = await signIn(browser, 'eva');
  await openCase(p.page, eans[0]);
  await p.page.goto(url);
  await p.page.getByRole('button', {name: /Explanation: EAN code/}).click();
  await p.page.getByText('The number of a connection').waitFor();
  await accessible(p.page);
  await p.page.keyboard.press('Escape');
  await p.page.getByText('The number of a connection').waitFor({state: 'hidden'});
  p.calm();
  await p.context.close();
});

test('by address, as people say it, and opened from what was found', async () => {
  const p = await signIn(browser, 'joris');
  const {address} = ready.metering_points[0];
  const said = address.postcode.replace(/(\d+)([A-Z]+)/, (_, d, l) => `${d} ${l.toLowerCase()}`);
  await p.page.goto(url);
  await p.page.fill('#postcode', said);
  await p.page.fill('#house-number', `${address.houseNumber} bis`);
  await p.page.fill('#address-reason', 'ticket-4712');
  await p.page.getByRole('button', {name: 'Search'}).click();
  const rows = p.page.locator('#found tbody tr');
  await rows.first().waitFor();
  assert.ok((await rows.allInnerTexts()).some(r => r.replace(/\D/g, '').includes(eans[0])));
  await accessible(p.page);
  await fits(p.page);
  await picture(p.page, 'found');
  await rows.filter({hasText: eans[0].slice(8, 12)}).first().getByRole('button').click();
  await p.page.waitForURL(/\/c\/[0-9a-f]{32}$/);
  p.calm();
  await p.context.close();
});

test('going back from a case shows what was found, and asks nobody again', async () => {
  const p = await signIn(browser, 'eva');
  const {address} = ready.metering_points[0];
  await p.page.goto(url);
  await p.page.fill('#postcode', address.postcode);
  await p.page.fill('#house-number', address.houseNumber);
  await p.page.fill('#address-reason', 'ticket-4714');
  await p.page.getByRole('button', {name: 'Search'}).click();
  await p.page.waitForURL(/\/found\/[0-9a-f]{32}$/);
  const found = p.page.url(), rows = await p.page.locator('#found tbody').innerText();
  await p.page.locator('#found form button').first().click();
  await p.page.waitForURL(/\/c\/[0-9a-f]{32}$/);
  await p.page.goBack();
  assert.equal(p.page.url(), found);
  assert.equal(await p.page.locator('#found tbody').innerText(), rows);
  const other = await signIn(browser, 'joris'); // it is nothing in another session
  await other.page.goto(found);
  assert.equal(new URL(other.page.url()).pathname, '/');
  assert.equal(await other.page.locator('#found').count(), 0);
  p.calm();
  await other.context.close();
  await p.context.close();
});

test('an address where nothing is, and one that is none', async () => {
  const p = await signIn(browser, 'eva');
  const search = async (postcode, number) => {
    await p.page.goto(url);
    await p.page.fill('#postcode', postcode);
    await p.page.fill('#house-number', number);
    await p.page.fill('#address-reason', 'ticket-4713');
    await p.page.getByRole('button', {name: 'Search'}).click();
  };
  await search('9999 ZZ', '99999');
  await p.page.getByText('Nothing found at this address').waitFor();
  await accessible(p.page);
  await search('99', 'x');
  await p.page.locator('#postcode[aria-invalid=true]').waitFor();
  await p.page.locator('#house-number[aria-invalid=true]').waitFor();
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('an auditor is shown no way to names and addresses', async () => {
  const p = await signIn(browser, 'thomas');
  await p.page.goto(url);
  assert.equal(await p.page.locator('#postcode').count(), 0);
  p.calm();
  await p.context.close();
});
