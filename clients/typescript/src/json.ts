/** JSON from a peer that may send anything. */

/** A JSON object; an empty one where the text is something else. */
export function jsonObject(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}
