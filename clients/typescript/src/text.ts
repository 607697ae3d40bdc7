/** What the text of an id or a name must be (SPEC 1). */

/** Whether this is the id of a request: a UUID in lower case. */
export function isId(id: unknown): id is string {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(`${id}`);
}

/** Whether the text has no lone surrogate, so that UTF-8 can express it. */
export function isWellFormed(text: string): boolean {
  return !/\p{Cs}/u.test(text);
}
