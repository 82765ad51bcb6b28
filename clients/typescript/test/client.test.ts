import assert from 'node:assert/strict';
import {randomUUID} from 'node:crypto';
import {test} from 'node:test';
import {ProblemError, StreamError, TokenError, type Point} from '../src/index.js';
import {as, billed, breaking, config, pki, ready} from './world.js';

const period = () => {
  const from = billed(0).map(b => b.from).sort().at(-1)!.slice(0, 8) + '01';
  const to = new Date(from);
  to.setUTCMonth(to.getUTCMonth() + 1);
  return {from, to: to.toISOString().slice(0, 10)};
};

test('the metering points of each supplier, and nobody else\'s', async () => {
  const lists = await Promise.all([0, 1].map(n => as(n, async k => {
    const eans: string[] = [];
    for await (const p of k.meteringPoints()) {
      assert.match(p.ean, /^[0-9]{18}$/);
      assert.ok(p.legalBases.length > 0);
      eans.push(p.ean);
    }
    return eans;
  })));
  for (const [n, eans] of lists.entries()) {
    assert.deepEqual(eans, [...new Set(eans)].sort());
    const may = new Set(ready.metering_points.filter(p => p.access.some(a => a.supplier === ready.suppliers[n]!.id)).map(p => p.ean));
    assert.ok(may.size > 3);
    for (const ean of may) assert.ok(eans.includes(ean), `${ean} is missing`);
  }
});

test('readings, with what is withheld', () => as(0, async k => {
  const b = billed(0)[0]!;
  const r = await k.readings(b.ean, {from: b.from, to: b.to, purpose: 'BILLING'});
  assert.equal(r.ean, b.ean);
  assert.ok(r.series.length > 0);
  for (const s of r.series) {
    assert.equal(s.resolution, 'P1M');
    const values = s.days.flatMap(d => d.values);
    assert.equal(values.length, s.expectedCount);
    assert.equal(values.filter(v => v !== null).length, s.deliveredCount);
    for (const v of values) assert.match(v ?? '0.000', /^[0-9]+\.[0-9]{3}$/);
  }
  assert.ok(r.withheld.some(w => w.reason === 'NOT_COVERED'));
}));

test('problems are errors with their kind', () => as(0, async k => {
  const b = billed(0)[0]!;
  await assert.rejects(k.readings(b.ean, {from: b.to, to: b.from, purpose: 'BILLING'}), (e: unknown) => {
    assert.ok(e instanceof ProblemError);
    assert.equal(e.slug, 'invalid-parameters');
    assert.equal(e.status, 400);
    assert.ok(e.problem?.errors?.some(x => x.pointer === '/query/to'));
    assert.ok(!e.message.includes(b.ean), 'the error repeats the metering point');
    return true;
  });
  await assert.rejects(k.readings('871687200000999995', {from: b.from, to: b.to, purpose: 'BILLING'}), (e: unknown) =>
    e instanceof ProblemError && (e.slug === 'metering-point-not-found' || e.slug === 'invalid-parameters'));
}));

test('another client than the certificate says gets no token, and no new tries', async () => {
  await assert.rejects(as(0, k => k.readings(billed(0)[0]!.ean, {...period(), purpose: 'BILLING'}), {clientId: config(1).clientId}), TokenError);
});

test('a server of another authority is not spoken to', async () => {
  await assert.rejects(as(0, k => k.readings(billed(0)[0]!.ean, {...period(), purpose: 'BILLING'}), {caFile: pki('supplier-ca.crt')}));
});

test('a consent is asked for, seen, and withdrawn', () => as(0, async k => {
  const ean = billed(0)[0]!.ean;
  const day = (years: number) => new Date(Date.UTC(new Date().getUTCFullYear() + years, 0, 1)).toISOString();
  const headers = {'Idempotency-Key': randomUUID()};
  const body = {
    ean, purpose: 'ENERGY_MANAGEMENT' as const, classes: ['intervals' as const], granularity: 'PT1H' as const,
    from: day(0).slice(0, 10), validUntil: day(1).slice(0, 19) + 'Z', evidence: 'typescript-test',
  };
  const made = await k.api.POST('/v1/consents', {params: {header: headers}, body});
  assert.equal(made.data?.state, 'REQUESTED');
  const again = await k.api.POST('/v1/consents', {params: {header: headers}, body});
  assert.equal(again.data?.id, made.data.id);
  const path = {id: made.data.id};
  const listed = await k.api.GET('/v1/metering-points/{ean}/consents', {params: {path: {ean}}});
  assert.ok(listed.data?.consents.some(c => c.id === path.id));
  await assert.rejects(k.api.POST('/v1/consents/{id}/revoke', {params: {path, header: {'Idempotency-Key': randomUUID()}}}),
    (e: unknown) => e instanceof ProblemError && e.slug === 'precondition-required');
  const etag = made.response.headers.get('etag')!;
  const revoked = await k.api.POST('/v1/consents/{id}/revoke', {params: {path, header: {'Idempotency-Key': randomUUID(), 'If-Match': etag}}});
  assert.equal(revoked.data?.state, 'REVOKED');
}));

test('changes, to go on from', () => as(0, async k => {
  const first = await k.changes({since: new Date(Date.now() - 3600_000).toISOString()});
  const next = await k.changes({cursor: first.cursor});
  assert.ok(next.cursor.length > 0);
  await assert.rejects(k.changes({cursor: 'AAAA' + first.cursor.slice(4)}), (e: unknown) => e instanceof ProblemError && e.slug === 'invalid-parameters');
}));

test('a stream of all, with its manifest', () => as(0, async k => {
  const points: Point[] = [];
  const result = await k.query({...period(), purpose: 'BILLING'}, p => void points.push(p));
  assert.equal(result.requests, 1);
  assert.equal(result.manifest.points, points.length);
  const eans = points.map(p => p.ean);
  assert.deepEqual(eans, [...new Set(eans)].sort());
  assert.deepEqual(points.map(p => p.sequence), points.map((_, i) => i + 1));
  assert.ok(points.filter(p => p.series?.length).length > 3);
  // The same as asked one by one.
  const some = points.find(p => p.series?.length)!;
  const alone = await k.readings(some.ean, {...period(), purpose: 'BILLING'});
  assert.deepEqual(some.series, alone.series);
  assert.deepEqual(some.withheld, alone.withheld);
}));

test('a stream of a list is of all of the list, in order', () => as(0, async k => {
  // Others' metering points come, too: withheld, or with a problem.
  const meteringPoints = [...new Set(ready.metering_points.map(p => p.ean))].sort().reverse();
  const eans: string[] = [];
  const result = await k.query({...period(), purpose: 'BILLING', meteringPoints}, p => void eans.push(p.ean));
  assert.deepEqual(eans, meteringPoints.reverse());
  assert.equal(result.manifest.left_out, 0);
}));

test('a stream that breaks goes on, each metering point once', async () => {
  const whole: string[] = [];
  await as(0, k => k.query({...period(), purpose: 'BILLING'}, p => void whole.push(p.ean)));
  const way = await breaking(6_000, 2);
  try {
    const eans: string[] = [];
    const result = await as(0, k => k.query({...period(), purpose: 'BILLING'}, p => void eans.push(p.ean)), {gateway: way.url});
    assert.deepEqual(eans, whole);
    assert.ok(way.broken() > 0, 'nothing broke');
    assert.ok(result.requests > 1);
    assert.equal(result.manifest.points, whole.length);
  } finally {
    way.close();
  }
});

test('who stops goes on in another process, and the manifest covers both', async () => {
  const whole: string[] = [];
  const eans: string[] = [];
  let checkpoint = '';
  await as(0, k => k.query({...period(), purpose: 'BILLING'}, p => void whole.push(p.ean)));
  const enough = new Error('enough');
  await assert.rejects(as(0, k => k.query({...period(), purpose: 'BILLING'}, p => {
    if (eans.length === 3) throw enough;
    eans.push(p.ean);
    checkpoint = p.checkpoint;
  })), e => e === enough);
  const result = await as(0, k => k.query({...period(), purpose: 'BILLING'}, p => void eans.push(p.ean), {checkpoint}));
  assert.deepEqual(eans, whole);
  assert.equal(result.manifest.points, whole.length);
  // A checkpoint with another digest is found out by the manifest.
  const state = JSON.parse(Buffer.from(checkpoint, 'base64url').toString()) as {digest: string};
  state.digest = Buffer.alloc(32, 1).toString('base64url');
  const other = Buffer.from(JSON.stringify(state)).toString('base64url');
  await assert.rejects(as(0, k => k.query({...period(), purpose: 'BILLING'}, () => undefined, {checkpoint: other})), StreamError);
  // And one is good for its own query only.
  await assert.rejects(as(0, k => k.query({...period(), purpose: 'ENERGY_MANAGEMENT'}, () => undefined, {checkpoint})), ProblemError);
});

test('a manifest of other keys is not taken', async () => {
  const keys = await as(0, async k => (await k.api.GET('/v1/manifest-keys')).data!);
  const turned = {keys: keys.keys.map(k => ({...k, x: k.y, y: k.x}))};
  await assert.rejects(as(0, k => k.query({...period(), purpose: 'BILLING'}, () => undefined), {manifestKeys: turned}), StreamError);
  await assert.rejects(as(0, k => k.query({...period(), purpose: 'BILLING'}, () => undefined), {manifestKeys: {keys: []}}), StreamError);
});
