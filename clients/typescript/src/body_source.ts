/** A body of any form, read in blocks, that fails where it does not have its size. */
import { malformed } from "./names.ts";
import type { UploadBody } from "./upload.ts";

/** A body while it is read. */
export interface Source {
  readonly size: number;
  /** The next bytes; none at the end. */
  next(): Promise<Uint8Array | undefined>;
  /** Stop reading. */
  stop(): void;
}

type Stream = ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;
type Read = () => Promise<{ done?: boolean | undefined; value?: unknown }>;

const BLOCK_BYTES = 256 * 1024;

/** Read a body. */
export function sourceOf(body: UploadBody, stated: number | undefined): Source {
  let [size, stream]: [number | undefined, UploadBody] = [stated, body];
  if (body instanceof Blob) {
    [size, stream] = [body.size, body.stream()];
  } else if (typeof body === "string" || body instanceof ArrayBuffer || ArrayBuffer.isView(body)) {
    const bytes = bytesOf(body);
    [size, stream] = [bytes.length, blocks(bytes)];
  }
  if (size === undefined || !Number.isSafeInteger(size) || size < 0) {
    throw malformed("a stream needs its size in bytes");
  }
  if (stated !== undefined && stated !== size) {
    throw malformed(`the body has ${size} bytes, not ${stated}`);
  }
  return counted(stream as Stream, size);
}

function bytesOf(body: string | ArrayBuffer | ArrayBufferView): Uint8Array {
  if (typeof body === "string") {
    return new TextEncoder().encode(body);
  }
  return ArrayBuffer.isView(body)
    ? new Uint8Array(body.buffer, body.byteOffset, body.byteLength)
    : new Uint8Array(body);
}

async function* blocks(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += BLOCK_BYTES) {
    yield bytes.subarray(start, start + BLOCK_BYTES);
  }
}

function counted(stream: Stream, size: number): Source {
  const [read, cancel] = accessors(stream);
  // What ends the upload is reported; that its source does not end well is not.
  const stop = (): void => void Promise.resolve(cancel()).catch(() => undefined);
  let left = size;
  return {
    size,
    stop,
    async next() {
      for (;;) {
        const { done, value } = await read();
        if (!done && !ArrayBuffer.isView(value)) {
          throw malformed("a body's stream yields bytes");
        }
        const block = done ? new Uint8Array() : bytesOf(value as ArrayBufferView);
        left -= block.length;
        if (left < 0 || (done && left > 0)) {
          stop();
          throw malformed(
            `the body has ${left < 0 ? "more" : "fewer"} bytes than its size, ${size}`,
          );
        }
        if (done || block.length > 0) {
          return done ? undefined : block;
        }
      }
    },
  };
}

/** How to read a stream, and how to stop. Not every browser's `ReadableStream` can be iterated. */
function accessors(stream: Stream): [Read, () => unknown] {
  if ("getReader" in stream) {
    const reader = stream.getReader();
    return [() => reader.read(), () => reader.cancel()];
  }
  const iterator = stream[Symbol.asyncIterator]();
  return [() => iterator.next(), () => iterator.return?.()];
}
