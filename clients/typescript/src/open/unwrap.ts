/**
 * The DEK that a project's API key opens, from an object's metadata (SPEC 2.1, 2.6, 4).
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
  /**
   * For a project with a customer key, the secrets that the customer's KMS decrypted, 32 bytes each:
   * `Keyturn.keys` has what it needs.
   */
  readonly customerSecrets?: readonly Uint8Array[] | undefined;
}

const ALGORITHM = "Cobblestone-256";
const MAX_METADATA = 2048;
const utf8 = new TextEncoder();

/** The object's DEK, by its user wrap. */
export async function userDek(keys: ObjectKeys): Promise<Bytes> {
  const { project, key, metadata, apiKey, pepper = "", customerSecrets = [] } = keys;
  checkProject(project);
  checkObjectKey(key);
  checkApiKey(apiKey);
  if (typeof pepper !== "string" || !isWellFormed(pepper)) {
    throw malformed("a pepper is text");
  }
  if (customerSecrets.some((secret) => secret?.length !== KEY_BYTES)) {
    throw malformed(`a customer secret is ${KEY_BYTES} bytes long`);
  }
  requireWebCrypto();
  const { generation, kekId, secretId, wrap } = userWrap(metadata);
  const kek = await userKek(apiKey, project, pepper);
  const context = ["keyturn/v1/dek", "user", ALGORITHM, project, key, generation].join("\0");
  const secrets = new Map<string, Bytes>();
  for (const secret of customerSecrets) {
    secrets.set(await idOf(Uint8Array.from(secret), "customer-secret-id"), Uint8Array.from(secret));
  }
  // Labels are hints: what they name comes first, and then everything else.
  for (const id of new Set([secretId, undefined, ...secrets.keys()])) {
    const secret = id === undefined ? undefined : secrets.get(id);
    if (id !== undefined && secret === undefined) {
      continue;
    }
    const candidate = secret && id ? await compositeKek(kek, secret, project, id) : kek;
    const dek = await openSealed(candidate, utf8.encode(context), wrap).catch(() => undefined);
    if (dek?.length === KEY_BYTES) {
      return dek;
    }
  }
  if (secretId !== undefined && !secrets.has(secretId)) {
    throw noUsableWrap(
      `the object also needs the customer secret ${secretId}: decrypt it with the customer's KMS`,
    );
  }
  // The label authorizes nothing, but it explains the usual mistakes.
  throw noUsableWrap(
    (await idOf(kek, "kek-id")) === kekId
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
  secretId: string | undefined;
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
  const label = /^([1-9]\d{0,17}):([0-9a-f]{16})(?::([0-9a-f]{16}))?$/.exec(
    metadata["enc-kek-user"] ?? "",
  );
  if (label?.[1] === undefined || label[2] === undefined) {
    throw corrupt("enc-kek-user is missing or unreadable");
  }
  const wrap = fromBase64(metadata["enc-dek-user"]);
  return { generation: label[1], kekId: label[2], secretId: label[3], wrap };
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
function userKek(apiKey: string, project: string, pepper: string): Promise<Bytes> {
  return derived(utf8.encode(apiKey), pepper, `keyturn/v1/user-kek\0${project}`);
}

/** The KEK of user wraps that also need a customer secret (SPEC 2.6). */
function compositeKek(kek: Bytes, secret: Bytes, project: string, id: string): Promise<Bytes> {
  const info = `keyturn/v1/composite-kek\0user\0${project}\0${id}`;
  return derived(Uint8Array.from([...kek, ...secret]), "", info);
}

/** HKDF-SHA256 to 32 bytes. */
async function derived(input: Bytes, salt: string, info: string): Promise<Bytes> {
  const key = await crypto.subtle.importKey("raw", input, "HKDF", false, ["deriveBits"]);
  const texts = { salt: utf8.encode(salt), info: utf8.encode(info) };
  const derivation = { name: "HKDF", hash: "SHA-256", ...texts };
  return new Uint8Array(await crypto.subtle.deriveBits(derivation, key, KEY_BYTES * 8));
}

/** The id of a KEK or of a customer secret: HKDF-Expand-SHA256 to 8 bytes, in hex (SPEC 2.3). */
async function idOf(secret: Bytes, kind: "kek-id" | "customer-secret-id"): Promise<string> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", secret, algorithm, false, ["sign"]);
  const block = await crypto.subtle.sign("HMAC", key, utf8.encode(`keyturn/v1/${kind}\u0001`));
  return hex(new Uint8Array(block, 0, 8));
}

/** Bytes as hex digits. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
