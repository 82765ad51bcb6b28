// Signing in and out, and what a browser is sent with every page.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {accessible, everyLook, eans, fits, launch, openCase, person, picture, ready, signIn, url} from './lib.js';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

test('who has not signed in sees the way to sign in, in every look', async () => {
  const p = await person(browser);
  await everyLook(p, '/signin', 'signin');
  p.calm();
  await p.context.close();
});

test('the development sign-in says what it is, and signs in', async () => {
  const p = await person(browser);
  await p.page.goto(url + '/suppliers'); // where somebody wanted to go
  await p.page.locator('a[href^="/login"]').click();
  assert.match(await p.page.locator('main').innerText(), /asks nobody for a password.*not for production/s);
  await accessible(p.page);
  await picture(p.page, 'development-sign-in');
  await p.page.getByRole('button', {name: /Samira/}).click();
  await p.page.waitForURL(url + '/suppliers');
  const cookie = (await p.context.cookies(url)).find(c => c.name === '__Host-kluis');
  assert.deepEqual([cookie.httpOnly, cookie.secure, cookie.sameSite, cookie.path, cookie.expires], [true, true, 'Lax', '/', -1]);
  assert.equal(await p.page.evaluate(() => document.cookie), '');
  p.calm();
  await p.context.close();
});

test('signing out ends the session, for its address and cookie too', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[0]);
  const cookies = await p.context.cookies(url);
  await p.page.locator('details.menu summary').click();
  await p.page.getByRole('button', {name: 'Sign out', exact: true}).click();
  await p.page.waitForURL(/\/signin/);
  assert.ok(!(await p.context.cookies(url)).some(c => c.name === '__Host-kluis'));
  await p.context.addCookies(cookies);
  await p.page.goto(url + path);
  assert.match(p.page.url(), /\/signin\?next=/);
  p.calm();
  await p.context.close();
});

test('an address of one session is nothing in another', async () => {
  const eva = await signIn(browser, 'eva'), joris = await signIn(browser, 'joris');
  const path = await openCase(eva.page, eans[0]);
  const res = await joris.page.goto(url + path);
  assert.equal(res.status(), 404);
  assert.equal(await joris.page.locator('[data-problem]').getAttribute('data-problem'), 'no-case');
  await accessible(joris.page);
  await eva.context.close();
  await joris.context.close();
});

test('signing out everywhere ends the others of the same employee', async () => {
  const one = await signIn(browser, 'joris'), two = await signIn(browser, 'joris'), eva = await signIn(browser, 'eva');
  await one.page.locator('details.menu summary').click();
  await one.page.getByRole('button', {name: 'Sign out everywhere'}).click();
  await one.page.waitForURL(/\/signin/);
  await two.page.goto(url);
  assert.match(two.page.url(), /\/signin/);
  await eva.page.goto(url);
  assert.equal(new URL(eva.page.url()).pathname, '/');
  for (const p of [one, two, eva]) await p.context.close();
});

test('who has no role is told so', async () => {
  const p = await person(browser);
  await p.page.goto(url + '/login');
  const [res] = await Promise.all([p.page.waitForResponse(r => r.url().includes('/login/callback')), p.page.getByRole('button', {name: /Ilse/}).click()]);
  assert.equal(res.status(), 403);
  assert.equal(await p.page.locator('[data-problem]').getAttribute('data-problem'), 'no-role');
  await accessible(p.page);
  await fits(p.page);
  await picture(p.page, 'no-role');
  await p.context.close();
});

test('a page for another role is refused, and says what to do', async () => {
  const p = await signIn(browser, 'eva');
  const res = await p.page.goto(url + '/suppliers');
  assert.equal(res.status(), 403);
  assert.equal(await p.page.locator('[data-problem]').getAttribute('data-problem'), 'no-rights');
  assert.equal(await p.page.locator('nav.main-nav a[href="/suppliers"]').count(), 0);
  await accessible(p.page);
  await picture(p.page, 'no-rights');
  await p.context.close();
});

test('another site can post nothing, and shows nothing in a frame', async () => {
  const p = await signIn(browser, 'eva');
  const evil = await p.context.newPage();
  // Another origin of the same site: the sign-in's, whose cookies would travel.
  await evil.route('**/evil', r => r.fulfill({contentType: 'text/html', body: `<form method=post action="${url}/open"><input name=ean value=${eans[0]}><input name=reason value=x></form><iframe src="${url}/"></iframe>`}));
  await evil.goto(ready.portal.identity_provider + '/evil');
  assert.equal(await evil.frames()[1]?.evaluate(() => document.body?.querySelector('#ean') !== null).catch(() => false), false);
  const [res] = await Promise.all([evil.waitForResponse(r => r.request().method() === 'POST'), evil.evaluate(() => document.forms[0].submit())]);
  assert.equal(res.status(), 403);
  await p.page.goto(url);
  assert.equal(await p.page.locator('#recent tbody tr').count(), 0);
  await p.context.close();
});

test('language and theme are kept, and change nothing else', async () => {
  const p = await signIn(browser, 'eva');
  await p.page.getByRole('button', {name: 'Nederlands'}).click();
  await p.page.getByRole('heading', {name: 'Welke aansluiting?'}).waitFor();
  await p.page.locator('details.menu summary').click();
  await p.page.getByRole('button', {name: 'donker'}).click();
  await p.page.locator('html[data-theme=dark][lang=nl]').waitFor();
  p.calm();
  await p.context.close();
});

test('who has a session comes back without being asked; who signed out is asked', async () => {
  const p = await signIn(browser, 'eva');
  const path = await openCase(p.page, eans[0]);
  await p.page.goto(url + '/login?next=' + path); // as when the ID token is about to end
  assert.equal(p.page.url(), url + path);
  await p.page.locator('details.menu summary').click();
  await p.page.getByRole('button', {name: 'Sign out', exact: true}).click();
  await p.page.waitForURL(/\/signin/);
  await p.page.locator('a[href^="/login"]').click();
  await p.page.locator('button[name=employee][value=eva]').waitFor();
  assert.equal(new URL(p.page.url()).searchParams.get('prompt'), 'login');
  assert.equal((await p.context.cookies(url)).some(c => c.name === '__Host-kluis'), false);
  p.calm();
  await p.context.close();
});
