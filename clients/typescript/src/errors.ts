/**
 * Every error of this package, in one tree (SPEC 12).
 *
 *     KeyturnError                       code, transient, status, detail, retryAfterSeconds
 *      ├── CodedError                    refused, with a code of SPEC 12
 *      │    ├── MalformedRequestError    malformed_request; without a status, nothing was sent
 *      │    ├── UnauthorizedError        unauthorized
 *      │    ├── NotFoundError            not_found
 *      │    ├── AlreadyExistsError       already_exists
 *      │    └── TooManyRequestsError     too_many_requests
 *      └── GatewayError                  anything else that fails between here and the gateway
 *           ├── GatewayUnavailableError  no connection, or no response to a read
 *           ├── ResponseLostError        a write got no response: it may have taken effect
 *           ├── UploadPendingError       an upload was accepted, and its outcome is not known yet
 *           ├── UnexpectedResponseError  a response that SPEC 9 does not define
 *           ├── LinkExpiredError         of `keyturn/open`: the storage refuses a ciphertext link
 *           ├── IncompleteBodyError      a body ended before its length
 *           └── ObjectChangedError       a broken download cannot be resumed: another object is there
 *
 * No error holds an API key, a link, a part of a body, or the error of another library as its
 * cause: that one could hold the request.
 */
import type { components } from "./openapi.ts";

/** A code of SPEC 12: the same on the broker, over HTTP and here. */
export type ErrorCode = NonNullable<components["schemas"]["Problem"]["code"]>;

/** What an error has beside its message. */
export interface ErrorFields {
  readonly code?: ErrorCode | undefined;
  readonly transient?: boolean | undefined;
  readonly status?: number | undefined;
  readonly detail?: string | undefined;
  readonly retryAfterSeconds?: number | undefined;
  readonly uploadId?: string | undefined;
}

/** Base class of all errors of this package. */
export class KeyturnError extends Error {
  override readonly name: string = "KeyturnError";
  /** The code of SPEC 12, where the error has one. */
  declare readonly code: ErrorCode | undefined;
  /** Whether the same request may succeed later. */
  declare readonly transient: boolean;
  /** The status of the HTTP response, where there was one. */
  declare readonly status: number | undefined;
  /** One line for people: what is wrong, without secrets. May be empty. */
  declare readonly detail: string;
  /** Seconds to wait before the next attempt, where the response states them. */
  declare readonly retryAfterSeconds: number | undefined;

  constructor(message: string, fields?: ErrorFields) {
    super(message);
    Object.assign(this, { transient: false, detail: message, ...fields });
  }
}

const TRANSIENT =
  /_unavailable$|^(unknown_master_key|keyring_rolled_back|lease_mismatch|too_many_requests|customer_key_refused)$/;

/** A refusal or failure that has a code of SPEC 12. */
export class CodedError extends KeyturnError {
  override readonly name: string = "CodedError";
  declare readonly code: ErrorCode;

  constructor(code: ErrorCode, detail: string, fields?: ErrorFields) {
    super(detail ? `${code}: ${detail}` : code, {
      ...fields,
      code,
      detail,
      transient: TRANSIENT.test(code),
    });
  }
}

/** The request is malformed. Without a `status`, nothing was sent. */
export class MalformedRequestError extends CodedError {
  override readonly name: string = "MalformedRequestError";
}

/** Not the project's current API key, or no such project. */
export class UnauthorizedError extends CodedError {
  override readonly name: string = "UnauthorizedError";
}

/** No object exists at that key, or it was deleted. */
export class NotFoundError extends CodedError {
  override readonly name: string = "NotFoundError";
}

/** The key holds an object already; objects are written once. */
export class AlreadyExistsError extends CodedError {
  override readonly name: string = "AlreadyExistsError";
}

/** The project exceeds its share of the gateway. */
export class TooManyRequestsError extends CodedError {
  override readonly name: string = "TooManyRequestsError";
}

/** A failure without a code: of the connection, or of the response. */
export class GatewayError extends KeyturnError {
  override readonly name: string = "GatewayError";
}

/** The gateway could not be reached, or did not respond to a read. Safe to retry. */
export class GatewayUnavailableError extends GatewayError {
  override readonly name: string = "GatewayUnavailableError";
}

/**
 * A write was sent, at least in part, and its response did not arrive.
 *
 * It may have taken effect, or may still do so. After `put`, check with `stat`: a second upload is
 * refused with `already_exists` if the first was stored. `delete` can be repeated. After `rotate`,
 * try the new API key.
 */
export class ResponseLostError extends GatewayError {
  override readonly name: string = "ResponseLostError";
}

/**
 * The gateway accepted an upload, and its outcome was not known when the wait ended.
 *
 * The object may still be stored, or refused. Check with `stat`: a second upload is refused with
 * `already_exists` if the first was stored.
 */
export class UploadPendingError extends GatewayError {
  override readonly name: string = "UploadPendingError";
  /** The id of the upload, which its event names too. */
  declare readonly uploadId: string;
}

/**
 * The response is not the gateway's (a proxy's page, for example), or does not fit the request.
 *
 * With a `status` of 500 or more, a write may have taken effect: a proxy responds so when it loses
 * the gateway's response.
 */
export class UnexpectedResponseError extends GatewayError {
  override readonly name: string = "UnexpectedResponseError";
  declare readonly status: number;
}

/**
 * The connection ended, or stalled, before the whole body was received.
 *
 * The gateway cuts a body when a chunk is not authentic or the storage fails. The bytes received so
 * far are authentic, but they are not the whole object or range: do not keep them under its name.
 */
export class IncompleteBodyError extends GatewayError {
  override readonly name: string = "IncompleteBodyError";
  /** Bytes received. */
  declare readonly received: number;
  /** Bytes expected. */
  declare readonly expected: number;

  constructor(received: number, expected: number, reason: string) {
    super(`the body ended after ${received} of ${expected} bytes (${reason})`, { transient: true });
    Object.assign(this, { received, expected });
  }
}

/** A broken download cannot be resumed: the key now holds other content. Start again. */
export class ObjectChangedError extends GatewayError {
  override readonly name: string = "ObjectChangedError";
}
