// On paper: what a page says, without ways to click, and nothing of it cut.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {eans, launch, openCase, picture, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('pages are printed on A4 whole, and in light colours', async () => {
  const p = await signIn(browser, 'eva', {theme: 'dark'});
  const path = await openCase(p.page, eans[8]);
  for (const [name, at] of [['connection', ''], ['access', '/access'], ['log', '/log?show=all'], ['consents', '/consents'], ['readings', '/readings?period=week']]) {
    await p.page.goto(url + path + at);
    if (name === 'readings') {
      await p.page.locator('#open button[type=submit]').first().click();
      await p.page.locator('[data-drawn]').first().waitFor();
      await p.page.evaluate(() => dispatchEvent(new Event('beforeprint'))); // as a browser does
    }
    await p.page.setViewportSize({width: 687, height: 1000}); // A4 without its margins
    await p.page.emulateMedia({media: 'print'});
    const seen = await p.page.evaluate(() => ({
      clicks: [...document.querySelectorAll('nav, button, [role=button], form, select')].filter(e => e.checkVisibility()).map(e => e.outerHTML.slice(0, 80)),
      cut: [...document.querySelectorAll('main, .scroll, .bare, .months, .plot, canvas')].filter(e => e.checkVisibility() && (e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > innerWidth)).map(e => e.outerHTML.slice(0, 80)),
      charts: [...document.querySelectorAll('canvas')].filter(e => e.checkVisibility()).length,
    }));
    assert.deepEqual(seen.clicks, [], name);
    assert.deepEqual(seen.cut, [], name);
    assert.equal(seen.charts > 0, name === 'readings', name);
    await picture(p.page, `print-${name}`);
    await p.page.emulateMedia({media: 'screen', colorScheme: 'dark'});
    await p.page.setViewportSize({width: 1280, height: 900});
  }
  p.calm();
  await p.context.close();
});
