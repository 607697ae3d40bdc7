import assert from "node:assert/strict";
import { test } from "node:test";
import { Keyturn, UnexpectedResponseError } from "../../src/index.ts";

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
