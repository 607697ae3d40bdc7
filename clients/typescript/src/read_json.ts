/** Requests that change nothing and are answered with JSON: repeated like all reads. */
import { jsonObject } from "./response_error.ts";
import {
  authorized,
  type Connection,
  exchange,
  type Request,
  refusal,
  retried,
} from "./transport.ts";

const MAX_CHARACTERS = 16 * 1024 * 1024;

/** The JSON object of the response, which must have this status. */
export function readJson(
  connection: Connection,
  request: Request,
  status = 200,
): Promise<Record<string, unknown>> {
  return retried(connection, request.signal, async () => {
    const made = await exchange(connection, authorized(connection, request));
    if (made.response.status !== status) {
      throw await refusal(connection, made);
    }
    return jsonObject(await made.text(MAX_CHARACTERS));
  });
}
