/** A part of an object, and what a response must state to hold just that part (SPEC 9.2). */
import { UnexpectedResponseError } from "./errors.ts";
import { malformed } from "./names.ts";

/** A part of an object: from `start` up to and without `end` (as `slice`), or its last bytes. */
export type ByteRange =
  | { readonly start: number; readonly end?: number | undefined }
  | { readonly suffix: number };

/** The value of the header `Range`; undefined for the whole object. */
export function rangeHeader(range: ByteRange | undefined): string | undefined {
  if (range === undefined) {
    return undefined;
  }
  if ("suffix" in range) {
    check(range.suffix > 0, range.suffix);
    return `bytes=-${range.suffix}`;
  }
  const { start, end } = range;
  check(start >= 0, start);
  if (end === undefined) {
    return start ? `bytes=${start}-` : undefined;
  }
  check(end > start, end);
  return `bytes=${start}-${end - 1}`;
}

function check(fits: boolean, value: number): void {
  if (!fits || !Number.isSafeInteger(value)) {
    throw malformed("a range has 1 byte or more");
  }
}

/** Where the bytes of a response lie within the object, and the object's size. */
export interface Extent {
  readonly start: number;
  readonly length: number;
  readonly size: number;
}

/** What a response holds, which must be the requested range. */
export function extentOf(status: number, headers: Headers, range: ByteRange | undefined): Extent {
  const length = numberOf(headers.get("content-length"));
  if (length === undefined) {
    throw new UnexpectedResponseError("the response has no length", { status });
  }
  const stated = headers.get("content-range");
  const part = rangeHeader(range) && range;
  const size = part ? (numberOf(stated?.split("/")[1]) ?? 0) : length;
  const start = part ? ("suffix" in part ? Math.max(0, size - part.suffix) : part.start) : 0;
  const end = Math.min((part && "end" in part && part.end) || size, size);
  if (
    part
      ? status !== 206 || stated !== `bytes ${start}-${end - 1}/${size}` || length !== end - start
      : status !== 200
  ) {
    throw new UnexpectedResponseError("the response is not the range", { status });
  }
  return { start, length, size };
}

function numberOf(text: string | null | undefined): number | undefined {
  return text && /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}
