// Who read what: the calendar, the list, and the proof of an entry.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import {after, before, test} from 'node:test';
import {accessible, eans, everyLook, fits, launch, openCase, PHONE, picture, ready, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

// readings opens some, so that there is something to show.
async function readings(page, path) {
  await page.goto(url + path + '/readings');
  await page.locator('form[action$="/readings"] button[type=submit]').first().click();
  await page.waitForLoadState('load');
}

test('it looks well with nothing read, and with something', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[3]);
  await everyLook(p, path + '/log?show=all', 'log-all');
  await readings(p.page, path);
  await everyLook(p, path + '/log', 'log', async page => { await page.locator('[data-entry]').first().waitFor(); });
  p.calm();
  await p.context.close();
});

test('a day is chosen by keyboard, and the address says so', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[4]);
  await readings(p.page, path);
  await p.page.goto(url + path + '/log');
  assert.equal(await p.page.locator('.months a[tabindex="0"]').count(), 1);
  const day = p.page.locator('.months a[data-day]').last();
  await day.focus();
  const [res] = await Promise.all([p.page.waitForResponse(r => r.url().includes('/log/list?')), p.page.keyboard.press('Enter')]);
  assert.equal(res.status(), 200);
  await p.page.locator('.months a[aria-current=date]').waitFor();
  const chosen = await day.getAttribute('data-day');
  assert.equal(await p.page.inputValue('#from'), chosen);
  assert.equal(await p.page.inputValue('#to'), chosen);
  assert.equal(new URL(p.page.url()).search, `?from=${chosen}&to=${chosen}`);
  assert.match(await p.page.locator('#said').textContent(), /1 request/);
  assert.equal(await p.page.evaluate(() => document.activeElement.dataset.day), chosen);
  await p.page.reload();
  assert.equal(await p.page.locator('.months a[aria-current=date]').getAttribute('data-day'), chosen);
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('it is filtered, and says which field is wrong', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[4]);
  await readings(p.page, path);
  await p.page.goto(url + path + '/log');
  await p.page.selectOption('#purpose', 'BILLING');
  await p.page.locator('#filter button[type=submit]').click();
  await p.page.locator('#entries .empty').waitFor();
  await p.page.selectOption('#purpose', 'CUSTOMER_SERVICE');
  await p.page.locator('#filter button[type=submit]').click();
  await p.page.locator('[data-entry]').first().waitFor();
  assert.match(p.page.url(), /\?purpose=CUSTOMER_SERVICE$/);
  await p.page.goto(url + path + '/log?from=2026-02-03&to=2026-02-01&supplier=1');
  assert.equal(await p.page.locator('#filter [aria-invalid=true]').count(), 2);
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('trying for a proof again keeps the focus where it was', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[5]);
  await readings(p.page, path);
  await p.page.goto(url + path + '/log');
  const row = p.page.locator('[data-entry]').first(), again = row.getByRole('button', {name: 'Try again'});
  // There is none three times, and then as the portal answers.
  const real = [];
  const part = told => `<div tabindex="-1" data-proof="none"><p>${told}</p><p><a role="button" href="${real[0]}" hx-get="${real[0]}" hx-target="${real[1]}" data-again>Try again</a></p></div>`;
  let asked = 0;
  await p.page.route(u => u.pathname.endsWith('/proof'), route => (asked++ < 3 ? route.fulfill({status: 200, contentType: 'text/html', body: part(`try ${asked}`)}) : route.continue()));
  const link = row.getByRole('link', {name: /Proof of/});
  real.push(await link.getAttribute('href'), await link.getAttribute('hx-target'));
  const focused = () => p.page.evaluate(() => document.activeElement.textContent);
  await link.focus();
  await p.page.keyboard.press('Enter');
  await row.getByText('try 1').waitFor();
  assert.match(await focused(), /Proof/); // what was pressed is still there
  await again.focus();
  for (const n of [2, 3]) {
    await p.page.keyboard.press('Enter');
    await row.getByText(`try ${n}`).waitFor();
    assert.equal(await focused(), 'Try again');
  }
  // At last what came of it has the focus, or the button that is there in turn.
  for (let i = 0; i < 120 && await row.locator('[data-proof=whole]').count() === 0; i++) {
    await Promise.all([p.page.waitForResponse(r => new URL(r.url()).pathname.endsWith('/proof')), p.page.keyboard.press('Enter')]);
    await p.page.waitForTimeout(500);
  }
  await p.page.waitForFunction(() => document.activeElement.dataset.proof === 'whole');
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('the proof of an entry is checked, and what is saved proves it to auditproof', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[4]);
  await readings(p.page, path);
  await p.page.goto(url + path + '/log');
  const row = p.page.locator('[data-entry]').first();
  await row.getByRole('link', {name: /Proof of/}).click();
  // Signed within seconds.
  for (let i = 0; i < 40 && await row.locator('[data-proof=whole]').count() === 0; i++) {
    await row.locator('[data-proof]').waitFor();
    const again = row.getByRole('button', {name: 'Try again'});
    if (await again.count()) await Promise.all([p.page.waitForResponse(r => new URL(r.url()).pathname.endsWith('/proof')), again.click()]);
    await p.page.waitForTimeout(500);
  }
  assert.match(await row.locator('[data-proof=whole]').innerText(), /Checked: this request is in the log, unaltered[^]*signed state of [\d\s]+ entries/);
  assert.match(await row.locator('[data-says]').innerText(), /Readings[^]*given/i);
  await accessible(p.page);
  await picture(p.page, 'log-proof');
  await p.page.setViewportSize(PHONE);
  await fits(p.page);
  const [download] = await Promise.all([p.page.waitForEvent('download'), row.getByRole('button', {name: 'Save the proof'}).click()]);
  const file = await download.path();
  const proof = JSON.parse(readFileSync(file, 'utf8'))[0];
  const state = dirname(dirname(ready.ca_file)), program = new URL('../../../bin/auditproof', import.meta.url).pathname;
  assert.match(execFileSync(program, ['--keys', join(state, 'keys/seal-keys.pem'), '--origin', proof.origin, file], {encoding: 'utf8'}), /^PROVEN/);
  await p.page.goto(url + new URL(await row.getByRole('link', {name: /Proof of/}).getAttribute('href'), url).pathname);
  await everyLook(p, new URL(p.page.url()).pathname, 'proof');
  p.calm();
  await p.context.close();
});
