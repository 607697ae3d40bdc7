/** Responses that no gateway sends: cut, wrong, huge, changed, or another's. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  CodedError,
  GatewayUnavailableError,
  IncompleteBodyError,
  Keyturn,
  MalformedRequestError,
  NotFoundError,
  ObjectChangedError,
  ResponseLostError,
  TooManyRequestsError,
  UnauthorizedError,
  UnexpectedResponseError,
} from "../../src/index.ts";

const API_KEY = "key-".repeat(10);
const ID = "2f6c9a0e-0000-4000-8000-000000000000";
const PROBLEM = { "content-type": "application/problem+json" };

interface Sent {
  readonly url: string;
  readonly init: RequestInit & { readonly headers: Record<string, string> };
}

type Answer = Response | Error | ((sent: Sent) => Response | Promise<Response>);

/** A client whose requests get these answers in turn, and what it sent. */
function scripted(answers: Answer[], more: { retries?: number; idleTimeoutMs?: number } = {}) {
  const sent: Sent[] = [];
  const fetch = async (url: unknown, init: unknown): Promise<Response> => {
    const request = { url: String(url), init: init as Sent["init"] };
    sent.push(request);
    const answer = answers.shift();
    assert(answer !== undefined, `one request too many: ${request.init.method} ${url}`);
    if (answer instanceof Error) {
      throw answer;
    }
    return typeof answer === "function" ? answer(request) : answer;
  };
  const options = { url: "https://gateway.test", project: "acme", apiKey: API_KEY, fetch };
  return { keyturn: new Keyturn({ retries: 0, ...options, ...more }), sent };
}

function object(body: BodyInit | null, headers: Record<string, string>, status = 200): Response {
  return new Response(body, { status, headers: { etag: '"v1"', ...headers } });
}

/** A body that delivers this text and then fails. */
function broken(text: string): ReadableStream<Uint8Array> {
  const chunks = [new TextEncoder().encode(text)];
  return new ReadableStream({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) {
        controller.error(new TypeError("terminated"));
      } else {
        controller.enqueue(chunk);
      }
    },
  });
}

function problem(status: number, fields: Record<string, unknown>, more = {}): Response {
  const body = JSON.stringify({ title: "No", status, ...fields });
  return new Response(body, { status, headers: { ...PROBLEM, ...more } });
}

type Failure<E extends Error> = new (...args: never[]) => E;

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const read: T[] = [];
  for await (const item of items) {
    read.push(item);
  }
  return read;
}

async function failing<E extends Error>(
  promise: Promise<unknown>,
  expected: Failure<E>,
): Promise<E> {
  const error = await promise.then(
    () => assert.fail("nothing failed"),
    (reason: unknown) => reason,
  );
  assert(error instanceof expected, `${error}`);
  const shown = `${error} ${error.stack} ${JSON.stringify(error)} ${error.cause}`;
  assert(!shown.includes(API_KEY) && !shown.includes("gateway.test"), shown);
  return error;
}

async function text(keyturn: Keyturn, options = {}): Promise<string> {
  return (await keyturn.get("k", options)).text();
}

test("a broken download goes on from its byte, of the same version, without another's bytes", async () => {
  const { keyturn, sent } = scripted([
    object(broken("hel"), { "content-length": "10" }),
    object(broken("lo "), { "content-length": "7", "content-range": "bytes 3-9/10" }, 206),
    object("world"[0] ?? "", { "content-length": "4", "content-range": "bytes 6-9/10" }, 206),
    object("orl", { "content-length": "3", "content-range": "bytes 7-9/10" }, 206),
  ]);
  assert.equal(await text(keyturn), "hello worl");
  const headers = sent.map(({ init }) => init.headers);
  assert.deepEqual(
    headers.map((one) => [one["range"], one["if-match"]]),
    [
      [undefined, undefined],
      ["bytes=3-9", '"v1"'],
      ["bytes=6-9", '"v1"'],
      ["bytes=7-9", '"v1"'],
    ],
  );
});

test("a download is never continued by another version", async () => {
  const first = () => object(broken("hel"), { "content-length": "10" });
  const rest = { "content-length": "7", "content-range": "bytes 3-9/10" };
  for (const [second, expected] of [
    [new Response(null, { status: 412, headers: PROBLEM }), ObjectChangedError],
    [object("lo world", { ...rest, etag: '"v2"' }, 206), ObjectChangedError],
    [
      object("lo worl", { "content-length": "7", "content-range": "bytes 3-9/11" }, 206),
      ObjectChangedError,
    ],
    [object("hello worl", { "content-length": "10" }), UnexpectedResponseError],
    [
      object("hello w", { "content-length": "7", "content-range": "bytes 0-6/10" }, 206),
      UnexpectedResponseError,
    ],
    [problem(404, { code: "not_found" }), NotFoundError],
    [problem(502, { code: "corrupt_object" }), CodedError],
  ] as const) {
    const { keyturn } = scripted([first(), second]);
    await failing(text(keyturn), expected);
  }
});

test("resuming ends after so many attempts, or is off", async () => {
  const cut = () => object(broken("hel"), { "content-length": "10" });
  const away = new TypeError("fetch failed");
  for (const resumes of [0, 1, 2]) {
    const { keyturn, sent } = scripted([cut(), away, away]);
    const error = await failing(text(keyturn, { resumes }), IncompleteBodyError);
    assert.deepEqual([error.received, error.expected, sent.length], [3, 10, 1 + resumes]);
  }
  const weak = scripted([object(broken("hel"), { "content-length": "10", etag: 'W/"v1"' })]);
  await failing(text(weak.keyturn), IncompleteBodyError);
});

test("a body that ends early, or too late, or never, is an error", async () => {
  const short = scripted([object("hel", { "content-length": "10" })]);
  await failing(text(short.keyturn, { resumes: 0 }), IncompleteBodyError);
  const long = scripted([object("hello world", { "content-length": "5" })]);
  await failing(text(long.keyturn), UnexpectedResponseError);
  // As `fetch` does: an aborted body fails.
  const never = ({ init }: Sent) =>
    new ReadableStream<Uint8Array>({
      start: (controller) =>
        init.signal?.addEventListener("abort", () => controller.error(new Error("aborted"))),
    });
  const answer = (sent: Sent) => object(never(sent), { "content-length": "5" });
  const stalled = scripted([answer], { idleTimeoutMs: 20 });
  const error = await failing(text(stalled.keyturn, { resumes: 0 }), IncompleteBodyError);
  assert.match(error.message, /timeout/);
});

test("a response that does not fit the request is refused", async () => {
  const range = { start: 2, end: 5 };
  for (const [headers, status, options] of [
    [{}, 200, {}],
    [{ "content-length": "-1" }, 200, {}],
    [{ "content-length": "1e1" }, 200, {}],
    [{ "content-length": "99999999999999999999" }, 200, {}],
    [{ "content-length": "3", "content-range": "bytes 2-4/9" }, 206, {}],
    [{ "content-length": "9" }, 200, { range }],
    [{ "content-length": "3" }, 206, { range }],
    [{ "content-length": "3", "content-range": "bytes 3-5/9" }, 206, { range }],
    [{ "content-length": "4", "content-range": "bytes 2-4/9" }, 206, { range }],
    [{ "content-length": "3", "content-range": "bytes 2-4/*" }, 206, { range }],
    [{ "content-length": "3", "content-encoding": "gzip" }, 200, {}],
    [{ "content-length": "3" }, 203, {}],
  ] as const) {
    const { keyturn } = scripted([object("abc", headers, status)]);
    await failing(text(keyturn, options), UnexpectedResponseError);
  }
});

test("a redirect is followed without the API key, and only to http or https", async () => {
  const to = (location: string) => new Response(null, { status: 307, headers: { location } });
  const stored = {
    "content-length": "5",
    "x-amz-meta-author": "kim",
    "x-amz-meta-enc-upload": "x",
  };
  const { keyturn, sent } = scripted([to("https://s3.test/signed"), object("plain", stored)]);
  const opened = await keyturn.get("k");
  assert.deepEqual({ ...opened.metadata }, { author: "kim" });
  assert.equal(await opened.text(), "plain");
  assert.equal(sent[0]?.init.headers["authorization"], `Bearer ${API_KEY}`);
  assert.equal(sent[1]?.url, "https://s3.test/signed");
  assert(!JSON.stringify(sent[1]).includes(API_KEY));
  assert(sent.every(({ init }) => init.redirect === "manual"));
  for (const location of ["", "/here", "ftp://s3.test/x", "javascript:1", "https://u:p@s3.test/"]) {
    await failing(scripted([to(location)]).keyturn.get("k"), UnexpectedResponseError);
  }
  for (const [status, expected] of [
    [404, NotFoundError],
    [403, UnexpectedResponseError],
    [401, UnexpectedResponseError],
    [307, UnexpectedResponseError],
    [500, CodedError],
  ] as const) {
    const answers = [to("https://s3.test/"), new Response("<Error/>", { status })];
    await failing<Error>(scripted(answers).keyturn.get("k"), expected);
  }
});

test("errors have the problem's code, and never a secret or another's text", async () => {
  const echo = `wrong ${API_KEY} here`;
  const error = await failing(
    scripted([problem(401, { code: "unauthorized", detail: echo })]).keyturn.get("k"),
    UnauthorizedError,
  );
  assert.deepEqual([error.detail, error.status], ["wrong … here", 401]);
  const huge = problem(400, { code: "bad_seal", detail: "x".repeat(50_000) });
  const long = await failing(scripted([huge]).keyturn.get("k"), CodedError);
  assert(long.detail.length <= 1000);
  for (const answer of [
    new Response("<html>proxy</html>", { status: 502, headers: { "content-type": "text/html" } }),
    problem(401, { code: API_KEY }),
    problem(500, { code: 7 }),
    problem(500, { code: "x".repeat(2_000_000) }),
    new Response("[".repeat(100_000), { status: 400, headers: PROBLEM }),
    new Response("null", { status: 400, headers: PROBLEM }),
    new Response("\u0000\ufeff{", { status: 400, headers: PROBLEM }),
  ]) {
    const unexpected = await failing(scripted([answer]).keyturn.get("k"), UnexpectedResponseError);
    assert(!unexpected.message.includes("proxy"));
  }
});

test("reads are repeated while that may help, and no longer than stated", async () => {
  const good = () => object("ok", { "content-length": "2" });
  const busy = () => problem(429, { code: "too_many_requests" }, { "retry-after": "0.01" });
  const away = new TypeError("fetch failed");
  const { keyturn, sent } = scripted([busy(), away, new Response("", { status: 503 }), good()], {
    retries: 3,
  });
  assert.equal(await text(keyturn), "ok");
  assert.equal(sent.length, 4);
  const tired = scripted([away, away], { retries: 1 });
  const error = await failing(tired.keyturn.stat("k"), GatewayUnavailableError);
  assert(error.transient);
  const patient = scripted(
    [problem(429, { code: "too_many_requests" }, { "retry-after": "3600" })],
    {
      retries: 3,
    },
  );
  const late = await failing(patient.keyturn.get("k"), TooManyRequestsError);
  assert.deepEqual([late.retryAfterSeconds, late.transient], [3600, true]);
  const final = scripted([problem(404, { code: "not_found" })], { retries: 3 });
  await failing(final.keyturn.get("k"), NotFoundError);
});

test("writes are sent once, and a lost response is an error of its own", async () => {
  const reset = Object.assign(new TypeError("fetch failed"), { cause: { code: "ECONNRESET" } });
  const refused = Object.assign(new TypeError("fetch failed"), { cause: { code: "ECONNREFUSED" } });
  const writes = [
    (keyturn: Keyturn) => keyturn.put("k", "x"),
    (keyturn: Keyturn) => keyturn.delete("k"),
    (keyturn: Keyturn) => keyturn.deleteMany(["k"]),
    (keyturn: Keyturn) => keyturn.rotate("n".repeat(40)),
  ];
  for (const write of writes) {
    for (const [answer, expected] of [
      [reset, ResponseLostError],
      [refused, GatewayUnavailableError],
      [problem(503, { code: "storage_unavailable" }), CodedError],
      [problem(429, { code: "too_many_requests" }, { "retry-after": "0" }), TooManyRequestsError],
      [new Response("{}", { status: 202 }), UnexpectedResponseError],
      [new Response("[1]", { status: 200 }), UnexpectedResponseError],
    ] as const) {
      const copy = answer instanceof Response ? answer.clone() : answer;
      const { keyturn, sent } = scripted([copy], { retries: 3 });
      await failing(write(keyturn), expected);
      assert.equal(sent.length, 1);
    }
  }
});

test("a response to a delete of many that leaves out or adds a key is none", async () => {
  const refused = { key: "b", code: "locked_object", detail: "a lock" };
  const good = { request_id: ID, deleted: ["a"], rejected: [refused] };
  const { keyturn, sent } = scripted([Response.json(good)]);
  const receipt = await keyturn.deleteMany(["a", "b"], { waitSeconds: 9 });
  assert.deepEqual(receipt, {
    requestId: ID,
    isFinal: true,
    deleted: ["a"],
    rejected: [refused],
  });
  assert.equal(sent[0]?.init.body, '{"keys":["a","b"]}');
  assert.equal(sent[0]?.init.headers["prefer"], "wait=9");
  for (const [document, status] of [
    [{ ...good, rejected: [] }, 200],
    [{ ...good, deleted: ["a", "c"] }, 200],
    [{ ...good, deleted: "a" }, 200],
    [{ ...good, deleted: [["a"]] }, 200],
    [{ ...good, rejected: undefined }, 200],
    [{ ...good, rejected: ["b"] }, 200],
    [{ ...good, rejected: [null] }, 200],
    [{ ...good, rejected: [{ ...refused, code: 1 }] }, 200],
    [{ request_id: ID }, 202],
  ] as const) {
    const one = scripted([Response.json(document, { status })]);
    await failing(one.keyturn.deleteMany(["a", "b"]), UnexpectedResponseError);
  }
  const keys = Array.from({ length: 1000 }, (_, number) => `${number}`.padEnd(900, "k"));
  const long = scripted([Response.json({ request_id: ID, deleted: keys, rejected: [] })]);
  assert.equal((await long.keyturn.deleteMany(keys)).deleted.length, 1000);
  const unsent = scripted([]).keyturn;
  for (const wrong of [[], ["a", "a"], ["../a"], [...keys, "one more"]]) {
    await failing(unsent.deleteMany(wrong), MalformedRequestError);
  }
});

test("a new API key that a response repeats is not in the error", async () => {
  const secret = "n".repeat(40);
  const { keyturn } = scripted([problem(409, { code: "kek_reused", detail: `is ${secret}` })]);
  const error = await failing(keyturn.rotate(secret), CodedError);
  assert.equal(error.detail, "is …");
});

test("a listing that repeats, contradicts itself or is none is refused", async () => {
  const changed_at = "2026-11-24T10:00:00Z";
  const page = (fields: object) =>
    new Response(JSON.stringify({ objects: [], prefixes: [], next: null, ...fields }));
  for (const answers of [
    [page({ next: "b" })],
    [page({ next: "a" })],
    [page({ next: "c" }), page({ next: "c" })],
    [page({ next: "\u{1f600}" }), page({ next: "\uffff" })],
    [page({ next: 7 })],
    [page({ objects: {} })],
    [page({ prefixes: [7] })],
    [page({ objects: [{ key: 7, size: 1, changed_at }] })],
    [page({ objects: [{ key: "c", size: -1, changed_at }] })],
    [page({ objects: [{ key: "c", size: 1.5, changed_at }] })],
    [page({ objects: [{ key: "c", size: 1, changed_at: "soon" }] })],
    [new Response("[]")],
    [new Response("")],
  ]) {
    await failing(all(scripted(answers).keyturn.list({ after: "b" })), UnexpectedResponseError);
  }
  const objects = [{ key: "\u{1f600}", size: null, changed_at }];
  const { keyturn, sent } = scripted([
    page({ next: "\uffff" }),
    page({ next: "\u{1f600}", objects }),
  ]);
  assert.equal((await keyturn.list().next()).value?.type, "object");
  assert.equal(sent.length, 2);
});

test("links and rotations are checked before they are returned", async () => {
  const good = { url: "https://g.test/x?token=secret", expires_at: "2026-11-24T10:00:00Z" };
  for (const fields of [
    { ...good, url: "javascript:alert(1)" },
    { ...good, url: 7 },
    { ...good, expires_at: "never" },
    {},
  ]) {
    const answer = new Response(JSON.stringify(fields), { status: 201 });
    await failing(scripted([answer]).keyturn.link("k"), UnexpectedResponseError);
  }
  const metadata = { "enc-algo": 7 };
  const odd = new Response(JSON.stringify({ ...good, metadata }), { status: 201 });
  await failing(scripted([odd]).keyturn.ciphertextLink("k"), UnexpectedResponseError);
  const other = "3f6c9a0e-0000-4000-8000-000000000000";
  for (const fields of [
    { rotation_id: other, state: "running" },
    { rotation_id: ID, state: "lost" },
    {},
  ]) {
    const answer = new Response(JSON.stringify(fields));
    await failing(scripted([answer]).keyturn.rotation(ID), UnexpectedResponseError);
  }
});

test("a rotation is followed across the change of keys", async () => {
  const state = (name: string, more = {}) =>
    new Response(JSON.stringify({ rotation_id: ID, project: "acme", state: name, ...more }));
  const counts = { objects: 3, clean: true };
  const { keyturn, sent } = scripted([
    state("requested"),
    state("requested"),
    problem(401, { code: "unauthorized" }),
    state("running"),
    state("completed", { generation: 2, counts }),
  ]);
  const newApiKey = "n".repeat(40);
  const states = keyturn.watchRotation(ID, { newApiKey, intervalSeconds: 0 });
  const seen = await all(states);
  assert.deepEqual(
    seen.map((one) => one.state),
    ["requested", "running", "completed"],
  );
  assert.deepEqual(seen.at(-1)?.counts, counts);
  const keys = sent.map(({ init }) => init.headers["authorization"] === `Bearer ${newApiKey}`);
  assert.deepEqual(keys, [false, false, false, true, true]);
  const stranger = scripted([problem(401, { code: "unauthorized" })]);
  await failing(all(stranger.keyturn.watchRotation(ID)), UnauthorizedError);
});

test("an address without TLS is warned of, and one that is no address is refused", (context) => {
  const warn = context.mock.method(console, "warn", () => undefined);
  const options = { project: "acme", apiKey: API_KEY };
  for (const url of [
    "http://localhost:8080",
    "http://127.1.2.3",
    "http://[::1]/",
    "https://a.test",
  ]) {
    new Keyturn({ ...options, url });
  }
  new Keyturn({ ...options, url: "http://a.test", allowUnencrypted: true });
  assert.equal(warn.mock.callCount(), 0);
  for (const url of ["http://a.test", "http://127.0.0.1.a.test", "http://localhost.a.test"]) {
    new Keyturn({ ...options, url });
  }
  assert.equal(warn.mock.callCount(), 3);
  assert(!`${warn.mock.calls.map((call) => call.arguments)}`.includes(API_KEY));
  for (const url of [
    "",
    "a.test",
    "ftp://a.test",
    "https://u@a.test",
    "https://a.test/?q",
    "https://a.test#f",
  ]) {
    assert.throws(() => new Keyturn({ ...options, url }), CodedError);
  }
});

test("a client does not print its API key", async () => {
  const { inspect } = await import("node:util");
  const { keyturn } = scripted([]);
  assert(
    !`${inspect(keyturn, { depth: 9, showHidden: true })}${JSON.stringify(keyturn)}`.includes(
      API_KEY,
    ),
  );
});

test("what should be text and is not is refused", async () => {
  const odd = { toString: 1, valueOf: 1 };
  for (const id of [[ID], odd]) {
    const answer = () => new Response(JSON.stringify({ upload_id: id }), { status: 201 });
    await failing(scripted([answer()]).keyturn.put("k", ""), UnexpectedResponseError);
  }
  for (const state of [["completed"], odd]) {
    const answer = new Response(JSON.stringify({ rotation_id: ID, state }));
    await failing(scripted([answer]).keyturn.rotation(ID), UnexpectedResponseError);
  }
});
