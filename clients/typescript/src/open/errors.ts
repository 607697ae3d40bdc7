/** The error that only `keyturn/open` throws; the others are those of the client. */
import { GatewayError } from "../errors.ts";

/** The storage refuses a ciphertext link: it has expired, or was changed. Get a new one. */
export class LinkExpiredError extends GatewayError {
  override readonly name: string = "LinkExpiredError";
}
