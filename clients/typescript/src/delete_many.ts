/** Deletes of many objects in one request, each with its own outcome (SPEC 9.3). */
import { UnexpectedResponseError } from "./errors.ts";
import { checkObjectKey, malformed } from "./names.ts";
import type { Connection } from "./transport.ts";
import { idOf, type WaitOptions, write } from "./write.ts";

/** A key of a delete that was not deleted. */
export interface RejectedKey {
  readonly key: string;
  /** Why: a code of SPEC 12, such as `not_found` or `locked_object`. */
  readonly code: string;
  readonly detail: string;
}

/** A delete of many objects that the gateway has accepted. */
export interface DeleteManyReceipt {
  readonly requestId: string;
  /** Whether each key has its outcome. If not, those in neither list may still be deleted. */
  readonly isFinal: boolean;
  readonly deleted: readonly string[];
  readonly rejected: readonly RejectedKey[];
}

const MAX_KEYS = 1000;
const MAX_CHARACTERS = 4 * 2 ** 20;

/** Delete up to 1,000 objects. */
export async function deleteObjects(
  connection: Connection,
  keys: readonly string[],
  options: WaitOptions,
): Promise<DeleteManyReceipt> {
  const asked = new Set(keys.map(checkObjectKey));
  if (!keys.length || keys.length > MAX_KEYS || asked.size < keys.length) {
    throw malformed("a delete names 1 to 1000 keys, each once");
  }
  const request = {
    method: "POST",
    url: `${connection.url}/deletes`,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ keys }),
  };
  const outcome = await write(
    connection,
    [200, 202],
    request,
    options,
    undefined,
    undefined,
    MAX_CHARACTERS,
  );
  const { status, fields } = outcome;
  const isFinal = status === 200;
  const { deleted = [], rejected } = fields as {
    deleted?: string[];
    rejected?: RejectedKey[];
  };
  const refused = Array.isArray(rejected) ? rejected : [undefined];
  const named = new Set([deleted, refused.map((each) => each?.key)].flat());
  if (
    !Array.isArray(deleted) ||
    [...named].some((key) => !asked.has(key as string)) ||
    refused.some((each) => typeof each?.code !== "string" || typeof each.detail !== "string") ||
    (isFinal && named.size < asked.size)
  ) {
    throw new UnexpectedResponseError("the response does not name the keys", { status });
  }
  return {
    requestId: idOf(outcome, "request_id"),
    isFinal,
    deleted,
    rejected: refused.map((each) => {
      const { key, code, detail } = each as RejectedKey;
      return { key, code, detail };
    }),
  };
}
