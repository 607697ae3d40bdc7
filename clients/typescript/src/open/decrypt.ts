/**
 * From sealed chunks to plaintext as a stream, in constant memory (SPEC 3.1, 9.2).
 *
 * Chunks are opened ahead of the reader while further ones arrive, since one call of WebCrypto
 * takes longer to come back than to open a chunk. However slow the reader is, no more than
 * `CHUNKS_AHEAD` are held, and the piece that was read last.
 */
import {
  type Bytes,
  type ChunkOpener,
  corrupt,
  HEADER_BYTES,
  joined,
  SEALED_CHUNK_BYTES,
} from "./cobblestone.ts";

/** Bytes in order. */
export interface Source {
  /** The next bytes, or undefined at the end. */
  chunk(): Promise<Uint8Array | undefined>;
  /** Stop reading. */
  close(): void;
}

/** Plaintext in order. Each piece is authentic; only a clean end says that all of it came. */
export type Plaintext = AsyncGenerator<Bytes, void, void>;

/** The part of a message that a source holds. */
export interface Part {
  /** The number of its first chunk. */
  readonly first: number;
  /** Whether it ends with the message's last chunk, which is shorter; otherwise with a full one. */
  readonly toTheEnd: boolean;
}

/** 256 KiB: enough to keep the threads of WebCrypto busy. */
const CHUNKS_AHEAD = 16;

/** The plaintext of consecutive chunks. */
export async function* decrypted(opener: ChunkOpener, source: Source, part: Part): Plaintext {
  const incoming = new Incoming(source, part.toTheEnd);
  const opening: Promise<ArrayBuffer>[] = [];
  let reading: Promise<void> | undefined;
  for (let index = part.first; ; ) {
    while (opening.length < CHUNKS_AHEAD && incoming.hasChunk) {
      const { sealed, last } = incoming.take();
      const opened = opener.open(index++, sealed, last);
      opened.catch(() => undefined); // awaited in its turn, or not at all after an error
      opening.push(opened);
    }
    if (opening.length < CHUNKS_AHEAD && !incoming.isOver) {
      reading ??= incoming.read().then(() => {
        reading = undefined;
      });
      // Release what is open already while the source is slow.
      const first = await (opening.length > 0 ? Promise.race([reading, opening[0]]) : reading);
      if (first === undefined) {
        continue;
      }
    }
    const next = opening.shift();
    if (next === undefined) {
      incoming.throwFailure();
      return;
    }
    yield new Uint8Array(await next);
  }
}

/** Cuts what arrives into sealed chunks. */
class Incoming {
  readonly #source: Source;
  readonly #toTheEnd: boolean;
  #held: Bytes = new Uint8Array(0);
  #piece: Uint8Array = new Uint8Array(0);
  #last: Bytes | undefined;
  #failure: { readonly error: unknown } | undefined;
  isOver = false;

  constructor(source: Source, toTheEnd: boolean) {
    this.#source = source;
    this.#toTheEnd = toTheEnd;
  }

  get hasChunk(): boolean {
    return this.#held.length + this.#piece.length >= SEALED_CHUNK_BYTES || this.#last !== undefined;
  }

  /** The next sealed chunk, and whether it is the message's last one. */
  take(): { sealed: Bytes; last: boolean } {
    if (this.#last !== undefined) {
      const sealed = this.#last;
      this.#last = undefined;
      return { sealed, last: true };
    }
    const missing = SEALED_CHUNK_BYTES - this.#held.length;
    const begin = this.#piece.subarray(0, missing);
    // Chunks that lie within a piece are not copied here: WebCrypto copies what it is given.
    const sealed = this.#held.length > 0 ? joined(this.#held, begin) : (begin as Bytes);
    this.#held = new Uint8Array(0);
    this.#piece = this.#piece.subarray(missing);
    return { sealed, last: false };
  }

  /** Wait for the next bytes, or for the end. Called when there is no chunk to take. */
  async read(): Promise<void> {
    try {
      const piece = await this.#source.chunk();
      this.#held = joined(this.#held, this.#piece);
      this.#piece = piece ?? new Uint8Array(0);
      if (piece !== undefined) {
        return;
      }
      if (this.#toTheEnd) {
        this.#last = this.#held;
      } else if (this.#held.length > 0) {
        throw corrupt("the stored body is cut");
      }
    } catch (error) {
      this.#failure = { error };
    }
    this.isOver = true;
  }

  throwFailure(): void {
    if (this.#failure !== undefined) {
      throw this.#failure.error;
    }
  }
}

/** The plaintext of a whole message, without a gap between its stated size and its proof. */
export async function* whole(opener: ChunkOpener, source: Source, size?: number): Plaintext {
  let released = 0;
  let held: Bytes | undefined;
  for await (const chunk of decrypted(opener, source, { first: 0, toTheEnd: true })) {
    released += chunk.length;
    if (released === size && chunk.length > 0) {
      // A reader that counts must not take this for the end before it is authentic.
      held = chunk;
    } else if (chunk.length > 0) {
      yield chunk;
    }
  }
  if (held !== undefined) {
    yield held;
  }
}

/** The first bytes of a source, and the source of what follows them. */
export async function splitHeader(source: Source): Promise<{ header: Bytes; rest: Source }> {
  let start: Bytes = new Uint8Array(0);
  while (start.length < HEADER_BYTES) {
    const piece = await source.chunk();
    if (piece === undefined) {
      break;
    }
    start = joined(start, piece);
  }
  const rest = after(start.subarray(HEADER_BYTES), source);
  return { header: start.subarray(0, HEADER_BYTES), rest };
}

/** These bytes, and then those of the source. */
export function after(bytes: Uint8Array, source: Source): Source {
  let first = bytes.length > 0 ? bytes : undefined;
  return {
    chunk: async () => {
      const piece = first ?? source.chunk();
      first = undefined;
      return piece;
    },
    close: () => source.close(),
  };
}

/** A stream that is read from when its own reader asks. It closes the source when it ends. */
export function streamOf(
  plaintext: Plaintext,
  source: Source,
  signal?: AbortSignal,
): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          // What was read ahead is not released any more.
          signal?.throwIfAborted();
          const { done, value } = await plaintext.next();
          if (!done) {
            controller.enqueue(value);
            return;
          }
          source.close();
          controller.close();
        } catch (error) {
          source.close();
          throw error;
        }
      },
      cancel: () => source.close(),
    },
    { highWaterMark: 0 },
  );
}
