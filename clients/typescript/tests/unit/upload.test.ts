/** Uploads that are lost, or never sent, or take long; and uploads by a link, without an API key. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  AlreadyExistsError,
  CodedError,
  Keyturn,
  MalformedRequestError,
  putTo,
  ResponseLostError,
  TooManyRequestsError,
  UnauthorizedError,
  UnexpectedResponseError,
  UploadPendingError,
} from "../../src/index.ts";

const ID = "2f6c9a0e-0000-4000-8000-000000000000";
const TOKEN = "t0k-_".repeat(9).slice(0, 43);
const BASE = "https://g.test/v1/projects/acme/objects/a%20b";
const LINK = `${BASE}?expires=4000000000&max_bytes=10&content_type=text%2Fx%3B+a%3D1&token=${TOKEN}`;

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

interface Sent {
  readonly url: string;
  readonly init: RequestInit & { readonly headers: Record<string, string> };
  readonly body: string;
}

/** Options with a `fetch` that answers so, and what it was given. */
function answering(answer: () => Response): { fetch: typeof globalThis.fetch; sent: Sent[] } {
  const sent: Sent[] = [];
  const fetch = async (url: unknown, init: unknown): Promise<Response> => {
    const request = init as Sent["init"];
    const body = await new Response(request.body ?? null).text();
    sent.push({ url: String(url), init: request, body });
    return answer();
  };
  return { fetch: fetch as typeof globalThis.fetch, sent };
}

function problem(status: number, code: string, detail = ""): Response {
  const headers = { "content-type": "application/problem+json" };
  return new Response(JSON.stringify({ status, code, detail }), { status, headers });
}

test("an upload link is requested with its bounds", async () => {
  const document = { url: LINK, expires_at: "2096-10-02T07:06:40Z" };
  const { fetch, sent } = answering(() => new Response(JSON.stringify(document), { status: 201 }));
  const options = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40), fetch };
  const keyturn = new Keyturn(options);
  const link = await keyturn.uploadLink("a b", {
    maxBytes: 10,
    contentType: "text/x; a=1",
    expiresSeconds: 60,
  });
  assert.deepEqual(link, { url: LINK, expiresAt: new Date("2096-10-02T07:06:40Z") });
  await keyturn.uploadLink("a b", { maxBytes: 11 });
  assert.deepEqual(
    sent.map(({ url, body }) => [url, JSON.parse(body)]),
    [
      [
        "https://gateway.test/v1/projects/acme/objects/a%20b/links",
        { method: "PUT", expires_s: 60, max_bytes: 10, content_type: "text/x; a=1" },
      ],
      [
        "https://gateway.test/v1/projects/acme/objects/a%20b/links",
        { method: "PUT", max_bytes: 11 },
      ],
    ],
  );
});

test("a response without a link is an error", async () => {
  for (const fields of [{}, { url: "javascript:x", expires_at: "2096-10-02T07:06:40Z" }]) {
    const { fetch } = answering(() => new Response(JSON.stringify(fields), { status: 201 }));
    const keyturn = new Keyturn({ url: "https://gateway.test", project: "acme", fetch });
    await assert.rejects(keyturn.uploadLink("k", { maxBytes: 1 }), UnexpectedResponseError);
  }
});

test("a body is put at the link as it is, without an API key", async () => {
  const { fetch, sent } = answering(stored);
  const progress: number[] = [];
  const onProgress = ({ loaded }: { loaded: number }) => void progress.push(loaded);
  const link = { url: LINK, expiresAt: new Date() };
  assert.deepEqual(await putTo(link, "the body", { fetch, onProgress }), {
    uploadId: ID,
    stored: true,
  });
  await putTo(LINK, new Blob(["x"], { type: "text/html" }), { fetch, contentType: "a/b" });
  await putTo(LINK.replace(/&content_type=[^&]*/, ""), "x", { fetch, wait: false });
  assert.deepEqual(
    sent.map(({ url, init: { method, headers }, body }) => [
      method,
      url === LINK,
      body,
      headers["content-type"],
      headers["prefer"],
      headers["authorization"],
    ]),
    [
      ["PUT", true, "the body", "text/x; a=1", "wait=50", undefined],
      ["PUT", true, "x", "a/b", "wait=50", undefined],
      ["PUT", false, "x", undefined, undefined, undefined],
    ],
  );
  assert.deepEqual(progress, [8]);
});

test("what is no upload link is refused before anything is sent", async () => {
  const { fetch, sent } = answering(stored);
  for (const link of [
    "",
    "k",
    BASE,
    `${BASE}?expires=4000000000&token=${TOKEN}`,
    LINK.replace(TOKEN, ""),
    LINK.replace("https:", "ftp:"),
    LINK.replace("g.test", "user:pass@g.test"),
  ]) {
    await assert.rejects(putTo(link, "x", { fetch }), (error: unknown) => {
      assert(error instanceof MalformedRequestError);
      return !`${error.stack}`.includes(TOKEN);
    });
  }
  assert.deepEqual(sent, []);
});

test("each refusal is its own error, and none shows the link", async () => {
  const cases: [() => Response, new (...args: never[]) => Error][] = [
    [() => problem(401, "unauthorized", `not ${TOKEN}`), UnauthorizedError],
    [() => problem(409, "already_exists", LINK), AlreadyExistsError],
    [() => problem(413, "body_too_large"), CodedError],
    [() => problem(415, "unsupported_media_type"), CodedError],
    [() => problem(429, "too_many_requests"), TooManyRequestsError],
    [() => stored(202), UploadPendingError],
    [() => new Response(LINK, { status: 502 }), UnexpectedResponseError],
    [
      () => {
        throw new TypeError(LINK);
      },
      ResponseLostError,
    ],
  ];
  for (const [answer, expected] of cases) {
    const { fetch, sent } = answering(answer);
    await assert.rejects(putTo(LINK, "x", { fetch }), (error: unknown) => {
      assert(error instanceof expected, `${error}`);
      const shown = `${error} ${error.stack} ${JSON.stringify(error)} ${error.cause}`;
      assert(!shown.includes(TOKEN), shown);
      return true;
    });
    assert.equal(sent.length, 1); // it is never repeated
  }
});

test("the caller's signal ends an upload by link", async () => {
  const reason = new Error("enough");
  const fetch = (() => new Promise(() => undefined)) as typeof globalThis.fetch;
  const stop = new AbortController();
  const put = putTo(LINK, "x", { fetch, signal: stop.signal });
  stop.abort(reason);
  await assert.rejects(put, (error) => error === reason);
});
