/** Requests that change something: sent once, and a lost response is an error of its own; deletes. */
import { ResponseLostError, UnexpectedResponseError } from "./errors.ts";
import { malformed } from "./names.ts";
import { jsonObject } from "./response_error.ts";
import { isId } from "./text.ts";
import {
  authorized,
  type Connection,
  type Exchange,
  exchange,
  Lost,
  type Request,
  refusal,
  unavailable,
} from "./transport.ts";

/** Options of `delete`, `deleteMany` and `rotate`. */
export interface WaitOptions {
  /** Seconds that the gateway may wait for the outcome. */
  readonly waitSeconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A response to a write. */
export interface Outcome {
  readonly status: number;
  readonly fields: Record<string, unknown>;
}

/** Send a write with the API key, by `fetch` or in another way. */
export async function write(
  connection: Connection,
  statuses: readonly number[],
  request: Request,
  { waitSeconds, signal }: WaitOptions,
  send: (waiting: Connection, request: Request) => Promise<Exchange> = exchange,
  secret?: string,
  maxCharacters?: number,
): Promise<Outcome> {
  if (waitSeconds !== undefined && !(Number.isSafeInteger(waitSeconds) && waitSeconds > 0)) {
    throw malformed("waitSeconds is 1 or more");
  }
  const prefer = waitSeconds && `wait=${waitSeconds}`;
  const client = denoClient();
  const sent = {
    ...request,
    ...(client && { client }),
    headers: { ...request.headers, prefer: prefer || undefined },
    // Bun repeats a DELETE when a connection that was kept alive breaks under it.
    keepalive: false,
    signal,
  };
  const responseTimeoutMs = connection.responseTimeoutMs + (waitSeconds ?? 0) * 1000;
  try {
    const made = await send({ ...connection, responseTimeoutMs }, authorized(connection, sent));
    const { status } = made.response;
    if (!statuses.includes(status)) {
      throw await refusal(connection, made, secret);
    }
    return { status, fields: jsonObject(await made.text(maxCharacters)) };
  } catch (error) {
    if (!(error instanceof Lost)) {
      throw error;
    }
    throw error.unsent
      ? unavailable(error)
      : new ResponseLostError(`the request received no response (${error.reason})`);
  } finally {
    client?.close();
  }
}

/** A connection for one write: Deno repeats what breaks on one that was kept alive, POST too. */
function denoClient(): { close(): void } | undefined {
  const { Deno } = globalThis as unknown as { Deno?: Record<string, unknown> };
  const create = Deno?.["createHttpClient"];
  return typeof create === "function" ? create({ poolMaxIdlePerHost: 0 }) : undefined;
}

/** The id of a request that the gateway has published. */
export function idOf({ status, fields }: Outcome, name: string): string {
  const id = fields[name];
  if (!isId(id)) {
    throw new UnexpectedResponseError("the response has no id", { status });
  }
  return id;
}

/** A delete that the gateway has accepted. */
export interface DeleteReceipt {
  /** The request's id; undefined if the object is deleted already. */
  readonly requestId: string | undefined;
  /** Whether the object is deleted already. */
  readonly deleted: boolean;
}

/** Delete one object. */
export async function deleteObject(
  connection: Connection,
  url: string,
  options: WaitOptions,
): Promise<DeleteReceipt> {
  const outcome = await write(connection, [202, 204], { method: "DELETE", url }, options);
  return outcome.status === 204
    ? { requestId: undefined, deleted: true }
    : { requestId: idOf(outcome, "request_id"), deleted: false };
}
