import type {components} from './schema.js';
import {Chain, verifyManifest, type Manifest} from './manifest.js';
import {ProblemError} from './problem.js';
import {Backoff, permanent} from './retry.js';

type Schemas = components['schemas'];
type Line = Schemas['StreamLine'];

/** What came of one metering point. */
export type Point = Schemas['QueryPoint'] & {
  /** The answer's line as it came: what the manifest's digest is over. */
  line: Uint8Array;
  done: number;
  total: number | null;
  /** Where to go on after this metering point. Stored in one transaction with it: each exactly once, whatever breaks. */
  checkpoint: string;
};

export interface Result {
  /** The signed manifest as it came: to be kept as proof. */
  jws: string;
  manifest: Manifest;
  /** How many requests it took: 1 when nothing broke. */
  requests: number;
}

/** The gateway does not keep to the contract: something is missing, repeated or altered. */
export class StreamError extends Error {
  override readonly name = 'StreamError';
}

/** What deliver threw; it ends the query. */
class Delivery extends Error {
  constructor(override readonly cause: unknown) {
    super();
  }
}

interface State {
  cursor: string;
  query: string;
  ean: string;
  sequence: number;
  given: number;
  partly: number;
  withheld: number;
  failed: number;
  expected: number;
  delivered: number;
  digest: string;
}

/**
 * The metering points that a query lists, in the order in which they are to
 * come: the number of those that came says which is next. Its errors name
 * positions, never an EAN.
 */
class List {
  readonly #eans: string[];

  constructor(eans: readonly string[]) {
    this.#eans = [...eans].sort();
  }

  /** Whether the state is one on the way through the list. */
  reached(s: State): boolean {
    return this.#eans[s.sequence - 1] === s.ean;
  }

  /** Holds the metering point that came after n others against the list. */
  next(n: number, ean: string): void {
    if (n >= this.#eans.length) throw new StreamError(`more metering points than the ${this.#eans.length} listed`);
    if (this.#eans[n] !== ean) throw new StreamError(`metering point number ${n + 1} is not the one that was listed`);
  }

  /** Holds the number of all that came against the list. */
  end(n: number): void {
    if (n !== this.#eans.length) throw new StreamError(`the stream ends after ${n} of ${this.#eans.length} metering points listed`);
  }
}

/** What a query needs of the client. */
export interface Transport {
  stream(body: Schemas['ReadingsQuery'], signal: AbortSignal): Promise<{body: AsyncIterable<Uint8Array>; token: string}>;
  drop(token: string): void;
  manifestKeys(): Promise<Schemas['JwkSet']>;
  clientId: string;
  patienceMs: number;
  stallMs: number;
}

const maxLine = 32 << 20;
const start: State = {cursor: '', query: '', ean: '', sequence: 0, given: 0, partly: 0, withheld: 0, failed: 0, expected: 0, delivered: 0, digest: ''};

export async function runQuery(
  transport: Transport,
  query: Schemas['ReadingsQuery'],
  checkpoint: string | undefined,
  deliver: (point: Point) => void | Promise<void>,
  signal?: AbortSignal,
): Promise<Result> {
  const listed = query.meteringPoints && new List(query.meteringPoints);
  let state = checkpoint ? parse(checkpoint) : start;
  if (checkpoint && listed && !listed.reached(state)) throw new Error('the checkpoint is of other metering points than are listed');
  const wait = new Backoff(transport.patienceMs);
  let renewed = false;
  for (let requests = 1; ; requests++) {
    const before = state.sequence;
    const used = {token: ''};
    try {
      const end = await part(transport, query, listed, state, used, deliver, s => (state = s), signal);
      return {...end, requests};
    } catch (e) {
      if (state.sequence > before) {
        wait.progress();
        renewed = false;
      }
      signal?.throwIfAborted();
      if (e instanceof Delivery) throw e.cause;
      if (e instanceof StreamError || permanent(e)) throw e;
      if (e instanceof ProblemError) {
        if (e.slug === 'unauthenticated' && !renewed) {
          // A token lives shorter than a long stream: its end is no break.
          transport.drop(used.token);
          renewed = true;
          continue;
        }
        if (!e.temporary) throw e;
      }
      if (!(await wait.next(e instanceof ProblemError ? e.retryAfter : 0, signal))) throw e;
    }
  }
}

/** One request, as far as its answer goes. */
async function part(
  transport: Transport,
  query: Schemas['ReadingsQuery'],
  listed: List | undefined,
  from: State,
  used: {token: string},
  deliver: (point: Point) => void | Promise<void>,
  reached: (state: State) => void,
  signal?: AbortSignal,
): Promise<{jws: string; manifest: Manifest}> {
  const stop = new AbortController();
  const abort = () => stop.abort(signal?.reason);
  signal?.addEventListener('abort', abort, {once: true});
  let timer: NodeJS.Timeout | undefined;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(new Error('nothing came for too long')), transport.stallMs);
  };
  try {
    alive();
    const {cursor: _, ...rest} = query;
    const answer = await transport.stream(from.cursor ? {...rest, cursor: from.cursor} : rest, stop.signal);
    used.token = answer.token;
    let state = from;
    let id = '';
    let pending: {line: Line; bytes: Uint8Array} | null = null;
    for await (const bytes of lines(answer.body, alive, () => clearTimeout(timer))) {
      const line = parseLine(bytes);
      if ((line.type === 'begin') === (id !== '')) throw new StreamError(`line "${line.type}" out of order`);
      switch (line.type) {
        case 'begin':
          id = line.interactionId ?? '';
          if (!id || !line.query || line.done !== state.sequence || (state.query && state.query !== line.query)) {
            throw new StreamError('the stream does not go on where the one before ended');
          }
          if (!state.query) state = {...state, query: line.query, digest: (await Chain.begin(line.query)).digest.toString('base64url')};
          break;
        case 'point':
          if (pending || !line.ean || line.sequence !== state.sequence + 1 || line.ean <= state.ean) {
            throw new StreamError(`metering points after number ${state.sequence} are missing or repeated`);
          }
          listed?.next(state.sequence, line.ean);
          pending = {line, bytes};
          break;
        case 'progress': {
          if (!line.cursor || line.done === undefined) throw new StreamError('a line of progress lacks members');
          const next: State = pending ? await count(state, pending.line, pending.bytes) : {...state};
          next.cursor = line.cursor;
          if (line.sequence !== next.sequence) throw new StreamError('progress of another metering point');
          if (pending) {
            const {type: __, ...point} = pending.line;
            const delivered = {...(point as Schemas['QueryPoint']), line: pending.bytes, done: line.done, total: line.total ?? null, checkpoint: text(next)};
            try {
              await deliver(delivered);
            } catch (e) {
              throw new Delivery(e);
            }
          }
          state = next;
          pending = null;
          reached(state);
          break;
        }
        case 'end': {
          if (!line.complete) {
            if (!line.problem) throw new StreamError('the stream ends without a reason');
            throw new ProblemError(line.problem.status, line.problem, line.problem.retryAfter ?? 0);
          }
          if (pending || line.sequence !== state.sequence || !line.manifest) throw new StreamError('the stream ends before its end');
          listed?.end(state.sequence);
          const keys = await transport.manifestKeys();
          const manifest = await verifyManifest(line.manifest, keys).catch((e: Error) => {
            throw new StreamError(e.message);
          });
          check(manifest, state, transport.clientId, id);
          if (listed && manifest.left_out !== 0) throw new StreamError(`the manifest has ${manifest.left_out} metering points left out, of those listed none may be`);
          return {jws: line.manifest, manifest};
        }
        default:
          throw new StreamError('a line of an unknown type');
      }
    }
    throw new Error('the stream was cut off');
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
    stop.abort(); // lets go of the connection
  }
}

/** Whole lines with their line feeds; what has none was cut off. */
async function* lines(body: AsyncIterable<Uint8Array>, waiting: () => void, came: () => void): AsyncGenerator<Uint8Array> {
  let rest: Uint8Array[] = [];
  let length = 0;
  waiting();
  for await (const chunk of body) {
    came();
    let at = 0;
    for (let feed = chunk.indexOf(10, at); feed >= 0; feed = chunk.indexOf(10, at)) {
      const tail = chunk.subarray(at, feed + 1);
      yield rest.length > 0 ? Buffer.concat([...rest, tail]) : tail;
      rest = [];
      length = 0;
      at = feed + 1;
    }
    if (at < chunk.length) {
      rest.push(chunk.subarray(at));
      length += chunk.length - at;
      if (length > maxLine) throw new StreamError(`a line is longer than ${maxLine} bytes`);
    }
    waiting();
  }
}

function parseLine(bytes: Uint8Array): Line {
  let line: unknown;
  try {
    line = JSON.parse(new TextDecoder('utf-8', {fatal: true}).decode(bytes));
  } catch {
    throw new StreamError('a line is not JSON');
  }
  if (typeof line !== 'object' || line === null) throw new StreamError('a line is no object');
  return line as Line;
}

async function count(state: State, line: Line, bytes: Uint8Array): Promise<State> {
  const series = line.series ?? [];
  const next = {...state, sequence: state.sequence + 1, ean: line.ean ?? ''};
  for (const s of series) {
    next.expected += s.expectedCount;
    next.delivered += s.deliveredCount;
  }
  if (line.problem) next.failed++;
  else if (series.length === 0) next.withheld++;
  else if (line.withheld?.length) next.partly++;
  else next.given++;
  next.digest = (await Chain.resume(state.digest).add(bytes)).digest.toString('base64url');
  return next;
}

function check(m: Manifest, s: State, clientId: string, id: string): void {
  const want: Partial<Manifest> = {
    sub: clientId, jti: id, format: 'ndjson', query: s.query, points: s.sequence, given: s.given, partly: s.partly,
    withheld: s.withheld, failed: s.failed, expected: s.expected, delivered: s.delivered, digest: s.digest,
  };
  for (const [name, value] of Object.entries(want)) {
    const got = m[name as keyof Manifest];
    if (got !== value) throw new StreamError(`the manifest has ${name} ${got}, what came has ${value}`);
  }
}

const text = (s: State) => Buffer.from(JSON.stringify(s)).toString('base64url');

function parse(checkpoint: string): State {
  try {
    const s = JSON.parse(Buffer.from(checkpoint, 'base64url').toString()) as State;
    if (s.cursor && s.query && s.digest && s.sequence > 0) return s;
  } catch {
    // said below
  }
  throw new Error('this is no checkpoint of a query');
}
