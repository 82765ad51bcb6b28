/**
 * Client of Kluis for suppliers.
 *
 * `schema.ts` is generated from the contract, and `api` is openapi-fetch over
 * it: every operation, typed, one request per call. Around it is what every
 * supplier would otherwise write: mutual TLS, a token that is always fresh,
 * problems as errors, tries that are repeated when and only when the contract
 * says that it helps, and query(), which delivers the readings of any number of
 * metering points exactly once, across whatever breaks.
 */
import {readFileSync} from 'node:fs';
import {Readable} from 'node:stream';
import createClient, {type Client} from 'openapi-fetch';
import {Agent, fetch, Request} from 'undici';
import type {components, operations, paths} from './schema.js';
import {problemOf, ProblemError} from './problem.js';
import {runQuery, type Point, type Result, type Transport} from './query.js';
import {Backoff, permanent} from './retry.js';
import {Tokens} from './token.js';

export type {components, operations, paths} from './schema.js';
export {ProblemError, type Slug} from './problem.js';
export {StreamError, type Point, type Result} from './query.js';
export {TokenError} from './token.js';
export {verifyManifest, type Manifest} from './manifest.js';

type Schemas = components['schemas'];

export interface Config {
  /** https://host:port of the API. */
  gateway: string;
  /** https://host:port of the token issuer; its token endpoint is /oauth2/token. */
  issuer: string;
  /** The supplier's GLN. */
  clientId: string;
  /** Scope of the tokens; absent: all that the client may have. */
  scope?: string;
  /** Files (PEM): the authority of the operator's servers, the client certificate, its private key. */
  caFile: string;
  certificateFile: string;
  keyFile: string;
  /** Keys that manifests are accepted from, obtained beforehand. Without them the gateway is asked: that finds loss and damage, but not a gateway that was taken over. */
  manifestKeys?: Schemas['JwkSet'];
  /** How long in a row something is tried again. Default two minutes. */
  patienceMs?: number;
  /** How long a stream may be silent before it counts as broken. Default one minute. */
  stallMs?: number;
}

export class Kluis {
  /** Every operation of the contract, typed. Throws a ProblemError for an answer that is none of success. */
  readonly api: Client<paths>;
  readonly #config: Config;
  readonly #agent: Agent;
  readonly #tokens: Tokens;
  readonly #patience: number;

  constructor(config: Config) {
    for (const url of [config.gateway, config.issuer]) {
      if (new URL(url).protocol !== 'https:') throw new Error('gateway and issuer must be https://host:port');
    }
    this.#config = config;
    this.#patience = config.patienceMs ?? 120_000;
    this.#agent = new Agent({
      connect: {ca: readFileSync(config.caFile), cert: readFileSync(config.certificateFile), key: readFileSync(config.keyFile), minVersion: 'TLSv1.3'},
      // A stream has its own watch over silence.
      bodyTimeout: 0,
    });
    this.#tokens = new Tokens(`${config.issuer.replace(/\/$/, '')}/oauth2/token`, config.clientId, config.scope, this.#agent);
    this.api = createClient<paths>({
      baseUrl: config.gateway.replace(/\/$/, ''),
      // undici's own, as its agent holds the certificate.
      Request: Request as unknown as typeof globalThis.Request,
      fetch: request => this.#send(request as unknown as Request) as unknown as Promise<globalThis.Response>,
    });
  }

  close(): Promise<void> {
    return this.#agent.close();
  }

  /** All metering points the caller has a legal basis for now. */
  async *meteringPoints(): AsyncGenerator<Schemas['MeteringPoint']> {
    let cursor: string | undefined;
    for (;;) {
      const page: Schemas['MeteringPoints'] = must(await this.api.GET('/v1/metering-points', {params: {query: cursor ? {limit: 1000, cursor} : {limit: 1000}}}));
      yield* page.meteringPoints;
      if (page.links.next === null) return;
      // Only the cursor is taken of the link: the token goes nowhere else.
      const next: string | null = new URL(page.links.next).searchParams.get('cursor');
      if (!next || next === cursor) throw new Error('the link to the next page leads nowhere');
      cursor = next;
    }
  }

  /** The readings of one metering point for a purpose. */
  async readings(ean: string, query: operations['getReadings']['parameters']['query']): Promise<Schemas['Readings']> {
    // Of the formats there are, JSON is what is answered without an Accept.
    return must(await this.api.GET('/v1/metering-points/{ean}/readings', {params: {path: {ean}, query}})) as Schemas['Readings'];
  }

  /** What is new or corrected: since an instant, or after the cursor of the answer before, which is to be stored with what was done. */
  async changes(from: {since?: string; cursor?: string}): Promise<Schemas['Changes']> {
    return must(await this.api.GET('/v1/changes', {params: {query: {...from, limit: 1000}}}));
  }

  /**
   * The readings of many metering points: deliver is called with each, in
   * ascending order of EAN, and awaited. When the stream breaks, it goes on
   * where it broke. checkpoint is that of the last point which was dealt with
   * before, if any. At the end the signed manifest is checked against all that
   * was delivered: without an error, nothing of the stream is missing, repeated
   * or altered. Where the query lists metering points, these came, each of them
   * and no other. Where it lists none, which ones there are is the gateway's
   * word: the manifest's counts are its own.
   */
  query(
    query: Schemas['ReadingsQuery'],
    deliver: (point: Point) => void | Promise<void>,
    options: {checkpoint?: string; signal?: AbortSignal} = {},
  ): Promise<Result> {
    const transport: Transport = {
      clientId: this.#config.clientId,
      patienceMs: this.#patience,
      stallMs: this.#config.stallMs ?? 60_000,
      drop: token => this.#tokens.drop(token),
      manifestKeys: async () => this.#config.manifestKeys ?? must(await this.api.GET('/v1/manifest-keys')),
      stream: async (body, signal) => {
        const token = await this.#tokens.get(true); // the stream ends with it
        const response = await fetch(`${this.#config.gateway.replace(/\/$/, '')}/v1/readings/query`, {
          method: 'POST', body: JSON.stringify(body), signal, dispatcher: this.#agent, redirect: 'error',
          headers: {authorization: `Bearer ${token}`, 'content-type': 'application/json', accept: 'application/x-ndjson', 'accept-encoding': 'gzip'},
        });
        if (response.status !== 200 || !response.body) {
          const problem = problemOf(response, await response.json().catch(() => null)) ?? new ProblemError(response.status, null);
          if (problem.slug === 'unauthenticated') this.#tokens.drop(token);
          throw problem;
        }
        return {body: Readable.fromWeb(response.body), token};
      },
    };
    return runQuery(transport, query, options.checkpoint, deliver, options.signal);
  }

  /** Sends a request with a token, and again when that helps and changes nothing more than once. */
  async #send(request: Request) {
    const repeatable = request.method === 'GET' || request.headers.has('idempotency-key') || new URL(request.url).pathname === '/v1/readings/query';
    const wait = new Backoff(this.#patience);
    for (let renewed = false; ; ) {
      let problem: ProblemError | null = null;
      try {
        const token = await this.#tokens.get();
        const attempt = request.clone();
        attempt.headers.set('authorization', `Bearer ${token}`);
        const response = await fetch(attempt, {dispatcher: this.#agent, redirect: 'error'});
        if (response.status < 400) return response;
        problem = problemOf(response, await response.json().catch(() => null));
        if (problem?.slug === 'unauthenticated' && !renewed) {
          this.#tokens.drop(token);
          renewed = true;
          continue;
        }
      } catch (e) {
        if (!repeatable || request.signal.aborted || permanent(e) || !(await wait.next(0, request.signal))) throw e;
        continue;
      }
      if (!repeatable || !problem?.temporary || !(await wait.next(problem.retryAfter, request.signal))) throw problem;
    }
  }
}

/** The data of an answer; a problem was thrown before. */
function must<T>(answer: {data?: T; response: {status: number}}): T {
  if (answer.data === undefined) throw new ProblemError(answer.response.status, null);
  return answer.data;
}
