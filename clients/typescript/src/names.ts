/** Names, secrets and addresses are checked before anything is sent (SPEC 1). */
import { MalformedRequestError } from "./errors.ts";

/** The error for what is refused before it is sent. */
export function malformed(rule: string): MalformedRequestError {
  return new MalformedRequestError("malformed_request", rule);
}

function matches(text: unknown, pattern: RegExp, rule: string): string {
  if (typeof text === "string" && pattern.test(text)) {
    return text;
  }
  // Without the text itself, which may be a secret.
  throw malformed(rule);
}

/** Return the project's id if it has the form of SPEC 1. */
export function checkProject(project: unknown): string {
  return matches(project, /^[a-z0-9][a-z0-9-]{0,62}$/, "a project is 1 to 63 of a-z, 0-9, -");
}

/** Return the API key if it has the form of SPEC 1. A variable that is not set is a `TypeError`. */
export function checkApiKey(apiKey: unknown, name = "apiKey"): string {
  if (typeof apiKey !== "string") {
    throw new TypeError(`${name} is ${typeof apiKey}, not a string`);
  }
  const pattern = /^[A-Za-z0-9._~+/=-]{32,512}$/;
  return matches(apiKey, pattern, "an API key is 32 to 512 of A-Z, a-z, 0-9, ._~+/=-");
}

/** Return the object's key if SPEC 1 allows it. */
export function checkObjectKey(key: unknown): string {
  if (
    typeof key !== "string" ||
    !/^(?!\.{0,2}(\/|$))([^\p{Cc}\p{Cs}/]|\/(?!\.{0,2}(\/|$)))+$/u.test(key) ||
    new TextEncoder().encode(key).length > 900
  ) {
    throw malformed(
      "a key is 1 to 900 bytes of UTF-8, without control characters, '', '.' or '..' segments",
    );
  }
  return key;
}

/** Whether this is an absolute http or https URL without a user or a password. */
export function isHttpUrl(text: unknown): text is string {
  try {
    const { protocol, username, password } = new URL(text as string);
    return /^https?:$/.test(protocol) && !username && !password;
  } catch {
    return false;
  }
}

/** Whether an API key sent to this address can be read on the way there. */
export function isUnencrypted(url: string): boolean {
  const { protocol, hostname } = new URL(url);
  return protocol === "http:" && !/^((.+\.)?localhost\.?|127(\.\d+){3}|\[::1\])$/.test(hostname);
}
