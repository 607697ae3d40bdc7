/**
 * `open`: an object by its ciphertext link and the project's API key (SPEC 3.1, 9.2, 9.3).
 *
 *     const link = await keyturn.ciphertextLink("video.mp4");
 *     const opened = await open({ ...link, project: "acme", key: "video.mp4", apiKey, pepper });
 *     await opened.body.pipeTo(…);
 *
 * The API key goes nowhere: it only derives the project's user KEK. The storage sees a presigned
 * URL and nothing else.
 */
import { OpenObject } from "../download.ts";
import { CodedError } from "../errors.ts";
import { isHttpUrl, malformed } from "../names.ts";
import { type ObjectInfo, objectInfo } from "../object_info.ts";
import { type ByteRange, rangeHeader } from "../range.ts";
import { timeOf } from "../text.ts";
import {
  type Bytes,
  ChunkOpener,
  corrupt,
  HEADER_BYTES,
  joined,
  plaintextSize,
  SALT_BYTES,
} from "./cobblestone.ts";
import { type Source, splitHeader, streamOf, whole } from "./decrypt.ts";
import { openPart, START_BYTES } from "./part.ts";
import { type StoredBody, StoredStream } from "./stored_body.ts";
import { hex, type ObjectKeys, userDek } from "./unwrap.ts";

/** Options of `open`: a ciphertext link, what opens it, and how it is read. */
export interface OpenOptions extends ObjectKeys {
  /** The presigned URL of the stored bytes: a secret until it expires. */
  readonly url: string;
  /** A part of the object, read once the object's last chunk has proven the length. */
  readonly range?: ByteRange | undefined;
  /** How often in a row a request may fail, or a connection break; 3 by default. */
  readonly resumes?: number | undefined;
  /** Used for every request instead of the global `fetch`. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds until a response begins, including the connection; 30 000 by default. */
  readonly responseTimeoutMs?: number | undefined;
  /** Milliseconds that a body may make no progress; 60 000 by default. */
  readonly idleTimeoutMs?: number | undefined;
}

const BODY_CONTEXT = new TextEncoder().encode("keyturn/v1/body");

/**
 * Open an object, or a range of it.
 *
 * Every piece of its body is authentic, but the body is complete only if it ends without an error.
 * The `size` of a whole object is what the storage states until then.
 *
 * It throws `CodedError` with `no_usable_wrap` if the API key, the pepper or the object does not
 * match the metadata, `corrupt_object` for stored bytes that do not authenticate, `range_not_satisfiable`,
 * `archived_object` and `storage_unavailable`; `NotFoundError` for a deleted object;
 * `LinkExpiredError` if the storage refuses the URL; `IncompleteBodyError` if connections keep
 * breaking; and the `reason` of an aborted `signal`.
 */
export async function open(options: OpenOptions): Promise<OpenObject> {
  const { url, range, signal, metadata } = options;
  if (!isHttpUrl(url)) {
    throw malformed("a ciphertext link has an http or https URL");
  }
  const isWhole = range === undefined || rangeHeader(range) === undefined;
  const dek = await userDek(options);
  const { fetch, responseTimeoutMs = 30_000, idleTimeoutMs = 60_000, resumes = 3 } = options;
  const http = {
    fetch: fetch ?? ((input: string, init: RequestInit) => globalThis.fetch(input, init)),
    responseTimeoutMs,
    idleTimeoutMs,
  };
  const body = { http, url, signal, resumes };
  return isWhole ? openWhole(body, dek, metadata) : openRange(body, dek, metadata, range);
}

/** The plaintext of stored bytes in a stream, such as a response's body. */
export async function openStream(
  ciphertext: ReadableStream<Uint8Array>,
  keys: ObjectKeys,
): Promise<ReadableStream<Uint8Array>> {
  const dek = await userDek(keys);
  const reader = ciphertext.getReader();
  const source: Source = {
    chunk: async () => (await reader.read()).value,
    close: () => void reader.cancel().catch(() => undefined),
  };
  try {
    const { header, rest } = await splitHeader(source);
    const opener = await ChunkOpener.of(dek, BODY_CONTEXT, header);
    return streamOf(whole(opener, rest), rest);
  } catch (error) {
    source.close();
    throw error;
  }
}

/** The plaintext of stored bytes in memory. */
export async function openBytes(ciphertext: Uint8Array, keys: ObjectKeys): Promise<Uint8Array> {
  const dek = await userDek(keys);
  const header = joined(ciphertext.subarray(0, HEADER_BYTES));
  const opener = await ChunkOpener.of(dek, BODY_CONTEXT, header);
  const plaintext = new Uint8Array(plaintextSize(ciphertext.length));
  let filled = 0;
  const pieces = [ciphertext.subarray(HEADER_BYTES)];
  const source = { chunk: async () => pieces.pop(), close: () => undefined };
  for await (const chunk of whole(opener, source)) {
    plaintext.set(chunk, filled);
    filled += chunk.length;
  }
  return plaintext;
}

/** From its beginning to its end, by one request if no connection breaks. */
async function openWhole(
  body: StoredBody,
  dek: Bytes,
  metadata: ObjectKeys["metadata"],
): Promise<OpenObject> {
  const stream = new StoredStream(body);
  try {
    await stream.start();
    const { header, rest } = await splitHeader(stream);
    const opener = await ChunkOpener.of(dek, BODY_CONTEXT, header);
    const size = plaintextSize(stream.size);
    const info = infoOf(size, stream.headers, header, metadata);
    return new OpenObject(info, size, streamOf(whole(opener, rest, size), rest, body.signal));
  } catch (error) {
    stream.close();
    throw error;
  }
}

async function openRange(
  body: StoredBody,
  dek: Bytes,
  metadata: ObjectKeys["metadata"],
  range: ByteRange,
): Promise<OpenObject> {
  const beginning = new StoredStream(body, 0, START_BYTES);
  const start = await startOf(beginning, body);
  const header = start.subarray(0, HEADER_BYTES);
  const opener = await ChunkOpener.of(dek, BODY_CONTEXT, header);
  const stored = { body, start, storedBytes: beginning.size };
  const { size, length, plaintext, source } = await openPart(opener, stored, range);
  const info = infoOf(size, beginning.headers, header, metadata);
  return new OpenObject(info, length, streamOf(plaintext, source, body.signal));
}

/** The header and the first chunk. */
async function startOf(beginning: StoredStream, body: StoredBody): Promise<Bytes> {
  try {
    return await beginning.bytes();
  } catch (error) {
    if (!(error instanceof CodedError) || error.code !== "range_not_satisfiable") {
      throw error;
    }
  }
  // An empty body: perhaps a tombstone, which a response to a whole request says.
  const stream = new StoredStream(body);
  try {
    await stream.start();
  } finally {
    stream.close();
  }
  throw corrupt("the stored body is empty");
}

function infoOf(
  size: number,
  headers: Headers,
  header: Bytes,
  metadata: ObjectKeys["metadata"],
): ObjectInfo {
  const info = objectInfo(size, headers, true);
  const { lastModified } = info;
  return {
    ...info,
    // As the gateway's: no rotation changes it.
    etag: `"${hex(header.subarray(SALT_BYTES))}"`,
    lastModified:
      lastModified && (storedAt(metadata["enc-stored-at"], lastModified) ?? lastModified),
  };
}

/** When the content was stored, if a rewrap recorded it; not authenticated (SPEC 4.3). */
function storedAt(text: string | undefined, lastModified: Date): Date | undefined {
  const time = timeOf(text);
  return time && time <= lastModified ? time : undefined;
}
