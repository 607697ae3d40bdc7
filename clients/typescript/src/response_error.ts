/**
 * What a response that is not one of success means (SPEC 9, 12).
 *
 * A part of a body never gets into an error, except for a problem's code and detail; secrets in
 * the detail are replaced.
 */
import {
  AlreadyExistsError,
  CodedError,
  type ErrorCode,
  type KeyturnError,
  MalformedRequestError,
  NotFoundError,
  TooManyRequestsError,
  UnauthorizedError,
  UnexpectedResponseError,
} from "./errors.ts";

const DETAIL_MAX_CHARACTERS = 1000;
const CLASSES = new Map([
  ["malformed_request", MalformedRequestError],
  ["unauthorized", UnauthorizedError],
  ["not_found", NotFoundError],
  ["already_exists", AlreadyExistsError],
  ["too_many_requests", TooManyRequestsError],
]);
/** The statuses that one code alone can mean: a response to HEAD has no body that names it. */
const BY_STATUS: Record<number, string> = {
  401: "unauthorized",
  404: "not_found",
  416: "range_not_satisfiable",
  429: "too_many_requests",
};

/** The error of a response; `body` is undefined for HEAD. */
export function responseError(
  status: number,
  headers: Headers,
  body: string | undefined,
  secrets: readonly (string | undefined)[],
): KeyturnError {
  const type = headers.get("content-type") ?? "";
  const isProblem = /^application\/problem\+json\b/i.test(type);
  const problem = isProblem && body !== undefined ? jsonObject(body) : {};
  const code = body === undefined && (isProblem || !type) ? BY_STATUS[status] : problem["code"];
  const fields = { status, retryAfterSeconds: retryAfter(headers.get("retry-after")) };
  if (typeof code !== "string" || !/^[a-z_]{1,40}$/.test(code) || secrets.includes(code)) {
    return new UnexpectedResponseError(`status ${status} without a code`, fields);
  }
  let detail = typeof problem["detail"] === "string" ? problem["detail"] : "";
  for (const secret of secrets) {
    if (secret) {
      detail = detail.replaceAll(secret, "…");
    }
  }
  const Class = CLASSES.get(code) ?? CodedError;
  return new Class(code as ErrorCode, detail.slice(0, DETAIL_MAX_CHARACTERS), fields);
}

/** The error of the storage's response to a presigned request; undefined where there is none. */
export function storageError(status: number | undefined): KeyturnError {
  const detail = `the storage responded with ${status ?? "nothing"}`;
  if (status === undefined || status >= 500) {
    return new CodedError("storage_unavailable", detail, { status });
  }
  // Not 401: that would be the presigned address's fault, not the API key's.
  return status === 404 || status === 416
    ? responseError(status, new Headers(), undefined, [])
    : new UnexpectedResponseError(detail, { status });
}

/** `Retry-After` in seconds: a number or a date. */
function retryAfter(value: string | null): number | undefined {
  const seconds = Number(value) || (Date.parse(`${value}`) - Date.now()) / 1000;
  return seconds > 0 ? seconds : undefined;
}

/** A JSON object from a peer that may send anything; an empty one for anything else. */
export function jsonObject(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}
