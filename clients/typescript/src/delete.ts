/** Deletes (SPEC 8.7, 9.3). */
import type { Connection } from "./transport.ts";
import { idOf, type WaitOptions, write } from "./write.ts";

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
