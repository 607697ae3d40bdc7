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
  const isWhole = range === undefined || rangeHeader(range) === undefined;
  const size = isWhole ? length : (numberOf(stated?.split("/")[1]) ?? 0);
  const start = isWhole ? 0 : "suffix" in range ? Math.max(0, size - range.suffix) : range.start;
  const end = Math.min((!isWhole && "end" in range && range.end) || size, size);
  if (
    isWhole
      ? status !== 200
      : status !== 206 || stated !== `bytes ${start}-${end - 1}/${size}` || length !== end - start
  ) {
    throw new UnexpectedResponseError("the response is not the range", { status });
  }
  return { start, length, size };
}

function numberOf(text: string | null | undefined): number | undefined {
  return text && /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}
