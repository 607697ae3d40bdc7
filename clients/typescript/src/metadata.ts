/** The caller's own metadata, as it travels in headers (SPEC 4.3). */

export const META_PREFIX = "x-keyturn-meta-";
/** Names of Keyturn's own, which the storage's headers of a plaintext object may show. */
export const OWN_PREFIX = "enc-";

/** The caller's metadata of an object. A value that is not valid RFC 2047 is returned unchanged. */
export function decodeMetadata(headers: Headers, prefix: string): Record<string, string> {
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
