/** Links that open, or upload, one object without the API key (SPEC 9.3). */
import { UnexpectedResponseError } from "./errors.ts";
import { isHttpUrl } from "./names.ts";
import { readJson } from "./read_json.ts";
import { timeOf } from "./text.ts";
import type { Connection } from "./transport.ts";

/** Options of `link`. */
export interface LinkOptions {
  /** Seconds that it is valid, 1 to 604 800; 3600 by default. A rotation ends it earlier. */
  readonly expiresSeconds?: number | undefined;
  /** Whether a browser shows the object instead of saving it. */
  readonly inline?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A URL that opens one object without the API key. */
export interface Link {
  readonly url: string;
  readonly expiresAt: Date;
}

/** Options of `uploadLink`. */
export interface UploadLinkOptions {
  /** The largest body, in bytes. */
  readonly maxBytes: number;
  /** The content type that the object gets, and the only one that may be sent; any by default. */
  readonly contentType?: string | undefined;
  /** Seconds in which the upload must begin, 1 to 604 800; 3600 by default. */
  readonly expiresSeconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A URL that takes one body for one object without the API key: see `putTo`. */
export type UploadLink = Link;

/** Options of `ciphertextLink`. */
export interface CiphertextLinkOptions {
  /** Seconds that it is valid, 1 to 900; 900 by default. */
  readonly expiresSeconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A URL of an object's stored bytes, for `keyturn/open`. A rotation does not end it. */
export interface CiphertextLink extends Link {
  /** The object's `enc-` metadata, as stored. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** A link to an object. */
export async function makeLink(
  connection: Connection,
  objectUrl: string,
  { expiresSeconds: expires_s, inline, signal }: LinkOptions,
): Promise<Link> {
  const terms = { expires_s, inline };
  const { url, expiresAt } = await requestLink(connection, objectUrl, terms, signal);
  return { url, expiresAt };
}

/** A link that uploads an object. */
export async function makeUploadLink(
  connection: Connection,
  objectUrl: string,
  { maxBytes: max_bytes, contentType, expiresSeconds: expires_s, signal }: UploadLinkOptions,
): Promise<UploadLink> {
  const terms = { method: "PUT", expires_s, max_bytes, content_type: contentType };
  const { url, expiresAt } = await requestLink(connection, objectUrl, terms, signal);
  return { url, expiresAt };
}

/** A link to an object's stored bytes. */
export function makeCiphertextLink(
  connection: Connection,
  objectUrl: string,
  { expiresSeconds: expires_s, signal }: CiphertextLinkOptions,
): Promise<CiphertextLink> {
  return requestLink(connection, objectUrl, { expires_s, kind: "ciphertext" }, signal);
}

/** Make a link. Nothing is stored, so the request can be repeated like a read. */
async function requestLink(
  connection: Connection,
  objectUrl: string,
  terms: object,
  signal: AbortSignal | undefined,
): Promise<CiphertextLink> {
  const request = {
    method: "POST",
    url: `${objectUrl}/links`,
    headers: { "content-type": "application/json" },
    body: JSON.stringify(terms),
    signal,
  };
  const { url, expires_at, metadata = {} } = await readJson(connection, request, 201);
  const expiresAt = timeOf(expires_at);
  const texts = Object(metadata) as Record<string, string>;
  if (
    !isHttpUrl(url) ||
    !expiresAt ||
    Object.values(texts).some((text) => typeof text !== "string")
  ) {
    throw new UnexpectedResponseError("the response has no link", { status: 201 });
  }
  return { url, expiresAt, metadata: texts };
}
