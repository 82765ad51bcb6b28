import {fetch, type Dispatcher} from 'undici';

/** A refusal of the token issuer (RFC 6749, 5.2). */
export class TokenError extends Error {
  override readonly name = 'TokenError';
  constructor(readonly status: number, readonly code: string, description: string) {
    super(`the issuer gives no token: ${status} ${code}: ${description}`);
  }
}

/** Keeps an access token that is bound to the client certificate (RFC 8705), and gets a new one before it expires. */
export class Tokens {
  #token = '';
  #expires = 0; // ms, of performance.now()
  #life = 0;
  #getting: Promise<string> | null = null;

  constructor(
    private readonly url: string,
    private readonly clientId: string,
    private readonly scope: string | undefined,
    private readonly dispatcher: Dispatcher,
  ) {}

  /** A token that lives a while yet: a fifth of its life, or nearly all of it when it is to be young. */
  get(young = false): Promise<string> {
    const least = this.#life * (young ? 0.8 : 0.2);
    if (this.#token && this.#expires - performance.now() > least) return Promise.resolve(this.#token);
    this.#getting ??= this.#get().finally(() => (this.#getting = null));
    return this.#getting;
  }

  /** Forgets a token that was not accepted. */
  drop(token: string): void {
    if (token === this.#token) this.#token = '';
  }

  async #get(): Promise<string> {
    const form = new URLSearchParams({grant_type: 'client_credentials', client_id: this.clientId});
    if (this.scope) form.set('scope', this.scope);
    const asked = performance.now();
    const response = await fetch(this.url, {method: 'POST', body: form.toString(), headers: {'content-type': 'application/x-www-form-urlencoded'}, dispatcher: this.dispatcher, redirect: 'error'});
    const body = (await response.json().catch(() => ({}))) as {access_token?: string; expires_in?: number; error?: string; error_description?: string};
    if (response.status !== 200) throw new TokenError(response.status, body.error ?? '', body.error_description ?? '');
    if (!body.access_token || !body.expires_in || body.expires_in <= 0) throw new TokenError(200, 'malformed', 'the answer has no token that lives');
    this.#life = body.expires_in * 1000;
    this.#expires = asked + this.#life;
    return (this.#token = body.access_token);
  }
}
