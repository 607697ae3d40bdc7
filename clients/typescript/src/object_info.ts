/** What the headers of an object's response state (SPEC 9.2). */
import { decodeMetadata, META_PREFIX } from "./metadata.ts";

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
