// The monthly register reads of a customer, and all customers' in one stream.
//
//   node dist/example/first-reading.js GATEWAY ISSUER GLN CA CERTIFICATE KEY
import {Kluis, ProblemError} from '../src/index.js';

const [gateway, issuer, clientId, caFile, certificateFile, keyFile] = process.argv.slice(2);
if (!gateway || !issuer || !clientId || !caFile || !certificateFile || !keyFile) {
  console.error('usage: first-reading GATEWAY ISSUER GLN CA CERTIFICATE KEY');
  process.exit(2);
}

const day = (d: Date) => d.toISOString().slice(0, 10);
const now = new Date();
const from = day(new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - 2, 1)));
const to = day(new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1)));

const kluis = new Kluis({gateway, issuer, clientId, caFile, certificateFile, keyFile});
try {
  for await (const {ean, commodity} of kluis.meteringPoints()) {
    const readings = await kluis.readings(ean, {from, to, purpose: 'BILLING'});
    console.log(ean, commodity);
    for (const series of readings.series) {
      console.log(`  ${series.field} (${series.unit}, ${series.legalBasis}): ${series.days.flatMap(d => d.values).map(v => v ?? 'unknown').join(', ')}`);
    }
    for (const w of readings.withheld) console.log(`  not given: ${w.field}, ${w.from} to ${w.to}, ${w.reason}`);
    break;
  }

  // Store point and checkpoint in one transaction: whatever breaks, each comes once.
  const result = await kluis.query({from, to, purpose: 'BILLING'}, point => {
    console.log(`${point.done}/${point.total ?? '?'} ${point.ean}: ${point.problem ? point.problem.type : `${point.series?.length ?? 0} series`}`);
  });
  console.log(`complete: ${result.manifest.points} metering points, digest ${result.manifest.digest}`);
} catch (e) {
  if (!(e instanceof ProblemError)) throw e;
  console.error(e.message);
  process.exitCode = 1;
} finally {
  await kluis.close();
}
