/**
 * A body on its way to the gateway (SPEC 9.4): sent once, and stored whole or not at all.
 *
 * The idle timeout does not run while a source is read: a slow source is the caller's business, a
 * gateway that stops reading is not.
 */
import { type Source, sourceOf } from "./body_source.ts";
import { UploadPendingError } from "./errors.ts";
import type { UploadLink } from "./links.ts";
import { isHttpUrl, malformed } from "./names.ts";
import { META_PREFIX, OWN_PREFIX } from "./object_info.ts";
import type { PutToOptions } from "./put_to.ts";
import { isWellFormed } from "./text.ts";
import {
  type Connection,
  Exchange,
  exchange,
  inBrowser,
  type Request,
  settingsOf,
  stated,
} from "./transport.ts";
import { idOf, write } from "./write.ts";

/** What can be uploaded. A stream needs its `size`. */
export type UploadBody =
  | string
  | Blob
  | ArrayBuffer
  | ArrayBufferView
  | ReadableStream<Uint8Array>
  | AsyncIterable<Uint8Array>;

/** How much of a body was handed to the connection, in bytes. */
export interface Progress {
  readonly loaded: number;
  readonly total: number;
}

/** Options of `put`. */
export interface PutOptions {
  /** Bytes of the body; required for a stream, which must yield exactly this many. */
  readonly size?: number | undefined;
  readonly contentType?: string | undefined;
  /** The caller's own, at most 1 KiB; not authenticated. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
  /** Whether to wait until the object is stored; true by default. */
  readonly wait?: boolean | undefined;
  /** Seconds to wait at most; 50 by default. The gateway may grant less (60 by default). */
  readonly waitSeconds?: number | undefined;
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An upload that the gateway has accepted. */
export interface PutReceipt {
  readonly uploadId: string;
  /** Whether the object is stored. With `wait: false` it is not known: a worker may refuse it. */
  readonly stored: boolean;
}

/** Less than the minute after which common proxies end a request without a response. */
const WAIT_S = 50;

/** Send a body once; no error repeats `secret`. */
export async function putObject(
  connection: Connection,
  url: string,
  body: UploadBody,
  given: PutOptions,
  secret?: string,
): Promise<PutReceipt> {
  const { contentType, metadata = {}, size, signal, wait = true } = given;
  const options = { ...given, waitSeconds: wait ? (given.waitSeconds ?? WAIT_S) : undefined };
  if (contentType !== undefined && !/^[ -~]{1,1024}$/.test(contentType)) {
    throw malformed("a content type is printable ASCII");
  }
  const headers = { ...encodeMetadata(metadata), "content-type": contentType };
  const source = sourceOf(body, size);
  const outcome = await write(
    connection,
    [201, 202],
    { method: "PUT", url, headers },
    options,
    async (waiting, request) => {
      if (source.size > 0 && !inBrowser()) {
        return sendStream(waiting, request, source, options);
      }
      // A file stays on the browser's disk. Its own type is not what the caller stated.
      const blob = body instanceof Blob ? body.slice() : await collected(source, signal);
      return sendBlob(waiting, request, blob, options);
    },
    secret,
  ).catch((error: unknown) => {
    source.stop();
    throw error;
  });
  const uploadId = idOf(outcome, "upload_id");
  const stored = outcome.status === 201;
  if (wait && !stored) {
    const message = `upload ${uploadId} was accepted; the object may still be stored, or refused`;
    throw new UploadPendingError(message, { status: outcome.status, uploadId });
  }
  return { uploadId, stored };
}

/** Send a body once, through an upload link. */
export async function putByLink(
  link: UploadLink | string,
  body: UploadBody,
  options: PutToOptions,
): Promise<PutReceipt> {
  const url = typeof link === "string" ? link : link.url;
  const terms = isHttpUrl(url) ? new URL(url).searchParams : undefined;
  const token = terms?.get("token");
  if (!terms?.has("max_bytes") || !token) {
    throw malformed("this is not an upload link");
  }
  const connection = { ...settingsOf(options), url, apiKey: undefined, retries: 0 };
  const contentType = options.contentType ?? terms.get("content_type") ?? undefined;
  return putObject(connection, url, body, { ...options, contentType }, token);
}

/** Send a body of known length as a stream, read as fast as the gateway takes it. */
async function sendStream(
  connection: Connection,
  request: Request,
  source: Source,
  { onProgress, waitSeconds = 0, signal }: PutOptions,
): Promise<Exchange> {
  const { size: total } = source;
  const made = new Exchange(connection, signal);
  let failure: { readonly error: unknown } | undefined;
  let loaded = 0;
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        let block: Uint8Array | undefined;
        try {
          made.arm();
          if (loaded) {
            onProgress?.({ loaded, total });
          }
          block = await source.next();
        } catch (error) {
          failure = { error };
          controller.error(error);
          made.end();
          return;
        }
        made.arm(connection.idleTimeoutMs + (block ? 0 : waitSeconds * 1000));
        // Either fails if the connection is lost, which is for `fetch` to report.
        if (block) {
          loaded += block.length;
          controller.enqueue(block);
        } else {
          controller.close();
        }
      },
      cancel: source.stop,
    },
    { highWaterMark: 0 },
  );
  const headers = { ...request.headers, "content-length": `${total}` };
  const init = { ...request, headers, body, duplex: "half" } as Request;
  try {
    return await exchange(connection, init, made);
  } catch (error) {
    throw failure && !signal?.aborted ? failure.error : error;
  }
}

/** Send a body that is in memory, or on a browser's disk. */
async function sendBlob(
  connection: Connection,
  request: Request,
  body: Blob,
  { onProgress, waitSeconds = 0, signal }: PutOptions,
): Promise<Exchange> {
  const total = body.size;
  if (connection.injected || typeof XMLHttpRequest === "undefined") {
    // No progress can be seen: allow the time that the body takes at 64 kbit/s.
    const responseTimeoutMs = connection.responseTimeoutMs + total / 8;
    const made = await exchange({ ...connection, responseTimeoutMs }, { ...request, body });
    onProgress?.({ loaded: total, total });
    return made;
  }
  const made = new Exchange(connection, signal);
  return made.send((ending) =>
    sendByXhr(request, body, ending, (loaded) => {
      made.arm(connection.idleTimeoutMs + (loaded < total ? 0 : waitSeconds * 1000));
      onProgress?.({ loaded, total });
    }),
  );
}

/** The whole body as a `Blob`, which a browser may keep on disk. */
async function collected(source: Source, signal: AbortSignal | undefined): Promise<Blob> {
  signal?.throwIfAborted();
  let abort = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort);
  });
  try {
    return await Promise.race([blobOf(source), aborted]);
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

async function blobOf(source: Source): Promise<Blob> {
  const blocks: BlobPart[] = [];
  for (let block = await source.next(); block; block = await source.next()) {
    blocks.push(block as BlobPart);
  }
  return new Blob(blocks);
}

const METADATA_MAX_BYTES = 1024;

/** Encode names and values, or refuse what the gateway would. */
function encodeMetadata(metadata: Readonly<Record<string, string>>): Record<string, string> {
  const headers: Record<string, string> = {};
  let bytes = 0;
  for (const [name, value] of Object.entries(metadata)) {
    if (!/^[a-z0-9-]+$/.test(name) || name.startsWith(OWN_PREFIX)) {
      throw malformed("metadata names consist of a-z, 0-9 and -, and do not begin with enc-");
    }
    const encoded = encodeValue(value);
    bytes += name.length + encoded.length;
    headers[META_PREFIX + name] = encoded;
  }
  if (bytes > METADATA_MAX_BYTES) {
    throw malformed(`metadata has at most ${METADATA_MAX_BYTES} bytes on the wire`);
  }
  return headers;
}

function encodeValue(value: unknown): string {
  if (typeof value !== "string" || !isWellFormed(value) || /\p{Cc}/u.test(value)) {
    throw malformed("metadata values are text without control characters");
  }
  if (/^[ -~]*$/.test(value) && value === value.trim() && !value.includes("=?")) {
    return value;
  }
  const bytes = new TextEncoder().encode(value);
  return `=?utf-8?b?${btoa(String.fromCharCode(...bytes))}?=`;
}

/** Send a body once, in a browser: `fetch` reports no progress. Rejects where no response comes. */
function sendByXhr(
  request: Request,
  body: Blob,
  signal: AbortSignal,
  onSent: (bytes: number) => void,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("PUT", request.url);
    xhr.responseType = "arraybuffer";
    for (const [name, value] of Object.entries(stated(request.headers))) {
      xhr.setRequestHeader(name, value);
    }
    xhr.upload.onprogress = ({ loaded }) => {
      try {
        onSent(loaded);
      } catch (error) {
        reject(error);
        xhr.abort();
      }
    };
    xhr.onload = () => {
      const headers = new Headers();
      for (const line of xhr
        .getAllResponseHeaders()
        .trim()
        .split(/[\r\n]+/)) {
        const colon = line.indexOf(":");
        headers.append(line.slice(0, colon), line.slice(colon + 1).trim());
      }
      const content: BodyInit | null = xhr.response.byteLength ? xhr.response : null;
      resolve(new Response(content, { status: xhr.status, headers }));
    };
    xhr.onerror = xhr.onabort = () => reject(new TypeError("no response"));
    signal.addEventListener("abort", () => xhr.abort());
    xhr.send(body);
  });
}
