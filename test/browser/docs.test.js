// What a browser makes of /docs: KLUIS_DOCS names the address of a running
// gateway's private listener, KLUIS_SCREENSHOT a file for a picture of it.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {existsSync} from 'node:fs';
import {chromium} from 'playwright-core';

const base = new URL(process.env.KLUIS_DOCS);
const program = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
assert.ok(program, 'no Chromium: scripts/setup.sh --ci installs it');

let browser;
before(async () => {
  // A browser that runs as root has no sandbox; what it shows is our own.
  browser = await chromium.launch({executablePath: program, args: process.getuid() === 0 ? ['--no-sandbox'] : []});
});
after(() => browser?.close());

// visit opens /docs and keeps all that the browser says about it.
async function visit(context) {
  const page = await context.newPage();
  const seen = {said: [], requests: [], responses: []};
  page.on('console', m => seen.said.push(`${m.type()}: ${m.text()}`));
  page.on('pageerror', e => seen.said.push(`error: ${e}`));
  page.on('requestfailed', r => seen.said.push(`failed: ${r.url()}`));
  page.on('request', r => seen.requests.push(r.url()));
  page.on('response', r => seen.responses.push(r));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', e => window.violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));
  });
  await page.goto(new URL('/docs', base).href);
  await page.getByRole('heading', {name: /Kluis API/}).first().waitFor();
  await page.locator('[id="operation/getReadings"]').first().waitFor();
  return {page, seen};
}

test('the contract is shown, and nothing else happens', async () => {
  const context = await browser.newContext({viewport: {width: 1400, height: 1000}});
  const {page, seen} = await visit(context);
  const contract = await (await fetch(new URL('/openapi.json', base))).json();
  const operations = Object.values(contract.paths).flatMap(p => Object.values(p)).map(o => o.operationId).filter(Boolean);
  assert.ok(operations.length > 10);
  for (const id of operations) {
    assert.ok(await page.locator(`[id="operation/${id}"], [id$="/operation/${id}"]`).count() > 0, `${id} is not shown`);
  }
  // Styles work: Redoc's are made under the nonce.
  const menu = page.locator('.menu-content').first();
  assert.equal(await menu.evaluate(e => getComputedStyle(e).position), 'sticky');
  // Open what is folded: schemas are drawn when somebody looks.
  await page.locator('[id$="operation/queryReadings"] button[aria-label], [id$="operation/queryReadings"] button').first().click();
  await page.locator('[id$="operation/queryReadings"]').first().scrollIntoViewIfNeeded();
  await page.waitForLoadState('networkidle');
  assert.deepEqual(await page.evaluate(() => window.violations), []);
  assert.deepEqual(seen.said, []);
  for (const url of seen.requests) {
    if (!url.startsWith('data:')) assert.equal(new URL(url).origin, base.origin, url);
  }
  assert.deepEqual(await context.cookies(), []);
  let bytes = 0;
  for (const r of seen.responses.filter(r => !r.url().startsWith('data:'))) {
    assert.equal(r.status(), 200, r.url());
    bytes += (await r.request().sizes()).responseBodySize;
  }
  console.log(`/docs is ${bytes} bytes over the network`);
  assert.ok(bytes < 500_000);
  if (process.env.KLUIS_SCREENSHOT) {
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({path: process.env.KLUIS_SCREENSHOT});
    await page.locator('[id$="operation/getReadings"]').first().scrollIntoViewIfNeeded();
    await page.screenshot({path: process.env.KLUIS_SCREENSHOT.replace('.png', '-2.png')});
  }
  await context.close();
});
