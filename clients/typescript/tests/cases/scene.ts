/** What the portable cases know of the gateway, and how they check. Runs in every runtime. */

/** A running gateway with what the cases need. Each runtime has keys and projects of its own. */
export interface Scene {
  readonly runtime: "node" | "deno" | "bun" | "chromium";
  readonly url: string;
  readonly project: string;
  readonly apiKey: string;
  /** Begins every key that the cases write. */
  readonly prefix: string;
  /** The gateway, behind connections that each end after some bytes. */
  readonly brokenUrl: string;
  /** Nothing listens here. */
  readonly closedUrl: string;
  /** An object of 1 MiB, one with a changed chunk, and one that is stored as plaintext. */
  readonly bigKey: string;
  readonly corruptKey: string;
  readonly plaintextProject: string;
  readonly plaintextKey: string;
  readonly plaintext: string;
  /** A project to rotate. */
  readonly rotatedProject: string;
  readonly newApiKey: string;
}

/** One case: resolves where everything holds. */
export type Case = (scene: Scene) => Promise<void>;

/** What became of one case. */
export interface Result {
  readonly name: string;
  readonly error?: string;
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) {
    throw new Error(message);
  }
}

export function equal(actual: unknown, expected: unknown, what: string): void {
  const [left, right] = [JSON.stringify(actual), JSON.stringify(expected)];
  assert(left === right, `${what}: ${left} is not ${right}`);
}

export function equalBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert(
    actual.length === expected.length && actual.every((byte, at) => byte === expected[at]),
    `${what}: ${actual.length} bytes are not the expected ${expected.length}`,
  );
}

type ErrorClass<E extends Error> = abstract new (...args: never[]) => E;

/** The error with which something fails; it must be of this class and hold no secret. */
export async function failure<E extends Error>(
  scene: Scene,
  expected: ErrorClass<E>,
  action: () => Promise<unknown>,
): Promise<E> {
  let result: unknown;
  try {
    result = await action();
  } catch (error) {
    assert(error instanceof expected, `${error} is not ${expected.name}`);
    const shown = `${error} ${error.stack} ${JSON.stringify(error)} ${String(error.cause)}`;
    for (const secret of [scene.apiKey, scene.newApiKey, "Bearer"]) {
      assert(!shown.includes(secret), `the error shows a secret: ${error.name}`);
    }
    return error;
  }
  throw new Error(`${JSON.stringify(result)} came instead of ${expected.name}`);
}

/** Bytes that differ at every 16 bytes. */
export function numbered(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at + 16 <= length; at += 16) {
    view.setUint32(at, at);
    view.setUint32(at + 8, at * 7 + 3);
  }
  return bytes;
}

/** A stream that yields these bytes in blocks. */
export function streamOf(bytes: Uint8Array, blockBytes = 50_000): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) {
        controller.close();
        return;
      }
      controller.enqueue(bytes.subarray(at, at + blockBytes));
      at += blockBytes;
    },
  });
}
