/** Objects are opened right or refused, whatever the storage sends; and the shared known answers. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CodedError,
  IncompleteBodyError,
  KeyturnError,
  MalformedRequestError,
  NotFoundError,
  UnexpectedResponseError,
} from "../../../src/errors.ts";
import {
  LinkExpiredError,
  type OpenOptions,
  open,
  openBytes,
  openStream,
} from "../../../src/open/index.ts";
import { runVectors } from "../../cases/open_vectors.ts";
import {
  CHUNK,
  concatenated,
  drained,
  HEADER,
  KEY,
  keysOf,
  type Made,
  made,
  metadataOf,
  random,
  SEALED,
  SECRET,
  type StorageOptions,
  seal,
  storageOf,
} from "../../cases/sealed_objects.ts";

const OBJECT = await made(5 * CHUNK + 100);
const SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 50_000];

function opening(object: Made, more: Partial<OpenOptions> & { storage?: StorageOptions } = {}) {
  const { storage, ...options } = more;
  return open({ ...keysOf(object), fetch: storageOf(object.body, storage), ...options });
}

function withBody(body: Uint8Array<ArrayBuffer>): Made {
  return { ...OBJECT, body };
}

function hasCode(code: string): (error: unknown) => boolean {
  return (error) => error instanceof CodedError && error.code === code;
}

for (const size of SIZES) {
  test(`an object of ${size} bytes, whole and in part`, async () => {
    const object = await made(size);
    const asked: unknown[] = [];
    const onRequest = (range: string | undefined) => void asked.push(range);
    for (const pieceBytes of [1000, 65_536]) {
      const opened = await opening(object, { storage: { pieceBytes, onRequest } });
      assert.deepEqual([opened.size, opened.length], [size, size]);
      assert.deepEqual(await opened.bytes(), object.plaintext);
    }
    assert.deepEqual(asked, [undefined, undefined]);
    assert.deepEqual(await openBytes(object.body, keysOf(object)), object.plaintext);
    for (const range of [
      { start: 0, end: 1 },
      { start: 0, end: CHUNK },
      { start: 1 },
      { start: CHUNK - 1, end: CHUNK + 1 },
      { start: CHUNK },
      { suffix: 1 },
      { suffix: CHUNK },
    ]) {
      const part =
        "suffix" in range
          ? object.plaintext.slice(-range.suffix)
          : object.plaintext.slice(range.start, range.end);
      if ("start" in range && range.start >= size) {
        await assert.rejects(opening(object, { range }), hasCode("range_not_satisfiable"));
        continue;
      }
      const opened = await opening(object, { range });
      assert.deepEqual([opened.size, opened.length], [size, part.length]);
      assert.deepEqual(await opened.bytes(), part);
    }
  });
}

test("a range asks for the header, its own chunks and the last chunk alone", async () => {
  const asked: (string | undefined)[] = [];
  const range = { start: 2 * CHUNK + 5, end: 3 * CHUNK + 5 };
  const storage = { onRequest: (stated: string | undefined) => void asked.push(stated) };
  await (await opening(OBJECT, { range, storage })).bytes();
  const [first, last] = [HEADER + 2 * SEALED, HEADER + 5 * SEALED];
  assert.deepEqual(asked.sort(), [
    `bytes=0-${HEADER + SEALED - 1}`,
    `bytes=${first}-${first + 2 * SEALED - 1}`,
    `bytes=${last}-${OBJECT.body.length - 1}`,
  ]);
});

const chunks = Array.from({ length: 6 }, (_, index) =>
  OBJECT.body.slice(HEADER + index * SEALED, HEADER + (index + 1) * SEALED),
);
const CHANGES: Record<string, () => Uint8Array<ArrayBuffer>> = {
  "chunks swapped": () => bodyOf(1, 0, 2, 3, 4, 5),
  "a chunk left out": () => bodyOf(0, 1, 3, 4, 5),
  "a chunk twice": () => bodyOf(0, 1, 1, 2, 3, 4, 5),
  "the last chunk left out": () => bodyOf(0, 1, 2, 3, 4),
  "cut at a chunk, with a tag": () => concatenated(bodyOf(0, 1, 2), new Uint8Array(16)),
  "the header alone": () => bodyOf(),
  "cut in the header": () => OBJECT.body.slice(0, 30),
  nothing: () => new Uint8Array(0),
  "a byte behind": () => concatenated(OBJECT.body, Uint8Array.of(0)),
  "a chunk of zeros": () => concatenated(bodyOf(0, 1), new Uint8Array(SEALED), bodyOf(3, 4, 5)),
};

function bodyOf(...order: readonly number[]): Uint8Array<ArrayBuffer> {
  return concatenated(
    OBJECT.body.slice(0, HEADER),
    ...order.map((index) => chunks[index] ?? new Uint8Array(0)),
  );
}

test("another body gives a beginning at most, and no clean end", async () => {
  for (const [how, body] of Object.entries(CHANGES)) {
    const object = withBody(body());
    const opened = await opening(object).catch((error) => error);
    if (opened instanceof Error) {
      assert.ok(hasCode("corrupt_object")(opened), how);
      continue;
    }
    const { bytes, error } = await drained(opened.body);
    assert.ok(hasCode("corrupt_object")(error), how);
    assert.ok(bytes.length < opened.length, `${how}: the length is reached before its proof`);
    assert.deepEqual(bytes, OBJECT.plaintext.slice(0, bytes.length), how);
    await assert.rejects(openBytes(object.body, keysOf(object)), hasCode("corrupt_object"));
  }
});

test("no range of another body is wrong", async () => {
  for (const [how, body] of Object.entries(CHANGES)) {
    for (const range of [{ start: 0, end: 1 }, { start: CHUNK + 1 }, { suffix: 20 }]) {
      const found = await opening(withBody(body()), { range })
        .then((opened) => opened.bytes())
        .catch((error) => error);
      if (found instanceof Error) {
        assert.ok(hasCode("corrupt_object")(found), how);
      } else {
        const part = "suffix" in range ? OBJECT.plaintext.slice(-20) : undefined;
        assert.deepEqual(found, part, how);
      }
    }
  }
});

test("what does not open under the key has its code", async () => {
  const { metadata } = OBJECT;
  const other = await made(1);
  const cases: [string, Partial<OpenOptions>][] = [
    ["no_usable_wrap", { apiKey: "k".repeat(43) }],
    ["no_usable_wrap", { pepper: "" }],
    ["no_usable_wrap", { project: "other" }],
    ["no_usable_wrap", { key: "other.pdf" }],
    ["no_usable_wrap", { metadata: { ...metadata, "enc-kek-user": `2:${"0".repeat(16)}` } }],
    ["no_usable_wrap", { metadata: { ...metadata, "enc-dek-user": "AAAA" } }],
    ["no_usable_wrap", { metadata: await metadataOf(random(16)) }],
    ["corrupt_object", { metadata: {} }],
    ["corrupt_object", { metadata: other.metadata }],
    ["corrupt_object", { metadata: { "enc-algo": "Cobblestone-256" } }],
    ["corrupt_object", { metadata: { ...metadata, "enc-dek-user": "?" } }],
    ["corrupt_object", { metadata: { ...metadata, "enc-dek-user": "____" } }],
    ["corrupt_object", { metadata: { ...metadata, "enc-kek-user": "0:" } }],
    ["unknown_algorithm", { metadata: { ...metadata, "enc-algo": "ROT13" } }],
    ["not_found", { metadata: { ...metadata, "enc-algo": "deleted" } }],
    ["malformed_request", { url: "ftp://storage.example.com/" }],
    ["malformed_request", { project: "No project" }],
    ["malformed_request", { key: "/k" }],
    ["malformed_request", { apiKey: "short" }],
    ["malformed_request", { pepper: "\ud800" }],
    ["malformed_request", { range: { start: 1, end: 1 } }],
  ];
  for (const [code, options] of cases) {
    await assert.rejects(opening(OBJECT, options), hasCode(code), JSON.stringify(options));
  }
});

test("a wrap is read in one spelling only", async () => {
  const { metadata } = OBJECT;
  const wrap = metadata["enc-dek-user"] ?? "";
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const last = letters[letters.indexOf(wrap.at(-2) ?? "") ^ 1];
  const spellings = [`${wrap.slice(0, -2)}${last}=`, wrap.slice(0, -1), `${wrap}\n`, ` ${wrap}`];
  assert.deepEqual(atob(spellings[0] ?? ""), atob(wrap)); // the decoder itself reads stray bits
  for (const spelling of spellings) {
    const opened = opening(OBJECT, { metadata: { ...metadata, "enc-dek-user": spelling } });
    await assert.rejects(opened, hasCode("corrupt_object"), spelling);
  }
});

test("a read goes on where the connection broke", async () => {
  for (const range of [undefined, { start: 20_000 }]) {
    for (const breaksAfter of [10_000, 60_000]) {
      let requests = 0;
      const storage = { breaksAfter, onRequest: () => void requests++ };
      const opened = await opening(OBJECT, { range, storage });
      assert.deepEqual(await opened.bytes(), OBJECT.plaintext.slice(range?.start ?? 0));
      assert.ok(requests > 1);
    }
  }
});

test("another body in the object's place does not continue it", async () => {
  const other = storageOf((await made(OBJECT.plaintext.length)).body);
  const one = storageOf(OBJECT.body, { breaksAfter: 40_000 });
  let count = 0;
  const fetch: typeof globalThis.fetch = (input, init) => (count++ ? other : one)(input, init);
  const { bytes, error } = await drained((await opening(OBJECT, { fetch })).body);
  assert.ok(hasCode("corrupt_object")(error));
  assert.deepEqual(bytes, OBJECT.plaintext.slice(0, bytes.length));
});

test("another length after a break is noticed", async () => {
  const other = storageOf((await made(OBJECT.plaintext.length + 1)).body);
  const one = storageOf(OBJECT.body, { breaksAfter: 40_000 });
  let count = 0;
  const fetch: typeof globalThis.fetch = (input, init) => (count++ ? other : one)(input, init);
  const { error } = await drained((await opening(OBJECT, { fetch })).body);
  assert.match(`${error}`, /the object was replaced by another body/);
  const shorter = storageOf(new Uint8Array(0));
  count = 0;
  const gone: typeof globalThis.fetch = (input, init) => (count++ ? shorter : one)(input, init);
  const found = await drained((await opening(OBJECT, { fetch: gone })).body);
  assert.ok(found.error instanceof NotFoundError);
});

test("a storage that fails has its error, and no error shows the URL", async () => {
  const archived = "<Error><Code>InvalidObjectState</Code></Error>";
  const cases: [number, string, (error: unknown) => boolean][] = [
    [403, "<Error><Code>AccessDenied</Code></Error>", (e) => e instanceof LinkExpiredError],
    [403, archived, hasCode("archived_object")],
    [404, "", (e) => e instanceof NotFoundError],
    [500, SECRET, hasCode("storage_unavailable")],
    [302, "", (e) => e instanceof KeyturnError && e.status === 302],
    [400, SECRET, (e) => e instanceof KeyturnError && e.status === 400],
  ];
  for (const [status, body, isRight] of cases) {
    for (const range of [undefined, { start: 5 }]) {
      const storage = { onRequest: () => new Response(body, { status }) };
      await assert.rejects(opening(OBJECT, { range, storage, resumes: 0 }), (error: Error) => {
        assert.ok(!`${error} ${error.stack} ${JSON.stringify(error)}`.includes(SECRET));
        return isRight(error);
      });
    }
  }
});

test("a tombstone is not found", async () => {
  const storage = { headers: { "x-amz-meta-enc-algo": "deleted" } };
  for (const range of [undefined, { start: 5 }]) {
    const gone = opening(withBody(new Uint8Array(0)), { range, storage });
    await assert.rejects(gone, NotFoundError);
  }
});

test("connections that break without progress are given up", async () => {
  let count = 0;
  const onRequest = () => void count++;
  const opened = opening(OBJECT, { resumes: 1, storage: { breaksAfter: 0, onRequest } });
  await assert.rejects(opened, IncompleteBodyError);
  assert.equal(count, 2);
  const fetch = () => Promise.reject(new TypeError(SECRET));
  await assert.rejects(opening(OBJECT, { fetch, resumes: 0 }), (error: Error) => {
    return hasCode("storage_unavailable")(error) && !`${error.stack}`.includes(SECRET);
  });
});

test("an aborted read ends with the caller's reason", async () => {
  const controller = new AbortController();
  const opened = await opening(OBJECT, { signal: controller.signal });
  const reader = opened.body.getReader();
  await reader.read();
  controller.abort(new Error("enough"));
  await assert.rejects(async () => {
    while (!(await reader.read()).done);
  }, /enough/);
  await assert.rejects(opening(OBJECT, { signal: controller.signal }), /enough/);
});

/** A stored body without an end: the chunks of a real object, again and again. */
function endless(object: Made, counted: { bytes: number; cancelled: boolean }): typeof fetch {
  return async () => {
    const body = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          const piece = counted.bytes ? random(65_536) : object.body.slice(0, HEADER + SEALED);
          counted.bytes += piece.length;
          controller.enqueue(piece);
        },
        cancel() {
          counted.cancelled = true;
        },
      },
      { highWaterMark: 0 },
    );
    return new Response(body, { headers: { "content-length": `${HEADER + 1e6 * SEALED + 100}` } });
  };
}

test("no more is read ahead of a slow reader than a bounded number of chunks", async () => {
  const counted = { bytes: 0, cancelled: false };
  const opened = await opening(OBJECT, { fetch: endless(OBJECT, counted) });
  assert.equal(counted.bytes, HEADER + SEALED, "nothing is read before it is asked for");
  const reader = opened.body.getReader();
  assert.deepEqual((await reader.read()).value, OBJECT.plaintext.slice(0, CHUNK));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(counted.bytes < 1 << 19, `${counted.bytes} bytes`);
  await assert.rejects(reader.read(), hasCode("corrupt_object"));
});

test("a reader that leaves closes the connection", async () => {
  const counted = { bytes: 0, cancelled: false };
  let signal: AbortSignal | null | undefined;
  const fetch: typeof globalThis.fetch = (input, init) => {
    signal = init?.signal;
    return endless(OBJECT, counted)(input, init);
  };
  const opened = await opening(OBJECT, { fetch });
  await opened.body.cancel();
  assert.ok(signal?.aborted);
});

test("an object says what the gateway says of it", async () => {
  const headers = {
    "content-type": "text/csv",
    "last-modified": "Tue, 24 Nov 2026 10:00:00 GMT",
    "x-amz-meta-author": "=?utf-8?b?w6nDqQ==?=",
    "x-amz-meta-enc-algo": "Cobblestone-256",
  };
  const stored = { ...OBJECT.metadata, "enc-stored-at": "2026-01-02T03:04:05.000000Z" };
  for (const [metadata, time] of [
    [OBJECT.metadata, "2026-11-24T10:00:00.000Z"],
    [stored, "2026-01-02T03:04:05.000Z"],
    [{ ...stored, "enc-stored-at": "2027-01-02T03:04:05Z" }, "2026-11-24T10:00:00.000Z"],
    [{ ...stored, "enc-stored-at": "yesterday" }, "2026-11-24T10:00:00.000Z"],
  ] as const) {
    const opened = await opening(OBJECT, { metadata, storage: { headers } });
    assert.equal(opened.contentType, "text/csv");
    assert.equal(opened.lastModified?.toISOString(), time);
    assert.equal(opened.metadata["author"], "éé");
    assert.equal(opened.etag, `"${Buffer.from(OBJECT.body.slice(24, 56)).toString("hex")}"`);
    await opened.body.cancel();
  }
});

test("stored bytes that are at hand are opened as they are", async () => {
  const stream = new Blob([OBJECT.body]).stream();
  const { bytes, error } = await drained(await openStream(stream, keysOf(OBJECT)));
  assert.deepEqual([bytes, error], [OBJECT.plaintext, undefined]);
  const cut = new Blob([OBJECT.body.slice(0, -1)]).stream();
  const found = await drained(await openStream(cut, keysOf(OBJECT)));
  assert.ok(hasCode("corrupt_object")(found.error));
  assert.deepEqual(found.bytes, OBJECT.plaintext.slice(0, 5 * CHUNK));
  await assert.rejects(
    openStream(new Blob([]).stream(), keysOf(OBJECT)),
    hasCode("corrupt_object"),
  );
});

test("without WebCrypto the error says what a page needs", async () => {
  const { crypto } = globalThis;
  Object.defineProperty(globalThis, "crypto", { value: {}, configurable: true });
  try {
    await assert.rejects(openBytes(OBJECT.body, keysOf(OBJECT)), /https, or localhost/);
  } finally {
    Object.defineProperty(globalThis, "crypto", { value: crypto, configurable: true });
  }
});

test("an error of a refused name does not repeat a secret", async () => {
  await assert.rejects(opening(OBJECT, { apiKey: `${"secret".repeat(8)}!` }), (error: Error) => {
    return error instanceof MalformedRequestError && !`${error.stack}`.includes("secret");
  });
  assert.ok(KEY.length > 0);
});

const [SECOND, LAST] = [HEADER + 2 * SEALED, HEADER + 5 * SEALED];

test("more than a response states is not returned, authentic as it may be", async () => {
  const long: typeof fetch = async (input, init) => {
    const response = await storageOf(OBJECT.body)(input, init);
    const { headers, status } = response;
    const asked = new Headers(init?.headers).get("range");
    return asked?.startsWith(`bytes=${SECOND}-`)
      ? new Response(OBJECT.body.slice(SECOND, LAST), { status, headers })
      : response;
  };
  const range = { start: 2 * CHUNK, end: 3 * CHUNK };
  const part = await open({ ...keysOf(OBJECT), fetch: long, range, resumes: 0 });
  await assert.rejects(part.bytes(), UnexpectedResponseError);

  const headers = { "content-length": `${HEADER + 2 * SEALED + 50}` };
  const short = async (): Promise<Response> => new Response(OBJECT.body, { headers });
  await assert.rejects(async () => {
    await (await open({ ...keysOf(OBJECT), fetch: short, resumes: 0 })).body.pipeTo(
      new WritableStream(),
    );
  }, UnexpectedResponseError);
});

test("a response that comes after another one failed is ended", async () => {
  let signal: AbortSignal | null | undefined;
  const late: typeof fetch = async (input, init) => {
    const asked = new Headers(init?.headers).get("range");
    if (asked?.startsWith(`bytes=${LAST}-`)) {
      return new Response("", { status: 403 });
    }
    if (asked?.startsWith(`bytes=${SECOND}-`)) {
      await sleep(10);
      signal = init?.signal;
    }
    return storageOf(OBJECT.body)(input, init);
  };
  const range = { start: 2 * CHUNK, end: 3 * CHUNK };
  await assert.rejects(open({ ...keysOf(OBJECT), fetch: late, range }), LinkExpiredError);
  await sleep(50);
  assert.equal(signal?.aborted, true);
});

test("a wrap of any length is refused, not decoded", async () => {
  const keys = keysOf(OBJECT);
  const metadata = { ...keys.metadata, "enc-dek-user": "AAAA".repeat(5_000_000) };
  await assert.rejects(open({ ...keys, metadata }), CodedError);
});

// The first customer secret of the vectors of another implementation, and its id.
const CUSTOMER = {
  secret: Uint8Array.from(Buffer.from("zSMdz8s1g53jPsZcd7zy2DXtEd84btK+5pXohiRm0d0=", "base64")),
  id: "366923941b9116e5",
};

test("a project with a customer key opens with the secret, whatever the label says", async () => {
  const [plaintext, dek, other] = [random(100), random(32), random(32)];
  const body = await seal(dek, new TextEncoder().encode("keyturn/v1/body"), plaintext);
  const metadata = await metadataOf(dek, CUSTOMER);
  const keys = keysOf({ plaintext, body, metadata });
  const label = `1:${"0".repeat(16)}`;
  for (const [text, customerSecrets] of [
    [`${label}:${CUSTOMER.id}`, [CUSTOMER.secret]],
    [`${label}:${CUSTOMER.id}`, [other, CUSTOMER.secret]],
    [`${label}:${"f".repeat(16)}`, [other, CUSTOMER.secret]],
    [label, [CUSTOMER.secret, other]],
  ] as const) {
    const labeled = { ...metadata, "enc-kek-user": text };
    const opened = await openBytes(body, { ...keys, metadata: labeled, customerSecrets });
    assert.deepEqual(opened, plaintext);
  }
  for (const customerSecrets of [undefined, [], [other]]) {
    await assert.rejects(openBytes(body, { ...keys, customerSecrets }), (error: Error) => {
      return hasCode("no_usable_wrap")(error) && error.message.includes(CUSTOMER.id);
    });
  }
  const short = { ...keys, customerSecrets: [random(31)] };
  await assert.rejects(openBytes(body, short), MalformedRequestError);
  const plain = { ...keysOf(OBJECT), customerSecrets: [other] };
  assert.deepEqual(await openBytes(OBJECT.body, plain), OBJECT.plaintext);
});

const FOLDER = new URL("../../../../../../shared/vectors/", import.meta.url);
const NAMES = [
  "wycheproof_c2sp_chunked_encryption_aes_256_gcm_test.json",
  "keyturn_v1.json",
] as const;
const isMissing = !NAMES.every((name) => existsSync(new URL(name, FOLDER)));

test("the shared known answers", { skip: isMissing && "no shared vectors" }, async () => {
  const [cobblestone, keyturn] = NAMES.map((name) =>
    JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")),
  );
  assert.deepEqual(await runVectors({ cobblestone, keyturn }), { cases: 35 + 27, failures: [] });
});
