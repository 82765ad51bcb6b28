// The running installation that the tests drive: KLUIS_READY is the file that
// `kluis demo --ready-file` wrote.
import {readFileSync} from 'node:fs';
import {connect, createServer, type AddressInfo, type Socket} from 'node:net';
import {join} from 'node:path';
import {Kluis, type Config} from '../src/index.js';

export interface Access {
  supplier: string;
  purpose: 'BILLING' | 'ENERGY_MANAGEMENT';
  fields: string[];
  from: string;
  to: string;
  resolution: string;
  basis: string;
}

export interface Ready {
  gateway_url: string;
  issuer_url: string;
  ca_file: string;
  state: string;
  suppliers: {id: string; client_id: string; certificate_file: string; key_file: string}[];
  metering_points: {ean: string; commodity: string; access: Access[]}[];
}

export const ready = JSON.parse(readFileSync(process.env['KLUIS_READY'] ?? 'KLUIS_READY is not set', 'utf8')) as Ready;

export function config(n: number, change: Partial<Config> = {}): Config {
  const s = ready.suppliers[n]!;
  return {
    gateway: ready.gateway_url, issuer: ready.issuer_url, clientId: s.client_id, caFile: ready.ca_file,
    certificateFile: s.certificate_file, keyFile: s.key_file, patienceMs: 20_000, ...change,
  };
}

/** A client for the length of a test. */
export async function as<T>(n: number, use: (k: Kluis) => Promise<T>, change: Partial<Config> = {}): Promise<T> {
  const k = new Kluis(config(n, change));
  try {
    return await use(k);
  } finally {
    await k.close();
  }
}

/** The metering points that a supplier may bill, with the last whole months that it may read. */
export function billed(n: number): {ean: string; from: string; to: string}[] {
  const id = ready.suppliers[n]!.id;
  return ready.metering_points.flatMap(p => p.access.filter(a => a.supplier === id && a.purpose === 'BILLING' && a.resolution === 'P1M').map(a => ({ean: p.ean, from: a.from, to: a.to})));
}

/** A way to the gateway that breaks each connection after so many bytes of answers, as often as it is told. */
export async function breaking(after: number, times: number): Promise<{url: string; broken: () => number; close: () => void}> {
  const target = new URL(ready.gateway_url);
  let broken = 0;
  const open = new Set<Socket>();
  const server = createServer(client => {
    const up = connect(Number(target.port), target.hostname);
    let bytes = 0;
    for (const s of [client, up]) {
      open.add(s);
      s.on('error', () => undefined);
      s.on('close', () => (open.delete(s), client.destroy(), up.destroy()));
    }
    client.pipe(up);
    up.on('data', chunk => {
      bytes += chunk.length;
      if (bytes > after && broken < times) {
        broken++;
        client.destroy();
        return;
      }
      client.write(chunk);
    });
  });
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done));
  return {
    url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    broken: () => broken,
    close: () => {
      server.close();
      open.forEach(s => s.destroy());
    },
  };
}

export const pki = (name: string) => join(ready.state, 'pki', name);
