/**
 * The DEK that a project's API key opens, from an object's metadata (SPEC 2.1, 4).
 *
 * Without the operator's keys and the keyring there is only the user wrap. So no plaintext object
 * is opened, which only the keyring can allow.
 */
import { CodedError, KeyturnError, NotFoundError } from "../errors.ts";
import { checkApiKey, checkObjectKey, checkProject, malformed } from "../names.ts";
import { isWellFormed } from "../text.ts";
import { type Bytes, corrupt, KEY_BYTES, openSealed } from "./cobblestone.ts";

/** What opens one object. */
export interface ObjectKeys {
  readonly project: string;
  /** The object's key, without its project. */
  readonly key: string;
  /** The `enc-` metadata of the object. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The API key that the metadata was written under. It belongs on a server, never in a page. */
  readonly apiKey: string;
  /** The deployment's `KEYTURN_PEPPER`; empty by default. */
  readonly pepper?: string | undefined;
}

const ALGORITHM = "Cobblestone-256";
const MAX_METADATA = 2048;
const utf8 = new TextEncoder();

/** The object's DEK, by its user wrap. */
export async function userDek(keys: ObjectKeys): Promise<Bytes> {
  const { project, key, metadata, apiKey, pepper = "" } = keys;
  checkProject(project);
  checkObjectKey(key);
  checkApiKey(apiKey);
  if (typeof pepper !== "string" || !isWellFormed(pepper)) {
    throw malformed("a pepper is text");
  }
  requireWebCrypto();
  const { generation, kekId, wrap } = userWrap(metadata);
  const kek = await userKek(apiKey, project, pepper);
  const context = ["keyturn/v1/dek", "user", ALGORITHM, project, key, generation].join("\0");
  const dek = await openSealed(kek, utf8.encode(context), wrap).catch(() => undefined);
  if (dek?.length === KEY_BYTES) {
    return dek;
  }
  // The label authorizes nothing, but it explains the usual mistakes.
  throw noUsableWrap(
    (await idOf(kek)) === kekId
      ? "the wrap is not of this project and object key"
      : "another API key or pepper than the one that this metadata was written under: " +
          "after a rotation, get a new link and use the new API key",
  );
}

function requireWebCrypto(): void {
  if (globalThis.crypto?.subtle === undefined) {
    throw new KeyturnError("WebCrypto is missing: a page needs https, or localhost");
  }
}

/** The user wrap and its labels; anything but a Cobblestone-256 object is refused. */
function userWrap(metadata: Readonly<Record<string, string>>): {
  generation: string;
  kekId: string;
  wrap: Bytes;
} {
  if (typeof metadata !== "object" || metadata === null) {
    throw malformed("the metadata are the object's enc- names and their values");
  }
  const algorithm = metadata["enc-algo"];
  if (algorithm === undefined) {
    throw corrupt("the object is not encrypted: only the gateway serves it");
  }
  if (algorithm === "deleted") {
    throw new NotFoundError("not_found", "the object was deleted");
  }
  if (algorithm !== ALGORITHM) {
    throw new CodedError("unknown_algorithm", shown(algorithm));
  }
  const label = /^([1-9]\d{0,17}):([0-9a-f]{16})$/.exec(metadata["enc-kek-user"] ?? "");
  if (label?.[1] === undefined || label[2] === undefined) {
    throw corrupt("enc-kek-user is missing or unreadable");
  }
  const wrap = fromBase64(metadata["enc-dek-user"]);
  return { generation: label[1], kekId: label[2], wrap };
}

function noUsableWrap(detail: string): CodedError {
  return new CodedError("no_usable_wrap", detail);
}

function shown(algorithm: unknown): string {
  return `${algorithm}`.replace(/[^ -~]/g, "?").slice(0, 100);
}

/** The bytes of a text in base64, if it is their one spelling: `atob` alone reads others too. */
function fromBase64(text: unknown): Bytes {
  let bytes = "";
  try {
    bytes = typeof text === "string" && text.length <= MAX_METADATA ? atob(text) : bytes;
  } catch {
    // The comparison refuses it.
  }
  if (btoa(bytes) !== text) {
    throw corrupt("enc-dek-user is missing or not base64");
  }
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}

/** The project's user KEK (SPEC 2.1). */
async function userKek(apiKey: string, project: string, pepper: string): Promise<Bytes> {
  const secret = await crypto.subtle.importKey("raw", utf8.encode(apiKey), "HKDF", false, [
    "deriveBits",
  ]);
  const salt = utf8.encode(pepper);
  const info = utf8.encode(`keyturn/v1/user-kek\0${project}`);
  const derivation = { name: "HKDF", hash: "SHA-256", salt, info };
  return new Uint8Array(await crypto.subtle.deriveBits(derivation, secret, KEY_BYTES * 8));
}

/** A KEK's id: HKDF-Expand-SHA256 to 8 bytes, in hex (SPEC 2.3). */
async function idOf(kek: Bytes): Promise<string> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", kek, algorithm, false, ["sign"]);
  const block = await crypto.subtle.sign("HMAC", key, utf8.encode("keyturn/v1/kek-id\u0001"));
  return hex(new Uint8Array(block, 0, 8));
}

/** Bytes as hex digits. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
