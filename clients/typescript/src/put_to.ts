/** Uploads through a link: one body, for one object, without an API key (SPEC 9.3). */
import type { UploadLink } from "./links.ts";
import type { TransportOptions } from "./transport.ts";
import type { PutOptions, PutReceipt, UploadBody } from "./upload.ts";

/** Options of `putTo`. The content type is the link's own by default; there is no metadata. */
export interface PutToOptions extends Omit<PutOptions, "metadata">, TransportOptions {}

/**
 * Upload one object through an upload link, and resolve once it is stored: for a page that holds no
 * API key. The body is sent once. In a browser, `KEYTURN_GATEWAY_CORS_ORIGINS` must name the page's
 * origin.
 *
 * An `UnauthorizedError` means that the link has ended; an `AlreadyExistsError`, that it is used up.
 */
export async function putTo(
  link: UploadLink | string,
  body: UploadBody,
  options: PutToOptions = {},
): Promise<PutReceipt> {
  return (await import("./upload.ts")).putByLink(link, body, options);
}
