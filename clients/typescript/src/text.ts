/** What the text of an id, a name or a time must be (SPEC 1). */

/** Whether this is the id of a request: a UUID in lower case. */
export function isId(id: unknown): id is string {
  return typeof id === "string" && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id);
}

/** A time of SPEC 1; undefined where it is none. */
export function timeOf(text: unknown): Date | undefined {
  const isTime =
    typeof text === "string" && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,6})?Z$/.test(text);
  const time = new Date(isTime ? text.replace(".Z", "Z") : "");
  return Number.isNaN(+time) ? undefined : time;
}

/** Whether the text has no lone surrogate, so that UTF-8 can express it. */
export function isWellFormed(text: string): boolean {
  return !/\p{Cs}/u.test(text);
}
