/** Names and API keys are checked before anything is sent; a page's client may have no key. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Keyturn, MalformedRequestError, UnexpectedResponseError } from "../../src/index.ts";
import { checkApiKey, checkObjectKey, checkProject } from "../../src/names.ts";

test("names that the specification allows pass unchanged", () => {
  for (const project of ["a", "0", "acme-2", "a".repeat(63)]) {
    assert.equal(checkProject(project), project);
  }
  for (const key of ["a", "a/b.txt", "…/ü 😀", "a".repeat(900), ".a/b..", "%2F", "a\u00a0b"]) {
    assert.equal(checkObjectKey(key), key);
  }
  const apiKey = `${"aA0._~+/=-".repeat(4)}`;
  assert.equal(checkApiKey(apiKey), apiKey);
});

test("other names are refused before anything is sent", () => {
  const wrong: [(name: unknown) => string, unknown[]][] = [
    [checkProject, ["", "-a", "A", "a_b", "a/b", "a".repeat(64), "a\n", undefined, 7]],
    [
      checkObjectKey,
      ["", "/a", "a/", "a//b", ".", "a/../b", "a\n", "a\u0085b", "ü".repeat(451), "\ud800", null],
    ],
    [checkApiKey, ["", "a".repeat(31), "a".repeat(513), `${"a".repeat(40)} `, "ü".repeat(40)]],
  ];
  for (const [check, names] of wrong) {
    for (const name of names) {
      assert.throws(() => check(name), MalformedRequestError);
    }
  }
});

test("an API key that is not a string is a type error that names it", async () => {
  for (const [value, name] of [
    [undefined, "undefined"],
    [null, "object"],
    [7, "number"],
  ] as const) {
    const apiKey = value as unknown as string;
    const options = { url: "https://gateway.test", project: "acme", apiKey };
    const expected = { name: "TypeError", message: `apiKey is ${name}, not a string` };
    assert.throws(() => new Keyturn(options), expected);
    const client = new Keyturn({ ...options, apiKey: "k".repeat(40) });
    assert.throws(() => client.withApiKey(apiKey), expected);
    await assert.rejects(client.rotate(apiKey), { message: `newApiKey is ${name}, not a string` });
  }
});

test("a refused API key is not repeated", () => {
  const apiKey = `${"secret".repeat(8)}!`;
  assert.throws(
    () => checkApiKey(apiKey),
    (error: Error) => !`${error}${error.stack}`.includes("secret"),
  );
});

test("a page's client without an API key leaves the authorization to the page's backend", async () => {
  const sent: Request[] = [];
  const client = new Keyturn({
    url: "http://app.example.com/files",
    project: "acme",
    retries: 0,
    fetch: async (input, init) => {
      sent.push(new Request(input, init));
      return new Response("refused", { status: 500 });
    },
  });
  for (const attempt of [client.stat("a b"), client.put("a b", "text"), client.link("a b")]) {
    await assert.rejects(attempt, UnexpectedResponseError);
  }
  const base = "http://app.example.com/files/v1/projects/acme/objects/a%20b";
  assert.deepEqual(sent.map(({ method, url }) => [method, url]).sort(), [
    ["HEAD", base],
    ["POST", `${base}/links`],
    ["PUT", base],
  ]);
  for (const { headers } of sent) {
    assert.equal(headers.get("authorization"), null);
  }
});
