// The API beside the portal: what a supplier is given meanwhile, and what the API
// itself says to an employee's token.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {randomUUID} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {request} from 'node:https';
import {fileURLToPath} from 'node:url';
import {ready} from './lib.js';

const kluis = process.env.KLUIS_PROGRAM ?? fileURLToPath(new URL('../../../bin/kluis', import.meta.url));

// ago is the day so many days ago: over, in any zone, from 1 on.
export const ago = days => new Date(Date.now() - days * 86400e3).toISOString().slice(0, 10);

// call sends one request with somebody's certificate.
function call(who, base, method, path, {headers = {}, body} = {}) {
  return new Promise((done, failed) => {
    const req = request(base + path, {method, headers, agent: false, ca: readFileSync(ready.ca_file), cert: readFileSync(who.certificate_file), key: readFileSync(who.key_file)}, res => {
      let text = '';
      res.setEncoding('utf8');
      res.on('data', part => { text += part; });
      res.on('end', () => done({status: res.statusCode, headers: res.headers, text, json: () => JSON.parse(text)}));
    });
    req.on('error', failed);
    req.end(body);
  });
}

// supplier is one of the demo's, with a token of its own.
export async function supplier(index) {
  const who = ready.suppliers[index];
  const answer = await call(who, ready.issuer_url, 'POST', '/oauth2/token', {
    headers: {'content-type': 'application/x-www-form-urlencoded'},
    body: new URLSearchParams({grant_type: 'client_credentials', client_id: who.client_id}).toString()});
  assert.equal(answer.status, 200, answer.text);
  const authorization = `Bearer ${answer.json().access_token}`;
  const send = (method, path, body) => call(who, ready.gateway_url, method, path, {
    headers: {authorization, ...(body ? {'content-type': 'application/json', 'idempotency-key': randomUUID()} : {})}, body: body && JSON.stringify(body)});
  return {
    ...who,
    // quarterHours asks for those of a day, which need the customer's consent: given is
    // how many there were.
    async quarterHours(ean, day) {
      const next = new Date(Date.parse(day) + 86400e3).toISOString().slice(0, 10);
      const res = await send('GET', `/v1/metering-points/${ean}/readings?from=${day}&to=${next}&purpose=ENERGY_MANAGEMENT&fields=import_intervals`);
      const given = res.status === 200 ? res.json().series.reduce((n, s) => n + (s.resolution === 'PT15M' ? s.deliveredCount : 0), 0) : 0;
      return {status: res.status, given, text: res.text};
    },
    // ask requests a customer's consent to quarter-hours; it waits for an answer then.
    async ask(ean, more = {}) {
      const until = new Date(Date.now() + 300 * 86400e3).toISOString().replace(/\.\d+/, '');
      const res = await send('POST', '/v1/consents', {ean, purpose: 'ENERGY_MANAGEMENT', classes: ['intervals'], granularity: 'PT15M', from: ago(200), validUntil: until, evidence: 'app-2026-11', ...more});
      assert.equal(res.status, 201, res.text);
      return res.json();
    },
    send,
  };
}

// asEmployee sends one request to the API with an employee's token for one errand,
// as the portal would: errand is what kluis staff token takes.
export function asEmployee(errand, method, path, headers = {}) {
  const token = execFileSync(kluis, ['staff', 'token', '--state', ready.state, '--reason', 'ticket-4711', ...errand], {encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore']}).trim();
  return call(ready.portal, ready.gateway_url, method, path, {headers: {authorization: `Bearer ${token}`, ...headers}});
}
