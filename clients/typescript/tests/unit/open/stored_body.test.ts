/** Storages whose responses are longer than they state, or come late. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { CodedError, UnexpectedResponseError } from "../../../src/errors.ts";
import { LinkExpiredError, open } from "../../../src/open/index.ts";
import { CHUNK, HEADER, keysOf, made, SEALED, storageOf } from "../../cases/sealed_objects.ts";

const OBJECT = await made(5 * CHUNK + 100);
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
