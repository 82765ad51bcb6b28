import type {components} from './schema.js';

type Problem = components['schemas']['Problem'];

const prefix = 'urn:kluis:problem:';

/** Without the prefix: what programs decide by. The contract lists them all. */
export type Slug = Problem['type'] extends `urn:kluis:problem:${infer S}` ? S : never;

/** An answer of the gateway that says why there is none (RFC 9457). */
export class ProblemError extends Error {
  override readonly name = 'ProblemError';

  constructor(
    readonly status: number,
    /** As it came; null when the answer was not the gateway's own. */
    readonly problem: Problem | null,
    /** Seconds, as the gateway says; 0 when it does not. */
    readonly retryAfter = 0,
  ) {
    const faults = (problem?.errors ?? []).map(e => `; ${e.pointer} ${e.reason}`).join('');
    super(problem ? `${problem.type.slice(prefix.length)} (${status}): ${problem.detail ?? problem.title}${faults} [${problem.interactionId}]` : `HTTP ${status}`);
  }

  get slug(): Slug | undefined {
    return this.problem?.type.slice(prefix.length) as Slug | undefined;
  }

  /** The same request may succeed later. */
  get temporary(): boolean {
    return [429, 502, 503, 504].includes(this.status) || this.slug === 'conflict' || this.slug === 'evidence-changed';
  }
}

/** What is wrong with an answer, or null. */
export function problemOf(response: {status: number; headers: {get(name: string): string | null}}, body: unknown): ProblemError | null {
  if (response.status < 400) return null;
  const retry = Number(response.headers.get('retry-after') ?? '0');
  const mine = response.headers.get('content-type')?.startsWith('application/problem+json') && typeof body === 'object' && body !== null && 'type' in body;
  return new ProblemError(response.status, mine ? (body as Problem) : null, Number.isFinite(retry) && retry > 0 ? retry : 0);
}
