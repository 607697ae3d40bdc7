/**
 * The stored bytes of one object, by a presigned URL (SPEC 9.3).
 *
 * One read may take several requests: a connection that breaks is made anew where it broke. What
 * binds them to one object is its header: chunks of another body at the same key do not open. No
 * redirect is followed, and no error holds the URL.
 */
import {
  CodedError,
  GatewayError,
  IncompleteBodyError,
  NotFoundError,
  UnexpectedResponseError,
} from "../errors.ts";
import { type Extent, extentOf, rangeHeader } from "../range.ts";
import { storageError } from "../response_error.ts";
import { type Exchange, exchange, type HttpSettings, Lost, pause } from "../transport.ts";
import { type Bytes, corrupt, joined } from "./cobblestone.ts";
import type { Source } from "./decrypt.ts";

/** The storage refuses a ciphertext link: it has expired, or was changed. Get a new one. */
export class LinkExpiredError extends GatewayError {
  override readonly name: string = "LinkExpiredError";
}

/** Where the stored bytes are, and how they are asked for. */
export interface StoredBody {
  readonly http: HttpSettings;
  readonly url: string;
  readonly signal: AbortSignal | undefined;
  /** How often in a row a request may fail, or a connection break, without a byte. */
  readonly resumes: number;
}

/** Stored bytes from `start` on, up to and without `end` or to the end of the body. */
export class StoredStream implements Source {
  readonly #body: StoredBody;
  #at: number;
  #end: number | undefined;
  #made: Exchange | undefined;
  #failures = 0;
  #closed = false;
  #size: number | undefined;
  #headers = new Headers();

  constructor(body: StoredBody, start = 0, end?: number) {
    this.#body = body;
    this.#at = start;
    this.#end = end;
  }

  /** The length of the whole stored body, as the storage states it. Known after `start`. */
  get size(): number {
    return this.#size ?? 0;
  }

  /** The headers of the first response. */
  get headers(): Headers {
    return this.#headers;
  }

  /** Make the first request, unless there is nothing to read. */
  async start(): Promise<void> {
    while (this.#made === undefined && !this.#isOver) {
      try {
        this.#made = await this.#request();
      } catch (error) {
        await this.#retry(error);
      }
    }
  }

  async chunk(): Promise<Uint8Array | undefined> {
    while (!this.#isOver) {
      try {
        this.#made ??= await this.#request();
        const piece = await this.#made.chunk();
        if (piece === undefined) {
          throw new Lost(undefined);
        }
        // Only failures without progress count: a long read meets more broken connections.
        this.#failures = 0;
        this.#at += piece.length;
        if (this.#end !== undefined && this.#at > this.#end) {
          throw new UnexpectedResponseError("the body is too long", { status: 200 });
        }
        return piece;
      } catch (error) {
        this.#made?.end();
        this.#made = undefined;
        await this.#retry(error);
      }
    }
    this.close();
    return undefined;
  }

  /** All bytes up to the end, in memory. */
  async bytes(): Promise<Bytes> {
    const pieces: Uint8Array[] = [];
    for (let piece = await this.chunk(); piece !== undefined; piece = await this.chunk()) {
      pieces.push(piece);
    }
    return joined(...pieces);
  }

  close(): void {
    this.#closed = true;
    this.#made?.end();
  }

  get #isOver(): boolean {
    return this.#closed || (this.#end !== undefined && this.#at >= this.#end);
  }

  async #request(): Promise<Exchange> {
    const isWhole = this.#at === 0 && this.#end === undefined;
    const range = isWhole ? undefined : { start: this.#at, end: this.#end };
    const { http, url, signal } = this.#body;
    const made = await exchange(http, {
      method: "GET",
      url,
      headers: { range: rangeHeader(range), "accept-encoding": "identity" },
      signal,
    });
    try {
      if (this.#closed) {
        throw new Lost(undefined);
      }
      const { size } = await this.#checked(made, range);
      if (this.#size === undefined) {
        this.#size = size;
        this.#headers = made.response.headers;
        this.#end = Math.min(this.#end ?? size, size);
      } else if (size !== this.#size) {
        throw corrupt("the object was replaced by another body");
      }
      return made;
    } catch (error) {
      made.end();
      throw error;
    }
  }

  async #checked(
    made: Exchange,
    range: { start: number; end: number | undefined } | undefined,
  ): Promise<Extent> {
    const { status, headers } = made.response;
    if (status === 403) {
      throw /<Code>InvalidObjectState</.test(await made.text())
        ? new CodedError("archived_object", "restore the object first", { status })
        : new LinkExpiredError("the storage refuses the link: it has expired, or was changed", {
            status,
          });
    }
    if (status === 416 && this.#size !== undefined) {
      // Objects are written once: only a delete makes one shorter.
      throw new NotFoundError("not_found", "the object was deleted while it was read", { status });
    }
    if (status !== 200 && status !== 206) {
      throw storageError(status);
    }
    if (headers.get("x-amz-meta-enc-algo") === "deleted") {
      throw new NotFoundError("not_found", "the object was deleted", { status });
    }
    if (status === 206 && headers.get("content-range") === null) {
      const rule =
        "the storage shows no Content-Range: in a browser, its CORS rules must expose it";
      throw new UnexpectedResponseError(rule, { status });
    }
    return extentOf(status, headers, range);
  }

  /** Wait before the next attempt, or throw what ended the last one. */
  async #retry(error: unknown): Promise<void> {
    const isTransient = error instanceof CodedError && error.code === "storage_unavailable";
    if (!(error instanceof Lost) && !isTransient) {
      throw error;
    }
    if (this.#failures >= this.#body.resumes) {
      throw error instanceof Lost ? this.#lost(error) : error;
    }
    // A connection that broke is made anew at once, and after a pause if that did not help.
    if (this.#failures > 0 || isTransient) {
      await pause(undefined, this.#failures, this.#body.signal);
    }
    this.#failures++;
  }

  #lost({ reason }: Lost): Error {
    return this.#size === undefined || this.#end === undefined
      ? new CodedError("storage_unavailable", `the storage did not respond (${reason})`)
      : new IncompleteBodyError(this.#at, this.#end, reason);
  }
}
