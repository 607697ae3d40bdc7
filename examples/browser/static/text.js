// How the page writes sizes, times and errors.

const BYTES = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
const days = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const minutes = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** A size for people, such as "1.4 MB". */
export function sizeText(bytes) {
  if (bytes === null || bytes === undefined) return "unknown";
  const step = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), BYTES.length - 1);
  return new Intl.NumberFormat(undefined, {
    style: "unit",
    unit: BYTES[step],
    unitDisplay: step ? "short" : "long",
    maximumFractionDigits: step ? 1 : 0,
  }).format(bytes / 1000 ** step);
}

/** A date, in the user's language and time zone. */
export function dateText(date) {
  return days.format(date);
}

/** A date and a time, likewise. */
export function timeText(date) {
  return minutes.format(date);
}

/** The last segment of a key or a prefix. */
export function lastSegment(key) {
  return key.replace(/\/$/, "").split("/").at(-1);
}

const REASONS = {
  already_exists: "There is a file of this name already. Rename yours, and upload it again.",
  deleted_key: "A file of this name was deleted, and its name cannot be used again.",
  body_too_large: "This file is too large.",
  locked_object: "This file is locked against changes.",
  malformed_request: "A file cannot have this name.",
  not_found: "This file no longer exists.",
  not_permitted: "You are not allowed to do this.",
  too_many_requests: "Too many requests. Try again in a moment.",
  unauthorized: "This took too long. Try again.",
};

/** What went wrong, in one sentence for the user. */
export function errorText(error) {
  if (error.code in REASONS) return REASONS[error.code];
  if (error.name === "UploadPendingError") return "Accepted, but not stored yet. Look again later.";
  if (error.name === "ResponseLostError") {
    return "The connection was lost. Check whether the file is there before you try again.";
  }
  return error.transient
    ? "The file store does not respond. Try again."
    : error.detail || error.message;
}
