/** The objects of a project, page by page (SPEC 9.3). */
import { UnexpectedResponseError } from "./errors.ts";
import { malformed } from "./names.ts";
import { dateOf } from "./object_info.ts";
import { readJson } from "./read_json.ts";
import { isWellFormed } from "./text.ts";
import type { Connection } from "./transport.ts";

/** Options of `list`. */
export interface ListOptions {
  /** Only keys that begin with this. */
  readonly prefix?: string | undefined;
  /** `/` lists one level: all keys below the first `/` after the prefix become one entry. */
  readonly delimiter?: "/" | undefined;
  /** The entry to continue after, in byte order: a key or a prefix. */
  readonly after?: string | undefined;
  /** Entries per request at most, 1 to 1000; 1000 by default. */
  readonly pageSize?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An object. */
export interface ListedObject {
  readonly type: "object";
  readonly key: string;
  /** Length of the plaintext in bytes, not authenticated; null if no read would open the object. */
  readonly size: number | null;
  /** When the storage last wrote the object; a rotation counts. */
  readonly storedAt: Date;
}

/** A folder: what the keys of one or more objects begin with. It may hold only deleted objects. */
export interface ListedPrefix {
  readonly type: "prefix";
  readonly prefix: string;
}

export type ListEntry = ListedObject | ListedPrefix;

/** Every entry in key order; pages are requested as they are read. */
export async function* listObjects(
  connection: Connection,
  options: ListOptions,
): AsyncGenerator<ListEntry, void, undefined> {
  const { prefix = "", delimiter = "", pageSize = 1000, signal } = options;
  let after: string | null = options.after ?? "";
  if (!isWellFormed(prefix + after)) {
    throw malformed("prefix and after must be valid UTF-8");
  }
  do {
    const query = new URLSearchParams({ prefix, delimiter, after, limit: `${pageSize}` });
    const page = await readJson(connection, { url: `${connection.url}/objects?${query}`, signal });
    const next: unknown = page["next"];
    if (!(next === null || (typeof next === "string" && compareBytes(next, after) > 0))) {
      throw unexpected();
    }
    yield* entriesOf(page);
    after = next;
  } while (after !== null);
}

function entriesOf({ objects, prefixes }: Record<string, unknown>): ListEntry[] {
  if (!Array.isArray(objects) || !Array.isArray(prefixes)) {
    throw unexpected();
  }
  const entries: ListEntry[] = objects.map(objectOf);
  for (const prefix of prefixes) {
    if (typeof prefix !== "string") {
      throw unexpected();
    }
    entries.push({ type: "prefix", prefix });
  }
  return prefixes.length ? entries.sort((a, b) => compareBytes(nameOf(a), nameOf(b))) : entries;
}

function objectOf(entry: unknown): ListedObject {
  const { key, size, stored_at } = Object(entry) as Record<string, unknown>;
  const storedAt = dateOf(stored_at);
  if (
    typeof key !== "string" ||
    !(size === null || (Number.isSafeInteger(size) && Number(size) >= 0)) ||
    !storedAt
  ) {
    throw unexpected();
  }
  return { type: "object", key, size: size as number | null, storedAt };
}

function nameOf(entry: ListEntry): string {
  return entry.type === "object" ? entry.key : entry.prefix;
}

function unexpected(): UnexpectedResponseError {
  return new UnexpectedResponseError("the response is not the next page", { status: 200 });
}

/** Order by UTF-8 bytes, which is not that of `<`. */
function compareBytes(a: string, b: string): number {
  const encoder = new TextEncoder();
  const left = encoder.encode(a);
  const right = encoder.encode(b);
  for (let i = 0; ; i++) {
    const order = (left[i] ?? -1) - (right[i] ?? -1);
    if (order !== 0 || i === left.length) {
      return order;
    }
  }
}
