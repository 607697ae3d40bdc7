/** Headers for the caller's own metadata (SPEC 4.3). */
import { META_PREFIX, OWN_PREFIX } from "./metadata.ts";
import { malformed } from "./names.ts";
import { isWellFormed } from "./text.ts";

const MAX_BYTES = 1024;

/** Encode names and values, or refuse what the gateway would. */
export function encodeMetadata(metadata: Readonly<Record<string, string>>): Record<string, string> {
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
  if (bytes > MAX_BYTES) {
    throw malformed(`metadata has at most ${MAX_BYTES} bytes on the wire`);
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
