// What no true gateway would say, so none is asked: streams with a manifest
// that holds, of other metering points than were listed.
import assert from 'node:assert/strict';
import {webcrypto} from 'node:crypto';
import {test} from 'node:test';
import {Chain, sha256} from '../src/manifest.js';
import {runQuery, StreamError, type Point, type Transport} from '../src/query.js';

const clientId = '8712423000018';
const query = Buffer.alloc(32, 7).toString('base64url');
const ean = (n: number) => String(871687100000000000n + BigInt(n));
const b64 = (v: unknown) => Buffer.from(JSON.stringify(v)).toString('base64url');
const pair = await webcrypto.subtle.generateKey({name: 'ECDSA', namedCurve: 'P-256'}, true, ['sign', 'verify']);
const {x = '', y = ''} = await webcrypto.subtle.exportKey('jwk', pair.publicKey);
const kid = (await sha256(Buffer.from(JSON.stringify({crv: 'P-256', kty: 'EC', x, y})))).toString('base64url');

/** A gateway that answers with these metering points, whatever is asked; cut breaks the first request after so many. */
function answering(points: number[], {leftOut = 0, cut = -1} = {}): Transport & {asked: number} {
  const said = points.map((n, i) => JSON.stringify({type: 'point', sequence: i + 1, ean: ean(n), series: [], withheld: []}) + '\n');
  async function* stream(from: number, id: string, stop: number): AsyncGenerator<Uint8Array> {
    const say = (v: unknown) => Buffer.from(JSON.stringify(v) + '\n');
    yield say({type: 'begin', interactionId: id, query, done: from, total: points.length});
    let chain = await Chain.begin(query);
    for (const [i, line] of said.entries()) {
      chain = await chain.add(Buffer.from(line));
      if (i < from) continue;
      if (i === stop) return;
      yield Buffer.from(line);
      yield say({type: 'progress', sequence: i + 1, done: i + 1, total: points.length, cursor: `after-${i + 1}`});
    }
    const signed = `${b64({alg: 'ES256', kid, typ: 'kluis-manifest+jwt'})}.${b64({
      iss: 'cs', sub: clientId, iat: 1, jti: id, query, format: 'ndjson', points: points.length, given: 0, partly: 0, withheld: points.length,
      failed: 0, left_out: leftOut, expected: 0, delivered: 0, parts: 1, digest: chain.digest.toString('base64url'),
    })}`;
    const signature = await webcrypto.subtle.sign({name: 'ECDSA', hash: 'SHA-256'}, pair.privateKey, Buffer.from(signed));
    yield say({type: 'end', complete: true, sequence: points.length, done: points.length, manifest: `${signed}.${Buffer.from(signature).toString('base64url')}`});
  }
  return {
    asked: 0, clientId, patienceMs: 10_000, stallMs: 10_000, drop: () => undefined,
    manifestKeys: async () => ({keys: [{kty: 'EC', crv: 'P-256', x, y, use: 'sig', alg: 'ES256', kid}]}),
    async stream(body) {
      this.asked++;
      return {body: stream(body.cursor ? Number(body.cursor.slice('after-'.length)) : 0, `request-${this.asked}`, this.asked === 1 ? cut : -1), token: 'token'};
    },
  };
}

async function ask(gateway: Transport, listed: number[] | null, checkpoint?: string) {
  const points: Point[] = [];
  const body = {from: '2026-03-01', to: '2026-04-01', purpose: 'BILLING' as const, ...(listed && {meteringPoints: listed.map(ean)})};
  const outcome = await runQuery(gateway, body, checkpoint, p => void points.push(p)).catch((e: unknown) => e);
  return {points, outcome};
}

test('a list comes as a whole, in whatever order it is given, over a break and from each checkpoint', async () => {
  const {points, outcome} = await ask(answering([1, 2, 3, 4], {cut: 2}), [3, 1, 4, 2]);
  assert.deepEqual(points.map(p => p.ean), [1, 2, 3, 4].map(ean));
  assert.equal((outcome as {requests?: number}).requests, 2, String(outcome));
  for (const [i, p] of points.entries()) {
    const rest = await ask(answering([1, 2, 3, 4]), [4, 3, 2, 1], p.checkpoint);
    assert.ok(!(rest.outcome instanceof Error), String(rest.outcome));
    assert.equal(rest.points.length, 3 - i);
  }
});

for (const [name, points, listed, given, reason, options] of [
  ['the last ones left out', [1, 2], [1, 2, 3, 4], 2, /2 of 4/],
  ['the first one left out', [1, 2], [0, 1, 2], 0, /number 1 is not/],
  ['one between left out', [1, 3], [1, 2, 3], 1, /number 2 is not/],
  ['another in its place', [1, 2, 7], [1, 2, 3], 2, /number 3 is not/],
  ['one more between', [1, 2, 3], [1, 3], 1, /number 2 is not/],
  ['one more at the end', [1, 2, 3], [1, 2], 2, /more metering points than the 2/],
  ['none', [], [1], 0, /0 of 1/],
  ['some of an empty list', [1], [], 0, /more metering points than the 0/],
  ['left out after a break', [1, 2, 3], [1, 2, 3, 4], 3, /3 of 4/, {cut: 2}],
  ['left out by the manifest', [1, 2, 3], [1, 2, 3], 3, /1 metering points left out/, {leftOut: 1}],
] as [string, number[], number[], number, RegExp, {leftOut?: number; cut?: number}?][]) {
  test(`of a list: ${name}`, async () => {
    const gateway = answering(points, options);
    const r = await ask(gateway, listed);
    assert.ok(r.outcome instanceof StreamError, 'taken for complete');
    assert.match(r.outcome.message, reason);
    assert.doesNotMatch(r.outcome.message, /87168710/);
    assert.equal(r.points.length, given);
    assert.equal(gateway.asked, options?.cut ? 2 : 1);
  });
}

test('without a list the gateway leaves out', async () => {
  const {outcome} = await ask(answering([1, 2], {leftOut: 1}), null);
  assert.equal((outcome as {manifest?: {left_out: number}}).manifest?.left_out, 1, String(outcome));
});

test('the checkpoint of another list is refused, and nothing asked', async () => {
  const checkpoint = (await ask(answering([1, 2, 3]), [1, 2, 3])).points[2]!.checkpoint;
  for (const listed of [[], [1, 2], [1, 2, 4], [0, 1, 2, 3]]) {
    const gateway = answering([1, 2, 3]);
    const {outcome} = await ask(gateway, listed, checkpoint);
    assert.ok(outcome instanceof Error);
    assert.match(outcome.message, /other metering points/);
    assert.equal(gateway.asked, 0);
  }
});
