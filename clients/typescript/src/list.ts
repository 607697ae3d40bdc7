/** The objects of a project, page by page (SPEC 9.3). */
import { UnexpectedResponseError } from "./errors.ts";
import { checkObjectKey, malformed } from "./names.ts";
import { readJson } from "./read_json.ts";
import { isWellFormed, timeOf } from "./text.ts";
import type { Connection } from "./transport.ts";

/** Options of `list`. */
export interface ListOptions {
  /** Only keys that begin with this. */
  readonly prefix?: string | undefined;
  /** `/` lists one level: all keys below the first `/` after the prefix become one entry. */
  readonly delimiter?: "/" | undefined;
  /** The entry to continue after: a key or a prefix. */
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
  readonly changedAt: Date;
}

/** A folder: what the keys of one or more objects begin with. It may hold only deleted objects. */
export interface ListedPrefix {
  readonly type: "prefix";
  readonly prefix: string;
}

export type ListEntry = ListedObject | ListedPrefix;

/** Every entry in the storage's order; pages are requested as they are read. */
export async function* listObjects(
  connection: Connection,
  options: ListOptions,
): AsyncGenerator<ListEntry, void, undefined> {
  const { prefix = "", delimiter = "", pageSize = 1000, signal } = options;
  let after: string | null = options.after ?? "";
  if (!isWellFormed(prefix + after)) {
    throw malformed("prefix and after must be valid UTF-8");
  }
  let orders: readonly Order[] = ORDERS;
  do {
    const query = new URLSearchParams({ prefix, delimiter, after, limit: `${pageSize}` });
    const page = await readJson(connection, { url: `${connection.url}/objects?${query}`, signal });
    const asked = { prefix, delimiter, after, pageSize };
    const entries = entriesOf(page, asked);
    // One listing has one order, so it never yields an entry twice, and always advances.
    orders = orders.filter((order) => isNextPage(entries, page["next"], asked, order));
    const [order] = orders;
    if (!order) {
      throw unexpected();
    }
    yield* entries.sort((a, b) => order(nameOf(a), nameOf(b)));
    after = page["next"] as string | null;
  } while (after !== null);
}

/** How two names compare: as `Array.prototype.sort` takes it. */
type Order = (a: string, b: string) => number;

/** Those of storages: by bytes, or by paths (`a/x` before `a-b`), where a slash comes first. */
const ORDERS: readonly Order[] = ["/", "\0"].map(
  (slash) => (a, b) => compareBytes(a.replaceAll("/", slash), b.replaceAll("/", slash)),
);

interface Asked {
  readonly prefix: string;
  readonly delimiter: string;
  readonly after: string;
  readonly pageSize: number;
}

/** The entries of a page, of which each one fits. */
function entriesOf({ objects, prefixes }: Record<string, unknown>, asked: Asked): ListEntry[] {
  if (!Array.isArray(objects) || !Array.isArray(prefixes)) {
    throw unexpected();
  }
  const { prefix, delimiter, pageSize } = asked;
  const entries: ListEntry[] = [...objects.map(objectOf), ...prefixes.map(prefixOf)];
  for (const entry of entries) {
    const name = nameOf(entry);
    const slash = name.indexOf("/", prefix.length);
    const isLevel = entry.type === "object" ? slash < 0 : slash === name.length - 1;
    const fits = delimiter ? isLevel : entry.type === "object";
    if (!fits || !name.startsWith(prefix) || entries.length > pageSize) {
      throw unexpected();
    }
  }
  return entries;
}

/** Whether the entries of each type ascend from `after`, and `next` is the last one or behind it. */
function isNextPage(
  entries: readonly ListEntry[],
  next: unknown,
  { prefix, after }: Asked,
  order: Order,
): boolean {
  const last = { object: after, prefix: after };
  const ascends = entries.every((entry) => {
    const before = last[entry.type];
    last[entry.type] = nameOf(entry);
    return order(before, nameOf(entry)) < 0;
  });
  const isNext =
    typeof next === "string" &&
    next.startsWith(prefix) &&
    order(after, next) < 0 &&
    order(last.object, next) <= 0 &&
    order(last.prefix, next) <= 0;
  return ascends && (isNext || next === null);
}

function objectOf(entry: unknown): ListedObject {
  const { key, size, changed_at } = Object(entry) as Record<string, unknown>;
  const changedAt = timeOf(changed_at);
  if (!(size === null || (Number.isSafeInteger(size) && Number(size) >= 0)) || !changedAt) {
    throw unexpected();
  }
  return { type: "object", key: keyOf(key), size: size as number | null, changedAt };
}

function prefixOf(prefix: unknown): ListedPrefix {
  if (typeof prefix !== "string" || !prefix.endsWith("/")) {
    throw unexpected();
  }
  keyOf(prefix.slice(0, -1));
  return { type: "prefix", prefix };
}

function keyOf(key: unknown): string {
  try {
    return checkObjectKey(key);
  } catch {
    throw unexpected();
  }
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
