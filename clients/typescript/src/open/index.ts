/** Open encrypted objects without the gateway in the data path. */
export type { OpenObject } from "../download.ts";
export {
  CodedError,
  type ErrorCode,
  GatewayError,
  IncompleteBodyError,
  KeyturnError,
  MalformedRequestError,
  NotFoundError,
  UnexpectedResponseError,
} from "../errors.ts";
export type { ObjectInfo } from "../object_info.ts";
export type { ByteRange } from "../range.ts";
export { type OpenOptions, open, openBytes, openStream } from "./open.ts";
export { LinkExpiredError } from "./stored_body.ts";
export type { ObjectKeys } from "./unwrap.ts";
