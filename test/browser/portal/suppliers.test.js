// Suppliers: who may call Kluis, and stopping one at once.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {ago, asEmployee, supplier} from './api.js';
import {accessible, eans, everyLook, launch, picture, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('the list looks well, and so does the question before a step', async () => {
  const p = await signIn(browser, 'samira');
  await everyLook(p, '/suppliers', 'suppliers');
  await everyLook(p, `/suppliers/${(await supplier(1)).id}/suspend`, 'supplier-suspend');
  p.calm();
  await p.context.close();
});

test('suspended: nothing from the very next request on; let in again: as before', async () => {
  const reader = await supplier(1), ean = eans[3];
  const read = () => reader.send('GET', `/v1/metering-points/${ean}/readings?from=${ago(40)}&to=${ago(30)}&purpose=ENERGY_MANAGEMENT`);
  assert.equal((await read()).status, 200);
  const p = await signIn(browser, 'samira');
  await p.page.goto(url + '/suppliers');
  const row = p.page.locator(`tr[data-gln="${reader.id}"]`);
  await row.locator('a').click();
  await p.page.locator('button.danger').click(); // without a reason
  await p.page.locator('#reason[aria-invalid=true]').waitFor();
  await accessible(p.page);
  assert.equal((await read()).status, 200);
  await p.page.fill('#reason', 'report-12 <b>');
  await p.page.keyboard.press('Enter');
  await p.page.waitForURL(/changed=/);
  assert.equal(await row.getAttribute('data-suspended'), 'true');
  await accessible(p.page);
  await picture(p.page, 'supplier-suspended');
  const refused = await read();
  assert.ok([401, 403].includes(refused.status), `${refused.status} ${refused.text}`);
  // Somebody whose page is older takes the same step: nothing goes wrong.
  await row.locator('a').click();
  await p.page.fill('#reason', 'report-12 is done');
  await p.page.locator('main form button[type=submit]').click();
  await p.page.waitForURL(/changed=/);
  assert.equal(await row.getAttribute('data-suspended'), 'false');
  assert.equal((await (await supplier(1)).send('GET', `/v1/metering-points/${ean}/readings?from=${ago(40)}&to=${ago(30)}&purpose=ENERGY_MANAGEMENT`)).status, 200);
  p.calm();
  await p.context.close();
});

test('two supervisors at once: the second is told, and nothing is done twice', async () => {
  const gln = (await supplier(0)).id;
  const one = await signIn(browser, 'samira'), two = await signIn(browser, 'samira');
  for (const p of [one, two]) {
    await p.page.goto(url + `/suppliers/${gln}/suspend`);
    await p.page.fill('#reason', 'report-13');
  }
  await one.page.locator('button.danger').click();
  await one.page.waitForURL(/changed=/);
  await one.page.locator(`tr[data-gln="${gln}"]`).locator('a').click();
  await one.page.fill('#reason', 'a mistake');
  await one.page.locator('main form button[type=submit]').click();
  await one.page.waitForURL(/changed=/);
  await two.page.locator('button.danger').click(); // of a version that is past
  assert.equal(await two.page.locator('[data-problem]').getAttribute('data-problem'), 'precondition-failed');
  await accessible(two.page);
  await one.page.goto(url + '/suppliers');
  assert.equal(await one.page.locator(`tr[data-gln="${gln}"]`).getAttribute('data-suspended'), 'false');
  for (const p of [one, two]) await p.context.close();
});

test('the operator’s own record is not suspended here', async () => {
  const p = await signIn(browser, 'samira');
  await p.page.goto(url + '/suppliers');
  const own = p.page.locator('tr', {hasText: 'our own record'});
  assert.equal(await own.locator('a').count(), 0);
  await p.page.goto(url + `/suppliers/${await own.getAttribute('data-gln')}/suspend`);
  assert.equal(await p.page.locator('main form').count(), 0);
  await accessible(p.page);
  p.calm();
  await p.context.close();
});

test('an agent is sent away, by the portal and by the API; an auditor looks', async () => {
  const gln = (await supplier(0)).id;
  const eva = await signIn(browser, 'eva'), thomas = await signIn(browser, 'thomas');
  for (const page of ['/suppliers', `/suppliers/${gln}/suspend`, '/oversight']) {
    const res = await eva.page.goto(url + page);
    assert.equal(res.status(), 403, page);
    assert.equal(await eva.page.locator('[data-problem]').getAttribute('data-problem'), 'no-rights');
  }
  const refused = await asEmployee(['--oversee', '--role', 'agent'], 'GET', '/v1/suppliers');
  assert.equal(refused.status, 403, refused.text);
  assert.equal((await asEmployee(['--oversee', '--role', 'auditor'], 'GET', '/v1/suppliers')).status, 200);
  assert.equal((await thomas.page.goto(url + '/suppliers')).status(), 200);
  assert.equal(await thomas.page.locator('tbody a').count(), 0);
  assert.equal((await thomas.page.goto(url + `/suppliers/${gln}/suspend`)).status(), 403);
  for (const p of [eva, thomas]) await p.context.close();
});
