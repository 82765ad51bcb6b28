// Health, and working on while parts of Kluis are away. Processes are stopped and
// go on again (SIGSTOP, SIGCONT), as a machine that hangs does.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {accessible, eans, everyLook, launch, openCase, picture, ready, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(async () => {
  resume();
  await browser?.close();
});

const servers = ready.cryptoservers.map(c => c.pid);
const stop = pids => pids.forEach(pid => process.kill(pid, 'SIGSTOP'));
const resume = () => servers.forEach(pid => process.kill(pid, 'SIGCONT'));

test('it looks well', async () => {
  const p = await signIn(browser, 'joris');
  await everyLook(p, '/health', 'health');
  assert.equal(await p.page.locator('[data-server]').count(), servers.length);
  p.calm();
  await p.context.close();
});

test('one cryptoserver hangs: the page says so by itself, and the rest goes on', async () => {
  const p = await signIn(browser, 'joris');
  await p.page.goto(url + '/health');
  const kind = p.page.locator('[data-part=cryptoservers]');
  assert.equal(await kind.getAttribute('data-kind'), 'ok');
  await p.page.locator('#main').focus();
  try {
    stop(servers.slice(0, 1));
    await p.page.locator('[data-part=cryptoservers][data-kind=warn]').waitFor({timeout: 60000}); // nobody clicks
    assert.equal(await p.page.evaluate(() => document.activeElement.id), 'main');
    await accessible(p.page);
    await picture(p.page, 'health-one-away');
    const path = await openCase(p.page, eans[8]);
    await p.page.locator('.identity').waitFor();
    await p.page.goto(url + path + '/readings');
    await p.page.locator('#open button[type=submit]').first().click();
    await p.page.locator('[data-opened] [data-plot]').first().waitFor({timeout: 30000});
  } finally {
    resume();
  }
  await p.page.goto(url + '/health');
  await p.page.locator('[data-part=cryptoservers][data-kind=ok]').waitFor({timeout: 60000});
  p.calm();
  await p.context.close();
});

test('no cryptoserver: what can be done goes on, what is missing is said, and nothing is half done', async () => {
  const p = await signIn(browser, 'joris');
  const path = await openCase(p.page, eans[8]);
  await p.page.locator('.identity').waitFor();
  await p.page.goto(url + path + '/consents');
  const consents = await p.page.locator('[data-consent]').count();
  assert.ok(consents > 0);
  await p.page.goto(url + '/health');
  await p.page.locator('[data-part=cryptoservers][data-kind=ok]').waitFor();
  const late = await signIn(browser, 'eva'); // signed in, but has opened nothing yet
  try {
    stop(servers);
    await p.page.locator('[data-part=cryptoservers][data-kind=bad]').waitFor({timeout: 60000}); // nobody clicks
    await accessible(p.page);
    await picture(p.page, 'health-none');
    // Consents are not sealed values: they are listed.
    await p.page.goto(url + path + '/consents');
    assert.equal(await p.page.locator('[data-consent]').count(), consents);
    await picture(p.page, 'consents-no-cryptoserver');
    // Of the connection, who lives there is missing, and it says so.
    await p.page.goto(url + path);
    await p.page.locator('[data-identity=UNAVAILABLE]').waitFor();
    await accessible(p.page);
    await picture(p.page, 'connection-no-cryptoserver');
    // Values there are none, and it says what to do: the form is there as it was
    // filled in.
    await p.page.goto(url + path + '/readings?period=month');
    await p.page.fill('#reason', 'call 77');
    const asked = await p.page.evaluate(() => [...new FormData(document.getElementById('open'))]);
    await p.page.locator('#open button[type=submit]').first().click();
    const said = p.page.locator('[data-failed]');
    await said.waitFor({timeout: 60000});
    assert.ok((await said.innerText()).length > 40);
    assert.ok(await said.evaluate(e => e === document.activeElement));
    assert.equal(await p.page.locator('[data-opened]').count(), 0);
    assert.deepEqual(await p.page.evaluate(() => [...new FormData(document.getElementById('open'))]), asked);
    await accessible(p.page);
    await picture(p.page, 'readings-no-cryptoserver');
    // Nor is anything found, and what was entered stays.
    const other = await p.context.newPage();
    await other.goto(url);
    await other.fill('#postcode', '1234 AB');
    await other.fill('#house-number', '7 bis');
    await other.fill('#address-reason', 'call 78');
    await other.locator('form[action="/find"] button[type=submit]').click();
    await other.locator('[data-failed]').waitFor({timeout: 60000});
    assert.equal(other.url(), url + '/find');
    assert.deepEqual(await other.evaluate(() => ['postcode', 'house-number', 'address-reason'].map(id => document.getElementById(id).value)), ['1234 AB', '7 bis', 'call 78']);
    await accessible(other);
    await picture(other, 'find-no-cryptoserver');
    // Who begins only now gets no token; the page is there, says so, and tells what
    // the portal sees by itself.
    assert.equal((await late.page.goto(url + '/health', {timeout: 60000})).status(), 200);
    await late.page.locator('[data-problem]').waitFor();
    for (const [part, kind] of [['database', 'ok'], ['gateway', 'warn'], ['issuer', 'warn'], ['cryptoservers', 'bad'], ['provider', 'ok']]) {
      await late.page.locator(`[data-seen=${part}][data-kind=${kind}]`).waitFor({timeout: 60000});
    }
    await accessible(late.page);
    await picture(late.page, 'health-no-token');
  } finally {
    resume();
  }
  await late.page.goto(url + '/health');
  await late.page.locator('[data-part=cryptoservers][data-kind=ok]').waitFor({timeout: 60000});
  await p.page.locator('#open button[type=submit]').first().click(); // what stayed filled in is sent again
  await p.page.locator('[data-opened] [data-plot]').first().waitFor({timeout: 30000});
  p.calm();
  for (const x of [p, late]) await x.context.close();
});
