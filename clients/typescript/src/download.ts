/**
 * An object while it is read through the gateway (SPEC 9.2).
 *
 * A body ends cleanly only if all of it arrived: the only sign of a chunk that does not
 * authenticate is that the gateway ends the connection. A broken download goes on where it broke,
 * from the same version of the object or not at all.
 */
import {
  IncompleteBodyError,
  type KeyturnError,
  ObjectChangedError,
  UnexpectedResponseError,
} from "./errors.ts";
import { isHttpUrl } from "./names.ts";
import { type ObjectInfo, objectInfo } from "./object_info.ts";
import { type ByteRange, type Extent, extentOf, rangeHeader } from "./range.ts";
import { responseError, storageError } from "./response_error.ts";
import {
  authorized,
  type Connection,
  type Exchange,
  exchange,
  Lost,
  pause,
  type Request,
  refusal,
  retried,
} from "./transport.ts";

/** Options of `get`. */
export interface GetOptions {
  /** A part of the object. */
  readonly range?: ByteRange | undefined;
  /** How often in a row resuming a broken download may fail, 5 by default; 0 turns it off. */
  readonly resumes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A request for one object, made again after a connection broke. */
type Ask = (
  method: "GET" | "HEAD",
  range?: ByteRange | undefined,
  etag?: string | undefined,
) => Promise<Part>;

/** A response that holds a part of an object. */
interface Part {
  readonly made: Exchange;
  readonly extent: Extent;
  readonly info: ObjectInfo;
}

/** An object, or a range of one, whose body is still to be read. */
export class OpenObject implements ObjectInfo {
  declare readonly size: number;
  declare readonly contentType: string | undefined;
  declare readonly etag: string | undefined;
  declare readonly lastModified: Date | undefined;
  declare readonly metadata: Readonly<Record<string, string>>;
  /** Bytes of plaintext to come: of the whole object, or of the range. */
  readonly length: number;
  /**
   * The body, once. It is complete only if it ends without an error: `IncompleteBodyError` where
   * it was cut. Cancel it to stop early.
   */
  readonly body: ReadableStream<Uint8Array>;

  /** @internal */
  constructor(info: ObjectInfo, length: number, body: ReadableStream<Uint8Array>) {
    Object.assign(this, info);
    this.length = length;
    this.body = body;
  }

  /** The whole body in memory. */
  async bytes(): Promise<Uint8Array> {
    const reader = this.body.getReader();
    try {
      const bytes = new Uint8Array(this.length);
      for (let filled = 0; ; ) {
        const { done, value } = await reader.read();
        if (done) {
          return bytes;
        }
        bytes.set(value, filled);
        filled += value.length;
      }
    } finally {
      // Where there is no memory for it.
      await reader.cancel();
    }
  }

  /** The whole body as text, decoded as UTF-8. */
  async text(): Promise<string> {
    return new TextDecoder().decode(await this.bytes());
  }

  /** The whole body as a `Blob` of the object's content type. */
  async blob(): Promise<Blob> {
    return new Blob([(await this.bytes()) as BlobPart], { type: this.contentType ?? "" });
  }
}

/** Open an object. */
export async function openObject(
  connection: Connection,
  url: string,
  { range, resumes = 5, signal }: GetOptions,
): Promise<OpenObject> {
  const ask = asker(connection, url, signal);
  const part = await retried(connection, signal, () => ask("GET", range));
  const body = resumable(ask, part, resumes, signal);
  return new OpenObject(part.info, part.extent.length, body);
}

/** An object's size and metadata. */
export async function statObject(
  connection: Connection,
  url: string,
  signal: AbortSignal | undefined,
): Promise<ObjectInfo> {
  const ask = asker(connection, url, signal);
  const { made, info } = await retried(connection, signal, () => ask("HEAD"));
  made.end();
  return info;
}

/** The body of a part, continued by further requests where its connection breaks. */
function resumable(
  ask: Ask,
  part: Part,
  resumes: number,
  signal: AbortSignal | undefined,
): ReadableStream<Uint8Array> {
  const { length } = part.extent;
  let { made } = part;
  let received = 0;
  // A weak ETag does not identify bytes.
  const most = /^"/.test(`${part.info.etag}`) ? resumes : 0;
  let left = most;

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        for (let retry = 0; ; retry++) {
          let reason = "closed";
          try {
            const chunk = await made.chunk();
            if (chunk) {
              left = most;
              received += chunk.length;
              if (received > length) {
                made.end();
                throw new UnexpectedResponseError("the body is too long", { status: 200 });
              }
              return controller.enqueue(chunk);
            }
          } catch (error) {
            if (!(error instanceof Lost)) {
              throw error;
            }
            reason = error.reason;
          }
          if (received === length) {
            made.end();
            return controller.close();
          }
          if (left-- <= 0) {
            throw new IncompleteBodyError(received, length, reason);
          }
          await pause(undefined, retry, signal);
          made = (await resumed(ask, part, received)) ?? made;
          if (left < 0) {
            made.end();
          }
        }
      },
      cancel() {
        // A read that waits is not resumed for a reader that left.
        left = -1;
        made.end();
      },
    },
    { highWaterMark: 0 },
  );
}

/** What is left of a part; undefined where the gateway does not respond now. */
async function resumed(
  ask: Ask,
  { extent, info }: Part,
  received: number,
): Promise<Exchange | undefined> {
  const range = { start: extent.start + received, end: extent.start + extent.length };
  try {
    const rest = await ask("GET", range, info.etag);
    if (rest.info.etag === info.etag && rest.extent.size === extent.size) {
      return rest.made;
    }
    rest.made.end();
  } catch (error) {
    const { transient, status } = Object(error) as Partial<KeyturnError>;
    if (error instanceof Lost || transient) {
      return undefined;
    }
    // 412: the condition is not met.
    if (status !== 412) {
      throw error;
    }
  }
  throw new ObjectChangedError("the object changed");
}

function asker(connection: Connection, url: string, signal: AbortSignal | undefined): Ask {
  return async (method, range, etag) => {
    const asked: Request = {
      method,
      url,
      headers: { range: rangeHeader(range), "if-match": etag, "accept-encoding": "identity" },
      signal,
    };
    const send = (target: string): Promise<Exchange> =>
      exchange(connection, authorized(connection, { ...asked, url: target }));
    let made = await send(url);
    if (made.response.type === "opaqueredirect") {
      // A browser hides where the storage is: let the gateway send the plaintext itself.
      made.end();
      made = await send(`${url}?download=object`);
    }
    const byStorage = made.response.status === 307;
    if (byStorage) {
      made.end();
      made = await redirected(connection, asked, made.response.headers);
    }
    try {
      return await partOf(connection, made, method, range, byStorage);
    } catch (error) {
      made.end();
      throw error;
    }
  };
}

/** The storage's response, requested without the API key (SPEC 9.3). */
async function redirected(
  connection: Connection,
  asked: Request,
  headers: Headers,
): Promise<Exchange> {
  const url = headers.get("location");
  if (!isHttpUrl(url)) {
    throw new UnexpectedResponseError("the redirect is not valid", { status: 307 });
  }
  try {
    return await exchange(connection, { ...asked, url });
  } catch (error) {
    throw error instanceof Lost ? storageError(undefined) : error;
  }
}

async function partOf(
  connection: Connection,
  made: Exchange,
  method: string,
  range: ByteRange | undefined,
  byStorage: boolean,
): Promise<Part> {
  const { status, headers } = made.response;
  if (status !== 200 && status !== 206) {
    throw byStorage
      ? storageError(status)
      : method === "HEAD"
        ? responseError(status, headers, undefined, [])
        : await refusal(connection, made);
  }
  if ((headers.get("content-encoding") ?? "identity") !== "identity") {
    // `fetch` has decoded it: neither the object's bytes nor their length any more.
    throw new UnexpectedResponseError("the body is encoded", { status });
  }
  const extent = extentOf(status, headers, range);
  return { made, extent, info: objectInfo(extent.size, headers, byStorage) };
}
