/** A range of an object, opened once the object's last chunk has proven its length (SPEC 9.2). */
import { CodedError } from "../errors.ts";
import type { ByteRange } from "../range.ts";
import {
  type Bytes,
  CHUNK_BYTES,
  type ChunkOpener,
  chunkOffset,
  HEADER_BYTES,
  plaintextSize,
} from "./cobblestone.ts";
import { after, decrypted, type Plaintext, type Source } from "./decrypt.ts";
import { type StoredBody, StoredStream } from "./stored_body.ts";

/** The header and the first chunk: all of a small object. */
export const START_BYTES = chunkOffset(1);

/** An object whose header was checked. */
export interface Stored {
  readonly body: StoredBody;
  /** Its first `START_BYTES`, or all of it. */
  readonly start: Bytes;
  /** The length of the whole stored body. */
  readonly storedBytes: number;
}

/** A part that is ready to be read. */
export interface OpenPart {
  /** Of the whole plaintext; proven. */
  readonly size: number;
  /** Of the part. */
  readonly length: number;
  readonly plaintext: Plaintext;
  /** What is closed when the reader is done. */
  readonly source: Source;
}

/** Prove the length, and open the part. */
export async function openPart(
  opener: ChunkOpener,
  stored: Stored,
  range: ByteRange,
): Promise<OpenPart> {
  const size = plaintextSize(stored.storedBytes);
  const last = Math.floor(size / CHUNK_BYTES);
  const [begin, end] = boundsOf(range, size);
  const first = Math.min(Math.floor(begin / CHUNK_BYTES), last);
  const stop = Math.max(first, Math.min(Math.floor((end - 1) / CHUNK_BYTES) + 1, last));
  const held = stored.start.subarray(
    HEADER_BYTES,
    first === 0 && stop > 0 ? undefined : HEADER_BYTES,
  );
  const stream = new StoredStream(stored.body, chunkOffset(first) + held.length, chunkOffset(stop));
  try {
    const sealedLast = await lastChunk(stored, last, stream);
    const lastPlaintext = new Uint8Array(await opener.open(last, sealedLast, true));
    // A refusal states the length too, so it comes after the proof. The end of an empty object
    // is that object, as RFC 9110 has it.
    if (begin >= end && !("suffix" in range && size === 0)) {
      throw new CodedError("range_not_satisfiable", "the object ends before the range");
    }
    const source = after(held, stream);
    const plaintext = cut(opener, source, { first, last, begin, end, lastPlaintext });
    return { size, length: end - begin, plaintext, source };
  } catch (error) {
    stream.close();
    throw error;
  }
}

/** The last chunk, still sealed; meanwhile the stream of the range is started. */
async function lastChunk(stored: Stored, index: number, stream: StoredStream): Promise<Bytes> {
  const { body, start, storedBytes } = stored;
  if (storedBytes <= start.length) {
    return start.subarray(chunkOffset(index));
  }
  const end = new StoredStream(body, chunkOffset(index), storedBytes);
  try {
    const [sealed] = await Promise.all([end.bytes(), stream.start()]);
    return sealed;
  } finally {
    end.close();
  }
}

/** The part's bytes of the full chunks, and of the last one. */
async function* cut(
  opener: ChunkOpener,
  source: Source,
  part: { first: number; last: number; begin: number; end: number; lastPlaintext: Bytes },
): Plaintext {
  const { first, last, begin, end, lastPlaintext } = part;
  let at = first * CHUNK_BYTES;
  for await (const chunk of decrypted(opener, source, { first, toTheEnd: false })) {
    yield chunk.subarray(Math.max(begin - at, 0), end - at);
    at += chunk.length;
  }
  at = last * CHUNK_BYTES;
  const rest = lastPlaintext.subarray(Math.max(begin - at, 0), Math.max(end - at, 0));
  if (rest.length > 0) {
    yield rest;
  }
}

function boundsOf(range: ByteRange, size: number): [begin: number, end: number] {
  if ("suffix" in range) {
    return [Math.max(0, size - range.suffix), size];
  }
  return [range.start, Math.max(range.start, Math.min(range.end ?? size, size))];
}
