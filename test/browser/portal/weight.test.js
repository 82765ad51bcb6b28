// What a page weighs: everything that a browser fetches for it with nothing kept
// from before, as it goes over the line.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {ago} from './api.js';
import {eans, launch, openCase, signIn, url} from './lib.js';

const MOST = 150 * 1024;

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('no page weighs more than 150 KB', async t => {
  const p = await signIn(browser, 'samira');
  const path = await openCase(p.page, eans[3]);
  const network = await p.context.newCDPSession(p.page);
  await network.send('Network.enable');
  await network.send('Network.setCacheDisabled', {cacheDisabled: true});
  let bytes = 0;
  network.on('Network.loadingFinished', e => { bytes += e.encodedDataLength; });
  const weigh = async (name, go) => {
    bytes = 0;
    await go();
    await p.page.waitForLoadState('networkidle');
    t.diagnostic(`${name}: ${(bytes / 1024).toFixed(1)} KB`);
    assert.ok(bytes > 10 * 1024 && bytes < MOST, `${name}: ${bytes} bytes`);
  };
  for (const page of ['/', path, path + '/access', path + '/log', path + '/readings', path + '/consents', path + '/consents/new', path + '/statement', '/suppliers', '/health', '/oversight']) {
    await weigh(page.replace(path, '/c/…'), () => p.page.goto(url + page));
  }
  for (const [name, days] of [['a week of quarter-hours', 7], ['a year of quarter-hours', 364]]) {
    await p.page.goto(url + path + '/readings');
    await p.page.fill('#from', ago(days));
    await p.page.fill('#to', ago(1));
    await weigh(name, async () => {
      await p.page.locator('#open button[type=submit]').first().click();
      await p.page.locator('[data-drawn]').first().waitFor();
    });
  }
  p.calm();
  await p.context.close();
});
