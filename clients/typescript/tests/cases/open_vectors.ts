/**
 * The shared known answers through `keyturn/open`: Wycheproof's Cobblestone-256, and objects that
 * another implementation made. For Node and for a browser: vectors in, failures out.
 */
import { ChunkOpener } from "../../src/open/cobblestone.ts";
import { decrypted } from "../../src/open/decrypt.ts";
import { open, openBytes, openStream } from "../../src/open/index.ts";
import { drained, HEADER, SEALED, same, storageOf } from "./sealed_objects.ts";

/** The two files, as they are. */
export interface Vectors {
  readonly cobblestone: {
    readonly testGroups: readonly { readonly tests: readonly Wycheproof[] }[];
  };
  readonly keyturn: {
    readonly keys: Readonly<Record<string, string>>;
    readonly objects: readonly StoredObject[];
  };
}

interface Wycheproof {
  readonly tcId: number;
  readonly comment: string;
  readonly key: string;
  readonly ctx: string;
  readonly ct: string;
  readonly msgLength?: number;
  readonly msgSha512?: string;
  readonly result: string;
  readonly flags: readonly string[];
}

interface StoredObject {
  readonly name: string;
  readonly project: string;
  readonly key: string;
  readonly size: number;
  readonly sha256: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly body: string;
  readonly expect: string;
}

const PIECES = [1 << 20, SEALED, 1000];

/** Run every case; returns how many there were, and what failed. */
export async function runVectors(vectors: Vectors): Promise<{ cases: number; failures: string[] }> {
  const failures: string[] = [];
  let cases = 0;
  for (const { tests } of vectors.cobblestone.testGroups) {
    for (const test of tests) {
      cases++;
      failures.push(...(await wycheproof(test)).map((why) => `Wycheproof ${test.tcId}: ${why}`));
    }
  }
  for (const object of vectors.keyturn.objects) {
    cases++;
    const found = await storedObject(object, vectors.keyturn.keys);
    failures.push(...found.map((why) => `${object.name}: ${why}`));
  }
  return { cases, failures };
}

async function wycheproof(test: Wycheproof): Promise<string[]> {
  const failures: string[] = [];
  const [key, context] = [fromHex(test.key), fromHex(test.ctx)];
  const sealed = await inflated(fromHex(test.ct));
  const opener = await ChunkOpener.of(key, context, sealed.slice(0, HEADER)).catch(() => undefined);
  if ((opener === undefined) !== test.flags.includes("HeaderFailure")) {
    failures.push("the header");
  }
  if (opener === undefined) {
    return failures;
  }
  // However the bytes arrive: all chunks before the first that is not authentic, and no more.
  for (const pieceBytes of PIECES) {
    let at = HEADER;
    const source = {
      chunk: async () => {
        const piece = sealed.subarray(at, at + pieceBytes);
        at += piece.length;
        return piece.length > 0 ? piece : undefined;
      },
      close: () => undefined,
    };
    const released: Uint8Array[] = [];
    let endedWell = true;
    try {
      for await (const chunk of decrypted(opener, source, { first: 0, toTheEnd: true })) {
        released.push(chunk);
      }
    } catch {
      endedWell = false;
    }
    const bytes = new Uint8Array(await new Blob(released as BlobPart[]).arrayBuffer());
    if (endedWell !== (test.result === "valid")) {
      failures.push(`pieces of ${pieceBytes}: ended ${endedWell ? "well" : "badly"}`);
    }
    if (bytes.length !== (test.msgLength ?? 0)) {
      failures.push(`pieces of ${pieceBytes}: ${bytes.length} bytes released`);
    }
    if (test.msgSha512 !== undefined && (await digest("SHA-512", bytes)) !== test.msgSha512) {
      failures.push(`pieces of ${pieceBytes}: other bytes released`);
    }
  }
  const index = Math.floor((sealed.length - HEADER) / SEALED);
  const last = sealed.slice(HEADER + index * SEALED);
  const isProof = await opener.open(index, last, true).then(
    () => true,
    () => false,
  );
  if (isProof !== (test.result === "valid" || test.flags.includes("ValidFinalChunk"))) {
    failures.push("the last chunk as the proof of the length");
  }
  return failures;
}

async function storedObject(
  object: StoredObject,
  secrets: Readonly<Record<string, string>>,
): Promise<string[]> {
  const body = Uint8Array.from(atob(object.body), (character) => character.charCodeAt(0));
  const turned = object.name === "both keys turned";
  const keys = {
    project: object.project,
    key: object.key,
    metadata: object.metadata,
    apiKey: `${secrets[turned ? "new_api_key" : "api_key"]}`,
    pepper: secrets["pepper"],
  };
  const link = { ...keys, url: "https://storage.example.com/b/k", fetch: storageOf(body) };
  const stream = () => storageOf(body)("").then((response) => response.body as Stream);
  const ways = {
    open: async () => read((await open(link)).body),
    openStream: async () => read(await openStream(await stream(), keys)),
    openBytes: async () => openBytes(body, keys),
  };
  const isV0 = object.metadata["enc-algo"] === "AES-256-GCM";
  const expected = isV0 ? "unknown_algorithm" : object.expect.split(" ")[0];
  const failures: string[] = [];
  for (const [name, way] of Object.entries(ways)) {
    const found = await way().then(
      (bytes) => bytes,
      (error) => `${error.code}`,
    );
    if (typeof found === "string") {
      if (found !== expected) {
        failures.push(`${name}: ${found}, not ${expected}`);
      }
    } else if (expected !== "valid" || (await digest("SHA-256", found)) !== object.sha256) {
      failures.push(`${name}: gives other bytes, or any`);
    }
  }
  if (expected === "valid" && object.size > 0) {
    const whole = await ways.open();
    const [half, third] = [Math.floor(object.size / 2), Math.floor(object.size / 3)];
    for (const [range, part] of [
      [{ start: half }, whole.subarray(half)],
      [{ suffix: 1 }, whole.subarray(-1)],
      [{ start: third, end: third + 100 }, whole.subarray(third, third + 100)],
    ] as const) {
      const opened = await open({ ...link, range });
      if (opened.size !== object.size || !same(await opened.bytes(), part)) {
        failures.push(`range ${JSON.stringify(range)}`);
      }
    }
  }
  return failures;
}

type Stream = ReadableStream<Uint8Array>;

async function read(stream: Stream): Promise<Uint8Array> {
  const { bytes, error } = await drained(stream);
  if (error !== undefined) {
    throw error;
  }
  return bytes;
}

async function inflated(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function digest(name: string, bytes: Uint8Array): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest(name, bytes as BufferSource));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromHex(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}
