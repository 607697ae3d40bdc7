/** A project's keys, for a reader that opens its objects by itself (SPEC 9.8). */
import { UnexpectedResponseError } from "./errors.ts";
import type { components } from "./openapi.ts";
import { readJson } from "./read_json.ts";
import type { Connection } from "./transport.ts";

type Document = components["schemas"]["Keys"];

/** A customer secret as the customer's KMS encrypted it: what the KMS needs to decrypt it. */
export interface WrappedSecret {
  /** The KMS, by its name in the operator's settings. */
  readonly store: string;
  /** The key of the KMS: the ARN of an AWS key, or the name of a transit key. */
  readonly key: string;
  /** The secret's id, which labels of objects name. */
  readonly secretId: string;
  /** Base64 of the ciphertext of AWS, or the text of Vault. */
  readonly wrapped: string;
  /** The encryption context of AWS, or the `associated_data` of Vault. */
  readonly context: Readonly<Record<string, string>> | string;
}

/** A generation that objects may still be of. */
export interface GenerationKeys {
  readonly generation: number;
  /** The generation whose request its data keys are newer than; 0 for none. */
  readonly dekSince: number;
  /** What its objects need besides the API key; undefined if they need nothing. */
  readonly customerKey: WrappedSecret | undefined;
}

/** The keys that a project's objects need. */
export interface ProjectKeys {
  /** No wrap below it is to be trusted; 0 for none. */
  readonly dekFloor: number;
  /** The oldest first; the last is the current one. */
  readonly generations: readonly GenerationKeys[];
}

/** The project's keys now. The response has no key: `wrapped` opens only with the KMS. */
export async function readKeys(
  connection: Connection,
  signal: AbortSignal | undefined,
): Promise<ProjectKeys> {
  const url = `${connection.url}/keys`;
  const document = (await readJson(connection, { url, signal })) as Partial<Document>;
  const { dek_floor: dekFloor, generations: listed } = document;
  const generations = Array.isArray(listed) ? listed.map(generationOf) : [];
  if (!isNumber(dekFloor) || generations.length === 0) {
    throw notKeys();
  }
  return { dekFloor, generations };
}

function generationOf(entry: Partial<components["schemas"]["GenerationKeys"]>): GenerationKeys {
  const { generation, dek_since: dekSince, customer_key } = Object(entry) as typeof entry;
  if (!isNumber(generation) || !isNumber(dekSince)) {
    throw notKeys();
  }
  return { generation, dekSince, customerKey: wrappedSecretOf(customer_key) };
}

function wrappedSecretOf(
  fields: components["schemas"]["CustomerKey"] | undefined,
): WrappedSecret | undefined {
  if (fields === undefined) {
    return undefined;
  }
  const { store, key, secret_id: secretId, wrapped, context } = Object(fields) as typeof fields;
  const parts = typeof context === "object" ? Object.values(context ?? [context]) : [context];
  if ([store, key, secretId, wrapped, ...parts].some((text) => typeof text !== "string")) {
    throw notKeys();
  }
  return { store, key, secretId, wrapped, context };
}

function isNumber(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function notKeys(): UnexpectedResponseError {
  return new UnexpectedResponseError("the response does not describe the keys", { status: 200 });
}
