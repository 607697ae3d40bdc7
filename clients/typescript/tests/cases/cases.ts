/**
 * What holds in every runtime, against a real gateway with a worker, a broker and a storage.
 *
 * Nothing here belongs to one runtime: the same bundle runs in Node.js, Deno, Bun and a browser.
 */
import {
  AlreadyExistsError,
  CodedError,
  GatewayError,
  GatewayUnavailableError,
  IncompleteBodyError,
  Keyturn,
  KeyturnError,
  MalformedRequestError,
  NotFoundError,
  type Progress,
  putTo,
  ResponseLostError,
  type RotationState,
  UnauthorizedError,
} from "keyturn";
import {
  assert,
  type Case,
  equal,
  equalBytes,
  failure,
  numbered,
  type Result,
  type Scene,
  streamOf,
} from "./scene.ts";

function client(
  scene: Scene,
  more: Partial<ConstructorParameters<typeof Keyturn>[0]> = {},
): Keyturn {
  return new Keyturn({ ...scene, ...more });
}

const bytesRoundTrip: Case = async (scene) => {
  const keyturn = client(scene);
  const key = `${scene.prefix}bytes/ü & 日本 %41?#.bin`;
  const body = numbered(70_001);
  const metadata = { author: "kim", odd: "=?not encoded", title: "Überschrift 日本" };
  const options = { contentType: "image/png", metadata, waitSeconds: 30 };
  const receipt = await keyturn.put(key, body, options);
  assert(receipt.stored && receipt.uploadId.length === 36, "stored");

  const info = await keyturn.stat(key);
  equal(
    [info.size, info.contentType, { ...info.metadata }],
    [70_001, "image/png", metadata],
    "stat",
  );
  const opened = await keyturn.get(key);
  equal([opened.size, opened.length, opened.etag], [70_001, 70_001, info.etag], "get");
  equalBytes(await opened.bytes(), body, "body");
  const now = Date.now();
  assert(Math.abs(now - Number(opened.lastModified)) < 600_000, "last modified");
};

const textAndBlob: Case = async (scene) => {
  const keyturn = client(scene);
  const key = `${scene.prefix}text`;
  await keyturn.put(key, "grüße 😀", { contentType: "text/plain" });
  equal(await (await keyturn.get(key)).text(), "grüße 😀", "text");
  const blob = await (await keyturn.get(key)).blob();
  // Bun adds the charset.
  equal([blob.type.split(";")[0], await blob.text()], ["text/plain", "grüße 😀"], "blob");
  await keyturn.put(`${scene.prefix}empty`, new Blob([]));
  equal((await (await keyturn.get(`${scene.prefix}empty`)).bytes()).length, 0, "empty");
};

const uploadsReportProgress: Case = async (scene) => {
  const keyturn = client(scene);
  const body = numbered(3_000_000);
  const forms: [string, Blob | ReadableStream<Uint8Array> | ArrayBuffer][] = [
    ["blob", new Blob([body as BlobPart])],
    ["stream", streamOf(body)],
    ["buffer", body.buffer as ArrayBuffer],
  ];
  for (const [name, form] of forms) {
    const seen: Progress[] = [];
    await keyturn.put(`${scene.prefix}progress/${name}`, form, {
      size: body.length,
      waitSeconds: 30,
      onProgress: (progress) => seen.push(progress),
    });
    const loaded = seen.map((progress) => progress.loaded);
    equal(
      loaded,
      [...loaded].sort((a, b) => a - b),
      `${name} grows`,
    );
    equal([loaded.at(-1), seen[0]?.total], [body.length, body.length], `${name} ends`);
    const opened = await keyturn.get(`${scene.prefix}progress/${name}`);
    equalBytes(await opened.bytes(), body, name);
  }
};

const aStreamOfAnotherSizeIsNotStored: Case = async (scene) => {
  const keyturn = client(scene);
  const key = `${scene.prefix}mismatch`;
  for (const size of [99_999, 100_001, 2_000_000]) {
    const put = () => keyturn.put(key, streamOf(numbered(100_000)), { size, waitSeconds: 5 });
    await failure(scene, MalformedRequestError, put);
    await failure(scene, NotFoundError, () => keyturn.stat(key));
  }
  const boom = new RangeError("the source broke");
  const broken = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.error(boom);
    },
  });
  const error = await failure(scene, RangeError, () => keyturn.put(key, broken, { size: 10 }));
  assert(error === boom, "the source's own error");
  await failure(scene, NotFoundError, () => keyturn.stat(key));
};

const ranges: Case = async (scene) => {
  const keyturn = client(scene);
  const whole = await (await keyturn.get(scene.bigKey)).bytes();
  const size = whole.length;
  for (const [range, start, end] of [
    [{ start: 0, end: 1 }, 0, 1],
    [{ start: 16_383, end: 32_769 }, 16_383, 32_769],
    [{ start: size - 10 }, size - 10, size],
    [{ start: 500_000, end: size + 1000 }, 500_000, size],
    [{ suffix: 100 }, size - 100, size],
  ] as const) {
    const part = await keyturn.get(scene.bigKey, { range });
    equal([part.size, part.length], [size, end - start], "lengths");
    equalBytes(await part.bytes(), whole.subarray(start, end), JSON.stringify(range));
  }
  const error = await failure(scene, CodedError, () =>
    keyturn.get(scene.bigKey, { range: { start: size } }),
  );
  equal([error.code, error.status], ["range_not_satisfiable", 416], "beyond the end");
};

const aBrokenDownloadGoesOn: Case = async (scene) => {
  const whole = await (await client(scene).get(scene.bigKey)).bytes();
  const broken = client(scene, { url: scene.brokenUrl });
  equalBytes(await (await broken.get(scene.bigKey)).bytes(), whole, "whole");
  const range = { start: 1000, end: whole.length - 1000 };
  const part = await (await broken.get(scene.bigKey, { range })).bytes();
  equalBytes(part, whole.subarray(range.start, range.end), "part");
};

const aCutDownloadIsAnError: Case = async (scene) => {
  const broken = client(scene, { url: scene.brokenUrl });
  const opened = await broken.get(scene.bigKey, { resumes: 0 });
  const error = await failure(scene, IncompleteBodyError, () => opened.bytes());
  equal([error.expected, error.transient], [opened.length, true], "error");
  assert(error.received < error.expected, "received");
};

const aChangedChunkIsAnError: Case = async (scene) => {
  const keyturn = client(scene);
  const cut = await keyturn.get(scene.corruptKey, { resumes: 0 });
  await failure(scene, IncompleteBodyError, () => cut.bytes());
  const resumed = await keyturn.get(scene.corruptKey);
  const error = await failure(scene, CodedError, () => resumed.bytes());
  equal([error.code, error.transient], ["corrupt_object", false], "what resuming finds");
};

const lists: Case = async (scene) => {
  const keyturn = client(scene);
  const prefix = `${scene.prefix}list/`;
  for (const name of ["a", "b/1", "b/2", "b.txt", "日本", "😀"]) {
    await keyturn.put(prefix + name, name);
  }
  for (const pageSize of [1, 2, 1000]) {
    const all: string[] = [];
    for await (const entry of keyturn.list({ prefix, pageSize })) {
      assert(entry.type === "object" && entry.changedAt instanceof Date, "an object");
      equal(entry.size, new TextEncoder().encode(entry.key.slice(prefix.length)).length, "size");
      all.push(entry.key.slice(prefix.length));
    }
    equal(all, ["a", "b.txt", "b/1", "b/2", "日本", "😀"], "all");
    const level: string[] = [];
    for await (const entry of keyturn.list({ prefix, delimiter: "/", pageSize })) {
      level.push((entry.type === "object" ? entry.key : entry.prefix).slice(prefix.length));
    }
    equal(level, ["a", "b.txt", "b/", "日本", "😀"], "one level");
  }
  for await (const entry of keyturn.list({ prefix, after: `${prefix}b.txt` })) {
    equal(entry.type === "object" && entry.key, `${prefix}b/1`, "after");
    break;
  }
};

const deletes: Case = async (scene) => {
  const keyturn = client(scene);
  const key = `${scene.prefix}deleted`;
  await keyturn.put(key, "x");
  equal((await keyturn.delete(key, { waitSeconds: 30 })).deleted, true, "deleted");
  await failure(scene, NotFoundError, () => keyturn.stat(key));
  await failure(scene, NotFoundError, () => keyturn.get(key));
  const never = `${scene.prefix}never`;
  await failure(scene, NotFoundError, () => keyturn.delete(never, { waitSeconds: 30 }));
  const again = await failure(scene, CodedError, () => keyturn.put(key, "y"));
  equal([again.code, again.status], ["deleted_key", 409], "the key is used up");
};

const deletesMany: Case = async (scene) => {
  const keyturn = client(scene);
  const [a, b, never] = ["a", "b", "never"].map((name) => `${scene.prefix}many/${name}`);
  await Promise.all([a, b].map((key) => keyturn.put(key as string, "x")));
  const keys = [a, never, b] as string[];
  const receipt = await keyturn.deleteMany(keys, { waitSeconds: 30 });
  equal([receipt.isFinal, [...receipt.deleted].sort()], [true, [a, b]], "deleted");
  equal(
    receipt.rejected.map(({ key, code }) => [key, code]),
    [[never, "not_found"]],
    "rejected",
  );
  await failure(scene, NotFoundError, () => keyturn.stat(a as string));
};

const links: Case = async (scene) => {
  const keyturn = client(scene);
  const key = `${scene.prefix}linked/ä b.txt`;
  await keyturn.put(key, "linked", { contentType: "text/plain" });
  const link = await keyturn.link(key, { expiresSeconds: 60, inline: true });
  const response = await fetch(link.url);
  equal([response.status, await response.text()], [200, "linked"], "by link");
  assert(response.headers.get("content-disposition")?.startsWith("inline"), "inline");
  const seconds = (Number(link.expiresAt) - Date.now()) / 1000;
  assert(seconds > 0 && seconds < 70, `expires in ${seconds} s`);
  const other = await fetch(link.url.replace("linked", "other"));
  equal(other.status, 401, "another key");
  await other.text();
  const sealed = await keyturn.ciphertextLink(key);
  equal(sealed.metadata["enc-algo"], "Cobblestone-256", "ciphertext");
  await failure(scene, NotFoundError, () => keyturn.ciphertextLink(`${scene.prefix}never`));
  await failure(scene, MalformedRequestError, () => keyturn.link(key, { expiresSeconds: 0 }));
};

const uploadLinks: Case = async (scene) => {
  const key = `${scene.prefix}by link/ä b.txt`;
  const link = await client(scene).uploadLink(key, {
    maxBytes: 100_000,
    contentType: "text/plain",
    expiresSeconds: 60,
  });
  const changed = link.url.replace("max_bytes=100000", "max_bytes=1000000");
  await failure(scene, UnauthorizedError, () => putTo(changed, "x"));
  const html = { contentType: "text/html" };
  const typed = await failure(scene, CodedError, () => putTo(link, "x", html));
  equal([typed.code, typed.status], ["unsupported_media_type", 415], "another type");
  const large = await failure(scene, CodedError, () => putTo(link, new Uint8Array(100_001)));
  equal([large.code, large.status], ["body_too_large", 413], "too many bytes");
  const seen: number[] = [];
  const body = new Blob([new Uint8Array(100_000).fill(7)]);
  const receipt = await putTo(link, body, { onProgress: ({ loaded }) => void seen.push(loaded) });
  equal([receipt.stored, seen.at(-1)], [true, 100_000], "stored");
  const opened = await client(scene).get(key);
  equal([opened.size, opened.contentType], [100_000, "text/plain"], "as the link says");
  equalBytes(await opened.bytes(), new Uint8Array(100_000).fill(7), "the body");
  await failure(scene, AlreadyExistsError, () => putTo(link.url, "again"));
  const read = await fetch(link.url);
  equal(read.status, 401, "it reads nothing");
  await read.text();
};

const refusals: Case = async (scene) => {
  const wrong = client(scene, { apiKey: "w".repeat(40) });
  for (const action of [
    () => wrong.get(scene.bigKey),
    () => wrong.stat(scene.bigKey),
    () => wrong.list().next(),
    () => wrong.link(scene.bigKey),
    () => wrong.delete(scene.bigKey),
    () => wrong.put(`${scene.prefix}refused`, "x"),
    () => wrong.rotate(scene.newApiKey),
    () => wrong.rotation("2f6c9a0e-0000-4000-8000-000000000000"),
  ]) {
    const error = await failure(scene, UnauthorizedError, action);
    equal([error.code, error.status, error.transient], ["unauthorized", 401, false], "error");
  }
  const keyturn = client(scene);
  await failure(scene, NotFoundError, () => keyturn.get(`${scene.prefix}never`));
  await failure(scene, NotFoundError, () => keyturn.stat(`${scene.prefix}never`));
  const put = () => keyturn.put(scene.bigKey, "x");
  equal((await failure(scene, AlreadyExistsError, put)).status, 409, "written once");
};

const aRefusalReachesALargeUpload: Case = async (scene) => {
  const wrong = client(scene, { apiKey: "w".repeat(40) });
  const body = numbered(8_000_000);
  for (const form of [streamOf(body), new Blob([body as BlobPart])]) {
    const put = () => wrong.put(`${scene.prefix}refused`, form, { size: body.length });
    const error = await failure(scene, KeyturnError, put);
    // The gateway closes the connection on what is still being sent: that can discard its response.
    const isLost = error instanceof ResponseLostError;
    assert(isLost || error instanceof UnauthorizedError, error.name);
  }
};

const plaintextIsReadFromTheStorage: Case = async (scene) => {
  const keyturn = client(scene, { project: scene.plaintextProject });
  const opened = await keyturn.get(scene.plaintextKey);
  equal(opened.metadata["author"], "kim", "metadata");
  equal(await opened.text(), scene.plaintext, "whole");
  const part = await keyturn.get(scene.plaintextKey, { range: { start: 2, end: 5 } });
  equal(
    [part.size, await part.text()],
    [scene.plaintext.length, scene.plaintext.slice(2, 5)],
    "part",
  );
  equal((await keyturn.stat(scene.plaintextKey)).size, scene.plaintext.length, "stat");
};

const rotationsAreFollowedToTheirProof: Case = async (scene) => {
  const keyturn = client(scene, { project: scene.rotatedProject });
  const key = `${scene.prefix}rotated`;
  await keyturn.put(key, "kept");
  const before = await keyturn.stat(key);
  const link = await keyturn.link(key);
  const id = await keyturn.rotate(scene.newApiKey);
  const states: RotationState[] = [];
  const options = { newApiKey: scene.newApiKey, intervalSeconds: 0.2 };
  for await (const state of keyturn.watchRotation(id, options)) {
    states.push(state);
  }
  const last = states.at(-1);
  equal([last?.rotationId, last?.state, last?.counts?.clean], [id, "completed", true], "proof");
  const rotated = keyturn.withApiKey(scene.newApiKey);
  equal(await (await rotated.get(key)).text(), "kept", "body");
  const { etag, lastModified } = await rotated.stat(key);
  equal([etag, lastModified], [before.etag, before.lastModified], "looks unchanged");
  await failure(scene, UnauthorizedError, () => keyturn.stat(key));
  const ended = await fetch(link.url);
  equal(ended.status, 401, "the link has ended");
  await ended.text();
};

const everythingCanBeAborted: Case = async (scene) => {
  const keyturn = client(scene);
  const reason = new Error("enough");
  const signal = AbortSignal.abort(reason);
  const endless = new ReadableStream<Uint8Array>({ pull: () => new Promise(() => undefined) });
  const actions = [
    () => keyturn.get(scene.bigKey, { signal }),
    () => keyturn.stat(scene.bigKey, { signal }),
    () => keyturn.list({ signal }).next(),
    () => keyturn.put(`${scene.prefix}aborted`, "x", { signal }),
    () => keyturn.delete(scene.bigKey, { signal }),
    () => keyturn.link(scene.bigKey, { signal }),
    () => keyturn.rotate(scene.newApiKey, { signal }),
  ];
  for (const action of actions) {
    assert((await failure(scene, Error, action)) === reason, "the caller's reason");
  }
  const later = new AbortController();
  const opened = await keyturn.get(scene.bigKey, { signal: later.signal });
  const reader = opened.body.getReader();
  await reader.read();
  later.abort(reason);
  const readOn = async () => {
    while (!(await reader.read()).done) {
      // until the abort shows
    }
  };
  assert((await failure(scene, Error, readOn)) === reason, "in the middle of a body");
  if (scene.runtime !== "chromium") {
    const stop = new AbortController();
    setTimeout(() => stop.abort(reason), 100);
    const put = () =>
      keyturn.put(`${scene.prefix}aborted`, endless, { size: 5, signal: stop.signal });
    assert((await failure(scene, Error, put)) === reason, "in the middle of an upload");
  }
};

const noGateway: Case = async (scene) => {
  const nowhere = client(scene, { url: scene.closedUrl, retries: 1 });
  const read = await failure(scene, GatewayUnavailableError, () => nowhere.get(scene.bigKey));
  assert(read.transient && read.code === undefined, "transient");
  await failure(scene, GatewayUnavailableError, () => nowhere.list().next());
  const write = await failure(scene, GatewayError, () => nowhere.put(`${scene.prefix}no`, "x"));
  // A browser does not say why there is no response.
  const expected = scene.runtime === "chromium" ? ResponseLostError : GatewayUnavailableError;
  assert(write instanceof expected, `${write.name} is not ${expected.name}`);
};

export const CASES: Readonly<Record<string, Case>> = {
  bytesRoundTrip,
  textAndBlob,
  uploadsReportProgress,
  aStreamOfAnotherSizeIsNotStored,
  ranges,
  aBrokenDownloadGoesOn,
  aCutDownloadIsAnError,
  aChangedChunkIsAnError,
  lists,
  deletes,
  deletesMany,
  links,
  uploadLinks,
  refusals,
  aRefusalReachesALargeUpload,
  plaintextIsReadFromTheStorage,
  rotationsAreFollowedToTheirProof,
  everythingCanBeAborted,
  noGateway,
};

async function result(scene: Scene, name: string, test: Case): Promise<Result> {
  try {
    await test(scene);
    return { name };
  } catch (error) {
    return { name, error: error instanceof Error ? `${error.stack}` : `${error}` };
  }
}

/** Run every case, all at once: some wait for leases. */
export async function run(scene: Scene): Promise<Result[]> {
  return await Promise.all(Object.entries(CASES).map(([name, test]) => result(scene, name, test)));
}
