/** Cobblestone-256: its chunks, its header, and the plaintext as it is released. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { CodedError } from "../../../src/errors.ts";
import { ChunkOpener, openSealed, plaintextSize } from "../../../src/open/cobblestone.ts";
import { decrypted } from "../../../src/open/decrypt.ts";
import { CHUNK, HEADER, random, SEALED, seal, sealer } from "../../cases/sealed_objects.ts";

const KEY = random(32);
const CONTEXT = new TextEncoder().encode("a context");

function isCorrupt(error: unknown): boolean {
  return error instanceof CodedError && error.code === "corrupt_object";
}

test("the number of a chunk is counted into the whole nonce", async () => {
  const { header, sealChunk } = await sealer(KEY, CONTEXT);
  const opener = await ChunkOpener.of(KEY, CONTEXT, header);
  const plaintext = random(100);
  for (const index of [0, 255, 256, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 33 + 5, 2 ** 38 - 1]) {
    const sealed = await sealChunk(BigInt(index), plaintext);
    const opened = new Uint8Array(await opener.open(index, sealed, true));
    assert.deepEqual(opened, plaintext, `${index}`);
    await assert.rejects(opener.open(index ^ 1, sealed, true), isCorrupt);
  }
  const behind = await sealChunk(2n ** 38n, plaintext);
  await assert.rejects(opener.open(2 ** 38, behind, true), isCorrupt);
});

test("only the last chunk is shorter, and it always is", async () => {
  const { header, sealChunk } = await sealer(KEY, CONTEXT);
  const opener = await ChunkOpener.of(KEY, CONTEXT, header);
  const [full, short] = [await sealChunk(0n, random(CHUNK)), await sealChunk(0n, random(5))];
  assert.equal((await opener.open(0, full, false)).byteLength, CHUNK);
  assert.equal((await opener.open(0, short, true)).byteLength, 5);
  await assert.rejects(opener.open(0, full, true), isCorrupt);
  await assert.rejects(opener.open(0, short, false), isCorrupt);
  await assert.rejects(opener.open(0, new Uint8Array(15), true), isCorrupt);
});

test("a header commits to its key and its context", async () => {
  const message = await seal(KEY, CONTEXT, random(10));
  const header = message.slice(0, HEADER);
  await ChunkOpener.of(KEY, CONTEXT, header);
  for (let at = 0; at < HEADER; at++) {
    const changed = header.slice();
    changed[at] = (changed[at] ?? 0) ^ 1;
    await assert.rejects(ChunkOpener.of(KEY, CONTEXT, changed), isCorrupt);
  }
  for (const [key, context, cut] of [
    [random(32), CONTEXT, header],
    [KEY.slice(0, 16), CONTEXT, header],
    [KEY, CONTEXT.slice(1), header],
    [KEY, CONTEXT, header.slice(0, -1)],
  ] as const) {
    await assert.rejects(ChunkOpener.of(key, context, cut), isCorrupt);
  }
});

test("the sizes of plaintext and sealed message fit", async () => {
  for (const size of [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]) {
    const plaintext = random(size);
    const sealed = await seal(KEY, CONTEXT, plaintext);
    assert.equal(plaintextSize(sealed.length), size);
    assert.deepEqual(await openSealed(KEY, CONTEXT, sealed), plaintext);
  }
  for (const length of [0, HEADER, HEADER + 15, HEADER + SEALED, HEADER + SEALED + 15]) {
    assert.throws(() => plaintextSize(length), isCorrupt);
  }
});

function sourceOf(...pieces: Uint8Array[]) {
  return { chunk: async () => pieces.shift(), close: () => undefined };
}

test("the part of a message that is cut does not end well", async () => {
  const sealed = await seal(KEY, CONTEXT, random(3 * CHUNK));
  const opener = await ChunkOpener.of(KEY, CONTEXT, sealed.slice(0, HEADER));
  const released: number[] = [];
  const source = sourceOf(sealed.subarray(HEADER, HEADER + 2 * SEALED - 1));
  await assert.rejects(async () => {
    for await (const chunk of decrypted(opener, source, { first: 0, toTheEnd: false })) {
      released.push(chunk.length);
    }
  }, isCorrupt);
  assert.deepEqual(released, [CHUNK]);
});

test("of a large piece only a few chunks are opened ahead", async () => {
  let opened = 0;
  const opener = {
    open: async () => {
      opened++;
      return new ArrayBuffer(CHUNK);
    },
  } as unknown as ChunkOpener;
  const source = sourceOf(new Uint8Array(1000 * SEALED));
  const plaintext = decrypted(opener, source, { first: 0, toTheEnd: false });
  for (let read = 1; read <= 3; read++) {
    assert.equal((await plaintext.next()).done, false);
    assert.ok(opened <= 16 + read, `${opened} after ${read}`);
  }
});

test("what is open is released while the source is slow", async () => {
  const sealed = await seal(KEY, CONTEXT, random(2 * CHUNK + 5));
  const opener = await ChunkOpener.of(KEY, CONTEXT, sealed.slice(0, HEADER));
  let release: (piece: Uint8Array | undefined) => void = () => undefined;
  const later = new Promise<Uint8Array | undefined>((resolve) => {
    release = resolve;
  });
  const pieces = [sealed.subarray(HEADER, HEADER + SEALED), sealed.subarray(HEADER + SEALED)];
  let asked = 0;
  const source = {
    chunk: () => (asked++ === 0 ? Promise.resolve(pieces[0]) : asked === 2 ? later : undefined),
    close: () => undefined,
  } as Parameters<typeof decrypted>[1];
  const plaintext = decrypted(opener, source, { first: 0, toTheEnd: true });
  assert.equal((await plaintext.next()).value?.length, CHUNK);
  release(pieces[1]);
  assert.equal((await plaintext.next()).value?.length, CHUNK);
  assert.equal((await plaintext.next()).value?.length, 5);
  assert.equal((await plaintext.next()).done, true);
});

test("an error of the source comes after what it gave before", async () => {
  const sealed = await seal(KEY, CONTEXT, random(CHUNK));
  const opener = await ChunkOpener.of(KEY, CONTEXT, sealed.slice(0, HEADER));
  const pieces = [sealed.subarray(HEADER, HEADER + SEALED)];
  const source = {
    chunk: async () => {
      const piece = pieces.shift();
      if (piece === undefined) {
        throw new Error("lost");
      }
      return piece;
    },
    close: () => undefined,
  };
  const plaintext = decrypted(opener, source, { first: 0, toTheEnd: true });
  assert.equal((await plaintext.next()).value?.length, CHUNK);
  await assert.rejects(plaintext.next(), /lost/);
});
