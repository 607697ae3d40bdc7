/** What the headers of an object's response state, with the caller's metadata (SPEC 4.3, 9.2). */

export const META_PREFIX = "x-keyturn-meta-";
/** Names of Keyturn's own, which the storage's headers of a plaintext object may show. */
export const OWN_PREFIX = "enc-";

/** What the gateway states about an object. Only an encrypted object's size is authenticated. */
export interface ObjectInfo {
  /** Length of the whole object's plaintext, in bytes. */
  readonly size: number;
  /** As stored. */
  readonly contentType: string | undefined;
  /** As sent, with its quotes; no rotation changes it. */
  readonly etag: string | undefined;
  /** When the content was stored; no rotation changes it. */
  readonly lastModified: Date | undefined;
  /** The caller's own, decoded. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** For a plaintext object that was read from the storage itself, the names are the storage's. */
export function objectInfo(size: number, headers: Headers, byStorage: boolean): ObjectInfo {
  const header = (name: string): string | undefined => headers.get(name) ?? undefined;
  return {
    size,
    contentType: header("content-type"),
    etag: header("etag"),
    lastModified: dateOf(header("last-modified")),
    metadata: decodeMetadata(headers, byStorage ? "x-amz-meta-" : META_PREFIX),
  };
}

/** A time of HTTP; undefined where it is none. */
function dateOf(text = ""): Date | undefined {
  const date = new Date(text);
  return Number.isNaN(+date) ? undefined : date;
}

/** The caller's metadata of an object. A value that is not valid RFC 2047 is returned unchanged. */
function decodeMetadata(headers: Headers, prefix: string): Record<string, string> {
  // No prototype: a bucket writer chooses the names.
  const metadata: Record<string, string> = Object.create(null);
  headers.forEach((value, name) => {
    if (name.startsWith(prefix) && !name.startsWith(prefix + OWN_PREFIX)) {
      metadata[name.slice(prefix.length)] = decodeValue(value);
    }
  });
  return metadata;
}

function decodeValue(value: string): string {
  try {
    return value
      .replace(/\?=\s+=\?/g, "?==?")
      .replace(/=\?([\w-]+)\?([bq])\?([^?]*)\?=/gi, (_, charset, encoding, text) =>
        new TextDecoder(charset, { fatal: true }).decode(
          Uint8Array.from(/b/i.test(encoding) ? atob(text) : unquote(text), (c) => c.charCodeAt(0)),
        ),
      );
  } catch {
    return value;
  }
}

function unquote(text: string): string {
  return text
    .replace(/_/g, " ")
    .replace(/=([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(Number(`0x${hex}`)));
}
