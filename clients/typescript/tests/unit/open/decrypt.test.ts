import assert from "node:assert/strict";
import { test } from "node:test";
import { CodedError } from "../../../src/errors.ts";
import { ChunkOpener } from "../../../src/open/cobblestone.ts";
import { decrypted } from "../../../src/open/decrypt.ts";
import { CHUNK, HEADER, random, SEALED, seal } from "../../cases/sealed_objects.ts";

const KEY = random(32);
const CONTEXT = new Uint8Array(0);

function sourceOf(...pieces: Uint8Array[]) {
  return { chunk: async () => pieces.shift(), close: () => undefined };
}

test("the part of a message that is cut does not end well", async () => {
  const sealed = await seal(KEY, CONTEXT, random(3 * CHUNK));
  const opener = await ChunkOpener.of(KEY, CONTEXT, sealed.slice(0, HEADER));
  const released: number[] = [];
  const source = sourceOf(sealed.subarray(HEADER, HEADER + 2 * SEALED - 1));
  await assert.rejects(
    async () => {
      for await (const chunk of decrypted(opener, source, { first: 0, toTheEnd: false })) {
        released.push(chunk.length);
      }
    },
    (error) => error instanceof CodedError && error.code === "corrupt_object",
  );
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
