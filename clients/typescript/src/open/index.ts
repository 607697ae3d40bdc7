/** Open encrypted objects without the gateway in the data path. */
export { CodedError, type ErrorCode, KeyturnError } from "../errors.ts";
