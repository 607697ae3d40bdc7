/** Uploads that are lost, or never sent, or take long. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Keyturn, ResponseLostError, UploadPendingError } from "../../src/index.ts";

const ID = "2f6c9a0e-0000-4000-8000-000000000000";

type Fetch = (url: unknown, init: RequestInit & { body: BodyInit }) => Promise<Response>;

function client(fetch: Fetch, more = {}): Keyturn {
  const options = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40) };
  return new Keyturn({ ...options, ...more, fetch: fetch as typeof globalThis.fetch });
}

function stored(status = 201): Response {
  return new Response(JSON.stringify({ upload_id: ID }), { status });
}

test("an upload waits until it is stored, and without an outcome is an error", async () => {
  const preferences: (string | null)[] = [];
  const answers = [201, 201, 202, 202];
  const keyturn = client(async (_url, { headers }) => {
    preferences.push(new Headers(headers).get("prefer"));
    return stored(answers.shift());
  });
  assert.deepEqual(await keyturn.put("k", "x"), { uploadId: ID, stored: true });
  await keyturn.put("k", "x", { waitSeconds: 7 });
  await assert.rejects(keyturn.put("k", "x"), (error: unknown) => {
    assert(error instanceof UploadPendingError);
    assert.deepEqual([error.uploadId, error.status, error.transient], [ID, 202, false]);
    return error.message.includes(ID) && error.message.includes("may still be stored");
  });
  assert.deepEqual(await keyturn.put("k", "x", { wait: false }), { uploadId: ID, stored: false });
  assert.deepEqual(preferences, ["wait=50", "wait=7", "wait=50", null]);
});

test("a runtime that closes the body of a lost upload does not hide the loss", async () => {
  // As Bun does.
  const lost: Fetch = async (_url, { body }) => {
    const reader = (body as ReadableStream<Uint8Array>).getReader();
    const pending = reader.read();
    await sleep(1);
    await reader.cancel();
    await pending;
    await sleep(50);
    throw Object.assign(new TypeError("lost"), { code: "ECONNRESET" });
  };
  async function* slow(): AsyncGenerator<Uint8Array> {
    await sleep(20);
    yield new Uint8Array(4);
  }
  await assert.rejects(client(lost).put("k", slow(), { size: 4 }), ResponseLostError);
});

test("a stream that is not sent is left unlocked", async () => {
  for (const options of [{ signal: AbortSignal.abort() }, { waitSeconds: -1 }]) {
    let cancelled = false;
    const body = new ReadableStream<Uint8Array>({
      cancel() {
        cancelled = true;
      },
    });
    const unused: Fetch = () => assert.fail("a request");
    await assert.rejects(client(unused).put("k", body, { size: 3, ...options }));
    assert(cancelled);
  }
});

test("in a browser, a body that shows no progress has the time that its size takes", async (context) => {
  const userAgent = "Mozilla/5.0";
  context.mock.getter(globalThis.navigator, "userAgent", () => userAgent);
  const slow: Fetch = async (_url, { signal }) => {
    await sleep(60, undefined, { signal: signal as AbortSignal });
    return stored();
  };
  const keyturn = client(slow, { responseTimeoutMs: 20 });
  const options = { wait: false };
  assert.equal((await keyturn.put("k", new Blob(["x".repeat(1000)]), options)).stored, true);
  await assert.rejects(keyturn.put("k", new Blob(["x"]), options), ResponseLostError);
});

test("in a browser, an abort does not wait for the body's source", async (context) => {
  context.mock.getter(globalThis.navigator, "userAgent", () => "Mozilla/5.0");
  const body = new ReadableStream<Uint8Array>();
  const signal = AbortSignal.timeout(20);
  const put = client(async () => stored()).put("k", body, { size: 3, signal });
  await assert.rejects(Promise.race([put, sleep(1000)]), { name: "TimeoutError" });
});
