/**
 * Cobblestone-256 with WebCrypto: c2sp.org/chunked-encryption v1 with SHA-512 and AES-256-GCM
 * (SPEC 3).
 *
 * A sealed message is salt (24) ‖ commitment (32) ‖ chunks: 16 KiB of plaintext each, 16 bytes
 * longer when sealed, the last one always shorter and perhaps empty. No chunk is opened before
 * the commitment is checked, and nothing is returned of a chunk that is not authentic.
 */
import { CodedError } from "../errors.ts";

export const CHUNK_BYTES = 16384;
export const TAG_BYTES = 16;
export const SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES;
export const SALT_BYTES = 24;
export const COMMITMENT_BYTES = 32;
export const HEADER_BYTES = SALT_BYTES + COMMITMENT_BYTES;
/** The most chunks of one message (4 PiB). */
export const MAX_CHUNKS = 2 ** 38;

export const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const HASH_BYTES = 64;
const LABEL = new TextEncoder().encode("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0");
const SHA512 = { name: "HMAC", hash: "SHA-512" };

/** Bytes that WebCrypto accepts: not of shared memory. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** Sealed bytes that are not authentic, or not those of this object. */
export function corrupt(detail = "the stored body does not authenticate"): CodedError {
  return new CodedError("corrupt_object", detail);
}

/** How many bytes of plaintext a sealed message of this length holds. */
export function plaintextSize(sealedBytes: number): number {
  const chunks = Math.floor((sealedBytes - HEADER_BYTES) / SEALED_CHUNK_BYTES);
  const last = sealedBytes - chunkOffset(chunks);
  if (chunks < 0 || chunks >= MAX_CHUNKS || last < TAG_BYTES) {
    throw corrupt("the stored body is cut");
  }
  return chunks * CHUNK_BYTES + last - TAG_BYTES;
}

/** Where a chunk begins in the sealed message. */
export function chunkOffset(index: number): number {
  return HEADER_BYTES + index * SEALED_CHUNK_BYTES;
}

/** Opens the chunks of one message, in any order. */
export class ChunkOpener {
  readonly #key: CryptoKey;
  readonly #nonce: DataView;

  private constructor(key: CryptoKey, nonce: Bytes) {
    this.#key = key;
    this.#nonce = new DataView(nonce.buffer);
  }

  /** Check that the header commits to this key and context; `corrupt_object` if it does not. */
  static async of(key: Bytes, context: Bytes, header: Bytes): Promise<ChunkOpener> {
    if (key.length !== KEY_BYTES || header.length !== HEADER_BYTES) {
      throw corrupt("the header does not commit to the key");
    }
    const derived = await expand(key, joined(LABEL, header.subarray(0, SALT_BYTES), context));
    const aeadKey = derived.slice(0, KEY_BYTES);
    const nonce = derived.slice(KEY_BYTES, KEY_BYTES + NONCE_BYTES);
    const commitment = derived.subarray(KEY_BYTES + NONCE_BYTES);
    if (!equal(commitment, header.subarray(SALT_BYTES))) {
      throw corrupt("the header does not commit to the key");
    }
    const opener = await crypto.subtle.importKey("raw", aeadKey, "AES-GCM", false, ["decrypt"]);
    return new ChunkOpener(opener, nonce);
  }

  /** The plaintext of chunk `index`, counted from 0; the last one is shorter than the others. */
  async open(index: number, sealed: Bytes, last: boolean): Promise<ArrayBuffer> {
    const fits = last
      ? sealed.length >= TAG_BYTES && sealed.length < SEALED_CHUNK_BYTES
      : sealed.length === SEALED_CHUNK_BYTES;
    if (!fits || index >= MAX_CHUNKS) {
      throw corrupt();
    }
    try {
      const iv = this.#nonceOf(index);
      return await crypto.subtle.decrypt({ name: "AES-GCM", iv }, this.#key, sealed);
    } catch {
      throw corrupt();
    }
  }

  /** The base nonce XOR the index, a number of 12 bytes. */
  #nonceOf(index: number): Bytes {
    const iv = new Uint8Array(NONCE_BYTES);
    const view = new DataView(iv.buffer);
    view.setUint32(0, this.#nonce.getUint32(0));
    view.setUint32(4, this.#nonce.getUint32(4) ^ Math.floor(index / 2 ** 32));
    view.setUint32(8, this.#nonce.getUint32(8) ^ (index % 2 ** 32));
    return iv;
  }
}

/** A whole message in memory. */
export async function openSealed(key: Bytes, context: Bytes, sealed: Bytes): Promise<Bytes> {
  const opener = await ChunkOpener.of(key, context, sealed.subarray(0, HEADER_BYTES));
  const plaintext = new Uint8Array(plaintextSize(sealed.length));
  const full = Math.floor(plaintext.length / CHUNK_BYTES);
  for (let index = 0; index <= full; index++) {
    const chunk = sealed.subarray(chunkOffset(index), chunkOffset(index + 1));
    const opened = await opener.open(index, chunk, index === full);
    plaintext.set(new Uint8Array(opened), index * CHUNK_BYTES);
  }
  return plaintext;
}

/** HKDF-Expand-SHA512 (RFC 5869) to AEAD key, base nonce and commitment; WebCrypto has only HKDF. */
async function expand(key: Bytes, info: Bytes): Promise<Bytes> {
  const hmac = await crypto.subtle.importKey("raw", key, SHA512, false, ["sign"]);
  const length = KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES;
  const output = new Uint8Array(Math.ceil(length / HASH_BYTES) * HASH_BYTES);
  let block = new Uint8Array(0);
  for (let counter = 1; (counter - 1) * HASH_BYTES < length; counter++) {
    const message = joined(block, info, Uint8Array.of(counter));
    block = new Uint8Array(await crypto.subtle.sign("HMAC", hmac, message));
    output.set(block, (counter - 1) * HASH_BYTES);
  }
  return output.subarray(0, length);
}

/** Whether two byte strings are equal, in a time that depends on their lengths alone. */
function equal(one: Bytes, other: Bytes): boolean {
  let difference = one.length ^ other.length;
  for (let at = 0; at < one.length; at++) {
    difference |= (one[at] ?? 0) ^ (other[at] ?? 0);
  }
  return difference === 0;
}

/** The byte strings one after the other. */
export function joined(...parts: readonly Uint8Array[]): Bytes {
  const bytes = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
