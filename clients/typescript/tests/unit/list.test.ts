/** Pages that do not fit what was asked for: none of their entries is returned. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Keyturn,
  type ListEntry,
  type ListOptions,
  UnexpectedResponseError,
} from "../../src/index.ts";

const changed_at = "2026-11-24T10:00:00Z";

interface Page {
  readonly keys?: readonly string[];
  readonly prefixes?: readonly string[];
  readonly next?: string;
  readonly more?: object;
}

async function listed(page: Page, options: ListOptions = {}): Promise<ListEntry[]> {
  const { keys = [], prefixes = [], next = null, more } = page;
  const objects = keys.map((key) => ({ key, size: 1, changed_at, ...more }));
  const fetch = async () => new Response(JSON.stringify({ objects, prefixes, next }));
  const client = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40), fetch };
  const entries: ListEntry[] = [];
  for await (const entry of new Keyturn({ retries: 0, ...client }).list(options)) {
    entries.push(entry);
    if (next !== null) {
      break;
    }
  }
  return entries;
}

test("what lies under the prefix and after the last entry, in order", async () => {
  const options: ListOptions = { prefix: "a/", delimiter: "/", after: "a/b" };
  const page = {
    keys: ["a/c", "a/\uffff", "a/\u{1f600}"],
    prefixes: ["a/b/", "a/d/"],
    next: "a/\u{1f600}",
  };
  const entries = await listed({ ...page }, options);
  assert.deepEqual(entries[0], { type: "prefix", prefix: "a/b/" });
  assert.equal((await listed({ keys: ["a/c", "a/\uffff", "a/\u{1f600}"] }, options)).length, 3);
});

test("a storage may list by paths", async () => {
  assert.equal((await listed({ keys: ["a/x", "a-b", "b"] })).length, 3);
  const page = { keys: ["a-b"], prefixes: ["a/"] };
  const entries = await listed({ ...page, prefixes: ["a/", "a-c/"] }, { delimiter: "/" });
  assert.deepEqual(entries[0], { type: "prefix", prefix: "a/" });
});

test("one listing has one order", async () => {
  const pages = [
    { keys: ["a/x", "a-b"], next: "a-b" },
    { keys: ["a/x"], next: null },
  ];
  const fetch = async () => {
    const { keys, next } = pages.shift() ?? { keys: [], next: null };
    const objects = keys.map((key) => ({ key, size: 1, changed_at }));
    return new Response(JSON.stringify({ objects, prefixes: [], next }));
  };
  const client = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40), fetch };
  const seen: ListEntry[] = [];
  await assert.rejects(async () => {
    for await (const entry of new Keyturn({ retries: 0, ...client }).list()) {
      seen.push(entry);
    }
  }, UnexpectedResponseError);
  assert.equal(seen.length, 2);
});

for (const [name, page, options] of [
  ["another prefix", { keys: ["b"] }, { prefix: "a" }],
  ["before the last entry", { keys: ["a"] }, { after: "b" }],
  ["the last entry again", { keys: ["b"] }, { after: "b" }],
  ["not in order", { keys: ["b", "a"] }, {}],
  ["a key twice", { keys: ["a", "a"] }, {}],
  ["not in the order of bytes", { keys: ["\u{1f600}", "\uffff"] }, {}],
  ["more than asked for", { keys: ["a", "b"] }, { pageSize: 1 }],
  ["a key that no object has", { keys: ["a/../b"] }, {}],
  ["a control character", { keys: ["a\u001b[2J"] }, {}],
  ["a lone surrogate", { keys: ["a\ud800"] }, {}],
  ["a prefix without a delimiter", { prefixes: ["a/"] }, {}],
  ["an object below a prefix", { keys: ["a/b"] }, { delimiter: "/" }],
  ["a prefix below a prefix", { prefixes: ["a/b/"] }, { delimiter: "/" }],
  ["a prefix without its end", { prefixes: ["a"] }, { delimiter: "/" }],
  ["a next page before its entries", { keys: ["b"], next: "a" }, {}],
  ["a next page elsewhere", { keys: ["a"], next: "b" }, { prefix: "a" }],
  ["a time of no zone", { keys: ["a"], more: { changed_at: "2026-11-24T10:00:00" } }, {}],
  ["a time of one digit", { keys: ["a"], more: { changed_at: "1" } }, {}],
] as const) {
  test(`a page is refused: ${name}`, async () => {
    await assert.rejects(listed(page, options), UnexpectedResponseError);
  });
}
