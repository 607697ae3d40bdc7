/** A rotation, followed to its proof (SPEC 8, 9.5). */
import { UnauthorizedError, UnexpectedResponseError } from "./errors.ts";
import { checkApiKey, malformed } from "./names.ts";
import type { components, operations } from "./openapi.ts";
import { readJson } from "./read_json.ts";
import { isId } from "./text.ts";
import { type Connection, pause } from "./transport.ts";
import { idOf, type WaitOptions, write } from "./write.ts";

type Document = operations["getRotation"]["responses"]["200"]["content"]["application/json"];

/** What a rotation's sweep found and did (SPEC 8.6). */
export type RotationCounts = components["schemas"]["Counts"];

/** The phase of a rotation's sweep: rewrapping, then proving `done` of `total` objects. */
export type RotationProgress = components["schemas"]["Progress"];

/** Where a rotation is. `completed` with `counts.clean` proves that no old wrap is left. */
export interface RotationState {
  readonly rotationId: string;
  readonly state: Document["state"];
  readonly generation: number | undefined;
  readonly counts: RotationCounts | undefined;
  /** While it is running, and once it is completed. */
  readonly progress: RotationProgress | undefined;
  /** Why it was rejected or failed: a code of SPEC 12. */
  readonly code: string | undefined;
  readonly detail: string | undefined;
}

/** Options of `watchRotation`. */
export interface WatchOptions {
  /** The API key of this rotation, so that it can be followed across the change of keys. */
  readonly newApiKey?: string | undefined;
  /** Seconds between two requests; 1 by default. */
  readonly intervalSeconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

const END = /^(rejected|failed|completed)$/;
const STATE = /^(requested|accepted|running|rejected|failed|completed)$/;

/** Request a rotation; returns its id. */
export async function requestRotation(
  connection: Connection,
  newApiKey: string,
  options: WaitOptions,
): Promise<string> {
  const request = {
    method: "POST",
    url: `${connection.url}/rotations`,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ api_key: checkApiKey(newApiKey, "newApiKey") }),
  };
  const outcome = await write(connection, [202], request, options, undefined, newApiKey);
  return idOf(outcome, "rotation_id");
}

/** The rotation's state now. */
export async function readRotation(
  connection: Connection,
  rotationId: string,
  signal: AbortSignal | undefined,
): Promise<RotationState> {
  if (!isId(rotationId)) {
    throw malformed("a rotation's id is a UUID in lower case");
  }
  const url = `${connection.url}/rotations/${rotationId}`;
  const document = (await readJson(connection, { url, signal })) as Partial<Document>;
  const { rotation_id, state, generation, counts, progress, code, detail } = document;
  if (rotation_id !== rotationId || typeof state !== "string" || !STATE.test(state)) {
    const reason = "the response describes another rotation, or no rotation";
    throw new UnexpectedResponseError(reason, { status: 200 });
  }
  return { rotationId, state, generation, counts, progress, code, detail };
}

/** Each new state, up to and with the last one. */
export async function* watchStates(
  connection: Connection,
  rotationId: string,
  { newApiKey, intervalSeconds = 1, signal }: WatchOptions,
): AsyncGenerator<RotationState, void, undefined> {
  let current = connection;
  let next = newApiKey && { ...connection, apiKey: checkApiKey(newApiKey) };
  let last = "";
  for (;;) {
    let state: RotationState;
    try {
      state = await readRotation(current, rotationId, signal);
    } catch (error) {
      if (!(error instanceof UnauthorizedError) || !next) {
        throw error;
      }
      // The rotation was accepted: from then on only the new API key is the current one.
      current = next;
      next = undefined;
      continue;
    }
    const text = JSON.stringify(state);
    if (text !== last) {
      last = text;
      yield state;
    }
    if (END.test(state.state)) {
      return;
    }
    await pause(intervalSeconds, 0, signal);
  }
}
