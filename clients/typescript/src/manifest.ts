import {webcrypto} from 'node:crypto';
import type {components} from './schema.js';

type JwkSet = components['schemas']['JwkSet'];

/** What the grid operator signs about a stream of readings. */
export interface Manifest {
  iss: string;
  sub: string;
  iat: number;
  jti: string;
  query: string;
  format: string;
  points: number;
  given: number;
  partly: number;
  withheld: number;
  failed: number;
  left_out: number;
  expected: number;
  delivered: number;
  parts: number;
  digest: string;
}

const decode = (part: string) => Buffer.from(part, 'base64url');

/** Checks a manifest's signature (JWS, ES256) by one of the keys of `/v1/manifest-keys`. */
export async function verifyManifest(jws: string, keys: JwkSet): Promise<Manifest> {
  const parts = jws.split('.');
  const [header, claims, signature] = parts;
  if (parts.length !== 3 || !header || !claims || !signature || parts.some(p => !/^[A-Za-z0-9_-]+$/.test(p))) throw new Error('the manifest is no compact JWS');
  const head = JSON.parse(decode(header).toString()) as {alg?: string; typ?: string; kid?: string};
  if (head.alg !== 'ES256' || head.typ !== 'kluis-manifest+jwt') throw new Error('the manifest is not signed as one, by ES256');
  const jwk = keys.keys.find(k => k.kid === head.kid && k.kty === 'EC' && k.crv === 'P-256');
  if (!jwk) throw new Error('the manifest is signed by a key that is not known');
  // The key's name is what it is: RFC 7638.
  const thumbprint = await sha256(Buffer.from(JSON.stringify({crv: jwk.crv, kty: jwk.kty, x: jwk.x, y: jwk.y})));
  if (thumbprint.toString('base64url') !== jwk.kid) throw new Error("the manifest's key is not the one its name says");
  const key = await webcrypto.subtle.importKey('jwk', {kty: jwk.kty, crv: jwk.crv, x: jwk.x, y: jwk.y}, {name: 'ECDSA', namedCurve: 'P-256'}, false, ['verify']);
  if (!(await webcrypto.subtle.verify({name: 'ECDSA', hash: 'SHA-256'}, key, decode(signature), Buffer.from(`${header}.${claims}`)))) {
    throw new Error("the manifest's signature is not that of its key");
  }
  return JSON.parse(decode(claims).toString()) as Manifest;
}

export async function sha256(...parts: Uint8Array[]): Promise<Buffer> {
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', Buffer.concat(parts)));
}

/** The digest over the lines of metering points that a manifest names. */
export class Chain {
  private constructor(public digest: Buffer) {}

  static async begin(query: string): Promise<Chain> {
    const q = decode(query);
    if (q.length !== 32) throw new Error("the query's digest is malformed");
    return new Chain(await sha256(Buffer.from('kluis/manifest/1\n'), q));
  }

  static resume(digest: string): Chain {
    return new Chain(decode(digest));
  }

  async add(line: Uint8Array): Promise<Chain> {
    return new Chain(await sha256(this.digest, await sha256(line)));
  }
}
