import assert from "node:assert/strict";
import { test } from "node:test";
import { CodedError } from "../../../src/errors.ts";
import { open } from "../../../src/open/index.ts";
import {
  CHUNK,
  concatenated,
  HEADER,
  keysOf,
  made,
  SEALED,
  same,
  storageOf,
} from "../../cases/sealed_objects.ts";

const ROUNDS = Number(process.env["KEYTURN_FUZZ_ROUNDS"] ?? 400);
const SEED = 20_261_126;

/** Mulberry32: the same numbers in every run. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

test("no damage gives wrong plaintext, whole or in part", async () => {
  const object = await made(4 * CHUNK + 700);
  const random = numbers(SEED);
  for (let round = 0; round < ROUNDS; round++) {
    const body = damaged(object.body, random);
    if (same(body, object.body)) {
      continue;
    }
    const options = { ...keysOf(object), fetch: storageOf(body) };
    const why = `round ${round}`;
    await assert.rejects(
      open(options).then((opened) => opened.bytes()),
      (error) => error instanceof CodedError && error.code === "corrupt_object",
      why,
    );
    const start = random(5 * CHUNK);
    const range = { start, end: start + 1 + random(2 * CHUNK) };
    try {
      const bytes = await (await open({ ...options, range })).bytes();
      assert.deepEqual(bytes, object.plaintext.slice(range.start, range.end), why);
    } catch (error) {
      assert.ok(error instanceof CodedError, why);
      assert.match(error.code, /^(corrupt_object|range_not_satisfiable)$/, why);
    }
  }
});

/** A bit flipped, the end cut off, two chunks exchanged, or bytes put in. */
function damaged(
  body: Uint8Array<ArrayBuffer>,
  random: (below: number) => number,
): Uint8Array<ArrayBuffer> {
  const changed = body.slice();
  const at = random(body.length);
  switch (random(4)) {
    case 0:
      changed[at] = (changed[at] ?? 0) ^ (1 << random(8));
      return changed;
    case 1:
      return changed.slice(0, at);
    case 2: {
      const [one, other] = [random(4), random(4)].map((index) => HEADER + index * SEALED);
      changed.set(body.subarray(other, (other ?? 0) + SEALED), one);
      changed.set(body.subarray(one, (one ?? 0) + SEALED), other);
      return changed;
    }
    default: {
      const added = Uint8Array.from({ length: 1 + random(40) }, () => random(256));
      return concatenated(body.subarray(0, at), added, body.subarray(at));
    }
  }
}
