import {setTimeout as sleep} from 'node:timers/promises';
import {TokenError} from './token.js';

/** A new try would fail alike, because of who asks or whom. */
export function permanent(e: unknown): boolean {
  if (e instanceof TokenError) return e.status < 500 && e.status !== 429;
  for (let at = e; at instanceof Error; at = at.cause) {
    const code = (at as {code?: unknown}).code;
    if (typeof code === 'string' && /^(ERR_TLS|ERR_SSL|CERT_|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_(VERIFY|GET_ISSUER))/.test(code)) return true;
  }
  return false;
}

/** Waits between tries: as long as the gateway says, else longer each time, never in step with other clients, and not longer in all than patience. */
export class Backoff {
  #tries = 0;
  #left: number;

  constructor(private readonly patienceMs: number) {
    this.#left = patienceMs;
  }

  progress(): void {
    this.#tries = 0;
    this.#left = this.patienceMs;
  }

  /** Waits, and says whether to try again. */
  async next(retryAfterSeconds: number, signal?: AbortSignal): Promise<boolean> {
    let wait = Math.min(200 * 2 ** Math.min(this.#tries++, 10), 15_000);
    wait = wait / 2 + Math.random() * (wait / 2);
    if (retryAfterSeconds > 0) wait = retryAfterSeconds * 1000 + wait / 4;
    if (wait > this.#left) return false;
    this.#left -= wait;
    await sleep(wait, undefined, signal ? {signal} : {});
    return true;
  }
}
