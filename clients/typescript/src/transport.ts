/**
 * Requests to the gateway by `fetch` (SPEC 9): each sent once, reads repeated with backoff.
 *
 * No redirect is followed here. An error of `fetch` never leaves this module: some hold the
 * request with its `Authorization`.
 */
import { GatewayUnavailableError, KeyturnError } from "./errors.ts";
import { responseError } from "./response_error.ts";

/** How a request is sent, and how long it may take. */
export interface HttpSettings {
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
  readonly responseTimeoutMs: number;
  readonly idleTimeoutMs: number;
}

/** How requests are sent, as a caller states it. */
export interface TransportOptions {
  /** Used for every request instead of the global `fetch`. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  /** Milliseconds until a response begins, including the connection; 30 000 by default. */
  readonly responseTimeoutMs?: number | undefined;
  /** Milliseconds that a body may make no progress; 60 000 by default. */
  readonly idleTimeoutMs?: number | undefined;
}

/** What all requests of a client share. */
export interface Connection extends HttpSettings {
  /** The project's own address. */
  readonly url: string;
  readonly apiKey: string | undefined;
  readonly retries: number;
  /** Whether `fetch` is the caller's. */
  readonly injected: boolean;
}

/** The settings of a caller's options. */
export function settingsOf(options: TransportOptions): HttpSettings & { injected: boolean } {
  const { fetch } = options;
  return {
    fetch: fetch ?? ((input, init) => globalThis.fetch(input, init)),
    responseTimeoutMs: options.responseTimeoutMs ?? 30_000,
    idleTimeoutMs: options.idleTimeoutMs ?? 60_000,
    injected: !!fetch,
  };
}

/** One request. */
export interface Request {
  readonly method?: string;
  readonly url: string;
  readonly headers?: Record<string, string | undefined>;
  // Not `BodyInit`, which the types of Node.js do not have.
  readonly body?: NonNullable<RequestInit["body"]>;
  readonly signal?: AbortSignal | undefined;
}

const PROBLEM_MAX_CHARACTERS = 64 * 1024;
const BACKOFF_MS = 250;
const WAIT_MAX_S = 60;
const FOREVER_MS = 1e15;
const UNSENT = /REFUSED|NOTFOUND|EAI_|UNREACH|CONNECT_T|CERT|ConnectionRefused|FailedToOpen/;

/** Why there is no response, in words that hold nothing of the request. */
export class Lost {
  readonly reason: string;
  /** Whether no byte of the request was sent. */
  readonly unsent: boolean;

  /** Of an error of `fetch`: a system's name for it, never its text. */
  constructor(error: unknown) {
    const { code, cause, message } = Object(error) as Record<string, unknown>;
    const known = [code, Object(cause).code].find((name) => typeof name === "string");
    this.reason = `${known ?? "no connection"}`;
    // Deno names the phase in a text alone.
    const text = `${message} ${Object(cause).message}`;
    this.unsent = UNSENT.test(this.reason) || text.includes("client error (Connect)");
  }
}

/** One request and its response, ended by the caller's signal or when nothing happens. */
export class Exchange {
  declare response: Response;
  readonly #settings: HttpSettings;
  readonly #caller: AbortSignal | undefined;
  readonly #controller = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** When the timer fires, and when it should: moved with each piece, without a new timer. */
  #due = FOREVER_MS;
  #deadline = 0;
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;

  constructor(settings: HttpSettings, caller: AbortSignal | undefined) {
    caller?.throwIfAborted();
    caller?.addEventListener("abort", this.#abort);
    this.#settings = settings;
    this.#caller = caller;
  }

  readonly #abort = (reason?: unknown): void => {
    this.#controller.abort(reason);
    // Not every `fetch` of a caller ends its body by itself.
    this.#reader?.cancel().catch(() => undefined);
  };

  /** Allow so many milliseconds until the next call; without any, forever. */
  arm(ms = FOREVER_MS): void {
    this.#deadline = performance.now() + ms;
    if (this.#deadline < this.#due) {
      clearTimeout(this.#timer);
      this.#due = this.#deadline;
      this.#timer = setTimeout(() => {
        const left = this.#deadline - performance.now();
        this.#due = FOREVER_MS;
        if (left < 1) {
          this.#abort({ code: "timeout" });
        } else {
          this.arm(left);
        }
      }, ms);
    }
  }

  /** Stop. The connection is kept if the body has ended. */
  end(): void {
    clearTimeout(this.#timer);
    this.#due = 0;
    this.#caller?.removeEventListener("abort", this.#abort);
    this.#abort();
  }

  /** Send by `start`, such as `fetch`, and wait for the response. Throws `Lost`. */
  async send(start: (signal: AbortSignal) => Promise<Response>): Promise<this> {
    this.arm(this.#settings.responseTimeoutMs);
    try {
      const { signal } = this.#controller;
      this.response = await Promise.race([
        start(signal),
        new Promise<never>((_, reject) => signal.addEventListener("abort", reject)),
      ]);
      this.arm();
      return this;
    } catch (error) {
      throw this.#lost(error);
    }
  }

  /** The next bytes, or undefined at the end. Throws `Lost`. */
  async chunk(): Promise<Uint8Array | undefined> {
    this.arm(this.#settings.idleTimeoutMs);
    try {
      this.#reader ??= this.response.body?.getReader();
      const chunk = await this.#reader?.read();
      this.arm();
      // A browser lets a body go on that it has received already.
      this.#controller.signal.throwIfAborted();
      return chunk?.value;
    } catch (error) {
      throw this.#lost(error);
    }
  }

  /** A body as text, cut where it is longer. Throws `Lost`. */
  async text(maxCharacters = PROBLEM_MAX_CHARACTERS): Promise<string> {
    const decoder = new TextDecoder();
    let text = "";
    let chunk: Uint8Array | undefined;
    do {
      chunk = await this.chunk();
      text += decoder.decode(chunk, { stream: true });
    } while (chunk && text.length < maxCharacters);
    this.end();
    return text;
  }

  #lost(error: unknown): Lost {
    const { reason = error } = this.#controller.signal;
    this.end();
    // The caller's own reason comes first.
    this.#caller?.throwIfAborted();
    return new Lost(reason);
  }
}

/** Send a request once. Throws `Lost` where no response comes. */
export function exchange(
  settings: HttpSettings,
  request: Request,
  made = new Exchange(settings, request.signal),
): Promise<Exchange> {
  const { url, headers, ...init } = request;
  return made.send((signal) =>
    settings.fetch(url, {
      ...init,
      // A browser's cache would answer some ranges itself. Elsewhere it is not always allowed.
      ...(inBrowser() && { cache: "no-store" }),
      headers: stated(headers),
      redirect: "manual",
      signal,
    }),
  );
}

/** In a browser, which caches, and cannot stream a body over HTTP/1.1. */
export function inBrowser(): boolean {
  return /^Mozilla\//.test(globalThis.navigator?.userAgent);
}

/** The headers that have a value. */
export function stated(headers: Request["headers"] = {}): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).filter(([, value]) => value !== undefined),
  ) as Record<string, string>;
}

/** The request with the API key, if there is one; only the gateway's own address receives it. */
export function authorized({ apiKey }: Connection, request: Request): Request {
  const authorization = apiKey && `Bearer ${apiKey}`;
  return { ...request, headers: { ...request.headers, authorization } };
}

/** Run something that changes nothing until it succeeds, fails for good, or was tried enough. */
export async function retried<Result>(
  { retries }: Connection,
  signal: AbortSignal | undefined,
  attempt: () => Promise<Result>,
): Promise<Result> {
  for (let retry = 0; ; retry++) {
    try {
      return await attempt();
    } catch (error) {
      const failure = error instanceof Lost ? unavailable(error) : error;
      if (retry >= retries || !isWorthRepeating(failure)) {
        throw failure;
      }
      await pause(failure.retryAfterSeconds, retry, signal);
    }
  }
}

function isWorthRepeating(error: unknown): error is KeyturnError {
  return (
    error instanceof KeyturnError &&
    (error.retryAfterSeconds ?? 0) <= WAIT_MAX_S &&
    (error.status === undefined ? error.transient : /429|503/.test(`${error.status}`))
  );
}

/** Wait as long as stated, or exponentially longer with jitter, unless the caller aborts. */
export function pause(
  seconds: number | undefined,
  retry: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const ms =
    seconds === undefined ? BACKOFF_MS * 2 ** retry * (0.5 + Math.random()) : seconds * 1000;
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort);
  });
}

/** What a response means that is not one of success. */
export async function refusal(
  { apiKey }: Connection,
  made: Exchange,
  secret = apiKey,
): Promise<KeyturnError> {
  const { status, headers } = made.response;
  return responseError(status, headers, await made.text(), [apiKey, secret]);
}

/** The error of a read without a response, or of a request that was not sent. */
export function unavailable({ reason }: Lost): GatewayUnavailableError {
  return new GatewayUnavailableError(`the gateway did not respond (${reason})`, {
    transient: true,
  });
}
