/** Objects as a worker stores them, and a storage in memory: for every runtime. */

const utf8 = new TextEncoder();

export const API_KEY = "kt_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
export const PEPPER = "salt and pepper";
export const PROJECT = "acme";
export const KEY = "reports/q3 ü.pdf";
export const SECRET = "5ec4e7";
export const URL_OF_IT = `https://storage.example.com/b/k?X-Amz-Signature=${SECRET}`;
export const CHUNK = 16384;
export const SEALED = CHUNK + 16;
export const HEADER = 56;

export interface Made {
  readonly plaintext: Uint8Array;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly metadata: Record<string, string>;
}

/** What `open` takes for an object that was made here. */
export function keysOf({ metadata }: Made) {
  return { url: URL_OF_IT, project: PROJECT, key: KEY, apiKey: API_KEY, pepper: PEPPER, metadata };
}

/** An object of random bytes. */
export async function made(size: number): Promise<Made> {
  const [plaintext, dek] = [random(size), random(32)];
  const body = await seal(dek, utf8.encode("keyturn/v1/body"), plaintext);
  return { plaintext, body, metadata: await metadataOf(dek) };
}

/** The metadata of an object with this DEK, which also needs the customer secret, if any. */
export async function metadataOf(
  dek: Uint8Array,
  customer?: { readonly secret: Uint8Array; readonly id: string },
): Promise<Record<string, string>> {
  let kek = await hkdf(utf8.encode(API_KEY), PEPPER, `keyturn/v1/user-kek\0${PROJECT}`);
  if (customer) {
    const info = `keyturn/v1/composite-kek\0user\0${PROJECT}\0${customer.id}`;
    kek = await hkdf(concatenated(kek, customer.secret), "", info);
  }
  const context = `keyturn/v1/dek\0user\0Cobblestone-256\0${PROJECT}\0${KEY}\x001`;
  const wrap = await seal(kek, utf8.encode(context), dek);
  return {
    "enc-algo": "Cobblestone-256",
    "enc-dek-user": btoa(String.fromCharCode(...wrap)),
    "enc-kek-user": `1:${"0".repeat(16)}${customer ? `:${customer.id}` : ""}`,
  };
}

async function hkdf(
  input: Uint8Array<ArrayBuffer>,
  salt: string,
  info: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const key = await crypto.subtle.importKey("raw", input, "HKDF", false, ["deriveBits"]);
  const texts = { salt: utf8.encode(salt), info: utf8.encode(info) };
  const derivation = { name: "HKDF", hash: "SHA-256", ...texts };
  return new Uint8Array(await crypto.subtle.deriveBits(derivation, key, 256));
}

/** Cobblestone-256, written down once more, so that it does not test itself. */
export async function seal(
  key: Uint8Array<ArrayBuffer>,
  context: Uint8Array,
  plaintext: Uint8Array,
): Promise<Uint8Array<ArrayBuffer>> {
  const { header, sealChunk } = await sealer(key, context);
  const parts = [header];
  for (let index = 0; index * CHUNK <= plaintext.length; index++) {
    const chunk = plaintext.subarray(index * CHUNK, (index + 1) * CHUNK);
    parts.push(await sealChunk(BigInt(index), chunk));
  }
  return concatenated(...parts);
}

/** The header of a new message, and what seals its chunks, whatever their number. */
export async function sealer(key: Uint8Array<ArrayBuffer>, context: Uint8Array) {
  const salt = random(24);
  const label = utf8.encode("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0");
  const derive = { name: "HMAC", hash: "SHA-512" };
  const prk = await crypto.subtle.importKey("raw", key, derive, false, ["sign"]);
  const info = concatenated(label, salt, context);
  const first = new Uint8Array(
    await crypto.subtle.sign("HMAC", prk, concatenated(info, Uint8Array.of(1))),
  );
  const second = new Uint8Array(
    await crypto.subtle.sign("HMAC", prk, concatenated(first, info, Uint8Array.of(2))),
  );
  const derived = concatenated(first, second);
  const aead = await crypto.subtle.importKey("raw", derived.slice(0, 32), "AES-GCM", false, [
    "encrypt",
  ]);
  async function sealChunk(index: bigint, chunk: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
    const iv = derived.slice(32, 44);
    for (let at = 11, rest = index; rest > 0n; at--, rest >>= 8n) {
      iv[at] = (iv[at] ?? 0) ^ Number(rest & 255n);
    }
    const algorithm = { name: "AES-GCM", iv };
    return new Uint8Array(await crypto.subtle.encrypt(algorithm, aead, concatenated(chunk)));
  }
  return { header: concatenated(salt, derived.subarray(44, 76)), sealChunk };
}

/** The byte strings one after the other. */
export function concatenated(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Random bytes, however many. */
export function random(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

export interface StorageOptions {
  /** The connection breaks after so many bytes of each response. */
  readonly breaksAfter?: number;
  /** Bytes of a piece of a body. */
  readonly pieceBytes?: number;
  readonly headers?: Record<string, string>;
  /** Called for each request, with its `Range`; a response of its own takes the place. */
  readonly onRequest?: (range: string | undefined, count: number) => Response | undefined;
}

/** A `fetch` by which one stored body is read, whole or by a range. */
export function storageOf(body: Uint8Array, options: StorageOptions = {}): typeof fetch {
  let count = 0;
  return async (_input, init) => {
    init?.signal?.throwIfAborted();
    const range = new Headers(init?.headers).get("range") ?? undefined;
    const other = options.onRequest?.(range, count++);
    if (other !== undefined) {
      return other;
    }
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? [];
    const first = Number(from ?? 0);
    const end = Math.min(to ? Number(to) + 1 : body.length, body.length);
    if (range !== undefined && first >= body.length) {
      return new Response("<Error/>", { status: 416 });
    }
    const headers = new Headers(options.headers);
    headers.set("content-length", `${end - first}`);
    if (range !== undefined) {
      headers.set("content-range", `bytes ${first}-${end - 1}/${body.length}`);
    }
    const status = range === undefined ? 200 : 206;
    return new Response(streamOfPieces(body.subarray(first, end), options, init?.signal), {
      status,
      headers,
    });
  };
}

function streamOfPieces(
  body: Uint8Array,
  { breaksAfter = Number.POSITIVE_INFINITY, pieceBytes = 65536 }: StorageOptions,
  signal: AbortSignal | null | undefined,
): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        signal?.addEventListener("abort", () => controller.error(signal.reason));
      },
      pull(controller) {
        if (at >= breaksAfter) {
          controller.error(new TypeError("terminated"));
        } else if (at >= body.length) {
          controller.close();
        } else {
          const end = Math.min(at + pieceBytes, breaksAfter);
          controller.enqueue(body.slice(at, end));
          at = end;
        }
      },
    },
    { highWaterMark: 0 },
  );
}

/** What a stream gives until its end, or until the error that ends it. */
export async function drained(
  stream: ReadableStream<Uint8Array>,
): Promise<{ bytes: Uint8Array; error: unknown }> {
  const pieces: Uint8Array[] = [];
  try {
    for (const reader = stream.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) {
        return { bytes: concatenated(...pieces), error: undefined };
      }
      pieces.push(value);
    }
  } catch (error) {
    return { bytes: concatenated(...pieces), error };
  }
}

/** Whether two byte strings are equal. */
export function same(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}
