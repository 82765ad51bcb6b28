// What tests of the portal share: a browser, people who sign in, pages as they
// look. KLUIS_READY names the ready file of a running demo (kluis demo
// --ready-file), KLUIS_SCREENSHOTS a folder for pictures.
import assert from 'node:assert/strict';
import {existsSync, mkdirSync, readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {join} from 'node:path';
import {chromium} from 'playwright-core';

assert.ok(process.env.KLUIS_READY, 'KLUIS_READY must name the ready file of a demo');
export const ready = JSON.parse(readFileSync(process.env.KLUIS_READY, 'utf8'));
export const url = ready.portal.url;
// Metering points of the demo, in the order of its plan.
export const eans = ready.metering_points.map(p => p.ean);

const program = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
assert.ok(program, 'no Chromium: scripts/setup.sh --clients installs it');
const axeSource = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const pictures = process.env.KLUIS_SCREENSHOTS;
if (pictures) mkdirSync(pictures, {recursive: true});

export const DESKTOP = {width: 1280, height: 900}, PHONE = {width: 320, height: 720};

// launch starts the browser: once in each file, in before().
export async function launch() {
  // A browser that runs as root has no sandbox; what it shows is our own.
  return chromium.launch({executablePath: program, args: process.getuid() === 0 ? ['--no-sandbox'] : []});
}

// person opens a browser window of its own; what goes wrong in it is noted, and
// calm() asserts that nothing did. language is nl or en, theme light or dark.
export async function person(browser, {language = 'en', theme = 'light', viewport = DESKTOP} = {}) {
  const context = await browser.newContext({ignoreHTTPSErrors: true, viewport, colorScheme: theme, locale: language === 'nl' ? 'nl-NL' : 'en-GB', reducedMotion: 'reduce'});
  await look(context, language, theme);
  const noted = [];
  context.on('console', m => { if (['error', 'warning'].includes(m.type()) && !/status of (4|5)\d\d/.test(m.text())) noted.push(`${m.type()}: ${m.text()}`); });
  context.on('weberror', e => noted.push(`error: ${e.error()}`));
  context.on('request', r => { if (new URL(r.url()).protocol !== 'data:' && !r.url().startsWith(url) && !r.url().startsWith(ready.portal.identity_provider)) noted.push(`request elsewhere: ${r.url()}`); });
  context.on('request', r => { const told = `${r.url()} ${r.headers().referer} ${r.headers()["hx-current-url"]}`; if (eans.some(e => told.includes(e))) noted.push("a metering point in an address"); });
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', e => console.error(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));
  });
  const page = await context.newPage();
  return {context, page, language, calm: () => assert.deepEqual(noted, []), noted};
}

async function look(context, language, theme) {
  const {hostname} = new URL(url);
  await context.addCookies([['language', language], ['theme', theme]].map(([name, value]) =>
    ({name: `__Host-kluis-${name}`, value, url: `https://${hostname}`, secure: true, httpOnly: true, sameSite: 'Lax'})));
}

// signIn signs in one of the demo's employees: eva and joris are agents, samira is a
// supervisor, thomas an auditor, ilse has no role.
export async function signIn(browser, employee, options) {
  const p = await person(browser, options);
  await p.page.goto(url);
  await p.page.locator('a[href^="/login"]').click();
  await p.page.locator(`button[name=employee][value=${employee}]`).click();
  await p.page.waitForURL(u => u.href.startsWith(url));
  return p;
}

// openCase opens a metering point, and returns the path of its pages: /c/….
export async function openCase(page, ean, reason = 'ticket-4711') {
  await page.goto(url);
  await page.fill('#ean', ean);
  await page.fill('#reason', reason);
  await page.locator('form[action="/open"] button[type=submit]').click();
  await page.waitForURL(/\/c\/[0-9a-f]{32}/);
  return new URL(page.url()).pathname.match(/^\/c\/[0-9a-f]{32}/)[0];
}

// accessible asserts that axe finds nothing, by WCAG 2.2 A and AA and its best practices.
export async function accessible(page) {
  await page.evaluate(axeSource);
  const {violations} = await page.evaluate(() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}));
  assert.deepEqual(violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.target.join(' ')).join('; ')}`), []);
}

// fits asserts that nothing makes the page wider than the window.
export async function fits(page) {
  const [content, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= width, `${page.url()} is ${content} wide in a window of ${width}`);
}

// picture keeps a screenshot of the whole page, when pictures are wanted.
export async function picture(page, name) {
  if (pictures) await page.screenshot({path: join(pictures, `${name}.png`), fullPage: true});
}

// everyLook shows a page in both languages, light and dark, on a desk and on a
// phone: each is accessible, fits, and leaves a picture NAME-nl-light-1280.png. first is
// called after the page is there: to wait for a chart, or to open what is folded.
export async function everyLook(p, path, name, first = async () => {}) {
  for (const viewport of [DESKTOP, PHONE]) {
    await p.page.setViewportSize(viewport);
    for (const language of ['nl', 'en']) {
      for (const theme of ['light', 'dark']) {
        await look(p.context, language, theme);
        await p.page.emulateMedia({colorScheme: theme, reducedMotion: 'reduce'});
        await p.page.goto(url + path);
        await first(p.page);
        const at = `${name}-${language}-${theme}-${viewport.width}`;
        assert.equal(await p.page.locator('html').getAttribute('lang'), language, at);
        await fits(p.page);
        await accessible(p.page).catch(e => { e.message = `${at}: ${e.message}`; throw e; });
        await picture(p.page, at);
      }
    }
  }
  await p.page.setViewportSize(DESKTOP);
  await look(p.context, p.language, 'light');
}
