/** Names and secrets are checked before anything is sent (SPEC 1). */
import { MalformedRequestError } from "./errors.ts";

const KEY_MAX_BYTES = 900;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Return the project's id if it has the form of SPEC 1. */
export function checkProject(project: unknown): string {
  if (typeof project !== "string" || !/^[a-z0-9][a-z0-9-]{0,62}$/.test(project)) {
    throw new MalformedRequestError("a project id has 1 to 63 characters of a-z, 0-9 and -");
  }
  return project;
}

/** Return the object's key if SPEC 1 allows it. An error names the rule and not the key. */
export function checkObjectKey(key: unknown): string {
  if (typeof key !== "string" || !isWellFormed(key)) {
    throw new MalformedRequestError("a key must be valid UTF-8");
  }
  const bytes = new TextEncoder().encode(key).length;
  if (bytes < 1 || bytes > KEY_MAX_BYTES) {
    throw new MalformedRequestError(`a key has 1 to ${KEY_MAX_BYTES} bytes of UTF-8`);
  }
  if (/\p{Cc}/u.test(key)) {
    throw new MalformedRequestError("a key has no control characters");
  }
  if (key.split("/").some((segment) => segment === "" || segment === "." || segment === "..")) {
    throw new MalformedRequestError(
      "a key has no empty, '.' or '..' segment, and no '/' at either end",
    );
  }
  return key;
}

/** Return the API key if it has the form of SPEC 1. An error does not repeat it. */
export function checkApiKey(apiKey: unknown): string {
  if (typeof apiKey !== "string" || !/^[A-Za-z0-9._~+/=-]{32,512}$/.test(apiKey)) {
    throw new MalformedRequestError("an API key is 32 to 512 characters of [A-Za-z0-9._~+/=-]");
  }
  return apiKey;
}

/** Return the id of a request: a UUID in lower case. */
export function checkId(id: unknown): string {
  if (!isId(id)) {
    throw new MalformedRequestError("an id is a UUID in lower case");
  }
  return id;
}

/** Whether this is the id of a request. */
export function isId(id: unknown): id is string {
  return typeof id === "string" && UUID.test(id);
}

/** Whether the text has no lone surrogate, so that UTF-8 can express it. */
export function isWellFormed(text: string): boolean {
  return !/\p{Cs}/u.test(text);
}
